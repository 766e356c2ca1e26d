"""Activations read from a model: which closed form is recognised, and the kernels of Flax's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import ntk
from ntk import stax

NORMAL = nn.initializers.variance_scaling(1.0, "fan_in", "normal")  # as in stax
EXAMPLE = jax.ShapeDtypeStruct((2, 5), jnp.float64)
FLAX = [
    *("gelu", "silu", "elu", "selu", "softplus", "tanh", "sigmoid", "hard_tanh", "leaky_relu"),
    *("celu", "log_sigmoid", "soft_sign", "relu6", "hard_swish"),
]
LIGHT = ("silu", "leaky_relu", "softplus")

CLOSED = {
    "relu": jax.nn.relu,
    "0.1 min(x, 0) + 1 max(x, 0)": functools.partial(jax.nn.leaky_relu, negative_slope=0.1),
    "-1 min(x, 0) + 1 max(x, 0)": jnp.abs,
    "1 erf(1 x) + 0": jax.lax.erf,
    "0.5 erf(0.4 x) + 0.5": lambda x: 0.5 * jax.lax.erf(0.4 * x) + 0.5,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "1 sin(1 x + 0)": jnp.sin,
    "1 sin(2 x + 1.571)": lambda x: jnp.cos(2 * x),
    "1 exp(-1 x^2)": lambda x: jnp.exp(-(x**2)),
    "2 exp(0.3 x)": lambda x: 2 * jnp.exp(0.3 * x),
    "1 x^3": lambda x: x**3,
    "1 + -2 x^2": lambda x: 1 - 2 * x * x,
    "1 max(x, 0)^2": lambda x: jax.nn.relu(x) ** 2,
    "1 sign": jnp.sign,
}
SERIES = {
    "clipped far out": lambda x: jnp.clip(x, -20, 20),
    "a tail that is bent": lambda x: jnp.where(x > 18, 18.0, jax.nn.relu(x)),
    "tanh": jnp.tanh,
    "a narrow hat on a ramp": lambda x: jax.nn.relu(x) + jax.nn.relu(1 - jnp.abs(x - 0.07) / 0.03),
    "a narrow box": lambda x: jnp.where(jnp.abs(x - 0.07) < 0.03, 1.0, 0.0),
}


def family(activation):
    class Model(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            x = nn.Dense(self.width, use_bias=False, kernel_init=NORMAL)(x)
            return nn.Dense(1, use_bias=False)(activation(x))

    return Model


def description(activation):
    rows = ntk.explain(family(activation), EXAMPLE).steps
    return next(row.what for row in rows if row.operation == "function")


@pytest.mark.parametrize("name", CLOSED)
def test_a_closed_form_is_recognised_by_its_values(name):
    assert description(CLOSED[name]) == name


@pytest.mark.parametrize("name", SERIES)
def test_what_differs_from_a_closed_form_far_out_is_not_taken_for_it(name):
    assert description(SERIES[name]).endswith("(Hermite series)")


def test_activations_cut_off_to_integers_are_refused():
    example = jax.ShapeDtypeStruct((2, 5), jnp.float32)
    with pytest.raises(ValueError, match=r"converted to int32: .*write jnp.trunc"):
        ntk.infinite_width(family(lambda x: (3 * x).astype(jnp.int32).astype(x.dtype)), example)
    assert ntk.infinite_width(family(lambda x: jnp.trunc(3 * x)), example).pair is not None


@pytest.mark.parametrize(
    "name", [n if n in LIGHT else pytest.param(n, marks=pytest.mark.slow) for n in FLAX]
)
@pytest.mark.filterwarnings("ignore:the Hermite series of")
def test_flax_activations_equal_the_duals_of_the_functions(x64, name):
    fn = getattr(nn, name)
    x = jax.random.normal(jax.random.key(0), (3, 5), jnp.float64)
    traced = ntk.infinite_width(family(fn), EXAMPLE)(x, None, ("nngp", "ntk"))
    layer = stax.elementwise(ntk.hermite.dual(fn))
    written = stax.serial(stax.Dense(1), layer, stax.Dense(1))[2](x, None, ("nngp", "ntk"))
    for one, two in zip(traced, written, strict=True):
        assert np.abs(one - two).max() <= 1e-6 * np.abs(two).max()


NEURAL_TANGENTS = {
    "ABRelu": (lambda x: -0.3 * jnp.minimum(x, 0) + 2 * jnp.maximum(x, 0), stax.ABRelu(-0.3, 2)),
    "LeakyRelu": (lambda x: jnp.where(x > 0, x, 0.2 * x), stax.LeakyRelu(0.2)),
    "Abs": (jnp.abs, stax.Abs()),
    "Sign": (jnp.sign, stax.Sign()),
    "Step": (lambda x: (x > 0).astype(x.dtype), stax.Step()),
    "Erf": (lambda x: 2 * jax.lax.erf(0.7 * x) + 0.1, stax.Erf(2, 0.7, 0.1)),
    "Gelu": (lambda x: nn.gelu(x, approximate=False), stax.Gelu()),
    "Sin": (lambda x: 2 * jnp.sin(0.7 * x + 0.3), stax.Sin(2, 0.7, 0.3)),
    "Cos": (lambda x: 2 * jnp.cos(0.7 * x + 0.3), stax.Cos(2, 0.7, 0.3)),
    "Rbf": (lambda x: 2**0.5 * jnp.sin(1.4**0.5 * x + jnp.pi / 4), stax.Rbf(0.7)),
    "Sigmoid_like": (
        lambda x: 0.5 * jax.lax.erf(x / 2.4020563531719796) + 0.5,
        stax.Sigmoid_like(),
    ),
    "Gaussian": (lambda x: 2 * jnp.exp(-0.7 * x**2), stax.Gaussian(2, -0.7)),
    "Exp": (lambda x: 2 * jnp.exp(0.4 * x), stax.Exp(2, 0.4)),
    "Hermite": (lambda x: (x**3 - 3 * x) / 6**0.5, stax.Hermite(3)),
    "Monomial": (lambda x: x**3, stax.Monomial(3)),
    "RectifiedMonomial": (lambda x: jnp.where(x > 0, x * x, 0.0), stax.RectifiedMonomial(2)),
    "Polynomial": (lambda x: 1 - x + 0.5 * x**3, stax.Polynomial([1, -1, 0, 0.5])),
}


@pytest.mark.parametrize("name", NEURAL_TANGENTS)
def test_activations_of_neural_tangents_written_in_a_model(x64, name):
    """All but ExpNormalized, which is a kernel of no function. Hermite's holds for inputs of unit variance."""
    fn, layer = NEURAL_TANGENTS[name]
    x = jax.random.normal(jax.random.key(0), (3, 5), jnp.float64)
    x = x / jnp.sqrt(jnp.mean(x**2, axis=1, keepdims=True))
    traced = ntk.infinite_width(family(fn), EXAMPLE)(x, None, ("nngp", "ntk"))
    written = stax.serial(stax.Dense(1), layer, stax.Dense(1))[2](x, None, ("nngp", "ntk"))
    for one, two in zip(traced, written, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6)


def normed(norm, activation):
    class Model(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            x = activation(norm()(nn.Dense(self.width, use_bias=False, kernel_init=NORMAL)(x)))
            return nn.Dense(1, use_bias=False)(x)

    return Model


@pytest.mark.parametrize("activation", [nn.gelu, nn.silu, nn.leaky_relu])
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_activations_that_read_a_norm_several_times(x64, norm, activation):
    x = jax.random.normal(jax.random.key(0), (3, 5), jnp.float64)
    traced = ntk.infinite_width(normed(norm, activation), EXAMPLE, learning_rates={"*Norm*": 0})
    layer = stax.elementwise(ntk.hermite.dual(activation))
    net = stax.serial(stax.Dense(1), stax.LayerNorm(eps=1e-6), layer, stax.Dense(1))[2]
    for one, two in zip(traced(x, None, ("nngp", "ntk")), net(x, None, ("nngp", "ntk"))):
        np.testing.assert_allclose(one, two, rtol=1e-6)


@pytest.mark.slow
def test_gain_and_shift_of_a_norm_before_an_activation(x64):
    """They add E[f'(u) u f'(v) v] and E[f'(u) f'(v)] of the normed (u, v) to the tangent kernel."""
    x = jax.random.normal(jax.random.key(0), (3, 5), jnp.float64)
    model = normed(nn.LayerNorm, nn.gelu)
    free, frozen = (
        ntk.infinite_width(model, EXAMPLE, learning_rates={"*Norm*": rate})(x, None, "ntk")
        for rate in (1, 0)
    )
    u = x / jnp.sqrt(jnp.mean(x**2, axis=1, keepdims=True) + 1e-6)
    covariance = np.array(u @ u.T / 5)
    z, w = np.polynomial.hermite_e.hermegauss(60)
    w = w / w.sum()
    slope = jax.vmap(jax.vmap(jax.grad(nn.gelu)))
    for i, j in ((0, 1), (2, 2)):
        q, c, r = covariance[i, i], covariance[i, j], covariance[j, j]
        one = jnp.broadcast_to(jnp.asarray(z[:, None] * q**0.5), (60, 60))
        rest = max(r - c * c / q, 0.0) ** 0.5
        two = z[:, None] * c / q**0.5 + z[None, :] * rest
        products = slope(one) * slope(jnp.asarray(two)) * (1 + one * two)
        np.testing.assert_allclose(free[i, j] - frozen[i, j], w @ products @ w, rtol=1e-5)


def test_an_activation_that_overflows_is_refused_by_its_name():
    with pytest.raises(ValueError, match=r"is not finite at|square-integrable"):
        description(lambda x: jnp.exp(x**4))
