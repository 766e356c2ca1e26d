"""Jumps of an activation, of its slope and of its curvature: found, split off, and their moments.

A series in the correlation converges slowly near 1 for a function with a kink: its Hermite
coefficients decay like order^(-3/4) for a jump, order^(-5/4) for one of the slope, and
order^(-7/4) for one of the curvature. Written as

    f(x) = sum_j [jump_j + slope_j (x - at_j) + curvature_j (x - at_j)^2 / 2] 1(x > at_j) + rest(x),

the sum has Gaussian moments in closed form, up to one integral over an angle where at_j is not 0,
and the series is left with products that contain a coefficient of the smoother rest.

Source: derived; the bivariate normal integral is Plackett's (1954), as Drezner & Wesolowsky (1990) and Genz (2004)
compute it.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk.activations.elementary import arccos, half_space, one_minus_square, root
from ntk.types import Array, HostFunction, Numbers

_REACH = 24.0  # where kinks are looked for: 12 standard deviations at variance 4
_SPACING = 0.01
_FAR = 12.0  # standard deviations beyond which a Gaussian tail is zero


class Kink(NamedTuple):
    """At x = `at`, f jumps by `jump`, f' by `slope` and f'' by `curvature`."""

    at: float
    jump: float = 0.0
    slope: float = 0.0
    curvature: float = 0.0


def find(f: HostFunction) -> tuple[Kink, ...]:
    """Jumps and kinks of f on [-24, 24], from its values in double precision.

    Args:
        f: numpy array -> numpy array of the same shape, float64.

    Returns:
        Kinks from left to right. Found are jumps above 1e-5 and changes of slope above 1e-3, at
        least 0.01 apart; changes of curvature above 1e-3 only at 0, and if all others are at 0.
    """
    coarse = np.arange(-_REACH - 2 * _SPACING, _REACH + 3 * _SPACING, _SPACING)
    found, bends = [], False
    for places in _runs(_rough(f, coarse)):
        # A change of curvature is seen on this grid only; a long run there is a steep but smooth piece.
        bends |= places.size <= 8 and bool((np.abs(coarse[places]) < 3 * _SPACING).any())
        # On a finer grid kinks that are close come apart, and steep but smooth pieces are flagged no longer.
        x = np.arange(coarse[places[0] - 2], coarse[places[-1] + 2], _SPACING / 10)
        runs = [run for run in _runs(_rough(f, x)) if run.size <= 8]
        found += [(x[run[0] - 1], x[run[-1] + 1]) for run in runs]
    low, high = np.array(found).reshape(-1, 2).T
    for _ in range(6 if found else 0):  # zoom in eightfold on the largest second difference
        points = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, 17)
        at = np.argmax(np.abs(np.diff(f(points), 2, axis=1)), axis=1)
        low, high = (np.take_along_axis(points, (at + i)[:, None], 1)[:, 0] for i in (0, 2))
    kinks = (
        [kink for kink in _measure(f, (low + high) / 2) if kink.jump or kink.slope] if found else []
    )
    if bends and all(kink.at == 0 for kink in kinks):
        kinks = [kink for kink in _measure(f, np.zeros(1)) if any(kink[1:])]
    return tuple(kinks)


def _rough(f: HostFunction, x: np.ndarray) -> np.ndarray:
    """Indices in an even grid where fourth differences of f are no rounding."""
    values = f(x)
    # On the coarse grid a smooth f leaves 1e-8 f'''', and a jump J of the slope some .01 J.
    rough = np.abs(np.diff(values, 4)) > 1e-6 * (1 + np.abs(values[2:-2]))
    return np.flatnonzero(rough) + 2


def _runs(flagged: np.ndarray) -> list[np.ndarray]:
    """Flagged indices, those next to one another together."""
    parts = np.split(flagged, np.flatnonzero(np.diff(flagged) > 3) + 1)
    return [part for part in parts if part.size]


def _measure(f: HostFunction, at: np.ndarray) -> list[Kink]:
    """Kinks at given places, from one-sided quadratic extrapolation."""
    # Simple numbers are meant (0, 3, 6): a kink at 1e-12 would miss the closed forms for those at 0.
    at = np.where(np.abs(at - np.round(at, 6)) < 2e-7, np.round(at, 6), at) + 0.0
    left, changes = _changes(f, at, 1e-4)
    size = np.array([[1e-5], [1e-3], [1e-3]]) * (1 + np.abs(left))
    # What is steep but smooth on this scale changes by other amounts on a smaller one.
    _, nearer = _changes(f, at, 5e-5)
    steep = np.abs(nearer - changes) > 0.2 * np.abs(changes) + size
    changes = np.where((np.abs(changes) > size) & ~steep.any(0)[None], changes, 0)
    changes[2] = np.where(at == 0, changes[2], 0)
    digits = (9, 6, 5)
    rounded = [np.round(change, digit).tolist() for change, digit in zip(changes, digits)]
    return [Kink(*kink) for kink in zip(at.tolist(), *rounded)]


def _changes(f: HostFunction, at: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Value, slope and curvature to the left of each place, and by how much they change there."""
    sides = []
    for sign in (1, -1):
        # From points on one side alone: the parabola through 1, 2, 3 steps, carried on to 0; the curvature of the cubic
        # through 1, ..., 4 steps ten times as long, since rounding enters it as eps / step^2.
        f1, f2, f3 = f(at + sign * step * np.array([[1], [2], [3]]))
        wide = f(at + sign * 10 * step * np.array([[1], [2], [3], [4]]))
        value = 3 * f1 - 3 * f2 + f3
        slope = sign * (-2.5 * f1 + 4 * f2 - 1.5 * f3) / step
        sides.append(np.stack([value, slope, np.array([3, -8, 7, -2]) @ wide / (10 * step) ** 2]))
    right, left = sides
    return left, right - left


def ramps(kinks: Sequence[Kink], x: Numbers) -> Numbers:
    """sum_j [jump_j + slope_j (x - at_j) + curvature_j (x - at_j)^2 / 2] 1(x > at_j)."""
    total = 0 * x
    for at, jump, slope, curvature in kinks:
        distance = x - at
        total = total + (x > at) * ((0.5 * curvature * distance + slope) * distance + jump)
    return total


def density(x: Array) -> Array:
    """Standard normal density."""
    return jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def tail(x: Array) -> Array:
    """P(z > x) for standard normal z."""
    return 0.5 * jax.scipy.special.erfc(x / math.sqrt(2))


@functools.partial(jax.jit, static_argnums=(0, 2))
def coefficients(kinks: Sequence[Kink], deviation: Array, order: int) -> tuple[Array, Array]:
    """Normalised Hermite coefficients of the continuous part and of the jumps of `ramps`.

    Args:
        kinks: the kinks.
        deviation: standard deviations of the inputs, positive.
        order: highest order, at least 2.

    Returns:
        Two arrays of shape (order + 1, *deviation.shape): coefficients of z -> part(deviation z),
        those of the continuous part divided by `deviation` from order 1 on.
    """
    rest = [kink for kink in kinks if kink.at]
    ramp, jumps = _coefficients_at_zero([kink for kink in kinks if not kink.at], deviation, order)
    if not rest:
        return ramp, jumps
    at, jump, slope, _ = (
        jnp.asarray(x, deviation.dtype).reshape((-1,) + (1,) * deviation.ndim) for x in zip(*rest)
    )
    a = at / deviation[None]
    p, q = density(a), tail(a)
    sizes = jnp.stack([slope, jump])
    slopes, steps = jnp.moveaxis(_hermite_times_density(a, sizes, order), 1, 0)
    # By parts, as h_k phi = -(h_(k-1) phi)' / sqrt(k): E 1(z > a) h_k = h_(k-1)(a) phi(a) / sqrt(k), and
    # E (z - a)_+ h_k = h_(k-2)(a) phi(a) / sqrt(k (k - 1)).
    k = jnp.arange(1, order + 1, dtype=deviation.dtype).reshape((-1,) + (1,) * deviation.ndim)
    # Coefficients of (z - a)_+, the integral of a jump.
    start = [(slope * (p - a * q)).sum(0)[None] * deviation[None], (slope * q).sum(0)[None]]
    ramp = ramp + jnp.concatenate([*start, slopes[:-1] / jnp.sqrt(k[1:] * k[:-1])])
    if any(kink.jump for kink in rest):
        jumps = jumps + jnp.concatenate([(jump * q).sum(0)[None], steps / jnp.sqrt(k)])
    return ramp, jumps


def _coefficients_at_zero(
    kinks: Sequence[Kink], deviation: Array, order: int
) -> tuple[Array, Array]:
    """The same of kinks at 0, whose coefficients are numbers times powers of the deviation."""
    k = np.arange(1, order + 1)
    h = [1 / math.sqrt(2 * math.pi), 0.0]  # Hermite polynomials times the density at 0
    for n in range(1, order):
        h.append(-math.sqrt(n / (n + 1)) * h[n - 1])
    # Each is the integral of the one before it, so its coefficients are those shifted by one and divided by sqrt(k).
    step = np.concatenate([[0.5], h[:order] / np.sqrt(k)])
    first = np.concatenate([h[:1], step[:-1] / np.sqrt(k)])
    second = np.concatenate([[0.25], first[:-1] / np.sqrt(k)])  # of half the square
    sums = [sum(kink[n] for kink in kinks) for n in (1, 2, 3)]
    jump, ramp, bend = (
        jnp.asarray(c * x, deviation.dtype).reshape((-1,) + (1,) * deviation.ndim)
        for c, x in zip(sums, (step, first, second))
    )
    zero = jnp.zeros((order + 1, *deviation.shape), deviation.dtype)
    above = np.arange(order + 1).reshape((-1,) + (1,) * deviation.ndim)
    scale = jnp.where(above, 1, deviation[None])
    return (ramp + bend * deviation[None]) * scale + zero, jump + zero


def _hermite_times_density(a: Array, sizes: Array, order: int) -> Array:
    """Normalised Hermite polynomials at a of order 0 to order - 1 times the density, summed over kinks with `sizes`."""

    def step(pair: tuple[Array, Array], k: Array) -> tuple[tuple[Array, Array], Array]:
        below, h = pair
        return (h, (a * h - jnp.sqrt(k) * below) / jnp.sqrt(k + 1)), (sizes * h[None]).sum(1)

    start = (jnp.zeros_like(a), density(a))
    return jax.lax.scan(step, start, jnp.arange(order, dtype=a.dtype))[1]


def square(kinks: Sequence[Kink], deviation: Array) -> Array:
    """E[r(u)^2] of r = `ramps` of the kinks."""
    total = jnp.zeros_like(deviation)
    for one in kinks:
        for two in kinks:
            if one.at == two.at == 0:
                rho = jnp.ones((), deviation.dtype)
                total = total + _at_zero(one, two, deviation, deviation, rho)[0]
            else:
                total = total + _both_above(one, two, deviation)
    return total


def _both_above(one: Kink, two: Kink, d: Array) -> Array:
    """E[r(u) s(u)] of two kinks, without curvature."""
    # Both are on above the higher threshold: integrals of (z - a)^m (z - b)^n phi from there on.
    a, b, top = one.at / d, two.at / d, max(one.at, two.at) / d
    p, q = density(top), tail(top)
    s1, s2 = one.slope * d, two.slope * d
    ramp1, ramp2 = p - a * q, p - b * q
    ramps = (1 + a * b) * q + (top - a - b) * p
    return one.jump * two.jump * q + s1 * two.jump * ramp1 + one.jump * s2 * ramp2 + s1 * s2 * ramps


def moments(
    kinks: Sequence[Kink],
    deviation1: Array,
    deviation2: Array,
    rho: Array,
    others: Sequence[Kink] | None = None,
) -> tuple[Array, Array]:
    """E[r(u) s(v)] and E[r'(u) s'(v)] of r and s = `ramps` of `kinks` and `others` (by default the same).

    r' is the derivative almost everywhere.
    """
    k = kdot = jnp.zeros_like((deviation1 * deviation2) * rho)
    apart = []
    for one in kinks:
        for two in kinks if others is None else others:
            if one.at == two.at == 0:
                more, slope = _at_zero(one, two, deviation1, deviation2, rho)
                k, kdot = k + more, kdot + slope
            else:
                apart.append((*one[:3], *two[:3]))
    if not apart:
        return k, kdot

    # All pairs at once, along a new axis: every copy of the integral takes a second to compile.
    dims = jnp.ndim(k)
    at1, jump1, slope1, at2, jump2, slope2 = (
        jnp.asarray(x, k.dtype).reshape((-1,) + (1,) * dims) for x in zip(*apart)
    )
    rho, d1, d2 = (jnp.broadcast_to(x, k.shape)[None] for x in (rho, deviation1, deviation2))
    both, ramp1, ramp2, ramps = _thresholds(at1 / d1, at2 / d2, rho + 0 * at1)
    s1, s2 = slope1 * d1, slope2 * d2
    more = jump1 * jump2 * both + s1 * jump2 * ramp1 + jump1 * s2 * ramp2 + s1 * s2 * ramps
    return k + more.sum(0), kdot + (slope1 * slope2 * both).sum(0)


def _at_zero(one: Kink, two: Kink, d1: Array, d2: Array, rho: Array) -> tuple[Array, Array]:
    """E[r(u) r(v)] and E[r'(u) r'(v)] of kinks at 0, by the moments E[u_+^m v_+^n]."""
    # In unit variances: jump 1, slope u_+, half the curvature u_+^2; m_ij below is E[u_+^i v_+^j], u_+^0 the step.
    j1, s1, c1 = one.jump, one.slope * d1, 0.5 * one.curvature * d1 * d1
    j2, s2, c2 = two.jump, two.slope * d2, 0.5 * two.curvature * d2 * d2
    m00, m11 = half_space(rho)
    m01 = (1 + rho) / math.sqrt(8 * math.pi)
    k = j1 * j2 * m00 + s1 * s2 * m11 + (j1 * s2 + s1 * j2) * m01
    kdot = one.slope * two.slope * m00
    if one.curvature or two.curvature:
        sine = root(one_minus_square(rho)) / (2 * math.pi)
        m02, m12 = rho * sine + m00, (1 + rho) * m01
        m22 = 3 * rho * sine + (1 + 2 * rho * rho) * m00
        k = k + (j1 * c2 + c1 * j2) * m02 + (s1 * c2 + c1 * s2) * m12 + c1 * c2 * m22
        kdot = kdot + (one.slope * two.curvature * d2 + one.curvature * d1 * two.slope) * m01
        kdot = kdot + one.curvature * two.curvature * d1 * d2 * m11
    return k, kdot


@jax.custom_jvp
def _thresholds(a: Array, b: Array, rho: Array) -> tuple[Array, Array, Array, Array]:
    """E of 1(u>a) 1(v>b), (u-a)_+ 1(v>b), 1(u>a) (v-b)_+ and (u-a)_+ (v-b)_+ at unit variances.

    The last three follow from the first by partial integration.
    """
    # u given v = b is Gaussian of mean rho b and variance 1 - rho^2: phi(b) tail(beyond_b) = -dP(u > a, v > b) / db.
    spread, beyond_a, beyond_b = _beyond(a, b, rho)
    both = _orthant(_clip(a), _clip(b), rho)
    at_a, at_b = density(a) * tail(beyond_a), density(b) * tail(beyond_b)
    joint = spread * density(a) * density(beyond_a)
    ramp1 = at_a + rho * at_b - a * both
    ramp2 = at_b + rho * at_a - b * both
    return both, ramp1, ramp2, (a * b + rho) * both - b * at_a - a * at_b + joint


@_thresholds.defjvp
def _thresholds_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[tuple[Array, Array, Array, Array], tuple[Array, Array, Array, Array]]:
    """Along rho by Price's theorem, d E f(u) g(v) / drho = E f'(u) g'(v); the moments of ramps keep it at rho = 1."""
    (a, b, rho), (da, db, drho) = primals, tangents
    values = both, ramp1, ramp2, _ = _thresholds(a, b, rho)
    spread, beyond_a, beyond_b = _beyond(a, b, rho)
    tail_a, tail_b = tail(beyond_a), tail(beyond_b)
    at_a, at_b = density(a) * tail_a, density(b) * tail_b
    # E[(v-b)_+ | u = a] and E[(u-a)_+ | v = b]
    above_b = spread * density(beyond_a) + (rho * a - b) * tail_a
    above_a = spread * density(beyond_b) + (rho * b - a) * tail_b
    apart = spread > 0
    pair = density(a) * density(beyond_a) * jnp.where(apart, 1 / jnp.where(apart, spread, 1), 0)
    return values, (
        pair * drho - at_a * da - at_b * db,
        at_b * drho - both * da - density(b) * above_a * db,
        at_a * drho - density(a) * above_b * da - both * db,
        both * drho - ramp2 * da - ramp1 * db,
    )


def _beyond(a: Array, b: Array, rho: Array) -> tuple[Array, Array, Array]:
    """sqrt(1 - rho^2); how far b lies above E[v | u = a] and a above E[u | v = b], in deviations."""
    spread = root(one_minus_square(rho))
    apart = spread > 0
    safe = jnp.where(apart, spread, 1)
    # b - rho a, without cancellation where rho is near 1
    toward_b, toward_a = (b - a) + a * (1 - rho), (a - b) + b * (1 - rho)

    def distance(toward: Array) -> Array:
        # At rho = 1 or -1 a constant, whose derivatives are none.
        return jnp.where(apart, _clip(toward / safe), _FAR * jnp.sign(toward))

    return spread, distance(toward_b), distance(toward_a)


def _clip(x: Array) -> Array:
    return jnp.clip(x, -_FAR, _FAR)


def _orthant(a: Array, b: Array, rho: Array) -> Array:
    """P(u > a, v > b) at unit variances.

    d/drho P is the bivariate density at (a, b). From rho = 1 down to cos(angle) that is an
    integral of exp(-(d^2 + 2 a b (1 - cos t)) / (2 sin^2 t)), d = a - b, over 0 < t < angle, whose
    integrand rises from 0 within t ~ d. Its first two terms in sin(t) have an antiderivative; the
    rest is smooth and goes to Gauss-Legendre quadrature.

    Source: Plackett 1954; Drezner & Wesolowsky 1990 and Genz 2004 for the subtraction.
    """
    # P(u > a, v > b; rho) = P(u > a) - P(u > a, -v > -b; -rho): only correlations from 0 to 1 are integrated over.
    negative = rho < 0
    reflected = jnp.where(negative, -b, b)
    angle = arccos(jnp.where(negative, -rho, rho))
    spread = jnp.maximum(jnp.sin(angle), 1e-30)
    d = jnp.abs(a - reflected)
    product = a * reflected
    front = jnp.exp(-0.5 * product)
    # With s = sin t: exp(-a b / (1 + cos t)) dt = exp(-a b / 2) [1 + (4 - a b) s^2 / 8 + ...] ds, as dt = ds / cos t;
    # `first` is the integral of exp(-d^2 / (2 s^2)) from 0 to the spread, and by parts so is that of s^2 times it.
    second = (4 - product) / 8
    edge = jnp.exp(-0.5 * (d / spread) ** 2)
    first = spread * edge - d * (math.sqrt(2 * math.pi) * tail(d / spread))
    integral = front * (first + second * (spread**3 * edge - d * d * first) / 3)

    def add_node(integral: Array, node: Array) -> tuple[Array, None]:
        place, weight = node
        cos, sin = jnp.cos(angle * place), jnp.maximum(jnp.sin(angle * place), 1e-30)
        half = 0.5 * (d / sin) ** 2
        rest = jnp.exp(-half - product / (1 + cos))
        rest = rest - front * jnp.exp(-half) * cos * (1 + second * sin * sin)
        return integral + weight * angle * rest, None

    # At thresholds within two deviations 24 nodes err by up to 6e-12 and 10 by 3e-8; each costs a pass over the matrix.
    nodes, weights = np.polynomial.legendre.leggauss(24 if rho.dtype == jnp.float64 else 10)
    rule = jnp.asarray(np.stack([(nodes + 1) / 2, weights / 2], axis=1), rho.dtype)
    integral, _ = jax.lax.scan(add_node, integral, rule)
    above_a, above_b = tail(a), tail(b)
    # At rho = 1 both are above the higher threshold; from there the integral goes down to rho.
    value = jnp.minimum(above_a, jnp.where(negative, 1 - above_b, above_b))
    value = value - integral / (2 * math.pi)
    return jnp.where(negative, above_a - value, value)
