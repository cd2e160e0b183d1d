"""Small token stores for the tests of packings, orders and the loader."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from feebcore.data.store import TokenStore
from feebcore.data.store_writer import SplitWriter
from feebcore.parts import Part
from feebcore.registry import get_registry

VOCAB, BOS, EOS = 100, 98, 99


def part(kind: str, name: str, **options: object) -> Part:
    spec = get_registry().resolve(kind, name)
    return Part(kind, spec, spec.config.model_validate(options))


def store_of(folder: Path, lengths: Sequence[int], sources: Sequence[int] = (), split: str = "train", seed: int = 0, **options: object) -> TokenStore:
    """Documents of so many random text tokens. sources: of each document; default: one source 's0'."""
    rng = np.random.default_rng(seed)
    documents = [np.concatenate([[BOS], rng.integers(0, 98, n), [EOS]]) for n in lengths]
    layout = {"vocab_size": VOCAB, "bos_id": BOS, "eos_id": EOS, "shard_tokens": 256, "chunk_tokens": 64} | options
    writer = SplitWriter(folder / "tokens.zarr", split, **layout)  # type: ignore[arg-type]
    writer.append(documents)
    codes = np.array(sources or [0] * len(documents))
    writer.finish(np.array([max(1, n) for n in lengths]), codes, [f"s{i}" for i in range(int(codes.max(initial=0)) + 1)])
    return TokenStore.open(folder / "tokens.zarr", split)
