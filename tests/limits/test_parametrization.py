import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from limits.exponents import RULES, branch_multiplier, layerwise, symmetry
from limits.optimizers import optimizer_kind
from limits.parametrization import parametrize
from ntk.family import named_leaves

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

    shapes = {"w1": (8, width), "w2": (width, width), "w3": (width, 1)}

    def init(key):
        params, sizes = {}, np.cumsum([0, *(np.prod(shape) for shape in shapes.values())])
        draws = jax.random.normal(key, (sizes[-1],))
        for k, (name, shape) in enumerate(shapes.items()):
            params[name] = draws[sizes[k] : sizes[k + 1]].reshape(shape) / shape[0] ** 0.5
        return params

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


def train(net, tx, start, steps, compiled=False):
    """Trained parameters, and the loss before each step. Not compiled: dispatch is cheaper than that here."""

    def step(params, state):
        value, gradient = jax.value_and_grad(lambda p: loss(net, p))(params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    step = jax.jit(step) if compiled else step
    params, state, losses = start, tx.init(start), []
    for _ in range(steps):
        params, state, value = step(params, state)
        losses.append(value)
    return params, np.array(losses)


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
    net = parametrize(MLP, rule, width=64, base_width=16, example=X)
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
def test_base_width_is_plain_flax_bit_for_bit(name):
    """Initialisation, outputs, gradients, and ten optimizer steps."""
    factory, rate, extra = OPTIMIZERS[name]
    net = parametrize(MLP, "mup", width=32, base_width=32, example=X)
    model, key = MLP(32), jax.random.key(3)
    flax = net._replace(
        init=lambda k: model.init(k, X)["params"], apply=lambda p, x: model.apply({"params": p}, x)
    )
    outcomes = []
    for each, tx in [(net, net.optimizer(factory, rate, **extra)), (flax, factory(rate, **extra))]:
        start = each.init(key)
        gradient = jax.grad(lambda p, each=each: loss(each, p))(start)
        outcomes.append(
            (start, each.apply(start, X), gradient, train(each, tx, start, 10, compiled=True))
        )
    for ours, theirs in zip(*map(jax.tree.leaves, outcomes), strict=True):
        assert np.array_equal(ours, theirs)
    losses = outcomes[0][-1][1]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("rule", RULES)
def test_every_factor_is_one_at_the_base_width(rule):
    net = parametrize(MLP, rule, width=32, base_width=32, example=X)
    trees = [net.multiplier, net.init_scale, net.lr_scale("sgd"), net.lr_scale("adam")]
    assert {(type(f), f) for f in jax.tree.leaves(trees)} == {(float, 1.0)}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_symmetry_leaves_trajectories_unchanged(name):
    factory, rate, extra = OPTIMIZERS[name]
    shifts = [0.5, {"hidden": -0.5, "output": -0.5}]
    rules = [*RULES, layerwise("standard")] if name in ("sgd", "adam") else ["mup"]
    for k, rule in enumerate(rules):
        runs = []
        for each in (rule, symmetry(rule, shifts[k % 2])):
            net = plain_net(each, 64, 16)
            start = net.init(jax.random.key(0))
            runs.append(train(net, net.optimizer(factory, rate, **extra), start, 10)[1])
        assert runs[0].dtype == np.float64
        np.testing.assert_allclose(runs[0], runs[1], rtol=1e-9)
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
        squares = []
        for seed in range(seeds):
            start = net.init(jax.random.key(seed))
            layers = zip(
                net.apply(train(net, tx, start, 3)[0], X), net.apply(start, X), strict=True
            )
            squares.append([float(jnp.mean(jnp.square(new - old))) for new, old in layers])
        changes.append(np.sqrt(np.mean(squares, axis=0)))
    return np.polyfit(np.log(widths), np.log(changes), 1)[0]


@pytest.mark.parametrize(("rule", "kind", "rate", "c", "predicted"), COORDINATES)
def test_coordinate_exponents(rule, kind, rate, c, predicted):
    np.testing.assert_allclose(coordinate_exponents(rule, kind, rate, c), predicted, atol=0.15)


def test_a_wrong_exponent_shows_in_the_coordinates():
    mup = RULES["mup"]
    wrong = mup._replace(hidden=mup.hidden._replace(adam=0.5))
    measured = coordinate_exponents(wrong, "adam", 3e-4, 0, widths=(128, 1024), seeds=2)
    assert abs(measured[0]) < 0.15 < 0.35 < measured[1]


def shapes_family(**shapes):
    """A family whose parameters are zero but for the law given: {name: (shape, init, ...)} of the width."""

    def family(width):
        def init(key):
            return {name: law(key, shape(width)) for name, (shape, law) in shapes.items()}

        return init, lambda params, x: x

    return family


def gaussian(std):
    """An initializer of exactly that standard deviation; numpy's draws need no compilation."""

    def init(key, shape):
        draws = np.random.default_rng(0).standard_normal(shape)
        return draws / np.sqrt(np.mean(draws**2)) * std(shape)

    return init


def orthogonal(key, shape):
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((max(shape), min(shape))))[0]
    return q if shape[0] == max(shape) else q.T


INITIALIZERS = {
    "lecun": (gaussian(lambda shape: shape[0] ** -0.5), "fan_in"),
    "fan_out": (gaussian(lambda shape: shape[1] ** -0.5), "fan_out"),
    "glorot": (gaussian(lambda shape: (sum(shape) / 2) ** -0.5), "fan_avg"),
    "constant": (gaussian(lambda shape: 0.02), None),
    "orthogonal": (orthogonal, "max"),
}


@pytest.mark.parametrize("name", INITIALIZERS)
def test_initial_scale_follows_the_rule_whatever_the_initializer(name):
    """At 16 times the width mup has hidden standard deviations of 1/4 and readouts of 1/4 (a and b: 1/16)."""
    init, fan = INITIALIZERS[name]
    shapes = {"hidden": lambda n: (n, n), "readout": lambda n: (n, 10), "input": lambda n: (20, n)}
    net = plain_net(
        "mup", 128, 8, shapes_family(**{k: (shape, init) for k, shape in shapes.items()})
    )

    def own(shape):
        fans = {
            "fan_in": shape[0],
            "fan_out": shape[1],
            "fan_avg": sum(shape),
            "max": max(shape),
            None: 1,
        }
        return fans[fan] ** -0.5

    for leaf, shape in shapes.items():
        expected = 16**-0.5 * own(shape(8)) / own(shape(128))
        np.testing.assert_allclose(net.init_scale[leaf], expected, rtol=1e-12, err_msg=leaf)


def test_zeros_ones_and_biases_of_a_linear_layer():
    family = shapes_family(
        kernel=(lambda n: (n, n), gaussian(lambda shape: shape[0] ** -0.5)),
        w_out=(lambda n: (n, 1), nn.initializers.zeros),
        scale=(lambda n: (n,), nn.initializers.ones),
        bias=(lambda n: (n,), lambda key, shape: jnp.full(shape, shape[0] ** -0.5)),
        temperature=(lambda n: (), nn.initializers.ones),
    )
    net = plain_net("mup", 64, 4, family)
    assert net.init_scale == {
        "kernel": 1,
        "w_out": 1 / 4,
        "scale": 1 / 4,
        "bias": 1,
        "temperature": 1,
    }
    assert net.multiplier == {"kernel": 1, "w_out": 1 / 4, "scale": 4, "bias": 4, "temperature": 1}
    gain = net.init(jax.random.key(0))["scale"] * net.multiplier["scale"]
    np.testing.assert_array_equal(gain, 1.0)


def test_standard_leaves_a_lecun_network_alone_at_every_width():
    net = parametrize(MLP, "standard", width=64, base_width=16, example=X)
    trees = [net.multiplier, net.init_scale, net.lr_scale("sgd"), net.lr_scale("adam")]
    assert set(jax.tree.leaves(trees)) == {1.0}


def test_an_initializer_of_no_known_law_is_refused():
    odd = gaussian(lambda shape: shape[0] ** -0.25)
    with pytest.raises(
        ValueError, match=r"initial standard deviation of w goes from .*constant, variance-scaling"
    ):
        plain_net("mup", 64, 16, shapes_family(w=(lambda n: (n, n), odd)))


def test_fans_may_grow_at_different_rates():
    """A wide block beside a narrow one: mup learns at m_out / m_in under SGD and 1 / m_in under Adam."""
    shapes = {"up": lambda n: (n, 2 * n + 64), "down": lambda n: (2 * n + 64, n)}
    ones = {
        name: (shape, gaussian(lambda shape: shape[0] ** -0.5)) for name, shape in shapes.items()
    }
    net = plain_net("mup", 96, 32, shapes_family(**ones))
    m, wide = 96 / 32, (2 * 96 + 64) / (2 * 32 + 64)
    sgd, adam = net.lr_scale("sgd"), net.lr_scale("adam")
    np.testing.assert_allclose([sgd["up"], adam["up"]], [wide / m, 1 / m])
    np.testing.assert_allclose([sgd["down"], adam["down"]], [m / wide, 1 / wide])
    assert set(net.init_scale.values()) == {1.0}


def updates_of(net, tx, params, gradient):
    return tx.update(gradient, tx.init(params), params)[0]


def test_weight_decay_does_not_depend_on_the_width():
    """With no gradient, each step removes the same fraction of every parameter: decoupled, and as L2."""
    net = plain_net("mup", 64, 16)
    params = net.init(jax.random.key(0))
    zeros = jax.tree.map(jnp.zeros_like, params)

    def l2(rate):
        return optax.chain(optax.add_decayed_weights(0.3), optax.sgd(rate))

    for tx in [
        net.optimizer(optax.adamw, 0.1, weight_decay=0.3),
        net.optimizer(optax.lion, 0.1, weight_decay=0.3),
        net.optimizer(l2, 0.1, kind="sgd"),
    ]:
        updates = updates_of(net, tx, params, zeros)
        for name, leaf in params.items():
            np.testing.assert_allclose(updates[name], -0.03 * leaf, rtol=1e-5)


def test_eps_of_adam_follows_the_gradient():
    """A gradient at its predicted size meets the same eps at every width, here a large one."""
    updates = []
    for width in (16, 64):
        net = plain_net("mup", width, 16)
        params, m = net.init(jax.random.key(0)), width / 16
        gradient = {"w1": m**-0.5, "w2": 1 / m, "w3": m**-0.5}
        gradient = {name: jnp.full_like(leaf, gradient[name]) for name, leaf in params.items()}
        update = updates_of(net, net.optimizer(optax.adam, 1.0, eps=1.0), params, gradient)
        scale = net.lr_scale("adam")
        updates.append([float(update[name][0, 0]) / scale[name] for name in params])
    np.testing.assert_allclose(updates, -0.5, rtol=1e-5)


def test_learning_rate_may_be_traced_a_schedule_or_injected():
    net = plain_net("mup", 64, 16)
    params = net.init(jax.random.key(0))
    state = net.optimizer(optax.adam, 0.0).init(params)

    @jax.jit
    def update(rate, gradient, state, params):
        return net.optimizer(optax.adam, rate).update(gradient, state, params)[0]

    expected = updates_of(net, net.optimizer(optax.adam, 0.1), params, params)
    injected = net.optimizer(optax.inject_hyperparams(optax.adam), 0.1, kind="adam")
    scheduled = net.optimizer(optax.adam, optax.constant_schedule(0.1))
    for other in [
        update(0.1, params, state, params),
        updates_of(net, injected, params, params),
        updates_of(net, scheduled, params, params),
    ]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), other, expected)
    update(0.2, params, state, params)
    assert update._cache_size() == 1


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_optimizer_works_in_nnx(name):
    """`nnx.Optimizer` on the model itself equals training pure functions, without forward multipliers."""
    factory, rate, extra = OPTIMIZERS[name]
    rule = symmetry("mup", {"input": 1 / 2, "output": -1 / 2})
    net = parametrize(nnx_family, rule, width=32, base_width=8)
    start = net.init(jax.random.key(0))
    tx = net.optimizer(factory, rate, **extra)
    model = NnxMLP(32, rngs=nnx.Rngs(0))
    nnx.update(model, start)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda model: jnp.mean((model(X) - Y) ** 2))(model))

    for _ in range(3):
        step(model, optimizer)
    params, _ = train(net, tx, start, 3, compiled=True)
    trained = named_leaves(nnx.state(model, nnx.Param))
    for path, leaf in named_leaves(params).items():
        np.testing.assert_allclose(trained[path], leaf, rtol=1e-4, atol=1e-6)


class ResNet(nn.Module):
    width: int
    depth: int = 16

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width, name="embed")(x)
        for l in range(self.depth):
            y = nn.relu(nn.Dense(self.width, name=f"block_{l}/up")(x))
            x = x + nn.Dense(self.width, name=f"block_{l}/down")(y)
        return nn.Dense(1, name="readout")(x)


@pytest.mark.parametrize(("rule", "alpha"), [("sqrt", 0.5), ("1/L", 1.0), ("completep", 1.0)])
def test_depth_rules(rule, alpha):
    depth = {"depth_rule": rule, "depth": 4, "base_depth": 2, "branch": "block_*"}
    net = parametrize(
        lambda width: ResNet(width, 4),
        "mup",
        width=8,
        base_width=8,
        example=X,
        branch_last="*/down/*",
        **depth,
    )
    factors = [net.multiplier, net.lr_scale("sgd"), net.lr_scale("adam")]
    factors = {
        name: values
        for name, *values in zip(
            named_leaves(factors[0]), *map(jax.tree.leaves, factors), strict=True
        )
    }
    inside = [2 ** (2 * alpha - 1), 2 ** (alpha - 1)]
    for name, values in factors.items():
        beta = 2**-alpha if "down" in name else 1.0
        assert values == ([beta, *inside] if name.startswith("block") else [1.0, 1.0, 1.0]), name
    assert branch_multiplier(rule, 4, 2) == 2**-alpha
    assert set(jax.tree.leaves(net.init_scale)) == {1.0}


class Tied(nn.Module):
    width: int

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(7, self.width, name="embed")
        return embed.attend(nn.Dense(self.width, name="hidden")(embed(tokens)))


def test_a_tied_readout_has_to_be_named():
    tokens = jax.ShapeDtypeStruct((2, 5), jnp.int32)
    with pytest.raises(ValueError, match=r'no parameter has the role "output".*"tied"'):
        parametrize(Tied, "mup", width=64, base_width=16, example=tokens)
    net = parametrize(
        Tied, "mup", width=64, base_width=16, example=tokens, roles={"embed/embedding": "tied"}
    )
    assert net.axes["embed"]["embedding"].role == "tied"
    assert net.multiplier["embed"]["embedding"] == 2.0
    headless = parametrize(lambda n: nn.Dense(n), "mup", width=64, base_width=16, example=X)
    assert headless.axes["kernel"].role == "input"


def test_summary_has_a_row_per_parameter():
    net = parametrize(MLP, "mup", width=64, base_width=16, example=X)
    text, page = str(net.summary()), net.summary()._repr_html_()
    row = next(line.split() for line in text.splitlines() if "hidden_1/kernel" in line)
    assert text.splitlines()[0] == "mup at width 64 (base width 16)"
    assert row[1:4] == ["hidden", "(64,", "64)"]
    assert float(row[4]) == pytest.approx(1 / 8, rel=0.05)
    assert row[5:] == ["1", "1", "0.25"]
    assert page.count("<tr>") == 7
    assert "hidden_1/kernel" in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "mupp"}, r"rule is 'mupp'; allowed are standard, ntk, mup, mean_field"),
        ({"base_width": 0}, r"width is 0; it must be a positive integer"),
        ({"family": lambda width: MLP(8)}, r"no parameter of the family grows"),
        ({"example": None}, r"needs `example`"),
        ({"depth_rule": "sqrt"}, r"needs depth, base_depth and branch"),
        ({"depth": 3}, r"have no effect without a depth_rule"),
        (
            {"depth_rule": "cube", "depth": 3, "base_depth": 1, "branch": "*"},
            r"depth_rule is 'cube'",
        ),
        ({"depth_rule": "sqrt", "depth": 0, "base_depth": 1, "branch": "*"}, r"depth is 0"),
        (
            {"depth_rule": "sqrt", "depth": 3, "base_depth": 1, "branch": "b_*"},
            r"'b_\*' matches no parameter",
        ),
    ],
)
def test_errors(change, message):
    arguments = {"family": MLP, "rule": "mup", "width": 16, "base_width": 16, "example": X} | change
    family, rule = arguments.pop("family"), arguments.pop("rule")
    with pytest.raises(ValueError, match=message):
        parametrize(family, rule, **arguments)


def test_errors_of_optimizers_and_symmetry():
    net = plain_net("mup", 16, 16)
    with pytest.raises(ValueError, match=r"lamb is no optimizer of a kind .* size of the param"):
        net.optimizer(optax.lamb, 0.1)
    with pytest.raises(ValueError, match=r"kind is 'Adam'; allowed are"):
        net.optimizer(optax.lamb, 0.1, kind="Adam")
    with pytest.raises(ValueError, match=r"kind is 'adamw'; allowed are"):
        net.lr_scale("adamw")
    with pytest.raises(ValueError, match=r"'other' is not a parameter of the family"):
        net.optimizer(optax.sgd, 0.1).update(
            {"other": X}, net.optimizer(optax.sgd, 0.1).init({"other": X})
        )
    with pytest.raises(ValueError, match=r"t has the roles \['bias'\]"):
        symmetry("mup", {"bias": 1})


OF_A_KIND = {
    "sgd": (optax.sgd, optax.optimistic_gradient_descent),
    "adam": (optax.adam, optax.adamw, optax.lion, optax.rmsprop, optax.adagrad, optax.yogi),
}


@pytest.mark.parametrize("kind", OF_A_KIND)
def test_the_kind_of_an_optimizer_is_found_by_trying_it(kind):
    for factory in OF_A_KIND[kind]:
        assert optimizer_kind(factory) == kind

    def clipped(rate):
        return optax.chain(optax.clip_by_global_norm(1.0), OF_A_KIND[kind][0](rate))

    assert optimizer_kind(clipped, kind) == kind
    other = "adam" if kind == "sgd" else "sgd"
    with pytest.raises(ValueError, match=f'is of the kind "{kind}" and not "{other}"'):
        optimizer_kind(OF_A_KIND[kind][0], other)


@pytest.mark.parametrize("kind", [None, "sgd", "adam"])
@pytest.mark.parametrize("name", ["adafactor", "lamb", "lars", "novograd", "fromage", "radam"])
def test_optimizers_of_no_kind_are_refused_by_name(name, kind):
    reason = "size of the parameters|gradient of others|neither linear in the gradient"
    with pytest.raises(ValueError, match=f"{name} is no optimizer of a kind .*({reason})"):
        optimizer_kind(getattr(optax, name), kind)


@pytest.mark.parametrize("kind", [None, "sgd", "adam"])
def test_sharpness_aware_descent_is_refused_with_its_reason(kind):
    def sam(rate):
        ascent = optax.chain(optax.contrib.normalize(), optax.sgd(0.1))
        return optax.chain(
            optax.contrib.sam(optax.sgd(rate), ascent, opaque_mode=True), optax.identity()
        )

    with pytest.raises(ValueError, match=r"sam is no optimizer of a kind .* radius of its own"):
        plain_net("mup", 16, 16).optimizer(sam, 0.1, kind=kind)


class NormalisedReadout(nn.Module):
    width: int
    head: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.WeightNorm(nn.Dense(self.width, name="hidden"))(x))
        head = nn.Dense(3, name="head")
        return (nn.WeightNorm(head) if self.head else head)(x)


class Cosines(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.width)(x))
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.width, 3))
        return x @ (kernel / jnp.linalg.norm(kernel, axis=0, keepdims=True))


@pytest.mark.parametrize(
    ("family", "name"), [(NormalisedReadout, "head/kernel"), (Cosines, "kernel")]
)
def test_a_readout_whose_scale_does_nothing_is_refused(family, name):
    with pytest.raises(ValueError, match=f"do not depend on the scale of {name} .weight norm"):
        parametrize(family, "mup", width=32, base_width=16, example=X)
    # Under rules whose readouts start as the model's do, nothing would be lost.
    assert parametrize(family, "ntk", width=32, base_width=16, example=X).width == 32


def test_a_hidden_layer_may_be_normalised():
    family = functools.partial(NormalisedReadout, head=False)
    net = parametrize(family, "mup", width=32, base_width=16, example=X)
    assert net.multiplier["head"]["kernel"] == 2**-0.5
