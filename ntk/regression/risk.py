"""Risk of ridge regression with a kernel, or with random features, from its eigenvalues: no data are drawn.

A kernel with eigenvalues l_i and orthonormal eigenfunctions, a target with coefficients v_i and label noise sigma^2, n
samples, k random features, ridge delta (the matrix solved is K + delta I, not K + n delta I)::

    L_i = l_i / (l_i + gamma)     z = sum L_i     q = sum L_i^2     d = n - z     c = k - z     rho = c / (c + z - q)
    c d = k delta / gamma                                                        one equation for gamma, monotone
    R_test = n [sum (1 - L_i)(1 - rho L_i) v_i^2 + sigma^2] / (d + rho (z - q))     R_train = (d / n)^2 R_test

With kappa = gamma c / k this is d = delta / kappa; for a kernel (k -> infinity) rho = 1 and gamma = kappa. Samples
drawn without replacement from a pool of N points, tested on the others, see the kernel of the pool compressed::

    d = (delta / kappa) (1 - z / N)     t = sum over all N of (1 - L_i)^2
    R_test = n [sum (1 - L_i)^2 v_i^2 + sigma^2 t / N] / (d t / N + (1 - z / N)(z - q))     R_train as above

All hold for n, k and the number of modes that count large, to leading order, and for eigenfunctions whose values are
as good as independent and Gaussian (pool: eigenvectors in general position).

Source: Simon et al. 2023, arXiv:2110.03922 (kernels); Simon, Karkada, Ghosh & Belkin 2024, arXiv:2311.14646 (random
features; written here without differences of near numbers). The pool is derived here: K of the samples is the limit
of K + t P, t -> infinity, P the projection on the others, whose resolvent is that of K + omega by free independence.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

from ntk import show
from ntk.types import Float, Real

_GRID = 400  # values of gamma among which the best ridge is looked for before it is refined

_Real: TypeAlias = float | np.ndarray


@show.readable
class Risk(NamedTuple):
    """Expected squared errors, summed over outputs; arrays of the shape S that the arguments broadcast to.

    Attributes:
        test: on new points with new noise; infinite at the interpolation peak without ridge.
        train: on the training set.
        kappa: the effective ridge: modes with l_i >> kappa are learnt; 0 where the training set determines them all.
        learnability: S + (m,), L_i, the share of each coefficient that is learnt; they sum up to n - delta / kappa.
        overfitting: test risk over what an infinite training set with the same gamma would have, at least 1.
        gamma: the same as kappa for a kernel; larger with random features.
    """

    test: Float[np.ndarray, "*S"]
    train: Float[np.ndarray, "*S"]
    kappa: Float[np.ndarray, "*S"]
    learnability: Float[np.ndarray, "*S m"]
    overfitting: Float[np.ndarray, "*S"]
    gamma: Float[np.ndarray, "*S"]


@show.readable
class Optimum(NamedTuple):
    """The ridge at which the test risk is smallest, exactly 0 where none is best, and the risks there."""

    ridge: Float[np.ndarray, "*S"]
    test: Float[np.ndarray, "*S"]
    train: Float[np.ndarray, "*S"]


def kernel_regression(
    eigenvalues: Real[ArrayLike, "m"],
    power: Real[ArrayLike, "m"],
    samples: ArrayLike,
    *,
    ridge: ArrayLike = 0.0,
    noise: ArrayLike = 0.0,
    multiplicity: Real[ArrayLike, "m"] | None = None,
    pool: float = math.inf,
) -> Risk:
    """Test and training risk of kernel ridge regression; a whole learning curve in one call.

    Args:
        eigenvalues: (m,), not negative: of the kernel's integral operator (of K / N for a kernel matrix, not of K).
        power: (m,), v_i^2, mean square of the target along each mode, summed over outputs; of all modes together
            where there are several.
        samples: n > 0, any shape; samples, ridge and noise broadcast.
        ridge: delta >= 0, added to the diagonal of K.
        noise: sigma^2, variance of the labels' noise, summed over outputs.
        multiplicity: (m,), how many modes there are with each eigenvalue; 1 by default.
        pool: N, number of points of which the eigenvalues are; samples are then drawn from them without replacement
            and tested on the others. Infinite: samples and test points are new ones from the population.

    Returns:
        Risk.

    Raises:
        TypeError: no numbers.
        ValueError: shapes that do not fit, or numbers that are negative or not finite; a pool that is not larger than
            the samples or smaller than the number of modes.
    """
    return _risk(eigenvalues, power, samples, math.inf, ridge, noise, multiplicity, pool)


def random_features(
    eigenvalues: Real[ArrayLike, "m"],
    power: Real[ArrayLike, "m"],
    samples: ArrayLike,
    features: ArrayLike,
    *,
    ridge: ArrayLike = 0.0,
    noise: ArrayLike = 0.0,
    multiplicity: Real[ArrayLike, "m"] | None = None,
) -> Risk:
    """Test and training risk of ridge regression on k random features, K = (1/k) sum_g phi_g phi_g.

    Args:
        eigenvalues: (m,), of the kernel that infinitely many features have.
        power: see `kernel_regression`.
        samples: n > 0; samples, features, ridge and noise broadcast.
        features: k > 0; infinity is the kernel.
        ridge: delta >= 0, added to the diagonal of K.
        noise: sigma^2.
        multiplicity: (m,).

    Returns:
        Risk; without ridge and with n = k, its peak is infinite.

    Raises:
        TypeError: no numbers.
        ValueError: as `kernel_regression`.
    """
    return _risk(eigenvalues, power, samples, features, ridge, noise, multiplicity, math.inf)


def optimal_ridge(
    eigenvalues: Real[ArrayLike, "m"],
    power: Real[ArrayLike, "m"],
    samples: ArrayLike,
    *,
    features: ArrayLike = math.inf,
    noise: ArrayLike = 0.0,
    multiplicity: Real[ArrayLike, "m"] | None = None,
) -> Optimum:
    """The ridge of smallest test risk.

    Looked for in gamma, in which ridge and risk are explicit, from the gamma of no ridge upwards: on a grid of 400 and
    then between two of them. A risk with several minima that lie closer than the grid may keep a worse one.

    Args:
        eigenvalues: (m,), see `kernel_regression`.
        power: (m,).
        samples: n > 0; samples, features and noise broadcast.
        features: k > 0; infinity is the kernel.
        noise: sigma^2.
        multiplicity: (m,).

    Returns:
        Optimum.

    Raises:
        TypeError: no numbers.
        ValueError: as `kernel_regression`.
    """
    modes = _modes(eigenvalues, power, multiplicity)
    cases = _broadcast(samples=samples, features=features, noise=noise)
    found = [_best(*modes, *case) for case in zip(*(a.ravel() for a in cases))]
    return Optimum(*(np.reshape(part, cases[0].shape) for part in zip(*found)))


def _risk(
    eigenvalues: ArrayLike,
    power: ArrayLike,
    samples: ArrayLike,
    features: ArrayLike,
    ridge: ArrayLike,
    noise: ArrayLike,
    multiplicity: ArrayLike | None,
    pool: float,
) -> Risk:
    l, v, w = _modes(eigenvalues, power, multiplicity)
    n, k, delta, sigma = _broadcast(samples=samples, features=features, ridge=ridge, noise=noise)
    if not math.isinf(_pool(pool)) and (w.sum() > pool * (1 + 1e-12) or (n >= pool).any()):
        raise ValueError(
            f"pool is {pool}; it must be at least the number of modes, {w.sum():g}, and larger than "
            f"samples, up to {n.max():g}: the others are what is tested on"
        )
    cases = zip(*(a.ravel() for a in (n, k, delta)))
    gamma = np.array([_gamma(l, w, one, two, three, pool) for one, two, three in cases]).reshape(
        n.shape
    )
    return _at(gamma, l, v, w, n, k, delta, sigma, pool)


def _at(
    gamma: np.ndarray,
    l: np.ndarray,
    v: np.ndarray,
    w: np.ndarray,
    n: np.ndarray,
    k: np.ndarray,
    delta: Any,
    sigma: Any,
    pool: float,
) -> Risk:
    """The risks where gamma solves the equation of the ridge."""
    share, rest = _shares(gamma, l)
    # sum L (1 - L), not a difference of sums that may be nearly n each.
    z, z_q = share @ w, (share * rest) @ w  # z - q
    strength = np.divide(delta, gamma, out=np.zeros_like(gamma), where=gamma > 0)
    c, d = _gaps(n, k, strength, z, pool)
    c, d = np.where(gamma > 0, c, k - z), np.where(gamma > 0, d, n - z)
    infinite = np.isinf(k)  # a kernel: c, k -> infinity, rho = 1
    rho = np.where(
        infinite, 1.0, _ratio(np.where(infinite, 1.0, c), np.where(infinite, 1.0, c + z_q))
    )
    bias = (rest * (1 - rho[..., None] * share)) @ v
    if math.isinf(pool):
        total, below = bias + sigma, d + rho * z_q
    else:  # 1 - 2 z / N + q / N is the mean of (1 - L)^2 over the pool
        mean = (pool - 2 * z + (z - z_q)) / pool
        total, below = bias + sigma * mean, d * mean + (1 - z / pool) * z_q
    overfitting = _ratio(n, below, np.inf)
    test = np.where(total > 0, overfitting * np.where(total > 0, total, 1.0), 0.0)
    train = np.where(d > 0, (d / n) ** 2 * np.where(d > 0, test, 1.0), 0.0)
    kappa = np.where(infinite, gamma, gamma * _ratio(np.where(infinite, 1.0, c), k))
    return Risk(test, train, kappa, share, overfitting, gamma)


def _shares(gamma: np.ndarray, l: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(L_i, 1 - L_i), of shape S + (m,), neither from the other: either may be tiny and have many modes."""
    above = l + gamma[..., None]
    share = np.divide(l, above, out=np.zeros_like(above), where=l > 0)
    return share, np.divide(gamma[..., None], above, out=np.ones_like(above), where=l > 0)


def _ratio(a: ArrayLike, b: ArrayLike, otherwise: float = 0.0) -> np.ndarray:
    a, b = np.broadcast_arrays(np.asarray(a, float), np.asarray(b, float))
    return np.divide(a, b, out=np.full(a.shape, otherwise), where=b > 0)


def _gaps(n: _Real, k: _Real, strength: _Real, z: _Real, pool: float) -> tuple[_Real, _Real]:
    """(k - z, n - z) at delta / gamma = strength: the roots of c d = k strength, c - d = k - n."""
    if not math.isinf(pool):
        return k, strength * (1 - z / pool)
    infinite, strength = (
        np.isinf(k),
        np.minimum(strength, 1e290),
    )  # its square root is beyond every n
    k = np.where(infinite, n, k)
    apart = k - n
    # x (x + |k - n|) = k strength, its positive root in the form that does not cancel; the other gap is x + |k - n|.
    small = _ratio(2 * k * strength, abs(apart) + np.hypot(apart, 2 * np.sqrt(k * strength)))
    large = small + abs(apart)
    c, d = np.where(apart < 0, small, large), np.where(apart < 0, large, small)
    return np.where(infinite, np.inf, c), np.where(infinite, strength, d)


def _gamma(l: np.ndarray, w: np.ndarray, n: float, k: float, delta: float, pool: float) -> float:
    """The root of z + d = n, which falls with gamma; 0 where the samples determine all modes."""
    l, w = l[l > 0], w[l > 0]
    if delta == 0 and w.sum() <= min(n, k):
        return 0.0

    def excess(x: float) -> float:
        # The root is looked for in log gamma, over all that double precision holds.
        gamma = math.exp(min(max(x, -700.0), 709.0))
        z = float(w @ (l / (l + gamma)))
        return z + float(_gaps(n, k, delta / gamma, z, pool)[1]) - n

    low = high = math.log(l.max()) if l.size else 0.0
    step = 1.0
    while excess(low) < 0:
        low, step = low - step, 2 * step
    step = 1.0
    while excess(high) >= 0:
        if high > 709.0:  # the ends of the numbers
            return math.exp(709.0)
        high, step = high + step, 2 * step
    return math.exp(optimize.brentq(excess, low, high, xtol=1e-15, rtol=1e-15, maxiter=500))


def _best(
    l: np.ndarray, v: np.ndarray, w: np.ndarray, n: float, k: float, sigma: float
) -> tuple[float, float, float]:
    """(ridge, test, train) of the smallest risk, along gamma."""

    def along(x: ArrayLike) -> tuple[Risk, np.ndarray]:
        gamma = np.exp(np.atleast_1d(x))
        z = _shares(gamma, l)[0] @ w
        # c d = k delta / gamma solved for the ridge, delta = gamma (1 - z / k) (n - z): explicit in gamma.
        share = np.ones_like(z) if math.isinf(k) else np.maximum(1 - z / k, 0)
        delta = gamma * share * np.maximum(n - z, 0)
        return _at(
            gamma,
            l,
            v,
            w,
            np.broadcast_to(n, z.shape),
            np.broadcast_to(k, z.shape),
            delta,
            sigma,
            math.inf,
        ), delta

    start = _gamma(l, w, n, k, 0.0, math.inf)
    bare = _at(np.array(start), l, v, w, np.array(n), np.array(k), 0.0, sigma, math.inf)
    positive = l[l > 0]
    if not positive.size:
        return 0.0, float(bare.test), float(bare.train)
    # Without a gamma of no ridge (all modes determined): from where all are learnt but for e^-14 of them. At the upper
    # end, e^9 above the kernel's trace, none is learnt: L < 2e-4.
    first = math.log(start) if start > 0 else math.log(positive.min()) - 14
    grid = np.linspace(first, math.log(w @ l) + 9, _GRID)
    values = along(grid)[0].test
    best = int(np.argmin(values))
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)]
    found = optimize.minimize_scalar(
        lambda x: float(along(x)[0].test[0]),
        bounds=bounds,
        method="bounded",
        options={"xatol": 1e-10},
    )
    if not found.fun < float(bare.test) * (1 - 1e-12):  # else the end of the grid, up to rounding
        return 0.0, float(bare.test), float(bare.train)
    risk, delta = along(found.x)
    return float(delta[0]), float(risk.test[0]), float(risk.train[0])


def _modes(
    eigenvalues: ArrayLike, power: ArrayLike, multiplicity: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    names = {"eigenvalues": eigenvalues, "power": power}
    l, v = (_numbers(name, value) for name, value in names.items())
    w = np.ones_like(l) if multiplicity is None else _numbers("multiplicity", multiplicity)
    if l.ndim != 1 or not l.size or not l.shape == v.shape == w.shape:
        raise ValueError(
            f"eigenvalues, power and multiplicity have the shapes {l.shape}, {v.shape} and {w.shape}; "
            "they must be one (m,), a number for each mode"
        )
    return l, v, w


def _numbers(
    name: str, value: Any, *, infinite: bool = False, positive: bool = False
) -> np.ndarray:
    """The value in double precision; refused unless real, finite and not negative."""
    array = np.asarray(value)
    if array.dtype.kind not in "iuf" and not np.issubdtype(array.dtype, np.number):
        raise TypeError(f"{name} is {value!r:.60}; it must be an array of real numbers")
    if array.dtype.kind == "c":
        raise TypeError(f"{name} is complex; it must be real")
    array = array.astype(np.float64)
    wrong = ~((array > 0) if positive else (array >= 0)) | (np.isinf(array) & (not infinite))
    if wrong.any():
        allowed = f"{'positive' if positive else 'not negative'}{'' if infinite else ' and finite'}"
        remedy = ": clip what rounding made negative at 0" if name == "eigenvalues" else ""
        raise ValueError(f"{name} has the entry {array[wrong][0]}; it must be {allowed}{remedy}")
    return array


def _broadcast(**values: Any) -> list[np.ndarray]:
    arrays = {
        name: _numbers(
            name, a, infinite=name == "features", positive=name in ("samples", "features")
        )
        for name, a in values.items()
    }
    try:
        return [np.array(a) for a in np.broadcast_arrays(*arrays.values())]
    except ValueError as error:
        shapes = ", ".join(f"{name} {a.shape}" for name, a in arrays.items())
        raise ValueError(f"{shapes} do not broadcast") from error


def _pool(pool: Any) -> float:
    value = _numbers("pool", pool, infinite=True, positive=True)
    if value.ndim:
        raise ValueError(f"pool has the shape {value.shape}; it must be one number, or infinity")
    return float(value)
