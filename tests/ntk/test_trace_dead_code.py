"""What the output of a model does not depend on is not read: its kernel is that of the model without it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk


def family(forward):
    class Net(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            return forward(self, x, self.width)

    return Net


def kernels(forward, shape=(4, 4, 2)):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, *shape)))
    return ntk.infinite_width(family(forward), x)(x, None, ("nngp", "ntk"))


def body(module, x, n):
    return nn.relu(nn.Conv(n, (3, 3), name="first")(x))


def readout(h):
    return nn.Dense(1, name="readout")(h.mean((1, 2)))


def alone(module, x, n):
    return readout(body(module, x, n))


def unused_softmax(module, x, n):
    h = body(module, x, n)
    nn.log_softmax(nn.Dense(4)(h))
    return readout(h)


def unused_pool(module, x, n):
    h = body(module, x, n)
    nn.max_pool(h, (2, 2))
    return readout(h)


def unused_in_a_call(module, x, n):
    @jax.jit
    def both(h):
        return jnp.sort(h), h

    return readout(both(body(module, x, n))[1])


def unused_in_a_checkpoint(module, x, n):
    @jax.checkpoint
    def both(h):
        return jax.lax.top_k(h, 2)[0].max(), h

    return readout(both(body(module, x, n))[1])


@jax.custom_jvp
def twice(h):
    return jnp.sort(h), h


@twice.defjvp
def _(primals, tangents):
    return twice(*primals), twice(*tangents)


def unused_in_a_custom_rule(module, x, n):
    return readout(twice(body(module, x, n))[1])


def unused_in_a_loop(module, x, n):
    h = body(module, x, n)

    def once(carry, _):
        first, second = carry
        return (first, jnp.sort(second)), second.max()

    (h, _), _ = jax.lax.scan(once, (h, h), None, length=3)
    return readout(h)


UNUSED = [
    unused_softmax,
    unused_pool,
    unused_in_a_call,
    unused_in_a_checkpoint,
    unused_in_a_custom_rule,
    unused_in_a_loop,
]


@pytest.mark.parametrize("forward", UNUSED)
def test_the_kernel_is_that_of_the_model_without_it(x64, forward):
    for found, expected in zip(kernels(forward), kernels(alone)):
        np.testing.assert_array_equal(found, expected)


def test_what_an_output_depends_on_through_later_rounds_of_a_loop_is_read(x64):
    """The second of two carried values reaches the first one a round later."""

    def forward(module, x, n):
        h = body(module, x, n)
        (h, _), _ = jax.lax.scan(lambda c, _: ((c[1], jnp.sort(c[1])), None), (h, h), None, 2)
        return readout(h)

    with pytest.raises(ValueError, match="sort"):
        kernels(forward)


def test_results_of_every_round_are_positions(x64):
    """A loop over positions, whose results are put together, against what it does to each of them."""

    def scanned(module, x, n):
        h = nn.Dense(n, name="first", kernel_init=nn.initializers.normal(0.7))(x)
        _, rows = jax.lax.scan(lambda c, row: (c, 2.0 * row), 0.0, jnp.swapaxes(h, 0, 1))
        rows = nn.relu(jnp.swapaxes(rows, 0, 1))
        return nn.Dense(1, name="readout")(rows[:, 1:].mean(1))

    def looped(module, x, n):
        h = nn.relu(2.0 * nn.Dense(n, name="first", kernel_init=nn.initializers.normal(0.7))(x))
        return nn.Dense(1, name="readout")(h[:, 1:].mean(1))

    for found, expected in zip(kernels(scanned, (4, 3)), kernels(looped, (4, 3))):
        np.testing.assert_allclose(found, expected, rtol=1e-12)
