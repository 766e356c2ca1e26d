import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from limits import exponents, optimizers
from limits.exponents import RULES, layerwise, symmetry
from limits.parametrization import parametrize
from ntk.family import ParamAxes, named_leaves

X = jax.random.normal(jax.random.key(5), (16, 8))
Y = jnp.sign(X[:, :1])


class MLP(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        for l in range(2):
            x = jnp.tanh(nn.Dense(self.width, name=f"hidden_{l}")(x))
        return nn.Dense(1, name="readout")(x)


class NnxMLP(nnx.Module):
    def __init__(self, width, *, rngs):
        self.hidden_0 = nnx.Linear(8, width, rngs=rngs)
        self.hidden_1 = nnx.Linear(width, width, rngs=rngs)
        self.readout = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        return self.readout(jnp.tanh(self.hidden_1(jnp.tanh(self.hidden_0(x)))))


def nnx_family(width):
    return lambda rngs: NnxMLP(width, rngs=rngs)


def plain(width):
    """The same network as plain functions that return every layer's pre-activations; no biases."""

    def init(key):
        keys = jax.random.split(key, 3)
        shapes = {"w1": (8, width), "w2": (width, width), "w3": (width, 1)}
        return {
            n: jax.random.normal(k, s) / s[0] ** 0.5
            for k, (n, s) in zip(keys, shapes.items(), strict=True)
        }

    def apply(params, x):
        first = x @ params["w1"]
        second = jnp.tanh(first) @ params["w2"]
        return first, second, jnp.tanh(second) @ params["w3"]

    return init, apply


def plain_net(rule, width, base_width=64, family=plain):
    return parametrize(family, rule, width=width, base_width=base_width)


def loss(net, params):
    outputs = net.apply(params, X)
    outputs = outputs[-1] if isinstance(outputs, tuple) else outputs
    return jnp.mean((outputs - Y) ** 2)


def train(net, tx, key, steps):
    """The initial and the trained parameters, and the losses."""
    start = net.init(key)

    def step(carry, _):
        params, state = carry
        value, gradient = jax.value_and_grad(lambda p: loss(net, p))(params)
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    (params, _), losses = jax.lax.scan(step, (start, tx.init(start)), length=steps)
    return start, params, losses


OPTIMIZERS = {
    "sgd": (optax.sgd, 0.1, {}),
    "momentum": (optax.sgd, 0.02, {"momentum": 0.9, "nesterov": True}),
    "adam": (optax.adam, 0.01, {}),
    "adamw": (optax.adamw, 0.01, {"weight_decay": 0.1, "eps": 1e-2}),
}

# Section 1.2 of Everett et al. (2024), full alignment: input, hidden, output.
FULL_ALIGNMENT = {
    "standard": {"adam": (0, 1, 1), "sgd": (-1 / 2, 1 / 2, 1)},
    "ntk": {"adam": (0, 1 / 2, 1 / 2), "sgd": (-1 / 2, -1 / 2, 0)},
    "mup": {"adam": (1 / 2, 1, 1 / 2), "sgd": (0, 0, 0)},
    "mean_field": {"adam": (0, 1 / 2, 0), "sgd": (-1, -1, -1)},
}


def total(rule, kind):
    part = "sgd_out" if kind == "sgd" else None
    return tuple(getattr(e, kind) + (getattr(e, part) if part else 0) for e in rule[1:])


@pytest.mark.parametrize("name", RULES)
def test_layerwise_learning_rates_are_those_of_full_alignment(name):
    for kind, expected in FULL_ALIGNMENT[name].items():
        assert total(layerwise(name), kind) == expected
    if name in ("mup", "mean_field"):
        assert layerwise(name)[1:] == RULES[name][1:]
    if name == "ntk":
        assert [e.gradient for e in layerwise(name)[1:]] == [e.gradient for e in RULES[name][1:]]


def test_deep_mean_field_is_an_image_of_mup():
    image = symmetry("mup", {"input": 1 / 2, "hidden": 1 / 2, "output": 1 / 2})
    assert image[1:] == RULES["mean_field"][1:]


def test_mup_without_multipliers_is_the_practical_one():
    """The factors of microsoft/mup, in the form without a special readout layer."""
    rule = symmetry("mup", {"input": 1 / 2, "output": -1 / 2})
    net = parametrize(MLP, rule, width=256, base_width=64, example=X)
    m = 4.0
    trees = [
        named_leaves(tree) for tree in (net.init_scale, net.lr_scale("adam"), net.lr_scale("sgd"))
    ]
    assert set(jax.tree.leaves(net.multiplier)) == {1.0}
    assert {name: tuple(tree[name] for tree in trees) for name in trees[0]} == {
        "hidden_0/kernel": (1, 1, m),
        "hidden_0/bias": (1, 1, m),
        "hidden_1/kernel": (1, 1 / m, 1),
        "hidden_1/bias": (1, 1, m),
        "readout/kernel": (m**-0.5, 1 / m, 1 / m),
        "readout/bias": (1, 1, 1),
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("rule", ["mup", "mean_field"])
def test_base_width_is_plain_flax_bit_for_bit(rule, name):
    """Outputs, gradients, and ten optimizer steps."""
    factory, rate, extra = OPTIMIZERS[name]
    net = parametrize(MLP, rule, width=32, base_width=32, example=X)
    model, key = MLP(32), jax.random.key(3)
    plain_apply = lambda p, x: model.apply({"params": p}, x)
    flax_net = net._replace(init=lambda k: model.init(k, X)["params"], apply=plain_apply)
    outcomes = []
    for each, tx in [
        (net, net.optimizer(factory, rate, **extra)),
        (flax_net, factory(rate, **extra)),
    ]:
        params = each.init(key)
        gradient = jax.jit(jax.value_and_grad(lambda p, each=each: loss(each, p)))(params)
        outcomes.append(
            (params, gradient, jax.jit(lambda k, each=each, tx=tx: train(each, tx, k, 10))(key))
        )
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, outcomes), strict=True))
    assert jnp.any(outcomes[0][2][1]["readout"]["kernel"] != outcomes[0][0]["readout"]["kernel"])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_symmetry_leaves_trajectories_unchanged(name):
    factory, rate, extra = OPTIMIZERS[name]
    for rule, t in [
        ("mup", 0.5),
        ("ntk", {"hidden": -0.5, "output": -0.5}),
        (layerwise("standard"), 0.3),
    ]:
        runs = []
        for each in (rule, symmetry(rule, t)):
            net = plain_net(each, 128, 32)
            tx = net.optimizer(factory, rate, **extra)
            runs.append(
                jax.jit(lambda k, net=net, tx=tx: train(net, tx, k, 10)[2])(jax.random.key(0))
            )
        assert runs[0].dtype == jnp.float64
        np.testing.assert_allclose(runs[0], runs[1], rtol=1e-10)
        assert abs(runs[0][-1] / runs[0][0] - 1) > 0.01


# RMS change of the pre-activations of layers 1, 2 and 3 after three steps, as powers of the width.
# standard learns at eta / n, its stable form; so does ntk under Adam, where its global learning rate is not
# stable. Adam moves the features along the readout: the outputs of standard then grow.
COORDINATES = [
    ("mup", "sgd", 0.1, 0, (0, 0, 0)),
    ("mean_field", "sgd", 0.1, 0, (0, 0, 0)),
    ("ntk", "sgd", 0.1, 0, (-0.5, -0.5, 0)),
    ("standard", "sgd", 0.1, 1, (-1.5, -0.5, 0)),
    ("mup", "adam", 3e-3, 0, (0, 0, 0)),
    ("mean_field", "adam", 3e-3, 0, (0, 0, 0)),
    ("ntk", "adam", 3e-3, 1, (-1, -0.5, 0)),
    ("standard", "adam", 3e-4, 1, (-1, 0, 0.5)),
]


def coordinate_exponents(rule, kind, rate, c, widths=(128, 384, 1024), seeds=4):
    changes = []
    for width in widths:
        net = plain_net(rule, width)
        tx = net.optimizer(OPTIMIZERS[kind][0], rate * (width / 64) ** -c)

        def change(start, net=net, tx=tx):
            start, end, _ = train(net._replace(init=lambda params: params), tx, start, 3)
            layers = zip(net.apply(end, X), net.apply(start, X), strict=True)
            return jnp.stack([jnp.mean(jnp.square(new - old)) for new, old in layers])

        starts = [net.init(jax.random.key(seed)) for seed in range(seeds)]
        starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
        changes.append(np.sqrt(np.mean(jax.jit(jax.vmap(change))(starts), axis=0)))
    return np.polyfit(np.log(widths), np.log(changes), 1)[0]


@pytest.mark.parametrize(("rule", "kind", "rate", "c", "predicted"), COORDINATES)
def test_coordinate_exponents(rule, kind, rate, c, predicted):
    np.testing.assert_allclose(coordinate_exponents(rule, kind, rate, c), predicted, atol=0.15)


def test_a_wrong_exponent_shows_in_the_coordinates():
    mup = RULES["mup"]
    wrong = mup._replace(hidden=mup.hidden._replace(adam=0.5))
    measured = coordinate_exponents(wrong, "adam", 3e-4, 0, widths=(128, 1024), seeds=2)
    assert abs(measured[0]) < 0.15 < 0.35 < measured[1]
