"""Ten networks that no combinator library covers, as anybody would write them in Flax: functions of their width.

Vectors of five entries; sequences of four positions with three channels for `MixedPooling` and `PositionalBiases`.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

FREQUENCY = 1.3
SHARPNESS = 1.5
POSITION_STD = 0.5
# Derivations by hand are of Gaussian first layers.
NORMAL = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
Dense, Conv = (functools.partial(layer, kernel_init=NORMAL) for layer in (nn.Dense, nn.Conv))


class GatedLinearUnit(nn.Module):
    """A product of two independent Gaussian layers, one through a sigmoid."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = Dense(self.width, name="value")(x) * nn.sigmoid(Dense(self.width, name="gate")(x))
        return Dense(1, name="readout")(x)


class RMSNormed(nn.Module):
    """Root-mean-square norms with trained gains, on activations and on a Gaussian layer."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.RMSNorm(name="norm_0")(nn.relu(Dense(self.width, name="hidden_0")(x)))
        x = nn.relu(nn.RMSNorm(name="norm_1")(Dense(self.width, name="hidden_1")(x)))
        return Dense(1, name="readout")(x)


class SquaredReLU(nnx.Module):
    """The activation of Primer, in NNX."""

    def __init__(self, width, rngs):
        self.hidden = nnx.Linear(5, width, use_bias=False, kernel_init=NORMAL, rngs=rngs)
        self.readout = nnx.Linear(width, 1, use_bias=False, kernel_init=NORMAL, rngs=rngs)

    def __call__(self, x):
        return self.readout(jnp.square(jax.nn.relu(self.hidden(x))))


class Snake(nn.Module):
    """A periodic activation, x + sin^2(a x) / a with one trained a per unit."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = Dense(self.width, name="hidden")(x)
        a = self.param("a", nn.initializers.constant(FREQUENCY), (self.width,))[None]
        return Dense(1, name="readout")(x + jnp.sin(a * x) ** 2 / a)


class Swish(nn.Module):
    """x sigmoid(beta x), beta trained for each unit from one constant."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = Dense(self.width, name="hidden")(x)
        beta = self.param("beta", nn.initializers.constant(SHARPNESS), (self.width,))
        return Dense(1, name="readout")(x * nn.sigmoid(beta[None] * x))


class TwoBranches(nn.Module):
    """Products of branches of different depth, unit by unit."""

    width: int

    @nn.compact
    def __call__(self, x):
        one = jnp.tanh(Dense(self.width, use_bias=False, name="one")(x))
        two = nn.relu(Dense(self.width, use_bias=False, name="two")(x))
        deep = Dense(self.width, use_bias=False, name="deep")(two)
        return Dense(1, use_bias=False, name="readout")(one * two * jnp.cos(deep))


class DenseNet(nn.Module):
    """Every layer reads all layers before it."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(Dense(self.width, use_bias=False, name="hidden_0")(x))
        for k in (1, 2):
            new = nn.relu(Dense(k * self.width, use_bias=False, name=f"hidden_{k}")(x))
            x = jnp.concatenate([x, new], axis=-1)
        return Dense(1, use_bias=False, name="readout")(x)


class MixedPooling(nn.Module):
    """Averages of windows mixed with every second position, then the mean mixed with the first position."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(Conv(self.width, (3,), name="conv_0")(x))
        x = 0.7 * nn.avg_pool(x, (2,), (2,)) + 0.3 * x[:, ::2]
        x = nn.relu(Conv(self.width, (3,), name="conv_1")(x))
        return Dense(1, name="readout")(x.mean(axis=1) + 0.5 * x[:, 0])


class PositionalBiases(nn.Module):
    """A bias for each position and unit: random in the first layer, trained from zero in the second."""

    width: int

    @nn.compact
    def __call__(self, x):
        shape = (x.shape[1], self.width)
        random = self.param("position_0", nn.initializers.normal(POSITION_STD), shape)
        x = jnp.tanh(Dense(self.width, use_bias=False, name="hidden_0")(x) + random[None])
        learned = self.param("position_1", nn.initializers.zeros, shape)
        x = nn.relu(Dense(self.width, use_bias=False, name="hidden_1")(x) + learned[None])
        return Dense(1, name="readout")(x.mean(axis=1))


class Kinked(nnx.Module):
    """Two slopes that meet at 0.7, in NNX."""

    def __init__(self, width, rngs):
        self.hidden = nnx.Linear(5, width, kernel_init=NORMAL, rngs=rngs)
        self.readout = nnx.Linear(width, 1, kernel_init=NORMAL, rngs=rngs)

    def __call__(self, x):
        return self.readout(kinked(self.hidden(x)))


def kinked(x):
    return jnp.where(x > 0.7, 2.0 * x - 1.05, 0.5 * x)


def nnx_family(module):
    """The NNX module as a function of its width."""
    return lambda width: lambda rngs: module(width, rngs)


FAMILIES = {
    "gated linear unit": GatedLinearUnit,
    "RMSNorm": RMSNormed,
    "squared ReLU": nnx_family(SquaredReLU),
    "snake": Snake,
    "swish": Swish,
    "two branches": TwoBranches,
    "dense net": DenseNet,
    "mixed pooling": MixedPooling,
    "positional biases": PositionalBiases,
    "kink": nnx_family(Kinked),
}
SEQUENCES = ("mixed pooling", "positional biases")


def law(path, shape):
    """(mean, standard deviation) of a parameter at initialisation; Flax's own kernels have variance 1 / fan-in."""
    leaf = path.split("/")[-1]
    if leaf == "kernel":
        return 0.0, math.prod(shape[:-1]) ** -0.5
    if leaf == "position_0":
        return 0.0, POSITION_STD
    return {"scale": 1.0, "a": FREQUENCY, "beta": SHARPNESS}.get(leaf, 0.0), 0.0
