"""Packing `concat`: one stream of tokens, cut into sequences."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class ConcatConfig(feeb.PartConfig):
    """How sequences treat document boundaries."""

    document_mask: bool = Field(False, description="attention stays within a document, and no target lies across a document boundary")


PART = feeb.PackingSpec(
    "concat",
    ConcatConfig,
    build=f"{__name__}.concat:ConcatPacking",
    summary="Concatenate and chunk: one token stream cut into sequences of seq_len; no tokens are dropped.",
)
