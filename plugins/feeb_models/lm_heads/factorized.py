"""Vectors to scores through a reduce_streams space: logits = E W h, or logit_softcap tanh(E W h / logit_softcap); W [R,C], E [V,R]."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from feeb_models.embeddings.tables import Factorized
from feeb_models.lm_heads import FactorizedHeadConfig
from feeb_models.lm_heads.linear import capped


class FactorizedHead(nn.Module):
    """table: E itself, shared with an embedding, or None for one of its own."""

    def __init__(self, vocab_size: int, d_model: int, rank: int, logit_softcap: float, table: Tensor | None) -> None:
        super().__init__()
        self.down, self.logit_softcap = nn.Linear(d_model, rank, bias=False), logit_softcap
        self.shared = table is not None
        if table is None:
            self.out = nn.Linear(rank, vocab_size, bias=False)
        else:
            self.table = table

    def forward(self, hidden: Tensor) -> Tensor:
        reduce_streams = self.down(hidden)
        return capped(F.linear(reduce_streams, self.table) if self.shared else self.out(reduce_streams), self.logit_softcap)

    def extra_flops(self, length: int) -> tuple[float, float]:
        flops = 2.0 * length * self.table.numel() if self.shared else 0.0
        return flops, flops


def build_factorized(config: FactorizedHeadConfig, vocab_size: int, d_model: int, embedding: nn.Module) -> nn.Module:
    if not config.tied:
        return FactorizedHead(vocab_size, d_model, config.rank, config.logit_softcap, None)
    if not isinstance(embedding, Factorized):
        raise ValueError(f"head factorized with tied shares the table of embedding factorized, not of {type(embedding).__name__}; choose that, or tied: false")
    return FactorizedHead(vocab_size, d_model, embedding.table.embedding_dim, config.logit_softcap, embedding.table.weight)
