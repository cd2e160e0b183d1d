"""Law `mixture`: the loss as a function of the shares of the sources, at one size and token count."""

from __future__ import annotations

import feebcore as feeb

PART = feeb.LawSpec(
    "mixture",
    feeb.PartConfig,
    build=f"{__name__}.mixture:Mixture",
    summary="Loss by source as a function of the mixture: ln L regressed on shares, in the form of least leave-one-out error; gives the best mixture.",
    reference="arXiv:2403.16952, arXiv:2407.01492",
)
