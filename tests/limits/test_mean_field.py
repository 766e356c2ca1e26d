"""The closed dynamics of the moments against explicit networks, kernels and Monte Carlo."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metrics
import ntk
from limits import mean_field
from limits.mean_field import Moments, Target

DIM, EXAMPLES = 6, 20
SETTING = {"alpha": 1.5, "epsilon": 0.4}


@pytest.fixture
def problem(x64):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((EXAMPLES, DIM)) / np.sqrt(DIM))
    return x, (x @ rng.standard_normal(DIM)) ** 2


def draw(width, seed=0, dim=DIM):
    return jnp.asarray(np.random.default_rng([seed, width]).standard_normal((width, dim)))


def explicit(weights, x, y, steps, rate, centered, **setting):
    """Gradient descent on the weights themselves, by automatic differentiation."""
    start = mean_field.apply(weights, x, **setting) * centered

    def loss(w):
        return (
            jnp.mean((mean_field.apply(w, x, **setting) - start - y) ** 2) / setting["alpha"] ** 2
        )

    def step(w, _):
        return w - rate * weights.shape[0] * jax.grad(loss)(w), None

    return jax.jit(lambda w: jax.lax.scan(step, w, length=steps)[0])(weights)


@pytest.mark.parametrize(("width", "centered"), [(1, True), (30, False)])
def test_moments_follow_the_network_exactly(problem, width, centered):
    weights = draw(width)
    setting = SETTING | {"learning_rate": 0.3, "centered": centered}
    path = mean_field.gradient_descent(mean_field.moments(weights), problem, [0, 1, 200], **setting)
    for row, steps in [(0, 0), (2, 200)]:
        expected = mean_field.moments(explicit(weights, *problem, steps, 0.3, centered, **SETTING))
        np.testing.assert_allclose(path.mean[row], expected.mean, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(path.second[row], expected.second, rtol=1e-9, atol=1e-10)
    assert jnp.abs(path.second[-1] - path.second[0]).max() > 0.1, "nothing was learnt"


def test_outputs_and_kernel_are_those_of_the_network(problem):
    x, _ = problem
    weights = draw(7)
    moments = mean_field.moments(weights)
    outputs = mean_field.predict(moments, x, **SETTING)
    np.testing.assert_allclose(outputs, mean_field.apply(weights, x, **SETTING), rtol=1e-12)
    kernel = ntk.empirical_ntk(
        lambda w, x: mean_field.apply(w, x, **SETTING), weights, x[:5], x, implementation=1
    )
    scaled = mean_field.tangent_kernel(moments, x[:5], x, epsilon=SETTING["epsilon"])
    np.testing.assert_allclose(scaled * SETTING["alpha"] ** 2 / 7, kernel, rtol=1e-11)
    square = mean_field.tangent_kernel(moments, x, epsilon=0.4)
    np.testing.assert_allclose(square[:5], scaled, rtol=1e-12)


def test_population_loss_is_the_mean_over_inputs(problem):
    rng = np.random.default_rng(1)
    hessian = rng.standard_normal((DIM, DIM))
    target = Target(jnp.asarray(rng.standard_normal(DIM)), jnp.asarray(hessian + hessian.T))
    moments = mean_field.moments(draw(4))
    x = jnp.asarray(rng.standard_normal((200_000, DIM)) / np.sqrt(DIM))
    y = x @ target.linear + jnp.sum((x @ target.hessian) * x, axis=1) / 2
    errors = np.asarray((mean_field.predict(moments, x, **SETTING) - y) ** 2)
    exact = mean_field.population_loss(moments, target, **SETTING)
    assert abs(errors.mean() - exact.total) < 4 * errors.std() / np.sqrt(len(errors))
    assert min(exact) > 0.01, "every part of the loss is there"


def test_population_loss_of_the_target_is_zero_and_paths_go_through(x64):
    beta = np.arange(1.0, 4.0)
    moments = Moments(jnp.zeros((2, 3)), jnp.stack([2 * np.outer(beta, beta), np.eye(3)]))
    target = Target(jnp.zeros(3), jnp.asarray(2 * np.outer(beta, beta)))
    loss = mean_field.population_loss(moments, target, alpha=2.0, epsilon=0.5)
    np.testing.assert_allclose(loss.total[0], 0, atol=1e-12)
    alone = mean_field.population_loss(
        Moments(jnp.zeros(3), jnp.eye(3)), target, alpha=2.0, epsilon=0.5
    )
    np.testing.assert_allclose(loss.total[1], alone.total, rtol=1e-12)


def test_finite_widths_approach_the_limit_as_the_square_root(problem):
    """|path(N) - path(infinity)| falls as N^(-1/2)."""
    widths = 2 ** np.arange(5, 13)
    setting = SETTING | {"learning_rate": 0.3}
    limit = mean_field.gradient_descent(mean_field.infinite_width(DIM), problem, [100], **setting)

    def distance(width, seed):
        start = mean_field.moments(draw(width, seed))
        path = mean_field.gradient_descent(start, problem, [100], **setting)
        return float(jnp.linalg.norm(path.second - limit.second))

    distances = np.array([[distance(width, seed) for width in widths] for seed in range(8)])
    fit = metrics.fit_power_law(widths, distances, jax.random.key(0))
    assert abs(fit.exponent - -0.5) < 0.1


def kernel_descent(kernel, y, steps, rate):
    outputs = jnp.zeros_like(y)
    for _ in range(steps):
        outputs = outputs - 2 * rate / len(y) * kernel @ (outputs - y)
    return outputs


@pytest.mark.parametrize("width", [30, None])
def test_lazy_descent_is_descent_on_the_tangent_kernel(problem, width):
    x, y = problem
    start = mean_field.moments(draw(width)) if width else mean_field.infinite_width(DIM)
    path = mean_field.lazy_descent(start, problem, [0, 50, np.inf], epsilon=0.4, learning_rate=0.5)
    outputs = jax.vmap(lambda m: mean_field.predict(m, x, alpha=1.0, epsilon=0.4))(path)
    kernel = mean_field.tangent_kernel(start, x, epsilon=0.4)
    np.testing.assert_allclose(outputs[0], 0, atol=1e-14)
    np.testing.assert_allclose(outputs[1], kernel_descent(kernel, y, 50, 0.5), rtol=1e-10)
    np.testing.assert_allclose(outputs[2], y, rtol=1e-6)
    new = draw(5) / 2
    cross = mean_field.tangent_kernel(start, new, x, epsilon=0.4)
    fresh = mean_field.predict(Moments(*(m[2] for m in path)), new, alpha=1.0, epsilon=0.4)
    np.testing.assert_allclose(fresh, cross @ jnp.linalg.solve(kernel, y), rtol=1e-5, atol=1e-8)


def test_large_alpha_is_lazy_with_an_error_of_one_over_alpha(problem):
    start = mean_field.infinite_width(DIM)
    lazy = mean_field.lazy_descent(start, problem, [50], epsilon=0.4, learning_rate=0.5).second[0]

    def error(alpha):
        path = mean_field.gradient_descent(
            start, problem, [50], alpha=alpha, epsilon=0.4, learning_rate=0.5
        )
        change = mean_field.subtract(path, start).second[0]
        return float(jnp.linalg.norm(alpha * change - lazy) / jnp.linalg.norm(lazy))

    assert error(1e6) < 1e-5
    assert error(100.0) / error(1000.0) == pytest.approx(10, rel=0.05)
    assert error(1.0) > 0.1, "small alpha is not lazy"


def test_an_unstable_rate_is_refused_in_the_lazy_limit_and_diverges_beyond_it(problem):
    start = mean_field.infinite_width(DIM)
    with pytest.raises(ValueError, match="unstable; it must be below") as error:
        mean_field.lazy_descent(start, problem, [5], epsilon=0.4, learning_rate=1e3)
    bound = float(str(error.value).split()[-1])
    setting = {"alpha": 1e4, "epsilon": 0.4}
    for factor, stable in [(0.9, True), (1.1, False)]:
        path = mean_field.gradient_descent(
            start, problem, [400], learning_rate=factor * bound, **setting
        )
        outputs = mean_field.predict(
            Moments(*(m[0] for m in mean_field.subtract(path, start))), problem[0], **setting
        )
        error = jnp.linalg.norm(outputs - problem[1]) / jnp.linalg.norm(problem[1])
        assert bool(error < 1) == stable


def test_single_precision_suffices_in_the_lazy_regime(problem):
    """The moments move by 1e-4 in all here, and each of 2000 steps by far less than their rounding."""
    setting = {"alpha": 3e3, "epsilon": 0.4, "learning_rate": 0.2}
    start = mean_field.infinite_width(DIM)

    def outputs(dtype):
        x, y, first = jax.tree.map(lambda a: jnp.asarray(a, dtype), (*problem, start))
        path = mean_field.gradient_descent(first, (x, y), [2000], **setting, centered=True)
        assert path.second.dtype == dtype
        return np.asarray(path.second[0] - first.second, np.float64)

    change = outputs(jnp.float64)
    # What is returned is start + change, so that one rounding of the moments themselves remains.
    np.testing.assert_allclose(outputs(jnp.float32), change, atol=2e-7, rtol=1e-3)


def test_vmap_over_alpha_is_the_loop(problem):
    start, alphas = mean_field.infinite_width(DIM), jnp.array([0.5, 1.0, 4.0])

    def path(alpha):
        return mean_field.gradient_descent(
            start, problem, [1, 10, 60], alpha=alpha, epsilon=0.4, learning_rate=0.2
        )

    together = jax.vmap(path)(alphas)
    for row, alpha in enumerate(alphas):
        np.testing.assert_allclose(together.second[row], path(alpha).second, rtol=1e-10, atol=1e-13)


def test_invariant_under_rotations_of_the_inputs(problem):
    x, y = problem
    rotation = jnp.linalg.qr(draw(DIM, seed=5))[0]
    setting = SETTING | {"learning_rate": 0.3}
    start = mean_field.moments(draw(9))
    turned = Moments(rotation @ start.mean, rotation @ start.second @ rotation.T)
    path = mean_field.gradient_descent(start, (x, y), [80], **setting)
    other = mean_field.gradient_descent(turned, (x @ rotation.T, y), [80], **setting)
    np.testing.assert_allclose(
        other.second[0], rotation @ path.second[0] @ rotation.T, rtol=1e-8, atol=1e-10
    )


def test_aligned_features_are_those_of_weights_moved_along_the_direction(x64):
    rng = np.random.default_rng(2)
    direction, weights = rng.standard_normal(4), rng.standard_normal((200_000, 4))
    unit = direction / np.linalg.norm(direction)
    moved = weights + 3 * rng.standard_normal((200_000, 1)) * unit
    expected = mean_field.moments(jnp.asarray(moved))
    found = mean_field.aligned(mean_field.infinite_width(4), jnp.asarray(direction), 3.0)
    np.testing.assert_allclose(found.second, expected.second, atol=0.1)
    np.testing.assert_array_equal(found.mean, 0)


@pytest.mark.parametrize(
    ("shape", "targets", "steps", "words"),
    [
        ((5, 3), 5, [1], "moments of dimension 6 need (P, 6)"),
        ((5, 6), 4, [1], "targets (4,)"),
        ((5, 6), 5, [1, 1], "they must increase"),
        ((5, 6), 5, [-1], "they must increase"),
        ((5, 6), 5, [], "they must increase"),
    ],
)
def test_mistakes_are_named(shape, targets, steps, words):
    train = jnp.zeros(shape), jnp.zeros(targets)
    with pytest.raises(ValueError, match=re.escape(words)):
        mean_field.gradient_descent(
            mean_field.infinite_width(6), train, steps, **SETTING, learning_rate=0.1
        )
