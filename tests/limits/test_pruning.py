"""Pruned perceptrons: the theory against a convex programme by plain sums, simulations, limits and symmetries."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from limits import perceptron, pruning


def programme(alpha, share, hard, theta):
    """Error by the convex programme in (a, b, s)/k, with expectations as means over a Sobol sequence."""
    u = stats.qmc.Sobol(3, seed=0).random_base2(17)
    u[:, 0] = 0.5 + share * (u[:, 0] - 0.5) if hard else 1 - share * u[:, 0] / 2
    z, w, t = stats.norm.ppf(u).T
    y = np.sign(math.cos(theta) * z + math.sin(theta) * w)

    def room(x):  # s / sqrt(alpha) less the root of the mean square
        short = np.maximum(1 - y * (x[0] * z + x[1] * w) - x[2] * t, 0)
        return x[2] / math.sqrt(alpha) - math.sqrt((short**2).mean())

    start = np.array([math.cos(theta), math.sin(theta), 0.5]) * 20
    found = optimize.minimize(
        lambda x: x @ x / 2, start, jac=lambda x: x, method="SLSQP",
        constraints={"type": "ineq", "fun": room}, options={"maxiter": 200, "ftol": 1e-9},
    )  # fmt: skip
    a, b, _ = found.x / np.linalg.norm(found.x)
    return math.acos(a * math.cos(theta) + b * math.sin(theta)) / math.pi


@pytest.mark.parametrize(
    ("alpha", "share", "hard", "theta"),
    [(2.0, 0.4, True, 0.7), (3.0, 0.3, True, 0.35), (2.0, 0.4, False, 0.7)],
)
def test_the_convex_programme_by_plain_sums_agrees(alpha, share, hard, theta):
    found = pruning.perceptron(alpha / share, share, keep_hard=hard, probe_angle=theta)
    assert found.error == pytest.approx(programme(alpha, share, hard, theta), abs=5e-4)


def simulated(total, share, hard, theta, dim, random):
    """Error and margin of the max-margin classifier of a kept set."""
    x = random.normal(size=(round(total * dim), dim))
    distance = np.abs(math.cos(theta) * x[:, 0] + math.sin(theta) * x[:, 1])
    x, y = x * np.sign(x[:, :1]), np.sign(x[:, 0])
    order = np.argsort(distance if hard else -distance)[: round(share * len(x))]
    found = perceptron.margin(x[order])
    return math.acos(found.direction[0]) / math.pi, found.value, y


@pytest.mark.parametrize(
    ("total", "share", "hard", "theta"),
    [(5.0, 0.4, True, 0.0), (5.0, 0.4, False, 0.0), (10.0, 0.3, True, 0.35), (2.0, 1.0, True, 0.0)],
)
def test_simulated_students_agree(total, share, hard, theta):
    random = np.random.default_rng(0)
    runs = np.array([simulated(total, share, hard, theta, 60, random)[:2] for _ in range(16)])
    found = pruning.perceptron(total, share, keep_hard=hard, probe_angle=theta)
    spread = runs.std(axis=0, ddof=1) / 4
    assert abs(runs[:, 0].mean() - found.error) < 3 * spread[0] + 0.01
    assert abs(runs[:, 1].mean() - found.margin) < 3 * spread[1] + 0.01


def test_the_margin_is_that_of_its_own_equation():
    """The constraint at the solution, by sampling: s^2 = alpha E (k - y (a z + b w) - s t)_+^2."""
    alpha, share, theta = 3.0, 0.3, 0.35
    nodes = pruning._nodes(alpha, share, True, theta)
    chi, psi, k = pruning._turn(0.7, theta, nodes, alpha)
    random = np.random.default_rng(0)
    z, w, t = random.normal(size=(3, 2_000_000))
    kept = np.abs(z) <= np.quantile(np.abs(z), share)
    z, w, t = z[kept], w[kept], t[kept]
    y = np.sign(math.cos(theta) * z + math.sin(theta) * w)
    mean = math.cos(chi) * (math.cos(psi) * z + math.sin(psi) * w)
    squares = alpha * np.maximum(k - y * mean - math.sin(chi) * t, 0) ** 2
    assert abs(squares.mean() - math.sin(chi) ** 2) < 4 * squares.std() / math.sqrt(z.size)


def test_without_pruning_the_error_is_half_over_alpha():
    errors = pruning.perceptron([100.0, 1e4, 1e6], 1.0).error
    np.testing.assert_allclose(errors * [100, 1e4, 1e6], 0.5005, atol=1e-3)
    assert 0.4 < pruning.perceptron(0.1, 1.0).error < 0.5


def test_a_probe_that_knows_nothing_keeps_at_random():
    for hard in (True, False):
        found = pruning.perceptron(5.0, 0.4, keep_hard=hard, probe_angle=math.pi / 2)
        assert found.error == pytest.approx(pruning.perceptron(2.0, 1.0).error, abs=1e-8)


def test_a_small_angle_is_none_and_a_large_share_is_all():
    exact = pruning.perceptron(5.0, 0.4)
    assert pruning.perceptron(5.0, 0.4, probe_angle=1e-5).error == pytest.approx(
        exact.error, abs=1e-6
    )
    for hard in (True, False):
        found = pruning.perceptron(5.0, 1 - 1e-9, keep_hard=hard, probe_angle=0.3)
        assert found.error == pytest.approx(pruning.perceptron(5.0, 1.0).error, rel=1e-5)


def test_pruning_turns_at_two_examples_a_dimension():
    """Above, error times alpha_total has a limit; below, the error goes to one half; there, as the cube root."""
    shares = np.array([1e-3, 1e-5])
    above, at, below = (
        pruning.perceptron(alpha / shares, shares).error for alpha in (2.2, 2.0, 1.5)
    )
    np.testing.assert_allclose(above * 2.2 / shares, 0.8217, rtol=1e-3)
    assert math.log10(at[0] / at[1]) == pytest.approx(2 / 3, abs=2e-3)
    assert (below > 0.498).all()
    assert pruning.perceptron(4e6, 1e-6).error * 4e6 == pytest.approx(0.503, abs=1e-3)


def test_the_frontier_is_the_lowest_of_its_shares():
    found = pruning.frontier([3.0, 8.0], math.radians(30), least=0.05, points=5)
    for alpha, keep, error in zip((3.0, 8.0), *found):
        shares = np.append(np.geomspace(0.1, 1, 5), [keep * 0.99, min(keep * 1.01, 1)])
        others = pruning.perceptron(alpha / shares, shares, probe_angle=math.radians(30)).error
        assert error <= others.min() * (1 + 1e-6)
    assert pruning.frontier(3.0, least=1e-4).keep == pytest.approx(1e-4)
    assert pruning.frontier(0.5).keep == 1
    # the table of the slopes of an imperfect probe: errors at 6 and 12 a dimension
    errors = pruning.frontier([6.0, 12.0], math.radians(10), least=0.05, points=5).error
    np.testing.assert_allclose(errors, [0.02125, 0.00888], rtol=2e-3)


def test_shapes_follow_the_arguments():
    found = pruning.perceptron(np.array([[5.0], [10.0]]), [0.3, 0.5])
    assert found.error.shape == found.overlap.shape == found.margin.shape == (2, 2)
    assert found.error[1, 0] == pruning.perceptron(10.0, 0.3).error
    assert isinstance(pruning.perceptron(10.0, 0.3).error, float)
    np.testing.assert_allclose(np.cos(np.pi * found.error), found.overlap, rtol=1e-12)


def test_nothing_asked_is_nothing_answered_and_shapes_that_do_not_fit_are_named():
    assert [np.shape(part) for part in pruning.perceptron(np.zeros((0, 2)), 1.0)] == [(0, 2)] * 3
    assert [np.shape(part) for part in pruning.frontier([])] == [(0,)] * 2
    with pytest.raises(ValueError, match=r"alpha_total \(2,\), keep \(3,\).* do not broadcast"):
        pruning.perceptron([1.0, 2.0], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"alpha_kept \(2,\), probe_angle \(3,\) do not broadcast"):
        pruning.frontier([1.0, 2.0], [0.1, 0.2, 0.3])
