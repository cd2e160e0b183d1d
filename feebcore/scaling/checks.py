"""What is wrong with points or with a fit: refusals that name the run, and doubts ('code: sentence') that are shown with every law."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from feebcore.errors import FeebError, plural
from feebcore.scaling.minimize import Array
from feebcore.scaling.points import LEAST_DRAWS, PARAMETER_COUNTS, NotIdentifiable, ParameterCount, Point
from feebcore.scaling.projection import NOISE_FLOOR, OUTLIER, robust_scale
from feebcore.scaling.runs import Runs, group_numbers
from feebcore.scaling.surface import Surfaces

COLLINEAR = 0.995  # |correlation of ln N and ln D| from which the two terms are one
WIDEST_A = 0.1  # interval of the exponent of compute, wider than which it is not identified
LEAST_CELLS = 8
"""Distinct (N, D) from which an interval can be stated; below, intervals cover half of what they say."""
LEAST_FALL = 0.001  # of the loss, over all sizes or token counts: less is no fall
FLOPS_FACTOR = 3.0  # between stated FLOPs and 6 N D
FLOPS_JUMP = 0.15  # of ln(FLOPs / 6 N D) around a smooth function of N
TOKENS_PER_PARAMETER = (0.1, 1e5)
MOST_OUTLIERS = 0.2  # of the points
LARGEST = 1e18  # N or D
LOSSES = (1e-6, 1e6)  # nats per token
METHODS_DIFFER = 0.05  # between two estimates of a


def require_draws(number: int) -> None:
    """Raises FeebError for fewer draws or resamples than give an interval."""
    if number != 0 and number < LEAST_DRAWS:
        raise FeebError(f"bootstrap {number}: at least {LEAST_DRAWS} for an interval, or 0 for none")


def require_measured(points: Sequence[Point], parameter_count: ParameterCount) -> None:
    """Raises NotIdentifiable, naming the run and the value, where a number of a point cannot be what was measured. FLOPs and budget may be 0: unknown."""
    if parameter_count not in PARAMETER_COUNTS:
        raise FeebError(f"parameter_count {parameter_count!r} is none of {', '.join(PARAMETER_COUNTS)}")
    for point in points:
        given: dict[str, float] = {"N": getattr(point, parameter_count), "D": point.tokens, "loss": point.loss, "weight": point.weight}
        given |= {} if point.unique_tokens is None else {"unique_tokens": point.unique_tokens}
        for name, value in given.items():
            if not (math.isfinite(value) and value > 0):
                raise NotIdentifiable(f"run {_named(point)}: {name} is {value:g}, and must be positive and finite; exclude diverged runs and correct the row")
        for name, value in (("flops", point.flops), ("budget", point.budget)):
            if not (math.isfinite(value) and value >= 0):
                raise NotIdentifiable(f"run {_named(point)}: {name} is {value:g}, and must be finite and not negative (0: unknown)")
        for name, value, low, high in (("N", given["N"], 1.0, LARGEST), ("D", point.tokens, 1e-12, LARGEST), ("loss", point.loss, *LOSSES)):
            if not low <= value <= high:
                raise NotIdentifiable(f"run {_named(point)}: {name} is {value:g}, and no model has that; exclude diverged runs and correct the row")


def usable_runs(points: Sequence[Point], parameter_count: ParameterCount, num_parameters: int = 5) -> Runs:
    """The distinct cells. Raises NotIdentifiable where they cannot determine a law in N and D, whatever their noise."""
    require_measured(points, parameter_count)
    distinct = len(set(group_numbers(points, parameter_count)))
    if distinct < num_parameters:
        repeats = f" ({len(points)} points, the others repeat them)" if distinct < len(points) else ""
        raise NotIdentifiable(f"{plural(distinct, 'distinct run')}{repeats} cannot determine {num_parameters} parameters; train at least 9 over 3 budgets")
    runs = Runs.of(points, parameter_count)
    if np.ptp(np.log(runs.size)) < 1e-6 or np.ptp(np.log(runs.tokens)) < 1e-6:
        raise NotIdentifiable("all points have one size or one token count; vary both")
    together = correlation(runs.size, runs.tokens)
    if abs(together) > COLLINEAR:
        how = "one budget" if together < 0 else "D in proportion to N"
        raise NotIdentifiable(
            f"ln N and ln D move together (correlation {together:.4f}: {how}), so their terms cannot be distinguished; vary D / N at every size"
        )
    if np.ptp(np.log(runs.loss)) < NOISE_FLOOR:
        raise NotIdentifiable(f"all losses are equal within {100 * NOISE_FLOOR:g} % (about {runs.loss.mean():.4g}); there is no fall to fit")
    return runs


def require_falling(best: Surfaces, runs: Runs) -> None:
    """Raises NotIdentifiable where the fitted loss (K = 1) does not fall with N or with D."""
    size, tokens = np.exp(np.log(runs.size).mean()), np.exp(np.log(runs.tokens).mean())
    with np.errstate(invalid="ignore"):  # a law whose terms vanish has no logarithm
        by_size = np.ptp(best.ln_loss([runs.size.min(), runs.size.max()], [tokens, tokens])[0])
        by_tokens = np.ptp(best.ln_loss([size, size], [runs.tokens.min(), runs.tokens.max()])[0])
    for name, fall in (("N (parameters)", by_size), ("D (tokens)", by_tokens)):
        if not fall > LEAST_FALL:
            raise NotIdentifiable(f"the loss does not fall with {name} over these runs; look for diverged or undertrained ones, and for swapped columns")


def correlation(size: Array, tokens: Array) -> float:
    return float(np.corrcoef(np.log(size), np.log(tokens))[0, 1])


def doubts(
    points: Sequence[Point],
    runs: Runs,
    parameters: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    residuals: Array,
    deviations: Array,
    best: Surfaces,
) -> list[str]:
    """Reasons not to believe a law in N and D (a prediction nearby may still be good). residuals [points]: ln(predicted / measured); deviations: the
    same, less where the law is not expected to hold exactly; best: the law, K = 1."""
    number = len(parameters) - 1  # a follows from the others
    flags = []
    if len(runs) < 15:
        flags.append(f"few_points: {plural(len(runs), 'distinct run')} for {number} parameters leave {plural(len(runs) - number, 'degree')} of freedom")
    decades, sizes = float(np.log10(runs.size.max() / runs.size.min())), len(np.unique(runs.size.round()))
    if sizes < 4 or decades < 1.5:
        flags.append(f"narrow_sizes: {sizes} sizes over {decades:.1f} decades of N; 4 over 1.5 are the least for the exponents")
    together = correlation(runs.size, runs.tokens)
    if abs(together) > 0.95:
        flags.append(f"nearly_collinear: ln N and ln D have correlation {together:.2f}")
    if "E" in parameters:
        flags += _doubts_about_the_floor(parameters["E"], runs.loss.min(), intervals)
    for name in parameters:
        if name not in ("E", "A", "B", "a") and name.startswith(("alpha", "beta")) and not 0.02 < parameters[name] < 2.0:
            flags.append(f"{name}_extreme: {name} = {parameters[name]:.3g} is outside what scaling laws show")
    if intervals:
        low, high = intervals["a"]
        if high - low > WIDEST_A:
            flags.append(f"not_identified: the 95% interval of a, {low:.2f} to {high:.2f}, is wider than {WIDEST_A}")
    elif len(runs) < LEAST_CELLS:
        flags.append(f"no_intervals: {plural(len(runs), 'distinct run')}; below {LEAST_CELLS} an interval does not hold what it says")
    else:
        flags.append("no_intervals: fitted without a bootstrap")
    usual = float(np.quantile(np.abs(residuals), 0.9))
    if usual > 0.03:
        flags.append(f"poor_fit: a tenth of the points are more than {100 * usual:.1f} % away from the law")
    flags += outliers(points, deviations, number)
    flags += units(points, runs)
    ratio = np.log(runs.size / best.best_size(runs.flops)[0])
    if ratio.max() < 0 or ratio.min() > 0:
        side, add = ("below", "larger") if ratio.max() < 0 else ("above", "smaller")
        flags.append(f"one_sided: every size lies {side} the best size of its compute by this law, so no minimum was seen; add {add} models")
    return flags


def _doubts_about_the_floor(floor: float, lowest: float, intervals: Mapping[str, tuple[float, float]]) -> list[str]:
    if floor < 0.01 * lowest:
        return [f"E_at_bound: E went to 0 ({floor:.2g}); the points do not show a floor"]
    if floor > 0.99 * lowest:
        return [f"E_at_bound: E went to the lowest loss ({floor:.3f})"]
    if intervals and intervals["E"][0] < 0.01 * lowest:
        return ["E_not_identified: the interval of E reaches 0"]
    return []


def far_off(deviations: Array, num_parameters: int) -> NDArray[np.bool_]:
    """Which points [n] are further than OUTLIER robust standard deviations from the law."""
    if len(deviations) <= num_parameters:
        return np.zeros(len(deviations), dtype=bool)
    return np.asarray(np.abs(deviations) > OUTLIER * robust_scale(deviations, num_parameters))


def outlier_names(points: Sequence[Point], deviations: Array, num_parameters: int) -> tuple[str, ...]:
    """The points that are far off."""
    return tuple(p.name for p, is_far in zip(points, far_off(deviations, num_parameters), strict=True) if is_far)


def outliers(points: Sequence[Point], deviations: Array, num_parameters: int) -> list[str]:
    """A flag that names the points that are far off."""
    far = [(p, d) for p, d, is_far in zip(points, deviations, far_off(deviations, num_parameters), strict=True) if is_far]
    described = ", ".join(f"{_named(p)} ({100 * math.expm1(-d):+.1f} %)" for p, d in far[:10])
    more = f" and {len(far) - 10} more" if len(far) > 10 else ""
    return [f"outliers: {plural(len(far), 'run')} more than {OUTLIER:g} robust standard deviations from the law: {described}{more}"] if far else []


def without_outliers(points: Sequence[Point], deviations: Array, num_parameters: int) -> list[Point]:
    """The points by which predictions are checked: those that are named as outliers are left out, unless they are so many that the law is what is off."""
    far = far_off(deviations, num_parameters)
    return list(points) if far.mean() > MOST_OUTLIERS else [p for p, is_far in zip(points, far, strict=True) if not is_far]


def units(points: Sequence[Point], runs: Runs) -> list[str]:
    """Signs that N, D or FLOPs are in other units, swapped, or counted in two ways."""
    flags = []
    low, high = TOKENS_PER_PARAMETER
    odd = [p for p, n, d in zip(points, runs.size[runs.group], runs.tokens[runs.group], strict=True) if not low <= d / n <= high]
    if odd:
        flags.append(f"units: D / N outside {low:g} to {high:g} at {_listed(odd)}; are N and D swapped, or one in millions?")
    with_flops = [p for p in points if p.flops > 0 and math.isfinite(p.flops)]
    ratio = np.log([p.flops / (6.0 * max(p.matmul, p.non_embedding) * p.tokens) for p in with_flops])
    wrong = [p for p, r in zip(with_flops, ratio, strict=True) if abs(r) > math.log(FLOPS_FACTOR)]
    if wrong:
        flags.append(
            f"flops_mismatch: FLOPs differ from 6 N D by more than a factor of {FLOPS_FACTOR:g} at {_listed(wrong)}; check units and which parameters N counts"
        )
    if len(with_flops) >= 6:
        x = np.log([float(max(p.matmul, p.non_embedding)) for p in with_flops])
        rest = ratio - np.polyval(np.polyfit(x - x.mean(), ratio, min(2, len(np.unique(x)) - 1)), x - x.mean())
        if np.abs(rest).max() > FLOPS_JUMP:
            high_ones = [p for p, r in zip(with_flops, rest, strict=True) if r > 0]
            flags.append(f"mixed_counts: FLOPs / 6 N D jumps between runs of similar size; N or FLOPs are counted in two ways (high at {_listed(high_ones)})")
    return flags


def methods_differ(a: float, isoflop: float) -> list[str]:
    """A flag where the exponent of the law and of the isoFLOP minima are too far apart."""
    if not abs(a - isoflop) > METHODS_DIFFER:
        return []
    return [f"methods_differ: N_opt grows as C^{a:.2f} by the law and as C^{isoflop:.2f} by the isoFLOP minima; trust neither to more than that"]


def counts_differ(exponents: Mapping[str, float]) -> list[str]:
    """A flag where the law's exponent a depends on which parameters are counted as N. exponents: a by parameter count."""
    if not exponents or not max(exponents.values()) - min(exponents.values()) > METHODS_DIFFER:
        return []
    each = ", ".join(f"{a:.2f} with {count.replace('_', '-')} parameters" for count, a in exponents.items())
    return [f"counts_differ: N_opt grows as C^a with a = {each}; compare exponents only between laws with the same count"]


def _named(point: Point) -> str:
    return point.name or f"(N {point.non_embedding:g}, D {point.tokens:g})"


def _listed(points: Sequence[Point]) -> str:
    shown = ", ".join(_named(p) for p in points[:5])
    return shown + (f" and {len(points) - 5} more" if len(points) > 5 else "")
