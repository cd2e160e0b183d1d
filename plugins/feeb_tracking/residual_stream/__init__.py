"""Magnitudes in the residual stream."""

import feebcore as feeb
from feeb_tracking.options import ProbeConfig

PART = feeb.CallbackSpec(
    "residual_stream",
    ProbeConfig,
    build=f"{__name__}.residual_stream:ResidualStream",
    since="1.1",
    summary="RMS of the residual stream before, between and after each block, and of attention and feedforward outputs.",
    reference="arXiv:2002.04745",
)
