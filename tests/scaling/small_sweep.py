"""A tiny sweep on text that can be learned, also as a process of its own: `python small_sweep.py FOLDER [kill_after]`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from feebcore.artifacts import Artifact, StageOutput
from feebcore.data.store_writer import SplitWriter
from feebcore.run.build import stop_on_signals
from feebcore.scaling.config import SweepConfig
from feebcore.stages.sweep import run

VOCAB, T = 64, 16


def section(**changes: Any) -> SweepConfig:
    base: dict[str, Any] = {
        "train": {
            "architecture": {"name": "transformer", "num_layers": 1, "num_heads": 2},
            "optimizer": {"name": "adamw", "lr": 0.01},
            "schedule": {"name": "linear", "warmup_steps": 3},
            "seq_len": T,
            "batch_size": 4,
            "precision": "fp32",
            "threads": 1,
        },
        "planner": {
            "name": "isoflop",
            "sizes": [{"d_model": 4}, {"d_model": 8}, {"d_model": 16}],
            "budgets": [1e7, 2e7],
            "heldout": [{"flops": 4e7, "size": {"d_model": 8}}],
            "min_steps": 10,
            "tolerance": 0.05,
        },
        "bootstrap": 20,
        "eval_documents": 5,
    }
    return SweepConfig.model_validate(base | changes)


def inputs(root: Path) -> dict[str, Artifact]:
    """Token and tokenizer artifacts, written once: each token follows from the one before, or is one of two."""
    folder = root / "inputs"
    if not folder.exists():
        rng = np.random.default_rng(0)
        (folder / "tokenizer").mkdir(parents=True)
        for split, number in (("train", 200), ("validation", 20)):
            documents = []
            for _ in range(number):
                ids = [int(rng.integers(VOCAB - 2))]
                while len(ids) < 40:
                    ids.append((ids[-1] * 5 + 3 + int(rng.integers(2))) % (VOCAB - 2))
                documents.append(np.array([VOCAB - 2, *ids, VOCAB - 1]))
            writer = SplitWriter(folder / "tokens.zarr", split, vocab_size=VOCAB, bos_id=VOCAB - 2, eos_id=VOCAB - 1, shard_tokens=2**18)
            writer.append(documents)
            writer.finish(np.array([len(d) for d in documents]), np.zeros(number), ["test"])
    artifact = Artifact(folder, {"digest": "abc", "files": {}})
    return {"tokens": artifact, "tokenizer": artifact}


def sweep(root: Path, the_section: SweepConfig | None = None, listener: Any = None) -> dict[str, Any]:
    (root / "out").mkdir(parents=True, exist_ok=True)
    given = inputs(root)
    out = StageOutput(root / "out", listener)
    try:
        with stop_on_signals(out):
            return run(the_section or section(), given, out)
    finally:
        out.close()


if __name__ == "__main__":
    left = int(sys.argv[2]) if len(sys.argv) > 2 else 0

    def kill(row: dict[str, Any]) -> None:
        """SIGKILL in the middle of the cell after `left` finished ones."""
        global left
        if row["kind"] == "log" and row["text"].startswith("cell "):
            left -= 1
            if left == 0:
                import threading

                threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()

    sweep(Path(sys.argv[1]), listener=kill if left else None)
