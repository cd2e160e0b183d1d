"""Files that are never half-written, locks that die with their process, and hashes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from feebcore.errors import ArtifactError, FeebError


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write through a temporary file, fsync and rename: a reader sees the old content or the new, never a part."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data.encode() if isinstance(data, str) else data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise explain(error, path) from error
    sync_folder(path.parent)


def escape_unencodable() -> None:
    """From here on, what the terminal or pipe of this process cannot show is printed as an escape instead of ending the process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class NoHomeError(FeebError, ValueError):
    """A path begins with `~` and there is no such home."""


def expand_user(path: str | Path) -> Path:
    """The path with a leading `~` or `~user` replaced by that home, which no shell does in recipes, `.env` files and `--key=~/x`."""
    if not str(path).startswith("~"):
        return Path(path)
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise NoHomeError(f"{path}: there is no home folder of that name; write the path in full, or ./{path} for a file of this name") from None


def explain(error: OSError, path: Path) -> OSError | ArtifactError:
    """The same error, with what to do, where the cause is the disk or its permissions."""
    if error.errno == errno.ENOSPC:
        return ArtifactError(f"the disk is full while writing {path}; free some space (`feeb artifacts gc` lists what can go) and run the same command again")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return ArtifactError(f"cannot write {path}: {error.strerror}; choose another workspace with --workspace DIR or FEEB_WORKSPACE")
    return OSError(error.errno, error.strerror, str(path))


def sync_folder(folder: Path) -> None:
    """fsync a directory, so that renames in it survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: None in their place."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """Raises ArtifactError naming the file when it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged (not JSON: {error})") from None
    except IsADirectoryError:
        raise ArtifactError(f"{path} is damaged (it is a folder)") from None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; a last line that a kill cut short is left out."""
    if not Path(path).exists():
        return []
    rows = []
    for line in Path(path).read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
    return rows


def last_rows(path: Path, size: int = 1 << 16) -> list[dict[str, Any]]:
    """The rows in the last `size` bytes of a JSONL file; empty where there is no file."""
    if not Path(path).exists():
        return []
    rows = []
    with open(path, "rb") as stream:
        end = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, end - size))
        for line in stream.read().splitlines():
            with contextlib.suppress(ValueError):  # the first may be cut, and the last
                rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def sha256_file(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


def wait_for_lock(handle: int, waiting: Callable[[], None], poll: float = 0.2) -> None:
    """Take an exclusive flock on an open file or folder, once nobody else holds it. waiting: called once where somebody does."""
    announced = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not announced:
                waiting()
            announced = True
            time.sleep(poll)


def is_locked(path: Path) -> bool:
    """Whether a process holds a lock on the file; true also where that cannot be found out. A process that has ended holds none,
    also after a reboot and on another machine of a shared disk."""
    try:
        with open(path, "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[str], None] | None = None, poll: float = 0.2) -> Iterator[None]:
    """Hold an exclusive flock on `path`; it is released by the kernel whatever happens to this process.

    waiting: called once, with a sentence, when another process holds the lock.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise explain(error, path) from error
    try:

        def say() -> None:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            if waiting:
                waiting(f"another process (pid {holder}) is building this; waiting for it")

        wait_for_lock(handle, say, poll)
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)
