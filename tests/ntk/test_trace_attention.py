"""Attention with scores scaled by 1/sqrt(d): the limit of many heads."""

import functools
import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import models
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
    error = np.abs(distances(kernels(attention(identity)), exact)).max((1, 2))
    assert (error < [0.1, 0.15]).all()
    assert (error > 1e-6).all()


@pytest.mark.parametrize("gain", [1.0, 4.0])
def test_softmax_over_two_positions_is_a_sigmoid(gain):
    exact = pair_attention(gram(2), gain)
    found = kernels(attention(gain=gain), positions=2, samples=4096)
    assert np.abs(distances(found, exact)).max() < 0.012
    other = kernels(attention(gain=gain, power=1), positions=2)
    assert np.abs(distances(other, exact)).max() > 0.1  # scores that vanish
