"""nGPT."""

from __future__ import annotations

import feebcore as feeb
from feeb_models.architectures.presets import PresetConfig
from feeb_models.architectures.transformer import BUILD
from feebcore import default_part
from feebcore.model.config import Attention, Block, Feedforward, Initialization, LMHead, Norm


class NgptConfig(PresetConfig):
    """nGPT: stream, queries, keys and the rows of matrices have unit norm, and each block is a step on the sphere.

    Matrices are normalized in the forward pass, not after every step (see feeb_models/normalized_linear.py). The paper warms up for no
    steps and decays no weights: `schedule: {warmup: 0}` and `optimizer: {weight_decay: 0}` are the recipe's to say.
    """

    attention: Attention = default_part("ngpt")
    feedforward: Feedforward = default_part("ngpt", expansion_ratio=4.0)
    norm: Norm = default_part("rmsnorm", learnable=False)
    block: Block = default_part("ngpt")
    lm_head: LMHead = default_part("ngpt")
    initialization: Initialization = default_part("fan_in", residual_scale=False)


PART = feeb.ArchitectureSpec(
    "ngpt",
    NgptConfig,
    build=BUILD,
    summary="nGPT: normalized transformer; weights and hidden states on the unit hypersphere, learned step sizes.",
    reference="arXiv:2410.01131",
    since="1.1",
)
