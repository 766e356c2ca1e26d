"""Opposing signals: the logistic law against its differential equation and against gradient descent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limits import opposing

KEY = jax.random.key(0)


def test_the_path_solves_its_differential_equation_and_meets_the_edge():
    alpha, signal, start, rate = 40.0, 3.0, 0.05, 0.025
    times = np.linspace(0, 3, 30_001)
    u = opposing.sharpness_path(alpha, signal, start, times) / alpha
    assert u[0] == pytest.approx(start)
    assert u[-1] == pytest.approx(signal, rel=1e-5)
    slope = np.gradient(u, times, edge_order=2)
    np.testing.assert_allclose(slope, 2 * u * (signal - u), atol=1e-6)
    crossing = opposing.crossing_time(alpha, signal, start, rate)
    assert opposing.sharpness_path(alpha, signal, start, crossing) == pytest.approx(2 / rate)


def test_no_crossing_up_to_the_edge_and_none_to_wait_for_above_it():
    assert opposing.crossing_time(40.0, 3.0, 0.05, 2 / 120) == np.inf
    assert np.isfinite(opposing.crossing_time(40.0, 3.0, 0.05, 2 / 119))
    assert opposing.crossing_time(40.0, 3.0, 2.5, 0.025) == 0


def test_second_moments_are_those_of_the_population(x64):
    data = opposing.outliers(KEY, 400, 6, alpha=20.0, signal=3.0, share=0.05, magnitude=0.5)
    x, y = np.asarray(data.inputs), np.asarray(data.targets)
    np.testing.assert_allclose(x.T @ x / 400, np.diag([1.0] * 6 + [20.0]), atol=1e-12)
    moments = x.T @ y / 400
    assert np.linalg.norm(moments[:6]) == pytest.approx(3)
    assert moments[6] == pytest.approx(0, abs=1e-12)
    assert len(data.positive) == len(data.negative) == 10
    assert (x[data.positive, 6] > 0).all()
    assert (x[data.negative, 6] < 0).all()
    assert np.count_nonzero(x[:, 6]) == 20
    known = opposing.outliers(
        KEY, 400, 6, alpha=20.0, signal=3.0, share=0.05, magnitude=0.5, consistent=True
    )
    assert known.inputs[:, 6] @ known.targets / 400 == pytest.approx(0.5 * 20)


@pytest.mark.parametrize("seed", [0, 1])
def test_gradient_descent_follows_the_law_until_it_crosses_the_edge(seed):
    alpha, signal, rate, steps = 40.0, 3.0, 0.025, 60
    keys = jax.random.split(jax.random.key(seed), 3)
    data = opposing.outliers(keys[0], 1000, 10, alpha=alpha, signal=signal)
    first = 0.03 * jax.random.normal(keys[1], (32, 11))
    params = {"first": first, "second": 0.03 * jax.random.normal(keys[2], (32,))}

    def loss(params):
        return 0.5 * jnp.mean(
            (data.targets - data.inputs @ params["first"].T @ params["second"]) ** 2
        )

    @jax.jit
    def descend(params):
        def step(params, _):
            moved = jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(loss)(params))
            return moved, jnp.sum(params["second"] ** 2)

        return jax.lax.scan(step, params, length=steps)[1]

    u = np.asarray(descend(params), float)
    start, crossed = int(np.argmax(u > 0.1)), int(np.argmax(alpha * u > 2 / rate))
    expected = start + opposing.crossing_time(alpha, signal, u[start], rate) / rate
    assert crossed == pytest.approx(expected, abs=2)
