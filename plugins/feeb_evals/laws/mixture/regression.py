"""Regressions of the losses by source on the shares of a mixture: least squares in ln L.

    log_linear    ln L_i = t_i . w
    quadratic     ln L_i = t_i . w + sum over pairs of u_ijk w_j w_k
    exponential   L_i = c_i + exp(t_i . w)        (Ye et al. 2024, the data mixing law)
    transfer      L_i = c_i + (t_i . w)^-b_i      (a power of the tokens of source i, where those of source j count t_ij)

As the shares sum to 1, t . w holds the constant. The first two are linear; the others begin at the best of a grid over c (and b), given which they are linear
too, and go on by Levenberg and Marquardt's steps. Shapes: n runs, J sources, I losses, P features, K regressions at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feebcore.scaling.minimize import Array

FLOORS = np.linspace(0.0, 0.95, 20)  # tried, as multiples of the least loss
POWERS = np.array([0.1, 0.2, 0.35, 0.6, 1.0, 2.0])
LEAST_POWER, MOST_POWER = 0.03, 5.0
STEPS = 60
STARTS = 4  # of the grid's nodes, that are gone on from
SPARE_RUNS = 2  # distinct mixtures beyond a form's parameters, without which it is not tried


@dataclass(frozen=True)
class Form:
    """features: shares [n,J] to [n,P], called `names`. has_floor, has_power: whether c and b are fitted."""

    name: str
    features: Callable[[Array], Array]
    names: Callable[[Sequence[str]], list[str]]
    has_floor: bool = False
    has_power: bool = False

    def num_parameters(self, num_sources: int) -> int:
        """Of the loss of one source."""
        return self.features(np.ones((1, num_sources))).shape[1] + self.has_floor + self.has_power


def _pairs(number: int) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(number), 2))


def _quadratic(shares: Array) -> Array:
    return np.concatenate([shares, *(shares[:, [j]] * shares[:, [k]] for j, k in _pairs(shares.shape[1]))], 1)


FORMS = {
    form.name: form
    for form in (
        Form("log_linear", lambda shares: shares, list),
        Form("quadratic", _quadratic, lambda names: [*names, *(f"{names[j]} x {names[k]}" for j, k in _pairs(len(names)))]),
        Form("exponential", lambda shares: shares, list, has_floor=True),
        Form("transfer", lambda shares: shares, list, has_floor=True, has_power=True),
    )
}


@dataclass(frozen=True)
class Regression:
    """K regressions of one form: rows [K,I,2+P] of c, b (0: the exponential) and t."""

    form: Form
    rows: Array

    def losses(self, shares: Array) -> Array:
        """[K,n,I] of shares [n,J], or [K,n,J] with a set for each regression."""
        features = self.form.features(shares.reshape(-1, shares.shape[-1])).reshape(*shares.shape[:-1], -1)
        return np.asarray(_values(self.rows[:, None], features[..., None, :])[0])


def regress(form: Form, shares: Array, losses: Array, weights: Array | None = None, start: Regression | None = None) -> Regression:
    """Through losses [K,n,I] at shares [n,J]; weights [K,n] default to ones. start: a regression (K = 1) to begin at, in place of the grid."""
    weights = np.ones(losses.shape[:2]) if weights is None else weights
    features = form.features(shares)
    begins = [None if start is None else start.rows[0, i] for i in range(losses.shape[2])]
    return Regression(form, np.stack([_solve(form, features, losses[:, :, i], weights, begin) for i, begin in enumerate(begins)], 1))


def _solve(form: Form, features: Array, loss: Array, weight: Array, begin: Array | None) -> Array:
    """Rows [K,2+P] through loss [K,n]."""
    if not form.has_floor:
        return np.pad(_least_squares(features, np.log(loss), weight), ((0, 0), (2, 0)))
    if begin is not None:
        return _descend(form, features, loss, weight, np.tile(begin, (len(loss), 1)))[0]
    starts = np.stack([_given(features, loss, weight, floor, power) for power in (POWERS if form.has_power else [0.0]) for floor in FLOORS], 1)
    number, rows = starts.shape[1], np.arange(len(loss))
    squares = np.stack([_squares(features, loss, weight, starts[:, k]) for k in range(number)], 1)
    found = [_descend(form, features, loss, weight, starts[rows, k]) for k in np.argsort(squares, 1)[:, :STARTS].T]
    best = np.argmin([value for _, value in found], 0)
    return np.stack([place for place, _ in found])[best, rows]


def _given(features: Array, loss: Array, weight: Array, floor: float, power: float) -> Array:
    """Rows [K,2+P] at this multiple of the least loss as c, and this b."""
    least = floor * np.where(weight > 0, loss, np.inf).min(1, keepdims=True)
    above = np.maximum(loss - least, 1e-3 * loss)
    target = above ** (-1 / power) if power else np.log(above)
    slope = above / loss * (power / target if power else 1.0)
    return np.concatenate([least, np.full_like(least, power), _least_squares(features, target, weight * slope**2)], 1)


def _values(rows: Array, features: Array) -> tuple[Array, Array, Array]:
    """Loss, its part above the floor, and t . w, of rows [...,2+P] at features [...,P]."""
    inner = (rows[..., 2:] * features).sum(-1)
    floor, power = rows[..., 0], rows[..., 1]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        above = np.where(power > 0, np.where(inner > 0, inner, np.nan) ** -power, np.exp(inner))
    return floor + above, above, inner


def _squares(features: Array, loss: Array, weight: Array, rows: Array) -> Array:
    residual = np.log(loss) - np.log(_values(rows[:, None], features)[0])
    squares = (weight * residual**2).sum(-1)
    return np.where(np.isfinite(squares), squares, np.inf)


def _descend(form: Form, features: Array, loss: Array, weight: Array, rows: Array) -> tuple[Array, Array]:
    """Least squares from rows [K,2+P] on, and the squares [K] reached."""
    most = 0.98 * np.where(weight > 0, loss, np.inf).min(1)
    rows = rows.copy()
    rows[:, 0] = np.minimum(rows[:, 0], most)
    squares = _squares(features, loss, weight, rows)
    damping = np.full(len(rows), 1e-3)
    free = np.array([True, form.has_power, *np.ones(features.shape[1], dtype=bool)])
    for _ in range(STEPS):
        total, above, inner = _values(rows[:, None], features)
        total, above, inner = (np.where(np.isfinite(v), v, 1.0) for v in (total, above, inner))
        power = rows[:, 1:2]
        by_inner = np.where(power > 0, -power * above / np.where(power > 0, inner, 1.0), above) / total
        by_power = np.where(power > 0, -above * np.log(np.where(power > 0, np.maximum(inner, 1e-300), 1.0)), 0.0) / total
        jacobian = np.concatenate([np.stack([1.0 / total, by_power], -1), by_inner[..., None] * features], -1)[..., free]
        weighted = jacobian * weight[..., None]
        normal = weighted.swapaxes(1, 2) @ jacobian
        pull = (weighted * (np.log(loss) - np.log(total))[..., None]).sum(1)
        diagonal = np.maximum(np.einsum("kpp->kp", normal), 1e-12) * (damping[:, None] + 1e-9)
        step = np.linalg.solve(normal + diagonal[:, :, None] * np.eye(normal.shape[1]), pull[..., None])[..., 0]
        tried = rows.copy()
        tried[:, free] += step
        tried[:, 0] = np.clip(tried[:, 0], 0.0, most)
        if form.has_power:
            tried[:, 1] = np.clip(tried[:, 1], LEAST_POWER, MOST_POWER)
        reached = _squares(features, loss, weight, tried)
        lower = reached < squares
        ended = np.where(lower, squares - reached < 1e-9 * squares, damping > 1e4)
        rows[lower], squares[lower] = tried[lower], reached[lower]
        damping = np.where(lower, damping / 4, damping * 5)
        if ended.all():
            break
    return rows, squares


def _least_squares(features: Array, target: Array, weight: Array) -> Array:
    """[K,P] of target [K,n]; a ridge of 1e-10 decides what the runs do not."""
    weighted = features * weight[..., None]
    normal = weighted.swapaxes(1, 2) @ features
    ridge = 1e-10 * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(features.shape[1])
    return np.asarray(np.linalg.solve(normal + ridge, (weighted.swapaxes(1, 2) @ target[..., None]))[..., 0])


def leave_one_out(fit: Regression, shares: Array, losses: Array, loss_weights: Array, group: NDArray[np.intp]) -> float:
    """Root mean square of ln(predicted / measured) of the weighted loss, over distinct mixtures (group [n]), each predicted from all others."""
    groups = np.unique(group)
    weights = np.array([group != left for left in groups], dtype=np.float64)
    refits = regress(fit.form, shares, np.tile(losses, (len(groups), 1, 1)), weights, fit)
    errors = np.log(refits.losses(shares) @ loss_weights) - np.log(losses @ loss_weights)
    value = np.sqrt(np.mean([np.mean(errors[k, group == left] ** 2) for k, left in enumerate(groups)]))
    return float(value) if np.isfinite(value) else float("inf")


def drawn(fit: Regression, shares: Array, losses: Array, draws: int, rng: np.random.Generator) -> Regression:
    """Refits of a residual bootstrap. The residuals of a run are drawn together, as what disturbs a run disturbs all its losses; they are
    as large as the degrees of freedom say, times a draw of sqrt(dof / chi2), so that few runs give Student's wider intervals."""
    number = len(shares)
    freedom = max(1, number - fit.form.num_parameters(shares.shape[1]))
    fitted = fit.losses(shares)[0]
    residual = np.log(losses) - np.log(fitted)
    scale = np.sqrt(number / freedom) * np.sqrt(freedom / rng.chisquare(freedom, draws))
    chosen = residual[rng.integers(number, size=(draws, number))]
    return regress(fit.form, shares, fitted * np.exp(scale[:, None, None] * chosen), start=fit)
