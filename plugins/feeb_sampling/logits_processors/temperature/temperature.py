"""Divides the logits by the temperature."""

from __future__ import annotations

from typing import TYPE_CHECKING

from feebcore.generate.decoding import LogitsProcessor
from feebcore.protocols import BuildContext

if TYPE_CHECKING:
    from feeb_sampling.logits_processors.temperature import TemperatureConfig


def temperature(config: TemperatureConfig, context: BuildContext | None = None) -> LogitsProcessor:
    return lambda logits: logits / config.temperature
