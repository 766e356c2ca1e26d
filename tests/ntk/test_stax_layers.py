"""Every layer against neural-tangents in one process, and the finite networks' shapes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk import reference, stax

VECTORS = (5, 6), (3, 6)
IMAGES = (3, 4, 4, 2), (2, 4, 4, 2)
HIDDEN = -99.0


def block(s, width=4, **kwargs):
    return s.Conv(width, (3, 3), padding="SAME", W_std=1.3, b_std=0.1, **kwargs), s.Relu()


def attention(s, mechanism="SOFTMAX", embedding="NONE", linear=True, values=False):
    layer = s.GlobalSelfAttention(
        *(4, 4, 4, 2, linear),
        W_key_std=1.2,
        W_value_std=1.3,
        W_query_std=0.9,
        W_out_std=0.7,
        b_std=0.1,
        attention_mechanism=mechanism,
        pos_emb_type=embedding,
        n_chan_pos_emb=3 if embedding == "CONCAT" else None,
        W_pos_emb_std=1.4,
        val_pos_emb=values,
    )
    return s.serial(*block(s), layer, s.Relu(), s.GlobalAvgPool())


def standard(s):
    kind = {"parameterization": "standard"}
    return s.serial(
        s.Dense(9, 1.3, 0.2, **kind),
        s.Relu(),
        s.Dense(9, 1.3, 0.2, **kind, s=(2, 3)),
        s.Relu(),
        s.Dense(1, **kind),
    )


def residual(s):
    branch = s.serial(s.Relu(), s.Dense(8, 1.2, 0.1))
    return s.serial(
        s.Dense(8),
        s.FanOut(2),
        s.parallel(branch, s.Identity()),
        s.FanInSum(),
        s.Relu(),
        s.Dense(1),
    )


def wide_residual(s):
    branch = s.serial(
        s.Relu(), s.Conv(4, (3, 3), (2, 2), "SAME"), s.Relu(), s.Conv(4, (3, 3), padding="SAME")
    )
    return s.serial(
        s.Conv(4, (3, 3), padding="SAME"),
        s.FanOut(2),
        s.parallel(branch, s.Conv(4, (3, 3), (2, 2), "SAME")),
        s.FanInSum(),
        s.Relu(),
        s.AvgPool((2, 2)),
        s.Flatten(),
        s.Dense(1),
    )


def branches(s, meet, width=8):
    one = s.serial(s.Dense(8), s.Relu())
    return s.serial(s.FanOut(2), s.parallel(one, s.Dense(width, 1.0, 0.1)), meet, s.Dense(1))


NETS = {
    "dense": (VECTORS, lambda s: s.serial(*[s.Dense(9, 1.4, 0.2), s.Relu()] * 4, s.Dense(1, 1.1))),
    "no bias": (VECTORS, lambda s: s.serial(*[s.Dense(9, 1.4), s.Relu()] * 5, s.Dense(1, 1.1))),
    "standard": (VECTORS, standard),
    "repeat": (
        VECTORS,
        lambda s: s.serial(s.Dense(6), s.repeat(s.serial(s.Relu(), s.Dense(6, 1.4, 0.1)), 4)),
    ),
    "residual": (VECTORS, residual),
    "concat": (VECTORS, lambda s: branches(s, s.FanInConcat(), 6)),
    "product": (VECTORS, lambda s: branches(s, s.FanInProd())),
    "layer norm": (VECTORS, lambda s: s.serial(s.Dense(8), s.LayerNorm(), s.Relu(), s.Dense(1))),
    "dropout": (
        VECTORS,
        lambda s: s.serial(s.Dense(8), s.Relu(), s.Dropout(0.7), s.Dense(8), s.Relu(), s.Dense(1)),
    ),
    "flatten": (
        IMAGES,
        lambda s: s.serial(*block(s), *block(s, strides=(2, 1)), s.Flatten(), s.Dense(1)),
    ),
    "global pool": (
        IMAGES,
        lambda s: s.serial(*block(s), *block(s, strides=(1, 2)), s.GlobalAvgPool(), s.Dense(1)),
    ),
    "pool": (
        IMAGES,
        lambda s: s.serial(
            *block(s), s.AvgPool((2, 3), (1, 2), "SAME", True), *block(s), s.Flatten(), s.Dense(1)
        ),
    ),
    "circular": (
        IMAGES,
        lambda s: s.serial(
            s.Conv(4, (3, 2), padding="CIRCULAR"),
            s.Relu(),
            s.SumPool((2, 2), (2, 1), "CIRCULAR"),
            s.GlobalSumPool(),
        ),
    ),
    "transpose": (
        IMAGES,
        lambda s: s.serial(
            *block(s),
            s.ConvTranspose(8, (2, 3), (2, 1), "VALID", 1.2, 0.3),
            s.Relu(),
            s.GlobalAvgPool(),
        ),
    ),
    "local": (
        IMAGES,
        lambda s: s.serial(
            s.ConvLocal(8, (3, 3), (1, 1), "SAME", 1.2, 0.3),
            s.Relu(),
            s.ConvLocal(8, (2, 2)),
            s.GlobalAvgPool(),
        ),
    ),
    "wide residual": (IMAGES, wide_residual),
    "pixel layer norm": (
        IMAGES,
        lambda s: s.serial(s.Conv(4, (3, 3)), s.LayerNorm((1, 3)), s.Relu(), s.GlobalAvgPool()),
    ),
    "resize": (
        IMAGES,
        # After an odd number of convolutions neural-tangents resizes height as width.
        lambda s: s.serial(
            *block(s),
            *block(s),
            s.ImageResize((-1, 3, 6, -1), "linear"),
            *block(s),
            s.GlobalAvgPool(),
        ),
    ),
    "index": (
        IMAGES,
        lambda s: s.serial(
            *block(s), s.Index(s.Slice[:, 0, 1:]), s.Conv(3, (2,)), s.GlobalAvgPool()
        ),
    ),
    "product with a constant": (
        IMAGES,
        lambda s: s.serial(
            *block(s),
            s.DotGeneral(
                lhs=jnp.arange(8.0).reshape(2, 4), dimension_numbers=(((1,), (1,)), ((), ()))
            ),
        ),
    ),
    "layouts": (
        IMAGES,
        lambda s: s.serial(
            s.Conv(4, (3, 2), (1, 2), "SAME", dimension_numbers=("NCHW", "WHIO", "NHCW")), s.Relu()
        ),
    ),
    "attention": (IMAGES, attention),
    "relu attention": (IMAGES, lambda s: attention(s, "RELU", "CONCAT", values=True)),
    "identity attention": (IMAGES, lambda s: attention(s, "IDENTITY", "SUM", linear=False)),
}
ALWAYS = {"dense", "residual", "global pool", "attention"}


@functools.cache
def reference_stax():
    return reference.neural_tangents().stax


def data(shapes, hide=False):
    x = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]
    if hide:
        masks = [
            jax.random.bernoulli(jax.random.key(7 + i), 0.3, (*v.shape[:-1], 1))
            for i, v in enumerate(x)
        ]
        x = [jnp.where(mask, HIDDEN, v) for mask, v in zip(masks, x)]
    return x


def agree(net, x1, x2, tolerance, **kwargs):
    theirs = net(reference_stax())[2](x1, x2, **kwargs)
    ours = net(stax)[2](x1, x2, **kwargs)
    for field in ("nngp", "ntk", "cov1"):
        a, b = np.asarray(getattr(ours, field)), np.asarray(getattr(theirs, field))
        if theirs.is_reversed:  # it exchanges height and width in the result
            b = np.moveaxis(b, (-4, -3), (-2, -1))
        assert a.shape == b.shape, field
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max(), field
    assert ours.is_gaussian == theirs.is_gaussian
    assert (ours.batch_axis, ours.channel_axis) == (theirs.batch_axis, theirs.channel_axis)


CASES = [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.slow) for n in NETS]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("x64")
def test_equals_neural_tangents(name):
    shapes, net = NETS[name]
    x1, x2 = data(shapes)
    agree(net, x1, None if name == "dropout" else x2, 1e-6)


@pytest.mark.parametrize("name", ["dense", pytest.param("pool", marks=pytest.mark.slow)])
def test_equals_neural_tangents_in_single_precision(name):
    shapes, net = NETS[name]
    agree(net, *data(shapes), 1e-4)


MASKED = [
    "global pool",
    *(
        pytest.param(n, marks=pytest.mark.slow)
        for n in ("pool", "attention", "flatten", "wide residual")
    ),
]


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.usefixtures("x64")
def test_masked_inputs_equal_neural_tangents(name):
    shapes, net = NETS[name]
    agree(net, *data(shapes, hide=True), 1e-6, mask_constant=HIDDEN)


@pytest.mark.parametrize("name", ["dense", "global pool", "attention"])
def test_finite_networks_have_the_shapes_of_their_kernels(name):
    shapes, make = NETS[name]
    net = make(stax)
    x = data(shapes)[0]
    shape, params = net.init_fn(jax.random.key(0), x.shape)
    assert net.apply_fn(params, x).shape == tuple(shape) == net.kernel_fn(x, None).shape1


def test_hidden_pixels_do_not_change_finite_networks():
    net = stax.serial(*block(stax), stax.GlobalAvgPool(), stax.Dense(2))
    x = data(IMAGES)[0]
    hidden = x.at[:, 0].set(HIDDEN)
    _, params = net.init_fn(jax.random.key(0), x.shape)
    y = stax.unmask_fn(net.apply_fn)(params, hidden, mask_constant=HIDDEN)
    again = stax.unmask_fn(net.apply_fn)(params, x.at[:, 0].set(jnp.nan), mask_constant=jnp.nan)
    np.testing.assert_allclose(y, again, rtol=1e-6)


def test_sparse_graph_equals_dense_graph():
    key = jax.random.key(0)
    x = jax.random.normal(key, (2, 4, 3))
    edges = jnp.array([[[0, 1], [2, 3], [3, 0]], [[1, 1], [0, 2], [-1, -1]]])
    dense = jnp.zeros((2, 4, 4))
    for n, graph in enumerate(edges.tolist()):
        for s, r in graph:
            dense = dense if s < 0 else dense.at[n, s, r].add(1.0)
    kernels = []
    for pattern, kind in ((dense, "DENSE"), (edges, "SPARSE")):
        net = stax.serial(
            stax.Dense(4), stax.Relu(), stax.Aggregate(1, implementation=kind), stax.GlobalAvgPool()
        )
        kernels.append(net.kernel_fn(x, None, "ntk", pattern=(pattern, pattern)))
        _, params = net.init_fn(key, x.shape)
        assert net.apply_fn(params, x, pattern=pattern).shape == (2, 4)
    np.testing.assert_allclose(*kernels, rtol=1e-5)


def test_kernel_is_taken_where_inputs_are():
    x1, x2 = data(VECTORS)
    first, second = stax.serial(stax.Dense(4), stax.Relu()), stax.Dense(2, 1.2, 0.1)
    once = stax.serial(first, second).kernel_fn(x1, x2, "ntk")
    np.testing.assert_allclose(second.kernel_fn(first.kernel_fn(x1, x2)).ntk, once, rtol=1e-5)


def test_several_inputs():
    x1, x2 = data(VECTORS)
    net = stax.serial(
        stax.parallel(stax.Dense(4), stax.serial(stax.Dense(4), stax.Relu())),
        stax.FanInConcat(),
        stax.Dense(1),
    )
    both = net.kernel_fn([x1, x1], [x2, x2], "nngp")
    alone = [
        one.kernel_fn(x1, x2, "nngp")
        for one in (stax.Dense(4), stax.serial(stax.Dense(4), stax.Relu()))
    ]
    np.testing.assert_allclose(both, (alone[0] + alone[1]) / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stax.Dense(1, parameterization="mup"), "must be 'ntk' or 'standard'"),
        (lambda: stax.Conv(1, (3, 3), padding="REFLECT"), "padding is 'REFLECT'"),
        (lambda: stax.Dropout(0.0), "probability of keeping"),
        (lambda: stax.Dropout(0.5, "eval"), "mode is 'eval'"),
        (lambda: stax.Flatten(0, 2), "batch_axis_out is 2"),
        (lambda: stax.repeat(stax.Relu(), -1), "n is -1"),
        (
            lambda: stax.GlobalSelfAttention(1, 1, 1, 1, attention_mechanism="TANH"),
            "attention_mechanism",
        ),
        (lambda: stax.GlobalSelfAttention(1, 1, 1, 1, pos_emb_type="ROTARY"), "pos_emb_type"),
        (lambda: stax.DotGeneral(lhs=1.0, rhs=1.0), "not both"),
        (lambda: stax.Aggregate(implementation="CSR"), "implementation"),
        (
            lambda: stax.repeat(stax.Dense(3), 2).init_fn(jax.random.key(0), (2, 4)),
            "keep the shape",
        ),
    ],
)
def test_bad_layer(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("net", "shape", "message"),
    [
        (
            stax.serial(stax.Dense(3), stax.Relu(), stax.LayerNorm()),
            (2, 3),
            "LayerNorm needs Gaussian",
        ),
        (stax.serial(stax.Dense(3), stax.LayerNorm((0, 1))), (2, 3), "must include the channels"),
        (stax.Dropout(0.5), (2, 3), "cannot be applied to the data"),
        (stax.Conv(3, (3, 3)), (2, 3), "acts on 4 axes"),
        (stax.Index(stax.Slice[:, :1]), (2, 3), "Index into the channels"),
        (
            stax.serial(
                stax.FanOut(2), stax.parallel(stax.Dense(3), stax.Identity()), stax.FanInSum()
            ),
            (2, 3),
            "independent mean-zero",
        ),
        (
            stax.serial(
                stax.FanOut(2), stax.parallel(stax.Dense(3), stax.Dense(4)), stax.FanInSum()
            ),
            (2, 3),
            "one shape",
        ),
    ],
)
def test_bad_network(net, shape, message):
    with pytest.raises(ValueError, match=message):
        net.kernel_fn(jnp.ones(shape), None, "nngp")
