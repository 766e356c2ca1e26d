"""Dual activations: E[f(u) f(v)] and E[f'(u) f'(v)] of a Gaussian pair, in closed form.

(u, v) has variances q1, q2 and correlation rho. Every formula is written in rho and not in the
covariance, because the square roots that closed forms need, such as sqrt(q1 q2 - cov^2), lose
half of the digits of a nearly coincident pair when they are formed from covariances.

    k = E[f(u) f(v)],    kdot = E[f'(u) f'(v)] = dk / d cov(u, v)  (Price's theorem)

Source: Williams 1997 (erf); Cho & Saul 2009 (rectified powers); Daniely, Frostig & Singer 2016 for duals in general;
those of the others are named at the functions, or derived from E exp(i u) = exp(-q / 2).
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ntk import show
from ntk.activations.elementary import arcsin, half_space, half_space_gap, one_minus_square, root
from ntk.types import Array, Elementwise

Moments: TypeAlias = Callable[[Array, Array, Array], tuple[Array, Array]]
Number = TypeVar("Number", float, Array)


@show.readable
class Dual(NamedTuple):
    """An activation together with its Gaussian moments.

    Attributes:
        fn: the activation, elementwise on arrays; None for a kernel-only map.
        moments: (q1, q2, rho) -> (k, kdot), k = E[f(u) f(v)] and kdot = E[f'(u) f'(v)], for
            arrays that broadcast. Finite, with finite gradients, for q >= 0 and -1 <= rho <= 1;
            rounding that leaves rho slightly outside is harmless.
        norm: q -> E[f(u)^2], equal to k at q1 = q2 = q, rho = 1.
        homogeneous: d if k(q1, q2, rho) = (q1 q2)^(d/2) k(1, 1, rho) and
            kdot(q1, q2, rho) = (q1 q2)^((d-1)/2) kdot(1, 1, rho), as for f(c u) = c^d f(u), c > 0.
        mean: q -> E[f(u)], or None where it is not defined.
        error: None for a closed form; else q -> (k_error, kdot_error), bounds of the error that
            the series makes at variance q, relative to its own values at rho = 1.
        gap: for functions of degree 1, (1 - rho, whether rho may be negative) -> (1 - k / norm, kdot / norm) at unit
            variances, without cancellation; None where nobody has written it.
    """

    fn: Elementwise | None
    moments: Moments
    norm: Elementwise
    homogeneous: int | None = None
    mean: Elementwise | None = None
    error: Callable[[ArrayLike], tuple[np.ndarray, np.ndarray]] | None = None
    gap: Callable[[Array, bool], tuple[Array, Array]] | None = None


def _of(name: str, x: Number) -> Number:
    """A function of `math` of a number; of `jax.numpy` of an array, which may be traced."""
    return getattr(jnp if isinstance(x, jax.Array) else math, name)(x)


def dual(
    fn: Elementwise | None,
    moments: Moments,
    *,
    norm: Elementwise | None = None,
    homogeneous: int | None = None,
    mean: Elementwise | None = None,
    error: Callable[[ArrayLike], tuple[np.ndarray, np.ndarray]] | None = None,
    gap: Callable[[Array, bool], tuple[Array, Array]] | None = None,
) -> Dual:
    """Dual with `norm` read off `moments` at rho = 1 unless a shorter form is given."""
    if norm is None:

        def norm(q: Array) -> Array:
            return moments(q, q, jnp.ones_like(q))[0]

    return Dual(fn, moments, norm, homogeneous, mean, error, gap)


def _mehler(t1: Array, t2: Array, rho: Array) -> tuple[Array, Array, Array, Array]:
    """x = rho r1 r2, gap = 1 - x^2, m1, m2 with r_i^2 = |t_i| / (1 + t_i), m_i^2 = 1 / (1 + t_i).

    With covariance matrix S = [[t1, c], [c, t2]], det(1 + S) = gap / (m1 m2)^2. The gap is a sum
    of positive terms, so that it keeps its digits when t is large and rho is near 1. (t1 and t2
    have the same sign; a negative one has to be above -1/2.)
    """
    # s + d = 1, so that (d1 + s1 d2) + s1 s2 = 1: the gap below is 1 - s1 s2 rho^2.
    d1, d2 = 1 / (1 + t1), 1 / (1 + t2)
    s1, s2 = t1 * d1, t2 * d2
    gap = (d1 + s1 * d2) + (s1 * s2) * one_minus_square(rho)
    return rho * (root(abs(s1)) * root(abs(s2))), gap, jnp.sqrt(d1), jnp.sqrt(d2)


def abrelu(a: float, b: float) -> Dual:
    """a min(x, 0) + b max(x, 0). Source: Cho & Saul 2009; Tsuchida et al. 2018 for the slopes."""

    # Numbers that jit does not know may be equal in one call and not in the next.
    line = not isinstance(a, jax.Array) and not isinstance(b, jax.Array) and bool(a == b)

    def moments(q1: Array, q2: Array, rho: Array) -> tuple[Array, Array]:
        if line:  # a zero times an integral would be compiled, and computed
            return (root(q1) * root(q2)) * ((a * a) * rho), jnp.full_like(rho, a * a)
        # f = a x + (b - a) relu(x) and E u relu(v) = rho / 2: the terms linear in rho add up to a b rho.
        step, ramp = half_space(rho)
        k = (b - a) ** 2 * ramp + (a * b) * rho
        return (root(q1) * root(q2)) * k, (b - a) ** 2 * step + (a * b)

    size, step = (a * a + b * b) / 2, (b - a) ** 2

    def gap(below: Array, reflects: bool) -> tuple[Array, Array]:
        if line:
            return below, jnp.ones_like(below)
        # After a layer whose two slopes do not have one sign no correlation is negative.
        # Where rho >= 0 the terms linear in rho add up to size rho, and 1 - k / size = below - (step / size) integral.
        # Where rho < 0, E relu relu is the integral alone, and k / size = (a b / size) rho + (step / size) integral.
        angle, integral, negative = half_space_gap(below, reflects or a * b > 0)
        gap, slope = below, 1 - (step / size) * angle
        if negative is not None:
            gap = jnp.where(negative, 1 - (a * b / size) * (1 - below), gap)
            slope = jnp.where(negative, (step / size) * angle + a * b / size, slope)
        return gap - (step / size) * integral, slope

    return dual(
        lambda x: a * jnp.minimum(x, 0) + b * jnp.maximum(x, 0),
        moments,
        norm=lambda q: size * q,
        homogeneous=1,
        gap=gap if not isinstance(size, jax.Array) and size else None,
        mean=lambda q: (b - a) / math.sqrt(2 * math.pi) * root(q),
    )


def sign() -> Dual:
    """sign(x); the derivative kernel is that of f' = 0 almost everywhere, so zero."""

    def moments(q1: Array, q2: Array, rho: Array) -> tuple[Array, Array]:
        k = 2 / math.pi * arcsin(rho, 0.5 * root(one_minus_square(rho)))
        # sign(0) = 0. The norm is read off at rho = 1, where a vanishing input would have E f^2 = 1.
        k = jnp.where((q1 > 0) & (q2 > 0), k, 0)
        return k, jnp.zeros_like(k)

    return dual(jnp.sign, moments, mean=jnp.zeros_like)


def erf(a: float = 1.0, b: float = 1.0, c: float = 0.0) -> Dual:
    """a erf(b x) + c. Source: Williams 1997, equation 11."""

    def moments(q1: Array, q2: Array, rho: Array) -> tuple[Array, Array]:
        x, gap, m1, m2 = _mehler(2 * b * b * q1, 2 * b * b * q2, rho)
        half = 0.5 * jnp.sqrt(gap)
        k = 2 / math.pi * a * a * arcsin(x, half) + c * c
        # Price: (2 a^2 / pi) darcsin(x) / dcov with dx / dcov = 2 b^2 m1 m2 and darcsin(x) / dx = 1 / sqrt(gap).
        kdot = (2 / math.pi * (a * b) ** 2) * (m1 * m2) / half
        return k, kdot

    return dual(
        lambda x: a * jax.scipy.special.erf(b * x) + c,
        moments,
        mean=lambda q: jnp.full_like(q, c),
    )


def gelu(approximate: bool = False) -> Dual:
    """x Phi(x), Phi the normal distribution function. Source: Tsuchida et al. 2020, appendix.

    `approximate` changes `fn` only, to its tanh form; the moments are those of the exact one.
    """

    def moments(q1: Array, q2: Array, rho: Array) -> tuple[Array, Array]:
        x, gap, m1, m2 = _mehler(q1, q2, rho)
        half = 0.5 * jnp.sqrt(gap)
        inverse = 0.5 * (1 / half)
        # E Phi(u) Phi(v) = 1/4 + arcsin(x) / (2 pi): both u - z and v - z' are positive, z and z' independent of unit
        # variance. E phi(u) phi(v) = m1 m2 density. By parts (Stein's lemma in u and v) k is made of these two.
        angle = arcsin(x, half) / (2 * math.pi)
        covariance = (root(q1) * root(q2)) * rho
        density = inverse / (2 * math.pi)
        k = covariance * (0.25 + angle)
        k = k + (m1 * m2) * (x * x + (q1 * q2) * gap) * density
        slope = (m1 * m2) ** 2 * (inverse * inverse) + (m1 * m1 + m2 * m2)
        return k, 0.25 + angle + x * density * slope

    return dual(
        lambda x: jax.nn.gelu(x, approximate=approximate),
        moments,
        mean=lambda q: q / jnp.sqrt(2 * math.pi * (1 + q)),
    )


def sine(a: float = 1.0, b: float = 1.0, c: float = 0.0) -> Dual:
    """a sin(b x + c)."""
    # sin A sin B = (cos(A - B) - cos(A + B)) / 2: with A - B = b (u - v) the phase c is in the second term alone.
    # cos(pi / 2) is 6e-17 in floating point: at c = pi / 4 it is zero, and k a Gaussian of the distance (`rbf`).
    cos2c = _of("cos", 2 * c)
    if not isinstance(c, jax.Array) and abs(cos2c) < 1e-15:
        cos2c = 0.0

    def moments(q1: Array, q2: Array, rho: Array) -> tuple[Array, Array]:
        r1, r2 = abs(b) * root(q1), abs(b) * root(q2)
        negative = rho < 0
        size = (r1 * r2) * jnp.where(negative, -rho, rho)
        # E cos(u - v) and E cos(u + v): the larger, and their difference without cancellation.
        larger = jnp.exp(-0.5 * (r1 - r2) ** 2 - (r1 * r2 - size))
        drop = larger * jnp.expm1(-2 * size)
        minus = jnp.where(negative, larger + drop, larger)
        plus = jnp.where(negative, larger, larger + drop)
        difference = jnp.where(negative, drop, -drop)
        k = a * a / 2 * (difference + (1 - cos2c) * plus)
        return k, (a * b) ** 2 / 2 * (minus + cos2c * plus)

    return dual(
        lambda x: a * jnp.sin(b * x + c),
        moments,
        mean=lambda q: a * _of("sin", c) * jnp.exp(-0.5 * b * b * q),
    )


def rbf(gamma: float = 1.0) -> Dual:
    """sqrt(2) sin(sqrt(2 gamma) x + pi/4), whose k is exp(-gamma (q1 + q2 - 2 cov))."""

    def moments(q1: Array, q2: Array, rho: Array) -> tuple[Array, Array]:
        r1, r2 = root(q1), root(q2)
        # q1 + q2 - 2 cov as a sum of terms that are not negative, exactly zero at coincident points.
        distance = (r1 - r2) ** 2 + 2 * (r1 * r2) * (1 - rho)
        k = jnp.exp(-gamma * distance)
        return k, (2 * gamma) * k

    return dual(
        lambda x: math.sqrt(2) * jnp.sin(_of("sqrt", 2 * gamma) * x + math.pi / 4),
        moments,
        norm=jnp.ones_like,
        mean=lambda q: jnp.exp(-gamma * q),
    )


def gaussian(a: float = 1.0, b: float = -1.0) -> Dual:
    """a exp(b x^2). Square-integrable for b < 0, or variances below 1 / (4 b), else k = inf."""

    def moments(q1: Array, q2: Array, rho: Array) -> tuple[Array, Array]:
        x, gap, m1, m2 = _mehler(-2 * b * q1, -2 * b * q2, rho)
        # k = a^2 det(1 - 2 b S)^(-1/2). For b > 0 the pair's integral exists up to larger variances than E f(u)^2 of
        # either (1 - 4 b q > 0) where rho < 1: f has a kernel only where its norms exist.
        valid = (gap > 0) & (1 - 4 * b * q1 > 0) & (1 - 4 * b * q2 > 0)
        inverse = jax.lax.rsqrt(jnp.where(valid, gap, 1))
        k = a * a * (m1 * m2) * inverse
        kdot = (2 * abs(b)) * x * (m1 * m2) * (inverse * inverse) * k
        return jnp.where(valid, k, jnp.inf), jnp.where(valid, kdot, jnp.inf)

    return dual(
        lambda x: a * jnp.exp(b * x * x),
        moments,
        mean=lambda q: a * jax.lax.rsqrt(1 - 2 * b * q),
    )


def gabor() -> Dual:
    """exp(-x^2) sin(x)."""

    def moments(q1: Array, q2: Array, rho: Array) -> tuple[Array, Array]:
        # E exp(-u^2 - v^2) cos(u + v) = sqrt(scale) left, 1 / scale = det(1 + 2 S), since by Cayley and Hamilton
        # (S^-1 + 2)^-1 = scale (S + 2 det(S) 1); for cos(u - v) it is left (1 + rise). gap is 4 det(S).
        product = q1 * q2
        covariance = (root(q1) * root(q2)) * rho
        total = q1 + q2
        gap = 4 * product * one_minus_square(rho)
        scale = 1 / (1 + 2 * total + gap)
        left = jnp.exp(-0.5 * scale * (total + gap + 2 * covariance))
        rise = jnp.expm1(2 * scale * covariance)
        k = 0.5 * left * rise * jnp.sqrt(scale)
        even = 1 + 2 * total + 4 * (covariance**2 + product)
        odd = 4 * covariance * (gap + 3 * total + 2)
        kdot = 0.5 * left * (2 * even + rise * (even + odd)) * scale**2 * jnp.sqrt(scale)
        return k, kdot

    return dual(lambda x: jnp.exp(-(x**2)) * jnp.sin(x), moments, mean=jnp.zeros_like)


def exponential(a: float = 1.0, b: float = 1.0) -> Dual:
    """a exp(b x)."""

    def moments(q1: Array, q2: Array, rho: Array) -> tuple[Array, Array]:
        # u + v is Gaussian of variance q1 + q2 + 2 cov, and E exp(b w) = exp(b^2 var(w) / 2).
        covariance = (root(q1) * root(q2)) * rho
        k = a * a * jnp.exp(b * b * (0.5 * (q1 + q2) + covariance))
        return k, b * b * k

    return dual(lambda x: a * jnp.exp(b * x), moments, mean=lambda q: a * jnp.exp(0.5 * b * b * q))


def exp_normalized(gamma: float = 1.0, shift: float = -1.0) -> Dual:
    """The normalised Gaussian kernel sqrt(q1 q2) exp(gamma (rho + shift)); it has no `fn`.

    Source: Shankar et al. 2020, section 4.
    """

    def moments(q1: Array, q2: Array, rho: Array) -> tuple[Array, Array]:
        kdot = jnp.exp(gamma * (rho + shift))
        return (root(q1) * root(q2)) * kdot, gamma * kdot

    return dual(None, moments, norm=lambda q: _of("exp", gamma * (1 + shift)) * q, homogeneous=1)


def from_covariance(
    fn: Elementwise | None,
    nngp_fn: Callable[[Array, Array, Array], Array],
    d_nngp_fn: Callable[[Array, Array, Array], Array] | None = None,
) -> Dual:
    """Dual of a user's own 2-D integral.

    Args:
        fn: the activation, or None.
        nngp_fn: scalar function (cov12, var1, var2) -> E[f(u) f(v)].
        d_nngp_fn: the same for f'; by default the derivative of nngp_fn with respect to cov12,
            which it is by Price's theorem.
    """
    d_nngp_fn = jax.grad(nngp_fn) if d_nngp_fn is None else d_nngp_fn
    k_fn, kdot_fn = jnp.vectorize(nngp_fn), jnp.vectorize(d_nngp_fn)

    def moments(q1: Array, q2: Array, rho: Array) -> tuple[Array, Array]:
        covariance = (root(q1) * root(q2)) * rho
        q1, q2 = jnp.broadcast_to(q1, covariance.shape), jnp.broadcast_to(q2, covariance.shape)
        return k_fn(covariance, q1, q2), kdot_fn(covariance, q1, q2)

    return dual(fn, moments)
