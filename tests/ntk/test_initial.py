"""Laws of parameters read off initializers, and what is told apart or refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk
from ntk.trace import initial

random = jax.random


def elementwise(draw):
    return lambda key, shape, dtype=jnp.float32: draw(key, shape).astype(dtype)


def twice(key, shape):
    return (random.normal(key, shape) + random.normal(random.fold_in(key, 1), shape)) / 2**0.5


def symmetric(key, shape):
    draw = random.normal(key, shape)
    return (draw + draw.T) / 2**0.5


def one_row(key, shape):
    return jnp.broadcast_to(random.normal(key, (1, shape[1])), shape)


def masked(key, shape):
    return random.normal(key, shape) * random.bernoulli(random.fold_in(key, 1), 0.5, shape)


KINDS = {
    "normal": (nn.initializers.normal(0.3), 0.09, "normal"),
    "truncated": (nn.initializers.lecun_normal(), 1 / 64, "truncated normal"),
    "uniform": (nn.initializers.lecun_uniform(), 1 / 64, "uniform"),
    "transposed": (elementwise(lambda key, shape: random.normal(key, shape).T), 1, "normal"),
    "signs": (elementwise(random.rademacher), 1, "other"),
    "Laplace": (elementwise(random.laplace), 2, "other"),
    "orthogonal": (nn.initializers.orthogonal(2.0), 4 / 64, "orthogonal"),
    "zeros": (nn.initializers.zeros, 0, "constant"),
    "identity": (elementwise(lambda key, shape: jnp.eye(*shape)), None, "fixed"),
    "sines": (
        elementwise(lambda key, shape: jnp.sin(jnp.arange(64.0)[:, None] + jnp.arange(64.0)[None])),
        None,
        "fixed",
    ),
    "triangle": (
        elementwise(lambda key, shape: jnp.tril(random.normal(key, shape))),
        None,
        "unknown",
    ),
    "permutation": (
        elementwise(lambda key, shape: random.permutation(key, jnp.eye(*shape))),
        None,
        "unknown",
    ),
    "sum of two draws": (elementwise(twice), None, "unknown"),
    "symmetric": (elementwise(symmetric), None, "unknown"),
    "rows alike": (elementwise(one_row), None, "unknown"),
    "masked at random": (elementwise(masked), None, "unknown"),
    "Cauchy": (elementwise(random.cauchy), None, "unknown"),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_an_initializer_draws(name):
    init, variance, kind = KINDS[name]
    law = initial.laws(lambda key: {"w": init(key, (64, 64))})[0]["w"]
    assert law.kind == kind
    assert (initial.refusal("w", law) is None) == (kind not in ("fixed", "unknown"))
    if variance is not None:
        assert law.variance == pytest.approx(variance, rel=1e-3)


def test_a_delta_orthogonal_kernel_is_no_orthogonal_matrix():
    init = nn.initializers.delta_orthogonal()
    law = initial.laws(lambda key: {"w": init(key, (3, 3, 64, 64))})[0]["w"]
    assert law.kind == "unknown"


def model(kernel_init=None, table=None):
    class Net(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            h = nn.relu(nn.Dense(self.width)(x))
            if table is not None:
                h = h + self.param("table", table, (self.width,))[None]
            options = {} if kernel_init is None else {"kernel_init": kernel_init}
            return nn.Dense(1)(nn.relu(nn.Dense(self.width, **options)(h)))

    return Net


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (model(KINDS["identity"][0]), "Dense_2/kernel is the same array for every key"),
        (
            model(table=elementwise(lambda k, s: jnp.sin(jnp.arange(s[0])))),
            "table is the same array",
        ),
        (model(KINDS["triangle"][0]), "the initial law of Dense_2/kernel cannot be read off"),
    ],
)
def test_structured_initializers_are_refused(family, message):
    with pytest.raises(ValueError, match=message):
        ntk.infinite_width(family, jnp.ones((1, 5)))


def test_orthogonal_matrices_over_units_count_by_their_variance():
    """As normal ones of the same variance, in the limit of width."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5)))
    normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
    one, two = (
        ntk.infinite_width(model(init), x[:1])(x, None, "ntk")
        for init in (nn.initializers.orthogonal(), normal)
    )
    np.testing.assert_allclose(one, two, rtol=1e-6)
