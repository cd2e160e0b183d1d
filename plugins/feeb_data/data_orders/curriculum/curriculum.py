"""Easy sequences first. A run begins with the easiest share of the sequences and the pacing function adds
harder ones, a step at a time, until all are there.

Pacing as in Wu, Dyer & Neyshabur 2021 (arXiv:2012.03107): within a step of the pacing, sequences are drawn from the share
that is open, shuffled, each once before any comes again. Difficulty is computed once for the split and saved next to it.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING

import numpy as np

from feebcore.data.index_cache import saved_index
from feebcore.data.permutation import FeistelPermutation
from feebcore.errors import DataError
from feebcore.protocols import BuildContext, DataOrder, Packing

if TYPE_CHECKING:
    from feeb_data.data_orders.curriculum import CurriculumConfig

BLOCK = 1024  # sequences whose difficulty is computed at once


class CurriculumOrder(DataOrder):
    """ranked: sequences from easy to hard. opened: (first sample, number of sequences that are open from there), the first from 0."""

    def __init__(self, ranked: np.ndarray, opened: list[tuple[int, int]], seed: int) -> None:
        self._ranked = ranked
        self._begins = np.array([begin for begin, _ in opened], dtype=np.int64)
        self._permutations = [FeistelPermutation(size, seed) for _, size in opened]

    def __call__(self, samples: np.ndarray) -> np.ndarray:
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
    values = []
    for block in blocks:
        tokens = packing.sequences(block).tokens
        if measure == "unigram":
            values.append(nats[tokens[:, 1:]].mean(axis=1))
        elif measure == "length":
            values.append(tokens.shape[1] / (1 + (tokens[:, 1:] == bos_id).sum(axis=1)))
        else:
            values.append(np.array([len(zlib.compress(row.tobytes(), 6)) / len(row) for row in tokens.astype("<u4")]))
    return np.concatenate(values).astype(np.float32)


def build_curriculum(config: CurriculumConfig, context: BuildContext) -> CurriculumOrder:
    """Without a packing (a contract check in isolation) sequences count as harder the higher their number, and the run is one epoch."""
    num_sequences, batch_size, total_steps = context.num_sequences, context.batch_size, context.total_steps
    packing, store = context.packing, context.store
    if packing is None:
        ranked, batch_size, total_steps = np.arange(num_sequences), 1, num_sequences
    else:
        if not total_steps:
            raise DataError("data_order curriculum: the length of the run is not known here, so there is nothing to pace")
        sample = packing.sequences(np.unique(np.linspace(0, num_sequences - 1, 64).astype(np.int64))).tokens
        key = {"measure": config.difficulty, "sequences": num_sequences, "sample": hashlib.sha256(sample.tobytes()).hexdigest(), "method": 1}

        def rank() -> dict[str, np.ndarray]:
            return {"ranked": np.argsort(difficulty(config.difficulty, packing, store.vocab_size, store.bos_id), kind="stable")}

        ranked = saved_index(store, "difficulty", key, rank)["ranked"]
    paced = config.until * total_steps
    opened: list[tuple[int, int]] = []
    for number in range(config.stages):
        step = round(paced * number / config.stages)
        size = max(1, round(open_share(config.pacing, number / config.stages, config.start) * num_sequences))
        if opened and (opened[-1][0] == step * batch_size):
            opened.pop()
        opened.append((step * batch_size, size))
    if opened[-1][0] == round(paced) * batch_size:
        opened.pop()
    return CurriculumOrder(ranked, [*opened, (round(paced) * batch_size, num_sequences)], context.seed)
