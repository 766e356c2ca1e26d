"""Which axes of a family's parameters grow with its width, and the roles that they give."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from ntk.family import ParamAxes, named_leaves, width_axes

IMAGES = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((2, 5), jnp.int32)
VECTORS = jax.ShapeDtypeStruct((2, 7), jnp.float32)


class MLP(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        for l in range(2):
            x = nn.relu(nn.Dense(self.width, name=f"hidden_{l}")(x))
        return nn.Dense(3, name="readout")(x)


class CNN(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(self.width, (3, 3), name="conv_0")(x))
        x = nn.relu(
            nn.Conv(self.width, (3, 3), feature_group_count=self.width, name="depthwise")(x)
        )
        x = nn.relu(nn.Conv(2 * self.width, (3, 3), use_bias=False, name="conv_1")(x))
        return nn.Dense(10, name="readout")(x.reshape(x.shape[0], -1))


class Block(nn.Module):
    width: int
    heads: int
    bias: bool = True

    @nn.compact
    def __call__(self, x, _=None):
        y = nn.MultiHeadDotProductAttention(self.heads, use_bias=self.bias, name="attention")
        x = x + y(nn.LayerNorm(name="norm_0")(x))
        y = nn.Dense(4 * self.width, name="up", use_bias=self.bias)(nn.LayerNorm(name="norm_1")(x))
        return x + nn.Dense(self.width, name="down", use_bias=self.bias)(nn.gelu(y)), None


class Transformer(nn.Module):
    width: int
    heads: int = 4
    scan: bool = False
    bias: bool = True

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, self.width, name="embed")(tokens)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, 5, self.width))
        if self.scan:
            layers = nn.scan(Block, {"params": 0}, split_rngs={"params": True}, length=6)
            x, _ = layers(self.width, self.heads, self.bias, name="layers")(x, None)
        else:
            x, _ = Block(self.width, self.heads, self.bias, name="layers")(x)
        return nn.Dense(11, name="readout")(nn.LayerNorm(name="norm")(x))


class NnxMLP(nnx.Module):
    def __init__(self, width, *, rngs):
        self.hidden_0 = nnx.Linear(7, width, rngs=rngs)
        self.hidden_1 = nnx.Linear(width, width, rngs=rngs)
        self.readout = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, x):
        return self.readout(nnx.relu(self.hidden_1(nnx.relu(self.hidden_0(x)))))


class NnxBlock(nnx.Module):
    def __init__(self, width, *, rngs):
        self.norm_0 = nnx.LayerNorm(width, rngs=rngs)
        self.norm_1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm_0(x))
        return x + self.down(nnx.gelu(self.up(self.norm_1(x))))


class NnxTransformer(nnx.Module):
    def __init__(self, width, scan=False, *, rngs):
        self.embed = nnx.Embed(11, width, rngs=rngs)
        self.positions = nnx.Param(jnp.zeros((1, 5, width)))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.readout = nnx.Linear(width, 11, rngs=rngs)
        self.scan = scan
        if scan:
            stack = nnx.vmap(lambda rngs: NnxBlock(width, rngs=rngs))
            self.layers = nnx.split_rngs(splits=6)(stack)(rngs)
        else:
            self.layers = NnxBlock(width, rngs=rngs)


class NnxCNN(nnx.Module):
    def __init__(self, width, *, rngs):
        self.conv_0 = nnx.Conv(3, width, (3, 3), rngs=rngs)
        self.depthwise = nnx.Conv(width, width, (3, 3), feature_group_count=width, rngs=rngs)
        self.conv_1 = nnx.Conv(width, 2 * width, (3, 3), use_bias=False, rngs=rngs)
        self.readout = nnx.Linear(8 * 8 * 2 * width, 10, rngs=rngs)


def table(*args, **kwargs):
    axes = width_axes(*args, **kwargs)
    return named_leaves(axes, is_leaf=lambda x: isinstance(x, ParamAxes))


def summary(axes):
    """{name: (role, fan_in and fan_out at the last width)}."""
    return {name: (leaf.role, *leaf.fans()) for name, leaf in axes.items()}


MLP_ROLES = {
    "hidden_0/bias": ("input", 1, 128),
    "hidden_0/kernel": ("input", 7, 128),
    "hidden_1/bias": ("input", 1, 128),
    "hidden_1/kernel": ("hidden", 128, 128),
    "readout/bias": ("scalar", 1, 3),
    "readout/kernel": ("output", 128, 3),
}
CNN_ROLES = {
    "conv_0/bias": ("input", 1, 128),
    "conv_0/kernel": ("input", 27, 128),
    "conv_1/kernel": ("hidden", 9 * 128, 256),
    "depthwise/bias": ("input", 1, 128),
    "depthwise/kernel": ("input", 9, 128),
    "readout/bias": ("scalar", 1, 10),
    "readout/kernel": ("output", 64 * 256, 10),
}
TRANSFORMER_ROLES = {
    **{
        f"layers/attention/{head}/kernel": ("hidden", 128, 128)
        for head in ("key", "out", "query", "value")
    },
    **{
        f"layers/attention/{head}/bias": ("input", 1, 128)
        for head in ("key", "out", "query", "value")
    },
    **{f"layers/norm_{l}/{leaf}": ("input", 1, 128) for l in (0, 1) for leaf in ("bias", "scale")},
    "layers/up/kernel": ("hidden", 128, 512),
    "layers/up/bias": ("input", 1, 512),
    "layers/down/kernel": ("hidden", 512, 128),
    "layers/down/bias": ("input", 1, 128),
    "embed/embedding": ("input", 11, 128),
    "positions": ("input", 5, 128),
    "norm/bias": ("input", 1, 128),
    "norm/scale": ("input", 1, 128),
    "readout/kernel": ("output", 128, 11),
    "readout/bias": ("scalar", 1, 11),
}
WIDTHS = (64, 128)


@pytest.mark.parametrize(
    ("build", "example", "expected"),
    [
        (MLP, VECTORS, MLP_ROLES),
        (CNN, IMAGES, CNN_ROLES),
        (Transformer, TOKENS, TRANSFORMER_ROLES),
        (lambda width: Transformer(width, scan=True), TOKENS, TRANSFORMER_ROLES),
        (lambda width: Transformer(width, heads=width // 16), TOKENS, TRANSFORMER_ROLES),
        (lambda width: lambda rngs: NnxMLP(width, rngs=rngs), None, MLP_ROLES),
        (lambda width: lambda rngs: NnxCNN(width, rngs=rngs), None, CNN_ROLES),
        (lambda width: lambda rngs: NnxTransformer(width, rngs=rngs), None, TRANSFORMER_ROLES),
        (
            lambda width: lambda rngs: NnxTransformer(width, scan=True, rngs=rngs),
            None,
            TRANSFORMER_ROLES,
        ),
    ],
    ids=[
        "mlp",
        "cnn",
        "attention",
        "scan",
        "growing heads",
        "nnx mlp",
        "nnx cnn",
        "nnx attention",
        "nnx scan",
    ],
)
def test_roles_and_fans(build, example, expected):
    assert summary(table(build, example, widths=WIDTHS)) == expected


def test_stacks_of_layers_without_biases():
    def build(width):
        return Transformer(width, heads=width // 16, scan=True, bias=False)

    roles = {
        name: role
        for name, role in TRANSFORMER_ROLES.items()
        if "layers" not in name or "/norm" in name
    }
    kernels = {name: role for name, role in TRANSFORMER_ROLES.items() if name.endswith("kernel")}
    axes = table(build, TOKENS, widths=WIDTHS)
    assert summary(axes) == roles | kernels
    assert axes["layers/attention/query/kernel"].shapes == ((6, 64, 4, 16), (6, 128, 8, 16))
    assert axes["layers/attention/query/kernel"].fan_out == (2, 3)
    assert axes["layers/attention/out/kernel"].fan_in == (1, 2)


def test_dense_general_with_a_bias_says_how_many_features_it_has():
    class Mix(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            x = nn.DenseGeneral((self.width // 8, 8), name="split")(x)
            x = nn.DenseGeneral((self.width // 8, 8), axis=(-2, -1), name="mix")(x)
            return nn.DenseGeneral(3, axis=(-2, -1), name="merge")(x)

    roles = {
        name: role
        for name, role in summary(table(Mix, VECTORS, widths=WIDTHS)).items()
        if "kernel" in name
    }
    assert roles == {
        "split/kernel": ("input", 7, 128),
        "mix/kernel": ("hidden", 128, 128),
        "merge/kernel": ("output", 128, 3),
    }


def pair(shapes):
    """A family of plain functions with parameters of the given shapes."""
    return lambda width: (
        lambda key: jax.tree.map(jnp.zeros, shapes(width), is_leaf=_is_shape),
        lambda p: p,
    )


def _is_shape(x):
    return isinstance(x, tuple) and all(isinstance(size, int) for size in x)


def test_plain_functions_are_read_as_in_out():
    def shapes(n):
        return [((7, n), (n,)), ((n, n), (n,)), ((n, 1), (1,)), ()]

    roles = {name: leaf.role for name, leaf in table(pair(shapes)).items()}
    assert roles == {
        "0/0": "input",
        "0/1": "input",
        "1/0": "hidden",
        "1/1": "input",
        "2/0": "output",
        "2/1": "scalar",
        "3": "scalar",
    }


def test_nothing_is_allocated():
    axes = table(MLP, VECTORS, widths=(2**20, 2**21))
    assert axes["hidden_1/kernel"].fans() == (2**21, 2**21)


def test_a_readout_of_one_output_is_not_taken_for_a_bias():
    axes = table(pair(lambda n: {"w1": (7, n), "b1": (n,), "readout": {"kernel": (n, 1)}}))
    assert axes["b1"].role == "input"
    for shapes in (lambda n: {"w": (7, n), "v": (n,)}, lambda n: [(7, n), (n,)]):
        with pytest.raises(ValueError, match=r"a bias or gain.*and a readout of one output"):
            table(pair(shapes))


@pytest.mark.parametrize("name", ["beta_0", "gamma", "negative_slope", "log_tau", "layer_scale_1"])
def test_gains_by_the_names_that_models_give_them(name):
    axes = table(pair(lambda n: {"w1": (7, n), name: (n,), "readout": {"kernel": (n, 1)}}))
    assert axes[name].role == "input"


def test_roles_can_be_named():
    def shapes(n):
        return {"in": (3, 5, n), "out": (10, n), "v": (n,), "mix": (n // 4, 4, n)}

    with pytest.raises(ValueError, match=r"mix of shapes .* is ambiguous.*roles=\{'mix': role\}"):
        table(pair(shapes))
    with pytest.raises(ValueError, match=r"v of shapes .* is ambiguous: a bias or gain"):
        table(pair(shapes), roles={"mix": "hidden"})
    roles = {"v": "output", "out": "output", "mix": ((0, 1), (-1,)), "in": "tied"}
    axes = table(pair(shapes), widths=WIDTHS, roles=roles)
    assert summary(axes) == {
        "in": ("tied", 15, 128),
        "mix": ("hidden", 128, 128),
        "out": ("output", 128, 10),
        "v": ("output", 128, 1),
    }
    mixed = table(pair(shapes), widths=WIDTHS, roles={"v": "scalar", "mix": "hidden"})
    assert summary(mixed)["mix"] == ("hidden", 128, 128)
    assert summary(mixed)["v"] == ("scalar", 1, 128)


@pytest.mark.parametrize(
    ("shapes", "roles", "message"),
    [
        (
            lambda n: {"w": (n, n)},
            {"*/kernel": "hidden"},
            r"'\*/kernel' matches no parameter; there are \['w'\]",
        ),
        (lambda n: {"w": (n, n)}, {"w": "middle"}, r"'middle' for 'w' is none of"),
        (lambda n: {"w": (7, n)}, {"w": "hidden"}, r"w has 1 axes that grow .* needs at least 2"),
        (lambda n: {"w": (n, n)}, {"w": ((0,), (0,))}, r"not two disjoint groups"),
        (
            lambda n: {"w": (7, 7)},
            None,
            r"no parameter of the family grows between the widths \(64, 256\)",
        ),
        (
            lambda n: {f"w_{l}": (n, n) for l in range(n // 64)},
            None,
            r"differ between widths 64 and 256.*w_1",
        ),
        (lambda n: {"w": (n,) * (n // 64)}, None, r"differ between widths 64 and 256"),
        (lambda n: {"kernel": (n, 4, n)}, None, r"kernel of shapes .* is ambiguous.*several ways"),
    ],
)
def test_errors_of_axes(shapes, roles, message):
    with pytest.raises(ValueError, match=message):
        table(pair(shapes), roles=roles)


def test_one_width_is_not_enough():
    with pytest.raises(ValueError, match="at least two different widths"):
        width_axes(MLP, VECTORS, widths=(64, 64))


class Channels(nn.Module):
    """Numbers of each unit: rates of a diagonal state space, and a convolution of its own for each channel."""

    width: int

    @nn.compact
    def __call__(self, x):
        h = jnp.swapaxes(nn.Dense(self.width, name="in")(x), -1, -2)[..., None]
        options = {"in_axes": 1, "out_axes": 1, "variable_axes": {"params": 0}}
        conv = nn.vmap(nn.Conv, split_rngs={"params": True}, **options)
        h = conv(1, (3,), name="conv")(h)[..., 0]
        rates = self.param("A_log", nn.initializers.ones, (self.width, 4))
        return nn.Dense(2, name="out")(jnp.exp(-rates.sum(1))[None] * h.mean(-1))


def test_a_table_of_numbers_for_each_unit_is_no_readout():
    example = jax.ShapeDtypeStruct((2, 5, 4), jnp.float32)
    with pytest.raises(
        ValueError, match=r"A_log of shapes .* ambiguous: a readout .* table .*roles="
    ):
        width_axes(Channels, example)
    axes = named_leaves(
        width_axes(Channels, example, roles={"A_log": "input"}),
        is_leaf=lambda leaf: isinstance(leaf, ParamAxes),
    )
    assert {name: leaf.role for name, leaf in axes.items()} == {
        "A_log": "input",
        "conv/bias": "input",
        "conv/kernel": "input",
        "in/bias": "input",
        "in/kernel": "input",
        "out/bias": "scalar",
        "out/kernel": "output",
    }
    assert axes["conv/kernel"].fans() == (3, 256)
