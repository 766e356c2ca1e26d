import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.transformer import Transformer, ViT

IMAGES = jax.random.normal(jax.random.key(0), (3, 8, 8, 2))
TOKENS = jax.random.randint(jax.random.key(0), (3, 6), 0, 11)


def decoder(width=8, **options):
    return Transformer(width, **{"depth": 2, "heads": 2, "vocabulary": 11, "context": 6} | options)


def vit(width=8, **options):
    return ViT(width, **{"depth": 2, "outputs": 3, "heads": 2, "patch": 4} | options)


@functools.cache
def parameters(model):
    x = TOKENS if isinstance(model, Transformer) else IMAGES
    # XLA's own generator: the default one takes seconds to compile for each new shape on a CPU.
    return jax.jit(model.init)(jax.random.key(1, impl="rbg"), x)["params"]


def shapes(model, x):
    return jax.eval_shape(model.init, jax.random.key(1), x)


@functools.cache
def compiled(model, features):
    return jax.jit(lambda params, x: model.apply({"params": params}, x, features=features))


def applied(model, params, features=False):
    return functools.partial(compiled(model, features), params)


def layer(params, name):
    for part in name.split("/"):
        params = params[part]
    return params


def normalise(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def test_decoder_is_the_textbook_formula():
    """Written out with loops over blocks, heads and positions."""
    model = decoder(activation=jnp.tanh, branch_scale=0.5)
    params = parameters(decoder())
    logits, features = applied(model, params, features=True)(TOKENS)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    tokens = np.asarray(TOKENS)
    for n in range(3):
        x = p["embed"]["embedding"][tokens[n]] + p["position"]["embedding"]
        for name in ("block_0", "block_1"):
            block = p[name]
            x = x + 0.5 * attend(normalise(x), **block["attention"])
            h = np.tanh(normalise(x) @ block["mlp_in"]["kernel"])
            x = x + 0.5 * h @ block["mlp_out"]["kernel"]
            np.testing.assert_allclose(features[name][n], x, rtol=1e-4, atol=1e-4)
        expected = normalise(x) @ p["readout"]["kernel"]
        np.testing.assert_allclose(logits[n], expected, rtol=1e-4, atol=1e-4)


def attend(x, query, key, value, out):
    result = np.zeros_like(x)
    for head in range(2):
        q, k, v = (x @ m["kernel"][:, head] for m in (query, key, value))
        for t in range(len(x)):
            weights = np.exp(k[: t + 1] @ q[t] / math.sqrt(4))
            result[t] += weights @ v[: t + 1] / weights.sum() @ out["kernel"][head]
    return result


def test_decoder_does_not_see_the_future():
    model = decoder()
    apply = applied(model, parameters(model))
    changed = TOKENS.at[:, 3].set((TOKENS[:, 3] + 1) % 11)
    before, after = apply(TOKENS), apply(changed)
    np.testing.assert_allclose(before[:, :3], after[:, :3], atol=1e-6)
    assert (abs(before - after)[:, 3:].max(axis=-1) > 1e-3).all()


def test_short_sequences_are_prefixes():
    model = decoder()
    apply = applied(model, parameters(model))
    np.testing.assert_allclose(apply(TOKENS[:, :4]), apply(TOKENS)[:, :4], atol=1e-6)


@pytest.mark.parametrize(("build", "x"), [(decoder, TOKENS), (vit, IMAGES)])
def test_attention_scales_differ_by_the_root_of_the_head_dimension(build, x):
    root, linear = build(attention_scale="1/sqrt(d)"), build(attention_scale="1/d")
    params = parameters(build())
    assert not np.allclose(applied(root, params)(x), applied(linear, params)(x), atol=1e-3)
    louder = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 2 if "query" in jax.tree_util.keystr(path) else leaf, params
    )  # heads of width 4
    np.testing.assert_allclose(applied(root, params)(x), applied(linear, louder)(x), atol=1e-5)


def test_vit_embeds_patches_as_a_strided_convolution_does():
    model = vit()
    params = parameters(model)
    _, features = applied(model, params, features=True)(IMAGES)
    kernel = params["embed"]["kernel"].reshape(4, 4, 2, 8)
    expected = jax.lax.conv_general_dilated(
        IMAGES, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(features["embed"], expected.reshape(3, 4, 8), rtol=1e-5, atol=1e-5)


def test_vit_knows_where_a_patch_is_only_by_its_position():
    model = vit()
    params = parameters(model)
    swapped = jnp.concatenate([IMAGES[:, 4:], IMAGES[:, :4]], axis=1)
    blind = {**params, "position": jax.tree.map(jnp.zeros_like, params["position"])}
    seeing, blind = applied(model, params), applied(model, blind)
    np.testing.assert_allclose(blind(IMAGES), blind(swapped), atol=1e-5)
    assert not np.allclose(seeing(IMAGES), seeing(swapped), atol=1e-3)


@pytest.mark.parametrize(("build", "x"), [(decoder, TOKENS), (vit, IMAGES)])
def test_without_branches_only_the_embedding_is_left(build, x):
    model = build(branch_scale=0.0)
    params = parameters(build())
    _, features = applied(model, params, features=True)(x)
    expected = features["embed"] + params["position"]["embedding"][None]
    np.testing.assert_allclose(features["block_1"], expected, atol=1e-6)


@pytest.mark.parametrize(("build", "x"), [(decoder, TOKENS), (vit, IMAGES)])
def test_features_are_named_after_layers_and_of_order_one_at_every_width(build, x):
    sizes = {}
    for width in (32, 128):
        model = build(width)
        params = parameters(model)
        outputs, features = applied(model, params, features=True)(x)
        assert all("/" in name or name in params for name in features)
        assert all(layer(params, name) for name in features)
        assert (features["readout"] == outputs).all()
        sizes[width] = {name: float(jnp.sqrt((h**2).mean())) for name, h in features.items()}
    for name, size in sizes[128].items():
        assert 0.5 < size / sizes[32][name] < 2, name


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: decoder(9), "width=9 is not a multiple of heads=2"),
        (lambda: vit(9), "width=9 is not a multiple of heads=2"),
        (lambda: vit(8, heads=0), "width=8 is not a multiple of heads=0"),
        (lambda: decoder(attention_scale="1"), r"attention_scale='1' is not one of '1/sqrt\(d\)'"),
        (lambda: shapes(decoder(context=4), TOKENS), "6 tokens are longer than context=4"),
        (lambda: shapes(decoder(), TOKENS[0]), r"shape \(6,\) .* not integers \(N, T\)"),
        (lambda: shapes(decoder(), TOKENS / 2), "type float32 are not integers"),
        (lambda: shapes(vit(patch=3), IMAGES), "8 x 8 pixels .* patch=3.*common divisor"),
        (lambda: shapes(vit(), IMAGES[0]), "are not images"),
    ],
)
def test_mistakes_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
