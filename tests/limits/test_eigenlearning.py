"""Power laws against their sums, the two closed formulas against the full equations with modes up to 10^14."""

import numpy as np
import pytest
from scipy import special

from limits import eigenlearning


@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.5])
def test_binned_power_laws_have_the_sums_of_all_modes(exponent):
    count = 10**6
    modes = eigenlearning.power_law(exponent, count, exact=1000, bins=500)
    target = eigenlearning.power_law_target(exponent, count, exact=1000, bins=500)
    i = np.arange(1, count + 1.0)
    assert modes.multiplicity.sum() == count
    np.testing.assert_allclose(modes.values @ modes.multiplicity, (i**-exponent).sum(), rtol=1e-8)
    np.testing.assert_allclose(target.sum(), (i**-exponent).sum(), rtol=1e-8)
    np.testing.assert_array_equal(modes.values[:1000], i[:1000] ** -exponent)
    every = [
        eigenlearning.kernel_regression(l, l * w, 50, multiplicity=w)
        for l, w in ((i**-1.5, np.ones(count)), eigenlearning.power_law(1.5, count, exact=1000))
    ]
    np.testing.assert_allclose(every[1].test, every[0].test, rtol=1e-6)


def test_the_tail_reaches_far():
    modes = eigenlearning.power_law(1.5, 1e14)
    total = modes.values @ modes.multiplicity
    assert total == pytest.approx(special.zeta(1.5), abs=3e-7)
    assert eigenlearning.power_law(2.0, 7).multiplicity.tolist() == [1] * 7


def measured_ratio(alpha, beta, noise, n, count=1e14):
    modes = eigenlearning.power_law(alpha, count, exact=4 * n, bins=1500)
    power = eigenlearning.power_law_target(beta, count, exact=4 * n, bins=1500)
    options = {"multiplicity": modes.multiplicity}
    base = eigenlearning.kernel_regression(modes.values, power, n, **options).test
    best = eigenlearning.optimal_ridge(modes.values, power, n, noise=noise * base, **options)
    return float(best.train / best.test), float(best.ridge)


@pytest.mark.parametrize(
    ("alpha", "beta", "noise", "expected", "tolerance"),
    [
        (1.5, 1.2, 0.0, 0.2500, 0.006),
        (2.0, 1.5, 0.0, 0.1111, 0.003),
        (1.5, 1.8, 2.0, 0.1423, 0.003),
        (1.3, 1.6, 1.5, 0.0442, 0.003),
        (1.5, 1.2, 1.0, 0.5533, 0.006),
    ],
)
def test_the_fitting_ratio_is_that_of_the_full_equations(alpha, beta, noise, expected, tolerance):
    found = eigenlearning.fitting_ratio(alpha, beta, noise)
    assert found == pytest.approx(expected, abs=5e-5)
    assert not eigenlearning.overfitting_is_obligatory(alpha, beta, noise)
    assert measured_ratio(alpha, beta, noise, 300)[0] == pytest.approx(found, abs=tolerance)


@pytest.mark.parametrize(
    ("alpha", "beta", "noise"), [(1.5, 1.8, 0.0), (1.5, 1.8, 0.2), (1.2, 2.5, 1.0)]
)
def test_overfitting_is_obligatory_where_the_full_equations_have_no_ridge(alpha, beta, noise):
    assert eigenlearning.overfitting_is_obligatory(alpha, beta, noise)
    assert eigenlearning.fitting_ratio(alpha, beta, noise) == 0
    assert measured_ratio(alpha, beta, noise, 300) == (0, 0)


def test_a_spectrum_that_is_cut_off_is_another_problem():
    assert measured_ratio(1.5, 1.2, 0.0, 300, 2e5)[0] == pytest.approx(0.15, abs=0.005)


def test_the_boundary():
    assert eigenlearning.overfitting_is_obligatory(1.5, 1.5 + 1.5 * 0.5 * 0.2, 0.2)
    assert not eigenlearning.overfitting_is_obligatory(1.5, 1.5 + 1.5 * 0.5 * 0.2 - 1e-9, 0.2)


@pytest.mark.parametrize(
    ("teacher", "student", "nu_teacher", "nu_student", "expected"),
    [
        (1, 1, 0.5, 0.5, 1.0),
        (1, 2, 0.5, 0.5, 0.75),
        (2, 2, 0.5, 0.5, 0.5),
        (1, 4, 0.5, 0.5, 0.625),
        (2, 4, 0.5, 0.5, 5 / 12),
        (3, 3, 0.5, 0.5, 1 / 3),
        (1, 2, 1.5, 0.5, 2.25),
        (1, 1, 4.5, 0.5, 4.0),  # saturated: 2 (1 + 2 nu_S / d_S)
    ],
)
def test_learning_exponents_are_those_of_the_risk(
    teacher, student, nu_teacher, nu_student, expected
):
    """A spectrum of sectors: d = 1 with the teacher's modes, and the student's own of d_S, in shells of |k|."""
    options = {"teacher_smoothness": nu_teacher, "student_smoothness": nu_student}
    found = eigenlearning.learning_exponent(teacher, student, **options)
    assert found == pytest.approx(expected)
    shells = np.geomspace(1, 1e9, 6000)
    step = np.log(shells[1] / shells[0])
    l, w, v = [], [], []
    for d in {teacher, student}:
        l.append(shells ** -(2 * nu_student + d))
        w.append(step * shells**d)
        v.append((d == teacher) * step * shells ** (-2.0 * nu_teacher))
    n = np.geomspace(1e6, 1e8, 5) if student < 4 else np.geomspace(1e10, 1e12, 5)
    l, w, v = map(np.concatenate, (l, w, v))
    curve = eigenlearning.kernel_regression(l, v, n, multiplicity=w)
    slope = -np.polyfit(np.log(n), np.log(curve.test), 1)[0]
    assert slope == pytest.approx(found, abs=0.04)
