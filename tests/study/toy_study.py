"""Studies of toy runs, also as a process of its own that is killed: `python toy_study.py FOLDER NUMBER_OF_RUNS`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feebcore.artifacts import Artifact, Workspace
from feebcore.files import write_atomic
from feebcore.recipe import Recipe, load
from feebcore.study.executors import WarmWorkers, executing
from feebcore.study.ledger import Ledger
from feebcore.study.run import run_study
from feebcore.study.runs import RunRecord, RunSpec

PLUGIN = Path(__file__).with_name("toy_stage.py")


def recipe(folder: Path, name: str, **options: Any) -> Recipe:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    write_atomic(path, json.dumps({"name": name, "plugins": [str(PLUGIN)], "stages": ["count"], "count": options}))  # several processes do
    return load(path)


def spec(folder: Path, name: str, after: tuple[str, ...] = (), priority: int = 0, **options: Any) -> RunSpec:
    return RunSpec(name, recipe(folder / "recipes", name, **options), ("count",), overrides=options, after=after, priority=priority)


def text_of(spec: RunSpec, artifacts: Mapping[str, Artifact]) -> Mapping[str, Any]:
    return artifacts["count"].metrics


def study(root: Path, specs: list[RunSpec], jobs: int = 2, propose: Any = None, **options: Any) -> dict[str, RunRecord]:
    root.mkdir(parents=True, exist_ok=True)
    with Ledger(root / "ledger.sqlite") as ledger, WarmWorkers(jobs) as workers, executing(workers):
        records = run_study(propose or (lambda known: specs), ledger, Workspace(root / "data"), {}, text_of, lambda row: None, **options)
    return {r.name: r for r in records}


if __name__ == "__main__":
    root = Path(sys.argv[1])
    study(root, [spec(root, f"r{i}", number=i, steps=8, step_seconds=0.05) for i in range(int(sys.argv[2]))])
