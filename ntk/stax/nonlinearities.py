"""Nonlinearities as layers, with neural-tangents's names and arguments, and some more.

Each one returns (init_fn, apply_fn, kernel_fn). Its input has to be Gaussian, the output of a
layer with random weights. Kernels are exact in closed form (`ntk.activations.closed_forms`) or, where there is none,
Hermite series whose error is known (`ntk.hermite`).

    K' = E[f(u) f(v)],    T' = T E[f'(u) f'(v)],    (u, v) Gaussian of covariance K
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntk import arguments
from ntk.activations import closed_forms, hermite, polynomials
from ntk.regression import spectra
from ntk.stax.combinators import Layer, elementwise


def _degree(degree: Any) -> int:
    if not (isinstance(degree, int) and degree >= 0):
        raise ValueError(f"degree is {degree!r}; it must be a non-negative integer")
    return degree


def ABRelu(a: float, b: float, do_stabilize: bool = False) -> Layer:
    """a min(x, 0) + b max(x, 0).

    Args:
        a: slope for x < 0.
        b: slope for x > 0.
        do_stabilize: has no effect; the kernel is stable at any depth.
    """
    return elementwise(closed_forms.abrelu(a, b), spec=("ABRelu", a, b))


def Relu(do_stabilize: bool = False) -> Layer:
    """max(x, 0)."""
    return ABRelu(0, 1, do_stabilize)


def LeakyRelu(alpha: float, do_stabilize: bool = False) -> Layer:
    """max(x, 0) + alpha min(x, 0)."""
    return ABRelu(alpha, 1, do_stabilize)


def Abs(do_stabilize: bool = False) -> Layer:
    """|x|."""
    return ABRelu(-1, 1, do_stabilize)


def Sign() -> Layer:
    """sign(x); its NTK is zero, the derivative being zero almost everywhere."""
    return elementwise(closed_forms.sign(), spec=("Sign",))


def Step() -> Layer:
    """1 for x >= 0, else 0; its NTK is zero."""
    return RectifiedMonomial(0)


def Erf(a: float = 1.0, b: float = 1.0, c: float = 0.0) -> Layer:
    """a erf(b x) + c."""
    return elementwise(closed_forms.erf(a, b, c), spec=("Erf", a, b, c))


def Sigmoid_like() -> Layer:
    """erf(x / 2.4020563531719796) / 2 + 1/2, the closest of its form to a sigmoid on [-5, 5]."""
    return Erf(a=0.5, b=1 / 2.4020563531719796, c=0.5)


def Gelu(approximate: bool = False) -> Layer:
    """x P(z < x) for standard normal z.

    Args:
        approximate: the finite network uses the tanh form; the kernel is that of the exact one in
            either case, as in neural-tangents. `Elementwise(jax.nn.gelu)` has the kernel of the
            tanh form.
    """
    return elementwise(closed_forms.gelu(approximate), spec=("Gelu", approximate))


def Sin(a: float = 1.0, b: float = 1.0, c: float = 0.0) -> Layer:
    """a sin(b x + c)."""
    return elementwise(closed_forms.sine(a, b, c), spec=("Sin", a, b, c))


def Cos(a: float = 1.0, b: float = 1.0, c: float = 0.0) -> Layer:
    """a cos(b x + c)."""
    return Sin(a, b, c + math.pi / 2)


def Rbf(gamma: float = 1.0) -> Layer:
    """sqrt(2) sin(sqrt(2 gamma) x + pi/4), whose NNGP is exp(-gamma (q1 + q2 - 2 cov))."""
    if spectra.is_concrete(gamma) and not gamma >= 0:
        raise ValueError(f"gamma is {gamma}; it must not be negative")
    return elementwise(closed_forms.rbf(gamma), spec=("Rbf", gamma))


def Gaussian(a: float = 1, b: float = -1) -> Layer:
    """a exp(b x^2); for b > 0 the kernel is infinite at variances of 1 / (4 b) and above."""
    return elementwise(closed_forms.gaussian(a, b), spec=("Gaussian", a, b))


def Gabor() -> Layer:
    """exp(-x^2) sin(x)."""
    return elementwise(closed_forms.gabor(), spec=("Gabor",))


def Exp(a: float = 1, b: float = 1) -> Layer:
    """a exp(b x)."""
    return elementwise(closed_forms.exponential(a, b), spec=("Exp", a, b))


def ExpNormalized(gamma: float = 1, shift: float = -1, do_clip: bool = False) -> Layer:
    """The normalised Gaussian kernel sqrt(q1 q2) exp(gamma (rho + shift)); there is no apply_fn.

    Args:
        gamma: factor in the exponent.
        shift: added to the correlation rho.
        do_clip: has no effect; correlations never leave [-1, 1].

    Source: Shankar et al. 2020.
    """
    return elementwise(
        closed_forms.exp_normalized(gamma, shift), spec=("ExpNormalized", gamma, shift)
    )


def Hermite(degree: int) -> Layer:
    """Normalised Hermite polynomial; the kernel holds for inputs of unit variance only."""
    return elementwise(polynomials.hermite_polynomial(_degree(degree)), spec=("Hermite", degree))


def Monomial(degree: int) -> Layer:
    """x^degree, for any degree >= 0."""
    return elementwise(polynomials.monomial(_degree(degree)), spec=("Monomial", degree))


def RectifiedMonomial(degree: int) -> Layer:
    """x^degree for x >= 0, else 0; for degree 0 the NTK is zero."""
    return elementwise(
        polynomials.rectified_monomial(_degree(degree)), spec=("RectifiedMonomial", degree)
    )


def Polynomial(coef: Sequence[float]) -> Layer:
    """coef[0] + coef[1] x + ... + coef[n] x^n."""
    coef = tuple(coef)
    return elementwise(polynomials.polynomial_dual(coef), spec=("Polynomial", coef))


def Elementwise(
    fn: Callable | None = None,
    nngp_fn: Callable | None = None,
    d_nngp_fn: Callable | None = None,
    **settings: Any,
) -> Layer:
    """Any activation, from its values alone or with its two-dimensional integral.

    Args:
        fn: the activation; may be None if nngp_fn is given, then there is no apply_fn.
        nngp_fn: scalar function (cov12, var1, var2) -> E[fn(u) fn(v)]. If None, the kernel is the
            Hermite series of fn.
        d_nngp_fn: the same for the derivative of fn; by default d nngp_fn / d cov12.
        **settings: order, tolerance, max_variance, kinks of `ntk.hermite.dual`, where nngp_fn is
            None.

    Raises:
        ValueError: neither fn nor nngp_fn is given, or settings come with nngp_fn; fn is not a
            real elementwise function.
    """
    arguments.refuse_unread("Elementwise", Elementwise, hermite.dual, settings)
    if nngp_fn is None:
        if fn is None:
            raise ValueError("neither fn nor nngp_fn is given: there is nothing to compute with")
        spec = ("Elementwise", fn, *sorted(settings.items()))
        return elementwise(hermite.dual(fn, **settings), spec=spec)
    if settings:
        raise ValueError(f"{sorted(settings)} belong to the Hermite series, which nngp_fn replaces")
    spec = ("Elementwise", fn, nngp_fn, d_nngp_fn)
    return elementwise(closed_forms.from_covariance(fn, nngp_fn, d_nngp_fn), spec=spec)


def ElementwiseNumerical(fn: Callable, deg: int, df: Callable | None = None) -> Layer:
    """Any activation, numerically; the same as `Elementwise(fn)`.

    Args:
        fn: the activation.
        deg: has no effect: the series finds the order that it needs.
        df: has no effect: the derivative kernel follows from the values of fn.

    Raises:
        ValueError: deg is below 1, or fn is not a real elementwise function.
    """
    if not deg >= 1:
        raise ValueError(f"deg is {deg}; it must be at least 1")
    return Elementwise(fn)


def Tanh() -> Layer:
    """tanh(x)."""
    return Elementwise(jnp.tanh)


def Sigmoid() -> Layer:
    """1 / (1 + exp(-x))."""
    return Elementwise(jax.nn.sigmoid)


def Softplus() -> Layer:
    """log(1 + exp(x))."""
    return Elementwise(jax.nn.softplus)


def Silu() -> Layer:
    """x / (1 + exp(-x)), also called Swish."""
    return Elementwise(jax.nn.silu)


def Mish() -> Layer:
    """x tanh(log(1 + exp(x)))."""
    return Elementwise(jax.nn.mish)


def Elu(alpha: float = 1.0) -> Layer:
    """x for x > 0, else alpha (exp(x) - 1)."""
    if spectra.is_concrete(alpha) and alpha == 1:
        return Elementwise(jax.nn.elu)
    return elementwise(_elu(alpha), spec=("Elu", alpha))


def _elu(alpha: float) -> closed_forms.Dual:
    """alpha Elu(1) + (1 - alpha) relu, whose series are found without alpha."""
    smooth, ramp, rest = (
        hermite.dual(jax.nn.elu, tolerance=1e-8),
        closed_forms.abrelu(0, 1),
        1 - alpha,
    )

    def mean(q: jax.Array) -> jax.Array:
        of_smooth, of_ramp = (dual.mean(q) for dual in (smooth, ramp) if dual.mean is not None)
        return alpha * of_smooth + rest * of_ramp

    def moments(q1: jax.Array, q2: jax.Array, rho: jax.Array) -> tuple[jax.Array, jax.Array]:
        mixed = hermite.cross(jax.nn.elu, jax.nn.relu, q1, q2, rho, tolerance=1e-8)
        other = hermite.cross(jax.nn.relu, jax.nn.elu, q1, q2, rho, tolerance=1e-8)
        parts = zip(smooth.moments(q1, q2, rho), ramp.moments(q1, q2, rho), mixed, other)
        k, kdot = (alpha**2 * s + rest**2 * r + alpha * rest * (m + o) for s, r, m, o in parts)
        return k, kdot

    return closed_forms.dual(
        lambda x: jax.nn.elu(x, alpha),
        moments,
        mean=mean,
        error=smooth.error,
    )


def Selu() -> Layer:
    """The self-normalising multiple of Elu."""
    return Elementwise(jax.nn.selu)


def HardTanh() -> Layer:
    """min(max(x, -1), 1)."""
    return Elementwise(jax.nn.hard_tanh)


def Relu6() -> Layer:
    """min(max(x, 0), 6)."""
    return Elementwise(jax.nn.relu6)
