"""Jumps of an activation and of its slope: found, split off, and their Gaussian moments.

A series in the correlation converges slowly near 1 for a function with a kink: its Hermite
coefficients decay like order^(-5/4), and order^(-3/4) for a jump. Written as

    f(x) = sum_j [slope_j max(x - at_j, 0) + jump_j 1(x > at_j)] + smooth(x),

the sum has moments in closed form, up to one integral over an angle, and the series is left
with products that contain a coefficient of the smooth rest.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk.arcs import arccos, half_space, one_minus_square, root

Array = jax.Array

_REACH = 24.0  # where kinks are looked for: 12 standard deviations at variance 4
_SPACING = 0.01
_FAR = 12.0  # standard deviations beyond which a Gaussian tail is zero


class Kink(NamedTuple):
    """f jumps by `jump`, and f' by `slope`, at x = `at`."""

    at: float
    jump: float
    slope: float


def find(f) -> tuple[Kink, ...]:
    """Jumps and kinks of f on [-24, 24], from its values in double precision.

    Args:
        f: numpy array -> numpy array of the same shape, float64.

    Returns:
        Kinks from left to right. Found are jumps above 1e-5 and changes of slope above 1e-3, at
        least 0.1 apart.
    """
    x = np.arange(-_REACH - 2 * _SPACING, _REACH + 3 * _SPACING, _SPACING)
    values = f(x)
    rough = np.abs(np.diff(values, 4))
    flagged = np.flatnonzero(rough > 1e-6 * (1 + np.abs(values[2:-2]))) + 2
    groups = np.split(flagged, np.flatnonzero(np.diff(flagged) > 3) + 1)
    # A long stretch of large differences is a steep but smooth piece of f, not a kink.
    groups = [g for g in groups if 0 < g.size <= 8]
    if not groups:
        return ()
    low = np.array([x[g[0] - 1] for g in groups])
    high = np.array([x[g[-1] + 1] for g in groups])
    for _ in range(7):  # zoom in eightfold on the largest second difference
        points = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, 17)
        at = np.argmax(np.abs(np.diff(f(points), 2, axis=1)), axis=1)
        low, high = (np.take_along_axis(points, (at + i)[:, None], 1)[:, 0] for i in (0, 2))
    return tuple(kink for kink in map(Kink._make, _measure(f, (low + high) / 2)) if any(kink[1:]))


def _measure(f, at):
    """(at, jump, slope) from one-sided quadratic extrapolation."""
    at = np.where(np.abs(at - np.round(at, 6)) < 2e-7, np.round(at, 6), at)
    step = 1e-4
    sides = []
    for sign in (1, -1):
        f1, f2, f3 = f(at + sign * step * np.array([[1], [2], [3]]))
        sides.append((3 * f1 - 3 * f2 + f3, sign * (-2.5 * f1 + 4 * f2 - 1.5 * f3) / step))
    (right, right_slope), (left, left_slope) = sides
    jump, slope = right - left, right_slope - left_slope
    jump = np.where(np.abs(jump) > 1e-5 * (1 + np.abs(left)), np.round(jump, 9), 0)
    slope = np.where(np.abs(slope) > 1e-3 * (1 + np.abs(left_slope)), np.round(slope, 6), 0)
    return zip((at + 0.0).tolist(), jump.tolist(), slope.tolist())


def ramps(kinks, x):
    """sum_j [slope_j max(x - at_j, 0) + jump_j 1(x > at_j)], for numpy or JAX arrays."""
    total = 0 * x
    for at, jump, slope in kinks:
        total = total + (x > at) * (slope * (x - at) + jump)
    return total


def density(x):
    """Standard normal density."""
    return jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def tail(x):
    """P(z > x) for standard normal z."""
    return 0.5 * jax.scipy.special.erfc(x / math.sqrt(2))


@functools.partial(jax.jit, static_argnums=(0, 2))
def coefficients(kinks, deviation: Array, order: int) -> tuple[Array, Array]:
    """Normalised Hermite coefficients of the slope part and of the jump part of `ramps`.

    Args:
        kinks: the kinks.
        deviation: standard deviations of the inputs, positive.
        order: highest order, at least 2.

    Returns:
        Two arrays of shape (order + 1, *deviation.shape): coefficients of z -> part(deviation z),
        those of the slope part divided by `deviation` from order 1 on.
    """
    slopes = jumps = jnp.zeros((order + 1, *deviation.shape), deviation.dtype)
    if not kinks:
        return slopes, jumps
    k = jnp.arange(1, order + 1, dtype=deviation.dtype).reshape((-1,) + (1,) * deviation.ndim)
    for at, jump, slope in kinks:
        a = at / deviation
        p, q = density(a)[None], tail(a)[None]
        scaled = _hermite_times_density(a, order)
        jumps = jumps + jump * jnp.concatenate([q, scaled / jnp.sqrt(k)])
        part = scaled[:-1] / jnp.sqrt(k[1:] * k[:-1])
        slopes = slopes + slope * jnp.concatenate([deviation[None] * (p - a[None] * q), q, part])
    return slopes, jumps


def _hermite_times_density(a, order):
    """Normalised Hermite polynomials of order 0 to order - 1 at a, times the density at a."""

    def step(pair, k):
        below, h = pair
        return (h, (a * h - jnp.sqrt(k) * below) / jnp.sqrt(k + 1)), h

    start = (jnp.zeros_like(a), density(a))
    return jax.lax.scan(step, start, jnp.arange(order, dtype=a.dtype))[1]


def moments(kinks, deviation1: Array, deviation2: Array, rho: Array) -> tuple[Array, Array]:
    """E[r(u) r(v)] and E[r'(u) r'(v)] of r = `ramps`, r' its derivative almost everywhere."""
    k = kdot = jnp.zeros_like((deviation1 * deviation2) * rho)
    for at1, jump1, slope1 in kinks:
        for at2, jump2, slope2 in kinks:
            if at1 == at2 == 0:
                both, ramp12 = half_space(rho)
                ramp1 = ramp2 = (1 + rho) / math.sqrt(8 * math.pi)
            else:
                both, ramp1, ramp2, ramp12 = _thresholds(at1 / deviation1, at2 / deviation2, rho)
            k = k + slope1 * slope2 * (deviation1 * deviation2) * ramp12 + jump1 * jump2 * both
            k = k + slope1 * jump2 * deviation1 * ramp1 + jump1 * slope2 * deviation2 * ramp2
            kdot = kdot + slope1 * slope2 * both
    return k, kdot


def _thresholds(a, b, rho):
    """E of 1(u>a) 1(v>b), (u-a)_+ 1(v>b), 1(u>a) (v-b)_+ and (u-a)_+ (v-b)_+ at unit variances.

    The last three follow from the first by partial integration.
    """
    square = one_minus_square(rho)
    spread = root(square)
    inverse = 1 / jnp.maximum(spread, jnp.finfo(spread.dtype).tiny ** 0.5)
    # b - rho a, without cancellation where rho is near 1
    beyond_a = _clip(((b - a) + a * (1 - rho)) * inverse)
    beyond_b = _clip(((a - b) + b * (1 - rho)) * inverse)
    both = _orthant(_clip(a), _clip(b), rho)
    at_a, at_b = density(a) * tail(beyond_a), density(b) * tail(beyond_b)
    joint = spread * density(a) * density(beyond_a)
    ramp1 = at_a + rho * at_b - a * both
    ramp2 = at_b + rho * at_a - b * both
    return both, ramp1, ramp2, (a * b + rho) * both - b * at_a - a * at_b + joint


def _clip(x):
    return jnp.clip(x, -_FAR, _FAR)


def _orthant(a, b, rho):
    """P(u > a, v > b) at unit variances.

    d/drho P is the bivariate density at (a, b). From rho = 1 down to cos(angle) that is an
    integral of exp(-(d^2 + 2 a b (1 - cos t)) / (2 sin^2 t)), d = a - b, over 0 < t < angle, whose
    integrand rises from 0 within t ~ d. Its first two terms in sin(t) have an antiderivative; the
    rest is smooth and goes to Gauss-Legendre quadrature.

    Source: Plackett 1954; Drezner & Wesolowsky 1990 and Genz 2004 for the subtraction.
    """
    negative = rho < 0
    reflected = jnp.where(negative, -b, b)
    angle = arccos(jnp.where(negative, -rho, rho))
    spread = jnp.maximum(jnp.sin(angle), 1e-12)
    d = jnp.abs(a - reflected)
    product = a * reflected
    front = jnp.exp(-0.5 * product)
    second = (4 - product) / 8
    edge = jnp.exp(-0.5 * (d / spread) ** 2)
    first = spread * edge - d * (math.sqrt(2 * math.pi) * tail(d / spread))
    integral = front * (first + second * (spread**3 * edge - d * d * first) / 3)
    nodes, weights = np.polynomial.legendre.leggauss(24 if rho.dtype == jnp.float64 else 10)
    for node, weight in zip((nodes + 1) / 2, weights / 2):
        cos, sin = jnp.cos(angle * float(node)), jnp.maximum(jnp.sin(angle * float(node)), 1e-12)
        half = 0.5 * (d / sin) ** 2
        rest = jnp.exp(-half - product / (1 + cos))
        rest = rest - front * jnp.exp(-half) * cos * (1 + second * sin * sin)
        integral = integral + float(weight) * angle * rest
    value = tail(jnp.maximum(a, reflected)) - integral / (2 * math.pi)
    return jnp.where(negative, tail(a) - value, value)
