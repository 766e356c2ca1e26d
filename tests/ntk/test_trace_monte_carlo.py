"""Kernels read from Flax modules against finite networks, hand derivations and `ntk.stax`."""

import functools
import importlib.util
import math
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import limits
import models
import ntk
from ntk import stax


def _helper(name):
    """A module of this folder, which is not a package."""
    path = pathlib.Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"traced_{name}", path)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


modules, derivations = _helper("modules"), _helper("derivations")

NAMES = list(modules.FAMILIES)
UPPER = np.triu_indices(3)
WIDTH, COUNT = 256, 32
BY_HAND = {
    "gated linear unit": derivations.gated_linear_unit,
    "RMSNorm": derivations.rms_normed,
    "squared ReLU": derivations.squared_relu,
    "snake": functools.partial(derivations.snake, a=modules.FREQUENCY),
    "swish": functools.partial(derivations.swish, beta=modules.SHARPNESS),
    "two branches": derivations.two_branches,
    "dense net": derivations.dense_net,
    "mixed pooling": derivations.mixed_pooling,
    "positional biases": functools.partial(derivations.positional_biases, std=modules.POSITION_STD),
    "kink": functools.partial(
        derivations.kinked,
        f=lambda z: np.where(z > 0.7, 2 * z - 1.05, 0.5 * z),
        slope=lambda z: np.where(z > 0.7, 2.0, 0.5),
        kink=0.7,
    ),
}


def inputs(name):
    """Three inputs of root mean square 0.8, 1 and 1.3, the first two at an acute angle."""
    x = np.random.default_rng(3).normal(size=(3, 4, 3) if name in modules.SEQUENCES else (3, 5))
    x[1] = 0.8 * x[0] + 0.6 * x[1]
    axes = tuple(range(1, x.ndim))
    x /= np.sqrt(np.mean(x**2, axis=axes, keepdims=True))
    return x * np.expand_dims([0.8, 1.0, 1.3], axes)


def traced(family, x, **options):
    """(NNGP, NTK) of the traced limit, in double precision."""
    example = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    kernel_fn = ntk.infinite_width(family, example, **options)
    with jax.enable_x64(True):
        return tuple(np.asarray(k) for k in kernel_fn(jnp.asarray(x), None, ("nngp", "ntk")))


@functools.cache
def limit(name):
    return traced(modules.FAMILIES[name], inputs(name))


# Finite networks


def finite_kernels(name, width, count, doubled=()):
    """NNGP and NTK of `count` networks of that width, (2, count, 3, 3).

    Every random weight is its initial standard deviation times a standard normal, and all that is not random is
    trained as it stands. The NNGP is the covariance of the outputs given the last hidden layer.

    Args:
        name: of the family.
        width: of the networks.
        count: how many.
        doubled: parameters whose variance is doubled, for controls.
    """
    x = jnp.asarray(inputs(name), jnp.float32)
    net = ntk.network(modules.FAMILIES[name], width, x)
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    laws = {path: modules.law(path, s.shape) for path, s in ntk.named_leaves(shapes).items()}
    tree = jax.tree.structure(shapes)
    scales = [
        std * (math.sqrt(2) if p in doubled else 1) if std else 1 for p, (_, std) in laws.items()
    ]
    scale = tree.unflatten(scales)
    is_readout = tree.unflatten([path == "readout/kernel" for path in laws])

    def apply(params, x):
        return net.apply(jax.tree.map(jnp.multiply, params, scale), x)

    def readout(params, x):
        stopped = jax.tree.map(jax.lax.stop_gradient, params)
        params = jax.tree.map(lambda p, q, own: p if own else q, params, stopped, is_readout)
        return apply(params, x)

    def kernels(params):
        return [ntk.empirical_ntk(f, params, x, trace_axes=(-1,)) for f in (readout, apply)]

    networks = jax.jit(lambda stack: jax.lax.map(kernels, stack))
    return np.asarray(networks(tree.unflatten(draws(laws, jax.tree.leaves(shapes), count))), float)


def draws(laws, shapes, count):
    """For each parameter standard normals, or its constant, (count, ...)."""
    random = np.random.default_rng([count, *shapes[0].shape])
    return [
        random.standard_normal((count, *s.shape), np.float32)
        if std
        else np.full((count, *s.shape), mean, np.float32)
        for (mean, std), s in zip(laws.values(), shapes)
    ]


@functools.cache
def samples(name, width=WIDTH, count=COUNT):
    return finite_kernels(name, width, count)


def z_scores(kernels, expected):
    """Deviations of the means from the limits in standard errors, over both kernels and pairs of inputs."""
    mean, error = kernels.mean(1), kernels.std(1, ddof=1) / math.sqrt(kernels.shape[1])
    return ((mean - np.stack(expected)) / error)[:, *UPPER]


# Tests


@pytest.mark.parametrize("name", NAMES)
def test_limit_is_the_one_derived_by_hand(name):
    """To the error at which series of activations are cut off."""
    for found, derived in zip(limit(name), BY_HAND[name](inputs(name))):
        np.testing.assert_allclose(found, derived, rtol=0, atol=1e-6 * np.abs(derived).max())


@pytest.mark.parametrize("name", NAMES)
def test_finite_networks_agree_within_three_standard_errors(name):
    assert np.abs(z_scores(samples(name), limit(name))).max() < 3


def test_a_dropped_bias_is_seen_in_finite_networks():
    name = "gated linear unit"
    nngp, tangent = limit(name)
    assert np.abs(z_scores(samples(name), (nngp, tangent - 1))[1]).min() > 3


def test_a_weight_of_doubled_variance_is_seen_in_finite_networks():
    name = "gated linear unit"
    wrong = finite_kernels(name, WIDTH, COUNT, doubled=("value/kernel",))
    assert np.abs(z_scores(wrong, limit(name))).max(-1).min() > 3


def deviation(name, width, count):
    """Root mean square of a finite network's deviation from the limit, relative to it; of both kernels."""
    expected = np.stack(limit(name))[:, None]
    squares = np.mean((samples(name, width, count) - expected) ** 2, axis=(1, 2, 3))
    return np.sqrt(squares / np.mean(expected**2, axis=(1, 2, 3)))


@pytest.mark.parametrize("name", ["gated linear unit", "squared ReLU"])
def test_one_network_deviates_by_the_inverse_root_of_the_width(name):
    """Each deviation is known to about one part in 2 sqrt(count), so that the slope has an error of 0.05."""
    slope = np.log(deviation(name, WIDTH, COUNT) / deviation(name, 16, 64)) / math.log(WIDTH / 16)
    assert np.all(np.abs(slope + 0.5) < 0.15)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_deviations_have_the_slope_of_the_inverse_root_of_the_width(name):
    widths, count = (32, 64, 128, 256, 512), 64
    sizes = [deviation(name, width, count) for width in widths]
    slopes = np.polyfit(np.log(widths), np.log(sizes), 1)[0]
    assert np.all(np.abs(slopes + 0.5) < 0.15)


# Combinators


def stax_kernels(name, x):
    dense = stax.Dense(1)
    relu, identity = stax.Relu(), stax.Identity()

    def grown(width):
        new = stax.serial(stax.Dense(width), relu)
        return stax.serial(stax.FanOut(2), stax.parallel(identity, new), stax.FanInConcat())

    one = stax.serial(dense, stax.Tanh())
    deep = stax.serial(dense, stax.Cos())
    two = stax.serial(dense, relu, stax.FanOut(2), stax.parallel(identity, deep), stax.FanInProd())
    networks = {
        "squared ReLU": (dense, stax.RectifiedMonomial(2)),
        "dense net": (dense, relu, grown(1), grown(2)),
        "two branches": (stax.FanOut(2), stax.parallel(one, two), stax.FanInProd()),
    }
    with jax.enable_x64(True):
        return stax.serial(*networks[name], dense)[2](jnp.asarray(x), None, ("nngp", "ntk"))


@pytest.mark.parametrize("name", ["squared ReLU", "dense net", "two branches"])
def test_limit_is_that_of_the_combinators(name):
    for found, written in zip(limit(name), stax_kernels(name, inputs(name))):
        np.testing.assert_allclose(found, written, rtol=1e-6)


# The finite network that is trained


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_table_of_initial_laws(name):
    """What the Monte Carlo draws is what the modules draw."""
    net = ntk.network(modules.FAMILIES[name], 64, jnp.asarray(inputs(name), jnp.float32))
    for path, values in ntk.named_leaves(net.init(jax.random.key(0))).items():
        mean, std = modules.law(path, values.shape)
        error = 5 / math.sqrt(values.size)
        assert abs(float(values.mean()) - mean) <= error * std + 1e-6
        assert abs(float(jnp.sqrt(jnp.mean((values - mean) ** 2))) - std) <= error * std


def test_parametrized_network_has_the_limit_of_its_base_width():
    """`limits.parametrize` trains weights that keep their deviation at the base width, at unit rate."""
    base, normal = 16, jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")
    family = models.family("MLP", depth=1, outputs=1, kernel_init=normal)
    x = inputs("kink")
    expected = traced(family, x, base_width=base)[1]
    x = jnp.asarray(x, jnp.float32)
    net = limits.parametrize(family, "ntk", width=512, base_width=base, example=x)
    keys = jax.random.split(jax.random.key(0), 16)
    kernels = [ntk.empirical_ntk(net.apply, net.init(key), x, trace_axes=(-1,)) for key in keys]
    kernels = np.asarray(kernels, float)[None]
    assert np.abs(z_scores(kernels, [expected])).max() < 3
    assert np.abs(z_scores(kernels, [traced(family, inputs("kink"))[1]])).min() > 3
