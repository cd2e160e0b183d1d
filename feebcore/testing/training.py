"""What optimizers and schedules promise."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from feebcore.protocols import ParamGroup
from feebcore.testing.framework import Candidate, check, require

STEPS = 100


def toy_groups(seed: int = 0) -> list[ParamGroup]:
    """One parameter of each role."""
    random = torch.Generator().manual_seed(seed)
    shapes = {"matrix": (8, 6), "embedding": (10, 6), "head": (10, 6), "vector": (6,)}
    return [ParamGroup(role, [role], [nn.Parameter(torch.randn(shape, generator=random))]) for role, shape in shapes.items()]


def distance(groups: list[ParamGroup]) -> Tensor:
    """A quadratic with its minimum at 0."""
    return sum((p.square().sum() for g in groups for p in g.parameters), torch.zeros(()))


def take_steps(optimizer: Any, groups: list[ParamGroup], steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        distance(groups).backward()
        optimizer.step()


@check("optimizers", meaning="It does not go downhill, or leaves a role behind; look for a wrong sign or parameter groups that are dropped.")
def descends(subject: Candidate) -> None:
    groups = toy_groups()
    before = [p.detach().clone() for g in groups for p in g.parameters]
    start = float(distance(groups).detach())
    optimizer = subject.part.build(groups)
    take_steps(optimizer, groups, 50)
    after = [p.detach() for g in groups for p in g.parameters]
    require(all(a.isfinite().all() for a in after), "parameters are not finite after 50 steps")
    require(float(distance(groups).detach()) < start, f"a quadratic rose from {start:.2f} to {float(distance(groups).detach()):.2f}")
    still = [g.role for g, a, b in zip(groups, before, after, strict=True) if torch.equal(a, b)]
    require(not still, f"role {', '.join(still)} did not move")


@check("optimizers", meaning="A run that resumes differs from one that was not interrupted; some state is not in state_dict.")
def optimizer_state_round_trip(subject: Candidate) -> None:
    groups = toy_groups()
    optimizer = subject.part.build(groups)
    take_steps(optimizer, groups, 5)
    twins = toy_groups()
    for group, twin in zip(groups, twins, strict=True):
        twin.parameters[0].data.copy_(group.parameters[0].data)
    other = subject.part.build(twins)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take_steps(optimizer, groups, 5)
    take_steps(other, twins, 5)
    differ = [g.role for g, t in zip(groups, twins, strict=True) if not torch.equal(g.parameters[0], t.parameters[0])]
    require(not differ, f"after loading its state, role {', '.join(differ)} goes elsewhere")


@check("schedules", meaning="The rate depends on more than the step, or leaves 0..1, so a resumed run differs or diverges.")
def pure_and_bounded(subject: Candidate) -> None:
    first, second = subject.part.build(STEPS), subject.part.build(STEPS)
    rates = [first(step) for step in range(STEPS + 1)]
    backwards = [second(step) for step in reversed(range(STEPS + 1))][::-1]
    require(rates == backwards, "asking for the steps in another order gives other rates")
    require(all(math.isfinite(r) and 0.0 <= r <= 1.0 for r in rates), f"rates from {min(rates)} to {max(rates)}")
    require(max(rates) > 0.5, f"the rate never gets above {max(rates)} of its peak")


@check("schedules", meaning="Warm-up does not rise, so the first steps can blow the model up.")
def warms_up(subject: Candidate) -> None:
    rates = [subject.part.build(STEPS)(step) for step in range(STEPS)]
    peak = rates.index(max(rates))
    require(all(a <= b for a, b in itertools.pairwise(rates[: peak + 1])), f"the rate falls before its peak at step {peak}")


@check("schedules", meaning="Very short runs fail or never train.")
def short_runs(subject: Candidate) -> None:
    for total in (1, 2, 5):
        rates = [subject.part.build(total)(step) for step in range(total)]
        require(all(0.0 <= r <= 1.0 for r in rates) and max(rates) > 0, f"rates {rates} in a run of {total} steps")
