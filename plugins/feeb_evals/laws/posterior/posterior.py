"""The law of Hoffmann et al., fitted by feebcore.scaling.posterior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from feebcore.protocols import BuildContext
from feebcore.scaling.points import Law, LawFit, Optimum, ParameterCount, Point, Prediction
from feebcore.scaling.posterior import fit_posterior, optimum_posterior, predict_posterior

if TYPE_CHECKING:
    from feeb_evals.laws.posterior import PosteriorConfig


class PosteriorLaw(Law):
    def __init__(self, config: PosteriorConfig, context: BuildContext | None = None) -> None:
        self.rollouts = config.rollouts

    def fit(self, points: Sequence[Point], parameter_count: ParameterCount, bootstrap: int, seed: int) -> LawFit:
        return fit_posterior(points, parameter_count, bootstrap, seed, rollouts=self.rollouts)

    def predict(self, fit: LawFit, size: float, tokens: float) -> Prediction:
        return predict_posterior(fit, size, tokens)

    def optimum(self, fit: LawFit, flops: float) -> Optimum:
        return optimum_posterior(fit, flops)
