"""A run that ends when its training loss is low enough, or flat: at the same step however it is watched, killed and resumed."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from small_run import B, Cycle, T, assert_same_bits, in_process_of_its_own, rows, run, section

from feebcore.errors import RecipeError
from feebcore.files import read_jsonl
from feebcore.train.early_stop import EarlyStop
from feebcore.train.state import TrainState

OPTIONS: dict[str, Any] = {"max_steps": 200, "stop_at_loss": 2.0, "schedule": "constant"}


def test_a_run_ends_after_the_step_at_which_its_loss_is_low_enough(tmp_path: Path) -> None:
    logged: list[str] = []
    metrics = run(tmp_path, section(**OPTIONS, log_every=1, callbacks=["metrics", "residual_stream"]), logged=logged).metrics
    step, losses = metrics["steps"], [row["loss"] for row in rows(tmp_path)]
    assert 10 < step < 200
    assert step % 10 == 0
    assert metrics["stopped"] == {"by": "loss", "loss": pytest.approx(sum(losses[-10:]) / 10, rel=1e-5)}
    assert metrics["stopped"]["loss"] <= 2.0 < sum(losses[-20:-10]) / 10
    assert len(losses) == step
    assert metrics["tokens"] == step * B * T
    assert metrics["flops"] == pytest.approx(run(tmp_path / "ten", section(max_steps=10)).metrics["flops"] * step / 10)
    assert read_jsonl(tmp_path / "probes" / "residual_stream.jsonl")[-1]["step"] == step, "probes measure after the last step"
    assert any(f"the run ends after step {step}" in text for text in logged)


def test_it_ends_there_however_seldom_it_is_watched_and_whatever_judges_its_steps(tmp_path: Path) -> None:
    steps = [
        run(tmp_path / str(i), section(**OPTIONS, **changes)).metrics["steps"]
        for i, changes in enumerate([{"log_every": 7}, {"log_every": 1000, "callbacks": []}, {"on_nonfinite": "skip"}])
    ]
    assert len(set(steps)) == 1


def test_a_killed_run_ends_after_the_same_step_with_the_same_bits(tmp_path: Path) -> None:
    step = run(tmp_path / "whole", section(**OPTIONS)).metrics["steps"]
    assert in_process_of_its_own(tmp_path / "killed", kill_at=step - 3, **OPTIONS) == -signal.SIGKILL
    resumed = run(tmp_path / "killed", section(**OPTIONS)).metrics
    assert resumed["steps"] == step
    assert_same_bits(tmp_path / "whole", tmp_path / "killed", step)


def test_a_run_that_has_ended_is_not_trained_on_when_it_is_killed_before_its_score(tmp_path: Path) -> None:
    first = run(tmp_path, section(**OPTIONS)).metrics
    again = run(tmp_path, section(**OPTIONS), data=Cycle({first["steps"]: lambda: pytest.fail("asked for another batch")})).metrics
    assert (again["steps"], again["stopped"]) == (first["steps"], first["stopped"])


def test_a_branch_of_a_run_that_has_ended_goes_on(tmp_path: Path) -> None:
    trunk = run(tmp_path / "trunk", section(**OPTIONS)).metrics["steps"]
    branch = run(tmp_path / "branch", section(max_steps=trunk + 5, branch_from=str(tmp_path / "trunk"))).metrics
    assert branch["steps"] == trunk + 5
    assert "stopped" not in branch


def test_a_loss_that_does_not_fall_ends_the_run(tmp_path: Path) -> None:
    flat = run(tmp_path / "flat", section(**OPTIONS | {"optimizer": {"name": "adamw", "lr": 1e-9}, "stop_when_flat": 30})).metrics
    assert (flat["steps"], flat["stopped"]["by"]) == (40, "flat")
    cut = run(tmp_path / "cut", section(**OPTIONS | {"max_steps": 20, "stop_at_loss": 0.1, "stop_when_flat": 30})).metrics
    assert (cut["steps"], cut["stopped"]["by"]) == (20, "max_steps")


def test_flat_is_a_loss_without_a_fall_of_one_percent_in_so_many_steps() -> None:
    def ends(losses: list[float], **options: Any) -> int | None:
        stop, state = EarlyStop(section(max_steps=1000, **options)), TrainState()
        for step, loss in enumerate(losses, start=1):
            state.recent.append(loss)
            if stop.due(step):
                stop.judge(step, state)
            if state.ended:
                return step
        return None

    assert ends([2.0 * 0.999**step for step in range(500)], stop_when_flat=20) is None, "1% in 10 steps is a fall"
    assert ends([2.0 * 0.9999**step for step in range(500)], stop_when_flat=20) == 30
    assert ends([-1.0] * 500, stop_when_flat=20) == 30, "losses may be negative"
    assert ends([2.0] * 40 + [1.0] * 460, stop_when_flat=60) == 110


def test_a_sweep_and_a_comparison_refuse_it() -> None:
    from feebcore.compare.plan import Settings, candidates_of
    from feebcore.recipe import load, load_study, quick_overrides

    recipe = next(r for r in load_study("experiments/notebook-b.yaml", quick_overrides("experiments/notebook-b.yaml")) if r.variant == "gelu")
    with pytest.raises(RecipeError, match=r"stop_at_loss ends runs at different steps"):
        candidates_of([recipe, recipe], Settings())
    with pytest.raises(RecipeError, match=r"train\.stop_when_flat"):
        load("experiments/sweep-small.yaml", ["sweep.train.stop_when_flat=50"])
