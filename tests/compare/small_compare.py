"""A tiny comparison, also as a process of its own that is killed: `python small_compare.py FOLDER KILL_AFTER`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from feebcore.artifacts import Artifact, Workspace
from feebcore.compare.plan import Settings
from feebcore.compare.run import compare
from feebcore.recipe import load

RECIPE = """
name: base
stages: [download, tokenizer, shard, pretrain]
download: {sources: [{name: files, paths: [text]}]}
tokenizer: {tokenizer: byte}
pretrain:
  architecture: {name: transformer, num_layers: 1, d_model: 16, num_heads: 2}
  optimizer: {name: adamw, lr: 0.02}
  schedule: {name: cosine, warmup_steps: 4}
  seq_len: 32
  batch_size: 4
  max_steps: 16
  validation_every: 0
  checkpoint_every: 0
  precision: fp32
  threads: 1
  compile: "off"
"""
QUICK: dict[str, Any] = {"seeds": 2, "tune_lr": "off", "curve": ()}


def recipes(root: Path, *changes: str, names: tuple[str, ...] = ("base", "wide")) -> list[Any]:
    """base.yaml and one that extends it; changes: of the second's pretrain section, as YAML lines."""
    (root / "text").mkdir(parents=True, exist_ok=True)
    for i in range(40):
        (root / "text" / f"{i}.py").write_text(f"def f{i}(x):\n    return x + {i}\n" * 3)
    (root / "base.yaml").write_text(RECIPE)
    (root / "wide.yaml").write_text("extends: base.yaml\nname: wide\npretrain:\n" + "".join(f"  {c}\n" for c in changes or ("architecture: {d_model: 24}",)))
    return [load(root / f"{name}.yaml") for name in names]


def run(root: Path, workspace: Path | None = None, on_progress: Any = None, **settings: Any) -> Artifact:
    return compare(recipes(root), Settings(**QUICK | settings), Workspace(workspace or root / "data"), on_progress)


if __name__ == "__main__":
    left = int(sys.argv[2])

    def kill(row: dict[str, Any]) -> None:
        """SIGKILL as the run after `left` finished ones begins."""
        global left
        if row["kind"] == "progress" and left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if row["kind"] == "log" and "bits per byte" in row["text"]:
            left -= 1

    run(Path(sys.argv[1]), on_progress=kill, budget="flops")
