"""LM heads of one matrix: logits = logit_softcap tanh(W h / logit_softcap), or W h."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from feeb_models.lm_heads.options import HeadConfig
from feebcore.model.parts import LMHeadPart
from feebcore.protocols import BuildContext


class LinearHead(nn.Linear, LMHeadPart):
    def __init__(self, config: HeadConfig, context: BuildContext) -> None:
        super().__init__(context.d_model, context.vocab_size, bias=False)
        self.logit_softcap = config.logit_softcap

    def forward(self, hidden: Tensor) -> Tensor:
        return capped(super().forward(hidden), self.logit_softcap)

    @property
    def plain_weight(self) -> Tensor | None:
        return None if self.logit_softcap else self.weight


class TiedHead(LMHeadPart):
    """Shares the embedding's parameter: one tensor, seen under both names."""

    def __init__(self, config: HeadConfig, context: BuildContext) -> None:
        super().__init__()
        if not isinstance(context.embedding, nn.Embedding):
            raise ValueError(f"lm_head tied needs an embedding that is one table, not {type(context.embedding).__name__}; choose lm_head linear")
        self.weight, self.logit_softcap = context.embedding.weight, config.logit_softcap

    def forward(self, hidden: Tensor) -> Tensor:
        return capped(F.linear(hidden, self.weight), self.logit_softcap)

    @property
    def plain_weight(self) -> Tensor | None:
        return None if self.logit_softcap else self.weight

    def extra_flops(self, length: int) -> tuple[float, float]:
        flops = 2.0 * length * self.weight.numel()
        return flops, flops


def capped(logits: Tensor, logit_softcap: float) -> Tensor:
    return logit_softcap * torch.tanh(logits / logit_softcap) if logit_softcap else logits
