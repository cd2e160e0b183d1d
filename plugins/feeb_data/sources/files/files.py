"""Local text, JSONL and Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feeb_data.sources.files.paths import all_files, expand
from feebcore.data.text_files import TextReader
from feebcore.errors import DataError
from feebcore.protocols import BuildContext, Document, ProgressFn, Source

if TYPE_CHECKING:
    from feeb_data.sources.files import FilesConfig


class FilesSource(Source):
    """Files in the order of their keys. key: the path below the folder that the `paths` entry names."""

    def __init__(self, config: FilesConfig, context: BuildContext | None = None) -> None:
        self._config = config
        self.name = config.source_name or "files"

    def check(self) -> list[str]:
        return [f"paths: nothing at {path}; paths are relative to the recipe" for path in self._config.paths if not expand(path)]

    def fetch(self, folder: Path, progress: ProgressFn) -> None:
        """Nothing to fetch. Raises DataError for paths that no longer exist."""
        if problems := self.check():
            raise DataError("; ".join(problems))

    def documents(self, folder: Path) -> Iterator[Document]:
        config = self._config
        reader = TextReader(self.name, config.text_column, config.separator, self.skipped)
        for key, path in all_files(config.paths):
            yield from reader.read(path, key)

    def provenance(self) -> dict[str, Any]:
        return {"paths": self._config.paths, "content": self._config.content}
