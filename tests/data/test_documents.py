"""The document table: sorting in parts, row groups of bounded text."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feebcore.data import documents
from feebcore.data.documents import rows_per_group, write_documents

ROWS = st.lists(st.tuples(st.text("ab", max_size=2), st.text("abc/", max_size=3), st.integers(1, 60)), min_size=1, max_size=80)


@settings(max_examples=30, deadline=None)
@given(rows=ROWS)
def test_unsorted_documents_are_sorted_stably_without_holding_them_all(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, int]]) -> None:
    folder = tmp_path_factory.mktemp("sort")
    frame = pl.DataFrame(
        {
            "text": [f"{i} " + "x" * size for i, (_, _, size) in enumerate(rows)],
            "source": [source for source, _, _ in rows],
            "key": [key for _, key, _ in rows],
        }
    ).with_columns(num_bytes=pl.col("text").str.len_bytes().cast(pl.Int64))
    frame.write_parquet(folder / "filtered.parquet")
    held: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "BATCH_BYTES", 300)
        whole = documents._sorted_batches

        def watched(*args: object) -> object:
            for batch in whole(*args):  # type: ignore[arg-type]
                held.append(int(batch["text"].str.len_bytes().sum()))
                yield batch

        patch.setattr(documents, "_sorted_batches", watched)
        write_documents(folder / "filtered.parquet", folder / "documents.parquet", folder, 10, lambda share: None)
    expected = frame.sort("source", "key", maintain_order=True)
    found = pl.read_parquet(folder / "documents.parquet")
    assert found.select(frame.columns).equals(expected)
    assert all(size <= 300 + 70 for size in held)
    assert bool(held) == (not expected.equals(frame)), "sorting took place just when it was needed"
    assert not list(folder.glob("sort-*"))


def test_a_row_group_holds_a_bounded_amount_of_text() -> None:
    assert rows_per_group(1000, 1000 * (1 << 20)) == 16
    assert rows_per_group(10**6, 10**9) * 1000 <= documents.GROUP_BYTES < (rows_per_group(10**6, 10**9) + 2) * 1000
    assert rows_per_group(10**9, 10**9) == 100_000
    assert rows_per_group(0, 0) >= 16
