"""Benchmark `bits_per_byte`: compression of the validation split."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class BitsPerByteConfig(feeb.PartConfig):
    """What is scored, and with how much context."""

    max_documents: int | None = Field(None, ge=1, description="number of validation documents, evenly spaced; null: the whole split")
    max_tokens: int | None = Field(None, ge=1, description="validation tokens, about N in whole documents, evenly spaced over the split; null: all")
    context: int | None = Field(None, ge=1, description="tokens of a scoring window; null: the model's seq_len")
    stride: int | None = Field(None, ge=1, description="tokens between the starts of scoring windows; null: half of the context")
    batch_tokens: feeb.Execution[int] = Field(1 << 12, ge=1, description="tokens per forward pass")


PART = feeb.BenchmarkSpec(
    "bits_per_byte",
    BitsPerByteConfig,
    build=f"{__name__}.bits_per_byte:BitsPerByte",
    needs=("tokens",),
    summary="Bits per UTF-8 byte of the validation split.",
)
