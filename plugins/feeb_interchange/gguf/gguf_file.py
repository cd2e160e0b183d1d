"""The GGUF file format: metadata, and tensors as fp32 NumPy arrays, quantized ones multiplied out.

A file is magic, version, key/value pairs, one record a tensor (name, dimensions, type, offset), then the tensors, aligned.
Quantized types store blocks of 32 values (K types: 256) with a scale each; what a block holds stands next to its function
below. Layouts: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and ggml-common.h there. Loads no torch.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from feebcore.errors import DataError

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
VERSIONS = (2, 3)
LONGEST = 1 << 32  # bytes of a string, elements of an array: more is damage
MOST_DIMENSIONS = 4
MOST_PARTS = 99_999

# names of the types that are refused, so that the error can say which one it is
OTHER_TYPES = {10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S"}
OTHER_TYPES |= {23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"}


@dataclass(frozen=True)
class TensorRecord:
    """shape: outermost dimension first, as NumPy has it (the file stores it the other way round). offset: from the file's start."""

    shape: tuple[int, ...]
    type: int
    offset: int


class GgufModel:
    """A model in one GGUF file, or in as many as its first part says: metadata of the first part, tensors of all.

    path: any part; the others lie next to it as NAME-00001-of-0000N.gguf. Raises DataError that names a part which is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        parts = [GgufFile(p) for p in _parts_of(self.path)]
        self.metadata = parts[0].metadata
        for number, part in enumerate(parts):
            if part.integer("split.no", 0) != number or part.integer("split.count", 1) not in (0, len(parts)):
                raise DataError(f"{part.path}: split.no {part.metadata.get('split.no')} of {part.metadata.get('split.count')} contradicts its name")
        self._part_of: dict[str, GgufFile] = {}
        for part in parts:
            if twice := sorted(self._part_of.keys() & part.tensors.keys()):
                raise DataError(f"{part.path}: tensor {twice[0]!r} is in {self._part_of[twice[0]].path.name} too")
            self._part_of |= dict.fromkeys(part.tensors, part)
        self.tensors = {name: part.tensors[name] for name, part in self._part_of.items()}
        total = parts[0].integer("split.tensors.count", len(self.tensors))
        if total != len(self.tensors):
            raise DataError(f"{self.path}: its {len(parts)} parts hold {len(self.tensors)} tensors, split.tensors.count says {total}; download them again")

    def read(self, name: str) -> np.ndarray:
        if name not in self._part_of:
            raise DataError(f"{self.path} has no tensor {name!r}")
        return self._part_of[name].read(name)


def _parts_of(path: Path) -> list[Path]:
    count = GgufFile(path).integer("split.count", 1)
    if count <= 1:
        return [path]
    named = re.fullmatch(rf"(.*)-(\d{{5}})-of-{count:05}(\.gguf)", path.name, re.IGNORECASE)
    if not named or count > MOST_PARTS:
        raise DataError(f"{path} is one of {count} parts (split.count); give the parts their names, as NAME-00001-of-{count:05}.gguf")
    parts = [path.with_name(f"{named[1]}-{i:05}-of-{count:05}{named[3]}") for i in range(1, count + 1)]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise DataError(f"{path} is one of {count} parts; missing next to it: {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}; download them too")
    return parts


class GgufFile:
    """One file. `metadata`: plain Python values by key. `tensors`: records by name. `read(name)`: fp32 array."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            self._bytes = np.memmap(self.path, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path} cannot be read: {error}") from None
        try:
            self._parse()
        except (struct.error, UnicodeDecodeError, OverflowError):
            raise DataError(f"{self.path} is truncated or damaged; download it again") from None
        except RecursionError:
            raise DataError(f"{self.path}: metadata of arrays in arrays, too deep to be read") from None

    def integer(self, key: str, default: int) -> int:
        """A whole number of the metadata. Raises DataError for anything else."""
        value = self.metadata.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise DataError(f"{self.path}: {key} is {value!r}, not a whole number")
        return value

    def read(self, name: str) -> np.ndarray:
        """The tensor, fp32. Raises DataError for a type that is not supported, by name."""
        if name not in self.tensors:
            raise DataError(f"{self.path} has no tensor {name!r}")
        record = self.tensors[name]
        if record.type not in TYPES:
            what = OTHER_TYPES.get(record.type, f"number {record.type}")
            raise DataError(f"{self.path}: {name} is stored as {what}, which is not supported; use a file of {', '.join(t.name for t in TYPES.values())}")
        kind, count = TYPES[record.type], prod(record.shape)
        if count % kind.values:
            raise DataError(f"{self.path}: {name} has {count} values, no multiple of a block of {kind.values}")
        raw = self._bytes[record.offset : record.offset + count // kind.values * kind.size]
        if raw.size != count // kind.values * kind.size:
            raise DataError(f"{self.path} is truncated: {name} is not all there; download it again")
        return kind.read(np.asarray(raw).reshape(-1, kind.size)).reshape(record.shape)

    def _parse(self) -> None:
        self._at = 0
        if bytes(self._bytes[:4]) != b"GGUF":
            raise DataError(f"{self.path} is not a GGUF file")
        self._at = 4
        version = self._scalar("I")
        if version.to_bytes(4, "little")[::-1] in [v.to_bytes(4, "little") for v in VERSIONS]:
            raise DataError(f"{self.path} is a big-endian GGUF file; convert it to little-endian (gguf-py has a script for that)")
        if version not in VERSIONS:
            raise DataError(f"{self.path} is GGUF version {version}; versions {VERSIONS} can be read")
        num_tensors, num_keys = self._scalar("Q"), self._scalar("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._string()
            if key in self.metadata:
                raise DataError(f"{self.path}: the metadata has {key!r} twice")
            self.metadata[key] = self._value(self._scalar("I"))
        found = []
        for _ in range(num_tensors):
            name = self._string()
            dimensions = self._scalar("I")
            if dimensions > MOST_DIMENSIONS:
                raise DataError(f"{self.path}: tensor {name!r} has {dimensions} dimensions, at most {MOST_DIMENSIONS} are possible; the file is damaged")
            shape = tuple(self._scalar("Q") for _ in range(dimensions))[::-1]
            found.append((name, shape, self._scalar("I"), self._scalar("Q")))
        if len({name for name, *_ in found}) < len(found):
            raise DataError(f"{self.path}: two tensors have one name; the file is damaged")
        alignment = self.integer("general.alignment", 32)
        if alignment == 0:
            raise DataError(f"{self.path}: general.alignment is 0, which no offset can be a multiple of")
        start = -(-self._at // alignment) * alignment
        self.tensors = {name: TensorRecord(shape, type_, start + offset) for name, shape, type_, offset in found}

    def _scalar(self, code: str) -> Any:
        size = struct.calcsize(code)
        (value,) = struct.unpack("<" + code, self._bytes[self._at : self._at + size].tobytes())
        self._at += size
        return value

    def _string(self) -> str:
        return self._take(self._scalar("Q")).decode()

    def _take(self, size: int) -> bytes:
        if size > min(LONGEST, self._bytes.size - self._at):
            raise struct.error("beyond the end of the file")
        self._at += size
        return self._bytes[self._at - size : self._at].tobytes()

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            element, count = self._scalar("I"), self._scalar("Q")
            if count > LONGEST:
                raise struct.error("an array too long to be true")
            if element in SCALARS:
                code = SCALARS[element]
                return list(struct.unpack(f"<{count}{code}", self._take(count * struct.calcsize(code))))
            return [self._value(element) for _ in range(count)]
        if kind not in SCALARS:
            raise struct.error(f"a value of unknown type {kind}")
        return self._scalar(SCALARS[kind])


# --- types: [blocks, bytes] uint8 -> [blocks, values] fp32 ------------------------------------------------------------


def _half(raw: np.ndarray, at: int) -> np.ndarray:
    """The fp16 number at byte `at` of every block, [blocks, 1] fp32."""
    return raw[:, at : at + 2].copy().view("<f2").astype(np.float32)


def _nibbles(raw: np.ndarray) -> np.ndarray:
    """Low halves of all bytes, then high halves: [blocks, 2 * bytes] uint8."""
    return np.concatenate([raw & 15, raw >> 4], axis=1)


def _fifth_bits(raw: np.ndarray) -> np.ndarray:
    """Four bytes as 32 bits, each standing for 16."""
    return np.unpackbits(raw, axis=1, bitorder="little") << 4


def _f32(raw: np.ndarray) -> np.ndarray:
    return raw.copy().view("<f4").astype(np.float32)


def _f16(raw: np.ndarray) -> np.ndarray:
    return raw.copy().view("<f2").astype(np.float32)


def _bf16(raw: np.ndarray) -> np.ndarray:
    return (raw.copy().view("<u2").astype(np.uint32) << 16).view(np.float32)


def _q4_0(raw: np.ndarray) -> np.ndarray:
    """scale, 32 x 4 bits: scale (q - 8)."""
    return _half(raw, 0) * (_nibbles(raw[:, 2:]).astype(np.float32) - 8)


def _q4_1(raw: np.ndarray) -> np.ndarray:
    """scale, minimum, 32 x 4 bits: scale q + minimum."""
    return _half(raw, 0) * _nibbles(raw[:, 4:]) + _half(raw, 2)


def _q5_0(raw: np.ndarray) -> np.ndarray:
    """scale, 32 fifth bits, 32 x 4 bits: scale (q - 16)."""
    return _half(raw, 0) * ((_nibbles(raw[:, 6:]) | _fifth_bits(raw[:, 2:6])).astype(np.float32) - 16)


def _q5_1(raw: np.ndarray) -> np.ndarray:
    """scale, minimum, 32 fifth bits, 32 x 4 bits: scale q + minimum."""
    return _half(raw, 0) * (_nibbles(raw[:, 8:]) | _fifth_bits(raw[:, 4:8])) + _half(raw, 2)


def _q8_0(raw: np.ndarray) -> np.ndarray:
    """scale, 32 x int8: scale q."""
    return _half(raw, 0) * raw[:, 2:].view(np.int8)


def _scales_and_minima(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Twelve bytes as eight 6-bit scales and eight 6-bit minima, [blocks, 8, 1] fp32 each: the first four of both lie in the
    low bits of bytes 0-7, the last four in halves of bytes 8-11 with their upper two bits on top of bytes 0-7."""
    first, second, halves = raw[:, :4], raw[:, 4:8], raw[:, 8:]
    scales = np.concatenate([first & 63, (halves & 15) | (first >> 6 << 4)], axis=1)
    minima = np.concatenate([second & 63, (halves >> 4) | (second >> 6 << 4)], axis=1)
    return scales[:, :, None].astype(np.float32), minima[:, :, None].astype(np.float32)


def _groups(raw: np.ndarray) -> np.ndarray:
    """128 bytes as 8 groups of 32 values: each 32 bytes hold one group in low halves, the next in high ones."""
    bytes_ = raw.reshape(-1, 4, 1, 32)
    return np.concatenate([bytes_ & 15, bytes_ >> 4], axis=2).reshape(-1, 8, 32)


def _q4_k(raw: np.ndarray) -> np.ndarray:
    """scale of scales, scale of minima, 8 scales and minima, 8 x 32 x 4 bits: d s q - e m."""
    scales, minima = _scales_and_minima(raw[:, 4:16])
    return (_half(raw, 0)[:, :, None] * scales * _groups(raw[:, 16:]) - _half(raw, 2)[:, :, None] * minima).reshape(len(raw), -1)


def _q5_k(raw: np.ndarray) -> np.ndarray:
    """As Q4_K, with fifth bits: bit g of byte i belongs to value i of group g."""
    scales, minima = _scales_and_minima(raw[:, 4:16])
    fifth = (raw[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1) << 4
    return (_half(raw, 0)[:, :, None] * scales * (_groups(raw[:, 48:]) | fifth) - _half(raw, 2)[:, :, None] * minima).reshape(len(raw), -1)


def _q6_k(raw: np.ndarray) -> np.ndarray:
    """256 x 4 low bits, 256 x 2 high bits, 16 x int8 scales, scale: d s (q - 32), a scale for every 16 values. In each half of
    the block, values 0-63 take low halves of 64 bytes, 64-127 the high ones, and 32 bytes hold the upper bits of all four quarters."""
    low = raw[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    high = raw[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], dtype=np.uint8)[:, None] & 3
    quants = (low | high << 4).reshape(-1, 16, 16).astype(np.float32) - 32
    scales = raw[:, 192:208].view(np.int8)[:, :, None].astype(np.float32)
    return (_half(raw, 208)[:, :, None] * scales * quants).reshape(len(raw), -1)


@dataclass(frozen=True)
class QuantType:
    """values: of a block. size: its bytes."""

    name: str
    values: int
    size: int
    read: Callable[[np.ndarray], np.ndarray]


TYPES = {
    0: QuantType("F32", 1, 4, _f32),
    1: QuantType("F16", 1, 2, _f16),
    2: QuantType("Q4_0", 32, 18, _q4_0),
    3: QuantType("Q4_1", 32, 20, _q4_1),
    6: QuantType("Q5_0", 32, 22, _q5_0),
    7: QuantType("Q5_1", 32, 24, _q5_1),
    8: QuantType("Q8_0", 32, 34, _q8_0),
    12: QuantType("Q4_K", 256, 144, _q4_k),
    13: QuantType("Q5_K", 256, 176, _q5_k),
    14: QuantType("Q6_K", 256, 210, _q6_k),
    30: QuantType("BF16", 1, 2, _bf16),
}
