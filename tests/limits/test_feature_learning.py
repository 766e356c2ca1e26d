"""One hidden layer at infinite width: moments by hand, finite networks that converge, MAML, and what must fail."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import limits
from limits import feature_learning as fl

D, K, N, RATE, STEPS = 3, 2, 5, 0.3, 6


@pytest.fixture(autouse=True, scope="module")
def unoptimised():
    """Small arrays: compilation is all there is to save."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def batches(dtype=np.float32, steps=STEPS, count=N):
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((steps, count, m)).astype(dtype) for m in (D, K))
    return x, y


def slope(widths, distances):
    """Exponent in width of the RMS over seeds of distances (widths, seeds)."""
    size = np.sqrt(np.square(distances).mean(axis=1))
    return np.polyfit(np.log(widths), np.log(size), 1)[0]


def test_the_linear_limit_is_the_dynamics_of_second_moments(x64):
    """E uu', E vu', E vv' close among themselves: v -= eta G u, u -= eta G' v with G = E chi x'."""
    x, y = batches(float)
    sigma_u, sigma_v = 0.7, 1.3
    net = fl.linear_limit(D, K, sigma_u=sigma_u, sigma_v=sigma_v, dtype=float)
    found = fl.train(net, (x, y), RATE, inputs=x[0])
    uu, vu, vv = sigma_u**2 * np.eye(D), np.zeros((K, D)), sigma_v**2 * np.eye(K)
    for t in range(STEPS):
        np.testing.assert_allclose(found.outputs[t], x[0] @ vu.T, atol=1e-12)
        chi = x[t] @ vu.T - y[t]
        assert found.losses[t] == pytest.approx(0.5 * (chi**2).sum() / N, rel=1e-12)
        g = RATE * chi.T @ x[t] / N
        uu, vu, vv = (
            uu - g.T @ vu - vu.T @ g + g.T @ vv @ g,
            vu - g @ uu - vv @ g + g @ vu.T @ g,
            vv - g @ vu.T - vu @ g.T + g @ uu @ g.T,
        )
    np.testing.assert_allclose(found.outputs[-1], x[0] @ vu.T, atol=1e-12)
    np.testing.assert_allclose(found.net.u.T @ found.net.u, uu, atol=1e-12)


@pytest.mark.parametrize("rule", ["mup", "mean_field", limits.symmetry("mup", 0.3)])
def test_sgd_on_the_weights_of_a_rule_is_the_particle_system(rule, x64):
    x, y = batches(float)
    net = fl.particles(jax.random.key(0), 8, D, K, dtype=float)
    found = fl.train(net, (x, y), RATE, activation=jnp.tanh, inputs=x[0])
    start = fl.weights(net, rule)
    (m1, m2), (r1, r2) = start["multiplier"], start["rate"]

    def outputs(w, x):
        return jnp.tanh(x @ (m1 * w[0])) @ (m2 * w[1])

    step = jax.jit(jax.grad(lambda w, x, y: fl.squared_error(outputs(w, x), y)))
    w = start["w"]
    np.testing.assert_allclose(outputs(w, x[0]), found.outputs[0], atol=1e-12)
    for t in range(STEPS):
        w = tuple(p - RATE * r * g for p, r, g in zip(w, (r1, r2), step(w, x[t], y[t])))
        np.testing.assert_allclose(outputs(w, x[0]), found.outputs[t + 1], atol=1e-12)


def test_units_that_come_twice_or_in_another_order_change_nothing():
    net = fl.particles(jax.random.key(0), 8, D, K)
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(8), 2))
    twice = fl.Particles(net.u[order], net.v[order])
    one, two = (
        fl.train(n, batches(), RATE, activation=jnp.tanh, inputs=batches()[0][0])
        for n in (net, twice)
    )
    np.testing.assert_allclose(two.outputs, one.outputs, atol=1e-6)
    size = jax.jit(lambda net, batch: fl.norm(net, fl.gradient(net, batch)[1]))
    sizes = [float(size(n, (batches()[0][0], batches()[1][0]))) for n in (net, twice)]
    assert sizes[1] == pytest.approx(sizes[0], rel=1e-5)


@functools.partial(jax.jit, static_argnums=(2, 3))
def finite(limit, goal, width, activation, readout=1.0, slower=1.0):
    """Distances (seeds,) of trained networks from the trained limit; by ntk's factors, or none for muP."""
    x = batches()[0][0]

    def distance(key):
        net = limit.sample(key, width)
        rates = fl.Particles(u=RATE * slower, v=RATE)
        net = net._replace(v=readout * net.v)
        trained = fl.train(net, batches(), rates, activation=activation).net
        return jnp.sqrt(jnp.square(trained.apply(x, activation) - goal).mean())

    return jax.vmap(distance)(jax.random.split(jax.random.key(0), 8))


def test_finite_networks_converge_as_the_root_of_the_width():
    widths, limit = (64, 2048), fl.linear_limit(D, K)
    goal = fl.train(limit, batches(), RATE).net.apply(batches()[0][0])
    found = np.array([finite(limit, goal, n, fl.identity) for n in widths])
    assert slope(widths, found) == pytest.approx(-0.5, abs=0.1)
    away = np.array([finite(limit, goal, n, fl.identity, n**0.5, 1 / n) for n in widths])
    assert slope(widths, away) > -0.1, "another parametrization has another limit"


@pytest.mark.slow
def test_particles_converge_to_many_particles():
    widths, population = (32, 1024), fl.particles(jax.random.key(1), 2**15, D, K)
    trained = fl.train(population, batches(), RATE, activation=jnp.tanh).net
    goal = trained.apply(batches()[0][0], jnp.tanh)
    found = np.array([finite(population, goal, n, jnp.tanh) for n in widths])
    assert slope(widths, found) == pytest.approx(-0.5, abs=0.12)


def test_a_trained_limit_can_be_sampled():
    trained = fl.train(fl.linear_limit(D, K), batches(), RATE).net
    x = batches()[0][0]
    goal = trained.apply(x)
    drawn = trained.sample(jax.random.key(0), 2**16).apply(x)
    assert float(jnp.abs(goal).max()) > 0.3
    np.testing.assert_allclose(drawn, goal, atol=0.05)


def test_the_kernel_limit_is_kernel_gradient_descent(x64):
    x, y = (part[0] for part in batches(float))
    repeated = tuple(np.broadcast_to(part, (STEPS, *part.shape)) for part in (x, y))
    found = fl.train(fl.kernel_limit(D, K, float), repeated, RATE, inputs=x)
    f = np.zeros_like(y)
    for t in range(STEPS):
        np.testing.assert_allclose(found.outputs[t], f, atol=1e-12)
        f = f - RATE * (x @ x.T) @ (f - y) / N


def episode(rng, shape, classes=K):
    count = 2 * classes
    support, query = rng.integers(0, 20, (2, *shape, count)).astype(np.int32)
    labels = np.broadcast_to(np.tile(np.arange(classes, dtype=np.int32), 2), (*shape, count))
    return fl.Episodes(support, labels, query, labels)


@pytest.mark.parametrize("wrong", [-1, -5, 3, 100])
def test_a_label_that_is_no_class_has_no_cross_entropy_inside_jit(wrong):
    outputs = jnp.zeros((2, 3))
    compiled = jax.jit(fl.cross_entropy)
    np.testing.assert_allclose(compiled(outputs, jnp.array([0, 2])), np.log(3), rtol=1e-6)
    assert np.isnan(compiled(outputs, jnp.array([0, wrong])))


def test_first_order_maml_by_hand(x64):
    """One outer step: the sum of the gradients at the adapted networks, clipped in the norm free of the width."""
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.standard_normal((20, D)))
    tasks = episode(rng, (1, 3))
    net = fl.particles(jax.random.key(0), 4, D, K, dtype=float)
    inner, outer = 0.4, 0.1

    @jax.jit
    @jax.value_and_grad
    def loss(p, rows, labels):
        return fl.cross_entropy(p.apply(x[rows]), labels)

    total, values = jax.tree.map(jnp.zeros_like, net), []
    for support, s_labels, query, q_labels in zip(*(leaf[0] for leaf in tasks)):
        _, slope = loss(net, support, s_labels)
        adapted = jax.tree.map(lambda p, g: p - inner * 4 * g, net, slope)
        value, slope = loss(adapted, query, q_labels)
        values.append(value)
        total = jax.tree.map(lambda a, b: a + 4 * b, total, slope)
    size = np.sqrt(sum(np.square(g).sum() for g in total) / 4)
    for clip in (10 * size, 0.5 * size):
        found, losses = fl.meta_train(
            net, x, tasks, inner_rate=inner, outer_rate=outer, clip=float(clip)
        )
        factor = min(1.0, clip / size)
        for new, old, g in zip(found, net, total):
            np.testing.assert_allclose(new, old - outer * factor * g, rtol=1e-10)
        np.testing.assert_allclose(losses, [np.mean(values)], rtol=1e-12)


@pytest.mark.slow
def test_maml_of_wide_networks_is_that_of_the_limit():
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.standard_normal((20, D)), jnp.float32)
    train, test = episode(rng, (5, 4)), episode(rng, (4,))

    def outputs(net):
        trained, _ = fl.meta_train(net, x, train, outer_rate=1.0)
        return fl.adapted_outputs(trained, x, test, inner_steps=3)

    @functools.partial(jax.jit, static_argnums=1)
    @functools.partial(jax.vmap, in_axes=(0, None))
    def distance(key, width):
        return jnp.sqrt(jnp.square(outputs(limit.sample(key, width)) - goal).mean())

    limit, widths = fl.linear_limit(D, K), (128, 4096)
    goal = outputs(limit)
    still = fl.adapted_outputs(limit, x, test, inner_steps=3)
    assert float(jnp.abs(goal - still).max()) > 0.1, "meta-training must matter"
    keys = jax.random.split(jax.random.key(0), 8)
    found = np.array([distance(keys, n) for n in widths])
    assert slope(widths, found) == pytest.approx(-0.5, abs=0.12)
    adapted = fl.adapt(limit, (x[test.support[0]], test.support_labels[0]), 0.4, 3)
    np.testing.assert_allclose(goal.shape, (4, 2 * K, K))
    np.testing.assert_allclose(still[0], adapted.apply(x[test.query[0]]), atol=1e-5)


def test_mistakes_are_named():
    x = jnp.zeros((1, D))
    with pytest.raises(ValueError, match="inputs=0 must be at least 1"):
        fl.linear_limit(0, K)
    with pytest.raises(ValueError, match="width=0 must be at least 1"):
        fl.particles(jax.random.key(0), 0, D, K)
    with pytest.raises(ValueError, match="second moments only"):
        fl.linear_limit(D, K).apply(x, jnp.tanh)
    with pytest.raises(ValueError, match=r"ntk\.predict"):
        fl.kernel_limit(D, K).apply(x, jnp.tanh)
    net = fl.particles(jax.random.key(0), 4, D, K)
    for rule, kind in (("ntk", "kernel"), ("standard", "unstable")):
        with pytest.raises(ValueError, match=rf"'{rule}' \({kind}\) does not train towards"):
            fl.weights(net, rule)
