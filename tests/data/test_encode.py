"""Encoding of document tables: units of work, framing, processes and task runners, kills."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeb_data.tokenizers.bpe import BpeConfig
from feeb_data.tokenizers.bpe.bpe import BpeTrainer
from feebcore.artifacts import Artifact, Workspace
from feebcore.data import task_runner
from feebcore.data.encode import Encoder, framed, row_ranges
from feebcore.data.tokenizers import save_part
from feebcore.errors import DataError
from feebcore.parts import Part
from feebcore.recipe import load
from feebcore.registry import get_registry
from feebcore.run.build import run_all

TEXTS = [f"Document {i} says café {i * 37} times.\n" * (1 + i % 5) for i in range(50)]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    config = BpeConfig(vocab_size=275)
    BpeTrainer(config).train(lambda: iter(TEXTS), folder, lambda done, total: None)
    save_part(folder, Part("tokenizers", get_registry().resolve("tokenizers", "bpe"), config))
    return folder


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("documents") / "documents.parquet"
    split = ["validation" if i % 7 == 3 else "train" for i in range(len(TEXTS))]
    pl.DataFrame({"text": TEXTS, "num_bytes": [len(t.encode()) for t in TEXTS], "split": split}).write_parquet(path, row_group_size=9)
    return path


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_units_cover_every_row_once_and_are_of_about_the_size_asked(data: st.DataObject) -> None:
    sizes = np.array(data.draw(st.lists(st.integers(0, 300), max_size=60)), dtype=np.int64)
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes))), dtype=bool)
    first, batch = data.draw(st.integers(0, len(sizes) + 1)), data.draw(st.integers(1, 500))
    found = list(row_ranges(sizes, chosen, batch, first))
    assert [row for begin, count in found for row in range(begin, begin + count)] == list(range(first, len(sizes)))
    assert all(count > 0 for _, count in found)
    for begin, count in found:
        inside = np.where(chosen, sizes, sizes // 8)[begin : begin + count]
        assert inside[1:].sum() < batch


class Fixed:
    """Ids as told."""

    vocab_size, bos_id, eos_id = 100, 98, 99

    def __init__(self, ids: list[Any]) -> None:
        self.ids = ids

    def encode_batch(self, texts: Any) -> list[Any]:
        return self.ids


def test_documents_are_framed_one_after_another_in_the_stored_type() -> None:
    ids, lengths = framed(Fixed([np.array([1, 2]), np.array([], dtype=np.uint8), [3]]), ["a", "", "b"])  # type: ignore[arg-type]
    assert ids.tolist() == [98, 1, 2, 99, 98, 99, 98, 3, 99]
    assert lengths.tolist() == [4, 2, 3]
    assert ids.dtype == np.dtype("<u2")
    assert [a.size for a in framed(Fixed([]), [])] == [0, 0]  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [100, -1, 2**40, 2**16 + 5])
def test_an_id_outside_the_vocabulary_is_refused_not_wrapped(bad: int) -> None:
    with pytest.raises(DataError, match="outside its vocabulary of 100"):
        framed(Fixed([np.array([1, bad])]), ["a"])  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "kind"), [(1, "none"), (2, "none"), (3, "threads")])
def test_units_hold_the_split_in_order_however_they_are_encoded(tokenizer_folder: Path, documents: Path, workers: int, kind: str) -> None:
    ranges = [(0, 5), (5, 20), (25, 1), (26, 24)]
    with task_runner.offering(lambda kind, workers, address: ThreadPoolExecutor(workers)), Encoder(tokenizer_folder, workers, 0, kind) as encoder:
        for split, texts in (("train", [t for i, t in enumerate(TEXTS) if i % 7 != 3]), ("validation", TEXTS[3::7])):
            units = list(encoder.encode(documents, split, ranges))
            assert [(u.first, u.count) for u in units] == ranges
            ids, lengths = framed(encoder.tokenizer, texts)
            assert np.concatenate([u.ids for u in units]).tolist() == ids.tolist()
            assert np.concatenate([u.lengths for u in units]).tolist() == lengths.tolist()
            assert sum(u.num_bytes for u in units) == sum(len(t.encode()) for t in texts)


def test_a_failure_on_a_worker_is_raised_here(tokenizer_folder: Path, tmp_path: Path) -> None:
    pl.DataFrame({"text": ["a"], "num_bytes": [1]}).write_parquet(tmp_path / "d.parquet")
    for workers in (1, 2):
        with Encoder(tokenizer_folder, workers, 0) as encoder, pytest.raises(pl.exceptions.ColumnNotFoundError):
            list(encoder.encode(tmp_path / "d.parquet", "train", [(0, 1)]))


def test_threads_of_the_tokenizer_make_processes_needless(tokenizer_folder: Path) -> None:
    with Encoder(tokenizer_folder, 0, 1 << 40) as encoder:
        assert encoder._workers == 1


def ledger_files(artifact: Artifact) -> dict[str, Any]:
    return {name: entry for name, entry in artifact.manifest["files"].items() if name.startswith(("tokens", "ledger"))}


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("threads", "none"), ("none", "threads")])
def test_killed_under_fan_out_it_continues_to_the_same_content(tmp_path: Path, before: str, after: str) -> None:
    (tmp_path / "text").mkdir()
    for i in range(30):
        (tmp_path / "text" / f"{i:03}.txt").write_text(np.random.default_rng(i).bytes(100_000).hex())

    def recipe(kind: str) -> Path:
        sections = {"download": {"sources": [{"name": "files", "paths": ["text"]}]}, "tokenizer": {"tokenizer": "byte"}}
        shard = {"shard_tokens": 262144, "fan_out": kind, "workers": 2}
        (tmp_path / f"{kind}.yaml").write_text(json.dumps({"name": "t", "stages": ["download", "tokenizer", "shard"], **sections, "shard": shard}))
        return tmp_path / f"{kind}.yaml"

    command = [sys.executable, str(Path(__file__).with_name("data_killed.py")), str(recipe(before)), str(tmp_path / "data"), "4"]
    assert subprocess.run(command, check=False).returncode == -9
    with task_runner.offering(lambda kind, workers, address: ThreadPoolExecutor(workers)):
        shard = run_all(load(recipe(after)), Workspace(tmp_path / "data"))["shard"]
        fresh = run_all(load(recipe(before)), Workspace(tmp_path / "fresh"))["shard"]
    assert "continuing train at document" in (shard.path / "events.jsonl").read_text()
    assert (shard.digest, ledger_files(shard)) == (fresh.digest, ledger_files(fresh))


def test_time_without_tokens_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for i, text in enumerate(TEXTS):
        (tmp_path / "text" / f"{i:03}.txt").write_text(text)
    sections = {"download": {"sources": [{"name": "files", "paths": ["text"]}]}, "tokenizer": {"tokenizer": {"name": "bpe", "vocab_size": 270}}}
    (tmp_path / "r.yaml").write_text(json.dumps({"name": "t", "stages": ["download", "tokenizer", "shard"], **sections}))
    built = run_all(load(tmp_path / "r.yaml"), Workspace(tmp_path / "data"))
    assert 0 <= built["shard"].metrics["waiting_for_tokens_share"] <= 1
