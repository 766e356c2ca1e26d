"""The networks of neural-tangents's documentation and examples, as they are written there, in both packages.

Each is a function of the module ``stax`` alone: what runs with theirs runs with ours, and gives the same kernels.
Architectures: neural-tangents's README (WideResNet) and examples (fully connected, convolutional with pooling, Myrtle,
sequence classification with attention).
"""

import jax
import numpy as np
import pytest

import ntk
from ntk import reference


def fully_connected(stax):
    return stax.serial(
        stax.Dense(512, W_std=1.5, b_std=0.05),
        stax.Erf(),
        stax.Dense(512, W_std=1.5, b_std=0.05),
        stax.Erf(),
        stax.Dense(1, W_std=1.5, b_std=0.05),
    )


def pooled(stax):
    return stax.serial(
        stax.Conv(128, (3, 3), padding="SAME", W_std=1.4, b_std=0.1),
        stax.Relu(),
        stax.AvgPool((2, 2), (2, 2)),
        stax.Conv(128, (3, 3), strides=(2, 2), padding="SAME"),
        stax.Gelu(),
        stax.GlobalAvgPool(),
        stax.Dense(10),
    )


def wide_resnet(stax, block_size=2, k=1, num_classes=10):
    def block(channels, strides=(1, 1), channel_mismatch=False):
        main = stax.serial(
            stax.Relu(),
            stax.Conv(channels, (3, 3), strides, padding="SAME"),
            stax.Relu(),
            stax.Conv(channels, (3, 3), padding="SAME"),
        )
        shortcut = (
            stax.Conv(channels, (3, 3), strides, padding="SAME")
            if channel_mismatch
            else stax.Identity()
        )
        return stax.serial(stax.FanOut(2), stax.parallel(main, shortcut), stax.FanInSum())

    def group(n, channels, strides=(1, 1)):
        first = block(channels, strides, channel_mismatch=True)
        return stax.serial(first, *(block(channels) for _ in range(n - 1)))

    return stax.serial(
        stax.Conv(16, (3, 3), padding="SAME"),
        group(block_size, int(16 * k)),
        group(block_size, int(32 * k), (2, 2)),
        group(block_size, int(64 * k), (2, 2)),
        stax.AvgPool((2, 2)),
        stax.Flatten(),
        stax.Dense(num_classes, 1.0, 0.0),
    )


def myrtle(stax, width=16, W_std=2**0.5):
    def conv():
        return [stax.Conv(width, (3, 3), W_std=W_std, b_std=0.0, padding="SAME"), stax.Relu()]

    def pool():
        return stax.AvgPool((2, 2), strides=(2, 2))

    return stax.serial(
        *conv(),
        *conv(),
        pool(),
        *conv(),
        pool(),
        *conv(),
        pool(),
        stax.Flatten(),
        stax.Dense(10, W_std, 0.0),
    )


def attention(stax):
    embedding = stax.serial(stax.Dense(64), stax.LayerNorm(axis=-1))
    block = stax.serial(
        stax.FanOut(2),
        stax.parallel(
            stax.Identity(),
            stax.serial(
                stax.GlobalSelfAttention(
                    n_chan_out=64,
                    n_chan_key=64,
                    n_chan_val=16,
                    n_heads=4,
                    linear_scaling=True,
                    pos_emb_type="NONE",
                ),
                stax.LayerNorm(axis=(-1,)),
            ),
        ),
        stax.FanInSum(),
        stax.FanOut(2),
        stax.parallel(
            stax.Identity(),
            stax.serial(stax.Dense(128, W_std=1.5), stax.Relu(), stax.Dense(64)),
        ),
        stax.FanInSum(),
        stax.LayerNorm(axis=(-1,)),
    )
    return stax.serial(embedding, block, block, stax.GlobalAvgPool(), stax.Dense(2))


IMAGES, SEQUENCES = (3, 8, 8, 3), (3, 5, 4)
NETWORKS = {
    fully_connected: (5, 6),
    pooled: IMAGES,
    wide_resnet: IMAGES,
    myrtle: IMAGES,
    attention: SEQUENCES,
}


@pytest.fixture(scope="module")
def theirs():
    return reference.neural_tangents()


# neural-tangents takes long to compile all but the first.
EACH = pytest.mark.parametrize(
    "network",
    [pytest.param(f, marks=[] if f is fully_connected else pytest.mark.slow) for f in NETWORKS],
    ids=lambda f: f.__name__,
)


@EACH
def test_kernels_are_those_of_neural_tangents(network, theirs, x64):
    x = jax.random.normal(jax.random.key(0), NETWORKS[network])
    x1, x2 = x, 0.5 * x[:2] + x[1:3]
    kernels = [network(stax)[2] for stax in (ntk.stax, theirs.stax)]
    for pair in ((x1, None), (x1, x2)):
        ours, other = (kernel_fn(*pair, ("nngp", "ntk")) for kernel_fn in kernels)
        np.testing.assert_allclose(ours.nngp, other.nngp, rtol=1e-6)
        np.testing.assert_allclose(ours.ntk, other.ntk, rtol=1e-6)


@EACH
def test_finite_networks_have_the_same_shapes_and_weights(network, theirs):
    x = jax.random.normal(jax.random.key(0), NETWORKS[network])
    outputs, shapes = [], []
    for stax in (ntk.stax, theirs.stax):
        init_fn, apply_fn, _ = network(stax)
        out_shape, params = init_fn(jax.random.key(1), x.shape)
        outputs.append(apply_fn(params, x))
        assert outputs[-1].shape == (x.shape[0], *out_shape[1:])
        shapes.append(sorted(a.shape for a in jax.tree.leaves(params)))
    assert shapes[0] == shapes[1]
    assert np.isfinite(outputs[0]).all()


def test_the_first_example_of_their_readme(theirs, x64):
    """Kernel, then the mean and covariance of the trained ensemble on test inputs."""
    keys = jax.random.split(jax.random.key(2), 3)
    x_train, x_test = (jax.random.normal(k, (n, 6)) for k, n in zip(keys, (6, 3)))
    y_train = jax.random.uniform(keys[2], (6, 1))
    results = []
    for nt, stax in ((ntk, ntk.stax), (theirs, theirs.stax)):
        _, _, kernel_fn = fully_connected(stax)
        predict_fn = nt.predict.gradient_descent_mse_ensemble(kernel_fn, x_train, y_train)
        results.append([predict_fn(x_test=x_test, get=get) for get in ("ntk", "nngp")])
        results[-1].append(predict_fn(x_test=x_test, get="ntk", compute_cov=True, t=3.0))
    for ours, other in zip(*map(jax.tree.leaves, results)):
        np.testing.assert_allclose(ours, other, rtol=1e-6, atol=1e-9)
