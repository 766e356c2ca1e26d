"""How the rank of initial weights makes a two-layer linear network lazy or rich, in closed form.

f(x) = a^T W x with readout a(0) = 0 and W_0 of rank r whose singular values are all s, so that s^2 = F^2 / r at
Frobenius norm F; white inputs (X^T X / P = I), loss |W^T a - beta|^2 / 2, gradient flow to the end. With b = |beta|,
P_0 the projector on the row space of W_0, and the overlap c = |P_0 beta|^2 / b^2 of the task with it, W W^T - a a^T is
conserved and one hidden direction moves::

    A = |a|^2 = (-s^2 + sqrt(s^4 + 4 b^2)) / 2          at the end
    M = W^T W + |a|^2 I                                 tangent kernel X M X^T, M_0 = s^2 P_0
    <M, M_0> = s^2 (s^2 (r - 1) + (s^2 + A) c + A r)
    |M|^2    = (r - 1) (s^2 + A)^2 + (s^2 + 2 A)^2 + (d - r) A^2
    |W - W_0|^2 = (t - s)^2 + 2 s t (1 - sqrt(c)),    t^2 = s^2 + A

Only F^2 / b matters to the alignments. For a random task c has the mean r / d and the law Beta(r/2, (d - r)/2).

Limits: below r of about d / 4 the path from a zero readout is unstable where c < 1; a readout of 1e-4 already
leads elsewhere, to a kernel that changed much less. A readout of standard size is another problem altogether.
`descend` measures the same numbers from any start.

Source: derived here; the statement that higher rank is lazier on average is of Liu et al. 2023, arXiv:2310.08513.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from limits.arguments import array, broadcast, count, number, takes
from ntk import show
from ntk.types import Array, Real, Scalar


@show.readable
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
            such as a low-rank adapter's own, and for every task at rank d. None is the mean over random tasks.

    Returns:
        Laziness. Arguments broadcast; the first three fields of a mean over tasks are exact.

    Raises:
        TypeError: an argument is no array of numbers.
        ValueError: a rank outside 1 to dim, norms that are not positive, an overlap outside 0 to 1 or below 1 at full
            rank, or shapes that do not broadcast.
    """
    r, size, b = (np.asarray(value, float) for value in (rank, weight_norm, target_norm))
    given = {} if overlap is None else {"overlap": overlap}
    broadcast(rank=r, weight_norm=size, target_norm=b, **given)
    r = _inside("rank", r, 1, dim)
    for name, value in (("weight_norm", size), ("target_norm", b)):
        if not (value > 0).all():
            raise ValueError(f"{name} is {value}; it must be positive")
    if overlap is None:
        c = r / dim
        # 1 - E sqrt(c) of a Beta(r/2, (d - r)/2), exactly 0 at full rank
        moments = [special.gammaln((x + 1) / 2) - special.gammaln(x / 2) for x in (r, float(dim))]
        lost = -np.expm1(moments[0] - moments[1])
    else:
        array()("overlap", overlap)
        c = _inside("overlap", np.asarray(overlap, float), 0, 1)
        if ((r == dim) & (c < 1 - 1e-5)).any():
            raise ValueError(
                f"overlap is {c} at rank {r} of {dim}; weights of full rank read all of a task: their overlap is 1"
            )
        c = np.where(r == dim, 1.0, c)
        lost = (1 - c) / (1 + np.sqrt(c))
    # In units of the larger of s and sqrt(b), so that no power of them overflows; no difference of near numbers
    unit = np.maximum(size / np.sqrt(r), np.sqrt(b))
    s, root = size / np.sqrt(r) / unit, np.sqrt(b) / unit
    s2 = s**2
    readout = np.sqrt(2) * root / np.sqrt(s2 + np.hypot(s2, 2 * root**2))  # |a| / sqrt(b)
    a2, norm = (readout * root) ** 2, readout * np.sqrt(b)
    t = np.hypot(s, readout * root)
    inner, hidden = s2 * (r - 1) + (s2 + a2) * c, (r - 1) * s2**2 + (s2 + a2) ** 2
    full = (r - 1) * (s2 + a2) ** 2 + (s2 + 2 * a2) ** 2 + (dim - r) * a2**2
    moved = np.hypot(norm * (readout * root / (t + s)), np.sqrt(2 * s * t * lost) * unit)
    parts = (
        (inner + a2 * r) / np.sqrt(r * full),
        inner / np.sqrt(r * hidden),
        moved,
        norm,
    )
    return Laziness(*np.broadcast_arrays(*parts))


@takes(
    weights=array(),
    readout=array(),
    target=array(),
    step_size=number(positive=True),
    max_steps=count(),
)
def descend(
    weights: Real[ArrayLike, "*batch N d"],
    readout: Real[ArrayLike, "*batch N"],
    target: Real[ArrayLike, "*batch d"],
    *,
    step_size: float = 0.02,
    max_steps: int = 200_000,
) -> Laziness:
    """The same numbers by gradient descent from any start, in double precision, until the error is 1e-7 of the target.

    Args:
        weights: W_0, (..., N, d), of any rank and singular values.
        readout: a(0), (..., N).
        target: beta, (..., d), not 0.
        step_size: in units of 1 / (F^2 + |a(0)|^2 + 2b), so that it fits all sizes; the error is of its order.
        max_steps: where to give up.

    Returns:
        Laziness, (...); nan where descent did not fit the target.

    Raises:
        TypeError: an argument of another type.
        ValueError: shapes that do not fit, or numbers out of range.
    """
    w, a, b = (np.asarray(value, float) for value in (weights, readout, target))
    if w.ndim < 2 or a.shape != w.shape[:-1] or b.shape != (*w.shape[:-2], w.shape[-1]):
        raise ValueError(
            f"weights {w.shape}, readout {a.shape} and target {b.shape} must be (..., N, d), (..., N) and (..., d)"
        )
    if not np.square(b).sum(-1).all():
        raise ValueError("target is 0 somewhere; there is nothing to learn")
    batch = w.shape[:-2]
    flat = w.reshape(-1, *w.shape[-2:]), a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    with jax.enable_x64(True):
        found = _descend(*flat, float(step_size), max_steps)
        return Laziness(*(np.asarray(value).reshape(batch) for value in found))


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0, 0, None, None))
def _descend(
    w_0: Array, a_0: Array, target: Array, step_size: float, max_steps: int
) -> tuple[Array, Array, Array, Array]:
    b = jnp.linalg.norm(target)
    rate = step_size / (jnp.sum(w_0**2) + jnp.sum(a_0**2) + 2 * b)

    def step(carry: tuple[Array, Array, Scalar]) -> tuple[Array, Array, Scalar]:
        w, a, count = carry
        error = a @ w - target
        return w - rate * jnp.outer(a, error), a - rate * (w @ error), count + 1

    def going(carry: tuple[Array, Array, Scalar]) -> Array:
        w, a, count = carry
        return (jnp.linalg.norm(a @ w - target) > 1e-7 * b) & (count < max_steps)

    start: tuple[Array, Array, Scalar] = (w_0, a_0, 0)
    w, a, _ = jax.lax.while_loop(going, step, start)
    hidden = [each.T @ each for each in (w, w_0)]
    full = [h + r @ r * jnp.eye(len(target)) for h, r in zip(hidden, (a, a_0))]

    def alignment(one: Array, other: Array) -> Array:
        return jnp.sum(one * other) / (jnp.linalg.norm(one) * jnp.linalg.norm(other))

    fitted = jnp.linalg.norm(a @ w - target) <= 1e-7 * b
    found = alignment(*full), alignment(*hidden), jnp.linalg.norm(w - w_0), jnp.linalg.norm(a)
    return jax.tree.map(lambda value: jnp.where(fitted, value, jnp.nan), found)


def _inside(name: str, value: np.ndarray, low: float, high: float) -> np.ndarray:
    """The value, between the ends; measured ranks and overlaps may lie beyond them by rounding in single precision."""
    slack = 1e-5 * high
    if not ((low - slack <= value) & (value <= high + slack)).all():
        raise ValueError(f"{name} is {value}; it must lie between {low} and {high}")
    return np.clip(value, low, high)
