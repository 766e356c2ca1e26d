"""How deep a network may be for its width: information between groups of outputs, and where its series ends.

Outputs of a network at initialisation are z_i = sqrt(G) g_i with normal g_i: two groups of m1 and m2 of them know of
each other through the random metric G alone. With v = Var G / (E G)^2 and M = m1 + m2::

    I = (m1 m2 / 8) [v^2 - (20 + 3 M) / 6 v^3 + O(v^4)]                    v = nu depth / width

Source: Roberts, Yaida & Hanin 2022, arXiv:2106.10165, appendix A; series and caveats derived and checked anew.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from limits.arguments import array, count, number, takes
from ntk.types import Float, Real


@takes(nu=number(positive=True), outputs=count())
def optimal_aspect_ratio(nu: float, outputs: int) -> float:
    """Depth over width at which the truncated series of the mutual information is largest, 4 / ((20 + 3 M) nu).

    A guide to where 1 / width corrections stop being small, no optimum: the exact information grows for ever
    (`mutual_information(order="lognormal")`); in the variable log(1 + v), as good a one, the same truncation gives
    4 / ((14 + 3 M) nu), 35 % more for one output; and one output has no two groups.

    Args:
        nu: slope of V / K^2 in depth: `limits.criticality(activation).nu`.
        outputs: M, outputs of the network.

    Raises:
        TypeError: other types.
        ValueError: numbers that are not positive.
    """
    return 4 / ((20 + 3 * outputs) * nu)


@takes(v=array(), m1=count(), m2=count())
def mutual_information(
    v: Real[ArrayLike, "*shape"], m1: int, m2: int, *, order: int | str = 3
) -> Float[np.ndarray, "*shape"]:
    """Information in nats between two groups of outputs at initialisation.

    Args:
        v: Var G / (E G)^2, not negative, of any shape.
        m1: outputs in one group.
        m2: in the other.
        order: of the series in v, 2 or 3; or "lognormal": exact, by quadrature, for a lognormal G, which is the law
            of deep piecewise linear networks (v = e^x - 1 with x = nu depth / width). Up to order 3 the law is all one.
            No truncated series is an information where it matters: that of order 3 falls from v = 4 / (20 + 3 M) on and
            is negative from v = 6 / (20 + 3 M); it is returned as it is, to be drawn beside the exact one.

    Returns:
        An array of the shape of v; the quadrature is good to 1e-5 relative for v from 1e-3 to 20 and m up to 20.

    Raises:
        TypeError: groups that are no integers.
        ValueError: a negative v, or another order.
    """
    v = np.asarray(v, np.float64)
    if not (np.isfinite(v) & (v >= 0)).all():
        raise ValueError(
            f"v is {v}; it must be a variance over a squared mean: finite, 0 or larger"
        )
    if isinstance(order, str) and order == "lognormal":
        return np.reshape([_lognormal(float(x), m1, m2) for x in np.log1p(v.ravel())], v.shape)
    if not isinstance(order, int) or order not in (2, 3):
        raise ValueError(f"order is {order!r}; it must be 2, 3 or 'lognormal'")
    return m1 * m2 / 8 * (v**2 - (order == 3) * (20 + 3 * (m1 + m2)) / 6 * v**3)


def _lognormal(x: float, m1: int, m2: int, points: int = 900) -> float:
    """Integral of p log(p / (p1 p2)) over u = log |z|^2 of both groups, given by log G ~ N(-x/2, x)."""
    if x == 0:
        return 0.0
    nodes, mass = np.polynomial.hermite_e.hermegauss(80)
    shift, mass = math.sqrt(x) * nodes - x / 2, mass / mass.sum()

    def density(m: int) -> tuple[np.ndarray, float]:
        span = 9 * math.sqrt(x)
        low = math.log(m) - (60 / m + 3 if m < 20 else 8) - span
        u = np.linspace(low, math.log(m + 40 + 10 * math.sqrt(2 * m)) + 1.5 + span, points)
        w = u[:, None] - shift[None]
        log = m * w / 2 - np.exp(w) / 2 - m / 2 * math.log(2) - special.gammaln(m / 2)
        return np.exp(log), u[1] - u[0]

    (one, step1), (two, step2) = density(m1), density(m2)
    product = np.outer(one @ mass, two @ mass)
    excess = np.where(product > 1e-280, (one * mass) @ two.T / np.maximum(product, 1e-280) - 1, 0)
    excess = np.maximum(excess, -1 + 1e-16)
    # The excess has mean zero: taken off, what is left is positive, and no digits cancel.
    return float((product * ((1 + excess) * np.log1p(excess) - excess)).sum() * step1 * step2)
