"""From a recipe with several sources: sources held out whole, mixtures, and tokens that are read from an address."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pytest
from range_server import served

from feebcore.artifacts import Artifact, Workspace
from feebcore.data.store import TokenStore
from feebcore.data.views import source_views, validation_sets
from feebcore.errors import ArtifactError, RecipeError
from feebcore.recipe import load
from feebcore.run.build import run_all

PRETRAIN = {
    "architecture": {"name": "transformer", "num_layers": 1, "d_model": 16, "num_heads": 2},
    "seq_len": 32,
    "batch_size": 4,
    "max_steps": 4,
    "validation_every": 0,
    "checkpoint_every": 0,
    "log_every": 1,
    "threads": 1,
    "device": "cpu",
    "callbacks": ["metrics"],
}


def run(folder: Path, stages: str, **sections: Any) -> dict[str, Artifact]:
    sources = [{"name": "files", "paths": [name], "source_name": name} for name in ("books", "code", "exam")]
    data = {"name": "t", "stages": stages.split(","), "download": {"sources": sources, "split_modulus": 4}, "tokenizer": {"tokenizer": "byte"}}
    data = data | {key: data.get(key, {}) | value for key, value in sections.items()}
    data = {key: value for key, value in data.items() if key in ("name", "stages") or key in data["stages"]}
    (folder / "r.yaml").write_text(json.dumps(data))
    return run_all(load(folder / "r.yaml"), Workspace(folder / "data"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name in ("books", "code", "exam"):
        (tmp_path / name).mkdir()
        for i in range(16):
            (tmp_path / name / f"{i:03}.txt").write_text(f"{name} number {i}: {i * 37} {name}. " * 4)
    return tmp_path


def test_a_source_can_be_held_out_whole(corpus: Path) -> None:
    plain = run(corpus, "download")["download"]
    built = run(corpus, "download,tokenizer,shard", download={"validation_sources": ["exam"]})
    table = pl.read_parquet(built["download"].file("documents.parquet"))
    before = pl.read_parquet(plain.file("documents.parquet"))
    assert set(table.filter(pl.col("source") == "exam")["split"]) == {"validation"}
    assert table.filter(pl.col("source") != "exam").equals(before.filter(pl.col("source") != "exam"))
    assert plain.fingerprint != built["download"].fingerprint
    train, val = (TokenStore.open(built["shard"].file("tokens.zarr"), split) for split in ("train", "validation"))
    assert set(source_views(train)) == {"books", "code"}
    assert set(validation_sets(val)) == {"books", "code", "exam"}
    assert validation_sets(val)["exam"].num_documents == 16


def test_a_held_out_source_that_is_not_there_is_named(corpus: Path) -> None:
    with pytest.raises(RecipeError, match=r"validation_sources: no source 'exams'; did you mean 'exam'"):
        run(corpus, "download", download={"validation_sources": ["exams"]})


def test_a_recipe_trains_on_a_mixture_with_a_phase_and_tells_what_it_saw(corpus: Path) -> None:
    order = {"name": "mixture", "proportions": {"books": 3, "code": 1}, "phases": [{"begin": 0.5, "proportions": {"exam": 1}}]}
    metrics = run(corpus, "download,tokenizer,shard,pretrain", pretrain=PRETRAIN | {"data_order": order})["pretrain"].metrics
    seen = metrics["data"]["epochs_by_source"]
    sequences = {name: metrics["data"][name]["sequences"] for name in ("books", "code", "exam")}
    assert {name: round(seen[name] * sequences[name]) for name in sequences} == {"books": 6, "code": 2, "exam": 8}


@pytest.fixture
def web(corpus: Path) -> Iterator[str]:
    (corpus / "web").mkdir()
    with served(corpus / "web") as address:
        yield address


def test_tokens_from_an_address_train_the_same_model(corpus: Path, web: str) -> None:
    built = run(corpus, "download,tokenizer,shard,pretrain", pretrain=PRETRAIN)
    shutil.copytree(built["shard"].file("tokens.zarr"), corpus / "web" / "tokens.zarr")
    memory = fsspec.filesystem("memory")
    memory.put(str(built["shard"].file("tokens.zarr")), "/copy/", recursive=True)
    try:
        for address in (f"{web}/tokens.zarr", "memory://copy/tokens.zarr"):
            shutil.rmtree(built["pretrain"].path)
            again = run(corpus, "download,tokenizer,shard,pretrain", pretrain=PRETRAIN | {"tokens_url": address})["pretrain"]
            assert again.fingerprint == built["pretrain"].fingerprint
            assert again.digest == built["pretrain"].digest
    finally:
        memory.rm("/copy", recursive=True)


def test_other_tokens_at_the_address_are_refused(corpus: Path, web: str) -> None:
    built = run(corpus, "download,tokenizer,shard", download={"validation_sources": ["exam"]})
    shutil.copytree(built["shard"].file("tokens.zarr"), corpus / "web" / "tokens.zarr")
    with pytest.raises(ArtifactError, match="holds other tokens than"):
        run(corpus, "download,tokenizer,shard,pretrain", pretrain=PRETRAIN | {"tokens_url": f"{web}/tokens.zarr"})
    for wrong, why in (("some/folder", "is not a URL"), ("http://me:secret@host/tokens.zarr", "may not hold a user name or password")):
        with pytest.raises(RecipeError, match=why):
            run(corpus, "download,tokenizer,shard,pretrain", pretrain=PRETRAIN | {"tokens_url": wrong})
