"""What a scaling study measures, with every counting parameter_count explicit, and what planners and laws promise.

Which parameters are counted decides the exponents (Porian et al. 2024: .88 against .50; nanochat: .37, .54, .70 for
one data set), so a point carries all three counts and the exact FLOPs, and a fit names the one it used.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from feebcore.errors import FeebError
from feebcore.protocols import Counts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ParameterCount = Literal["non_embedding", "matmul", "total"]
"""Which parameters N means. non_embedding: without embedding and position tables. matmul: those that multiply
activations (blocks and head, tied or not). total: all."""

PARAMETER_COUNTS: tuple[ParameterCount, ...] = get_args(ParameterCount)

LEAST_DRAWS = 100
"""Resamples or posterior draws below which the ends of an interval are noise."""


class NotIdentifiable(FeebError):
    """The points cannot tell the parameters of this law apart, whatever their noise."""


@dataclass(frozen=True)
class Point:
    """One trained run. tokens: D, training tokens seen. flops: exact training FLOPs, 3 x forward with full T x T
    attention and head. budget: the FLOPs asked for (equal along an isoFLOP curve). loss: nats per token. weight: how much
    the run counts, 1 / variance relative to the others. group: runs of one group (seeds of one cell) are one measurement; default:
    those with equal N and D. unique_tokens: distinct tokens among `tokens`; default: all. Of a run that chooses its mixture, shares: of each
    source; source_losses: nats per token of each source that is validated; source_weights: of these in `loss`."""

    name: str
    total: int
    non_embedding: int
    matmul: int
    tokens: float
    flops: float
    loss: float
    budget: float = 0.0
    bits_per_byte: float | None = None
    heldout: bool = False
    weight: float = 1.0
    group: str = ""
    unique_tokens: float | None = None
    shares: Mapping[str, float] = field(default_factory=dict, hash=False)
    source_losses: Mapping[str, float] = field(default_factory=dict, hash=False)
    source_weights: Mapping[str, float] = field(default_factory=dict, hash=False)

    def size(self, parameter_count: ParameterCount) -> int:
        """N by `parameter_count`."""
        if parameter_count not in PARAMETER_COUNTS:
            raise FeebError(f"parameter_count {parameter_count!r} is none of {', '.join(PARAMETER_COUNTS)}")
        return int(getattr(self, parameter_count))

    @property
    def flops_per_token(self) -> float:
        return self.flops / self.tokens

    def flops_6nd(self, parameter_count: ParameterCount) -> float:
        """The usual approximation 6 N D, to be compared with the exact `flops`."""
        return 6.0 * self.size(parameter_count) * self.tokens

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, with 6ND by each parameter_count next to the exact count."""
        return dataclasses.asdict(self) | {"flops_per_token": self.flops_per_token, "flops_6nd": {c: self.flops_6nd(c) for c in PARAMETER_COUNTS}}


@dataclass(frozen=True)
class Rollout:
    """A run that was left out and predicted from cheaper ones: reach is its FLOPs over those of the dearest of them, error
    ln(predicted / measured), off_ridge ln(N / N*), cut the factor of compute that was left out with it, loss what was measured."""

    name: str
    reach: float
    error: float
    off_ridge: float = 0.0
    cut: float = 0.0
    loss: float = float("nan")


@dataclass(frozen=True)
class LawFit:
    """A fitted law. parameters and intervals by name; objective: the minimum reached; flags: 'code: sentence' each,
    empty when nothing speaks against the fit; residuals: ln(predicted / measured) in the order of the points, of another number where the law is of something else than runs;
    samples: bootstrap refits or posterior draws, one row each in the order of `parameters`; weights: how much each point counted;
    scatter: robust standard deviation of the residuals; top_flops: 6ND of the dearest run; rollouts: what the same
    estimator said of the dearest runs from the cheaper ones; outliers: names of points far from all others."""

    form: str
    parameters: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    flags: tuple[str, ...]
    objective: float
    parameter_count: ParameterCount
    num_points: int
    residuals: tuple[float, ...] = ()
    samples: tuple[tuple[float, ...], ...] = field(default=(), repr=False)
    weights: tuple[float, ...] = ()
    scatter: float = float("nan")
    top_flops: float = float("nan")
    rollouts: tuple[Rollout, ...] = ()
    outliers: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON without the samples."""
        plain = dataclasses.asdict(self)
        del plain["samples"]
        return plain | {"intervals": {k: list(v) for k, v in self.intervals.items()}, "flags": list(self.flags), "residuals": list(self.residuals)}

    @functools.cached_property
    def draws(self) -> NDArray[np.float64]:
        """`samples` as an array [K, number of parameters]."""
        import numpy as np

        return np.array(self.samples, dtype=np.float64).reshape(-1, len(self.parameters))


@dataclass(frozen=True)
class Prediction:
    """A predicted loss in nats per token, with the 95 % interval of a new measurement (NaN without one). flags: why not to rely on it."""

    loss: float
    low: float
    high: float
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Optimum:
    """The best allocation of `flops` under 6 N D = flops, and the loss there. size_low, size_high: 95 % interval of N."""

    flops: float
    size: float
    tokens: float
    prediction: Prediction
    size_low: float = float("nan")
    size_high: float = float("nan")


class Law(Protocol):
    """A functional form. `fit` raises NotIdentifiable when the points cannot determine it; doubts become flags.

    bootstrap: number of resamples or posterior draws for intervals, at least 100; 0: none.
    """

    def fit(self, points: Sequence[Point], parameter_count: ParameterCount, bootstrap: int, seed: int) -> LawFit: ...

    def predict(self, fit: LawFit, size: float, tokens: float) -> Prediction: ...

    def predict_point(self, fit: LawFit, point: Point) -> Prediction:
        """The loss of a run by all that is known of it, for laws that ask more than N and D."""
        return self.predict(fit, point.size(fit.parameter_count), point.tokens)

    def estimator(self) -> dict[str, str]:
        """How it is fitted, for those who would repeat it: `form`, `objective`, `starts` and `intervals`, a sentence each; none by default."""
        return {}

    def optimum(self, fit: LawFit, flops: float) -> Optimum:
        """By default the best of a grid over N, which suits any law; a closed form is faster."""
        center = math.sqrt(flops / 120.0)  # 20 tokens per parameter
        width = 1000.0
        for _ in range(6):
            sizes = [center * width ** (i / 20.0) for i in range(-20, 21)]
            center = min(sizes, key=lambda size: self.predict(fit, size, flops / (6.0 * size)).loss)
            width **= 0.1
        return Optimum(flops, center, flops / (6.0 * center), self.predict(fit, center, flops / (6.0 * center)))


@dataclass(frozen=True)
class Cost:
    """What a cell costs. flops_per_token: training, that is 3 x forward. batch_size: windows of seq_len a step."""

    counts: Counts
    flops_per_token: float
    batch_size: int
    seq_len: int

    @property
    def flops_per_step(self) -> float:
        return self.flops_per_token * self.batch_size * self.seq_len


Measure = Callable[[Mapping[str, Any]], Cost]
"""The cost of the train section with these overrides (dotted keys)."""
