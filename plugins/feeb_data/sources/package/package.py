"""Text files inside an installed Python package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feeb_data.sources.package.installed import package_folder
from feeb_data.sources.python_text import NOT_DECODABLE, decode_python
from feebcore.data.text_files import TextReader
from feebcore.protocols import BuildContext, Document, Source

if TYPE_CHECKING:
    from feeb_data.sources.package import PackageConfig


class PackageSource(Source):
    """key: path inside the package's folder. Python files are decoded as Python would decode them."""

    def __init__(self, config: PackageConfig, context: BuildContext | None = None) -> None:
        self._config = config
        self.name = config.source_name or "package"

    def check(self) -> list[str]:
        if self._files():
            return []
        return [f"files: no file of package {self._config.package!r} matches {self._config.files}"]

    def documents(self, folder: Path) -> Iterator[Document]:
        config = self._config
        reader = TextReader(self.name, config.text_column, config.separator, self.skipped)
        root = package_folder(config.package)
        for path in self._files():
            key = f"{config.package}/{path.relative_to(root).as_posix()}"
            if path.suffix != ".py":
                yield from reader.read(path, key)
            elif (text := decode_python(path.read_bytes())) is not None:
                yield Document(text, self.name, key)
            else:
                self.skipped.add(NOT_DECODABLE, key)

    def provenance(self) -> dict[str, Any]:
        return {"package": self._config.package, "version": self._config.version}

    def _files(self) -> list[Path]:
        root = package_folder(self._config.package)
        return sorted({p for pattern in self._config.files for p in root.glob(pattern) if p.is_file() and "__pycache__" not in p.parts})
