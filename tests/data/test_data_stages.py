"""Stages download, tokenizer and shard on real recipes: counts, splits, bad input, full disks, kills."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from feebcore.artifacts import Artifact, Workspace
from feebcore.data import store_writer
from feebcore.data.store import TokenStore
from feebcore.data.tokenizers import load_tokenizer
from feebcore.errors import ArtifactError, DataError, Interrupted, RecipeError
from feebcore.recipe import load
from feebcore.run.build import run_all

SPECIAL = "<|endoftext|>"


def write_corpus(folder: Path, number: int = 60) -> None:
    (folder / "text").mkdir(parents=True, exist_ok=True)
    for i in range(number):
        (folder / "text" / f"{i:03}.txt").write_text(f"Document {i} says café {i * 37} times.\n" * (i % 7 + 1))


def run(folder: Path, stages: str = "download,tokenizer,shard", workspace: Path | None = None, **sections: Any) -> dict[str, Artifact]:
    data = {
        "name": "t",
        "stages": stages.split(","),
        "download": {"sources": [{"name": "files", "paths": ["text"]}]},
        "tokenizer": {"tokenizer": "byte"},
    } | sections
    data = {key: value for key, value in data.items() if key in ("name", "stages") or key in data["stages"]}
    (folder / "r.yaml").write_text(json.dumps(data))
    return run_all(load(folder / "r.yaml"), Workspace(workspace or folder / "data"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus(tmp_path)
    return tmp_path


def test_download_splits_by_hash_sorts_and_counts(corpus: Path) -> None:
    (corpus / "text" / "empty.txt").write_text("")
    (corpus / "text" / "bad.txt").write_bytes(b"\xff\xff")
    (corpus / "text" / "special.txt").write_text(SPECIAL)
    (corpus / "text" / "zcopy.txt").write_bytes((corpus / "text" / "005.txt").read_bytes())
    filters = ["dedup_exact", {"name": "length", "max_bytes": 10_000}, "quality_statistics"]
    artifact = run(corpus, "download", download={"sources": [{"name": "files", "paths": ["text"]}], "filters": filters, "split_modulus": 5})["download"]
    table = pl.read_parquet(artifact.file("documents.parquet"))
    assert table.columns == ["text", "source", "key", "sha256", "num_bytes", "split"]
    assert table["key"].to_list() == sorted(table["key"])
    for row in table.iter_rows(named=True):
        digest = hashlib.sha256(row["text"].encode()).hexdigest()
        assert (row["sha256"], row["num_bytes"]) == (digest, len(row["text"].encode()))
        assert row["split"] == ("validation" if int(digest, 16) % 5 == 0 else "train")
    assert SPECIAL in table["text"].to_list()
    assert artifact.metrics["dropped"] == {"files: empty": 1, "files: not UTF-8": 1, "dedup_exact": 1, "length": 0, "quality_statistics": 0}
    assert artifact.metrics["documents"] == table.height == 61
    assert artifact.metrics["val_documents"] == (table["split"] == "validation").sum() > 0
    assert artifact.metrics["bytes"] == table["num_bytes"].sum()
    statistics = json.loads(artifact.file("statistics.json").read_text())
    assert 0 < statistics["columns"]["alpha_ratio"]["mean"] < 1
    assert not (artifact.path / "work").exists()


def test_the_same_documents_have_the_same_digest_whatever_filters_looked_at_them(corpus: Path) -> None:
    sources = {"sources": [{"name": "files", "paths": ["text"]}]}
    first = run(corpus, "download", download=sources)["download"]
    second = run(corpus, "download", workspace=corpus / "other", download=sources)["download"]
    third = run(corpus, "download", download=sources | {"filters": ["quality_statistics"]})["download"]
    assert first.fingerprint == second.fingerprint != third.fingerprint
    assert first.digest == second.digest == third.digest
    assert first.file("documents.parquet").read_bytes() == second.file("documents.parquet").read_bytes()


def test_documents_that_come_unsorted_are_sorted(corpus: Path) -> None:
    labels = [{"name": "files", "paths": [f"text/{i}*.txt"], "source_name": label} for i, label in (("04", "z"), ("00", "a"))]
    table = pl.read_parquet(run(corpus, "download", download={"sources": labels})["download"].file("documents.parquet"))
    assert table["source"].to_list() == ["a"] * 10 + ["z"] * 10


def test_an_empty_corpus_names_its_source(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("")
    (tmp_path / "text" / "b.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"source 'files' has no documents, 1 left out \(empty: a.txt\), 1 left out \(not UTF-8: b.txt\).*download\.sources\.0"):
        run(tmp_path, "download")


def test_filters_that_drop_everything_are_named(corpus: Path) -> None:
    with pytest.raises(DataError, match=r"no document is left of 60 \(filter length: 60\)"):
        run(corpus, "download", download={"sources": [{"name": "files", "paths": ["text"]}], "filters": [{"name": "length", "min_bytes": 10**6}]})


def test_a_corpus_that_is_all_held_out_is_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path, 3)
    held_out = next(t for t in (f"text {i}" for i in range(1000)) if int(hashlib.sha256(t.encode()).hexdigest(), 16) % 10 == 0)
    for path in (tmp_path / "text").iterdir():
        path.write_text(held_out)
    with pytest.raises(DataError, match=r"every document \(3\) falls into the validation split"):
        run(tmp_path, "download")


def test_shards_hold_every_document_framed_by_bos_and_eos(corpus: Path) -> None:
    (corpus / "text" / "special.txt").write_text(SPECIAL * 3)
    (corpus / "text" / "x").mkdir()
    built = run(corpus, tokenizer={"tokenizer": {"name": "bpe", "vocab_size": 280}})
    tokenizer = load_tokenizer(built["tokenizer"].file("tokenizer"))
    table = pl.read_parquet(built["download"].file("documents.parquet"))
    totals = {}
    for split in ("train", "validation"):
        store = TokenStore.open(built["shard"].file("tokens.zarr"), split)
        part = table.filter(pl.col("split") == split)
        assert store.num_documents == part.height
        assert store.doc_bytes.tolist() == part["num_bytes"].to_list()
        assert (store.vocab_size, store.bos_id, store.eos_id, store.sources) == (280, 278, 279, ["files"])
        for i, text in enumerate(part["text"]):
            ids = store.document(i)
            assert (ids[0], ids[-1]) == (278, 279)
            assert tokenizer.decode(ids[1:-1].tolist()) == text
            assert not np.isin(ids[1:-1], [278, 279]).any()
        totals[split] = store.num_tokens
    metrics = built["shard"].metrics
    assert (metrics["train_tokens"], metrics["val_tokens"]) == (totals["train"], totals["validation"])
    num_text = sum(totals.values()) - 2 * table.height
    assert metrics["bytes_per_token"] == pytest.approx(table["num_bytes"].sum() / num_text)
    assert built["tokenizer"].metrics["round_trip"] == 1.0


def test_layout_and_workers_do_not_change_the_tokens(corpus: Path) -> None:
    digests = {run(corpus, shard=o)["shard"].digest for o in ({}, {"compress": True}, {"shard_tokens": 262144})}
    digests.add(run(corpus, workspace=corpus / "two", shard={"workers": 2})["shard"].digest)
    assert len(digests) == 1
    with pytest.raises(RecipeError, match="multiple of 262144"):
        run(corpus, shard={"shard_tokens": 1000})


def test_a_vocabulary_larger_than_the_corpus_supports(corpus: Path) -> None:
    with pytest.raises(DataError, match=r"supports a vocabulary of \d+, not 50000"):
        run(corpus, tokenizer={"tokenizer": {"name": "bpe", "vocab_size": 50_000}})


def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "CHUNK_TOKENS", 1024)
    monkeypatch.setattr(store_writer, "default_shard_tokens", lambda num_bytes: 4096)
    monkeypatch.setattr(store_writer.SplitWriter.__init__, "__kwdefaults__", store_writer.SplitWriter.__init__.__kwdefaults__ | {"chunk_tokens": 1024})


def random_text(folder: Path, number: int, size: int) -> None:
    (folder / "text").mkdir()
    for i in range(number):
        (folder / "text" / f"{i:03}.txt").write_text(np.random.default_rng(i).bytes(size // 2).hex())


def test_a_full_disk_says_so_and_a_later_run_continues(tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(monkeypatch)
    random_text(tmp_path, 60, 4_000)
    run(tmp_path, "download,tokenizer", workspace=small_disk)
    ballast = small_disk / "ballast"
    room = os.statvfs(small_disk)
    ballast.write_bytes(b"x" * (room.f_bavail * room.f_frsize - 200_000))
    with pytest.raises(ArtifactError, match=r"disk is full while writing .*run the same command again"):
        run(tmp_path, workspace=small_disk)
    (folder,) = (small_disk / "shard").glob("t-*")
    rows = (folder / "ledger.jsonl").read_text().splitlines()
    assert len(rows) >= 5
    ballast.unlink()
    shard = run(tmp_path, workspace=small_disk)["shard"]
    assert shard.path == folder
    assert (folder / "ledger.jsonl").read_text().splitlines()[: len(rows) - 1] == rows[:-1]
    assert "continuing train at document" in (folder / "events.jsonl").read_text()
    assert not list(folder.rglob("*.partial"))
    assert shard.digest == run(tmp_path, workspace=tmp_path / "fresh")["shard"].digest


@pytest.mark.parametrize("rows", [0, 2, 9])
def test_killed_while_sharding_it_continues_to_the_same_content(tmp_path: Path, rows: int) -> None:
    random_text(tmp_path, 30, 200_000)
    sections = {"shard": {"shard_tokens": 262144}}
    with pytest.raises(RecipeError):  # only to write the recipe
        run(tmp_path, "download,tokenizer,shard,no_such_stage", **sections)
    recipe = json.loads((tmp_path / "r.yaml").read_text())
    recipe["stages"].pop()
    (tmp_path / "k.yaml").write_text(json.dumps(recipe))
    command = [sys.executable, str(Path(__file__).with_name("data_killed.py")), str(tmp_path / "k.yaml"), str(tmp_path / "data"), str(rows)]
    assert subprocess.run(command, check=False).returncode == -9
    shard = run_all(load(tmp_path / "k.yaml"), Workspace(tmp_path / "data"))["shard"]
    fresh = run_all(load(tmp_path / "k.yaml"), Workspace(tmp_path / "fresh"))["shard"]
    assert shard.digest == fresh.digest
    content = [{n: e for n, e in a.manifest["files"].items() if n.startswith(("tokens", "ledger"))} for a in (shard, fresh)]
    assert content[0] == content[1]


def test_asked_to_stop_it_stops_and_continues(corpus: Path) -> None:
    from feebcore.artifacts import StageOutput
    from feebcore.stages import shard as stage

    built = run(corpus)
    inputs = {"documents": built["download"], "tokenizer": built["tokenizer"]}
    (corpus / "again").mkdir()
    out = StageOutput(corpus / "again")
    out.stop_requested = True
    with pytest.raises(Interrupted, match="run again"):
        stage.run(stage.ShardConfig(), inputs, out)
    out.stop_requested = False
    assert stage.run(stage.ShardConfig(), inputs, out)["train_tokens"] == built["shard"].metrics["train_tokens"]
    assert (corpus / "again" / "tokens.json").read_bytes() == built["shard"].file("tokens.json").read_bytes()


def test_a_truncated_or_altered_shard_is_found(corpus: Path) -> None:
    built = run(corpus)
    path = built["shard"].path / "tokens.zarr" / "train" / "tokens" / "c" / "0"
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    with pytest.raises(ArtifactError, match=r"bytes, the manifest says"):
        run(corpus)
    path.write_bytes(good[:5] + bytes([good[5] ^ 4]) + good[6:])
    assert built["shard"].verify() == ["tokens.zarr/train/tokens/c/0"]
    with pytest.raises(ArtifactError, match="altered"):
        TokenStore.open(built["shard"].file("tokens.zarr"), "train")
