"""Rates found at one width, used at another."""

from __future__ import annotations

from collections.abc import Callable

from feeb_optim import InverseWidthConfig
from feebcore.train.rates import RateScale, TrainShape


def build_inverse_width(config: InverseWidthConfig) -> Callable[[TrainShape], RateScale]:
    """Adam's rate for matrices with `width` inputs goes as 1 / width (arXiv:2203.03466, Table 3); other roles keep theirs."""

    def rule(shape: TrainShape) -> RateScale:
        factor = config.reference_width / shape.d_model if shape.d_model else 1.0
        return RateScale({"matrix": factor, "head": factor})

    return rule
