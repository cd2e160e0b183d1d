"""Filter `dedup_minhash`: removes near duplicates."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class DedupMinhashConfig(feeb.PartConfig):
    """What counts as nearly the same text: Jaccard similarity of the sets of word n-grams, case and punctuation aside."""

    threshold: float = Field(0.7, gt=0, le=1, description="estimated similarity from which two documents are near duplicates")
    ngram: int = Field(5, ge=1, description="words of a shingle")
    bands: int = Field(14, ge=1, description="with rows: pairs that agree in all rows of some band are compared; similar at s with chance 1-(1-s^rows)^bands")
    rows: int = Field(8, ge=1, description="hashes of a band")
    seed: int = Field(0, ge=0, description="random seed of the hash functions")


PART = feeb.FilterSpec(
    "dedup_minhash",
    DedupMinhashConfig,
    build=f"{__name__}.minhash:dedup_minhash",
    summary="Keeps the first of nearly equal texts.",
    reference="Broder 1997; arXiv:2107.06499",
    since="1.1",
)
