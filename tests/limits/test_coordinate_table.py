"""Right muP networks pass a coordinate check; with one layer's exponent off by half a power it names that layer.

The settings are those that docs/howto/mup.md shows for each architecture.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

import limits
import models
from experiments import tasks
from limits.optimizers import multiply

KEY = jax.random.key(0)
SEEDS, STEPS = 8, 3


def cross_entropy(outputs, labels):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()


def of_last_token(outputs, targets):
    return jnp.mean((outputs[:, -1, -1] - targets) ** 2)


@functools.cache
def digits():
    x, y = tasks.load(tasks.default_config("digits")).train
    return jnp.asarray(x[:64]), jnp.asarray(y[:64])


def vectors():
    return digits()


def images():
    x, y = digits()
    return x[:16].reshape(16, 8, 8, 1), y[:16]


def tokens():
    x = jax.random.randint(jax.random.key(5), (4, 8), 0, 16)
    return x, (3 * x + 1) % 16


def prompts():
    """Pairs (x, w.x) and a query (x, 0), whose own w.x is the target."""
    keys = jax.random.split(jax.random.key(6))
    x, w = jax.random.normal(keys[0], (8, 9, 5)), jax.random.normal(keys[1], (8, 5)) / 5**0.5
    y = jnp.einsum("ntd,nd->nt", x, w)
    return jnp.concatenate([x, y.at[:, -1].set(0)[..., None]], -1), y[:, -1]


class Model(NamedTuple):
    """A family and the settings that decide about it."""

    family: Callable
    batch: Callable
    base_width: int
    widths: tuple
    loss: Callable = cross_entropy
    features: Callable = limits.layer_outputs


SHIFTS = (("init", 1 / 2), ("rate", -1 / 2))
VECTORS, IMAGES, TOKENS = (8, (64, 256, 1024)), (2, (16, 64, 128)), (4, (32, 128, 256))
attention = {"depth": 1, "heads": 2, "attention_scale": "1/d"}
MODELS = {
    "MLP": Model(models.family("MLP", depth=2, outputs=10), vectors, *VECTORS),
    "CNN, average": Model(models.family("CNN", depth=2, outputs=10), images, *IMAGES),
    "CNN, flatten": Model(
        models.family("CNN", depth=2, outputs=10, pooling="flatten"), images, *IMAGES
    ),
    "ResNet": Model(models.family("ResNet", depth=1, outputs=10), images, *IMAGES),
    "Transformer": Model(
        models.family("Transformer", vocabulary=16, context=8, **attention),
        tokens,
        *TOKENS,
    ),
    "ViT": Model(models.family("ViT", outputs=10, patch=4, **attention), images, *TOKENS),
    "LinearAttention": Model(
        lambda n: models.LinearAttention(n, depth=1, heads=n // 4, softmax=True),
        prompts,
        *TOKENS,
        loss=of_last_token,
        features=limits.captured_outputs,
    ),
}
OPTIMIZERS = {"sgd": (optax.sgd, 0.1), "adam": (optax.adam, 0.01)}


class Shifted(NamedTuple):
    """A parametrized network with its factors among its parameters: one program for every wrong exponent."""

    init: Callable
    apply: Callable
    optimizer: Callable
    base_width: int
    growth: float
    factors: dict

    def shifted(self, field, paths, power):
        """The same with one factor of some parameters times a power of the width."""
        row = self.factors[field]
        row = row | {path: row[path] * self.growth**power for path in paths}
        factors = self.factors | {field: row}

        def init(key):
            return multiply(self.init(key), factors["init"]) | {
                "factors": jax.tree.map(jnp.float32, factors)
            }

        return self._replace(init=init)


@functools.cache
def network(name, width):
    model = MODELS[name]
    inputs = model.batch()[0]
    net = limits.parametrize(
        model.family, "mup", width=width, base_width=model.base_width, example=inputs[:1]
    )

    def split(params):
        factors = jax.lax.stop_gradient(params["factors"])
        return net.with_factors(factors), {k: v for k, v in params.items() if k != "factors"}

    def apply(params, *inputs, **keywords):
        now, params = split(params)
        return now.apply(params, *inputs, **keywords)

    def optimizer(factory, rate):
        def init(params):
            return net.optimizer(factory, rate).init(split(params)[1])

        def update(gradient, state, params):
            now, own = split(params)
            gradient = {k: v for k, v in gradient.items() if k != "factors"}
            updates, state = now.optimizer(factory, rate).update(gradient, state, own)
            return updates | {"factors": jax.tree.map(jnp.zeros_like, params["factors"])}, state

        return optax.GradientTransformation(init, update)

    plain = net.factors | {"init": dict.fromkeys(net.factors["init"], 1.0)}
    draw = net.with_factors(plain).init
    return Shifted(draw, apply, optimizer, model.base_width, width / model.base_width, net.factors)


def check(name, optimizer, field="init", layer=None, power=0.0):
    model, (factory, rate) = MODELS[name], OPTIMIZERS[optimizer]
    field = optimizer if field == "rate" else field

    def at_width(n):
        net = network(name, n)
        paths = [p for p in net.factors["init"] if layer and p.startswith(f"{layer}/")]
        return net.shifted(field, paths, power)

    return limits.coordinate_check(
        at_width,
        model.widths,
        model.batch(),
        model.loss,
        KEY,
        learning_rate=rate,
        optimizer=factory,
        steps=STEPS,
        seeds=SEEDS,
        features=model.features,
    )


DECIDED = [
    *[("MLP", "sgd"), ("CNN, flatten", "sgd"), ("CNN, average", "adam"), ("ResNet", "adam")],
    *[("Transformer", "adam"), ("ViT", "adam"), ("LinearAttention", "adam")],
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "optimizer"), DECIDED)
def test_right_networks_pass_and_a_wrong_layer_is_named(name, optimizer):
    right = check(name, optimizer)
    assert right.passed, right.verdict
    matrices = {
        path.rpartition("/")[0] for path in network(name, MODELS[name].widths[0]).factors["init"]
    }
    for layer in right.layers:
        if layer not in matrices or "norm" in layer:
            continue  # a norm's gain is one with the matrix that it feeds
        for field, power in SHIFTS:
            found = check(name, optimizer, field, layer, power)
            assert layer in found.wrong, (layer, field, power, found.verdict)
