"""Files of a dataset repository at one commit, through the Hub's HTTP interface.

The list of files comes first, with sizes and hashes (LFS SHA-256, else the git blob's SHA-1), and is kept as
`files.json`: a later attempt downloads exactly the same commit, even where the recipe names a branch.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from feebcore.data.downloader import Downloader, Item
from feebcore.data.text_files import TextReader
from feebcore.errors import DataError
from feebcore.files import read_json, write_json
from feebcore.protocols import BuildContext, Document, ProgressFn, Source

if TYPE_CHECKING:
    from feeb_data.sources.huggingface import HuggingfaceConfig

HUB = "https://huggingface.co"
LISTING = "files.json"


class HuggingfaceSource(Source):
    """key: path in the repository, and the row."""

    def __init__(self, config: HuggingfaceConfig, context: BuildContext | None = None) -> None:
        self._config = config
        self._endpoint = (config.endpoint or os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
        self._commit = ""
        self.name = config.source_name or "huggingface"

    def fetch(self, folder: Path, progress: ProgressFn) -> None:
        token = os.environ.get("HF_TOKEN", "").strip() if self._endpoint in self._trusted() else ""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with Downloader(self._config.retries, self._config.timeout, headers) as downloader:
            listing = self._listing(folder, downloader)
            items = [Item(self._address(listing["commit"], f["path"]), f"files/{f['path']}", f["size"], f["sha256"], f["git_sha1"]) for f in listing["files"]]
            downloader.fetch(items, folder, progress)

    @staticmethod
    def _trusted() -> set[str]:
        """Where the token goes: the Hub, and what the environment names. A recipe may name any host, and be a stranger's."""
        return {HUB, os.environ.get("HF_ENDPOINT", "").rstrip("/") or HUB}

    def documents(self, folder: Path) -> Iterator[Document]:
        config = self._config
        listing = read_json(folder / LISTING)
        self._commit = listing["commit"]
        reader = TextReader(self.name, config.text_column, config.separator, self.skipped)
        for file in listing["files"]:
            yield from reader.read(folder / "files" / file["path"], file["path"])

    def provenance(self) -> dict[str, Any]:
        return {"repo": self._config.repo, "commit": self._commit}

    def _listing(self, folder: Path, downloader: Downloader) -> dict[str, Any]:
        """Commit and files that the patterns choose, from the first attempt on unchanged."""
        path = folder / LISTING
        if path.exists():
            return read_json(path)
        config = self._config
        revision = quote(config.revision, safe="")
        answer = downloader.get_json(f"{self._endpoint}/api/datasets/{config.repo}/revision/{revision}?blobs=true")
        commit, siblings = (answer.get("sha") or "", answer.get("siblings") or []) if isinstance(answer, dict) else ("", [])
        if (
            not isinstance(commit, str)
            or not isinstance(siblings, list)
            or not all(isinstance(s, dict) and isinstance(s.get("rfilename"), str) for s in siblings)
        ):
            raise DataError(f"huggingface: {self._endpoint} did not answer with the files of {config.repo}; check endpoint and HF_ENDPOINT")
        if not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise DataError(f"huggingface: {self._endpoint} named no commit for {config.repo} at {config.revision!r}")
        if re.fullmatch(r"[0-9a-f]{40}", config.revision) and commit != config.revision:
            raise DataError(f"huggingface: asked for commit {config.revision} of {config.repo}, the Hub answered {commit}")
        chosen = sorted(
            (s for s in siblings if any(p == s["rfilename"] or fnmatch.fnmatchcase(s["rfilename"], p) for p in config.files)), key=lambda s: s["rfilename"]
        )
        if not chosen:
            names = ", ".join(sorted(s["rfilename"] for s in siblings)[:12]) or "none"
            raise DataError(f"huggingface: no file of {config.repo} matches {config.files}; it has: {names}")
        listing = {"repo": config.repo, "commit": commit, "files": [_described(s) for s in chosen]}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, listing)
        return listing

    def _address(self, commit: str, path: str) -> str:
        return f"{self._endpoint}/datasets/{self._config.repo}/resolve/{commit}/{quote(path)}"


def _described(sibling: dict[str, Any]) -> dict[str, Any]:
    lfs = sibling.get("lfs") or {}
    return {
        "path": sibling["rfilename"],
        "size": lfs.get("size", sibling.get("size")),
        "sha256": lfs.get("sha256", ""),
        "git_sha1": "" if lfs else sibling.get("blobId", ""),
    }
