"""Tilted boundaries: by hand, under real attacks, and discriminants fitted on drawn examples."""

import math

import numpy as np
import pytest

from limits import boundary_tilting


def test_tilt_by_hand():
    means = [[1.0, 1.0], [4.0, 1.0]]
    found = boundary_tilting.tilt([2.0, 2.0], means)
    assert found.angle == pytest.approx(math.pi / 4)
    assert found.strength == pytest.approx(2**0.5)
    assert boundary_tilting.tilt([5.0, 0.0], means) == (0.0, 1.0)
    assert boundary_tilting.tilt([1.0, 1e-9], means).angle == pytest.approx(1e-9)
    assert boundary_tilting.tilt([0.0, 1.0], means).strength == pytest.approx(math.inf, abs=0)
    assert boundary_tilting.tilt([-1.0, 0.0], means).angle == pytest.approx(math.pi)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_the_scale_of_the_weights_does_not_matter(scale):
    w, a = scale * np.array([1.0, 1.0]), np.array([1.0, 0.0])
    assert boundary_tilting.tilt(w, [-a, a]).angle == pytest.approx(math.pi / 4)
    assert boundary_tilting.tilt(w, [-scale * a, scale * a]).angle == pytest.approx(math.pi / 4)
    found = boundary_tilting.attacked_error(w, a, np.eye(2), 0.1)
    assert found == pytest.approx(boundary_tilting.attacked_error([1.0, 1.0], a, np.eye(2), 0.1))


def test_what_is_no_covariance_is_refused():
    a, indefinite, skew = [1.0, 0.0], [[1.0, 0.0], [0.0, -5.0]], [[1.0, 0.5], [0.0, 1.0]]
    calls = (
        lambda s: boundary_tilting.attacked_error(a, a, s),
        lambda s: boundary_tilting.discriminant(a, s),
        lambda s: boundary_tilting.fitted(a, s, 60),
    )
    for call in calls:
        with pytest.raises(ValueError, match="smallest eigenvalue -5; it must be positive"):
            call(indefinite)
        with pytest.raises(ValueError, match=r"\[0, 1\] is 0.5 and .* is 0; it must be symmetric"):
            call(skew)
    # of rank one, as an estimate may be
    assert boundary_tilting.attacked_error(a, a, np.diag([1.0, 0.0])) == pytest.approx(0.158655254)
    with pytest.raises(ValueError, match=r"variance along the weights is 0.0"):
        boundary_tilting.attacked_error(a, a, np.diag([0.0, 1.0]))


def test_strength_is_how_much_nearer_the_means_lie():
    random = np.random.default_rng(0)
    w, means = random.standard_normal(5), random.standard_normal((2, 5))
    w *= np.sign(w @ (means[1] - means[0]))
    middle = means.mean(0)
    away = np.abs((means - middle) @ w) / np.linalg.norm(w)
    nearest = np.linalg.norm(means - middle, axis=1)
    found = boundary_tilting.tilt(w, means)
    np.testing.assert_allclose(nearest / away, found.strength)
    assert math.cos(found.angle) == pytest.approx(1 / found.strength)


@pytest.mark.parametrize("radius", [0.0, 0.4])
def test_attacked_error_is_the_share_wrong_after_real_steps(radius):
    random = np.random.default_rng(1)
    a, w = np.array([1.0, 0.5, 0.0]), np.array([1.0, -0.3, 0.4])
    root = random.standard_normal((3, 3)) / 2
    y = random.choice([-1.0, 1.0], 200_000)
    x = y[:, None] * a + random.standard_normal((len(y), 3)) @ root.T
    x -= radius * y[:, None] * w / np.linalg.norm(w)
    share = (y * (x @ w) < 0).mean()
    found = boundary_tilting.attacked_error(w, a, root @ root.T, radius)
    assert found == pytest.approx(share, abs=4 * math.sqrt(found / len(y)))


def test_the_discriminant_goes_from_least_error_to_the_nearest_centroid():
    a, s = np.array([1.0, 0.2]), np.diag([1.0, 0.01])
    best = boundary_tilting.discriminant(a, s)
    np.testing.assert_allclose(best, [1.0, 20.0])
    errors = [
        boundary_tilting.attacked_error([math.cos(t), math.sin(t)], a, s)
        for t in np.linspace(0, 1.57, 300)
    ]
    least = boundary_tilting.attacked_error(best, a, s)
    assert least <= min(errors) + 1e-15
    assert least == pytest.approx(min(errors), abs=1e-4)
    ridged = boundary_tilting.discriminant(a, s, 1e9)
    assert boundary_tilting.tilt(ridged, [-a, a]).angle < 1e-6


@pytest.mark.parametrize("flat", [0, 20])
def test_fitted_discriminants_tilt_as_predicted(flat):
    """100 dimensions, some of a ten thousandth of the variance: strength and error of 40 fits on 300 examples."""
    d, n = 100, 300
    variances = np.ones(d)
    variances[d - flat :] = 1e-4
    a = np.zeros(d)
    a[:10] = 0.5
    s = np.diag(variances)
    strengths, errors = [], []
    for seed in range(40):
        random = np.random.default_rng(seed)
        y = np.repeat([-1.0, 1.0], n // 2)
        x = y[:, None] * a + random.standard_normal((n, d)) * np.sqrt(variances)
        means = [x[y == side].mean(0) for side in (-1, 1)]
        inside = np.vstack([x[y == side] - m for side, m in zip((-1, 1), means)])
        w = boundary_tilting.discriminant((means[1] - means[0]) / 2, inside.T @ inside / (n - 2))
        strengths.append(boundary_tilting.tilt(w, [-a, a]).strength)
        errors.append(boundary_tilting.attacked_error(w, a, s))
    found = boundary_tilting.fitted(a, s, n)
    assert np.sqrt(np.mean(np.square(strengths))) == pytest.approx(found.strength, rel=0.05)
    assert found.angle == pytest.approx(math.acos(1 / found.strength))
    assert np.mean(errors) == pytest.approx(found.error, rel=0.05)
    if flat:  # the tilt is free: without flat directions the error is the same and the angle is not
        plain = boundary_tilting.fitted(a, np.eye(d), n)
        assert found.error == pytest.approx(plain.error)
        assert found.strength > 10 * plain.strength
