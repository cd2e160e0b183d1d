"""The optimizer of a run, and its learning rate, momentum and weight decay at each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from feebcore.errors import FeebError
from feebcore.protocols import ParamGroup
from feebcore.train.lr_scaling import LRScale
from feebcore.train.optimizer import Optimizer
from feebcore.train.param_groups import Change, ParamGroupOverride, apply_rules

if TYPE_CHECKING:
    from feebcore.parts import Part

Multiplier = Callable[[int], float]


def freeze(groups: Sequence[ParamGroup], rules: Sequence[ParamGroupOverride]) -> list[str]:
    """Take the gradients from parameters that a rule freezes; returns their names. Call it before the model is wrapped for
    several processes or compiled. Raises FeebError when a rule fits nothing."""
    names = []
    for group, change in apply_rules(rules, groups):
        if change.freeze:
            names += group.names
            for parameter in group.parameters:
                parameter.requires_grad_(False)
    return names


def build_optimizer(
    part: Part, groups: Sequence[ParamGroup], rules: Sequence[ParamGroupOverride] = (), scale: LRScale | None = None, world: int = 1
) -> Optimizer:
    """The optimizer part over `groups`, with the recipe's overrides and the factors of its learning-rate scaling.

    groups: by role; parameters that need no gradient are left out, and those that a rule freezes need none from here on.
    world: ranks that step together, each with these parameters.
    A weight_decay that a rule sets is final: `scale` leaves it alone. Raises FeebError when a rule fits no parameter,
    nothing is left to train, or the optimizer joins parameters with different rules in one group.
    """
    freeze(groups, rules)
    changed = [(trained, change) for group, change in apply_rules(rules, groups) if (trained := _trainable(group)).parameters]
    if not changed:
        raise FeebError("param_groups: every parameter is frozen; nothing is left to train")
    optimizer = part.build(groups=[group for group, _ in changed], world=world)
    if not isinstance(optimizer, Optimizer):
        kind = type(optimizer).__name__
        raise FeebError(f"optimizer {part.name}: {kind} is not a feebcore.train.optimizer.Optimizer; declare `class {kind}(Optimizer, torch.optim.{kind})`")
    changes = {p: (group.role, change) for group, change in changed for p in group.parameters}
    for torch_group in optimizer.param_groups:
        alike = list(dict.fromkeys(changes[p] for p in torch_group["params"] if p in changes))
        if len(alike) > 1 and any(change != Change() for _, change in alike):
            raise FeebError(f"param_groups: optimizer {part.name} puts parameters with different rules into one group; it must keep the groups it is given")
        if alike:
            _adjust(torch_group, *alike[0], scale or LRScale())
    return optimizer


def _trainable(group: ParamGroup) -> ParamGroup:
    named = [(n, p) for n, p in zip(group.names, group.parameters, strict=True) if p.requires_grad]
    return ParamGroup(group.role, [n for n, _ in named], [p for _, p in named], group.row_blocks)


def _adjust(torch_group: dict[str, Any], role: str, change: Change, scale: LRScale) -> None:
    torch_group["lr"] = float(torch_group["lr"]) * change.lr_scale * scale.of(role)
    if change.weight_decay is not None:
        torch_group["weight_decay"] = change.weight_decay
    elif "weight_decay" in torch_group:
        torch_group["weight_decay"] = float(torch_group["weight_decay"]) * scale.decay_of(role)
    if averages_squares(torch_group):
        if "betas" in torch_group:
            first, second, *others = torch_group["betas"]
            torch_group["betas"] = (first, scale.scaled_beta2(second), *others)
        else:
            torch_group["beta2"] = scale.scaled_beta2(torch_group["beta2"])
        torch_group["eps"] *= scale.eps


def averages_squares(torch_group: dict[str, Any]) -> bool:
    """Whether the group has the options of Adam's average of squared gradients (feebcore/train/optimizer.py)."""
    return "eps" in torch_group and ("betas" in torch_group or "beta2" in torch_group)


class OptimizerSchedules:
    """Sets lr, momentum and weight_decay of every group of the optimizer for a step: base values times multipliers.

    schedule and the others: pure functions of the step, 0 to 1; None: the base value at every step. Base values are those
    that the groups have when this is made. momentum is group["momentum"], or else the first of group["betas"].
    Raises FeebError for a schedule of something that no group has.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: Multiplier,
        momentum_schedule: Multiplier | None = None,
        weight_decay_schedule: Multiplier | None = None,
    ) -> None:
        self.optimizer, self.schedule = optimizer, schedule
        self.momentum_schedule, self.weight_decay_schedule = momentum_schedule, weight_decay_schedule
        self.base = [{k: g[k] for k in ("lr", "momentum", "betas", "weight_decay") if k in g} for g in optimizer.param_groups]
        if momentum_schedule and not any("momentum" in base or "betas" in base for base in self.base):
            raise FeebError("momentum_schedule: this optimizer has no momentum that could be scheduled; leave it out")
        if weight_decay_schedule and not any(base.get("weight_decay") for base in self.base):
            raise FeebError("weight_decay_schedule: no parameter decays; set the optimizer's weight_decay, or leave it out")

    def apply(self, step: int) -> None:
        """Values for `step`, counted from 0."""
        rate = self.schedule(step)
        momentum = self.momentum_schedule(step) if self.momentum_schedule else 1.0
        decay = self.weight_decay_schedule(step) if self.weight_decay_schedule else 1.0
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = base["lr"] * rate
            if "momentum" in base:
                group["momentum"] = base["momentum"] * momentum
            elif "betas" in base:
                group["betas"] = (base["betas"][0] * momentum, *base["betas"][1:])
            if "weight_decay" in base:
                group["weight_decay"] = base["weight_decay"] * decay
