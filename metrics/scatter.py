"""Class means and what is left around them: two passes over a data set, batch by batch.

Two passes, because one pass, E[h^2] - E[h]^2, cancels in float32 and returns negative variances
once the spread is 1e-3 of the scale. Nothing here is d x d: the pseudo-inverse of the between-class
covariance acts only on the span of the centred class means, and a thin SVD of that K x d matrix
gives it without squaring its condition number.

    mean <- mean + (mean' - mean) n' / (n + n')  of two batches
    then the sums of |h - mu|^2 and of (h - mu)^T Sigma_B^+ (h - mu) over the samples of each class

Source: Chan, Golub & LeVeque 1979 for the update; Papyan, Han & Donoho 2020 for what is summed.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from metrics import checks
from metrics.estimate import concrete, power_of_two
from metrics.geometry import matmul
from ntk import arguments, show
from ntk.options import check_entries
from ntk.types import Data, Float, Integer, Real, Shaped

# Rows, and numbers in all, per step of the second pass on a CPU: 128 KB in float32 stay in a core's cache.
ROWS, NUMBERS = 256, 2**15
CENTERS = ("classes", "samples")


@show.readable
class ClassMeans(NamedTuple):
    """First pass: samples (K,) and mean feature (K, d) of every class; a class not seen has count 0."""

    # A field hides the method of tuples that has its name; that is meant here and below.
    count: Shaped[jax.Array, "K"]  # type: ignore[assignment]
    mean: Float[jax.Array, "K d"]


@show.readable
class Centers(NamedTuple):
    """Geometry of the class means that the second pass measures against."""

    count: Shaped[jax.Array, "K"]  # type: ignore[assignment]
    mean: Float[jax.Array, "K d"]
    global_mean: jax.Array  # (d,)
    basis: jax.Array  # (d, r): orthonormal directions of the centred means, r = min(d, K)
    coordinates: jax.Array  # (K, r): centred means in that basis
    inverse: jax.Array  # (r,): 1 / s_j^2 of the kept singular values, 0 for the others
    rank: jax.Array
    unit: (
        jax.Array
    )  # a power of two near the largest coordinate; inverse and WithinClass are in units of it


@show.readable
class WithinClass(NamedTuple):
    """Second pass: sums per class (K,), to be added over batches and devices field by field."""

    count: Shaped[jax.Array, "K"]  # type: ignore[assignment]
    distance: Float[jax.Array, "K"]  # of |h - mu|^2, in units of `Centers.unit`
    distance_squared: Float[jax.Array, "K"]
    whitened: Float[jax.Array, "K"]  # of |Sigma_B^{+1/2} (h - mu)|^2 / K
    whitened_squared: Float[jax.Array, "K"]
    nearest_is_label: Shaped[jax.Array, "K"]
    nearest_is_prediction: Shaped[jax.Array, "K"]


@arguments.strict
def class_means(
    features: Real[Data, "N ..."], labels: Integer[Data, "N"], num_classes: int
) -> ClassMeans:
    """First pass over one batch: count and mean of every class (a class may be missing).

    Args:
        features: (N, ...), flattened to (N, d).
        labels: (N,) integers 0..K-1; -1 marks a padded row, which is left out. Others are refused, inside jit
            they make the means NaN.
        num_classes: K.

    Returns:
        ClassMeans, to be joined by `merge_means`.

    Raises:
        TypeError: features are no numbers, num_classes no integer.
        ValueError: wrong shapes, labels that are no integers -1..K-1, means that no machine holds.
    """
    checks.integer("num_classes", num_classes, 1)
    h = feature_rows(features)
    check_entries("num_classes", num_classes, num_classes * h.shape[1])
    checks.labels("labels", labels, h.shape[0], num_classes, padding=True)
    return _class_means(h, jnp.asarray(labels), num_classes)


@partial(jax.jit, static_argnames=("num_classes",))
def _class_means(h: jax.Array, labels: jax.Array, num_classes: int) -> ClassMeans:
    y = _valid(labels, num_classes)
    count = jnp.bincount(y, length=num_classes + 1)[:num_classes].astype(h.dtype)
    mean = _class_sums(h, y, num_classes) / jnp.maximum(count, 1)[:, None]
    return ClassMeans(count, mean + _nan_if_no_class(labels, y, num_classes))


@arguments.strict
def merge_means(one: ClassMeans, other: ClassMeans) -> ClassMeans:
    """Means of two batches together (Chan, Golub & LeVeque 1979); associative up to rounding.

    Raises:
        TypeError: one or other is no ClassMeans.
        ValueError: they are of different numbers of classes or dimensions.
    """
    _check_kind(ClassMeans, one=one, other=other)
    checks.same_shape(one=one.mean, other=other.mean)
    return _merge_means(one, other)


@jax.jit
def _merge_means(one: ClassMeans, other: ClassMeans) -> ClassMeans:
    count = one.count + other.count
    share = other.count / jnp.maximum(count, 1)
    return ClassMeans(count, one.mean + (other.mean - one.mean) * share[:, None])


@arguments.strict
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
        TypeError: means is no ClassMeans, rtol no number.
        ValueError: center is unknown, rtol not in [0, 1), or (outside jit) a class has no samples, by name.
    """
    _check_kind(ClassMeans, means=means)
    check_center(center)
    check_tolerance(rtol)
    check_counts(means.count)
    return _class_centers(means, center, rtol)


@partial(jax.jit, static_argnames=("center", "rtol"))
def _class_centers(means: ClassMeans, center: str, rtol: float | None) -> Centers:
    mean = jnp.where(means.count[:, None] > 0, means.mean, jnp.nan)
    num_classes = mean.shape[0]
    share = means.count / jnp.sum(means.count) if center == "samples" else 1 / num_classes
    global_mean = jnp.sum(mean * jnp.broadcast_to(share, (num_classes,))[:, None], axis=0)
    # QR first: the SVD is then of a matrix no larger than K x K.
    q, r = jnp.linalg.qr((mean - global_mean[None]).T)
    left, s, right = jnp.linalg.svd(r, full_matrices=False)
    tolerance = (1e-12 if mean.dtype == jnp.float64 else 1e-5) if rtol is None else rtol
    kept = (s > tolerance * s[0]) & (jnp.arange(s.size) < num_classes - 1)
    # Squares of squares of small distances vanish in single precision: in this unit they do not.
    unit = power_of_two(s)[0]
    inverse = jnp.where(kept, 1 / jnp.where(kept, s / unit, 1) ** 2, 0)
    return Centers(
        means.count,
        mean,
        global_mean,
        matmul(q, left),
        right.T * s[None],
        jnp.where(jnp.isnan(s[0]), jnp.nan, inverse),
        jnp.sum(kept),
        unit,
    )


@arguments.strict
def within_class(
    centers: Centers,
    features: Real[Data, "N ..."],
    labels: Integer[Data, "N"],
    *,
    weights: Real[Data, "K d"] | None = None,
    bias: Real[Data, "K"] | None = None,
    predictions: Integer[Data, "N"] | None = None,
) -> WithinClass:
    """Second pass over one batch: what is left around the class means.

    Args:
        centers: of the whole data set.
        features: (N, ...).
        labels: (N,) integers 0..K-1; -1 marks a padded row, which is left out. Others are refused, inside jit
            they make the sums NaN.
        weights: (K, d), or None.
        bias: (K,), or None.
        predictions: (N,) integers as labels, or None; not with weights. -1 agrees with no class.

    Returns:
        WithinClass; add two with `jax.tree.map(jnp.add, a, b)`, or over devices with psum.

    Raises:
        TypeError: centers is no Centers, features are no numbers.
        ValueError: wrong shapes, labels or predictions that are no integers -1..K-1, weights or bias that are not
            finite, weights and predictions both.
    """
    _check_kind(Centers, centers=centers)
    h = feature_rows(features)
    num_classes, dim = centers.mean.shape
    checks.check_shape("features", h.shape, ("N", dim))
    checks.labels("labels", labels, h.shape[0], num_classes, padding=True)
    check_readout(num_classes, dim, h.shape[0], weights, bias, predictions)
    return _within_class(centers, h, labels, weights, bias, predictions)


@jax.jit
def _within_class(
    centers: Centers,
    h: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None,
    bias: jax.Array | None,
    predictions: jax.Array | None,
) -> WithinClass:
    num_classes = centers.count.size
    y = _valid(labels, num_classes)
    rows = None if weights is None else weights.astype(h.dtype)
    offset = 0 if bias is None else bias.astype(h.dtype)[:, None]
    guess = jnp.full_like(y, -1) if predictions is None else _valid(predictions, num_classes)
    columns = jax.lax.platform_dependent(
        centers, rows, offset, h, y, guess, cpu=_residuals_blocked, default=_residuals
    )
    sums = _class_sums(columns.T, y, num_classes) + _nan_if_no_class(labels, y, num_classes)
    within = WithinClass(*sums.T)
    if predictions is None:
        return within
    unknown = _nan_if_no_class(predictions, guess, num_classes)
    return within._replace(nearest_is_prediction=within.nearest_is_prediction + unknown)


def feature_rows(features: Real[Data, "N ..."]) -> Float[jax.Array, "N d"]:
    """Features as a matrix (N, d), in float32 at least."""
    h = checks.real("features", features, "N", "d", "...")
    return h.reshape(h.shape[0], -1)


def _valid(labels: jax.Array, num_classes: int) -> jax.Array:
    """Labels with everything outside 0..K-1 sent to K, a bin that is dropped."""
    # No integer of few bits holds K, and the largest of 32 bits without a sign would read as -1.
    most = min(jnp.iinfo(labels.dtype).max, checks.LARGEST)
    y = jnp.minimum(labels, most).astype(int)
    return jnp.where((y >= 0) & (y < num_classes), y, num_classes)


def _nan_if_no_class(labels: jax.Array, y: jax.Array, num_classes: int) -> jax.Array:
    """NaN where one of the labels, made y by `_valid`, is neither a class nor -1; else 0.

    Outside of a trace such labels are refused; a compiled function cannot.
    """
    signed = jnp.issubdtype(labels.dtype, jnp.signedinteger)
    padded = (labels == -1) if signed else jnp.zeros(labels.shape, bool)
    return jnp.where(((y == num_classes) & ~padded).any(), jnp.nan, 0)


def _class_sums(values: jax.Array, y: jax.Array, num_classes: int) -> jax.Array:
    """Sums over the rows of each class (K, m); rows of class K are dropped, whatever they hold."""
    return jax.lax.platform_dependent(
        values,
        y,
        cpu=partial(_sums_scattered, num_classes=num_classes),
        default=partial(_sums_one_hot, num_classes=num_classes),
    )


def _sums_one_hot(values: jax.Array, y: jax.Array, num_classes: int) -> jax.Array:
    members = (jnp.arange(num_classes)[:, None] == y[None, :]).astype(values.dtype)
    values = jnp.where((y < num_classes)[:, None], values, 0)  # 0 times NaN is NaN
    return matmul(members, values)


def _sums_scattered(values: jax.Array, y: jax.Array, num_classes: int) -> jax.Array:
    """Scatter-add reads the values once: on a CPU two to seven times faster than a product.

    Several partial sums per class keep the rounding error of a long float32 sum small.
    """
    rows = values.shape[0]
    parts = int(np.clip(rows // (8 * num_classes), 1, 16))
    part = jnp.arange(rows) * parts // rows
    sums = jax.ops.segment_sum(values, part * (num_classes + 1) + y, parts * (num_classes + 1))
    return jnp.sum(sums.reshape(parts, num_classes + 1, -1), axis=0)[:num_classes]


def _residuals(
    centers: Centers,
    rows: jax.Array | None,
    offset: jax.Array,
    h: jax.Array,
    y: jax.Array,
    guess: jax.Array,
) -> jax.Array:
    """The columns of WithinClass for every sample (7, N).

    Samples run along the last axis and sums are products with a vector: both let a CPU vectorise
    what it would otherwise do entry by entry.
    """
    num_classes, rank = centers.coordinates.shape
    basis = centers.basis.T
    directions = basis if rows is None else jnp.concatenate([basis, rows])
    projected = matmul(directions, h.T)
    coordinates, unit = centers.coordinates / centers.unit, centers.unit
    z = (projected[:rank] - matmul(basis, centers.global_mean)[:, None]) / unit
    own = jnp.minimum(y, num_classes - 1)
    distance = matmul(((h - centers.mean[own]) / unit) ** 2, jnp.ones(h.shape[1], h.dtype))
    whitened = matmul(centers.inverse, (z - coordinates[own].T) ** 2)
    # |h - mu_c|^2 up to a term common to all classes: the means differ only inside the basis.
    half_square = 0.5 * jnp.sum(coordinates**2, axis=1)
    score = matmul(coordinates, z) - half_square[:, None]
    nearest = score == jnp.max(score, axis=0, keepdims=True)
    classes = jnp.arange(num_classes)[:, None]
    if rows is None:
        predicted = guess[None] == classes
    else:
        logits = projected[rank:] + offset
        predicted = logits == jnp.max(logits, axis=0, keepdims=True)
    hits = [_agreement(nearest, chosen, h.dtype) for chosen in (y[None] == classes, predicted)]
    # What is not a number is nearest to nothing, which is not a miss.
    hits = [jnp.where(jnp.isfinite(distance), hit, jnp.nan) for hit in hits]
    ones = jnp.ones_like(distance)
    return jnp.stack([ones, distance, distance**2, whitened, whitened**2, *hits])


def _agreement(one: jax.Array, other: jax.Array, dtype: DTypeLike | None) -> jax.Array:
    """Probability that two choices are the same class, each made at random among its ties."""
    counts = jnp.sum(one, axis=0) * jnp.sum(other, axis=0)
    return (jnp.sum(one & other, axis=0) / jnp.maximum(counts, 1)).astype(dtype)


def _residuals_blocked(
    centers: Centers,
    rows: jax.Array | None,
    offset: jax.Array,
    h: jax.Array,
    y: jax.Array,
    guess: jax.Array,
) -> jax.Array:
    """The same block by block, so that what lies between stays in a CPU's cache."""
    count, dim = h.shape
    block = min(ROWS, max(NUMBERS // dim, 32), count)

    def step(i: jax.Array, out: jax.Array) -> jax.Array:
        start = jnp.minimum(i * block, count - block)
        part = [jax.lax.dynamic_slice_in_dim(a, start, block) for a in (h, y, guess)]
        new = _residuals(centers, rows, offset, *part)
        return jax.lax.dynamic_update_slice_in_dim(out, new, start, axis=1)

    return jax.lax.fori_loop(0, -(-count // block), step, jnp.zeros((7, count), h.dtype))


def check_center(center: str) -> None:
    """Refuses an unknown convention of the global mean."""
    checks.choice("center", center, CENTERS)


def check_tolerance(rtol: float | None) -> None:
    """Refuses a tolerance of singular values that is no number below 1."""
    if rtol is not None:
        checks.within("rtol", rtol, lambda r: (r >= 0) & (r < 1), "in [0, 1)")
        if not isinstance(rtol, float | int):
            raise TypeError(f"rtol is of type {type(rtol).__name__}; it must be a Python number")


def check_readout(
    num_classes: int,
    dim: int,
    rows: int,
    weights: Data | None,
    bias: Data | None,
    predictions: Data | None,
) -> None:
    """Refuses a classifier or predictions that do not fit the features."""
    if predictions is not None:
        if weights is not None:
            raise ValueError("give weights or predictions, not both: NC4 has one network")
        checks.labels("predictions", predictions, rows, num_classes, padding=True)
    if weights is not None:
        shape = checks.finite("weights", checks.real("weights", weights)).shape
        if shape != (num_classes, dim):
            hint = "; transpose it" if shape == (dim, num_classes) else ""
            raise ValueError(
                f"weights has shape {shape}; it must be (num_classes, d) = ({num_classes}, {dim}){hint}"
            )
    if bias is not None:
        shape = checks.finite("bias", checks.real("bias", bias)).shape
        if weights is None or shape != (num_classes,):
            raise ValueError(f"bias must be ({num_classes},) and come with weights")


def _check_kind(kind: type, **values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, kind):
            raise TypeError(f"{name} is of type {type(value).__name__}; it must be {kind.__name__}")


def check_counts(count: Any) -> None:
    """Refuses classes without samples, by name, where the counts can be looked at."""
    values = concrete(count)
    if values is not None and not values.all():
        missing = np.flatnonzero(values == 0).tolist()
        raise ValueError(
            f"no samples of classes {missing[:10]}{' ...' if len(missing) > 10 else ''} "
            f"({len(missing)} of {len(values)}): use more data, or join batches with merge_means"
        )
