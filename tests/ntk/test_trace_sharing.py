"""Modules that are equal are traced once, and only those."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import ntk

VECTORS = jax.ShapeDtypeStruct((2, 5), jnp.float64)
DEPTH = 6


def deep(block):
    """A family of `DEPTH` blocks `block(width, number)` between two layers, and the list of calls of them."""

    class Model(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            x = nn.Dense(self.width)(x)
            for k in range(DEPTH):
                x = block(self.width, k)(x)
            return nn.Dense(1)(x)

    return Model


def ntk_of(family):
    x = jax.random.normal(jax.random.key(0), (3, 5), jnp.float64)
    return ntk.infinite_width(family, VECTORS)(x, None, "ntk")


def scaled_blocks(factors):
    """The network with the branch of each block times a factor of its own, and no modules but layers."""

    class Model(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            x = nn.Dense(self.width)(x)
            for factor in factors:
                x = x + factor * nn.Dense(self.width)(nn.relu(x))
            return nn.Dense(1)(x)

    return Model


def test_equal_modules_are_traced_once(x64):
    calls = []

    class Block(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            calls.append(self.width)
            return x + nn.Dense(self.width)(nn.relu(x))

    kernel = ntk_of(deep(lambda n, k: Block(n)))
    # to initialise: the first; to apply: the first as it stands, then as a function of its parameters
    assert sorted(calls) == [64] * 3 + [256] * 3
    np.testing.assert_allclose(kernel, ntk_of(scaled_blocks([1.0] * DEPTH)), rtol=1e-12)


def by_field(module, k):
    return module.factor


def by_name(module, k):
    return 1.0 + int(module.name.rsplit("_")[-1])


@pytest.mark.parametrize("factor", [by_field, by_name])
def test_modules_that_differ_are_not_shared(x64, factor):
    class Block(nn.Module):
        width: int
        factor: float

        @nn.compact
        def __call__(self, x):
            scale = self.factor if factor is by_field else 1.0 + int(self.name.split("_")[-1])
            return x + scale * nn.Dense(self.width)(nn.relu(x))

    kernel = ntk_of(deep(lambda n, k: Block(n, 1.0 + k if factor is by_field else 0.0)))
    factors = [1.0 + k for k in range(DEPTH)]
    np.testing.assert_allclose(kernel, ntk_of(scaled_blocks(factors)), rtol=1e-12)


def test_a_module_used_twice_keeps_its_one_parameter(x64):
    class Block(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            return x + nn.Dense(self.width)(nn.relu(x))

    class Model(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            x, block, tied = nn.Dense(self.width)(x), Block(self.width), Block(self.width)
            return nn.Dense(1)(tied(tied(block(x))))

    def written_out(tied):
        class Plain(nn.Module):
            width: int

            @nn.compact
            def __call__(self, x):
                x, layers = nn.Dense(self.width)(x), [nn.Dense(self.width) for _ in range(3)]
                for k in (0, 1, 1 if tied else 2):
                    x = x + layers[k](nn.relu(x))
                return nn.Dense(1)(x)

        return Plain

    np.testing.assert_allclose(ntk_of(Model), ntk_of(written_out(True)), rtol=1e-7)
    assert np.abs(ntk_of(Model) / ntk_of(written_out(False)) - 1).max() > 0.01


def test_modules_that_hand_out_results_by_the_way(x64):
    """Lists that a module appends to, its own argument or one of the outside, stay whole."""

    class Block(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x, kept):
            x = x + nn.Dense(self.width)(nn.relu(x))
            kept.append(x)
            return x

    def family(outside):
        class Model(nn.Module):
            width: int

            @nn.compact
            def __call__(self, x):
                kept = [] if outside is None else outside
                kept.clear()

                class Own(nn.Module):
                    width: int

                    @nn.compact
                    def __call__(self, x):
                        return Block(self.width)(x, kept)

                x = nn.Dense(self.width)(x)
                for _ in range(DEPTH):
                    x = Block(self.width)(x, kept) if outside is None else Own(self.width)(x)
                assert len(kept) == DEPTH
                return nn.Dense(1)(kept[-1])

        return Model

    expected = ntk_of(scaled_blocks([1.0] * DEPTH))
    for outside in (None, []):
        np.testing.assert_allclose(ntk_of(family(outside)), expected, rtol=1e-12)


def test_a_refusal_names_the_matrices_that_are_used_twice():
    class Reversible(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            a, b = jnp.split(nn.Dense(2 * self.width)(x), 2, -1)
            f, g = nn.Dense(self.width, name="f"), nn.Dense(self.width, name="g")
            for _ in range(2):
                a = a + jnp.tanh(f(b))
                b = b + jnp.tanh(g(a))
            return nn.Dense(1)(a + b)

    with pytest.raises(ValueError, match=r"used more than once \(f/kernel and g/kernel\)"):
        ntk.infinite_width(Reversible, jnp.ones((2, 4)))
