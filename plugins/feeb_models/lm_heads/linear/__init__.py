"""One matrix, of its own or the embedding's."""

from __future__ import annotations

import feebcore as feeb
from feeb_models.lm_heads.options import HeadConfig

PARTS = (
    feeb.LMHeadSpec(
        "linear",
        HeadConfig,
        build=f"{__name__}.linear:LinearHead",
        summary="Untied linear LM head.",
        equation="logits = W z,   W [V, C] of its own",
    ),
    feeb.LMHeadSpec(
        "tied",
        HeadConfig,
        build=f"{__name__}.linear:TiedHead",
        summary="Tied LM head: the embedding's matrix again.",
        reference="arXiv:1608.05859",
        equation="logits = E z      E: the embedding's table",
    ),
)
