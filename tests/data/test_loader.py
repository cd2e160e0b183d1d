"""Packing, order and loader together: the stream of batches is one, whoever asks for which part of it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from feeb_data.packings import ConcatPacking
from feebcore.config import Part
from feebcore.data.loader import BatchSource, Prefetch, make_batches
from feebcore.data.store import TokenStore
from feebcore.data.store_writer import SplitWriter
from feebcore.errors import DataError
from feebcore.registry import get_registry

VOCAB, BOS, EOS = 100, 98, 99


def part(seam: str, name: str, **options: object) -> Part:
    spec = get_registry().resolve(seam, name)
    return Part(seam, spec, spec.config(**options))


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    rng = np.random.default_rng(0)
    documents = [np.concatenate([[BOS], rng.integers(0, 98, rng.integers(0, 40)), [EOS]]) for _ in range(40)]
    writer = SplitWriter(tmp_path / "t.zarr", "train", vocab_size=VOCAB, bos_id=BOS, eos_id=EOS, shard_tokens=256, chunk_tokens=64)
    writer.append(documents)
    writer.finish(np.array([len(d) for d in documents]), np.zeros(len(documents)), ["test"])
    return TokenStore.open(tmp_path / "t.zarr", "train")


def batches(store: TokenStore, batch_size: int = 8, seq_len: int = 16, **packing: object) -> BatchSource:
    return make_batches(store, part("packings", "concat", **packing), part("orders", "shuffled"), batch_size, seq_len, seed=5)


def test_each_token_but_the_first_is_a_target_once_an_epoch(store: TokenStore) -> None:
    packing = ConcatPacking(store, 16, document_mask=False)
    tokens = packing.windows(np.arange(packing.num_windows)).tokens
    flat = store.read(0, store.num_tokens).astype(np.int64)
    used = packing.num_windows * 16
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


def test_prefetch_passes_errors_on(store: TokenStore) -> None:
    class Broken:
        def batch(self, step: int, rank: int, world: int) -> None:
            raise DataError("broken at step 2")

    with Prefetch(Broken()) as ahead, pytest.raises(DataError, match="broken at step 2"):
        ahead.batch(2)
