"""Training speed and memory."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb
from feebcore import PartConfig


class ThroughputConfig(PartConfig):
    every: int = Field(50, ge=1, description="log every N steps, and at the last step")


PART = feeb.CallbackSpec(
    "throughput",
    ThroughputConfig,
    build=f"{__name__}.throughput:Throughput",
    since="1.1",
    summary="MFU or matmul utilization, tokens/s, data wait and memory.",
    reference="arXiv:2204.02311",
)
