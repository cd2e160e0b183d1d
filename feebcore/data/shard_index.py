"""The index at the end of a zarr v3 shard file: where each inner chunk lies.

A shard of n chunks ends in n pairs of little-endian uint64 (offset, number of bytes), all ones for a chunk that is not
stored, and a CRC-32C of those pairs. Chunks may lie in any order, with gaps. zarr specification, codec `sharding_indexed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from feebcore.errors import ArtifactError

MISSING = np.uint64(2**64 - 1)
REBUILD = "remove the artifact's folder and run the recipe again to rebuild it"


@dataclass(frozen=True)
class ShardIndex:
    """offsets, sizes: int64 [num_chunks] in bytes from the file's begin; -1 for a chunk that is not stored."""

    offsets: np.ndarray
    sizes: np.ndarray


def read_shard_index(path: Path, num_chunks: int) -> ShardIndex:
    """Read and check one file's index. Raises ArtifactError when the file is gone, truncated or its index altered."""
    import google_crc32c

    length = 16 * num_chunks + 4
    try:
        with open(path, "rb") as stream:
            file_size = stream.seek(0, 2)
            stream.seek(max(0, file_size - length))
            data = stream.read()
    except FileNotFoundError:
        raise ArtifactError(f"shard {path} is missing; {REBUILD}") from None
    if len(data) < length or google_crc32c.value(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise ArtifactError(f"shard {path} is truncated or altered (its index does not match its checksum); {REBUILD}")
    pairs = np.frombuffer(data, dtype="<u8", count=2 * num_chunks).reshape(num_chunks, 2)
    missing = pairs[:, 0] == MISSING
    spans = np.where(missing[:, None], np.uint64(0), pairs).astype(np.int64)
    if (spans.sum(axis=1) > file_size - length).any():
        raise ArtifactError(f"shard {path} is truncated ({file_size} bytes are fewer than its index says); {REBUILD}")
    return ShardIndex(np.where(missing, -1, spans[:, 0]), np.where(missing, -1, spans[:, 1]))
