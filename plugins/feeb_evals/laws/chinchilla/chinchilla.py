"""The law of Hoffmann et al., fitted by feebcore.scaling.fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from feebcore.protocols import BuildContext
from feebcore.scaling.fit import fit_chinchilla
from feebcore.scaling.points import Law, LawFit, Optimum, ParameterCount, Point, Prediction
from feebcore.scaling.posterior import optimum_posterior, predict_posterior

if TYPE_CHECKING:
    from feeb_evals.laws.chinchilla import ChinchillaConfig


class Chinchilla(Law):
    def __init__(self, config: ChinchillaConfig, context: BuildContext | None = None) -> None:
        self.config = config

    def fit(self, points: Sequence[Point], parameter_count: ParameterCount, bootstrap: int, seed: int) -> LawFit:
        return fit_chinchilla(points, parameter_count, bootstrap, seed, self.config.grid == "published", self.config.loss)

    def estimator(self) -> dict[str, str]:
        of = "Huber losses (delta 0.001)" if self.config.loss == "huber_log" else "squares"
        starts = "the 4,500 of Hoffmann et al. 2022" if self.config.grid == "published" else "108, derived from the runs"
        return {
            "form": "L = E + A / N^alpha + B / D^beta",
            "objective": f"sum of {of} of ln(predicted / measured), by BFGS with an analytic gradient",
            "starts": starts,
            "intervals": "bootstrap: refits to resampled runs, percentiles 2.5 and 97.5",
        }

    def predict(self, fit: LawFit, size: float, tokens: float) -> Prediction:
        return predict_posterior(fit, size, tokens)

    def optimum(self, fit: LawFit, flops: float) -> Optimum:
        return optimum_posterior(fit, flops)
