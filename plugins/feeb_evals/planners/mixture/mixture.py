"""Two rounds: the swarm, and the baseline at scale; then the recommended mixture at scale, predicted before it starts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from feeb_evals.planners.mixture.design import rounded, space_filling
from feebcore.errors import FeebError, did_you_mean
from feebcore.protocols import Cell
from feebcore.scaling.mixture import BestMixture, MixtureLaw, data_order, shares_of
from feebcore.scaling.planning import Planner, Situation, dotted, solve_steps
from feebcore.scaling.points import LawFit, NotIdentifiable

if TYPE_CHECKING:
    from feeb_evals.planners.mixture import MixtureConfig

DRAWS = 300
SAME = 0.02  # half the sum of differences of shares, below which two mixtures are one


class MixturePlanner(Planner):
    """Runs of the swarm have a seed each, so that what is left over by the regression holds the noise of seeds. At scale both mixtures have
    the same seeds, and are compared in pairs."""

    config: MixtureConfig
    varies: ClassVar[Literal["sizes", "mixtures"]] = "mixtures"

    def overrides(self) -> list[dict[str, Any]]:
        config = self.config
        sizes = [config.size, *([config.scale.size] if config.scale else [])]
        return [dotted(size) | data_order(dict.fromkeys(config.sources, 1.0)) for size in sizes]

    def source_weights(self) -> dict[str, float]:
        return dict(self.config.loss_weights) or dict.fromkeys(self.config.sources, 1.0)

    def plan(self, known: Situation) -> list[Cell]:
        """The recommended mixture is not known yet: its runs stand there with the baseline's shares."""
        return self._first(known) + self._last(known, self._baseline())

    def propose(self, known: Situation) -> list[Cell]:
        first = self._first(known)
        if not self.config.scale or not all(cell.name in known.ended for cell in first):
            return first
        points = self.fitted([known.points[cell.name] for cell in first if cell.name in known.points])
        try:
            best = self._best(known, known.law.fit(points, known.parameter_count, 0, known.seed))
        except NotIdentifiable:
            return first
        return first if _same(best.shares, self._baseline()) else first + self._last(known, best.shares)

    def best(self, known: Situation, fit: LawFit, flops: float) -> dict[str, Any]:
        return self._scale_size() | data_order(self._best(known, fit, flops).shares)

    def conclusion(self, known: Situation, fit: LawFit, flops: float = 0.0) -> dict[str, Any]:
        best = self._best(known, fit, flops)
        base = self._baseline()
        tokens = self._tokens(known, flops)
        return {
            "mixture": {
                "flops": flops or self._flops(known),
                "tokens": tokens,
                "shares": best.shares,
                "intervals": {name: list(ends) for name, ends in best.intervals.items()},
                "baseline": base,
                "epochs": {name: tokens * share / known.source_tokens[name] for name, share in best.shares.items()},
                "loss_weights": shares_of(self.source_weights()),
                "regression": getattr(fit, "regression", fit.form),
                "gain": _percent(best.gain),
                "gain_interval": [_percent(best.gain_low), _percent(best.gain_high)] if math.isfinite(best.gain_low) else None,
                "better": best.is_better,
                "measured": self._measured(known),
            }
        }

    def notes(self, known: Situation) -> list[str]:
        points = self.fitted(list(known.points.values()))
        try:
            fit = known.law.fit(points, known.parameter_count, DRAWS, known.seed)
            best = self._best(known, fit)
        except NotIdentifiable:
            return []
        flags = []
        if not best.is_better:
            flags.append("gain_uncertain: the gain of the recommended mixture over the baseline is not significant; add runs, or larger ones")
        if best.at_edge:
            flags.append(f"share_edges: the best share of {', '.join(best.at_edge)} is at the edge of those tried, or at the limit of max_epochs")
        measured = self._measured(known)
        if measured and measured["gain_interval"][1] < 0:
            flags.append("worse_at_scale: the runs at scale say that the baseline is better; do not use this mixture")
        return flags

    # --- what is run ----------------------------------------------------------------------------------------------------

    def _first(self, known: Situation) -> list[Cell]:
        """The swarm, and the baseline at scale. Raises FeebError where the text does not have what is asked."""
        config, base = self.config, self._baseline()
        self._refuse(known)
        limits = self._limits(known, dotted(config.size), config.flops)
        self._refuse_scarce(known, limits)
        low, high = np.full(len(config.sources), config.least_share), np.array([limits[name] for name in config.sources])
        shares = space_filling(np.array([base[name] for name in config.sources]), config.num_runs - 1, low, high, known.seed)
        shares = np.concatenate([shares[:1], shares])  # the baseline twice: it is what gains are counted from
        solved, exact = self._solved(known, "the swarm", dotted(config.size), config.flops)
        cells = []
        for number, row in enumerate(shares, 1):
            mixture = dict(zip(config.sources, map(float, row), strict=True))
            overrides = {**solved, **data_order(mixture), "seed": known.seed + number - 1}
            cells.append(Cell(f"mix{number:02d}-{_named(mixture)}", overrides, exact))
        return cells + (self._at_scale(known, "baseline", base) if config.scale else [])

    def _last(self, known: Situation, shares: Mapping[str, float]) -> list[Cell]:
        if not self.config.scale:
            return []
        return [dataclasses.replace(cell, heldout=True, round=1, predicted=True) for cell in self._at_scale(known, "recommended", shares)]

    def _at_scale(self, known: Situation, name: str, shares: Mapping[str, float]) -> list[Cell]:
        assert self.config.scale is not None
        solved, exact = self._solved(known, f"{name} at scale", self._scale_size(), self.config.scale.flops)
        seeds = [known.seed + number for number in range(self.config.scale.seeds)]
        return [Cell(f"{name}-{_named(shares)}-seed{seed}", {**solved, **data_order(shares), "seed": seed}, exact) for seed in seeds]

    def _solved(self, known: Situation, name: str, size: dict[str, Any], flops: float) -> tuple[dict[str, Any], float]:
        return solve_steps("mixture", name, size, flops, known.measure, self.config.min_steps, self.config.tolerance)

    def _refuse(self, known: Situation) -> None:
        for name in self.config.sources:
            if name not in known.source_tokens:
                raise FeebError(f"planner mixture: the training text has no source {name!r}; {did_you_mean(name, known.source_tokens)}")
        for name, weight in self.source_weights().items():
            if weight and not known.scored_documents.get(name):
                raise FeebError(
                    f"planner mixture: no validation document of source {name!r} is among those that runs are scored on; "
                    f"raise sweep.eval_documents (0: all), lower download.split_modulus, or leave {name!r} out of loss_weights"
                )
        base, flops = self._baseline(), self._flops(known)
        limits = self._limits(known, self._scale_size(), flops)
        if sum(limits.values()) < 1:
            raise FeebError(
                f"planner mixture: a run of {flops:.3g} FLOPs sees {self._tokens(known, flops):.3g} tokens, and the sources have not enough for that within "
                f"{self.config.max_epochs:g} epochs (max_epochs); add text, or lower the FLOPs"
            )
        self._refuse_scarce(known, limits)
        for name in self.config.sources:
            if base[name] > limits[name] + 1e-9:
                raise FeebError(
                    f"planner mixture: the baseline repeats source {name!r} {base[name] / limits[name] * self.config.max_epochs:.1f} times in a run of {flops:.3g} "
                    f"FLOPs, and max_epochs is {self.config.max_epochs:g}; add text of it, give a baseline with less of it, or raise max_epochs"
                )

    def _refuse_scarce(self, known: Situation, limits: Mapping[str, float]) -> None:
        scarce = min(self.config.sources, key=lambda name: limits[name])
        if limits[scarce] < self.config.least_share:
            raise FeebError(
                f"planner mixture: source {scarce!r} has {known.source_tokens[scarce]:.3g} tokens, too few for a share of {self.config.least_share:g} "
                f"(least_share) within {self.config.max_epochs:g} epochs (max_epochs); add text of it, or leave it out"
            )

    # --- what is said ---------------------------------------------------------------------------------------------------

    def _best(self, known: Situation, fit: LawFit, flops: float = 0.0) -> BestMixture:
        """With shares that a recipe can hold. limits: of the run that the mixture is for."""
        assert isinstance(known.law, MixtureLaw)
        best = known.law.best(fit, self._baseline(), self._limits(known, self._scale_size(), flops or self._flops(known)))
        short = rounded(np.array([list(best.shares.values())]))[0]
        return dataclasses.replace(best, shares=dict(zip(best.shares, map(float, short), strict=True)))

    def _measured(self, known: Situation) -> dict[str, Any] | None:
        """The gain at scale, in per cent of the baseline's loss, over pairs of equal seeds, with Student's 95 % interval; None before there are two."""
        from scipy import special

        losses = {
            key: {name.rpartition("-seed")[2]: p.loss for name, p in known.points.items() if name.startswith(f"{key}-")} for key in ("baseline", "recommended")
        }
        pairs = [(losses["baseline"][seed], losses["recommended"][seed]) for seed in losses["baseline"] if seed in losses["recommended"]]
        if len(pairs) < 2:
            return None
        gains = np.log([a / b for a, b in pairs])
        half = float(special.stdtrit(len(gains) - 1, 0.975) * gains.std(ddof=1) / math.sqrt(len(gains)))
        mean = float(gains.mean())
        rows = {key: [losses[key][seed] for seed in losses["baseline"] if seed in losses["recommended"]] for key in losses}
        return rows | {"gain": _percent(mean), "gain_interval": [_percent(mean - half), _percent(mean + half)]}

    def _baseline(self) -> dict[str, float]:
        weights = self.config.baseline or dict.fromkeys(self.config.sources, 1.0)
        short = rounded(np.array([list(shares_of({name: weights.get(name, 0.0) for name in self.config.sources}).values())]))[0]
        return dict(zip(self.config.sources, map(float, short), strict=True))

    def _scale_size(self) -> dict[str, Any]:
        return dotted(self.config.scale.size if self.config.scale else self.config.size)

    def _flops(self, known: Situation) -> float:
        """Of the longest run that the mixture is for."""
        return max(known.target, self.config.scale.flops if self.config.scale else self.config.flops)

    def _tokens(self, known: Situation, flops: float) -> float:
        return (flops or self._flops(known)) / known.measure(self._scale_size()).flops_per_token

    def _limits(self, known: Situation, size: Mapping[str, Any], flops: float) -> dict[str, float]:
        """The share of each source that makes max_epochs of it, at most 1."""
        tokens = flops / known.measure(size).flops_per_token
        return {name: min(1.0, self.config.max_epochs * known.source_tokens[name] / tokens) for name in self.config.sources}


def _named(shares: Mapping[str, float]) -> str:
    return "-".join(f"{100 * share:.0f}" for share in shares.values())


def _same(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return 0.5 * sum(abs(one[name] - other[name]) for name in one) < SAME


def _percent(ln_gain: float) -> float:
    """Of the baseline's loss."""
    return -100 * math.expm1(-ln_gain)
