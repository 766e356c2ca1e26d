"""Gradient flow under any loss: its times, its gradients, losses with kinks, and what predictions refuse."""

import functools
import types
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk import predict, reference

Kernels = namedtuple("Kernels", "nngp ntk")


def noise(i, *shape):
    return jnp.asarray(np.random.default_rng(i).standard_normal(shape))


def cross_entropy(f, y):
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(f) * y, 1))


def small_problem():
    a = noise(4, 5, 6)
    return a[:3] @ a[:3].T, a[3:] @ a[:3].T, jax.nn.one_hot(jnp.array([0, 1, 1]), 2, dtype=a.dtype)


def test_times_come_back_in_the_order_in_which_they_were_given(x64):
    k, _, y = small_problem()
    predict_fn = predict.gradient_descent(cross_entropy, k, y, 0.5)
    sorted_, unsorted = (
        predict_fn(jnp.array([0.0, 1.0, 2.0, 3.0])),
        predict_fn(jnp.array([[3.0, 1.0], [0.0, 2.0]])),
    )
    np.testing.assert_allclose(unsorted, sorted_[jnp.array([[3, 1], [0, 2]])], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("momentum", [None, pytest.param(0.9, marks=pytest.mark.slow)])
def test_reverse_mode_of_any_loss(momentum, x64):
    """Against finite differences by kernels, targets, initial outputs, times and what the loss closes over."""
    k, k_td, y = small_problem()
    arguments = (k, k_td, y, jnp.array([3.0, 1.0]), 0.1 * y, jnp.array(0.7))

    def objective(k, k_td, y, t, start, weight):
        def loss(f, y):
            return cross_entropy(f, y) + weight * jnp.mean(f**2)

        fit = predict.gradient_descent(loss, k, y, 0.5, momentum, max_steps=400)
        return sum(jnp.sum(jnp.sin(v)) for v in fit(t, start, 0.3, k_td))

    value = jax.jit(objective)
    slopes = jax.jit(jax.grad(objective, range(6)))(*arguments)
    for i, (slope, argument) in enumerate(zip(slopes, arguments)):
        step = 1e-4 * noise(i, *argument.shape)
        moved = [(*arguments[:i], argument + s * step, *arguments[i + 1 :]) for s in (1, -1)]
        expected = (value(*moved[0]) - value(*moved[1])) / 2
        np.testing.assert_allclose(jnp.vdot(slope, step), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.slow
def test_reverse_mode_as_neural_tangents(x64):
    nt = reference.neural_tangents()
    k, k_td, y = small_problem()

    def objective(library, k, k_td, y):
        fit = library.predict.gradient_descent(cross_entropy, k, y, 0.5)
        return sum(jnp.sum(jnp.sin(v)) for v in fit(jnp.array([1.0, 3.0]), 0.1, 0.3, k_td))

    ours, theirs = (
        jax.jit(jax.grad(functools.partial(objective, library), (0, 1, 2)))(k, k_td, y)
        for library in (types.SimpleNamespace(predict=predict), nt)
    )
    for one, two in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-9)


def test_a_loss_with_kinks_slides_along_them(x64):
    """One point, k = 1, loss |f - 1| + f / 2: f' = 1/2 up to f = 1, and there it stays."""
    k, y = jnp.ones((1, 1)), jnp.ones((1, 1))
    fit = predict.gradient_descent(lambda f, y: jnp.sum(jnp.abs(f - y) + f / 2), k, y)
    expected = [[[0.0]], [[0.5]], [[1.0]], [[1.0]]]
    np.testing.assert_allclose(fit(jnp.array([0.0, 1.0, 4.0, 20.0])), expected, atol=1e-3)


def test_steps_that_run_out_are_a_warning():
    k, y = jnp.eye(2), jnp.ones((2, 1))
    fit = predict.gradient_descent(lambda f, y: jnp.sum(jnp.sin(50 * f)), k, y, max_steps=4)
    with pytest.warns(RuntimeWarning, match="4 steps did not reach all times"):
        assert jnp.isnan(fit(1e3)).all()


def test_negative_times_are_refused():
    k, y = jnp.eye(2), jnp.ones((2, 1))

    def kernel_fn(x1, x2, get):
        return Kernels(k, k) if isinstance(get, tuple) else k

    for fit in (
        predict.gradient_descent_mse(k, y),
        predict.gradient_descent(lambda f, y: jnp.sum((f - y) ** 2), k, y),
        predict.gradient_descent_mse_ensemble(kernel_fn, y, y),
    ):
        for t in (-1.0, jnp.array([1.0, -100.0]), jnp.nan):
            with pytest.raises(ValueError, match="times of training are not negative"):
                fit(t)
    fit = predict.gradient_descent_mse(k, y)
    assert jnp.isnan(jax.jit(fit)(-1.0)).all()


def test_kernels_and_targets_of_another_kind_are_refused():
    k, y = jnp.eye(3), jnp.ones((3, 1))
    both = Kernels(k, 2 * k)
    for make in (
        lambda kernel: predict.gradient_descent_mse(kernel, y),
        lambda kernel: predict.gradient_descent(lambda f, y: jnp.sum(f), kernel, y),
        predict.max_learning_rate,
        lambda kernel: predict.gradient_descent_mse(k, y)(1.0, 0.0, 0.0, kernel),
    ):
        with pytest.raises(ValueError, match=r"is a Kernels, and must be an array; .*kernel.ntk"):
            make(both)
    with pytest.raises(ValueError, match=r"targets as y\[:, None\]"):
        predict.gradient_descent_mse(k, y[:, 0])
    with pytest.raises(ValueError, match=r"k_test_train has shape \(3, 2\)"):
        predict.gradient_descent_mse(k, y)(1.0, 0.0, 0.0, jnp.ones((3, 2)))
    with pytest.raises(ValueError, match=r"k_test_train has shape \(3, 2\)"):
        predict.gp_inference(k, y)("nngp", jnp.ones((3, 2)))


def test_covariance_of_trained_networks_needs_both_kernels(x64):
    """Lee et al. 2019, equation 16, with the NNGP of training points and not their NTK."""
    k, k_td, y = small_problem()
    ntk, nngp = k + jnp.eye(3), k
    t_td, n_td, n_tt = 1.5 * k_td, k_td, 9 * jnp.eye(2)
    with pytest.raises(ValueError, match="takes the NNGP and the NTK"):
        predict.gp_inference(ntk, y)("ntk", t_td, n_tt)
    with pytest.raises(ValueError, match="takes the NNGP and the NTK"):
        predict.gp_inference(Kernels(nngp, ntk), y)("ntk", t_td, n_tt)
    found = predict.gp_inference(Kernels(nngp, ntk), y)("NTK", Kernels(n_td, t_td), n_tt)
    w = np.linalg.solve(ntk, t_td.T)
    cross = n_td @ w
    np.testing.assert_allclose(
        found.covariance, n_tt + w.T @ nngp @ w - cross - cross.T, rtol=1e-10
    )
    np.testing.assert_allclose(found.mean, w.T @ y, rtol=1e-10)


def test_targets_may_be_mapped_over(x64):
    k, _, y = small_problem()
    many = jnp.stack([y, y[::-1]])

    def outputs(y):
        return predict.gradient_descent(cross_entropy, k, y, 0.5)(jnp.array([3.0, 1.0]))

    expected = jnp.stack([outputs(y) for y in many])
    np.testing.assert_allclose(jax.jit(jax.vmap(outputs))(many), expected, rtol=1e-6, atol=1e-9)
