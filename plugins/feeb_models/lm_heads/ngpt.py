"""Head of nGPT (arXiv:2410.01131, section 2.1): logits_v = s_v cos(h, E_v), s_v learned and 1 at first."""

from __future__ import annotations

from torch import Tensor, nn

from feeb_models.sphere import LearnedScale, UnitRows, unit
from feebcore.config import NoOptions


class NgptHead(UnitRows):
    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__(d_model, vocab_size, bias=False)
        self.gain = LearnedScale(vocab_size, 1.0, d_model**-0.5)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.gain() * super().forward(unit(hidden))


def build_ngpt(config: NoOptions, vocab_size: int, d_model: int, embedding: nn.Module) -> nn.Module:
    return NgptHead(vocab_size, d_model)
