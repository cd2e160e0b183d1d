"""A trainer that costs nothing: plain SGD on a small noisy regression, many runs at once. Its held-out loss scatters from
seed to seed as that of a model does: by the start and by the order of the data."""

from __future__ import annotations

import numpy as np

WIDTH, EXAMPLES, STEPS, BATCH, RATE = 8, 128, 60, 4, 0.05


def train(seeds: np.ndarray) -> np.ndarray:
    """Held-out loss [R] of a run per seed [R]; the same seed, the same loss."""
    task = np.random.default_rng(12345)
    truth = task.standard_normal(WIDTH)
    inputs, held_out = task.standard_normal((2, EXAMPLES, WIDTH))
    targets, wanted = (x @ truth + 0.5 * task.standard_normal(EXAMPLES) for x in (inputs, held_out))
    streams = [np.random.default_rng(int(seed)) for seed in seeds]
    weights = np.stack([stream.standard_normal(WIDTH) for stream in streams])
    order = np.stack([stream.integers(0, EXAMPLES, (STEPS, BATCH)) for stream in streams])
    for step in range(STEPS):
        x, y = inputs[order[:, step]], targets[order[:, step]]
        error = np.einsum("rbw,rw->rb", x, weights) - y
        weights -= RATE * np.einsum("rb,rbw->rw", error, x) / BATCH
    return ((weights @ held_out.T - wanted) ** 2).mean(1)


def comparisons(number: int, sides: int, seeds: int, first_seed: int = 0) -> np.ndarray:
    """Losses [number, sides, seeds] of one recipe, every run under a seed of its own."""
    count = number * sides * seeds
    return train(np.arange(first_seed, first_seed + count)).reshape(number, sides, seeds)
