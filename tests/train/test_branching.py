"""Going on from another run: extending it, and branches with another schedule."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file
from small_run import Cycle, assert_same_bits, run, section

from feebcore.errors import FeebError
from feebcore.train.checkpoint import checkpoints, name_of

CONSTANT = {"schedule": {"name": "constant", "warmup_steps": 3}, "keep_every": 4}


def weights(folder, step=20):
    return load_file(folder / "checkpoints" / name_of(step) / "model.safetensors")


def test_a_run_that_is_extended_ends_as_one_that_was_longer_from_the_start(tmp_path):
    whole = run(tmp_path / "whole", section(max_steps=20, **CONSTANT))
    run(tmp_path / "first", section(max_steps=11, **CONSTANT))
    more = run(tmp_path / "more", section(max_steps=20, branch_from=str(tmp_path / "first"), **CONSTANT))
    assert all(a.equal(b) for a, b in zip(whole.model.parameters(), more.model.parameters(), strict=True))
    assert more.metrics["tokens"] == whole.metrics["tokens"]


def test_branches_of_a_main_run_share_its_past_and_decay_on_their_own(tmp_path):
    run(tmp_path / "main", section(max_steps=20, **CONSTANT))
    assert [p.name for p in checkpoints(tmp_path / "main")][::-1] == [name_of(s) for s in (4, 8, 12, 16, 20)], "keep_every"
    asked: list[int] = []
    data = Cycle({step: lambda step=step: asked.append(step) for step in range(40)})
    decay = {"name": "wsd", "decay_fraction": 0.5, "warmup_steps": 3}
    branch = section(max_steps=16, schedule=decay, branch_from=str(tmp_path / "main"), branch_step=8)
    first = run(tmp_path / "branch", branch, data)
    assert asked == list(range(8, 16)), "the data continue where the original run was"
    assert not all(a.equal(b) for a, b in zip(first.model.parameters(), weights(tmp_path / "main", 16).values(), strict=True))
    whole = run(tmp_path / "whole", section(max_steps=16, schedule=decay))
    assert all(a.equal(b) for a, b in zip(first.model.parameters(), whole.model.parameters(), strict=True)), "wsd's first half is the original run"


def test_a_branch_uses_the_options_of_its_own_recipe(tmp_path):
    run(tmp_path / "main", section(max_steps=8, **CONSTANT))
    other = {"name": "adamw", "lr": 0.001, "weight_decay": 0.3, "betas": [0.8, 0.9]}
    changed = section(max_steps=9, branch_from=str(tmp_path / "main"), optimizer=other, **CONSTANT)
    from feebcore.train import loop

    seen = {}
    step = loop.Trainer._update
    try:
        loop.Trainer._update = lambda self, *a: (seen.update({k: v for k, v in self.optimizer.param_groups[0].items() if k != "params"}), step(self, *a))[1]
        run(tmp_path / "branch", changed)
    finally:
        loop.Trainer._update = step
    assert (seen["lr"], seen["weight_decay"], tuple(seen["betas"])) == (0.001, 0.3, (0.8, 0.9))


def test_a_branch_is_identified_by_the_checkpoint_it_starts_from(tmp_path):
    run(tmp_path / "main", section(max_steps=8, **CONSTANT))
    first, second = (section(branch_from=str(tmp_path / "main"), branch_step=step) for step in (4, 8))
    assert len({"", first.branch_content, second.branch_content}) == 3
    run(tmp_path / "twin", section(max_steps=8, **CONSTANT))
    assert section(branch_from=str(tmp_path / "twin"), branch_step=8).branch_content == second.branch_content, "by content, not by place"


def test_what_cannot_be_branched_from_is_said(tmp_path):
    run(tmp_path / "main", section(max_steps=8, **CONSTANT))
    with pytest.raises(FeebError, match="no checkpoint of step 5"):
        run(tmp_path / "a", section(branch_from=str(tmp_path / "main"), branch_step=5))
    with pytest.raises(FeebError, match="at step 8, and max_steps is 8"):
        run(tmp_path / "b", section(max_steps=8, branch_from=str(tmp_path / "main")))
    with pytest.raises(ValueError, match="not both"):
        section(branch_from=str(tmp_path / "main"), init_from=str(tmp_path / "main"))
    wide = {"name": "transformer", "num_layers": 2, "d_model": 48, "num_heads": 2}
    with pytest.raises(FeebError, match=r"branch_from.*another model.*architecture of the original run"):
        run(tmp_path / "c", section(branch_from=str(tmp_path / "main"), architecture=wide))


def test_a_branch_that_is_stopped_continues_its_own_checkpoints(tmp_path):
    run(tmp_path / "main", section(max_steps=8, **CONSTANT))
    changes = {"max_steps": 20, "branch_from": str(tmp_path / "main")}
    run(tmp_path / "whole", section(**changes))

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", section(**changes), Cycle({15: stop}))
    run(tmp_path / "cut", section(**changes))
    assert_same_bits(tmp_path / "whole", tmp_path / "cut")


def test_a_branch_with_another_batch_size_goes_on_in_the_data_where_the_main_run_was(tmp_path):
    run(tmp_path / "main", section(max_steps=8, **CONSTANT))
    asked: list[int] = []
    data = Cycle({step: lambda step=step: asked.append(step) for step in range(40)})
    run(tmp_path / "branch", section(max_steps=10, batch_size=16, branch_from=str(tmp_path / "main"), **CONSTANT), data)
    assert asked == [4, 5], "8 batches of 8 sequences are 4 of 16"


def test_a_branch_with_another_optimizer_begins_its_state_anew_and_says_so(tmp_path):
    run(tmp_path / "main", section(max_steps=8, **CONSTANT))
    logged: list[str] = []
    run(tmp_path / "branch", section(max_steps=10, optimizer="lion", branch_from=str(tmp_path / "main"), **CONSTANT), logged=logged)
    assert any("optimizer lion starts with fresh state" in text for text in logged)
    names = load_file(tmp_path / "branch" / "checkpoints" / name_of(10) / "optimizer.safetensors").keys()
    assert not any("exp_avg_sq" in name for name in names)


def test_a_step_to_branch_at_needs_a_run_to_branch_from():
    with pytest.raises(ValueError, match=r"branch_step.*needs branch_from"):
        section(branch_step=4)
