"""Top-p (nucleus): keeps the most likely tokens whose probabilities add up to p."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from feebcore.generate.decoding import LogitsProcessor
from feebcore.protocols import BuildContext

if TYPE_CHECKING:
    from feeb_sampling.logits_processors.top_p import TopPConfig


def top_p(config: TopPConfig, context: BuildContext | None = None) -> LogitsProcessor:
    """A token stays when the tokens more likely than it have a total probability below p; so the first always stays."""

    def truncate(logits: Tensor) -> Tensor:
        if config.p >= 1:
            return logits
        ordered, tokens = logits.sort(dim=-1, descending=True, stable=True)
        probs = ordered.softmax(-1, dtype=torch.float64)
        before = probs.cumsum(-1) - probs
        before[..., 0] = 0.0
        return torch.full_like(logits, -torch.inf).scatter(-1, tokens, ordered.masked_fill(before >= config.p, -torch.inf))

    return truncate
