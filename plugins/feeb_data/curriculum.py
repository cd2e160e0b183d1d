"""DataOrder `curriculum`: easy sequences first. A run begins with the easiest share of the sequences and the pacing function adds
harder ones, a step at a time, until all are there.

Pacing as in Wu, Dyer & Neyshabur 2021 (arXiv:2012.03107): within a step of the pacing, sequences are drawn from the share
that is open, shuffled, each once before any comes again. Difficulty is computed once for the split and kept beside it.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING

import numpy as np

from feebcore.data.index_cache import saved_index
from feebcore.data.permutation import FeistelPermutation
from feebcore.errors import DataError

if TYPE_CHECKING:
    from feeb_data import CurriculumConfig
    from feebcore.protocols import DataOrderContext, Packing

BLOCK = 1024  # sequences looked at together


class CurriculumOrder:
    """ranked: sequences from easy to hard. opened: (first sample, number of sequences that are open from there), the first from 0."""

    def __init__(self, ranked: np.ndarray, opened: list[tuple[int, int]], seed: int) -> None:
        self._ranked = ranked
        self._begins = np.array([begin for begin, _ in opened], dtype=np.int64)
        self._permutations = [FeistelPermutation(size, seed) for _, size in opened]

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Sequences int64 [B] of the sample indices int64 [B]."""
        samples = np.asarray(samples, dtype=np.int64)
        stage = self._begins.searchsorted(samples, side="right") - 1
        places = np.empty_like(samples)
        for number in np.unique(stage).tolist():
            rows = np.flatnonzero(stage == number)
            permutation = self._permutations[number]
            epochs, positions = np.divmod(samples[rows] - self._begins[number], permutation.n)
            places[rows] = permutation(positions, (np.int64(number) << 40) + epochs)
        return np.asarray(self._ranked[places], dtype=np.int64)


def open_share(pacing: str, progress: float, start: float) -> float:
    """Share of the sequences that are open at `progress` in [0, 1] of the pacing: from `start` to 1. linear; root: quickly at
    first; quadratic: slowly at first; exponential: by equal factors."""
    if pacing == "exponential":
        return float(start ** (1 - progress))
    power = {"linear": 1.0, "root": 0.5, "quadratic": 2.0}[pacing]
    return start + (1 - start) * progress**power


def difficulty(measure: str, packing: Packing, vocab_size: int, bos_id: int) -> np.ndarray:
    """float32 [num_sequences], higher is harder. length: tokens per document of the sequence; unigram: nats per token under the
    frequencies of all sequences; compression: bytes per token after zlib."""
    counts = np.ones(vocab_size)
    blocks = [np.arange(b, min(b + BLOCK, packing.num_sequences)) for b in range(0, packing.num_sequences, BLOCK)]
    if measure == "unigram":
        for block in blocks:
            counts += np.bincount(packing.sequences(block).tokens[:, 1:].reshape(-1), minlength=vocab_size)
    nats = -np.log(counts / counts.sum())
    found = []
    for block in blocks:
        tokens = packing.sequences(block).tokens
        if measure == "unigram":
            found.append(nats[tokens[:, 1:]].mean(axis=1))
        elif measure == "length":
            found.append(tokens.shape[1] / (1 + (tokens[:, 1:] == bos_id).sum(axis=1)))
        else:
            found.append(np.array([len(zlib.compress(row.tobytes(), 6)) / len(row) for row in tokens.astype("<u4")]))
    return np.concatenate(found).astype(np.float32)


def build(config: CurriculumConfig, num_sequences: int, seed: int, context: DataOrderContext | None = None) -> CurriculumOrder:
    """Without a context (a check by itself) sequences are taken to be harder the higher their number."""
    ranked = np.arange(num_sequences)
    max_steps, batch_size = (context.max_steps, context.batch_size) if context else (num_sequences, 1)
    if context is not None:
        if not max_steps:
            raise DataError("order curriculum: the length of the run is not known here, so there is nothing to pace")
        sample = context.packing.sequences(np.unique(np.linspace(0, num_sequences - 1, 64).astype(np.int64))).tokens
        key = {"measure": config.difficulty, "sequences": num_sequences, "sample": hashlib.sha256(sample.tobytes()).hexdigest(), "method": 1}

        def rank() -> dict[str, np.ndarray]:
            values = difficulty(config.difficulty, context.packing, context.store.vocab_size, context.store.bos_id)
            return {"ranked": np.argsort(values, kind="stable")}

        ranked = saved_index(context.store, "difficulty", key, rank)["ranked"]
    paced = config.until * max_steps
    opened: list[tuple[int, int]] = []
    for number in range(config.stages):
        step = round(paced * number / config.stages)
        size = max(1, round(open_share(config.pacing, number / config.stages, config.start) * num_sequences))
        if opened and (opened[-1][0] == step * batch_size):
            opened.pop()
        opened.append((step * batch_size, size))
    if opened[-1][0] == round(paced) * batch_size:
        opened.pop()
    return CurriculumOrder(ranked, [*opened, (round(paced) * batch_size, num_sequences)], seed)
