"""Dual activations of polynomials and of rectified powers, exact.

With unit variances x^n has the normalised Hermite coefficients n! / (2^i i! sqrt(k!)), k = n - 2 i, so that::

    E[u^n v^n] = sum_i (n! / (2^i i!))^2 rho^(n - 2i) / (n - 2i)!
    E[u_+^n v_+^n] = (A(rho) sin theta + B(rho) (pi - theta)) / (2 pi),    rho = cos theta

with B that of u^n v^n, and A from d/drho E[u_+^n v_+^n] = n^2 E[u_+^(n-1) v_+^(n-1)].

Source: Cho & Saul 2009, equation 3, for the rectified powers.
"""

import math
from collections.abc import Callable, Iterable
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

from ntk.activations.closed_forms import Dual, Moments, dual
from ntk.activations.elementary import half_space, one_minus_square, polynomial, root
from ntk.types import Scalar


def hermite_polynomial(degree: int) -> Dual:
    """The normalised Hermite polynomial, for inputs of unit variance, where k = rho^degree.

    At other variances k = cov^degree, which is not a moment of the polynomial.
    """
    basis = np.polynomial.hermite_e.herme2poly([0] * degree + [1]) / math.factorial(degree) ** 0.5
    basis = tuple(float(c) for c in basis)

    def moments(q1: jax.Array, q2: jax.Array, rho: jax.Array) -> tuple[jax.Array, jax.Array]:
        covariance = (root(q1) * root(q2)) * rho
        # E f' f' at unit variances; elsewhere the derivative of cov^n by cov, as Price's theorem has it.
        below = covariance ** (degree - 1) if degree else jnp.zeros_like(covariance)
        return covariance**degree, degree * below

    return dual(
        lambda x: polynomial(basis, x),
        moments,
        norm=lambda q: q**degree,
        homogeneous=degree,
        mean=lambda q: jnp.full_like(q, float(degree == 0)),
    )


def _double_factorial(n: int) -> int:
    return math.prod(range(n, 0, -2))


def _monomial_product(n: int) -> list[int]:
    """Coefficients in rho of E[u^n v^n] at unit variances, exact."""
    out = [0] * (n + 1)
    for i in range(n // 2 + 1):
        k = n - 2 * i
        # Coefficient of the normalised Hermite polynomial h_k in x^n.
        c = Fraction(math.factorial(n), 2**i * math.factorial(i))
        out[k] = int(c * c / math.factorial(k))
    return out


def _power(r1: jax.Array, r2: jax.Array, n: int) -> jax.Array:
    return (r1 * r2) ** n if n else jnp.ones_like(r1 * r2)


def _moments(degree: int, unit: Callable[[int, jax.Array], jax.Array]) -> Moments:
    """Moments of a power from those at unit variances, unit(n, rho); its derivative is a power too."""

    def moments(q1: jax.Array, q2: jax.Array, rho: jax.Array) -> tuple[jax.Array, jax.Array]:
        r1, r2 = root(q1), root(q2)
        k = _power(r1, r2, degree) * unit(degree, rho)
        if degree == 0:
            return k, jnp.zeros_like(k)
        return k, degree**2 * (_power(r1, r2, degree - 1) * unit(degree - 1, rho))

    return moments


def monomial(degree: int) -> Dual:
    """x^degree, degree >= 0."""

    def unit(n: int, rho: jax.Array) -> jax.Array:
        return polynomial([float(c) for c in _monomial_product(n)], rho)

    even = degree % 2 == 0
    return dual(
        lambda x: x**degree,
        _moments(degree, unit),
        norm=lambda q: _double_factorial(2 * degree - 1) * q**degree,
        homogeneous=degree,
        mean=lambda q: _double_factorial(degree - 1) * q ** (degree // 2) if even else 0 * q,
    )


def _rectified_product(n: int) -> tuple[list[float], list[float]]:
    """A, B with E[u_+^n v_+^n] = (A(rho) sin theta + B(rho) (pi - theta)) / 2 pi, exact.

    From d/drho E[u_+^n v_+^n] = n^2 E[u_+^(n-1) v_+^(n-1)], B(rho) being E[u^n v^n].
    """
    # The derivative of A sin(theta) + B (pi - theta) by rho, times sin(theta), has the terms without (pi - theta)
    # (1 - rho^2) A_n' - rho A_n + B_n = n^2 (1 - rho^2) A_(n-1).
    a: list[Fraction] = []
    for m in range(1, n + 1):
        b = _monomial_product(m)
        right = [Fraction(0)] * (m + 2)
        for j, c in enumerate(a):
            right[j] += m * m * c
            right[j + 2] -= m * m * c
        right = [r - (b[j] if j <= m else 0) for j, r in enumerate(right)]
        # (1 - rho^2) A' - rho A = right, solved from the highest power down.
        a = [Fraction(0)] * m
        for j in range(m - 1, -1, -1):
            above = (j + 2) * a[j + 2] if j + 2 < m else 0
            a[j] = (above - right[j + 1]) / (j + 1)
    return [float(c) for c in a] or [0.0], [float(c) for c in _monomial_product(n)]


def rectified_monomial(degree: int) -> Dual:
    """max(x, 0)^degree; degree 0 is the step function, with derivative kernel zero.

    Source: Cho & Saul 2009, equation 3 (arc-cosine kernels of any order).
    """

    def unit(n: int, rho: jax.Array) -> jax.Array:
        a, b = _rectified_product(n)
        step, ramp = half_space(rho)
        # Near rho = -1 A sin and B (pi - theta) cancel: at 1 + rho = 1e-4 n = 1 would lose 1e-3 in single precision.
        # `half_space` keeps the digits of the first two.
        if n < 2:
            return (step, ramp)[n]
        sine = root(one_minus_square(rho)) / (2 * math.pi)
        return polynomial(a, rho) * sine + polynomial(b, rho) * step

    # E u_+^n is half of E |u|^n, 2^(n/2) Gamma((n + 1) / 2) / sqrt(pi) at unit variance.
    scale = 2 ** (degree / 2) * math.gamma((degree + 1) / 2) / (2 * math.sqrt(math.pi))
    return dual(
        lambda x: (x >= 0) * x**degree,
        _moments(degree, unit),
        norm=lambda q: _double_factorial(2 * degree - 1) / 2 * q**degree,
        homogeneous=degree,
        mean=lambda q: scale * (root(q) ** degree if degree else jnp.ones_like(q)),
    )


def polynomial_dual(coefficients: Iterable[Scalar]) -> Dual:
    """sum_n coefficients[n] x^n, through its own (finite) Hermite series, so exactly."""
    coefficients = tuple(c if isinstance(c, jax.Array) else float(c) for c in coefficients) or (
        0.0,
    )
    degree = len(coefficients) - 1

    def series(q: jax.Array, k: int) -> jax.Array:
        """c_k(q) / q^(k/2), a polynomial in q: nothing is divided by a vanishing variance."""
        # x^n has the coefficient n! / (2^i i! sqrt(k!)) q^(n/2) of h_k, n = k + 2 i (see above), here over q^(k/2).
        terms = [
            coefficients[k + 2 * i]
            * math.factorial(k + 2 * i)
            / (2**i * math.factorial(i) * math.sqrt(math.factorial(k)))
            for i in range((degree - k) // 2 + 1)
        ]
        return polynomial(terms, q)

    def moments(q1: jax.Array, q2: jax.Array, rho: jax.Array) -> tuple[jax.Array, jax.Array]:
        covariance = (root(q1) * root(q2)) * rho
        products = [series(q1, k) * series(q2, k) for k in range(degree + 1)]
        slopes = [k * p for k, p in enumerate(products)][1:] or [jnp.zeros_like(covariance)]
        return polynomial(products, covariance), polynomial(slopes, covariance)

    return dual(lambda x: polynomial(coefficients, x), moments, mean=lambda q: series(q, 0))
