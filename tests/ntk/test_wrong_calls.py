"""Wrong calls of ntk: the message names the value and what is allowed, and nothing is computed in silence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import limits
import models
import ntk
from ntk import gram, predict, solve, stax

X = jnp.ones((4, 3)) * jnp.arange(1, 5)[:, None]
Y = jnp.ones((4, 1))
FAMILY = models.family("MLP", depth=1, outputs=2)
KERNEL = stax.serial(stax.Dense(8), stax.Relu(), stax.Dense(1))[2]
WORDS = np.array([["a", "b"]])


def regression(y=Y, **options):
    return solve.regression(KERNEL, X, y, **({"diag_reg": 0.1} | options))


def matrix(**options):
    return gram.gram(KERNEL, X, name="relu", **options)


def descend(rate):
    return predict.gradient_descent_mse(jnp.eye(4), Y, learning_rate=rate)


TWO = jnp.ones((4, 2))


def squares(f, y):
    return jnp.sum((f - y) ** 2)


def not_finite(bad):
    """Calls of `ntk.predict` with an array that holds the number, and the name of the array."""
    eye, cross, y, start = jnp.eye(4), jnp.ones((3, 4)), TWO, jnp.ones((4, 2))
    bad_eye, bad_cross, bad_y = eye.at[1, 1].set(bad), cross.at[0].set(bad), y.at[0].set(bad)
    both = predict.gp_inference(eye, y)
    for make in (
        predict.gradient_descent_mse,
        lambda k, y: predict.gradient_descent(squares, k, y),
        predict.gp_inference,
    ):
        yield lambda make=make: make(bad_eye, y), "k_train_train"
        yield lambda make=make: make(eye, bad_y), "y_train"
    for make in (
        predict.gradient_descent_mse,
        lambda k, y: predict.gradient_descent(squares, k, y),
    ):
        yield lambda make=make: make(eye, y)(1.0, start.at[0].set(bad)), "fx_train"
        yield lambda make=make: make(eye, y)(1.0, 0.0, bad, cross), "fx_test"
        yield lambda make=make: make(eye, y)(1.0, 0.0, 0.0, bad_cross), "k_test_train"
    kernels = KERNEL(X, None, ("nngp", "ntk"))
    yield lambda: predict.gp_inference(kernels._replace(ntk=bad_eye), y), "k_train_train"
    yield lambda: both("nngp", bad_cross), "k_test_train"
    yield lambda: both("nngp", cross, jnp.eye(3) * bad), "k_test_test"
    yield (
        lambda: predict.gradient_descent_mse_ensemble(KERNEL, X, bad_y)(1.0),
        "y_train",
    )
    yield (
        lambda: predict.gradient_descent_mse_ensemble(lambda *_: bad_eye, X, y)(1.0, get="ntk"),
        "k_train_train",
    )
    yield (
        lambda: predict.gradient_descent_mse_ensemble(
            lambda a, b, get: eye if b is None else bad_cross, X, y
        )(None, X[:3], "ntk"),
        "kernel of test points",
    )


IMAGES = jnp.ones((2, 3, 3, 1))


def concatenated(axis):
    return stax.serial(
        stax.FanOut(2), stax.parallel(stax.Dense(8), stax.Dense(8)), stax.FanInConcat(axis)
    )


def traced(otherwise=None):
    """Of a model with a kernel, or of one without: it sorts its units."""

    def family(n):
        return nn.Sequential([nn.Dense(n), jnp.sort if otherwise else jnp.tanh, nn.Dense(1)])

    return ntk.infinite_width(family, X, **({"otherwise": otherwise} if otherwise else {}))


def tokens():
    def family(n):
        table = nn.Embed(9, n, embedding_init=nn.initializers.normal(1.0))
        return nn.Sequential([table, nn.Dense(1)])

    return ntk.infinite_width(family, jnp.ones((2, 2), int))


def check(net_at_width):
    settings = {"widths": [8, 16, 32], "batch": (X, Y), "loss": lambda f, y: jnp.mean((f - y) ** 2)}
    return limits.coordinate_check(
        net_at_width, **settings, key=jax.random.key(0), learning_rate=0.1
    )


# what is called, the error, and a part of what is said
WRONG = [
    (lambda: solve.cholesky(jnp.eye(4), Y + 1j), ValueError, "y is complex"),
    (lambda: regression(Y * 1j), ValueError, "y is complex"),
    (lambda: predict.max_learning_rate(jnp.eye(3), 0), ValueError, "y_train_size is 0"),
    (lambda: predict.max_learning_rate(jnp.eye(3), momentum=1.5), ValueError, "momentum is 1.5"),
    (lambda: predict.max_learning_rate(jnp.eye(3) * jnp.nan), ValueError, "not finite"),
    # entries of kernels, targets and initial outputs; nothing but one number is broadcast
    *[
        (call, ValueError, f"{name}.* has entries that are not finite")
        for bad in (jnp.nan, jnp.inf)
        for call, name in not_finite(bad)
    ],
    *[
        (
            lambda descent=descent, shapes=shapes: descent()(None, *shapes, jnp.ones((3, 4))),
            ValueError,
            message,
        )
        for descent in (
            lambda: predict.gradient_descent_mse(jnp.eye(4), TWO),
            lambda: predict.gradient_descent(squares, jnp.eye(4), TWO),
        )
        for shapes, message in (
            ((0.0, jnp.ones((3, 1))), r"fx_test.* has shape \(3, 1\); it must be \(3, 2\), or one"),
            ((0.0, jnp.ones(2)), r"fx_test.* has shape \(2,\); it must be \(3, 2\)"),
            ((jnp.ones((4, 1)), 0.0), r"fx_train.* has shape \(4, 1\); it must be \(4, 2\)"),
            ((jnp.ones((1, 2)), 0.0), r"fx_train.* has shape \(1, 2\); it must be \(4, 2\)"),
        )
    ],
    # a loss is one real number
    *[
        (lambda loss=loss: predict.gradient_descent(loss, jnp.eye(4), TWO), error, message)
        for loss, error, message in (
            (lambda f, y: (f - y) ** 2, ValueError, r"returns float32\[4, 2\]; it must return one"),
            (lambda f, y: (jnp.sum(f), f), ValueError, r"returns \(.*; it must return one real"),
            (lambda f, y: jnp.argmax(f), ValueError, r"returns int32\[\]; it must return one real"),
            (lambda f, y: 1, ValueError, "returns 1; it must return one real number"),
            ("mse", TypeError, "loss is 'mse'; it must be a function"),
        )
    ],
    (
        lambda: stax.serial(stax.Dense(4), stax.Index(stax.Slice[..., 1]))[2](X),
        ValueError,
        "Index into the channels",
    ),
    # a layer of stax is no family
    *[
        (lambda call=call, layer=layer: call(layer, X), ValueError, f"{what}.* kernel already")
        for call in (ntk.infinite_width, ntk.explain, ntk.width_axes)
        for layer, what in (
            (stax.Relu(), "family is a layer of stax"),
            (tuple(stax.Relu()), "family is a layer of stax"),
            (KERNEL, "family is a kernel_fn"),
            (lambda n: stax.Dense(n), "returned a layer of stax"),
        )
    ],
    # a traced network reads samples of the shape of its example, and no other
    (lambda: traced()(X[:, :2]), ValueError, r"x1 has the shape \(4, 2\); .* shape \(3,\)"),
    (lambda: traced()(X[0]), ValueError, r"x1 has the shape \(3,\); .* a batch of those"),
    (lambda: traced()(X, X[..., None]), ValueError, r"x2 has the shape \(4, 3, 1\)"),
    (lambda: traced()((X, X)), ValueError, "the network takes 1 inputs, and x1 holds 2"),
    (lambda: traced("sample")(X[:, :2]), ValueError, r"x1 has the shape \(4, 2\)"),
    (lambda: tokens()(X[:2, :2] / 2), ValueError, "entries that are no integers"),
    (lambda: ntk.infinite_width(FAMILY, X[:0]), ValueError, r"shape \(0, 3\), an empty axis"),
    (lambda: ntk.infinite_width(FAMILY, X + 1j), ValueError, "example is complex"),
    (lambda: ntk.infinite_width(FAMILY, WORDS), TypeError, "it must be of numbers"),
    (lambda: ntk.infinite_width(FAMILY, 3.5), ValueError, "example holds 3.5; it must be an array"),
    (lambda: ntk.infinite_width(FAMILY, 3.5, batched=False), ValueError, "example holds 3.5"),
    (lambda: ntk.width_axes(FAMILY, 3.5), TypeError, "example is 3.5; it must be an input array"),
    (lambda: check(lambda n: None), TypeError, r"net_at_width\(8\) is of type NoneType; .*init"),
    (lambda: regression("y"), TypeError, "y is 'y'; it must be an array of numbers"),
    (lambda: regression(None), TypeError, "y is None; it must be an array of numbers"),
    (lambda: regression(diag_reg="a"), TypeError, "diag_reg is 'a'; it must be a number"),
    (lambda: regression(diag_reg=None), TypeError, "diag_reg is None; it must be a number"),
    (lambda: regression(dtype=int), TypeError, "dtype is .*int.*; it must be a floating type"),
    (lambda: regression(dtype="real"), TypeError, "dtype is 'real'; it must be a floating type"),
    (lambda: solve.conjugate_gradient(jnp.eye(4), Y, "a"), TypeError, "diag_reg is 'a'"),
    (lambda: matrix(path="a\0b"), ValueError, "without null bytes"),
    (lambda: matrix(path=3), TypeError, "path is 3; it must be a string or a pathlib.Path"),
    (lambda: matrix(tile=True), TypeError, r"tile is \(True, True\); it must be an integer"),
    (lambda: matrix(tile=2.5), TypeError, "it must be an integer"),
    (lambda: matrix(tile=0), ValueError, "tile is 0; it must be at least 1"),
    (lambda: matrix(devices=[]), TypeError, r"devices is \[\]; it must be a list of one device"),
    (lambda: matrix(devices=["cpu"]), TypeError, r"devices is \['cpu'\]; .*local_devices"),
    (lambda: matrix(devices=1), TypeError, "devices is 1; it must be a list"),
    (lambda: KERNEL(WORDS), TypeError, "x1 is an array of <U1; it must be of numbers"),
    (lambda: KERNEL(X, WORDS), TypeError, "x2 is an array of <U1; it must be of numbers"),
    (lambda: stax.Dense(8, W_std=-1), ValueError, "W_std is -1; it must not be negative"),
    (lambda: stax.Dense(8, b_std=-1), ValueError, "b_std is -1; it must not be negative"),
    (
        lambda: stax.LayerNorm(axis=9)[2](X),
        ValueError,
        r"axis \(9,\); its inputs have axes -2 to 1",
    ),
    (lambda: stax.LayerNorm(axis=9)[1]((), X), ValueError, r"axis \(9,\); its inputs have axes"),
    (lambda: stax.LayerNorm(axis=1.5), TypeError, "axes hold 1.5; axes are integers"),
    (lambda: descend(-1), ValueError, "learning_rate is -1; it must be a finite number .*positive"),
    (lambda: descend(jnp.nan), ValueError, "learning_rate is nan"),
    (lambda: descend("a"), TypeError, "learning_rate is 'a'"),
    (
        lambda: predict.gradient_descent_mse(jnp.eye(4), Y, 1.0, -0.1),
        ValueError,
        "diag_reg is -0.1",
    ),
    (lambda: predict.gp_inference(jnp.eye(4), Y, diag_reg=-0.1), ValueError, "diag_reg is -0.1"),
    (
        lambda: predict.gradient_descent_mse_ensemble(KERNEL, X, Y, diag_reg=-0.1)(),
        ValueError,
        "diag_reg is -0.1",
    ),
    *[
        (
            lambda call=call: call(stax.GlobalAvgPool(channel_axis=7)),
            ValueError,
            "channel_axis is 7; its inputs have",
        )
        for call in (
            lambda layer: layer[0](jax.random.key(0), (2, 3, 3, 1)),
            lambda layer: layer[1]((), IMAGES),
            lambda layer: layer[2](IMAGES),
            lambda layer: stax.serial(stax.Conv(1, (2, 2)), stax.Relu(), layer)[2](IMAGES),
        )
    ],
    (
        lambda: stax.Dense(1, batch_axis=-3)[2](X),
        ValueError,
        "batch_axis is -3; its inputs have axes",
    ),
    (
        lambda: stax.Dense(1, channel_axis=0)[2](X),
        ValueError,
        "batch_axis 0 and channel_axis 0 are one",
    ),
    (
        lambda: stax.serial(stax.Conv(1, (2, 2)), stax.GlobalAvgPool(channel_axis=1))[2](IMAGES),
        ValueError,
        r"channels in axes \(0, 1\), and its input has them in \(0, 3\): give all layers the same",
    ),
    (lambda: KERNEL(X, batch_axis=2), ValueError, "batch_axis is 2; its inputs have axes -2 to 1"),
    (lambda: KERNEL(X, channel_axis=-3), ValueError, "channel_axis is -3; its inputs have axes"),
    (lambda: KERNEL(X, channel_axis=0), ValueError, "batch_axis 0 and channel_axis 0 are one axis"),
    (lambda: KERNEL(X, batch_axis=0.5), TypeError, "axes hold 0.5; axes are integers"),
    (lambda: concatenated(5)[2](X), ValueError, "axis is 5; its inputs have axes -2 to 1"),
    (lambda: concatenated(5)[0](jax.random.key(0), (4, 3)), ValueError, "axis is 5; its inputs"),
]


@pytest.mark.parametrize("case", range(len(WRONG)))
def test_wrong_calls_are_refused_in_words(case):
    call, error, words = WRONG[case]
    with pytest.raises(error, match=words):
        call()


def test_the_checks_let_right_calls_through():
    assert np.isfinite(regression().solution.coefficients).all()
    one = matrix(devices=jax.local_devices()[:1], tile=2)
    np.testing.assert_allclose(one, KERNEL(X, None, "ntk"), rtol=1e-5)
    traced = jax.jit(lambda rate: predict.gradient_descent_mse(jnp.eye(4), Y, rate)(1.0))(0.5)
    np.testing.assert_allclose(traced, 1 - np.exp(-0.5 / 4) * np.ones((4, 1)), rtol=1e-5)
