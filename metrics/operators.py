"""Curvature operators as matrix-vector products: ``product(params, batch, vector) -> vector``.

Every constructor here takes the user's functions and returns such a product. What a product needs
beyond the data (learning-rate factors, the frozen rest of a network, a PRNG key) travels beside
the batch, never in a closure, so one compiled program serves every step, run and seed:

    hessian(loss)                     batch
    scaled(hessian(loss))             (batch, factors)
    hessian(blocks.on_block(loss))    (batch, rest), the rest of the network
    accumulated(hessian(loss))        batch, every leaf with a leading axis of equal batches
    streamed(hessian(loss))           a data loader: whatever gives batches, one after the other
    chunks.chunked(hessian(loss), 32) batch, taken 32 examples at a time

A batch sharded over devices needs nothing: under ``jit`` its mean becomes a sum over devices. For
Kronecker-factored approximations see curvlinops (PyTorch); to solve, `jax.scipy.sparse.linalg.cg`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Loss = Callable[[Any, Any], jax.Array]
Product = Callable[[Any, Any, Any], Any]

# Equal arguments give the same product object, so what was compiled for it is found again.
_remembered = functools.lru_cache(maxsize=64)


@_remembered
def hessian(loss: Loss) -> Product:
    """Hessian-vector product of a scalar loss, forward-over-reverse.

    Args:
        loss: ``loss(params, batch)``, a scalar.

    Returns:
        ``product(params, batch, vector)``, about two gradients in time. Its temporary memory is 1.5
        (ReLU, convolutions) to 2 (tanh, gelu) gradients' on XLA's CPU backend with JAX 0.10, to 2.9
        (tanh) with 0.12: the reverse pass is differentiated forward, not recorded.

    Source: Pearlmutter (1994), Fast exact multiplication by the Hessian.
    """

    def product(params, batch, vector):
        gradient = jax.grad(loss)
        return jax.jvp(lambda p: gradient(p, batch), (params,), (vector,))[1]

    product.loss = loss  # to say which example is not finite
    return product


@_remembered
def gauss_newton(apply: Callable, criterion: Callable) -> Product:
    """Generalised Gauss-Newton product G v = J^T (d2 criterion / d outputs2) J v.

    G is the part of the Hessian that stays if the network is replaced by its linearisation: the
    loss is criterion(apply(params, batch), batch) and H = G + R, see `residual`.

    Args:
        apply: ``apply(params, batch) -> outputs``, an array or pytree of any shape.
        criterion: ``criterion(outputs, batch)``, a scalar.

    Returns:
        ``product(params, batch, vector)``.

    Source: Schraudolph (2002), Fast curvature matrix-vector products, section 3.
    """

    def product(params, batch, vector):
        def outputs_of(p):
            return apply(p, batch)

        outputs, tangent = jax.jvp(outputs_of, (params,), (vector,))
        slope = jax.grad(criterion)
        curved = jax.jvp(lambda f: slope(f, batch), (outputs,), (tangent,))[1]
        return jax.vjp(outputs_of, params)[1](curved)[0]

    product.loss = lambda params, batch: criterion(apply(params, batch), batch)
    return product


@_remembered
def residual(apply: Callable, criterion: Callable) -> Product:
    """The rest R = H - G of the Hessian: sum over outputs of (d criterion / d f) times d2 f.

    It vanishes with the gradient of the criterion, for instance where the data is interpolated.

    Args:
        apply: as in `gauss_newton`.
        criterion: as in `gauss_newton`.

    Returns:
        ``product(params, batch, vector)``.

    Source: Papyan (2019), arXiv:1901.08244, equation 4.
    """

    def product(params, batch, vector):
        weights = jax.grad(criterion)(apply(params, batch), batch)

        def weighted_gradient(p):
            return jax.vjp(lambda q: apply(q, batch), p)[1](weights)[0]

        return jax.jvp(weighted_gradient, (params,), (vector,))[1]

    return product


# Exponential families whose natural parameters are the outputs: log-partition, sampled statistic.
LIKELIHOODS = {
    "categorical": (
        lambda f: jax.nn.logsumexp(f, -1),
        lambda key, f: jax.nn.one_hot(jax.random.categorical(key, f), f.shape[-1], dtype=f.dtype),
    ),
    "gaussian": (
        lambda f: jnp.sum(f**2, -1) / 2,
        lambda key, f: f + jax.random.normal(key, f.shape, f.dtype),
    ),
    "bernoulli": (
        lambda f: jnp.sum(jax.nn.softplus(f), -1),
        lambda key, f: jax.random.bernoulli(key, jax.nn.sigmoid(f)).astype(f.dtype),
    ),
}


def fisher(apply: Callable, likelihood: str) -> Product:
    """Fisher information product, exact: the expectation over the model's own labels in closed form.

    For natural parameters f it is J^T (d2 log-partition) J, so equal to the Gauss-Newton matrix of
    the negative log-likelihood whatever the labels are (Martens 2020, section 9.2).

    Args:
        apply: ``apply(params, batch) -> outputs`` of shape (..., C); mean over the leading axes.
        likelihood: "categorical" (logits), "gaussian" (means, variance 1), "bernoulli" (logits).

    Returns:
        ``product(params, batch, vector)``.

    Raises:
        ValueError: the likelihood is none of these.

    Source: Martens (2020), New insights and perspectives on the natural gradient method, JMLR 21.
    """
    return gauss_newton(apply, _mean_log_partition(likelihood))


@_remembered
def fisher_monte_carlo(apply: Callable, likelihood: str, num_samples: int = 1) -> Product:
    """Fisher information product with sampled labels; unbiased, its noise falls as 1/num_samples.

    Args:
        apply: as in `fisher`.
        likelihood: as in `fisher`.
        num_samples: labels drawn per example; one Jacobian product pair serves them all.

    Returns:
        ``product(params, (batch, key), vector)``; the same key gives the same matrix.

    Raises:
        ValueError: the likelihood is unknown, or num_samples is not positive.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; it must be at least 1")
    log_partition = _mean_log_partition(likelihood)
    sample = LIKELIHOODS[likelihood][1]

    def product(params, batch_and_key, vector):
        batch, key = batch_and_key

        def outputs_of(p):
            return apply(p, batch)

        outputs, tangent = jax.jvp(outputs_of, (params,), (vector,))
        examples = outputs.size // outputs.shape[-1]
        mean = jax.grad(log_partition)(outputs, batch) * examples

        def outer(key):
            error = mean - sample(key, outputs)
            return error * jnp.sum(error * tangent, -1, keepdims=True)

        curved = jax.vmap(outer)(jax.random.split(key, num_samples)).mean(0) / examples
        return jax.vjp(outputs_of, params)[1](curved)[0]

    return product


@_remembered
def _mean_log_partition(likelihood: str) -> Callable:
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood is {likelihood!r}; it must be one of {sorted(LIKELIHOODS)}")
    log_partition = LIKELIHOODS[likelihood][0]
    return lambda outputs, batch: jnp.mean(log_partition(outputs))


@_remembered
def per_example(loss: Loss) -> Callable:
    """The losses of single examples, from a loss that is their mean.

    Args:
        loss: ``loss(params, batch)``, a mean over the leading axis of every leaf of batch. Not for
            losses that couple examples, as batch normalisation does.

    Returns:
        ``losses(params, batch)`` of shape (B,).
    """

    def losses(params, batch):
        def one(example):
            return loss(params, jax.tree.map(lambda x: jnp.expand_dims(x, 0), example))

        return jax.vmap(one)(batch)

    return losses


@_remembered
def empirical_fisher(losses: Callable) -> Product:
    """The uncentred second moment (1/B) sum_i g_i g_i^T of the per-example gradients.

    Not the Fisher information: the labels are the data's own.

    Args:
        losses: ``losses(params, batch)`` of shape (B,), for instance ``per_example(loss)``.

    Returns:
        ``product(params, batch, vector)``, linear memory: no per-example gradient is stored.

    Source: Kunstner, Balles & Hennig (2019), arXiv:1905.12558.
    """
    return _second_moment(losses, centred=False)


@_remembered
def gradient_covariance(losses: Callable) -> Product:
    """The covariance (1/B) sum_i (g_i - g)(g_i - g)^T of the per-example gradients.

    Args:
        losses: as in `empirical_fisher`.

    Returns:
        ``product(params, batch, vector)``; accumulated, the mean covariance within a batch.
    """
    return _second_moment(losses, centred=True)


def _second_moment(losses, centred):
    def product(params, batch, vector):
        def losses_of(p):
            return losses(p, batch)

        along = jax.jvp(losses_of, (params,), (vector,))[1]
        along = along - along.mean() if centred else along
        return jax.vjp(losses_of, params)[1](along / along.size)[0]

    product.loss = lambda params, batch: losses(params, batch).mean()
    product.rank = lambda params, batch: jax.eval_shape(losses, params, batch).size - centred
    return product


@_remembered
def scaled(product: Product) -> Product:
    """The product of D^(1/2) A D^(1/2), for factors D that travel beside the batch.

    With learning-rate factors per parameter, its largest eigenvalue is what gradient descent with
    those factors compares with 2/eta; with `adam_factors` it is Adam's preconditioned curvature.

    Args:
        product: the product of a symmetric A.

    Returns:
        ``product(params, (batch, factors), vector)``, where factors is a pytree like params, or a
        prefix of one, of non-negative numbers or of arrays that broadcast to the parameters.
    """

    def scaled_product(params, batch_and_factors, vector):
        batch, factors = batch_and_factors
        roots = jax.tree.map(
            lambda d, p: jnp.broadcast_to(jnp.sqrt(jnp.asarray(d, p.dtype)), p.shape),
            jax.tree.broadcast(factors, params),
            params,
        )
        inner = product(params, batch, jax.tree.map(jnp.multiply, roots, vector))
        return jax.tree.map(jnp.multiply, roots, inner)

    return scaled_product


def adam_factors(nu: Any, count: Any, *, beta2: float = 0.999, epsilon: float = 1e-8) -> Any:
    """Adam's diagonal preconditioner as factors for `scaled`: 1 / (sqrt(nu / (1 - beta2^t)) + eps).

    Args:
        nu: running mean of squared gradients, a pytree like params (of ``ScaleByAdamState``).
        count: updates made so far, t >= 1 (``count`` of the same state).
        beta2: decay of nu.
        epsilon: Adam's eps.

    Returns:
        A pytree like nu.

    Source: Cohen et al. (2022), arXiv:2207.14484, equation 2.
    """
    return jax.tree.map(lambda v: 1 / (jnp.sqrt(v / (1 - beta2**count)) + epsilon), nu)


@_remembered
def accumulated(product: Product, *, axes: Any = 0, unroll: bool = False) -> Product:
    """The mean of a product over batches, one batch in memory at a time.

    Args:
        product: the product over one batch.
        axes: 0, or a tuple of 0 and None: None parts are shared, as in ``(batches, factors)``.
        unroll: unroll the loop over batches; XLA's CPU backend needs it for convolutions.

    Returns:
        ``product(params, batches, vector)``, where leaves of batches have a leading axis (number of
        batches). Batches are weighted equally; a shorter last one: `metrics.chunks.chunked`.
    """

    def mean_product(params, batches, vector):
        parts, axes_of = (batches, axes) if isinstance(axes, tuple) else ((batches,), (axes,))
        counts = {
            leaf.shape[0]
            for part, a in zip(parts, axes_of)
            if a == 0
            for leaf in jax.tree.leaves(part)
        }
        if len(counts) != 1:
            raise ValueError(
                f"the leaves of batches have leading axes {sorted(counts)}; all need the same, the "
                "number of batches: reshape (N, ...) to (N // B, B, ...)"
            )
        (count,) = counts

        def body(total, i):
            at = tuple(
                jax.tree.map(lambda x: x[i], part) if a == 0 else part
                for part, a in zip(parts, axes_of)
            )
            one = product(params, at if isinstance(axes, tuple) else at[0], vector)
            return jax.tree.map(jnp.add, total, one), None

        zeros = jax.tree.map(jnp.zeros_like, vector)
        total = jax.lax.scan(body, zeros, jnp.arange(count), unroll=unroll or 1)[0]
        return jax.tree.map(lambda x: x / count, total)

    return mean_product


@_remembered
def streamed(product: Product) -> Product:
    """The mean of a product over a data loader: its batches need not fit in memory together.

    Python drives it: `metrics.curvature` and `metrics.spectra` step it, and nothing may jit it.

    Args:
        product: the product over one batch, compiled for each shape of a batch. What travels beside the
            data is in every batch: ``streamed(scaled(hessian(loss)))`` takes ``(batch, factors)``.

    Returns:
        ``product(params, batches, vector)``. Every call goes through batches: a list, a data loader, or
        a function that returns an iterator; each counts by its examples, the leading axis of its first
        array. The same examples every time, or it is no matrix.

    Raises:
        ValueError: batches is empty, or an iterator, which one pass exhausts.
    """

    @functools.partial(jax.jit, donate_argnames="total")
    def add(total, params, batch, vector, count):
        one = product(params, batch, vector)
        return jax.tree.map(lambda t, x: t + count * x, total, one)

    def mean_product(params, batches, vector):
        if not callable(batches) and iter(batches) is batches:
            raise ValueError(
                "batches is an iterator, exhausted after one pass: give a list, a data loader, or a "
                "function that returns a new iterator"
            )
        total, examples = jax.tree.map(jnp.zeros_like, vector), 0
        for batch in batches() if callable(batches) else batches:
            count = jnp.shape(jax.tree.leaves(batch)[0])[0]
            jax.block_until_ready(total)  # one batch is in work while the loader prepares the next
            total = add(total, params, batch, vector, count)
            examples += count
        if not examples:
            raise ValueError("batches is empty; a mean needs at least one example")
        return jax.tree.map(lambda t: t / examples, total)

    mean_product.streamed = True
    return mean_product


def is_streamed(product: Product) -> bool:
    """Whether Python drives the product, so that it cannot be compiled into a loop."""
    return getattr(product, "streamed", False)
