"""Packing, data order and loader together: the stream of batches is one, whoever asks for which part of it."""

import dataclasses
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import stores
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import store_of

import feebcore as feeb
from feebcore.data.loader import BatchSource, Prefetch, make_batches
from feebcore.data.store import TokenStore
from feebcore.data.store_writer import SplitWriter
from feebcore.errors import DataError, PluginError
from feebcore.parts import Part
from feebcore.protocols import Batch, BuildContext, DataOrder
from feebcore.registry import get_registry

VOCAB, BOS, EOS = 100, 98, 99


def part(kind: str, name: str, **options: object) -> Part:
    spec = get_registry().resolve(kind, name)
    return Part(kind, spec, spec.config(**options))


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    rng = np.random.default_rng(0)
    documents = [np.concatenate([[BOS], rng.integers(0, 98, rng.integers(0, 40)), [EOS]]) for _ in range(40)]
    writer = SplitWriter(tmp_path / "t.zarr", "train", vocab_size=VOCAB, bos_id=BOS, eos_id=EOS, shard_tokens=256, chunk_tokens=64)
    writer.append(documents)
    writer.finish(np.array([len(d) for d in documents]), np.zeros(len(documents)), ["test"])
    return TokenStore.open(tmp_path / "t.zarr", "train")


def batches(store: TokenStore, batch_size: int = 8, seq_len: int = 16, **packing: object) -> BatchSource:
    return make_batches(store, part("packings", "concat", **packing), part("data_orders", "shuffled"), batch_size, seq_len, seed=5)


def test_each_token_but_the_first_is_a_target_once_an_epoch(store: TokenStore) -> None:
    packing = part("packings", "concat").build(store=store, seq_len=16)
    tokens = packing.sequences(np.arange(packing.num_sequences)).tokens
    flat = store.read(0, store.num_tokens).astype(np.int64)
    used = packing.num_sequences * 16
    assert np.array_equal(tokens[:, 1:].reshape(-1), flat[1 : used + 1])
    assert np.array_equal(tokens[:, :-1].reshape(-1), flat[:used])
    assert store.num_tokens - 1 - used < 16


def test_targets_are_the_next_tokens(store: TokenStore) -> None:
    batch = batches(store).batch(3)
    assert batch.tokens.shape == batch.targets.shape == (8, 16)
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    assert batch.mask is batch.doc_ids is batch.positions is None


def test_ranks_share_one_stream_and_steps_do_not_depend_on_history(store: TokenStore) -> None:
    source = batches(store)
    whole = source.batch(11).tokens
    for world in (2, 4, 8):
        ranks = [batches(store).batch(11, rank, world).tokens for rank in range(world)]
        assert torch.equal(torch.stack(ranks, dim=1).reshape(8, 16), whole)
    with pytest.raises(ValueError, match="does not divide over 3 ranks"):
        source.batch(0, 0, 3)


def test_another_batch_size_reads_the_same_samples(store: TokenStore) -> None:
    wide, narrow = batches(store, batch_size=8), batches(store, batch_size=2)
    assert torch.equal(torch.cat([narrow.batch(s).tokens for s in range(12)]), torch.cat([wide.batch(s).tokens for s in range(3)]))


def test_document_mask_names_documents_and_restarts_positions(store: TokenStore) -> None:
    batch = batches(store, document_mask=True).batch(0)
    assert batch.mask is not None
    assert batch.doc_ids is not None
    assert batch.positions is not None
    for row in range(8):
        document, position = 0, 0
        for t in range(16):
            if t and batch.tokens[row, t] == BOS:
                document, position = document + 1, 0
            assert batch.doc_ids[row, t] == document
            assert batch.positions[row, t] == position
            assert batch.mask[row, t] == (batch.targets[row, t] != BOS)
            position += 1


def test_a_sequence_longer_than_the_text_says_so(store: TokenStore) -> None:
    with pytest.raises(DataError, match=r"seq_len 100000 is longer than the text: split 'train' has \d+ tokens"):
        batches(store, seq_len=100_000)


def test_prefetch_gives_the_same_batches_in_order_and_restarts_anywhere(store: TokenStore) -> None:
    source = batches(store)
    with Prefetch(source) as ahead:
        for step in (0, 1, 2, 7, 8, 3, 4):
            assert torch.equal(ahead.batch(step).tokens, source.batch(step).tokens)
        assert ahead.wait_seconds > 0


COMBINATIONS = [
    ("concat", "shuffled", {}),
    ("bestfit", "shuffled", {}),
    ("bos_aligned", "repeat_batches", {"times": 3}),
    ("concat", "mixture", {"proportions": {"s0": 2, "s1": 1}, "phases": [{"begin": 0.4, "proportions": {"s1": 1}}]}),
    ("bestfit", "curriculum", {"stages": 7}),
]


@pytest.fixture(params=COMBINATIONS, ids=lambda c: f"{c[0]}-{c[1]}")
def source(request: pytest.FixtureRequest, tmp_path: Path) -> BatchSource:
    """Any packing with any order, over two sources; a run of 60 steps of 8 sequences."""
    packing, order, options = request.param
    store = store_of(tmp_path / "two", np.random.default_rng(2).integers(0, 60, 60).tolist(), [0] * 40 + [1] * 20)
    return make_batches(store, stores.part("packings", packing, document_mask=True), stores.part("data_orders", order, **options), 8, 16, seed=7, max_steps=60)


def rows_of(batch: Batch) -> list[bytes]:
    """Each row with all that belongs to it."""
    fields = [getattr(batch, f.name) for f in dataclasses.fields(batch)]
    return [b"".join(b"-" if f is None else f[row].numpy().tobytes() for f in fields) for row in range(len(batch.tokens))]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(world=st.sampled_from([1, 2, 4, 8]), depth=st.integers(1, 5), first=st.integers(0, 50), steps=st.integers(1, 8))
def test_the_stream_is_the_same_for_any_ranks_depth_and_start(source: BatchSource, world: int, depth: int, first: int, steps: int) -> None:
    expected = [rows_of(source.batch(step)) for step in range(first, first + steps)]
    rows: list[list[bytes]] = [[b""] * 8 for _ in range(steps)]
    for rank in range(world):
        with Prefetch(source, depth, rank, world) as ahead:
            for number in range(steps):
                rows[number][rank::world] = rows_of(ahead.batch(first + number))
    assert rows == expected


def test_micro_batches_are_parts_of_the_same_stream(source: BatchSource) -> None:
    from feebcore.train.step import micro_batches

    for size in (1, 2, 4, 8):
        parts = list(micro_batches(source.batch(5), size, torch.device("cpu")))
        assert [row for p in parts for row in rows_of(p)] == rows_of(source.batch(5))


class Slow:
    """A source that notes what it is asked for, and fails at one step."""

    def __init__(self, fails_at: int = -1, seconds: float = 0.0) -> None:
        self.fails_at, self.seconds, self.asked = fails_at, seconds, []

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        self.asked.append((step, rank, world))
        time.sleep(self.seconds)
        if step == self.fails_at:
            raise DataError(f"broken at step {step}")
        return Batch(torch.tensor([step]), torch.tensor([rank]))


def test_batches_are_made_ahead_and_waiting_is_counted() -> None:
    slow = Slow(seconds=0.05)
    with Prefetch(slow, depth=3) as ahead:
        ahead.batch(0)
        waited = ahead.wait_seconds
        assert 0.04 < waited < 1.0
        time.sleep(0.5)
        assert [step for step, _, _ in slow.asked] == [0, 1, 2, 3], "three ahead, and no more"
        for step in (1, 2, 3):
            assert int(ahead.batch(step).tokens) == step
        assert ahead.wait_seconds - waited < 0.05
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_prefetch_goes_on_after_an_error() -> None:
    slow = Slow(fails_at=2)
    with Prefetch(slow, depth=2) as ahead:
        assert int(ahead.batch(1).tokens) == 1
        for _ in range(2):
            with pytest.raises(DataError, match="broken at step 2"):
                ahead.batch(2)
        assert int(ahead.batch(3).tokens) == 3
        slow.fails_at = -1
        assert int(ahead.batch(2).tokens) == 2


def test_sequences_are_the_order_s_at_any_step(store: TokenStore) -> None:
    source = batches(store)
    for step in (0, 255, 256, 257, 5000, 300, 1):
        assert np.array_equal(source._sequences(step), source.data_order(np.arange(8 * step, 8 * step + 8)))


ENDINGS = {
    "returns": "",
    "raises": "raise ValueError('seen')",
    # a shell that starts the tests in the background has them ignore SIGINT
    "interrupted": "signal.signal(signal.SIGINT, signal.default_int_handler); os.kill(os.getpid(), signal.SIGINT); time.sleep(60)",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_process_that_closes_nothing_ends(ending: str) -> None:
    code = f"""
import os, signal, time
from feebcore.data.prefetch import Prefetch

class Endless:
    def batch(self, step, rank, world):
        time.sleep(0.05)
        return step

ahead = Prefetch(Endless(), depth=4)
print(ahead.batch(0), flush=True)
{ENDINGS[ending]}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "0"
    assert {"returns": done.returncode == 0, "raises": "ValueError: seen" in done.stderr, "interrupted": "KeyboardInterrupt" in done.stderr}[ending]


def test_batches_are_pinned_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    with Prefetch(Slow(), depth=1, pin=True) as ahead:
        assert ahead.batch(0).mask is None
    assert len(pinned) >= 2
    pinned.clear()
    with Prefetch(Slow(), depth=1) as ahead:
        ahead.batch(0)
    assert not pinned


class Backwards(DataOrder):
    """The last sequence first."""

    def __init__(self, config: feeb.DataOrderConfig, context: BuildContext) -> None:
        self.num_sequences = context.num_sequences

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        return self.num_sequences - 1 - samples % self.num_sequences


def test_a_data_order_of_a_plugin_needs_one_method(store: TokenStore) -> None:
    spec = feeb.DataOrderSpec("backwards", build=Backwards, summary="Last first.")
    data = make_batches(store, part("packings", "concat"), Part("data_orders", spec, spec.config()), 4, 16, seed=0)
    assert np.array_equal(data.data_order(np.arange(3)), data.num_sequences - 1 - np.arange(3))
    assert "epochs_by_source" not in data.statistics(10)


def test_options_of_a_data_order_derive_from_its_base() -> None:
    with pytest.raises(PluginError, match=r"backwards: its options, PartConfig, must derive from feeb.DataOrderConfig"):
        feeb.DataOrderSpec("backwards", feeb.PartConfig, build=Backwards, summary="Last first.")
