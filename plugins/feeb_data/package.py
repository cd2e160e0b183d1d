"""Source `package`: text files inside an installed Python package."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feeb_data.stdlib import decode_python
from feebcore.data.text_files import TextReader
from feebcore.errors import DataError
from feebcore.protocols import Document, ProgressFn

if TYPE_CHECKING:
    from feeb_data import PackageConfig


class PackageSource:
    """key: path inside the package's folder. Python files are decoded as Python would."""

    def __init__(self, config: PackageConfig) -> None:
        self._config = config
        self.skipped: Counter[str] = Counter()

    def check(self) -> list[str]:
        """What is wrong with the options, found before anything runs."""
        if self._files():
            return []
        return [f"files: no file of package {self._config.package!r} matches {self._config.files}"]

    def fetch(self, folder: Path, progress: ProgressFn) -> None:
        """Nothing to fetch."""

    def documents(self, folder: Path) -> Iterator[Document]:
        config = self._config
        source_name = config.source_name or "package"
        reader = TextReader(source_name, config.text_column, config.separator, self.skipped)
        root = package_folder(config.package)
        for path in self._files():
            key = f"{config.package}/{path.relative_to(root).as_posix()}"
            if path.suffix != ".py":
                yield from reader.read(path, key)
            elif (text := decode_python(path.read_bytes())) is not None:
                yield Document(text, source_name, key)
            else:
                self.skipped["not decodable as Python source"] += 1

    def provenance(self) -> dict[str, Any]:
        return {"package": self._config.package, "version": self._config.version}

    def _files(self) -> list[Path]:
        root = package_folder(self._config.package)
        return sorted({p for pattern in self._config.files for p in root.glob(pattern) if p.is_file() and "__pycache__" not in p.parts})


def package_folder(name: str) -> Path:
    """The folder of an installed package, without importing it. Raises DataError when there is none."""
    try:
        spec = importlib.util.find_spec(name) if "." not in name else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"no package {name!r} is installed here; `pip install` it, or name a top-level package that is a folder")
    return Path(next(iter(spec.submodule_search_locations)))


def installed_version(name: str) -> str:
    """Version of the distribution that provides a package, or Python's. Raises ValueError when it is not installed."""
    import platform
    import sys

    try:
        package_folder(name)
    except DataError as error:
        raise ValueError(str(error)) from None
    if name in sys.stdlib_module_names:
        return f"python-{platform.python_version()}"
    distributions = importlib.metadata.packages_distributions().get(name, [])
    return importlib.metadata.version(distributions[0]) if distributions else "unknown"


def build(config: PackageConfig) -> PackageSource:
    return PackageSource(config)
