"""The dual of one activation as power and angular series, and its iteration over any depth.

Behind `limits.depth`, which says what the symbols mean. Pairs with xi near 1 are followed by their
gap 1 - xi, pairs with xi near 0 by logarithms, in double precision on NumPy arrays.

    Sigma_0 = K_0 = xi,   Sigma_l = phi^(Sigma_{l-1}),   K_l = Sigma_l + K_{l-1} phi^'(Sigma_{l-1})

Source: Radhakrishnan, Belkin & Uhler 2022, arXiv:2204.14126; the series in the angle and the closed ends are derived.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from limits import quadrature
from ntk import hermite, show
from ntk.activations import closed_forms, kinks
from ntk.types import Array, Elementwise, HostFunction, Numbers

Activation = Elementwise | closed_forms.Dual
_State: TypeAlias = tuple[Array, Array, Array, Array, Array, Array]

EXACT = 1e-9  # two constants closer than this are the same number
_ORDERS = 60  # of the power series, used for |xi| <= 1/2: 2^-60 is below rounding
_BLOCK = 1 << 16  # pairs a compiled call takes, so that all numbers of examples share one program


@show.readable
class DualMap(NamedTuple):
    """The dual as series: phi^ = xi^order g, phi^' = xi^(order - 1) h, 1 - phi^ = (1 - xi) ratio.

    g, h are powers of xi. ratio and slope (that is phi^') are powers of xi too if the series ends
    (`angular` false), else Chebyshev series in the angle arccos(xi), in which kinks are smooth.
    """

    order: int
    angular: bool
    squares: np.ndarray
    slope_at_one: float
    g: np.ndarray
    h: np.ndarray
    ratio: np.ndarray
    slope: np.ndarray


def dual_map(activation: Activation) -> DualMap:
    """The dual of an activation of any scale, studied once.

    Raises:
        ValueError: as `limits.depth.taxonomy`.
    """
    if not (callable(activation) or isinstance(activation, closed_forms.Dual)):
        raise ValueError(f"{activation!r} is neither a function nor a Dual")
    return _study(activation)


@functools.lru_cache(maxsize=64)
def _study(activation: Activation) -> DualMap:
    dual = activation
    if not isinstance(dual, closed_forms.Dual):
        dual = hermite.dual(dual, tolerance=EXACT, max_variance=1.0)
    if dual.fn is None:
        raise ValueError("the Dual has no function (fn is None): its coefficients are unknown")
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        one = jnp.ones(())
        norm = float(dual.norm(one))
        if not norm > 0:
            raise ValueError(f"E[phi(z)^2] is {norm}: the activation vanishes")

        def slope(xi: np.ndarray) -> np.ndarray:
            flat = _slopes(dual, one, jnp.asarray(xi.ravel()))
            return np.asarray(flat).reshape(xi.shape) / norm

        theta, ratio, at_theta = _angles(slope)
    slope_at_one = float(at_theta[-1])
    if not slope_at_one > 0:
        raise ValueError(
            "the activation's derivative vanishes almost everywhere: a constant or a step"
        )
    squares = _hermite_coefficients(dual.fn) ** 2 / norm
    squares[squares < 1e-20] = 0.0  # rounding
    order = int(np.argmax(squares > EXACT**2))
    if squares[1] > 1 - EXACT:
        raise ValueError("the activation is linear: a deep network of it is a linear network")
    k = np.arange(_ORDERS + 1)
    jump = abs(np.interp(math.pi / 2, theta[::-1], ratio[::-1]) - (1 - squares[0]))
    ends = 1 - squares.sum() < 1e-13 and abs(k @ squares / slope_at_one - 1) < 1e-12
    if not ends and jump > 1e-3:
        raise ValueError(
            "the activation jumps: its dual has an infinite slope at 1 (B' = inf), no limit here"
        )
    keep = int(np.flatnonzero(squares).max()) + 1 if ends else _ORDERS + 1
    squares, k = squares[:keep], k[:keep]
    if ends:
        tails = np.cumsum(squares[::-1])[::-1]
        ratio, at_theta = tails[1:], (k * squares)[1:]
    else:
        ratio, at_theta = _chebyshev(ratio), _chebyshev(at_theta)
    h = (k * squares)[max(order, 1) :]
    return DualMap(order, not ends, squares, slope_at_one, squares[order:], h, ratio, at_theta)


def _hermite_coefficients(fn: Elementwise) -> np.ndarray:
    """a_0, ..., a_60 by Gauss-Legendre quadrature on panels that end at kinks."""

    def values(x: np.ndarray) -> np.ndarray:
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            return np.asarray(fn(jnp.asarray(x)), np.float64)

    z, mass = quadrature.panels(1.0, tuple(kink.at for kink in kinks.find(values)))
    rows = [np.ones_like(z), z]
    for k in range(1, _ORDERS):
        rows.append((z * rows[k] - math.sqrt(k) * rows[k - 1]) / math.sqrt(k + 1))
    return np.stack(rows) @ (mass * values(z))


@functools.partial(jax.jit, static_argnums=0)
def _slopes(dual: closed_forms.Dual, one: Array, xi: Array) -> Array:
    return dual.moments(one, one, xi)[1]


def _angles(slope: HostFunction, count: int = 96) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chebyshev nodes theta from pi to 0, and there (1 - phi^) / (1 - cos theta) and phi^'."""
    theta = math.pi / 2 * (1 + np.cos(np.pi * np.arange(count + 1) / count))
    nodes, weights = np.polynomial.legendre.leggauss(32)
    t = theta[:, None] * (nodes[None] + 1) / 2
    # 1 - phi^ as an integral of positive terms over the angle: no digits cancel
    mass = weights[None] / 2 * theta[:, None] * np.sin(t)
    slopes = slope(np.cos(np.column_stack([t, theta])))
    at_theta = slopes[:, -1]
    integral = (mass * slopes[:, :-1]).sum(axis=1)
    gap = 2 * np.sin(theta / 2) ** 2
    return theta, np.where(gap > 0, integral / np.where(gap > 0, gap, 1), at_theta), at_theta


def _chebyshev(values: np.ndarray) -> np.ndarray:
    """Coefficients of the interpolant through values at cos(pi j / n), as long as they matter."""
    n = len(values) - 1
    series = np.fft.rfft(np.concatenate([values, values[-2:0:-1]])).real / n
    series[[0, n]] /= 2
    size = np.abs(series)
    return series[: 1 + int(np.flatnonzero(size > 1e-15 * size.max()).max())]


def near(found: DualMap, series: np.ndarray, gap: Numbers, xp: Any) -> Numbers:
    """The series `ratio` or `slope` at a gap, an array of the module xp (numpy or jax.numpy)."""
    if not found.angular:
        return _powers(series, 1 - gap)
    x = 4 / math.pi * xp.arcsin(xp.sqrt(xp.clip(gap / 2, 0, 1))) - 1
    above = after = 0 * x
    for c in series[:0:-1]:
        above, after = 2 * x * above - after + c, above
    return x * above - after + series[0]


def _powers(series: np.ndarray, x: Numbers) -> Numbers:
    total = 0 * x
    for c in series[::-1]:
        total = total * x + c
    return total


def log_shrinkage(found: DualMap) -> float:
    """ln A'^2 where correlations end by shrinking by that a layer, else 0."""
    return math.log(found.squares[1]) if found.order == 1 else 0.0


def descend(found: DualMap, gap: ArrayLike, depth: int) -> np.ndarray:
    """What up to `depth` layers make of correlations 1 - gap.

    Args:
        found: the activation's dual.
        gap: of any shape, entries in [0, 2].
        depth: largest number of layers; fewer are taken where a closed form holds from there on.

    Returns:
        x, k, log and the number of layers taken, each of the shape of gap: after those layers
        Sigma = x e^(log + layers s) and K = k e^(log + layers s), with s of `log_shrinkage`.

    Raises:
        ValueError: gaps outside [0, 2].
    """
    gap = np.asarray(gap, np.float64)
    flat = gap.ravel()
    if flat.size and not (flat.min() >= 0 and flat.max() <= 2 + 1e-9):
        raise ValueError(f"gaps 1 - xi lie in [0, 2], not [{flat.min()}, {flat.max()}]")
    ascending = np.argsort(flat)  # a block ends its layers when its smallest gap does
    results = np.empty((4, flat.size))
    for start in range(0, flat.size, _BLOCK):
        places = ascending[start : start + _BLOCK]
        width = min(_BLOCK, 1 << max(8, (places.size - 1).bit_length()))
        with jax.enable_x64(True):
            block = jnp.asarray(np.resize(flat[places], width))
            *arrays, layers = _descend(_Hashed(found), block, jnp.asarray(depth, jnp.int64))
        x, k, log = (np.asarray(a)[: places.size] for a in arrays)
        results[:3, places] = x, k, log - int(layers) * log_shrinkage(found)
        results[3, places] = int(layers)
    return results.reshape(4, *gap.shape)


class _Hashed:
    """A map as a static argument, by identity: maps are made once for each activation."""

    def __init__(self, found: DualMap) -> None:
        self.found = found

    def __hash__(self) -> int:
        return id(self.found)

    def __eq__(self, other: Any) -> bool:
        return self.found is other.found


@functools.partial(jax.jit, static_argnums=0)
def _descend(hashed: _Hashed, gap: Array, depth: Array) -> tuple[Array, Array, Array, Array]:
    """Layers until `depth` is reached, or every pair follows its closed form."""
    found = hashed.found
    order = found.order

    def layer(state: _State) -> _State:
        count, _, gap, x, k, scale = state
        next_gap = gap * near(found, found.ratio, gap, jnp)
        next_x, slope = 1 - next_gap, near(found, found.slope, gap, jnp)
        if order == 0:
            next_k = next_x + k * slope
            still = jnp.abs(next_x - x) <= 1e-15 * jnp.abs(x)
            ended = still & (jnp.abs(next_k - k) <= 1e-14 * jnp.abs(k))
        else:
            # Below |xi| = 1/2, powers keep the relative accuracy of numbers that tend to zero, and
            # a common scale keeps both within floating point.
            xi = x * jnp.exp(scale)
            close = jnp.abs(xi) > 0.5
            g, h, lead = _powers(found.g, xi), _powers(found.h, xi), x ** (order - 1)
            next_x = jnp.where(close, next_x, lead * x * g)
            next_k = next_x + k * jnp.where(close, slope, lead * h)
            size = jnp.maximum(jnp.abs(next_x), jnp.abs(next_k))
            size = jnp.where((size > 0) & (jnp.abs(next_x) <= 0.5), size, 1.0)
            next_x, next_k = next_x / size, next_k / size
            scale = order * scale + jnp.log(size)
            constant = [
                jnp.abs(y - y0) <= 4e-16 * y0 for y, y0 in ((g, found.g[0]), (h, found.h[0]))
            ]
            ended = constant[0] & constant[1] & ~close & (order == 1)
        return count + 1, jnp.all(ended | (gap == 0)), next_gap, next_x, next_k, scale

    def unfinished(state: _State) -> Array:
        return (state[0] < depth) & ~state[1]

    start = (jnp.zeros((), jnp.int64), jnp.array(False), gap, 1 - gap, 1 - gap, 0 * gap)
    count, _, _, x, k, scale = jax.lax.while_loop(unfinished, layer, start)
    return x, k, scale, count
