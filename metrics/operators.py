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

    hessian H v = d/de grad L(w + e v),    gauss_newton G v = J^T l'' J v,    fisher F v = E[g (g . v)]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metrics import checks
from metrics.batches import accumulated, is_streamed, streamed
from metrics.programs import remembered
from ntk.finite.linearize import pushforward
from ntk.types import Elementwise, PRNGKey, PyTree

__all__ = [
    "LIKELIHOODS",
    "accumulated",
    "adam_factors",
    "empirical_fisher",
    "fisher",
    "fisher_monte_carlo",
    "gauss_newton",
    "gradient_covariance",
    "hessian",
    "is_streamed",
    "per_example",
    "residual",
    "scaled",
    "streamed",
]

Loss = Callable[[Any, Any], jax.Array]
Product = Callable[[Any, Any, Any], Any]


@remembered
def hessian(loss: Loss) -> Product:
    """Hessian-vector product of a scalar loss, forward-over-reverse.

    Args:
        loss: ``loss(params, batch)``, a scalar.

    Returns:
        ``product(params, batch, vector)``, about two gradients in time. Its temporary memory is 1.5
        (ReLU, convolutions) to 2 (tanh, gelu) gradients' on XLA's CPU backend with JAX 0.10, to 2.9
        (tanh) with 0.12: the reverse pass is differentiated forward, not recorded.

    Raises:
        TypeError: loss is no function of params and batch.

    Source: Pearlmutter (1994), Fast exact multiplication by the Hessian.
    """
    checks.function("loss", loss, "params", "batch")

    def product(params: PyTree, batch: PyTree, vector: PyTree) -> PyTree:
        gradient = jax.grad(loss)
        return jax.jvp(lambda p: gradient(p, batch), (params,), (vector,))[1]

    product.__dict__.update(loss=loss)  # to say which example is not finite
    return product


@remembered
def gauss_newton(apply: Callable, criterion: Callable) -> Product:
    """Generalised Gauss-Newton product G v = J^T (d2 criterion / d outputs2) J v.

    G is the part of the Hessian that stays if the network is replaced by its linearisation: the
    loss is criterion(apply(params, batch), batch) and H = G + R, see `residual`.

    Args:
        apply: ``apply(params, batch) -> outputs``, an array or pytree of any shape.
        criterion: ``criterion(outputs, batch)``, a scalar.

    Returns:
        ``product(params, batch, vector)``; where apply has a ``jax.custom_vjp``, which has no forward mode, by two
        reverse passes more.

    Raises:
        TypeError: apply or criterion is no function of two arguments.

    Source: Schraudolph (2002), Fast curvature matrix-vector products, section 3.
    """
    _check_model(apply, criterion)

    def product(params: PyTree, batch: PyTree, vector: PyTree) -> PyTree:
        def outputs_of(p: PyTree) -> PyTree:
            return apply(p, batch)

        outputs, tangent = pushforward(outputs_of, params, vector)
        slope = jax.grad(criterion)
        curved = jax.jvp(lambda f: slope(f, batch), (outputs,), (tangent,))[1]
        return jax.vjp(outputs_of, params)[1](curved)[0]

    product.__dict__.update(loss=lambda params, batch: criterion(apply(params, batch), batch))
    return product


@remembered
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
    _check_model(apply, criterion)

    def product(params: PyTree, batch: PyTree, vector: PyTree) -> PyTree:
        weights = jax.grad(criterion)(apply(params, batch), batch)

        def weighted_gradient(p: PyTree) -> PyTree:
            return jax.vjp(lambda q: apply(q, batch), p)[1](weights)[0]

        return jax.jvp(weighted_gradient, (params,), (vector,))[1]

    return product


def _check_model(apply: Callable, criterion: Callable) -> None:
    checks.function("apply", apply, "params", "batch")
    checks.function("criterion", criterion, "outputs", "batch")


# Exponential families whose natural parameters are the outputs: log-partition, sampled statistic.
LIKELIHOODS: dict[str, tuple[Elementwise, Callable[[PRNGKey, jax.Array], jax.Array]]] = {
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


@remembered
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
    checks.function("apply", apply, "params", "batch")
    checks.integer("num_samples", num_samples, 1)
    log_partition = _mean_log_partition(likelihood)
    sample = LIKELIHOODS[likelihood][1]

    def product(params: PyTree, batch_and_key: tuple[PyTree, PRNGKey], vector: PyTree) -> PyTree:
        batch, key = batch_and_key

        def outputs_of(p: PyTree) -> jax.Array:
            return apply(p, batch)

        outputs, tangent = pushforward(outputs_of, params, vector)
        examples = outputs.size // outputs.shape[-1]
        mean = jax.grad(log_partition)(outputs, batch) * examples

        def outer(key: PRNGKey) -> jax.Array:
            error = mean - sample(key, outputs)
            return error * jnp.sum(error * tangent, -1, keepdims=True)

        curved = jax.vmap(outer)(jax.random.split(key, num_samples)).mean(0) / examples
        return jax.vjp(outputs_of, params)[1](curved)[0]

    return product


@remembered
def _mean_log_partition(likelihood: str) -> Callable:
    checks.choice("likelihood", likelihood, sorted(LIKELIHOODS))
    log_partition = LIKELIHOODS[likelihood][0]

    def mean_log_partition(outputs: jax.Array, batch: PyTree) -> jax.Array:
        if jnp.ndim(outputs) == 0:
            raise ValueError("apply returns a single number; a likelihood needs outputs (..., C)")
        return jnp.mean(log_partition(outputs))

    return mean_log_partition


@remembered
def per_example(loss: Loss) -> Loss:
    """The losses of single examples, from a loss that is their mean.

    Args:
        loss: ``loss(params, batch)``, a mean over the leading axis of every leaf of batch. Not for
            losses that couple examples, as batch normalisation does.

    Returns:
        ``losses(params, batch)`` of shape (B,).

    Raises:
        TypeError: loss is no function of params and batch.
        ValueError: (when it is called) the leaves of batch do not share their leading axis.
    """
    checks.function("loss", loss, "params", "batch")

    def losses(params: PyTree, batch: PyTree) -> jax.Array:
        checks.examples("batch", batch)

        def one(example: PyTree) -> jax.Array:
            return loss(params, jax.tree.map(lambda x: jnp.expand_dims(x, 0), example))

        return jax.vmap(one)(batch)

    return losses


@remembered
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


@remembered
def gradient_covariance(losses: Callable) -> Product:
    """The covariance (1/B) sum_i (g_i - g)(g_i - g)^T of the per-example gradients.

    Args:
        losses: as in `empirical_fisher`.

    Returns:
        ``product(params, batch, vector)``; accumulated, the mean covariance within a batch.
    """
    return _second_moment(losses, centred=True)


def _second_moment(losses: Callable, centred: bool) -> Product:
    checks.function("losses", losses, "params", "batch")

    def product(params: PyTree, batch: PyTree, vector: PyTree) -> PyTree:
        checks.check_losses(losses, params, batch)

        def losses_of(p: PyTree) -> jax.Array:
            return losses(p, batch)

        along = pushforward(losses_of, params, vector)[1]
        along = along - along.mean() if centred else along
        return jax.vjp(losses_of, params)[1](along / along.size)[0]

    product.__dict__.update(
        loss=lambda params, batch: losses(params, batch).mean(),
        rank=lambda params, batch: jax.eval_shape(losses, params, batch).size - centred,
    )
    return product


@remembered
def scaled(product: Product) -> Product:
    """The product of D^(1/2) A D^(1/2), for factors D that travel beside the batch.

    With learning-rate factors per parameter, its largest eigenvalue is what gradient descent with
    those factors compares with 2/eta; with `adam_factors` it is Adam's preconditioned curvature.

    Args:
        product: the product of a symmetric A.

    Returns:
        ``product(params, (batch, factors), vector)``, where factors is a pytree like params, or a
        prefix of one, of non-negative numbers or of arrays that broadcast to the parameters.

    Raises:
        TypeError: product is no function of three arguments.
        ValueError: (when it is called) the factors do not fit, or are negative.
    """
    checks.function("product", product, "params", "batch", "vector")

    def scaled_product(
        params: PyTree, batch_and_factors: tuple[PyTree, PyTree], vector: PyTree
    ) -> PyTree:
        batch, factors = batch_and_factors
        checks.check_scale(factors, params)
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

    Raises:
        ValueError: count is below 1, beta2 not in [0, 1), epsilon or an entry of nu negative.

    Source: Cohen et al. (2022), arXiv:2207.14484, equation 2.
    """
    checks.within("count", count, lambda t: t >= 1, "at least 1: factors follow an update")
    checks.within("beta2", beta2, lambda b: (b >= 0) & (b < 1), "in [0, 1)")
    checks.within("epsilon", epsilon, lambda e: e >= 0, "at least 0")
    nu = jax.tree.map(
        lambda v: checks.within("nu", v, lambda x: ~(x < 0), "a mean of squares: at least 0"), nu
    )
    return jax.tree.map(lambda v: 1 / (jnp.sqrt(v / (1 - beta2**count)) + epsilon), nu)
