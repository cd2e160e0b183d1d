"""Weights & Biases."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

import feebcore as feeb
from feeb_tracking.options import LogConfig


class WandbConfig(LogConfig):
    project: str = Field("feeb", description="wandb project")
    entity: str | None = Field(None, description="wandb user or team; default: that of the login")
    mode: Literal["offline", "online"] = Field("offline", description="online uses the key of `wandb login` or WANDB_API_KEY; feeb never stores it")


PART = feeb.CallbackSpec(
    "wandb",
    WandbConfig,
    build=f"{__name__}.wandb_run:WandbRun",
    summary="The training log in Weights & Biases, offline by default.",
    reference="https://wandb.ai",
)
