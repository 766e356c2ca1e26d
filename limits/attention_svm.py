"""The implicit bias of a trained attention layer: a support vector machine that separates tokens.

Examples i = 1..n hold T tokens x_it and a query z_i (d each); attention weights p_i = softmax_t(x_it^T W z_i), output
v . sum_t p_it x_it, labels Y_i = 1 or -1, mean logistic loss. Trained by gradient descent, W grows without end along
the solution of

    minimise |W|  subject to  (x_i,opt - x_it)^T W z_i >= 1  for every t other than the selected token opt_i

in the Frobenius norm where W is trained, in the nuclear norm where K and Q are and W = K Q^T. Selected tokens are those
that attention saturates at; they need not be the best ones (convergence is local), and the direction converges no
faster than 1 / log(steps), but for a weight decay, however small, which makes it a regularisation path.

Source: Tarzanagh, Li, Thrampoulidis & Oymak 2023, arXiv:2308.16898.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from limits import perceptron
from limits.arguments import array, count, number, takes
from ntk import show
from ntk.types import Float, Integer, Real


@show.readable
class Separator(NamedTuple):
    """The solution of an attention SVM.

    Attributes:
        matrix: W, (d, d), whose smallest constraint is 1.
        margin: 1 / norm.
        norm: of W, Frobenius or nuclear; the smallest possible one lies between norm (1 - gap) and norm.
        gap: (norm - dual bound) / norm.
    """

    matrix: Float[np.ndarray, "d d"]
    margin: float
    norm: float
    gap: float


@show.readable
class Path(NamedTuple):
    """A descent on the attention of one layer.

    Attributes:
        matrices: W (or K Q^T) at the start and after each `every` steps, (k, d, d).
        losses: mean logistic loss at the same steps, (k,).
        weights: attention after the last step, (n, T).
        selected: the token of largest weight, (n,).
    """

    matrices: Float[np.ndarray, "k d d"]
    losses: Float[np.ndarray, "k"]
    weights: Float[np.ndarray, "n T"]
    selected: Integer[np.ndarray, "n"]


@takes(tokens=array(3), queries=array(2), selected=array(1, integers=True))
def constraints(
    tokens: Real[ArrayLike, "n T d"],
    queries: Real[ArrayLike, "n d"],
    selected: Integer[ArrayLike, "n"],
) -> Float[np.ndarray, "m d d"]:
    """Matrices C with <C, W> = (x_i,opt - x_it)^T W z_i, (n (T - 1), d, d).

    Args:
        tokens: x, (n, T, d).
        queries: z, (n, d).
        selected: opt, (n,), one token an example.

    Raises:
        TypeError: an argument of another type.
        ValueError: shapes that do not fit, no second token, or tokens that are not there.
    """
    x, z = _examples(tokens, queries)
    opt, (n, length, d) = np.asarray(selected), x.shape
    if opt.shape != (n,) or length < 2:
        raise ValueError(
            f"selected has the shape {opt.shape}, tokens {x.shape}; they must be (n,) and (n, T, d), T 2 or more"
        )
    if ((opt < 0) | (opt >= length)).any():
        raise ValueError(f"selected has tokens from {opt.min()} to {opt.max()}; there are {length}")
    others = np.arange(length)[None] != opt[:, None]
    difference = (x[np.arange(n), opt][:, None] - x)[others].reshape(n, length - 1, d)
    return (difference[..., None] * z[:, None, None, :]).reshape(-1, d, d)


@takes(constraints=array(3))
def solve(constraints: Real[ArrayLike, "m d d"], norm: str = "frobenius") -> Separator:
    """The matrix of least norm with every <C, W> at least 1, with the gap to its dual bound.

    The Frobenius norm is the widest margin of the C as vectors (`limits.perceptron.margin`). For the nuclear norm the
    dual, max sum(lam) over lam >= 0 with the operator norm of D = sum_c lam_c C_c at most 1, is solved by Newton steps
    on a barrier; at its optimum of strength mu, W = 2 mu D (1 - D^T D)^{-1} meets every constraint.

    Args:
        constraints: C, (m, d, d), as of `constraints`.
        norm: "frobenius" or "nuclear".

    Raises:
        TypeError: constraints is no array of numbers.
        ValueError: another norm, no constraints, or no matrix separates the selected tokens.
    """
    if norm not in ("frobenius", "nuclear"):
        raise ValueError(f"norm is {norm!r}; it must be 'frobenius' or 'nuclear'")
    c = np.asarray(constraints, float)
    if not c.size:
        raise ValueError(f"constraints has the shape {c.shape}; it must hold one or more")
    try:
        found = perceptron.margin(c.reshape(len(c), -1))
    except ValueError as error:
        raise ValueError(
            "no matrix separates the selected tokens; take more dimensions, or see whether another token of an "
            "example equals the selected one"
        ) from error
    if norm == "frobenius":
        matrix, dual = found.direction.reshape(c.shape[1:]), 1 / (found.value + found.gap)
    else:
        matrix, dual = _nuclear(c, found.direction.reshape(c.shape[1:]) / found.value)
    matrix = matrix / np.tensordot(c, matrix, 2).min()
    size = float(np.linalg.norm(matrix, "fro" if norm == "frobenius" else "nuc"))
    return Separator(matrix, 1 / size, size, max(0.0, 1 - float(dual) / size))


def _nuclear(c: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, float]:
    """A matrix, and the dual bound on the nuclear norm, by a barrier -mu log det(1 - D^T D) - mu sum log lam."""
    m, eye = len(c), np.eye(c.shape[2])
    lam = np.full(m, 0.5 / np.linalg.norm(c, axis=(1, 2)).sum())
    mu, best, bound = lam.sum(), start, 0.0
    # The gap is about mu times the number of terms.
    while mu * (m + 2 * len(eye)) > 1e-8 * lam.sum():
        for _ in range(50):
            d = np.tensordot(lam, c, 1)
            right = np.linalg.inv(eye - d.T @ d)
            left = np.linalg.inv(np.eye(len(d)) - d @ d.T)
            cross = d @ right
            slope = -1 / mu - 1 / lam + 2 * np.tensordot(c, cross, 2)
            second = left @ c @ right + cross @ c.transpose(0, 2, 1) @ cross
            # In units of lam, where the Hessian of its logarithms is the identity.
            curvature = 2 * second.reshape(m, -1) @ c.reshape(m, -1).T
            curvature = curvature * lam[:, None] * lam[None] + np.eye(m)
            step = -lam * np.linalg.solve(curvature, lam * slope)
            decrease = -slope @ step
            if decrease < 1e-9:  # or negative, by rounding
                break
            # Damped Newton on a self-concordant function: inside, and lower by a known amount.
            lam = lam + step / (1 + np.sqrt(decrease))
        d = np.tensordot(lam, c, 1)
        matrix = d @ np.linalg.inv(eye - d.T @ d)
        smallest = np.tensordot(c, matrix, 2).min()
        bound = max(bound, lam.sum() / np.linalg.norm(d, 2))
        if smallest > 0:  # but for rounding at the end
            best = min(best, matrix / smallest, key=lambda w: np.linalg.norm(w, "nuc"))
        mu = mu / 5
    return best, bound


@takes(
    tokens=array(3),
    queries=array(2),
    values=array(1),
    labels=array(1),
    steps=count(),
    step_size=number(positive=True),
    decay=number(),
)
def descend(
    tokens: Real[ArrayLike, "n T d"],
    queries: Real[ArrayLike, "n d"],
    values: Real[ArrayLike, "d"],
    labels: Real[ArrayLike, "n"],
    steps: int,
    *,
    start: Real[ArrayLike, "d d"] | tuple[Real[ArrayLike, "d m"], Real[ArrayLike, "d m"]],
    step_size: float = 0.1,
    decay: float = 0.0,
    every: int | None = None,
) -> Path:
    """Normalised gradient descent on the attention weights alone, in double precision.

    Args:
        tokens: x, (n, T, d).
        queries: z, (n, d).
        values: v, (d,), fixed.
        labels: Y, (n,), 1 or -1.
        steps: number of steps, each of length step_size.
        start: W, (d, d); or a pair (K, Q), each (d, m), which are then trained, each with its own normalised gradient.
        step_size: norm of what a step adds to W, or to K and to Q.
        decay: weight decay, added to the gradient times W (or K, Q) before that is normalised. However small, it
            decides once the gradient, which falls exponentially, is as small: the norm stays, the direction converges.
        every: steps between matrices that are kept; by default only the first and the last are.

    Raises:
        TypeError: an argument of another type.
        ValueError: shapes that do not fit, labels that are not 1 or -1, or K = Q = 0, where the gradient is zero.
    """
    x, z = _examples(tokens, queries)
    v, y = np.asarray(values, float), np.asarray(labels, float)
    d = x.shape[2]
    if v.shape != (d,) or y.shape != x.shape[:1] or not np.isin(y, (-1, 1)).all():
        raise ValueError(
            f"values {v.shape} and labels {y.shape} must be ({d},) and ({len(x)},), labels 1 or -1"
        )
    factors = [np.array(part, float) for part in (start if isinstance(start, tuple) else (start,))]
    shapes = [part.shape for part in factors]
    if len(factors) == 1 and shapes != [(d, d)]:
        raise ValueError(
            f"start has the shape {shapes[0]}; it must be ({d}, {d}), or a pair (K, Q)"
        )
    if len(factors) == 2 and not (shapes[0] == shapes[1] and shapes[0][:1] == (d,)):
        raise ValueError(f"start has the shapes {shapes}; K and Q must both be ({d}, m)")
    if len(factors) == 2 and not any(part.any() for part in factors):
        raise ValueError("start is K = Q = 0, where the gradient is zero; draw one of them")
    step_size, decay = float(step_size), float(decay)  # not arrays of single precision
    every, scores = steps if every is None else every, x @ v
    count()("every", every)
    matrices, losses = [], []
    for step in range(steps + 1):
        w = factors[0] if len(factors) == 1 else factors[0] @ factors[1].T
        log_p = _log_softmax((x @ (z @ w.T)[..., None])[..., 0])
        p = np.exp(log_p)
        margins = y * (p * scores).sum(1)
        if step % every == 0:
            matrices.append(w)
            losses.append(np.logaddexp(0, -margins).mean())
        if step == steps:
            break
        gradient, log_scale = _gradient(x, z, log_p, scores, -y * special.expit(-margins))
        slopes = [gradient]
        if len(factors) == 2:
            slopes = [gradient @ factors[1], gradient.T @ factors[0]]
        if decay:
            share = np.exp(min(np.log(decay) - log_scale, 700.0))
            slopes = [slope + share * f for slope, f in zip(slopes, factors)]
        factors = [f - step_size * s / (np.linalg.norm(s) or 1) for f, s in zip(factors, slopes)]
    return Path(np.array(matrices), np.array(losses), p, p.argmax(1))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    below = logits - logits.max(axis=1, keepdims=True)
    return below - np.log(np.exp(below).sum(axis=1, keepdims=True))


def _gradient(
    x: np.ndarray, z: np.ndarray, log_p: np.ndarray, scores: np.ndarray, outer: np.ndarray
) -> tuple[np.ndarray, float]:
    """The gradient by W over a factor, and the factor's logarithm: it leaves double precision as attention saturates.

    d loss / d logit_t = outer sum_s p_t p_s (score_t - score_s) / n: no difference of nearly equal numbers, and the
    largest of all p_t p_s, t other than s, is the factor.
    """
    pairs = log_p[:, :, None] + log_p[:, None, :]
    token = np.arange(pairs.shape[1])
    pairs[:, token, token] = -np.inf
    largest = pairs.max()
    weights = np.exp(pairs - largest)
    change = (weights * (scores[:, :, None] - scores[:, None, :])).sum(2) * outer[:, None]
    return (change[:, None] @ x)[:, 0].T @ z / len(x), float(largest)


@takes(matrix=array(2), other=array(2))
def correlation(matrix: Real[ArrayLike, "*shape"], other: Real[ArrayLike, "*shape"]) -> float:
    """<A, B> / (|A| |B|): 1 where a trained matrix has the direction of its bias.

    Raises:
        TypeError: an argument of another type.
        ValueError: matrices of different shapes, or zero.
    """
    a, b = np.asarray(matrix, float), np.asarray(other, float)
    if a.shape != b.shape or not (a.any() and b.any()):
        raise ValueError(
            f"matrix {a.shape} and other {b.shape} must have one shape and not be zero"
        )
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def _examples(tokens: ArrayLike, queries: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, z = np.asarray(tokens, float), np.asarray(queries, float)
    if not x.size or z.shape != (x.shape[0], x.shape[2]):
        raise ValueError(
            f"tokens {x.shape} and queries {z.shape} do not fit; they must be (n, T, d) and (n, d)"
        )
    return x, z
