"""Decoders: processed logits [B,V] and the rows' random streams to tokens [B]."""

from __future__ import annotations

from feebcore.config import NoOptions
from feebcore.generate import decoding


def greedy(config: NoOptions) -> decoding.Sampler:
    return decoding.greedy


def sampling(config: NoOptions) -> decoding.Sampler:
    return decoding.sample
