"""Nonlinear layers: kernels against neural-tangents and against finite networks; arguments; errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk import reference
from ntk.stax import nonlinearities as nl
from ntk.stax.combinators import serial
from ntk.stax.linear import Dense

ARGUMENTS = {
    "Relu": (),
    "ABRelu": (-0.5, 1.3),
    "LeakyRelu": (0.2,),
    "Abs": (),
    "Sign": (),
    "Erf": (0.7, 1.3, 0.4),
    "Sigmoid_like": (),
    "Gelu": (),
    "Sin": (1.2, 0.9, 0.3),
    "Cos": (1.2, 0.9, 0.3),
    "Rbf": (0.7,),
    "Gaussian": (1.3, -0.8),
    "Gabor": (),
    "Exp": (0.6, 0.8),
    "ExpNormalized": (0.5, -1.0, True),
    "Hermite": (3,),
    "Monomial": (4,),
    "Polynomial": ((0.3, -0.5, 0.0, 0.2),),
}
X1 = np.random.default_rng(0).normal(size=(4, 6))
X2 = np.random.default_rng(1).normal(size=(3, 6))


def kernels(stax, name, arguments, dtype):
    layers = stax.Dense(8, 1.2, 0.3), getattr(stax, name)(*arguments), stax.Dense(1, 0.9)
    return stax.serial(*layers)[2](jnp.asarray(X1, dtype), jnp.asarray(X2, dtype), ("nngp", "ntk"))


class ours:
    Dense, serial = Dense, serial


for _name in dir(nl):
    if _name[0].isupper():
        setattr(ours, _name, getattr(nl, _name))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_equals_neural_tangents(name, x64):
    try:
        stax = reference.neural_tangents().stax
    except ImportError as error:
        pytest.skip(str(error))
    theirs = kernels(stax, name, ARGUMENTS[name], jnp.float64)
    for dtype, rtol in ((jnp.float64, 1e-12), (jnp.float32, 1e-5)):
        for mine, peer in zip(kernels(ours, name, ARGUMENTS[name], dtype), theirs):
            np.testing.assert_allclose(mine, peer, rtol=rtol, atol=rtol * np.abs(peer).max())


def finite_kernels(layer, key, samples=48, width=512):
    """NNGP and NTK of finite networks, and their standard errors over samples."""
    init_fn, apply_fn, _ = serial(Dense(width, 1.2, 0.3), layer, Dense(1, 0.9))
    x = jnp.asarray(X1[:3], jnp.float32)

    @jax.jit
    def sample(key):
        _, params = init_fn(key, (-1, 6))
        hidden = serial(Dense(width, 1.2, 0.3), layer)[1](params[:2], x)
        jacobian = jax.jacobian(lambda p: apply_fn(p, x)[:, 0])(params)
        ntk = sum(
            jnp.tensordot(j, j, (tuple(range(1, j.ndim)),) * 2) for j in jax.tree.leaves(jacobian)
        )
        return 0.81 * hidden @ hidden.T / width, ntk

    draws = [np.stack(d) for d in zip(*map(sample, jax.random.split(key, samples)))]
    return [(d.mean(axis=0), d.std(axis=0) / samples**0.5) for d in draws]


@pytest.mark.parametrize(
    "name",
    ["RectifiedMonomial", "ElementwiseNumerical", pytest.param("HardTanh", marks=pytest.mark.slow)],
)
def test_equals_finite_networks_where_neural_tangents_cannot(name):
    arguments = {
        "RectifiedMonomial": (2,),
        "ElementwiseNumerical": (jax.nn.silu, 25),
        "Elu": (0.7,),
    }
    layer = getattr(nl, name)(*arguments.get(name, ()))
    x = jnp.asarray(X1[:3], jnp.float32)
    exact = serial(Dense(8, 1.2, 0.3), layer, Dense(1, 0.9))[2](x, None, ("nngp", "ntk"))
    for (mean, standard_error), k in zip(finite_kernels(layer, jax.random.key(0)), exact):
        # 512 units: a bias of order 1/512 comes on top of the sampling error.
        assert (np.abs(mean - k) <= 4 * standard_error + 3e-3 * np.abs(k).max()).all()


def test_arguments_and_values_of_the_finite_layers():
    x = jnp.linspace(-2, 2, 9)
    expected = {
        "LeakyRelu": jnp.where(x > 0, x, 0.2 * x),
        "ABRelu": jnp.where(x > 0, 1.3 * x, -0.5 * x),
        "Cos": 1.2 * jnp.cos(0.9 * x + 0.3),
        "Rbf": 2**0.5 * jnp.sin(1.4**0.5 * x + jnp.pi / 4),
        "Gaussian": 1.3 * jnp.exp(-0.8 * x**2),
        "Hermite": (x**3 - 3 * x) / 6**0.5,
        "Polynomial": 0.3 - 0.5 * x + 0.2 * x**3,
        "Exp": 0.6 * jnp.exp(0.8 * x),
    }
    for name, values in expected.items():
        _, apply_fn, _ = getattr(nl, name)(*ARGUMENTS[name])
        np.testing.assert_allclose(apply_fn((), x), values, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(nl.Step()[1]((), x), x >= 0)
    approximate = nl.Gelu(approximate=True)[1]((), x)
    np.testing.assert_allclose(approximate, jax.nn.gelu(x, approximate=True), rtol=1e-6)


def test_users_own_integral_in_a_layer():
    def integral(cov12, var1, var2):
        return jnp.exp(-(var1 + var2) / 2) * jnp.sinh(cov12)  # of sin

    by_hand = kernels(ours, "Elementwise", (jnp.sin, integral), jnp.float32)
    by_series = kernels(ours, "Elementwise", (jnp.sin,), jnp.float32)
    exact = kernels(ours, "Sin", (), jnp.float32)
    for a, b, c in zip(by_hand, by_series, exact):
        np.testing.assert_allclose(a, c, atol=3e-6)
        np.testing.assert_allclose(b, c, atol=3e-6)


def test_zero_inputs_give_finite_kernels():
    x = jnp.zeros((2, 6)).at[1].set(1.0)
    for name in ("Erf", "Softplus", "Sign"):
        kernel_fn = serial(Dense(8), getattr(nl, name)(), Dense(8), getattr(nl, name)(), Dense(1))[
            2
        ]
        for k in kernel_fn(x, None, ("nngp", "ntk")):
            assert np.isfinite(k).all()


def test_errors():
    with pytest.raises(ValueError, match="degree is -1"):
        nl.Monomial(-1)
    with pytest.raises(ValueError, match=r"degree is 1\.5"):
        nl.Hermite(1.5)
    with pytest.raises(ValueError, match="deg is 0"):
        nl.ElementwiseNumerical(jnp.tanh, 0)
    with pytest.raises(ValueError, match="neither fn nor nngp_fn"):
        nl.Elementwise()
    with pytest.raises(ValueError, match="tolerance"):
        nl.Elementwise(jnp.tanh, lambda c, a, b: c, tolerance=1e-3)
    with pytest.raises(ValueError, match=r"kinks is \(0\.0,\); it must hold \(at, jump, slope"):
        nl.Elementwise(jnp.tanh, kinks=(0.0,))
    with pytest.raises(ValueError, match="gamma is -1"):
        nl.Rbf(-1.0)
    with pytest.raises(ValueError, match="no apply_fn"):
        nl.ExpNormalized()[1]((), jnp.ones(3))
    with pytest.raises(ValueError, match="shape of its input"):
        nl.Elementwise(lambda x: x.sum())


@pytest.mark.parametrize(
    "make",
    [
        lambda: nl.LeakyRelu(float("nan")),
        lambda: nl.Erf(1.0, float("inf")),
        lambda: nl.Polynomial((1.0, float("nan"))),
        lambda: nl.Rbf(np.float64("inf")),
    ],
)
def test_numbers_that_are_not_finite_are_refused(make):
    with pytest.raises(ValueError, match="not finite"):
        make()
