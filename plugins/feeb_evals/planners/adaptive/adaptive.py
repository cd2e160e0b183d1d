"""Rounds of runs, each a function of what all runs before it measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from feeb_evals.planners.adaptive.rates import Best, Ridge, best_factor, beyond, ridge
from feeb_evals.planners.adaptive.sizes import Sized, Sizes, given_sizes, width_of, widths
from feebcore.errors import FeebError, plural
from feebcore.protocols import Cell
from feebcore.scaling.isoflop import minima
from feebcore.scaling.planning import Planner, Situation, dotted, solve_steps
from feebcore.scaling.points import LawFit, NotIdentifiable, Point

if TYPE_CHECKING:
    from feeb_evals.planners.adaptive import AdaptiveConfig
    from feebcore.protocols import BuildContext

TOP_SHARE = 10.0
"""The top rung has budget / TOP_SHARE."""
RUNGS = ((27.0, (0.25, 0.5, 1.0, 2.0, 4.0)), (9.0, (1 / 3, 1.0, 3.0)), (3.0, (0.4, 1.0, 2.5)), (1.0, (0.5, 1.0, 2.0)))
"""Of each rung: the top rung's FLOPs over its own, and its sizes as multiples of the best one."""
HELDOUT = 3.0
"""FLOPs of the held-out run over those of the top rung."""
RESERVE = 0.05
"""Share of the budget that is kept for runs that are tried again."""
LONGEST_REACH = 300.0
"""FLOPs of the target over those of the held-out run, from which a forecast is refused."""
EXTENSIONS = 3
"""Runs beyond an edge: of one rung's sizes, and of one place's rates."""
MOST_EXTRA = 12
"""Runs that the rest of the budget is spent on."""
FARTHEST = math.log(4.0)
"""ln of a size over the best one of its budget, beyond which the law is not trusted to say what a run tells."""
NOISE = 0.002
DRAWS = 300


class Adaptive(Planner):
    """Probe of learning rates, rungs from cheap to dear, runs where they help the target, then the held-out run.

    Learning rates are those of the recipe's rule (`lr_scaling`) times a ridge in ln N and ln D through the best of the probe's places.
    From the third rung on every run is predicted before it starts. Which run helps: the largest
    cov(ln L(target), ln L(run))^2 / (var ln L(run) + noise^2) per FLOP, over draws of the law.
    """

    config: AdaptiveConfig

    def __init__(self, config: AdaptiveConfig, context: BuildContext | None = None) -> None:
        super().__init__(config, context)
        self._laws: dict[tuple[Point, ...], LawFit | None] = {}

    def overrides(self) -> list[dict[str, Any]]:
        if self.config.sizes:
            return [dotted(size) for size in self.config.sizes]
        return [dotted(width_of(2 * self.config.width_step, self.config.head_dim, self.config.aspect_ratio))]

    def propose(self, known: Situation) -> list[Cell]:
        return _Rounds(self, known).cells

    def plan(self, known: Situation) -> list[Cell]:
        """What it would propose if the first guesses were right: losses of a law with its optimum at `tokens_per_parameter`, rates that are best as
        they are."""
        points: dict[str, Point] = {}
        while True:
            cells = self.propose(dataclasses.replace(known, points=points, ended=frozenset(points)))
            if all(cell.name in points for cell in cells):
                return cells
            for cell in cells:
                if cell.name not in points:
                    points[cell.name] = self._guess(cell, known)

    def fitted(self, points: Sequence[Point]) -> list[Point]:
        """Of the probe's runs only the best of each place: the others have rates that are known to be wrong."""
        places: dict[str, list[Point]] = {}
        for point in points:
            if point.name.startswith(PROBE):
                places.setdefault(point.name.rpartition("-")[0], []).append(point)
        best = {min(place, key=lambda p: p.loss).name for place in places.values()}
        return [p for p in points if not p.heldout and (not p.name.startswith(PROBE) or p.name in best)]

    def notes(self, known: Situation) -> list[str]:
        return _Rounds(self, known).notes

    def sized(self, known: Situation, size: float, flops: float) -> dict[str, Any]:
        if self.config.sizes:
            return super().sized(known, size, flops)
        config = self.config
        made = widths(config.width_step, config.head_dim, config.aspect_ratio, size, known.measure, known.parameter_count)
        return dict(made.nearest(size, made.sizes).overrides)

    def lr_factor(self, known: Situation, size: float, tokens: float) -> float:
        return _Rounds(self, known).ridge.factor(size, tokens)

    def lr_probe(self, known: Situation) -> dict[str, Any] | None:
        rounds = _Rounds(self, known)
        if not rounds.probed:
            return None
        (level, by_size, by_tokens), (ln_size, ln_tokens) = rounds.ridge.coefficients, rounds.ridge.center
        ridge = {"c0": level, "c1": by_size, "c2": by_tokens, "N": math.exp(ln_size), "D": math.exp(ln_tokens)}
        return {"places": rounds.probed, "ridge": ridge}

    def law_of(self, points: Sequence[Point], known: Situation) -> LawFit | None:
        """The law through `points`; None where they do not determine it. What was fitted once is kept: every round asks for all before it."""
        key = tuple(points)
        if key not in self._laws:
            try:
                self._laws[key] = known.law.fit(points, known.parameter_count, DRAWS, known.seed)
            except NotIdentifiable:
                self._laws[key] = None
        return self._laws[key]

    def _guess(self, cell: Cell, known: Situation) -> Point:
        cost = known.measure(cell.overrides)
        size, tokens = getattr(cost.counts, known.parameter_count), cell.flops / cost.flops_per_token
        factor = float(cell.name.rpartition("x")[2]) if cell.name.startswith(PROBE) else 1.0
        exponent = 0.38
        loss = 1.5 + 60.0 * (size**-exponent + (tokens / self.config.tokens_per_parameter) ** -exponent)
        counts = cost.counts
        parameters = (counts.total, counts.non_embedding, counts.matmul)
        return Point(cell.name, *parameters, tokens, cell.flops, loss * math.exp(0.006 * math.log(factor) ** 2), cell.budget, heldout=cell.heldout)


PROBE = "probe"


def _probe_name(number: int, size: Sized, factor: float) -> str:
    return f"{PROBE}{number}-{size.name}-x{factor:g}"


class _Rounds:
    """All rounds that `known` determines, in `cells`; the last one is that which is to be run."""

    def __init__(self, planner: Adaptive, known: Situation) -> None:
        self.planner, self.config, self.known = planner, planner.config, known
        config = planner.config
        self.cells: list[Cell] = []
        self.notes: list[str] = []
        self.ridge = Ridge()
        self.probed: list[dict[str, Any]] = []
        self.top = config.budget / TOP_SHARE
        self.round = 0
        self._refuse()
        self.sizes = self._sizes()
        self._refuse_epochs()
        self._run()

    def _refuse(self) -> None:
        reach = self.known.target / (HELDOUT * self.top)
        if reach > LONGEST_REACH:
            least = self.known.target / LONGEST_REACH / HELDOUT * TOP_SHARE
            raise FeebError(
                f"planner adaptive: the target of {self.known.target:.3g} FLOPs is {reach:.0f} times the held-out run, and nothing is forecast beyond "
                f"{LONGEST_REACH:.0f} times; raise the budget to {least:.2g} FLOPs or lower the target"
            )

    def _refuse_epochs(self) -> None:
        flops = max(self.known.target, HELDOUT * self.top)
        tokens = flops / self.sizes.flops_per_token(self._guessed_size(flops))
        there = self.known.train_tokens
        if there and tokens > self.config.max_epochs * there:
            what = "target" if flops == self.known.target else "held-out run"
            raise FeebError(
                f"planner adaptive: the {what} of {flops:.3g} FLOPs needs about {tokens:.3g} tokens, {tokens / there:.1f} epochs of the {there:.3g} training tokens, "
                f"and the law is one of fresh data: at most {self.config.max_epochs:g} epochs (max_epochs); add text, or lower the {'target' if flops == self.known.target else 'budget'}"
            )

    def _sizes(self) -> Sizes:
        config, known = self.config, self.known
        if config.sizes:
            return given_sizes(config.sizes, known.measure, known.parameter_count)
        # larger than any that can be paid for, whichever parameters are counted
        largest = math.sqrt(HELDOUT * self.top / (2 * self.config.min_tokens_per_parameter))
        return widths(config.width_step, config.head_dim, config.aspect_ratio, largest, known.measure, known.parameter_count)

    # --- the rounds ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Returns as soon as a round has not ended."""
        if self.config.rate_factors and not self._probe():
            return
        for number, (divisor, multiples) in enumerate(RUNGS, 1):
            if not self._rung(number, self.top / divisor, multiples):
                return
        if not self._extra():
            return
        heldout = self._heldout_size()
        self._add([self._cell("heldout", heldout, HELDOUT * self.top, heldout=True)])

    def _add(self, cells: Sequence[Cell]) -> bool:
        """One more round; whether all of it has ended."""
        fresh = [dataclasses.replace(cell, round=self.round) for cell in cells]
        self.cells += fresh
        self.round += 1
        return all(cell.name in self.known.ended for cell in fresh)

    def _probe(self) -> bool:
        """Rates at the small and the large end of rung 1, and at the small end and the middle of rung 2."""
        first, second = self.top / RUNGS[0][0], self.top / RUNGS[1][0]
        places = []
        for flops, multiple in ((first, 0.5), (first, 2.0), (second, 1 / 3), (second, 1.0)):
            allowed = self._allowed(flops)
            if not allowed:
                continue
            size = self.sizes.nearest(self._best_size(flops) * multiple, allowed)
            if (size, flops) not in places:
                places.append((size, flops))
        tried = {place: [float(f) for f in self.config.rate_factors] for place in places}
        fresh = [(place, factor) for place in places for factor in tried[place]]
        for extension in range(EXTENSIONS + 1):
            if not self._add([self._probe_cell(number, *place, factor) for number, place in enumerate(places, 1) for p, factor in fresh if p == place]):
                return False
            if extension == EXTENSIONS:
                break
            fresh = [(place, f) for i, place in enumerate(places, 1) if (f := beyond(self._losses(i, place, tried[place]), tried[place])) is not None]
            if not fresh or not self._affords(sum(flops for (_, flops), _ in fresh), 0):
                break
            for place, factor in fresh:
                tried[place].append(factor)
        found = []
        for number, (size, flops) in enumerate(places, 1):
            losses = self._losses(number, (size, flops), tried[(size, flops)])
            if losses:
                edge = beyond(losses, tried[(size, flops)]) is not None
                found.append(best := best_factor(size.size, size.tokens(flops), losses, edge))
                runs = [{"name": _probe_name(number, size, f), "factor": f, "loss": losses.get(f)} for f in sorted(tried[(size, flops)])]
                about = {"N": best.size, "D": best.tokens, "flops": flops, "best": math.exp(best.ln_factor), "problem": best.problem}
                self.probed.append(about | {"curve": list(best.curve), "tried": runs})
        self._note_rates(found)
        self.ridge = ridge(found)
        return True

    def _note_rates(self, found: Sequence[Best]) -> None:
        if edges := [place for place in found if place.problem]:
            self.notes.append(
                f"rate_edges: at {plural(len(edges), 'place')} of {len(found)} of the learning-rate probe the best rate is at the edge of those tried "
                f"(times {', '.join(f'{math.exp(place.ln_factor):.3g}' for place in edges)}); correct the recipe's learning rates and plan again"
            )

    def _probe_cell(self, number: int, size: Sized, flops: float, factor: float) -> Cell:
        return self._cell(_probe_name(number, size, factor), size, flops, factor=factor, plain=True)

    def _losses(self, number: int, place: tuple[Sized, float], factors: Sequence[float]) -> dict[float, float]:
        names = {factor: _probe_name(number, place[0], factor) for factor in factors}
        return {factor: self.known.points[name].loss for factor, name in names.items() if name in self.known.points}

    def _rung(self, number: int, flops: float, multiples: Sequence[float]) -> bool:
        allowed = self._allowed(flops)
        best = self._best_size(flops)
        chosen: list[Sized] = []
        for multiple in multiples:
            if others := [size for size in allowed if size not in chosen]:
                chosen.append(self.sizes.nearest(best * multiple, others))
        chosen.sort(key=lambda size: size.size)
        if number == 1 and len(chosen) < 4:
            raise FeebError(
                f"planner adaptive: at the cheapest rung of {flops:.3g} FLOPs only {plural(len(chosen), 'size')} can train {self.config.min_steps} steps "
                f"on {self.config.min_tokens_per_parameter:g} tokens per parameter; raise the budget, or lower min_steps, min_tokens_per_parameter or the smallest size"
            )
        fresh = [self._cell(f"rung{number}-{size.name}", size, flops, predicted=number >= 3) for size in chosen]
        if number == 2:
            fresh += self._repeats()
        for extension in range(EXTENSIONS + 1):
            if not self._add(fresh):
                return False
            if (size := self._beyond_edge(number, chosen, allowed)) is None:
                return True
            if extension == EXTENSIONS or not self._affords(flops, number):
                break
            chosen.append(size)
            fresh = [self._cell(f"rung{number}-{size.name}", size, flops, predicted=number >= 3)]
        self.notes.append(f"size_edge: the best size of rung {number} ({flops:.3g} FLOPs) is still at the edge of those trained")
        return True

    def _affords(self, flops: float, number: int) -> bool:
        """Whether runs beyond an edge of rung `number` (0: the probe) leave enough for the rungs that follow and the held-out run."""
        rungs = sum(len(multiples) * self.top / divisor for divisor, multiples in RUNGS[number:])
        repeats = (self.config.seeds - 1) * self.top / RUNGS[0][0] if number < 2 else 0.0
        spent = sum(cell.flops for cell in self.cells)
        return spent + flops + rungs + repeats + HELDOUT * self.top <= self.config.budget * (1 - RESERVE)

    def _beyond_edge(self, number: int, chosen: Sequence[Sized], allowed: Sequence[Sized]) -> Sized | None:
        """A size beyond that of least loss, where that one is the smallest or largest of its rung."""
        losses = {size.size: p.loss for size in chosen if (p := self.known.points.get(f"rung{number}-{size.name}")) is not None}
        if len(losses) < 2:
            return None
        best = min(losses, key=lambda size: losses[size])
        if best == min(losses):
            size, side = best / 2, [size for size in allowed if size.size < best]
        elif best == max(losses):
            size, side = best * 2, [size for size in allowed if size.size > best]
        else:
            return None
        return self.sizes.nearest(size, side) if side else None

    def _repeats(self) -> list[Cell]:
        """More seeds of rung 1's middle run."""
        first = [cell for cell in self.cells if cell.name.startswith("rung1-")]
        middle = first[len(first[: len(RUNGS[0][1])]) // 2]
        repeated = []
        for number in range(1, self.config.seeds):
            overrides = middle.overrides | {"seed": self.known.seed + number}
            repeated.append(dataclasses.replace(middle, name=f"{middle.name}-seed{self.known.seed + number}", overrides=overrides))
        return repeated

    def _extra(self) -> bool:
        """Runs of rungs 2 to 4 one after the other, where they tell most about the target for their FLOPs."""
        for number in range(1, MOST_EXTRA + 1):
            fit = self._fit()
            if fit is None or not len(draws := fit.draws):
                return True
            target = self._ln_losses(fit, draws, *self._best_of_target(fit))
            if self.known.target and self.config.tolerance and float(target.std()) < self.config.tolerance:
                return True
            left = self.config.budget * (1 - RESERVE) - HELDOUT * self.top - sum(cell.flops for cell in self.cells)
            cell = self._most_helpful(number, fit, draws, target, left)
            if cell is None:
                return True
            if not self._add([cell]):
                return False
        return True

    def _most_helpful(self, number: int, fit: LawFit, draws: np.ndarray, target: np.ndarray, left: float) -> Cell | None:
        taken = {(cell.budget, self._number(cell)) for cell in self.cells}
        best: tuple[float, Sized, float] | None = None
        for divisor, _ in RUNGS[1:]:
            flops = self.top / divisor
            if flops > left:
                continue
            best_size = self._optimum(fit, flops)
            for size in self._allowed(flops):
                if (flops, size.size) in taken or abs(math.log(size.size / best_size)) > FARTHEST:
                    continue
                ln_loss = self._ln_losses(fit, draws, size.size, size.tokens(flops))
                misfit = self._misfit(size, flops, fit)
                variance = float(ln_loss.var()) + NOISE**2 + misfit**2
                covariance = float(np.mean((target - target.mean()) * (ln_loss - ln_loss.mean())))
                gain = covariance**2 / variance / flops
                if best is None or gain > best[0]:
                    best = gain, size, flops
        if best is None:
            return None
        return self._cell(f"extra{number}-{best[1].name}", best[1], best[2], predicted=True)

    # --- what the law says so far -------------------------------------------------------------------------------------------

    def _fit(self) -> LawFit | None:
        """The law of what is measured; None where that does not determine it."""
        return self.planner.law_of(self.planner.fitted(self._measured()), self.known)

    def _measured(self) -> list[Point]:
        """Points of the rounds so far, and of no later one: what was decided then is decided again."""
        return [self.known.points[cell.name] for cell in self.cells if cell.name in self.known.points]

    def _number(self, cell: Cell) -> float:
        return float(getattr(self.known.measure(cell.overrides).counts, self.known.parameter_count))

    def _ln_losses(self, fit: LawFit, draws: np.ndarray, size: float, tokens: float) -> np.ndarray:
        """ln L at (N, D) of each draw."""
        names = list(fit.parameters)
        level, by_size, by_tokens, alpha, beta = (draws[:, names.index(name)] for name in ("E", "A", "B", "alpha", "beta"))
        return np.asarray(np.log(level + by_size * size**-alpha + by_tokens * tokens**-beta))

    def _best_of_target(self, fit: LawFit) -> tuple[float, float]:
        flops = self.known.target or HELDOUT * self.top
        size = self._optimum(fit, flops)
        return size, flops / self.sizes.flops_per_token(size)

    def _optimum(self, fit: LawFit, flops: float) -> float:
        """N of least loss for `flops`, with what a token of each N costs."""
        low, high = math.log(self.sizes.sizes[0].size), math.log(self.sizes.sizes[-1].size) + math.log(1e4)
        grid = np.exp(np.linspace(low, high, 400))
        values = [fit.parameters[name] for name in ("E", "A", "B", "alpha", "beta")]
        cost = np.array([self.sizes.flops_per_token(float(n)) for n in grid])
        losses = values[0] + values[1] * grid ** -values[3] + values[2] * (flops / cost) ** -values[4]
        return float(grid[int(losses.argmin())])

    def _best_size(self, flops: float) -> float:
        """N*(flops): at first by `tokens_per_parameter`, then by the law, or by the last rung's minimum where there is no law yet."""
        if not any(cell.name.startswith("rung1-") for cell in self.cells):
            return self._guessed_size(flops)
        if (fit := self._fit()) is not None:
            return self._optimum(fit, flops)
        points = [p for p in self.known.points.values() if not p.name.startswith(PROBE)]
        if curves := [m for m in minima(points, self.known.parameter_count) if math.isfinite(m.size)]:
            return float(curves[-1].size * (flops / curves[-1].budget) ** 0.5)
        return self._guessed_size(flops)

    def _guessed_size(self, flops: float) -> float:
        low, high = 1.0, 1e15
        for _ in range(80):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.config.tokens_per_parameter * middle * self.sizes.flops_per_token(middle) < flops else (low, middle)
        return low

    def _heldout_size(self) -> Sized:
        flops = HELDOUT * self.top
        return self.sizes.nearest(self._best_size(flops), self._allowed(flops))

    def _misfit(self, size: Sized, flops: float, fit: LawFit) -> float:
        """How far a run this far from the ridge of best sizes may lie from the law, in ln(loss)."""
        off = math.log(size.size / self._optimum(fit, flops))
        return 2 * math.hypot(0.002 * off**2, 0.0007 * math.log(max(1.0, self.top / flops)))

    # --- runs ---------------------------------------------------------------------------------------------------------------

    def _allowed(self, flops: float) -> list[Sized]:
        """Sizes that `flops` train for `min_steps` steps, on enough tokens and not too many epochs."""
        most = self.config.max_epochs * self.known.train_tokens or math.inf
        allowed = []
        for size in self.sizes.sizes:
            tokens = size.tokens(flops)
            window = self.known.measure(size.overrides).seq_len
            if self.config.min_tokens_per_parameter * size.size <= tokens <= most and tokens >= self.config.min_steps * window:
                allowed.append(size)
        return allowed

    def _cell(
        self, name: str, size: Sized, flops: float, factor: float | None = None, plain: bool = False, predicted: bool = False, heldout: bool = False
    ) -> Cell:
        label = f"{name}-{size.name}" if name == "heldout" else name
        overrides, exact = solve_steps("adaptive", label, size.overrides, flops, self.known.measure, self.config.min_steps, self.config.budget_tolerance)
        multiple = factor if factor is not None else self.ridge.factor(size.size, size.tokens(flops))
        return Cell(
            label,
            overrides | self.known.scale_lr(overrides, multiple),
            exact,
            heldout,
            budget=0.0 if plain else flops,
            predicted=predicted or heldout,
        )
