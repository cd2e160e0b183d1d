"""Arrays that are made once from a token store (a packing, a difficulty of each sequence) and saved next to it.

`<folder of tokens.zarr>/index/<name>-<digest>/` holds one .npy file an array and `index.json` with what they were made
from and their SHA-256. A folder appears whole or not at all, so ranks may make it at the same time. An index that is
altered is made anew. A store that cannot be written next to, or that has an address, is indexed again by each process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feebcore.data.store import is_address
from feebcore.files import digest_of, read_json, sha256_file, sync_folder, write_json

if TYPE_CHECKING:
    from feebcore.data.store import TokenStore

Arrays = dict[str, np.ndarray]


def saved_index(store: TokenStore, name: str, key: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
    """`make()`, or what it returned before for the same tokens and `key` (JSON values: options, seq_len, version of the method)."""
    if is_address(store.path):
        return make()
    made_from = {"tokens": store.tokens_sha256, "split": store.split, "documents": store.num_documents, **key}
    folder = Path(store.path).parent / "index" / f"{name}-{digest_of(made_from)[:16]}"
    if (saved := _load(folder)) is not None:
        return saved
    arrays = make()
    with contextlib.suppress(OSError):  # read-only or full: the index is only made again
        _save(folder, made_from, arrays)
    return arrays


def _load(folder: Path) -> Arrays | None:
    try:
        rows = read_json(folder / "index.json")["arrays"]
        if any(sha256_file(folder / f"{name}.npy") != row for name, row in rows.items()):
            return None
        return {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _save(folder: Path, made_from: Mapping[str, Any], arrays: Arrays) -> None:
    folder.parent.mkdir(exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name, array in arrays.items():
            with open(work / f"{name}.npy", "wb") as stream:
                np.save(stream, array, allow_pickle=False)
                stream.flush()
                os.fsync(stream.fileno())
        write_json(work / "index.json", {"made_from": dict(made_from), "arrays": {name: sha256_file(work / f"{name}.npy") for name in arrays}})
        work.chmod(0o755)
        if _load(folder) is None:  # else another process was faster
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(work, folder)
            sync_folder(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
