"""Kernels of low rank: singular values against the draw's own, directions, any layer, any parametrization."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import limits
import models
from models.initializers import low_rank

KEY, BASE = jax.random.key(0), nn.initializers.normal(0.3)


@pytest.mark.parametrize("flat", [False, True])
def test_it_keeps_the_norm_and_the_leading_singular_vectors(flat, x64):
    full = BASE(KEY, (7, 5), jnp.float64)
    cut = low_rank(3, BASE, flat=flat)(KEY, (7, 5), jnp.float64)
    u, s, vt = np.linalg.svd(full)
    _, values, found = np.linalg.svd(cut)
    assert np.linalg.norm(cut) == pytest.approx(np.linalg.norm(full))
    np.testing.assert_allclose(values[3:], 0, atol=1e-12)
    expected = np.ones(3) if flat else s[:3]
    np.testing.assert_allclose(values[:3] / values[0], expected / expected[0])
    np.testing.assert_allclose(found[:3].T @ found[:3], vt[:3].T @ vt[:3], atol=1e-12)
    np.testing.assert_allclose(u[:, 3:].T @ np.asarray(cut), 0, atol=1e-12)


def test_a_rank_beyond_the_kernel_is_the_draw_itself():
    for shape in ((4, 6), (6, 4)):
        np.testing.assert_allclose(low_rank(9, BASE)(KEY, shape), BASE(KEY, shape), atol=1e-6)


@pytest.mark.parametrize("flat", [False, True])
def test_given_directions_are_read_and_lead(flat, x64):
    directions = jax.random.normal(jax.random.key(1), (7, 2), jnp.float64)
    cut = low_rank(3, BASE, flat=flat, directions=directions)(KEY, (7, 5), jnp.float64)
    u, values, _ = np.linalg.svd(cut)
    q = np.linalg.qr(directions)[0]
    inside = np.linalg.norm(u[:, :3].T @ q, axis=0)
    np.testing.assert_allclose(inside, 1)
    if flat:
        np.testing.assert_allclose(values[:3], values[0])
    else:  # the first two singular values belong to them
        np.testing.assert_allclose(np.linalg.norm(u[:, :2].T @ q, axis=0), 1)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_the_rounded_kernel(dtype):
    directions = jnp.ones((8, 1), dtype)
    for options in ({}, {"flat": True}, {"directions": directions}):
        cut = low_rank(2, **options)(KEY, (8, 8), dtype)
        assert cut.dtype == dtype
        values = np.linalg.svd(np.asarray(cut, np.float64))[1]
        assert values[2] < 0.02 * values[0]


@pytest.mark.parametrize("flat", [False, True])
def test_a_kernel_of_zeros_stays_zero(flat):
    cut = low_rank(1, nn.initializers.zeros, flat=flat)(KEY, (3, 3))
    np.testing.assert_array_equal(cut, 0)


def test_convolutions_are_matrices_of_their_windows():
    cut = low_rank(2, BASE)(KEY, (3, 3, 4, 8))
    assert cut.shape == (3, 3, 4, 8)
    assert np.linalg.matrix_rank(np.asarray(cut).reshape(36, 8), tol=1e-4) == 2


@pytest.mark.parametrize("rule", ["mup", "ntk"])
def test_models_and_parametrizations_take_it(rule):
    """The mean square does not depend on the rank, so the law of fan-in is read as it is without."""
    example = jnp.ones((2, 3))
    nets = {}
    for name, init in (("cut", low_rank(2)), ("full", nn.initializers.lecun_normal())):
        family = models.family("MLP", depth=2, outputs=2, kernel_init=init)
        nets[name] = limits.parametrize(family, rule, width=64, base_width=16, example=example)
    np.testing.assert_equal(nets["cut"].init_scale, nets["full"].init_scale)
    params = jax.jit(nets["cut"].init)(KEY)
    assert np.linalg.matrix_rank(np.asarray(params["hidden_1"]["kernel"]), tol=1e-4) == 2


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="rank=0 must be at least 1"):
        low_rank(0)
    with pytest.raises(TypeError, match=r"rank=1.5 must be an integer"):
        low_rank(1.5)
    with pytest.raises(TypeError, match="base='normal' must be an initializer"):
        low_rank(1, "normal")
    with pytest.raises(ValueError, match=r"directions of shape \(4, 2\) must be"):
        low_rank(1, directions=jnp.ones((4, 2)))
    with pytest.raises(ValueError, match=r"do not fit a kernel of shape \(3, 2\)"):
        low_rank(1, directions=jnp.ones((4, 1)))(KEY, (3, 2))
    for column in ([2.0, 2.0, 0.0], [0.0, 0.0, 0.0]):
        dependent = jnp.array([[1.0, 1.0, 0.0], column]).T
        with pytest.raises(ValueError, match="2 directions span only 1; they must be independent"):
            low_rank(2, directions=dependent)
    with pytest.raises(ValueError, match="directions have entries that are not finite"):
        low_rank(1, directions=jnp.full((4, 1), jnp.nan))
    assert low_rank(2, directions=jnp.diag(jnp.array([1e-20, 1e20])))  # of any lengths
    with pytest.raises(ValueError, match="has no rank"):
        low_rank(1)(KEY, (3,))
