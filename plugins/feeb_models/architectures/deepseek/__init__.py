"""DeepSeek-V3."""

from __future__ import annotations

import feebcore as feeb
from feeb_models.architectures.presets import PresetConfig
from feeb_models.architectures.transformer import BUILD
from feebcore import default_part
from feebcore.model.config import Attention, Feedforward, LMHead


class DeepseekConfig(PresetConfig):
    """DeepSeek-V3: latent attention, one shared and many routed experts, sigmoid router balanced by a bias, multi-token prediction of a second token.

    The head learns its second token only with `objective: {name: multi_token, k: 2, weights: [1, 0.3]}`; with next_token its
    blocks stay as they were initialized. DeepSeek's first layers have a dense feedforward instead of experts, which is left out.
    """

    attention: Attention = default_part("mla")
    feedforward: Feedforward = default_part("moe", num_experts=8, top_k=2, num_shared=1, router="sigmoid", gate_scale=2.5)
    lm_head: LMHead = default_part("multi_token_sequential")


# the next token's loss gives no gradient to what its head predicts further
PART = feeb.ArchitectureSpec(
    "deepseek",
    DeepseekConfig,
    build=BUILD,
    summary="DeepSeek-V3: latent attention, shared and routed experts, multi-token prediction; use objective multi_token.",
    reference="arXiv:2412.19437",
    breaks=("gradient_everywhere", "compile_parity"),
    since="1.1",
)
