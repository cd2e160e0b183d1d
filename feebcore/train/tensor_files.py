"""Named tensors in safetensors files, whole or in pieces: each rank writes what it holds, anyone reads any region.

A file is written in one pass that hashes on the way, without a copy in memory. A piece is a block of a tensor at an
offset; which pieces make a tensor is said in an index that the caller keeps (JSON), so that a run of any number of ranks
can read what a run of another number wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from feebcore.errors import ArtifactError

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of number formats in a safetensors header."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write CPU tensors to a synced safetensors file; returns its {size, sha256}. Raises OSError, ArtifactError for a
    number format that such files do not know."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that each lies aligned
    header: dict[str, Any] = {}
    position = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in DTYPES:
            raise ArtifactError(f"{name} cannot be saved: a safetensors file knows no {tensor.dtype}")
        end = position + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    digest, size = hashlib.sha256(), 0
    with open(path, "wb") as stream:
        for content in (len(head).to_bytes(8, "little") + head, *(_bytes(tensors[name]) for name in order)):
            stream.write(content)
            digest.update(content)
            size += len(content)
        stream.flush()
        os.fsync(stream.fileno())
    return {"size": size, "sha256": digest.hexdigest()}


def check_file(path: Path, entry: Mapping[str, Any]) -> None:
    """Raises ArtifactError or OSError when the file is not the one that was written."""
    size = path.stat().st_size
    if size != entry["size"]:
        raise ArtifactError(f"{path.name} has {size} bytes, not {entry['size']}")
    with open(path, "rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != entry["sha256"]:
            raise ArtifactError(f"{path.name} was altered: its SHA-256 is wrong")


@dataclass(frozen=True)
class Region:
    """A block of a tensor of `whole` shape: where it begins and its extent, an entry a dimension."""

    whole: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def all_of(cls, shape: Sequence[int]) -> Region:
        return cls(tuple(shape), (0,) * len(shape), tuple(shape))

    def overlap(self, other: Region) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
        """What both have, as indices into this one and into the other; None when nothing."""
        mine, theirs = [], []
        for a, n, b, m in zip(self.offset, self.shape, other.offset, other.shape, strict=True):
            low, high = max(a, b), min(a + n, b + m)
            if low >= high:
                return None
            mine.append(slice(low - a, high - a))
            theirs.append(slice(low - b, high - b))
        return tuple(mine), tuple(theirs)


class TensorFiles:
    """One named group of tensors, opened. files: of all ranks that wrote. index: `{name: {"shape": […], "offsets": {file
    name: […]}}}` of the tensors that are in pieces; others are whole, in one file."""

    def __init__(self, files: Sequence[Path], index: Mapping[str, Any]) -> None:
        self._index = index
        self._places: dict[str, list[tuple[Any, Region]]] = {}
        for path in files:
            try:
                handle = safe_open(path, "pt")
                for name in handle.keys():  # noqa: SIM118 (no mapping)
                    shape = tuple(handle.get_slice(name).get_shape())
                    entry = index.get(name)
                    region = Region(tuple(entry["shape"]), tuple(entry["offsets"][path.name]), shape) if entry else Region.all_of(shape)
                    self._places.setdefault(name, []).append((handle, region))
            except (SafetensorError, KeyError, TypeError) as error:
                raise ArtifactError(f"{path.name} is no file of this checkpoint: {error}") from None

    def names(self) -> set[str]:
        return set(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor."""
        return self._places[name][0][1].whole

    def is_local(self, name: str) -> bool:
        """Whether each rank held it as a plain tensor of its slice."""
        return bool(self._index.get(name, {}).get("local"))

    def read(self, name: str, region: Region | None = None) -> Tensor:
        """A tensor of its own with what is in `region` (default: all). Raises ArtifactError when a piece of it is missing."""
        places = self._places[name]
        region = region or Region.all_of(self.shape(name))
        if len(places) == 1 and places[0][1] == region:
            return places[0][0].get_tensor(name).clone()  # not a window on the file, which may go
        found, filled = None, 0
        for handle, piece in places:
            both = region.overlap(piece) if region.shape else ((), ())
            if both is None and found is not None:
                continue
            content = handle.get_slice(name)[both[1] if both else tuple(slice(0, 0) for _ in region.shape)] if region.shape else handle.get_tensor(name)
            if found is None:
                found = torch.empty(region.shape, dtype=content.dtype)
            if both:
                found[both[0]] = content
                filled += content.numel()
        assert found is not None
        if filled != found.numel():
            raise ArtifactError(f"{name}: {found.numel() - filled} of {found.numel()} values are in no file")
        return found


def _bytes(tensor: Tensor) -> Any:
    """A buffer over the tensor's memory."""
    return memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
