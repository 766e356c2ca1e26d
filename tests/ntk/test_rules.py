"""Rules against tiles, loops, float64, and finite networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk import stax
from ntk.infinite import channels, tiled
from ntk.stax import combinators


def mlp(depth, b_std=0.1, W_std=2**0.5):
    return stax.serial(*[stax.Dense(8, W_std, b_std), stax.Relu()] * depth, stax.Dense(1))


def cnn(pool):
    block = [stax.Conv(4, (3, 3), padding="SAME", W_std=2**0.5, b_std=0.1), stax.Relu()]
    return stax.serial(*block * 2, pool, stax.Dense(1))


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setitem(tiled.TILE, "cpu", 16)


NETS = {
    "mlp": (mlp(2), (7, 5)),
    "flatten": (cnn(stax.Flatten()), (5, 4, 4, 2)),
    "pooled": (cnn(stax.GlobalAvgPool()), (5, 4, 4, 2)),
    "deep_variance": (
        stax.serial(cnn(stax.GlobalAvgPool()), stax.Relu(), stax.Dense(1)),
        (5, 4, 4, 2),
    ),
}


@pytest.mark.parametrize(
    ("name", "symmetric"),
    [("mlp", True), ("mlp", False), ("flatten", True), ("pooled", False), ("deep_variance", True)],
)
def test_tiles_equal_one_tile(name, symmetric, request):
    net, shape = NETS[name]
    x1 = jax.random.normal(jax.random.key(0), shape)
    x2 = None if symmetric else jax.random.normal(jax.random.key(1), (3, *shape[1:]))
    whole = net.kernel_fn(x1, x2)
    request.getfixturevalue("small_tiles")
    again = stax.serial(net)  # a function of its own, or what was compiled would be used again
    parts = again.kernel_fn(x1, x2)
    for field in ("nngp", "ntk", "cov1", "cov2"):
        expected = getattr(whole, field)
        if expected is not None:
            np.testing.assert_allclose(getattr(parts, field), expected, rtol=1e-5, atol=1e-6)
    assert parts.shape1 == whole.shape1


@pytest.mark.usefixtures("small_tiles")
def test_tiled_triangle_is_symmetric_and_keeps_pixel_pairs():
    net = stax.serial(stax.Conv(4, (2, 2)), stax.Relu())
    k = net.kernel_fn(jax.random.normal(jax.random.key(0), (5, 3, 4, 2)), None, "ntk")
    np.testing.assert_allclose(k, jnp.transpose(k, (1, 0, 3, 2, 5, 4)), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("b_std", [None, 0.3])
@pytest.mark.usefixtures("x64")
def test_depth_loop_equals_unrolled_layers(b_std):
    x = jax.random.normal(jax.random.key(0), (6, 5))
    looped = mlp(9, b_std).kernel_fn(x, None, ("nngp", "ntk"))
    kernel = stax.Identity().kernel_fn(x, None)
    for one in [stax.Dense(8, 2**0.5, b_std), stax.Relu()] * 9 + [stax.Dense(1)]:
        kernel = one.kernel_fn(kernel)
    np.testing.assert_allclose(looped.nngp, kernel.nngp, rtol=1e-9)
    np.testing.assert_allclose(looped.ntk, kernel.ntk, rtol=1e-9)


def test_trace_does_not_grow_with_depth():
    def equations(depth):
        trace = jax.make_jaxpr(functools.partial(mlp(depth).kernel_fn, x2=None, get="ntk"))
        return len(str(trace(jnp.ones((4, 3)))))

    assert equations(200) < 1.1 * equations(20)


def coincident():
    x = jax.random.normal(jax.random.key(3), (6, 16))
    return jnp.concatenate([x, x[:2], 2 * x[:2], jnp.zeros((1, 16))])


def near_duplicates():
    x = coincident()
    return jnp.concatenate([x, x[:2] * (1 + 1e-6), x[2:4] + 1e-3])


@pytest.mark.parametrize("b_std", [None, 0.2])
@pytest.mark.parametrize(
    # A correlation in single precision knows the angle of near-duplicates to 5e-4, which the depth multiplies.
    ("data", "tolerance"),
    [(coincident, 2e-5), (near_duplicates, 2e-2)],
)
def test_single_precision_at_depth_100(b_std, data, tolerance):
    x = data()
    k32 = np.asarray(mlp(100, b_std).kernel_fn(x, None, "ntk"))
    with jax.enable_x64(True):
        k64 = np.asarray(
            mlp(100, b_std).kernel_fn(jnp.asarray(np.asarray(x, np.float64)), None, "ntk")
        )
    assert np.isfinite(k32).all()
    assert np.abs(k32 - k64).max() < tolerance * np.abs(k64).max()


def test_correlation_never_exceeds_one():
    kernel = stax.serial(*[stax.Dense(8, 1.5, 0.1), stax.Relu()] * 30).kernel_fn(
        near_duplicates(), None
    )
    assert (jnp.abs(channels.snap(kernel.correlation)) <= 1).all()
    assert (jnp.abs(kernel.correlation) <= 1 + 1e-6).all()


def test_gradients_are_finite_at_coincident_points():
    def total(x):
        return jnp.sum(mlp(3).kernel_fn(x, None, "ntk"))

    assert jnp.isfinite(jax.grad(total)(near_duplicates()[:8])).all()


def test_standard_deviations_can_be_traced():
    x = jax.random.normal(jax.random.key(0), (4, 3))
    slope = jax.grad(lambda w: jnp.sum(mlp(2, 0.1, w).kernel_fn(x, None, "nngp")))(1.2)
    step = 1e-3
    up, down = (jnp.sum(mlp(2, 0.1, 1.2 + s).kernel_fn(x, None, "nngp")) for s in (step, -step))
    np.testing.assert_allclose(slope, (up - down) / (2 * step), rtol=1e-2)


def test_periods_find_repeated_blocks():
    assert combinators.periods(list("abababac")) == [(0, 2, 3), (6, 1, 1), (7, 1, 1)]
    assert combinators.periods(list("xaaay")) == [(0, 1, 1), (1, 1, 3), (4, 1, 1)]
    assert combinators.periods([]) == []


def test_nonlinearity_needs_gaussian_input():
    net = stax.serial(stax.Dense(1), stax.Relu(), stax.Relu())
    with pytest.raises(ValueError, match="must be Gaussian"):
        net.kernel_fn(jnp.ones((2, 3)), None, "nngp")


def monte_carlo(net, x, count, width_key=0):
    """Mean and standard error over networks of outputs' second moments."""
    init_fn, apply_fn, _ = net

    def one(key):
        key_init, key_rng = jax.random.split(key)
        y = apply_fn(init_fn(key_init, x.shape)[1], x, rng=key_rng)
        return y @ y.T / y.shape[-1]

    draws = jax.lax.map(one, jax.random.split(jax.random.key(width_key), count))
    return jnp.mean(draws, 0), jnp.std(draws, 0) / count**0.5


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("transpose", "local", "attention")]


@pytest.mark.parametrize("name", ["dropout", "cubic", *SLOW])
def test_nngp_is_the_second_moment_of_finite_networks(name):
    conv = stax.Conv(256, (2, 2), padding="SAME", b_std=0.3)
    middle = {
        "transpose": [stax.ConvTranspose(256, (3, 2), (2, 2), "CIRCULAR", 1.2, 0.2), stax.Relu()],
        "local": [stax.ConvLocal(256, (2, 2), padding="CIRCULAR", W_std=1.3), stax.Relu()],
        "attention": [
            stax.GlobalSelfAttention(256, 256, 256, 32, W_key_std=1.5, b_std=0.2),
            stax.Relu(),
        ],
        "dropout": [stax.Dropout(0.6), stax.Dense(256), stax.Relu()],
        "cubic": [stax.ImageResize((-1, 3, 2, -1), "cubic")],
    }[name]
    net = stax.serial(conv, stax.Relu(), *middle, stax.GlobalAvgPool(), stax.Dense(64))
    x = jax.random.normal(jax.random.key(5), (2, 2, 2, 3))
    exact = net.kernel_fn(x, None, "nngp")
    mean, error = monte_carlo(net, x, 96)
    assert (jnp.abs(mean - exact) < 3 * error + 0.02 * jnp.max(exact)).all()
    assert not (jnp.abs(mean - 1.2 * exact) < 3 * error + 0.02 * jnp.max(exact)).all()
