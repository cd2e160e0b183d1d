"""Planner adaptive in a world whose losses are known."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping
from typing import Any

import pytest

from feeb_evals.planners.adaptive import AdaptiveConfig
from feeb_evals.planners.adaptive.adaptive import Adaptive
from feeb_evals.planners.adaptive.rates import best_factor, beyond, ridge
from feebcore.errors import FeebError
from feebcore.model.build import build_model
from feebcore.parts import resolve_part
from feebcore.protocols import Cell, Counts
from feebcore.scaling.cells import measure_with, scale_lr_of, with_overrides
from feebcore.scaling.planning import Situation
from feebcore.scaling.points import Cost, Point
from feebcore.train.config import TrainSection
from feebcore.train.pretrain import build_optimizer, lr_scale

BUDGET = 1e17


def measure(overrides: Mapping[str, Any]) -> Cost:
    """A model of 24 d^2 parameters; batch 64 of 128 tokens unless overridden."""
    size = 24 * overrides["architecture.d_model"] ** 2
    return Cost(Counts(size, size, size, 2.0 * size, 2.0 * size, 0), 6.0 * size, overrides.get("batch_size", 64), 128)


def scale_lr(overrides: Mapping[str, Any], factor: float) -> dict[str, Any]:
    return {"optimizer.lr": factor} if factor != 1.0 else {}


@dataclasses.dataclass
class World:
    """The best D / N is `ratio`; the best learning rate `lr`, whatever the size."""

    ratio: float = 20.0
    lr: float = 1.0
    diverges: str = ""
    noise: float = 0.001
    seed: str = ""

    def point(self, cell: Cell) -> Point:
        size, tokens = measure(cell.overrides).counts.total, cell.flops / measure(cell.overrides).flops_per_token
        off = math.log(cell.overrides.get("optimizer.lr", 1.0) / self.lr)
        noise = random.Random(f"{cell.name}{cell.overrides.get('seed')}{self.seed}").gauss(0, self.noise)
        loss = (1.7 + 60 * size**-0.36 + 60 * (tokens / self.ratio) ** -0.36) * math.exp(0.006 * off**2 + noise)
        return Point(cell.name, size, size, size, tokens, cell.flops, loss, cell.budget, heldout=cell.heldout)


def situation(**changes: Any) -> Situation:
    return dataclasses.replace(Situation(measure, scale_lr, "total", resolve_part("laws", "posterior").build(), target=BUDGET), **changes)


def planner(**options: Any) -> Adaptive:
    return Adaptive(AdaptiveConfig(**{"budget": BUDGET} | options))


def play(world: World, order: random.Random | None = None, known: Situation | None = None, **options: Any) -> tuple[list[Cell], Situation]:
    """All runs, asked for anew after each that ends; order: in which the runs of a round end."""
    made, known = planner(**options), known or situation()
    points: dict[str, Point] = {}
    ended: set[str] = set()
    while True:
        now = dataclasses.replace(known, points=dict(points), ended=frozenset(ended))
        cells = made.propose(now)
        waiting = [cell for cell in cells if cell.name not in ended]
        if not waiting:
            return cells, now
        cell = order.choice(waiting) if order else waiting[0]
        assert cell.round == min(c.round for c in waiting)
        ended.add(cell.name)
        if cell.name != world.diverges:
            points[cell.name] = world.point(cell)


def test_the_budget_is_spent_on_rungs_and_ends_with_a_held_out_run() -> None:
    cells, known = play(World())
    assert len({c.name for c in cells}) == len(cells)
    assert 0.8 < sum(c.flops for c in cells) / BUDGET <= 0.95
    assert cells[-1].heldout
    assert [c for c in cells if c.heldout] == cells[-1:]
    assert cells[-1].flops == pytest.approx(0.3 * BUDGET, rel=0.02)
    rungs = {n: [c for c in cells if c.name.startswith(f"rung{n}-") and "seed" not in c.name] for n in (1, 2, 3, 4)}
    assert [len(rungs[n]) for n in rungs] == [5, 3, 3, 3]
    for number, divisor in ((1, 270), (2, 90), (3, 30), (4, 10)):
        assert all(c.flops == pytest.approx(BUDGET / divisor, rel=0.02) for c in rungs[number])
    assert {c.name.partition("-")[0] for c in cells if c.predicted} == {"rung3", "rung4", "heldout"} | {f"extra{i}" for i in range(1, 20)} & {
        c.name.partition("-")[0] for c in cells
    }
    assert sum("seed" in c.overrides for c in cells) == 2
    law = known.law
    fit = law.fit([*planner().fitted(list(known.points.values())), known.points[cells[-1].name]], "total", 300, 0)
    size = math.sqrt(BUDGET / 6 / 20)
    assert law.predict(fit, size, 20 * size).loss == pytest.approx(1.7 + 120 * size**-0.36, rel=0.01)


def test_the_order_in_which_runs_end_changes_nothing() -> None:
    first, _ = play(World(ratio=60.0, lr=2.5))
    other, _ = play(World(ratio=60.0, lr=2.5), random.Random(3))
    assert first == other


@pytest.mark.parametrize("ratio", [4.0, 100.0])
def test_sizes_are_moved_to_where_the_minimum_is(ratio: float) -> None:
    cells, _ = play(World(ratio=ratio))
    size = measure(cells[-1].overrides).counts.total
    best = math.sqrt(cells[-1].flops / 6 / ratio)
    assert 0.7 < size / best < 1.4


@pytest.mark.parametrize("lr", [0.2, 1.0, 4.0])
def test_learning_rates_are_corrected_by_the_probe(lr: float) -> None:
    cells, known = play(World(lr=lr))
    probed = {float(c.name.rpartition("x")[2]) for c in cells if c.name.startswith("probe")}
    assert min(probed) < lr < max(probed)
    assert planner().lr_factor(known, 1e6, 1e8) == pytest.approx(lr, rel=0.35)
    assert cells[-1].overrides.get("optimizer.lr", 1.0) == pytest.approx(lr, rel=0.45)


@pytest.mark.parametrize(
    "rule",
    [
        {"name": "horizon", "reference_tokens": 200_000, "reference_batch_tokens": 1024},
        {"name": "steplaw", "reference_parameters": 10_000, "reference_tokens": 200_000},
    ],
)
def test_the_probe_multiplies_what_the_recipes_rule_says(rule: dict[str, Any]) -> None:
    """Each probe run's optimizer has the recipe's rate times the rule's factor for that run's own size and length, times the probe's."""
    train = TrainSection.model_validate(
        {
            "architecture": {"name": "transformer", "num_layers": 2, "num_heads": 2},
            "optimizer": {"name": "adamw", "lr": 0.01},
            "lr_scaling": rule,
            "seq_len": 64,
        }
    )
    known = situation(measure=measure_with(train, 258), scale_lr=scale_lr_of(train), target=0.0)
    cells = planner(budget=3e13, min_steps=50, sizes=[{"d_model": width} for width in (16, 24, 32, 48, 64)]).propose(known)
    seen = set()
    for cell in cells:
        section = with_overrides(train, cell.overrides)
        model = build_model(section.architecture, 258, section.seq_len, device="meta")
        scale = lr_scale(section, model)
        assert scale == lr_scale(with_overrides(train, {key: value for key, value in cell.overrides.items() if not key.endswith("lr")}), model)
        expected = 0.01 * float(cell.name.rpartition("x")[2]) * scale.of("matrix")
        assert build_optimizer(section, model).param_groups[0]["lr"] == pytest.approx(expected, rel=1e-5)
        seen.add(scale.of("matrix"))
    assert len(cells) == 12
    assert len(seen) == 4  # one a place: the rule knows the runs apart


def test_a_rate_that_stays_at_the_edge_is_flagged_and_not_exceeded() -> None:
    cells, known = play(World(lr=500.0))
    assert max(float(c.name.rpartition("x")[2]) for c in cells if c.name.startswith("probe")) == 16.0
    assert planner().lr_factor(known, 1e6, 1e8) <= 16.0
    (note,) = planner().notes(known)
    assert note.startswith("rate_edges: at 4 places of 4")


@pytest.mark.slow
def test_a_run_that_diverged_is_left_out_and_the_rest_goes_on() -> None:
    name = next(c.name for c in play(World())[0] if c.name.startswith("rung2-"))
    cells, known = play(World(diverges=name))
    assert name not in known.points
    assert cells[-1].heldout


@pytest.mark.slow
def test_the_plan_is_what_it_expects_to_run() -> None:
    cells = planner().plan(situation())
    assert [c.name for c in cells[:12]] == [c.name for c in play(World())[0][:12]]
    assert cells[-1].heldout
    assert sum(c.flops for c in cells) <= 0.95 * BUDGET


def test_sizes_may_be_listed() -> None:
    sizes = [{"d_model": 8 * width} for width in (2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64)]
    cells, _ = play(World(), sizes=sizes)
    assert {c.overrides["architecture.d_model"] for c in cells} <= {size["d_model"] for size in sizes}
    assert not any("architecture.num_heads" in c.overrides for c in cells)


@pytest.mark.parametrize(
    ("options", "changes", "sentence"),
    [
        ({}, {"target": 1e20}, r"the target of 1e\+20 FLOPs is 3333 times the held-out run.*raise the budget to 1.1e\+18 FLOPs"),
        ({"budget": 1e11}, {"target": 0.0}, r"at the cheapest rung of .* raise the budget"),
        ({"sizes": [{"d_model": 16}, {"d_model": 32}]}, {}, "2 sizes are too few"),
        ({}, {"train_tokens": 100_000}, r"4 epochs"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_what_to_change(options: dict[str, Any], changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(FeebError, match=sentence):
        planner(**options).plan(situation(**changes))


def test_the_best_rate_of_a_place_and_the_ridge_through_them() -> None:
    losses = {factor: 3.0 * math.exp(0.006 * math.log(factor / 1.3) ** 2) for factor in (0.5, 1.0, 2.0)}
    assert beyond(losses, [0.5, 1.0, 2.0]) is None
    place = best_factor(1e6, 2e7, losses, at_edge=False)
    assert math.exp(place.ln_factor) == pytest.approx(1.3, rel=0.05)
    assert not place.problem
    assert beyond({0.5: 3.0, 1.0: 3.1, 2.0: 3.2}, [0.5, 1.0, 2.0]) == 0.25
    assert beyond({0.5: 3.2, 1.0: 3.1}, [0.5, 1.0, 2.0]) is None  # 2.0 diverged: it is no edge
    assert ridge([]).factor(1e6, 1e7) == 1.0
    level = ridge([dataclasses.replace(place, ln_factor=0.5, variance=1e-4, size=1e6 * k, tokens=1e7 / k) for k in (1, 4, 16)])
    assert math.log(level.factor(1e6, 1e7)) == pytest.approx(0.5, abs=0.05)


def test_without_head_dim_every_width_has_the_recipes_heads() -> None:
    assert all("architecture.num_heads" in cell.overrides for cell in planner().plan(situation()))
    assert not any("architecture.num_heads" in cell.overrides for cell in planner(head_dim=None).plan(situation()))


@pytest.mark.parametrize("seed", ["a", "b", "c", "d", "e", "f"])
def test_runs_beyond_edges_do_not_exceed_the_budget(seed: str) -> None:
    cells, _ = play(World(noise=0.3, seed=seed))  # so noisy that the best size and rate are often at an edge
    assert sum(cell.flops for cell in cells) <= 0.95 * BUDGET
    assert cells[-1].heldout
