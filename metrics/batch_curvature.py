"""Learning rates as a function of batch size: what the sharpness of mini-batches says about stable steps.

Batches of B out of N examples have the mean largest Hessian eigenvalue lambda(B) = lambda_1 + S2 / b, with
1/b = (N - B) / (B (N - 1)), see `metrics.noise.batch_sharpness_prediction`. So the largest stable rate is
2 / lambda(B): linear in the batch size where S2 / b outweighs lambda_1, constant above; they meet at b = S2 / lambda_1.

Source: Granziol, Zohren & Roberts (2022), arXiv:2006.09092, for the question and the laws of independent noise; the law
with the measured noise and that of the Gauss-Newton matrix are derived here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from metrics import checks, curvature, noise, operators, stability
from metrics.estimate import Estimate, concrete, mean_estimate, power_of_two
from metrics.geometry import matmul
from ntk.types import PRNGKey, PyTree


def batch_learning_rate(
    sharpness: noise.BatchSharpness | Estimate,
    rule: str = "gradient_descent",
    *,
    beta: float = 0.0,
) -> Estimate:
    """The largest learning rate that is stable at the mean sharpness of the batches.

    Exact on a quadratic whose every step meets the same batch; a heuristic where batches change from step to step: the
    rates that train are then compared with it over batch sizes, not in absolute size.

    Args:
        sharpness: of `metrics.noise.batch_sharpness_prediction`, or measured (`batch_sharpness`,
            `batch_sharpness_by_size`); for Adam those of the preconditioned Hessian.
        rule: as in `metrics.stability.threshold`; not sam, whose edge follows the gradient norm of each batch.
        beta: as in `metrics.stability.threshold`.

    Returns:
        Estimate of the shape of sharpness.value, with its error carried over; infinite where no curvature is positive.

    Raises:
        TypeError: sharpness is neither of these.
        ValueError: as `metrics.stability.threshold`.
    """
    if not isinstance(sharpness, noise.BatchSharpness | Estimate):
        raise TypeError(
            f"sharpness is of type {type(sharpness).__name__}; it must be a BatchSharpness or an Estimate "
            "of metrics.noise"
        )
    value, error = (checks.real("sharpness", x) for x in (sharpness.value, sharpness.error))
    flat = value <= 0  # not so for NaN, which stays
    safe = jnp.where(flat, 1, value)
    rate = stability.threshold(1.0, rule, beta=beta) / safe
    return Estimate(jnp.where(flat, jnp.inf, rate), rate * (error / safe))


def critical_batch(prediction: noise.BatchSharpness) -> Estimate:
    """The batch size b = S2 / lambda_1 at which the noise of the Hessian is as large as the Hessian.

    Below it the largest stable rate of gradient descent is proportional to the batch size, above it saturates. Of N
    examples drawn without replacement it is B = N b / (N - 1 + b). Another question than
    `metrics.noise.gradient_noise_scale`, which asks when averaging more gradients stops to pay. An order of magnitude:
    where the excess is as large as lambda_1 the perturbation theory behind S2 ends (it is then too large).

    Args:
        prediction: of `metrics.noise.batch_sharpness_prediction`, for any batch sizes.

    Returns:
        Estimate of b, in examples, with the standard error of S2; infinite where lambda_1 is not positive.

    Raises:
        TypeError: prediction is no BatchSharpness.
    """
    if not isinstance(prediction, noise.BatchSharpness):
        raise TypeError(
            f"prediction is of type {type(prediction).__name__}; it must be the result of "
            "metrics.noise.batch_sharpness_prediction"
        )
    flat = prediction.top <= 0
    safe = jnp.where(flat, 1, prediction.top)
    value, error = (x / safe for x in prediction.excess)
    return Estimate(jnp.where(flat, jnp.inf, value), error)


def gauss_newton_batch_sharpness(top: ArrayLike, bulk: ArrayLike, ratio: ArrayLike) -> jax.Array:
    """The largest eigenvalue of a batch's Gauss-Newton matrix for independent Gaussian gradients: a spiked Wishart law.

    top (1 + ratio bulk / (top - bulk)) above the transition top - bulk = bulk sqrt(ratio), else the edge
    bulk (1 + sqrt(ratio))^2. For one output and loss curvature 1; exact as P and B grow at a fixed ratio, and to first
    order in 1/b where top is that of N examples. Gradients of trained networks have no flat bulk: there it is an
    orientation, not a prediction.

    Args:
        top: lambda_1 of all examples, above bulk.
        bulk: variance of the gradients in each of the other directions, (trace - lambda_1) / (P - 1).
        ratio: P / b, P parameters, 1/b from `metrics.noise.inverse_batch` (P / B for fresh examples).

    Returns:
        An array of the shape of ratio.

    Raises:
        ValueError: top is below bulk, bulk or ratio negative, or shapes that do not broadcast to ratio's.

    Source: Baik & Silverstein (2006), theorem 1.1, for the Wishart law; for the Hessian
    `metrics.noise.iid_batch_sharpness`.
    """
    top, bulk, ratio = (
        checks.within(name, value, lambda x: ~(x < 0), "at least 0")
        for name, value in (("top", top), ("bulk", bulk), ("ratio", ratio))
    )
    if top.ndim or bulk.ndim:
        checks.same_shape(top=top, bulk=bulk, ratio=ratio)
    if checks.flag(jnp.any(top < bulk)):
        raise ValueError(f"top is {top} and bulk {bulk}; the largest eigenvalue is at least bulk")
    root = jnp.sqrt(ratio)
    inside = top - bulk <= bulk * root  # not so for NaN, which stays
    spike = top * (1 + ratio * (bulk / jnp.where(inside, 1, top - bulk)))
    return jnp.where(inside, bulk * (1 + root) ** 2, spike)


def batch_sharpness_by_size(
    losses: Callable,
    params: PyTree,
    batch: PyTree,
    key: PRNGKey,
    batch_sizes: Sequence[int],
    *,
    num_batches: int = 30,
    num_steps: int = 20,
    which: Literal["largest", "smallest"] = "largest",
    unroll: bool | None = None,
) -> Estimate:
    """`metrics.noise.batch_sharpness` for several batch sizes by one compiled program.

    Every batch is padded to the largest size with examples of weight 0: a size costs the products of the largest, and
    no compilation of its own. The batches of a size depend on the key and that size only.

    Averaged is lambda(B) - c u^T (H_B - H) u, u the eigenvector of all examples and c the regression coefficient of the
    other batches. What is taken off has the mean zero, so that the mean stays; of large batches it is most of the
    fluctuation: on 1437 digits the error is 1.4 times (B = 16), twice (64) and 4 to 9 times (512) smaller.

    Args:
        losses: as in `metrics.noise.batch_sharpness_prediction`; each example's must not depend on the others.
        params: pytree of float arrays.
        batch: all N examples.
        key: PRNG key of the batches, drawn without replacement.
        batch_sizes: sizes B, 1 <= B <= N.
        num_batches: batches drawn of each size.
        num_steps: Lanczos steps per batch.
        which: "largest" or "smallest".
        unroll: as in `metrics.curvature.sharpness`.

    Returns:
        Estimate(mean, standard error of the mean over batches), each (len(batch_sizes),).

    Raises:
        TypeError: losses is no function, key no PRNG key, a number no integer.
        ValueError: no size, a size is not between 1 and N, fewer than 2 batches, or losses that couple examples, as
            batch normalisation does (found where values can be looked at).
    """
    checks.key(key)
    count = noise.example_count(losses, params, batch, batch_sizes)
    if not len(batch_sizes):
        raise ValueError("batch_sizes is empty; it must hold at least one size")
    noise.check_least("num_batches", num_batches)
    weighted, most, rows = noise.weighted_loss(losses), max(batch_sizes), []
    _check_separate(losses, params, batch, min(batch_sizes), most)
    everything = batch, jnp.full(count, 1 / count)
    params = curvature.single_precision(operators.hessian(weighted), params, everything)
    options: dict[str, Any] = {"num_steps": num_steps, "which": which, "unroll": unroll}
    whole = curvature.sharpness(weighted, params, everything, start=key, **options)
    vector = jax.tree.map(lambda x: x[0], whole.vector)
    for size in batch_sizes:
        weights = (jnp.arange(most) < size) / size
        values, first_order = [], []
        for draw in jax.random.split(jax.random.fold_in(key, size), num_batches):
            chosen = jax.random.permutation(draw, count)[:most]
            part = jax.tree.map(lambda x, chosen=chosen: x[chosen], batch), weights
            found = curvature.sharpness(weighted, params, part, start=draw, **options)
            values.append(found.value[0])
            first_order.append(_along(weighted, params, part, vector) - whole.value[0])
        rows.append(_without(jnp.stack(first_order), jnp.stack(values)))
    return mean_estimate(jnp.stack(rows, 1))


@functools.partial(jax.jit, static_argnames="weighted")
def _along(weighted: operators.Loss, params: PyTree, batch: PyTree, u: PyTree) -> jax.Array:
    """u^T H u."""
    product = operators.hessian(weighted)(params, batch, u)
    return matmul(ravel_pytree(u)[0], ravel_pytree(product)[0])


def _without(first_order: jax.Array, values: jax.Array) -> jax.Array:
    """values_i - c_i x_i, x of mean zero and c_i the slope of the others and of two of slope 1: nothing is biased."""
    x, y = (a / power_of_two(first_order) for a in (first_order, values - jnp.mean(values)))
    others = len(x) - 1
    squares = jnp.sum(x**2) - x**2
    products = jnp.sum(x * y) - x * y - (jnp.sum(x) - x) * (jnp.sum(y) - y) / others
    prior = 2 * squares / others
    some = squares > 0
    slope = jnp.where(some, (products + prior) / jnp.where(some, squares + prior, 1), 1)
    return values - slope * first_order


def _check_separate(
    losses: Callable[[Any, Any], jax.Array], params: PyTree, batch: PyTree, least: int, most: int
) -> None:
    """Refuses losses of the first examples that change with those beside them: weight 0 would not leave these out."""
    few, many = (
        concrete(losses(params, jax.tree.map(lambda x, n=n: x[:n], batch))) for n in (least, most)
    )
    if few is None or many is None:
        return
    gap = np.abs(few - many[:least]).max()
    if gap > 1e-2 * np.abs(few).max():
        raise ValueError(
            f"the losses of {least} examples change by {gap:.3g} beside {most - least} others: they couple examples "
            "(as batch normalisation does) or draw random numbers; use metrics.noise.batch_sharpness for each size"
        )
