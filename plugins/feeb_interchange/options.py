"""Options that importers have."""

from __future__ import annotations

from pydantic import Field

from feebcore import PartConfig


class ImportConfig(PartConfig):
    """How much context the model keeps."""

    seq_len: int | None = Field(None, ge=1, description="longest row of tokens; default: the model's own context length")
