"""Load balance of mixture-of-experts layers."""

import feebcore as feeb
from feeb_tracking.options import ProbeConfig

PART = feeb.CallbackSpec(
    "expert_load",
    ProbeConfig,
    build=f"{__name__}.expert_load:ExpertLoad",
    since="1.1",
    summary="MoE load: fraction of tokens per expert and layer.",
    reference="arXiv:2101.03961",
)
