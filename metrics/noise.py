"""What the sampling of examples does: gradient noise scale, and the sharpness of mini-batches.

With the gradient g_i of each of N examples, their mean g and covariance Sigma::

    noise scale  tr Sigma / |G|^2,    tr Sigma = (sum_i |g_i|^2 - N |g|^2) / (N - 1),    |G|^2 = |g|^2 - tr Sigma / N

and of a batch of B the largest eigenvalue of the Hessian is, to second order in H_B - H,

    E lambda = lambda_1 + S2 / b,    S2 = mean_i w_i^T (lambda_1 - H)^-1 w_i,    w_i = (1 - u u^T) H_i u

with 1/b = (N - B) / (B (N - 1)), u the eigenvector of lambda_1, and H_i the Hessian of one example.

One file: gradient noise and the sharpness of batches are the first and second order in the same sampling of examples.

Source: McCandlish et al. (2018), arXiv:1812.06162; the second order is perturbation theory, derived here.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from metrics import checks, curvature, operators
from metrics.estimate import Estimate, mean_estimate, norm, power_of_two
from metrics.geometry import matmul
from ntk import show
from ntk.types import Float, PRNGKey, PyTree


@show.readable
class NoiseScale(NamedTuple):
    """Gradient noise scale, in examples, with its jackknife standard error."""

    # tr(Sigma) / |G|^2; infinite where |G|^2 is not seen above the noise
    value: Float[jax.Array, ""]
    error: Float[jax.Array, ""]
    # tr(Sigma), the trace of the per-example gradient covariance, and |G|^2, unbiased: squares, NaN where single
    # precision cannot hold them (gradients beyond 1e19, or below 1e-19).
    noise: Float[jax.Array, ""]
    signal: Float[jax.Array, ""]


def gradient_noise_scale(
    losses: Callable, params: PyTree, batch: PyTree, *, chunk: int = 64
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
        TypeError: losses is no function, or chunk no integer.
        ValueError: fewer than 3 examples, leaves without a common leading axis, losses not one per example.

    Source: McCandlish et al. (2018), arXiv:1812.06162, equation 2.9 and appendix A.
    """
    checks.function("losses", losses, "params", "batch")
    checks.integer("chunk", chunk, 1)
    checks.check_params(params)
    count = checks.examples("batch", batch)
    if count < 3:
        raise ValueError(
            f"the batch has {count} examples; a noise scale with an error needs at least 3"
        )
    if (given := checks.check_losses(losses, params, batch)) != count:
        raise ValueError(
            f"losses returns {given} numbers for {count} examples; it must return one for each"
        )
    params = curvature.single_precision(lambda p, b, _: losses(p, b), params, batch)
    return _noise_scale(losses, params, batch, chunk)


@functools.partial(jax.jit, static_argnames=("losses", "chunk"))
def _noise_scale(losses: operators.Loss, params: PyTree, batch: PyTree, chunk: int) -> NoiseScale:
    n = jax.tree.leaves(batch)[0].shape[0]
    gradient = ravel_pytree(jax.grad(lambda p: losses(p, batch).mean())(params))[0]
    length = norm(gradient)
    direction = gradient / jnp.where(length > 0, length, 1)

    def one(example: PyTree) -> tuple[jax.Array, jax.Array]:
        lone = jax.tree.map(lambda x: jnp.expand_dims(x, 0), example)
        g = ravel_pytree(jax.grad(lambda p: losses(p, lone)[0])(params))[0]
        return norm(g), matmul(g, direction)

    # |g_i|, g_i . g / |g| and |g|: no squares yet, and then in units of the largest.
    sizes, along = jax.lax.map(one, batch, batch_size=min(chunk, n))
    unit = power_of_two(jnp.append(sizes, length))
    sizes, along, length = sizes / unit, along / unit, length / unit[0]
    squares, along, mean = sizes**2, along * length, length**2
    total = squares.sum()

    def scale(total: jax.Array, mean: jax.Array, n: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        noise = (total - n * mean) / (n - 1)
        signal = mean - noise / n
        unseen = signal <= 0  # not so for NaN, which stays
        return noise, signal, jnp.where(unseen, jnp.inf, noise / jnp.where(unseen, 1, signal))

    # Leave one out: everything follows from |g_i|^2 and g_i . g.
    without = (n**2 * mean - 2 * n * along + squares) / (n - 1) ** 2
    left = scale(total - squares, without, n - 1)[2]
    noise, signal, value = scale(total, mean, n)
    error = jnp.sqrt((n - 1) * jnp.mean((left - left.mean()) ** 2))
    error = jnp.where(jnp.isinf(left).any() | jnp.isinf(value), jnp.inf, error)

    def in_its_own_unit(x: jax.Array) -> jax.Array:
        # Twice by the unit: its square may be out of the range of the precision where the product is not.
        y = x * unit[0] * unit[0]
        return jnp.where(jnp.isfinite(y) & ((y != 0) | (x == 0)), y, jnp.nan)

    return NoiseScale(value, error, in_its_own_unit(noise), in_its_own_unit(signal))


@show.readable
class BatchSharpness(NamedTuple):
    """Predicted mean sharpness of mini-batches: top + excess / b."""

    top: jax.Array  # lambda_1 of the full batch
    excess: Estimate  # S2, over probes
    value: jax.Array  # (len(batch_sizes),)
    error: jax.Array  # (len(batch_sizes),), of the excess
    gap: jax.Array  # lambda_1 - lambda_2: the law is for excess / b well below it


def batch_sharpness_prediction(
    losses: Callable,
    params: PyTree,
    batch: PyTree,
    key: PRNGKey,
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
    Valid while excess / b is small against the gap lambda_1 - lambda_2, which is returned: on digits the measured
    excess is 1.03 times the law's where that ratio is .02, 1.16 times at .1, and 1.3 to 1.4 times from .2 to 1.

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
        BatchSharpness(top, excess, value, error, gap); the gap is infinite for one parameter, nan after one step.

    Raises:
        TypeError: losses is no function, key no PRNG key, a number no integer.
        ValueError: a batch size is not between 1 and N, or there are fewer than 2 probes.

    Source: derived here. Granziol, Zohren & Roberts (2022), arXiv:2006.09092, for independent noise
    (`iid_batch_sharpness`), which trained networks are far from.
    """
    checks.key(key)
    count = example_count(losses, params, batch, batch_sizes)
    check_least("num_probes", num_probes)
    mean_loss, weighted = _mean_of(losses), weighted_loss(losses)
    params = curvature.single_precision(operators.hessian(mean_loss), params, batch)
    keys = jax.random.split(key, num_probes + 1)
    size = checks.check_params(params)
    two = min(2, size, checks.integer("num_steps", num_steps))
    pairs = curvature.sharpness(
        mean_loss, params, batch, k=two, num_steps=num_steps, start=keys[0], unroll=unroll
    )
    top, u = pairs.value[0], jax.tree.map(lambda x: x[0], pairs.vector)
    deflated = _deflated(operators.hessian(mean_loss))
    rows = []
    for probe in keys[1:]:
        signs = jax.random.rademacher(probe, (count,), top.dtype) / jnp.sqrt(count)
        w, length = _pushed(weighted, params, batch, signs, u)
        space = curvature.krylov(
            deflated, params, (batch, u), probe, w, num_steps=num_steps, unroll=unroll
        )
        rows.append(length * (length * _resolvent(space, top)))
    excess = mean_estimate(jnp.stack(rows))
    inverse = inverse_batch(batch_sizes, count)
    value, error = top + excess.value * inverse, inverse * excess.error
    gap = top - (pairs.value[1] if two > 1 else -jnp.inf if size == 1 else jnp.nan)
    return BatchSharpness(top, excess, value, error, gap)


def inverse_batch(batch_sizes: Sequence[int], count: int) -> jax.Array:
    """1/b = (N - B) / (B (N - 1)): variance of a mean of B out of N without replacement, in units of that of one.

    Args:
        batch_sizes: sizes B, integers from 1 to N; one, or several.
        count: N, at least 2.

    Returns:
        1/b, of the shape of batch_sizes.

    Raises:
        TypeError: a size or count is no integer.
        ValueError: a size is not between 1 and count.
    """
    checks.integer("count", count, 2)
    if not jnp.issubdtype(checks.dtype_of("batch_sizes", batch_sizes), jnp.integer):
        raise TypeError(f"batch_sizes is {batch_sizes}; it must be integers")
    sizes = checks.within(
        "batch_sizes",
        batch_sizes,
        lambda b: (b >= 1) & (b <= count),
        f"between 1 and count = {count}",
    )
    return (count - sizes) / (sizes * (count - 1))


def batch_sharpness(
    losses: Callable,
    params: PyTree,
    batch: PyTree,
    key: PRNGKey,
    batch_size: int,
    *,
    num_batches: int = 30,
    num_steps: int = 20,
    which: Literal["largest", "smallest"] = "largest",
    unroll: bool | None = None,
) -> Estimate:
    """Mean extremal Hessian eigenvalue over random batches, measured (`batch_curvature` takes several sizes).

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
        TypeError: losses is no function, key no PRNG key, a number no integer.
        ValueError: batch_size is not between 1 and N, or there are fewer than 2 batches.
    """
    checks.key(key)
    count = example_count(losses, params, batch, [batch_size])
    if (rows := checks.examples("batch", batch)) != count:
        raise ValueError(
            f"losses returns {count} numbers for {rows} examples; it must return one for each"
        )
    check_least("num_batches", num_batches)
    mean_loss, values = _mean_of(losses), []
    for draw in jax.random.split(key, num_batches):
        chosen = jax.random.permutation(draw, count)[:batch_size]
        part = jax.tree.map(lambda x, chosen=chosen: x[chosen], batch)
        top = curvature.sharpness(
            mean_loss, params, part, num_steps=num_steps, start=draw, which=which, unroll=unroll
        )
        values.append(top.value[0])
    return mean_estimate(jnp.stack(values))


def iid_batch_sharpness(top: ArrayLike, noise: ArrayLike, inverse: ArrayLike) -> jax.Array:
    """The published law for independent Gaussian Hessian noise of variance s^2 per entry and example.

    lambda + (P s^2 / b) / lambda above the transition lambda = sqrt(P s^2 / b), else twice that root.

    Args:
        top: lambda_1 of the full batch.
        noise: P s^2, from `hessian_noise`.
        inverse: 1/b, from `inverse_batch`.

    Raises:
        ValueError: noise or inverse is negative, or the shapes of top and noise do not broadcast to inverse's.

    Source: Granziol, Zohren & Roberts (2022), arXiv:2006.09092, theorem 1.
    """
    top = checks.real("top", top)
    noise, inverse = (
        checks.within(name, value, lambda x: ~(x < 0), "at least 0")
        for name, value in (("noise", noise), ("inverse", inverse))
    )
    if top.ndim or noise.ndim:
        checks.same_shape(top=top, noise=noise, inverse=inverse)
    edge = jnp.sqrt(noise) * jnp.sqrt(inverse)
    inside = top <= edge  # not so for NaN, which stays
    return jnp.where(inside, 2 * edge, top + edge * (edge / jnp.where(inside, 1, top)))


def hessian_noise(
    losses: Callable, params: PyTree, batch: PyTree, key: PRNGKey, *, num_probes: int = 8
) -> Estimate:
    """P s^2 = mean_i |H_i - H|_F^2 / P, the noise level of `iid_batch_sharpness`, P parameters.

    Args:
        losses: as in `batch_sharpness_prediction`.
        params: pytree of float arrays.
        batch: all N examples.
        key: PRNG key of the probes.
        num_probes: one product each.

    Returns:
        Estimate. It is a square: outside of a trace one that single precision cannot hold is refused.

    Raises:
        TypeError: losses is no function, key no PRNG key, num_probes no integer.
        ValueError: fewer than 2 probes or examples; the noise is too large or too small for the precision.
    """
    checks.key(key)
    count = example_count(losses, params, batch, [])
    check_least("num_probes", num_probes)
    if count < 2:
        raise ValueError(
            f"the batch has {count} example; a variance over examples needs at least 2"
        )
    size, weighted, rows = checks.check_params(params), weighted_loss(losses), []
    params = curvature.single_precision(operators.hessian(_mean_of(losses)), params, batch)
    for probe in jax.random.split(key, num_probes):
        signs_key, z_key = jax.random.split(probe)
        signs = jax.random.rademacher(signs_key, (count,), float)
        # Centred weights give H_i - H in one product; the variance lost to the mean is 1 - 1/N.
        weights = (signs - signs.mean()) / jnp.sqrt(count - 1)
        rows.append(_product_length(weighted, params, batch, weights, z_key))
    lengths = jnp.stack(rows)
    result = mean_estimate(lengths**2 / size)
    lost = (lengths > 0) & (lengths**2 == 0)
    if checks.flag(jnp.any(lost) | jnp.isinf(result.value)):
        raise ValueError(
            f"the noise is the square of {jnp.max(lengths):.3g}, which {lengths.dtype} cannot hold: scale the loss"
        )
    return result


@functools.lru_cache(maxsize=64)
def _mean_of(losses: operators.Loss) -> operators.Loss:
    return lambda params, batch: losses(params, batch).mean()


@functools.lru_cache(maxsize=64)
def weighted_loss(losses: operators.Loss) -> operators.Loss:
    """The loss (params, (batch, weights)): the weighted sum over examples."""
    return lambda params, data: jnp.vdot(data[1].astype(float), losses(params, data[0]))


@functools.lru_cache(maxsize=64)
def _deflated(product: operators.Product) -> operators.Product:
    """The product on the orthogonal complement of a unit vector u that travels with the batch."""

    def deflated(params: PyTree, batch_and_u: tuple[PyTree, PyTree], vector: PyTree) -> PyTree:
        batch, u = batch_and_u
        return _without(u, product(params, batch, _without(u, vector)))

    return deflated


@functools.partial(jax.jit, static_argnames="weighted")
def _pushed(
    weighted: operators.Loss, params: PyTree, batch: PyTree, signs: jax.Array, u: PyTree
) -> tuple[PyTree, jax.Array]:
    """w = sum_i x_i H_i u off u, and its norm."""
    w = _without(u, operators.hessian(weighted)(params, (batch, signs), u))
    return w, norm(ravel_pytree(w)[0])


@jax.jit
def _resolvent(space: curvature.Krylov, top: jax.Array) -> jax.Array:
    """e_1^T (top - T)^-1 e_1 of the tridiagonal matrix T."""
    nodes, vectors = curvature.tridiagonal_eigh(space)
    return jnp.sum(vectors[0] ** 2 / (top - nodes))


@functools.partial(jax.jit, static_argnames="weighted")
def _product_length(
    weighted: operators.Loss, params: PyTree, batch: PyTree, weights: jax.Array, key: PRNGKey
) -> jax.Array:
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    z = [jax.random.rademacher(k, x.shape, x.dtype) for k, x in zip(keys, leaves)]
    w = operators.hessian(weighted)(params, (batch, weights), jax.tree.unflatten(tree, z))
    return norm(ravel_pytree(w)[0])


def _without(u: PyTree, v: PyTree) -> PyTree:
    along = _dot(u, v)
    return jax.tree.map(lambda a, b: b - along * a, u, v)


def _dot(a: PyTree, b: PyTree) -> jax.Array:
    products = map(jnp.vdot, jax.tree.leaves(a), jax.tree.leaves(b))
    return functools.reduce(operator.add, products)


def example_count(
    losses: operators.Loss, params: PyTree, batch: PyTree, batch_sizes: Sequence[int]
) -> int:
    """The number of examples, and that every batch size is one of a part of them."""
    checks.function("losses", losses, "params", "batch")
    checks.check_params(params)
    count = checks.check_losses(losses, params, batch)
    several = isinstance(batch_sizes, Sequence) and not isinstance(batch_sizes, str | bytes)
    if not several and getattr(batch_sizes, "ndim", 0) != 1:
        raise TypeError(f"batch_sizes is {batch_sizes}; it must be a list of integers")
    for size in batch_sizes:
        if checks.integer("batch_size", size) < 1 or size > count:
            raise ValueError(
                f"batch size {size} is not between 1 and the {count} examples there are"
            )
    return count


def check_least(name: str, value: Any) -> None:
    """Refuses fewer samples than a standard error needs."""
    if checks.integer(name, value) < 2:
        raise ValueError(f"{name} is {value}; it must be at least 2, for a standard error")
