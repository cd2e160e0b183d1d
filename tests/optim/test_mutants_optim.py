"""Deliberately broken optimizers, schedules and learning-rate scaling: each is caught by a named check, whose unbroken form passes."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch

import feebcore as feeb
from feeb_optim.lr_scalings import MupLRConfig
from feeb_optim.lr_scalings.lr_scalings import MupLR
from feeb_optim.role_groups import adamw_group
from feeb_optim.roles import AdamWConfig
from feeb_optim.schedules import ConstantConfig
from feebcore.parts import Part
from feebcore.protocols import BuildContext
from feebcore.testing import check_part
from feebcore.train.lr_scaling import LRScale, TrainShape
from feebcore.train.optimizer import Optimizer


class Plain(Optimizer):
    """Momentum with decoupled weight decay, by hand; what the mutants below break."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    def rate(self, group: dict[str, Any]) -> float:
        return group["lr"]

    def decay(self, group: dict[str, Any]) -> float:
        return group["weight_decay"]

    def average(self, p: Any) -> torch.Tensor:
        return self.state[p].setdefault("momentum", torch.zeros_like(p))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                p.mul_(1 - self.rate(group) * self.decay(group))
                p.add_(self.average(p).lerp_(p.grad, 0.5), alpha=-self.rate(group))


def optimizer(broken: type[Plain] = Plain, twice: str = "", left_out: str = "") -> Part:
    def build(config: AdamWConfig, context: BuildContext) -> Optimizer:
        made = [adamw_group(config, g) for g in context.groups if g.role != left_out]
        if not twice:
            return broken(made)
        result = broken(made)
        result.param_groups.append(next(dict(g) for g in made if g["role"] == twice))
        return result

    return Part("optimizers", feeb.OptimizerSpec("mutant", AdamWConfig, build=build, summary="A broken part."), AdamWConfig(lr=0.01))


class RateCopied(Plain):
    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups)
        self.copied = groups[0]["lr"]

    def rate(self, group: dict[str, Any]) -> float:
        return self.copied


class RateSquared(Plain):
    def rate(self, group: dict[str, Any]) -> float:
        return group["lr"] ** 2


class DecayWithoutRate(Plain):
    def decay(self, group: dict[str, Any]) -> float:
        return 1e-3 / max(self.rate(group), 1e-9) if self.rate(group) else 0.0


class DecayForgotten(Plain):
    def decay(self, group: dict[str, Any]) -> float:
        return 0.0


class DecayGrows(Plain):
    def decay(self, group: dict[str, Any]) -> float:
        return -group["weight_decay"]


class StateBeside(Plain):
    """Its state is in an attribute, which no checkpoint sees."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups)
        self.elsewhere: dict[Any, torch.Tensor] = {}

    def average(self, p: Any) -> torch.Tensor:
        return self.elsewhere.setdefault(p, torch.zeros_like(p))


class HalfState(Plain):
    def average(self, p: Any) -> Any:
        if "momentum" not in self.state[p]:
            self.state[p]["momentum"] = torch.zeros_like(p, dtype=torch.bfloat16)
        kept, state = self.state[p]["momentum"], self.state[p]

        class Rounded:
            @staticmethod
            def lerp_(gradient: torch.Tensor, weight: float) -> torch.Tensor:
                state["momentum"] = torch.lerp(kept.float(), gradient, weight).bfloat16()
                return state["momentum"].float()

        return Rounded


class NeedsGradients(Plain):
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p) if p.grad is None else p.grad
        super().step()


class SwapsByArithmetic(Plain):
    """Goes to the average and back by a formula: right but for the last bits."""

    @torch.no_grad()
    def swap(self, weight: float) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.lerp_(torch.full_like(p, 0.1), weight)

    done = False
    has_eval_weights = True

    def use_eval_weights(self) -> None:
        if not self.done:
            self.swap(0.3)
        self.done = True

    def use_train_weights(self) -> None:
        if self.done:
            self.swap(1 - 1 / 0.7)
        self.done = False


class OnlyEval(Plain):
    has_eval_weights = True

    def use_eval_weights(self) -> None:
        pass


class SwapsTwice(Plain):
    """A second use_eval_weights() stores the averaged weights as those of training."""

    kept: list[torch.Tensor] = []
    has_eval_weights = True

    @torch.no_grad()
    def use_eval_weights(self) -> None:
        self.kept = [p.clone() for g in self.param_groups for p in g["params"]]
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(0.5)

    @torch.no_grad()
    def use_train_weights(self) -> None:
        for p, kept in zip((p for g in self.param_groups for p in g["params"]), self.kept, strict=False):
            p.copy_(kept)


class SwapsInSecret(SwapsTwice):
    has_eval_weights = False


OPTIMIZERS = {
    "a role left out": (optimizer(left_out="vector"), "each_parameter_in_one_group"),
    "a role taken up twice": (optimizer(twice="lm_head"), "each_parameter_in_one_group"),
    "rate copied when it was made": (optimizer(RateCopied), "zero_lr_changes_nothing"),
    "rate copied, seen by half steps": (optimizer(RateCopied), "update_scales_with_lr"),
    "rate applied twice": (optimizer(RateSquared), "update_scales_with_lr"),
    "decay of its own": (optimizer(DecayWithoutRate), "weight_decay_shrinks"),
    "decay forgotten": (optimizer(DecayForgotten), "weight_decay_shrinks"),
    "decay with the wrong sign": (optimizer(DecayGrows), "weight_decay_shrinks"),
    "state in an attribute": (optimizer(StateBeside), "state_fits_checkpoints"),
    "state in bf16": (optimizer(HalfState), "state_fits_checkpoints"),
    "moves without a gradient": (optimizer(NeedsGradients), "missing_gradients_are_skipped"),
    "swap by arithmetic": (optimizer(SwapsByArithmetic), "eval_weights_are_restored"),
    "eval without train": (optimizer(OnlyEval), "eval_weights_are_restored"),
    "eval twice forgets": (optimizer(SwapsTwice), "eval_weights_are_restored"),
    "other weights, not declared": (optimizer(SwapsInSecret), "eval_weights_are_restored"),
}


def schedule(multiplier: Any) -> Part:
    spec = feeb.ScheduleSpec(
        "mutant", ConstantConfig, build=lambda config, context: lambda step: multiplier(step, context.total_steps), summary="A broken part."
    )
    return Part("schedules", spec, ConstantConfig())


def sound_rate(step: int, total: int) -> float:
    return 1 - min(1.0, step / total)


SCHEDULES = {
    "warmup from zero": (schedule(lambda step, total: min(1.0, step / 10)), "no_step_is_wasted"),
    "decay ends one step early": (schedule(lambda step, total: max(0.0, 1 - step / max(1, total - 1))), "no_step_is_wasted"),
    "nearly always near zero": (schedule(lambda step, total: math.exp(-step)), "no_step_is_wasted"),
    "negative past the end": (schedule(lambda step, total: 1 - step / total), "defined_past_the_end"),
    "a table that ends": (schedule(lambda step, total: [1.0] * total and list(range(total, 0, -1))[step] / total), "defined_past_the_end"),
}


def lr_scaling(change: Any) -> Part:
    """`mup_lr` with its result changed."""

    def build(config: MupLRConfig, context: BuildContext) -> Any:
        sound = MupLR(config, context)
        return lambda shape: change(sound(shape), shape)

    config = MupLRConfig(reference_width=128, reference_layers=4, reference_batch_tokens=1024)
    return Part("lr_scalings", feeb.LRScalingSpec("mutant", MupLRConfig, build=build, summary="A broken part."), config)


def with_rate(scale: LRScale, factor: float) -> LRScale:
    return dataclasses.replace(scale, roles=scale.roles | {"matrix": factor})


def upside_down(scale: LRScale, shape: TrainShape) -> LRScale:
    return with_rate(scale, 256 / shape.d_model if shape.d_model else 1.0)


CALLS = itertools.count(1)

LR_SCALINGS = {
    "another reference": (lr_scaling(upside_down), "identity_at_the_reference"),
    "decay changed at the reference": (lr_scaling(lambda scale, shape: LRScale(scale.roles, {"lm_head": 2.0})), "identity_at_the_reference"),
    "zero for small models": (lr_scaling(lambda scale, shape: with_rate(scale, float(shape.d_model // 128))), "factors_are_positive"),
    "divides by no layers": (lr_scaling(lambda scale, shape: with_rate(scale, 4 / shape.num_layers)), "factors_are_positive"),
    "eps that overflows": (lr_scaling(lambda scale, shape: dataclasses.replace(scale, eps=math.inf if shape.steps > 10**5 else 1.0)), "factors_are_positive"),
    "a batch size of nothing": (lr_scaling(lambda scale, shape: dataclasses.replace(scale, batch_tokens=0.0)), "factors_are_positive"),
    "beta2 changed at the reference": (lr_scaling(lambda scale, shape: dataclasses.replace(scale, beta2_power=2.0)), "identity_at_the_reference"),
    "counts its calls": (lr_scaling(lambda scale, shape: with_rate(scale, float(next(CALLS)))), "factors_are_pure"),
    "a batch beyond which it turns": (
        lr_scaling(lambda scale, shape: with_rate(scale, math.exp(-abs(math.log(shape.batch_tokens / 32768))))),
        "factors_are_monotone",
    ),
}

FAMILIES = (("optimizers", OPTIMIZERS), ("schedules", SCHEDULES), ("lr_scalings", LR_SCALINGS))
MUTANTS = {name: (kind, *pair) for kind, family in FAMILIES for name, pair in family.items()}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught_by_its_check(name):
    kind, part, wanted = MUTANTS[name]
    (result,) = check_part(kind, part, only=[wanted])
    assert not result.passed, f"{name} passed {wanted}"


def test_the_unbroken_form_of_the_mutants_passes():
    sound = {"optimizers": optimizer(), "schedules": schedule(sound_rate), "lr_scalings": lr_scaling(lambda scale, shape: scale)}
    for kind, family in FAMILIES:
        broken = [str(r) for r in check_part(kind, sound[kind], only={wanted for _, wanted in family.values()}) if not r.passed]
        assert not broken
