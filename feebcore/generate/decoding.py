"""Random numbers and choices of the decoding loop: one stream of uniforms a row, so that rows never meet.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
LogitsProcessor = Callable[[Tensor], Tensor]
"""Logits [B,V] fp32 to logits [B,V]; a removed token becomes -inf. Works row by row."""


AHEAD = 32
"""Numbers a row that are made, and copied to the device, at a time."""


class PerRowRNG:
    """Uniform numbers by counter: the n-th draw of a row is SplitMix64 of (its seed, n).

    A row's numbers depend on its own seed only, whatever else is in the batch.
    """

    def __init__(self, seeds: np.ndarray, device: torch.device | str = "cpu") -> None:
        self._seeds = np.asarray(seeds, dtype=np.uint64)
        self._device = device
        self._drawn = 0
        self._ahead = torch.empty(0)

    def uniform(self) -> Tensor:
        """The next number of every row: [B] float64 in [0, 1)."""
        place = self._drawn % AHEAD
        if place == 0:
            with np.errstate(over="ignore"):
                states = self._seeds + _GOLDEN * np.arange(self._drawn + 1, self._drawn + AHEAD + 1, dtype=np.uint64)[:, None]
            self._ahead = torch.from_numpy((_mix(states) >> np.uint64(11)).astype(np.float64) * 2.0**-53).to(self._device)
        self._drawn += 1
        return self._ahead[place]


Sampler = Callable[[Tensor, PerRowRNG], Tensor]
"""Processed logits [B,V] fp32 and the rows' random numbers to tokens [B]."""


def row_seeds(seed: int, rows: Sequence[int]) -> np.ndarray:
    """The seeds [B] uint64 of numbered rows under a run's seed; distinct for distinct (seed, row)."""
    with np.errstate(over="ignore"):
        base = _mix(np.array([seed % 2**64], dtype=np.uint64) + _GOLDEN)
        return _mix(base + np.array([r % 2**64 for r in rows], dtype=np.uint64) * _GOLDEN)


def _mix(z: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele, Lea and Flood 2014), a bijection of 64-bit numbers."""
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def sample(logits: Tensor, random: PerRowRNG) -> Tensor:
    """Tokens [B] drawn from softmax(logits [B,V]) by inversion of the cumulative sum; never a token at -inf."""
    cumulative = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:].contiguous()
    drawn = torch.searchsorted(cumulative, random.uniform()[:, None] * total, right=True)
    last = torch.searchsorted(cumulative, total)  # the first index that reaches the total: rounding cannot pass it
    return torch.minimum(drawn, last)[:, 0]


def greedy(logits: Tensor, random: PerRowRNG) -> Tensor:
    """Greedy decoding: the most likely token of each row, the lowest id among ties."""
    return logits.argmax(-1)
