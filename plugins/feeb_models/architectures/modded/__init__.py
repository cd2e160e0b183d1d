"""modded-nanogpt."""

from __future__ import annotations

import feebcore as feeb
from feeb_models.architectures.presets import PresetConfig
from feeb_models.architectures.transformer import BUILD
from feebcore import default_part
from feebcore.model.config import Attention, Block, Embedding, Feedforward, Initialization, LMHead, Norm, Position, Stack


class ModdedConfig(PresetConfig):
    """What the GPT-2 speedrun settled on: relu^2, normalized queries and keys, half of each head rotated, value residual and value
    embeddings, learned weights of stream and embedding, skips from the first half to the second, capped logits, norms without
    gain, residual projections and LM head initially zero. Its optimizer is Muon: `optimizer: muon`."""

    attention: Attention = default_part("mha", qk_norm=True, value_residual="learned", value_embeddings=True)
    feedforward: Feedforward = default_part("relu_squared")
    norm: Norm = default_part("rmsnorm", learnable=False)
    position: Position = default_part("rope", partial_rotary_factor=0.5)
    block: Block = default_part("residual_lambdas")
    stack: Stack = default_part("unet")
    embedding: Embedding = default_part("normed")
    lm_head: LMHead = default_part("linear", logit_softcap=15.0)
    initialization: Initialization = default_part("normal", zero_residual=True, zero_lm_head=True)


PART = feeb.ArchitectureSpec(
    "modded",
    ModdedConfig,
    build=BUILD,
    summary="modded-nanogpt, the GPT-2 speedrun: relu^2, value residual and embeddings, lambdas, skips, capped logits.",
    reference="https://github.com/KellerJordan/modded-nanogpt",
    since="1.1",
)
