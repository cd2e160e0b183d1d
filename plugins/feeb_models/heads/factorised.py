"""Vectors to scores through a narrow space: logits = E W h, or softcap tanh(E W h / softcap); W [R,C], E [V,R]."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from feeb_models.embeddings.tables import Factorised
from feeb_models.heads import FactorisedHeadConfig
from feeb_models.heads.linear import capped


class FactorisedHead(nn.Module):
    """table: E itself, shared with an embedding, or None for one of its own."""

    def __init__(self, vocab_size: int, d_model: int, rank: int, softcap: float, table: Tensor | None) -> None:
        super().__init__()
        self.down, self.softcap = nn.Linear(d_model, rank, bias=False), softcap
        self.shared = table is not None
        if table is None:
            self.out = nn.Linear(rank, vocab_size, bias=False)
        else:
            self.table = table

    def forward(self, hidden: Tensor) -> Tensor:
        narrow = self.down(hidden)
        return capped(F.linear(narrow, self.table) if self.shared else self.out(narrow), self.softcap)

    def extra_flops(self, length: int) -> tuple[float, float]:
        flops = 2.0 * length * self.table.numel() if self.shared else 0.0
        return flops, flops


def build_factorised(config: FactorisedHeadConfig, vocab_size: int, d_model: int, embedding: nn.Module) -> nn.Module:
    if not config.tied:
        return FactorisedHead(vocab_size, d_model, config.rank, config.softcap, None)
    if not isinstance(embedding, Factorised):
        raise ValueError(f"head factorised with tied shares the table of embedding factorised, not of {type(embedding).__name__}; choose that, or tied: false")
    return FactorisedHead(vocab_size, d_model, embedding.table.embedding_dim, config.softcap, embedding.table.weight)
