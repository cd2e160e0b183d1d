"""Runs that are killed several times at random moments end with the bits of one that was not: benchmarks/kill_training.py."""

from __future__ import annotations

import argparse
import importlib.util
import random
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kill_training.py"
spec = importlib.util.spec_from_file_location("kill_training", SCRIPT)
assert spec is not None
assert spec.loader is not None
kill_training = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kill_training)


def kills_change_no_bit(folder: Path, compile: str, ranks: int, kills: int, precision: str = "auto", layers: int = 2) -> None:
    seed = random.randrange(2**32)  # any moments must do; a failure names the seed
    options = argparse.Namespace(kills=kills, compile=compile, precision=precision, layers=layers, ranks=ranks, strategy="ddp", seed=seed)
    result = kill_training.compare(folder, options)
    assert result["kills"] == kills
    assert result["compile"] == (compile != "off")
    assert not result["differences"], result | {"seed": seed}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("ranks", "kills"), [(1, 3), (2, 1)])
def test_kills_at_every_kind_of_moment_change_no_bit(tmp_path, ranks, kills):
    """In a step, while a checkpoint is written, during validation, the third time of the parent process; and once of two ranks,
    which test_killed_ranks.py puts through more."""
    kills_change_no_bit(tmp_path, "off", ranks, kills)


def test_the_comparison_sees_a_single_changed_bit(tmp_path):
    """What the killed run is compared by must be able to fail."""
    steps = 24
    last = f"checkpoints/step-{steps:08d}"
    for name in ("whole", "killed"):
        run = tmp_path / name / "pretrain" / "killed-0"
        (run / last).mkdir(parents=True)
        (run / last / "model.safetensors").write_bytes(b"same")
        (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "elapsed": 1}\n')
        (tmp_path / f"{name}.watch").write_text("".join(f"step 7 {i} {i}abc\n" for i in range(steps)))
    assert kill_training.differences(tmp_path, steps) == []
    (run / last / "model.safetensors").write_bytes(b"sane")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.1, "elapsed": 2}\n')
    with open(tmp_path / "killed.watch", "a") as stream:
        stream.write("step 9 3 other\n")
    assert kill_training.differences(tmp_path, steps) == [f"{last}/model.safetensors", "metrics.jsonl", "batches"]
