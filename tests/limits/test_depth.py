"""Deep classifiers: constants, kernels at any depth by two roads, the three limits, what is refused."""

import decimal
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limits import correlations, depth
from ntk.activations import closed_forms, polynomials
from ntk.infinite import depth_map as angle_domain

RELU = closed_forms.abrelu(0.0, 1.0)
SQUARE = polynomials.hermite_polynomial(2)
# phi^ = .2 + .3 xi + .5 xi^3
INTERIOR = polynomials.polynomial_dual(
    np.polynomial.hermite_e.herme2poly([0.2**0.5, 0.3**0.5, 0, (0.5 / 6) ** 0.5])
)


def centred_relu(x):
    return jax.nn.relu(x) - 1 / math.sqrt(2 * math.pi)


def entries(kernel, gap):
    value = kernel(gap)
    return value.sign * np.exp(value.log + value.offset)


@functools.partial(jax.jit, static_argnums=0)
def _direct(dual, xi, layers):
    one = jnp.ones(())

    def layer(_, state):
        value, slope = dual.moments(one, one, state[0])
        sigma = value / dual.norm(one)
        return sigma, sigma + state[1] * slope / dual.norm(one)

    return jax.lax.fori_loop(0, layers, layer, (xi, xi))


def direct(dual, xi, layers):
    """The recursion as it is written, in double precision."""
    with jax.enable_x64(True):
        return [np.asarray(a) for a in _direct(dual, jnp.asarray(xi), layers)]


def sphere(count, dimension, seed=0):
    points = np.abs(np.random.default_rng(seed).normal(size=(count, dimension + 1)))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def noisy(count, dimension, seed):
    """Points and labels whose rule is x_0 > x_1, a fifth of them flipped; the rule's own labels."""
    x = sphere(count, dimension, seed)
    rule = np.where(x[:, 0] > x[:, 1], 1.0, -1.0)
    flip = np.random.default_rng(seed + 1000).random(count) < 0.2
    return x, np.where(flip, -rule, rule), rule


# Constants


def test_constants_of_relu_and_centred_relu_are_the_closed_forms():
    plain, centred = depth.taxonomy(RELU), depth.taxonomy(centred_relu)
    assert plain.kind == "majority vote"
    np.testing.assert_allclose(plain[1:4], [1 / math.sqrt(math.pi), math.sqrt(0.5), 1], rtol=1e-12)
    variance = 0.5 - 1 / (2 * math.pi)
    assert centred.kind == "singular kernel"
    assert centred.A_prime == pytest.approx(0.5 / math.sqrt(variance), rel=1e-12)
    assert centred.B_prime == pytest.approx(0.5 / variance, rel=1e-8)
    assert centred.alpha == pytest.approx(1.6179, abs=1e-3)


@pytest.mark.parametrize("a", [2.676, 6.13539])
def test_sine_has_the_exponent_of_its_dual_sinh(a):
    """phi^ = sinh(a xi) / sinh(a): A'^2 = a / sinh a, B' = a / tanh a."""
    found = depth.taxonomy(closed_forms.sine(1.0, math.sqrt(a)))
    assert found.alpha == pytest.approx(
        2 * math.log(math.sinh(a) / a) / math.log(a / math.tanh(a)), rel=1e-10
    )
    assert found.alpha == pytest.approx({2.676: 2, 6.13539: 4}[a], abs=1e-3)


@pytest.mark.parametrize(
    ("activation", "kind", "order"),
    [
        (SQUARE, "nearest neighbor", 2),
        (polynomials.hermite_polynomial(3), "nearest neighbor", 3),
        (closed_forms.erf(), "singular kernel", 1),
        (closed_forms.gelu(), "majority vote", 0),
        (INTERIOR, "majority vote", 0),
        (jax.nn.sigmoid, "collapse", 0),
    ],
)
def test_classes(activation, kind, order):
    found = depth.taxonomy(activation)
    assert (found.kind, found.order) == (kind, order)
    assert math.isnan(found.alpha) == (kind != "singular kernel")


def test_scale_of_the_activation_is_of_no_importance():
    a, b = depth.taxonomy(closed_forms.erf()), depth.taxonomy(closed_forms.erf(3.0))
    np.testing.assert_allclose(a[1:], b[1:], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("d", [1, 2, 3, 8])
def test_the_optimal_activation_has_exponent_d(d):
    activation = depth.optimal_activation(d)
    found = depth.taxonomy(activation)
    assert found.alpha == pytest.approx(d, rel=1e-12)
    assert found.B_prime == pytest.approx(4 if d == 1 else 2, rel=1e-13)
    xi = np.linspace(-1, 1, 9)
    p = 2 ** (-d / 2)
    expected = (xi**7 + xi) / 2 if d == 1 else p * xi**3 + (1 - 2 * p) * xi**2 + p * xi
    np.testing.assert_allclose(depth.dual_curve(activation, xi), expected, atol=1e-14)


def test_dual_curve_of_a_function_is_that_of_its_closed_form():
    xi = np.linspace(-1, 1, 33)
    norm = 0.5 - 1 / (2 * math.pi)
    closed = (np.sqrt(1 - xi**2) + (np.pi - np.arccos(xi)) * xi) / (2 * np.pi) - 1 / (2 * np.pi)
    np.testing.assert_allclose(depth.dual_curve(centred_relu, xi), closed / norm, atol=1e-9)


# Kernels


@pytest.mark.parametrize(
    ("dual", "layers"),
    [
        (depth.optimal_activation(1), 12),
        (depth.optimal_activation(4), 9),
        (RELU, 60),
        (closed_forms.erf(), 30),
        (closed_forms.gelu(), 40),
        (INTERIOR, 300),
    ],
)
def test_kernels_are_those_of_the_recursion_as_written(dual, layers):
    xi = np.linspace(-0.95, 0.95, 41)
    sigma, k = direct(dual, xi, layers)
    for kernel, expected in (("nngp", sigma), ("ntk", k)):
        ours = entries(depth.deep_kernel(dual, layers, kernel), 1 - xi)
        np.testing.assert_allclose(ours, expected, rtol=1e-11, atol=1e-12 * abs(expected).max())


def test_relu_agrees_with_the_angle_domain():
    xi = np.linspace(-0.95, 1, 40)
    with jax.enable_x64(True):
        maps = angle_domain.depth_map(closed_forms.abrelu(0.0, math.sqrt(2)), 1.0, None, 100).maps
        sigma, k, _ = map(np.asarray, maps(jnp.asarray(xi)))
    ours = entries(depth.deep_kernel(RELU, 100), 1 - xi)
    np.testing.assert_allclose(ours, sigma + k, rtol=1e-6)


def test_squares_have_the_exact_kernel():
    """Of h_2, K_L = (2^(L+1) - 1) xi^(2^L), also where that is far below the smallest number."""
    xi, layers = np.array([-0.99, -0.4, 1e-5, 0.3, 0.999, 1.0]), 40
    value = depth.deep_kernel(SQUARE, layers)(1 - xi)
    expected = math.log(2.0 ** (layers + 1) - 1) + 2.0**layers * np.log(np.abs(xi))
    np.testing.assert_allclose(value.log, expected, rtol=1e-11)
    assert (value.sign == 1).all()
    assert value.log[2] < -1e12


@pytest.mark.parametrize("d", [1, 2, 8])
def test_tiny_gaps_against_sixty_digits(d):
    """The same recursion in decimal arithmetic, from gaps that 1 - xi cannot hold."""
    squares = (
        {1: 0.5, 7: 0.5}
        if d == 1
        else {1: 2 ** (-d / 2), 2: 1 - 2 ** (1 - d / 2), 3: 2 ** (-d / 2)}
    )
    gap, layers = np.array([1e-30, 1e-17, 3e-9, 0.4, 1.7]), 70
    nngp, ntk = (depth.deep_kernel(depth.optimal_activation(d), layers, k) for k in ("nngp", "ntk"))
    with decimal.localcontext(prec=60):
        for i, value in enumerate(gap):
            sigma = k = 1 - decimal.Decimal(float(value))
            for _ in range(layers):
                slope = sum(n * decimal.Decimal(a) * sigma ** (n - 1) for n, a in squares.items())
                sigma = sum(decimal.Decimal(a) * sigma**n for n, a in squares.items())
                k = sigma + k * slope
            for kernel, exact in ((nngp, sigma), (ntk, k)):
                found = kernel(gap[i : i + 1])
                log = float(found.log[0]) + found.offset
                assert log == pytest.approx(float(abs(exact).ln()), abs=1e-9, rel=1e-10)
                assert found.sign[0] == math.copysign(1, exact)


@pytest.mark.parametrize("d", [1, 2, 4, 8])
def test_the_singular_kernel_has_exponent_minus_d(d):
    r = np.geomspace(1e-6, 1e-1, 200)
    log = depth.singular_kernel(depth.optimal_activation(d))(r**2 / 2).log
    assert np.polyfit(np.log(r), log, 1)[0] == pytest.approx(-d, abs=0.01)
    assert np.ptp(log + d * np.log(r)) < 0.02  # R varies by little


def test_the_exponent_of_another_activation_is_its_own():
    r = np.geomspace(1e-8, 1e-2, 200)
    log = depth.singular_kernel(centred_relu)(r**2 / 2).log
    slope = np.polyfit(np.log(r), log, 1)[0]
    assert slope == pytest.approx(-depth.taxonomy(centred_relu).alpha, abs=0.01)
    assert abs(slope + 2) > 0.3


def test_both_kernels_reach_the_singular_kernel_but_the_ntk_only_beyond_inverse_square_distance():
    activation, gap = depth.optimal_activation(1), np.array([1e-9, 1e-4, 0.3])
    psi = depth.singular_kernel(activation)(gap).log
    np.testing.assert_allclose(depth.deep_kernel(activation, 100, "nngp")(gap).log, psi, rtol=1e-12)
    deepest = depth.deep_kernel(activation, 10**15, "ntk")(gap)
    np.testing.assert_allclose(deepest.log - math.log(1e15), psi, atol=1e-5)
    shallow = depth.deep_kernel(activation, 10**4, "ntk")(gap).log - math.log(1e4)
    assert shallow[0] - psi[0] > 5  # r^-2 is 5e8


def test_majority_class_has_an_interior_fixed_point():
    fixed = math.sqrt(0.65) - 0.5  # .2 - .7 x + .5 x^3 = (x - 1) (.5 x^2 + .5 x - .2)
    slope = 0.3 + 1.5 * fixed**2
    gap = np.array([1e-12, 0.01, 0.5, 1.0, 1.9])
    nngp, ntk = (depth.deep_kernel(INTERIOR, 10**15, k) for k in ("nngp", "ntk"))
    np.testing.assert_allclose(entries(nngp, gap), fixed, rtol=1e-12)
    np.testing.assert_allclose(entries(ntk, gap), fixed / (1 - slope), rtol=1e-11)
    assert ntk(np.zeros(1)).log[0] == pytest.approx(1e15 * math.log(1.8), rel=1e-12)


def test_relu_ntk_tends_to_one_quarter_of_its_diagonal():
    gap = np.array([0.0, 0.05, 0.5, 1.0])
    ratio = [entries(depth.deep_kernel(RELU, n), gap) / (n + 1) for n in (100, 3000)]
    assert np.all(np.array(ratio)[:, 0] == pytest.approx(1))
    assert (abs(ratio[1][1:] - 0.25) < 0.01).all()
    assert (abs(ratio[0][1:] - 0.25) > 0.01).all()


# Classifiers


def test_gaps_keep_what_products_lose():
    angle = np.array([0.0, 1e-9, 0.5])
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    between = depth.gaps(3.0 * x, x)
    assert between[0, 1] == pytest.approx(0.5e-18, rel=1e-6)
    assert between[0, 2] == pytest.approx(1 - math.cos(0.5), rel=1e-14)
    assert (np.diag(between) == 0).all()


def test_the_hilbert_estimate_is_its_formula():
    x, y, _ = noisy(30, 2, 0)
    test = sphere(7, 2, 5)
    r = np.linalg.norm(test[:, None] - x[None], axis=2)
    scores = depth.hilbert_estimate(x, y, test, 2.0)
    np.testing.assert_allclose(scores / ((r.min(axis=1) / r.T).T ** 2 @ y), 1, rtol=1e-10)
    assert (np.sign(depth.hilbert_estimate(x, y, x, 2.0)) == y).all()  # interpolates


def test_nearest_neighbor_and_majority():
    x, y, _ = noisy(50, 3, 1)
    test = sphere(20, 3, 6)
    nearest = np.linalg.norm(test[:, None] - x[None], axis=2).argmin(axis=1)
    assert (depth.nearest_neighbor(x, y, test) == y[nearest]).all()
    columns = np.stack([y > 0, y < 0], axis=1)
    two = depth.nearest_neighbor(x, columns, test)
    assert (two.argmax(axis=1) == (y[nearest] < 0)).all()
    assert (depth.majority_vote(y, 3) == y.sum()).all()
    assert depth.majority_vote(columns, 3).shape == (3, 2)


def test_deep_classifier_is_kernel_regression():
    x, y, _ = noisy(40, 2, 2)
    test = sphere(40, 2, 7)
    _, k = direct(closed_forms.erf(), np.clip(x @ x.T, -1, 1), 3)
    _, cross = direct(closed_forms.erf(), test @ x.T, 3)
    expected = cross @ np.linalg.solve(k, y)
    scores = depth.deep_classifier(closed_forms.erf(), 3, x, y, test, kernel="ntk")
    np.testing.assert_allclose(np.sign(scores), np.sign(expected))
    factor = scores / expected
    assert (factor > 0).all()
    both = depth.deep_classifier(
        closed_forms.erf(), 3, x, np.stack([y, -y], axis=1), test, kernel="ntk"
    )
    # A sum of products with large weights: its rounding is relative to the largest score, not to each.
    atol = 1e-10 * np.abs(scores).max()
    np.testing.assert_allclose(both, np.stack([scores, -scores], axis=1), rtol=0, atol=atol)


@pytest.mark.parametrize("d", [1, 2])
def test_deep_networks_with_the_optimal_activation_are_the_hilbert_estimate(d):
    activation, test = depth.optimal_activation(d), sphere(300, d, 8)
    x, y, _ = noisy(300, d, 3)
    hilbert = np.sign(depth.hilbert_estimate(x, y, test, d))
    limit = np.sign(depth.singular_classifier(activation, x, y, test))
    assert (limit == hilbert).mean() >= 0.99
    for deep, kernel in ((100, "nngp"), (10**15, "ntk")):
        scores = depth.deep_classifier(activation, deep, x, y, test, kernel=kernel)
        assert (np.sign(scores) == limit).all()
    shallow = depth.deep_classifier(activation, 1000, x, y, test, kernel="ntk")
    assert (np.sign(shallow) == limit).mean() < 0.99
    assert (np.sign(depth.deep_classifier(activation, 100, x, y, x[:5])) == y[:5]).all()


def test_other_classes_reach_their_own_limits():
    x, y, _ = noisy(200, 2, 4)
    test = sphere(200, 2, 9)
    nearest = depth.nearest_neighbor(x, y, test)
    square = [np.sign(depth.deep_classifier(SQUARE, n, x, y, test)) == nearest for n in (2, 16)]
    assert square[1].mean() >= 0.99
    assert square[0].mean() < 0.95
    y = np.where(np.arange(200) < 130, 1.0, -1.0)
    for dual, layers in ((INTERIOR, 80), (RELU, 10_000)):
        scores = depth.deep_classifier(dual, layers, x[:60], y[80:140], test[:20], kernel="ntk")
        assert (np.sign(scores) == np.sign(depth.majority_vote(y[80:140], 20))).all()


def test_single_precision_products_fail():
    """The control: xi itself, in single precision, loses the limit that gaps keep."""
    x, y, _ = noisy(300, 1, 5)
    test = sphere(300, 1, 10)
    hilbert = np.sign(depth.hilbert_estimate(x, y, test, 1))
    k, cross = (np.asarray(a @ x.T, np.float32) for a in (x, test))
    for _ in range(20):
        k, cross = ((a**7 + a) / np.float32(2) for a in (k, cross))
    np.fill_diagonal(k, 1)
    naive = np.sign(cross @ np.linalg.lstsq(k, y.astype(np.float32), rcond=None)[0])
    assert (naive == hilbert).mean() < 0.9


def test_numbers_of_examples_share_one_program():
    activation = closed_forms.erf(1.0, 0.7)
    kernel = depth.deep_kernel(activation, 20)
    kernel(np.linspace(0.1, 1, 200))
    before = correlations._descend._cache_size()
    depth.deep_kernel(activation, 33)(np.linspace(0.1, 1, 130))
    assert correlations._descend._cache_size() == before
    assert kernel(np.zeros((0, 3))).log.shape == (0, 3)
    whole = kernel(np.linspace(0.1, 1, 200))
    np.testing.assert_allclose(
        kernel(np.linspace(0.1, 1, 200)[::2]).log, whole.log[::2], rtol=1e-13
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: depth.taxonomy(lambda x: x), "linear"),
        (lambda: depth.taxonomy(closed_forms.sign()), "step"),
        (lambda: depth.taxonomy(lambda x: x + jnp.sign(x)), "jumps"),
        (lambda: depth.taxonomy(polynomials.monomial(0)), "constant"),
        (lambda: depth.taxonomy(3), "neither a function nor a Dual"),
        (lambda: depth.optimal_activation(0), "positive integer"),
        (lambda: depth.deep_kernel(RELU, 3, "nnpg"), "'nngp' or 'ntk'"),
        (lambda: depth.deep_kernel(RELU, 0), "depth is 0"),
        (lambda: depth.deep_kernel(RELU, 10**7), "majority_vote"),
        (lambda: depth.deep_kernel(SQUARE, 1000), "nearest_neighbor"),
        (lambda: depth.deep_kernel(SQUARE, 3)(np.array([2.5])), "gaps"),
        (lambda: depth.singular_kernel(RELU), "majority vote"),
        (lambda: depth.gaps(np.zeros((1, 2)), np.ones((1, 2))), "norm 0"),
        (lambda: depth.gaps(np.ones((1, 3)), np.ones((1, 2))), "3 coordinates"),
        (lambda: depth.gaps(np.ones(3), np.ones(3)), "shape"),
        (lambda: depth.hilbert_estimate(np.eye(2), np.ones(2), np.eye(2), 0), "exponent is 0"),
        (lambda: depth.hilbert_estimate(np.eye(2), np.ones(3), np.eye(2), 1), "labels of shape"),
        (
            lambda: depth.deep_classifier(SQUARE, 3, np.ones((2, 2)), np.ones(2), np.eye(2)),
            "coincide",
        ),
    ],
)
def test_mistakes_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
