"""Layers that sum over a fixed number of weights: kernels under the law of these weights."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import ntk
from ntk.infinite import weight_laws
from ntk.trace import true_moments

DRAWS = 400_000
NORMAL = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
INITIALIZERS = {
    "truncated normal": nn.initializers.lecun_normal(),
    "uniform": nn.initializers.lecun_uniform(),
}
FUNCTIONS = {
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0) * 1.0, nn.relu),
    "tanh": (np.tanh, lambda z: 1 / np.cosh(z) ** 2, jnp.tanh),
    "square": (lambda z: z * z, lambda z: 2 * z, jnp.square),
    "two slopes": (
        lambda z: np.where(z > 0.7, 2 * z - 1.05, 0.5 * z),
        lambda z: np.where(z > 0.7, 2.0, 0.5),
        lambda z: jnp.where(z > 0.7, 2 * z - 1.05, 0.5 * z),
    ),
}


def drawn(kind, rng, shape):
    """Weights with mean 0 and variance 1, without the library."""
    if kind == "uniform":
        return rng.uniform(-math.sqrt(3), math.sqrt(3), shape)
    if kind == "normal":
        return rng.standard_normal(shape)
    w = rng.standard_normal(shape)
    while (bad := np.abs(w) > 2).any():
        w[bad] = rng.standard_normal(bad.sum())
    return w / stats.truncnorm.std(-2, 2)


def monte_carlo(f, slope, entries, kinds, seed=0):
    """(mean, standard error) of f(z) f(z'), and of the tangent kernel of one hidden layer."""
    rng = np.random.default_rng(seed)
    w = np.stack([drawn(kind, rng, DRAWS) for kind in kinds], 1)
    z = w @ entries.T
    u, du = f(z), slope(z)
    gram = entries @ entries.T
    out = []
    for one, factor in ((u, None), (du, gram)):
        k = one.T @ one / DRAWS
        spread = (one**2).T @ one**2 / DRAWS - k * k
        error = np.sqrt(np.maximum(spread, 0) / DRAWS)
        out.append((k, error) if factor is None else (k * factor, error * np.abs(factor)))
    (k, e), (t, d) = out
    return (k, e), (k + t, e + d)


def hidden(f, kernel_init, bias_init=None):
    class Net(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            bias = nn.initializers.zeros if bias_init is None else bias_init
            use = bias_init is not None
            h = nn.Dense(self.width, kernel_init=kernel_init, use_bias=use, bias_init=bias)(x)
            return nn.Dense(1, use_bias=False)(f(h))

    return Net


def assert_near(found, expected, error, stated):
    """Within four standard errors and the stated error, relative to the diagonal."""
    scale = np.sqrt(np.outer(*2 * [np.diag(expected)])) if expected.ndim == 2 else np.abs(expected)
    wrong = np.abs(np.asarray(found) - expected) / scale
    assert (wrong <= 4 * error / scale + stated).all(), wrong.max()


def data(d, count=4, seed=0):
    x = np.random.default_rng(seed).standard_normal((count, d))
    return (
        math.sqrt(d)
        * x
        / np.linalg.norm(x, axis=1, keepdims=True)
        * np.linspace(0.7, 1.3, count)[:, None]
    )


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("kind", "d"), [("truncated normal", 1), ("uniform", 2), ("truncated normal", 9)]
)
def test_a_first_layer_has_the_law_of_its_weights(kind, d, name):
    f, slope, flax = FUNCTIONS[name]
    x = data(d)
    traced = ntk.infinite_width(hidden(flax, INITIALIZERS[kind]), x[:1])(
        jnp.asarray(x), None, ("nngp", "ntk")
    )
    expected = monte_carlo(f, slope, x / math.sqrt(d), [kind] * d)
    for found, (k, error) in zip(traced, expected, strict=True):
        assert_near(found, k, error, 2e-3)


def test_a_gaussian_in_place_of_the_law_is_seen():
    """The control of the test above."""
    f, slope, flax = FUNCTIONS["square"]
    x = data(2)
    found = ntk.infinite_width(hidden(flax, NORMAL), x[:1])(jnp.asarray(x), None, "nngp")
    (k, error), _ = monte_carlo(f, slope, x / math.sqrt(2), ["uniform"] * 2)
    with pytest.raises(AssertionError):
        assert_near(found, k, error, 2e-3)


def uniform(size):
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -size, size)


def test_uniform_biases_of_each_unit():
    x = data(6, 3)
    family = hidden(jnp.sin, NORMAL, uniform(2.0))
    found = ntk.infinite_width(family, x[:1])(jnp.asarray(x), None, ("nngp", "ntk"))
    entries = np.concatenate([x / math.sqrt(6), np.full((3, 1), 2 / math.sqrt(3))], 1)
    expected = monte_carlo(np.sin, np.cos, entries, ["normal"] * 6 + ["uniform"])
    for a, (k, error) in zip(found, expected, strict=True):
        assert_near(a, k, error, 2e-3)


def test_a_uniform_bias_next_to_a_sum_over_units_is_refused():
    class Net(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            h = nn.relu(nn.Dense(self.width)(x))
            return nn.Dense(1)(jnp.sin(nn.Dense(self.width, bias_init=uniform(2.0))(h)))

    x = jnp.asarray(data(3, 2))
    with pytest.raises(ValueError, match=r"a uniform bias.*Let its initializer be normal"):
        ntk.infinite_width(Net, x[:1])(x, None, "nngp")


def test_one_hot_inputs_see_one_weight_each():
    """In 64 dimensions: E f(w)^2 on the diagonal and (E f(w))^2 beside it, one-dimensional integrals."""
    x = jnp.eye(64)[:3] * 8.0
    found = ntk.infinite_width(hidden(nn.relu, INITIALIZERS["truncated normal"]), x[:1])(
        x, None, "nngp"
    )
    law = stats.truncnorm(-2, 2)
    mean, square = (
        integrate.quad(lambda w, p=p: (w / law.std()) ** p * law.pdf(w), 0, 2)[0] for p in (1, 2)
    )
    expected = np.where(np.eye(3, dtype=bool), square, mean**2)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_deeper_layers_start_from_the_true_law():
    """Two hidden layers: the second, of rectifiers, on the moments of the first by Monte Carlo."""
    f, slope, flax = FUNCTIONS["tanh"]
    x = data(2, 3)

    class Net(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            h = flax(nn.Dense(self.width, use_bias=False)(x))
            return nn.Dense(1, use_bias=False)(nn.relu(nn.Dense(self.width, use_bias=False)(h)))

    found = ntk.infinite_width(Net, x[:1])(jnp.asarray(x), None, ("nngp", "ntk"))
    (k, e), (t, d) = monte_carlo(f, slope, x / math.sqrt(2), ["truncated normal"] * 2)
    norm = np.sqrt(np.outer(np.diag(k), np.diag(k)))
    angle = np.arccos(np.clip(k / norm, -1, 1))
    step = (np.pi - angle) / (2 * np.pi)
    two = norm * np.sin(angle) / (2 * np.pi) + step * k
    assert_near(found[0], two, e, 2e-3)
    assert_near(found[1], two + step * t, d, 3e-3)


def test_what_is_linear_in_a_first_layer_needs_no_more_than_its_variance(monkeypatch):
    """A mean of squares and a scaled unit are the same for every law: nothing is corrected, nothing compiled for it."""

    class Normed(nn.Module):
        width: int
        law: nn.initializers.Initializer

        @nn.compact
        def __call__(self, x):
            x = nn.Dense(self.width, kernel_init=self.law)(x)
            return nn.Dense(1)(nn.LayerNorm()(x) + 3 * x)

    def corrected(*_):
        raise AssertionError("corrected")

    monkeypatch.setattr(true_moments, "pair", corrected)
    x = jax.random.normal(jax.random.key(0), (4, 2))
    uniform, normal = (
        ntk.infinite_width(lambda n, law=law: Normed(n, law), x)(x, None, ("nngp", "ntk"))
        for law in (nn.initializers.lecun_uniform(), NORMAL)
    )
    for one, other in zip(uniform, normal):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_windows_of_a_convolution_with_few_channels():
    """Three pixels of one channel; the mean over four positions of rectified windows, padded with zeros."""
    x = np.random.default_rng(1).standard_normal((3, 4, 1))

    class Net(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            h = nn.relu(nn.Conv(self.width, (3,), use_bias=False)(x))
            return nn.Dense(1, use_bias=False)(h.mean(1))

    found = ntk.infinite_width(Net, x[:1])(jnp.asarray(x), None, "nngp")
    padded = np.pad(x[..., 0], ((0, 0), (1, 1)))
    windows = np.stack([padded[:, k : k + 3] for k in range(4)], 1) / math.sqrt(3)
    w = drawn("truncated normal", np.random.default_rng(0), (DRAWS, 3))
    u = np.maximum(np.einsum("nps,ms->mnp", windows, w), 0).mean(2)
    k = u.T @ u / DRAWS
    assert_near(found, k, np.sqrt(((u**2).T @ u**2 / DRAWS - k * k) / DRAWS), 2e-3)


def test_products_of_functions_of_two_first_layers():
    x = data(2, 3)

    class Net(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            one = nn.Dense(self.width, use_bias=False)(x)
            two = nn.Dense(self.width, use_bias=False)(x)
            return nn.Dense(1, use_bias=False)(jnp.square(one) * nn.sigmoid(two))

    found = ntk.infinite_width(Net, x[:1])(jnp.asarray(x), None, "nngp")
    rng = np.random.default_rng(0)
    z = [drawn("truncated normal", rng, (DRAWS, 2)) @ x.T / math.sqrt(2) for _ in range(2)]
    u = z[0] ** 2 / (1 + np.exp(-z[1]))
    k = u.T @ u / DRAWS
    assert_near(found, k, np.sqrt(((u**2).T @ u**2 / DRAWS - k * k) / DRAWS), 2e-3)


def test_a_pair_has_one_kernel_whatever_stands_beside_it():
    """A sample that needs the mean over weights does not change the road of the others."""
    x = np.concatenate([data(32, 3), math.sqrt(32) * np.eye(32)[:1]]).astype(np.float32)
    kernel_fn = ntk.infinite_width(hidden(jnp.tanh, INITIALIZERS["truncated normal"]), x[:1])
    whole = kernel_fn(jnp.asarray(x), None, "ntk")
    np.testing.assert_allclose(whole[:3, :3], kernel_fn(jnp.asarray(x[:3]), None, "ntk"), rtol=1e-6)
    np.testing.assert_allclose(
        whole[:, 3:], kernel_fn(jnp.asarray(x), jnp.asarray(x[3:]), "ntk"), rtol=1e-5
    )


def test_the_error_of_means_over_weights_is_their_spread():
    x = jnp.asarray(data(4, 2))
    kernel_fn = ntk.infinite_width(hidden(nn.relu, INITIALIZERS["uniform"]), x[:1])
    draws = np.stack([kernel_fn(x, None, "nngp", attention_seed=s) for s in range(1, 9)])
    spread = draws.std(0, ddof=1)
    assert (spread > 0).all()
    assert spread.max() < 1e-3
    stated = ntk.attention_error(kernel_fn, x, get="nngp", seeds=8)
    np.testing.assert_allclose(stated, spread, rtol=1e-4)


@pytest.mark.parametrize("kind", ["truncated normal", "uniform"])
def test_points_have_the_moments_of_their_law(kind):
    law = weight_laws.Standard(kind)
    index = jnp.arange(weight_laws.POINTS)
    w = np.asarray(weight_laws.points(((law, 2),), index, 0, jnp.float32), np.float64)
    reference = stats.truncnorm(-2, 2) if kind != "uniform" else stats.uniform()
    assert weight_laws.excess_kurtosis(law) == pytest.approx(float(reference.stats("k")), abs=1e-9)
    np.testing.assert_allclose(
        [w.mean(), w.var(), (w**4).mean() - 3], [0, 1, reference.stats("k")], atol=1e-3
    )
    assert abs((w[:, 0] * w[:, 1]).mean()) < 1e-3


STEEP = {
    "exp": jnp.exp,
    "power": lambda z: z**4,
    "sine": lambda z: jnp.sin(3 * z),
    "jump": jnp.sign,
    "step": lambda z: jnp.where(z > 1, 1.0, 0.0),
}
GENTLE = {
    "relu": nn.relu,
    "tanh": jnp.tanh,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "sine": jnp.sin,
    "square": jnp.square,
}


def named_steep(f, kernel_init):
    x = jnp.asarray(data(4, 2))
    return [
        row.what for row in ntk.explain(hidden(f, kernel_init), x[:1]).steps if "steep" in row.what
    ]


@pytest.mark.parametrize("name", STEEP)
def test_steep_functions_are_named(name):
    (text,) = named_steep(STEEP[name], INITIALIZERS["truncated normal"])
    assert "the errors stated for the law of its weights do not hold" in text
    assert not named_steep(STEEP[name], NORMAL)


@pytest.mark.parametrize("name", GENTLE)
def test_gentle_functions_are_not(name):
    assert not named_steep(GENTLE[name], INITIALIZERS["truncated normal"])


def test_the_size_of_the_layer_makes_a_function_steep():
    wide = nn.initializers.variance_scaling(9.0, "fan_in", "truncated_normal")
    assert named_steep(jnp.sin, wide)
    assert named_steep(lambda z: jnp.exp(z / 2), wide)
    assert not named_steep(nn.relu, wide)


def test_errors_of_a_steep_function_are_larger_than_stated():
    """The diagonal of exp(2 z) for a truncated normal: E exp(4 a w) is a product of one-dimensional integrals."""
    x = data(4, 3)
    family = hidden(lambda z: jnp.exp(2 * z), INITIALIZERS["truncated normal"])
    found = np.diag(ntk.infinite_width(family, x[:1])(jnp.asarray(x), None, "nngp"))
    law = stats.truncnorm(-2, 2)

    def mean(a):
        return integrate.quad(lambda w: math.exp(4 * a * w / law.std()) * law.pdf(w), -2, 2)[0]

    factors = [[mean(a) for a in row] for row in x / 2]
    wrong = np.abs(found / np.prod(factors, 1) - 1)
    assert 0.003 < wrong.max() < 0.1, wrong
