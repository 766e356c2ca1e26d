"""Moments of functions of z = sum_m a_m w_m under the law of the weights w, where few of them make it not Gaussian.

The entries a_m are numbers that depend on the sample, the weights are independent, with mean 0, variance 1 and excess
kurtosis k_m. With E_G the Gaussian of the same covariance,

    E f(z) g(z') = E_G f g + 1/24 sum_{a=0..4} C(4, a) [sum_m k_m a_m^(4-a) a'_m^a] E_G f^(4-a)(z) g^(a)(z') + ...

(the fourth cumulants; the next terms are of the order of the square of the kurtosis of z, and of the sixth cumulants).
E_G f^(a) g^(b) is a series in the correlation whose terms are Hermite coefficients shifted by a and b: no derivative is
taken, and kinks count as distributions. Where the kurtosis of z is large the mean is taken over weights at points of a
scrambled Sobol sequence instead.

One file: the three roads to one expectation (Gaussian, cumulants, means over weights) share layouts and entries.

Source: McCullagh (1987), Tensor Methods in Statistics, chapter 5, for the expansion.
"""

from __future__ import annotations

import contextvars
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ntk.activations.elementary import root
from ntk.infinite import kernel as kernels
from ntk.infinite import weight_laws
from ntk.infinite.kernel import Array
from ntk.infinite.weight_laws import Standard
from ntk.types import R

MOST = 0.2
"""Excess kurtosis of z, in absolute value, above which the mean is taken over weights."""
_NEAR = 0.03  # 1 - correlation below which a pair gets the correction of a coincident one
_NEAR_CLOSED = 1e-3
_NODES, _REACH = 256, 12.0
_CHUNK = 2**19  # numbers of weights that are made at once


class Sides(NamedTuple):
    """Entries of z at the two sides of a covariance.

    Attributes:
        one: (N1, *S, d).
        two: (N2, *S, d).
        layout: "pairs" of samples and of positions, "equal" positions of pairs of samples, pairs of positions
            "within" a sample, or the "same" entry.
    """

    one: Array
    two: Array
    layout: str


def contracted(sides: Sides) -> Array:
    """Inner products over the last axis, in the layout of a covariance."""
    one, two, layout = sides
    if layout == "same":
        return jnp.sum(one * two, -1)
    count = one.ndim - 2
    over = tuple(range(1, 1 + count))
    lead: tuple[int, ...] = (0,)
    if layout == "equal":
        out = inner(one, two, over)  # (*S, N1, N2)
        return jnp.transpose(out, (count, count + 1, *range(count)))
    if layout == "within":
        out = inner(one, two, (0,))
        first, second = over, tuple(k + count for k in over)
    else:
        out = inner(one, two, ())  # (N1, *S, N2, *S)
        first, second, lead = over, tuple(k + count + 1 for k in over), (0, 1 + count)
    pairs = [k for pair in zip(first, second) for k in pair]
    return jnp.transpose(out, (*lead, *pairs))


def inner(one: Array, two: Array, shared: tuple[int, ...]) -> Array:
    """Inner products over the last axes, (shared, rest of one, rest of two).

    Without a type of its own for the result, which would make derivatives of double precision inside single forget it.
    """
    numbers = (((one.ndim - 1,), (two.ndim - 1,)), (shared, shared))
    return jax.lax.dot_general(one, two, numbers, precision=jax.lax.Precision.HIGHEST)


def viewed(one: Array, two: Array, layout: str) -> tuple[Array, Array]:
    """Arrays (N1, *S) and (N2, *S), shaped to broadcast against a covariance."""
    if layout == "same":
        return one, two
    if layout == "within":
        return kernels.views_within(one)[0], kernels.views_within(two)[1]
    return kernels.views(one, two, layout == "equal")


# --- the fourth cumulants -------------------------------------------------------------------------


class Cumulants(NamedTuple):
    """sum_m k_m u_m^(4-a) u'_m^a, entries relative to the standard deviation of z.

    Attributes:
        one: a = 0, the excess kurtosis of z, (N1, *S).
        two: a = 4, (N2, *S).
        pairs: a = 1, 2, 3, in the layout of the covariance.
    """

    one: Array
    two: Array
    pairs: tuple[Array, Array, Array]


def cumulants(sides: Sides, kurtosis: np.ndarray, q1: Array, q2: Array) -> Cumulants:
    """Fourth cumulants of z at both sides, of variances q1 and q2 (each with a part that is Gaussian, perhaps)."""
    u = sides.one * kernels.inverse_sqrt(q1)[..., None]
    v = sides.two * kernels.inverse_sqrt(q2)[..., None]
    k = jnp.asarray(kurtosis, u.dtype).reshape((1,) * (u.ndim - 1) + (-1,))
    powers = ((k * u**3, v), (k * u**2, v**2), (k * u, v**3))
    one, two, three = (contracted(Sides(a, b, sides.layout)) for a, b in powers)
    return Cumulants(jnp.sum(k * u**4, -1), jnp.sum(k * v**4, -1), (one, two, three))


@functools.lru_cache(maxsize=8)
def _rule(order: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes, and the rows that map values at them to normalised Hermite coefficients."""
    z = (np.arange(_NODES) + 0.5) * (2 * _REACH / _NODES) - _REACH
    rows = [np.exp(-(z**2) / 4), z * np.exp(-(z**2) / 4)]
    for k in range(1, order):
        rows.append((z * rows[k] - math.sqrt(k) * rows[k - 1]) / math.sqrt(k + 1))
    weight = np.exp(-(z**2) / 4) / math.sqrt(2 * math.pi) * (2 * _REACH / _NODES)
    return z, np.stack(rows) * weight


def coefficients(f: Callable, q: Array, order: int) -> Array:
    """Normalised Hermite coefficients of z -> f(sqrt(q) z), (order + 1, *q.shape)."""
    z, rows = _rule(order)
    x = jnp.asarray(z, q.dtype).reshape((-1,) + (1,) * q.ndim) * root(q)[None]
    return jnp.tensordot(jnp.asarray(rows, q.dtype), f(x).astype(q.dtype), 1, precision="highest")


def at_one(f: Callable, q: Array, kurtosis: Array) -> Array:
    """What the fourth cumulant adds to E f(z): kurtosis / 24 E_G f(z) He_4(z)."""
    # He_4 = sqrt(4!) h_4.
    return kurtosis / math.sqrt(24) * coefficients(f, q, 4)[4]


def _shifted(c: Array, a: int, terms: int) -> Array:
    """Coefficients of q^(a/2) f^(a) from those of f."""
    # By parts E f' h_n = sqrt(n + 1) E f h_(n+1) of z of unit variance, a times.
    n = np.arange(terms, dtype=float)
    factor = np.ones(terms)
    for j in range(1, a + 1):
        factor *= np.sqrt(n + j)
    return jnp.asarray(factor.reshape((-1,) + (1,) * (c.ndim - 1)), c.dtype) * c[a : a + terms]


class Series(NamedTuple):
    """A correction as a polynomial in the correlation, see `series`."""

    value: Array
    slope: Array | None


def series(
    fs: tuple[Callable, Callable],
    q: tuple[Array, Array],
    rho: Array,
    cumulant: Cumulants,
    layout: str,
    terms: int,
    tangent: bool,
) -> Series:
    """What the fourth cumulants add to E f(z) g(z'), and to E f'(z) g'(z').

    Args:
        fs: f and g.
        q: variances of z at both sides, (N1, *S) and (N2, *S).
        rho: correlation of z.
        cumulant: of z.
        layout: of rho.
        terms: of the series.
        tangent: whether the second is asked for.
    """
    c1, c2 = (coefficients(f, v, terms + 5) for f, v in zip(fs, q))

    # C(4, a) times the cumulants; those at the ends, which only one side has, are in the rows of the fourth derivative.
    shifts = (0, 1) if tangent else (0,)
    factors = (None, *(f * p for f, p in zip((4, 6, 4), cumulant.pairs)), None)

    def rows(c: Array, shift: int, own: Array) -> list[Array]:
        parts = [_shifted(c, a + shift, terms) for a in range(5)]
        return [*parts[:4], parts[4] * own[None]]

    left = [rows(c1, shift, cumulant.one) for shift in shifts]
    right = [rows(c2, shift, cumulant.two) for shift in shifts]

    def descend(state: list, row: tuple) -> tuple:
        out = []
        for total, one, two in zip(state, *row):
            total = total * rho
            for a, factor in enumerate(factors):
                u, v = viewed(one[4 - a], two[a], layout)
                total = total + (u * v if factor is None else factor * (u * v))
            out.append(total)
        return out, None

    # A loop, because every copy of the sum takes a tenth of a second to compile.
    start = [jnp.zeros_like(rho)] * len(shifts)
    totals = jax.lax.scan(descend, start, (left, right), reverse=True)[0]
    if not tangent:
        return Series(totals[0] / 24, None)
    one, two = viewed(kernels.inverse_sqrt(q[0]), kernels.inverse_sqrt(q[1]), layout)
    return Series(totals[0] / 24, totals[1] / 24 * (one * two))


def terms_of(f: Callable, on_host: Callable) -> int:
    """Terms that give the correction of a typical pair to some percent."""
    z, rows = _rule(45)
    c = rows @ on_host(1.2 * z)
    sums = []
    for count in (6, 10, 16, 40):
        h = [np.asarray(_shifted_host(c, a, count)) for a in range(5)]
        sums.append(sum(0.85**n * h[2][n] ** 2 for n in range(count)))
    for count, total in zip((6, 10), sums):
        if abs(total - sums[-1]) <= 0.02 * abs(sums[-1]):
            return count
    return 16


STATED = 0.01
"""Size of the terms after the fourth cumulant, at a kurtosis of MOST, beyond which a function is `steep`."""
_DEGREE = 3.0


def steep(on_host: Callable, variance: float) -> bool:
    """Whether f is too steep at that variance of z for the errors that are stated of both roads.

    It is if a typical term of its Hermite series has a degree above 3 (sin(3 z), jumps), where means over weights have
    errors of a per cent, or if the terms that follow the fourth cumulant are large (exp(z), z^4),

        E f(z)^2 = E_G f^2 (1 + k4 He_4 / 24 + k6 He_6 / 720 + k4^2 He_8 / 1152 + ...),

    here for a truncated normal: k6 = 1.988 (k4 / -.634)^2 where all entries are equal.
    """
    z, rows = _rule(45)
    with np.errstate(all="ignore"):
        f = np.asarray(on_host(math.sqrt(variance) * z))
        c, g = rows @ f, rows @ f**2
    if not (np.isfinite(c).all() and np.isfinite(g).all()):
        return True
    if not g[0]:
        return False
    sixth = 1.988 * (MOST / 0.634) ** 2 / math.sqrt(math.factorial(6))
    eighth = MOST**2 * math.sqrt(math.factorial(8)) / 1152
    next_terms = (sixth * abs(g[6]) + eighth * abs(g[8])) / g[0]
    degree = np.arange(len(c)) @ c**2 / (c @ c)
    return bool(next_terms > STATED or degree > _DEGREE)


def _shifted_host(c: np.ndarray, a: int, terms: int) -> np.ndarray:
    n = np.arange(terms, dtype=float)
    return c[a : a + terms] * np.sqrt(np.prod([n + j for j in range(1, a + 1)], axis=0))


def rectified(rho: Array, k: Array, slope: Array, rise: Array, c: Cumulants, layout: str) -> Series:
    """The same for a function of degree 1, a min(z, 0) + b max(z, 0), in closed form at unit variances.

    With k and s = k' at unit variances, s' = (b - a)^2 / (2 pi sqrt(1 - rho^2)); derivatives by the variances follow
    from those by rho.

    Args:
        rho: correlation of z.
        k: E_G f f'.
        slope: s.
        rise: (b - a)^2 / (2 pi).
        c: cumulants.
        layout: of rho.
    """
    # The powers -1/2 and -3/2 diverge at coincident entries; `apart` takes the correction away before they do.
    square = jnp.maximum(1 - rho * rho, 1e-6)
    first = rise * jax.lax.rsqrt(square)
    second = rho * first / square
    ends = sum(viewed(c.one, c.two, layout))
    odd, even = c.pairs[0] + c.pairs[2], c.pairs[1]
    value = ends * (rho * slope - k + rho * rho * first) / 4 + (1.5 * even - odd * rho) * first
    change = ends * (0.75 * rho * first + rho * rho * second / 4)
    change = change + 1.5 * even * second - odd * (first + rho * second)
    return Series(value / 6, change / 6)


def apart(rho: Array, closed: bool) -> Array:
    """How much of its own correction a pair gets: 0 for coincident entries, 1 for those that are apart.

    Single terms of the correction grow without bound as entries with a kink come together, while their sum does not.
    """
    gap = 1 - rho
    near = _NEAR_CLOSED if closed else _NEAR
    return gap * gap / (gap * gap + near * near)


# --- means over weights ---------------------------------------------------------------------------


class Covariance(NamedTuple):
    """A covariance to be estimated: of f(z) at one of the batches with g(z') at one of them.

    Attributes:
        sides: which batches, 0 or 1.
        layout: as in `Sides`.
        tangent: whether of f' and g' too.
    """

    sides: tuple[int, int]
    layout: str
    tangent: bool = False


_postponed: contextvars.ContextVar[list[Array] | None] = contextvars.ContextVar(
    "postponed", default=None
)


def without_means(fn: Callable[..., Any]) -> Callable[..., Any]:
    """(fn's result by cumulants alone, whether means over weights were needed somewhere), for a small kernel.

    Tracing the means takes longer than all else, and most data have too many entries to need them.
    """

    def call(*args: Any) -> tuple[Any, Array]:
        needed: list[Array] = []
        token = _postponed.set(needed)
        try:
            out = fn(*args)
        finally:
            _postponed.reset(token)
        return out, functools.reduce(jnp.logical_or, needed, jnp.zeros((), bool))

    return call


def where_needed(needed: Array, means: Callable[[], R], expanded: R) -> R:
    """Means over weights if any entry needs them, else moments by cumulants, as always within `without_means`."""
    postponed = _postponed.get()
    if postponed is None:
        return jax.lax.cond(needed, means, lambda: expanded)
    postponed.append(needed)
    return expanded


def sampled(
    fs: tuple[Callable, Callable],
    entries: tuple[Array, Array],
    laws: tuple[tuple[Standard, int], ...],
    seed: int,
    asked: tuple[Covariance, ...],
    means: bool = False,
) -> tuple[list[tuple[Array, Array | None]], list[Array]]:
    """E f(z) g(z') and E f'(z) g'(z') as means over POINTS draws of the weights, in double precision.

    Args:
        fs: f at the first side of each covariance, g at the second.
        entries: of z in both batches, (N, *S, d).
        laws: of their weights.
        seed: of the points.
        asked: the covariances.
        means: whether E f(z) in either batch is asked for.

    Returns:
        For each covariance (E f g, E f' g'), the derivative being that almost everywhere, or None; and E f(z).
    """
    alike = fs[0] is fs[1]
    tangent = any(c.tangent for c in asked)
    with jax.enable_x64(True):
        data = [x.astype(jnp.float64) for x in entries]
        size = 2 ** int(math.log2(max(_CHUNK // data[0].shape[-1], 1)))
        size = min(weight_laws.POINTS, size)

        def features(f: Callable, z: Array) -> tuple[Array, Array | None]:
            return jax.jvp(f, (z,), (jnp.ones_like(z),)) if tangent else (f(z), None)

        def once(start: Array) -> tuple:
            index = start + jnp.arange(size, dtype=jnp.int32)
            w = weight_laws.points(laws, index, seed, jnp.float64)
            zs = [inner(x, w, ()) for x in data]
            left = [features(fs[0], z) for z in zs]
            right = left if alike else [features(fs[1], z) for z in zs]
            out = []
            for (i, j), layout, also in asked:
                (u, du), (v, dv) = left[i], right[j]
                slope = None
                if also and du is not None and dv is not None:
                    slope = contracted(Sides(du, dv, layout))
                out.append((contracted(Sides(u, v, layout)), slope))
            return out, [jnp.sum(u, -1) for u, _ in left] if means else []

        def add(total: tuple, start: Array) -> tuple:
            return jax.tree.map(jnp.add, total, once(start)), None

        shapes = jax.eval_shape(once, jax.ShapeDtypeStruct((), jnp.int32))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float64), shapes)
        starts = jnp.arange(0, weight_laws.POINTS, size, dtype=jnp.int32)
        total, _ = jax.lax.scan(add, zeros, starts)
        return jax.tree.map(lambda x: x / weight_laws.POINTS, total)


def normalised(k: Array, n1: Array, n2: Array, layout: str, dtype: DTypeLike | None) -> Array:
    """k / sqrt(n1 n2) of double-precision moments."""
    with jax.enable_x64(True):
        one, two = viewed(kernels.inverse_sqrt(n1), kernels.inverse_sqrt(n2), layout)
        return (k * one * two).astype(dtype)
