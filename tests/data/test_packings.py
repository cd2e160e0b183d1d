"""Packings hold every token once where they say so, and waste what they say they waste."""

import bisect
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import BOS, EOS, part, store_of

from feeb_data.packings.bestfit import bestfit
from feeb_data.packings.bestfit.bestfit import best_fit_decreasing, cut_documents
from feeb_data.packings.bos_aligned import bos_aligned
from feebcore.data.permutation import FeistelPermutation
from feebcore.data.store import TokenStore
from feebcore.errors import DataError
from feebcore.protocols import Packing

LENGTHS = [*np.random.default_rng(4).integers(0, 50, 70).tolist(), 0, 300, 17, 15, 14, 16]


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return store_of(tmp_path, LENGTHS)


def built(store: TokenStore, name: str, seq_len: int = 16, **options: object) -> Packing:
    return part("packings", name, **options).build(store=store, seq_len=seq_len)


def one_by_one(lengths: list[int], capacity: int) -> Counter[int]:
    """Room left in the bins of best-fit decreasing, done as the textbook says."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        place = bisect.bisect_left(rooms, length)
        room = rooms.pop(place) if place < len(rooms) else capacity
        bisect.insort(rooms, room - length)
    return Counter(rooms)


@settings(max_examples=200, deadline=None)
@given(capacity=st.integers(1, 40), data=st.data())
def test_best_fit_decreasing_is_the_textbook_s(capacity: int, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=120))
    bins = best_fit_decreasing(np.array(lengths, dtype=np.int64), capacity)
    loads = np.bincount(bins, weights=lengths).astype(int) if lengths else np.empty(0, int)
    assert Counter((capacity - loads).tolist()) == one_by_one(lengths, capacity)


def test_best_fit_packs_many_pieces_tightly() -> None:
    lengths = np.minimum(np.random.default_rng(0).geometric(1 / 300, 200_000), 2048)
    bins = best_fit_decreasing(lengths, 2048)
    loads = np.bincount(bins, weights=lengths)
    assert loads.max() <= 2048
    assert loads.sum() / (len(loads) * 2048) > 0.999


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(2, 60), min_size=1, max_size=20), seq_len=st.integers(1, 20))
def test_cut_pieces_make_each_token_but_the_first_a_target_once(lengths: list[int], seq_len: int) -> None:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    start, length = cut_documents(offsets, seq_len)
    assert length.min() >= 2
    assert length.max() <= seq_len + 1
    targets = np.concatenate([np.arange(s + 1, s + n) for s, n in zip(start, length, strict=True)])
    assert np.array_equal(np.sort(targets), np.setdiff1d(np.arange(offsets[-1]), offsets[:-1]))


@pytest.mark.parametrize("seq_len", [5, 16, 400])
def test_bestfit_keeps_documents_whole_and_loses_nothing(store: TokenStore, seq_len: int) -> None:
    packing = built(store, "bestfit", seq_len, document_mask=True)
    packed = packing.sequences(np.arange(packing.num_sequences))
    counted = packed.tokens[:, 1:][packed.mask]
    flat = store.read(0, store.num_tokens)
    assert np.array_equal(np.bincount(counted, minlength=100), np.bincount(flat[flat != BOS], minlength=100))
    short = sum(n + 2 <= seq_len + 1 for n in LENGTHS)
    statistics = packing.statistics
    assert statistics["cut_documents_share"] == pytest.approx(1 - short / len(LENGTHS))
    assert statistics["dropped_share"] == 0
    used = len(counted) + int((packed.doc_ids.max(axis=1) + 1).sum())  # each piece has one token that is no target
    assert statistics["padding_share"] == pytest.approx(1 - used / packed.tokens.size)


def test_padding_is_end_tokens_of_no_document_that_never_count(store: TokenStore) -> None:
    packing = built(store, "bestfit", 400, document_mask=True)
    packed = packing.sequences(np.arange(packing.num_sequences))
    padding = packed.doc_ids < 0
    assert padding.any()
    assert (packed.tokens[:, :-1][padding] == EOS).all()
    assert not packed.mask[padding].any()
    plain = built(store, "bestfit", 400)
    without = plain.sequences(np.arange(plain.num_sequences))
    assert without.doc_ids is without.positions is None
    assert np.array_equal(without.mask, packed.mask)


def nanochat(lengths: list[int], order: list[int], width: int, buffer: int) -> list[list[tuple[int, int]]]:
    """Rows of (document, tokens) as nanochat's loader chooses them: the largest that fits, else the shortest, cropped."""
    waiting, at_hand, rows = list(order), [], []
    while True:
        row, room = [], width
        while room > 0:
            while waiting and len(at_hand) < buffer:
                at_hand.append(waiting.pop(0))
            if not at_hand:
                return rows
            fitting = [d for d in at_hand if lengths[d] <= room]
            chosen = max(fitting, key=lambda d: (lengths[d], d)) if fitting else min(at_hand, key=lambda d: (lengths[d], d))
            at_hand.remove(chosen)
            row.append((chosen, min(lengths[chosen], room)))
            room -= row[-1][1]
        rows.append(row)


@pytest.mark.parametrize(("seq_len", "buffer"), [(16, 1000), (16, 5), (63, 10), (63, 1)])
def test_bos_aligned_chooses_as_nanochat_does(store: TokenStore, seq_len: int, buffer: int) -> None:
    packing = built(store, "bos_aligned", seq_len, buffer=buffer)
    packed = packing.sequences(np.arange(packing.num_sequences))
    number = len(LENGTHS)
    rows = nanochat([n + 2 for n in LENGTHS], FeistelPermutation(number, 0)(np.arange(number)).tolist(), seq_len + 1, buffer)
    expected = np.stack([np.concatenate([store.document(d)[:n] for d, n in row]) for row in rows])
    assert np.array_equal(packed.tokens, expected)
    assert (packed.tokens[:, 0] == BOS).all()
    used = sum(n for row in rows for _, n in row)
    statistics = packing.statistics
    assert statistics["padding_share"] == 0
    assert statistics["dropped_share"] == pytest.approx(1 - used / store.num_tokens)


def test_concat_tells_which_documents_it_cuts(store: TokenStore) -> None:
    statistics = built(store, "concat").statistics
    number = (store.num_tokens - 1) // 16
    spans = [(w * 16, w * 16 + 17) for w in range(number)]
    pairs = list(zip(store.doc_offsets[:-1], store.doc_offsets[1:], strict=True))
    whole = sum(any(a <= begin and end <= b for a, b in spans) for begin, end in pairs)
    assert statistics["cut_documents_share"] == pytest.approx(1 - whole / len(pairs))
    assert statistics["dropped_share"] * store.num_tokens == pytest.approx(store.num_tokens - number * 16 - 1)


@pytest.mark.parametrize("name", ["bestfit", "bos_aligned"])
def test_an_index_is_saved_and_read_again_and_made_anew_when_altered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    store = store_of(tmp_path, LENGTHS)
    module = {"bestfit": bestfit, "bos_aligned": bos_aligned}[name]
    packing = built(store, name)
    expected = packing.sequences(np.arange(packing.num_sequences)).tokens
    made, make = [], module.make_index
    monkeypatch.setattr(module, "make_index", lambda *a: made.append(a) or make(*a))
    assert np.array_equal(built(store, name).sequences(np.arange(len(expected))).tokens, expected)
    assert not made
    built(store, name, seq_len=15)
    assert len(made) == 1
    folders = sorted((tmp_path / "index").iterdir())
    assert len(folders) == 2
    for folder in folders:
        data = bytearray((folder / "start.npy").read_bytes())
        data[-8] ^= 1
        (folder / "start.npy").write_bytes(data)
    assert np.array_equal(built(store, name).sequences(np.arange(len(expected))).tokens, expected)
    assert len(made) == 2
    built(store, name)
    assert len(made) == 2
    shutil.rmtree(tmp_path / "index")
    (tmp_path / "index").write_text("no folder can be made here")
    assert np.array_equal(built(store, name).sequences(np.arange(len(expected))).tokens, expected)


def test_an_index_that_many_make_at_once_is_whole(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    store = store_of(tmp_path, LENGTHS)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: built(store, "bestfit").sequences(np.arange(5)).tokens, range(24)))
    assert all(np.array_equal(tokens, found[0]) for tokens in found)
    assert [len(list(folder.iterdir())) for folder in (tmp_path / "index").iterdir()] == [4], "one index and nothing left over"


def test_a_text_without_a_whole_sequence_says_so(tmp_path: Path) -> None:
    store = store_of(tmp_path, [3, 4])
    with pytest.raises(DataError, match="seq_len 20 is longer than the text"):
        built(store, "bos_aligned", 20)
    assert built(store, "bestfit", 20).num_sequences == 1
