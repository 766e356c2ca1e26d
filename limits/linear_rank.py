"""How the rank of initial weights makes a two-layer linear network lazy or rich, in closed form.

f(x) = a^T W x with readout a(0) = 0 and W_0 of rank r whose singular values are all s, so that s^2 = F^2 / r at
Frobenius norm F; white inputs (X^T X / P = I), loss |W^T a - beta|^2 / 2, gradient flow to the end. With b = |beta|,
P_0 the projector on the row space of W_0, and the overlap c = |P_0 beta|^2 / b^2 of the task with it, W W^T - a a^T is
conserved and one hidden direction moves::

    A = |a|^2 = (-s^2 + sqrt(s^4 + 4 b^2)) / 2          at the end
    M = W^T W + |a|^2 I                                 tangent kernel X M X^T, M_0 = s^2 P_0
    <M, M_0> = s^2 (s^2 (r - 1) + (s^2 + A) c + A r)
    |M|^2    = (r - 1) (s^2 + A)^2 + (s^2 + 2 A)^2 + (d - r) A^2
    |W - W_0|^2 = 2 s^2 + A - 2 s sqrt(c (s^2 + A))

Only F^2 / b matters to the alignments. For a random task c has the mean r / d and the law Beta(r/2, (d - r)/2).

Limits: below r of about d / 4 the path from a zero readout is unstable where c < 1; a readout of 1e-4 already
leads elsewhere, to a kernel that changed much less. A readout of standard size is another problem altogether.

Source: derived here; the statement that higher rank is lazier on average is of Liu et al. 2023, arXiv:2310.08513.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from limits.arguments import array, count, takes
from ntk import show


class Laziness(NamedTuple):
    """How far training moves the network: 1, 1 and 0 for a lazy one. Arrays of the arguments' common shape.

    Attributes:
        kernel_alignment: <K, K_0> / (|K| |K_0|) of the tangent kernels at the end and at the start.
        representation_alignment: the same of the hidden layer's kernels.
        weight_change: |W - W_0|, in the units of weight_norm; for overlap None its root mean square over tasks.
        readout_norm: |a| at the end.
    """

    kernel_alignment: np.ndarray
    representation_alignment: np.ndarray
    weight_change: np.ndarray
    readout_norm: np.ndarray

    __repr__, _repr_html_ = show.text, show.html


@takes(
    rank=array(),
    dim=count(),
    weight_norm=array(),
    target_norm=array(),
)
def laziness(
    rank: ArrayLike,
    dim: int,
    *,
    weight_norm: ArrayLike,
    target_norm: ArrayLike,
    overlap: ArrayLike | None = None,
) -> Laziness:
    """What training from weights of this rank does to kernel, features and weights.

    Args:
        rank: r, 1 to dim. It need not be an integer: for unequal singular values their participation
            (sum s^2)^2 / sum s^4 stands for it (`metrics.features.effective_rank`), which is an approximation.
        dim: d, of white inputs.
        weight_norm: F, Frobenius norm of W_0.
        target_norm: b, norm of the linear function to learn.
        overlap: c, the share of its square in the row space of W_0: 1 for a task that the weights are aligned with,
            such as a low-rank adapter's own. None is the mean over random tasks.

    Returns:
        Laziness. Arguments broadcast; the first three fields of a mean over tasks are exact.

    Raises:
        TypeError: an argument is no array of numbers.
        ValueError: a rank outside 1 to dim, norms that are not positive, or an overlap outside 0 to 1.
    """
    r, size, b = (np.asarray(value, float) for value in (rank, weight_norm, target_norm))
    r = _inside("rank", r, 1, dim)
    for name, value in (("weight_norm", size), ("target_norm", b)):
        if not (value > 0).all():
            raise ValueError(f"{name} is {value}; it must be positive")
    if overlap is None:
        c = r / dim
        # E sqrt(c) of a Beta(r/2, (d - r)/2)
        moments = special.gammaln([(r + 1) / 2, r / 2]), special.gammaln([dim / 2, (dim + 1) / 2])
        root = np.exp(moments[0][0] - moments[0][1] + moments[1][0] - moments[1][1])
    else:
        array()("overlap", overlap)
        c = _inside("overlap", np.asarray(overlap, float), 0, 1)
        root = np.sqrt(c)
    s2 = size**2 / r
    a2 = 2 * b**2 / (s2 + np.sqrt(s2**2 + 4 * b**2))  # no difference of near numbers
    inner, hidden = s2 * (r - 1) + (s2 + a2) * c, (r - 1) * s2**2 + (s2 + a2) ** 2
    full = (r - 1) * (s2 + a2) ** 2 + (s2 + 2 * a2) ** 2 + (dim - r) * a2**2
    moved = 2 * s2 + a2 - 2 * np.sqrt(s2 * (s2 + a2)) * root
    parts = (
        (inner + a2 * r) / np.sqrt(r * full),
        inner / np.sqrt(r * hidden),
        np.sqrt(np.maximum(moved, 0)),
        np.sqrt(a2),
    )
    return Laziness(*np.broadcast_arrays(*parts))


def _inside(name, value, low, high) -> np.ndarray:
    """The value, between the ends; measured ranks and overlaps may lie beyond them by rounding in single precision."""
    slack = 1e-5 * high
    if not ((low - slack <= value) & (value <= high + slack)).all():
        raise ValueError(f"{name} is {value}; it must lie between {low} and {high}")
    return np.clip(value, low, high)
