"""Another attention times a constant."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

import feebcore as feeb
from feebcore import Part, PartKey, default_part


class ScaledConfig(feeb.PartConfig):
    scale: float = Field(2.0, description="factor on the attention's result before it is added to the stream")
    inner: Annotated[Part, PartKey("attentions"), Field(description="the attention that is scaled")] = default_part("mha")


PART = feeb.AttentionSpec(
    "scaled",
    ScaledConfig,
    build=f"{__name__}.scaled_attention:ScaledAttention",
    summary="Wrapper: multiplies the output of another attention by a constant.",
    since="1.1",
    equation="y = scale inner(x)",
)
