"""Data orders curriculum and repeat_batches: which sequences come when, and that any sample can be asked for at any time."""

import itertools
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from stores import BOS, VOCAB, part, store_of

from feeb_data.data_orders.curriculum import CurriculumConfig
from feeb_data.data_orders.curriculum import curriculum as module
from feeb_data.data_orders.curriculum.curriculum import build_curriculum, difficulty, open_share
from feebcore.data.loader import BatchSource, make_batches
from feebcore.data.store import TokenStore
from feebcore.errors import DataError
from feebcore.protocols import BuildContext


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return store_of(tmp_path, np.random.default_rng(1).integers(0, 40, 120).tolist())


def data_of(store: TokenStore, name: str, max_steps: int = 100, **options: object) -> BatchSource:
    return make_batches(store, part("packings", "concat"), part("data_orders", name, **options), 10, 16, seed=1, max_steps=max_steps)


@pytest.mark.parametrize("pacing", ["linear", "root", "quadratic", "exponential"])
def test_pacing_grows_from_the_start_to_all(pacing: str) -> None:
    shares = [open_share(pacing, p, 0.1) for p in np.linspace(0, 1, 21)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[-1] == pytest.approx(1.0)
    assert all(a < b for a, b in itertools.pairwise(shares))
    middle = {"linear": 0.55, "root": 0.1 + 0.9 * 0.5**0.5, "quadratic": 0.1 + 0.9 * 0.25, "exponential": 0.1**0.5}
    assert shares[10] == pytest.approx(middle[pacing])


def test_difficulties_are_what_they_say(store: TokenStore) -> None:
    packing = part("packings", "concat").build(store=store, seq_len=16)
    tokens = packing.sequences(np.arange(packing.num_sequences)).tokens
    counts = Counter(tokens[:, 1:].reshape(-1).tolist())
    total = sum(counts.values()) + VOCAB
    for measure, expected in {
        "length": lambda row: 17 / (1 + sum(t == BOS for t in row[1:])),
        "unigram": lambda row: -np.mean([np.log((counts[t] + 1) / total) for t in row[1:]]),
        "compression": lambda row: len(zlib.compress(np.array(row, dtype="<u4").tobytes())) / 17,
    }.items():
        assert difficulty(measure, packing, VOCAB, BOS) == pytest.approx([expected(row) for row in tokens.tolist()], rel=1e-5)


def test_easy_sequences_come_first_and_each_once_before_any_again(store: TokenStore) -> None:
    data = data_of(store, "curriculum", difficulty="length", start=0.25, until=0.5, stages=5)
    hardness = difficulty("length", data.packing, VOCAB, BOS)
    ranks = np.argsort(np.argsort(hardness, kind="stable"), kind="stable")[data.data_order(np.arange(1000))]
    number = data.num_sequences
    for stage in range(5):
        seen = ranks[stage * 100 : (stage + 1) * 100]
        size = round((0.25 + 0.75 * stage / 5) * number)
        assert seen.max() < size
        assert len(np.unique(seen)) == min(100, size), "all that is open, before any comes again"
    rest = ranks[500 : 500 + number]
    assert sorted(rest) == list(range(number)), "from `until` on every sequence once an epoch"
    assert not np.array_equal(rest, np.sort(rest))
    later = np.argsort(np.argsort(hardness, kind="stable"), kind="stable")[data.data_order(np.arange(500 + number, 500 + 2 * number))]
    assert sorted(later) == list(range(number))
    assert not np.array_equal(rest, later), "each epoch has an order of its own"


def test_a_curriculum_needs_the_run_s_length_and_is_saved(store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="length of the run is not known"):
        data_of(store, "curriculum", max_steps=0)
    expected = data_of(store, "curriculum").data_order(np.arange(500))
    monkeypatch.setattr(module, "difficulty", None)  # so that computing it again would fail
    assert np.array_equal(data_of(store, "curriculum").data_order(np.arange(500)), expected)
    with pytest.raises(TypeError):
        data_of(store, "curriculum", difficulty="length")


@pytest.mark.parametrize(("until", "stages", "sequences", "max_steps"), [(1.0, 1, 5, 3), (0.01, 20, 7, 10), (1.0, 50, 3, 4), (0.5, 3, 1, 1)])
def test_short_runs_and_few_sequences_have_an_order_too(until: float, stages: int, sequences: int, max_steps: int) -> None:
    order = build_curriculum(CurriculumConfig(until=until, stages=stages), BuildContext(num_sequences=sequences))
    found = order(np.arange(60))
    assert 0 <= found.min() <= found.max() < sequences
    some = np.array([59, 0, 30])
    assert np.array_equal(order(some), found[some])


def test_repeat_batches_gives_each_batch_so_many_times_in_a_row() -> None:
    context = BuildContext(num_sequences=37, seed=3, batch_size=5)
    inner, order = part("data_orders", "shuffled").build(context), part("data_orders", "repeat_batches", times=3).build(context)
    found = order(np.arange(5 * 30)).reshape(10, 3, 5)
    assert (found == found[:, :1]).all()
    assert np.array_equal(found[:, 0].reshape(-1), inner(np.arange(50)))


def test_repeat_batches_of_a_mixture_keeps_its_phases_at_their_place(tmp_path: Path) -> None:
    store = store_of(tmp_path, [40] * 60, [0] * 30 + [1] * 30)
    mixture = {"name": "mixture", "proportions": {"s0": 1}, "phases": [{"begin": 0.5, "proportions": {"s1": 1}}]}
    data = data_of(store, "repeat_batches", times=2, data_order=mixture)
    border = part("packings", "concat").build(store=store_of(tmp_path / "first", [40] * 30), seq_len=16).num_sequences
    assert np.array_equal(data.data_order(np.arange(1000)) >= border, np.arange(1000) >= 500)
    assert data.statistics(100)["epochs_by_source"]["s0"] == pytest.approx(500 / border)
