"""Greedy decoding."""

from __future__ import annotations

from feebcore.config import NoOptions
from feebcore.generate import decoding
from feebcore.protocols import BuildContext


def greedy(config: NoOptions, context: BuildContext | None = None) -> decoding.Sampler:
    return decoding.greedy
