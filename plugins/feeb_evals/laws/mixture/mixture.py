"""The mixture of least loss, with intervals of its shares and of what it gains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from feeb_evals.laws.mixture.regression import FORMS, SPARE_RUNS, Regression, drawn, leave_one_out, regress
from feebcore.config import PartConfig
from feebcore.protocols import BuildContext
from feebcore.scaling import checks
from feebcore.scaling.minimize import Array
from feebcore.scaling.mixture import BestMixture, MixtureLaw, Shares, within
from feebcore.scaling.points import LawFit, NotIdentifiable, ParameterCount, Point, Prediction
from feebcore.scaling.posterior import intervals_of
from feebcore.scaling.projection import NOISE_FLOOR
from feebcore.scaling.rollouts import LEAST_SLOPE

POOR = 0.7  # leave-one-out error over the spread of the losses, from which the mixture tells little of the loss
CANDIDATES, DIRECTIONS = 400, 100  # mixtures that the search for the best one starts from, and then moves towards
STEPS = 0.5 ** np.arange(1, 10)  # by how much of the way
EDGE = 0.005  # of a share


@dataclass(frozen=True)
class MixtureFit(LawFit):
    """sources: those that are trained on; losses: those whose loss counts, by `loss_weights`, which sum to 1. low, high: least and largest share
    tried. errors: leave-one-out error of each form. levels: runs of other sizes, as (N, D, shares, ln of their loss)."""

    sources: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    loss_weights: tuple[float, ...] = ()
    regression: str = ""
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    errors: dict[str, float] = field(default_factory=dict)
    levels: tuple[tuple[float, float, tuple[float, ...], float], ...] = ()

    def regressions(self, rows: Array) -> Regression:
        """From parameters [K, all]."""
        return Regression(FORMS[self.regression], rows.reshape(len(rows), len(self.losses), -1))

    @property
    def best(self) -> Regression:
        return self.regressions(np.array([list(self.parameters.values())]))

    @property
    def drawn(self) -> Regression:
        return self.regressions(self.draws)

    def ln_loss(self, regression: Regression, shares: Array) -> Array:
        """ln of the weighted loss [K,n] of shares [n,J] or [K,n,J]; infinite where the regression says nothing."""
        return np.nan_to_num(np.log(regression.losses(shares) @ np.array(self.loss_weights)), nan=np.inf)


class Mixture(MixtureLaw):
    def __init__(self, config: PartConfig, context: BuildContext | None = None) -> None:
        pass

    def estimator(self) -> dict[str, str]:
        return {
            "form": f"ln of each source's loss as a regression on how much of each is trained on, the best of {', '.join(FORMS)}",
            "objective": "least squares of ln(predicted / measured); the form by its leave-one-out error",
            "starts": "none where the form is linear; else the best of a grid over the floor and the power, then Levenberg-Marquardt steps",
            "intervals": "refits to redrawn residuals",
        }

    def fit(self, points: Sequence[Point], parameter_count: ParameterCount, bootstrap: int, seed: int) -> LawFit:
        checks.require_draws(bootstrap)
        checks.require_measured(points, parameter_count)
        sources, names, weights = _mixed(points)
        place = _main_scale(points, parameter_count)
        here = [p for p in points if (p.size(parameter_count), p.tokens) == place]
        shares = np.array([[p.shares.get(name, 0.0) for name in sources] for p in here])
        losses = np.array([[p.source_losses[name] for name in names] for p in here])
        group = np.unique(shares.round(6), axis=0, return_inverse=True)[1].ravel()
        distinct = int(group.max()) + 1
        forms = [form for form in FORMS.values() if form.num_parameters(len(sources)) + SPARE_RUNS <= distinct]
        if not forms:
            raise NotIdentifiable(
                f"{distinct} distinct mixtures of one size cannot tell {len(sources)} sources apart; train at least {len(sources) + SPARE_RUNS}, better 6 a source"
            )
        fits = {form.name: regress(form, shares, losses[None]) for form in forms}
        errors = {name: leave_one_out(fit, shares, losses, weights, group) for name, fit in fits.items()}
        best = fits[min(errors, key=lambda name: errors[name])]
        form = best.form
        draws = bootstrap if distinct >= checks.LEAST_CELLS else 0
        refits = drawn(best, shares, losses, draws, np.random.default_rng(seed))
        named = [f"{name} {part}" for name in names for part in ("floor", "power", *form.names(sources))]
        parameters, samples = dict(zip(named, map(float, best.rows.ravel()), strict=True)), refits.rows.reshape(draws, len(named))
        residuals = np.log(best.losses(shares)[0] @ weights) - np.log(losses @ weights)
        other = [p for p in points if (p.size(parameter_count), p.tokens) != place]
        by_name = {p.name: float(r) for p, r in zip(here, residuals, strict=True)}
        return MixtureFit(
            form="mixture",
            parameters=parameters,
            intervals=intervals_of(named, samples) if draws else {},
            flags=tuple(_doubts(distinct, draws, errors[form.name], losses @ weights)),
            objective=float((residuals**2).sum()),
            parameter_count=parameter_count,
            num_points=len(here),
            residuals=tuple(by_name.get(p.name, 0.0) for p in points),
            samples=tuple(tuple(map(float, row)) for row in samples),
            weights=tuple(float(p.name in by_name) for p in points),
            scatter=float(np.sqrt((residuals**2).sum() / max(1, len(here) - form.num_parameters(len(sources))))),
            top_flops=6.0 * place[0] * place[1],
            sources=tuple(sources),
            losses=tuple(names),
            loss_weights=tuple(map(float, weights)),
            regression=form.name,
            low=tuple(map(float, shares.min(0))),
            high=tuple(map(float, shares.max(0))),
            errors=errors,
            levels=tuple(
                (float(p.size(parameter_count)), p.tokens, tuple(p.shares.get(name, 0.0) for name in sources), math.log(p.loss)) for p in other if p.shares
            ),
        )

    def predict_point(self, fit: LawFit, point: Point) -> Prediction:
        """At another size than the fitted one: ln L of the runs there, plus what the regression says of the other mixture; NaN where none ran."""
        assert isinstance(fit, MixtureFit)
        size, tokens = float(point.size(fit.parameter_count)), point.tokens
        wanted = np.array([[point.shares.get(name, 0.0) for name in fit.sources]])
        reach = math.log(6.0 * size * tokens / fit.top_flops)
        noise = max(NOISE_FLOOR, fit.scatter)
        level, spread_of_level, shares = 0.0, 0.0, wanted
        if abs(reach) > 0.01:
            there = [(row, ln) for n, d, row, ln in fit.levels if n == size and abs(d / tokens - 1) < 0.01]
            if not there:
                return Prediction(math.nan, math.nan, math.nan, ("no_level: no run of this size has ended, and a law of mixtures knows no other sizes",))
            anchors = np.array([row for row, _ in there])
            shares = np.concatenate([wanted, anchors])
            level = float(np.mean([ln for _, ln in there])) - float(fit.ln_loss(fit.best, anchors)[0].mean())
            spread_of_level = noise / math.sqrt(len(there))

        def ln_loss(regression: Regression) -> Array:
            values = fit.ln_loss(regression, shares)
            return values[:, 0] - (values[:, 1:].mean(1) if len(shares) > 1 else 0.0)

        ln = float(fit.ln_loss(fit.best, wanted)[0, 0]) + level
        spread = float(ln_loss(fit.drawn).std()) if len(fit.samples) else math.nan
        half = 2.0 * math.sqrt(spread**2 + spread_of_level**2 + noise**2 + (LEAST_SLOPE * reach) ** 2)
        return Prediction(math.exp(ln), math.exp(ln - half), math.exp(ln + half))

    def best(self, fit: LawFit, baseline: Shares, limits: Shares) -> BestMixture:
        assert isinstance(fit, MixtureFit)
        low = np.array(fit.low)
        high = np.minimum(fit.high, [limits.get(name, 1.0) for name in fit.sources])
        if high.sum() < 1.0 or (low > high).any():
            raise NotIdentifiable("no mixture within the limits of the sources was tried; add text, or shorten the run")
        usual = np.array([[baseline.get(name, 0.0) for name in fit.sources]])
        shares = _minimum(fit, fit.best, low, high)
        gain = float((fit.ln_loss(fit.best, usual) - fit.ln_loss(fit.best, shares[0]))[0, 0])
        at_edge = tuple(n for n, s, a, b in zip(fit.sources, shares[0, 0], low, high, strict=True) if b - a > EDGE and not a + EDGE < s < b - EDGE)
        named = {name: float(share) for name, share in zip(fit.sources, shares[0, 0], strict=True)}
        if not len(fit.samples):
            return BestMixture(named, {}, gain, math.nan, math.nan, at_edge)
        drawn = fit.drawn
        each = _minimum(fit, drawn, low, high)
        ends = np.quantile(each[:, 0], [0.025, 0.975], axis=0)
        intervals = {n: (min(float(a), named[n]), max(float(b), named[n])) for n, a, b in zip(fit.sources, *ends, strict=True)}
        # the least of many predictions promises too much: by as much as a refit's own best does, seen from the fit
        promised = fit.ln_loss(drawn, usual)[:, 0] - fit.ln_loss(drawn, each)[:, 0]
        held = fit.ln_loss(fit.best, usual)[0, 0] - fit.ln_loss(fit.best, each[:, 0])[0]
        much, little = np.quantile(promised - held, [0.975, 0.025])
        return BestMixture(named, intervals, gain, gain - float(much), gain - float(little), at_edge)


def _minimum(fit: MixtureFit, regression: Regression, low: Array, high: Array) -> Array:
    """The mixtures [K,1,J] of least loss within low and high: the best of random ones, then of ever shorter moves from it towards them.
    The region is convex, so they stay in it."""
    rng = np.random.default_rng(0)
    number = len(fit.sources)
    free = max(0.0, 1.0 - low.sum())
    some = within(np.concatenate([np.eye(number), low + free * rng.dirichlet(np.ones(number), CANDIDATES)]), low, high)
    rows = np.arange(len(regression.rows))
    best = some[fit.ln_loss(regression, some).argmin(1)][:, None]
    for step in STEPS:
        tried = np.concatenate([best, best + step * (some[:DIRECTIONS] - best)], 1)
        best = tried[rows, fit.ln_loss(regression, tried).argmin(1)][:, None]
    return np.asarray(best)


def _mixed(points: Sequence[Point]) -> tuple[list[str], list[str], Array]:
    """Names of the sources, names of the losses and their weights. Raises NotIdentifiable where the points do not tell them."""
    if missing := [p.name for p in points if not p.shares or not p.source_losses]:
        raise NotIdentifiable(f"run {missing[0]}: its mixture, or its loss by source, is not known; law mixture needs runs of planner mixture")
    sources = list(dict.fromkeys(name for p in points for name in p.shares))
    if len(sources) < 2:
        raise NotIdentifiable("all runs have one source; a mixture needs two")
    weights = points[0].source_weights
    if differing := [p.name for p in points if p.source_weights != weights]:
        raise NotIdentifiable(f"run {differing[0]}: its loss weighs the sources otherwise than that of {points[0].name}")
    total = sum(weights.values())
    names = [name for name, weight in weights.items() if weight > 0]
    return sources, names, np.array([weights[name] / total for name in names])


def _main_scale(points: Sequence[Point], parameter_count: ParameterCount) -> tuple[int, float]:
    """N and D at which most distinct mixtures ran."""
    tried: dict[tuple[int, float], set[tuple[float, ...]]] = {}
    for p in points:
        tried.setdefault((p.size(parameter_count), p.tokens), set()).add(tuple(round(s, 6) for s in p.shares.values()))
    return max(tried, key=lambda place: len(tried[place]))


def _doubts(distinct: int, draws: int, error: float, loss: Array) -> list[str]:
    flags = []
    if not draws:
        few = distinct < checks.LEAST_CELLS
        flags.append(f"no_intervals: {distinct} distinct mixtures, fewer than {checks.LEAST_CELLS}" if few else "no_intervals: fitted without a bootstrap")
    spread = float(np.std(np.log(loss)))
    if error > POOR * spread:
        flags.append(
            f"poor_fit: a mixture left out is missed by {100 * error:.2f} %, and losses differ by {100 * spread:.2f} %: the shares tell little of the loss"
        )
    return flags
