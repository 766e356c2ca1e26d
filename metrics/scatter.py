"""Class means and what is left around them: two passes over a data set, batch by batch.

Two passes, because one pass, E[h^2] - E[h]^2, cancels in float32 and returns negative variances
once the spread is 1e-3 of the scale. Nothing here is d x d: the pseudo-inverse of the between-class
covariance acts only on the span of the centred class means, and a thin SVD of that K x d matrix
gives it without squaring its condition number.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metrics.estimate import concrete
from metrics.geometry import matmul

# Rows, and numbers in all, per step of the second pass on a CPU: 128 KB in float32 stay in a core's cache.
ROWS, NUMBERS = 256, 2**15
CENTERS = ("classes", "samples")


class ClassMeans(NamedTuple):
    """First pass: samples (K,) and mean feature (K, d) of every class; a class not seen has count 0."""

    count: jax.Array
    mean: jax.Array


class Centers(NamedTuple):
    """Geometry of the class means that the second pass measures against."""

    count: jax.Array  # (K,)
    mean: jax.Array  # (K, d)
    global_mean: jax.Array  # (d,)
    basis: jax.Array  # (d, r): orthonormal directions of the centred means, r = min(d, K)
    coordinates: jax.Array  # (K, r): centred means in that basis
    inverse: jax.Array  # (r,): 1 / s_j^2 of the kept singular values, 0 for the others
    rank: jax.Array


class WithinClass(NamedTuple):
    """Second pass: sums per class (K,), to be added over batches and devices field by field."""

    count: jax.Array
    distance: jax.Array  # of |h - mu|^2
    distance_squared: jax.Array
    whitened: jax.Array  # of |Sigma_B^{+1/2} (h - mu)|^2 / K
    whitened_squared: jax.Array
    nearest_is_label: jax.Array
    nearest_is_prediction: jax.Array


@partial(jax.jit, static_argnames=("num_classes",))
def class_means(features: jax.Array, labels: jax.Array, num_classes: int) -> ClassMeans:
    """First pass over one batch: count and mean of every class (a class may be missing).

    Args:
        features: (N, ...), flattened to (N, d).
        labels: (N,) integers; anything outside 0..K-1 is left out.
        num_classes: K.

    Returns:
        ClassMeans, to be joined by `merge_means`.
    """
    h = feature_rows(features)
    y = _valid(labels, num_classes)
    count = jnp.bincount(y, length=num_classes + 1)[:num_classes].astype(h.dtype)
    return ClassMeans(count, _class_sums(h, y, num_classes) / jnp.maximum(count, 1)[:, None])


@jax.jit
def merge_means(one: ClassMeans, other: ClassMeans) -> ClassMeans:
    """Means of two batches together (Chan, Golub & LeVeque 1979); associative up to rounding."""
    count = one.count + other.count
    share = other.count / jnp.maximum(count, 1)
    return ClassMeans(count, one.mean + (other.mean - one.mean) * share[:, None])


def class_centers(
    means: ClassMeans, *, center: str = "classes", rtol: float | None = None
) -> Centers:
    """What the second pass needs, once the means of the whole data set are known.

    Args:
        means: of all batches.
        center: 'classes' or 'samples', see `neural_collapse`.
        rtol: see `neural_collapse`.

    Returns:
        Centers.

    Raises:
        ValueError: center is unknown, or (outside jit) a class has no samples, by name.
    """
    check_center(center)
    check_counts(means.count)
    return _class_centers(means, center, rtol)


@partial(jax.jit, static_argnames=("center", "rtol"))
def _class_centers(means, center, rtol):
    mean = jnp.where(means.count[:, None] > 0, means.mean, jnp.nan)
    num_classes = mean.shape[0]
    share = means.count / jnp.sum(means.count) if center == "samples" else 1 / num_classes
    global_mean = jnp.sum(mean * jnp.broadcast_to(share, (num_classes,))[:, None], axis=0)
    # QR first: the SVD is then of a matrix no larger than K x K.
    q, r = jnp.linalg.qr((mean - global_mean[None]).T)
    left, s, right = jnp.linalg.svd(r, full_matrices=False)
    tolerance = (1e-12 if mean.dtype == jnp.float64 else 1e-5) if rtol is None else rtol
    kept = (s > tolerance * s[0]) & (jnp.arange(s.size) < num_classes - 1)
    inverse = jnp.where(kept, 1 / jnp.where(kept, s, 1) ** 2, 0)
    return Centers(
        means.count,
        mean,
        global_mean,
        matmul(q, left),
        right.T * s[None],
        jnp.where(jnp.isnan(s[0]), jnp.nan, inverse),
        jnp.sum(kept),
    )


@jax.jit
def within_class(
    centers: Centers,
    features: jax.Array,
    labels: jax.Array,
    *,
    weights: jax.Array | None = None,
    bias: jax.Array | None = None,
    predictions: jax.Array | None = None,
) -> WithinClass:
    """Second pass over one batch: what is left around the class means.

    Args:
        centers: of the whole data set.
        features: (N, ...).
        labels: (N,) integers; anything outside 0..K-1 is left out.
        weights: (K, d), or None.
        bias: (K,), or None.
        predictions: (N,), or None; not with weights.

    Returns:
        WithinClass; add two with `jax.tree.map(jnp.add, a, b)`, or over devices with psum.
    """
    h = feature_rows(features)
    num_classes = centers.count.size
    y = _valid(labels, num_classes)
    rows = None if weights is None else weights.astype(h.dtype)
    offset = 0 if bias is None else bias.astype(h.dtype)[:, None]
    guess = jnp.full_like(y, -1) if predictions is None else predictions.astype(y.dtype)
    columns = jax.lax.platform_dependent(
        centers, rows, offset, h, y, guess, cpu=_residuals_blocked, default=_residuals
    )
    return WithinClass(*_class_sums(columns.T, y, num_classes).T)


def feature_rows(features: jax.Array) -> jax.Array:
    """Features as a matrix (N, d), in float32 at least."""
    h = jnp.asarray(features)
    h = h.reshape(h.shape[0], -1)
    return h.astype(jnp.promote_types(h.dtype, jnp.float32))


def _valid(labels, num_classes):
    """Labels with everything outside 0..K-1 sent to K, a bin that is dropped."""
    return jnp.where((labels >= 0) & (labels < num_classes), labels, num_classes)


def _class_sums(values, y, num_classes):
    """Sums over the rows of each class (K, m); rows of class K are dropped."""
    return jax.lax.platform_dependent(
        values,
        y,
        cpu=partial(_sums_scattered, num_classes=num_classes),
        default=partial(_sums_one_hot, num_classes=num_classes),
    )


def _sums_one_hot(values, y, num_classes):
    members = (jnp.arange(num_classes)[:, None] == y[None, :]).astype(values.dtype)
    return matmul(members, values)


def _sums_scattered(values, y, num_classes):
    """Scatter-add reads the values once: on a CPU two to seven times faster than a product.

    Several partial sums per class keep the rounding error of a long float32 sum small.
    """
    rows = values.shape[0]
    parts = int(np.clip(rows // (8 * num_classes), 1, 16))
    part = jnp.arange(rows) * parts // rows
    sums = jax.ops.segment_sum(values, part * (num_classes + 1) + y, parts * (num_classes + 1))
    return jnp.sum(sums.reshape(parts, num_classes + 1, -1), axis=0)[:num_classes]


def _residuals(centers, rows, offset, h, y, guess):
    """The columns of WithinClass for every sample (7, N).

    Samples run along the last axis and sums are products with a vector: both let a CPU vectorise
    what it would otherwise do entry by entry.
    """
    num_classes, rank = centers.coordinates.shape
    basis = centers.basis.T
    directions = basis if rows is None else jnp.concatenate([basis, rows])
    projected = matmul(directions, h.T)
    z = projected[:rank] - matmul(basis, centers.global_mean)[:, None]
    own = jnp.minimum(y, num_classes - 1)
    distance = matmul((h - centers.mean[own]) ** 2, jnp.ones(h.shape[1], h.dtype))
    whitened = matmul(centers.inverse, (z - centers.coordinates[own].T) ** 2)
    # |h - mu_c|^2 up to a term common to all classes: the means differ only inside the basis.
    half_square = 0.5 * jnp.sum(centers.coordinates**2, axis=1)
    score = matmul(centers.coordinates, z) - half_square[:, None]
    nearest = score == jnp.max(score, axis=0, keepdims=True)
    classes = jnp.arange(num_classes)[:, None]
    if rows is None:
        predicted = guess[None] == classes
    else:
        logits = projected[rank:] + offset
        predicted = logits == jnp.max(logits, axis=0, keepdims=True)
    hits = [jnp.any(nearest & c, axis=0).astype(h.dtype) for c in (y[None] == classes, predicted)]
    ones = jnp.ones_like(distance)
    return jnp.stack([ones, distance, distance**2, whitened, whitened**2, *hits])


def _residuals_blocked(centers, rows, offset, h, y, guess):
    """The same block by block, so that what lies between stays in a CPU's cache."""
    count, dim = h.shape
    block = min(ROWS, max(NUMBERS // dim, 32), count)

    def step(i, out):
        start = jnp.minimum(i * block, count - block)
        part = [jax.lax.dynamic_slice_in_dim(a, start, block) for a in (h, y, guess)]
        new = _residuals(centers, rows, offset, *part)
        return jax.lax.dynamic_update_slice_in_dim(out, new, start, axis=1)

    return jax.lax.fori_loop(0, -(-count // block), step, jnp.zeros((7, count), h.dtype))


def check_center(center: str):
    """Refuses an unknown convention of the global mean."""
    if center not in CENTERS:
        raise ValueError(f"center is {center!r}; it must be one of {CENTERS}")


def check_counts(count):
    """Refuses classes without samples, by name, where the counts can be looked at."""
    values = concrete(count)
    if values is not None and not values.all():
        missing = np.flatnonzero(values == 0).tolist()
        raise ValueError(
            f"no samples of classes {missing[:10]}{' ...' if len(missing) > 10 else ''} "
            f"({len(missing)} of {len(values)}): use more data, or join batches with merge_means"
        )
