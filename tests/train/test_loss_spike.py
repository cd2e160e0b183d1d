"""What happens at loss spikes and non-finite steps: skip, stop, roll back; and that a killed run takes the same way."""

from __future__ import annotations

import collections
import signal

import pytest
from pydantic import ValidationError
from small_run import VOCAB, Shocks, T, assert_same_bits, in_process_of_its_own, run, section

from feebcore.errors import Diverged, FeebError, Interrupted
from feebcore.model.build import build_model
from feebcore.train.checkpoint import checkpoints, name_of
from feebcore.train.loss_spike import spike

RULES = {"spike_factor": 6.0, "max_steps": 80, "optimizer": {"name": "adamw", "lr": 0.02}}


def test_a_spike_is_what_stands_out_of_the_last_losses():
    recent = collections.deque([3.0 + 0.1 * (-1) ** i for i in range(30)], maxlen=50)
    assert not spike(3.3, recent, 4.0)
    assert "spike_factor 4 allows 3.4" in spike(3.5, recent, 4.0)
    assert not spike(99.0, recent, 0.0), "0 switches it off"
    assert not spike(99.0, collections.deque([3.0] * 5), 4.0), "too few to tell"


def test_a_spike_is_skipped_where_the_recipe_says_so(tmp_path):
    result = run(tmp_path, section(on_loss_spike="skip", **RULES), Shocks({60}), checkpoint=False, save=False)
    assert result.metrics["anomalous_steps"] == [61]
    assert (
        "anomalous_steps"
        not in run(tmp_path, section(on_nonfinite="skip", **RULES | {"spike_factor": 0.0}), Shocks({60}), checkpoint=False, save=False).metrics
    )


def test_rolling_back_goes_on_from_an_earlier_state_with_later_batches(tmp_path):
    data, logged = Shocks({60}), []
    result = run(tmp_path, section(on_loss_spike="rollback", rollback_every=25, **RULES), data, logged=logged)
    assert data.asked == [*range(61), *range(61, 91)], "steps 51 to 80 have the batches after the bad one"
    assert result.metrics["rollbacks"] == [61]
    assert result.metrics["steps"] == 80
    assert any("rolled back to step 50" in text for text in logged)


def test_the_log_after_rolling_back_has_each_step_once(tmp_path):
    from feebcore.files import read_jsonl

    run(tmp_path, section(on_loss_spike="rollback", rollback_every=25, log_every=1, **RULES), Shocks({60}))
    steps = [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl") if row["split"] == "train"]
    assert steps == list(range(1, 81))


@pytest.mark.parametrize("kill_at", [55, 70])
def test_a_killed_run_rolls_back_to_the_same_state(tmp_path, kill_at):
    changes = {"on_loss_spike": "rollback", "rollback_every": 25, "checkpoint_every": 7, **RULES}
    run(tmp_path / "whole", section(**changes), Shocks({60}))
    assert in_process_of_its_own(tmp_path / "killed", shocks=[60], kill_at=kill_at, **changes) == -signal.SIGKILL
    run(tmp_path / "killed", section(**changes), Shocks({60}))
    assert_same_bits(tmp_path / "whole", tmp_path / "killed", step=80)


def test_a_run_that_keeps_going_bad_ends_and_says_so(tmp_path):
    model = build_model(section().architecture, VOCAB, T, 0)
    model.final_norm.register_forward_hook(lambda m, i, o: o * float("nan"))
    with pytest.raises(Diverged, match=r"after 2 rollbacks"):
        run(tmp_path, section(on_nonfinite="rollback", max_recoveries=2), model=model)


def test_fewer_steps_between_states_than_one_are_refused():
    with pytest.raises(ValidationError, match="rollback_every"):
        section(rollback_every=0)


def test_a_branch_that_begins_between_two_states_can_roll_back_to_its_begin(tmp_path):
    run(tmp_path / "main", section(**RULES | {"max_steps": 57}))
    logged: list[str] = []
    changes = {"on_loss_spike": "rollback", "rollback_every": 25, "branch_from": str(tmp_path / "main"), **RULES}
    result = run(tmp_path / "branch", section(**changes), Shocks({60}), logged=logged)
    assert result.metrics["rollbacks"] == [61]
    assert any("rolled back to step 57" in text for text in logged)


def test_the_way_that_was_left_leaves_no_checkpoints_and_a_stop_after_it_is_kept(tmp_path):
    class Stopping(Shocks):
        def batch(self, step, rank=0, world=1):
            if step == 64:  # four steps after going back
                signal.raise_signal(signal.SIGTERM)
            return super().batch(step)

    changes = {"on_loss_spike": "rollback", "rollback_every": 25, "checkpoint_every": 2, **RULES}
    with pytest.raises(Interrupted, match="after step 54"):
        run(tmp_path, section(**changes), Stopping({60}))
    assert [p.name for p in checkpoints(tmp_path)] == [name_of(54), name_of(52)]


def test_rolling_back_without_checkpoints_is_refused_at_once(tmp_path):
    with pytest.raises(FeebError, match="rollback needs checkpoints"):
        run(tmp_path, section(on_nonfinite="rollback"), checkpoint=False)
