import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk.finite import contracted_sums, contraction
from ntk.finite.empirical import empirical_ntk


def array(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape))


def spread(x):
    return jnp.broadcast_to(jnp.expand_dims(x, 1), (4, 3, 6))


def mask(q):
    return jnp.broadcast_to(q[:1] > 0, q.shape)


CASES = {  # a function of (4, 6) and (4, 3, 6), and the shapes of its factors
    "broadcast": (lambda p, q: spread(p), [(4, 1, 6)]),
    "product": (lambda p, q: spread(p) * q[:1], [(4, 1, 6), (1, 3, 6)]),
    "rectified": (
        lambda p, q: jax.lax.select(mask(q), spread(p), jnp.zeros((4, 3, 6))),
        [(4, 1, 6), (1, 3, 6)],
    ),
    "rectified the other way": (
        lambda p, q: jax.lax.select(mask(q), jnp.zeros((4, 3, 6)), spread(p)),
        [(4, 1, 6), (1, 3, 6)],
    ),
    "not zero elsewhere": (
        lambda p, q: jax.lax.select(mask(q), spread(p), jnp.ones((4, 3, 6))),
        None,
    ),
    "transposed": (lambda p, q: spread(p).transpose(2, 0, 1), [(6, 4, 1)]),
    "split": (lambda p, q: spread(p).reshape(4, 3, 1, 2, 3), [(4, 1, 1, 2, 3)]),
    "merged": (lambda p, q: jnp.expand_dims(spread(p), 0).reshape(12, 6), None),
    "matrix product": (lambda p, q: spread(p) @ q[0].T, [(4, 1, 3)]),
    "summed over what is the same": (
        lambda p, q: jnp.einsum("asf,bs->afb", spread(p), q[:, :, 0]),
        None,
    ),
    "varies everywhere": (lambda p, q: spread(p) * q, None),
}


@pytest.mark.parametrize("name", CASES)
def test_factors_multiply_to_the_value(name, x64):
    fun, shapes = CASES[name]
    p, q = array(4, 6), array(4, 3, 6)
    values, factors, _ = contracted_sums.contracted(fun)(p, q)
    expected = fun(p, q)
    np.testing.assert_allclose(values[0], expected, rtol=1e-12)
    if shapes is None:
        assert factors[0] is None
    else:
        assert [f.shape for f in factors[0]] == shapes
        product = jnp.ones_like(expected)
        for factor in factors[0]:
            product = product * factor
        np.testing.assert_allclose(product, expected, rtol=1e-12)


class Pooled(nn.Module):
    groups: int = 1

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (2, 2))(x))
        x = nn.relu(nn.Conv(4, (2, 2), feature_group_count=self.groups)(x))
        return nn.Dense(3)(x.mean((1, 2)))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("trace_axes", [(), (-1,), (0,)])
def test_pooled_networks_are_contracted_by_sums(groups, trace_axes, x64, monkeypatch):
    model, x = Pooled(groups), array(5, 4, 4, 2)
    params = jax.tree.map(lambda v: v.astype(x.dtype), jax.jit(model.init)(jax.random.key(0), x))
    used = []

    def costs(*args):
        used.append(args[-1] is not None)
        return (0.0, 1.0, 0.0 if args[-1] is None else -1.0)

    monkeypatch.setattr(contraction, "_costs", costs)
    monkeypatch.setattr(contraction, "_MIN_SYMMETRIC", 0)
    ours = empirical_ntk(lambda p, x: model.apply(p, x), params, x, trace_axes=trace_axes)
    expected = empirical_ntk(
        lambda p, x: model.apply(p, x), params, x, trace_axes=trace_axes, implementation=1
    )
    assert sum(used) >= 2
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-10 * float(jnp.abs(expected).max()))
