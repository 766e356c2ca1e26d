import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from models.mlp import MLP, DeepLinear

X = jax.random.normal(jax.random.key(0), (5, 4, 3))


def parameters(model):
    # XLA's own generator: the default one takes seconds to compile for each new shape on a CPU.
    return jax.jit(model.init)(jax.random.key(1, impl="rbg"), X)["params"]


def test_mlp_is_the_textbook_formula(x64):
    model = MLP(width=7, depth=2, outputs=2, bias_init=nn.initializers.normal(0.3))
    params = parameters(model)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    outputs, features = model.apply({"params": params}, X, features=True)

    w = {name: (np.asarray(p["kernel"]), np.asarray(p["bias"])) for name, p in params.items()}
    h0 = np.asarray(X).reshape(5, 12) @ w["hidden_0"][0] + w["hidden_0"][1]
    h1 = np.maximum(h0, 0) @ w["hidden_1"][0] + w["hidden_1"][1]
    f = np.maximum(h1, 0) @ w["readout"][0] + w["readout"][1]

    assert outputs.dtype == jnp.float64
    for got, expected in [(features["hidden_0"], h0), (features["hidden_1"], h1), (outputs, f)]:
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
    assert list(features) == ["hidden_0", "hidden_1", "readout"]


def test_deep_linear_is_a_product_of_matrices():
    model = DeepLinear(width=6, depth=3, outputs=2)
    params = parameters(model)
    outputs, features = model.apply({"params": params}, X, features=True)
    names = ["hidden_0", "hidden_1", "hidden_2", "readout"]
    product = np.linalg.multi_dot([np.asarray(params[name]["kernel"]) for name in names])
    np.testing.assert_allclose(outputs, X.reshape(5, 12) @ product, rtol=1e-5, atol=1e-5)
    assert list(features) == names
    assert all(list(params[name]) == ["kernel"] for name in names)


def test_zero_depth_is_a_linear_model():
    model = MLP(width=7, depth=0, outputs=2)
    params = parameters(model)
    assert {name: p["kernel"].shape for name, p in params.items()} == {"readout": (12, 2)}


def test_units_may_be_permuted():
    model = MLP(width=7, depth=2, outputs=2, activation=jnp.tanh)
    params = parameters(model)
    order = jnp.array([3, 0, 6, 1, 2, 5, 4])
    permuted = dict(params)
    permuted["hidden_0"] = jax.tree.map(lambda leaf: leaf[..., order], params["hidden_0"])
    half = {"params": permuted}
    assert not np.allclose(model.apply(half, X), model.apply({"params": params}, X), atol=1e-3)
    permuted["hidden_1"] = {**params["hidden_1"], "kernel": params["hidden_1"]["kernel"][order]}
    np.testing.assert_allclose(
        model.apply({"params": permuted}, X), model.apply({"params": params}, X), atol=1e-6
    )


def test_use_bias_and_initializers_reach_every_layer():
    model = MLP(3, 1, 2, use_bias=False, kernel_init=nn.initializers.constant(2.0))
    params = parameters(model)
    assert all(list(p) == ["kernel"] and (p["kernel"] == 2).all() for p in params.values())
    biased = MLP(3, 1, 2, bias_init=nn.initializers.constant(5.0))
    params = parameters(biased)
    assert all((p["bias"] == 5).all() for p in params.values())


@pytest.mark.parametrize("model", [MLP(3, 1, 2), DeepLinear(3, 1, 2)])
def test_an_example_without_batch_axis_is_refused(model):
    with pytest.raises(ValueError, match=r"shape \(4,\) have no batch axis.*x\[None\]"):
        model.init(jax.random.key(1), jnp.ones(4))
