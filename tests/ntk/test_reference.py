import sys

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import pytest

from ntk import reference


@pytest.fixture(scope="module")
def nt():
    return reference.neural_tangents()


@pytest.fixture(scope="module")
def network(nt):
    stax = nt.stax
    return stax.serial(
        stax.Conv(4, (3, 3), padding="SAME"),
        stax.Relu(),
        stax.AvgPool((2, 2)),
        stax.Flatten(),
        stax.Dense(2, 1.5, 0.1),
    )


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (4, 4, 4, 3))


def test_relu_kernel_is_the_arc_cosine_kernel(nt):
    _, _, kernel_fn = nt.stax.serial(nt.stax.Dense(1), nt.stax.Relu(), nt.stax.Dense(1))
    x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    q, theta = 0.5, np.pi / 2
    expected = q * (np.sin(theta) + (np.pi - theta) * np.cos(theta)) / (2 * np.pi)
    nngp = kernel_fn(x, None, "nngp")
    np.testing.assert_allclose(nngp[0, 1], expected, rtol=1e-6)
    np.testing.assert_allclose(nngp[0, 0], q / 2, rtol=1e-6)


def test_runs_inside_jit_under_strict_settings(network, x):
    kernel_fn = network[2]
    np.testing.assert_allclose(
        jax.jit(lambda x: kernel_fn(x, None, "ntk"))(x), kernel_fn(x, None, "ntk"), rtol=1e-5
    )


def test_finite_network_predict_and_monte_carlo_run(nt, network, x):
    init_fn, apply_fn, kernel_fn = network
    _, params = init_fn(jax.random.key(1), x.shape)
    first, second = (
        nt.empirical_ntk_fn(apply_fn, trace_axes=(), implementation=i)(x, x[:2], params)
        for i in (1, 2)
    )
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-4)
    y = jnp.ones((4, 1))
    predict_fn = nt.predict.gradient_descent_mse(kernel_fn(x, None, "ntk"), y)
    assert predict_fn(1.0, jnp.zeros((4, 1)))[0].shape == (1,)
    samples = nt.monte_carlo_kernel_fn(init_fn, apply_fn, jax.random.key(2), [1, 2], device_count=0)
    assert [s.shape for s in samples(x, None, "nngp")] == [(4, 4), (4, 4)]


def test_import_leaves_no_trace_in_jax(nt):
    assert "jax.util" not in sys.modules
    assert "tensorflow" not in sys.modules
    assert not hasattr(jax.core, "Primitive")
    assert jax.config.jax_numpy_rank_promotion == "raise"


def test_from_neural_tangents_follows_our_protocol(network, x):
    kernel_fn = reference.from_neural_tangents(network[2])
    both = kernel_fn(x, get=("nngp", "ntk"))
    np.testing.assert_array_equal(both.ntk, kernel_fn(x, None, "ntk"))
    np.testing.assert_array_equal(kernel_fn(x).nngp, both.nngp)


def test_a_triple_is_refused(network):
    with pytest.raises(ValueError, match="give the third element"):
        reference.from_neural_tangents(network)


def test_absent_package_says_how_to_install(monkeypatch):
    reference.neural_tangents.cache_clear()
    for name in [n for n in sys.modules if n.split(".")[0] == "neural_tangents"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "neural_tangents", None)
    with pytest.raises(ImportError, match="pip install --no-deps neural-tangents"):
        reference.neural_tangents()
    assert not hasattr(jax.core, "Primitive")
    monkeypatch.undo()
    reference.neural_tangents.cache_clear()
    assert reference.neural_tangents().stax
