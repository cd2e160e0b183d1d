"""Options that importers have."""

from __future__ import annotations

from pydantic import Field

from feebcore import PartConfig


class ImportConfig(PartConfig):
    """How much context the model keeps."""

    seq_len: int | None = Field(None, ge=1, description="context length; default: that of the model")
