"""LM head of nGPT (arXiv:2410.01131, section 2.1): logits_v = s_v cos(h, E_v), s_v learned and 1 at first."""

from __future__ import annotations

from torch import Tensor

from feeb_models.normalized_linear import LearnedScale, NormalizedLinear, l2_normalize
from feebcore.config import NoOptions
from feebcore.model.parts import LMHeadPart
from feebcore.protocols import BuildContext


class NgptHead(NormalizedLinear, LMHeadPart):
    def __init__(self, config: NoOptions, context: BuildContext) -> None:
        super().__init__(context.d_model, context.vocab_size, bias=False)
        self.gain = LearnedScale(context.vocab_size, 1.0, context.d_model**-0.5)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.gain() * super().forward(l2_normalize(hidden))
