"""Filters keep what their options say, in order."""

import polars as pl
import pytest

from feeb_data.filters.dedup_exact import DedupExactConfig
from feeb_data.filters.dedup_exact.dedup_exact import dedup_exact
from feeb_data.filters.length import LengthConfig
from feeb_data.filters.length.length import length
from feeb_data.filters.quality_statistics import QualityConfig
from feeb_data.filters.quality_statistics.quality_statistics import quality_statistics


def frame(*texts: str) -> pl.LazyFrame:
    sizes = [len(t.encode()) for t in texts]
    return pl.LazyFrame({"text": texts, "source": ["s"] * len(texts), "key": [str(i) for i in range(len(texts))], "num_bytes": sizes})


def keys(lazy: pl.LazyFrame) -> list[str]:
    return lazy.collect()["key"].to_list()


def test_length_counts_bytes_and_characters() -> None:
    data = frame("ab", "éé", "abcde", "")
    assert keys(length(LengthConfig(max_bytes=3))(data)) == ["0"]
    assert keys(length(LengthConfig(max_chars=2))(data)) == ["0", "1"]
    assert keys(length(LengthConfig(min_chars=3))(data)) == ["2"]
    assert keys(length(LengthConfig(min_bytes=0))(data)) == ["0", "1", "2", "3"]


@pytest.mark.parametrize(("normalize", "kept"), [("none", "01234"), ("whitespace", "0134"), ("lower", "034")])
def test_dedup_keeps_the_first_of_equal_texts(normalize: str, kept: str) -> None:
    data = frame("a b", "A b", "a\n b ", "ab", "c", "a b")
    assert keys(dedup_exact(DedupExactConfig(normalize=normalize))(data)) == list(kept)  # type: ignore[arg-type]


def test_statistics_are_what_python_says() -> None:
    texts = ["def f():\n    return 1\n", "", "x\nx\nx\ny", "   \n\n", "é" * 50 + "\n12345"]
    result = quality_statistics(QualityConfig())(frame(*texts)).collect()
    for text, row in zip(texts, result.iter_rows(named=True), strict=True):
        lines = text.split("\n")
        filled = [line.strip() for line in lines if line.strip()]
        assert row["alpha_ratio"] == pytest.approx(sum(c.isalpha() for c in text) / max(1, len(text)))
        assert row["mean_line_length"] == pytest.approx(sum(map(len, lines)) / len(lines))
        assert row["max_line_length"] == max(map(len, lines))
        assert row["repeated_lines"] == pytest.approx(1 - len(set(filled)) / len(filled) if filled else 0)


def test_thresholds_drop() -> None:
    data = frame("words here", "123456789", "x\nx\nx\nx", "w" * 100)
    assert keys(quality_statistics(QualityConfig(min_alpha_ratio=0.2))(data)) == ["0", "2", "3"]
    assert keys(quality_statistics(QualityConfig(max_repeated_lines=0.5))(data)) == ["0", "1", "3"]
    assert keys(quality_statistics(QualityConfig(max_line_length=50))(data)) == ["0", "1", "2"]
    assert keys(quality_statistics(QualityConfig(max_mean_line_length=9.5))(data)) == ["1", "2"]
