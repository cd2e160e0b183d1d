"""What a scaling study measures, with every counting parameter_count explicit, and what planners and laws promise.

Which parameters are counted decides the exponents (Porian et al. 2024: .88 against .50; nanochat: .37, .54, .70 for
one data set), so a point carries all three counts and the exact FLOPs, and a fit names the one it used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

from feebcore.errors import FeebError
from feebcore.protocols import Counts

ParameterCount = Literal["non_embedding", "matmul", "total"]
"""Which parameters N means. non_embedding: without embedding and position tables. matmul: those that multiply
activations (blocks and head, tied or not). total: all."""

PARAMETER_COUNTS: tuple[ParameterCount, ...] = get_args(ParameterCount)


class NotIdentifiable(FeebError):
    """The points cannot tell the parameters of this law apart, whatever their noise."""


@dataclass(frozen=True)
class Point:
    """One trained cell. tokens: D, training tokens seen. flops: exact training FLOPs, 3 x forward with full T x T
    attention and head. budget: the FLOPs asked for (equal along an isoFLOP curve). loss: nats per token."""

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
class LawFit:
    """A fitted law. parameters and intervals by name; objective: the minimum reached; flags: 'code: sentence' each,
    empty when nothing speaks against the fit; residuals: ln(predicted / measured) in the order of the points;
    samples: bootstrap refits, one row each in the order of `parameters`."""

    form: str
    parameters: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    flags: tuple[str, ...]
    objective: float
    parameter_count: ParameterCount
    num_points: int
    residuals: tuple[float, ...] = ()
    samples: tuple[tuple[float, ...], ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON without the samples."""
        plain = dataclasses.asdict(self)
        del plain["samples"]
        return plain | {"intervals": {k: list(v) for k, v in self.intervals.items()}, "flags": list(self.flags), "residuals": list(self.residuals)}


@dataclass(frozen=True)
class Prediction:
    """A predicted loss in nats per token, with the 95 % interval of a new measurement."""

    loss: float
    low: float
    high: float


class Law(Protocol):
    """A functional form. `fit` raises NotIdentifiable when the points cannot determine it; doubts become flags."""

    def fit(self, points: Sequence[Point], parameter_count: ParameterCount, bootstrap: int, seed: int) -> LawFit: ...
    def predict(self, fit: LawFit, size: float, tokens: float) -> Prediction: ...


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
