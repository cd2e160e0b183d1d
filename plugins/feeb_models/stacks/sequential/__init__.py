"""One block after the other."""

from __future__ import annotations

import feebcore as feeb

PART = feeb.StackSpec(
    "sequential",
    build=f"{__name__}.sequential:Sequential",
    summary="Sequential stack: every layer has its own weights.",
    equation="r_{l+1} = B_l(r_l),  l = 0 … L − 1",
)
