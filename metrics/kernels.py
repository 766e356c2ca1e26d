"""Kernels along training: alignment, CKA, distance and velocity, laziness, power in a spectrum.

    alignment <K, L> / (|K| |L|),    distance 1 - alignment,    CKA HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))
    HSIC(K, L) = [tr KL + 1'K1 1'L1 / ((N-1)(N-2)) - 2 1'KL1 / (N-2)] / (N (N-3)),    diagonals set to zero

One file: all are quotients of inner products of kernels, with one way to centre, pair and check them.

Source: Cristianini et al. 2001; Song et al. 2012, equation 5; Nguyen, Raghu & Kornblith 2021; Fort et al. 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from metrics import checks
from metrics.estimate import Estimate, concrete, norm, power_of_two
from metrics.geometry import matmul
from ntk import show
from ntk.types import Data, Float, PyTree, Real


@show.readable
class Movement(NamedTuple):
    """How far parameters are from where they started."""

    distance: jax.Array  # |theta - theta_0|
    relative: jax.Array  # |theta - theta_0| / |theta_0|
    per_leaf: Any  # relative movement of every leaf, a pytree like params


@show.readable
class Spectrum(NamedTuple):
    """Eigenvalues of a kernel, and how the target's power is spread over its eigenvectors."""

    eigenvalues: Float[jax.Array, "N"]  # of K / N, descending
    power: Float[jax.Array, "N"]  # share of |y|^2 along each eigenvector
    cumulative_power: Float[jax.Array, "N"]  # C(rho): share explained by the top rho modes


def center(kernel: Real[Data, "N N"]) -> Float[jax.Array, "N N"]:
    """Kernel of features whose mean over the N examples is zero: H K H, H = I - 11^T/N."""
    kernel = _square("kernel", kernel)
    # One after the other: the sum of the three means would bring the size of the entries back, and its rounding.
    kernel = kernel - jnp.mean(kernel, axis=0, keepdims=True)
    return kernel - jnp.mean(kernel, axis=1, keepdims=True)


def alignment(
    one: Real[Data, "*shape"], other: Real[Data, "*shape"], *, centered: bool = False
) -> Float[jax.Array, ""]:
    """Kernel alignment <K, L> / (|K| |L|), 1 for proportional kernels.

    With the initial network's kernel it says how lazy training was; centred it is linear CKA, biased
    upwards when examples are few (see `cka`).

    Args:
        one: (N, N) kernel, or any shape when not centred.
        other: the same shape.
        centered: centre both first.

    Returns:
        Alignment, in [0, 1] for positive semi-definite kernels.

    Raises:
        TypeError: kernels are no numbers.
        ValueError: shapes differ, or centred kernels are not square matrices.

    Source: Cristianini et al. 2001; centred: Cortes, Mohri & Rostamizadeh 2012.
    """
    one, other = checks.real("one", one), checks.real("other", other)
    if one.shape != other.shape:
        raise ValueError(f"kernels have shapes {one.shape} and {other.shape}; they must be equal")
    if checks.boolean("centered", centered):
        one, other = center(one), center(other)
    one, other = one / power_of_two(one), other / power_of_two(other)
    return jnp.sum(one * other) / (norm(one) * norm(other))


def target_alignment(
    kernel: Real[Data, "N N"], targets: Real[Data, "N *K"], *, centered: bool = True
) -> Float[jax.Array, ""]:
    """Alignment of a kernel with the targets' own, <K, Y Y^T> / (|K| |Y Y^T|).

    Args:
        kernel: (N, N).
        targets: (N,) or (N, K).
        centered: centre kernel and targets.

    Returns:
        Alignment.

    Raises:
        ValueError: kernel is not square, or targets have another number of rows.
    """
    kernel = _square("kernel", kernel)
    y = _columns(kernel, targets)
    kernel, y = kernel / power_of_two(kernel), y / power_of_two(y)
    if checks.boolean("centered", centered):
        kernel, y = center(kernel), y - jnp.mean(y, axis=0, keepdims=True)
    inner = jnp.sum(y * matmul(kernel, y))
    return inner / (jnp.linalg.norm(kernel) * jnp.linalg.norm(matmul(y.T, y)))


def distance(
    one: Real[Data, "*shape"], other: Real[Data, "*shape"], *, centered: bool = False
) -> Float[jax.Array, ""]:
    """Kernel distance 1 - alignment: 0 when the kernel only grew (Fort et al. 2020)."""
    return 1 - alignment(one, other, centered=centered)


def velocity(
    before: Real[Data, "*shape"],
    after: Real[Data, "*shape"],
    elapsed: ArrayLike,
    *,
    centered: bool = False,
) -> jax.Array:
    """Kernel velocity: distance moved per unit of elapsed time (steps, or steps times learning rate), positive."""
    elapsed = checks.positive("elapsed", elapsed)
    return distance(before, after, centered=centered) / elapsed


def relative_change(
    kernel: Real[Data, "*shape"], initial: Real[Data, "*shape"]
) -> Float[jax.Array, ""]:
    """|K - K_0|_F / |K_0|_F: growth counts too, unlike `distance`.

    Args:
        kernel: any shape.
        initial: the same shape.

    Returns:
        The ratio; inf or NaN where the initial kernel is zero.

    Raises:
        TypeError: kernels are no numbers.
        ValueError: shapes differ.
    """
    kernel, initial = checks.real("kernel", kernel), checks.real("initial", initial)
    checks.same_shape(kernel=kernel, initial=initial)
    return norm(kernel - initial) / norm(initial)


def weight_movement(params: PyTree, initial: PyTree) -> Movement:
    """Distance of parameters from initialisation, in all and per leaf.

    Args:
        params: pytree of arrays.
        initial: the same structure.

    Returns:
        Movement; a leaf that started at zero and moved has relative movement inf, 0 if it did not.

    Raises:
        TypeError: a leaf is no array of numbers.
        ValueError: structures or shapes differ, or there are no parameters.
    """
    params, initial = _params("params", params), _params("initial", initial)
    checks.same_trees(params=params, initial=initial)

    def relative(size: jax.Array, start: jax.Array) -> jax.Array:
        return jnp.where(size == 0, 0, size / start)

    moved = jax.tree.map(lambda new, old: norm(new - old), params, initial)
    start = jax.tree.map(norm, initial)
    total = norm(jnp.stack(jax.tree.leaves(moved)))
    before = norm(jnp.stack(jax.tree.leaves(start)))
    return Movement(total, relative(total, before), jax.tree.map(relative, moved, start))


def _params(name: str, tree: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: checks.real(
            f"{name}/{jax.tree_util.keystr(path, simple=True, separator='/')}", leaf
        ),
        tree,
    )


def representation_alignment(
    features: Real[Data, "N ..."], initial: Real[Data, "N ..."], *, centered: bool = False
) -> Float[jax.Array, ""]:
    """<HH^T, H_0 H_0^T> / (|HH^T| |H_0 H_0^T|) of the same examples' features; 1 for a lazy network.

    Costs O(N d min(N, d)): the smaller of Gram and covariance matrices is formed.

    Args:
        features: (N, ...), flattened.
        initial: (N, ...), of the network at initialisation (or of another network).
        centered: subtract the mean over examples; then this is linear CKA (biased).

    Returns:
        Alignment in [0, 1].

    Raises:
        ValueError: numbers of examples differ.
    """
    x, y = _features(features, initial)
    x, y = x / power_of_two(x), y / power_of_two(y)
    if checks.boolean("centered", centered):
        x, y = (a - jnp.mean(a, axis=0, keepdims=True) for a in (x, y))
    if x.shape[0] < max(x.shape[1], y.shape[1]):
        return alignment(matmul(x, x.T), matmul(y, y.T))
    norms = jnp.linalg.norm(matmul(x.T, x)) * jnp.linalg.norm(matmul(y.T, y))
    return jnp.sum(matmul(x.T, y) ** 2) / norms


def cka(features: Real[Data, "N ..."], other: Real[Data, "N ..."]) -> Estimate:
    """Linear CKA of two sets of features, debiased, with its standard error. See `cka_kernels`."""
    # HSIC_1 does not depend on the means of the features, and their products would cancel against them.
    x, y = (a - jnp.mean(a, axis=0, keepdims=True) for a in _features(features, other))
    x, y = x / power_of_two(x), y / power_of_two(y)
    return cka_kernels(matmul(x, x.T), matmul(y, y.T))


def cka_kernels(one: Real[Data, "N N"], other: Real[Data, "N N"]) -> Estimate:
    """Debiased CKA: HSIC_1(K, L) / sqrt(HSIC_1(K, K) HSIC_1(L, L)), HSIC_1 without bias.

    The biased ratio tends to 1 for unrelated features once d is of the order of N; this one to 0, and it
    can be slightly negative. The error is the exact jackknife over examples (O(N^2), no refits): it
    holds for examples drawn independently, and is NaN with the value where HSIC_1(K, K) <= 0.

    Args:
        one: (N, N) kernel, N >= 5.
        other: (N, N) kernel of the same examples.

    Returns:
        Estimate.

    Raises:
        ValueError: not square, of different shapes, or fewer than 5 examples.

    Source: Song et al. 2012, equation 5 (HSIC_1); Nguyen, Raghu & Kornblith 2021 (CKA with it);
    Efron & Stein 1981 (jackknife).
    """
    one, other = (k / power_of_two(k) for k in _pair(one, other, 5))
    joint, rest = _hsic_jackknife(one, other)
    first, first_rest = _hsic_jackknife(one, one)
    second, second_rest = _hsic_jackknife(other, other)
    value = joint / (jnp.sqrt(first) * jnp.sqrt(second))
    left_out = rest / (jnp.sqrt(first_rest) * jnp.sqrt(second_rest))
    return Estimate(value, _jackknife_error(left_out))


def cka_by_layer(
    one: Mapping[str, Real[Data, "N ..."]], other: Mapping[str, Real[Data, "N ..."]]
) -> Estimate:
    """Debiased linear CKA of every layer of one network with every layer of another.

    Args:
        one: layer name -> (N, ...) features, as a model's features=True returns.
        other: layer name -> (N, ...) of the same examples.

    Returns:
        Estimate of two matrices (len(one), len(other)), layers in the order of the dicts.

    Raises:
        TypeError: one or other is no dict.
        ValueError: as `cka`.
    """
    checks.layers(one=one, other=other)
    cells = [cka(x, y) for x in one.values() for y in other.values()]
    return jax.tree.map(lambda *parts: jnp.stack(parts).reshape(len(one), len(other)), *cells)


def hsic(one: Real[Data, "N N"], other: Real[Data, "N N"]) -> Estimate:
    """Unbiased Hilbert-Schmidt independence criterion HSIC_1, with its jackknife error.

    Args:
        one: (N, N) kernel, N >= 5.
        other: (N, N).

    Returns:
        Estimate.

    Raises:
        ValueError: not square, of different shapes, or fewer than 5 examples.

    Source: Song et al. 2012, equation 5.
    """
    one, other = _pair(one, other, 5)
    units = power_of_two(one)[0, 0], power_of_two(other)[0, 0]
    value, left_out = _hsic_jackknife(one / units[0], other / units[1])
    return jax.tree.map(
        lambda e: e * units[0] * units[1], Estimate(value, _jackknife_error(left_out))
    )


def cka_minibatch(
    joint: Real[Data, "B"], first: Real[Data, "B"], second: Real[Data, "B"]
) -> Estimate:
    """CKA of a whole data set from the HSIC_1 of B minibatches: ratio of their means.

    Args:
        joint: (B,) values of `hsic` (K, L), one per batch, B >= 2.
        first: (B,) of (K, K).
        second: (B,) of (L, L).

    Returns:
        Estimate; the error is the jackknife over batches.

    Raises:
        ValueError: the three differ in shape or hold fewer than two batches.

    Source: Nguyen, Raghu & Kornblith 2021, equation 3.
    """
    names = ("joint", "first", "second")
    joint, first, second = map(checks.real, names, (joint, first, second))
    if not joint.shape == first.shape == second.shape or joint.ndim != 1 or joint.size < 2:
        raise ValueError(
            f"shapes are {joint.shape}, {first.shape}, {second.shape}; they must be one (B,), B >= 2"
        )

    def ratio(reduce: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return reduce(joint) / (jnp.sqrt(reduce(first)) * jnp.sqrt(reduce(second)))

    left_out = ratio(lambda h: (jnp.sum(h) - h) / (h.size - 1))
    return Estimate(ratio(jnp.mean), _jackknife_error(left_out))


def task_model_alignment(
    kernel: Real[Data, "N N"], targets: Real[Data, "N *K"], *, centered: bool = False
) -> Spectrum:
    """Cumulative power of the targets in a kernel's spectrum, C(rho).

    The faster C rises to 1, the fewer examples kernel regression needs. Eigenvectors of the kernel
    on N examples estimate the eigenfunctions: modes beyond about N/10 are not resolved.

    Args:
        kernel: (N, N), symmetric.
        targets: (N,) or (N, K).
        centered: centre kernel and targets first.

    Returns:
        Spectrum.

    Raises:
        ValueError: kernel is not square, or targets have another number of rows.

    Source: Canatar, Bordelon & Pehlevan 2021, equation 8.
    """
    kernel = _square("kernel", kernel)
    y = _columns(kernel, targets)
    y = y / power_of_two(y)
    if checks.boolean("centered", centered):
        kernel, y = center(kernel), y - jnp.mean(y, axis=0, keepdims=True)
    _check_symmetric(kernel)
    unit = power_of_two(kernel)
    values, vectors = jnp.linalg.eigh(kernel / unit)
    values = values * unit[0]
    power = jnp.sum(matmul(vectors.T, y) ** 2, axis=1)[::-1] / jnp.sum(y**2)
    return Spectrum(values[::-1] / kernel.shape[0], power, jnp.cumsum(power))


def _hsic_jackknife(k: jax.Array, l: jax.Array) -> tuple[jax.Array, jax.Array]:
    """HSIC_1, and its N values with one example left out, from sums that are formed once."""
    # c_i + c_j added to the entries off the diagonal changes none of these: without the means nothing cancels.
    k, l = (center(a) * (1 - jnp.eye(a.shape[0], dtype=a.dtype)) for a in (k, l))
    rows_k, rows_l, rows_kl = jnp.sum(k, 1), jnp.sum(l, 1), jnp.sum(k * l, 1)
    sums = (jnp.sum(rows_kl), jnp.sum(rows_k), jnp.sum(rows_l), jnp.vdot(rows_k, rows_l))
    cross = matmul(k, rows_l) + matmul(l, rows_k) - rows_kl
    left = (2 * rows_kl, 2 * rows_k, 2 * rows_l, rows_k * rows_l + cross)
    count = k.shape[0]
    return _hsic_1(count, *sums), _hsic_1(count - 1, *(s - part for s, part in zip(sums, left)))


def _hsic_1(
    n: int, trace: jax.Array, sum_k: jax.Array, sum_l: jax.Array, inner: jax.Array
) -> jax.Array:
    return (trace + sum_k * sum_l / ((n - 1) * (n - 2)) - 2 / (n - 2) * inner) / (n * (n - 3))


def _jackknife_error(left_out: jax.Array) -> jax.Array:
    return jnp.sqrt((left_out.size - 1) * jnp.var(left_out))


def _columns(kernel: Data, targets: Data) -> jax.Array:
    y = checks.real("targets", targets)
    if y.ndim not in (1, 2) or y.shape[0] != kernel.shape[0]:
        raise ValueError(
            f"targets has shape {y.shape}; it must be ({kernel.shape[0]},) or "
            f"({kernel.shape[0]}, K) as the kernel has {kernel.shape[0]} examples"
        )
    return y[:, None] if y.ndim == 1 else y


def _features(one: Data, other: Data) -> tuple[jax.Array, jax.Array]:
    one, other = (
        checks.real(name, x, "N", "d", "...") for name, x in (("features", one), ("other", other))
    )
    if one.shape[0] != other.shape[0]:
        raise ValueError(
            f"features are of {one.shape[0]} and {other.shape[0]} examples; they must be the same ones"
        )
    return one.reshape(one.shape[0], -1), other.reshape(other.shape[0], -1)


def _pair(one: Data, other: Data, least: int) -> tuple[jax.Array, jax.Array]:
    one, other = _square("one", one), _square("other", other)
    if one.shape != other.shape or one.shape[0] < least:
        raise ValueError(
            f"kernels have shapes {one.shape} and {other.shape}; they must be equal, with {least} "
            "examples or more"
        )
    return one, other


def _square(name: str, kernel: Data) -> jax.Array:
    kernel = checks.real(name, kernel)
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or not kernel.size:
        raise ValueError(
            f"{name} has shape {kernel.shape}; it must be (N, N): bring one with outputs, "
            "(N, N, K, K), to (NK, NK) by transpose(0, 2, 1, 3).reshape, or average over outputs"
        )
    return kernel


def _check_symmetric(kernel: jax.Array) -> None:
    """A solver for symmetric matrices reads half of another one, and its answer looks right."""
    values = concrete(kernel)
    if values is not None and np.abs(values - values.T).max() > 1e-3 * np.abs(values).max():
        raise ValueError(
            "kernel is not symmetric; its spectrum needs one of a set of examples with itself: "
            "average it with its transpose if rounding made it so"
        )
