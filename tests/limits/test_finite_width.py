"""1 / width coefficients: closed forms, one input against two, and simulated networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limits import finite_width
from limits.finite_width import metric_covariance, vertices
from ntk import empirical_ntk, stax
from ntk.activations import closed_forms


def test_piecewise_linear_networks_in_closed_form():
    """V = 5 (l - 1) and 2 (l - 1), at K = 1."""
    for activation, C_W, nu in ((jax.nn.relu, 2.0, 5), (lambda z: z, 1.0, 2)):
        found = vertices(activation, 12, C_W=C_W, variance=1.0, lambda_W=C_W)
        np.testing.assert_allclose(found.V, nu * np.arange(12), rtol=1e-10)
        np.testing.assert_allclose(found.K, 1, rtol=1e-12)
        np.testing.assert_allclose(found.Theta, np.arange(1, 13), rtol=1e-12)
    assert pytest.approx(0, abs=1e-12) == found.P  # a linear activation learns no representation


def test_relu_tangent_kernel_against_the_networks_simulated_elsewhere():
    """Coefficients at K = Theta = 1 and three layers: B 10, F 6, D 18, A 38."""
    found = vertices(jax.nn.relu, 3, C_W=2.0, variance=1.0, lambda_W=2.0)
    assert [x[-1] for x in (found.B, found.F, found.D, found.A)] == pytest.approx([10, 6, 18, 38])


def test_deep_tanh_has_the_universal_slope():
    found = vertices(jnp.tanh, 400, C_W=1.0, variance=1.0)
    ratio = found.V / found.K**2
    assert ratio[[1, 5, 10, 20]] == pytest.approx([0.627, 3.020, 6.159, 12.616], abs=1e-3)
    assert (ratio[-1] - ratio[-101]) / 100 == pytest.approx(2 / 3, abs=1e-3)


@pytest.mark.parametrize("activation", [jnp.tanh, jax.nn.relu, closed_forms.erf()])
def test_two_inputs_contain_one(activation):
    scales = {"C_W": 1.7, "C_b": 0.1}
    pair = metric_covariance(activation, 3, [[1.2, 0.5], [0.5, 0.9]], **scales)
    for entry, place in ((0, 0), (2, 1)):
        alone = vertices(activation, 3, variance=pair.gram[0, place, place], **scales)
        np.testing.assert_allclose(pair.gram[:, place, place], alone.K, rtol=1e-10)
        np.testing.assert_allclose(pair.covariance[:, entry, entry], alone.V, rtol=1e-9)
        np.testing.assert_allclose(pair.mean_shift[:, entry], alone.G1, rtol=1e-7, atol=1e-10)
    one = metric_covariance(activation, 3, [[1.2]], **scales)
    np.testing.assert_allclose(one.covariance[:, 0, 0], pair.covariance[:, 0, 0], rtol=1e-10)


def test_linear_networks_of_two_inputs_are_wishart():
    """Two layers: Cov(Ghat_ab, Ghat_cd) = (G_ac G_bd + G_ad G_bc) / n, and products of them are exact at 1 / n."""
    gram = np.array([[1.0, 0.3], [0.3, 2.0]])
    found = metric_covariance(lambda z: z, 4, gram, C_W=1.0)
    rows, columns = np.triu_indices(2)
    expected = (
        gram[rows[:, None], rows] * gram[columns[:, None], columns]
        + gram[rows[:, None], columns] * gram[columns[:, None], rows]
    )
    for layer in range(4):
        np.testing.assert_allclose(found.covariance[layer], layer * expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.mean_shift, 0, atol=1e-9)


def test_kinks_off_the_origin_and_nearly_parallel_inputs(x64):
    """M and J against the closed form of ReLU, at a correlation of 0.999."""
    rho = 0.999
    gram = np.array([[1.0, rho], [rho, 1.0]])
    found = metric_covariance(jax.nn.relu, 2, gram, C_W=2.0)
    angle = np.arccos(rho)
    expected = (np.sin(angle) + (np.pi - angle) * rho) / np.pi
    assert found.gram[1, 0, 1] == pytest.approx(expected, rel=1e-10)
    shifted = metric_covariance(lambda z: jax.nn.relu(z - 0.5), 2, gram, C_W=1.0)
    z = np.random.default_rng(0).multivariate_normal([0, 0], gram, 400_000)
    sample = np.maximum(z - 0.5, 0).prod(axis=1)
    error = sample.std() / np.sqrt(len(sample))
    assert shifted.gram[1, 0, 1] == pytest.approx(sample.mean(), abs=4 * error)


def test_a_bent_activation_off_zero_has_no_p():
    shifted = vertices(lambda z: jax.nn.relu(z) + 1.0, 2, C_W=1.0, variance=1.0)
    assert shifted.P is None
    assert shifted.Q is None
    assert shifted.A is not None
    assert vertices(jax.nn.relu, 2, C_W=1.0, variance=1.0).P is not None
    assert vertices(jnp.tanh, 2, C_W=1.0, variance=1.0, gamma=0.5).A is None


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "C_W"), [(stax.Relu(), 2.0), (stax.Erf(), 1.3)])
def test_tangent_kernels_of_networks(activation, C_W):
    """B, F, D and A from 1200 networks of three layers, 8 outputs, width 128."""
    width, outputs, count = 128, 8, 1200
    layers = [stax.Dense(width, C_W**0.5), activation] * 2
    init_fn, apply_fn, _ = stax.serial(*layers, stax.Dense(outputs, C_W**0.5))
    x = jnp.ones((1, width))

    def one(key):
        params = init_fn(key, x.shape)[1]
        return apply_fn(params, x)[0], empirical_ntk(apply_fn, params, x, None, trace_axes=())[0, 0]

    run = jax.jit(jax.vmap(one))
    keys = jax.random.split(jax.random.key(0), count).reshape(-1, 100)
    z, H = (np.concatenate(part).astype(float) for part in zip(*map(run, keys)))
    pairs = outputs * (outputs - 1)
    diagonal = np.einsum("kii->ki", H)
    off = diagonal - diagonal.mean()
    statistics = {
        "B": ((H**2).sum((1, 2)) - (diagonal**2).sum(1)) / pairs,
        "F": (np.einsum("ki,kij,kj->k", z, H, z) - (z**2 * diagonal).sum(1)) / pairs,
        "D": ((z**2).sum(1) * off.sum(1) - (z**2 * off).sum(1)) / pairs,
        "A": (off.sum(1) ** 2 - (off**2).sum(1)) / pairs,
    }
    fn = {2.0: jax.nn.relu}.get(C_W, jax.scipy.special.erf)
    theory = vertices(fn, 3, C_W=C_W, variance=C_W, lambda_W=C_W)
    assert diagonal.mean() == pytest.approx(theory.Theta[-1], rel=0.03)
    for name, values in statistics.items():
        expected = getattr(theory, name)[-1]
        error = width * values.std() / np.sqrt(count)
        assert width * values.mean() == pytest.approx(
            expected, abs=4 * error + 0.06 * abs(expected)
        ), name


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="at least C_b"):
        vertices(jnp.tanh, 3, C_W=1.0, C_b=2.0, variance=1.0)
    with pytest.raises(ValueError, match="shape"):
        metric_covariance(jnp.tanh, 3, np.eye(3), C_W=1.0)
    with pytest.raises(ValueError, match="parallel"):
        metric_covariance(jnp.tanh, 3, np.ones((2, 2)), C_W=1.0)
    with pytest.raises(ValueError, match="symmetric"):
        metric_covariance(jnp.tanh, 3, [[1.0, 0.5], [0.2, 1.0]], C_W=1.0)
    with pytest.raises(TypeError, match="did you mean 'lambda_W'"):
        vertices(jnp.tanh, 3, C_W=1.0, variance=1.0, lamda_W=1.0)
    assert finite_width.Vertices._fields[:2] == ("K", "Theta")
