"""Mixtures give each source its share exactly, phase by phase, and waste no sequence before all have come."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from stores import BOS, part, store_of

from feeb_data.data_orders.mixture import MixtureConfig
from feeb_data.data_orders.mixture.mixture import CYCLE, MixtureOrder, SlotSchedule, build_mixture
from feebcore.data.loader import BatchSource, make_batches
from feebcore.data.store import TokenStore
from feebcore.data.views import StoreView, scores_by_source, source_view, source_views, validation_sets
from feebcore.errors import DataError
from feebcore.protocols import BuildContext

SOURCES = {"a": range(50), "b": range(50, 57), "c": range(57, 100)}

weights = st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(lambda w: sum(w) > 0)


def order_of(phases: list[tuple[int, list[int]]], seed: int = 3) -> MixtureOrder:
    return MixtureOrder(SOURCES, [(begin, dict(zip(SOURCES, w, strict=True))) for begin, w in phases], seed)


def source_of(sequences: np.ndarray) -> np.ndarray:
    return np.searchsorted([r.stop for r in SOURCES.values()], sequences, side="right")


@settings(max_examples=60, deadline=None)
@given(weights=weights)
def test_every_cycle_has_exactly_the_quota_and_every_stretch_nearly(weights: list[int]) -> None:
    deal = SlotSchedule(weights)
    due = np.array(weights) / sum(weights)
    assert np.abs(deal.quota - due * CYCLE).max() < 1
    assert deal.quota.sum() == CYCLE
    assert np.array_equal(np.bincount(deal.source, minlength=3), deal.quota)
    seen = np.cumsum(np.eye(3, dtype=int)[deal.source], axis=0)
    assert np.abs(seen - deal.quota / CYCLE * np.arange(1, CYCLE + 1)[:, None]).max() <= 2
    for samples in (0, 1, 17, CYCLE, 3 * CYCLE + 123):
        full = np.tile(deal.source, 4)[:samples]
        assert np.array_equal(deal.counts_before(samples), np.bincount(full, minlength=3))


@settings(max_examples=40, deadline=None)
@given(first=weights, second=weights, third=weights, begin=st.integers(1, 700), more=st.integers(1, 700), seed=st.integers(0, 2**40))
def test_sequences_of_a_source_all_come_before_any_comes_again_phases_or_not(
    first: list[int], second: list[int], third: list[int], begin: int, more: int, seed: int
) -> None:
    order = order_of([(0, first), (begin, second), (begin + more, third)], seed)
    sequences = order(np.arange(2000))
    source = source_of(sequences)
    for number, (name, own) in enumerate(SOURCES.items()):
        mine = sequences[source == number]
        assert order.epochs(2000)[name] == pytest.approx(len(mine) / len(own))
        for epoch in range(0, len(mine), len(own)):
            seen = mine[epoch : epoch + len(own)]
            assert len(np.unique(seen)) == len(seen)
            assert set(seen.tolist()) <= set(own)
    for weights, a, b in ((first, 0, begin), (second, begin, begin + more), (third, begin + more, 2000)):
        counts = np.bincount(source[a:b], minlength=3)
        assert np.abs(counts - np.array(weights) / sum(weights) * (b - a)).max() <= 3


def test_epochs_and_sources_have_orders_of_their_own_that_others_do_not_change() -> None:
    order = order_of([(0, [1, 1, 0])])
    sequences = order(np.arange(400))
    mine = sequences[source_of(sequences) == 0]
    assert not np.array_equal(mine[:50], mine[50:100])
    assert not np.array_equal(mine[:50], np.sort(mine[:50]))
    twins = MixtureOrder({"a": range(50), "b": range(50, 100)}, [(0, {"a": 1.0, "b": 1.0})], 3)(np.arange(100))
    assert not np.array_equal(twins[twins < 50], twins[twins >= 50] - 50)
    alone = MixtureOrder({"a": range(50)}, [(0, {"a": 1.0})], 3)(np.arange(200))
    assert np.array_equal(mine, alone)


def test_any_sample_can_be_asked_for_at_any_time() -> None:
    order = order_of([(0, [3, 1, 2]), (500, [0, 1, 9])])
    sequences = order(np.arange(30_000))
    some = np.random.default_rng(0).integers(0, 30_000, 500)
    assert np.array_equal(order(some), sequences[some])


def context(total_steps: int = 200) -> BuildContext:
    return BuildContext(num_sequences=100, batch_size=8, total_steps=total_steps, sources=SOURCES)


def test_phases_begin_at_shares_or_steps_of_the_run() -> None:
    phases = [{"begin": 0.5, "proportions": {"b": 1}}, {"begin_step": 150, "proportions": {"c": 1}}]
    config = MixtureConfig.model_validate({"proportions": {"a": 1}, "phases": phases})
    source = source_of(build_mixture(config, context())(np.arange(1600)))
    assert np.array_equal(source, np.repeat([0, 1, 2], [800, 400, 400]))
    longer = MixtureConfig.model_validate({"proportions": {"a": 1}, "phases": phases[1:]})
    before, after = (build_mixture(longer, context(total_steps=n))(np.arange(2000)) for n in (160, 900))
    assert np.array_equal(before, after), "phases that begin at a step do not move with the run's length"


def test_wrong_mixtures_are_explained() -> None:
    for wrong in ({"proportions": {}}, {"proportions": {"a": 0}}, {"proportions": {"a": -1, "b": 2}}):
        with pytest.raises(ValidationError, match="weights of sources"):
            MixtureConfig.model_validate(wrong)
    for wrong in ({"proportions": {"a": 1}}, {"begin": 0.5, "begin_step": 3, "proportions": {"a": 1}}):
        with pytest.raises(ValidationError, match="begin and begin_step: give one"):
            MixtureConfig.model_validate({"proportions": {"a": 1}, "phases": [wrong]})
    with pytest.raises(DataError, match=r"data_order.proportions: the text has no source 'bb'; did you mean 'b'"):
        build_mixture(MixtureConfig(proportions={"bb": 1}), context())
    phase = {"begin": 0.5, "proportions": {"b": 1}}
    with pytest.raises(DataError, match=r"phases.1.* not after the phase before it"):
        build_mixture(MixtureConfig.model_validate({"proportions": {"a": 1}, "phases": [phase, phase]}), context())
    with pytest.raises(DataError, match="use begin_step"):
        build_mixture(MixtureConfig.model_validate({"proportions": {"a": 1}, "phases": [phase]}), context(total_steps=0))


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    """Three sources, of which the second has few tokens."""
    lengths = np.random.default_rng(1).integers(0, 40, 90).tolist()
    return store_of(tmp_path, lengths, [0] * 40 + [1] * 10 + [2] * 40)


def mixed(store: TokenStore, packing: str = "concat", batch_size: int = 10, **options: object) -> BatchSource:
    order = part("data_orders", "mixture", **({"proportions": {"s0": 0.5, "s1": 0.2, "s2": 0.3}} | options))
    return make_batches(store, part("packings", packing), order, batch_size, 8, seed=1, max_steps=100)


@pytest.mark.parametrize("packing", ["concat", "bestfit", "bos_aligned"])
def test_batches_hold_sequences_of_one_source_in_the_right_shares(store: TokenStore, packing: str) -> None:
    data = mixed(store, packing)
    views = source_views(store)
    sequences = {
        name: part("packings", packing).build(store=view, seq_len=8).sequences(np.arange(part("packings", packing).build(store=view, seq_len=8).num_sequences))
        for name, view in views.items()
    }
    known = {name: {row.tobytes() for row in found.tokens} for name, found in sequences.items()}
    counts = dict.fromkeys(views, 0)
    for step in range(100):
        batch = data.batch(step)
        rows = np.concatenate([batch.tokens.numpy(), batch.targets.numpy()[:, -1:]], axis=1)
        for row in rows:
            owners = [name for name in views if row.tobytes() in known[name]]
            assert owners
            if len(owners) == 1:
                counts[owners[0]] += 1
    assert [counts[n] for n in views] == pytest.approx([500, 200, 300], abs=40 if packing == "bestfit" else 4)
    told = data.statistics(100)
    assert set(told["s1"]) >= {"padding_share", "dropped_share"}
    assert told["epochs_by_source"]["s1"] == pytest.approx(200 / len(known["s1"]), rel=0.3)


def test_views_are_the_sources(store: TokenStore) -> None:
    views = source_views(store)
    assert list(views) == ["s0", "s1", "s2"]
    flat = store.read(0, store.num_tokens)
    assert np.array_equal(np.concatenate([v.read(0, v.num_tokens) for v in views.values()]), flat)
    view = source_view(store, "s1")
    assert (view.num_documents, view.doc_offsets[0], view.doc_offsets[-1]) == (10, 0, view.num_tokens)
    assert np.array_equal(view.document(3), store.document(43))
    assert np.array_equal(view.read_batch(np.array([0, 5]), 7), np.stack([view.read(0, 7), view.read(5, 12)]))
    assert view.document(0)[0] == BOS
    assert np.array_equal(view.doc_bytes, store.doc_bytes[40:50])
    for wrong in ((-1, 3), (0, view.num_tokens + 1)):
        with pytest.raises(IndexError):
            view.read(*wrong)
    with pytest.raises(IndexError):
        view.read_batch(np.array([view.num_tokens - 3]), 4)
    with pytest.raises(DataError, match=r"no documents of source 's9'; known: s0, s1, s2"):
        source_view(store, "s9")


def test_sources_that_are_interleaved_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="do not lie together"):
        source_views(store_of(tmp_path, [5, 5, 5], [0, 1, 0]))


def test_a_source_too_short_for_a_sequence_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"source 's1': seq_len 8 is longer than the text"):
        mixed(store_of(tmp_path, [50, 2], [0, 1]), proportions={"s0": 1, "s1": 1})


def test_scores_of_sources_add_up_to_the_split_s(store: TokenStore, tmp_path: Path) -> None:
    from feebcore.evaluate.scorer import DocumentScores

    rng = np.random.default_rng(0)
    scores = DocumentScores(rng.random(90), store.doc_bytes, np.diff(store.doc_offsets) - 2)
    found = scores_by_source(store, scores)
    assert found["s1"].nats == pytest.approx(scores.nats[40:50].sum())
    assert sum(s.bytes for s in found.values()) == scores.total().bytes
    chosen = np.array([0, 1, 45])
    some = scores_by_source(store, DocumentScores(*(getattr(scores, n)[chosen] for n in ("nats", "bytes", "tokens"))), chosen)
    assert {name: s.documents for name, s in some.items()} == {"s0": 2, "s1": 1}
    assert all(isinstance(v, StoreView) for v in validation_sets(store).values())
    single = store_of(tmp_path / "single", [5, 6])
    assert validation_sets(single) == scores_by_source(single, DocumentScores(np.ones(2), single.doc_bytes, np.ones(2))) == {}


@pytest.mark.parametrize("proportions", [{"s0": 1.0}, {"s0": 1.0, "s1": 0.0}], ids=["not named", "weight 0"])
def test_a_source_that_gets_no_sample_may_be_too_short(tmp_path: Path, proportions: dict[str, float]) -> None:
    store = store_of(tmp_path, [60] * 20 + [5], [0] * 20 + [1])
    batches = make_batches(store, part("packings", "concat"), part("data_orders", "mixture", proportions=proportions), 4, 16, seed=0, max_steps=3)
    alone = store_of(tmp_path / "alone", [60] * 20)
    same = make_batches(alone, part("packings", "concat"), part("data_orders", "mixture", proportions={"s0": 1.0}), 4, 16, seed=0, max_steps=3)
    for step in range(3):
        assert batches.batch(step).tokens.equal(same.batch(step).tokens)
    with pytest.raises(DataError, match="source 's1': seq_len 16 is longer than the text"):
        make_batches(store, part("packings", "concat"), part("data_orders", "mixture", proportions={"s0": 1.0, "s1": 0.1}), 4, 16, seed=0)


def test_a_source_that_is_not_there_is_reported_with_those_that_are(tmp_path: Path) -> None:
    store = store_of(tmp_path, [60] * 4, [0, 0, 1, 1])
    with pytest.raises(DataError, match=r"proportions: the text has no source 's2'; .*'?s[01]'?"):
        make_batches(store, part("packings", "concat"), part("data_orders", "mixture", proportions={"s0": 1.0, "s2": 1.0}), 4, 16, seed=0)
