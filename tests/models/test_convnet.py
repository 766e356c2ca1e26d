import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.convnet import CNN, ResNet

X = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))


def parameters(model, x=X):
    # XLA's own generator: the default one takes seconds to compile for each new shape on a CPU.
    return jax.jit(model.init)(jax.random.key(1, impl="rbg"), x)["params"]


def applied(model, params, **options):
    return jax.jit(lambda x: model.apply({"params": params}, x, **options))


def convolve(x, kernel, strides=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (strides, strides), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def is_layer(params, name):
    for part in name.split("/"):
        params = params.get(part, {})
    return bool(params)


@pytest.mark.parametrize("pooling", ["average", "flatten"])
def test_cnn_is_the_textbook_formula(pooling):
    model = CNN(width=5, depth=2, outputs=3, pooling=pooling, activation=jnp.tanh)
    params = parameters(model)
    outputs, features = applied(model, params, features=True)(X)
    h0 = convolve(X, params["hidden_0"]["kernel"])
    h1 = convolve(jnp.tanh(h0), params["hidden_1"]["kernel"])
    x = jnp.tanh(h1)
    x = x.mean(axis=(1, 2)) if pooling == "average" else x.reshape(4, -1)
    np.testing.assert_allclose(features["hidden_0"], h0, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(features["hidden_1"], h1, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outputs, x @ params["readout"]["kernel"], rtol=1e-5, atol=1e-5)
    assert list(features) == ["hidden_0", "hidden_1", "readout"]


def test_average_pooling_forgets_a_cyclic_shift_and_flattening_does_not():
    x = jnp.zeros_like(X).at[:, 3:5, 3:5].set(X[:, 3:5, 3:5])  # far from the padding
    shifted = jnp.roll(x, 2, axis=(1, 2))
    for pooling, invariant in [("average", True), ("flatten", False)]:
        model = CNN(width=5, depth=1, outputs=3, pooling=pooling)
        apply = applied(model, parameters(model))
        assert np.allclose(apply(x), apply(shifted), atol=1e-5) == invariant


def test_strides_shrink_the_image():
    model = CNN(width=5, depth=2, outputs=3, strides=2)
    _, features = applied(model, parameters(model), features=True)(X)
    assert features["hidden_1"].shape == (4, 2, 2, 5)


@pytest.mark.parametrize("block_depth", [1, 2])
def test_resnet_is_the_textbook_formula(block_depth):
    model = ResNet(width=5, depth=2, outputs=3, block_depth=block_depth, branch_scale=0.7)
    params = parameters(model)
    outputs, features = applied(model, params, features=True)(X)
    x = convolve(X, params["stem"]["kernel"])
    for l in range(2):
        h = x
        for i in range(block_depth):
            h = convolve(jax.nn.relu(h), params[f"block_{l}"][f"conv_{i}"]["kernel"])
        x = x + 0.7 * h
        np.testing.assert_allclose(features[f"block_{l}"], x, rtol=1e-5, atol=1e-4)
    expected = jax.nn.relu(x).mean(axis=(1, 2)) @ params["readout"]["kernel"]
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
    assert all(is_layer(params, name) for name in features)


def test_without_branches_a_resnet_is_its_stem_and_readout():
    model = ResNet(width=5, depth=3, outputs=3, branch_scale=0.0)
    params = parameters(model)
    x = jax.nn.relu(convolve(X, params["stem"]["kernel"])).mean(axis=(1, 2))
    np.testing.assert_allclose(
        applied(model, params)(X), x @ params["readout"]["kernel"], rtol=1e-5, atol=1e-5
    )


def test_stages_halve_the_image_and_double_the_channels():
    model = ResNet(width=4, depth=6, outputs=3, stages=3, block_depth=1)
    params = parameters(model)
    _, features = applied(model, params, features=True)(X)
    sizes = [features[f"block_{l}"].shape[2:] for l in range(6)]
    assert sizes == [(8, 4), (8, 4), (4, 8), (4, 8), (2, 16), (2, 16)]
    assert [l for l in range(6) if "shortcut" in params[f"block_{l}"]] == [2, 4]
    assert all(is_layer(params, name) for name in features)


def test_only_batch_norm_couples_the_examples_of_a_batch():
    for norm, coupled in [(None, False), ("layer", False), ("batch", True)]:
        model = ResNet(width=4, depth=1, outputs=3, norm=norm)
        apply = applied(model, parameters(model))
        alone = jnp.concatenate([apply(x[None]) for x in X])
        assert np.allclose(apply(X), alone, atol=1e-5) != coupled


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_a_normalised_branch_ignores_the_scale_of_its_input(norm):
    model = ResNet(width=4, depth=1, outputs=3, norm=norm)
    apply = applied(model, parameters(model), features=True)
    small, large = apply(X)[1], apply(10 * X)[1]
    np.testing.assert_allclose(large["stem"], 10 * small["stem"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        large["block_0/conv_1"], small["block_0/conv_1"], rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CNN(4, 1, 2, pooling="max"), "pooling='max' is not one of 'average', 'flatten'"),
        (lambda: ResNet(4, 1, 2, norm="group"), "norm='group' is not one of None"),
        (lambda: ResNet(4, 4, 2, stages=3), "depth=4 blocks .* stages=3.*multiple"),
        (lambda: parameters(CNN(4, 1, 2), X[0]), r"\(8, 8, 3\) are not images \(N, H, W, C\)"),
        (lambda: parameters(ResNet(4, 1, 2), X[0]), r"are not images .*x\[\.\.\., None\]"),
    ],
)
def test_mistakes_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
