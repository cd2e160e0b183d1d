"""A looped transformer."""

from __future__ import annotations

import feebcore as feeb
from feeb_models.architectures.presets import PresetConfig
from feeb_models.architectures.transformer import BUILD
from feebcore import default_part
from feebcore.model.config import Block, Stack


class LoopedConfig(PresetConfig):
    """One block, run num_layers times; the embedded tokens are added again before each pass, and sandwich norms bound the
    stream."""

    block: Block = default_part("sandwich")
    stack: Stack = default_part("looped", inject=True)


PART = feeb.ArchitectureSpec(
    "looped",
    LoopedConfig,
    build=BUILD,
    summary="Looped transformer: one block run num_layers times, the embedding added before each pass.",
    reference="arXiv:1807.03819",
    since="1.1",
)
