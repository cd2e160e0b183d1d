"""Filter `length`: bounds on the size of documents."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class LengthConfig(feeb.PartConfig):
    """Bounds on the size of a document, all inclusive."""

    min_bytes: int = Field(1, ge=0, description="minimum UTF-8 bytes")
    max_bytes: int | None = Field(None, ge=1, description="most UTF-8 bytes; null: no bound")
    min_chars: int = Field(0, ge=0, description="minimum characters")
    max_chars: int | None = Field(None, ge=1, description="most characters; null: no bound")


PART = feeb.FilterSpec("length", LengthConfig, build=f"{__name__}.length:length", summary="Keeps documents within bounds of bytes or characters.")
