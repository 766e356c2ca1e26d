"""Deep kernel machines: closed forms, the NNGP, the sparse machine against the full one, predictions twice."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk
from limits import deep_kernel_machine
from limits.deep_kernel_machine import Layer, fit, linear_solution, nngp, predict
from ntk.activations import closed_forms

RELU, EXPONENTIAL = closed_forms.abrelu(0.0, 1.0), closed_forms.rbf(0.5)
DEEP = (Layer(RELU, 2.0, 2.0), Layer(RELU, 2.0, 2.0), Layer(EXPONENTIAL))


@functools.cache
def points(count=8, dim=6, outputs=1):
    random = np.random.default_rng(0)
    x = random.normal(size=(count, dim))
    y = np.sin(2 * x[:, :outputs]) + 0.1 * random.normal(size=(count, outputs))
    return x, x @ x.T / dim + 0.05 * np.eye(count), y


@functools.cache
def linear_problem(outputs=8, size=5):
    random = np.random.default_rng(0)
    x = random.normal(size=(size, 10))
    y = random.normal(size=(size, outputs)) * random.uniform(0.5, 2, outputs)[None]
    return x @ x.T / 10, y, y @ y.T / outputs


@functools.cache
def deep(inducing=None):
    _, gram, y = points()
    return fit(gram, y, DEEP, noise=0.05, jitter=0.0, inducing=inducing)


def log_normal(y, covariance):
    """log N(Y; 0, covariance), columns independent, without any factorisation of the module's."""
    outputs = y.shape[1]
    fitted = np.trace(y.T @ np.linalg.solve(covariance, y))
    log_det = np.linalg.slogdet(2 * math.pi * covariance)[1]
    return -(fitted + outputs * log_det) / 2


def divergence(gram, kernel):
    ratio = np.linalg.solve(kernel, gram)
    return (np.trace(ratio) - np.linalg.slogdet(ratio)[1] - len(gram)) / 2


@pytest.mark.parametrize("nus", [(8.0,), (8.0, 8.0), (3.0, 20.0), (1.0, 5.0, 50.0), (0.3, 8.0)])
def test_the_fit_of_linear_layers_is_the_closed_form(nus):
    start, y, end = linear_problem()
    layers = [*(Layer("linear", nu) for nu in nus), Layer("linear")]
    found = fit(start, y, layers, noise=0.0, jitter=0.0)
    assert found.converged
    for ours, exact in zip(found.grams, linear_solution(start, end, nus, 8), strict=True):
        np.testing.assert_allclose(ours, exact, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize("nus", [(8.0, 8.0), (3.0, 20.0), (1.0, 5.0, 50.0)])
@pytest.mark.usefixtures("x64")
def test_the_objective_is_stationary_at_the_closed_form(nus):
    """The objective as it is written, by determinants, of Gram matrices as they are: no optimiser and no factors."""
    start, _, end = linear_problem()
    solution = [jnp.asarray(g) for g in linear_solution(start, end, nus, 8)]

    def objective(grams):
        chain, total = [jnp.asarray(start), *grams, jnp.asarray(end)], 0.0
        for nu, (below, gram) in zip((*nus, 8), itertools.pairwise(chain)):
            ratio = jnp.linalg.solve(below, gram)
            total -= nu * (jnp.trace(ratio) - jnp.linalg.slogdet(ratio)[1]) / 2
        return total

    size = max(float(jnp.abs(g).max()) for g in jax.grad(objective)(solution))
    assert size < 1e-10
    moved = [1.01 * g for g in solution]
    assert max(float(jnp.abs(g).max()) for g in jax.grad(objective)(moved)) > 1e-3


def test_equal_widths_take_equal_shares_and_unequal_ones_do_not():
    start, _, end = linear_problem()
    values, vectors = np.linalg.eig(np.linalg.solve(start, end))
    powers = [
        (start @ vectors @ np.diag(values ** (l / 3)) @ np.linalg.inv(vectors)).real for l in (1, 2)
    ]
    for ours, power in zip(linear_solution(start, end, (8.0, 8.0), 8), powers, strict=True):
        np.testing.assert_allclose(ours, power, atol=1e-10 * np.abs(power).max())
    unequal = linear_solution(start, end, (3.0, 20.0), 8)
    assert np.abs(unequal[0] - powers[0]).max() > 1e-2 * np.abs(powers[0]).max()
    for same in linear_solution(start, start, (3.0, 20.0), 8):
        np.testing.assert_allclose(same, start, atol=1e-12)


def test_a_narrow_linear_layer_does_more_of_the_way():
    start, _, end = linear_problem()
    moved = [
        np.linalg.norm(linear_solution(start, end, (nu, 8.0), 8)[0] - start)
        for nu in (0.1, 1.0, 8.0, 100.0, 1e6)
    ]
    assert all(np.diff(moved) < 0)
    assert moved[-1] < 1e-4 * moved[0]


def test_without_width_of_their_own_the_layers_are_the_nngp():
    """Against `ntk.stax`, and its Gaussian process as `ntk.solve` would have it."""
    x, _, y = points()
    gram = x @ x.T / x.shape[1]
    layers = [Layer(RELU, scale=2.0), Layer(RELU, scale=2.0), Layer("linear")]
    dense = ntk.stax.Dense(1, math.sqrt(2))
    kernel_fn = ntk.stax.serial(
        ntk.stax.Dense(1), ntk.stax.Relu(), dense, ntk.stax.Relu(), dense
    ).kernel_fn
    with jax.enable_x64(True):
        expected = np.asarray(kernel_fn(jnp.asarray(x), None, "nngp"))
    np.testing.assert_allclose(nngp(gram, layers)[-1], expected, rtol=1e-10)
    found = fit(gram, y, layers, noise=0.1, jitter=0.0)
    assert found.steps == 0
    assert found.objective == found.log_likelihood
    covariance = expected + 0.1 * np.eye(len(y))
    assert found.objective == pytest.approx(log_normal(y, covariance), abs=1e-9)
    np.testing.assert_allclose(found.weights, np.linalg.solve(covariance, y), rtol=1e-8)
    np.testing.assert_array_equal(found.divergences, 0)


def test_the_objective_is_what_it_says():
    _, gram, y = points()
    found = deep()
    assert found.converged
    below, total = gram, 0.0
    for layer, ours, said in zip(DEEP, found.grams, found.divergences):
        kernel = nngp(below, [Layer(layer.kernel, scale=layer.scale)])[0]
        assert divergence(ours, kernel) == pytest.approx(said, rel=1e-8)
        assert said > 0
        total += layer.nu * said
        below = ours
    covariance = nngp(below, DEEP[-1:])[0] + 0.05 * np.eye(len(y))
    assert found.log_likelihood == pytest.approx(log_normal(y, covariance), abs=1e-9)
    assert found.objective == pytest.approx(found.log_likelihood - total, abs=1e-9)
    fixed = [layer._replace(nu=math.inf) for layer in DEEP]
    assert found.objective > fit(gram, y, fixed, noise=0.05, jitter=0.0).objective


def test_the_distance_to_the_nngp_falls_with_nu():
    _, gram, y = points()
    limit, distances = nngp(gram, DEEP)[1], []
    for nu in (1e2, 1e3, 1e4):
        layers = [*(layer._replace(nu=nu) for layer in DEEP[:2]), DEEP[2]]
        found = fit(gram, y, layers, noise=0.05, jitter=0.0)
        distances.append(np.linalg.norm(found.grams[1] - limit))
    slopes = np.diff(np.log10(distances))
    assert (slopes < -0.8).all()
    assert (slopes > -1.2).all()


def test_all_points_inducing_is_the_full_machine():
    full, sparse = deep(), deep(tuple(range(8)))
    assert sparse.objective == pytest.approx(full.objective, abs=1e-9)
    for ours, other in zip(sparse.grams, full.grams, strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-6)
    np.testing.assert_allclose(sparse.weights, full.weights, atol=1e-5)
    np.testing.assert_allclose(sparse.precision, full.precision, atol=1e-4)


def test_inducing_points_give_a_bound_that_rises_and_their_order_is_free():
    bounds = [deep(tuple(range(m))).objective for m in (2, 4)] + [deep().objective]
    assert bounds == sorted(bounds)
    assert bounds[-1] - bounds[-2] > 1e-3
    one, other = deep((0, 1, 2, 3)), deep((2, 0, 3, 1))
    order = [2, 0, 3, 1]
    for ours, permuted in zip(one.grams, other.grams, strict=True):
        np.testing.assert_allclose(permuted, ours[np.ix_(order, order)], atol=1e-5)


def test_the_bound_and_the_posterior_of_inducing_points_without_their_lemma():
    """The output of the sparse machine by P x P matrices: Titsias 2009, equations 6, 9 and 10."""
    _, gram, y = points()
    layers = [Layer(EXPONENTIAL)]
    found = fit(gram, y, layers, noise=0.05, jitter=0.0, inducing=[1, 4, 6])
    kernel = nngp(gram, layers)[0]
    inner, across = kernel[np.ix_([1, 4, 6], [1, 4, 6])], kernel[:, [1, 4, 6]]
    low = across @ np.linalg.solve(inner, across.T)
    bound = log_normal(y, low + 0.05 * np.eye(8)) - np.trace(kernel - low) / 0.1
    assert found.objective == pytest.approx(bound, abs=1e-9)
    middle = np.linalg.inv(inner + across.T @ across / 0.05)
    np.testing.assert_allclose(found.weights, middle @ across.T @ y / 0.05, rtol=1e-8)
    np.testing.assert_allclose(found.precision, np.linalg.inv(inner) - middle, rtol=1e-7)


def test_a_training_point_is_predicted_by_the_in_sample_mean():
    _, gram, y = points()
    found = deep()
    ours = predict(found, gram, np.diag(gram))
    kernel = nngp(found.grams[-1], DEEP[-1:])[0]
    shares = kernel @ np.linalg.inv(kernel + 0.05 * np.eye(8))
    np.testing.assert_allclose(ours.mean, shares @ y, atol=1e-8)
    variance = np.diag(kernel - shares @ kernel)
    np.testing.assert_allclose(ours.variance, variance, atol=1e-8)


@pytest.mark.parametrize("inducing", [None, (0, 2, 3, 5)])
def test_other_points_are_carried_along_as_features_are(inducing):
    """Linear layers on 12 dimensions: a Gram matrix of 8 points is that of features x -> B x, and so are others."""
    x, _, y = points(dim=12)
    new = np.random.default_rng(1).normal(size=(3, 12))
    layers = [Layer("linear", 2.0), Layer("linear")]
    found = fit(x @ x.T, y, layers, noise=0.1, jitter=0.0, inducing=inducing)
    kept = x if inducing is None else x[list(inducing)]
    ours = predict(found, new @ kept.T, np.sum(new**2, 1))
    # Weights of the layer: as in the prior off the span of the points, fitted within it.
    inverse = np.linalg.pinv(kept)
    span = inverse @ kept
    metric = inverse @ found.grams[0] @ inverse.T + np.eye(12) - span
    cross, prior = new @ metric @ kept.T, np.einsum("ti,ij,tj->t", new, metric, new)
    np.testing.assert_allclose(ours.mean, cross @ found.weights, atol=1e-8)
    rest = prior - np.einsum("tm,mn,tn->t", cross, found.precision, cross)
    np.testing.assert_allclose(ours.variance, rest, atol=1e-8)
    assert (ours.variance > 0).all()


def test_relabelling_points_and_turning_outputs_change_nothing():
    _, gram, y = points(outputs=2)
    layers = [DEEP[0], DEEP[2]]
    options = {"noise": 0.05, "jitter": 0.0}
    found = fit(gram, y, layers, **options)
    order = [3, 0, 7, 1, 2, 6, 5, 4]
    permuted = fit(gram[np.ix_(order, order)], y[order], layers, **options)
    np.testing.assert_allclose(permuted.grams[0], found.grams[0][np.ix_(order, order)], atol=1e-5)
    turn = np.array([[0.6, 0.8], [-0.8, 0.6]])
    turned = fit(gram, y @ turn, layers, **options)
    np.testing.assert_allclose(turned.grams[0], found.grams[0], atol=1e-5)
    assert turned.objective == pytest.approx(found.objective, abs=1e-8)


def test_any_activation_is_a_layer():
    _, gram, y = points()
    gelu = Layer(ntk.hermite.dual(jax.nn.gelu), 1.0)
    found = fit(gram, y, [gelu, Layer("linear")], noise=0.1)
    exact = fit(gram, y, [Layer(closed_forms.gelu(), 1.0), Layer("linear")], noise=0.1)
    assert found.converged
    np.testing.assert_allclose(found.grams[0], exact.grams[0], rtol=1e-3, atol=1e-3)
    assert found.jitter == pytest.approx(1e-6 * np.trace(gram) / 8)


def test_a_fit_that_is_cut_short_says_so():
    _, gram, y = points()
    with pytest.warns(UserWarning, match="has not converged in 2 steps"):
        found = fit(gram, y, DEEP, noise=0.05, max_steps=2, jitter=0.0)
    assert not found.converged
    assert found.steps == 2


def test_it_leaves_double_precision_as_it_was():
    deep()
    assert jnp.ones(1).dtype == jnp.float32
    assert deep().grams[0].dtype == np.float64
    assert deep_kernel_machine.fit is fit
