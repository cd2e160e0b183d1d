"""What may be mixed into the values of a layer: the first layer's values, and an embedding of the tokens.

    V_n = a V_1 + b W_v x + E_n[token]

a = b = 1/2, constant or as initial values (value residual, arXiv:2410.17897). E_n is initialized like the embedding, and
so small compared with values at first; it costs a lookup, no FLOPs, and vocab_size x G x D parameters per layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from feeb_models.attentions.multi_head import MultiHeadConfig
from feebcore.model.context import ForwardContext
from feebcore.protocols import BuildContext

FIRST = "attention.first_values"


class ValueMixing(nn.Module):
    """The first attention of a forward pass leaves its values for the others. A block of layer 0 never mixes: run again by
    a looped stack, it has no weights for that."""

    def __init__(self, config: MultiHeadConfig, context: BuildContext, width: int) -> None:
        super().__init__()
        self.keeps_first = config.value_residual != "none"
        self.mixes = self.keeps_first and context.layer > 0
        learns = self.mixes and config.value_residual == "learned"
        self.weights = nn.Parameter(torch.full((2,), 0.5)) if learns else None
        self.table = nn.Embedding(context.vocab_size, width) if config.value_embeddings else None

    def forward(self, v_BTGD: Tensor, context: ForwardContext) -> Tensor:
        mixed_BTGD = v_BTGD
        if self.keeps_first:
            first_BTGD = context.shared.setdefault(FIRST, v_BTGD)
            if self.mixes:
                a, b = (0.5, 0.5) if self.weights is None else self.weights.to(v_BTGD.dtype).unbind()
                mixed_BTGD = a * first_BTGD + b * v_BTGD
        if self.table is not None:
            mixed_BTGD = mixed_BTGD + self.table(context.tokens_BT).view_as(v_BTGD).to(v_BTGD.dtype)
        return mixed_BTGD


def make_value_mixing(config: MultiHeadConfig, context: BuildContext, width: int) -> ValueMixing | None:
    """None where nothing is mixed in."""
    return ValueMixing(config, context, width) if config.value_residual != "none" or config.value_embeddings else None
