"""Tilted boundaries: how near a linear classifier lies to the data at no cost in accuracy.

Two classes with means -a and a, the boundary w . x = 0 midway. The nearest centroid classifier has w = a; another is
tilted by the angle between w and a,

    cos(tilt) = w . a / (|w| |a|),    strength = 1 / cos(tilt)

and the means lie |a| cos(tilt) from its boundary: an adversarial step is shorter by the strength. For normal classes of
covariance S, a share Phi((r |w| - w . a) / sqrt(w . S w)) is wrong after the worst step of length r; at r = 0 a
tilt along directions of little variance costs nothing.

A discriminant w = S_hat^-1 a_hat fitted on n examples, half of each class, tilts by chance. In whitened coordinates
u = S^-1/2 a it makes the angle c with u that is isotropic about it, with dof = n - 2 of the pooled covariance

    cos^2 c = (1 - d/dof) / (1 + d / (n |u|^2)),    error = Phi(-|u| cos c)
    cos^2 tilt = cos^2 c |u|^2 / (|a|^2 (q cos^2 c + (tr S^-1 - q)/(d - 1) sin^2 c)),    q = u . S^-1 u / |u|^2

as n and d grow together: from the first two inverse moments of a Wishart matrix, and an error of means of S/n. One flat
direction among many is enough for strong adversarial examples, and the error does not see it.

Source: the perspective is Tanay & Griffin's (arXiv:1608.07690); the formulas are derived here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from limits.arguments import array, count, number, same_columns, takes
from ntk import show
from ntk.types import Float, Real


@show.readable
class Tilt(NamedTuple):
    """A linear classifier against the nearest centroid classifier.

    Attributes:
        angle: between their normals, in radians.
        strength: 1 / cos(angle), how many times nearer to the means its boundary lies; inf from a right angle on.
    """

    angle: float
    strength: float


@show.readable
class Fitted(NamedTuple):
    """What a discriminant fitted on n examples is expected to be.

    Attributes:
        angle: its tilt, in radians, acos(1 / strength).
        strength: 1 / cos(tilt), the root of its mean square over draws of the examples.
        error: share of new examples on the wrong side.
    """

    angle: float
    strength: float
    error: float


@takes(weights=array(1), means=array(2))
def tilt(weights: Real[ArrayLike, "d"], means: Real[ArrayLike, "2 d"]) -> Tilt:
    """Tilt and adversarial strength of a linear classifier: of a readout, say, on the features below it.

    Args:
        weights: (d,), normal of the boundary, towards the second class: of two rows of a readout their difference.
        means: (2, d), of the two classes.

    Raises:
        TypeError: these are no arrays of numbers.
        ValueError: shapes do not fit, the means are one, or the weights are zero.
    """
    w, means = np.asarray(weights, float), np.asarray(means, float)
    same_columns(weights=w, means=means)
    if len(means) != 2:
        raise ValueError(
            f"means has the shape {means.shape}; it must be those of two classes, (2, d)"
        )
    unit = np.abs(means).max() or 1.0
    a = means[1] / unit - means[0] / unit
    if not (w.any() and a.any()):
        raise ValueError("weights or the difference of the means are zero: they have no direction")
    u, v = _unit(w), _unit(a)
    # The arc cosine would lose small angles.
    angle = 2 * math.atan2(np.linalg.norm(u - v), np.linalg.norm(u + v))
    cosine = float(u @ v)
    return Tilt(angle, 1 / cosine if cosine > 0 else math.inf)


@takes(weights=array(1), half=array(1), covariance=array(2), radius=number())
def attacked_error(
    weights: Real[ArrayLike, "d"],
    half: Real[ArrayLike, "d"],
    covariance: Real[ArrayLike, "d d"],
    radius: float = 0.0,
) -> float:
    """Share of wrong examples of normal classes after the worst step of a given length; exact.

    Args:
        weights: (d,).
        half: a (d,), half the difference of the means, towards the class of positive w . x.
        covariance: S (d, d), of both classes.
        radius: length of the step, in units of the inputs.

    Raises:
        TypeError: an argument of another type.
        ValueError: shapes do not fit, S is no covariance, it has no variance along the weights, these are zero, or the
            radius is negative.
    """
    w, a, s = (np.asarray(x, float) for x in (weights, half, covariance))
    same_columns(weights=w, half=a, covariance=s)
    _check_covariance(a, s)
    if not w.any():
        raise ValueError("weights are zero: they have no direction")
    w = _unit(w)
    variance = float(w @ s @ w)
    if not variance > 0:
        raise ValueError(
            f"the variance along the weights is {variance}; it must be positive: add a multiple of I to covariance"
        )
    return float(special.ndtr((radius - w @ a) / math.sqrt(variance)))


@takes(half=array(1), covariance=array(2), ridge=number())
def discriminant(
    half: Real[ArrayLike, "d"], covariance: Real[ArrayLike, "d d"], ridge: float = 0.0
) -> Float[np.ndarray, "d"]:
    """The direction (S + ridge I)^-1 a: the best without ridge, the nearest centroid's with much of it.

    Args:
        half: a (d,).
        covariance: S (d, d), of the classes or estimated.
        ridge: in the units of S.

    Raises:
        TypeError: an argument of another type.
        ValueError: shapes do not fit, S is no covariance, or S + ridge I is singular.
    """
    a, s = np.asarray(half, float), np.asarray(covariance, float)
    _check_covariance(a, s)
    try:
        return np.linalg.solve(s + ridge * np.eye(len(a)), a)
    except np.linalg.LinAlgError as error:
        raise ValueError(f"covariance + {ridge} I is singular; take a larger ridge") from error


@takes(half=array(1), covariance=array(2), num_examples=count(3))
def fitted(
    half: Real[ArrayLike, "d"], covariance: Real[ArrayLike, "d d"], num_examples: int
) -> Fitted:
    """Expected tilt and error of a discriminant fitted on n examples (see the top of this file).

    The error of the formulas is O(1/d). Where only k directions are flat, the strength of one fit differs from the
    expected one by a share of 1/sqrt(2k).

    Args:
        half: a (d,), half the difference of the means.
        covariance: S (d, d), of both classes, positive definite.
        num_examples: n, of both classes together, more than d + 2.

    Raises:
        TypeError: an argument of another type.
        ValueError: shapes do not fit, S is not positive definite, a is zero, or there are too few examples.
    """
    a, s = np.asarray(half, float), np.asarray(covariance, float)
    _check_covariance(a, s, definite=True)
    d, dof = len(a), num_examples - 2
    if d < 2 or dof <= d:
        raise ValueError(
            f"num_examples is {num_examples} in {d} dimensions; there must be two dimensions, and d + 3 examples"
        )
    variances, basis = np.linalg.eigh(s)
    if not a.any():
        raise ValueError("half is zero; the classes have one mean, and there is nothing to find")
    u = basis.T @ a / np.sqrt(variances)
    signal = float(u @ u)
    cosine = (1 - d / dof) / (1 + d / (num_examples * signal))
    along = float(u @ (u / variances)) / signal
    across = (float((1 / variances).sum()) - along) / (d - 1)
    ratio = cosine * signal / (a @ a * (along * cosine + across * (1 - cosine)))
    angle = math.acos(min(math.sqrt(ratio), 1.0))
    return Fitted(angle, 1 / math.cos(angle), float(special.ndtr(-math.sqrt(signal * cosine))))


def _unit(vector: np.ndarray) -> np.ndarray:
    """The vector at length 1, whatever its scale: squares of its entries could overflow."""
    scaled = vector / np.abs(vector).max()
    return scaled / np.linalg.norm(scaled)


def _check_covariance(a: np.ndarray, s: np.ndarray, *, definite: bool = False) -> None:
    """Refuses what is no covariance, up to the rounding of one that was estimated in single precision."""
    same_columns(half=a, covariance=s)
    if s.shape != (len(a), len(a)):
        raise ValueError(f"covariance has the shape {s.shape}; it must be {(len(a), len(a))}")
    slack = 1e-5 * np.abs(s).max()
    if np.abs(s - s.T).max() > slack:
        i, j = np.unravel_index(np.abs(s - s.T).argmax(), s.shape)
        raise ValueError(
            f"covariance[{i}, {j}] is {s[i, j]:g} and covariance[{j}, {i}] is {s[j, i]:g}; it must be symmetric"
        )
    lowest = np.linalg.eigvalsh(s)[0]
    if lowest < -slack or (definite and not lowest > 0):
        kind = "definite" if definite else "semidefinite"
        raise ValueError(
            f"covariance has the smallest eigenvalue {lowest:.3g}; it must be positive {kind}"
        )
