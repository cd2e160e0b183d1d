"""Published fits from their public points: Besiroglu et al. 2024 by law `chinchilla`, the exponents of Porian et al. 2024 by isoFLOP minima.

    python benchmarks/law_gold.py GOLD

GOLD: as for law_backtest.py, with porian_fits.csv as well. tests/scaling checks the same numbers within tolerances.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

from law_backtest import SET, public_sets

from feebcore.scaling.fit import fit_chinchilla
from feebcore.scaling.isoflop import allocate, minima
from feebcore.scaling.posterior import fit_posterior

PUBLISHED = {
    "E": (1.817236, 1.769, 1.871),
    "A": (477.842, 285.0, 744.0),
    "B": (2143.864, 1042.0, 5810.0),
    "alpha": (0.347313, 0.317, 0.373),
    "beta": (0.367183, 0.331, 0.415),
}
"""Besiroglu et al.: minimum of the Huber losses, and ends of 95% intervals."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gold", type=Path)
    gold = parser.parse_args().gold
    sets = public_sets(gold)
    points = sorted(sets.pop("chinchilla"), key=lambda p: p.loss)[:-5]  # as the authors did
    began = time.process_time()
    fit, posterior = fit_chinchilla(points, "total", 1000, 42), fit_posterior(points, "total")
    print(f"{len(points)} points, sum of Huber losses {fit.objective:.7g} (published 0.001018274), both fits {time.process_time() - began:.1f} CPU seconds\n")
    print("| | published | 95% interval | `chinchilla` | 95% interval | `posterior` | 95% interval |\n|---|---|---|---|---|---|---|")
    for name, (value, low, high) in PUBLISHED.items():
        columns = [f"{value:.5g} | {low:g} to {high:g}"]
        columns += [f"{f.parameters[name]:.5g} | {f.intervals[name][0]:.4g} to {f.intervals[name][1]:.4g}" for f in (fit, posterior)]
        print(f"| {name} | " + " | ".join(columns) + " |")
    print("\n| set of Porian et al. | published a | 95% interval | Akima | 95% interval | parabola | 95% interval |\n|---|---|---|---|---|---|---|")
    with open(gold / "porian_fits.csv") as stream:
        for row in csv.DictReader(stream):
            name = " ".join(row[key] for key in SET)
            columns = [f"{float(row['bmw_n_exponent']):.3f} | {float(row['n_ci_lo']):.3f} to {float(row['n_ci_hi']):.3f}"]
            for method in ("akima", "parabola"):
                found = allocate(minima(sets[name], "total", method))  # type: ignore[arg-type]
                columns.append(f"{found.exponent:.3f} | {found.low:.3f} to {found.high:.3f}")
            print(f"| {name} | " + " | ".join(columns) + " |")


if __name__ == "__main__":
    main()
