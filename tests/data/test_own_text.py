"""One's own text: the last part of it as validation split, and a recipe that needs one --set."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from feebcore.artifacts import Workspace
from feebcore.errors import DataError
from feebcore.recipe import load
from feebcore.run.build import run_all

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def download(folder: Path, files: dict[str, str], **section: Any) -> tuple[pl.DataFrame, list[str]]:
    (folder / "text").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / "text" / name).write_text(text)
    source = {"name": "files", "paths": ["text"], **section.pop("source", {})}
    (folder / "r.yaml").write_text(json.dumps({"name": "t", "stages": ["download"], "download": {"sources": [source], **section}}))
    rows: list[dict[str, Any]] = []
    artifact = run_all(load(folder / "r.yaml"), Workspace(folder / "data"), on_progress=rows.append)["download"]
    return pl.read_parquet(artifact.file("documents.parquet"), glob=False), [row["text"] for row in rows if row["kind"] == "log"]


LINES = "".join(f"line {i:03} of a text\n" for i in range(200))


@pytest.mark.parametrize("fraction", [0.1, 0.35])
def test_the_tail_of_one_file_is_the_validation_split(fraction: float, tmp_path: Path) -> None:
    table, _ = download(tmp_path, {"input.txt": LINES}, split="tail", tail_fraction=fraction)
    (train, validation) = table["text"]
    assert train + validation == LINES
    assert train.endswith("\n")
    assert abs(len(validation) / len(LINES) - fraction) < 0.01
    assert table["split"].to_list() == ["train", "validation"]
    assert table["key"].to_list() == ["input.txt", "input.txt (tail)"]


@pytest.mark.parametrize("text", ["no line ends at all " * 50, "é" * 500, "one line\n" + "x" * 999, "x" * 999 + "\nlast", "ab", "\n\n"])
def test_a_text_without_lines_is_cut_between_characters(text: str, tmp_path: Path) -> None:
    table, _ = download(tmp_path, {"input.txt": text}, split="tail")
    assert "".join(table["text"]) == text
    assert table["split"].to_list() == ["train", "validation"]


def test_of_many_documents_the_last_ones_are_validation(tmp_path: Path) -> None:
    table, _ = download(tmp_path, {f"{i:02}.txt": f"document {i:02}\n" for i in range(20)}, split="tail")
    assert table["split"].to_list() == ["train"] * 18 + ["validation"] * 2
    assert table.height == 20
    table, _ = download(tmp_path / "b", {"input.txt": "\n\n".join(f"paragraph {i:02}" for i in range(20))}, split="tail", source={"separator": "\n\n"})
    assert table.filter(pl.col("split") == "validation").height in (2, 3)


def test_every_source_has_its_own_tail(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text(LINES)
    sources = [{"name": "files", "paths": [name], "source_name": name} for name in ("b", "a")]
    (tmp_path / "r.yaml").write_text(json.dumps({"name": "t", "stages": ["download"], "download": {"sources": sources, "split": "tail"}}))
    table = pl.read_parquet(run_all(load(tmp_path / "r.yaml"), Workspace(tmp_path / "w"))["download"].file("documents.parquet"), glob=False)
    assert table.select("source", "split").rows() == [("a", "train"), ("a", "validation"), ("b", "train"), ("b", "validation")]


def test_an_empty_split_says_how_to_fill_it(tmp_path: Path) -> None:
    _, logs = download(tmp_path, {"input.txt": "one document"}, split_modulus=1_000_003)
    assert "so there is no validation loss; set download.split: tail (the last 10% of the text), or separator in the source" in logs[-1]
    assert "or lower download.split_modulus (1000003)" in logs[-1]
    with pytest.raises(DataError, match=r"leaves none to train on; set download\.split: tail .* raise download\.split_modulus \(2\)"):
        download(tmp_path / "b", {"input.txt": next(t for t in map(str, range(9)) if _validates(t))}, split_modulus=2)
    _, logs = download(tmp_path / "c", {"input.txt": "x"}, split="tail")
    assert "add text, or raise download.tail_fraction (0.1)" in logs[-1]


def _validates(text: str) -> bool:
    import hashlib

    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 2 == 0


def test_the_recipe_of_ones_own_text_runs_with_one_set(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(LINES)
    recipe = load(EXPERIMENTS / "own-text.yaml", [f"download.sources.0.paths=[{tmp_path / 'mine.txt'}]"])
    assert recipe.stages["download"].section.sources[0].build().check() == []  # type: ignore[attr-defined]
    smaller = {"seq_len": 32, "batch_size": 2, "max_steps": 2, "compile": "off", "threads": 1, "precision": "fp32", "score_tokens": 64}
    overrides = [f"download.sources.0.paths=[{tmp_path / 'mine.txt'}]", "pretrain.architecture.d_model=32", "pretrain.architecture.num_layers=1"]
    overrides += [
        "pretrain.schedule.warmup_steps=1",
        *(f'pretrain.{key}="{value}"' if isinstance(value, str) else f"pretrain.{key}={value}" for key, value in smaller.items()),
    ]
    rows: list[dict[str, Any]] = []
    built = run_all(load(EXPERIMENTS / "own-text.yaml", overrides), Workspace(tmp_path / "data"), on_progress=rows.append)
    assert built["shard"].manifest["metrics"]["val_tokens"] > 300
    assert 3 < built["pretrain"].manifest["metrics"]["val_bits_per_byte"] < 12
    (said,) = [row["text"] for row in rows if row["kind"] == "log" and "final validation" in row["text"]]
    assert said == f"final validation: 64 of {built['shard'].manifest['metrics']['val_tokens'] - 2} tokens (score_tokens; 0 scores all)"
    assert built["pretrain"].metrics["val_share"] == round(64 / (built["shard"].metrics["val_tokens"] - 2), 4)
    assert "report" in built["report"].manifest["metrics"]
