from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk import predict, reference
from ntk.regression import ode, spectra

Kernels = namedtuple("Kernels", "nngp ntk")
TIMES = np.array([[0.5, 3.0], [20.0, 500.0]])


def noise(i, *shape):
    return jnp.asarray(np.random.default_rng(i).standard_normal(shape))


def pairs(matrix, rows1, rows2):
    """A matrix as a kernel with its axes in pairs."""
    n = len(rows1)
    order = [i + k * n for i in range(n) for k in range(2)]
    return matrix.reshape(*rows1, *rows2).transpose(order)


class Problem:
    """Kernels between training and test points, with targets and initial outputs."""

    def __init__(self, shape, trace_axes, test=3):
        self.trace_axes = trace_axes
        ndim = len(shape)
        traced = [a % ndim for a in trace_axes]
        kept = [a for a in range(ndim) if a not in traced]
        rows = [shape[a] for a in kept]
        test_shape = list(shape)
        test_shape[kept[0]] = test
        test_rows = [test_shape[a] for a in kept]
        n, m = int(np.prod(rows)), int(np.prod(test_rows))
        j = noise(0, n + m, n + m + 2)
        k = j @ j.T / n
        self.dd = pairs(k[:n, :n], rows, rows)
        self.td = pairs(k[n:, :n], test_rows, rows)
        self.tt = pairs(k[n:, n:], test_rows, test_rows)
        self.y, self.f0 = noise(1, *shape), noise(2, *shape)
        self.g0 = noise(3, *test_shape)


SHAPES = [pytest.param((5, 2), (-1,), marks=pytest.mark.slow), ((2, 2, 3), (1,))]


@pytest.fixture(scope="module")
def nt():
    return reference.neural_tangents()


def same(ours, theirs, rtol=1e-7):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


def test_an_axis_named_twice_is_one_axis(x64):
    p = Problem((2, 2, 3), (1,))
    one, two = (
        (
            predict.gradient_descent_mse(p.dd, p.y, trace_axes=axes)(TIMES, p.f0),
            predict.gp_inference(p.dd, p.y, trace_axes=axes)("ntk", p.td),
        )
        for axes in ((1,), (1, 1, -2))
    )
    for a, b in zip(one, two):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("shape", "trace_axes"), SHAPES)
def test_mse_flow_as_neural_tangents(nt, shape, trace_axes, x64):
    p = Problem(shape, trace_axes)
    for reg in (0.0, 0.1):
        arguments = (p.dd, p.y, 2.0, reg, reg > 0, trace_axes)
        ours = predict.gradient_descent_mse(*arguments)
        theirs = nt.predict.gradient_descent_mse(*arguments)
        for t in (None, 3.0, jnp.asarray(TIMES)):
            same(ours(t, p.f0, p.g0, p.td), theirs(t, p.f0, p.g0, p.td))
    same(ours(t, None, p.g0, p.td), theirs(t, None, p.g0, p.td))
    same(ours(t, p.f0), theirs(t, p.f0))


@pytest.mark.parametrize(
    ("momentum", "shape", "trace_axes"),
    [pytest.param(None, (5, 2), (-1,), marks=pytest.mark.slow), (0.9, (4, 2), ())],
)
def test_any_loss_as_neural_tangents(nt, momentum, shape, trace_axes, x64):
    p = Problem(shape, trace_axes)

    def loss(f, y):
        return jnp.mean(jnp.cosh(f - y))

    arguments = (loss, p.dd, p.y, 0.5, momentum, trace_axes)
    t = jnp.array([0.0, 1.0, 5.0])
    ours = predict.gradient_descent(*arguments)
    theirs = nt.predict.gradient_descent(*arguments)
    same(ours(t, p.f0, p.g0, p.td), theirs(t, p.f0, p.g0, p.td), 1e-5)


@pytest.mark.parametrize(("shape", "trace_axes"), SHAPES)
def test_posterior_as_neural_tangents(nt, shape, trace_axes, x64):
    p = Problem(shape, trace_axes)
    dd, td, tt = (Kernels(0.7 * k, k) for k in (p.dd, p.td, p.tt))
    arguments = (dd, p.y, 0.05, False, trace_axes)
    ours = predict.gp_inference(*arguments)
    theirs = nt.predict.gp_inference(*arguments)
    for get in ("nngp", "ntk", "ntkgp", None):
        for last in (None, tt):
            same(ours(get, td, last), theirs(get, td, last))
    same(ours(None, None, True), theirs(None, None, True))


def test_ensemble_as_neural_tangents(nt, x64):
    stax = nt.stax
    _, _, kernel_fn = stax.serial(stax.Dense(1, 1.5, 0.1), stax.Erf(), stax.Dense(1))
    arguments = (kernel_fn, noise(1, 6, 3), noise(2, 6, 2), 2.0, 1e-3)
    ours = predict.gradient_descent_mse_ensemble(*arguments)
    theirs = nt.predict.gradient_descent_mse_ensemble(*arguments)
    for t in (None, jnp.asarray(TIMES)):
        for x_test in (None, noise(3, 4, 3)):
            same(ours(t, x_test, None, True), theirs(t, x_test, None, True))
    same(ours(2.0, noise(3, 4, 3), "nngp"), theirs(2.0, noise(3, 4, 3), "nngp"))
    assert ours(None, None, ("ntk",))._fields == ("ntk",)


def test_ensemble_asks_only_for_the_kernels_that_it_needs():
    asked = []

    def kernel_fn(x1, x2, get, scale=1.0):
        asked.append(get)
        k = scale * (
            x1 @ (x1 if x2 is None else x2).T + jnp.eye(len(x1), len(x1 if x2 is None else x2))
        )
        return k if isinstance(get, str) else Kernels(k, 2 * k)

    x, y = noise(1, 4, 3), noise(2, 4, 1)
    fn = predict.gradient_descent_mse_ensemble(kernel_fn, x, y)
    fn(None, x[:2], "ntk")
    assert asked == ["ntk", "ntk"]
    fn(None, x[:2], "ntk", compute_cov=True)
    assert asked[2:] == ["nngp", ("nngp", "ntk"), "nngp"]
    with pytest.raises(ValueError, match="for the training kernel and 2"):
        predict.gradient_descent_mse_ensemble(kernel_fn, x, y, scale=1.0)(None, x, "ntk", scale=2.0)


def singular():
    """Features with duplicates: rank 2 of 5 points, eigenvalues exactly or nearly 0."""
    a = noise(4, 2, 2)
    x = jnp.stack([a[0], a[0], a[1], a[1], jnp.zeros(2)])
    return x @ x.T, x


def test_zero_eigenvalues_at_finite_time(x64):
    y, f0 = noise(5, 3, 1), noise(6, 3, 1)
    k = jnp.diag(jnp.array([2.0, 1.0, 0.0]))
    t = jnp.array([0.0, 1.0, 1e6, jnp.inf])
    train, test = predict.gradient_descent_mse(k, y)(t, f0, f0, k)
    rate = jnp.exp(-jnp.diagonal(k)[None] * jnp.array([0.0, 1.0, 1e6, 1e30])[:, None] / 3)
    expected = y[None] + rate[:, :, None] * (f0 - y)[None]
    np.testing.assert_allclose(train, expected, atol=1e-12)
    np.testing.assert_allclose(test, expected, atol=1e-9)


@pytest.mark.parametrize("t", [1e9, jnp.inf])
def test_duplicates_train_to_their_mean_and_match_the_features(t, x64):
    k, x = singular()
    y = noise(7, 5, 1)
    train = predict.gradient_descent_mse(k, y)(t)
    weights = jnp.linalg.pinv(x) @ y
    np.testing.assert_allclose(train, x @ weights, atol=1e-6)
    np.testing.assert_allclose(train[0], train[1], atol=1e-6)


def test_singular_kernel_at_infinite_time_is_reported_and_solved_on_its_range(x64):
    k, x = singular()
    y, new = noise(7, 5, 1), noise(8, 3, 2)
    predict_fn = predict.gradient_descent_mse(k, y)
    with pytest.warns(RuntimeWarning, match="singular to working precision"):
        _, test = predict_fn(None, 0.0, 0.0, new @ x.T)
    expected = new @ jnp.linalg.pinv(x) @ y
    np.testing.assert_allclose(test, expected, atol=1e-10)
    traced = jax.jit(lambda k: predict.gradient_descent_mse(k, y)(None, 0.0, 0.0, new @ x.T)[1])
    np.testing.assert_allclose(traced(k), expected, atol=1e-10)


def test_indefinite_and_non_finite_kernels_are_refused():
    y = jnp.ones((2, 1))
    indefinite, infinite = jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.full((2, 2), jnp.nan)
    for t in (None, 1.0):
        with pytest.raises(ValueError, match="indefinite: its eigenvalues go from -1 to 3"):
            predict.gradient_descent_mse(indefinite, y)(t, 0.0, 0.0, indefinite)
        with pytest.raises(ValueError, match="not finite"):
            predict.gradient_descent_mse(infinite, y)(t, 0.0, 0.0, infinite)


def test_one_predictor_in_two_compiled_functions_and_differentiated(x64):
    p = Problem((5, 2), (-1,))
    predict_fn = predict.gradient_descent_mse(p.dd, p.y)
    for t in (None, 2.0):
        first = jax.jit(lambda g, t=t: predict_fn(t, 0.0, g, p.td)[1])(p.g0)
        second = jax.jit(lambda g, t=t: 2 * predict_fn(t, 0.0, g, p.td)[1])(p.g0)
        np.testing.assert_allclose(2 * first, second, rtol=1e-12)

    def total(k, t):
        return predict.gradient_descent_mse(k, p.y)(t, p.f0, p.g0, p.td)[1].sum()

    step = p.dd @ p.dd
    for t in (None, 2.0):
        slope = jnp.sum(jax.jit(jax.grad(total), static_argnums=1)(p.dd, t) * step)
        numeric = (total(p.dd + 1e-5 * step, t) - total(p.dd - 1e-5 * step, t)) / 2e-5
        np.testing.assert_allclose(slope, numeric, rtol=1e-5)


def test_double_precision_on_request():
    """A Hilbert matrix, hopeless in float32."""
    i = np.arange(6)
    k = jnp.asarray(1.0 / (1 + i[:, None] + i[None, :]), jnp.float32)
    y = jnp.ones((6, 1), jnp.float32)
    exact = np.asarray(k, np.float64)[:2] @ np.linalg.solve(
        np.asarray(k, np.float64), np.ones((6, 1))
    )
    _, test = predict.gradient_descent_mse(k, y, dtype=jnp.float64)(None, 0.0, 0.0, k[:2])
    assert test.dtype == jnp.float32
    np.testing.assert_allclose(test, exact, rtol=1e-6)
    posterior = predict.gp_inference(k, y, dtype=jnp.float64)("nngp", k[:2])
    np.testing.assert_allclose(posterior, exact, rtol=1e-6)
    assert not jax.config.jax_enable_x64


def test_flow_agrees_with_its_closed_form_and_settles(x64):
    p = Problem((5, 2), (-1,))

    def mse(f, y):
        return 0.5 * jnp.mean((f - y) ** 2)

    closed = predict.gradient_descent_mse(p.dd, p.y, 0.7)
    flow_fn = predict.gradient_descent(mse, p.dd, p.y, 0.7)
    t = jnp.array([0.0, 4.0, 60.0])
    same(flow_fn(t, p.f0, p.g0, p.td), closed(t, p.f0, p.g0, p.td), 1e-6)
    k = jnp.eye(5) + 0.1 * p.dd
    settled = predict.gradient_descent(mse, k, p.y)(None, p.f0)
    np.testing.assert_allclose(settled, p.y, atol=1e-6)


def test_momentum_is_a_damped_oscillator_and_resumes(x64):
    """One point with kernel 1: q'' + (1 - m) / sqrt(rate) q' + q = 0, f the outputs minus target."""
    rate, m = 0.25, 0.6
    predict_fn = predict.gradient_descent(
        lambda f, y: 0.5 * jnp.sum((f - y) ** 2), jnp.ones((1, 1)), jnp.zeros((1, 1)), rate, m
    )
    t = jnp.array([1.0, 4.0])
    gamma = (1 - m) / rate**0.5 / 2
    omega = (1 - gamma**2) ** 0.5
    s = rate**0.5 * t
    expected = jnp.exp(-gamma * s) * (jnp.cos(omega * s) + gamma / omega * jnp.sin(omega * s))
    np.testing.assert_allclose(predict_fn(t, 1.0)[:, 0, 0], expected, rtol=1e-6)
    half = predict_fn(1.0, predict.ODEState(jnp.ones((1, 1))))
    rest = predict_fn(3.0, half)
    np.testing.assert_allclose(rest.fx_train[0, 0], expected[1], rtol=1e-6)


def test_integrator_converges_to_its_tolerance_and_gives_up_with_nan(x64):
    def rotate(s):
        return {"a": -s["b"], "b": s["a"]}

    start = {"a": jnp.ones(1), "b": jnp.zeros(1)}
    times = jnp.array([1.0, 7.0])
    errors = []
    for tolerance in (1e-4, 1e-6, 1e-8, 1e-10):
        out = ode.integrate(
            rotate, start, times, rtol=tolerance, atol=tolerance, max_steps=10_000
        ).states
        errors.append(float(jnp.abs(out["a"][:, 0] - jnp.cos(times)).max()))
    slope = np.polyfit([-4, -6, -8, -10], np.log10(errors), 1)[0]
    assert slope > 0.75
    assert errors[-1] < 1e-8
    out = ode.integrate(
        rotate, start, jnp.array([0.1, 70.0]), rtol=1e-8, atol=1e-8, max_steps=20
    ).states
    assert jnp.isfinite(out["a"][0, 0])
    assert jnp.isnan(out["a"][1, 0])


def test_relaxation_and_its_integral_have_their_limits(x64):
    values = jnp.array([0.0, 1e-18, 1e-6, 1.0])
    tau = jnp.array([1e-3, 1.0, 1e5, jnp.inf])
    integral = spectra.integrated_decay(values, tau)
    np.testing.assert_allclose(integral[:3, 0], tau[:3])
    np.testing.assert_allclose(integral[3], [0.0, 0.0, 1e6, 1.0])
    np.testing.assert_allclose(integral[2, 2], -np.expm1(-0.1) * 1e6, rtol=1e-12)
    np.testing.assert_allclose(spectra.relaxation(values, tau)[3], [0.0, 0.0, 1.0, 1.0])


def test_the_integral_of_slow_modes_keeps_its_digits_and_its_slope(x64):
    for value in (9e-5, 1.1e-4):  # on both sides of the place where the series ends

        def integral(l):
            return spectra.integrated_decay(l[None], jnp.ones(1))[0, 0]

        x = jnp.float64(value)
        np.testing.assert_allclose(integral(x), -np.expm1(-value) / value, rtol=1e-15)
        slope = -1 / 2 + value / 3 - value**2 / 8 + value**3 / 30
        np.testing.assert_allclose(jax.grad(integral)(x), slope, rtol=1e-7)


def test_max_learning_rate_is_the_border_of_stability(x64):
    p = Problem((5, 2), (-1,))
    border = predict.max_learning_rate(p.dd, y_train_size=p.y.size)
    for factor, grows in ((0.99, False), (1.01, True)):
        step = jnp.eye(5) - factor * border / p.y.size * p.dd
        assert (float(jnp.abs(jnp.linalg.eigvalsh(step)).max()) > 1) == grows
    top = jnp.linalg.eigvalsh(p.dd)[-1]
    np.testing.assert_allclose(predict.max_learning_rate(p.dd, None, 0.9), 2 * 1.9 * 5 / top)


def test_bad_requests_are_named():
    k, y = jnp.eye(3), jnp.ones((3, 1))
    predict_fn = predict.gradient_descent_mse(k, y)
    with pytest.raises(ValueError, match="nothing is asked for"):
        predict_fn(None, None)
    with pytest.raises(ValueError, match="need k_test_train"):
        predict_fn(None, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"k_train_train has shape \(3, 3\)"):
        predict.gradient_descent_mse(k, jnp.ones((4, 1)))
    with pytest.raises(ValueError, match="trace_axes is"):
        predict.gradient_descent_mse(k, y, trace_axes=(2,))
    with pytest.raises(ValueError, match="get has 'ntkgp'"):
        predict.gradient_descent_mse_ensemble(lambda *a: k, y, y)(get="ntkgp")
    with pytest.raises(ValueError, match="the nngp kernel is needed and missing"):
        predict.gp_inference(Kernels(None, k), y)("ntk", Kernels(None, k), Kernels(None, k))

    def loss(f, y):
        return jnp.sum((f - y) ** 2)

    with pytest.raises(ValueError, match="max_steps is 0"):
        predict.gradient_descent(loss, k, y, max_steps=0)
    with pytest.raises(ValueError, match="momentum is None"):
        predict.gradient_descent(loss, k, y)(1.0, predict.ODEState(y, None, y))
    with pytest.raises(ValueError, match="part of the ODEState"):
        predict.gradient_descent(loss, k, y)(1.0, predict.ODEState(y), y, k)


def test_a_kernel_that_is_not_symmetric_is_refused():
    y = jnp.ones((4, 1))
    lopsided = jnp.triu(jnp.ones((4, 4))) + jnp.eye(4)
    for predictor in (predict.gradient_descent_mse, predict.gp_inference):
        with pytest.raises(ValueError, match="not symmetric"):
            predictor(lopsided, y)
    predict.gradient_descent_mse(jnp.eye(4) + 1e-4 * lopsided, y)


@pytest.mark.parametrize("momentum", [1.5, -0.1, float("nan")])
def test_momentum_out_of_range_is_refused(momentum):
    def loss(f, y):
        return jnp.mean((f - y) ** 2)

    with pytest.raises(ValueError, match="momentum"):
        predict.gradient_descent(loss, jnp.eye(2), jnp.ones((2, 1)), momentum=momentum)


def predictions(kernel, cross, y):
    """Everything that a kernel, and one between test and training points, predicts."""
    flow = predict.gradient_descent(lambda f, y: ((f - y) ** 2).sum(), kernel, y)
    regularised = predict.gradient_descent_mse(kernel, y, diag_reg=0.1)
    double = predict.gradient_descent_mse(kernel, y, diag_reg=0.1, dtype=jnp.float64)
    return [
        predict.gp_inference(kernel, y, diag_reg=0.1)("nngp", cross),
        regularised(3.0, None, 0.0, cross),
        double(None, None, 0.0, cross),
        flow(0.02, None, 0.0, cross),
        predict.max_learning_rate(kernel),
    ]


@pytest.mark.parametrize("dtype", ["int32", "uint8", "float16", "bfloat16"])
def test_integers_and_half_precision_are_computed_in_single(dtype):
    """Targets and diag_reg are not cut off to the type of such a kernel."""
    a = np.array([[2, 1, 0], [0, 3, 1], [1, 1, 2], [3, 0, 1]])
    kernel, cross = a @ a.T + 2 * np.eye(4, dtype=int), np.array([[1, 2, 3, 4], [2, 0, 1, 1]])
    y = np.array([[0.5], [-0.7], [0.2], [1.3]])
    single, other = (
        predictions(jnp.asarray(kernel, t), jnp.asarray(cross, t), y) for t in (jnp.float32, dtype)
    )
    exact = cross @ np.linalg.solve(kernel + 0.1 * np.trace(kernel) / 4 * np.eye(4), y)
    np.testing.assert_allclose(single[0], exact, rtol=1e-4)
    for one, two in zip(single, other):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6)


def test_complex_kernels_and_targets_are_refused():
    kernel, y = jnp.eye(2), jnp.ones((2, 1))
    for pair in ((1j * kernel, y), (kernel, 1j * y)):
        for make in (predict.gp_inference, predict.gradient_descent_mse):
            with pytest.raises(ValueError, match="is complex"):
                make(*pair)


def test_variances_of_kernels_that_do_not_fit_are_told():
    """Blocks of no positive semi-definite matrix: training points explain more than test points vary."""
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    kernel = jnp.asarray(x @ x.T + np.eye(6, dtype=np.float32))
    posterior = predict.gp_inference(kernel[:4, :4], jnp.ones((4, 1)), 0.1)
    assert (jnp.diagonal(posterior("nngp", kernel[4:, :4], kernel[4:, 4:]).covariance) > 0).all()
    with pytest.warns(RuntimeWarning, match="variances are negative, down to"):
        posterior("nngp", 9 * kernel[4:, :4], kernel[4:, 4:])
