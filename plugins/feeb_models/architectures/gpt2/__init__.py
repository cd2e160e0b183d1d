"""GPT-2."""

from __future__ import annotations

import feebcore as feeb
from feeb_models.architectures.presets import PresetConfig
from feeb_models.architectures.transformer import BUILD
from feebcore import default_part
from feebcore.model.config import Attention, Feedforward, LMHead, Norm, Position


class Gpt2Config(PresetConfig):
    """Learned positions, layer norms and biases everywhere, gelu of four times the width, tied LM head. GPT-2's dropout
    of 0.1 is left off; `dropout` and `attention_dropout` set it."""

    attention: Attention = default_part("mha", bias=True)
    feedforward: Feedforward = default_part("gelu", bias=True)
    norm: Norm = default_part("layernorm")
    position: Position = default_part("learned")
    lm_head: LMHead = default_part("tied")


PART = feeb.ArchitectureSpec(
    "gpt2",
    Gpt2Config,
    build=BUILD,
    summary="GPT-2: learned positions, layer norms, biases, gelu, tied LM head.",
    reference="https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf",
    since="1.1",
)
