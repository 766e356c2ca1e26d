"""Curvature products against dense matrices built by definition, and their invariances."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from metrics import blocks, operators, spectra
from metrics.curvature import eigenpairs, sharpness

CLASSES = 3


def network(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["in"]["kernel"] + params["in"]["bias"][None])
    return hidden @ params["out"]["kernel"]


def cross_entropy(logits, batch):
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * batch["y"], -1))


def loss(params, batch):
    return cross_entropy(network(params, batch), batch)


def losses(params, batch):
    return -jnp.sum(jax.nn.log_softmax(network(params, batch)) * batch["y"], -1)


def problem(samples=8, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    params = {
        "in": {"kernel": rng.normal(size=(4, 5)), "bias": rng.normal(size=5)},
        "out": {"kernel": rng.normal(size=(5, CLASSES))},
    }
    batch = {
        "x": rng.normal(size=(samples, 4)),
        "y": np.eye(CLASSES)[rng.integers(0, CLASSES, samples)],
    }
    cast = functools.partial(jax.tree.map, lambda a: jnp.asarray(a, dtype))
    return cast(params), cast(batch)


@functools.partial(jax.jit, static_argnames="product")
def dense(product, params, batch):
    """The matrix of a product, column by column."""
    flat, unravel = ravel_pytree(params)
    columns = jax.vmap(lambda v: ravel_pytree(product(params, batch, unravel(v)))[0])
    return columns(jnp.eye(flat.size, dtype=flat.dtype)).T


@functools.partial(jax.jit, static_argnames="function")
def jacobian(function, params, batch):
    flat, unravel = ravel_pytree(params)
    return jax.jacrev(lambda w: function(unravel(w), batch))(flat)


@pytest.mark.usefixtures("x64")
def test_hessian_is_gauss_newton_plus_residual():
    params, batch = problem()
    flat, unravel = ravel_pytree(params)
    H = jax.jit(jax.hessian(lambda w, b: loss(unravel(w), b)))(flat, batch)
    G = dense(operators.gauss_newton(network, cross_entropy), params, batch)
    R = dense(operators.residual(network, cross_entropy), params, batch)
    np.testing.assert_allclose(dense(operators.hessian(loss), params, batch), H, atol=1e-13)
    np.testing.assert_allclose(G + R, H, atol=1e-13)
    assert np.linalg.norm(R) > 0.1 * np.linalg.norm(H)
    assert np.linalg.eigvalsh(G)[0] > -1e-13


@pytest.mark.usefixtures("x64")
def test_gauss_newton_and_fisher_from_the_jacobian():
    """G = (1/N) sum_i J_i^T (diag p - p p^T) J_i, whatever the labels."""
    params, batch = problem()
    J = np.asarray(jacobian(network, params, batch))
    p = np.asarray(jax.nn.softmax(network(params, batch)))
    curved = np.einsum("nc,cd->ncd", p, np.eye(CLASSES)) - np.einsum("nc,nd->ncd", p, p)
    G = np.einsum("nca,ncd,ndb->ab", J, curved, J) / len(J)
    other = batch | {"y": jnp.roll(batch["y"], 1, 1)}
    for data in (batch, other):
        ours = dense(operators.gauss_newton(network, cross_entropy), params, data)
        np.testing.assert_allclose(ours, G, atol=1e-13)
        np.testing.assert_allclose(
            dense(operators.fisher(network, "categorical"), params, data), G, atol=1e-13
        )


def sampled(likelihood, samples, params, batch):
    product = operators.fisher_monte_carlo(network, likelihood, samples)
    return dense(product, params, (batch, jax.random.key(1)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("likelihood", ["categorical", "gaussian", "bernoulli"])
def test_monte_carlo_fisher_agrees_with_the_exact_one(likelihood):
    params, batch = problem()
    exact = dense(operators.fisher(network, likelihood), params, batch)

    def error(samples):
        F = sampled(likelihood, samples, params, batch)
        return np.linalg.norm(F - exact) / np.linalg.norm(exact)

    many = error(10000)
    assert many < 0.03
    if likelihood == "categorical":
        assert 3 < error(100) / many < 30  # 1/sqrt(samples): 10


@pytest.mark.usefixtures("x64")
def test_second_moments_from_per_example_gradients():
    params, batch = problem()
    g = np.asarray(jacobian(losses, params, batch))
    F = dense(operators.empirical_fisher(losses), params, batch)
    C = dense(operators.gradient_covariance(losses), params, batch)
    np.testing.assert_allclose(F, g.T @ g / len(g), atol=1e-13)
    np.testing.assert_allclose(C, np.cov(g.T, bias=True), atol=1e-13)
    np.testing.assert_allclose(operators.per_example(loss)(params, batch), losses(params, batch))


@pytest.mark.usefixtures("x64")
def test_blocks_are_the_diagonal_blocks():
    params, batch = problem()
    H = np.asarray(dense(operators.hessian(loss), params, batch))
    assert blocks.layers(params) == ["in", "out"]
    product = operators.hessian(blocks.on_block(loss))
    dense_blocks = blocks.per_layer(lambda b, data: dense(product, b, data), params, batch)
    np.testing.assert_allclose(dense_blocks["in"], H[:25, :25], atol=1e-13)
    np.testing.assert_allclose(dense_blocks["out"], H[25:, 25:], atol=1e-13)
    block, rest = blocks.partition(params, "out")
    top = sharpness(blocks.on_block(loss), block, (batch, rest), num_steps=15)
    np.testing.assert_allclose(top.value[0], np.linalg.eigvalsh(H[25:, 25:])[-1])
    kernels, rest = blocks.partition(params, lambda path: path.endswith("kernel"))
    keep = np.r_[5:40]  # leaves come in the order in/bias, in/kernel, out/kernel
    np.testing.assert_allclose(
        dense(product, kernels, (batch, rest)), H[np.ix_(keep, keep)], atol=1e-13
    )


@pytest.mark.usefixtures("x64")
def test_accumulated_over_batches_equals_the_full_batch():
    params, batch = problem()
    batches = jax.tree.map(lambda x: x.reshape(4, 2, -1), batch)
    full = dense(operators.hessian(loss), params, batch)
    product = operators.accumulated(operators.hessian(loss))
    np.testing.assert_allclose(dense(product, params, batches), full, atol=1e-14)
    block, rest = blocks.partition(params, "out")
    product = operators.accumulated(
        operators.hessian(blocks.on_block(loss)), axes=(0, None), unroll=True
    )
    np.testing.assert_allclose(dense(product, block, (batches, rest)), full[25:, 25:], atol=1e-14)
    factors = {"in": 0.1, "out": 2.0}
    d = np.sqrt(np.r_[np.full(25, 0.1), np.full(15, 2.0)])
    product = operators.scaled(operators.accumulated(operators.hessian(loss)))
    np.testing.assert_allclose(
        dense(product, params, (batches, factors)), d[:, None] * full * d[None], atol=1e-14
    )


@pytest.mark.usefixtures("x64")
def test_a_data_loader_of_unequal_batches_equals_the_data_in_memory():
    params, batch = problem(samples=11)
    factors, key, opened = {"in": 0.5, "out": 2.0}, jax.random.key(0), []

    def loader():  # 4, 4 and 3 examples, as numpy arrays that exist one at a time
        opened.append(1)
        for i in range(0, 11, 4):
            yield jax.tree.map(lambda x, i=i: np.asarray(x[i : i + 4]), batch), factors

    whole = operators.scaled(operators.hessian(loss))
    product, data = operators.streamed(whole), (batch, factors)
    assert product is operators.streamed(whole)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-12)
    vector = jax.tree.map(jnp.cos, params)
    expected = jax.jit(whole)(params, data, vector)
    for batches in (loader, list(loader())):
        jax.tree.map(close, product(params, batches, vector), expected)
    for passes, estimate in (
        (8, lambda p, b: eigenpairs(p, params, b, k=2, num_steps=8, start=key)),
        (6, lambda p, b: spectra.trace(p, params, b, key, num_probes=6, method="hutch++")),
        (3, lambda p, b: spectra.diagonal(p, params, b, key, num_probes=3)),
    ):
        opened.clear()
        jax.tree.map(close, estimate(product, loader), estimate(whole, data))
        assert len(opened) == passes


def test_loaders_that_cannot_be_gone_through_again_or_are_empty():
    params, batch = problem(dtype=np.float32)
    product = operators.streamed(operators.hessian(loss))
    with pytest.raises(ValueError, match="exhausted after one pass: give a list, a data loader"):
        product(params, iter([batch]), params)
    with pytest.raises(ValueError, match="batches is empty"):
        product(params, [], params)


def test_eight_devices_equal_one():
    """The batch sharded over the mesh, params replicated; float32, so equal to rounding."""
    params, batch = problem(samples=16, dtype=np.float32)
    mesh = Mesh(np.asarray(jax.devices()[:8]), ("batch",))
    sharded = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("batch")))
    copied = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    assert len(sharded["x"].sharding.device_set) == 8
    product = operators.gradient_covariance(losses)
    matrix, shared = dense(product, params, batch), dense(product, copied, sharded)
    np.testing.assert_allclose(shared, matrix, atol=1e-6 * np.abs(matrix).max())
    one = sharpness(loss, params, batch, k=2, num_steps=8)
    eight = sharpness(loss, copied, sharded, k=2, num_steps=8)
    np.testing.assert_allclose(eight.value, one.value, rtol=2e-6)


@pytest.mark.usefixtures("x64")
def test_adam_factors_are_optax_s_preconditioner():
    """One more update of optax's Adam without momentum divides the gradient by these factors."""
    params, batch = problem()
    transform = optax.scale_by_adam(b1=0.0, b2=0.99, eps=1e-3)
    state = transform.init(params)
    for _ in range(3):
        gradient = jax.jit(jax.grad(loss))(params, batch)
        update, state = transform.update(gradient, state)
    factors = operators.adam_factors(state.nu, state.count, beta2=0.99, epsilon=1e-3)
    jax.tree.map(
        lambda u, d, g: np.testing.assert_allclose(u, d * g, rtol=1e-12), update, factors, gradient
    )


def deep_network(params, batch):
    x = batch
    for kernel in params:
        x = jnp.tanh(x @ kernel)
    return jnp.mean(x**2)


def reverse_over_reverse(params, batch, vector):
    def along(p):
        gradient = jax.grad(deep_network)(p, batch)
        return sum(jnp.vdot(g, v) for g, v in zip(gradient, vector))

    return jax.grad(along)(params)


def test_memory_of_a_hessian_product_is_at_most_three_gradients():
    """Measured: 2.0 in JAX 0.10 and 2.8 in 0.12; the control, reverse over reverse, 3.5 and 4.5."""
    params = [jnp.zeros((64, 64))] * 10
    batch = jnp.zeros((2000, 64))

    def temporary(function, *arguments):
        return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    gradient = temporary(jax.grad(deep_network), params, batch)
    assert gradient >= 9 * batch.nbytes  # it stores every layer
    assert temporary(operators.hessian(deep_network), params, batch, params) < 3 * gradient
    # Where programs run in order, as `experiments` has it before JAX 0.12, the control needs 2.0 as well.
    if "scheduler=false" not in os.environ.get("XLA_FLAGS", ""):
        assert temporary(reverse_over_reverse, params, batch, params) > 3 * gradient


def test_fewer_examples_than_eigenvalues_asked_for():
    params, batch = problem(samples=4, dtype=np.float32)
    for operator, rank in ((operators.empirical_fisher, 4), (operators.gradient_covariance, 3)):
        with pytest.raises(ValueError, match=f"k is 5, .* only {rank} eigenvalues that are not 0"):
            eigenpairs(operator(losses), params, batch, k=5, num_steps=8)
    assert eigenpairs(operators.empirical_fisher(losses), params, batch, k=4).value[3] > 0


def test_equal_arguments_give_the_same_product():
    assert operators.hessian(loss) is operators.hessian(loss)
    assert operators.scaled(operators.hessian(loss)) is operators.scaled(operators.hessian(loss))


def test_refused():
    params = problem(dtype=np.float32)[0]
    with pytest.raises(ValueError, match="likelihood is 'poisson'; it must be one of"):
        operators.fisher(network, "poisson")
    with pytest.raises(ValueError, match="num_samples is 0; it must be at least 1"):
        operators.fisher_monte_carlo(network, "gaussian", 0)
    with pytest.raises(ValueError, match=r"'hidden' selects no parameter; the layers are \['in'"):
        blocks.partition(params, "hidden")
    uneven = {"x": jnp.zeros((3, 2, 4)), "y": jnp.zeros((4, 2, 3))}
    with pytest.raises(ValueError, match=r"leading axes \[3, 4\]; all need the same"):
        operators.accumulated(operators.hessian(loss))(params, uneven, params)


@pytest.mark.usefixtures("x64")
def test_streamed_batches_count_by_their_examples_not_by_their_first_leaf():
    """The first leaf is a constant of one number; batches of 8, 8 and 4 examples, against the data in memory."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(20, 3)), rng.normal(size=(20,))
    w = jnp.asarray(rng.normal(size=3))

    def scaled_loss(w, batch):
        return jnp.mean((batch["scale"] * jnp.tanh(batch["x"] @ w) - batch["y"]) ** 2)

    def part(rows, scale):
        return {"scale": scale, "x": x[rows], "y": y[rows]}

    product = operators.hessian(scaled_loss)
    whole = dense(product, w, part(slice(None), np.ones(1)))
    streamed = operators.streamed(product)
    for scale in (np.ones(1), np.ones(()), np.ones(4)[:1]):
        batches = [part(slice(i, min(i + 8, 20)), scale) for i in range(0, 20, 8)]
        columns = [streamed(w, batches, v) for v in jnp.eye(3)]
        np.testing.assert_allclose(np.stack(columns, 1), whole, atol=1e-12)
    ragged = [part(slice(0, 8), np.ones(8)), part(slice(8, 12), np.ones(4))]
    ragged[1]["scale"] = np.ones(1)
    with pytest.raises(ValueError, match="their numbers of examples do not show"):
        streamed(w, ragged, w)


@jax.custom_vjp
def own_reverse(x):
    return jnp.tanh(x)


own_reverse.defvjp(lambda x: (jnp.tanh(x), jnp.tanh(x)), lambda t, g: (g * (1 - t**2),))


@pytest.mark.usefixtures("x64")
def test_products_of_functions_with_rules_for_reverse_mode_only():
    """The same network with tanh as JAX knows it is the other road."""

    def known(params, batch):
        return jnp.tanh(batch["x"] @ params["in"]) @ params["out"]

    @jax.jit
    def own(params, batch):
        return own_reverse(batch["x"] @ params["in"]) @ params["out"]

    def criterion(outputs, batch):
        return jnp.mean(outputs**4)

    rng = np.random.default_rng(4)
    params = {
        "in": jnp.asarray(rng.normal(size=(3, 4))),
        "out": jnp.asarray(rng.normal(size=(4, 2))),
    }
    batch = {"x": jnp.asarray(rng.normal(size=(5, 3)))}

    def squares(f):
        return lambda p, b: jnp.sum(f(p, b) ** 2, 1)

    for make in (
        lambda f: operators.gauss_newton(f, criterion),
        lambda f: operators.residual(f, criterion),
        lambda f: operators.fisher(f, "categorical"),
        lambda f: operators.gradient_covariance(squares(f)),
    ):
        expected = dense(make(known), params, batch)
        np.testing.assert_allclose(dense(make(own), params, batch), expected, atol=1e-12)
