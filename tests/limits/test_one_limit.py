"""The empirical kernel of `parametrize(family, "ntk", width=n, **o)` tends to `infinite_width(family, x, **o)`.

The error falls as n^-1/2 for every option and model; an option that means something else in one of the two leaves an
error that does not fall at all.
"""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import limits
import models
import ntk

NORMAL = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
X = jax.random.normal(jax.random.key(5), (3, 6))


class Norm(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width, kernel_init=NORMAL, name="first")(x)
        h = nn.Dense(self.width, kernel_init=NORMAL, name="branch")(nn.LayerNorm(name="norm")(x))
        return nn.Dense(1, kernel_init=NORMAL, name="readout")(x + nn.tanh(h))


class Tokens(nn.Module):
    width: int

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(5, self.width, embedding_init=nn.initializers.normal(1.0), name="embed")(
            tokens
        )
        x = nn.relu(nn.Dense(self.width, kernel_init=NORMAL, name="hidden")(x)).mean(axis=1)
        return nn.Dense(1, kernel_init=NORMAL, name="readout")(x)


class Basis(nn.Module):
    """Coefficients (units, inputs, powers), which no name or shape tells to be a matrix."""

    width: int

    @nn.compact
    def __call__(self, x):
        c = self.param("c", nn.initializers.normal(0.3), (self.width, x.shape[-1], 2))
        h = nn.tanh(jnp.einsum("bik,oik->bo", jnp.stack([x, x**2], -1), c))
        return nn.Dense(1, kernel_init=NORMAL, name="readout")(h)


def mlp(**fields):
    return models.family("MLP", depth=2, outputs=1, kernel_init=NORMAL, **fields)


CNN = models.family("CNN", depth=2, outputs=1, kernel_init=NORMAL)
MODELS = {
    "mlp": (mlp(), X),
    "biases": (mlp(bias_init=nn.initializers.normal(0.5)), X),
    "constant scale": (
        models.family("MLP", depth=1, outputs=1, kernel_init=nn.initializers.normal(0.2)),
        X,
    ),
    "cnn": (CNN, jax.random.normal(jax.random.key(6), (2, 4, 4, 1))),
    "norm": (Norm, X),
    "tokens": (Tokens, jnp.array([[0, 1, 2], [3, 3, 1]])),
    "basis": (Basis, X),
}
ROLES = {"c": ((1, 2), (0,))}
OPTIONS = {
    "none": {},
    "base width": {"base_width": 8},
    "biases": {"bias_std": 0.7},
    "rates": {"learning_rates": {"*": 2.0, "*kernel": 0.5}},
    "frozen": {"learning_rates": {"readout/kernel": 0}},
    "all": {"base_width": 16, "bias_std": 0.4, "learning_rates": {"readout/*": 3.0}},
}
QUICK = {("mlp", "none"), ("mlp", "all"), ("norm", "base width"), ("basis", "rates")}
CASES = [
    pytest.param(model, option, marks=[] if (model, option) in QUICK else pytest.mark.slow)
    for model in MODELS
    for option in OPTIONS
    if model != "constant scale" or "base_width" in OPTIONS[option]
]


def error_slope(family, x, options, widths, networks):
    """Slope of the logarithm of the root mean square error in that of the width."""
    expected, errors = ntk.infinite_width(family, x, **options)(x, None, "ntk"), []
    for width in widths:
        net = limits.parametrize(family, "ntk", width=width, example=x, **options)

        @jax.jit
        def error(key, net=net):
            kernel = ntk.empirical_ntk(net.apply, net.init(key), x, trace_axes=(-1,))
            return jnp.mean(jnp.square(kernel - expected))

        keys = jax.random.split(jax.random.key(width), networks)
        errors.append(np.sqrt(np.mean([error(key) for key in keys])))
    return np.polyfit(np.log(widths), np.log(errors), 1)[0]


@pytest.mark.parametrize(("model", "option"), CASES)
def test_the_error_falls_as_the_root_of_the_width(model, option):
    family, x = MODELS[model]
    options = OPTIONS[option] | ({"roles": ROLES} if model == "basis" else {})
    widths = (32, 512) if (model, option) in QUICK else (32, 128, 512)
    # 32 errors of a chi-square with a few degrees of freedom: the slope over a factor of 16 is known to .06.
    assert abs(error_slope(family, x, options, widths, networks=32) + 1 / 2) < 0.2


def test_options_that_differ_leave_an_error():
    """The slope is a test: with a base width in one of the two alone it is far from -1/2."""
    family, x = MODELS["mlp"]
    kernel = ntk.infinite_width(family, x)(x, None, "ntk")
    other = ntk.infinite_width(family, x, base_width=64)(x, None, "ntk")
    assert float(jnp.abs(kernel / other - 1).min()) > 0.5


def test_without_a_base_width_the_outputs_are_those_of_the_model():
    family = mlp(bias_init=nn.initializers.normal(0.5))
    net, model = limits.parametrize(family, "ntk", width=32, example=X), family(32)
    params, own = net.init(jax.random.key(1)), model.init(jax.random.key(1), X)
    np.testing.assert_allclose(net.apply(params, X), model.apply(own, X), rtol=1e-5)
    stds = {name: float(leaf.std()) for name, leaf in ntk.named_leaves(params).items()}
    assert all(0.8 < std < 1.2 for name, std in stds.items() if "hidden" in name), stds
    assert net.factors["multiplier"]["hidden_1/kernel"] == pytest.approx(32**-0.5, rel=1e-6)
    assert net.factors["multiplier"]["readout/bias"] == pytest.approx(0.5, rel=1e-6)


def test_every_weight_keeps_the_law_of_its_initializer():
    """Flax's default is a normal law cut off at two standard deviations of what is drawn."""
    net = limits.parametrize(models.family("MLP", depth=1, outputs=1), "ntk", width=512, example=X)
    kernel = np.asarray(net.init(jax.random.key(0))["hidden_0"]["kernel"])
    uncut = 1 - 4 * np.exp(-2) / np.sqrt(2 * np.pi) / 0.9544997361
    assert 0.97 < np.abs(kernel).max() * np.sqrt(uncut) / 2 < 1.0001
    assert kernel.std() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("factory", [optax.sgd, optax.adam])
@pytest.mark.usefixtures("x64")
def test_a_factor_on_the_learning_rate_is_one_for_every_optimizer(factory):
    """Two steps of both forms of a rate: in the parametrization, and as a factor on the update."""
    family, rates = mlp(), {"hidden_1/kernel": 4.0, "readout/*": 0}
    outputs = []
    for given in (None, rates):
        net = limits.parametrize(
            family, "mup", width=16, base_width=8, example=X, learning_rates=given
        )
        params = net.init(jax.random.key(0))
        tx = net.optimizer(factory, 0.05)
        if given is None:
            names = dict.fromkeys(ntk.named_leaves(params), 1.0)
            names |= {"hidden_1/kernel": 4.0, "readout/kernel": 0.0, "readout/bias": 0.0}
            scale = optax.stateless(
                lambda u, _, names=names: jax.tree_util.tree_map_with_path(
                    lambda path, leaf: leaf * names[ntk.path_name(path)], u
                )
            )
            tx = optax.chain(tx, scale)
        state = tx.init(params)
        for _ in range(2):
            gradient = jax.grad(lambda p, net=net: jnp.mean((net.apply(p, X) - 1) ** 2))(params)
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        outputs.append(net.apply(params, X))
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-5)


def test_a_weight_without_scale_needs_a_base_width():
    family = models.family("MLP", depth=1, outputs=1, kernel_init=nn.initializers.constant(0.5))
    with pytest.raises(
        ValueError, match=r"readout/kernel .*constant at initialisation.*base_width="
    ):
        limits.parametrize(family, "ntk", width=16, example=X)


@pytest.mark.parametrize("call", [ntk.infinite_width, ntk.explain])
def test_an_unknown_option_of_the_limit_names_the_nearest(call):
    family, x = MODELS["mlp"]
    with pytest.raises(TypeError, match=r"argument 'bias_sd' \(did you mean 'bias_std'\?\)"):
        call(family, x, bias_sd=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bias_std": -1.0}, "bias_std is -1.0"),
        ({"base_width": 2.5}, "width is 2.5; it must be a positive integer"),
        ({"learning_rates": {"*": float("inf")}}, r"learning_rates\['\*'\] is inf"),
        ({"roles": {"hiden": "input"}}, "'hiden' matches no parameter"),
    ],
)
def test_both_refuse_the_same_values(options, message):
    family, x = MODELS["mlp"]
    with pytest.raises((ValueError, TypeError), match=message):
        ntk.infinite_width(family, x, **options)
    with pytest.raises((ValueError, TypeError), match=message):
        limits.parametrize(family, "ntk", width=16, example=x, **options)


README = (pathlib.Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "row"), [({}, "no options"), ({"base_width": 64}, "`base_width=64`")]
)
def test_numbers_of_the_readme(options, row):
    """README's model, both calls side by side, and the numbers in its table."""
    source = re.search(r"class Net\(nn.Module\):.*?gelu\(x\)\)\n", README, re.S)[0]
    scope = {"nn": nn}
    exec(source, scope)
    from sklearn.datasets import load_digits

    x = jnp.asarray(load_digits().data[:1] / 16 - 0.5, jnp.float32)
    limit, mean, error = re.search(
        rf"\| {row} \| ([\d.]+) \| ([\d.]+) ± ([\d.]+) \|", README
    ).groups()
    kernel = ntk.infinite_width(scope["Net"], x, **options)(x, None, "ntk")
    assert float(kernel[0, 0]) == pytest.approx(float(limit), rel=0.02)
    net = limits.parametrize(scope["Net"], "ntk", width=1024, example=x, **options)
    finite = jax.jit(lambda key: ntk.empirical_ntk(net.apply, net.init(key), x, trace_axes=(-1,)))
    found = np.mean([float(finite(key)[0, 0]) for key in jax.random.split(jax.random.key(0), 8)])
    assert found == pytest.approx(float(mean), rel=0.005)
    assert abs(float(mean) - float(limit)) < 3 * float(error)
