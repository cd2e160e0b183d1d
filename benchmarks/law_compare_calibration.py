"""Whether `feeb compare --law` says no more than it may, in worlds whose two laws are known.

    python benchmarks/law_compare_calibration.py [--worlds 200]

A world is one of eight published laws of Chinchilla's form and a second one that is the same, or better by known factors. Both train the same cells:
budgets a factor of 3 apart from 1e17 FLOPs, sizes from 1/3 to 3 times the best around a center that is off by e^0.4, normal noise on every ln(loss) of 0.2%,
half of its variance shared by the two runs of a pair. Per design: how often the 95% intervals hold the true difference, and the true multiplier, at 10 or 100
times the largest budget; how often the two are called different there; the median width of the interval, and how often a flag
(`top_budget`, `exponents_differ`) is raised.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from law_calibration import PUBLISHED, World

from feebcore.scaling.paired import LawComparison, Pair, compare_pairs
from feebcore.scaling.points import Point

NOISE = 0.002
SIZE0, TOKENS0 = 1e8, 2e9  # where an exponent that differs makes no difference


@dataclass(frozen=True)
class Design:
    """u, v: ln of the efficiency of N and D; sd: of the differences of exponents, drawn anew in each world; bend: of both laws (0.0005: factor 1 + 0.0005
    ln^2(C / 1e19)); own_bend: of the second law alone; reach: of the target."""

    name: str
    budgets: int
    sizes: int
    u: float = 0.0
    v: float = 0.0
    sd: float = 0.0
    bend: float = 0.0
    own_bend: float = 0.0
    reach: float = 10.0
    noise: float = NOISE


@dataclass(frozen=True)
class Second:
    """A world's law with other efficiencies and exponents."""

    world: World
    u: float
    v: float
    da: float
    db: float
    bend: float

    def loss(self, size: Any, tokens: Any) -> Any:
        w = self.world
        by_size = w.A / size**w.alpha * np.exp(-w.alpha * self.u - self.da * np.log(size / SIZE0))
        by_tokens = w.B / tokens**w.beta * np.exp(-w.beta * self.v - self.db * np.log(tokens / TOKENS0))
        flops = 6 * size * tokens
        return (w.E + by_size + by_tokens) * (1 + w.bend * np.log(flops / 1e19) ** 2) * (1 + self.bend * np.log(flops / 1e17) ** 2)


def frontier(law: World | Second, flops: float) -> float:
    """ln of the least loss for `flops`."""
    size = np.geomspace(1e4, 1e13, 2000)
    return float(np.log(law.loss(size, flops / 6 / size).min()))


def multiplier(world: World, flops: float, ln_loss: float) -> float:
    """ln of the factor of `flops` at which the world's frontier has this loss."""
    low, high = -8.0, 8.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if frontier(world, flops * math.exp(middle)) > ln_loss else (low, middle)
    return low


def world_of(design: Design, seed: int) -> tuple[World, Second, list[Pair]]:
    rng = np.random.default_rng(seed)
    world = World(*PUBLISHED[seed % len(PUBLISHED)], design.bend)
    second = Second(world, design.u, design.v, *(design.sd * rng.standard_normal(2)), design.own_bend)
    center, pairs = math.exp(0.4 * rng.standard_normal()), []
    for budget in 1e17 * 3.0 ** np.arange(design.budgets):
        for factor in np.geomspace(1 / 3, 3, design.sizes):
            size = round(world.best(budget) * center * factor)
            tokens, name = budget / 6 / size, f"{budget:.3g}-{size:.3g}"
            shared, *own = design.noise * math.sqrt(0.5) * rng.standard_normal(3)
            points = [
                Point(name, size, size, size, tokens, 6 * size * tokens, law.loss(size, tokens) * math.exp(shared + noise), budget)
                for law, noise in zip((world, second), own, strict=True)
            ]
            pairs.append(Pair(name, *points))
    return world, second, pairs


def compared(design: Design, seed: int) -> tuple[LawComparison, float, float]:
    """What is said of a world, the true difference of ln(loss), and the target."""
    world, second, pairs = world_of(design, seed)
    target = design.reach * max(pair.first.flops for pair in pairs)
    return compare_pairs(pairs, "total", target, seed=seed), frontier(second, target) - frontier(world, target), target


def row(design: Design, worlds: int) -> list[str]:
    holds, times, different, wrong, flagged, widths, ratios = 0, 0, 0, 0, 0, [], []
    began = time.process_time()
    for seed in range(worlds):
        comparison, truth, target = compared(design, seed)
        place = comparison.target
        holds += place.low <= truth <= place.high
        world, second, _ = world_of(design, seed)
        factor = math.exp(multiplier(world, target, frontier(second, target)))
        times += place.multiplier_low <= factor <= place.multiplier_high
        different += comparison.kind in ("better", "worse")
        wrong += (comparison.kind == "better" and truth > 0) or (comparison.kind == "worse" and truth < 0)
        flagged += any(flag.startswith(("top_budget", "exponents_differ")) for flag in comparison.flags)
        widths.append(place.high - place.low)
        ratios.append(place.multiplier_high / place.multiplier_low)
    seconds = (time.process_time() - began) / worlds
    columns = [design.name, f"{100 * holds / worlds:.1f}", f"{100 * times / worlds:.1f}", f"{different} of {worlds}", str(wrong)]
    return [*columns, f"{100 * float(np.median(widths)):.2f}", f"{float(np.median(ratios)):.2f}", f"{100 * flagged / worlds:.0f}", f"{1000 * seconds:.0f}"]


EFFICIENT = math.log(1.12)
DESIGNS = [
    Design("the same, 3x3", 3, 3),
    Design("the same, 4x4", 4, 4),
    Design("the same, 5x5", 5, 5),
    Design("the same, 4x4, to 100x", 4, 4, reach=100.0),
    Design("the same, 4x4, noise 0.5%", 4, 4, noise=0.005),
    Design("12% better in N and D, 3x3", 3, 3, EFFICIENT, EFFICIENT),
    Design("12% better in N and D, 4x4", 4, 4, EFFICIENT, EFFICIENT),
    Design("12% better in N and D, 4x4, noise 0.5%", 4, 4, EFFICIENT, EFFICIENT, noise=0.005),
    Design("better in D alone (v = 0.25), 4x4", 4, 4, 0.0, 0.25),
    Design("exponents differ by sd 0.012, 4x4", 4, 4, sd=0.012),
    Design("exponents differ by sd 0.012, 4x4, to 100x", 4, 4, sd=0.012, reach=100.0),
    Design("exponents differ by sd 0.03, 4x4", 4, 4, sd=0.03),
    Design("exponents differ by sd 0.03, 4x4, to 100x", 4, 4, sd=0.03, reach=100.0),
    Design("both laws bent, 12% better, 4x4", 4, 4, EFFICIENT, EFFICIENT, bend=0.0005),
    Design("the second alone bent (0.1% per ln^2), 4x4", 4, 4, own_bend=0.001),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=200)
    options = parser.parse_args()
    print(
        "| world, design | difference held, % | multiplier held, % | called different | wrong side | width, % | high / low of the multiplier | flagged, % | ms |"
    )
    print("|" + "---|" * 9)
    for design in DESIGNS:
        print("| " + " | ".join(row(design, options.worlds)) + " |", flush=True)


if __name__ == "__main__":
    main()
