"""A table of derivatives: first, second and mixed, in both inputs and a hyperparameter, of every activation and layer.

The reference are differences of fourth order of the same kernel in double precision; both agree to 1e-5 of the largest
derivative of the kernel at that place. Places: two generic samples, one or both of them zero, two equal ones, and
samples with zero pixels. Left out is what has no derivative: the second ones of a kinked function where its angle is
0 (equal samples, two zero ones, and a zero sample of a network without biases), which are only finite there.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk
from ntk import stax

STEP = 2e-3
VALUE = np.array([0, 0, 1, 0, 0.0])
FIRST = np.array([1, -8, 0, 8, -1]) / 12 / STEP
SECOND = np.array([-1, 16, -30, 16, -1]) / 12 / STEP**2
ORDERS = ("100", "010", "001", "200", "020", "002", "110", "101", "011")
FIRST_ORDERS = ("100", "010", "001")
"""Order of the derivative in the first and in the second input, and in the hyperparameter."""


def dense(activation):
    """A network of one hidden layer around `activation(p)`, p near .8."""
    return lambda p: stax.serial(stax.Dense(4, 0.8, 0.2), activation(p), stax.Dense(1, p, 0.1))


def pixels(*layers):
    return lambda p: stax.serial(
        stax.Conv(4, (2,), W_std=p, b_std=0.2), *layers, stax.Dense(1, 1.0, 0.1)
    )


def fan_in(inside):
    branch = stax.serial(stax.Dense(4, 0.9, 0.1), stax.Gelu(), stax.Dense(4, 1.0, 0.2))
    return lambda p: stax.serial(
        stax.Dense(4, p, 0.2),
        stax.FanOut(2),
        stax.parallel(stax.Identity(), branch),
        inside,
        stax.Dense(4, 1.0, 0.1),
        stax.Erf(),
        stax.Dense(1),
    )


def attention(p):
    return stax.serial(
        stax.Dense(4, 0.9, 0.2),
        stax.GlobalSelfAttention(4, 4, 4, 2, W_key_std=p, W_value_std=1.1 * p, W_query_std=1.2),
        stax.GlobalAvgPool(),
        stax.Dense(1),
    )


SMOOTH = {
    "Erf": lambda p: stax.Erf(0.7, p, 0.2),
    "Sigmoid_like": lambda p: stax.Sigmoid_like(),
    "Gelu": lambda p: stax.Gelu(),
    "Sin": lambda p: stax.Sin(0.7, p, 0.2),
    "Cos": lambda p: stax.Cos(p, 1.3, 0.2),
    "Rbf": stax.Rbf,
    "Gaussian": lambda p: stax.Gaussian(p, -0.7),
    "Gabor": lambda p: stax.Gabor(),
    "Exp": lambda p: stax.Exp(p, 0.4),
    "ExpNormalized": lambda p: stax.ExpNormalized(p, 0.4),
    "Hermite": lambda p: stax.Hermite(3),
    "Monomial": lambda p: stax.Monomial(3),
    "Polynomial": lambda p: stax.Polynomial((0.5, -p, 0.7)),
    "Tanh": lambda p: stax.Tanh(),
    "Softplus": lambda p: stax.Softplus(),
    "Elementwise": lambda p: stax.Elementwise(jnp.sinc),
    "ElementwiseNumerical": lambda p: stax.ElementwiseNumerical(jnp.tanh, 25),
}
KINKED = {
    "Relu": lambda p: stax.Relu(),
    "ABRelu": lambda p: stax.ABRelu(-0.3, p),
    "LeakyRelu": stax.LeakyRelu,
    "Abs": lambda p: stax.Abs(),
    "Sign": lambda p: stax.Sign(),
    "Elu": lambda p: stax.Elu(),
    "HardTanh": lambda p: stax.HardTanh(),
    "RectifiedMonomial": lambda p: stax.RectifiedMonomial(2),
}
VECTORS = {
    "standard": lambda p: stax.serial(
        stax.Dense(4, p, 0.3, parameterization="standard"),
        stax.Erf(),
        stax.Dense(1, 1.1, p, parameterization="standard"),
    ),
    "LayerNorm": dense(lambda p: stax.serial(stax.LayerNorm(eps=0.1 * p), stax.Erf())),
    "Dropout": dense(lambda p: stax.serial(stax.Erf(), stax.Dropout(p))),
    "DotGeneral": dense(lambda p: stax.serial(stax.DotGeneral(rhs=p), stax.Erf())),
    "FanInSum": fan_in(stax.FanInSum()),
    "FanInProd": fan_in(stax.FanInProd()),
    "FanInConcat": fan_in(stax.FanInConcat()),
    "repeat": lambda p: stax.serial(
        stax.repeat(stax.serial(stax.Dense(4, p, 0.2), stax.Erf()), 3), stax.Dense(1)
    ),
}
DEEP = {
    "Relu, five layers": lambda p: stax.serial(
        *[stax.Dense(4, 1.3, p), stax.Relu()] * 5, stax.Dense(1)
    ),
    "LayerNorm, Relu": dense(lambda p: stax.serial(stax.LayerNorm(), stax.Relu())),
}
IMAGES = {
    "Conv, Flatten": pixels(stax.Erf(), stax.Flatten()),
    "Conv, GlobalAvgPool": pixels(stax.Erf(), stax.GlobalAvgPool()),
    "GlobalSumPool": pixels(stax.Erf(), stax.GlobalSumPool()),
    "AvgPool": pixels(stax.Erf(), stax.AvgPool((2,)), stax.Flatten()),
    "SumPool": pixels(stax.Gelu(), stax.SumPool((2,), padding="SAME"), stax.Flatten()),
    "ConvTranspose": pixels(stax.Erf(), stax.ConvTranspose(4, (2,), W_std=0.9), stax.Flatten()),
    "ConvLocal": pixels(stax.Erf(), stax.ConvLocal(4, (2,), W_std=0.9), stax.Flatten()),
    "LayerNorm over pixels": pixels(stax.LayerNorm((1, 2)), stax.Erf(), stax.Flatten()),
    "Index": pixels(stax.Erf(), stax.Index(stax.Slice[:, 1:]), stax.Flatten()),
    "ImageResize": pixels(stax.Erf(), stax.ImageResize((-1, 4, -1), "linear"), stax.Flatten()),
    "attention": attention,
}


def linen(forward):
    class Model(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            return forward(self.width, x)

    return Model


NORMAL = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
STRONG = nn.initializers.normal(0.3)


def layer(n, law=NORMAL):
    return nn.Dense(n, kernel_init=law, bias_init=STRONG)


def mlp(activation, law=NORMAL):
    return linen(lambda n, x: layer(1)(activation(layer(n)(activation(layer(n, law)(x))))))


def convolved(n, x):
    h = nn.gelu(nn.Conv(n, (2,), kernel_init=NORMAL, bias_init=STRONG)(x))
    return layer(1)(h.mean(1))


def attended(n, x):
    h = layer(n)(x)
    q, k, v = (nn.Dense(n, kernel_init=NORMAL)(h) for _ in range(3))
    scores = jax.nn.softmax(q @ k.swapaxes(-1, -2) / n, -1)
    return layer(1)(jnp.tanh(scores @ v).mean(1))


TRACED = {
    "gelu": (mlp(nn.gelu), (3,)),
    "tanh": (mlp(jnp.tanh), (3,)),
    "swish": (mlp(nn.silu), (3,)),
    "product": (linen(lambda n, x: layer(1)(jnp.sin(layer(n)(x)) * layer(n)(x))), (3,)),
    "LayerNorm": (
        linen(lambda n, x: layer(1)(jnp.tanh(nn.LayerNorm()(layer(n)(x))))),
        (3,),
    ),
    "truncated normal": (mlp(jnp.tanh, nn.initializers.lecun_normal()), (6,)),
    "convolution": (linen(convolved), (3, 2)),
    "attention": (linen(attended), (3, 2)),
}


class Traced(NamedTuple):
    kernel_fn: Callable


def network(family, shape):
    """A traced network as a function of a hyperparameter, a factor of its inputs."""
    kernel_fn = ntk.infinite_width(family, jax.ShapeDtypeStruct((1, *shape), jnp.float64))
    return lambda p: Traced(lambda x1, x2, get: kernel_fn(p * x1, p * x2, get))


def places(shape):
    x1, x2, a, b = np.random.default_rng(0).standard_normal((4, *shape))
    every = {
        "generic": (x1, x2),
        "first zero": (0 * x1, x2),
        "second zero": (x1, 0 * x2),
        "both zero": (0 * x1, 0 * x2),
        "equal": (x1, x1),
    }
    if len(shape) > 1:
        blank = np.ones(shape)
        blank[0] = 0
        every |= {"zero pixel": (x1 * blank, x2), "same zero pixel": (x1 * blank, x2 * blank)}
    return list(every), *np.stack(list(every.values()), 1), a, b


def kernels(net, x1, x2):
    """NNGP and NTK of all pairs, (2, N1, N2); their first entry where there are several."""
    out = net.kernel_fn(x1, x2, ("nngp", "ntk"))
    return jnp.stack([k.reshape(*k.shape[:2], -1)[..., 0] for k in out])


def check(network, shape, kinked=False, at=0.8, tolerance=1e-5):
    names, x1, x2, a, b = places(shape)
    count = len(names)
    grid = (np.arange(-2, 3) * STEP).reshape(-1, 1, *[1] * len(shape))
    moved = [jnp.asarray((x + grid * v).reshape(-1, *shape)) for x, v in ((x1, a), (x2, b))]
    values = []
    for h in np.arange(-2, 3) * STEP:
        every = np.asarray(kernels(network(at + h), *moved)).reshape(2, 5, count, 5, count)
        values.append(np.einsum("kipjp->kpij", every))
    rules = (VALUE, FIRST, SECOND)
    expected = [
        np.einsum("hkpij,i,j,h->kp", np.stack(values), *(rules[int(n)] for n in order))
        for order in ORDERS
    ]

    def at_moved(z):
        found = kernels(network(at + z[2]), x1 + z[0] * a[None], x2 + z[1] * b[None])
        return jnp.diagonal(found, axis1=1, axis2=2)

    # In reverse mode JAX before 0.11 loses, in loops over layers, the rule by which a root has slope zero at zero.
    first = (jax.jacrev if jax.__version_info__ >= (0, 11) else jax.jacfwd)(at_moved)
    slopes, curvatures = jax.jit(lambda z: (first(z), jax.jacfwd(first)(z)))(jnp.zeros(3))
    ours = []
    for order in ORDERS:
        place = [k for k in range(3) for _ in range(int(order[k]))]
        ours.append(slopes[..., place[0]] if len(place) == 1 else curvatures[..., *place])
    ours, expected = np.stack(ours), np.stack(expected)
    wrong = np.abs(ours - expected) / np.maximum(np.abs(expected).max((0,), keepdims=True), 1e-2)
    assert np.isfinite(ours).all()
    for k, name in enumerate(names):
        cusp = kinked and name in ("equal", "both zero")
        orders = [i for i, order in enumerate(ORDERS) if order in FIRST_ORDERS or not cusp]
        bad = [ORDERS[i] for i in orders if not (wrong[i, :, k] < tolerance).all()]
        assert not bad, (name, bad, wrong[orders, :, k].max())


def rows():
    slow = pytest.mark.slow
    for name, activation in SMOOTH.items():
        marks = () if name == "Erf" else slow
        yield pytest.param(dense(activation), (3,), False, id=name, marks=marks)
    for name, activation in KINKED.items():
        yield pytest.param(dense(activation), (3,), True, id=name, marks=slow)
    for name, net in VECTORS.items():
        yield pytest.param(net, (3,), False, id=name, marks=slow)
    for name, net in DEEP.items():
        yield pytest.param(net, (3,), True, id=name, marks=slow)
    for name, net in IMAGES.items():
        yield pytest.param(net, (3, 2), False, id=name, marks=slow)


@pytest.mark.parametrize(("net", "shape", "kinked"), list(rows()))
def test_stax(net, shape, kinked, x64):
    check(net, shape, kinked)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "tanh" else pytest.mark.slow) for n in TRACED]
)
def test_traced(name, x64):
    check(network(*TRACED[name]), TRACED[name][1])


def test_a_kink_in_the_curvature_at_equal_samples(x64):
    """RectifiedMonomial(2): the kernels have second derivatives at equal samples, and |s|^3 after them.

    Differences are then off by a term linear in the step, which two steps take out.
    """
    x1, _, a, b = np.random.default_rng(0).standard_normal((4, 1, 3))
    net = dense(lambda p: stax.RectifiedMonomial(2))(0.8)

    def at(s, t):
        return kernels(net, x1 + s * a, x1 + t * b)[:, 0, 0]

    first = jax.jacrev(at, (0, 1))
    rows = jax.jit(jax.jacfwd(first, (0, 1)))(0.0, 0.0)
    ours = np.stack([rows[0][0], rows[0][1], rows[1][1]])

    def differences(h):
        grid = np.array([-h, 0, h])[:, None]
        k = np.asarray(kernels(net, x1 + grid * a, x1 + grid * b))
        second, slope = np.array([1, -2, 1]) / h**2, np.array([-1, 0, 1]) / (2 * h)
        return np.stack([k[:, :, 1] @ second, slope @ k @ slope, k[:, 1] @ second])

    expected = 2 * differences(1e-4) - differences(2e-4)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_rectifiers_have_no_second_derivative_at_equal_samples(x64):
    """Their NTK is a cone |s|: second differences go like the step, not like its square."""
    x1, _, a, _ = np.random.default_rng(0).standard_normal((4, 1, 3))
    net = dense(lambda p: stax.Relu())(0.8)
    found = [
        np.asarray(kernels(net, x1 + np.array([-h, 0, h])[:, None] * a, x1))[1, :, 0] @ [1, -2, 1]
        for h in (1e-3, 1e-4)
    ]
    assert found[0] / found[1] == pytest.approx(10, rel=0.01)
