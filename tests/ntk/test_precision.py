"""Close inputs in single precision against float64, and derivatives against finite differences in float64."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk
from ntk import stax
from ntk.infinite import precision, tiled

UNIT = 2.0**-24
"""Roundoff of single precision."""


def mlp(activation, depth, W_std=2**0.5, b_std=0.1):
    block = [stax.Dense(1, W_std, b_std), activation]
    return stax.serial(*block * depth, stax.Dense(1))


def cnn(top):
    return stax.serial(stax.Conv(1, (2, 2), W_std=1.3, b_std=0.1), stax.Relu(), top, stax.Dense(1))


NETS = {
    "relu": (mlp(stax.Relu(), 1, b_std=None), (16,)),
    "relu_2": (mlp(stax.Relu(), 2), (16,)),
    "relu_100": (mlp(stax.Relu(), 100), (16,)),
    "relu_100_no_bias": (mlp(stax.Relu(), 100, b_std=None), (16,)),
    "erf": (mlp(stax.Erf(), 2), (16,)),
    "sign": (mlp(stax.Sign(), 2), (16,)),
    "hard_tanh": (mlp(stax.HardTanh(), 1), (16,)),
    "normalised": (
        stax.serial(stax.Dense(1), stax.LayerNorm(), stax.Relu(), stax.Dense(1)),
        (16,),
    ),
    "pooled": (cnn(stax.GlobalAvgPool()), (3, 3, 2)),
    "flattened": (cnn(stax.Flatten()), (3, 3, 1)),
}


def pairs(shape):
    """A sample, and others at relative distances of about 1e-1 to 1e-6, in single precision."""
    one, noise = (jax.random.normal(jax.random.key(k), (1, *shape)) for k in (0, 1))
    steps = 10.0 ** -jnp.arange(1, 7).reshape((-1,) + (1,) * len(shape))
    return np.asarray(jnp.concatenate([one, one + steps * noise]))


def squares(kernel):
    """K11 + K22 - 2 K12 of the first sample with the others, in float64."""
    kernel = np.asarray(kernel, np.float64)
    return kernel[0, 0] + np.diagonal(kernel)[1:] - 2 * kernel[0, 1:]


def assert_close_to_double(kernel_fn, x):
    names = ("nngp", "ntk")
    ours = kernel_fn(jnp.asarray(x), None, names)
    with jax.enable_x64(True):
        exact = [np.asarray(k) for k in kernel_fn(jnp.asarray(x, jnp.float64), None, names)]
    for single, double in zip(ours, exact):
        assert single.dtype == jnp.float32
        assert np.isfinite(double).all()
        right = squares(double)
        # Half a unit in the last place of each of four entries, and what double precision leaves.
        bound = 4.5 * UNIT * np.abs(double).max() + 1e-9 * np.abs(right)
        assert (np.abs(squares(single) - right) <= bound).all()


@pytest.mark.parametrize("name", NETS)
def test_close_inputs_in_single_precision(name):
    net, shape = NETS[name]
    assert_close_to_double(net.kernel_fn, pairs(shape))


@pytest.mark.parametrize("name", ["relu_2", "pooled"])
def test_large_batches_are_in_double_precision_where_they_are_close(name, monkeypatch):
    monkeypatch.setattr(tiled, "SMALL", 0)
    net, shape = NETS[name]
    assert_close_to_double(stax.serial(net).kernel_fn, pairs(shape))


def test_images_that_are_apart_compile_nothing_in_double_precision(monkeypatch):
    net, shape = NETS["pooled"]
    monkeypatch.setattr(tiled, "SMALL_IMAGES", 0)
    doubled, asked = precision.doubled, []
    monkeypatch.setattr(precision, "doubled", lambda f: asked.append(f) or doubled(f))
    apart = jax.random.normal(jax.random.key(1), (6, *shape))
    stax.serial(net).kernel_fn(apart, None, "ntk")
    assert not asked
    stax.serial(net).kernel_fn(pairs(shape), None, "ntk")
    assert asked


@pytest.mark.parametrize("size", [7, 70])
def test_nearness_of_samples_misses_no_pair(size):
    x = jax.random.normal(jax.random.key(0), (20, size))
    apart = precision.near_samples(x, x, jnp.eye(20, dtype=bool), 0)
    assert not apart
    for close in (x[3] * 2 + 0.01, -x[3] + 0.01):
        assert precision.near_samples(x, close[None], None, 0)


class Twin(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.Dense(self.width, bias_init=nn.initializers.normal(0.1))(x))
        return nn.Dense(1)(x)


def test_close_inputs_of_a_traced_network():
    x = pairs((16,))
    kernel_fn = ntk.infinite_width(lambda width: Twin(width), jnp.ones((2, 16)))
    assert_close_to_double(kernel_fn, x)


def test_equal_inputs_are_exactly_equal():
    x = jax.random.normal(jax.random.key(0), (3, 5))
    k = mlp(stax.Relu(), 3).kernel_fn(jnp.concatenate([x, x]), None, "ntk")
    np.testing.assert_array_equal(k[:3, :3], k[:3, 3:])
    np.testing.assert_array_equal(k[:3], k[3:])


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_regression_on_a_line(depth):
    net = mlp(stax.Relu(), depth, 1.5, 0.05)
    x = np.linspace(-math.pi, math.pi, 50, dtype=np.float32)[:, None]
    with jax.enable_x64(True):
        exact = np.asarray(net.kernel_fn(jnp.asarray(x, jnp.float64), None, "ntk"))
    single = np.asarray(net.kernel_fn(jnp.asarray(x), None, "ntk"), np.float64)
    lowest, right = (np.linalg.eigvalsh(k)[0] for k in (single, exact))
    assert right > 0
    assert abs(lowest - right) < 0.01 * right
    y, few = np.sin(x) + np.sin(2 * x), np.arange(5, 50, 10)
    predictions = [
        k[:, few] @ np.linalg.solve(k[np.ix_(few, few)], y[few]) for k in (single, exact)
    ]
    np.testing.assert_allclose(*predictions, atol=1e-3 * np.abs(predictions[1]).max())


@pytest.mark.parametrize("depth", range(1, 10))
def test_ntk_does_not_depend_on_what_else_is_asked_for(depth):
    net, x = mlp(stax.Relu(), depth), pairs((16,))[:2]
    alone = net.kernel_fn(x, None, "ntk")
    np.testing.assert_allclose(net.kernel_fn(x, None, ("nngp", "ntk")).ntk, alone, rtol=1e-6)


# Sixth-order central differences, first and second.
FIRST = np.array([-1, 9, -45, 0, 45, -9, 1]) / 60
SECOND = np.array([2, -27, 270, -490, 270, -27, 2]) / 180
STEP = 0.01


def differences(values):
    """First, second and mixed differences of both kernels from values on a grid, (2, 7, 7) -> (2, 5)."""
    along, across = values[:, :, 3], values[:, 3]
    mixed = np.einsum("i,kij,j->k", FIRST, values, FIRST) / STEP**2
    firsts = [v @ FIRST / STEP for v in (along, across)]
    return np.stack([*firsts, *(v @ SECOND / STEP**2 for v in (along, across)), mixed], 1)


def derivatives(net):
    """(x1, x2, a, b) -> derivatives of both kernels along a of x1 and b of x2, and the same by finite differences."""

    def kernel(x1, x2):
        out = net.kernel_fn(x1, x2, ("nngp", "ntk"))
        return jnp.stack([k.reshape((*k.shape[:2], -1))[..., 0] for k in out])

    @jax.jit
    def exact(x1, x2, a, b):
        def at(s, t):
            return kernel(x1 + s * a, x2 + t * b)[:, 0, 0]

        slope = jax.jacrev(at, (0, 1))
        slopes, curvatures = jax.jvp(lambda s: slope(s, 0.0), (0.0,), (1.0,))
        other = jax.jvp(lambda t: slope(0.0, t)[1], (0.0,), (1.0,))[1]
        return jnp.stack([*slopes, curvatures[0], other, curvatures[1]], 1)

    def both(x1, x2, a, b):
        grid = (np.arange(-3, 4) * STEP).reshape((7,) + (1,) * (x1.ndim - 1))
        values = np.asarray(kernel(x1 + grid * a, x2 + grid * b))
        return np.asarray(exact(x1, x2, a, b)), differences(values)

    return both


def points(shape):
    x1, x2, a, b = (jax.random.normal(jax.random.key(k), (1, *shape)) for k in range(4))
    blank = jnp.ones((1, *shape)).at[:, 0].set(0)
    every = {
        "generic": (x1, x2),
        "first_zero": (0 * x1, x2),
        "second_zero": (x1, 0 * x2),
        "both_zero": (0 * x1, 0 * x2),
        "coincident": (x1, x1),
    }
    if len(shape) > 1:
        every |= {"blank_pixels": (x1 * blank, x2), "same_blank_pixels": (x1 * blank, x2 * blank)}
    return {name: (*pair, a, b) for name, pair in every.items()}


SMOOTH = {
    "erf": stax.Erf(0.7, 1.3, 0.2),
    "gelu": stax.Gelu(),
    "sin": stax.Sin(0.7, 1.3, 0.2),
    "rbf": stax.Rbf(),
    "gaussian": stax.Gaussian(),
    "gabor": stax.Gabor(),
    "exp": stax.Exp(0.7, 0.5),
    "tanh": stax.Tanh(),
    "softplus": stax.Softplus(),
    "monomial_2": stax.Monomial(2),
    "polynomial": stax.Polynomial([0.5, -0.3, 0.7]),
}
KINKED = {"relu": stax.Relu(), "leaky_relu": stax.LeakyRelu(0.1), "abs": stax.Abs()}


def dense(activation):
    return stax.serial(stax.Dense(4, 0.8, 0.2), activation, stax.Dense(1, 1.0, 0.1))


def cases():
    for name, activation in (SMOOTH | KINKED).items():
        light = () if name in ("erf", "relu") else (pytest.mark.slow,)
        yield pytest.param(dense(activation), (3,), name in KINKED, id=name, marks=light)
    conv = stax.serial(stax.Conv(4, (2,), W_std=0.8, b_std=0.2), stax.Erf(), stax.Flatten())
    net = stax.serial(conv, stax.Dense(1, 1.0, 0.1))
    yield pytest.param(net, (3, 1), False, id="conv", marks=pytest.mark.slow)


@pytest.mark.parametrize(("net", "shape", "kinked"), list(cases()))
@pytest.mark.usefixtures("x64")
def test_derivatives_equal_finite_differences(net, shape, kinked):
    both = derivatives(net)
    for name, where in points(shape).items():
        if kinked and name in ("coincident", "both_zero"):
            continue  # the angle between the samples has no derivative there
        ours, expected = both(*where)
        scale = np.maximum(np.abs(expected).max(1, keepdims=True), 1e-2)
        assert (np.abs(ours - expected) < 1e-5 * scale).all(), name


@pytest.mark.usefixtures("x64")
def test_gradient_with_respect_to_a_blank_sample_or_pixel():
    """The kernel is differentiable there, in single precision too."""
    x1, x2, a, _ = points((3, 3, 1))["blank_pixels"]
    net = stax.serial(stax.Conv(2, (2, 2)), stax.Relu(), stax.Flatten(), stax.Dense(1))
    kernel = functools.partial(net.kernel_fn, get="ntk")
    grid = (np.arange(-3, 4) * STEP).reshape(-1, 1, 1, 1)
    expected = np.asarray(kernel(x1 + grid * a, x2))[:, 0] @ FIRST / STEP
    for dtype, rtol in ((jnp.float64, 1e-5), (jnp.float32, 1e-4)):
        ours = jax.grad(lambda x, t=dtype: kernel(x, x2.astype(t))[0, 0])(x1.astype(dtype))
        np.testing.assert_allclose((ours * a).sum(), expected, rtol=rtol)


def test_hyperparameters_and_batches_of_inputs_in_single_precision():
    x, y = (jax.random.normal(jax.random.key(k), (2, 3)) for k in (0, 1))

    def total(w):
        return (
            stax.serial(stax.Dense(1, w, 0.2), stax.Erf(), stax.Dense(1))
            .kernel_fn(x, y, "ntk")
            .sum()
        )

    slope = jax.jit(jax.grad(total))(0.8)
    with jax.enable_x64(True):
        wide = [float(total(jnp.float64(0.8 + s))) for s in (1e-3, -1e-3)]
    np.testing.assert_allclose(slope, (wide[0] - wide[1]) / 2e-3, rtol=1e-3)
    kernel_fn = dense(stax.Erf()).kernel_fn
    each = jax.vmap(lambda a: kernel_fn(a[None], y, "ntk")[0])(x)
    np.testing.assert_array_equal(each, kernel_fn(x, y, "ntk"))


@pytest.mark.parametrize("b_std", [1e-1, 1e-3, 1e-4])
def test_what_a_zero_sample_takes_from_derivatives_by_a_small_bias(b_std, x64):
    """d/db E[relu(u) relu(v)], of variances b^2 and S + b^2, is S^1/2 / (2 pi) as b falls (docs/gotchas.md)."""
    x = jnp.array([[1.0, 2.0, -1.0, 0.5], [0.0, 0.0, 0.0, 0.0]], jnp.float32)

    def kernel(b, x):
        network = stax.serial(stax.Dense(1, 1.2, b), stax.Relu(), stax.Dense(1))
        return network[2](x, None, "nngp")[0, 1]

    S = 1.44 * float((x[0] ** 2).sum()) / 4
    single = jax.jacfwd(kernel)(jnp.float32(b_std), x)
    double = jax.jacfwd(kernel)(b_std, x.astype(jnp.float64))
    if b_std < 1e-2:
        np.testing.assert_allclose(double, S**0.5 / (2 * np.pi), rtol=5e-3)
    lost = (1 + float(jnp.finfo(jnp.float32).eps) * S / b_std**2) ** -0.5
    np.testing.assert_allclose(single / double, lost, rtol=3e-3)
