"""The distribution of the logits."""

import feebcore as feeb
from feeb_tracking.options import ProbeConfig

PART = feeb.CallbackSpec(
    "logits",
    ProbeConfig,
    build=f"{__name__}.logits:Logits",
    since="1.1",
    summary="Quantiles of the logits, entropy and top-1 probability.",
    reference="arXiv:2309.14322",
)
