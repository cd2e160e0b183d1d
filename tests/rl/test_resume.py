"""Killed anywhere and started again, a run ends with the same bits."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rl_killed import STEPS, make

from feebcore.errors import Interrupted

SCRIPT = Path(__file__).with_name("rl_killed.py")


def start(folder, algorithm):
    folder.mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, str(SCRIPT), str(folder), algorithm], stdout=subprocess.PIPE, text=True)


def rows(folder):
    timing = ("seconds", "seconds_generate")
    return [{k: v for k, v in json.loads(line).items() if k not in timing} for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_kill_9_and_again_ends_with_the_same_bits(tmp_path, algorithm):
    """ppo with adaptive KL, entropy bonus and separate value optimizer: weights, logs and metrics are those of an unbroken run."""
    torch.use_deterministic_algorithms(True)
    try:
        whole = make(tmp_path / "whole", algorithm)
        expected = whole.run()
    finally:
        torch.use_deterministic_algorithms(False)
    process = start(tmp_path / "killed", algorithm)
    for line in process.stdout:
        if line.strip() == "step 8":  # the last checkpoint is of step 6
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    assert not (tmp_path / "killed/final.safetensors").exists()
    with open(tmp_path / "killed/metrics.jsonl", "a") as stream:
        stream.write('{"step": 9, "spl')  # a line that the kill cut short
    torch.use_deterministic_algorithms(True)
    try:
        again = make(tmp_path / "killed", algorithm)
        found = again.run()
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in whole.actor.state_dict().items():
        assert torch.equal(again.actor.state_dict()[name], value), name
    assert again.controller_state == whole.controller_state
    drop = lambda m: {k: v for k, v in m.items() if k != "seconds"}  # noqa: E731
    assert drop(found) == drop(expected)
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert [r["step"] for r in rows(tmp_path / "whole") if r["split"] == "train"] == list(range(1, STEPS + 1))
    assert (tmp_path / "killed/rollouts.jsonl").read_bytes() == (tmp_path / "whole/rollouts.jsonl").read_bytes()


def test_a_stop_request_saves_at_once_and_the_run_continues(tmp_path):
    trainer = make(tmp_path / "run", "grpo")
    advance = trainer.advance

    def advance_then_ask():
        row = advance()
        trainer.out.stop_requested = trainer.step == 5
        return row

    trainer.advance = advance_then_ask
    with pytest.raises(Interrupted, match="step 5 of 12"):
        trainer.run()
    again = make(tmp_path / "run", "grpo")
    again.run()
    assert [r["step"] for r in rows(tmp_path / "run") if r["split"] == "train"] == list(range(1, STEPS + 1))


def test_a_finished_run_called_again_only_evaluates(tmp_path):
    first = make(tmp_path / "run", "grpo").run()
    again = make(tmp_path / "run", "grpo")
    again.advance = None  # no step may run
    assert again.run() == first
    assert len(rows(tmp_path / "run")) == STEPS + 4  # evaluations at 0, 4, 8 and 12


def test_a_run_continues_in_the_precision_it_began_in(tmp_path):
    """precision: auto may mean another one on the machine that continues."""
    trainer = make(tmp_path / "run", "grpo")
    trainer.precision = "bf16"
    trainer.before = trainer.evaluate()
    trainer.advance()
    trainer.save()
    again = make(tmp_path / "run", "grpo")
    assert again.precision == "fp32"
    again.resume()
    assert again.precision == "bf16"


def test_a_moment_is_saved_once(tmp_path, monkeypatch):
    """Replacing a checkpoint would leave an instant with none, which matters where only one is kept."""
    from feebcore.train import checkpoint

    saved = []
    monkeypatch.setattr(checkpoint, "save_checkpoint", lambda folder, step, *rest: saved.append(step))
    trainer = make(tmp_path / "run", "grpo")
    trainer.save()
    trainer.save()
    assert saved == [0]


def test_any_seed_will_do(tmp_path):
    trainer = make(tmp_path / "run", "grpo")
    trainer.section = trainer.section.model_copy(update={"seed": 1_700_000_000_000})  # the time in milliseconds
    assert trainer.advance()["step"] == 1
