"""A family at one width as (init, apply), from linen, NNX and plain functions."""

import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ntk.family import ParamAxes, initial_state, named_leaves, network, path_name, width_axes

VECTORS = jax.ShapeDtypeStruct((2, 7), jnp.float32)


class MLP(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        for l in range(2):
            x = nn.relu(nn.Dense(self.width, name=f"hidden_{l}")(x))
        return nn.Dense(3, name="readout")(x)


class NormNet(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(
            nn.Dense(self.width, name="hidden")(x)
        )
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3, name="readout")(nn.relu(x))


class NnxMLP(nnx.Module):
    def __init__(self, width, *, rngs):
        self.hidden_0 = nnx.Linear(7, width, rngs=rngs)
        self.hidden_1 = nnx.Linear(width, width, rngs=rngs)
        self.readout = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, x):
        return self.readout(nnx.relu(self.hidden_1(nnx.relu(self.hidden_0(x)))))


class NnxNormNet(nnx.Module):
    def __init__(self, width, *, rngs):
        self.hidden = nnx.Linear(7, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.readout = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, x, train=False):
        x = self.norm(self.hidden(x), use_running_average=not train)
        return self.readout(self.dropout(x, deterministic=not train))


def same_bits(left, right):
    left, right = named_leaves(left), named_leaves(right)
    assert left.keys() == right.keys()
    return all(np.array_equal(left[name], right[name]) for name in left)


def test_linen_network_is_the_module_bit_for_bit():
    x, key = jax.random.normal(jax.random.key(1), (4, 7)), jax.random.key(0)
    init, apply = network(MLP, 16, VECTORS)
    variables = MLP(16).init(key, x)
    assert same_bits(init(key), variables["params"])
    assert np.array_equal(apply(init(key), x), MLP(16).apply(variables, x))
    outputs, sown = apply(init(key), x, capture_intermediates=True, mutable=["intermediates"])
    assert outputs.shape == (4, 3)
    assert "hidden_0" in sown["intermediates"]


def test_nnx_network_is_the_module_bit_for_bit():
    x, key = jax.random.normal(jax.random.key(1), (4, 7)), jax.random.key(0)
    net = network(lambda width: lambda rngs: NnxMLP(width, rngs=rngs), 16)
    model = NnxMLP(16, rngs=nnx.Rngs(key))
    params = net.init(key)
    assert same_bits(params, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    assert np.array_equal(net.apply(params, x), model(x))
    assert np.array_equal(net.apply(nnx.state(model, nnx.Param), x), model(x))
    nnx.update(model, jax.tree.map(jnp.zeros_like, params))
    assert not model(x).any()


def test_several_inputs_and_partial_families():
    class Sum(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x, y):
            return nn.Dense(1)(nn.Dense(self.width)(x + y))

    net = network(Sum, 4, (VECTORS, VECTORS))
    outputs = jax.eval_shape(
        lambda key, x: net.apply(net.init(key), x, x), jax.random.key(0), VECTORS
    )
    assert outputs.shape == (2, 1)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_batch_norm_and_dropout_pass_through(kind):
    x, key = jax.random.normal(jax.random.key(1), (8, 7)), jax.random.key(0)
    build = NormNet if kind == "linen" else lambda width: lambda rngs: NnxNormNet(width, rngs=rngs)
    net = network(build, 16, VECTORS)
    params, state = net.init(key), initial_state(build, 16, VECTORS, key)
    assert set(params) == {"hidden", "norm", "readout"}
    with pytest.raises(ValueError, match=r"pass state=.*initial_state"):
        net.apply(params, x)
    assert net.apply(params, x, state=state).shape == (8, 3)
    if kind == "linen":
        with pytest.raises(ValueError, match="mutable"):
            net.apply(params, x, state=state, train=True, rngs={"dropout": key})
        extra = {"mutable": ["batch_stats"], "rngs": {"dropout": key}}
    else:
        extra = {"mutable": True}
    _, new = jax.jit(lambda p, s: net.apply(p, x, state=s, train=True, **extra))(params, state)
    mean = named_leaves(new)["batch_stats/norm/mean" if kind == "linen" else "norm/mean"]
    hidden = x @ params["hidden"]["kernel"]
    np.testing.assert_allclose(mean, 0.01 * hidden.mean(0), rtol=1e-4, atol=1e-6)
    assert set(new) == set(state)
    axes = named_leaves(width_axes(build, VECTORS), is_leaf=lambda x: isinstance(x, ParamAxes))
    assert {axes["norm/scale"].role, axes["norm/bias"].role} == {"input"}
    assert initial_state(MLP, 16, VECTORS, key) == {}


@pytest.mark.parametrize(
    ("build", "width", "message"),
    [
        (lambda width: "model", 8, r"family\(8\) returned str"),
        (3, 8, "family is 3; it must be a function of the width"),
        (MLP, 0, "width is 0; it must be a positive integer"),
        (MLP, 1.5, "width is 1.5"),
        (MLP, 8, "needs `example`"),
        (
            lambda width: nnx.eval_shape(lambda: NnxMLP(width, rngs=nnx.Rngs(0))),
            8,
            "NnxMLP.*lambda width: lambda rngs",
        ),
        (lambda width: (1, 2), 8, "returned tuple"),
        (lambda width: lambda rngs: 3, 8, "must give an nnx.Module .* got int"),
    ],
)
def test_errors_of_families(build, width, message):
    with pytest.raises(ValueError, match=message):
        network(build, width)


def test_path_names_agree_between_containers():
    model = nnx.eval_shape(lambda: NnxMLP(4, rngs=nnx.Rngs(0)))
    state = nnx.state(model, nnx.Param)
    assert (
        list(named_leaves(state))
        == list(named_leaves(nnx.to_pure_dict(state)))
        == [
            f"{layer}/{leaf}"
            for layer in ("hidden_0", "hidden_1", "readout")
            for leaf in ("bias", "kernel")
        ]
    )
    boxed = {"hidden": {"kernel": nn.Partitioned(jnp.zeros(2), names=("x",))}}
    assert list(named_leaves(boxed)) == ["hidden/kernel"]
    assert path_name((jax.tree_util.DictKey("a"), jax.tree_util.SequenceKey(0))) == "a/0"


def test_flax_is_imported_only_when_it_is_used():
    code = (
        "import sys, jax.numpy as jnp; from ntk import family;"
        "pair = lambda n: (lambda key: {'w': jnp.zeros((3, n))}, lambda p: p);"
        "family.width_axes(pair); sys.exit('flax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
