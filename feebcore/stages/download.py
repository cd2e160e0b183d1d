"""Stage download: fetches documents from sources, filters them and splits them by hash.

Output: `documents.parquet` (feebcore/data/documents.py), `statistics.json`, `documents.sha256`, and under `raw/` what
the sources fetched. Fetching resumes; reading and filtering start again after a kill, which costs seconds.
"""

from __future__ import annotations

import functools
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from feebcore.artifacts import Artifact, StageOutput
from feebcore.config import StageConfig
from feebcore.errors import DataError, Interrupted, did_you_mean, plural
from feebcore.files import write_atomic, write_json
from feebcore.parts import Part, PartKey
from feebcore.protocols import Source
from feebcore.specs import StageSpec

if TYPE_CHECKING:
    import polars as pl

    from feebcore.recipe import Recipe


class DownloadConfig(StageConfig):
    """Where documents come from and which of them are kept."""

    sources: list[Annotated[Part, PartKey("sources")]] = Field(min_length=1, description="sources, e.g. [stdlib]")
    filters: list[Annotated[Part, PartKey("filters")]] = Field([], description="filter parts, applied in this order")
    split: Literal["hash", "tail"] = Field(
        "hash", description="what the validation split is: documents chosen by their hash, or the tail, the last tail_fraction of every source's text"
    )
    split_modulus: int = Field(10, ge=2, description="with split hash: documents whose SHA-256 is 0 modulo this go to the validation split")
    tail_fraction: float = Field(0.1, gt=0, lt=1, description="with split tail: share of every source's text in the validation split, in bytes")
    validation_sources: list[str] = Field([], description="names of sources whose documents all go to the validation split: more validation sets")


PART = StageSpec(
    "download",
    DownloadConfig,
    build=f"{__name__}:run",
    check=f"{__name__}:check",
    makes=("documents",),
    process="inline",
    revision=2,
    summary="Fetches documents from sources, filters them and splits them by hash.",
)


def check(section: DownloadConfig, recipe: Recipe) -> list[str]:
    """What is wrong with this section in this recipe, each as 'key: what and what to do'."""
    if recipe.path.name == "recipe.json":  # a run's own record: its sources were there when it began
        return []
    problems = []
    for i, part in enumerate(section.sources):
        source: Source = part.build()
        problems += [f"sources.{i}.{text}" for text in source.check()]
    if (names := source_names(section)) is not None:
        problems += [f"validation_sources: no source {name!r}; {did_you_mean(name, names)}" for name in section.validation_sources if name not in names]
        if names <= set(section.validation_sources):
            problems.append("validation_sources: every source is a validation source, so nothing is left to train on")
    return problems


def source_names(section: DownloadConfig) -> set[str] | None:
    """The names by which documents will carry their sources; None where one is known from the documents only."""
    names = {part.build().name for part in section.sources}
    return None if "" in names else names


def run(section: DownloadConfig, inputs: Mapping[str, Artifact], out: StageOutput) -> dict[str, Any]:
    from feebcore.data.documents import write_documents

    work = out.path / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    dropped: Counter[str] = Counter()
    frame, read, num_read = _read_sources(section, out, work, dropped)
    filtered, statistics = _filter(section, out, frame, work, dropped)
    if num_read == sum(n for name, n in dropped.items() if name.startswith("filter ")):
        why = ", ".join(f"{name}: {n}" for name, n in dropped.items() if n)
        raise DataError(f"download: no document is left of {num_read} ({why}); loosen download.filters")
    tick = lambda share: _tick(out, share * num_read, num_read, "documents", "write")  # noqa: E731
    tail = section.tail_fraction if section.split == "tail" else 0.0
    validation_sources = frozenset(section.validation_sources)
    table, digest = write_documents(filtered, out.path / "documents.parquet", work, section.split_modulus, tick, validation_sources, tail)
    write_atomic(out.path / "documents.sha256", digest + "\n")
    out.content("documents.sha256")
    metrics = _metrics(table, dropped)
    if unknown := sorted(set(section.validation_sources) - set(table["source"])):
        raise DataError(f"download.validation_sources: no document has source {unknown[0]!r}; {did_you_mean(unknown[0], set(table['source']))}")
    if metrics["documents"] == metrics["val_documents"]:
        raise DataError(
            f"download: every document ({metrics['documents']}) falls into the validation split, which leaves none to train on; {_remedy(section, 'raise')}"
        )
    if not metrics["val_documents"]:
        out.log(
            f"of {plural(metrics['documents'], 'document')} none falls into the validation split, so there is no validation loss; {_remedy(section, 'lower')}"
        )
    per_source = {name: {"documents": n, "bytes": size} for name, n, size in _per_source(table)}
    write_json(out.path / "statistics.json", metrics | {"sources": per_source, "columns": statistics} | read)
    shutil.rmtree(work)
    return metrics


def _remedy(section: DownloadConfig, change: str) -> str:
    """What fills an empty split."""
    if section.split == "tail":
        return f"add text, or {'raise' if change == 'lower' else 'lower'} download.tail_fraction ({section.tail_fraction})"
    return (
        f'set download.split: tail (the last {section.tail_fraction:.0%} of the text), or separator in the source (as "\\n\\n", documents between blank '
        f"lines), or {change} download.split_modulus ({section.split_modulus})"
    )


def _read_sources(section: DownloadConfig, out: StageOutput, work: Path, dropped: Counter[str]) -> tuple[pl.LazyFrame, dict[str, Any], int]:
    """Fetch and read every source into one frame. Returns it, what was read and what was left out, and the number of documents."""
    from feebcore.data.documents import DocumentSpool
    from feebcore.data.file_listing import describe_skipped

    spool = DocumentSpool(work, "read")
    provenance: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    for number, part in enumerate(section.sources):
        folder = out.path / "raw" / f"{number}-{part.spec.name}"
        source: Source = part.build()
        folder.mkdir(parents=True, exist_ok=True)
        source.fetch(folder, functools.partial(_tick, out, unit="bytes", name=f"fetch {part.name}"))
        before = spool.num_documents
        for document in source.documents(folder):
            if why := spool.add(document):
                source.skipped.add(why, document.key)
            _tick(out, spool.num_bytes, 0, "bytes", f"read {part.name}", documents=spool.num_documents)
        if spool.num_documents == before:
            also = f", {describe_skipped(source.skipped)}" if source.skipped else ""
            raise DataError(f"download: source {part.name!r} has no documents{also}; the corpus would be empty, check download.sources.{number}")
        for why, n in source.skipped.items():
            dropped[f"{part.name}: {why}"] += n
            left_out.append({"source": part.name, "why": why, "number": n, "names": source.skipped.names.get(why, [])})
        if source.skipped:
            out.log(f"source {part.name}: {describe_skipped(source.skipped)}")
        if origin := source.provenance():
            provenance.append({"source": part.name} | origin)
        if not any(folder.iterdir()):
            folder.rmdir()
    if (out.path / "raw").is_dir() and not any((out.path / "raw").iterdir()):
        (out.path / "raw").rmdir()
    return spool.scan(), {"provenance": provenance, "left_out": left_out}, spool.num_documents


def _filter(section: DownloadConfig, out: StageOutput, frame: pl.LazyFrame, work: Path, dropped: Counter[str]) -> tuple[Path, dict[str, Any]]:
    """Apply the filters, each through a file of its own, counting what each drops. Returns the last file and a summary
    of the numeric columns that filters added."""
    import polars as pl

    from feebcore.data.documents import RAW, rows_per_group, scan_parquet, write_parquet

    path = work / "filtered-0.parquet"
    num_rows, num_bytes = frame.select(pl.len(), pl.col("num_bytes").sum()).collect().row(0)
    rows = rows_per_group(num_rows, num_bytes)
    write_parquet(frame, path, row_group_size=rows)
    height = _height(path)
    for number, part in enumerate(section.filters, 1):
        _tick(out, number - 1, len(section.filters), "filters", "filter")
        frame = part.build()(scan_parquet(path))
        missing = set(RAW) - set(frame.collect_schema())
        if missing:
            raise DataError(f"download: filter {part.name!r} lost column {', '.join(sorted(missing))}; filters keep text, source, key and num_bytes")
        target = work / f"filtered-{number}.parquet"
        write_parquet(frame, target, row_group_size=rows)
        path.unlink()
        path, before, height = target, height, _height(target)
        dropped[f"filter {part.name}"] += before - height
        if before and not height:
            break
    extra = [name for name, kind in scan_parquet(path).collect_schema().items() if name not in RAW and kind.is_numeric()]
    columns: dict[str, Any] = {}
    for name in extra:
        column = scan_parquet(path).select(name).collect()[name].cast(pl.Float64)
        quantiles = {f"p{q}": column.quantile(q / 100) for q in (1, 5, 25, 50, 75, 95, 99)}
        columns[name] = {"mean": column.mean(), "min": column.min(), "max": column.max()} | quantiles
    return path, columns


def _height(path: Path) -> int:
    import polars as pl

    from feebcore.data.documents import scan_parquet

    return int(scan_parquet(path).select(pl.len()).collect().item())


def _per_source(table: pl.DataFrame) -> list[tuple[str, int, int]]:
    import polars as pl

    return table.group_by("source").agg(pl.len().alias("n"), pl.col("num_bytes").sum()).sort("source").rows()  # type: ignore[return-value]


def _metrics(table: pl.DataFrame, dropped: Mapping[str, int]) -> dict[str, Any]:
    validation = table.filter(table["split"] == "validation")
    return {
        "documents": table.height,
        "bytes": int(table["num_bytes"].sum()),
        "val_documents": validation.height,
        "val_bytes": int(validation["num_bytes"].sum()),
        "dropped": {name.removeprefix("filter "): n for name, n in dropped.items() if n or name.startswith("filter ")},
    }


def _tick(out: StageOutput, done: float, total: float, unit: str, name: str, **fields: Any) -> None:
    if out.stop_requested:
        raise Interrupted(f"download: stopped during {name}; run again to continue")
    out.progress(done, total or done + 1, unit, name, **fields)
