"""Options of the sources that read text, JSON, CSV and Parquet files."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class TextOptions(feeb.PartConfig):
    """How files become documents. .jsonl, .json, .csv and .parquet: one document per row; other files: one per file, or per separator.
    Compressed files (.gz, .bz2, .xz, .zst) are read as what is inside."""

    source_name: str = Field("", description="name of this source in the data; default: the name of the part")
    text_column: str = Field("text", description="column or key that holds the text of JSON, CSV and Parquet rows")
    separator: str = Field("", description="separator of documents in a plain text file, e.g. '<|endoftext|>'; empty: one document per file")
