"""Planner `adaptive` against a fixed grid of the same FLOPs, in worlds whose loss is known.

    python benchmarks/planner_worlds.py [--worlds 20] [--reach 10] [--scenario rule constant tuned bent] [--seed 1000]

A world is a law E + A N^-alpha + B D^-beta with exponents and constants drawn around published ones, seed noise of
.3 % at the cheapest rung that falls with compute, an offset of .1 % of each size, a transient of 2 % (230 / steps)^1.5 and a learning rate that costs .6 %
per squared ln. Scenarios: the recipe's rule is right within .1 in its exponents (rule), it is one constant rate (constant), it is right
(tuned), or the two terms do not simply add (bent). The grid: 5 budgets 3 apart x 5 sizes around 20 tokens per parameter, the
user's rates, law `chinchilla`. Error: predicted over actual loss of the run that the plan itself recommends at `reach` times the grid's
largest budget. Excess: that run's loss over the best possible.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from feebcore.parts import resolve_part
from feebcore.protocols import Cell, Counts
from feebcore.scaling.allocation import best_size, cost_of_a_token
from feebcore.scaling.planning import Situation, solve_steps
from feebcore.scaling.points import Cost, LawFit, NotIdentifiable, Point

SCENARIOS = ("rule", "constant", "tuned", "bent")
BUDGET = 1e19
WINDOW, BATCH, LR = 1024, 64, 1.0


def size_of(width: int) -> int:
    return 12 * max(1, round(width / 64)) * width**2


def measure(overrides: Mapping[str, Any]) -> Cost:
    """A model of 12 l d^2 parameters at 64 channels a layer; a token costs 6 N and attention over the window."""
    width = overrides["architecture.d_model"]
    size = size_of(width)
    flops = 6.0 * size + 6.0 * max(1, round(width / 64)) * width * WINDOW
    return Cost(Counts(size, size, size, flops / 3, flops / 3, 0), flops, overrides.get("batch_size", BATCH), WINDOW)


def scale_lr(overrides: Mapping[str, Any], factor: float) -> dict[str, Any]:
    return {"optimizer.lr": LR * factor}


@dataclass(frozen=True)
class World:
    """The truth. rate: ln of the best multiple of the recipe's rate is rate[0] + rate[1] ln(N / N0) + rate[2] ln(D / D0)."""

    scenario: str
    level: float
    by_size: float
    by_tokens: float
    alpha: float
    beta: float
    bend: float
    rate: tuple[float, float, float]
    seed: int

    def ln_best_rate(self, size: float, tokens: float) -> float:
        return self.rate[0] + self.rate[1] * math.log(size / 1e8) + self.rate[2] * math.log(tokens / 2e9)

    def loss(self, size: float, tokens: float, ln_rate: float | None = None) -> float:
        """Without noise; ln_rate None: at the best rate."""
        terms = ((self.by_size * size**-self.alpha) ** (1 / self.bend) + (self.by_tokens * tokens**-self.beta) ** (1 / self.bend)) ** self.bend
        off = 0.0 if ln_rate is None else ln_rate - self.ln_best_rate(size, tokens)
        return (self.level + terms) * math.exp(0.006 * off**2)

    def point(self, cell: Cell) -> Point:
        cost = measure(cell.overrides)
        size, tokens = cost.counts.total, cell.flops / cost.flops_per_token
        rng = np.random.default_rng([self.seed, size, int(tokens), int(cell.overrides.get("seed", 0)), int(1e6 * cell.overrides.get("optimizer.lr", LR))])
        noise = 0.003 * (cell.flops / 4e16) ** -0.1 * rng.standard_normal()
        offset = 0.001 * np.random.default_rng([self.seed, size]).standard_normal()
        transient = 0.02 * (230 / cell.overrides["max_steps"]) ** 1.5
        loss = self.loss(size, tokens, math.log(cell.overrides.get("optimizer.lr", LR))) * math.exp(noise + offset + transient)
        return Point(cell.name, size, size, size, tokens, cell.flops, loss, cell.budget, heldout=cell.heldout)

    def best_loss(self, flops: float) -> float:
        widths = np.arange(64, 1 << 15, 64)
        return min(self.loss(size_of(int(w)), flops / measure({"architecture.d_model": int(w)}).flops_per_token) for w in widths)


def world(scenario: str, seed: int) -> World:
    rng = np.random.default_rng([seed, 7])
    alpha, beta = np.exp(rng.normal(np.log(0.35), 0.15, 2))
    level = rng.uniform(1.6, 2.0)
    size, tokens = 1e8, 2e9 * math.exp(rng.normal(0, 0.4))
    share = rng.uniform(0.9, 1.4)
    rates = {
        "rule": (rng.normal(0, 0.3), rng.normal(0, 0.1), rng.normal(0, 0.1)),
        "bent": (rng.normal(0, 0.3), rng.normal(0, 0.1), rng.normal(0, 0.1)),
        "constant": (rng.normal(0, 0.3), rng.normal(-0.25, 0.05), rng.normal(-0.15, 0.05)),
        "tuned": (0.0, 0.0, 0.0),
    }
    bend = rng.uniform(1.15, 1.4) if scenario == "bent" else 1.0
    return World(scenario, level, share * size**alpha, share * (beta / alpha) ** -1 * tokens**beta, alpha, beta, bend, rates[scenario], seed)


def situation(target: float) -> Situation:
    return Situation(measure, scale_lr, "total", resolve_part("laws", "posterior").build(), target)


def adaptive(truth: World, target: float) -> dict[str, float]:
    planner = resolve_part("planners", {"name": "adaptive", "budget": BUDGET, "width_step": 32, "head_dim": 32, "aspect_ratio": 64}).build()
    known, points = situation(target), {}
    while True:
        now = replace(known, points=dict(points), ended=frozenset(points))
        cells = planner.propose(now)
        fresh = [cell for cell in cells if cell.name not in points]
        if not fresh:
            break
        points |= {cell.name: truth.point(cell) for cell in fresh}
    measured = list(points.values())
    fit = known.law.fit([*planner.fitted(measured), *(p for p in measured if p.heldout)], "total", 300, 0)
    return outcome(truth, known.law, fit, measured, target, lambda n, d: math.log(planner.lr_factor(now, n, d))) | {
        "runs": len(points),
        "spent": sum(p.flops for p in measured) / BUDGET,
    }


def grid(truth: World, target: float) -> dict[str, float]:
    budgets = [BUDGET * 3.0**-i / sum(3.0**-j for j in range(5)) / 5 for i in range(5)]
    cells = []
    for budget in budgets:
        middle = math.sqrt(budget / 6 / 20)
        for multiple in (1 / 3, 3**-0.5, 1.0, 3**0.5, 3.0):
            width = min(range(64, 1 << 14, 32), key=lambda w: abs(math.log(size_of(w) / (middle * multiple))))
            overrides, exact = solve_steps("grid", "run", {"architecture.d_model": width}, budget, measure, 100, 0.1)
            cells.append(Cell(f"{budget:.3g}-{width}", overrides, exact, budget=budget))
    points = [truth.point(cell) for cell in cells]
    law = resolve_part("laws", "chinchilla").build()
    return outcome(truth, law, law.fit(points, "total", 200, 0), points, target, lambda size, tokens: 0.0)


def outcome(truth: World, law: Any, fit: LawFit, points: list[Point], target: float, ln_factor: Any) -> dict[str, float]:
    cost = cost_of_a_token(points, "total")
    size = best_size(law, fit, target, cost)
    tokens = target / cost(size)
    prediction = law.predict(fit, size, tokens)
    actual = truth.loss(size, tokens, ln_factor(size, tokens))
    inside = prediction.low <= actual <= prediction.high
    needed = abs(math.log(prediction.loss / actual))
    width = (prediction.high - prediction.low) / prediction.loss
    return {"error": 100 * needed, "excess": 100 * (actual / truth.best_loss(target) - 1), "inside": inside, "width": 100 * width}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=20)
    parser.add_argument("--reach", type=float, nargs="+", default=[10.0])
    parser.add_argument("--scenario", nargs="+", default=SCENARIOS, choices=SCENARIOS)
    parser.add_argument("--seed", type=int, default=1000)
    options = parser.parse_args()
    largest = BUDGET / sum(3.0**-j for j in range(5)) / 5
    for scenario in options.scenario:
        for reach in options.reach:
            rows: dict[str, list[dict[str, float]]] = {"adaptive": [], "grid": []}
            began = time.process_time()
            for number in range(options.worlds):
                truth = world(scenario, options.seed + number)
                rows["adaptive"].append(adaptive(truth, reach * largest))
                try:
                    rows["grid"].append(grid(truth, reach * largest))
                except NotIdentifiable:
                    continue
            line = {"scenario": scenario, "reach": reach, "worlds": options.worlds, "seconds": round(time.process_time() - began, 1)}
            for name, found in rows.items():
                of = {key: np.array([row[key] for row in found]) for key in found[0]}
                line[name] = {"mean": round(of["error"].mean(), 3), "p90": round(float(np.percentile(of["error"], 90)), 3)} | {
                    "excess": round(of["excess"].mean(), 3),
                    "inside": round(100 * of["inside"].mean(), 1),
                    "width": round(float(np.median(of["width"])), 2),
                }
                if name == "adaptive":
                    line[name] |= {"runs": round(of["runs"].mean(), 1), "spent": round(of["spent"].mean(), 3)}
            line["ratio"] = round(line["adaptive"]["mean"] / line["grid"]["mean"], 3)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
