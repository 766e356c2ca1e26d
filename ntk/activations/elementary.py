"""Elementary functions with a square-root branch point, for arrays and without infinite derivatives.

Arc functions are polynomials around the branch point, so that compilers vectorise them: relative
error about 2e-7 in single and 1e-14 in double precision. Where the true derivative is infinite
(at correlation 1 and -1, at variance 0) the derivative here is zero, so that gradients of kernels
stay finite at coincident points.

    half_space(cos theta) = (pi - theta) / 2 pi, (sin theta + (pi - theta) cos theta) / 2 pi
    arccos(1 - w) = sqrt(w) P(w),    arctan(t) = t Q(t^2),    0 <= w, t <= 1

with P and Q the interpolants at Chebyshev's points.

Source: Cho & Saul 2009, equations 3-6, for the half space.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk.types import Array

# XLA splits a formula into several passes over memory at every square root or quotient that is used twice,
# unless a cheap operation (a factor, a selection) lies between: formulas for whole matrices are written so.


# Not as a selection between sqrt(x) and 0: of several roots fused into one program, XLA's CPU compiler then loses some.
@jax.custom_jvp
def root(x: Array) -> Array:
    """sqrt(max(x, 0)) with derivative zero, not infinite, where x <= 0."""
    return jnp.sqrt(jnp.maximum(x, 0))


@root.defjvp
def _root_jvp(primals: tuple, tangents: tuple) -> tuple:
    (x,), (dx,) = primals, tangents
    value, positive = root(x), x > 0
    return value, jnp.where(positive, 0.5 / jnp.where(positive, value, 1), 0) * dx


def polynomial(coefficients: Sequence[Any], x: Array) -> Array:
    """sum_k coefficients[k] x^k by Horner's rule; coefficients are floats or arrays that broadcast."""
    total = coefficients[-1] + jnp.zeros_like(x)
    for c in coefficients[-2::-1]:
        total = total * x + c
    return total


def _fit(
    function: Callable[[np.ndarray], np.ndarray], upper: float, degree: int
) -> tuple[float, ...]:
    """Monomial coefficients of the Chebyshev interpolant on [0, upper]."""
    interpolant = np.polynomial.Chebyshev.interpolate(function, degree, domain=[0, upper])
    power = interpolant.convert(kind=np.polynomial.Polynomial, domain=[-1, 1], window=[-1, 1])
    return tuple(float(c) for c in power.coef)


def _arccos_over_root(w: np.ndarray) -> np.ndarray:
    w = np.maximum(w, 1e-300)  # the limit at w = 0 is sqrt(2)
    return 2 * np.arcsin(np.sqrt(w / 2)) / np.sqrt(w)


def _arctan_over_argument(y: np.ndarray) -> np.ndarray:
    y = np.maximum(y, 1e-300)
    return np.arctan(np.sqrt(y)) / np.sqrt(y)


# arccos(1 - w) = sqrt(w) P(w) on 0 <= w <= 1, and its integral w^{3/2} G(w), which is
# sqrt(1 - x^2) - x arccos(x) at x = 1 - w; arctan(t) = t Q(t^2) on 0 <= t <= 1.
# Degrees 6 and 7 leave relative errors of 1.3e-7 and 1.2e-7, the spacing of single precision; 20 and 19 leave 4e-15 and
# 2e-15. More would not help: monomials on [0, 1] round the more the higher the degree (arccos by 22: 2e-14).
_ARCCOS = {4: _fit(_arccos_over_root, 1, 6), 8: _fit(_arccos_over_root, 1, 20)}
_ARCCOS_INTEGRAL = {
    size: tuple(c / (k + 1.5) for k, c in enumerate(p)) for size, p in _ARCCOS.items()
}
_ARCTAN = {4: _fit(_arctan_over_argument, 1, 7), 8: _fit(_arctan_over_argument, 1, 19)}


def _size(x: Array) -> int:
    return 8 if jnp.result_type(x) == jnp.float64 else 4


def half_space(rho: Array) -> tuple[Array, Array]:
    """E[step(u) step(v)] and E[relu(u) relu(v)] at unit variances.

    They are (pi - theta) / 2 pi and (sin theta + (pi - theta) cos theta) / 2 pi with
    rho = cos theta, arranged so that nothing cancels at either end.

    Source: Cho & Saul 2009, equations 3-6.
    """
    # All is computed at |rho|, from the angle to the nearer branch point: near rho = -1 the step and the ramp are of
    # the order of this angle and of its cube, which pi - theta would lose to cancellation.
    negative = rho < 0
    x = jnp.where(negative, -rho, rho)
    angle, integral = _angle_and_integral(jnp.where(x < 1, 1 - x, 0))
    step = jnp.where(negative, angle, 0.5 - angle)
    return step, integral + jnp.where(negative, 0, 0.5 * rho)


def half_space_gap(gap: Array, reflects: bool) -> tuple[Array, Array, Array | None]:
    """The same, by gap = 1 - rho, as (angle, integral, negative): step is 1/2 - angle where rho >= 0, else angle.

    E[relu(u) relu(v)] is integral + rho / 2 where rho >= 0, else the integral.

    Args:
        gap: in [0, 2], not negative.
        reflects: whether rho may be negative; `negative` is None if not.
    """
    if not reflects:
        return *_angle_and_integral(gap), None
    negative = gap > 1
    return *_angle_and_integral(jnp.where(negative, 2 - gap, gap)), negative


def _angle_and_integral(w: Array) -> tuple[Array, Array]:
    """arccos(1 - w) and its integral (see `_ARCCOS`), over 2 pi, for 0 <= w <= 1."""
    # A gap of coincident samples that is the square of a rounding error has no slope, as one of zero has none.
    least = 16 * float(jnp.finfo(w.dtype).eps) ** 2
    scaled = root(jnp.where(w > least, w, 0)) / (2 * math.pi)
    angle = scaled * polynomial(_ARCCOS[_size(w)], w)
    return angle, (scaled * w) * polynomial(_ARCCOS_INTEGRAL[_size(w)], w)


def arccos(rho: Array) -> Array:
    """arccos(rho) in [0, pi], with derivative zero, not infinite, at rho = 1 and -1."""
    negative = rho < 0
    x = jnp.where(negative, -rho, rho)
    w = jnp.where(x < 1, 1 - x, 0)
    angle = root(w) * polynomial(_ARCCOS[_size(rho)], w)
    return jnp.where(negative, math.pi - angle, angle)


def arcsin(x: Array, half_cosine: Array) -> Array:
    """arcsin(x), given also sqrt(1 - x^2) / 2, which decides the accuracy near |x| = 1."""
    # tan of half the angle is sin / (1 + cos), in [-1, 1]: a series without a branch, and arcsin is twice its arctan.
    t = 0.5 * (x / (0.5 + half_cosine))
    return t * polynomial([2 * c for c in _ARCTAN[_size(x)]], t * t)


def one_minus_square(rho: Array) -> Array:
    """1 - rho^2, not negative where rounding has left |rho| slightly above 1."""
    # The factors keep the digits of 1 - |rho|, which rho^2 rounds.
    square = (1 - rho) * (1 + rho)
    return jnp.where(square >= 0, square, 0)
