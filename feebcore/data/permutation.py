"""A permutation of 0..n-1 that needs no memory, and nothing else.

`FeistelPermutation(n, seed)` maps (epoch, i) to a sequence; every epoch is a bijection of its own. Any index can be
asked for at any time, so a run's position is one number and resuming costs nothing.

Rounds alternate over two halves of ceil(log2 n) bits with splitmix64 as round function; values that fall outside
0..n-1 walk on along their cycle until they are inside (at most two steps expected). Black & Rogaway, "Ciphers with
arbitrary finite domains", 2002.
"""

from __future__ import annotations

import numpy as np

NUM_ROUNDS = 6  # even, so that the halves end where they began

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def splitmix64(value: np.ndarray) -> np.ndarray:
    """The splitmix64 output function on uint64 [N] -> uint64 [N]."""
    with np.errstate(over="ignore"):
        value = value + _GOLDEN
        value = (value ^ (value >> np.uint64(30))) * _MIX1
        value = (value ^ (value >> np.uint64(27))) * _MIX2
    return value ^ (value >> np.uint64(31))


class FeistelPermutation:
    """Bijections of 0..n-1, one per epoch, decided by `seed`. n at least 1; seed a whole number from 0 to 2**63 - 1."""

    def __init__(self, n: int, seed: int) -> None:
        if n < 1:
            raise ValueError(f"a permutation needs at least one element, not {n}")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed must be from 0 to 2**63 - 1, not {seed}")
        self.n = n
        self.seed = seed
        bits = max(2, (n - 1).bit_length())
        self._right_bits, self._left_bits = bits - bits // 2, bits // 2

    def __call__(self, index: np.ndarray, epoch: np.ndarray | int = 0) -> np.ndarray:
        """Images int64 [N] of `index` int64 [N], each in 0..n-1, under the permutation of `epoch` (one for all, or [N])."""
        value = np.asarray(index, dtype=np.uint64)
        if value.size and int(value.max()) >= self.n:
            raise IndexError(f"index {int(value.max())} is outside 0..{self.n - 1}")
        epochs = np.broadcast_to(np.asarray(epoch, dtype=np.uint64), value.shape)
        key = splitmix64(splitmix64(np.full(value.shape, self.seed, dtype=np.uint64)) ^ epochs)
        value = self._encrypt(value, key)
        outside = np.flatnonzero(value >= np.uint64(self.n))
        while outside.size:
            value[outside] = self._encrypt(value[outside], key[outside])
            outside = outside[value[outside] >= np.uint64(self.n)]
        return value.astype(np.int64)

    def _encrypt(self, value: np.ndarray, key: np.ndarray) -> np.ndarray:
        left_bits, right_bits = self._left_bits, self._right_bits
        left, right = value >> np.uint64(right_bits), value & np.uint64((1 << right_bits) - 1)
        for number in range(NUM_ROUNDS):
            noise = splitmix64(key ^ splitmix64(right * np.uint64(NUM_ROUNDS) + np.uint64(number)))
            left, right = right, left ^ (noise & np.uint64((1 << left_bits) - 1))
            left_bits, right_bits = right_bits, left_bits
        return (left << np.uint64(right_bits)) | right
