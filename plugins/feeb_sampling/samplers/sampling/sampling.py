"""Multinomial sampling."""

from __future__ import annotations

from feebcore.config import NoOptions
from feebcore.generate import decoding
from feebcore.protocols import BuildContext


def sampling(config: NoOptions, context: BuildContext | None = None) -> decoding.Sampler:
    return decoding.sample
