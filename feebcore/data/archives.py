"""Unpacks zip and tar archives without letting them write anywhere else.

Only plain files come out. Absolute paths, `..`, links, devices and, in tar files, anything Python's data filter refuses
are errors; the total size is bounded, so that a small bomb does not fill the disk.
"""

from __future__ import annotations

import errno
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from feebcore.data.downloader import MAX_RATIO, safe_join
from feebcore.data.text_files import decompressed, head_of, is_archive_head
from feebcore.errors import DataError
from feebcore.files import explain

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MAX_BYTES = 1 << 40


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or tar archive, by its name or its first bytes; addresses often have no suffix."""
    if path.name.lower().endswith(SUFFIXES):
        return True
    with decompressed(path) as stream:
        return is_archive_head(head_of(stream))


def extract(archive: Path, folder: Path) -> Path:
    """Unpack into `folder`, which appears whole or not at all. Returns it. Raises DataError for unsafe or damaged archives."""
    if folder.exists():
        return folder
    work = folder.with_name(folder.name + ".unpacking")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    allowed = min(MAX_BYTES, max(1 << 20, archive.stat().st_size * MAX_RATIO))
    try:
        for name, stream in _zip_members(archive) if _is_zip(archive) else _tar_members(archive):
            target = safe_join(work, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            with stream, open(target, "xb") as out:
                while block := stream.read(1 << 20):
                    allowed -= len(block)
                    if allowed < 0:
                        raise DataError(f"{archive.name} unpacks to more than {MAX_RATIO} times its size; unpack it yourself if that is right")
                    out.write(block)
    except OSError as error:
        if error.errno not in (None, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG):  # of this machine, not of the archive
            raise explain(error, work) from error
        raise DataError(f"{archive.name} cannot be unpacked ({error.strerror or error}); get it again, or unpack it yourself and use source files") from error
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{archive.name} cannot be unpacked ({error}); get it again, or unpack it yourself and use source files") from error
    os.replace(work, folder)
    return folder


def _is_zip(archive: Path) -> bool:
    with open(archive, "rb") as stream:
        return stream.read(2) == b"PK"


def _zip_members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.is_dir():
                continue
            if kind not in (0, stat.S_IFREG):
                raise DataError(f"{archive.name} holds {info.filename!r}, which is a link or device; this source is refused")
            yield info.filename, opened.open(info)


def _tar_members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with decompressed(archive) as plain, tarfile.open(fileobj=plain, mode="r|") as opened:
        for member in opened:
            if member.isdir():
                continue
            stream = opened.extractfile(member) if member.isreg() else None
            if stream is None:
                raise DataError(f"{archive.name} holds {member.name!r}, which is a link or device; this source is refused")
            yield member.name, stream
