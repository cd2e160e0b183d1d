"""The law of Hoffmann et al., fitted by feebcore.scaling.fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from feebcore.protocols import BuildContext
from feebcore.scaling.fit import fit_chinchilla, optimum, predict_chinchilla
from feebcore.scaling.points import Law, LawFit, Optimum, ParameterCount, Point, Prediction

if TYPE_CHECKING:
    from feeb_evals.laws.chinchilla import ChinchillaConfig


class Chinchilla(Law):
    def __init__(self, config: ChinchillaConfig, context: BuildContext | None = None) -> None:
        self.published_grid = config.grid == "published"

    def fit(self, points: Sequence[Point], parameter_count: ParameterCount, bootstrap: int, seed: int) -> LawFit:
        return fit_chinchilla(points, parameter_count, bootstrap, seed, self.published_grid)

    def predict(self, fit: LawFit, size: float, tokens: float) -> Prediction:
        return predict_chinchilla(fit, size, tokens)

    def optimum(self, fit: LawFit, flops: float) -> Optimum:
        size, tokens = optimum(fit, flops)
        return Optimum(flops, size, tokens, predict_chinchilla(fit, size, tokens))
