"""Rate, momentum and weight decay by step, and rules for some of the parameters."""

from __future__ import annotations

import copy
import math
import shutil

import pytest
import torch
from pydantic import ValidationError
from small_run import run, section
from torch import nn

from feebcore.errors import FeebError
from feebcore.model.build import build_model
from feebcore.model.counting import count_model
from feebcore.model.groups import param_groups
from feebcore.parts import resolve_part
from feebcore.protocols import ModelOutput, ParamGroup
from feebcore.registry import get_registry
from feebcore.train.lr_scaling import LRScale
from feebcore.train.optimizer import Optimizer
from feebcore.train.optimizer_schedules import OptimizerSchedules, build_optimizer, freeze
from feebcore.train.param_groups import ParamGroupOverride, apply_rules
from feebcore.train.pretrain import lr_scale, train_shape
from feebcore.train.state_tensors import optimizer_state, restore_optimizer

SHAPES = {"matrix": {"blocks.0.up": (6, 4), "blocks.1.up": (6, 4), "blocks.1.down": (4, 6)}, "embedding": {"table": (9, 4)}, "vector": {"blocks.0.norm": (4,)}}


def make():
    torch.manual_seed(0)
    return [ParamGroup(role, list(named), [nn.Parameter(torch.randn(s)) for s in named.values()]) for role, named in SHAPES.items()]


def step(optimizer, groups, number=0):
    torch.manual_seed(number)
    for group in groups:
        for p in group.parameters:
            p.grad = torch.randn_like(p) if p.requires_grad else None
    optimizer.step()


def by_name(groups):
    return {n: p for g in groups for n, p in zip(g.names, g.parameters, strict=True)}


def rule(**options):
    return ParamGroupOverride.model_validate(options)


class Foreign(nn.Module):
    """A model that is not the transformer: tokens to hidden states of width 24 through a narrow table."""

    num_streams, seq_len = 3, 16

    def __init__(self):
        super().__init__()
        self.table, self.up, self.dropout = nn.Embedding(9, 4), nn.Linear(4, 24), nn.Dropout(0.5)

        self.lm_head = nn.Linear(24, 9)

    def count(self):
        return count_model(self, self.seq_len)

    def forward(self, tokens):
        return ModelOutput(self.dropout(self.up(self.table(tokens))))


def test_lr_scaling_takes_the_sizes_of_any_model_from_its_output():
    model = Foreign()
    before = torch.get_rng_state()
    scale = lr_scale(section(lr_scaling={"name": "mup_lr", "reference_width": 12, "reference_layers": 12}), model)
    assert scale.roles == {"matrix": 0.5 * 2, "lm_head": 0.5, "embedding": 1.0, "vector": 1.0}
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    shape = train_shape(section(), model)
    assert (shape.block_parameters, shape.head_parameters, shape.block_flops) == (4 * 24, 24 * 9, 6.0 * 4 * 24)
    transformer = build_model(section().architecture, 64, 16)
    assert lr_scale(section(lr_scaling={"name": "inverse_width", "reference_width": 64}), transformer).of("matrix") == 2.0


def test_a_run_records_what_its_rule_sets_and_trains_as_if_the_recipe_had_said_so(tmp_path):
    """20 steps of 8 sequences of 16: 4 times the reference's tokens, in batches twice as large."""
    logged: list[str] = []
    horizon = {"name": "horizon", "reference_tokens": 640, "reference_batch_tokens": 64}
    ruled = run(tmp_path / "ruled", section(lr_scaling=horizon), logged=logged)
    factor = 2**0.5 * 4**-0.3
    assert ruled.metrics["lr_scaling"] == {
        "roles": dict.fromkeys(("matrix", "embedding", "lm_head", "vector"), pytest.approx(factor)),
        "beta2_power": 2.0,
        "eps": 2**0.5,
    }
    assert f"lr_scaling horizon: learning rates x {factor:.4g}, beta2 0.9025, eps 1.41e-08" in logged
    by_hand = {"name": "adamw", "lr": 0.01 * (2**0.5 * 4**-0.3), "betas": [0.9, 0.95**2], "eps": 1e-8 * 2**0.5}
    written = run(tmp_path / "written", section(optimizer=by_hand))
    assert written.metrics["final_loss"] == ruled.metrics["final_loss"]
    assert "lr_scaling" not in written.metrics
    plain = run(tmp_path / "plain", section(lr_scaling={"name": "horizon", "reference_tokens": 2560}))
    assert plain.metrics["lr_scaling"]["roles"]["matrix"] == 1.0


# --- by step ------------------------------------------------------------------------------------------------------


def test_rate_momentum_and_decay_follow_their_schedules_in_every_group():
    optimizer = build_optimizer(resolve_part("optimizers", {"name": "muon", "lr": 0.02, "weight_decay": 0.4, "momentum": 0.9, "betas": [0.8, 0.95]}), make())
    follow = OptimizerSchedules(optimizer, lambda s: 1 / (s + 1), lambda s: 1 - s / 10, lambda s: 0.5**s)
    follow.apply(3)
    matrix, embedding, _ = optimizer.param_groups
    assert (matrix["lr"], matrix["momentum"], matrix["weight_decay"], *matrix["betas"]) == pytest.approx((0.005, 0.63, 0.05, 0.8, 0.95))
    assert (embedding["betas"], embedding["weight_decay"]) == (pytest.approx((0.56, 0.95)), 0.0)
    follow.apply(0)
    assert (matrix["lr"], matrix["momentum"], matrix["weight_decay"]) == (0.02, 0.9, 0.4)


def test_values_that_come_with_a_checkpoint_never_last():
    groups = make()
    main_run = build_optimizer(resolve_part("optimizers", {"name": "adamw", "lr": 0.1, "betas": [0.5, 0.9], "weight_decay": 0.7}), groups)
    OptimizerSchedules(main_run, lambda s: 0.25, lambda s: 0.5, lambda s: 0.5).apply(0)
    step(main_run, groups)
    names = nn.ParameterDict({n.replace(".", "_"): p for n, p in by_name(groups).items()})
    saved = copy.deepcopy(optimizer_state(names, main_run))
    branch = build_optimizer(resolve_part("optimizers", {"name": "adamw", "lr": 0.01, "betas": [0.9, 0.9], "weight_decay": 0.2}), groups)
    follow = OptimizerSchedules(branch, lambda s: 1.0)
    restore_optimizer(names, branch, *saved)
    assert branch.param_groups[0]["lr"] == 0.01, "options are the code's own"
    follow.apply(1)
    assert [branch.param_groups[0][k] for k in ("lr", "betas", "weight_decay")] == [0.01, (0.9, 0.9), 0.2]


def test_state_dicts_that_replace_the_groups_are_followed():
    optimizer = build_optimizer(resolve_part("optimizers", "adamw"), make())
    follow = OptimizerSchedules(optimizer, lambda s: 0.5)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    follow.apply(0)
    assert optimizer.param_groups[0]["lr"] == 0.0015


def test_a_schedule_of_what_the_optimizer_lacks_is_an_error():
    with pytest.raises(FeebError, match="momentum_schedule: this optimizer has no momentum"):
        OptimizerSchedules(build_optimizer(resolve_part("optimizers", "adafactor"), make()), lambda s: 1.0, lambda s: 1.0)
    with pytest.raises(FeebError, match="weight_decay_schedule: no parameter decays"):
        OptimizerSchedules(build_optimizer(resolve_part("optimizers", "muon"), make()), lambda s: 1.0, None, lambda s: 1.0)


def test_training_with_all_three_schedules_equals_torch_told_by_hand():
    groups, twins = make(), make()
    ours = build_optimizer(resolve_part("optimizers", {"name": "adamw", "lr": 0.02, "weight_decay_roles": ["matrix", "embedding", "vector"]}), groups)
    follow = OptimizerSchedules(ours, lambda s: math.cos(s / 10), lambda s: 1 - s / 50, lambda s: s / 20)
    theirs = torch.optim.AdamW(by_name(twins).values(), foreach=False)
    for number in range(12):
        follow.apply(number)
        step(ours, groups, number)
        theirs.param_groups[0] |= {"lr": 0.02 * math.cos(number / 10), "betas": (0.9 * (1 - number / 50), 0.95), "weight_decay": 0.1 * number / 20}
        step(theirs, twins, number)
    for a, b in zip(by_name(groups).values(), by_name(twins).values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(spec.name for kind, spec in get_registry().parts() if kind == "optimizers" and spec.distribution == "feeb"))
def test_a_run_goes_on_from_a_checkpoint_bit_for_bit_with_every_optimizer(tmp_path, name):
    part = {"name": name, "optimizer": "schedule_free"} if name == "grokfast" else name
    the_section = section(max_steps=6, checkpoint_every=3, optimizer=part, param_groups=[{"match": "0", "lr_scale": 0.5}])
    whole = run(tmp_path, the_section)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000006")
    logged: list[str] = []
    resumed = run(tmp_path, the_section, logged=logged)
    assert "resumed after step 3 of 6" in logged
    assert all(a.equal(b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))


# --- rules --------------------------------------------------------------------------------------------------------

OPTIMIZERS = sorted(spec.name for kind, spec in get_registry().parts() if kind == "optimizers" and spec.distribution == "feeb")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rules_work_with_every_optimizer(name):
    """A rate of 0 by rule holds weights still, freezing too, and the others take the steps that they took without rules."""
    plain, ruled = make(), make()
    optimizers = [
        build_optimizer(resolve_part("optimizers", name), groups, rules)
        for groups, rules in ((plain, []), (ruled, [rule(match=r"blocks\.1\.", lr_scale=0.0), rule(role="embedding", freeze=True)]))
    ]
    start = {n: p.detach().clone() for n, p in by_name(ruled).items()}
    for number in range(4):
        for optimizer, groups in zip(optimizers, (plain, ruled), strict=True):
            step_alike(optimizer, groups, number)
    still = {n for n, p in by_name(ruled).items() if p.equal(start[n])}
    assert still == {"blocks.1.up", "blocks.1.down", "table"}
    for n in start.keys() - still:
        torch.testing.assert_close(by_name(ruled)[n], by_name(plain)[n], atol=1e-6, rtol=1e-5)
    assert not by_name(ruled)["table"].requires_grad


def step_alike(optimizer, groups, number):
    """The same gradient for each name, whatever else needs one."""
    for i, p in enumerate(by_name(groups).values()):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * number + i)) if p.requires_grad else None
    optimizer.step()


def test_all_fitting_rules_apply_rates_multiply_and_the_last_decay_holds():
    rules = [rule(match="blocks", lr_scale=0.5, weight_decay=0.3), rule(match="up$", lr_scale=0.1), rule(match=r"1\.up", weight_decay=0.0)]
    optimizer = build_optimizer(resolve_part("optimizers", {"name": "adamw", "lr": 1.0}), (groups := make()), rules)
    found = {n: (g["lr"], g["weight_decay"]) for n, p in by_name(groups).items() for g in optimizer.param_groups if any(p is q for q in g["params"])}
    assert found == {
        "blocks.0.up": (0.05, 0.3),
        "blocks.1.up": (0.05, 0.0),
        "blocks.1.down": (0.5, 0.3),
        "table": (1.0, 0.1),
        "blocks.0.norm": (0.5, 0.3),
    }


def test_role_and_name_must_both_fit():
    split = apply_rules([rule(match="blocks.0", role="vector", lr_scale=2.0)], make())
    assert [group.names for group, change in split if change.lr_scale == 2.0] == [["blocks.0.norm"]]


def test_rate_rules_factors_come_on_top_and_spare_a_decay_that_a_rule_sets():
    scale = LRScale({"matrix": 0.5}, {"matrix": 4.0, "embedding": 3.0})
    part = resolve_part("optimizers", {"name": "adamw", "lr": 1.0, "weight_decay": 0.1})
    groups = make()
    optimizer = build_optimizer(part, groups, [rule(match="down", lr_scale=0.1, weight_decay=0.9)], scale)
    found = [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
    assert found == [(0.5, 0.4), (0.05, 0.9), (1.0, pytest.approx(0.3)), (1.0, 0.0)]


def test_a_rule_that_fits_nothing_names_near_parameters():
    with pytest.raises(FeebError, match=r"param_groups\.1: no parameter fits match 'blocks\\\\.0\\\\.upp'; near ones are blocks\.0\.up"):
        apply_rules([rule(match="up", lr_scale=2.0), rule(match=r"blocks\.0\.upp", lr_scale=2.0)], make())
    with pytest.raises(FeebError, match="role 'lm_head'; the model has roles matrix, embedding, vector"):
        apply_rules([rule(role="lm_head", freeze=True)], make())


def test_a_rule_that_is_no_regular_expression_or_does_nothing_is_refused_when_it_is_read():
    with pytest.raises(ValidationError, match="is not a valid regular expression: missing"):
        rule(match="blocks.(0", lr_scale=2.0)
    with pytest.raises(ValidationError, match="changes nothing"):
        rule(match="blocks")


def test_frozen_parameters_of_a_real_model_stay_frozen_when_its_groups_are_made_again():
    model = build_model(resolve_part("architectures", {"name": "transformer", "num_layers": 2, "d_model": 16, "num_heads": 2}), 20, 8)
    rules = [rule(role="embedding", freeze=True)]
    frozen = freeze(param_groups(model), rules)
    assert frozen
    assert not any(dict(model.named_parameters())[n].requires_grad for n in frozen)
    optimizer = build_optimizer(resolve_part("optimizers", "adamw"), param_groups(model, frozen=True), rules)
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    with pytest.raises(FeebError, match="every parameter is frozen"):
        build_optimizer(resolve_part("optimizers", "adamw"), param_groups(model, frozen=True), [rule(freeze=True)])


def test_an_optimizer_that_joins_groups_cannot_have_rules():
    class Joins:
        name = "joins"

        def build(self, groups, world):
            return SGD([p for g in groups for p in g.parameters], lr=0.1)

    class SGD(Optimizer, torch.optim.SGD):
        pass

    assert build_optimizer(Joins(), make())
    with pytest.raises(FeebError, match="optimizer joins puts parameters with different rules into one group"):
        build_optimizer(Joins(), make(), [rule(match="down", lr_scale=0.5)])


def test_an_optimizer_without_the_base_class_is_refused_and_told_how_to_get_it():
    class Plain:
        name = "plain"

        def build(self, groups, world):
            return torch.optim.SGD([p for g in groups for p in g.parameters], lr=0.1)

    with pytest.raises(FeebError, match=r"optimizer plain: SGD is not a .*class SGD\(Optimizer, torch\.optim\.SGD\)"):
        build_optimizer(Plain(), make())
