"""Paths, folders and globs to files, and a digest of what they hold."""

from __future__ import annotations

import functools
import glob
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from feebcore.data.text_files import TEXT_SUFFIXES

HASHED_WHOLE = 256 << 20


def expand(path: str) -> list[tuple[str, Path]]:
    """(key, file) of one entry: a file, every text file below a folder, or what a glob finds, sorted by key."""
    place = Path(path)
    if place.is_file():
        return [(place.name, place)]
    if place.is_dir():
        return [(p.relative_to(place).as_posix(), p) for p in sorted(place.rglob("*")) if p.is_file() and p.name.endswith(TEXT_SUFFIXES)]
    plain = [part for part in place.parts if not glob.has_magic(part)]
    root = Path(*place.parts[: next((i for i, part in enumerate(place.parts) if glob.has_magic(part)), len(plain))])
    return [(Path(p).relative_to(root).as_posix(), Path(p)) for p in sorted(glob.glob(path, recursive=True)) if os.path.isfile(p)]


def all_files(paths: Sequence[str]) -> list[tuple[str, Path]]:
    """(key, file) of all entries, each file once, sorted by key; keys that two files share get a number."""
    seen: dict[Path, str] = {}
    for path in paths:
        for key, file in expand(path):
            seen.setdefault(file, key)
    counts: Counter[str] = Counter()
    numbered = []
    for file, key in sorted(seen.items(), key=lambda item: (item[1], str(item[0]))):
        counts[key] += 1
        numbered.append((key if counts[key] == 1 else f"{key}#{counts[key]}", file))
    return sorted(numbered)


def digest_files(paths: Sequence[str]) -> str:
    """SHA-256 over keys and contents of all files; empty when there are none. A file over 256 MiB counts by its size,
    its time of modification and its first and last MiB, so that planning stays quick."""
    files = all_files(paths)
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
