"""Closed-form global optimum of deep linear layers on free features, and where the simplex frame is not one.

The model of unconstrained features: W_M ... W_1 H with weight decay lambda_i on every layer and
lambda_H on the features H, which are free. Mean squared error decouples into one scalar equation per
mode. Cross-entropy does not: `cross_entropy_loss` is exact for given logits (the best factorisation
into M+1 factors is known), so that any frame of logits can be compared with the simplex.

Everything here is host-side float64 of K numbers; hand the Gram matrices to `metrics.geometry.gram_error`.

Mode k of the mean squared error, n_k of the N examples, has the strength z = x^M / (1 + x^M) with::

    x = argmin 1/(x^M + 1) + beta_k x,    beta_k = M N kappa / n_k,    kappa = (N lambda_H lambda_1 ... lambda_M)^(1/M)

Source: Dang et al. 2023, neural collapse in deep linear networks, theorems 3.1 and 4.1; Garrod & Keating 2024,
arXiv:2410.23169, for the claim on cross-entropy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metrics import checks
from ntk import show
from ntk.types import Float, Real, Rows


@show.readable
class Thresholds(NamedTuple):
    """Values of beta_k = M N kappa / n_k at which the mode of a class disappears."""

    collapse: float  # beta*: above it the global optimum of the mode is zero
    spinodal: float  # above it no other local minimum is left
    jump: float  # z of the mode at beta*: it falls from here to 0 (first order unless M = 1)


@show.readable
class LinearOptimum(NamedTuple):
    """Global optimum for mean squared error; classes in the order given. Features collapse: NC1 = 0."""

    loss: float
    beta: Float[np.ndarray, "r"]  # of each mode
    x: Float[np.ndarray, "r"]  # lambda_i s_i^2 = kappa x for every layer's singular value s_i
    z: Float[np.ndarray, "r"]  # singular values of the fitted outputs, 0 (collapsed) .. 1
    kappa: float
    weight_gram: Float[np.ndarray, "K K"]  # W W^T, W = W_M ... W_1
    mean_gram: Float[np.ndarray, "K K"]  # of the class means of H
    outputs: Float[np.ndarray, "K K"]  # W times class means; column k belongs to class k
    bias: Float[np.ndarray, "K"]
    unique: (
        bool  # False where classes of equal size tie for the last dimension, or at the threshold
    )


@show.readable
class CrossEntropyOptimum(NamedTuple):
    """Best scale of a given frame of logits for cross-entropy, balanced classes."""

    loss: float
    scale: float  # the logits are scale * pattern; 0 where collapse to zero is better
    rank: int  # of the logits
    singular_values: Float[np.ndarray, "K"]  # of the logits
    weight_gram: Float[np.ndarray, "K K"]  # W W^T
    mean_gram: Float[np.ndarray, "K K"]  # of the class means of H


def thresholds(depth: int) -> Thresholds:
    """Collapse threshold beta*, spinodal and height of the jump for M linear layers.

    Args:
        depth: M, the number of weight layers above the free features.

    Returns:
        Thresholds.

    Raises:
        ValueError: depth is not positive.

    Source: minimise f(x) = 1/(x^M + 1) + beta x over x >= 0 (Dang et al. 2023, appendix).
    """
    _check_depth(depth)
    if depth == 1:
        return Thresholds(1.0, 1.0, 0.0)
    power = (depth - 1) / depth
    q = (depth - 1) / (depth + 1)
    return Thresholds((depth - 1) ** power / depth, depth * q**power / (1 + q) ** 2, power)


def mode(
    beta: Real[ArrayLike, "*shape"], depth: int, *, branch: str = "global"
) -> Float[np.ndarray, "*shape"]:
    """Strength x of a mode: the minimiser of 1/(x^M + 1) + beta x over x >= 0.

    Args:
        beta: array of positive numbers, M N kappa / n_k.
        depth: M.
        branch: 'global' minimum, or 'upper': the non-zero local minimum as long as one exists, up to
            the spinodal (where training that started from a fitted network stays).

    Returns:
        x, of beta's shape; z = x^M / (1 + x^M).

    Raises:
        ValueError: depth, beta not positive, or branch unknown.
    """
    limits = thresholds(depth)
    beta = checks.doubles("beta", beta)
    if not ((beta > 0) & np.isfinite(beta)).all():
        raise ValueError(f"beta is {beta}; it must be positive: every regulariser is needed")
    checks.choice("branch", branch, ("global", "upper"))
    if depth == 1:
        return np.maximum(1 / np.sqrt(beta) - 1, 0)
    alive = beta < (limits.collapse if branch == "global" else limits.spinodal)
    # f' = beta - M x^(M-1) / (x^M + 1)^2 rises from its zero's left end to beyond its right end.
    low = np.full(beta.shape, ((depth - 1) / (depth + 1)) ** (1 / depth))
    high = np.maximum((depth / beta) ** (1 / (depth + 1)), low)
    for _ in range(200):
        middle = np.sqrt(low * high)
        right = depth * middle ** (depth - 1) / (middle**depth + 1) ** 2 < beta
        low, high = np.where(right, low, middle), np.where(right, middle, high)
    return np.where(alive, np.sqrt(low * high), 0)


def mse_optimum(
    class_sizes: Sequence[int],
    weight_decays: Sequence[float],
    feature_decay: float,
    *,
    bias: bool = False,
    dim: int | None = None,
    branch: str = "global",
) -> LinearOptimum:
    """Global optimum of the regularised deep linear problem under mean squared error, any class sizes.

    min over W_M..W_1, H, b of 1/(2N) |W_M ... W_1 H + b 1^T - Y|_F^2 + sum_i lambda_i/2 |W_i|_F^2
    + lambda_H/2 |H|_F^2, Y one-hot. Without bias: a general orthogonal frame whose lengths follow the
    class sizes; a class k with n_k <= M N kappa / beta* disappears. With bias, balanced: a simplex frame.

    Args:
        class_sizes: n_k, K of them.
        weight_decays: lambda_1 .. lambda_M.
        feature_decay: lambda_H.
        bias: an unregularised bias of the last layer.
        dim: smallest width; where it is less than K, the dim largest modes are kept. None: K at least.
        branch: 'global', or 'upper' for the metastable branch, see `mode`.

    Returns:
        LinearOptimum.

    Raises:
        ValueError: fewer than two classes, a size or decay that is not positive, dim not positive.

    Source: Dang et al. 2023, neural collapse in deep linear networks (theorems 3.1, 4.1); the imbalanced
    case with bias: modes of the centred targets (I - n 1^T/N) diag(sqrt n).
    """
    n, decays = _check_problem(class_sizes, weight_decays, feature_decay)
    depth, total, classes = len(decays), n.sum(), n.size
    bias = checks.boolean("bias", bias)
    if dim is not None and checks.integer("dim", dim) < 1:
        raise ValueError(f"dim is {dim}; it must be positive")
    kappa = (total * feature_decay * np.prod(decays)) ** (1 / depth)
    # Targets of each class: columns of (I - n 1^T / N) or I; modes: their weighted singular vectors.
    target = np.eye(classes) - (np.outer(n, np.ones(classes)) / total if bias else 0)
    if bias:
        left, strength, _ = np.linalg.svd(target * np.sqrt(n))
        left, size = left[:, : classes - 1], strength[: classes - 1] ** 2
    else:
        left, size = np.eye(classes), n.astype(np.float64)
    beta = depth * total * kappa / size
    x = mode(beta, depth, branch=branch)
    # At the threshold a mode may be there or not; a single layer's reaches it at zero.
    tied = depth > 1 and np.isclose(beta, thresholds(depth).collapse, 1e-12).any()
    unique = branch == "upper" or not tied
    if dim is not None and dim < size.size:
        order = np.argsort(-size, kind="stable")
        unique = unique and not np.isclose(size[order[dim - 1]], size[order[dim]], 1e-9)
        x[order[dim:]] = 0
    square = total * feature_decay * x**depth  # sigma^2 of W
    feature = np.sqrt(square) / (square + total * feature_decay)
    outputs = (left * (x**depth / (1 + x**depth))) @ left.T @ target
    return LinearOptimum(
        loss=float(np.sum(size * (1 / (x**depth + 1) + beta * x)) / (2 * total)),
        beta=beta,
        x=x,
        z=x**depth / (1 + x**depth),
        kappa=float(kappa),
        weight_gram=(left * square) @ left.T,
        mean_gram=target.T @ (left * feature**2) @ left.T @ target,
        outputs=outputs,
        bias=n / total if bias else np.zeros(classes),
        unique=bool(unique),
    )


def simplex(num_classes: int) -> Float[np.ndarray, "K K"]:
    """Logits of the simplex equiangular tight frame, rank K-1: I - 11^T/K."""
    checks.integer("num_classes", num_classes, 2)
    return np.eye(num_classes) - 1 / num_classes


def orthoplex(num_classes: int) -> Float[np.ndarray, "K K"]:
    """Logits of pairs of opposite orthogonal vectors, rank K/2: +1 own, -1 partner, 0 others; K even."""
    if checks.integer("num_classes", num_classes, 2) % 2:
        raise ValueError(f"num_classes is {num_classes}; opposite pairs need an even number")
    return np.kron(np.eye(num_classes // 2), np.array([[1.0, -1.0], [-1.0, 1.0]]))


def polygon(num_classes: int) -> Float[np.ndarray, "K K"]:
    """Logits of K points on a circle, rank 2: cos(2 pi (i - j) / K)."""
    k = np.arange(checks.integer("num_classes", num_classes, 2))
    return np.cos(2 * np.pi * (k[:, None] - k[None]) / num_classes)


def pair_subsets(num_points: int) -> Float[np.ndarray, "K K"]:
    """Logits of the K = m(m-1)/2 pairs out of m points, rank m-1: e_i + e_j without its mean.

    m = 4 is `orthoplex` of K = 6 in another order; m = 5 lives on the Petersen graph.
    """
    if checks.integer("num_points", num_points) < 3:
        raise ValueError(f"num_points is {num_points}; it must be at least 3")
    first, second = np.triu_indices(num_points, 1)
    members = np.eye(num_points)[first] + np.eye(num_points)[second] - 2 / num_points
    return members @ members.T


def known_frames(num_classes: int) -> dict[str, Float[np.ndarray, "K K"]]:
    """Frames of logits that the simplex is to be compared with, by name, and the simplex itself.

    None need be the optimum: at K = 10 ten points on a sphere (rank 3, no symmetry) have lower loss from M = 3 on,
    0.04070 and 0.03536 at M = 3, 4 with all decays 1e-3 and one sample a class; `cross_entropy_loss` judges any logits.
    """
    frames = {"simplex": simplex(num_classes), "polygon": polygon(num_classes)}
    if num_classes % 2 == 0:
        frames["orthoplex"] = orthoplex(num_classes)
    points = (1 + int(np.sqrt(8 * num_classes + 1))) // 2
    if points > 4 and points * (points - 1) // 2 == num_classes:
        frames["pairs"] = pair_subsets(points)
    return frames


def cross_entropy_loss(
    logits: Real[np.ndarray, "K K"],
    samples_per_class: int,
    weight_decays: Sequence[float],
    feature_decay: float,
) -> float:
    """Least regularised cross-entropy of M linear layers on free features with the given logits.

    Mean cross-entropy + (M+1)/2 (n lambda_H prod lambda)^(1/(M+1)) sum_j s_j^(2/(M+1)), s_j the logits'
    singular values: the least price of a factorisation into M+1 factors. Minimising it over
    all K x K logits is the training problem with balanced classes and collapsed features.

    Args:
        logits: (K, K), column k for class k.
        samples_per_class: n.
        weight_decays: lambda_1 .. lambda_M.
        feature_decay: lambda_H.

    Returns:
        The loss.

    Raises:
        ValueError: a decay or n is not positive, logits are not square.

    Source: Schatten quasi-norms as factorisation costs (Shang, Liu & Cheng 2016).
    """
    logits = checks.doubles("logits", logits)
    if logits.ndim != 2 or logits.shape[0] != logits.shape[1]:
        raise ValueError(f"logits has shape {logits.shape}; it must be (K, K)")
    checks.integer("samples_per_class", samples_per_class, 1)
    _, decays = _check_problem([samples_per_class] * len(logits), weight_decays, feature_decay)
    factors = len(decays) + 1
    price = factors / 2 * (samples_per_class * feature_decay * np.prod(decays)) ** (1 / factors)
    values = np.linalg.svd(logits, compute_uv=False)
    return float(_entropy(logits) + price * np.sum(_significant(values) ** (2 / factors)))


def cross_entropy_optimum(
    pattern: Real[np.ndarray, "K K"],
    samples_per_class: int,
    weight_decays: Sequence[float],
    feature_decay: float,
) -> CrossEntropyOptimum:
    """Best scale of one frame of logits: exact for `simplex`, and the counterexamples to it.

    With one layer (or K <= 3) the simplex is the global optimum. With M >= 2 and K >= 4-10 it is not:
    `orthoplex`, of rank K/2, has lower loss at K = 4 (M >= 3), 6 and 10 (M >= 2) for small decays, and
    `pair_subsets(5)`, of rank 4, lower still at K = 10, M >= 3; see `known_frames`.

    Args:
        pattern: (K, K) logits up to scale.
        samples_per_class: n.
        weight_decays: lambda_1 .. lambda_M.
        feature_decay: lambda_H.

    Returns:
        CrossEntropyOptimum; its loss is an upper bound of the global optimum's, reached by
        gradient descent only from some starts.

    Raises:
        ValueError: as `cross_entropy_loss`.

    Source: Garrod & Keating 2024 (arXiv 2410.23169) for the claim; frames and values derived here.
    """
    pattern = checks.doubles("pattern", pattern)
    if not np.isfinite(pattern).all() or not pattern.any():
        raise ValueError("pattern must be finite and not all zero: it is known up to scale only")
    arguments = (samples_per_class, weight_decays, feature_decay)
    zero = cross_entropy_loss(0 * pattern, *arguments)

    def loss(scale: float) -> float:
        return cross_entropy_loss(scale * pattern, *arguments)

    grid = np.geomspace(1e-3, 1e3, 121) / np.abs(pattern).max()
    losses = [loss(scale) for scale in grid]
    best = int(np.clip(np.argmin(losses), 1, grid.size - 2))
    scale = _golden(loss, grid[best - 1], grid[best + 1])
    value = loss(scale)
    if value >= zero:
        scale, value = 0.0, zero
    left, singular, right = np.linalg.svd(scale * pattern)
    decays = np.asarray(weight_decays, np.float64)
    depth = decays.size
    # lambda_i s_i^2 is one number for all layers, and n lambda_H s_H^2 too; their product is s^2.
    singular = _significant(singular)
    price = samples_per_class * feature_decay
    level = (singular**2 * price * np.prod(decays)) ** (1 / (depth + 1))
    weight = (left * (level**depth / np.prod(decays))) @ left.T
    return CrossEntropyOptimum(
        loss=value,
        scale=float(scale),
        rank=int(np.sum(singular > 0)),
        singular_values=singular,
        weight_gram=weight,
        mean_gram=(right.T * (level / price)) @ right,
    )


def _entropy(logits: np.ndarray) -> float:
    shifted = logits - logits.max(0)
    return np.mean(np.log(np.exp(shifted).sum(0)) - np.diagonal(shifted))


def _significant(values: np.ndarray) -> np.ndarray:
    """Singular values without rounding noise, which a power below one would make large."""
    return np.where(values > 1e-12 * max(values.max(), 1e-300), values, 0)


def _golden(function: Callable[[float], float], low: float, high: float) -> float:
    """Minimum of a function with one minimum between low and high, by golden-section search."""
    ratio = (np.sqrt(5) - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    at_a, at_b = function(a), function(b)
    for _ in range(80):
        if at_a < at_b:
            high, b, at_b = b, a, at_a
            a = high - ratio * (high - low)
            at_a = function(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + ratio * (high - low)
            at_b = function(b)
    return (low + high) / 2


def _check_depth(depth: int) -> None:
    if checks.integer("depth", depth) < 1:
        raise ValueError(
            f"depth is {depth}; it must be at least 1 (weight layers above the features)"
        )


def _check_problem(
    class_sizes: Rows, weight_decays: Rows, feature_decay: float
) -> tuple[np.ndarray, np.ndarray]:
    n, decays = (
        checks.doubles("class_sizes", class_sizes),
        checks.doubles("weight_decays", weight_decays),
    )
    if n.ndim != 1 or n.size < 2 or not ((n > 0) & np.isfinite(n)).all():
        raise ValueError(f"class_sizes is {class_sizes}; it must be two positive numbers or more")
    if decays.ndim != 1 or decays.size < 1 or not ((decays > 0) & np.isfinite(decays)).all():
        raise ValueError(f"weight_decays is {weight_decays}; give one positive number per layer")
    if checks.positive("feature_decay", feature_decay).ndim:
        raise ValueError(f"feature_decay is {feature_decay}; it must be one number")
    return n, decays
