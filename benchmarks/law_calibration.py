"""Whether intervals of law `posterior` hold what they say, in worlds whose law is known.

    python benchmarks/law_calibration.py [--worlds 200] [--law posterior]

A world is one of eight published laws of Chinchilla's form, budgets a factor of 3 apart from 1e17 FLOPs, sizes from 1/3 to 3 times the best, whose
center is misjudged by e^0.4, and normal noise on ln(loss). Prints, per design, how many of the 95% intervals hold the truth: the exponents alpha,
beta and a, the best size at 10 times the largest budget, and the measured loss of a new run at 4 and 10 times. Also with
five and six runs, for which no interval may be stated, and with laws that are not of the form that is fitted ("bent").
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from feebcore.parts import resolve_part
from feebcore.scaling.points import Law, NotIdentifiable, Point

PUBLISHED = [
    (1.69, 406.4, 410.7, 0.34, 0.28),  # Hoffmann et al. 2022
    (1.8172, 477.84, 2143.9, 0.3473, 0.3672),  # Besiroglu et al. 2024
    (1.87, 521.0, 1488.0, 0.3527, 0.3527),  # Muennighoff et al. 2023
    (1.81, 180.0, 4000.0, 0.285, 0.478),  # fits of parts of the same data, and of others
    (1.86, 290.0, 7900.0, 0.311, 0.47),
    (2.06, 110.0, 90.0, 0.248, 0.206),
    (1.31, 26.0, 20.0, 0.162, 0.122),
    (1.7, 400.0, 2000.0, 0.34, 0.37),
]


@dataclass(frozen=True)
class World:
    """E + A / N^alpha + B / D^beta, times (1 + bend ln^2(C / 1e19)), and its best size under 6 N D."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    bend: float

    def loss(self, size: Any, tokens: Any) -> Any:
        """Of numbers or arrays."""
        law = self.E + self.A / size**self.alpha + self.B / tokens**self.beta
        return law * (1 + self.bend * np.log(6 * size * tokens / 1e19) ** 2)

    @property
    def a(self) -> float:
        return self.beta / (self.alpha + self.beta)

    def best(self, flops: float) -> float:
        return (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta)) * (flops / 6) ** self.a


def runs(world: World, budgets: int, sizes: int, noise: float, rng: np.random.Generator) -> list[Point]:
    center, points = math.exp(0.4 * rng.standard_normal()), []
    for budget in 1e17 * 3.0 ** np.arange(budgets):
        for factor in np.geomspace(1 / 3, 3, sizes):
            size = round(world.best(budget) * center * factor)
            tokens = budget / 6 / size
            loss = world.loss(size, tokens) * math.exp(noise * rng.standard_normal())
            points.append(Point(f"{budget:.3g}-{size:.3g}", size, size, size, tokens, 6 * size * tokens, loss, budget))
    return points


def design(law: Law, budgets: int, sizes: int, noise: float, bend: float, worlds: int, keep: int | None = None) -> list[str]:
    """A row of the table. keep: only so many runs, chosen at random."""
    hits: list[list[bool]] = []
    widths, errors, stated, seconds = [], [], 0, 0.0
    for seed in range(worlds):
        rng = np.random.default_rng(seed)
        world = World(*PUBLISHED[seed % len(PUBLISHED)], bend)
        points = runs(world, budgets, sizes, noise, rng)
        if keep is not None:
            points = [points[i] for i in rng.choice(len(points), keep, replace=False)]
        began = time.process_time()
        try:
            fit = law.fit(points, "total", 500, seed)
        except NotIdentifiable:
            continue
        seconds += time.process_time() - began
        if not fit.intervals:
            continue
        stated += 1
        best = law.optimum(fit, 10 * fit.top_flops)
        row = [low <= truth <= high for (low, high), truth in ((fit.intervals[k], getattr(world, k)) for k in ("alpha", "beta", "a"))]
        row.append(best.size_low <= world.best(10 * fit.top_flops) <= best.size_high)
        for reach in (4, 10):
            size = world.best(reach * fit.top_flops)
            tokens = reach * fit.top_flops / 6 / size
            prediction = law.predict(fit, size, tokens)
            row.append(prediction.low <= world.loss(size, tokens) * math.exp(noise * rng.standard_normal()) <= prediction.high)
        hits.append(row)
        widths.append((fit.intervals["a"][1] - fit.intervals["a"][0], math.log(prediction.high / prediction.low)))
        errors.append(abs(math.log(prediction.loss / world.loss(size, tokens))))
    name = f"{keep} of {budgets}x{sizes}" if keep else f"{budgets}x{sizes}"
    name += f", {100 * noise:g}%" + (", bent" if bend else "")
    if not stated:
        return [name, "0", *["-"] * 9, "-"]
    covered = [f"{100 * c:.0f}" for c in np.mean(hits, 0)]
    width_a, width = np.median(widths, 0)
    return [name, str(stated), *covered, f"{width_a:.3f}", f"{100 * width:.1f}", f"{100 * float(np.median(errors)):.2f}", f"{1000 * seconds / stated:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=200)
    parser.add_argument("--law", default="posterior")
    options = parser.parse_args()
    law: Law = resolve_part("laws", options.law).build()
    print("| design, noise | with intervals | alpha | beta | a | N*(10x) | new 4x | new 10x | width a | width 10x, % | median error 10x, % | ms per fit |")
    print("|" + "---|" * 12)
    designs = [(3, 3, 0.002, 0.0, None), (3, 3, 0.005, 0.0, None), (4, 4, 0.002, 0.0, None), (4, 4, 0.005, 0.0, None), (5, 5, 0.002, 0.0, None)]
    designs += [(5, 5, 0.005, 0.0, None), (5, 5, 0.002, 0.0005, None), (3, 3, 0.002, 0.0, 6), (3, 3, 0.002, 0.0, 5)]
    for budgets, sizes, noise, bend, keep in designs:
        print("| " + " | ".join(design(law, budgets, sizes, noise, bend, options.worlds, keep)) + " |", flush=True)


if __name__ == "__main__":
    main()
