"""Files from the web, resumed and verified; archives are unpacked safely."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from feebcore.data.archives import extract, is_archive
from feebcore.data.downloader import Downloader, Item
from feebcore.data.file_listing import list_files
from feebcore.data.text_files import TextReader
from feebcore.protocols import BuildContext, Document, ProgressFn, Source

if TYPE_CHECKING:
    from feeb_data.sources.urls import UrlsConfig


class UrlsSource(Source):
    """key: number and name of the file, and inside an archive the member's path."""

    def __init__(self, config: UrlsConfig, context: BuildContext | None = None) -> None:
        self._config = config
        self.name = config.source_name or "urls"
        self._items = [Item(d.url, file_name(i, d.url), sha256=d.sha256) for i, d in enumerate(config.urls)]

    def fetch(self, folder: Path, progress: ProgressFn) -> None:
        with Downloader(self._config.retries, self._config.timeout) as downloader:
            for path in downloader.fetch(self._items, folder, progress):
                if is_archive(path):
                    extract(path, unpacked(path))

    def documents(self, folder: Path) -> Iterator[Document]:
        config = self._config
        reader = TextReader(self.name, config.text_column, config.separator, self.skipped)
        for item in self._items:
            path = folder / item.path
            if not is_archive(path):
                yield from reader.read(path, item.path)
                continue
            for key, member in list_files([str(unpacked(path))], self.skipped):
                yield from reader.read(member, f"{item.path}/{key}")

    def provenance(self) -> dict[str, Any]:
        return {"urls": [d.url for d in self._config.urls]}


def file_name(number: int, url: str) -> str:
    """A name of its own for each URL: its number and the last part of its path."""
    last = unquote(urlsplit(url).path).rpartition("/")[2]
    return f"{number:05}-" + ("".join(c if c.isalnum() or c in "._-" else "_" for c in last)[-120:] or "file")


def unpacked(archive: Path) -> Path:
    return archive.with_name(archive.name + ".unpacked")
