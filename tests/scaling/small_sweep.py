"""A tiny sweep on text that can be learned, also as a process of its own: `python small_sweep.py FOLDER [kill_after]`."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from feebcore.artifacts import Artifact, Workspace
from feebcore.recipe import Recipe, load
from feebcore.run.build import run_all
from feebcore.scaling.config import SweepConfig

VOCAB = 258

SECTION: dict[str, Any] = {
    "train": {
        "architecture": {"name": "transformer", "num_layers": 1, "num_heads": 2},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "schedule": {"name": "linear", "warmup_steps": 3},
        "seq_len": 16,
        "batch_size": 4,
        "precision": "fp32",
        "threads": 1,
    },
    "planner": {
        "name": "isoflop",
        "sizes": [{"d_model": 4}, {"d_model": 8}, {"d_model": 16}],
        "budgets": [1.5e7, 3e7],
        "heldout": [{"flops": 6e7, "size": {"d_model": 8}}],
        "min_steps": 10,
        "tolerance": 0.05,
    },
    "bootstrap": 100,
    "eval_documents": 5,
}


def section(**changes: Any) -> SweepConfig:
    return SweepConfig.model_validate(SECTION | changes)


def recipe(root: Path, split_modulus: int = 4, **changes: Any) -> Recipe:
    """The sweep after the stages that it needs, on 60 small files."""
    (root / "text").mkdir(parents=True, exist_ok=True)
    for i in range(60):
        (root / "text" / f"{i}.py").write_text(f"def f{i}(x):\n    return x + {i}\n# some words {i} here and there\n")
    stages = {"download": {"sources": [{"name": "files", "paths": ["text"]}], "split_modulus": split_modulus}, "tokenizer": {"tokenizer": "byte"}}
    (root / "r.yaml").write_text(json.dumps({"name": "tiny", "stages": ["download", "tokenizer", "shard", "sweep"], **stages, "sweep": SECTION | changes}))
    return load(root / "r.yaml")


def sweep(root: Path, on_progress: Any = None, workspace: Path | None = None, **changes: Any) -> Artifact:
    return run_all(recipe(root, **changes), Workspace(workspace or root / "data"), ["sweep"], on_progress)["sweep"]


def killing(left: int) -> Callable[[dict[str, Any]], None]:
    """A listener that sends SIGKILL in the middle of the run after `left` finished ones."""

    def kill(row: dict[str, Any]) -> None:
        nonlocal left
        if row["kind"] == "log" and row["text"].startswith("run "):
            left -= 1
            if left == 0:
                threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()

    return kill


if __name__ == "__main__":
    sweep(Path(sys.argv[1]), killing(int(sys.argv[2])))
