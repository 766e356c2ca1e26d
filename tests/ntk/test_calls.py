"""Models as they are: static keywords, several inputs, one number an example, keys, and Equinox."""

from collections.abc import Callable

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

X = jax.random.normal(jax.random.key(0), (3, 7))
PAIR = (jnp.arange(3.0), jnp.array([0, 2, 1]))


class Conditioned(nn.Module):
    """A time and a label for each example, and a keyword without a default."""

    width: int

    @nn.compact
    def __call__(self, time, label, train):
        waves = jnp.stack([jnp.sin(time), jnp.cos(time)], -1)
        embedded = nn.Embed(5, self.width, embedding_init=nn.initializers.normal(1.0))(label)
        hidden = nn.relu(nn.Dense(self.width)(waves) + embedded)
        hidden = nn.Dropout(0.5, deterministic=not train)(hidden)
        return nn.Dense(1)(hidden)


class Dropped(nnx.Module):
    def __init__(self, width, *, rngs):
        self.first = nnx.Linear(7, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, x, **kwargs):
        return self.last(nnx.relu(self.dropout(self.first(x), **kwargs)))


class Layered(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    last: eqx.nn.Linear

    def __init__(self, width, *, key):
        one, two = jax.random.split(key)
        self.first = eqx.nn.Linear(7, width, key=one)
        self.norm = eqx.nn.LayerNorm(width)
        self.last = eqx.nn.Linear(width, 2, key=two)

    def __call__(self, x, *, gain=1.0):
        return gain * self.last(jax.nn.relu(self.norm(self.first(x))))


def equinox_family(width):
    return lambda key: Layered(width, key=key)


def test_static_keywords_reach_every_function():
    call = {"train": False}
    net = limits.parametrize(Conditioned, "ntk", width=256, example=PAIR, call=call)
    params = net.init(jax.random.key(1))
    plain = ntk.network(Conditioned, 256, PAIR)
    kernel = ntk.empirical_ntk(net.apply, params, PAIR, trace_axes=(-1,))
    other = ntk.empirical_ntk(
        lambda p, time, label, train: plain.apply(
            jax.tree.map(jnp.multiply, p, net.multiplier), time, label, train=train
        ),
        params,
        PAIR,
        trace_axes=(-1,),
        call=call,
    )
    np.testing.assert_allclose(kernel, other, rtol=1e-5)
    limit = ntk.infinite_width(Conditioned, PAIR, call=call)
    assert limit(PAIR, None, "ntk").shape == (3, 3)
    assert np.abs(kernel / limit(PAIR, None, "ntk") - 1).max() < 0.5
    with pytest.raises(TypeError, match="train"):
        ntk.width_axes(Conditioned, PAIR)
    with pytest.raises(TypeError, match="keywords that the model is called with"):
        ntk.width_axes(Conditioned, PAIR, call="train")


def test_taylor_models_take_static_keywords():
    def f(w, x, power):
        return x @ w**power

    w = jnp.ones((7, 2))
    np.testing.assert_allclose(
        ntk.linearize(f, w, call={"power": 2})(2 * w, X), X @ (3 * w), rtol=1e-6
    )


def test_a_tuple_is_several_inputs_wherever_the_model_takes_several():
    def together(w, pair):
        return pair[0] @ w + pair[1]

    def apart(w, x, shift):
        return together(w, (x, shift))

    w, pair = jax.random.normal(jax.random.key(2), (7, 2)), (X, X[:, :2])
    for trace in ((), (-1,)):
        kernels = [ntk.empirical_ntk(f, w, pair, trace_axes=trace) for f in (together, apart)]
        np.testing.assert_array_equal(*kernels)
    products = [ntk.empirical_ntk_vp_fn(f, pair, None, w)(X[:, :2]) for f in (together, apart)]
    np.testing.assert_array_equal(*products)


def test_a_key_is_an_input_of_a_finite_network_only():
    def apply(w, x, key):
        return (x + jax.random.normal(key, (7,))[None]) @ w

    w, key = jnp.ones((7, 2)), jax.random.key(3)
    shifted = X + jax.random.normal(key, (7,))[None]
    np.testing.assert_allclose(
        ntk.empirical_ntk(apply, w, (X, key))[..., 0, 0], shifted @ shifted.T, rtol=1e-5
    )
    with pytest.raises(ValueError, match="PRNG key, and a kernel is of a network that draws"):
        ntk.infinite_width(Conditioned, (X, key))


@pytest.mark.parametrize("function", [ntk.infinite_width, ntk.width_axes, ntk.explain])
@pytest.mark.parametrize("module", [Conditioned(8), Layered(8, key=jax.random.key(0))])
def test_a_module_is_no_family(function, module):
    with pytest.raises(ValueError, match="it must be a function of the width"):
        function(module, X)


def test_nnx_dropout_is_switched_off_by_a_keyword_or_refused():
    def family(width):
        return lambda rngs: Dropped(width, rngs=rngs)

    def plain(width):
        return nn.Sequential([nn.Dense(width), nn.relu, nn.Dense(2)])

    kernels = [
        ntk.infinite_width(f, X, call=call)(X, None, "ntk")
        for f, call in ((family, {"deterministic": True}), (plain, None))
    ]
    np.testing.assert_allclose(*kernels, rtol=1e-5)
    with pytest.raises(
        ValueError, match=r"draws random numbers when it is called.*deterministic=True"
    ):
        ntk.infinite_width(family, X)
    net = limits.parametrize(family, "mup", width=32, base_width=8, example=X)
    params, state = net.init(jax.random.key(0)), net.state(jax.random.key(1))
    assert net.apply(params, X, state=state, mutable=True)[1]["dropout"]["rngs"]["count"] == 1


def test_an_equinox_module_is_a_family():
    axes = named_leaves(ntk.width_axes(equinox_family), is_leaf=lambda a: isinstance(a, ParamAxes))
    found = {name: (a.role, a.fan_in, a.fan_out) for name, a in axes.items()}
    assert found == {
        "first/weight": ("input", (1,), (0,)),
        "first/bias": ("input", (), (0,)),
        "norm/weight": ("input", (), (0,)),
        "norm/bias": ("input", (), (0,)),
        "last/weight": ("output", (1,), (0,)),
        "last/bias": ("scalar", (), (0,)),
    }
    net = limits.parametrize(equinox_family, "mup", width=16, base_width=16, example=X)
    params = net.init(jax.random.key(1))
    model = Layered(16, key=jax.random.key(1))
    np.testing.assert_array_equal(net.apply(params, X), jax.vmap(model)(X))
    np.testing.assert_array_equal(net.apply(params, X, gain=2.0), 2 * jax.vmap(model)(X))


def test_the_limit_of_an_equinox_module_is_that_of_its_flax_twin():
    def flax(width):
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        return nn.Sequential(
            [
                nn.Dense(width, kernel_init=uniform, use_bias=False),
                nn.LayerNorm(epsilon=1e-5),
                nn.relu,
                nn.Dense(2, kernel_init=uniform, use_bias=False),
            ]
        )

    class Biasless(Layered):
        def __init__(self, width, *, key):
            super().__init__(width, key=key)
            for name, size in (("first", (7, width)), ("last", (width, 2))):
                setattr(self, name, eqx.nn.Linear(*size, use_bias=False, key=key))

    one = ntk.infinite_width(lambda width: lambda key: Biasless(width, key=key), X)
    two = ntk.infinite_width(flax, X)
    for get in ("nngp", "ntk"):
        np.testing.assert_allclose(one(X, None, get), two(X, None, get), rtol=1e-5)


class Looked(eqx.Module):
    """An embedding looked up, of `eqx.nn` or as an array, and a readout with its bias."""

    table: eqx.nn.Embedding
    last: eqx.nn.Linear
    how: Callable = eqx.field(static=True)

    def __init__(self, width, how, *, key):
        one, two = jax.random.split(key)
        self.table, self.how = eqx.nn.Embedding(5, width, key=one), how
        self.last = eqx.nn.Linear(width, 2, key=two)

    def __call__(self, i):
        return self.last(jax.nn.relu(self.how(self.table, i)))


LOOK_UPS = {
    "the layer": (lambda table, i: table(i), ()),
    "its weight": (lambda table, i: table.weight[i], ()),
    "take": (lambda table, i: jnp.take(table.weight, i, 0), ()),
    "an index of lax": (
        lambda table, i: jax.lax.dynamic_index_in_dim(table.weight, i, 0, False),
        (),
    ),
    "vmap": (lambda table, i: jax.vmap(table)(i).mean(0), (3,)),
    "rows": (lambda table, i: table.weight[i].mean(0), (3,)),
}


@pytest.mark.parametrize("name", LOOK_UPS)
def test_rows_of_a_table_of_an_equinox_module(name):
    """Of a uniform readout with a variance of 1 / (3 n); its bias, of that variance too, is nothing in the limit."""
    how, shape = LOOK_UPS[name]
    i = np.random.default_rng(0).integers(0, 5, (4, *shape)).astype("int32")
    kernel_fn = ntk.infinite_width(lambda width: lambda key: Looked(width, how, key=key), i)
    mixed = jax.nn.one_hot(i, 5).reshape(4, -1, 5).mean(1)
    k = np.asarray(mixed @ mixed.T)
    norms = np.sqrt(np.outer(k.diagonal(), k.diagonal()))
    angle = np.arccos(np.clip(k / norms, -1, 1))
    nngp = norms * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi) / 3
    moved = k * (np.pi - angle) / (2 * np.pi) / 3
    np.testing.assert_allclose(kernel_fn(i, None, "nngp"), nngp, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(kernel_fn(i, None, "ntk"), nngp + moved, rtol=1e-4, atol=1e-6)


def test_biases_that_fall_with_the_width_are_nothing_in_the_limit():
    """Of layers that are called again, too; the kernels are those without biases."""

    class Twice(eqx.Module):
        layers: list

        def __init__(self, width, use_bias, *, key):
            sizes = ((7, width, False), (width, width, use_bias), (width, 2, use_bias))
            self.layers = [eqx.nn.Linear(a, b, use_bias=c, key=key) for a, b, c in sizes]

        def __call__(self, x):
            first, again, last = self.layers
            h = jax.nn.relu(again(jax.nn.relu(first(x))))
            return last(jax.nn.relu(again(h)))

    def family(use_bias):
        return lambda width: lambda key: Twice(width, use_bias, key=key)

    one, two = (ntk.infinite_width(family(b), X[:2])(X[:2], None, "ntk") for b in (True, False))
    np.testing.assert_array_equal(one, two)


def test_matrices_of_an_equinox_model_that_are_nobodys_are_ambiguous():
    class Own(eqx.Module):
        weight: jax.Array

        def __init__(self, width, *, key):
            self.weight = jax.random.normal(key, (width, width))

        def __call__(self, x):
            return self.weight @ x

    with pytest.raises(ValueError, match=r"weight .* is ambiguous: matrices may be \(in, out\) or"):
        ntk.width_axes(lambda width: lambda key: Own(width, key=key))


def test_biases_that_shrink_with_the_width_add_nothing():
    """As eqx.nn.Linear draws them; a sum of such vectors alone, as a class token may be, is still refused."""

    class Perceptron(eqx.Module):
        layers: list

        def __init__(self, width, *, key, bias=True):
            sizes = ((7, width), (width, width), (width, 2))
            keys = jax.random.split(key, 3)
            use = (True, bias, bias)  # that of the first layer stays
            self.layers = [
                eqx.nn.Linear(*s, use_bias=b, key=k) for s, k, b in zip(sizes, keys, use)
            ]

        def __call__(self, x):
            one, two, three = self.layers
            return three(jax.nn.relu(two(jax.nn.relu(one(x)))))

    def kernels(bias):
        def family(width):
            return lambda key: Perceptron(width, key=key, bias=bias)

        return family, ntk.infinite_width(family, X)(X, None, ("nngp", "ntk"))

    (family, with_biases), (_, without) = kernels(True), kernels(False)
    np.testing.assert_allclose(with_biases.nngp, without.nngp, rtol=1e-6)
    np.testing.assert_allclose(with_biases.ntk, without.ntk, rtol=1e-6)
    assert "width^-1: nothing beside terms" in str(ntk.explain(family, X))

    class Token(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            shrinking = nn.initializers.variance_scaling(1.0, "fan_out", "normal")
            token = self.param("token", shrinking, (1, self.width))
            h = jnp.stack(
                [nn.Dense(self.width)(x), jnp.broadcast_to(token, (len(x), self.width))], 1
            )
            return nn.Dense(1)(nn.relu(nn.RMSNorm(epsilon=0.0)(h)).mean(1))

    with pytest.raises(ValueError, match=r"what is of size width.*an activation that"):
        ntk.infinite_width(Token, X)


def test_convolutions_of_equinox_are_those_of_flax():
    """They take inputs in the precision of their weights alone, and have channels first."""

    class Own(eqx.Module):
        conv: eqx.nn.Conv2d
        last: eqx.nn.Linear

        def __init__(self, width, *, key):
            one, two = jax.random.split(key)
            self.conv = eqx.nn.Conv2d(2, width, 3, padding=1, use_bias=False, key=one)
            self.last = eqx.nn.Linear(width, 1, use_bias=False, key=two)

        def __call__(self, x):
            return self.last(jax.nn.relu(self.conv(x)).mean((1, 2)))

    uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

    class Flax(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            h = nn.Conv(self.width, (3, 3), use_bias=False, kernel_init=uniform)(x)
            h = nn.relu(h).mean((1, 2))
            return nn.Dense(1, use_bias=False, kernel_init=uniform)(h)

    x = jax.random.normal(jax.random.key(0), (3, 2, 4, 4))
    y = jnp.moveaxis(x, 1, -1)
    one = ntk.infinite_width(lambda width: lambda key: Own(width, key=key), x)
    two = ntk.infinite_width(Flax, y)
    for get in ("nngp", "ntk"):
        np.testing.assert_allclose(one(x, None, get), two(y, None, get), rtol=1e-5)
