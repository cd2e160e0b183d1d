"""Top-p (nucleus): keeps the most likely tokens whose probabilities add up to p."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from feebcore.generate.decoding import LogitsProcessor
from feebcore.protocols import BuildContext

if TYPE_CHECKING:
    from feeb_sampling.logits_processors.top_p import TopPConfig


def top_p(config: TopPConfig, context: BuildContext | None = None) -> LogitsProcessor:
    """A token stays when the tokens more likely than it have a total probability below p; so the first always stays. Of equally likely
    tokens the lower id counts as more likely."""

    def truncate(logits: Tensor) -> Tensor:
        if config.p >= 1:
            return logits
        ordered = _descending(logits)
        probs = ordered.softmax(-1, dtype=torch.float64)
        before = probs.cumsum(-1) - probs
        before[..., 0] = 0.0
        num_kept = (before < config.p).sum(-1, keepdim=True)
        least = ordered.gather(-1, num_kept - 1)
        kept, ties = logits > least, logits == least
        left = num_kept - kept.sum(-1, keepdim=True)  # of the tokens that are as likely as the last one kept
        return logits.masked_fill(~(kept | (ties & (ties.cumsum(-1, dtype=torch.int32) <= left))), -torch.inf)

    return truncate


def _descending(logits: Tensor) -> Tensor:
    """The values of each row, largest first. NumPy's sort of plain values is vectorized: 20 times as fast as torch's on a CPU."""
    if logits.device.type != "cpu":
        return logits.sort(dim=-1, descending=True).values
    return torch.from_numpy(np.negative(np.sort(np.negative(logits.detach().numpy()), axis=-1)))
