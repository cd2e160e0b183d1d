"""Decoding of Python source files."""

from __future__ import annotations

import io
import tokenize

NOT_DECODABLE = "not decodable as Python source"
"""Why such a file is skipped."""


def decode_python(data: bytes) -> str | None:
    """The text of a Python source file; None when its declared (or default) encoding does not fit."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return data.decode(encoding)
    except (SyntaxError, UnicodeDecodeError, LookupError):
        return None
