"""Infinitely wide and deep classifiers: three limits, told apart by four constants of the activation.

For inputs on the unit sphere and layers without biases, the kernels of a deep network are functions
of the correlation xi of two inputs. With phi normalised to E[phi(z)^2] = 1 for z ~ N(0, 1), its
normalised Hermite coefficients a_k and its dual phi^(xi) = sum_k a_k^2 xi^k,

    Sigma_0 = K_0 = xi,   Sigma_l = phi^(Sigma_{l-1}),   K_l = Sigma_l + K_{l-1} phi^'(Sigma_{l-1}).

As the depth L grows, sign(y K_L^{-1} K_L(., x)) becomes the vote of the nearest neighbour, of the
majority, or of a singular kernel; for the right activation the last is the Hilbert estimate, which
is consistent: its error approaches that of Bayes' rule (Radhakrishnan, Belkin & Uhler 2022,
arXiv:2204.14126, called RBU below).

Entries of the kernels differ by factors that no floating-point number holds, and near xi = 1 by
less than a rounding error of xi. So everything here starts from gaps 1 - xi, returns logarithms,
and is computed in double precision on NumPy arrays, whatever the default of JAX.

One file: taxonomy, kernels and classifiers are read off one iteration of the gap 1 - xi.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from limits.arguments import array, real, takes
from limits.arguments import count as counts
from limits.correlations import EXACT, Activation, DualMap, descend, dual_map, log_shrinkage, near
from ntk import show
from ntk.activations import closed_forms, polynomials
from ntk.arguments import strict
from ntk.types import Float, Real, Rows, Shaped

_SLOWEST = 10**6  # layers of a recursion that has no closed form at its end


@show.readable
class Taxonomy(NamedTuple):
    """What an activation does in infinitely wide and deep classifiers.

    Attributes:
        kind: "nearest neighbor", "singular kernel" or "majority vote", the limit as the depth
            grows; or "collapse", where all correlations tend to 1 and none of the three is reached.
        A: E[phi(z)], of the normalised activation, as all that follow.
        A_prime: E[phi'(z)], the slope of the dual at 0 being A_prime^2 (where A is 0).
        B_prime: E[phi'(z)^2], the slope of the dual at 1.
        alpha: exponent of the singular kernel, r^-alpha at distance r; nan for the other kinds.
        order: first order with a Hermite coefficient that is not 0.
    """

    kind: str
    A: float
    A_prime: float
    B_prime: float
    alpha: float
    order: int


@show.readable
class LogKernel(NamedTuple):
    """Entries of a kernel, sign * exp(offset + log).

    Attributes:
        sign: -1, 0 or 1.
        log: of the same shape; a sum with `offset` may lose all its digits.
        offset: one number, what the entries share: L ln A'^2 for the kind "singular kernel".
    """

    sign: np.ndarray
    log: np.ndarray
    offset: float = 0.0


@strict
def taxonomy(activation: Activation) -> Taxonomy:
    """Class and constants of an activation, by quadrature.

    Args:
        activation: elementwise function on JAX arrays, or a `ntk.activations.closed_forms.Dual`; its scale is of no
            importance.

    Returns:
        The taxonomy. Exact to about 1e-12 for a Dual in closed form; for a function A and A' are,
        and B' to about 1e-8. Constants within 1e-9 of 0 (A, A') or 1 (B') are taken to be that.

    Raises:
        ValueError: the activation is linear, jumps (B' is infinite), is zero, or has no values.

    Source: RBU's taxonomy. With A = 0, pairs leave the neighbourhood of xi = 1
    by a factor B' a layer, and shrink by A'^2 a layer from there: alpha = -4 ln|A'| / ln B'.
    """
    found = dual_map(activation)
    a = np.sqrt(found.squares[:2])
    b = found.slope_at_one
    alpha = math.nan
    if found.order == 1:
        kind, alpha = "singular kernel", -4 * math.log(a[1]) / math.log(b)
    elif found.order > 1:
        kind = "nearest neighbor"
    else:
        kind = "majority vote" if b >= 1 - EXACT else "collapse"
    return Taxonomy(kind, float(a[0]), float(a[1]), b, alpha, found.order)


@functools.cache
def optimal_activation(dimension: int) -> closed_forms.Dual:
    """Polynomial activation whose singular kernel is that of the consistent Hilbert estimate.

    Args:
        dimension: d of the sphere S^d that holds the inputs, one less than their coordinates.

    Returns:
        Its Dual (`.fn` is the activation), with exponent alpha = d: B' = 2 and A' = 2^(-d/4), for
        d = 1 B' = 4 and A' = 2^(-1/2).

    Raises:
        ValueError: dimension is not a positive integer.

    Source: RBU's optimal activations.
    """
    if not (isinstance(dimension, int) and dimension >= 1):
        raise ValueError(f"dimension is {dimension!r}; it must be a positive integer")
    if dimension == 1:
        squares = {1: 0.5, 7: 0.5}
    else:
        power = 2 ** (-dimension / 2)
        squares = {1: power, 2: 1 - 2 * power, 3: power}
    series = [math.sqrt(squares.get(k, 0) / math.factorial(k)) for k in range(max(squares) + 1)]
    return polynomials.polynomial_dual(np.polynomial.hermite_e.herme2poly(series))


def _examples(name: str, value: Any) -> None:
    try:
        right = np.asarray(value, np.float64).ndim > 0
    except (TypeError, ValueError):
        right = False
    if not right:
        raise TypeError(
            f"{name} is {type(value).__name__}; it must be an array (examples, coordinates)"
        )


@takes(xi=array())
def dual_curve(
    activation: Activation, xi: Real[ArrayLike, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """The normalised dual phi^ at correlations xi in [-1, 1], of any shape."""
    found = dual_map(activation)
    gap = 1 - np.asarray(xi, np.float64)
    if gap.size and not (gap.min() >= -1e-9 and gap.max() <= 2 + 1e-9):
        raise ValueError(
            f"xi is from {1 - gap.max()} to {1 - gap.min()}; correlations lie in [-1, 1]"
        )
    return 1 - gap * near(found, found.ratio, gap, np)


# Kernels of depth L, as functions of the gap 1 - xi


@takes(x1=_examples, x2=_examples)
def gaps(x1: Real[Rows, "n1 d"], x2: Real[Rows, "n2 d"]) -> Float[np.ndarray, "n1 n2"]:
    """1 - <x1, x2> of unit vectors, exact to rounding also where they nearly coincide.

    Args:
        x1: (n1, d), of any norm but zero.
        x2: (n2, d).

    Returns:
        (n1, n2), half the squared distances of the normalised vectors.

    Raises:
        ValueError: shapes that do not match, or a vector that is zero or not finite.
    """
    x1, x2 = _unit(x1), _unit(x2)
    if x1.shape[1] != x2.shape[1]:
        raise ValueError(f"x1 has {x1.shape[1]} coordinates, x2 has {x2.shape[1]}: give as many")
    total = np.zeros((len(x1), len(x2)))
    for a, b in zip(x1.T, x2.T):  # differences, not products: those would lose the small gaps
        difference = np.subtract.outer(a, b)
        total += difference * difference
    return total / 2


@strict
def deep_kernel(
    activation: Activation, depth: int, kernel: str = "ntk"
) -> Callable[[ArrayLike], LogKernel]:
    """NNGP or NTK of `depth` activation layers, for gaps of any size and depths up to 10^15.

    The layers are iterated only until all pairs follow a closed form: some ten to hundred layers.

    Args:
        activation: elementwise function, or a Dual.
        depth: number of activation layers L, at least 1.
        kernel: "nngp" or "ntk".

    Returns:
        gaps -> LogKernel, for arrays of any shape. Its diagonal, gap 0, is 1 for the NNGP and
        (B'^(L+1) - 1) / (B' - 1) for the NTK.

    Raises:
        ValueError: unknown kernel; depth not a positive integer, above 10^6 where B' = 1 and A is
            not 0 (layers have no closed form there: the limit is the majority vote), or so large
            that even the logarithm overflows (A = A' = 0: the limit is the nearest neighbour).

    Source: RBU; the closed form at the end is Sigma ~ A'^2L, K ~ L A'^2L.
    """
    found = dual_map(activation)
    if kernel not in ("nngp", "ntk"):
        raise ValueError(f"kernel is {kernel!r}; it must be 'nngp' or 'ntk'")
    _check_depth(found, depth)
    offset = depth * log_shrinkage(found)
    diagonal = (_log_diagonal(found.slope_at_one, depth) if kernel == "ntk" else 0.0) - offset

    def evaluate(gap: ArrayLike) -> LogKernel:
        x, k, log, layers = descend(found, gap, depth)
        if found.order == 1:
            k = k + (depth - layers) * x
        value = k if kernel == "ntk" else x
        same = np.asarray(gap) == 0
        log = np.where(same, diagonal, log + _log_size(value))
        return LogKernel(np.where(same, 1.0, np.sign(value)), log, offset)

    return evaluate


@strict
def singular_kernel(activation: Activation) -> Callable[[ArrayLike], LogKernel]:
    """psi = lim Sigma_L / A'^(2L) = lim K_L / (L A'^(2L)) as L grows: the kernel of the limit.

    Args:
        activation: elementwise function, or a Dual, of kind "singular kernel".

    Returns:
        gaps -> LogKernel of psi = R(r) / r^alpha, with r = sqrt(2 gap) and R bounded away from 0
        and from infinity. Gaps below 1e-32, where psi is infinite, are taken to be 1e-32.

    Raises:
        ValueError: an activation of another kind.

    Source: RBU's singular kernels. The NTK comes near this limit only at depths above r^-2; the NNGP does
    at ln(1 / r^2) / ln B' and some ten layers more.
    """
    found, kind = dual_map(activation), taxonomy(activation).kind
    if kind != "singular kernel":
        raise ValueError(f"the activation's limit is {kind!r}: only 'singular kernel' has a psi")

    def evaluate(gap: ArrayLike) -> LogKernel:
        x, _, log, _ = descend(found, np.maximum(gap, 1e-32), np.iinfo(np.int64).max)
        return LogKernel(np.sign(x), log + _log_size(x))

    return evaluate


# Classifiers: scores whose sign (or largest column) decides


@takes(train=_examples, labels=array(), test=_examples)
def deep_classifier(
    activation: Activation,
    depth: int,
    train: Real[Rows, "n d"],
    labels: Shaped[Rows, "n *classes"],
    test: Real[Rows, "m d"],
    *,
    kernel: str = "nngp",
) -> Float[np.ndarray, "m *classes"]:
    """Kernel regression with the kernel of a network of this depth: y K^{-1} K(., x).

    Args:
        activation: elementwise function, or a Dual.
        depth: number of activation layers.
        train: (n, d), scaled to the unit sphere.
        labels: (n,) of -1 and 1, or (n, classes).
        test: (m, d).
        kernel: "nngp" or "ntk".

    Returns:
        Scores (m,) or (m, classes), each row up to a positive factor.

    Raises:
        ValueError: as `deep_kernel` and `gaps`; labels of another length; coincident training
            examples, or so few layers that K is singular: the closest pair, at distance r, wants
            ln(2 / r^2) / ln B' of them.
    """
    entries, labels = deep_kernel(activation, depth, kernel), _labels(labels, len(train))
    rows, columns = np.triu_indices(len(train), 1)
    between = gaps(train, train)[rows, columns]
    if between.size and between.min() == 0:
        i = int(between.argmin())
        raise ValueError(f"training examples {rows[i]} and {columns[i]} coincide: drop one")
    value, diagonal = entries(between), entries(np.zeros(1)).log
    matrix = np.eye(len(train))
    matrix[rows, columns] = matrix[columns, rows] = value.sign * np.exp(value.log - diagonal)
    try:
        weights = np.linalg.solve(matrix, labels)
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"K of depth {depth} is singular in double precision: go deeper"
        ) from error
    return _vote(entries, train, weights, test)


@takes(train=_examples, labels=array(), test=_examples)
def singular_classifier(
    activation: Activation,
    train: Real[Rows, "n d"],
    labels: Shaped[Rows, "n *classes"],
    test: Real[Rows, "m d"],
) -> Float[np.ndarray, "m *classes"]:
    """The limit of infinite depth for kind "singular kernel": sum_i y_i psi(x, x_i).

    Arguments and scores as in `deep_classifier`. Source: RBU's singular kernels.
    """
    return _vote(singular_kernel(activation), train, _labels(labels, len(train)), test)


@takes(train=_examples, labels=array(), test=_examples, exponent=real)
def hilbert_estimate(
    train: Real[Rows, "n d"],
    labels: Shaped[Rows, "n *classes"],
    test: Real[Rows, "m d"],
    exponent: float,
) -> Float[np.ndarray, "m *classes"]:
    """The Hilbert estimate sum_i y_i / |x - x_i|^exponent, consistent if exponent = d.

    Arguments and scores as in `deep_classifier`; exponent is positive.

    Raises:
        ValueError: as `gaps`; exponent not positive.

    Source: Devroye, Gyorfi & Krzyzak 1998. An exponent above d tends to the nearest neighbour,
    one below d averages over all examples.
    """
    if not exponent > 0:
        raise ValueError(f"exponent is {exponent}; it must be positive")

    def weights(gap: np.ndarray) -> LogKernel:
        log = -exponent / 2 * np.log(np.maximum(2 * gap, 1e-300))
        return LogKernel(np.ones_like(log), log)

    return _vote(weights, train, _labels(labels, len(train)), test)


@takes(train=_examples, labels=array(), test=_examples)
def nearest_neighbor(
    train: Real[Rows, "n d"], labels: Shaped[Rows, "n *classes"], test: Real[Rows, "m d"]
) -> Float[np.ndarray, "m *classes"]:
    """The label of the nearest example, (m,) or (m, classes); of the first, if several are."""
    labels = _labels(labels, len(train))
    nearest = [gaps(rows, train).argmin(axis=1) for rows in _row_blocks(test, len(train))]
    return labels[np.concatenate(nearest)]


@takes(labels=array(), count=counts(0))
def majority_vote(
    labels: Shaped[Rows, "n *classes"], count: int
) -> Float[np.ndarray, "count *classes"]:
    """The sum of the labels, for each of `count` examples."""
    labels = np.asarray(labels, np.float64)
    return np.broadcast_to(labels.sum(axis=0), (count, *labels.shape[1:]))


# --- what the above share ------------------------------------------------------------------------


def _unit(x: Rows) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if x.ndim != 2:
        raise ValueError(f"examples of shape {x.shape} must be (examples, coordinates)")
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    if not (np.isfinite(norm) & (norm > 0)).all():
        bad = int(np.flatnonzero(~(np.isfinite(norm) & (norm > 0)))[0])
        raise ValueError(f"example {bad} has norm {norm[bad, 0]}: it is not on a sphere")
    return x / norm


def _labels(labels: Rows, count: int) -> np.ndarray:
    labels = np.asarray(labels, np.float64)
    if labels.ndim not in (1, 2) or len(labels) != count:
        raise ValueError(f"labels of shape {labels.shape} do not match {count} training examples")
    return labels


def _row_blocks(test: Rows, columns: int) -> list[np.ndarray]:
    rows = max(1, (1 << 22) // max(columns, 1))
    test = np.asarray(test, np.float64)
    return [test[start : start + rows] for start in range(0, len(test), rows)]


def _vote(
    kernel: Callable[[np.ndarray], LogKernel], train: Rows, labels: np.ndarray, test: Rows
) -> np.ndarray:
    scores = []
    for rows in _row_blocks(test, len(train)):
        value = kernel(gaps(rows, train))
        top = value.log.max(axis=1, keepdims=True)
        scores.append((value.sign * np.exp(value.log - top)) @ labels)
    return np.concatenate(scores)


def _check_depth(found: DualMap, depth: int) -> None:
    if not (isinstance(depth, int | np.integer) and depth >= 1):
        raise ValueError(f"depth is {depth!r}; it must be a positive integer")
    if found.order == 0 and abs(found.slope_at_one - 1) < EXACT and depth > _SLOWEST:
        raise ValueError(
            f"depth is {depth}: an activation with A != 0 and B' = 1 approaches its limit like "
            f"1 / depth, layer by layer: at most {_SLOWEST}, or take the limit, majority_vote"
        )
    if found.order > 1 and depth * math.log(found.order) > 650:
        raise ValueError(
            f"depth is {depth}: Sigma_L ~ xi^({found.order}^L) has no logarithm in floating point; "
            "take the limit, nearest_neighbor"
        )


def _log_diagonal(b: float, depth: int) -> float:
    """log of 1 + b + ... + b^depth."""
    if abs(b - 1) < EXACT:
        return math.log(depth + 1)
    top = (depth + 1) * math.log(b)
    size = top + math.log1p(-math.exp(-top)) if b > 1 else math.log1p(-math.exp(top))
    return size - math.log(abs(b - 1))


def _log_size(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.abs(values))
