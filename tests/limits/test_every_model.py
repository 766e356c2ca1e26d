"""Every function that takes a model takes every kind of model: a matrix of functions and models, as they are."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import limits
import ntk
from ntk.family import ParamAxes, named_leaves

KEY = jax.random.key(0, impl="rbg")
X = jax.random.normal(jax.random.key(1), (4, 5))
TIMES, LABELS = jnp.linspace(0.1, 1.0, 4), jnp.array([0, 2, 1, 2])
TOKENS = jnp.array([[0, 3, 1], [2, 2, 0], [1, 0, 3], [3, 1, 2]])
Y = jnp.array([[1.0], [-1.0], [1.0], [-1.0]])
embed = functools.partial(nn.Embed, embedding_init=nn.initializers.normal(1.0))


class Model(NamedTuple):
    """A family with its inputs and the keywords of its calls.

    Attributes:
        kernel: a piece of the refusal where there is no kernel; None where there is one.
        captured: names of its layers: of linen all modules, of others those with weights.
    """

    family: Any
    inputs: Any
    call: Any = None
    kernel: str | None = None
    captured: tuple = ("first", "last")


def linen(forward):
    """A linen family of a function of (width, inputs, keywords) inside a compact call."""

    class Linen(nn.Module):
        width: int

        @nn.compact
        def __call__(self, *inputs, **keywords):
            return forward(self.width, *inputs, **keywords)

    return Linen


def two_inputs(n, x, time):
    h = nn.relu(nn.Dense(n)(x) + nn.Dense(n)(time[:, None]))
    return nn.Dense(1)(h)


def time_and_label(n, time, label):
    waves = jnp.stack([jnp.sin(time), jnp.cos(time)], -1)
    return nn.Dense(1)(nn.relu(nn.Dense(n)(waves) + embed(3, n)(label)))


def labels(n, label):
    return nn.Dense(1)(nn.relu(nn.Dense(n)(embed(3, n)(label))))


def tokens(n, words):
    return nn.Dense(1)(nn.relu(nn.Dense(n)(embed(4, n)(words))).mean(1))


def noisy(n, x, key):
    return nn.Dense(1)(nn.relu(nn.Dense(n)(x + 0.1 * jax.random.normal(key, x.shape[1:])[None])))


def dropped(n, x, train):
    return nn.Dense(1)(nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(n)(x))))


def normed(n, x, train):
    h = nn.BatchNorm(use_running_average=not train)(nn.Dense(n)(x))
    return nn.Dense(1)(nn.relu(h))


class NnxModel(nnx.Module):
    """A batch norm and a dropout between two layers."""

    def __init__(self, width, *, rngs):
        self.first = nnx.Linear(5, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x, *, train, features=False):
        first = self.first(x)
        h = nnx.relu(self.norm(first, use_running_average=not train))
        out = self.last(self.dropout(h, deterministic=not train))
        return (out, {"first": first, "last": out}) if features else out


class EquinoxModel(eqx.Module):
    """A vector, a number and a label of one example."""

    first: eqx.nn.Linear
    time: eqx.nn.Linear
    label: eqx.nn.Embedding
    last: eqx.nn.Linear

    def __init__(self, width, *, key):
        one, two, three, four = jax.random.split(key, 4)
        self.first = eqx.nn.Linear(5, width, key=one)
        self.time = eqx.nn.Linear("scalar", width, key=two)
        self.label = eqx.nn.Embedding(3, width, key=three)
        self.last = eqx.nn.Linear(width, 1, key=four)

    def __call__(self, x, time, label, *, gain, features=False):
        h = self.first(x) + self.time(time) + self.label(label)
        out = gain * self.last(jax.nn.relu(h))
        return (out, {"first": h, "last": out}) if features else out


TRAIN = {"train": False}
MODELS = {
    "two inputs": Model(linen(two_inputs), (X, TIMES), captured=("Dense_0", "Dense_1", "Dense_2")),
    "a time and a label": Model(
        linen(time_and_label), (TIMES, LABELS), captured=("Dense_0", "Embed_0", "Dense_1")
    ),
    "labels": Model(linen(labels), LABELS, captured=("Embed_0", "Dense_0", "Dense_1")),
    "tokens": Model(linen(tokens), TOKENS, captured=("Embed_0", "Dense_0", "Dense_1")),
    "a key": Model(
        linen(noisy),
        (X, jax.random.key(3)),
        kernel="PRNG key, and a kernel is of a network that draws",
        captured=("Dense_0", "Dense_1"),
    ),
    "dropout": Model(linen(dropped), X, TRAIN, captured=("Dense_0", "Dropout_0", "Dense_1")),
    "batch norm": Model(linen(normed), X, TRAIN, captured=("Dense_0", "BatchNorm_0", "Dense_1")),
    "NNX": Model(lambda width: lambda rngs: NnxModel(width, rngs=rngs), X, TRAIN),
    "Equinox": Model(
        lambda width: lambda key: EquinoxModel(width, key=key),
        (X, TIMES, LABELS),
        {"gain": 2.0},
        captured=("first", "time", "label", "last"),
    ),
}


def spread(inputs):
    return inputs if isinstance(inputs, tuple) else (inputs,)


def parametrized(model, width=16, rule="mup"):
    return limits.parametrize(
        model.family, rule, width=width, base_width=4, example=model.inputs, call=model.call
    )


def applied(net):
    """`apply` with what the model keeps besides parameters."""
    state = net.state(jax.random.key(5))
    return functools.partial(net.apply, state=state) if state else net.apply


@pytest.mark.parametrize("name", MODELS)
def test_axes_and_outputs(name):
    model = MODELS[name]
    axes = ntk.width_axes(model.family, model.inputs, call=model.call)
    roles = {a.role for a in jax.tree.leaves(axes, is_leaf=lambda a: isinstance(a, ParamAxes))}
    assert roles == {"input", "output", "scalar"} | ({"hidden"} & roles)
    net = parametrized(model)
    params = net.init(KEY)
    out = applied(net)(params, *spread(model.inputs))
    assert out.shape == (4, 1)
    assert np.isfinite(out).all()
    assert (
        named_leaves(params).keys()
        == named_leaves(net.axes, is_leaf=lambda a: a.__class__ is ParamAxes).keys()
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_finite_kernel_is_that_of_the_jacobian(name):
    model = MODELS[name]
    net = parametrized(model)
    params, apply = net.init(KEY), applied(net)
    jacobian = jax.jacrev(lambda p: apply(p, *spread(model.inputs))[:, 0])(params)
    rows = np.concatenate([np.reshape(j, (4, -1)) for j in jax.tree.leaves(jacobian)], 1)
    kernel = ntk.empirical_ntk(apply, params, model.inputs, trace_axes=(-1,))
    np.testing.assert_allclose(kernel, rows @ rows.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_an_infinite_kernel_is_that_of_wide_networks(name):
    """To 0.35 of its size at width 512, where one network deviates by about 0.1."""
    model = MODELS[name]
    if model.kernel is not None:
        with pytest.raises(ValueError, match=model.kernel):
            ntk.infinite_width(model.family, model.inputs, call=model.call)
        return
    limit = ntk.infinite_width(model.family, model.inputs, call=model.call)(
        model.inputs, None, "ntk"
    )
    assert limit.shape == (4, 4)
    net = limits.parametrize(model.family, "ntk", width=512, example=model.inputs, call=model.call)
    kernel = ntk.empirical_ntk(applied(net), net.init(KEY), model.inputs, trace_axes=(-1,))
    assert np.linalg.norm(kernel - limit) < 0.35 * np.linalg.norm(limit)


@pytest.mark.parametrize("name", MODELS)
def test_layers_are_captured_and_checked(name):
    model = MODELS[name]
    net = parametrized(model)
    features = limits.captured_outputs
    found = features(net, net.init(KEY), model.inputs)
    assert sorted(found) == sorted(model.captured)
    assert all(len(values) == 4 for values in found.values())  # examples first
    names = tuple(found)
    check = limits.coordinate_check(
        lambda n: parametrized(model, n),
        (8, 16, 32),
        (model.inputs, Y),
        lambda outputs, targets: jnp.mean((outputs - targets) ** 2),
        KEY,
        learning_rate=0.1,
        steps=1,
        seeds=2,
        features=features,
    )
    assert check.layers == names  # in the order in which they are called
    assert np.isfinite(check.size).all()
    assert (check.change > 0).all()


def plain(width):
    """A pair of functions: a matrix with a bias, one used under a scalar, and a loop of two layers."""

    def init(key):
        one, two, three = jax.random.split(key, 3)
        return {
            "in": {"w": jax.random.normal(one, (5, width)), "b": jnp.zeros(width)},
            "loop": jax.random.normal(two, (2, width, width)) / width**0.5,
            "out": jax.random.normal(three, (width, 1)) / width**0.5,
            "gain": jnp.ones(()),
        }

    def apply(params, x):
        h = x @ params["in"]["w"] + params["in"]["b"][None]
        h = jax.lax.scan(lambda h, w: (jnp.tanh(h) @ w, None), h, params["loop"])[0]
        return params["gain"] * (jnp.tanh(h) @ params["out"])

    return init, apply


def _before_the_readout(params):
    h = X @ params["in"]["w"] + params["in"]["b"][None]
    for w in params["loop"]:
        h = jnp.tanh(h) @ w
    return h


def test_outputs_of_layers_are_those_that_their_modules_return():
    """With the bias, before the gain; what linen records itself, and a program that is walked."""
    net = ntk.network(plain, 7)
    params = net.init(KEY)
    found = limits.captured_outputs(net, params, X)
    assert list(found) == ["in", "loop", "out"]  # of the loop the last round
    np.testing.assert_allclose(found["loop"], _before_the_readout(params), rtol=1e-5)
    np.testing.assert_allclose(
        found["in"], X @ params["in"]["w"] + params["in"]["b"][None], rtol=1e-6
    )
    np.testing.assert_allclose(found["out"], net.apply(params, X), rtol=1e-6)

    model = MODELS["NNX"]
    net = parametrized(model)
    params = net.init(KEY)
    _, own = applied(net)(params, X, features=True)
    found = jax.jit(lambda params: limits.captured_outputs(net, params, X))(params)
    for name, values in own.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6)

    nothing = ntk.network(
        lambda n: (lambda key: {"w": jnp.ones(n)}, lambda p, x: x * p["w"][None]), 5
    )
    with pytest.raises(ValueError, match="no product of the inputs with a parameter"):
        limits.captured_outputs(nothing, {"w": jnp.ones(5)}, X)
