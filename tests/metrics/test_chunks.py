"""Chunks of a batch against the whole, and convolutions as matrix products against XLA's own."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metrics import chunks, operators, programs


class Network(nn.Module):
    """Two convolutions, one of them behind `jax.checkpoint`."""

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Conv(3, (3, 3), strides=2)(x))
        return nn.relu(nn.remat(nn.Conv)(3, (2, 2), padding="VALID")(x)).mean((1, 2))


def loss(params, batch):
    x, y = batch
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(Network().apply(params, x)) * y, -1))


def problem(samples=7):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (samples, 6, 6, 2))
    y = jax.nn.one_hot(jax.random.randint(keys[1], samples, 0, 3), 3, dtype=x.dtype)
    params = jax.tree.map(lambda p: p.astype(x.dtype), Network().init(keys[2], x))
    return (
        params,
        (x, y),
        jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size)).reshape(p.shape), params),
    )


def close(one, other):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), one, other)


@pytest.mark.usefixtures("x64")
def test_chunks_of_any_size_and_matrix_convolutions_equal_the_whole():
    params, batch, vector = problem()
    whole = jax.jit(operators.hessian(loss))(params, batch, vector)
    product = operators.hessian(chunks.matrix_convolutions(loss))
    for size in (7, 8):  # the batch itself, more than there is
        close(jax.jit(chunks.chunked(product, size))(params, batch, vector), whole)
    scaled = operators.scaled(chunks.chunked(product, 3))  # with a rest
    half = jax.tree.map(lambda x: x / 2, whole)
    close(jax.jit(scaled)(params, (batch, 0.5), vector), half)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("shape", "window", "layout", "options"),
    [
        ((2, 5, 6, 3), (3, 2, 3, 4), ("NHWC", "HWIO", "NHWC"), {"padding": "SAME"}),
        ((2, 5, 6, 3), (1, 1, 3, 4), ("NHWC", "HWIO", "NHWC"), {"padding": "VALID"}),
        (
            (2, 3, 7, 6),
            (4, 3, 3, 2),
            ("NCHW", "OIHW", "NCHW"),
            {"padding": ((2, 1), (-1, 3)), "window_strides": (2, 3), "rhs_dilation": (2, 1)},
        ),
        ((9, 5, 2), (3, 2, 4), ("WNC", "WCO", "CWN"), {"padding": "SAME", "window_strides": (2,)}),
        ((1, 4, 3, 5, 2), (2, 3, 2, 2, 3), ("NDHWC", "DHWIO", "NDHWC"), {"padding": "SAME"}),
    ],
)
def test_every_layout_stride_padding_and_dilation(shape, window, layout, options):
    if layout[0] == "WNC":  # letters of one's own
        layout = jax.lax.ConvDimensionNumbers((1, 2, 0), (2, 1, 0), (2, 0, 1))
    x, kernel = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate((shape, window)))
    options = {"window_strides": (1,) * (x.ndim - 2)} | options

    def convolve(kernel, x):
        return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=layout, **options)

    close(chunks.matrix_convolutions(convolve)(kernel, x), convolve(kernel, x))


def test_no_convolution_is_left_to_step_but_grouped_ones():
    params, batch, _ = problem()
    product = operators.hessian(loss)
    assert programs.steps_better(product, params, batch)
    matrices = chunks.chunked(operators.hessian(chunks.matrix_convolutions(loss)), 4)
    assert not programs.steps_better(matrices, params, batch)

    def grouped(kernel, x):
        return jnp.mean(
            jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", feature_group_count=2) ** 2
        )

    kernel, x = jnp.ones((4, 1, 3)), jnp.ones((2, 2, 5))
    kept = chunks.matrix_convolutions(grouped)
    assert programs.steps_better(operators.hessian(kept), kernel, x)
    np.testing.assert_allclose(kept(kernel, x), grouped(kernel, x), rtol=1e-6)


def test_patches_alone_become_products_where_no_windows_may_overlap():
    x, kernel = jnp.arange(64.0).reshape(1, 8, 8, 1), jnp.arange(9.0).reshape(3, 3, 1, 1)

    def left(stride, dilation=1):
        def convolve(kernel, x):
            layout = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(
                x,
                kernel,
                (stride, stride),
                "VALID",
                rhs_dilation=(dilation, dilation),
                dimension_numbers=layout,
            )

        kept = chunks.matrix_convolutions(convolve, overlapping=False)
        np.testing.assert_allclose(kept(kernel, x), convolve(kernel, x), rtol=1e-6)
        return "conv_general_dilated" in str(jax.make_jaxpr(kept)(kernel, x))

    assert [left(2), left(3), left(4)] == [True, False, False]
    assert [left(4, dilation=2), left(5, dilation=2)] == [True, False]


def test_memory_is_that_of_one_chunk():
    params, batch, vector = problem(samples=256)

    def temporary(function, *arguments):
        return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    gradient = temporary(jax.grad(loss), params, batch)
    product = operators.hessian(chunks.matrix_convolutions(loss))
    assert temporary(chunks.chunked(product, 8), params, batch, vector) < gradient
    assert temporary(product, params, batch, vector) > gradient  # the control: patches of all


def test_equal_arguments_give_the_same_product():
    product = operators.hessian(chunks.matrix_convolutions(loss))
    assert product is operators.hessian(chunks.matrix_convolutions(loss))
    assert chunks.chunked(product, 4) is chunks.chunked(product, 4)


def test_refused():
    product = operators.hessian(loss)
    with pytest.raises(ValueError, match="size is 0; a chunk needs at least 1 example"):
        chunks.chunked(product, 0)
    params, (x, y), vector = problem()
    with pytest.raises(ValueError, match=r"leading axes \[\(6,\), \(7,\)\]; all need the same"):
        chunks.chunked(product, 2)(params, (x, y[:6]), vector)
