"""Functions of several activations at once, by draws: against rules and formulas for the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import ntk

NORMAL = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
GET = ("nngp", "ntk")
DRAWS = 4096


def dense(n, x):
    return nn.Dense(n, use_bias=False, kernel_init=NORMAL)(x)


def linen(forward):
    """A family of linen modules: a readout of `forward(module, x, width)`."""

    class Model(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            return dense(1, forward(self, x, self.width))

    return Model


def inputs(*shape, count=3):
    return jax.random.normal(jax.random.key(0), (count, *shape), jnp.float64)


def agree(kernel_fn, x, exact, unit, gain=4):
    """Within five times the stated error, which is a fourth of that of independent draws, or half of it at a jump.

    A draw of the NNGP's largest entry is F^2, and of the NTK's F^2 + sum_r (dF/dg_r)^2 k, g_r ~ N(0, k); independent
    draws would err by their standard deviation over the root of their number.

    Args:
        kernel_fn: the kernel by draws.
        x: its inputs.
        exact: NNGP and NTK by formulas.
        unit: F as a function of the g_r.
        gain: ratio of both errors, at least.
    """
    count = unit.__code__.co_argcount
    draws = tuple(jax.random.normal(jax.random.key(1), (count, 2**16), jnp.float64))
    value = unit(*draws) ** 2
    slopes = jax.vmap(jax.grad(unit, range(count)))(*draws)
    for get, expected, one in zip(
        GET, exact, (value, value + sum(d**2 for d in slopes)), strict=True
    ):
        independent = one.std() / one.mean() / (DRAWS / 2) ** 0.5  # half of them in either order
        error = ntk.attention_error(kernel_fn, x, get=get, seeds=8)
        found = kernel_fn(x, None, get)
        assert 0 < float(error.max()) < independent / gain * float(jnp.abs(expected).max())
        assert float(jnp.abs(found - expected).max()) < 5 * float(error.max())


def largest(module, x, n):
    return dense(2 * n, x).reshape(x.shape[0], n, 2).max(-1)


def larger(module, x, n):
    return jnp.maximum(dense(n, x), dense(n, x))


def rotated(module, x, n):
    """max(a, b) = (a + b + |a - b|) / 2, and a + b and a - b are independent."""
    return (dense(n, x) + jnp.abs(dense(n, x))) / 2**0.5


def gated(module, x, n):
    return nn.relu(dense(n, x) * dense(n, x))


def in_products(module, x, n):
    a, b = dense(n, x), dense(n, x)
    return nn.relu(a) * nn.relu(b) + nn.relu(-a) * nn.relu(-b)


def own_gate(module, x, n):
    a, b = dense(n, x), dense(n, x)
    return (a + b) * nn.relu(a)


def in_two_terms(module, x, n):
    a, b = dense(n, x), dense(n, x)
    return a * nn.relu(a) + b * nn.relu(a)


def chosen(module, x, n):
    a, b, c = (dense(n, x) for _ in range(3))
    return jnp.where(a > 0, b, c)


def in_halves(module, x, n):
    a, b, c = (dense(n, x) for _ in range(3))
    one = jnp.where(a > 0, 1.0, 0.0)
    return one * b + (1 - one) * c


PAIRS = {
    "maxout": (largest, rotated, lambda a, b: jnp.maximum(a, b)),
    "a maximum": (larger, rotated, lambda a, b: jnp.maximum(a, b)),
    "a nonlinearity of a product": (gated, in_products, lambda a, b: nn.relu(a * b)),
    "a sum times a function of its part": (
        own_gate,
        in_two_terms,
        lambda a, b: (a + b) * nn.relu(a),
    ),
    "a choice": (chosen, in_halves, lambda a, b, c: jnp.where(a > 0, b, c)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_draws_agree_with_rules_for_the_same_function(name, x64):
    x = inputs(5)
    *forwards, unit = PAIRS[name]
    one, two = (ntk.infinite_width(linen(forward), x) for forward in forwards)
    agree(one, x, two(x, None, GET), unit, gain=2 if name == "a choice" else 4)


def pooled(module, x, n):
    return dense(n, x).max(1)


def pooled_windows(module, x, n):
    return nn.max_pool(dense(n, x), (2,))[:, 0]


@pytest.mark.parametrize("forward", [pooled, pooled_windows])
def test_max_pooling_of_two_positions(forward, x64):
    """max(u, v) = (u + v + |u - v|) / 2, and a Gaussian times an even function has mean zero."""
    x = inputs(2, 5)
    cov = jnp.einsum("npd,mqd->nmpq", x, x) / 5
    total = cov.sum((2, 3))
    gap = cov[..., 0, 0] - cov[..., 0, 1] - cov[..., 1, 0] + cov[..., 1, 1]
    size = jnp.sqrt(jnp.outer(jnp.diag(gap), jnp.diag(gap)))
    rho = jnp.clip(gap / size, -1, 1)
    absolute = 2 / jnp.pi * size * (jnp.sqrt(1 - rho**2) + rho * jnp.arcsin(rho))
    nngp = (total + absolute) / 4
    own = (total + gap * 2 / jnp.pi * jnp.arcsin(rho)) / 4
    exact = (nngp, nngp + own)
    agree(ntk.infinite_width(linen(forward), x), x, exact, lambda a, b: jnp.maximum(a, b))


def with_gain(module, x, n):
    gain = module.param("gain", nn.initializers.ones, (n,))
    return nn.relu(dense(n, x) + gain[None] * dense(n, x))


def test_gains_that_are_trained_within_a_nonlinearity(x64):
    """d relu(a + g b) / dg = b 1(a + b > 0), here by draws of numpy's."""
    x = inputs(5)
    cov = np.asarray(x @ x.T / 5)
    root = np.linalg.cholesky(cov)
    a, b = np.random.default_rng(0).normal(size=(2, 2**20, 3)) @ root.T
    on = (a + b > 0) * 1.0
    mean = [z.T @ z / len(a) for z in (np.maximum(a + b, 0), on, b * on)]
    nngp, slope, gain = mean
    exact = nngp, nngp + 2 * cov * slope + gain
    kernel_fn = ntk.infinite_width(linen(with_gain), x)
    for found, expected in zip(kernel_fn(x, None, GET), exact, strict=True):
        np.testing.assert_allclose(found, expected, atol=0.005 * np.abs(expected).max())


def test_an_entry_depends_on_its_two_samples_alone(x64):
    x = inputs(2, 5, count=4)
    kernel_fn = ntk.infinite_width(linen(pooled), x)
    whole = kernel_fn(x, None, "ntk")
    np.testing.assert_allclose(kernel_fn(x[:1], x[2:], "ntk"), whole[:1, 2:], rtol=1e-10)
    np.testing.assert_allclose(whole, whole.T, rtol=1e-10)


def test_explain_says_that_draws_were_made():
    text = str(ntk.explain(linen(pooled), jax.ShapeDtypeStruct((1, 2, 5), jnp.float32)))
    assert f"mean over {DRAWS} draws" in text


def heads(size):
    def forward(module, x, n):
        q, k, v = (
            nn.DenseGeneral((n // size, size), use_bias=False, kernel_init=NORMAL)(x)
            for _ in range(3)
        )
        h = nn.dot_product_attention(q, k, v)
        out = nn.DenseGeneral(n, (-2, -1), use_bias=False, kernel_init=NORMAL)(h)
        return out[:, 0]

    return forward


def test_heads_of_one_unit_whose_number_grows(x64):
    """Of size one, scores are products of two Gaussians: means over numpy's draws of them."""
    x = inputs(2, 5)
    cov = np.einsum("npd,mqd->npmq", x, x) / 5
    root = np.linalg.cholesky(cov.reshape(6, 6) + 1e-12 * np.eye(6))
    q, k = (np.random.default_rng(0).normal(size=(2, 2**18, 6)) @ root.T).reshape(2, -1, 3, 2)
    w = np.asarray(jax.nn.softmax(q[:, :, :1] * k, -1))  # (draws, n, positions), the first query
    nngp = np.einsum("snp,smq,npmq->nm", w, w, cov) / len(w)
    kernel_fn = ntk.infinite_width(linen(heads(1)), x)
    error = float(ntk.attention_error(kernel_fn, x, get="nngp", seeds=8).max())
    found = kernel_fn(x, None, "nngp")
    assert 0 < error < 0.02 * np.abs(nngp).max()
    np.testing.assert_allclose(found, nngp, rtol=0, atol=5 * error)


def test_heads_of_fixed_size_tend_to_heads_that_grow(x64):
    """As their size grows scores become Gaussian, at a rate of one over the size."""
    x = inputs(2, 5)

    def few(module, x, n):
        q, k, v = (
            nn.DenseGeneral((2, n // 2), use_bias=False, kernel_init=NORMAL)(x) for _ in range(3)
        )
        h = nn.dot_product_attention(q, k, v)
        return nn.DenseGeneral(n, (-2, -1), use_bias=False, kernel_init=NORMAL)(h)[:, 0]

    limit = ntk.infinite_width(linen(few), x, attention_samples=4096)(x, None, "ntk")
    gaps = []
    for size in (1, 4, 16):
        found = ntk.infinite_width(linen(heads(size)), x, attention_samples=4096)(x, None, "ntk")
        gaps.append(float(jnp.abs(found - limit).max()))
    assert gaps[0] > 1.5 * gaps[1] > 1.5 * gaps[2] > 0


def test_too_many_positions_are_refused():
    x = jax.ShapeDtypeStruct((1, 257, 5), jnp.float32)
    with pytest.raises(ValueError, match=r"at 257 positions .* otherwise=.sample."):
        ntk.infinite_width(linen(pooled), x)
