"""Local text, JSONL and Parquet files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feebcore.data.file_listing import describe_skipped, list_files
from feebcore.data.text_files import SUFFIXES_READ, TextReader
from feebcore.errors import DataError
from feebcore.protocols import BuildContext, Document, ProgressFn, Skipped, Source

if TYPE_CHECKING:
    from feeb_data.sources.files import FilesConfig


class FilesSource(Source):
    """Files in the order of their keys. key: the path below the folder that the `paths` entry names."""

    def __init__(self, config: FilesConfig, context: BuildContext | None = None) -> None:
        self._config = config
        self.name = config.source_name or "files"

    def check(self) -> list[str]:
        problems = []
        for path in self._config.paths:
            skipped = Skipped()
            if list_files([path], skipped):
                continue
            if os.path.exists(path) or skipped:
                left_out = describe_skipped(skipped) or ("it is empty" if os.path.isdir(path) else "it is neither file nor folder")
                problems.append(f"paths: no file at {path} can be read: {left_out}; files are read by suffix: {SUFFIXES_READ}")
            else:
                problems.append(f"paths: nothing at {path}; paths are relative to the recipe")
        return problems

    def fetch(self, folder: Path, progress: ProgressFn) -> None:
        """Nothing to fetch. Raises DataError for paths that no longer exist."""
        if problems := self.check():
            raise DataError("; ".join(problems))

    def documents(self, folder: Path) -> Iterator[Document]:
        config = self._config
        reader = TextReader(self.name, config.text_column, config.separator, self.skipped)
        for key, path in list_files(config.paths, self.skipped):
            yield from reader.read(path, key)

    def provenance(self) -> dict[str, Any]:
        return {"paths": self._config.paths, "content": self._config.content}
