"""Whether intervals of law `mixture` hold what they say, in worlds whose losses are known.

    python benchmarks/mixture_worlds.py [--worlds 200] [--kinds two_kinds nothing_to_gain]

A world has J sources. "effective tokens": L_i = E_i + B_i (sum_j T_ij w_j)^-b_i, where T_ij says what a token of source j is worth to source i. "two kinds": the
mean of two such losses, which no form of the law is. "mixing law": L_i = c_i + exp(t_i . w). "nothing to gain": the losses do not depend on the
mixture. Runs have normal noise on ln(loss), half of its variance common to all losses of a run; the swarm is that of planner `mixture`.

Columns, in percent: 95 % intervals of shares that hold the truly best one, and of gains that hold what the recommended mixture truly gains over equal shares;
how often it is called better, and is not; of the loss: its true gain, that of the best mixture, the width of the gain's interval.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from feeb_evals.planners.mixture.design import space_filling
from feebcore.parts import resolve_part
from feebcore.scaling.minimize import Array
from feebcore.scaling.mixture import MixtureLaw
from feebcore.scaling.points import Point

LEAST = 0.05


@dataclass(frozen=True)
class World:
    """losses: shares [n,J] to [n,J]."""

    losses: Callable[[Array], Array]
    num_sources: int

    def loss(self, shares: Array) -> Array:
        return np.asarray(self.losses(shares).mean(1))

    def best(self) -> Array:
        """The best of a fine grid of mixtures [J] with at least LEAST of each source."""
        rng = np.random.default_rng(0)
        some = LEAST + (1 - LEAST * self.num_sources) * rng.dirichlet(np.ones(self.num_sources), 20000)
        best = some[self.loss(some).argmin()]
        for step in 0.5 ** np.arange(1, 10):
            tried = np.concatenate([best[None], best + step * (some[:2000] - best)])
            best = tried[self.loss(tried).argmin()]
        return np.asarray(best)


def effective_tokens(rng: np.random.Generator, num_sources: int) -> World:
    floor, size, power = rng.uniform(1.0, 2.0, num_sources), rng.uniform(0.8, 2.0, num_sources), rng.uniform(0.15, 0.5, num_sources)
    worth = rng.uniform(0.02, 0.3, (num_sources, num_sources))
    np.fill_diagonal(worth, 1.0)
    return World(lambda shares: floor + size * (shares @ worth.T) ** -power, num_sources)


def two_kinds(rng: np.random.Generator, num_sources: int) -> World:
    """Every source holds two kinds of text, which learn from the others in their own ways."""
    one, other, part = effective_tokens(rng, num_sources), effective_tokens(rng, num_sources), rng.uniform(0.2, 0.8, num_sources)
    return World(lambda shares: part * one.losses(shares) + (1 - part) * other.losses(shares), num_sources)


def mixing_law(rng: np.random.Generator, num_sources: int) -> World:
    floor, slope = rng.uniform(1.0, 2.0, num_sources), rng.uniform(-0.5, 0.5, (num_sources, num_sources))
    slope[np.diag_indices(num_sources)] -= rng.uniform(0.5, 2.0, num_sources)
    return World(lambda shares: floor + np.exp(0.5 + shares @ slope.T), num_sources)


def nothing_to_gain(rng: np.random.Generator, num_sources: int) -> World:
    level = rng.uniform(2.0, 4.0, num_sources)
    return World(lambda shares: np.tile(level, (len(shares), 1)), num_sources)


def swarm(world: World, runs: int, noise: float, rng: np.random.Generator, seed: int) -> list[Point]:
    number = world.num_sources
    low, names = np.full(number, LEAST), [f"s{j}" for j in range(number)]
    shares = space_filling(np.full(number, 1 / number), runs - 1, low, np.ones(number), seed)
    shares = np.concatenate([shares[:1], shares])
    common, own = rng.standard_normal((runs, 1)), rng.standard_normal((runs, number))
    losses = world.losses(shares) * np.exp(noise * (common + own) / 2**0.5)
    points = []
    for k in range(runs):
        mixture, each = dict(zip(names, shares[k], strict=True)), dict(zip(names, losses[k], strict=True))
        loss = float(losses[k].mean())
        points.append(Point(f"m{k}", 1000, 1000, 1000, 2e4, 1.2e8, loss, shares=mixture, source_losses=each, source_weights=dict.fromkeys(names, 1.0)))
    return points


def row(law: MixtureLaw, make: Callable[[np.random.Generator, int], World], sources: int, runs: int, noise: float, worlds: int) -> dict[str, float]:
    """Percentages and means over the worlds."""
    hold_share, hold_gain, called, wrong, gains, possible, widths, seconds = [], [], [], [], [], [], [], 0.0
    equal = np.full((1, sources), 1 / sources)
    for seed in range(worlds):
        rng = np.random.default_rng([seed, sources, runs])
        world = make(rng, sources)
        points = swarm(world, runs, noise, rng, seed)
        began = time.process_time()
        fit = law.fit(points, "total", 300, seed)
        found = law.best(fit, dict(zip(points[0].shares, equal[0], strict=True)), {})
        seconds += time.process_time() - began
        best = world.best()
        hold_share += [low - 0.005 <= b <= high + 0.005 for (low, high), b in zip(found.intervals.values(), best, strict=True)]
        gain = float(np.log(world.loss(equal) / world.loss(np.array([list(found.shares.values())])))[0])
        hold_gain.append(found.gain_low <= gain <= found.gain_high)
        called.append(found.is_better)
        wrong.append(found.is_better and gain <= 0)
        gains.append(gain)
        possible.append(float(np.log(world.loss(equal) / world.loss(best[None]))[0]))
        widths.append(found.gain_high - found.gain_low)
    mean = {"share": hold_share, "gain": hold_gain, "called better": called, "wrong": wrong, "true gain": gains, "possible": possible, "width": widths}
    return {key: 100 * float(np.mean(values)) for key, values in mean.items()} | {"ms": 1000 * seconds / worlds}


KINDS = {make.__name__: make for make in (effective_tokens, two_kinds, mixing_law, nothing_to_gain)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=200)
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS))
    options = parser.parse_args()
    law = resolve_part("laws", "mixture").build()
    names = ["share", "gain", "called better", "wrong", "true gain", "possible", "width", "ms"]
    print("| world, sources, runs, noise | " + " | ".join(names) + " |")
    print("|" + "---|" * (len(names) + 1))
    for kind in options.kinds:
        for sources, runs, noise in ((3, 18, 0.003), (3, 18, 0.01), (5, 30, 0.003)):
            found = row(law, KINDS[kind], sources, runs, noise, options.worlds)
            shown = [f"{found[key]:.0f}" if key in names[:4] or key == "ms" else f"{found[key]:.2f}" for key in names]
            print(f"| {kind.replace('_', ' ')}, {sources}, {runs}, {100 * noise:g}% | " + " | ".join(shown) + " |", flush=True)


if __name__ == "__main__":
    main()
