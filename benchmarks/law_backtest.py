"""Predictions of public runs from those of a tenth of their FLOPs and less: how many lie inside the stated 95% intervals.

    python benchmarks/law_backtest.py GOLD [--law posterior]

GOLD is a folder with chinchilla_epoch.csv (245 runs of Hoffmann et al. as read off by Besiroglu et al. 2024) and
porian_isoflop_points.csv (15 sets of Porian et al. 2024, interpolated to equal FLOPs); neither is part of feeb. The law is fitted to the runs up to
a tenth of the largest 6ND, and predicts the others, each at its own N and D.
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path

import numpy as np

from feebcore.parts import resolve_part
from feebcore.scaling.points import Law, NotIdentifiable, Point
from feebcore.scaling.rollouts import error_per_reach

SET = ("dataset", "hparams", "warmup", "decay", "param_count", "val")


def public_sets(gold: Path) -> dict[str, list[Point]]:
    sets: dict[str, list[Point]] = {"chinchilla": []}
    with open(gold / "chinchilla_epoch.csv") as stream:
        for i, row in enumerate(csv.DictReader(stream)):
            size, flops = float(row["Model Size"]), float(row["Training FLOP"])
            sets["chinchilla"].append(_point(i, size, flops / 6 / size, flops, float(row["loss"]), 0.0))
    with open(gold / "porian_isoflop_points.csv") as stream:
        for i, row in enumerate(csv.DictReader(stream)):
            name = " ".join(row[key] for key in SET)
            sets.setdefault(name, []).append(_point(i, float(row["n"]), float(row["t"]), float(row["flops"]), float(row["loss"]), float(row["flops"])))
    return sets


def _point(number: int, size: float, tokens: float, flops: float, loss: float, budget: float) -> Point:
    count = round(size)
    return Point(str(number), count, count, count, tokens, flops, loss, budget)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gold", type=Path)
    parser.add_argument("--law", default="posterior")
    options = parser.parse_args()
    law: Law = resolve_part("laws", options.law).build()
    print("| set | fitted | predicted | inside, % | median width, % | mean error, % | bias, % | rollouts, % per ln |\n|---|---|---|---|---|---|---|---|")
    inside: list[bool] = []
    widths: list[float] = []
    errors: list[float] = []
    for name, points in public_sets(options.gold).items():
        flops = np.array([p.flops_6nd("total") for p in points])
        cheap = [p for p, c in zip(points, flops, strict=True) if c <= flops.max() / 10]
        dear = [p for p, c in zip(points, flops, strict=True) if c > flops.max() / 10]
        try:
            fit = law.fit(cheap, "total", 500, 0)
        except NotIdentifiable as error:
            print(f"| {name} | refused: {error} |")
            continue
        predicted = [law.predict_point(fit, p) for p in dear]
        within = [q.low <= p.loss <= q.high for p, q in zip(dear, predicted, strict=True)]
        width = [math.log(q.high / q.low) for q in predicted]
        error = [math.log(q.loss / p.loss) for p, q in zip(dear, predicted, strict=True)]
        inside, widths, errors = inside + within, widths + width, errors + error
        figures = (np.mean(within), np.median(width), np.mean(np.abs(error)), np.mean(error), error_per_reach(fit))
        print(
            f"| {name} | {len(cheap)} | {len(dear)} | " + " | ".join(f"{100 * value:.{d}f}" for value, d in zip(figures, (0, 1, 2, 2, 2), strict=True)) + " |",
            flush=True,
        )
    figures = (np.mean(inside), np.median(widths), np.mean(np.abs(errors)), np.mean(errors))
    print(f"| all | | {len(inside)} | " + " | ".join(f"{100 * value:.{d}f}" for value, d in zip(figures, (1, 1, 2, 2), strict=True)) + " | |")


if __name__ == "__main__":
    main()
