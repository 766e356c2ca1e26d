"""Kernels read from the models of `models` against the same networks written in `ntk.stax`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import models
import ntk
from ntk import stax

VECTORS = jax.ShapeDtypeStruct((2, 5), jnp.float64)
IMAGES = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.float64)
TOKENS = jax.ShapeDtypeStruct((2, 4), jnp.int32)
HE = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
NORMAL = nn.initializers.variance_scaling(1.0, "fan_in", "normal")  # as in stax
FROZEN = {"*norm*": 0}


def data(example, seed=0, count=3):
    key, shape = jax.random.key(seed), (count, *example.shape[1:])
    if jnp.issubdtype(example.dtype, jnp.integer):
        return jax.random.randint(key, shape, 0, 7)
    return jax.random.normal(key, shape, example.dtype)


def assert_equal(one, two, tolerance=1e-6):
    for a, b in zip(one, two, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def residual(*branch):
    return stax.serial(
        stax.FanOut(2), stax.parallel(stax.serial(*branch), stax.Identity()), stax.FanInSum()
    )


def conv(strides=1, side=3):
    return stax.Conv(1, (side, side), (strides, strides), "SAME")


def plain(activation, *, std=1.0, bias=None, depth=3):
    return stax.serial(*[stax.Dense(1, std, bias), activation] * depth, stax.Dense(1, std, bias))


def shortcut(*branch):
    return stax.serial(
        stax.FanOut(2), stax.parallel(stax.serial(*branch), conv(2, 1)), stax.FanInSum()
    )


def resnet():
    block = residual(stax.Relu(), conv())
    halved = shortcut(stax.Relu(), conv(2))
    return stax.serial(conv(), block, halved, stax.Relu(), stax.GlobalAvgPool(), stax.Dense(1))


def normed_resnet():
    block = residual(stax.LayerNorm(eps=1e-6), stax.Relu(), conv())
    top = (stax.LayerNorm(eps=1e-6), stax.Relu(), stax.GlobalAvgPool(), stax.Dense(1))
    return stax.serial(conv(), block, block, *top)


WRITTEN = {
    "MLP": (
        ("MLP", VECTORS, {"depth": 2}, {"bias_std": 0.3}),
        lambda: plain(stax.Relu(), bias=0.3, depth=2),
    ),
    "MLP of He's variance": (
        ("MLP", VECTORS, {"depth": 3, "kernel_init": HE, "use_bias": False}, {}),
        lambda: plain(stax.Relu(), std=2**0.5),
    ),
    "GELU": (
        (
            "MLP",
            VECTORS,
            {"depth": 1, "activation": functools.partial(nn.gelu, approximate=False)},
            {"bias_std": 0.3},
        ),
        lambda: plain(stax.Gelu(), bias=0.3, depth=1),
    ),
    "deep linear": (
        ("DeepLinear", VECTORS, {"depth": 4}, {}),
        lambda: plain(stax.Identity(), depth=4),
    ),
    "CNN": (
        ("CNN", IMAGES, {"depth": 2}, {"bias_std": 0.3}),
        lambda: stax.serial(
            *[stax.Conv(1, (3, 3), padding="SAME", b_std=0.3), stax.Relu()] * 2,
            stax.GlobalAvgPool(),
            stax.Dense(1, b_std=0.3),
        ),
    ),
    "CNN flattened, with strides": (
        ("CNN", IMAGES, {"depth": 2, "pooling": "flatten", "strides": 2, "use_bias": False}, {}),
        lambda: stax.serial(*[conv(2), stax.Relu()] * 2, stax.Flatten(), stax.Dense(1)),
    ),
    "ResNet": (("ResNet", IMAGES, {"depth": 2, "stages": 2, "block_depth": 1}, {}), resnet),
    "ResNet with layer norm": (
        (
            "ResNet",
            IMAGES,
            {"depth": 2, "block_depth": 1, "norm": "layer"},
            {"learning_rates": FROZEN},
        ),
        normed_resnet,
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_models_equal_their_combinators(x64, name):
    (model, example, fields, options), written = WRITTEN[name]
    family = models.family(model, outputs=2, **{"kernel_init": NORMAL} | fields)
    traced, kernel_fn = ntk.infinite_width(family, example, **options), written()[2]
    x1, x2 = data(example), data(example, 1, 2)
    get = ("nngp", "ntk")
    assert_equal(traced(x1, None, get), kernel_fn(x1, None, get))
    if example is VECTORS:
        assert_equal(traced(x1, x2, get), kernel_fn(x1, x2, get))


def positions(kernel):
    """Adds a trained embedding of each position, with entries of variance 1."""
    size = kernel.var1.shape[1]
    eye = jnp.eye(size)[None, None]
    out = kernel.replace(
        nngp=kernel.nngp + eye,
        var1=kernel.var1 + 1,
        var2=kernel.var2 + 1,
        within1=kernel.within1 + eye[0],
        within2=kernel.within2 + eye[0],
    )
    return out.replace(ntk=kernel.ntk + eye)


def attention(size, causal):
    """Attention whose scores vanish: every position attends to all (that it sees) alike."""
    seen = np.tril(np.ones((size, size))) if causal else np.ones((size, size))
    weights = seen / seen.sum(1, keepdims=True)

    def both(kernel):
        return mixed(kernel, jnp.asarray(weights))

    return stax.serial(stax.Dense(1), (None, None, both), stax.Dense(1))


def mixed(kernel, weights):
    """K -> A K A' over positions."""

    def pairs(x):
        return jnp.einsum("ij,xyjl,kl->xyik", weights, x, weights)

    within = [pairs(x[None])[0] for x in (kernel.within1, kernel.within2)]
    out = kernel.replace(
        nngp=pairs(kernel.nngp),
        var1=jnp.diagonal(within[0], axis1=1, axis2=2),
        var2=jnp.diagonal(within[1], axis1=1, axis2=2),
        within1=within[0],
        within2=within[1],
    )
    return out.replace(ntk=pairs(kernel.ntk))


def transformer(embed, size, causal, top):
    norm = stax.LayerNorm(eps=1e-6)
    gelu = stax.elementwise(ntk.hermite.dual(nn.gelu))
    block = (
        residual(norm, attention(size, causal)),
        residual(norm, stax.Dense(1), gelu, stax.Dense(1)),
    )
    return stax.serial(embed, (None, None, positions), *block, norm, *top, stax.Dense(1))


def patches(x):
    n = x.shape[0]
    return x.reshape(n, 2, 2, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(n, 4, 12)


def test_vision_transformer_equals_its_combinators(x64):
    family = models.family("ViT", depth=1, outputs=2, heads=2, patch=2, attention_scale="1/d")
    traced = ntk.infinite_width(family, IMAGES, learning_rates=FROZEN)
    kernel_fn = transformer(stax.Dense(1), 4, False, [stax.GlobalAvgPool()])[2]
    x, get = data(IMAGES), ("nngp", "ntk")
    assert_equal(traced(x, None, get), kernel_fn(patches(x), None, get))


def test_causal_transformer_equals_its_combinators(x64):
    family = models.family(
        "Transformer", depth=1, heads=2, vocabulary=7, context=4, attention_scale="1/d"
    )
    traced = ntk.infinite_width(family, TOKENS, learning_rates=FROZEN)
    kernel_fn = transformer(stax.Dense(1, 7**0.5), 4, True, [])[2]
    x, get = data(TOKENS), ("nngp", "ntk")
    one_hot = jax.nn.one_hot(x, 7, dtype=jnp.float64)
    assert_equal(traced(x, None, get), kernel_fn(one_hot, None, get))


def test_a_deep_transformer_runs_its_blocks_as_a_loop():
    family = models.family(
        "Transformer", depth=24, heads=2, vocabulary=7, context=4, attention_scale="1/d"
    )
    rows = ntk.explain(family, TOKENS).steps
    assert any(row.step.endswith("(x 23)") for row in rows)
    assert len(rows) < 60
