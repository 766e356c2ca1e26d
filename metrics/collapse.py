"""Neural collapse: NC1-NC5, class-distance normalised variance, generalised collapse, per layer.

With K class means mu_k and their mean mu_G, Sigma_W the mean of (h - mu)(h - mu)^T over samples, Sigma_B that of
(mu_k - mu_G)(mu_k - mu_G)^T over classes, and Var_k the mean of |h - mu_k|^2 in class k::

    NC1    tr(Sigma_W Sigma_B^+) / K,    and the quotient tr Sigma_W / tr Sigma_B
    CDNV   mean over i != j of (Var_i + Var_j) / (2 |mu_i - mu_j|^2)
    NC4    share of samples whose nearest class mean is the network's prediction

NC2 and NC3, of the means and the classifier's rows, are in `metrics.geometry`.

One file: all measures are of the same class means, taken once for each layer.

Source: Papyan, Han & Donoho 2020; Galanti, Gyorgy & Hutter 2022 (CDNV).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from metrics import checks
from metrics.estimate import Estimate, concrete, norm, power_of_two
from metrics.geometry import (
    FRAMES,
    Duality,
    Frame,
    frame_geometry,
    matmul,
    one_vs_rest_distance,
    self_duality,
    squared_distances,
)
from metrics.scatter import (
    Centers,
    WithinClass,
    check_center,
    check_counts,
    check_readout,
    check_tolerance,
    class_centers,
    class_means,
    feature_rows,
    within_class,
)
from ntk import show
from ntk.types import Data, Integer, PyTree, Real


@show.readable
class Collapse(NamedTuple):
    """All collapse numbers of one layer. Errors are standard errors over samples (see `neural_collapse`)."""

    nc1: Estimate  # tr(Sigma_W Sigma_B^+) / K
    quotient: Estimate  # tr Sigma_W / tr Sigma_B
    cdnv: Estimate  # mean over pairs of (Var_i + Var_j) / (2 |mu_i - mu_j|^2)
    nc2: Frame  # of the class means
    nc2_weights: Frame | None  # of the classifier rows
    nc3: Duality | None
    offset: jax.Array | None  # spread over k of the logits W mu_G + b of the global mean
    nc4: (
        Estimate | None
    )  # share of samples where the nearest class mean is the network's prediction
    ncc_accuracy: Estimate  # share of samples where the nearest class mean is the label's
    rank: jax.Array  # of the centred means, at most K - 1


def neural_collapse(
    features: Real[Data, "N ..."],
    labels: Integer[Data, "N"],
    num_classes: int,
    *,
    weights: Real[Data, "K d"] | None = None,
    bias: Real[Data, "K"] | None = None,
    predictions: Integer[Data, "N"] | None = None,
    frame: str = "simplex",
    center: str = "classes",
    rtol: float | None = None,
) -> Collapse:
    """NC1-NC4 and class-distance normalised variance of one layer's features.

    Exact for the samples given. The standard errors say how far the same numbers would move on
    another sample of the same size, class means held fixed: valid near collapse (NC1 << 1), where
    the means' own share is smaller by a factor sqrt(NC1); too small far from it. NaN where a class has
    fewer than three samples.

    Pure and compiled once per shape; may be called inside jit, scan and vmap (over seeds). There,
    labels cannot be looked at: a class without samples, or a label that is none, makes the numbers NaN.
    Data that do not fit in memory: `class_means`, `merge_means`, `class_centers`, `within_class`, `collapse_report`.

    Args:
        features: (N, ...), floating point, flattened to (N, d); float32 at least is used inside, at any scale.
            What is not finite is refused, inside jit it makes the numbers NaN.
        labels: (N,) integers 0..K-1; -1 marks a padded row, which is left out. No other is taken for padding.
        num_classes: K.
        weights: (K, d) rows of the classifier (a Flax kernel transposed), for NC2-NC4.
        bias: (K,) of the classifier.
        predictions: (N,) integers, the network's classes, for NC4 of a layer without classifier; NC4 alone is NaN
            where, inside jit, one is no class.
        frame: 'simplex' (means centred, cosines -1/(K-1): cross-entropy, or MSE with bias) or
            'orthogonal' (means as they are, cosines 0: MSE without bias).
        center: global mean as the mean of class means ('classes') or of all samples ('samples');
            the same when classes are balanced.
        rtol: singular values of the centred means below rtol times the largest count as zero
            (default 1e-5 in float32, 1e-12 in float64).

    Returns:
        Collapse.

    Raises:
        TypeError: features are no numbers, num_classes no integer.
        ValueError: wrong shapes or dtypes, labels outside -1..K-1, a class without samples, features that are
            not finite.

    Source: Papyan, Han & Donoho 2020 (NC1-NC4); Galanti, Gyorgy & Hutter 2022 (CDNV).
    """
    _check(features, labels, num_classes, weights, bias, predictions, frame, center)
    check_tolerance(rtol)
    report = _neural_collapse(
        features, labels, num_classes, weights, bias, predictions, frame, center, rtol
    )
    _check_finite(report.ncc_accuracy.value, features, labels)
    return report


@partial(jax.jit, static_argnames=("num_classes", "frame", "center", "rtol"))
def _neural_collapse(
    h: jax.Array,
    y: jax.Array,
    num_classes: int,
    weights: jax.Array | None,
    bias: jax.Array | None,
    predictions: jax.Array | None,
    frame: str,
    center: str,
    rtol: float | None,
) -> Collapse:
    means = class_means(h, y, num_classes)
    centers = class_centers(means, center=center, rtol=rtol)
    within = within_class(centers, h, y, weights=weights, bias=bias, predictions=predictions)
    has_predictions = weights is not None or predictions is not None
    report = collapse_report(centers, within, weights=weights, bias=bias, frame=frame)
    return report if has_predictions else report._replace(nc4=None)


def collapse_by_layer(
    features: Mapping[str, Real[Data, "N ..."]],
    labels: Integer[Data, "N"],
    num_classes: int,
    **options: Any,
) -> dict[str, Collapse]:
    """`neural_collapse` of every entry of a dict of features, as a model's features=True returns.

    Args:
        features: layer name -> (N, ...).
        labels: (N,) integers.
        num_classes: K.
        **options: of `neural_collapse`; weights and bias belong to one layer, so give predictions.

    Returns:
        layer name -> Collapse.

    Raises:
        TypeError: features is no dict.
        ValueError: as `neural_collapse`, naming the layer; weights or bias were given.
    """
    checks.layers(features=features)
    for name in ("weights", "bias"):
        if name in options:
            raise ValueError(
                f"{name} belong to one layer: give predictions here, and call neural_collapse on "
                "that layer with its weights"
            )
    collapse = {}
    for name, h in features.items():
        try:
            collapse[name] = neural_collapse(h, labels, num_classes, **options)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error
    return collapse


def collapse_report(
    centers: Centers,
    within: WithinClass,
    *,
    weights: Real[Data, "K d"] | None = None,
    bias: Real[Data, "K"] | None = None,
    frame: str = "simplex",
) -> Collapse:
    """The numbers, from the two passes.

    Args:
        centers: of the whole data set.
        within: summed over the same data.
        weights: (K, d), or None.
        bias: (K,), or None.
        frame: 'simplex' or 'orthogonal', see `neural_collapse`.

    Returns:
        Collapse; nc4 is meaningful where `within_class` was given weights or predictions.

    Raises:
        TypeError: centers is no Centers, within no WithinClass.
        ValueError: frame is unknown, or weights and bias do not fit.
    """
    for name, value, kind in (("centers", centers, Centers), ("within", within, WithinClass)):
        if not isinstance(value, kind):
            raise TypeError(f"{name} is of type {type(value).__name__}; it must be {kind.__name__}")
    checks.choice("frame", frame, FRAMES)
    classes, dim = centers.mean.shape
    check_readout(classes, dim, 0, weights, bias, None)
    return _report(centers, within, weights, bias, frame)


@partial(jax.jit, static_argnames=("frame",))
def _report(
    centers: Centers,
    within: WithinClass,
    weights: jax.Array | None,
    bias: jax.Array | None,
    frame: str,
) -> Collapse:
    means = centers.mean
    centered = means - centers.global_mean[None]
    vectors = centered if frame == "simplex" else means
    centered = centered / centers.unit
    num_classes = means.shape[0]
    total = jnp.sum(within.count)
    between = jnp.sum(centered**2) / num_classes
    distances = squared_distances(centered)
    inverse = jnp.where(jnp.eye(num_classes, dtype=bool), 0, 1 / distances)
    per_class = jnp.sum(inverse, axis=1) / (num_classes * (num_classes - 1))
    spread = (within.distance, within.distance_squared)
    rows = None if weights is None else jnp.asarray(weights, means.dtype)
    nc1 = _weighted(within.count, within.whitened, within.whitened_squared, 1 / total)
    quotient = _weighted(within.count, *spread, 1 / (total * between))
    # Means that coincide leave no direction to measure in: 0/0 without spread, else infinite.
    alone = centers.rank == 0
    return Collapse(
        nc1=jax.tree.map(lambda a, b: jnp.where(alone, b, a), nc1, quotient),
        quotient=quotient,
        cdnv=_weighted(within.count, *spread, per_class / within.count),
        nc2=frame_geometry(vectors, frame=frame),
        nc2_weights=None if rows is None else frame_geometry(rows, frame=frame),
        nc3=None if rows is None else self_duality(rows, vectors, frame=frame),
        offset=None if rows is None else _offset(rows, bias, centers.global_mean),
        nc4=_share(within.nearest_is_prediction, within.count),
        ncc_accuracy=_share(within.nearest_is_label, within.count),
        rank=centers.rank,
    )


def _weighted(count: jax.Array, total: jax.Array, squares: jax.Array, scale: ArrayLike) -> Estimate:
    """scale * total summed over classes, with the standard error of independent samples in each.

    total sums a quadratic form q_i of h_i - mu over n samples, mu their own mean. For Gaussian h its variance is
    (n - 1) v and E sum_i (q_i - mean q)^2 = (n - 2) (n - 1) v / n, v the variance of q around the true mean: the
    class mean and the mean of q take a degree of freedom each. Two samples lie at one distance and tell nothing.
    """
    mean = total / count
    deviations = jnp.maximum(squares - count * mean**2, 0)
    variance = jnp.where(count > 2, deviations * count / jnp.maximum(count - 2, 1), jnp.nan)
    return Estimate(jnp.sum(total * scale), norm(jnp.asarray(scale) * jnp.sqrt(variance)))


def _share(hits: jax.Array, count: jax.Array) -> Estimate:
    """Of all samples; nan where a class has none, whose mean is nobody's nearest."""
    total = jnp.where((count > 0).all(), jnp.sum(count), jnp.nan)
    share = jnp.sum(hits) / total
    return Estimate(share, jnp.sqrt(share * (1 - share) / (total - 1)))


@show.readable
class Generalized(NamedTuple):
    """Generalised collapse for many classes (K > d + 1 allowed), on features of unit norm."""

    gnc1: Estimate  # NC1 of the normalised features
    gnc2: Estimate  # smallest one-vs-rest distance of the normalised rows, and how much lower it may be
    gnc3: jax.Array  # mean over k of 1 - cos(w_k, mean of class k)
    ncc_accuracy: Estimate


@partial(jax.jit, static_argnames=("num_classes", "num_steps"))
def _generalized(
    features: jax.Array, labels: jax.Array, num_classes: int, weights: jax.Array, num_steps: int
) -> Generalized:
    h = feature_rows(features)
    h = h / norm(h, 1)[:, None]
    centers = class_centers(class_means(h, labels, num_classes))
    report = collapse_report(centers, within_class(centers, h, labels))
    rows = jnp.asarray(weights, h.dtype)
    rows = rows / norm(rows, 1)[:, None]
    distance = one_vs_rest_distance(rows, num_steps=num_steps)
    nearest = jnp.argmin(distance.value)
    gnc2 = Estimate(
        distance.value[nearest], distance.value[nearest] - jnp.min(distance.value - distance.error)
    )
    angle = self_duality(rows, centers.mean, frame="orthogonal").angle
    return Generalized(report.nc1, gnc2, angle, report.ncc_accuracy)


def generalized_collapse(
    features: Real[Data, "N ..."],
    labels: Integer[Data, "N"],
    num_classes: int,
    *,
    weights: Real[Data, "K d"],
    num_steps: int = 300,
) -> Generalized:
    """Generalised neural collapse (GNC1-GNC3 and nearest-centre accuracy) for many classes.

    Args:
        features: (N, ...), normalised inside.
        labels: (N,) integers 0..K-1, -1 for padding.
        num_classes: K.
        weights: (K, d) classifier rows, normalised inside.
        num_steps: of `one_vs_rest_distance`.

    Returns:
        Generalized.

    Raises:
        ValueError: as `neural_collapse`.

    Source: Jiang, Zhou, Wang et al. 2023, generalized neural collapse for a large number of classes.
    """
    _check(features, labels, num_classes, weights, None, None, "simplex", "classes")
    checks.integer("num_steps", num_steps, 1)
    report = _generalized(features, labels, num_classes, weights, num_steps)
    _check_finite(report.ncc_accuracy.value, features, labels)
    return report


def ood_orthogonality(means: Real[Data, "K d"], outside: Real[Data, "N ..."]) -> Estimate:
    """NC5: mean over classes of |cos(mu_c, mu_out)|, 0 where other data are orthogonal to every class.

    Args:
        means: (K, d) class means, not centred: ``class_means(...).mean``.
        outside: (N, ...) features of data of none of the classes, flattened to (N, d).

    Returns:
        Estimate; the standard error is over outside, to first order, class means held fixed. Of order
        1/sqrt(d) for a random direction: compare with that, not with 0.

    Raises:
        TypeError: means or outside are no numbers.
        ValueError: means is not (K, d), outside holds fewer than 2 samples or has another dimension.

    Source: Ben Ammar et al. 2024 (arXiv 2310.06823), NC5.
    """
    means = checks.real("means", means, "K", "d")
    h = checks.real("outside", outside, "N", "d", "...")
    h = h.reshape(h.shape[0], -1)
    checks.check_shape("outside", h.shape, ("N", means.shape[1]))
    if h.shape[0] < 2:
        raise ValueError("outside holds 1 sample; a standard error over samples needs at least 2")
    return _ood_orthogonality(means, h)


@jax.jit
def _ood_orthogonality(means: jax.Array, h: jax.Array) -> Estimate:
    h = h / power_of_two(h)
    unit = means / norm(means, 1)[:, None]
    mean = jnp.mean(h, axis=0)
    length = jnp.linalg.norm(mean)
    cosine = matmul(unit, mean / length)
    value = jnp.mean(jnp.abs(cosine))
    slope = (matmul(jnp.sign(cosine), unit) / cosine.size - value * mean / length) / length
    spread = jnp.std(matmul(h, slope), ddof=1)
    return Estimate(value, spread / jnp.sqrt(h.shape[0]))


def _offset(rows: jax.Array, bias: jax.Array | None, global_mean: jax.Array) -> jax.Array:
    return jnp.std(matmul(rows, global_mean) + (0 if bias is None else bias.astype(rows.dtype)))


def _check(
    features: Data,
    labels: Data,
    num_classes: int,
    weights: Data | None,
    bias: Data | None,
    predictions: Data | None,
    frame: str,
    center: str,
) -> None:
    checks.choice("frame", frame, FRAMES)
    check_center(center)
    if checks.integer("num_classes", num_classes) < 2:
        raise ValueError(f"num_classes is {num_classes}; collapse needs at least 2")
    h = checks.real("features", features)
    kind = checks.dtype_of("features", features)
    if h.ndim < 2 or not h.size or not jnp.issubdtype(kind, jnp.floating):
        raise ValueError(f"features are {kind}{list(h.shape)}; they must be floating (N, ...)")
    if num_classes > h.shape[0]:
        raise ValueError(
            f"num_classes is {num_classes}, more than the {h.shape[0]} examples: some class has no samples; "
            "use more data, or join batches with merge_means"
        )
    checks.labels("labels", labels, h.shape[0], num_classes, padding=True)
    check_readout(num_classes, int(np.prod(h.shape[1:])), h.shape[0], weights, bias, predictions)
    y = concrete(labels)
    if y is not None:
        check_counts(np.bincount(y[y >= 0], minlength=num_classes))


def _check_finite(result: PyTree, features: Data, labels: Data) -> None:
    """Refuses features that are not finite, seen by what came out, and says of which example."""
    if checks.is_finite(result) is not False:
        return
    rows = np.asarray(features, np.float64).reshape(len(labels), -1)
    bad = np.flatnonzero(~np.isfinite(rows).all(1) & (np.asarray(labels) >= 0))
    if bad.size:
        raise ValueError(
            f"the features of examples {bad[:10].tolist()} are not finite: the network has diverged, or its "
            "input is not finite there"
        )
