"""Public architectures as they are: which have a kernel by rule, and which are refused, in words that are true."""

import importlib.util
import pathlib
import sys
from statistics import NormalDist

import jax
import jax.numpy as jnp
import pytest

import ntk
from ntk.trace.sampled import sampled


def _helper(name):
    """A module of this folder, which is not a package."""
    if name not in sys.modules:
        path = pathlib.Path(__file__).with_name(f"{name}.py")
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


architectures = _helper("architectures")
ARCHITECTURES, inputs = architectures.ARCHITECTURES, architectures.inputs


def program(name, width, x):
    """Parameters and outputs of an architecture at one width, as shapes."""
    family = ARCHITECTURES[name].family
    net, key = ntk.network(family, width, x), jax.random.key(0)
    params = jax.eval_shape(net.init, key)
    kept = {}
    if "BatchNorm" in str(params):
        kept = {"state": jax.eval_shape(lambda k: ntk.initial_state(family, width, x, k), key)}
    batch = x if isinstance(x, tuple) else (x,)
    return params, jax.eval_shape(net.apply, params, *batch, **kept)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_a_model(name):
    params, out = program(name, 16, inputs(name))
    assert params
    assert out.shape[0] == 3
    assert out.dtype == "float32"


# What has no rule, with a piece of the words that say so. All others have their kernels by rule.
STAYS, APART = "stay random at infinite width", "a fixed number of units is of one law"
REFUSED = {
    "Fourier features": "draws constants from a fixed key",
    "mixture of experts": "reduce_max over 4 numbers that one network draws",
    "hypernetwork": "Dense_1/kernel sums over 4 entries",
    "GAT": STAYS,
    "Wide ResNet": "BatchNorm_0/scale acts on 4 units",
    "BiT": "StdConv_0/kernel are summed",
    "MobileNet": "Conv_1/kernel is a depthwise convolution",
    "MLP-Mixer": "Dense_1/kernel sums over 4 positions",
    "FNO": "a Fourier transform",
    "LLaMA": "the halves that rotary positions turn",
    "linear attention": "correlated or have a mean",
    "tied GPT": "Embed_0/embedding is used twice in different ways",
    "LSTM": "OptimizedLSTMCell_0/hi/kernel, .* are put side by side",
    "GRU": "the gates of a recurrent network",
    "S4D": "complex",
    "Mamba": STAYS,
    "REDQ": STAYS,
    "SAC actor": "outputs side by side",
    "PINN residual": "operation on activations is not known|size width",
    "PixelCNN": r"\(a mask\)",
    "top-2 experts": "not known here",
    "N-BEATS": APART,
    "RealNVP": APART,
    "ConvMixer": "Conv_1/kernel is a depthwise convolution",
    "ALiBi": APART,
    "T5": "added to what is trained",
    "gMLP": "Dense_2/kernel sums over 4 positions",
    "decaying averages": "summed over positions",
    "Hyena": "summed over positions",
    "FNet": "converted to complex64",
    "DDPM": "concatenated are split again",
}
ALTERED = ("Fourier features", "Wide ResNet")
"""For which a change of the model is named instead of means over finite networks."""
LEAST = 70
"""Architectures with kernels by rule, at least."""


def test_most_architectures_have_kernels():
    assert len(ARCHITECTURES) - len(REFUSED) >= LEAST
    assert set(REFUSED) <= set(ARCHITECTURES)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_kernel_by_rule_or_refusal_in_words(name):
    family, x = ARCHITECTURES[name].family, inputs(name)
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]) as refusal:
            ntk.infinite_width(family, x)
        assert 'otherwise="sample"' in str(refusal.value) or name in ALTERED
    else:
        assert ntk.infinite_width(family, x).pair is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in REFUSED])
def test_rules_agree_with_finite_networks(name):
    """Within three standard errors of means over networks of three widths."""
    family, x = ARCHITECTURES[name].family, inputs(name)
    exact = ntk.infinite_width(family, x)(x, None, ("nngp", "ntk"))
    first = tuple(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in jax.tree.leaves(x))
    found = sampled(family, first, (None,) * 4, True, 32, "").estimate(x)
    for kind in ("nngp", "ntk"):
        rule = getattr(exact, kind)
        if rule.ndim > found[kind].mean.ndim:  # outputs that are correlated, told apart
            rule = jnp.trace(rule, axis1=-2, axis2=-1) / rule.shape[-1]
        error = jnp.maximum(found[kind].standard_error, 1e-12)  # zero for a readout of zeros
        # The largest of many entries is let be as unlikely as three standard errors are of one.
        bound = NormalDist().inv_cdf(1 - NormalDist().cdf(-3) / rule.size)
        assert abs((found[kind].mean - rule) / error).max() < bound
