"""The forms in which attention is written, in linen, NNX and by hand, and the uses of its scores that are refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import models
import ntk

GET = ("nngp", "ntk")
EXAMPLE = jax.ShapeDtypeStruct((1, 4, 5), jnp.float32)
HEADS = 2


def normal(variance):
    return nn.initializers.variance_scaling(variance, "fan_in", "normal")


def softmax(scores):
    return nn.softmax(scores)


def causal(scores):
    return nn.softmax(jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf))


def linen(forward):
    """A family from a function of the module, the inputs, and the width."""

    class Model(nn.Module):
        n: int

        @nn.compact
        def __call__(self, x):
            return forward(self, x, self.n)

    return Model


def kernels(family):
    """(NNGP, NTK) of three sequences, in double precision."""
    kernel_fn = ntk.infinite_width(family, EXAMPLE, attention_samples=64)
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(3).normal(size=(3, 4, 5)))
        return np.stack([np.asarray(k) for k in kernel_fn(x, None, GET)])


def by_einsum(module, x, n):
    return project(attended(x, n, causal), n)


def attended(x, n, zeta):
    q, k, v = (nn.DenseGeneral((HEADS, n // HEADS))(x) for _ in range(3))
    scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) * (n // HEADS) ** -0.5
    return jnp.einsum("nhqk,nkhd->nqhd", zeta(scores), v)


def project(h, n):
    return nn.Dense(1)(nn.DenseGeneral(n, (-2, -1))(h).mean(1))


def by_linen(module, x, n):
    mask = nn.make_causal_mask(x[..., 0])
    return nn.Dense(1)(
        nn.MultiHeadDotProductAttention(HEADS, qkv_features=n, out_features=n)(x, mask=mask).mean(1)
    )


def by_jax(module, x, n):
    q, k, v = (nn.DenseGeneral((HEADS, n // HEADS))(x) for _ in range(3))
    return project(jax.nn.dot_product_attention(q, k, v, is_causal=True), n)


class ByNnx(nnx.Module):
    def __init__(self, n, rngs):
        self.attention = nnx.MultiHeadAttention(HEADS, 5, n, n, decode=False, rngs=rngs)
        self.readout = nnx.Linear(n, 1, rngs=rngs)

    def __call__(self, x):
        mask = nnx.make_causal_mask(x[..., 0])
        return self.readout(self.attention(x, mask=mask).mean(1))


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(linen(by_linen), id="linen"),
        pytest.param(linen(by_jax), id="jax.nn"),
        pytest.param(lambda n: lambda rngs: ByNnx(n, rngs), id="nnx", marks=pytest.mark.slow),
    ],
)
def test_every_form_of_attention_gives_one_kernel(family):
    np.testing.assert_allclose(kernels(family), written_out(), rtol=1e-5)


@functools.cache
def written_out():
    return kernels(linen(by_einsum))


TOKENS = jax.ShapeDtypeStruct((1, 4), jnp.int32)


def transformer(**fields):
    return models.family("Transformer", heads=2, vocabulary=7, context=4, **fields)


def vit(**fields):
    return models.family("ViT", outputs=2, heads=2, patch=2, **fields)


@pytest.mark.parametrize(
    ("family", "inputs"),
    [
        pytest.param(vit(depth=1), np.random.default_rng(0).normal(size=(3, 4, 4, 3)), id="ViT"),
        pytest.param(
            transformer(depth=4),
            np.random.default_rng(0).integers(0, 7, (4, 4)),
            id="Transformer",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_models_with_their_own_scale_have_kernels(family, inputs):
    example = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype)
    kernel_fn = ntk.infinite_width(family, example, attention_samples=256)
    for k in kernel_fn(jnp.asarray(inputs, jnp.float32), None, GET):
        k = np.asarray(k, float)
        k = k if k.ndim == 2 else k.mean((2, 3))
        assert np.linalg.eigvalsh(k).min() > 0
        np.testing.assert_allclose(k, k.T, rtol=1e-4)


def test_a_deep_transformer_runs_its_blocks_as_a_loop():
    out = ntk.explain(transformer(depth=24), TOKENS, attention_samples=256)
    rows = [row for row in out.steps if row.operation == "attention"]
    assert len(rows) == 2
    assert rows[1].step.endswith("(x 23)")
    assert "as of infinitely many (2 here)" in rows[0].what
    assert "256 draws" in rows[0].what
    assert "scores" in {row.operation for row in out.steps}


# What is refused


def nothing_grows(module, x, n):
    q, k, v = (nn.DenseGeneral((2, 16))(nn.Dense(n)(x)) for _ in range(3))
    h = jnp.einsum("nhqk,nkhd->nqhd", nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", q, k) / 4), v)
    return project(h, n)


def activated(module, x, n):
    return project(nn.relu(attended(x, n, softmax)), n)


def normed(module, x, n):
    return project(nn.LayerNorm()(attended(x, n, softmax)), n)


def own_weights(module, x, n):
    h = attended(x, n, softmax)
    w = module.param("w", normal(1), (HEADS, n // HEADS, n))
    return nn.Dense(1)(jnp.einsum("nqhd,hde->nqhe", h, w).sum(2).mean(1))


def talking(module, x, n):
    mix = module.param("mix", normal(1), (HEADS, HEADS))
    return project(attended(x, n, lambda s: jnp.einsum("nhqk,hg->ngqk", softmax(s), mix)), n)


def mean_of_heads(module, x, n):
    return project(attended(x, n, lambda s: s - s.mean(1, keepdims=True)), n)


def biased(module, x, n):
    def zeta(scores):
        return softmax(scores + module.param("b", nn.initializers.zeros, (1, HEADS, 4, 4)))

    return project(attended(x, n, zeta), n)


REFUSED = {
    "nothing that grows": (nothing_grows, "let the number of units or of heads grow"),
    "activation": (activated, "law of its own"),
    "norm of each head": (normed, "law of its own"),
    "weights of each head": (own_weights, "law of its own"),
    "talking heads": (talking, "something else than average"),
    "mean of heads": (mean_of_heads, "something else than average"),
    "trained biases": (biased, "something else than average"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_uses_of_random_scores_are_refused(name):
    forward, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"{message}.*test_trace_attention_forms.py"):
        ntk.infinite_width(linen(forward), EXAMPLE)
