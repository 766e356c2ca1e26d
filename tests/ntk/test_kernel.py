import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk import stax
from ntk.infinite import kernel as kernels

X1 = jax.random.normal(jax.random.key(0), (5, 3, 2, 4))
X2 = jax.random.normal(jax.random.key(1), (2, 3, 2, 4))
IDENTITY = stax.Identity().kernel_fn


def test_input_kernel_is_the_empirical_covariance_over_channels():
    kernel = IDENTITY(X1, X2)
    expected = jnp.einsum("ahwc,bijc->abhiwj", X1, X2) / 4
    np.testing.assert_allclose(kernel.nngp, expected, rtol=1e-5, atol=1e-6)
    within = jnp.einsum("ahwc,aijc->ahiwj", X1, X1) / 4
    np.testing.assert_allclose(kernel.cov1, within, rtol=1e-5, atol=1e-6)
    assert kernel.shape1 == X1.shape
    assert kernel.shape2 == X2.shape


def test_diagonal_spatial_keeps_equal_pixels():
    full = IDENTITY(X1, X2)
    diagonal = IDENTITY(X1, X2, diagonal_spatial=True)
    np.testing.assert_allclose(
        diagonal.nngp, kernels.pixel_diagonal(full.nngp, 2), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(diagonal.cov1, kernels.pixel_diagonal(full.cov1, 1), rtol=1e-5)


def test_coincident_samples_have_correlation_one_exactly():
    x = jax.random.normal(jax.random.key(2), (6, 300))
    kernel = IDENTITY(x, None)
    assert (jnp.diagonal(kernel.correlation) == 1).all()
    assert kernel.x1_is_x2
    assert kernel.cov2 is None
    assert (jnp.diagonal(IDENTITY(x, jnp.array(x)).correlation) == 1).all()


def test_replace_takes_a_covariance():
    kernel = IDENTITY(X1, X2)
    new = kernel.replace(nngp=2 * kernel.nngp, var1=2 * kernel.var1, var2=2 * kernel.var2)
    np.testing.assert_allclose(new.correlation, kernel.correlation, rtol=1e-5, atol=1e-6)


def test_vanishing_input_has_correlation_zero():
    kernel = IDENTITY(jnp.zeros((2, 3)), jnp.ones((1, 3)))
    np.testing.assert_array_equal(kernel.correlation, 0)


@pytest.mark.parametrize(
    ("x1", "x2", "get", "message"),
    [
        (jnp.ones((2, 3)), jnp.ones((2, 4)), "nngp", "samples of x1 have shape"),
        (jnp.ones((0, 3)), None, "nngp", "no empty axis"),
        (jnp.ones(3), None, "nngp", "batch and a channel axis"),
        (jnp.ones((2, 3), complex), None, "nngp", "complex"),
        (jnp.array([[1.0, jnp.nan]]), None, "nngp", "not finite"),
        (jnp.ones((2, 3)), None, "nnpg", "'nnpg' is not a kernel"),
        ([[1.0, 2.0]], None, "nngp", "x1\\[0\\] is a list|must be an array"),
    ],
)
def test_bad_input(x1, x2, get, message):
    with pytest.raises(ValueError, match=message):
        stax.Dense(1).kernel_fn(x1, x2, get)


def test_integers_and_half_precision_are_taken_as_floats():
    x = jnp.arange(6).reshape(2, 3)
    assert IDENTITY(x, None, "nngp").dtype == jnp.float32
    assert IDENTITY(x.astype(jnp.bfloat16), None, "nngp").dtype == jnp.float32
