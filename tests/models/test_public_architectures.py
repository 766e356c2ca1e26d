"""Public architectures as they are: which have a kernel by rule, and which are refused, in words that are true."""

import importlib.util
import pathlib
import sys

import jax
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
SEVERAL, TWICE, POOLED = (
    "a nonlinearity of several activations at once",
    "is used twice",
    "reduce_max",
)
REFUSED = {
    "Fourier features": "random numbers are drawn",
    "FiLM": SEVERAL,
    "KAN": SEVERAL,
    "maxout": POOLED,
    "mixture of experts": POOLED,
    "hypernetwork": "a product of the parameters",
    "dueling DQN": "number does not grow",
    "twin critics": "several groups of units",
    "DeepONet": "does not depend on random weights",
    "PointNet": POOLED,
    "GCN": "scatter-add",
    "GraphNet": "scatter-add",
    "GIN": "meet in one unit",
    "GAT": POOLED,
    "VGG": "max pooling",
    "ResNet": SEVERAL,
    "Wide ResNet": "shared by all units",
    "BiT": "are summed",
    "Inception": "after a concatenation",
    "DenseNet": "after a concatenation",
    "U-Net": "flattened axis",
    "DCGAN generator": "transposed convolution",
    "ConvNeXt": "depthwise convolution",
    "MobileNet": "depthwise convolution",
    "dilated convolutions": "dilated convolution",
    "style network": SEVERAL,
    "MLP-Mixer": "several groups of units",
    "ViT": "tile",
    "SimpleViT": "count units|unstack",  # a primitive of newer JAX
    "DiT": "zero at initialisation",
    "FNO": "fft",
    "BERT": "looked up by a constant",
    "transformer": "count units",
    "LLaMA": "count units",
    "growing heads": "fixed number of units",
    "Perceiver": "a product of the parameters",
    "linear attention": "correlated or have a mean",
    "tied GPT": TWICE,
    "TextCNN": POOLED,
    "RNN": TWICE,
    "SimpleCell": TWICE,
    "LSTM": TWICE,
    "GRU": TWICE,
    "universal transformer": TWICE,
    "S4D": "complex",
    "Mamba": "number does not grow",
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_kernel_by_rule_or_refusal_in_words(name):
    family, x = ARCHITECTURES[name].family, inputs(name)
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            ntk.infinite_width(family, x)
    else:
        assert ntk.infinite_width(family, x).pair is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MLP", "actor-critic", "CNN", "GPT"])
def test_rules_agree_with_finite_networks(name):
    """Within three standard errors of means over networks of three widths."""
    family, x = ARCHITECTURES[name].family, inputs(name)
    exact = ntk.infinite_width(family, x)(x, None, ("nngp", "ntk"))
    first = tuple(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in jax.tree.leaves(x))
    found = sampled(family, first, (None,) * 4, True, 32, "").estimate(x)
    for kind in ("nngp", "ntk"):
        z = (found[kind].mean - getattr(exact, kind)) / found[kind].standard_error
        assert abs(z).max() < 3
