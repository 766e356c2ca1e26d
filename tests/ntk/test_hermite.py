"""Hermite series of arbitrary activations against closed forms and quadrature, and their stated errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk import hermite, stax
from ntk.activations import closed_forms, kinks, polynomials

Q1 = np.array([0.05, 0.7, 1.0, 3.9])[:, None]
Q2 = np.array([0.3, 1.0, 2.5])[None, :]
RHO = np.array([-1.0, -0.95, -0.3, 0.0, 0.5, 0.9, 0.99, 1.0])


def grid(dtype):
    q1, q2 = np.broadcast_arrays(Q1[..., None], Q2[..., None])
    return [jnp.asarray(x, dtype) for x in (q1, q2, RHO[None, None, :])]


def shrink(x):
    """Jumps by 1/2 at -1/2 and 1/2."""
    return jnp.where(jnp.abs(x) > 0.5, x, 0)


def hat(at, half_width):
    return lambda x: jax.nn.relu(1 - jnp.abs(x - at) / half_width)


CLOSED = {
    "gelu": (lambda x: jax.nn.gelu(x, approximate=False), closed_forms.gelu()),
    "erf": (jax.scipy.special.erf, closed_forms.erf()),
    "sine": (lambda x: jnp.sin(x + 0.3), closed_forms.sine(1.0, 1.0, 0.3)),
    "relu": (jax.nn.relu, closed_forms.abrelu(0, 1)),
    "leaky": (lambda x: jax.nn.leaky_relu(x, 0.1), closed_forms.abrelu(0.1, 1)),
    "sign": (jnp.sign, closed_forms.sign()),
    "square": (lambda x: x**2 - x + 0.5, polynomials.polynomial_dual([0.5, -1.0, 1.0])),
    "squared relu": (lambda x: jax.nn.relu(x) ** 2, polynomials.rectified_monomial(2)),
}


@pytest.mark.parametrize("name", CLOSED)
def test_series_equal_closed_forms(name, x64):
    fn, closed = CLOSED[name]
    ours = hermite.dual(fn)
    exact = jax.jit(closed.moments)(*grid(jnp.float64))
    scale = np.sqrt(closed.norm(Q1) * closed.norm(Q2))[..., None]
    top = np.abs(exact[1]).max()
    precisions = ((jnp.float32, 4e-6), (jnp.float64, 2e-6))
    for dtype, atol in precisions[: 2 if name in ("gelu", "relu") else 1]:
        k, kdot = jax.jit(ours.moments)(*grid(dtype))
        assert k.dtype == kdot.dtype == dtype
        assert (np.abs(k - exact[0]) <= atol * scale).all()
        assert np.abs(kdot - exact[1]).max() <= 2e-4 * top


def panels(edges, order=16):
    x, w = np.polynomial.legendre.leggauss(order)
    low, high = edges[..., :-1, None], edges[..., 1:, None]
    nodes, weights = low + (high - low) * (x + 1) / 2, (high - low) / 2 * w
    return nodes.reshape(*edges.shape[:-1], -1), weights.reshape(*edges.shape[:-1], -1)


def quadrature(f, q1, q2, rho, at, reach=8.5):
    """E f(u) f(v), by panels that break at the kinks of f in u, and in v given u."""
    at, spread = np.asarray(at), math.sqrt(1 - rho * rho)
    fine = np.add.outer(at / math.sqrt(q2) / rho, spread * np.linspace(-6, 6, 17)).ravel()
    edges = np.concatenate([np.linspace(-reach, reach, 18), fine, at / math.sqrt(q1)])
    outer, w_outer = panels(np.sort(np.clip(edges, -reach, reach)))
    breaks = (at[None, :] / math.sqrt(q2) - rho * outer[:, None]) / spread
    regular = np.broadcast_to(np.linspace(-reach, reach, 18), (outer.size, 18))
    inner, w_inner = panels(np.sort(np.clip(np.concatenate([regular, breaks], 1), -reach, reach)))
    v = math.sqrt(q2) * (rho * outer[:, None] + spread * inner)
    conditional = (w_inner * np.exp(-(inner**2) / 2) * np.asarray(f(v))).sum(axis=1)
    weight = w_outer * np.exp(-(outer**2) / 2) / (2 * math.pi)
    return float((weight * np.asarray(f(math.sqrt(q1) * outer)) * conditional).sum())


@pytest.mark.parametrize(
    ("fn", "at"),
    [
        (jax.nn.hard_tanh, (-1.0, 1.0)),
        pytest.param(jax.nn.relu6, (0.0, 6.0), marks=pytest.mark.slow),
        (shrink, (-0.5, 0.5)),
        (jax.nn.selu, (0.0,)),
        (lambda x: jnp.where(x > 0, 1 + x + x**2, jnp.exp(x) / 2), (0.0,)),
        (lambda x: jax.nn.relu(x - 0.3) + jnp.tanh(x), (0.3,)),
        (hat(0.1, 0.03), (0.07, 0.1, 0.13)),
        (lambda x: jnp.where(abs(x - 0.4) < 0.02, 1.0, 0.0), (0.38, 0.42)),
    ],
)
def test_kinks_and_jumps_anywhere_against_quadrature(fn, at, x64):
    ours = hermite.dual(fn)
    fn, moments = jax.jit(fn), jax.jit(ours.moments)
    slope = jax.jit(lambda x: jax.jvp(fn, (x,), (jnp.ones_like(x),))[1])
    for q1, q2, rho in ((0.8, 1.3, 0.97), (1.0, 1.0, 0.6), (2.0, 0.5, -0.9)):
        k, kdot = moments(*map(jnp.float64, (q1, q2, rho)))
        assert abs(k - quadrature(fn, q1, q2, rho, at)) < 3e-7
        assert abs(kdot - quadrature(slope, q1, q2, rho, at)) < 2e-5


def test_probability_of_an_orthant(x64):
    """Against P(u > a, v > b) at rho = 0, 1, -1, symmetry, and Sheppard's arcsine law at zero."""
    a, b = jnp.array([-2.0, 0.3, 1.0, 0.0, 1.5]), jnp.array([1.0, 0.3, -1.0, 0.0, 1.52])
    one = jnp.ones(5)
    np.testing.assert_allclose(
        kinks._orthant(a, b, 0 * one), kinks.tail(a) * kinks.tail(b), rtol=1e-9
    )
    np.testing.assert_allclose(kinks._orthant(a, b, one), kinks.tail(jnp.maximum(a, b)), rtol=1e-12)
    opposite = jnp.maximum(kinks.tail(a) - kinks.tail(-b), 0)
    np.testing.assert_allclose(kinks._orthant(a, b, -one), opposite, atol=1e-12)
    for rho in (-0.999, -0.4, 0.2, 0.8, 0.9999):
        swapped = kinks._orthant(b, a, rho * one)
        np.testing.assert_allclose(kinks._orthant(a, b, rho * one), swapped, rtol=1e-9)
        arcsine = 0.25 + math.asin(rho) / (2 * math.pi)
        np.testing.assert_allclose(kinks._orthant(0 * one, 0 * one, rho * one), arcsine, rtol=1e-12)


def test_slopes_of_threshold_moments(x64):
    """First and second derivatives against differences, and along the correlation at equal inputs (Price's theorem)."""
    a, b, rho = (
        jnp.array(x) for x in ([-2.0, 0.3, 1.0, 0.5], [1.0, 0.3, -1.0, 0.7], [0.7, -0.6, 0.2, 0.99])
    )

    def moments(*place):
        return jnp.stack(kinks._thresholds(*place))

    step = 1e-4
    for k in range(3):
        one = np.outer(np.arange(3) == k, np.ones(4))
        for f in (
            moments,
            lambda *place, one=one: jax.jvp(moments, place, tuple(jnp.asarray(one)))[1],
        ):
            slope = jax.jvp(f, (a, b, rho), tuple(jnp.asarray(one)))[1]
            places = [
                tuple(z + s * step * o for z, o in zip((a, b, rho), one)) for s in (-2, -1, 1, 2)
            ]
            below2, below, above, above2 = (f(*place) for place in places)
            expected = (below2 - 8 * below + 8 * above - above2) / (12 * step)
            np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-6)
    level, one = jnp.array([-0.4, 0.0, 1.3]), jnp.ones(3)
    values, slopes = jax.jvp(moments, (level, level, one), (0 * one, 0 * one, one))
    np.testing.assert_allclose(slopes[3], kinks.tail(level), rtol=1e-12)  # of two ramps: both above
    np.testing.assert_allclose(values[0], kinks.tail(level), rtol=1e-12)
    second = jax.jvp(
        lambda *p: jax.jvp(moments, p, (0 * one, 0 * one, one))[1],
        (level, level, one),
        (0 * one, 0 * one, one),
    )[1]
    assert np.isfinite(second).all()


def test_kinks_are_found():
    def found(f):
        return [(k.at, k.jump, k.slope) for k in kinks.find(f)]

    assert found(lambda x: np.maximum(x, 0)) == [(0, 0, 1)]
    assert kinks.find(lambda x: np.maximum(x, 0) ** 2) == ((0, 0, 0, 2),)
    assert kinks.find(lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0)))) == ((0, 0, 0, -1),)
    assert found(lambda x: np.clip(x, -1, 1)) == [(-1, 0, 1), (1, 0, -1)]
    assert found(np.sign) == [(0, 2, 0)]
    (third,) = found(lambda x: np.exp(-x * x) + np.maximum(x - 1 / 3, 0))
    np.testing.assert_allclose(third, (1 / 3, 0, 1), atol=1e-6)
    assert found(lambda x: np.maximum(1 - np.abs(x - 0.2) / 0.01, 0)) == [
        (0.19, 0, 100),
        (0.2, 0, -200),
        (0.21, 0, 100),
    ]
    assert found(lambda x: 1.0 * (np.abs(x - 0.11) < 0.03)) == [(0.08, 1, 0), (0.14, -1, 0)]
    for scale in (1, 10, 100, 1000):
        assert found(lambda x, c=scale: np.tanh(c * x)) == []
    for smooth in (np.exp, lambda x: np.sin(3 * x), lambda x: np.sin(30 * x)):
        assert found(smooth) == []


def test_stated_error_holds_and_grows_with_the_variance(x64):
    fn, closed = CLOSED["erf"]
    ours = hermite.dual(fn, order=15, kinks=())
    errors = []
    for q in (0.5, 2.0, 8.0):
        q = jnp.float64(q)
        stated = ours.error(q)
        exact, exact_slope = closed.moments(q, q, jnp.float64(1.0))
        k, kdot = ours.moments(q, q, jnp.float64(1.0))
        errors.append((stated[0], stated[1]))
        assert abs(k - exact) <= stated[0] * exact + 1e-12
        assert abs(k - exact) >= 0.9 * stated[0] * exact - 1e-12
        assert abs(kdot - exact_slope) <= 1.1 * stated[1] * exact_slope + 1e-10
    assert errors == sorted(errors)
    assert errors[-1][0] > 1e-4


def test_tolerance_is_met_at_the_largest_variance(x64):
    coarse = hermite.dual(jnp.tanh, tolerance=1e-3, max_variance=2.0).error(2.0)
    fine = hermite.dual(jnp.tanh, tolerance=1e-7, max_variance=2.0).error(2.0)
    assert 1e-5 < coarse[0] <= 1e-3
    assert fine[0] <= 1e-7
    assert fine[1] <= 1e-5


def test_kinks_left_in_the_series_are_reported():
    """The control: without splitting, ReLU's derivative kernel converges like order^(-1/2)."""
    whole = hermite.dual(jax.nn.relu, kinks=())
    with pytest.warns(UserWarning, match="give its kinks"):
        kdot = whole.moments(1.0, 1.0, jnp.float32(1.0))[1]
    assert abs(kdot - 0.5) > 1e-3
    assert whole.error(1.0)[1] > 1e-3
    assert hermite.dual(jax.nn.relu).error(1.0)[1] < 1e-12


@pytest.mark.parametrize(
    "fn", [jax.nn.softplus, jax.nn.selu, pytest.param(shrink, marks=pytest.mark.slow)]
)
def test_values_and_gradients_are_finite_at_the_edges(fn):
    ours = hermite.dual(fn, tolerance=1e-2)
    q1 = jnp.asarray([0.0, 0.0, 1.0, 1.0, 1.0, 1e-30])
    q2 = jnp.asarray([0.0, 1.0, 1.0, 1.0, 1.0, 1e-30])
    rho = jnp.asarray([1.0, 0.0, 1.0, -1.0, 1.0 + 1e-6, 1.0])

    @jax.jit
    def both(*arguments):
        outputs, pull = jax.vjp(ours.moments, *arguments)
        one, zero = jnp.ones_like(rho), jnp.zeros_like(rho)
        return outputs, pull((one, zero)), pull((zero, one))

    for array in jax.tree.leaves(both(q1, q2, rho)):
        assert np.isfinite(array).all()
    k, kdot = (x[0] for x in both(q1, q2, rho)[0])
    slopes = [jax.grad(fn)(x) ** 2 for x in (-1e-3, 1e-3)]
    np.testing.assert_allclose(k, fn(1e-3) ** 2, atol=2e-3)
    np.testing.assert_allclose(kdot, sum(slopes) / 2, rtol=5e-3, atol=1e-6)


def test_norm_mean_and_diagonal_agree(x64):
    q = jnp.array([0.4, 1.7])
    a = 0.5 / jnp.sqrt(q)
    z, w = panels(np.linspace(-12, 12, 81))
    density = w * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    values = jax.nn.silu(jnp.sqrt(q)[:, None] * z[None, :])
    truncated = 2 * q * (a * kinks.density(a) + kinks.tail(a))  # E[x^2; |x| > 1/2]
    expected = {
        jax.nn.silu: (values**2 @ density, values @ density),
        shrink: (truncated, jnp.zeros(2)),
    }
    for fn, (second, first) in expected.items():
        ours = hermite.dual(fn)
        norm, diagonal, mean = jax.jit(
            lambda q, d=ours: (d.norm(q), d.moments(q, q, q / q)[0], d.mean(q))
        )(q)
        np.testing.assert_allclose(norm, diagonal, rtol=1e-14)
        np.testing.assert_allclose(norm, second, rtol=1e-6)
        np.testing.assert_allclose(mean, first, atol=1e-8)


def test_under_jit_with_a_traced_parameter_of_the_activation(x64):
    @jax.jit
    def kernel(slope, q):
        dual = hermite.dual(lambda x: jnp.tanh(slope * x), order=60, kinks=())
        return dual.moments(q, q, jnp.float64(0.5))[0]

    by_variance = hermite.dual(jnp.tanh).moments(jnp.float64(1.44), jnp.float64(1.44), 0.5)[0]
    np.testing.assert_allclose(kernel(1.2, jnp.float64(1.0)), by_variance, rtol=1e-6)
    assert np.isfinite(jax.grad(kernel)(1.2, jnp.float64(1.0)))
    with pytest.raises(ValueError, match="closes over traced values"):
        jax.jit(lambda s: hermite.dual(lambda x: jnp.tanh(s * x)).norm(jnp.float64(1.0)))(1.2)
    study = jax.jit(lambda q: hermite.dual(jnp.tanh, max_variance=3.0).norm(q))
    np.testing.assert_allclose(study(1.0), hermite.dual(jnp.tanh).norm(jnp.float64(1.0)), rtol=1e-6)


@pytest.mark.parametrize("fn", [hat(0.2, 0.003), lambda x: jnp.sin(40 * x)])
def test_what_no_series_resolves_is_refused(fn):
    with pytest.raises(ValueError, match="too steep, or too narrow, for a Hermite series"):
        hermite.dual(fn).norm(jnp.float32(1.0))


def test_the_stated_error_counts_what_lies_beyond_the_longest_series(x64):
    """tanh(100 x) is a jump for the NNGP; most of its tangent kernel, E f'^2, lies beyond any order."""
    steep = hermite.dual(lambda x: jnp.tanh(100 * x))
    with pytest.warns(UserWarning, match="relative error"):
        k, kdot = steep.moments(*map(jnp.float64, (1.0, 1.0, 1.0)))
    x = np.linspace(-1, 1, 400_001)
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * (x[1] - x[0])
    exact_slope = ((100 / np.cosh(np.minimum(100 * abs(x), 300)) ** 2) ** 2 * density).sum()
    exact = 1 - ((1 - np.tanh(100 * x) ** 2) * density).sum()
    stated = steep.error(1.0)
    assert 1 - kdot / exact_slope == pytest.approx(float(stated[1]), abs=0.02)
    assert stated[1] > 0.3
    assert abs(k / exact - 1) <= 1.1 * stated[0] + 1e-6


def test_narrow_kinks_cancel_in_single_precision():
    """They are refused where a kernel is not evaluated in double precision."""
    narrow = hermite.dual(hat(0.1, 0.03))
    with pytest.raises(ValueError, match="so narrow that its parts cancel"):
        narrow.norm(jnp.float32(1.0))
    x = jax.random.normal(jax.random.key(0), (3, 4))
    net = stax.serial(stax.Dense(1), stax.Elementwise(hat(0.1, 0.03)), stax.Dense(1))
    kernel = net.kernel_fn(x, None, "nngp")
    for i in range(3):
        deviation = float(jnp.sqrt((x[i] ** 2).mean()))
        z, w = panels(
            np.sort(np.r_[np.linspace(-8, 8, 33), np.array([0.07, 0.1, 0.13]) / deviation])
        )
        exact = w @ (np.asarray(hat(0.1, 0.03)(deviation * z)) ** 2 * np.exp(-(z**2) / 2))
        assert kernel[i, i] == pytest.approx(exact / math.sqrt(2 * math.pi), rel=1e-5)


def test_double_precision_is_not_switched_on():
    hermite.dual(jax.nn.mish).norm(jnp.float32(1.0))
    assert not jax.config.jax_enable_x64
    assert jnp.ones(1).dtype == jnp.float32


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: x.sum(), "shape of its input"),
        (lambda x: (x, x), "shape of its input"),
        (lambda x: x + 1j, "complex"),
        (lambda x: jnp.log(x), "not finite at -"),
        (lambda x: jnp.exp(x * x), "not square-integrable"),
        (lambda x: x - x.mean(), "not elementwise"),
    ],
)
def test_bad_activations(fn, message):
    with pytest.raises(ValueError, match=message):
        hermite.dual(fn).norm(jnp.float32(1.0))


@pytest.mark.parametrize("setting", [{"tolerance": 0}, {"max_variance": -1.0}, {"order": 0}])
def test_bad_settings(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        hermite.dual(jnp.tanh, **setting)
