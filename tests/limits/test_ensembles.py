"""Networks drawn without weights: exact moments of ReLU, real weight matrices, and the 1 / width recursions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limits.ensembles import sample_metrics, sample_neurons
from limits.finite_width import metric_covariance, vertices


def variance_and_error(samples):
    """Over blocks, since the variance of a variance is heavy-tailed."""
    blocks = np.array([part.var(ddof=1) for part in np.array_split(samples, 20)])
    return blocks.mean(), blocks.std(ddof=1) / np.sqrt(20)


def test_relu_metrics_have_their_exact_variance():
    """(1 + 5/n)^(l - 1) - 1 at any n."""
    found = sample_metrics(jax.random.key(0), jax.nn.relu, 30, 4, [[1.0]], C_W=2.0, networks=10_000)
    assert found.shape == (10_000, 4, 1)
    for layer in range(4):
        value, error = variance_and_error(found[:, layer, 0].astype(float))
        assert value == pytest.approx((1 + 5 / 30) ** layer - 1, abs=4 * error + 1e-12)


def test_metrics_are_those_of_networks_with_weights():
    """Mean and covariance of two inputs' metric, tanh, width 24, three layers."""
    width, count = 24, 4000
    gram = np.array([[1.0, 0.5], [0.5, 1.5]])
    drawn = sample_metrics(
        jax.random.key(1), jnp.tanh, width, 3, gram, C_W=1.2, C_b=0.1, networks=count
    )[:, 2]
    random = np.random.default_rng(0)
    z = np.linalg.cholesky(gram)[None] @ random.standard_normal((count, 2, width))
    for _ in range(2):
        s = np.tanh(z)
        metric = 0.1 + 1.2 * s @ s.transpose(0, 2, 1) / width
        weights = random.standard_normal((count, width, width)) * np.sqrt(1.2 / width)
        bias = np.sqrt(0.1) * random.standard_normal((count, 1, width))
        z = s @ weights + bias
    with_weights = metric[:, [0, 0, 1], [0, 1, 1]]
    for one, other in zip(drawn.T.astype(float), with_weights.T):
        error = np.hypot(one.std(), other.std()) / np.sqrt(count)
        assert one.mean() == pytest.approx(other.mean(), abs=4 * error)
        assert one.std() == pytest.approx(other.std(), rel=0.08)


def test_residual_networks_break_the_symmetry_of_signs():
    """ReLU: E[z_i z_j^2] and V, with biases too; the recursion without T is far off."""
    width, options = 200, {"C_W": 1.0, "C_b": 0.1, "variance": 1.0, "gamma": 0.6}
    found = sample_neurons(jax.random.key(0), jax.nn.relu, width, 5, networks=6000, **options)
    theory = vertices(jax.nn.relu, 5, **options)
    square, squares, skew = (np.asarray(part[:, -1], float) for part in found)
    assert square.mean() == pytest.approx(theory.K[-1], rel=0.02)
    blocks = [
        width * (a.mean() - b.mean() ** 2)
        for a, b in zip(np.array_split(squares, 20), np.array_split(square, 20))
    ]
    error = np.std(blocks, ddof=1) / np.sqrt(20)
    assert np.mean(blocks) == pytest.approx(theory.V[-1], abs=4 * error + 0.05 * theory.V[-1])
    T, error = width * skew.mean(), width * skew.std() / np.sqrt(6000)
    assert theory.T[-1] > 4 * error
    assert pytest.approx(theory.T[-1], abs=4 * error + 0.05 * theory.T[-1]) == T


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "C_W"), [(jnp.tanh, 1.0), (jax.nn.relu, 2.0)])
def test_two_inputs_fluctuate_as_their_recursion_says(activation, C_W):
    gram = np.array([[1.0, 0.4], [0.4, 1.3]])
    found = sample_metrics(jax.random.key(2), activation, 300, 5, gram, C_W=C_W, networks=20_000)[
        :, -1
    ].astype(float)
    theory = metric_covariance(activation, 5, gram, C_W=C_W)
    covariance = 300 * np.cov(found.T)
    blocks = [300 * np.cov(part.T) for part in np.array_split(found, 20)]
    error = np.std(blocks, axis=0, ddof=1) / np.sqrt(20)
    expected = theory.covariance[-1]
    assert (abs(covariance - expected) < 4 * error + 0.04 * abs(expected)).all()
    shift = 300 * (found.mean(0) - theory.gram[-1][np.triu_indices(2)])
    assert (
        abs(shift - theory.mean_shift[-1]) < 4 * 300 * found.std(0) / np.sqrt(20_000) + 0.01
    ).all()


def test_the_same_key_gives_the_same_networks_and_mistakes_are_named():
    draw = {"C_W": 1.0, "networks": 5}
    one, two = (
        sample_metrics(jax.random.key(0), jnp.tanh, 8, 3, np.eye(3), **draw) for _ in range(2)
    )
    assert one.shape == (5, 3, 6)
    np.testing.assert_array_equal(one, two)
    with pytest.raises(ValueError, match="width"):
        sample_metrics(jax.random.key(0), jnp.tanh, 1, 3, np.eye(1), **draw)
    with pytest.raises(TypeError, match="key"):
        sample_metrics(0, jnp.tanh, 8, 3, np.eye(1), **draw)
    with pytest.raises(ValueError, match="gram"):
        sample_metrics(jax.random.key(0), jnp.tanh, 8, 3, -np.eye(1), **draw)
