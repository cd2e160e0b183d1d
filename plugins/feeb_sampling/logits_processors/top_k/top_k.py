"""Top-k: keeps the k most likely tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from feebcore.generate.decoding import LogitsProcessor
from feebcore.protocols import BuildContext

if TYPE_CHECKING:
    from feeb_sampling.logits_processors.top_k import TopKConfig


def top_k(config: TopKConfig, context: BuildContext | None = None) -> LogitsProcessor:
    """Exactly k tokens stay; among ties at the boundary, those that torch.topk returns."""

    def truncate(logits: Tensor) -> Tensor:
        if config.k >= logits.shape[-1]:
            return logits
        values, tokens = logits.topk(config.k, dim=-1)
        return torch.full_like(logits, -torch.inf).scatter(-1, tokens, values)

    return truncate
