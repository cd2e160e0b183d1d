"""Min-p: removes tokens far less likely than the most likely one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from feebcore.generate.decoding import LogitsProcessor
from feebcore.protocols import BuildContext

if TYPE_CHECKING:
    from feeb_sampling.logits_processors.min_p import MinPConfig


def min_p(config: MinPConfig, context: BuildContext | None = None) -> LogitsProcessor:
    """p >= min_p * max p, in log space so that it holds at any scale."""

    def truncate(logits: Tensor) -> Tensor:
        if config.min_p == 0:
            return logits
        best = logits.amax(-1, keepdim=True)
        return logits.masked_fill((logits - best < math.log(config.min_p)) & (logits < best), -torch.inf)

    return truncate
