"""Packing `bos_aligned`: every sequence begins with a document."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class BosAlignedConfig(feeb.PartConfig):
    """How documents are chosen. No target lies across a boundary in any case."""

    document_mask: bool = Field(False, description="attention stays within a document")
    buffer: int = Field(1000, ge=1, description="documents to choose from; a larger buffer crops less")


PART = feeb.PackingSpec(
    "bos_aligned",
    BosAlignedConfig,
    build=f"{__name__}.bos_aligned:bos_aligned",
    summary="Every sequence begins with a document and is full; the rest of cut documents is dropped.",
    reference="https://github.com/karpathy/nanochat",
    since="1.1",
)
