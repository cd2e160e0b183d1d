"""What planners of sweeps promise, what they are given, and the computation that they share: steps from exact FLOPs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from feebcore.errors import FeebError, RecipeError
from feebcore.protocols import Cell
from feebcore.scaling.allocation import best_size, cost_of_a_token
from feebcore.scaling.points import Law, LawFit, Measure, ParameterCount, Point

if TYPE_CHECKING:
    from feebcore.config import PartConfig
    from feebcore.protocols import BuildContext

TRAIN_KEYS = ("batch_size", "seq_len", "grad_clip", "precision")  # undotted keys of a size that are not the architecture's

Size = dict[str, Any]
"""One model size: options of the architecture (`d_model: 64`) or dotted keys of the train section (`optimizer.lr: 0.02`)."""

SharedSteps = Callable[[Mapping[str, Any], int], int]
"""`shared_steps(overrides, longer)`: how many steps the run with `overrides` trains exactly as one of `longer` steps, otherwise the same."""

ScaleLR = Callable[[Mapping[str, Any], float], dict[str, Any]]
"""`scale_lr(overrides, factor)`: the overrides that multiply every learning rate of the run with `overrides` by `factor`."""


@dataclass(frozen=True)
class Situation:
    """What a planner knows when it is asked for runs.

    points: measured runs by name. ended: names of all runs that have ended, those that diverged or failed too. law: fits what is
    measured. target: training FLOPs that the sweep is to forecast (0: none). train_tokens: distinct tokens of the training
    split (0: not known); source_tokens: of each source in it. scored_documents: of each source, those of the validation split that
    every run is scored on.
    """

    measure: Measure
    scale_lr: ScaleLR
    parameter_count: ParameterCount
    law: Law
    target: float = 0.0
    train_tokens: int = 0
    seed: int = 0
    points: Mapping[str, Point] = field(default_factory=dict)
    ended: frozenset[str] = frozenset()
    source_tokens: Mapping[str, int] = field(default_factory=dict)
    scored_documents: Mapping[str, int] = field(default_factory=dict)
    shared_steps: SharedSteps = lambda overrides, longer: 0


class Planner:
    """Base class of planners: which runs to train.

    A subclass has `overrides` and either `plan`, where all runs are known beforehand, or `propose`, which is asked again whenever
    runs have ended and must depend on nothing else: the same results give the same runs, so that a sweep that was killed continues.
    varies: what its runs differ in, and so which kind of law fits them.
    """

    varies: ClassVar[Literal["sizes", "mixtures"]] = "sizes"

    def __init__(self, config: PartConfig, context: BuildContext | None = None) -> None:
        self.config: Any = config

    def overrides(self) -> list[dict[str, Any]]:
        """What it may set, steps aside, so that a recipe can be checked before anything is built."""
        raise NotImplementedError

    def plan(self, known: Situation) -> list[Cell]:
        """Every run, steps solved; of a planner that depends on results, what it would do if all went as it expects. Raises FeebError when a
        budget cannot be met."""
        raise NotImplementedError

    def propose(self, known: Situation) -> list[Cell]:
        """The runs so far, those of earlier calls included and in the same order, and those that are next."""
        return self.plan(known)

    def fitted(self, points: Sequence[Point]) -> list[Point]:
        """The points that the law is fitted to before held-out runs are known."""
        return [point for point in points if not point.heldout]

    def sized(self, known: Situation, size: float, flops: float) -> dict[str, Any]:
        """Overrides of the nearest size that it can make to N = `size`, for a run of `flops`. Raises FeebError when none is near."""
        made = {getattr(known.measure(overrides).counts, known.parameter_count): overrides for overrides in self.overrides()}
        nearest = min(made, key=lambda number: abs(math.log(number / size)))
        if not 0.5 < nearest / size < 2:
            raise FeebError(f"the planner has no size near {size:.3g} parameters, the nearest is {nearest:.3g}; list one in its `sizes`")
        return dict(made[nearest])

    def best(self, known: Situation, fit: LawFit, flops: float) -> dict[str, Any]:
        """Overrides, steps aside, of the best run for `flops` by the law. known: with the points of a finished sweep."""
        cost = cost_of_a_token(list(known.points.values()), known.parameter_count)
        return self.sized(known, best_size(known.law, fit, flops, cost), flops)

    def source_weights(self) -> dict[str, float]:
        """Weights of sources in the loss that is fitted, which is then the mean of their validation losses; none: the loss of the whole split."""
        return {}

    def conclusion(self, known: Situation, fit: LawFit, flops: float = 0.0) -> dict[str, Any]:
        """What it adds to law.json, as plain JSON, besides the law. flops: of the run that it is for; 0: the planner's own."""
        return {}

    def lr_factor(self, known: Situation, size: float, tokens: float) -> float:
        """The multiple of the recipe's learning rates for a run of `size` parameters on `tokens` tokens."""
        return 1.0

    def lr_probe(self, known: Situation) -> dict[str, Any] | None:
        """What it found out about learning rates, as plain JSON; None where it did not look. `places`: one each with N, D, the runs `tried`
        (name, factor and loss, None where it diverged), `best` factor, `problem` ('' if none) and `curve`, the coefficients of ln(loss) in powers
        0, 1, 2 of ln(factor); `ridge`: c0, c1, c2, N and D of ln(best factor) = c0 + c1 ln(N / ridge N) + c2 ln(D / ridge D)."""
        return None

    def notes(self, known: Situation) -> list[str]:
        """Flags, 'code: sentence' each, of what planning found."""
        return []


def solve_steps(
    planner: str, name: str, overrides: Mapping[str, Any], flops: float, measure: Measure, min_steps: int, tolerance: float, unit: str = "budget"
) -> tuple[Size, float]:
    """Overrides with `max_steps`, and `batch_size` halved until there are `min_steps`, whose exact FLOPs are about `flops`; and those FLOPs.

    unit: what the user gave as the run's length. Raises FeebError when it is too small, or missed by more than `tolerance`, or the run cannot be.
    """
    cost = measure(overrides)
    batch = None
    while flops / cost.flops_per_step < min_steps:
        batch = cost.batch_size // 2
        if batch < 1:
            raise FeebError(
                f"planner {planner}: {flops:.3g} FLOPs are {flops / cost.flops_per_step:.1f} steps of one sequence at {name}, fewer than "
                f"min_steps {min_steps}; raise the {unit} or shorten seq_len"
            )
        cost = measure({**overrides, "batch_size": batch})
    steps = max(1, round(flops / cost.flops_per_step))
    exact = steps * cost.flops_per_step
    if abs(exact / flops - 1) > tolerance:
        raise FeebError(
            f"planner {planner}: {steps} steps at {name} cost {exact:.4g} FLOPs, {100 * (exact / flops - 1):+.1f} % off the {unit} "
            f"(tolerance {100 * tolerance:g} %); raise the {unit} or min_steps, or make batch_size smaller"
        )
    solved = {**overrides, **({"batch_size": batch} if batch else {}), "max_steps": steps}
    try:
        measure(solved)
    except RecipeError as error:
        raise FeebError(f"planner {planner}: {name}: {error}") from None
    return solved, exact


def dotted(size: Size) -> dict[str, Any]:
    """Undotted keys are options of the architecture, except TRAIN_KEYS."""
    return {key if "." in key or key in TRAIN_KEYS else f"architecture.{key}": value for key, value in size.items()}


def run_names(names: Sequence[str]) -> list[str]:
    """The names, with -2, -3 … behind those that came before: sizes may differ in keys that no name shows."""
    return [f"{name}-{number}" if (number := names[: i + 1].count(name)) > 1 else name for i, name in enumerate(names)]


def size_name(size: Size) -> str:
    """d64-l2 for {d_model: 64, num_layers: 2}; other keys by their last word."""
    short = {"d_model": "d", "num_layers": "l", "num_heads": "h"}
    parts = [f"{short[k.rpartition('.')[2]]}{v}" for k, v in size.items() if k.rpartition(".")[2] in short and k.rpartition(".")[2] != "num_heads"]
    return "-".join(parts) or "-".join(str(v) for v in size.values())
