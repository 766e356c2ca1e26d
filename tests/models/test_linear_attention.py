"""Linear attention written out, as descent in the prompt, and as what its options say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limits import in_context
from models.linear_attention import LinearAttention

TOKENS = jax.random.normal(jax.random.key(0), (3, 6, 4))


def parameters(model, tokens=TOKENS):
    return jax.jit(model.init)(jax.random.key(1, impl="rbg"), tokens)["params"]


def kernels(layer):
    return {name: np.asarray(part["kernel"]) for name, part in layer.items()}


@pytest.mark.parametrize("softmax", [False, True])
def test_it_is_the_textbook_formula(softmax, x64):
    model = LinearAttention(width=6, depth=2, heads=2, softmax=softmax)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), parameters(model))
    tokens = TOKENS.astype(jnp.float64)
    found, features = model.apply({"params": params}, tokens, features=True)
    assert list(features) == ["layer_0", "layer_1"]
    for b in range(3):
        e = np.asarray(tokens[b])
        for name in features:
            w, added = kernels(params[name]), np.zeros_like(e)
            for h in (slice(0, 3), slice(3, 6)):
                scores = e @ w["query"][:, h] @ (e[:-1] @ w["key"][:, h]).T
                if softmax:
                    scores = np.exp(scores / 3**0.5)
                    scores /= scores.sum(1, keepdims=True)
                added += scores @ (e[:-1] @ w["value"][:, h]) @ w["out"][h]
            e = e + added
            np.testing.assert_allclose(features[name][b], e, rtol=1e-10)
        np.testing.assert_allclose(found[b], e, rtol=1e-10)


def descent(rate, gamma, d):
    """Matrices with which a layer is a step on the targets, and shrinks the inputs by gamma."""
    reads = np.diag([1.0] * d + [0.0])
    writes = np.diag([-gamma] * d + [-rate])
    eye = np.eye(d + 1)
    layer = {"query": reads, "key": reads, "value": writes, "out": eye}
    return {name: {"kernel": jnp.asarray(value)} for name, value in layer.items()}


@pytest.mark.parametrize("gamma", [0.0, 0.03])
@pytest.mark.parametrize("shared", [False, True])
def test_a_layer_can_be_a_step_of_descent(gamma, shared, x64):
    x, y = TOKENS[:, :-1, :3].astype(float), TOKENS[:, :-1, 3].astype(float)
    query = TOKENS[:, -1, :3].astype(float)
    tokens = TOKENS.astype(float).at[:, -1, 3].set(0)
    model = LinearAttention(width=4, depth=3, shared=shared)
    names = ["layer_0"] if shared else ["layer_0", "layer_1", "layer_2"]
    out = model.apply({"params": {name: descent(0.05, gamma, 3) for name in names}}, tokens)
    expected = in_context.descend(x, y, query, 0.05, 3, correction=gamma)
    np.testing.assert_allclose(-out[:, -1, -1], expected, atol=1e-14)


def test_the_query_is_not_read():
    model = LinearAttention(width=4, depth=2)
    variables = {"params": parameters(model)}
    other = TOKENS.at[:, -1].set(7.0)
    before, after = model.apply(variables, TOKENS), model.apply(variables, other)
    np.testing.assert_array_equal(before[:, :-1], after[:, :-1])
    assert not np.allclose(before[:, -1], after[:, -1])


def test_shared_layers_have_one_set_of_parameters():
    assert set(parameters(LinearAttention(4, 3, shared=True))) == {"layer_0"}
    assert set(parameters(LinearAttention(4, 3))) == {"layer_0", "layer_1", "layer_2"}
    assert set(parameters(LinearAttention(4, 1))["layer_0"]) == {"query", "key", "value", "out"}


def test_depth_zero_is_the_identity():
    np.testing.assert_array_equal(LinearAttention(4, 0, shared=True).apply({}, TOKENS), TOKENS)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="width=4 is not a multiple of heads=3"):
        LinearAttention(4, 1, heads=3)
    with pytest.raises(ValueError, match=r"tokens of shape \(6, 4\) must be"):
        parameters(LinearAttention(4, 1), TOKENS[0])
    with pytest.raises(ValueError, match="the last of T"):
        parameters(LinearAttention(4, 1), TOKENS[:, :1])
