"""Encoding on the workers of a Prefect task runner: the same tokens and the same ledger, kills included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from feebcore.artifacts import Workspace
from feebcore.data import encode, task_runner
from feebcore.errors import RecipeError
from feebcore.recipe import load
from feebcore.run.build import run_all

from .conftest import Feeb


def write_recipe(folder: Path, **shard: Any) -> Path:
    (folder / "text").mkdir(exist_ok=True)
    for i in range(40):
        (folder / "text" / f"{i:03}.txt").write_text(f"Document {i} says café {i * 37} times.\n" * (i % 7 + 1) * 40)
    sections = {
        "download": {"sources": [{"name": "files", "paths": ["text"]}]},
        "tokenizer": {"tokenizer": {"name": "bpe", "vocab_size": 270}},
        "shard": shard,
    }
    (folder / "r.yaml").write_text(json.dumps({"name": "t", "stages": ["download", "tokenizer", "shard"], **sections}))
    return folder / "r.yaml"


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["threads", "dask"])
def test_tokens_and_ledger_are_those_of_a_run_without_fan_out(tmp_path: Path, served: Feeb, kind: str) -> None:
    recipe = write_recipe(tmp_path)
    expected = run_all(load(recipe), Workspace(tmp_path / "plain"))["shard"]
    done = served("run", recipe, "--set", f"shard.fan_out={kind}", "--set", "shard.workers=2", timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    (shard,) = (served.workspace / "shard").glob("t-*")
    manifest = json.loads((shard / "manifest.json").read_text())
    assert manifest["digest"] == expected.digest
    assert manifest["fingerprint"] == expected.fingerprint
    files = {name: entry for name, entry in expected.manifest["files"].items() if name.startswith(("tokens", "ledger"))}
    assert files == {name: entry for name, entry in manifest["files"].items() if name.startswith(("tokens", "ledger"))}
    units = served.rows("select state_name from task_run where name like '%encode_rows_elsewhere%'")
    assert len(units) == 2  # a split each
    assert set(units) == {("Completed",)}


def test_without_an_orchestrator_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"shard\.fan_out: dask needs an orchestrator.*`feeb run`, or set shard\.fan_out to none"):
        run_all(load(write_recipe(tmp_path, fan_out="dask")), Workspace(tmp_path / "data"))


def test_a_kind_whose_package_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import contextvars
    import sys

    from feeb_pipelines.task_runners import open_task_runner

    monkeypatch.setitem(sys.modules, "prefect_ray", None)
    with (
        pytest.raises(RecipeError, match=r"fan_out: ray needs the package prefect-ray; pip install 'feeb\[ray\]'"),
        open_task_runner(contextvars.copy_context(), "ray", 2, ""),
    ):
        pass


def test_units_come_back_in_order_whatever_order_they_end_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner that answers the last question first, and units of a few documents each."""
    monkeypatch.setattr(encode, "TASK_BYTES", 5_000)
    built = run_all(load(write_recipe(tmp_path)), Workspace(tmp_path / "plain"))
    done: list[int] = []

    class Late:
        def __init__(self, queue: list[Any], number: int) -> None:
            self.queue, self.number = queue, number

        def result(self) -> Any:
            while self.queue[self.number][1] is None:
                last = max(i for i, (_, answer) in enumerate(self.queue) if answer is None)
                self.queue[last][1] = self.queue[last][0]()
                done.append(last)
            return self.queue[self.number][1]

    class Runner:
        def __init__(self) -> None:
            self.queue: list[Any] = []

        def submit(self, function: Any, /, *args: Any) -> Late:
            self.queue.append([lambda: function(*args), None])
            return Late(self.queue, len(self.queue) - 1)

        def __enter__(self) -> Runner:
            return self

        def __exit__(self, *unused: object) -> None:
            pass

    with task_runner.offering(lambda kind, workers, address: Runner()):
        again = run_all(load(write_recipe(tmp_path, fan_out="threads", workers=2)), Workspace(tmp_path / "fanned"))
    assert again["shard"].digest == built["shard"].digest
    assert len(done) > 5
    assert done != sorted(done)
