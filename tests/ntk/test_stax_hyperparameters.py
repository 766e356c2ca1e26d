"""Hyperparameters of layers and nonlinearities are traced: jit, vmap and grad against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk import stax
from ntk.stax import nonlinearities

GET = ("nngp", "ntk")


def noise(i, *shape):
    return jnp.asarray(np.random.default_rng(i).standard_normal(shape))


def around(middle, first=(1.2, 0.3), last=(1.1, 0.2)):
    return stax.serial(stax.Dense(4, *first), middle, stax.Dense(1, *last))


def blocks(scales):
    """Three hidden layers, each with a scale of its own: equal specs but for tracers."""
    layers = [layer for W in scales for layer in (stax.Dense(4, W, 0.1), stax.Relu())]
    return stax.serial(*layers, stax.Dense(1))


VECTORS = {
    "ABRelu a": lambda p: around(stax.ABRelu(p, 1.0)),
    "ABRelu b": lambda p: around(stax.ABRelu(0.2, p)),
    "LeakyRelu": lambda p: around(stax.LeakyRelu(p)),
    "Elu": lambda p: around(stax.Elu(p)),
    "Erf a": lambda p: around(stax.Erf(p, 1.1, 0.2)),
    "Erf b": lambda p: around(stax.Erf(0.9, p, 0.2)),
    "Erf c": lambda p: around(stax.Erf(0.9, 1.1, p)),
    "Sin a": lambda p: around(stax.Sin(p, 0.8, 0.3)),
    "Sin b": lambda p: around(stax.Sin(0.9, p, 0.3)),
    "Sin c": lambda p: around(stax.Sin(0.9, 0.8, p)),
    "Cos b": lambda p: around(stax.Cos(0.9, p, 0.3)),
    "Rbf": lambda p: around(stax.Rbf(p)),
    "Gaussian a": lambda p: around(stax.Gaussian(p, -0.7)),
    "Gaussian b": lambda p: around(stax.Gaussian(0.9, -p)),
    "Exp a": lambda p: around(stax.Exp(p, 0.4)),
    "Exp b": lambda p: around(stax.Exp(0.9, p)),
    "ExpNormalized gamma": lambda p: around(stax.ExpNormalized(p, -0.8)),
    "ExpNormalized shift": lambda p: around(stax.ExpNormalized(0.8, -p)),
    "Polynomial": lambda p: around(stax.Polynomial((0.2, p, 0.3))),
    "Dense W": lambda p: around(stax.Relu(), first=(p, 0.3)),
    "Dense b": lambda p: around(stax.Relu(), last=(1.1, p)),
    "Dense standard": lambda p: stax.serial(
        stax.Dense(4, p, 0.3, parameterization="standard"), stax.Relu(), stax.Dense(1, 1.1, p)
    ),
    "Dropout": lambda p: around(stax.serial(stax.Relu(), stax.Dropout(p))),
    "LayerNorm": lambda p: around(stax.serial(stax.LayerNorm(eps=p), stax.Relu())),
    "DotGeneral": lambda p: around(stax.serial(stax.DotGeneral(rhs=p), stax.Erf())),
    "three layers": lambda p: blocks([p, 1.1 * p, 1.2 * p]),
    "one tracer three times": lambda p: blocks([p, p, p]),
    "three biases": lambda p: around(
        stax.repeat(stax.serial(stax.Dense(4, 1.3, p), stax.Relu()), 3)
    ),
}

IMAGES = {
    "Conv": lambda p: stax.serial(
        stax.Conv(4, (2,), W_std=p, b_std=p, padding="SAME"),
        stax.Relu(),
        stax.Flatten(),
        stax.Dense(1),
    ),
    "ConvTranspose": lambda p: stax.serial(
        stax.ConvTranspose(4, (2,), W_std=p), stax.Relu(), stax.GlobalAvgPool(), stax.Dense(1)
    ),
    "ConvLocal": lambda p: stax.serial(
        stax.ConvLocal(4, (2,), W_std=p), stax.Erf(), stax.Flatten(), stax.Dense(1)
    ),
    "attention": lambda p: stax.serial(
        stax.Dense(4),
        stax.GlobalSelfAttention(
            4,
            4,
            4,
            2,
            W_key_std=p,
            W_value_std=1.1 * p,
            W_query_std=1.2,
            W_out_std=p,
            b_std=p,
            pos_emb_type="SUM",
            W_pos_emb_std=p,
        ),
        stax.GlobalAvgPool(),
        stax.Dense(1),
    ),
}


def check(networks, x1, x2, at=0.7, step=1e-5):
    """Derivatives of all networks' kernels, in one program; vmap and jit of them."""

    def kernels(p):
        found = {name: network(p)[2](x1, x2, GET) for name, network in networks.items()}
        return jax.tree.map(
            lambda k: jnp.sum(jnp.cos(jnp.arange(k.size)).reshape(k.shape) * k), found
        )

    values = jax.jit(kernels)
    slopes = jax.jit(jax.jacrev(kernels))(at)
    above, below = values(at + step), values(at - step)
    many = jax.jit(jax.vmap(kernels))(jnp.array([at + step, at - step]))
    for name, network in networks.items():
        plain = network(at)[2](x1, x2, GET)
        for field in GET:
            one, two = getattr(above[name], field), getattr(below[name], field)
            expected = (one - two) / (2 * step)
            np.testing.assert_allclose(
                getattr(slopes[name], field), expected, 1e-6, 1e-8, err_msg=name
            )
            np.testing.assert_allclose(getattr(many[name], field), [one, two], 1e-12, err_msg=name)
            k = getattr(plain, field)
            weights = np.cos(np.arange(k.size)).reshape(k.shape)
            np.testing.assert_allclose((one + two) / 2, np.sum(weights * k), 1e-7, err_msg=name)


LIGHT = ("LeakyRelu", "Elu", "Rbf", "three layers")


def test_hyperparameters(x64):
    check({name: VECTORS[name] for name in LIGHT}, noise(0, 2, 3), noise(1, 2, 3))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_hyperparameters_of_networks_of_vectors(part, x64):
    names = sorted(set(VECTORS) - set(LIGHT))[part::3]
    check({name: VECTORS[name] for name in names}, noise(0, 2, 3), noise(1, 2, 3))


@pytest.mark.slow
def test_hyperparameters_of_networks_of_pixels(x64):
    check(IMAGES, noise(0, 2, 3, 2), noise(1, 2, 3, 2))


ACTIVATIONS = {
    "ABRelu": stax.ABRelu(-0.3, 1.2),
    "Abs": stax.Abs(),
    "Sign": stax.Sign(),
    "Erf": stax.Erf(0.9, 1.1, 0.2),
    "Sigmoid_like": stax.Sigmoid_like(),
    "Gelu": stax.Gelu(),
    "Sin": stax.Sin(0.9, 0.8, 0.3),
    "Cos": stax.Cos(0.9, 0.8, 0.3),
    "Rbf": stax.Rbf(0.7),
    "Gaussian": stax.Gaussian(0.9, -0.7),
    "Gabor": stax.Gabor(),
    "Exp": stax.Exp(0.9, 0.4),
    "ExpNormalized": stax.ExpNormalized(0.8, -0.8),
    "Hermite": stax.Hermite(3),
    "Monomial": stax.Monomial(3),
    "RectifiedMonomial": stax.RectifiedMonomial(2),
    "Polynomial": stax.Polynomial((0.2, 0.5, 0.3)),
    "Elementwise": stax.Elementwise(None, lambda c, q1, q2: c**3 + q1 * q2),
}


@pytest.mark.parametrize(
    "names",
    [
        ("ABRelu",),
        pytest.param(tuple(sorted(ACTIVATIONS)[::2]), marks=pytest.mark.slow),
        pytest.param(tuple(sorted(ACTIVATIONS)[1::2]), marks=pytest.mark.slow),
    ],
)
def test_gradients_in_the_inputs_are_finite_differences(names, x64):
    x1, x2, v = noise(0, 2, 3), noise(1, 2, 3), noise(2, 2, 3)

    def kernels(s):
        found = {n: around(ACTIVATIONS[n])[2](x1 + s * v, x2, GET) for n in names}
        return jax.tree.map(
            lambda k: jnp.sum(jnp.cos(jnp.arange(k.size)).reshape(k.shape) * k), found
        )

    step, values = 1e-5, jax.jit(kernels)
    slopes, above, below = jax.jit(jax.jacrev(kernels))(0.0), values(step), values(-step)
    for name in names:
        for slope, one, two in zip(slopes[name], above[name], below[name]):
            np.testing.assert_allclose(slope, (one - two) / (2 * step), 1e-6, 1e-8, err_msg=name)


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.3, 1.0, 1.7])
def test_elu_of_any_slope_is_its_double_integral(alpha, x64):
    """Against quadrature, split at the kink of each factor."""
    x, w = np.polynomial.legendre.leggauss(16)

    def normal(a, b, count=15):
        """Nodes and weights of a standard normal number between a and b."""
        half = (b - a) / (2 * count)
        t = np.concatenate([a + (2 * k + 1 + x) * half for k in range(count)])
        return t, np.tile(w * half, count) * np.exp(-(t**2) / 2) / np.sqrt(2 * np.pi)

    def f(u):
        return np.where(u > 0, u, alpha * np.expm1(np.minimum(u, 0)))

    q1, q2, rho = 3.9, 2.0, 0.6
    root, expected = np.sqrt(1 - rho**2), 0.0
    for ends in ((-9, 0), (0, 9)):
        for u, p in zip(*normal(*ends)):
            kink = np.clip(-rho * u / root, -9, 9)
            for t, weight in (normal(-9, kink), normal(kink, 9)):
                values = f(np.sqrt(q2) * (rho * u + root * t))
                expected += p * f(np.sqrt(q1) * u) * (weight * values).sum()
    found = nonlinearities._elu(alpha).moments(*map(jnp.asarray, (q1, q2, rho)))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_mask_constant_may_be_traced():
    x = noise(0, 3, 5, 2).at[0, 3:].set(10.0)
    kernel_fn = stax.serial(stax.Conv(4, (1,)), stax.Relu(), stax.GlobalAvgPool(), stax.Dense(1))[2]
    traced = jax.jit(lambda c: kernel_fn(x, None, "ntk", mask_constant=c))
    expected = kernel_fn(x[:1, :3], None, "ntk")
    np.testing.assert_allclose(traced(10.0)[0, 0], expected[0, 0], rtol=1e-5)
    hidden = jnp.where(x == 10.0, jnp.nan, x)
    found = jax.jit(lambda x: kernel_fn(x, None, "ntk", mask_constant=jnp.nan))(hidden)
    np.testing.assert_allclose(found, traced(10.0), rtol=1e-6)
