"""Geometry of K vectors: distance to an equiangular frame, self-duality, separation, uniformity, tolerance.

With G the Gram matrix of the vectors and T = I - 11^T/K (simplex) or I (orthogonal), the distance to the frame is
| G/|G|_F - T/|T|_F |_F; for self-duality G is that of classifier rows with class means.

Source: Papyan, Han & Donoho 2020; Zhu et al. 2021; Jiang et al. 2023; Liu et al. 2023 (uniformity).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from metrics import checks
from metrics.estimate import Estimate, concrete, norm, power_of_two
from ntk import show
from ntk.types import Bool, Data, Float, Integer, Real

FRAMES = ("simplex", "orthogonal")
# Accelerators multiply float32 matrices in fewer bits unless asked.
matmul = partial(jnp.matmul, precision="highest")


@show.readable
class Frame(NamedTuple):
    """How far K vectors are from the frame that collapse predicts; every number is 0 at collapse.

    error: || G/||G||_F - T/||T||_F ||_F of the Gram matrix G and the frame's T.
    general: the same with the vectors' own lengths l put into the frame, ||G - l l^T * C||_F / ||G||_F,
    C its cosines: 0 for a frame of any lengths (imbalanced classes: a general orthogonal frame).
    equinorm: standard deviation over mean of the lengths.
    equiangularity: standard deviation over pairs of the cosines.
    max_angle: mean over pairs of |cosine - the frame's|.

    A vector of length 0 has no angles: the last two are NaN then.
    """

    error: jax.Array
    general: jax.Array
    equinorm: jax.Array
    equiangularity: jax.Array
    max_angle: jax.Array


@show.readable
class Duality(NamedTuple):
    """How far classifier rows w_k are from the class means m_k; every number is 0 at collapse.

    error: || W M^T/||.||_F - T/||T||_F ||_F, T the frame's Gram matrix.
    distance: || W/||W||_F - M/||M||_F ||_F^2.
    angle: mean over k of 1 - cos(w_k, m_k): 0 whatever the lengths, NaN where one is 0.
    uniformity: variance over k of <w_k, m_k>, over its squared mean.
    """

    error: jax.Array
    distance: jax.Array
    angle: jax.Array
    uniformity: jax.Array


def frame_geometry(vectors: Real[Data, "K d"], *, frame: str = "simplex") -> Frame:
    """NC2 of K vectors: equal norms, equal angles, distance to the predicted frame.

    Args:
        vectors: (K, d), class means (centred for 'simplex') or classifier rows.
        frame: 'simplex' (equiangular tight frame, cosines -1/(K-1)) or 'orthogonal' (cosines 0).

    Returns:
        Frame.

    Raises:
        TypeError: vectors are no numbers.
        ValueError: frame is unknown, or vectors is not a matrix of two rows at least.

    Source: Papyan, Han & Donoho 2020; the Gram form: Zhu et al. 2021; general orthogonal frames:
    Dang et al. 2023.
    """
    return _frame_geometry(_vectors(vectors, frame), frame)


@partial(jax.jit, static_argnames=("frame",))
def _frame_geometry(vectors: jax.Array, frame: str) -> Frame:
    vectors = vectors / power_of_two(vectors)
    count = vectors.shape[0]
    gram = matmul(vectors, vectors.T)
    length = jnp.sqrt(jnp.diagonal(gram))
    target = frame_gram(count, frame, gram.dtype)
    cosine_target = target / target[0, 0]
    outer = length[:, None] * length[None, :]
    cosine = gram / outer
    off = ~jnp.eye(count, dtype=bool)
    pairs = count * (count - 1)
    mean_cosine = jnp.sum(jnp.where(off, cosine, 0)) / pairs
    return Frame(
        error=gram_error(gram, target),
        general=jnp.linalg.norm(gram - outer * cosine_target) / jnp.linalg.norm(gram),
        equinorm=jnp.std(length) / jnp.mean(length),
        equiangularity=jnp.sqrt(jnp.sum(jnp.where(off, cosine - mean_cosine, 0) ** 2) / pairs),
        max_angle=jnp.sum(jnp.where(off, jnp.abs(cosine - cosine_target), 0)) / pairs,
    )


def self_duality(
    rows: Real[Data, "K d"], vectors: Real[Data, "K d"], *, frame: str = "simplex"
) -> Duality:
    """NC3: classifier rows against class means.

    Args:
        rows: (K, d) of the classifier.
        vectors: (K, d) class means, centred for 'simplex'.
        frame: as in `frame_geometry`.

    Returns:
        Duality.

    Raises:
        TypeError: rows or vectors are no numbers.
        ValueError: frame is unknown, or the shapes differ.

    Source: Papyan, Han & Donoho 2020 (distance); Zhu et al. 2021 (error); Jiang et al. 2023 (angle).
    """
    vectors, rows = _vectors(vectors, frame), checks.real("rows", rows, "K", "d")
    checks.same_shape(rows=rows, vectors=vectors)
    return _self_duality(rows, vectors, frame)


@partial(jax.jit, static_argnames=("frame",))
def _self_duality(rows: jax.Array, vectors: jax.Array, frame: str) -> Duality:
    rows, vectors = rows / power_of_two(rows), vectors / power_of_two(vectors)
    inner = jnp.sum(rows * vectors, axis=1)
    norms = jnp.linalg.norm(rows, axis=1) * jnp.linalg.norm(vectors, axis=1)
    difference = rows / jnp.linalg.norm(rows) - vectors / jnp.linalg.norm(vectors)
    return Duality(
        error=gram_error(matmul(rows, vectors.T), frame_gram(rows.shape[0], frame, rows.dtype)),
        distance=jnp.sum(difference**2),
        angle=jnp.mean(1 - inner / norms),
        uniformity=jnp.var(inner) / jnp.mean(inner) ** 2,
    )


def gram_error(gram: Real[Data, "K K"], target: Real[Data, "K K"]) -> Float[jax.Array, ""]:
    """|| G/||G||_F - T/||T||_F ||_F: distance to a frame up to scale, such as one of `metrics.frames`.

    Args:
        gram: (K, K).
        target: the same shape.

    Raises:
        TypeError: no numbers.
        ValueError: they are not matrices of one shape.
    """
    gram, target = checks.real("gram", gram, "K", "L"), checks.real("target", target, "K", "L")
    checks.same_shape(gram=gram, target=target)
    return jnp.linalg.norm(gram / norm(gram) - target / norm(target))


def frame_gram(count: int, frame: str, dtype: DTypeLike = jnp.float32) -> Float[jax.Array, "K K"]:
    """Gram matrix of the frame up to scale: I - 11^T/K ('simplex') or I ('orthogonal')."""
    checks.integer("count", count, 1)
    checks.choice("frame", frame, FRAMES)
    checks.floating_type("dtype", dtype)
    identity = jnp.eye(count, dtype=dtype)
    return identity - 1 / count if frame == "simplex" else identity


def squared_distances(vectors: Real[Data, "K d"]) -> Float[jax.Array, "K K"]:
    """|v_i - v_j|^2 of all pairs (K, K), from differences of rows: close vectors stay exact."""
    vectors = checks.real("vectors", vectors, "K", "d")

    def row(v: jax.Array) -> jax.Array:
        return jnp.sum((vectors - v[None]) ** 2, axis=1)

    return jax.lax.map(row, vectors)


def uniformity(vectors: Real[Data, "K d"], *, exponent: float = 0) -> Estimate:
    """Hyperspherical uniformity: mean pair energy of normalised vectors, and its spread over pairs.

    Args:
        vectors: (K, d), centred class means.
        exponent: 0 for the logarithmic energy log(1/|u_i - u_j|); s for the Riesz energy
            sign(s) |u_i - u_j|^-s.

    Returns:
        Estimate: mean over pairs; the second number is the standard deviation over pairs, which
        is 0 for an equiangular frame.

    Raises:
        TypeError: vectors or exponent are no numbers.
        ValueError: vectors is not a matrix of two rows at least.

    Source: Liu et al. 2023, generalising neural collapse via hyperspherical uniformity.
    """
    checks.finite("exponent", checks.real("exponent", exponent))
    if np.ndim(exponent) or concrete(exponent) is None:
        raise TypeError(
            f"exponent is {exponent}; it must be a number, known before anything is compiled"
        )
    return _uniformity(_vectors(vectors, "simplex"), float(exponent))


@partial(jax.jit, static_argnames=("exponent",))
def _uniformity(vectors: jax.Array, exponent: float) -> Estimate:
    unit = vectors / norm(vectors, 1)[:, None]
    count = unit.shape[0]
    off = 1 - jnp.eye(count, dtype=unit.dtype)
    distance = jnp.sqrt(jnp.where(off > 0, squared_distances(unit), 1))
    energy = -jnp.log(distance) if exponent == 0 else jnp.sign(exponent) * distance**-exponent
    pairs = count * (count - 1)
    mean = jnp.sum(energy * off) / pairs
    return Estimate(mean, jnp.sqrt(jnp.sum((energy - mean) ** 2 * off) / pairs))


def tolerance(vectors: Real[jax.Array, "K d"], labels: Integer[jax.Array, "K"]) -> Estimate:
    """Mean cosine of two vectors of one class, over all pairs, and its spread over pairs.

    The authors average over all pairs, those of two classes counted as 0: this number times the share of pairs of one
    class. Vectors in a cone have it high without any classes: compare with shuffled labels.

    Args:
        vectors: (K, d), features of K examples.
        labels: (K,) integers.

    Returns:
        Estimate: mean, and standard deviation over pairs; NaN where no two vectors share a class.

    Raises:
        TypeError: vectors are no numbers.
        ValueError: vectors is not a matrix of two rows at least, or labels are not an integer for each.

    Source: Wang & Liu 2021 (arXiv:2012.09740), section 3.3.
    """
    vectors = _vectors(vectors, "simplex")
    checks.check_integers("labels", labels, len(vectors))
    unit = vectors / norm(vectors, 1)[:, None]
    labels = jnp.asarray(labels)
    same = (labels[:, None] == labels[None]) & ~jnp.eye(len(unit), dtype=bool)
    cosine = matmul(unit, unit.T)
    return Estimate(jnp.mean(cosine, where=same), jnp.std(cosine, where=same))


def one_vs_rest_distance(vectors: Real[Data, "K d"], *, num_steps: int = 300) -> Estimate:
    """Distance of every vector to the convex hull of the others (generalised NC2: its minimum is maximal).

    K/(K-1) for the unit simplex frame. Accelerated projected gradient with restarts on the hull's
    weights; each step costs one K x K product and a sort.

    Args:
        vectors: (K, d), of unit norm for the generalised-collapse reading.
        num_steps: gradient steps.

    Returns:
        Estimate: distances (K,) from above, and how much lower the true ones may be (duality gap).

    Raises:
        TypeError: vectors are no numbers, num_steps no integer.
        ValueError: vectors is not a matrix of two rows at least, num_steps not positive.

    Source: Jiang, Zhou, Wang et al. 2023, generalized neural collapse for a large number of classes.
    """
    checks.integer("num_steps", num_steps, 1)
    vectors = _vectors(vectors, "simplex")
    unit = power_of_two(vectors)
    return jax.tree.map(lambda x: x * unit[0, 0], _one_vs_rest_distance(vectors / unit, num_steps))


@partial(jax.jit, static_argnames=("num_steps",))
def _one_vs_rest_distance(vectors: jax.Array, num_steps: int) -> Estimate:
    count = vectors.shape[0]
    gram = matmul(vectors, vectors.T)
    rate = 1 / jnp.max(jnp.sum(jnp.abs(gram), axis=1))
    others = ~jnp.eye(count, dtype=bool)

    def gradient(
        hull: jax.Array,
    ) -> jax.Array:  # row k: weights of the others' hull that approaches vector k
        return matmul(hull, gram) - gram

    def step(
        _: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        hull, ahead, t = state
        new = project_simplex(ahead - rate * gradient(ahead), others)
        uphill = jnp.sum((ahead - new) * (new - hull), axis=1, keepdims=True) > 0
        t = jnp.where(uphill, 1, t)
        t_new = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
        return new, new + (t - 1) / t_new * (new - hull), t_new

    start = others / jnp.asarray(count - 1, gram.dtype)
    ones = jnp.ones((count, 1), gram.dtype)
    hull, _, _ = jax.lax.fori_loop(0, num_steps, step, (start, start, ones))
    slope = gradient(hull)
    gap = jnp.sum(slope * hull, axis=1) - jnp.min(jnp.where(others, slope, jnp.inf), axis=1)
    square = jnp.sum((vectors - matmul(hull, vectors)) ** 2, axis=1)
    lower = jnp.sqrt(jnp.maximum(square - 2 * jnp.maximum(gap, 0), 0))
    return Estimate(jnp.sqrt(square), jnp.sqrt(square) - lower)


def project_simplex(rows: Real[Data, "K n"], allowed: Bool[Data, "K n"]) -> Float[jax.Array, "K n"]:
    """Euclidean projection of each row onto the probability simplex over the allowed entries.

    Args:
        rows: (K, n).
        allowed: (K, n) booleans; the other entries become 0.

    Returns:
        (K, n), rows adding up to 1.

    Raises:
        TypeError: rows are no numbers, allowed no booleans.
        ValueError: they are not of one shape (K, n).

    Source: Held, Wolfe & Crowder 1974.
    """
    rows = checks.real("rows", rows, "K", "n")
    if not jnp.issubdtype(kind := checks.dtype_of("allowed", allowed), jnp.bool_):
        raise TypeError(f"allowed are {kind}; they must be booleans")
    checks.same_shape(rows=rows, allowed=jnp.asarray(allowed))
    masked = jnp.where(allowed, rows, -jnp.inf)
    ordered = -jnp.sort(-masked, axis=1)
    finite = jnp.isfinite(ordered)
    excess = jnp.cumsum(jnp.where(finite, ordered, 0), axis=1) - 1
    position = jnp.arange(1, rows.shape[1] + 1, dtype=rows.dtype)[None]
    used = jnp.sum(finite & (ordered * position > excess), axis=1, keepdims=True)
    level = jnp.take_along_axis(excess, used - 1, axis=1) / used
    return jnp.maximum(masked - level, 0)


def _vectors(vectors: Data, frame: str) -> jax.Array:
    checks.choice("frame", frame, FRAMES)
    vectors = checks.real("vectors", vectors)
    if vectors.ndim != 2 or vectors.shape[0] < 2 or not vectors.shape[1]:
        raise ValueError(f"vectors has shape {vectors.shape}; it must be (K, d) with K >= 2")
    return vectors
