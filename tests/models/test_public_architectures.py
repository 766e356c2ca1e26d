"""Public architectures as they are: which have a kernel by rule, and which are refused, in words that are true."""

import importlib.util
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
