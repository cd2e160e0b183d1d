"""The transformer sized by one number."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb
from feeb_models.architectures.presets import PresetConfig
from feeb_models.architectures.transformer import BUILD


class DepthScaledConfig(PresetConfig):
    """The transformer of the default recipe, sized by `depth` alone."""

    depth: int | None = Field(4, ge=1, description=PresetConfig.model_fields["depth"].description)


PART = feeb.ArchitectureSpec(
    "depth_scaled",
    DepthScaledConfig,
    build=BUILD,
    summary="Transformer sized by one number: layers, width and heads follow from depth.",
    reference="https://github.com/karpathy/nanochat",
    since="1.1",
)
