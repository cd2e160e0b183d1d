"""Logits processor `temperature`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

import feebcore as feeb


class TemperatureConfig(feeb.LogitsProcessorConfig):
    """The sampling temperature."""

    truncates: ClassVar[bool] = False

    temperature: float = Field(1.0, gt=0, description="the logits are divided by it; below 1 sharpens the distribution")


PART = feeb.LogitsProcessorSpec("temperature", TemperatureConfig, build=f"{__name__}.temperature:temperature", summary="Divides the logits by the temperature.")
