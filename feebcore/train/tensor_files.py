"""Named tensors in safetensors files, whole or in pieces: each rank writes what it holds, anyone reads any block.

A file is written in one pass that hashes on the way, without a copy in memory. A piece is a block of a tensor at an
offset; which pieces make a tensor is said in an index that the caller keeps (JSON), so that a run of any number of ranks
can read what a run of another number wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from feebcore.errors import ArtifactError
from feebcore.train.dtensor import ShardSpec

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
    dtype that safetensors does not support."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that each lies aligned
    header: dict[str, Any] = {}
    position = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in DTYPES:
            raise ArtifactError(f"{name} cannot be saved: safetensors does not support {tensor.dtype}")
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


class TensorFiles:
    """One named group of tensors, opened. files: of all ranks that wrote. index: `{name: {"shape": […], "offsets": {file
    name: […]}}}` of the tensors that are in pieces; others are whole, in one file."""

    def __init__(self, files: Sequence[Path], index: Mapping[str, Any]) -> None:
        self._index = index
        self._pieces: dict[str, list[tuple[Any, ShardSpec]]] = {}
        for path in files:
            try:
                handle = safe_open(path, "pt")
                for name in handle.keys():  # noqa: SIM118 (no mapping)
                    shape = tuple(handle.get_slice(name).get_shape())
                    entry = index.get(name)
                    spec = ShardSpec(tuple(entry["shape"]), tuple(entry["offsets"][path.name]), shape) if entry else ShardSpec.full(shape)
                    self._pieces.setdefault(name, []).append((handle, spec))
            except (SafetensorError, KeyError, TypeError) as error:
                raise ArtifactError(f"{path.name} is not a file of this checkpoint: {error}") from None

    def names(self) -> set[str]:
        return set(self._pieces)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor."""
        return self._pieces[name][0][1].global_shape

    def is_local(self, name: str) -> bool:
        """Whether each rank held it as a plain tensor of its slice."""
        return bool(self._index.get(name, {}).get("local"))

    def read(self, name: str, spec: ShardSpec | None = None) -> Tensor:
        """A tensor of its own with what `spec` covers (default: everything). Raises ArtifactError when a piece of it is missing."""
        pieces = self._pieces[name]
        spec = spec or ShardSpec.full(self.shape(name))
        if len(pieces) == 1 and pieces[0][1] == spec:
            return pieces[0][0].get_tensor(name).clone()  # not a window on the file, which may go
        result, filled = None, 0
        for handle, piece in pieces:
            both = spec.overlap(piece) if spec.shape else ((), ())
            if both is None and result is not None:
                continue
            content = handle.get_slice(name)[both[1] if both else tuple(slice(0, 0) for _ in spec.shape)] if spec.shape else handle.get_tensor(name)
            if result is None:
                result = torch.empty(spec.shape, dtype=content.dtype)
            if both:
                result[both[0]] = content
                filled += content.numel()
        assert result is not None
        if filled != result.numel():
            raise ArtifactError(f"{name}: {result.numel() - filled} of {result.numel()} values are in no file")
        return result


def _bytes(tensor: Tensor) -> Any:
    """A buffer over the tensor's memory."""
    return memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
