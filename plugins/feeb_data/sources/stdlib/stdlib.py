"""The standard library's own source, read in place and never copied."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feeb_data.sources.python_text import NOT_DECODABLE, decode_python
from feebcore.protocols import BuildContext, Document, Source

if TYPE_CHECKING:
    from feeb_data.sources.stdlib import StdlibConfig

EXCLUDED_FOLDERS = {"site-packages", "dist-packages", "pydoc_data", "__pycache__"}


class StdlibSource(Source):
    """Every .py file below the stdlib path, tests included, except EXCLUDED_FOLDERS; key: the path below it.

    A file is decoded as Python would decode it (PEP 263 declaration or byte order mark, else UTF-8); the handful of test files
    that Python cannot decode are skipped and counted. root: another folder, for tests.
    """

    def __init__(self, config: StdlibConfig, context: BuildContext | None = None, root: Path | None = None) -> None:
        self.name = "stdlib"
        self.root = root or Path(sysconfig.get_paths()["stdlib"])
        self._version = config.version

    def documents(self, folder: Path) -> Iterator[Document]:
        for path in self._files():
            text, key = decode_python(path.read_bytes()), path.relative_to(self.root).as_posix()
            if text is None:
                self.skipped.add(NOT_DECODABLE, key)
                continue
            yield Document(text, self.name, key)

    def provenance(self) -> dict[str, Any]:
        return {"python": self._version, "path": str(self.root)}

    def _files(self) -> list[Path]:
        paths = []
        for parent, folders, names in os.walk(self.root):
            folders[:] = [f for f in folders if f not in EXCLUDED_FOLDERS]
            paths += [Path(parent, name) for name in names if name.endswith(".py")]
        return sorted((p for p in paths if p.is_file()), key=lambda p: p.relative_to(self.root).as_posix())
