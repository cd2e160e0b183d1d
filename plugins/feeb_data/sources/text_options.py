"""Options of the sources that read text, JSONL and Parquet files."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class TextOptions(feeb.PartConfig):
    """How files become documents. .jsonl and .parquet: one document per row; other files: one per file, or per separator."""

    source_name: str = Field("", description="name of this source in the data; default: the name of the part")
    text_column: str = Field("text", description="column or key that holds the text of .parquet and .jsonl rows")
    separator: str = Field("", description="separator of documents in a plain text file, e.g. '<|endoftext|>'; empty: one document per file")
