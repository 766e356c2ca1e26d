"""Kernels by finite networks of models without a rule, `otherwise="sample"`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk
from ntk.trace import networks
from ntk.trace.sampled import SampledKernelFn, extrapolated, sampled

NORMAL = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
NOTHING = (None, None, None, None)


def linen(forward):
    class Net(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            return forward(self, x, self.width)

    return Net


def dense(n, **options):
    return nn.Dense(n, kernel_init=NORMAL, **options)


def maxout(module, x, n):
    """By sorting, which has no rule; the largest by max has one."""
    h = jnp.sort(dense(2 * n, use_bias=False)(x).reshape(x.shape[0], n, 2))[..., 1]
    return dense(1, use_bias=False)(h)


def plain(module, x, n):
    return dense(2)(nn.tanh(dense(n)(x)))


def deep_maxout(module, x, n):
    for _ in range(2):
        x = jnp.sort(dense(2 * n)(x).reshape(x.shape[0], n, 2))[..., 1]
    return dense(1)(x)


def squared_readout(module, x, n):
    w = module.param("w", nn.initializers.normal(1.0), (x.shape[-1], n))
    return ((x @ w) @ w.T)[:, :1] / n**0.5


def batch_norm(module, x, n):
    h = dense(n)(x)
    return dense(1)(nn.relu(h - h.mean(0, keepdims=True)))


def inputs(count=3):
    x = np.random.default_rng(3).normal(size=(count, 5))
    return jnp.asarray(x / np.sqrt(np.mean(x**2, 1, keepdims=True)), jnp.float32)


def z_scores(estimate, exact):
    return (np.asarray(estimate.mean) - exact) / np.asarray(estimate.standard_error)


def maxout_kernels(x):
    """NNGP and NTK of max(u, v) = (s + |d|) / sqrt(2), s and d the sum and difference of u and v over sqrt(2)."""
    k = np.asarray(x, float) @ np.asarray(x, float).T / x.shape[1]
    angle = np.arccos(np.clip(k / np.sqrt(np.outer(k.diagonal(), k.diagonal())), -1, 1))
    norms = np.sqrt(np.outer(k.diagonal(), k.diagonal()))
    folded = 2 / np.pi * norms * (np.sin(angle) + (np.pi / 2 - angle) * np.cos(angle))
    nngp = (k + folded) / 2
    slope = (1 + (1 - 2 * angle / np.pi)) / 2
    return nngp, nngp + slope * k


def test_maxout_has_the_kernels_derived_by_hand():
    x = inputs()
    kernel_fn = ntk.infinite_width(linen(maxout), x, otherwise="sample", networks=16)
    assert isinstance(kernel_fn, SampledKernelFn)
    found = kernel_fn.estimate(x)
    for name, exact in zip(("nngp", "ntk"), maxout_kernels(x)):
        assert np.abs(z_scores(found[name], exact)).max() < 3
        assert np.max(found[name].standard_error) < 0.03 * exact.max()
        np.testing.assert_array_equal(kernel_fn(x, None, name), found[name].mean)
        error = ntk.attention_error(kernel_fn, x, None, name)
        np.testing.assert_array_equal(error, found[name].standard_error)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias_std": 0.5},
        {"learning_rates": {"Dense_0/*": 0.0, "Dense_1/bias": 3.0}},
        {"base_width": 128, "bias_std": 0.5},
    ],
)
def test_networks_are_those_whose_limit_the_rules_give(options):
    x, family = inputs(), linen(plain)
    assumed = tuple(options.get(o) for o in ("base_width", "learning_rates", "bias_std", "roles"))
    exact = ntk.infinite_width(family, x, **options)(x, None, ("nngp", "ntk"))
    first = (jax.ShapeDtypeStruct(x.shape, x.dtype),)
    found = sampled(family, first, assumed, True, 16, "").estimate(x)
    for name in ("nngp", "ntk"):
        assert np.abs(z_scores(found[name], np.asarray(getattr(exact, name)))).max() < 3


def test_two_batches_and_one_example():
    x, family = inputs(4), linen(maxout)
    kernel_fn = ntk.infinite_width(family, x, otherwise="sample", networks=2)
    whole = kernel_fn(x, None, "ntk")
    np.testing.assert_allclose(kernel_fn(x[:1], x[1:], "ntk"), whole[:1, 1:], rtol=1e-4)
    other = kernel_fn(x, None, "ntk", attention_seed=1)
    assert np.abs(other - whole).max() > 1e-4


def test_a_line_in_the_inverse_width_meets_the_axis():
    widths = (64, 128, 256)
    means = np.array([2.0 + 8.0 / n for n in widths])[:, None]
    found = extrapolated(widths, means, np.full((3, 1), 1e-3))
    np.testing.assert_allclose(found.mean, 2.0, rtol=1e-6)
    # weights of the intercept of a line through three points of equal errors
    t = np.array([4.0, 2.0, 1.0])
    w = 1 / 3 - t.mean() * (t - t.mean()) / np.sum((t - t.mean()) ** 2)
    np.testing.assert_allclose(found.standard_error, 1e-3 * np.sqrt(np.sum(w**2)), rtol=1e-5)
    bent = extrapolated(widths, means + np.array([[0.3], [0.0], [0.0]]), np.full((3, 1), 1e-3))
    assert bent.standard_error[0] > 0.03


def test_the_stated_error_is_the_spread_over_repeats():
    spread = 0.1
    random = np.random.default_rng(0)
    widths, limits, errors = (64, 128, 256), [], []
    for _ in range(400):
        means = 1.0 + 5.0 / np.array(widths)[:, None] + spread * random.normal(size=(3, 9))
        found = extrapolated(widths, means, np.full((3, 9), spread))
        limits.append(found.mean[0])
        errors.append(found.standard_error[0])
    assert 0.9 < np.sqrt(np.mean(np.square(errors))) / np.std(limits) < 1.4


def beside_a_skip(module, x, n):
    """The layer of the branch, which comes first, is one in which the outputs are affine as well."""
    h = module.param("A", nn.initializers.normal(1.0), (x.shape[-1], n))
    w = module.param("B", nn.initializers.normal(n**-0.5), (n, n))
    h = x @ h
    return dense(1, use_bias=False)(h + nn.tanh(h) @ w)


def test_the_readout_is_found_by_its_linearity():
    x = inputs()
    for forward, expected in (
        (plain, {"Dense_0/bias", "Dense_0/kernel"}),
        (squared_readout, set()),
        (beside_a_skip, {"Dense_0/kernel"}),
    ):
        net = networks.finite(linen(forward), 64, (x,), NOTHING)
        assert set(networks.readout(net, net.draw(jax.random.key(0)), x)) == expected


def two_heads(module, x, n):
    h = nn.DenseGeneral((2, n // 2), use_bias=False)(dense(n)(x)).reshape(x.shape[0], n)
    return nn.Dense(1, kernel_init=nn.initializers.zeros, use_bias=False)(h)


def test_fans_of_matrices_of_zeros_alone_are_asked_for():
    """The kernel (n, 2, n / 2) of the heads is ambiguous, but its law is known without."""
    net = networks.finite(linen(two_heads), 64, (inputs(),), NOTHING)
    assert net.rates["Dense_1/kernel"] == 1 / 64


def test_refusal_stays_the_default():
    with pytest.raises(ValueError, match="sort"):
        ntk.infinite_width(linen(maxout), inputs())


def test_a_model_with_a_rule_is_not_sampled(x64):
    x = inputs()
    one, two = (ntk.infinite_width(linen(plain), x, **o) for o in ({}, {"otherwise": "sample"}))
    np.testing.assert_array_equal(one(x, None, "ntk"), two(x, None, "ntk"))


@pytest.mark.parametrize(
    ("forward", "options", "text"),
    [
        (squared_readout, {}, r"width\^(0\.9|1)"),
        (batch_norm, {}, "depends on the others of its batch"),
        (maxout, {"get": "cov1"}, "'cov1' is not sampled"),
    ],
)
def test_what_has_no_kernel_either_is_refused(forward, options, text):
    x = inputs()
    kernel_fn = ntk.infinite_width(linen(forward), x, otherwise="sample", networks=4)
    with pytest.raises(ValueError, match=text):
        kernel_fn(x, **options)


def test_options_are_checked():
    with pytest.raises(ValueError, match='"refuse" or "sample"'):
        ntk.infinite_width(linen(plain), inputs(), otherwise="guess")
    with pytest.raises(ValueError, match="networks is 1"):
        ntk.infinite_width(linen(plain), inputs(), networks=1)


def test_explain_says_that_it_was_sampled():
    text = str(ntk.explain(linen(maxout), inputs(), otherwise="sample", networks=8))
    for part in (
        "no rule",
        "sort",
        "32 of width 256, 16 of width 512, 8 of width 1024",
        "K + a/n",
    ):
        assert part in text


@pytest.mark.slow
def test_two_layers_without_a_rule_against_wider_networks():
    """The limit that is read off widths 256-1024 against the mean over networks of width 2048."""
    x, family = inputs(), linen(deep_maxout)
    found = ntk.infinite_width(family, x, otherwise="sample", networks=64).estimate(x)
    net = networks.finite(family, 2048, (x,), NOTHING)
    last = ("Dense_2/kernel", "Dense_2/bias")
    stacks = networks.stack(net, last)(jax.random.split(jax.random.key(9), 48), x, None)
    for name, values in zip(("nngp", "ntk"), stacks):
        mean, error = values.mean(0), values.std(0, ddof=1) / 48**0.5
        whole = np.sqrt(error**2 + np.asarray(found[name].standard_error) ** 2)
        assert np.abs((mean - found[name].mean) / whole).max() < 3
