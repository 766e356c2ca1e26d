"""Public architectures as they are: which have a kernel by rule, and which are refused, in words that are true."""

import importlib.util
import json
import pathlib
import sys

import jax
import pytest

import ntk


def _helper(name):
    """A module of this folder, which is not a package."""
    if name not in sys.modules:
        path = pathlib.Path(__file__).with_name(f"{name}.py")
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


table = _helper("architecture_table")
ARCHITECTURES, inputs = table.ARCHITECTURES, table.inputs


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
    "weight normalisation": "Dense_0/kernel cannot be read off its initializer",
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
CHECKED = 40
"""Architectures whose parametrization passes its coordinate check, and fails it with a wrong role, at least."""


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
    assert max(table.kernel(name)["z"].values()) < 3


def test_the_page_of_the_documentation_says_what_was_measured():
    found = json.loads(table.FOUND.read_text(encoding="utf-8"))
    assert table.PAGE.read_text(encoding="utf-8") == table.page(found)
    assert set(table.REASONS) == set(REFUSED)
    for name, record in found.items():
        known = record.get("kernel", {})
        assert (known.get("kernel") == "refused") == (name in REFUSED and bool(known))
        assert all(z < 3 for z in known.get("z", {}).values())
    checks = [record["coordinates"] for record in found.values() if "coordinates" in record]
    assert sum(check["passed"] and check["wrong"]["caught"] for check in checks) >= CHECKED
