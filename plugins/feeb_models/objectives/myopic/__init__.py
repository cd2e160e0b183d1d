"""Myopic gradients."""

from __future__ import annotations

import feebcore as feeb
from feeb_models.objectives.options import NextTokenConfig

PART = feeb.ObjectiveSpec(
    "myopic",
    NextTokenConfig,
    build=f"{__name__}.myopic:Myopic",
    summary="Myopic training: next-token cross-entropy without gradients from later losses to earlier positions.",
    reference="arXiv:2404.00859",
    since="1.1",
    equation="as next_token, with att over sg(k_s), sg(v_s) for s < t and k_t, v_t: the loss is the same, the gradient is not",
    revision=2,  # counts the FLOPs of all that it runs
)
