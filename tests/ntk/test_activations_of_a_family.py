"""The nonlinearities of a family as functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import limits
import ntk

X = np.ones((1, 4), np.float32)


class Net(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(self.width)(x))
        x = nn.swish(nn.Dense(self.width)(nn.LayerNorm()(x)))
        return nn.Dense(1)(nn.tanh(nn.Dense(self.width)(x)))


def test_each_nonlinearity_once_and_in_order():
    """The first tanh is multiplied by the gain of the norm."""
    found = list(ntk.activations(Net, X).values())
    z = jnp.linspace(-4, 4, 41)
    assert len(found) == 2
    for own, known in zip(found, (jax.nn.swish, jnp.tanh)):
        np.testing.assert_allclose(own(z), known(z), rtol=1e-5, atol=1e-6)
        one, other = limits.criticality(own), limits.criticality(known)
        assert one.kind == other.kind
        np.testing.assert_allclose(one.C_W, other.C_W, rtol=1e-6)


def test_a_linear_network_has_none():
    class Linear(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(nn.Dense(self.width)(x))

    assert ntk.activations(Linear, X) == {}


def test_refusals():
    with pytest.raises(TypeError, match=r"activations.*bias_sdt.*bias_std"):
        ntk.activations(Net, X, bias_sdt=1.0)
    with pytest.raises(ValueError, match='otherwise must be "refuse"'):
        ntk.activations(Net, X, otherwise="sample")
    with pytest.raises(ValueError, match="no kernel limit"):
        ntk.activations(Net, X, parametrization="mup")
