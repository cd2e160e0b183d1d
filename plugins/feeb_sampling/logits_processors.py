"""Logits logits_processors: functions of logits [B,V] fp32, row by row, that always leave at least one token."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from feeb_sampling import MinPConfig, TemperatureConfig, TopKConfig, TopPConfig

LogitsProcessor = Callable[[Tensor], Tensor]


def temperature(config: TemperatureConfig) -> LogitsProcessor:
    return lambda logits: logits / config.temperature


def top_k(config: TopKConfig) -> LogitsProcessor:
    """Exactly k tokens stay; among equals at the border, the ones torch.topk names."""

    def keep(logits: Tensor) -> Tensor:
        if config.k >= logits.shape[-1]:
            return logits
        values, tokens = logits.topk(config.k, dim=-1)
        return torch.full_like(logits, -torch.inf).scatter(-1, tokens, values)

    return keep


def top_p(config: TopPConfig) -> LogitsProcessor:
    """A token stays when the probability of all likelier ones is below p: the crossing token stays, and the first always."""

    def keep(logits: Tensor) -> Tensor:
        if config.p >= 1:
            return logits
        ordered, tokens = logits.sort(dim=-1, descending=True, stable=True)
        probs = ordered.softmax(-1, dtype=torch.float64)
        before = probs.cumsum(-1) - probs
        before[..., 0] = 0.0
        return torch.full_like(logits, -torch.inf).scatter(-1, tokens, ordered.masked_fill(before >= config.p, -torch.inf))

    return keep


def min_p(config: MinPConfig) -> LogitsProcessor:
    """p >= min_p * max p, in log space so that it holds at any scale."""

    def keep(logits: Tensor) -> Tensor:
        if config.min_p == 0:
            return logits
        best = logits.amax(-1, keepdim=True)
        return logits.masked_fill((logits - best < math.log(config.min_p)) & (logits < best), -torch.inf)

    return keep
