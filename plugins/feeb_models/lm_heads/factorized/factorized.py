"""LM head through a narrow space: logits = E W h, or logit_softcap tanh(E W h / logit_softcap); W [R,C], E [V,R]."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from feeb_models.embeddings.factorized.factorized import FactorizedEmbedding
from feeb_models.lm_heads.factorized import FactorizedHeadConfig
from feeb_models.lm_heads.linear.linear import capped
from feebcore.model.parts import LMHeadPart
from feebcore.protocols import BuildContext


class FactorizedHead(LMHeadPart):
    """With `tied`, E is the table of the model's embedding."""

    def __init__(self, config: FactorizedHeadConfig, context: BuildContext) -> None:
        super().__init__()
        embedding, self.tied, self.logit_softcap = context.embedding, config.tied, config.logit_softcap
        if config.tied and not isinstance(embedding, FactorizedEmbedding):
            raise ValueError(
                f"lm_head factorized with tied shares the table of embedding factorized, not of {type(embedding).__name__}; choose that, or tied: false"
            )
        self.down = nn.Linear(context.d_model, embedding.table.embedding_dim if config.tied else config.rank, bias=False)
        if config.tied:
            self.table = embedding.table.weight
        else:
            self.out = nn.Linear(config.rank, context.vocab_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        narrow = self.down(hidden)
        return capped(F.linear(narrow, self.table) if self.tied else self.out(narrow), self.logit_softcap)

    def extra_flops(self, length: int) -> tuple[float, float]:
        flops = 2.0 * length * self.table.numel() if self.tied else 0.0
        return flops, flops
