"""Packing `bestfit`: best-fit decreasing bin packing of documents."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class BestfitConfig(feeb.PartConfig):
    """How sequences treat document boundaries. No target lies across one in any case."""

    document_mask: bool = Field(False, description="attention stays within a document")


PART = feeb.PackingSpec(
    "bestfit",
    BestfitConfig,
    build=f"{__name__}.bestfit:bestfit",
    summary="Best-fit packing: documents are packed whole where possible; no tokens are dropped.",
    reference="arXiv:2404.10830",
    since="1.1",
)
