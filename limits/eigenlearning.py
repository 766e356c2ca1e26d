"""Learning curves of kernels and random features: risks, best ridges, power laws, when overfitting is obligatory.

The risks are those of `ntk.regression.risk`, where their equations stand. With power laws l_i = i^-alpha and
v_i^2 = i^-beta and n -> infinity, s = z / n = 1 - sqrt(R_train / R_test) is all that is left of the ridge::

    R_test  is proportional to  (s^(1 - beta) + alpha r) / (1 - s (alpha - 1) / alpha),    0 < s <= 1

r being the noise variance over the noiseless risk without ridge. Its minimum solves
(alpha - 1) beta s + alpha (alpha - 1) r s^beta = alpha (beta - 1), at the end s = 1, interpolation, where the root lies
beyond it: overfitting is obligatory if and only if beta >= alpha + alpha (alpha - 1) r.

Source: Simon, Karkada, Ghosh & Belkin 2024, arXiv:2311.14646; the equation of s is derived here. Exponents of
local teachers and students: Cagnetta, Favero & Wyart 2023, arXiv:2208.01003.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import optimize

from limits.arguments import count, number, takes
from ntk import show
from ntk.regression.risk import Optimum, Risk, kernel_regression, optimal_ridge, random_features
from ntk.types import Float

__all__ = [
    "Modes",
    "Optimum",
    "Risk",
    "fitting_ratio",
    "kernel_regression",
    "learning_exponent",
    "optimal_ridge",
    "overfitting_is_obligatory",
    "power_law",
    "power_law_target",
    "random_features",
]


@show.readable
class Modes(NamedTuple):
    """A spectrum whose tail is binned.

    Attributes:
        values: (m,), eigenvalues, decreasing; the mean of its bin where there are several modes.
        multiplicity: (m,), how many modes each stands for.
    """

    values: Float[np.ndarray, "m"]
    multiplicity: Float[np.ndarray, "m"]


@takes(exponent=number(positive=True), count=number(positive=True), exact=count(), bins=count())
def power_law(exponent: float, count: float, *, exact: int = 4000, bins: int = 4000) -> Modes:
    """Eigenvalues i^-exponent, i = 1..count, the first ones exactly and the others in geometric bins.

    A spectrum that is cut off is another problem: at alpha = 1.5, beta = 1.2 and n = 300 the best ratio of training to
    test risk is .25, with 2e5 modes .15. The bins reach 1e14. Their sums are exact to 1e-7; keep ``exact`` well above
    the number of samples.

    Args:
        exponent: alpha > 0.
        count: how many modes, as large as 1e15.
        exact: how many of them have an entry of their own.
        bins: of the others, at most.

    Returns:
        Modes.

    Raises:
        TypeError, ValueError: numbers of another type, or not positive.
    """
    i, low, high = _ranks(count, exact, bins)
    sizes = high - low
    return Modes(
        np.concatenate([i**-exponent, _sums(exponent, low, high) / sizes]),
        np.concatenate([np.ones_like(i), sizes]),
    )


@takes(exponent=number(positive=True), count=number(positive=True), exact=count(), bins=count())
def power_law_target(
    exponent: float, count: float, *, exact: int = 4000, bins: int = 4000
) -> Float[np.ndarray, "m"]:
    """(m,), squared coefficients i^-exponent of a target, in each bin of `power_law` with the same other arguments."""
    i, low, high = _ranks(count, exact, bins)
    return np.concatenate([i**-exponent, _sums(exponent, low, high)])


@takes(
    alpha=number(positive=True), beta=number(positive=True), relative_noise=number(positive=False)
)
def fitting_ratio(alpha: float, beta: float, relative_noise: float) -> float:
    """R_train / R_test of a kernel with power laws at its best ridge, for n -> infinity (see the top of this file).

    Args:
        alpha: exponent of the eigenvalues, above 1.
        beta: exponent of the target's squared coefficients, between 1 and 2 alpha + 1: beyond it the risk is that of
            the first modes, and no power law is left.
        relative_noise: noise variance over the noiseless risk without ridge, at the same number of samples.

    Returns:
        The ratio, 0 where interpolation is best. At n = 300 it is within .003 for beta >= 1.5, within .006 for 1.2.

    Raises:
        TypeError: no numbers.
        ValueError: an exponent out of its range, or negative noise.
    """
    _check_exponents(alpha, beta)

    def slope(s: float) -> float:
        quadratic = (alpha - 1) * beta * s + alpha * (alpha - 1) * relative_noise * s**beta
        return quadratic - alpha * (beta - 1)

    return (
        0.0 if slope(1.0) <= 0 else float((1 - optimize.brentq(slope, 0.0, 1.0, xtol=1e-15)) ** 2)
    )


@takes(
    alpha=number(positive=True), beta=number(positive=True), relative_noise=number(positive=False)
)
def overfitting_is_obligatory(alpha: float, beta: float, relative_noise: float) -> bool:
    """Whether the best ridge is none, so that the training set is interpolated; arguments of `fitting_ratio`."""
    _check_exponents(alpha, beta)
    return bool(beta >= alpha + alpha * (alpha - 1) * relative_noise)


@takes(
    teacher_dim=number(positive=True),
    student_dim=number(positive=True),
    teacher_smoothness=number(positive=True),
    student_smoothness=number(positive=True),
)
def learning_exponent(
    teacher_dim: float,
    student_dim: float,
    *,
    teacher_smoothness: float = 0.5,
    student_smoothness: float = 0.5,
) -> float:
    """beta of the test error n^-beta of ridgeless regression on a Gaussian teacher that sees fewer dimensions at once.

    Eigenvalues in a sector of dimension d fall as |k|^-(2 nu + d). The student, whose kappa falls as
    n^-(1 + 2 nu_S / d_S), learns the teacher's modes up to |k| = kappa^(-1 / (2 nu_S + d_T)), and what is left is
    |k|^(-2 nu_T)::

        beta = (2 nu_T / d_T) (1 + 2 nu_S / d_S) / (1 + 2 nu_S / d_T),  at most 2 (1 + 2 nu_S / d_S)

    With d_T = d_S = d it is 2 nu_T / d: the curse of dimensionality, in the dimension of the data where inputs fill a
    manifold of it. Valid for n -> infinity: with d = 4 measured exponents are still .07 above it at n = 1000.

    Args:
        teacher_dim: d_T, at most d_S.
        student_dim: d_S, effective dimension of the largest patch that the student sees.
        teacher_smoothness: nu_T: 1/2 for the NTK of ReLU, 3/2 for its NNGP.
        student_smoothness: nu_S.

    Returns:
        beta.

    Raises:
        TypeError: no numbers.
        ValueError: numbers that are not positive, or a teacher of more dimensions than its student, which cannot
            learn it.
    """
    if teacher_dim > student_dim:
        raise ValueError(
            f"teacher_dim is {teacher_dim}; it must be at most student_dim, {student_dim}: a student without the "
            "teacher's interactions never learns them"
        )
    steepness = 1 + 2 * student_smoothness / student_dim
    beta = (
        2
        * teacher_smoothness
        / teacher_dim
        * steepness
        / (1 + 2 * student_smoothness / teacher_dim)
    )
    return min(beta, 2 * steepness)


def _ranks(total: float, exact: float, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranks 1..exact, and the ends of the bins of the others, half-way between ranks."""
    total, exact = float(total), min(float(exact), math.floor(total))
    if total < 1:
        raise ValueError(f"count is {total}; it must be at least 1")
    edges = np.geomspace(exact + 0.5, math.floor(total) + 0.5, bins + 1)
    edges = np.unique(np.round(edges - 0.5)) + 0.5
    return np.arange(1, exact + 1), edges[:-1], edges[1:]


def _sums(exponent: float, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Sums of i^-exponent over the ranks between, by the integral: the relative error is a (a + 1) / 24 i^2."""
    if exponent == 1:
        return np.log(high / low)
    return (low ** (1 - exponent) - high ** (1 - exponent)) / (exponent - 1)


def _check_exponents(alpha: float, beta: float) -> None:
    if not alpha > 1:
        raise ValueError(f"alpha is {alpha}; it must be above 1, or the eigenvalues have no sum")
    if not 1 < beta < 2 * alpha + 1:
        raise ValueError(
            f"beta is {beta}; it must lie between 1 and 2 alpha + 1 = {2 * alpha + 1:g}: below, the target has no "
            "norm; above, the first modes are all of the risk, and the limit of power laws does not hold"
        )
