"""Attention with scores scaled by 1/sqrt(d), the limit of many heads: closed forms, symmetries, finite networks."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import ntk

GET = ("nngp", "ntk")
SAMPLES, POSITIONS, CHANNELS = 3, 4, 5
EXAMPLE = jax.ShapeDtypeStruct((1, POSITIONS, CHANNELS), jnp.float32)
HEADS = 2


def normal(variance):
    return nn.initializers.variance_scaling(variance, "fan_in", "normal")


def softmax(scores):
    return nn.softmax(scores)


def causal(scores):
    return nn.softmax(jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf))


def identity(scores):
    return scores


def linen(forward):
    """A family from a function of the module, the inputs, and the width."""

    class Model(nn.Module):
        n: int

        @nn.compact
        def __call__(self, x):
            return forward(self, x, self.n)

    return Model


@functools.cache
def attention(zeta=softmax, heads=HEADS, power=0.5, gain=1.0, residual=False):
    """Embedding, attention with weights zeta(scores) for any number of heads, readout of the mean over positions."""

    def forward(module, x, n):
        size = n // heads

        def project(name, variance):
            return nn.DenseGeneral((heads, size), use_bias=False, name=name, kernel_init=variance)

        x = nn.Dense(n, use_bias=False, name="embed", kernel_init=normal(1))(x)
        q, k = (project(name, normal(gain))(x) for name in ("query", "key"))
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / size**power
        h = jnp.einsum("nhqk,nkhd->nqhd", zeta(scores), project("value", normal(1))(x))
        out = nn.DenseGeneral(n, (-2, -1), use_bias=False, name="out", kernel_init=normal(1))
        h = out(h)
        h = x + h if residual else h
        return nn.Dense(1, use_bias=False, name="readout", kernel_init=normal(1))(h.mean(1))

    return linen(forward)


@functools.cache
def data(positions=POSITIONS):
    """Three samples, the first two alike."""
    x = np.random.default_rng(3).normal(size=(SAMPLES, positions, CHANNELS))
    x[1] = 0.8 * x[0] + 0.6 * x[1]
    return x


def gram(positions=POSITIONS):
    """Covariance of the embeddings, (N, N, T, T)."""
    return np.einsum("iac,jbc->ijab", data(positions), data(positions)) / CHANNELS


def kernels(family, x=None, positions=POSITIONS, samples=1024, x2=None, **options):
    """(NNGP, NTK), in double precision."""
    x = data(positions) if x is None else x
    example = jax.ShapeDtypeStruct((1, *x.shape[1:]), jnp.float32)
    kernel_fn = ntk.infinite_width(family, example, attention_samples=samples, **options)
    with jax.enable_x64(True):
        x2 = None if x2 is None else jnp.asarray(x2)
        return np.stack([np.asarray(k) for k in kernel_fn(jnp.asarray(x), x2, GET)])


@functools.cache
def plain(zeta=softmax):
    """Kernels of the three samples."""
    return kernels(attention(zeta))


def distances(found, exact):
    """Difference over the geometric mean of the diagonals."""
    size = np.sqrt(np.einsum("kii->ki", exact))
    return (found - exact) / (size[:, :, None] * size[:, None])


# Closed forms


def finished(k, theta):
    """Moments after the output projection and the readout of the mean over positions, from those of the heads."""
    theta = theta + k  # out
    theta = theta + k  # readout
    return np.stack([np.mean(k, (2, 3)), np.mean(theta, (2, 3))])


def linear_attention(k):
    """Weights that are the scores themselves: Hron et al. (2020), theorem 3, with K the kernel of the embedding."""
    inner = np.sum(k * k, (2, 3), keepdims=True)
    nngp = k * inner
    theta = k  # of the embedding
    projected = theta + k  # of queries, keys and values
    cross = np.sum(k * projected, (2, 3), keepdims=True)
    # E[W K W'] with W or V moved: keys and values enter as <K, Theta>, queries as Theta.
    return finished(nngp, projected * inner + 2 * k * cross)


def pair_attention(k, gain=1.0):
    """Softmax over two positions: a sigmoid of one Gaussian for each query, integrated on a grid."""
    nodes = np.linspace(-8, 8, 401)
    weights = np.exp(-(nodes**2) / 2)
    weights = weights / weights.sum()

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    def expectation(f, kqq, koo, kqo):
        one, rest = math.sqrt(kqq) * nodes, math.sqrt(max(koo - kqo**2 / kqq, 0))
        two = (kqo / math.sqrt(kqq)) * nodes[:, None] + rest * nodes[None]
        return (weights * f(one)) @ f(two) @ weights

    step = np.array([1.0, -1.0])
    q = key = gain * k  # moments of queries and of keys
    spread = np.einsum("e,ijef,f->ij", step, key, step)
    moved = np.einsum("e,ijef,f->ij", step, gain * k + key, step)  # Theta of the keys
    n = len(k)
    nngp, theta = np.zeros_like(k), np.zeros_like(k)
    for i, j, a, c in np.ndindex(n, n, 2, 2):
        law = (
            q[i, i, a, a] * spread[i, i],
            q[j, j, c, c] * spread[j, j],
            q[i, j, a, c] * spread[i, j],
        )
        both = expectation(lambda z: sigmoid(z) - 0.5, *law)
        w = np.full((2, 2), 0.25) + both * np.outer(step, step)
        slope = expectation(lambda z: sigmoid(z) * sigmoid(-z), *law) * np.outer(step, step)
        scores = q[i, j, a, c] * moved[i, j] + (gain * k + q)[i, j, a, c] * spread[i, j]
        nngp[i, j, a, c] = np.sum(w * k[i, j])
        theta[i, j, a, c] = np.sum(w * 2 * k[i, j]) + np.sum(slope * k[i, j]) * scores
    return finished(nngp, theta)


def test_weights_that_are_the_scores_have_a_closed_form():
    exact = linear_attention(gram())
    few, many = (
        np.abs(distances(kernels(attention(identity), samples=m), exact)).max() for m in (64, 4096)
    )
    assert many < 0.02
    assert few > 2 * many


@pytest.mark.parametrize("gain", [0.3, 1.0])
def test_softmax_over_two_positions_is_a_sigmoid(gain):
    exact = pair_attention(gram(2), gain)
    found = kernels(attention(gain=gain), positions=2, samples=4096)
    assert np.abs(distances(found, exact)).max() < 0.015
    vanishing = kernels(attention(gain=gain, power=1), positions=2)
    assert np.abs(distances(vanishing, exact)).max() > 0.05


def test_the_first_query_under_a_causal_mask_attends_to_itself_alone():
    def first(scores):
        return causal(scores)[:, :, :1]

    k = gram()[:, :, :1, :1]
    np.testing.assert_allclose(kernels(attention(first)), finished(k, 2 * k), rtol=1e-5)


def test_one_position_needs_no_draws():
    k = gram(1)
    np.testing.assert_allclose(kernels(attention(), positions=1), finished(k, 2 * k), rtol=1e-5)


def test_attention_patterns_without_gradient_are_those_of_frozen_queries_and_keys():
    def stopped(scores):
        return jax.lax.stop_gradient(nn.softmax(scores))

    frozen = kernels(attention(), learning_rates={"query*": 0, "key*": 0, "embed*": 0})
    found = kernels(attention(stopped), learning_rates={"embed*": 0})
    np.testing.assert_allclose(found, frozen, rtol=1e-9)
    moving = kernels(attention(), learning_rates={"embed*": 0})
    assert (np.diagonal(moving - found, 0, 1, 2)[1] > 0.01).all()


# Symmetries


def test_an_entry_depends_on_its_two_samples_alone():
    whole, x = plain(), data()
    np.testing.assert_allclose(whole, whole.transpose(0, 2, 1), rtol=1e-9)
    part = kernels(attention(), x[:2], x2=x[1:])
    np.testing.assert_allclose(part, whole[:, :2, 1:], rtol=1e-9)


def test_a_copy_of_a_sample_is_that_sample():
    x = data()
    x = np.stack([x[0], x[0] + 1e-9, x[1]])
    nngp, theta = kernels(attention(), x)
    np.testing.assert_allclose(nngp[0, 1], nngp[0, 0], rtol=1e-4)
    np.testing.assert_allclose(theta[0, 2], theta[1, 2], rtol=1e-4)


def test_both_precisions_make_the_same_draws():
    x = jnp.asarray(data(), jnp.float32)
    single = ntk.infinite_width(attention(), x[:1])(x, None, GET)
    assert np.abs(distances(np.stack(single), plain())).max() < 2e-4


def test_compiled_and_differentiated():
    kernel_fn = ntk.infinite_width(attention(), EXAMPLE, attention_samples=64)
    with jax.enable_x64(True):
        x, direction = jnp.asarray(data()), jnp.asarray(data()[::-1])

        @jax.jit
        @jax.value_and_grad
        def total(step):
            return jnp.sum(kernel_fn(x[:2] + step * direction[:2], x[2:], "ntk"))

        (low, _), (_, slope), (high, _) = (total(step) for step in (-1e-4, 0.0, 1e-4))
        np.testing.assert_allclose(slope, (high - low) / 2e-4, rtol=1e-5)


# Finite networks


def finite_kernels(family, width, count):
    """NNGP (given the last hidden layer) and NTK of `count` networks, (2, count, 3, 3)."""
    x = jnp.asarray(data(), jnp.float32)
    net = family(width)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
    fans = {"embed": CHANNELS}

    def apply(params, x):
        scaled = {k: {"kernel": p / math.sqrt(fans.get(k, width))} for k, p in params.items()}
        return net.apply({"params": scaled}, x)

    def of_readout(params, x):
        stopped = jax.lax.stop_gradient(params)
        return apply({**stopped, "readout": params["readout"]}, x)

    @jax.jit
    def one(key):
        keys = jax.random.split(key, len(shapes))
        params = {
            k: jax.random.normal(i, s["kernel"].shape) for i, (k, s) in zip(keys, shapes.items())
        }
        return [ntk.empirical_ntk(f, params, x, trace_axes=(-1,)) for f in (of_readout, apply)]

    out = [one(jax.random.key(100 + k)) for k in range(count)]
    return np.stack([np.stack(kernels) for kernels in out], 1).astype(float)


@pytest.mark.slow
def test_finite_networks_with_many_heads_agree_within_three_standard_errors():
    family = attention(causal, heads=32, residual=True)
    found = finite_kernels(family, 32 * 32, 48)
    mean, error = found.mean(1), found.std(1, ddof=1) / math.sqrt(found.shape[1])

    def z_scores(power):
        limit = kernels(attention(causal, residual=True, power=power), samples=4096)
        return ((mean - limit) / error)[:, *np.triu_indices(SAMPLES)]

    assert np.abs(z_scores(0.5)).max() < 3
    assert np.abs(z_scores(1)).max() > 5  # scores that vanish


@pytest.mark.parametrize("samples", [0, 3, 96])
def test_the_number_of_draws_is_a_power_of_two(samples):
    with pytest.raises(ValueError, match=f"attention_samples is {samples}; .* power of two"):
        ntk.infinite_width(attention(), EXAMPLE, attention_samples=samples)


def test_the_standard_error_is_that_of_the_estimate():
    x = jnp.asarray(data(2), jnp.float32)
    kernel_fn = ntk.infinite_width(attention(), x[:1], attention_samples=64)
    error = ntk.attention_error(kernel_fn, x, get="nngp", seeds=2)
    one, two = (kernel_fn(x, None, "nngp", attention_seed=seed) for seed in (1, 2))
    np.testing.assert_allclose(
        error, jnp.abs(one - two) / 2**0.5, rtol=1e-5
    )  # unbiased for two draws
    assert 0.001 < np.mean(error) < 0.1
    with pytest.raises(ValueError, match="seeds is 1"):
        ntk.attention_error(kernel_fn, x, seeds=1)
