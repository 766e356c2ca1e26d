"""Which variances keep a deep network's signals, for any activation, and the learning rates that go with them.

Preactivations of a multilayer perceptron with Var b = C_b, Var W = C_W / fan-in and activation s, at infinite width::

    K' = C_b + C_W g(K),  g(K) = <s^2>_K          <f>_K = E f(z), z ~ N(0, K)
    chi_par  = C_W g'(K)                          growth of a perturbation of K in a layer
    chi_perp = C_W <s'^2>_K                       growth of a difference of two inputs, and of the tangent kernel
    h        = (1/2) d chi_perp / dK

A network is critical where both are one. Source: Roberts, Yaida & Hanin 2022, arXiv:2106.10165, chapters 3, 5 and 9.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from limits.arguments import boolean, count, instance, number, takes
from limits.quadrature import Activation, Pointwise, average, pointwise
from ntk import show
from ntk.activations import closed_forms
from ntk.types import Elementwise, Float

_VARIANCES = np.geomspace(1e-2, 1e4, 61)  # where a half-stable point is looked for


@show.readable
class Susceptibilities(NamedTuple):
    """The variance after a layer and its growth factors there, see the module."""

    K_next: float
    parallel: float
    perpendicular: float
    h: float


@show.readable
class Criticality(NamedTuple):
    """The initialisation at which an activation is critical; None where a number does not exist.

    Attributes:
        kind: "scale invariant" (piecewise linear: critical at any K), "zero" (K falls to 0 as a power of depth),
            "half-stable" (K stays at a K* > 0, attracting on one side) or "none" of these: softplus and sigmoid, which
            are critical nowhere, and functions whose slope or curvature jumps at 0, such as ELU and SELU. With C_W one
            over their mean square slope at 0 these are critical at K = 0 too, but K falls as 1 / depth^2; so are those
            linear on either side of 0 up to a kink, such as HardTanh and ReLU6, where it falls as 1 / log(depth).
        C_W: variance of the weights times their fan-in.
        C_b: variance of the biases.
        variance: the critical K*; None where any variance is.
        nu: slope of V / K^2 in depth, V / width being the variance of the metric (`limits.finite_width`).
        a1: K' = K + a1 K^2 + O(K^3), in class "zero": K tends to 1 / (-a1 depth).
        p_perp: chi_perp = 1 - p_perp / depth, in class "zero".
        attraction: K* K''(K*), in class "half-stable": the relative distance from K* obeys x' = x + attraction x^2 / 2,
            so that a negative one attracts from above and repels below, over 1 / |attraction x| layers.
    """

    kind: str
    C_W: float | None = None
    C_b: float | None = None
    variance: float | None = None
    nu: float | None = None
    a1: float | None = None
    p_perp: float | None = None
    attraction: float | None = None


_PARTS = {"C_W": number(positive=True), "C_b": number()}


@takes(variance=number(positive=True), **_PARTS)
def susceptibilities(
    activation: Activation, variance: float, *, C_W: float, C_b: float = 0.0
) -> Susceptibilities:
    """One layer at infinite width: its variance and susceptibilities, to 1e-12 relative.

    Args:
        activation: a function of arrays, elementwise, or an `ntk.Dual`; kinks are found on [-24, 24].
        variance: K of the preactivations.
        C_W: variance of the weights times their fan-in.
        C_b: variance of the biases.

    Raises:
        TypeError: the activation is no function, the rest no numbers.
        ValueError: numbers out of range; an activation that jumps, is constant or grows like exp(z^2).

    Source: PDLT, equations (5.12) to (5.19) and (8.67).
    """
    found = average(pointwise(activation), float(variance))
    z, K = found.z, float(variance)
    return Susceptibilities(
        K_next=C_b + C_W * found(found.s**2),
        parallel=C_W * found(found.s**2 * (z**2 - K)) / (2 * K**2),
        perpendicular=C_W * found(found.slope**2),
        h=C_W * found(found.slope**2 * (z**2 - K)) / (4 * K**2),
    )


def criticality(activation: Activation) -> Criticality:
    """The universality class of an activation, and the variances at which it is critical.

    Args:
        activation: as in `susceptibilities`.

    Returns:
        Criticality. Looked for in this order: slopes of both signs of z, the fixed point at 0, then a root of
        chi_par = chi_perp with 1e-2 <= K <= 1e4 and C_b >= 0 (the smallest).

    Example:
        >>> import jax
        >>> import limits
        >>> limits.criticality(jax.nn.relu).C_W  # He's initialisation
        2.0
        >>> round(limits.criticality(jax.nn.gelu).C_W, 3)
        1.983

    Raises:
        TypeError: no function.
        ValueError: the activation jumps or is constant.

    Source: PDLT, sections 5.3 and 5.4. Infinite width: at width n, V / K^2 = nu depth holds to O(depth / n).
    """
    found = pointwise(activation)
    slopes = _slopes(found)
    if slopes is not None:
        second, fourth = (np.mean(np.power(slopes, k)) for k in (2, 4))
        return Criticality(
            "scale invariant", float(1 / second), 0.0, nu=float(3 * fourth / second**2 - 1)
        )
    return _at_zero(activation, found) or _half_stable(found) or Criticality("none")


def _slopes(found: Pointwise) -> tuple[float, float] | None:
    """(slope below 0, slope above) of a function a z, a depending on the sign of z alone."""
    z = np.array([-20.0, -3.0, -1.0, -0.1, 0.1, 1.0, 3.0, 20.0])
    ratios = found.derivatives(z)[0] / z
    below, above = ratios[2], ratios[5]
    same = abs(ratios - np.where(z < 0, below, above)).max() < 1e-12 * max(abs(ratios))
    elsewhere = any(at for at in found.breaks)
    return (float(below), float(above)) if same and not elsewhere else None


def _at_zero(activation: Activation, found: Pointwise) -> Criticality | None:
    """Class K* = 0: s(0) = 0, s'(0) != 0, a1 < 0."""
    if any(abs(at) < 1e-6 for at in found.breaks):
        return None
    s0, s1, s2, s3 = _taylor(activation)
    if abs(s0) > 1e-12 or abs(s1) < 1e-9:
        return None
    a1 = s3 / s1 + 0.75 * (s2 / s1) ** 2
    b1 = s3 / s1 + (s2 / s1) ** 2
    if a1 >= -1e-9:
        return None
    return Criticality("zero", 1 / s1**2, 0.0, 0.0, 2 / 3, a1, b1 / a1)


def _taylor(activation: Activation) -> list[float]:
    """The activation and its first three derivatives at 0."""
    fn = activation.fn if isinstance(activation, closed_forms.Dual) else activation
    if fn is None:
        raise ValueError("the Dual has no function (fn is None): give the activation itself")

    def derivative(f: Elementwise) -> Elementwise:
        return lambda z: jax.jvp(f, (z,), (jnp.ones_like(z),))[1]

    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        functions = [fn]
        for _ in range(3):
            functions.append(derivative(functions[-1]))
        return [float(f(jnp.zeros(1))[0]) for f in functions]


def _half_stable(found: Pointwise) -> Criticality | None:
    def excess(log_K: float) -> float:
        one = average(found, math.exp(log_K))
        K, square = math.exp(log_K), one.s**2
        return one(square * (one.z**2 - K)) / (2 * K**2) / one(one.slope**2) - 1

    logs = np.log(_VARIANCES)
    sides = np.array([_or_nan(excess, at) for at in logs])
    for i in np.flatnonzero((sides[:-1] * sides[1:] < 0) & (abs(sides[1:]) > 1e-9)):
        K = math.exp(optimize.brentq(excess, logs[i], logs[i + 1], xtol=1e-14, rtol=1e-14))
        one = average(found, K)
        second, fourth = one(one.s**2), one(one.s**4)
        C_W = 1 / one(one.slope**2)
        C_b = K - C_W * second
        if C_b >= 0:
            hermite = one.z**4 - 6 * K * one.z**2 + 3 * K**2
            bend = C_W * one(one.s**2 * hermite) / (4 * K**4)
            nu = C_W**2 * (fourth - second**2) / K**2
            return Criticality("half-stable", C_W, C_b, K, nu, attraction=K * bend)
    return None


def _or_nan(function: Callable[[float], float], at: float) -> float:
    try:
        return function(at)
    except ValueError:  # moments out of reach at this variance
        return math.nan


@takes(critical=instance(Criticality, remedy=": criticality(activation)"), depth=count())
def learning_rates(
    critical: Criticality, depth: int
) -> tuple[Float[np.ndarray, "L"], Float[np.ndarray, "L"]]:
    """Learning rates of biases and weights with which every layer contributes alike to the tangent kernel.

    Args:
        critical: of `criticality`.
        depth: L, number of layers with weights.

    Returns:
        lambda_b (L,) and lambda_W (L,): the rate of the biases of layer l, and that of its weights times their
        fan-in, up to one global factor each. The tangent kernel is then O(1) in depth.

    Raises:
        ValueError: an activation of class "none".

    Source: PDLT, section 9.4 (the equivalence principle). Leading order in 1/l: the first layers are off.
    """
    if critical.kind == "none":
        raise ValueError(
            "the activation is of none of the classes (kind 'none') whose rates are known: its kernel grows or decays "
            "exponentially with depth, or as ELU's with another power"
        )
    layers, p = np.arange(1.0, depth + 1), critical.p_perp
    if critical.kind != "zero" or p is None:
        same = np.full(depth, 1 / depth)
        return same, same.copy()
    return layers**-p * float(depth) ** (p - 1), (depth / layers) ** (p - 1)


@takes(gamma=number(), skew=boolean)
def residual_nu(activation: Activation, gamma: float, *, skew: bool = True) -> float:
    """Slope of V / K^2 in depth of a residual network z' = gamma z + W s(z), C_W = (1 - gamma^2) times the critical.

    Args:
        activation: of class "scale invariant" or "zero".
        gamma: strength of the skip connection, in [0, 1).
        skew: whether to follow E[z_i z_j^2] = T / n, which a skip connection feeds unless s is odd; without it the
            slope of piecewise linear activations is the published one, half of the right one for ReLU.

    Raises:
        ValueError: gamma of 1 or more; another class.

    Source: PDLT, appendix B; the term of T is ours. Depths of many times 1 / (1 - gamma).
    """
    if gamma >= 1:
        raise ValueError(f"gamma is {gamma}; it must be in [0, 1)")
    critical, slopes = criticality(activation), _slopes(pointwise(activation))
    square = gamma**2
    if critical.kind == "zero":  # T is of order K^2, what it adds to V of order K^3
        return 2 / 3 * (1 - square**2)
    if slopes is None or critical.nu is None or critical.C_W is None:
        raise ValueError(
            f"the activation is of class {critical.kind!r}; residual slopes are known for 'scale invariant' and 'zero'"
        )
    odd = (1 - square) * ((1 - square) * critical.nu + 4 * square)
    below, above = slopes
    difference = critical.C_W * (above**2 - below**2)
    return odd + skew * 4 / math.pi * gamma * (1 + gamma) ** 2 * (1 - gamma) * difference**2
