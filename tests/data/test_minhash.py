"""MinHash finds planted near duplicates as often as theory says, and nothing that is not one."""

import random
import re

import numpy as np
import polars as pl
import pytest

from feeb_data.filters.dedup_minhash import DedupMinhashConfig
from feeb_data.filters.dedup_minhash import minhash as module
from feeb_data.filters.dedup_minhash.minhash import dedup_minhash, shingle_hashes, signatures

WORDS = [f"w{i}" for i in range(3000)]


def shingles(text: str, n: int = 5) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9\x80-\U0010ffff]+", text.lower())
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()


def jaccard(a: set, b: set) -> float:
    return len(a & b) / len(a | b)


def frame(texts: list[str]) -> pl.LazyFrame:
    sizes = [len(t.encode()) for t in texts]
    return pl.LazyFrame({"text": texts, "source": ["s"] * len(texts), "key": [f"{i:05}" for i in range(len(texts))], "num_bytes": sizes})


def kept(texts: list[str], **options: object) -> list[int]:
    return [int(k) for k in dedup_minhash(DedupMinhashConfig(**options))(frame(texts)).collect()["key"]]  # type: ignore[arg-type]


def planted(similarity: float, number: int, seed: int) -> list[tuple[str, str]]:
    """Pairs of texts of 120 words whose shingle sets have about this similarity: the second has other words at its end."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(number):
        words = rng.choices(WORDS, k=120)
        same = round(116 * 2 * similarity / (1 + similarity)) + 4
        pairs.append((" ".join(words), " ".join(words[:same] + rng.choices(WORDS, k=120 - same))))
    return pairs


@pytest.mark.parametrize(("similarity", "least", "most"), [(0.95, 1.0, 1.0), (0.85, 0.97, 1.0), (0.75, 0.60, 0.95), (0.55, 0.0, 0.03), (0.3, 0.0, 0.0)])
def test_recall_follows_brute_force_similarity(similarity: float, least: float, most: float) -> None:
    pairs = planted(similarity, 200, seed=int(100 * similarity))
    exact = [jaccard(shingles(a), shingles(b)) for a, b in pairs]
    assert max(abs(e - similarity) for e in exact) < 0.03
    found = set(kept([text for pair in pairs for text in pair]))
    assert all(2 * i in found for i in range(200)), "the first of a pair is kept"
    recall = np.mean([2 * i + 1 not in found for i in range(200)])
    assert least <= recall <= most


def test_nothing_is_dropped_that_brute_force_calls_different() -> None:
    rng = random.Random(3)
    texts = [" ".join(rng.choices(WORDS[:60], k=rng.randint(1, 80))) for _ in range(250)]
    texts += [t + " " + " ".join(rng.choices(WORDS, k=rng.randint(0, 25))) for t in texts[:150]]
    sets = [shingles(t) for t in texts]
    left = kept(texts)
    for number in sorted(set(range(len(texts))) - set(left)):
        assert max(jaccard(sets[number], sets[other]) for other in range(number)) > 0.55
    missed = [b for i, b in enumerate(left) if any(jaccard(sets[b], sets[a]) >= 0.9 for a in left[:i])]
    assert not missed


def test_estimates_are_those_of_the_sets() -> None:
    errors = []
    for number, (a, b) in enumerate(planted(0.6, 50, seed=9)):
        table = signatures([a, b], 5, 512, seed=number)
        errors.append(float((table[0] == table[1]).mean()) - jaccard(shingles(a), shingles(b)))
    assert max(map(abs, errors)) < 0.1  # four and a half standard deviations
    assert abs(np.mean(errors)) < 0.01


def test_shingles_are_those_of_python_wherever_the_text_stands() -> None:
    texts = [
        "One two, three FOUR five six. One two three four five",
        "",
        "é è 漢字 x",
        "?!",
        "one two three four five",
        "a b",
        "  tail one two three four five six",
    ]
    hashes, documents = shingle_hashes(texts, 5)
    by_text = [set(hashes[documents == i].tolist()) for i in range(len(texts))]
    for text, found in zip(texts, by_text, strict=True):
        assert len(found) == len(shingles(text))
    for i, a in enumerate(texts):
        for j, b in enumerate(texts):
            assert len(by_text[i] & by_text[j]) == len(shingles(a) & shingles(b)), (a, b)
    alone = [set(shingle_hashes([t], 5)[0].tolist()) for t in texts]
    assert alone == by_text


def test_groups_keep_their_first_and_wordless_texts_stay() -> None:
    base = " ".join(WORDS[:100])
    texts = ["...", base, "!!", base.upper() + "!", "other " * 3, base + " end", "...", ""]
    assert kept(texts) == [0, 1, 2, 4, 6, 7]


def test_result_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [t for pair in planted(0.8, 100, seed=5) for t in pair]
    whole = kept(texts)
    monkeypatch.setattr(module, "BLOCK_BYTES", 3000)
    monkeypatch.setattr(module, "PAIRS", 7)
    assert kept(texts) == whole
    assert kept([texts[i] for i in whole]) == list(range(len(whole))), "its own result loses nothing"


def test_an_empty_table_stays_empty() -> None:
    assert kept([]) == []
