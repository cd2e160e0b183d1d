"""Two attentions in a pattern over layers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

import feebcore as feeb
from feebcore import Part, PartKey, default_part


class InterleavedConfig(feeb.PartConfig):
    """A recipe that changes an option of `a` or `b` without naming the part means the default part."""

    inert = ("attention_dropout", "context.window")  # what of them its parts use, they say

    pattern: str = Field("AAAB", pattern="^[AB]+$", description="one letter per layer, repeated")
    a: Annotated[Part, PartKey("attentions"), Field(description="attention of layers with letter A")] = default_part("gated_delta")
    b: Annotated[Part, PartKey("attentions"), Field(description="attention of layers with letter B")] = default_part("mha")


PART = feeb.AttentionSpec(
    "interleaved",
    InterleavedConfig,
    build=f"{__name__}.interleaved:build_interleaved",
    summary="Hybrid layers: two attention types alternate in a layer pattern, e.g. three linear-attention layers per full-attention layer.",
    reference="arXiv:2403.19887",
    since="1.1",
    breaks=("attention_weights_sum_to_one",),
    equation="y = a(x) in layers where the pattern, repeated, has an A, else b(x)",
)
