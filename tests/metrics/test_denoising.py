"""Denoisers: linear ones by hand, ReLU networks without biases, Stein's estimate against the true error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metrics import denoising


def linear(matrix, y):
    return (y.reshape(len(y), -1) @ matrix.T).reshape(y.shape)


def relu(weights, y):
    return 0.5 * y + jax.nn.relu(y @ weights[0]) @ weights[1]


def test_a_linear_denoiser_has_the_spectrum_of_its_matrix():
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    matrix = turn @ np.diag([0.9, 0.5, 0.2, -0.1]) @ turn.T
    found = denoising.jacobian_spectrum(linear, jnp.asarray(matrix), jnp.ones((3, 2, 2)))
    np.testing.assert_allclose(found.shrinkage, [[0.9, 0.5, 0.2, -0.1]] * 3, atol=1e-6)
    np.testing.assert_allclose(np.abs(found.basis[1].T @ turn), np.eye(4), atol=1e-5)
    np.testing.assert_allclose(found.degrees, 1.5, rtol=1e-6)
    assert max(found.asymmetry.max(), found.homogeneity.max()) < 1e-5


def test_asymmetry_by_hand():
    """Of [[1, 2], [0, 1]]: |J - J^T| = 2 sqrt 2 and |J + J^T| = sqrt(4 + 4 + 4 + 4)."""
    found = denoising.jacobian_spectrum(
        linear, jnp.array([[1.0, 2.0], [0.0, 1.0]]), jnp.ones((1, 2))
    )
    assert float(found.asymmetry[0]) == pytest.approx(8**0.5 / 4)


def test_networks_without_biases_are_homogeneous_and_others_not():
    random = np.random.default_rng(1)
    weights = [jnp.asarray(random.standard_normal(s), jnp.float32) for s in ((6, 20), (20, 6))]
    y = jnp.asarray(random.standard_normal((8, 6)), jnp.float32)
    assert denoising.jacobian_spectrum(relu, weights, y).homogeneity.max() < 1e-5
    shifted = denoising.jacobian_spectrum(lambda w, y: relu(w, y) + 1, weights, y)
    assert shifted.homogeneity.min() > 1e-3


@pytest.mark.parametrize("probes", [None, 4])
def test_stein_s_estimate_is_the_error_with_clean_examples(probes):
    """Of a ReLU network on 4000 noisy points, to four standard errors of their difference; not without its trace."""
    random, noise = np.random.default_rng(2), 0.7
    weights = [jnp.asarray(random.standard_normal(s) / 3, jnp.float32) for s in ((6, 20), (20, 6))]
    x = random.uniform(-2, 2, (4000, 6))
    y = jnp.asarray(x + noise * random.standard_normal(x.shape), jnp.float32)
    key = {} if probes is None else {"key": jax.random.key(0), "num_probes": probes}
    found = denoising.sure(relu, weights, y, noise, **key)
    true = ((relu(weights, y) - x) ** 2).sum(1)
    assert abs(found.value - true.mean()) < 4 * found.error
    assert found.error < 0.05 * true.mean()
    residual = ((relu(weights, y) - y) ** 2).sum(1).mean() - 6 * noise**2
    assert abs(residual - true.mean()) > 10 * found.error


def test_stein_s_estimate_of_a_linear_denoiser_by_hand():
    """|(A - 1) y|^2 + 2 s^2 tr A - d s^2 of images that are kept as images."""
    y = jnp.arange(24.0).reshape(2, 3, 4) / 10
    found = denoising.sure(linear, 0.5 * jnp.eye(12), y, 0.3)
    expected = (np.asarray(y) ** 2).sum((1, 2)) / 4 + 0.09 * (2 * 6 - 12)
    assert float(found.value) == pytest.approx(expected.mean(), rel=1e-5)
    assert float(found.error) == pytest.approx(abs(expected[0] - expected[1]) / 2, rel=1e-5)
