"""What the sampling of examples does: gradient noise scale, and the sharpness of mini-batches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from metrics import checks, curvature, operators
from metrics.estimate import Estimate


class NoiseScale(NamedTuple):
    """Gradient noise scale, in examples, with its jackknife standard error."""

    value: jax.Array  # tr(Sigma) / |G|^2; infinite where |G|^2 is not seen above the noise
    error: jax.Array
    noise: jax.Array  # tr(Sigma), the trace of the per-example gradient covariance
    signal: jax.Array  # |G|^2, unbiased


@functools.partial(jax.jit, static_argnames=("losses", "chunk"))
def gradient_noise_scale(
    losses: Callable, params: Any, batch: Any, *, chunk: int = 64
) -> NoiseScale:
    """The batch size below which gradient noise dominates: tr(Sigma) / |G|^2, both unbiased.

    Args:
        losses: ``losses(params, batch)`` of shape (N,), see `operators.per_example`.
        params: pytree of float arrays.
        batch: pytree, every leaf with leading axis N.
        chunk: examples whose gradients are in memory at once.

    Returns:
        NoiseScale(value, error, noise, signal).

    Raises:
        ValueError: fewer than 3 examples.

    Source: McCandlish et al. (2018), arXiv:1812.06162, equation 2.9 and appendix A.
    """
    count = jax.eval_shape(losses, params, batch).size
    if count < 3:
        raise ValueError(
            f"the batch has {count} examples; a noise scale with an error needs at least 3"
        )
    gradient = jax.grad(lambda p: losses(p, batch).mean())(params)

    def one(example):
        lone = jax.tree.map(lambda x: jnp.expand_dims(x, 0), example)
        g = jax.grad(lambda p: losses(p, lone)[0])(params)
        return _dot(g, g), _dot(g, gradient)

    squares, along = jax.lax.map(one, batch, batch_size=min(chunk, count))
    total, mean = squares.sum(), _dot(gradient, gradient)

    def scale(total, mean, n):
        noise = (total - n * mean) / (n - 1)
        signal = mean - noise / n
        return (
            noise,
            signal,
            jnp.where(signal > 0, noise / jnp.where(signal > 0, signal, 1), jnp.inf),
        )

    # Leave one out: everything follows from |g_i|^2 and g_i . g.
    n = count
    without = (n**2 * mean - 2 * n * along + squares) / (n - 1) ** 2
    left = scale(total - squares, without, n - 1)[2]
    error = jnp.sqrt((n - 1) * jnp.mean(jnp.nan_to_num(left - left.mean(), nan=jnp.inf) ** 2))
    error = jnp.where(jnp.isfinite(error), error, jnp.inf)
    noise, signal, value = scale(total, mean, n)
    return NoiseScale(value, error, noise, signal)


class BatchSharpness(NamedTuple):
    """Predicted mean sharpness of mini-batches: top + excess / b."""

    top: jax.Array  # lambda_1 of the full batch
    excess: Estimate  # S2, over probes
    value: jax.Array  # (len(batch_sizes),)
    error: jax.Array  # (len(batch_sizes),)


def batch_sharpness_prediction(
    losses: Callable,
    params: Any,
    batch: Any,
    key: jax.Array,
    batch_sizes: Sequence[int],
    *,
    num_probes: int = 8,
    num_steps: int = 30,
    unroll: bool | None = None,
) -> BatchSharpness:
    """Mean largest Hessian eigenvalue of random batches, without computing any batch's.

    Second-order perturbation theory with the measured noise: E lambda(B) = lambda_1 + S2 / b, where
    S2 = mean_i sum_{j>1} (u_j^T H_i u_1)^2 / (lambda_1 - lambda_j) over examples i, and 1/b =
    (N - B) / (B (N - 1)), batches being drawn without replacement. S2 is estimated with random
    signs x_i: w = sum_i x_i H_i u_1 / sqrt(N) is one product, and w^T (lambda_1 - H)^-1 w on the
    complement of u_1 one Lanczos quadrature.
    Valid while excess / b is small against lambda_1 and its gap; batches below about 16 exceed it.

    Args:
        losses: ``losses(params, batch)`` of shape (N,), see `operators.per_example`.
        params: pytree of float arrays.
        batch: all N examples.
        key: PRNG key of the probes.
        batch_sizes: sizes B, 1 <= B <= N.
        num_probes: sign vectors; each costs 1 + num_steps products.
        num_steps: Lanczos steps, for the top eigenpair and for each quadrature.
        unroll: as in `metrics.curvature.sharpness`.

    Returns:
        BatchSharpness(top, excess, value, error).

    Raises:
        ValueError: a batch size is not between 1 and N, or there are fewer than 2 probes.

    Source: derived here. Granziol, Zohren & Roberts (2022), arXiv:2006.09092, for independent noise
    (`iid_batch_sharpness`), which trained networks are far from.
    """
    count = _example_count(losses, params, batch, batch_sizes)
    if num_probes < 2:
        raise ValueError(f"num_probes is {num_probes}; it must be at least 2, for a standard error")
    mean_loss, weighted_loss = _mean_of(losses), _weighted(losses)
    keys = jax.random.split(key, num_probes + 1)
    pairs = curvature.sharpness(
        mean_loss, params, batch, num_steps=num_steps, start=keys[0], unroll=unroll
    )
    top, u = pairs.value[0], jax.tree.map(lambda x: x[0], pairs.vector)
    deflated = _deflated(operators.hessian(mean_loss))
    rows = []
    for probe in keys[1:]:
        signs = jax.random.rademacher(probe, (count,), top.dtype) / jnp.sqrt(count)
        w, square = _pushed(weighted_loss, params, batch, signs, u)
        space = curvature.krylov(
            deflated, params, (batch, u), probe, w, num_steps=num_steps, unroll=unroll
        )
        rows.append(square * _resolvent(space, top))
    rows = jnp.stack(rows)
    excess = Estimate(rows.mean(), jnp.std(rows, ddof=1) / jnp.sqrt(num_probes))
    inverse = inverse_batch(batch_sizes, count)
    return BatchSharpness(top, excess, top + excess.value * inverse, excess.error * inverse)


def inverse_batch(batch_sizes: Sequence[int], count: int) -> jax.Array:
    """1/b = (N - B) / (B (N - 1)): variance of a mean of B out of N without replacement."""
    sizes = jnp.asarray(batch_sizes, float)
    return (count - sizes) / (sizes * (count - 1))


def batch_sharpness(
    losses: Callable,
    params: Any,
    batch: Any,
    key: jax.Array,
    batch_size: int,
    *,
    num_batches: int = 30,
    num_steps: int = 20,
    which: Literal["largest", "smallest"] = "largest",
    unroll: bool | None = None,
) -> Estimate:
    """Mean extremal Hessian eigenvalue over random batches, measured.

    Args:
        losses: as in `batch_sharpness_prediction`.
        params: pytree of float arrays.
        batch: all N examples.
        key: PRNG key of the batches, drawn without replacement.
        batch_size: B.
        num_batches: batches drawn.
        num_steps: Lanczos steps per batch.
        which: "largest" or "smallest".
        unroll: as in `metrics.curvature.sharpness`.

    Returns:
        Estimate(mean, standard error of the mean over batches).

    Raises:
        ValueError: batch_size is not between 1 and N, or there are fewer than 2 batches.
    """
    count = _example_count(losses, params, batch, [batch_size])
    if num_batches < 2:
        raise ValueError(
            f"num_batches is {num_batches}; it must be at least 2, for a standard error"
        )
    mean_loss, values = _mean_of(losses), []
    for draw in jax.random.split(key, num_batches):
        chosen = jax.random.permutation(draw, count)[:batch_size]
        part = jax.tree.map(lambda x, chosen=chosen: x[chosen], batch)
        top = curvature.sharpness(
            mean_loss, params, part, num_steps=num_steps, start=draw, which=which, unroll=unroll
        )
        values.append(top.value[0])
    values = jnp.stack(values)
    return Estimate(values.mean(), jnp.std(values, ddof=1) / jnp.sqrt(num_batches))


def iid_batch_sharpness(top, noise, inverse):
    """The published law for independent Gaussian Hessian noise of variance s^2 per entry and example.

    lambda + (P s^2 / b) / lambda above the transition lambda = sqrt(P s^2 / b), else twice that root.

    Args:
        top: lambda_1 of the full batch.
        noise: P s^2, from `hessian_noise`.
        inverse: 1/b, from `inverse_batch`.

    Source: Granziol, Zohren & Roberts (2022), arXiv:2006.09092, theorem 1.
    """
    edge = jnp.sqrt(noise * inverse)
    return jnp.where(top > edge, top + edge**2 / jnp.where(top > edge, top, 1), 2 * edge)


def hessian_noise(
    losses: Callable, params: Any, batch: Any, key: jax.Array, *, num_probes: int = 8
) -> Estimate:
    """P s^2 = mean_i |H_i - H|_F^2 / P, the noise level of `iid_batch_sharpness`, P parameters.

    Args:
        losses: as in `batch_sharpness_prediction`.
        params: pytree of float arrays.
        batch: all N examples.
        key: PRNG key of the probes.
        num_probes: one product each.
    """
    size = checks.check_params(params)
    count = jax.eval_shape(losses, params, batch).size
    weighted, rows = _weighted(losses), []
    for probe in jax.random.split(key, num_probes):
        signs_key, z_key = jax.random.split(probe)
        signs = jax.random.rademacher(signs_key, (count,), float)
        # Centred weights give H_i - H in one product; the variance lost to the mean is 1 - 1/N.
        weights = (signs - signs.mean()) / jnp.sqrt(count - 1)
        rows.append(_squared_product(weighted, params, batch, weights, z_key) / size)
    rows = jnp.stack(rows)
    return Estimate(rows.mean(), jnp.std(rows, ddof=1) / jnp.sqrt(num_probes))


@functools.lru_cache(maxsize=64)
def _mean_of(losses):
    return lambda params, batch: losses(params, batch).mean()


@functools.lru_cache(maxsize=64)
def _weighted(losses):
    return lambda params, data: jnp.vdot(data[1].astype(float), losses(params, data[0]))


@functools.lru_cache(maxsize=64)
def _deflated(product):
    """The product on the orthogonal complement of a unit vector u that travels with the batch."""

    def deflated(params, batch_and_u, vector):
        batch, u = batch_and_u
        return _without(u, product(params, batch, _without(u, vector)))

    return deflated


@functools.partial(jax.jit, static_argnames="weighted")
def _pushed(weighted, params, batch, signs, u):
    """w = sum_i x_i H_i u off u, and its squared norm."""
    w = _without(u, operators.hessian(weighted)(params, (batch, signs), u))
    return w, _dot(w, w)


@jax.jit
def _resolvent(space, top):
    """e_1^T (top - T)^-1 e_1 of the tridiagonal matrix T."""
    nodes, vectors = curvature.tridiagonal_eigh(space)
    return jnp.sum(vectors[0] ** 2 / (top - nodes))


@functools.partial(jax.jit, static_argnames="weighted")
def _squared_product(weighted, params, batch, weights, key):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    z = [jax.random.rademacher(k, x.shape, x.dtype) for k, x in zip(keys, leaves)]
    w = operators.hessian(weighted)(params, (batch, weights), jax.tree.unflatten(tree, z))
    return _dot(w, w)


def _without(u, v):
    along = _dot(u, v)
    return jax.tree.map(lambda a, b: b - along * a, u, v)


def _dot(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def _example_count(losses, params, batch, batch_sizes):
    shape = jax.eval_shape(losses, params, batch).shape
    if len(shape) != 1:
        raise ValueError(
            f"losses returns shape {shape}; it must return one number per example, (N,)"
        )
    for size in batch_sizes:
        if not 1 <= size <= shape[0]:
            raise ValueError(
                f"batch size {size} is not between 1 and the {shape[0]} examples there are"
            )
    return shape[0]
