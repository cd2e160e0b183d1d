"""Options that callbacks share. Loads no torch."""

from __future__ import annotations

from pydantic import Field

from feebcore import PartConfig


class LogConfig(PartConfig):
    every: int = Field(0, ge=0, description="log every N steps; 0: the run's log_every")


class ProbeConfig(PartConfig):
    every: int = Field(100, ge=1, description="measure every N steps, and before the first and after the last step")
    sequences: int = Field(4, ge=1, description="sequences of the first batch to measure on, the same every time")
