"""Activations read from a model: which closed form is recognised, and the kernels of Flax's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import ntk
from ntk import stax

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
}


def family(activation):
    class Model(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            x = nn.Dense(self.width, use_bias=False)(x)
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


def test_an_activation_that_overflows_is_refused_by_its_name():
    with pytest.raises(ValueError, match=r"is not finite at|square-integrable"):
        description(lambda x: jnp.exp(x**4))
