"""Scaling of a quantity with width: optimum of a learning-rate sweep, and power laws with errors.

Plain numpy in double precision: the inputs are a handful of points from finished runs.

    log2(rate) at the vertex of the parabola through the least loss and its neighbours,    y = C x^p + offset

Source: Hesterberg 2015, arXiv:1411.5279, for the expanded percentiles of the bootstrap.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from metrics import checks
from ntk import show
from ntk.types import Float, PRNGKey, Real

# Exponents searched when there is an offset; steeper laws are not told from a step by few points.
_LARGEST_EXPONENT = 5.0


@show.readable
class Optimum(NamedTuple):
    """Optimum of a learning-rate sweep.

    Attributes:
        log2_rate: log2 of the best learning rate; nan if every rate diverged.
        log_loss: the parabola's minimum, a natural logarithm.
        standard_error: of `log2_rate`, from the seeds' own optima; nan for fewer than two.
        per_seed: log2 of each seed's best rate, (seeds,).
        edge: "" for an optimum inside the grid; "low end" or "high end" where the best rate is the
            grid's last and only a bound; "divergence" where it lies beside a rate that diverged;
            "all diverged". Only "" is refined, the others are grid points.
    """

    log2_rate: float
    log_loss: float
    standard_error: float
    per_seed: Float[np.ndarray, "seeds"]
    edge: str


def refined_optimum(
    learning_rates: Real[ArrayLike, "rates"], losses: Real[ArrayLike, "*seeds rates"]
) -> Optimum:
    """Best learning rate of a sweep, refined by a parabola through the grid minimum.

    The parabola passes through log loss at the best rate and its two neighbours, in log2 of the
    rate. Seeds are averaged as geometric means; a rate that diverges (inf or nan) for one seed
    diverges for the mean.

    Args:
        learning_rates: (rates,), positive, finite and increasing.
        losses: (rates,) or (seeds, rates), positive; inf or nan where the run diverged.

    Returns:
        Optimum. Where no parabola can be drawn, at an end of the grid or beside divergence, its
        `edge` says so.

    Raises:
        TypeError: rates or losses are no numbers.
        ValueError: rates not increasing, finite and positive; shapes that do not match; a loss that is not
            positive.

    Source: Noci et al. 2024, arXiv:2402.17457, read optima off the grid; the parabola resolves
    shifts of a fraction of a grid step, where the loss is smooth at the scale of the grid.
    """
    rates = checks.doubles("learning_rates", learning_rates)
    losses = np.atleast_2d(checks.doubles("losses", losses))
    _check_sweep(rates, losses)
    x, log_losses = np.log2(rates), np.log(np.where(np.isnan(losses), np.inf, losses))
    rate, height, edge = _vertex(x, log_losses.mean(axis=0))
    per_seed = np.array([_vertex(x, row)[0] for row in log_losses])
    found = per_seed[np.isfinite(per_seed)]
    error = found.std(ddof=1) / np.sqrt(found.size) if found.size > 1 else np.nan
    return Optimum(rate, height, float(error), per_seed, edge)


def _check_sweep(rates: np.ndarray, losses: np.ndarray) -> None:
    sound = (rates > 0) & np.isfinite(rates)
    if rates.ndim != 1 or rates.size < 3 or not sound.all() or not (np.diff(rates) > 0).all():
        raise ValueError(
            f"learning_rates={rates} must be at least three positive rates in increasing order."
        )
    if losses.ndim != 2 or losses.shape[1] != rates.size:
        raise ValueError(
            f"losses of shape {losses.shape} do not match {rates.size} learning rates:"
            " give (rates,) or (seeds, rates)."
        )
    if (losses <= 0).any():
        raise ValueError(
            f"{(losses <= 0).sum()} losses are not positive: the parabola is drawn in log loss."
            " Use the loss at an earlier step, or add the floor that was subtracted."
        )


def _vertex(x: np.ndarray, y: np.ndarray) -> tuple[float, float, str]:
    """Vertex (x, y) of the parabola through the minimum of y, and the edge it lies on."""
    i = int(np.argmin(y))
    if not np.isfinite(y[i]):
        return np.nan, np.inf, "all diverged"
    if i in (0, y.size - 1):
        return float(x[i]), float(y[i]), "low end" if i == 0 else "high end"
    if not np.isfinite(y[i - 1 : i + 2]).all():
        return float(x[i]), float(y[i]), "divergence"
    left, right = x[i - 1] - x[i], x[i + 1] - x[i]
    fall, rise = (y[i - 1] - y[i]) / left, (y[i + 1] - y[i]) / right
    curvature = (rise - fall) / (right - left)
    slope = fall - curvature * left
    # A flat top, three equal losses, has its grid point as optimum.
    shift = -slope / (2 * curvature) if curvature > 0 else 0.0
    return float(x[i] + shift), float(y[i] + shift * slope / 2), ""


@show.readable
class PowerLaw(NamedTuple):
    """y = prefactor * x**exponent + offset, each with its confidence interval (low, high)."""

    exponent: float
    prefactor: float
    offset: float
    exponent_interval: Float[np.ndarray, "2"]
    prefactor_interval: Float[np.ndarray, "2"]
    offset_interval: Float[np.ndarray, "2"]


def fit_power_law(
    x: Real[ArrayLike, "points"],
    y: Real[ArrayLike, "*seeds points"],
    key: PRNGKey,
    *,
    offset: bool = False,
    confidence: float = 0.95,
    num_samples: int = 1000,
) -> PowerLaw:
    """Power law through positive measurements, with bootstrap intervals.

    Without `offset` it is linear regression in logarithms. With it, the relative squared error is
    minimised: prefactor and offset in closed form, for the best exponent in [-5, 5].

    Errors are taken to be multiplicative, independent and alike at every x. The bootstrap resamples
    them: the seeds' deviations from their mean if there are several seeds, otherwise the residuals
    of the fit, inflated by their leverage. Percentiles are widened as Student's t is wider than
    the normal for the degrees of freedom at hand (expanded percentile interval).

    Args:
        x: (points,), positive; at least three different, four with `offset`.
        y: (points,) or (seeds, points), positive.
        key: PRNG key of the bootstrap.
        offset: whether to fit an additive constant, the value at the far end of the law.
        confidence: coverage of the intervals.
        num_samples: bootstrap samples.

    Returns:
        PowerLaw; its offset is 0 where none was fitted.

    Example:
        >>> import jax
        >>> import numpy as np
        >>> import metrics
        >>> widths = np.array([64, 128, 256, 512])
        >>> law = metrics.fit_power_law(widths, 3 * widths**-0.5, jax.random.key(0))
        >>> round(float(law.exponent), 4), round(float(law.prefactor), 4)
        (-0.5, 3.0)

    Raises:
        TypeError: x or y are no numbers, key no PRNG key, num_samples no integer, offset no bool.
        ValueError: too few points, shapes that do not match, or values that are not positive and
            finite (drop diverged runs first).

    Source: Hesterberg 2015, arXiv:1411.5279 (expanded percentiles). With an offset and points over
    less than a decade of x, exponent and offset trade off: the intervals say so.
    """
    x, y = checks.doubles("x", x), np.atleast_2d(checks.doubles("y", y))
    if not isinstance(offset, bool | np.bool_):
        raise TypeError(f"offset is {offset!r}; it says whether to fit one: True or False")
    _check_points(x, y, 4 if offset else 3)
    checks.key(key)
    checks.within("confidence", confidence, lambda c: (c > 0) & (c < 1), "a number in (0, 1)")
    checks.integer("num_samples", num_samples, 1)
    fit = _fit_with_offset if offset else _fit_line
    num_params = 3 if offset else 2
    log_y = np.log(y)
    estimate = fit(x, log_y.mean(axis=0)[None])[0]
    seeds, points = y.shape
    if seeds > 1:
        center = log_y.mean(axis=0)
        errors = (log_y - center) * np.sqrt(seeds / (seeds - 1))
        freedom = points * (seeds - 1)
    else:
        center = np.log(_power(x, estimate))
        errors = (log_y - center) / np.sqrt(1 - _leverage(x, num_params))
        errors, freedom = errors - errors.mean(), points - num_params
    draws = np.asarray(jax.random.choice(key, errors.size, (num_samples, seeds, points)))
    samples = fit(x, center + errors.ravel()[draws].mean(axis=1))
    tail = stats.norm.cdf(stats.t.ppf((1 - confidence) / 2, freedom))
    intervals = np.quantile(samples, [tail, 1 - tail], axis=0).T
    exponent, prefactor, level = (float(value) for value in estimate)
    return PowerLaw(exponent, prefactor, level, *intervals)


def _check_points(x: np.ndarray, y: np.ndarray, minimum: int) -> None:
    if x.ndim != 1 or y.ndim != 2 or y.shape[1] != x.size:
        raise ValueError(
            f"x of shape {x.shape} and y of shape {y.shape} do not match:"
            " give x (points,) and y (points,) or (seeds, points)."
        )
    if np.unique(x).size < minimum:
        raise ValueError(f"{np.unique(x).size} different x are too few: {minimum} are needed.")
    if not (np.isfinite(x) & (x > 0)).all() or not (np.isfinite(y) & (y > 0)).all():
        raise ValueError(
            "a power law needs positive, finite x and y: drop diverged runs, and fit the size of"
            " what changes sign."
        )


def _fit_line(x: np.ndarray, log_y: np.ndarray) -> np.ndarray:
    """(samples, 3): exponent, prefactor and zero offset, for each row of log_y."""
    log_x = np.log(x)
    centered = log_x - log_x.mean()
    exponent = log_y @ centered / (centered @ centered)
    prefactor = np.exp(log_y.mean(axis=1) - exponent * log_x.mean())
    return np.stack([exponent, prefactor, np.zeros_like(exponent)], axis=1)


def _fit_with_offset(x: np.ndarray, log_y: np.ndarray) -> np.ndarray:
    """(samples, 3): exponent, prefactor and offset that minimise the relative squared error."""
    middle = np.exp(np.log(x).mean())
    x = x / middle
    inverse = np.exp(-log_y)
    grid = np.linspace(-_LARGEST_EXPONENT, _LARGEST_EXPONENT, 201)  # 0 is the limit log x
    best = grid[_project(x, inverse, grid[:, None])[0].argmin(axis=0)]
    step = grid[1] - grid[0]
    low, high, golden = best - step, best + step, (np.sqrt(5) - 1) / 2
    for _ in range(40):
        left, right = high - golden * (high - low), low + golden * (high - low)
        smaller = _project(x, inverse, left)[0] < _project(x, inverse, right)[0]
        low, high = np.where(smaller, low, left), np.where(smaller, right, high)
    exponent = (low + high) / 2
    _, prefactor, offset = _project(x, inverse, exponent)
    return np.stack([exponent, prefactor * middle**-exponent, offset], axis=1)


def _project(
    x: np.ndarray, inverse: np.ndarray, exponent: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least squares of (prefactor x^p + offset) / y - 1 at given p: cost, prefactor, offset."""
    # (x^p - 1)/p keeps prefactor and offset apart where x^p is nearly constant.
    p = np.where(abs(exponent) < 1e-6, 1e-6, exponent)[..., None]
    u = np.expm1(p * np.log(x)) / p * inverse
    uu, uv, vv = (u * u).sum(-1), (u * inverse).sum(-1), (inverse * inverse).sum(-1)
    ru, rv = u.sum(-1), inverse.sum(-1)
    determinant = uu * vv - uv**2
    slope, level = (ru * vv - rv * uv) / determinant, (rv * uu - ru * uv) / determinant
    residual = slope[..., None] * u + level[..., None] * inverse - 1
    prefactor = slope / p[..., 0]
    return (residual**2).sum(-1), prefactor, level - prefactor


def _power(x: np.ndarray, law: np.ndarray) -> np.ndarray:
    exponent, prefactor, offset = law
    return prefactor * x**exponent + offset


def _leverage(x: np.ndarray, num_params: int) -> np.ndarray:
    """Diagonal of the hat matrix of a line in log x, or of its share for one more parameter."""
    centered = np.log(x) - np.log(x).mean()
    line = 1 / x.size + centered**2 / (centered @ centered)
    return line if num_params == 2 else np.full(x.size, num_params / x.size)
