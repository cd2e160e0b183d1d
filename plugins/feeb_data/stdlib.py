"""Source `stdlib`: the standard library's own source, read in place and never copied."""

from __future__ import annotations

import io
import os
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feebcore.protocols import Document, ProgressFn

if TYPE_CHECKING:
    from feeb_data import StdlibConfig

LEFT_OUT = {"site-packages", "dist-packages", "pydoc_data", "__pycache__"}


class StdlibSource:
    """Every .py file under the stdlib path but LEFT_OUT folders, tests included; key: the path below it.

    A file is decoded as Python would decode it (PEP 263 declaration or byte order mark, else UTF-8); what Python cannot
    decode, a handful of its own test files, is left out and counted.
    """

    def __init__(self, config: StdlibConfig, root: Path | None = None) -> None:
        self.root = root or Path(sysconfig.get_paths()["stdlib"])
        self.skipped: Counter[str] = Counter()
        self._version = config.version

    def fetch(self, folder: Path, progress: ProgressFn) -> None:
        """Nothing to fetch."""

    def documents(self, folder: Path) -> Iterator[Document]:
        for path in self._files():
            text = decode_python(path.read_bytes())
            if text is None:
                self.skipped["not decodable as Python source"] += 1
                continue
            yield Document(text, "stdlib", path.relative_to(self.root).as_posix())

    def provenance(self) -> dict[str, Any]:
        return {"python": self._version, "path": str(self.root)}

    def _files(self) -> list[Path]:
        found = []
        for parent, folders, names in os.walk(self.root):
            folders[:] = [f for f in folders if f not in LEFT_OUT]
            found += [Path(parent, name) for name in names if name.endswith(".py")]
        return sorted((p for p in found if p.is_file()), key=lambda p: p.relative_to(self.root).as_posix())


def decode_python(data: bytes) -> str | None:
    """The text of a Python source file, None when its declared (or default) encoding does not fit."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return data.decode(encoding)
    except (SyntaxError, UnicodeDecodeError, LookupError):
        return None


def build(config: StdlibConfig) -> StdlibSource:
    return StdlibSource(config)
