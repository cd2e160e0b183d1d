"""A digest of what files hold."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

from feebcore.data.file_listing import list_files
from feebcore.protocols import Skipped

HASHED_WHOLE = 256 << 20


def digest_files(paths: Sequence[str]) -> str:
    """SHA-256 over keys and contents of all files; empty when there are none. A file over 256 MiB counts by its size,
    its time of modification and its first and last MiB, so that planning stays quick."""
    files = list_files(paths, Skipped())
    if not files:
        return ""
    digest = hashlib.sha256()
    for key, file in files:
        status = file.stat()
        digest.update(f"{key}\0{_file_digest(file, status.st_size, status.st_mtime_ns)}\0".encode())
    return digest.hexdigest()


@functools.lru_cache(maxsize=65536)
def _file_digest(file: Path, size: int, changed: int) -> str:
    with open(file, "rb") as stream:
        if size <= HASHED_WHOLE:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        digest = hashlib.sha256(f"{size} {changed}".encode() + stream.read(1 << 20))
        stream.seek(-(1 << 20), 2)
        digest.update(stream.read())
        return digest.hexdigest()
