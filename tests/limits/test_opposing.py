"""The logistic law of opposing outliers: its differential equation, its network, and where gradient descent crosses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limits import opposing
from metrics.examples import opposing_signals

ALPHA, SIGNAL, RATE, WIDTH = 40.0, 3.0, 0.025, 32


def descent(seed, *, alpha=ALPHA, signal=SIGNAL, rate=RATE, steps=120, consistent=False):
    """u = |w2|^2 and the losses of every example along gradient descent from small balanced weights."""
    made = opposing.outliers(
        jax.random.key(seed), 400, 20, alpha=alpha, signal=signal, consistent=consistent
    )
    first, second = jax.random.split(jax.random.key(100 + seed))
    weights = {
        "first": 0.03 * jax.random.normal(first, (WIDTH, 21)),
        "second": 0.03 * jax.random.normal(second, (WIDTH,)),
    }

    def losses(w):
        return (made.targets - made.inputs @ w["first"].T @ w["second"]) ** 2 / 2

    @jax.jit
    def run(weights):
        def step(w, _):
            new = jax.tree.map(
                lambda p, g: p - rate * g, w, jax.grad(lambda w: losses(w).mean())(w)
            )
            return new, (jnp.sum(w["second"] ** 2), losses(w))

        return jax.lax.scan(step, weights, None, length=steps)[1]

    return made, *map(np.asarray, run(weights))


def test_the_path_solves_its_equation():
    times, h = np.linspace(0, 2, 9), 1e-5
    path, ahead, behind = (
        opposing.sharpness_path(ALPHA, SIGNAL, 0.01, times + shift) for shift in (0, h, -h)
    )
    np.testing.assert_allclose(
        (ahead - behind) / (2 * h), 2 * path * (SIGNAL - path / ALPHA), rtol=1e-7
    )
    assert path[0] == pytest.approx(ALPHA * 0.01)
    assert opposing.sharpness_path(ALPHA, SIGNAL, 0.01, 50.0) == pytest.approx(ALPHA * SIGNAL)


def test_the_path_far_back_and_from_above():
    """Long before the start it vanishes; from R nothing moves; from above R it was infinite at a finite time."""
    path = opposing.sharpness_path(ALPHA, SIGNAL, 0.01, [-1e6, 0.0, 1e6])
    np.testing.assert_allclose(path, [0.0, ALPHA * 0.01, ALPHA * SIGNAL])
    at_rest = opposing.sharpness_path(ALPHA, SIGNAL, SIGNAL, [-1e6, -1.0, 1.0])
    np.testing.assert_allclose(at_rest, ALPHA * SIGNAL)
    born = math.log(1 - SIGNAL / 5.0) / (2 * SIGNAL)
    above = opposing.sharpness_path(
        ALPHA, SIGNAL, 5.0, [born - 1e-3, -1e6, born + 1e-9, -0.05, 0.0]
    )
    assert np.isnan(above[:2]).all()
    assert above[2] > 1e6
    assert above[3] > above[4] == pytest.approx(ALPHA * 5.0)


def test_the_crossing_is_where_the_path_meets_the_edge():
    time = opposing.crossing_time(ALPHA, SIGNAL, 0.01, RATE)
    assert opposing.sharpness_path(ALPHA, SIGNAL, 0.01, time) == pytest.approx(2 / RATE)
    assert opposing.crossing_time(ALPHA, SIGNAL, 2.5, RATE) == 0
    assert opposing.crossing_time(ALPHA, SIGNAL, 0.01, 2 / (ALPHA * SIGNAL)) == math.inf


@pytest.mark.parametrize("consistent", [False, True])
def test_second_moments_are_those_of_the_population(consistent):
    made = opposing.outliers(
        jax.random.key(0), 200, 6, alpha=ALPHA, signal=SIGNAL, share=0.04, consistent=consistent
    )
    x, y = np.asarray(made.inputs, float), np.asarray(made.targets, float)
    moments = x.T @ x / len(x)
    np.testing.assert_allclose(moments, np.diag([1.0] * 6 + [ALPHA]), atol=2e-5)
    toward = x.T @ y / len(x)
    assert np.linalg.norm(toward[:6]) == pytest.approx(SIGNAL, rel=1e-5)
    assert toward[6] == pytest.approx(0.3 * ALPHA if consistent else 0, abs=1e-4)
    assert (x[made.positive, 6] > 0).all()
    assert (x[made.negative, 6] < 0).all()


def test_a_network_follows_the_law_at_a_small_rate():
    _, u, _ = descent(0, rate=1e-3, steps=3000)
    start = 300  # where the network is balanced; the law is of the flow from there
    predicted = opposing.sharpness_path(ALPHA, SIGNAL, u[start], 1e-3 * np.arange(2700)) / ALPHA
    assert np.abs(u[start:] - predicted).max() < 0.03 * SIGNAL


@pytest.mark.parametrize(("signal", "rate"), [(3.0, 0.025), (4.0, 0.02)])
@pytest.mark.parametrize("seed", [0, 1])
def test_gradient_descent_crosses_the_edge_when_predicted(signal, rate, seed):
    _, u, losses = descent(seed, signal=signal, rate=rate)
    crossed = int(np.argmax(ALPHA * u > 2 / rate))
    start = int(np.argmax(u > 0.1))
    predicted = start + opposing.crossing_time(ALPHA, signal, u[start], rate) / rate
    assert abs(crossed - predicted) <= 2
    found = opposing_signals(jnp.asarray(losses[crossed:]), 4, until="first")
    assert bool(found.oscillates)
    assert float(found.correlation) <= -0.95


def test_below_the_edge_nothing_crosses():
    _, u, _ = descent(0, rate=0.0125)
    assert ALPHA * u.max() < 2 / 0.0125
    assert opposing.crossing_time(ALPHA, SIGNAL, u[0], 0.0125) == math.inf


def test_both_groups_are_found_at_the_first_rise_and_not_where_the_signal_can_be_learnt():
    """The control has outliers, too, that no step sets against one another."""
    recall = {}
    for consistent in (False, True):
        made, _, losses = descent(2, consistent=consistent)
        found = opposing_signals(jnp.asarray(losses[20:]), 4, until="first")
        groups = [set(np.asarray(g).tolist()) for g in (found.up, found.down)]
        planted = [set(made.positive.tolist()), set(made.negative.tolist())]
        recall[consistent] = max(
            sum(len(a & b) for a, b in zip(groups, order)) for order in (planted, planted[::-1])
        )
    assert recall[False] == 8
    assert recall[True] <= 4


def test_mistakes_are_named():
    def outliers(dim=3, **options):
        return opposing.outliers(jax.random.key(0), 100, dim, alpha=1.0, signal=1.0, **options)

    with pytest.raises(ValueError, match="dim is 99"):
        outliers(99)
    with pytest.raises(ValueError, match=r"share is 0\.001"):
        outliers(share=0.001)
    with pytest.raises(ValueError, match="learning_rate is -1"):
        opposing.crossing_time(1.0, 1.0, 0.1, -1.0)
    with pytest.raises(ValueError, match="until is 'last'"):
        opposing_signals(jnp.ones((5, 4)), 1, until="last")
