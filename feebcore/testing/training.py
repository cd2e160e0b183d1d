"""What optimizers, schedules and learning-rate scalings promise."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from feebcore.config import PartConfig
from feebcore.protocols import ParamGroup
from feebcore.testing.framework import Candidate, check, require, skip
from feebcore.train.lr_scaling import LRScale, TrainShape
from feebcore.train.optimizer import Optimizer
from feebcore.train.state_tensors import optimizer_state, restore_optimizer

STEPS = 100


def toy_groups(seed: int = 0) -> list[ParamGroup]:
    """One parameter of each role."""
    random = torch.Generator().manual_seed(seed)
    shapes = {"matrix": (8, 6), "embedding": (10, 6), "lm_head": (10, 6), "vector": (6,)}
    return [ParamGroup(role, [role], [nn.Parameter(torch.randn(shape, generator=random))]) for role, shape in shapes.items()]


def distance(groups: list[ParamGroup]) -> Tensor:
    """A quadratic with its minimum at 0."""
    return sum((p.square().sum() for g in groups for p in g.parameters), torch.zeros(()))


def take_steps(optimizer: Any, groups: list[ParamGroup], steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        distance(groups).backward()
        optimizer.step()


@check("optimizers", meaning="The optimizer does not decrease the loss, or does not update some role; look for a wrong sign or dropped parameter groups.")
def decreases_the_loss(subject: Candidate) -> None:
    groups = toy_groups()
    before = [p.detach().clone() for g in groups for p in g.parameters]
    start = float(distance(groups).detach())
    optimizer = subject.part.build(groups=groups)
    require(isinstance(optimizer, Optimizer), f"{type(optimizer).__name__} is not a feebcore.train.optimizer.Optimizer")
    take_steps(optimizer, groups, 50)
    after = [p.detach() for g in groups for p in g.parameters]
    require(all(a.isfinite().all() for a in after), "parameters are not finite after 50 steps")
    require(float(distance(groups).detach()) < start, f"a quadratic rose from {start:.2f} to {float(distance(groups).detach()):.2f}")
    still = [g.role for g, a, b in zip(groups, before, after, strict=True) if torch.equal(a, b)]
    require(not still, f"role {', '.join(still)} did not move")


@check("optimizers", quick=True, meaning="A run that resumes differs from one that was not interrupted; some state is not in state_dict.")
def optimizer_state_round_trip(subject: Candidate) -> None:
    groups = toy_groups()
    optimizer = subject.part.build(groups=groups)
    take_steps(optimizer, groups, 5)
    twins = toy_groups()
    for group, twin in zip(groups, twins, strict=True):
        twin.parameters[0].data.copy_(group.parameters[0].data)
    other = subject.part.build(groups=twins)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take_steps(optimizer, groups, 5)
    take_steps(other, twins, 5)
    differ = [g.role for g, t in zip(groups, twins, strict=True) if not torch.equal(g.parameters[0], t.parameters[0])]
    require(not differ, f"after loading its state, role {', '.join(differ)} goes elsewhere")


def fixed_gradients(groups: list[ParamGroup], step: int, scale: float = 1.0) -> None:
    """Gradients that are the same whatever the parameters are: what is left is the optimizer."""
    random = torch.Generator().manual_seed(1000 + step)
    for group in groups:
        for p in group.parameters:
            p.grad = torch.randn(p.shape, generator=random) * scale


def displacement(subject: Candidate, change: Callable[[dict[str, Any]], None], steps: int = 5, scale: float = 1.0) -> dict[str, tuple[Tensor, Tensor]]:
    """Before and after some steps on fixed gradients, by role, with `change` made to every torch group first."""
    groups = toy_groups()
    before = {g.role: g.parameters[0].detach().clone() for g in groups}
    optimizer = subject.part.build(groups=groups)
    for torch_group in optimizer.param_groups:
        change(torch_group)
    for step in range(steps):
        fixed_gradients(groups, step, scale)
        optimizer.step()
    return {g.role: (before[g.role], g.parameters[0].detach()) for g in groups}


@check("optimizers", quick=True, meaning="A parameter is updated twice or never; every role must be in exactly one param group.")
def each_parameter_in_one_group(subject: Candidate) -> None:
    groups = toy_groups()
    held = [id(p) for torch_group in subject.part.build(groups=groups).param_groups for p in torch_group["params"]]
    counts = {g.role: held.count(id(p)) for g in groups for p in g.parameters}
    require(all(n == 1 for n in counts.values()), f"groups that hold the parameter of each role: {counts}")


@check(
    "optimizers",
    quick=True,
    meaning="Weights move at learning rate 0, so warmup and decay do not reach that path; it has a learning rate of its own instead of reading group['lr'].",
)
def zero_lr_changes_nothing(subject: Candidate) -> None:
    paths = displacement(subject, lambda g: g.update(lr=0.0))
    moved = [role for role, (before, after) in paths.items() if not torch.equal(before, after)]
    require(not moved, f"role {', '.join(moved)} moved at learning rate 0")


@check(
    "optimizers",
    meaning="Halving the learning rate does not halve the update, so schedules have no effect; read group['lr'] at every step instead of copying it at construction.",
)
def update_scales_with_lr(subject: Candidate) -> None:
    def small(part: float) -> Callable[[dict[str, Any]], None]:
        return lambda g: g.update(lr=1e-3 * part, **({"weight_decay": 0.0} if "weight_decay" in g else {}))

    full, half = displacement(subject, small(1.0)), displacement(subject, small(0.5))
    for role, (before, after) in full.items():
        ratio = float((after - before).norm() / (half[role][1] - before).norm())
        require(1.9 < ratio < 2.1, f"role {role} moves {ratio:.2f} times as far at twice the learning rate")


@check("optimizers", meaning="Weight decay that a group asks for does nothing, grows the weights, or cannot be switched off: a sign, or an option read once.")
def weight_decay_shrinks(subject: Candidate) -> None:
    if not any("weight_decay" in g for g in subject.part.build(groups=toy_groups()).param_groups):
        skip("its groups have no weight_decay")
    without = displacement(subject, lambda g: g.update(lr=0.01, weight_decay=0.0), scale=0.0)
    moved = [role for role, (before, after) in without.items() if not torch.equal(before, after)]
    require(not moved, f"role {', '.join(moved)} moved with neither gradient nor weight decay")
    for role, (before, after) in displacement(subject, lambda g: g.update(lr=0.01, weight_decay=0.5), scale=0.0).items():
        share = float(after.norm() / before.norm())
        require(0 < share < 1, f"weight decay takes role {role} to {share:.4f} of its size")


@check("optimizers", quick=True, meaning="A run that resumes from disk differs: state that is neither a tensor nor plain JSON is lost in a checkpoint.")
def state_fits_checkpoints(subject: Candidate) -> None:
    groups, twins = toy_groups(), toy_groups()
    optimizer, other = subject.part.build(groups=groups), subject.part.build(groups=twins)
    for step in range(4):
        fixed_gradients(groups, step)
        optimizer.step()
    model, twin = (nn.ParameterDict({g.role: g.parameters[0] for g in several}) for several in (groups, twins))
    tensors, plain = optimizer_state(model, optimizer)
    wrong = [place for place, t in tensors.items() if t.is_floating_point() and t.dtype != torch.float32]
    require(not wrong, f"state of fp32 weights is not fp32: {', '.join(wrong)}")
    written = load(save({name: t.contiguous() for name, t in tensors.items()}))
    restore_optimizer(twin, other, written, json.loads(json.dumps(plain)))
    for group, copied in zip(groups, twins, strict=True):
        copied.parameters[0].data.copy_(group.parameters[0].data)
    for step in range(4, 8):
        for several, one in ((groups, optimizer), (twins, other)):
            fixed_gradients(several, step)
            one.step()
    differ = [g.role for g, t in zip(groups, twins, strict=True) if not torch.equal(g.parameters[0], t.parameters[0])]
    require(not differ, f"restored from a checkpoint, role {', '.join(differ)} goes elsewhere")


@check("optimizers", meaning="A parameter without a gradient moves, or stops the step; frozen and unused weights are common.")
def missing_gradients_are_skipped(subject: Candidate) -> None:
    groups = toy_groups()
    before = {g.role: g.parameters[0].detach().clone() for g in groups}
    optimizer = subject.part.build(groups=groups)
    for step in range(3):
        fixed_gradients(groups, step)
        for group in groups[::2]:
            group.parameters[0].grad = None
        optimizer.step()
    for number, group in enumerate(groups):
        moved = not torch.equal(before[group.role], group.parameters[0])
        require(moved == bool(number % 2), f"role {group.role} {'moved without' if moved else 'stood still with'} a gradient")


@check("optimizers", quick=True, meaning="Validation changes training: use_train_weights() does not restore the weights bit for bit after use_eval_weights().")
def eval_weights_are_restored(subject: Candidate) -> None:
    groups = toy_groups()
    optimizer = subject.part.build(groups=groups)
    own = {name: getattr(type(optimizer), name) is not getattr(Optimizer, name) for name in ("use_eval_weights", "use_train_weights")}
    require(len(set(own.values())) == 1, "it has only one of use_eval_weights() and use_train_weights()")
    require(own["use_eval_weights"] == optimizer.has_eval_weights, f"has_eval_weights is {optimizer.has_eval_weights}, its methods say otherwise")
    if not optimizer.has_eval_weights:
        skip("it validates with the weights that it trains")
    for step in range(5):
        fixed_gradients(groups, step)
        optimizer.step()
        before = [p.detach().clone() for g in groups for p in g.parameters]
        optimizer.use_eval_weights()
        optimizer.use_eval_weights()
        optimizer.use_train_weights()
        optimizer.use_train_weights()
        same = all(torch.equal(b, p) for b, p in zip(before, (p for g in groups for p in g.parameters), strict=True))
        require(same, f"after step {step + 1}, use_eval_weights() and use_train_weights() leave other weights behind")


@check("schedules", quick=True, meaning="The learning rate depends on more than the step, or leaves 0..1, so a resumed run differs or diverges.")
def pure_and_bounded(subject: Candidate) -> None:
    first, second = subject.part.build(total_steps=STEPS), subject.part.build(total_steps=STEPS)
    rates = [first(step) for step in range(STEPS + 1)]
    backwards = [second(step) for step in reversed(range(STEPS + 1))][::-1]
    require(rates == backwards, "asking for the steps in another order gives other learning rates")
    require(all(math.isfinite(r) and 0.0 <= r <= 1.0 for r in rates), f"rates from {min(rates)} to {max(rates)}")
    require(max(rates) > 0.5, f"the learning rate never gets above {max(rates)} of its peak")


@check("schedules", meaning="Warmup does not rise, so the first steps can blow the model up.")
def warms_up(subject: Candidate) -> None:
    rates = [subject.part.build(total_steps=STEPS)(step) for step in range(STEPS)]
    peak = rates.index(max(rates))
    require(all(a <= b for a, b in itertools.pairwise(rates[: peak + 1])), f"the learning rate falls before its peak at step {peak}")


@check("schedules", meaning="Very short runs fail or never train.")
def short_runs(subject: Candidate) -> None:
    for total in (1, 2, 5):
        rates = [subject.part.build(total_steps=total)(step) for step in range(total)]
        require(all(0.0 <= r <= 1.0 for r in rates) and max(rates) > 0, f"rates {rates} in a run of {total} steps")


@check("schedules", meaning="Steps are spent at a learning rate of zero: a warmup that begins at 0, or a decay that ends one step early, is off by one.")
def no_step_is_wasted(subject: Candidate) -> None:
    rates = [subject.part.build(total_steps=STEPS)(step) for step in range(STEPS)]
    wasted = [step for step, rate in enumerate(rates) if rate <= 0]
    require(not wasted, f"the learning rate is 0 at step {', '.join(map(str, wasted[:5]))} of {STEPS}")
    require(sum(rates) / STEPS > 0.05, f"the mean rate is {sum(rates) / STEPS:.3f} of the peak")


@check("schedules", meaning="Beyond its end the learning rate leaves 0..1 or fails, so a run that is extended or asks one step too far breaks.")
def defined_past_the_end(subject: Candidate) -> None:
    multiplier = subject.part.build(total_steps=STEPS)
    for step in (STEPS, STEPS + 1, 10 * STEPS):
        require(0.0 <= multiplier(step) <= 1.0, f"rate {multiplier(step)} at step {step} of {STEPS}")


ROLES = ("matrix", "embedding", "lm_head", "vector")


def factors(scale: LRScale) -> dict[str, float]:
    by_role = (("learning rate", scale.of), ("weight decay", scale.decay_of))
    return {f"{what} of {role}": of(role) for what, of in by_role for role in ROLES} | {"power of beta2": scale.beta2_power, "eps": scale.eps}


SIZES: dict[str, tuple[float, ...]] = {
    "d_model": (64, 512, 8192),
    "num_layers": (1, 12, 96),
    "batch_tokens": (256, 2**15, 2**22),
    "steps": (1, 1000, 10**6),
    "block_parameters": (10**4, 10**8, 10**12),
    "head_parameters": (10**4, 10**7, 10**9),
    "block_flops": (1e5, 1e9, 1e13),
}
"""From the least to the largest that a run may have."""


def shape_of(sizes: Mapping[str, float]) -> TrainShape:
    return TrainShape(**sizes)  # type: ignore[arg-type]


@check("lr_scalings", quick=True, meaning="A factor becomes zero, negative or infinite at some size; look for a subtraction, or a size that may be 0.")
def factors_are_positive(subject: Candidate) -> None:
    rule = subject.part.build()
    may_be_unknown = {size: (0, *values[::2]) if size not in ("batch_tokens", "steps") else values[::2] for size, values in SIZES.items()}
    for values in itertools.product(*may_be_unknown.values()):
        shape = shape_of(dict(zip(SIZES, values, strict=True)))
        scale = rule(shape)
        for name, factor in factors(scale).items():
            require(math.isfinite(factor) and factor > 0, f"{name} is {factor} at {shape}")
        batch = scale.batch_tokens
        require(batch is None or (math.isfinite(batch) and batch > 0), f"batch_tokens is {batch} at {shape}")


@check("lr_scalings", quick=True, meaning="The factors depend on more than the sizes, so a resumed run differs; keep no state in the rule and draw no numbers.")
def factors_are_pure(subject: Candidate) -> None:
    shapes = [shape_of(dict(zip(SIZES, values, strict=True))) for values in zip(*SIZES.values(), strict=True)]
    first, second = subject.part.build(), subject.part.build()
    require(
        [first(shape) for shape in shapes] == [second(shape) for shape in reversed(shapes)][::-1], "asking for the sizes in another order gives other factors"
    )


@check("lr_scalings", meaning="As one size grows, a factor rises and falls again; look for a wrong sign, a rounding, or a size used in two ways.")
def factors_are_monotone(subject: Candidate) -> None:
    rule = subject.part.build()
    middle = {size: values[1] for size, values in SIZES.items()}
    for size, (low, _, high) in SIZES.items():
        steps = [low * (high / low) ** (i / 40) for i in range(41)]
        rows = [factors(rule(shape_of(middle | {size: value if size == "block_flops" else round(value)}))) for value in steps]
        for name in rows[0]:
            rises = [math.log(b[name] / a[name]) for a, b in itertools.pairwise(rows)]
            require(all(r > -1e-9 for r in rises) or all(r < 1e-9 for r in rises), f"{name} turns as {size} grows from {low:g} to {high:g}")


@check("lr_scalings", meaning="At the reference size the factors are not 1; look for a stray constant or an inverted ratio.")
def identity_at_the_reference(subject: Candidate) -> None:
    config = subject.part.config
    if not any(getattr(config, f"reference_{size}", 0) for size in REFERENCES):
        skip("its options name no reference size")
    for other in (1000, 3000):  # of sizes that the rule has no reference for
        changed = {name: f for name, f in factors(subject.part.build()(reference_shape(config, other))).items() if abs(f - 1) > 1e-9}
        require(not changed, f"at {reference_shape(config, other)} the factors are {changed}")


REFERENCES = ("width", "layers", "batch_tokens", "steps", "tokens", "parameters", "flops")


def reference_shape(config: PartConfig, other: int) -> TrainShape:
    """The sizes that options reference_width, reference_layers, … name; `other`: of those that they do not."""
    width, layers, batch, steps, tokens, parameters, flops = (getattr(config, f"reference_{size}", 0) for size in REFERENCES)
    batch = batch or other
    tokens = tokens or batch * (steps or other)
    return shape_of(
        {
            "d_model": width or other,
            "num_layers": layers or other,
            "batch_tokens": batch,
            "steps": tokens / batch,
            "block_parameters": parameters or other,  # a rule may count those of the head, too: here there are none
            "block_flops": (flops or other) / tokens,
        }
    )
