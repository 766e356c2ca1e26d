import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk import reference, stax
from ntk.finite.monte_carlo import Estimate, monte_carlo_kernel_fn

WIDTH = 128


def init(key, shape):
    keys = jax.random.split(key, 3)
    w = jax.random.normal(keys[0], (shape[-1], WIDTH))
    return (shape[0], 2), (w, jax.random.normal(keys[1], (WIDTH, 2)))


def apply(params, x, rng=None):
    w, v = params
    return jax.nn.relu(x @ w / x.shape[1] ** 0.5) @ v / WIDTH**0.5


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)


def arc_cosine(x):
    """NNGP and NTK of the infinitely wide network (Cho & Saul 2009; Jacot et al. 2018)."""
    k = np.asarray(x @ x.T / x.shape[1], float)
    d = np.sqrt(np.diag(k))
    cos = np.clip(k / np.outer(d, d), -1, 1)
    theta = np.arccos(cos)
    nngp = np.outer(d, d) * (np.sin(theta) + (np.pi - theta) * cos) / (2 * np.pi)
    return nngp, nngp + k * (np.pi - theta) / (2 * np.pi)


def test_mean_is_within_its_standard_error_of_the_limit(x):
    kernel_fn = monte_carlo_kernel_fn(
        init, apply, jax.random.key(1), 40, vmap_axes=0, standard_error=True
    )
    kernels = kernel_fn(x, None, ("nngp", "ntk"))
    assert isinstance(kernels, Estimate)
    for mean, error, limit in zip(kernels.mean, kernels.standard_error, arc_cosine(x)):
        z = (mean - limit) / error
        assert float(jnp.abs(z).max()) < 4.0


def test_reported_error_is_the_spread_over_repeats(x):
    def estimate(key):
        kernel_fn = monte_carlo_kernel_fn(init, apply, key, 2, standard_error=True)
        return kernel_fn(x[:3], None, "nngp")

    found = jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(5), 1000))
    reported = jnp.sqrt(jnp.mean(found.standard_error**2))
    spread = jnp.sqrt(jnp.mean(jnp.var(found.mean, axis=0, ddof=1)))
    assert abs(reported / spread - 1) < 0.15


def test_generator_extends_and_error_shrinks(x):
    kernel_fn = monte_carlo_kernel_fn(
        init, apply, jax.random.key(1), [4, 16, 64], standard_error=True
    )
    errors = [float(e.standard_error.mean()) for e in kernel_fn(x, None, "nngp")]
    slope = np.polyfit(np.log([4, 16, 64]), np.log(errors), 1)[0]
    assert abs(slope + 0.5) < 0.2
    few = monte_carlo_kernel_fn(init, apply, jax.random.key(1), 4)(x, None, "nngp")
    estimates = monte_carlo_kernel_fn(init, apply, jax.random.key(1), [2, 4])(x, None, "nngp")
    np.testing.assert_array_equal(list(estimates)[1], few)


def test_batches_need_not_divide(x):
    x2 = None  # blocks on the diagonal are symmetric, the others rectangular
    whole = monte_carlo_kernel_fn(init, apply, jax.random.key(1), 2, vmap_axes=0, trace_axes=())
    tiles = monte_carlo_kernel_fn(
        init, apply, jax.random.key(1), 2, 2, -1, False, vmap_axes=0, trace_axes=()
    )
    a, b = whole(x, x2, "ntk"), tiles(x, x2, "ntk")
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_what_belongs_to_a_sample_is_divided_with_the_samples(x):
    net = stax.serial(stax.Dense(8), stax.Aggregate(), stax.GlobalAvgPool(), stax.Dense(1))
    graphs, other = (
        jnp.asarray(np.random.default_rng(i).normal(size=(n, 4, 3)), jnp.float32)
        for i, n in enumerate((5, 3))
    )
    patterns = tuple(jnp.abs(g @ g.transpose(0, 2, 1)) for g in (graphs, other))
    whole, tiles = (
        monte_carlo_kernel_fn(net.init_fn, net.apply_fn, jax.random.key(1), 2, size)
        for size in (0, 2)
    )
    for x2, pattern in ((None, (patterns[0], patterns[0])), (other, patterns)):
        for get in ("nngp", "ntk"):
            a, b = (f(graphs, x2, get, pattern=pattern) for f in (whole, tiles))
            np.testing.assert_allclose(a, b, rtol=1e-4)


def test_noise_of_a_batch_is_one_in_all_its_blocks(x):
    """Kernels of networks with dropout are Gram matrices, in batches too."""
    net = stax.serial(stax.Dense(64), stax.Relu(), stax.Dropout(0.5), stax.Dense(1))
    kernel_fn = monte_carlo_kernel_fn(net.init_fn, net.apply_fn, jax.random.key(1), 3, 2)
    for kernel in kernel_fn(x, None, ("nngp", "ntk")):
        np.testing.assert_allclose(kernel, kernel.T, rtol=1e-5)
        assert np.linalg.eigvalsh(np.asarray(kernel, float)).min() > -1e-5 * np.abs(kernel).max()


@pytest.mark.slow
def test_networks_of_neural_tangents(x):
    theirs = reference.neural_tangents().stax
    net = theirs.serial(theirs.Dense(128), theirs.Relu(), theirs.Dense(1))
    estimate = monte_carlo_kernel_fn(
        *net[:2], jax.random.key(0), 30, vmap_axes=0, standard_error=True
    )(x, None, "ntk")
    limit = net[2](x, None, "ntk")
    assert float((jnp.abs(estimate.mean - limit) / estimate.standard_error).max()) < 4.5


def test_one_sample_has_no_error(x):
    kernel_fn = monte_carlo_kernel_fn(init, apply, jax.random.key(1), 1, standard_error=True)
    assert bool(jnp.isnan(kernel_fn(x, None, "nngp").standard_error).all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "n_samples is 0"),
        (([],), "n_samples is"),
        ((1, -1), "batch_size is -1"),
        ((1, 2, 0, True, (0,)), "batch axis 0 is traced"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        monte_carlo_kernel_fn(init, apply, jax.random.key(0), *arguments)
