"""One step of descent in context: the best matrix by Monte Carlo and by its gradient, rates in closed form, Bayes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limits import in_context


def covariance(seed, d=3):
    root = np.random.default_rng(seed).normal(size=(d, d))
    return root @ root.T / d + 0.2 * np.eye(d)


def prompts(seed, count, n, lam, s, noise, response=lambda z: z, inputs=None):
    """(x, y, query, w . query) by numpy."""
    random = np.random.default_rng(seed)
    draw = random.standard_normal if inputs is None else lambda size: inputs(random, size)
    x = draw((count, n + 1, len(lam))) @ np.linalg.cholesky(lam).T
    w = random.standard_normal((count, len(lam))) @ np.linalg.cholesky(s).T
    z = response(np.einsum("bni,bi->bn", x, w))
    y = z[:, :-1] + noise**0.5 * random.standard_normal((count, n))
    return x[:, :-1], y, x[:, -1], z[:, -1]


def least_squares(x, y, query, target):
    """The best matrix of a sample, from the normal equations of its entries."""
    h = np.einsum("bni,bn->bi", x, y)
    features = np.einsum("bi,bj->bij", query, h).reshape(len(h), -1)
    found = np.linalg.solve(features.T @ features, features.T @ target)
    return found.reshape(x.shape[2], -1)


CASES = {
    "S = I": (covariance(0), np.eye(3)),
    "S = 1/Lam": (covariance(0), np.linalg.inv(covariance(0))),
    "any": (covariance(0), covariance(1)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_best_matrix_and_its_risk_are_those_of_drawn_prompts(case):
    lam, s = CASES[case]
    found = in_context.one_step(lam, 6, weight_covariance=s, noise=0.3)
    x, y, query, target = prompts(2, 150_000, 6, lam, s, 0.3)
    sampled = least_squares(x, y, query, target)
    assert np.linalg.norm(sampled - found.matrix) < 0.03 * np.linalg.norm(found.matrix)
    np.testing.assert_allclose(found.matrix, found.matrix.T)
    predicted = in_context.descend(x, y, query, found.matrix, 1)
    errors = (np.asarray(predicted) - target) ** 2
    assert abs(errors.mean() - found.risk) < 4 * errors.std() / len(errors) ** 0.5
    assert found.risk < found.baseline == pytest.approx((target**2).mean(), rel=0.03)


@pytest.mark.parametrize("case", CASES)
def test_no_other_matrix_has_a_smaller_risk(case):
    lam, s = CASES[case]
    given = {"weight_covariance": s, "noise": 0.3}
    best = in_context.one_step(lam, 6, **given)
    assert in_context.risk(best.matrix, lam, 6, **given) == pytest.approx(best.risk, rel=1e-12)
    assert in_context.risk(np.zeros((3, 3)), lam, 6, **given) == pytest.approx(best.baseline)
    random = np.random.default_rng(0)
    for _ in range(20):
        change = random.normal(size=(3, 3)) * 1e-3
        ends = [in_context.risk(best.matrix + e * change, lam, 6, **given) for e in (1, -1)]
        assert min(ends) > best.risk
        assert ends[0] == pytest.approx(ends[1], abs=1e-12)  # no slope


def test_closed_forms():
    lam, n, noise = covariance(3), 7, 0.4
    whole = n + 3 + 1 + noise
    plain = in_context.one_step(np.eye(3), n, noise=noise)
    np.testing.assert_allclose(plain.matrix, np.eye(3) / whole, atol=1e-15)
    assert plain.risk == pytest.approx(3 * (1 - n / whole))
    white = in_context.one_step(lam, n, weight_covariance=np.linalg.inv(lam), noise=noise)
    np.testing.assert_allclose(white.matrix, np.linalg.inv(lam) / whole, rtol=1e-10)
    natural = np.linalg.inv((n + 1) * lam + (np.trace(lam) + noise) * np.eye(3))
    np.testing.assert_allclose(in_context.one_step(lam, n, noise=noise).matrix, natural, rtol=1e-10)
    # Directions that no weight has are not looked into.
    flat = in_context.one_step(np.eye(3), n, weight_covariance=np.diag([1.0, 1.0, 0.0]))
    np.testing.assert_allclose(flat.matrix[2], 0)


def test_rates_of_responses_in_closed_form():
    """c = |w| / 2 for ReLU, sqrt(2 / pi) for the sign; moments of g by hand."""
    for d, n, noise in ((4, 12, 0.3), (1, 5, 0.0), (30, 8, 2.0)):
        rate = {
            name: in_context.response_rate(f, d, n, noise=noise)
            for name, f in (
                ("linear", lambda z: 3 * z),
                ("relu", jax.nn.relu),
                ("sign", np.sign),
                ("even", lambda z: z * z),
            )
        }
        assert rate["linear"] == pytest.approx(1 / (n + d + 1 + noise / 9), rel=1e-9)
        assert rate["relu"] == pytest.approx(1 / (2 * d + n + 3 + 4 * noise), rel=1e-9)
        c = 2 / np.pi
        assert rate["sign"] == pytest.approx(c / (d + d * noise + (n - 1) * c), rel=1e-9)
        assert rate["even"] == pytest.approx(0, abs=1e-12)
    # E c^2 = 9 E|w|^6; E f^2 g^2 = 105 E|w|^6 and E f^2 = 15 E|w|^6
    cube = in_context.response_rate(lambda z: z**3, 4, 12)
    assert cube == pytest.approx(9 / (105 + 3 * 15 + 11 * 9), rel=1e-9)


@pytest.mark.parametrize("name", ["shifted", "tanh", "step"])
def test_rates_of_responses_are_those_of_drawn_prompts(name):
    f = {
        "shifted": lambda z: np.maximum(z - 0.7, 0),
        "tanh": lambda z: np.tanh(2 * z),
        "step": lambda z: 1.0 * (z > 0.5),
    }[name]
    jax_f = {
        "shifted": lambda z: jax.nn.relu(z - 0.7),
        "tanh": lambda z: jnp.tanh(2 * z),
        "step": lambda z: 1.0 * (z > 0.5),
    }[name]
    x, y, query, target = prompts(0, 200_000, 6, np.eye(3), np.eye(3), 0.3, f)
    sampled = least_squares(x, y, query, target)
    eta = in_context.response_rate(jax_f, 3, 6, noise=0.3)
    assert np.linalg.norm(sampled - eta * np.eye(3)) < 0.06 * eta * 3**0.5


def test_rates_of_independent_coordinates():
    gaussian = in_context.one_step(0.5 * np.eye(4), 9, noise=0.2).matrix[0, 0]
    assert in_context.independent_rate(0.5, 0.75, 4, 9, noise=0.2) == pytest.approx(gaussian)

    def uniform(random, size):
        return random.uniform(-0.5, 0.5, size)

    x, y, query, target = prompts(1, 150_000, 6, np.eye(3), np.eye(3), 0.1, inputs=uniform)
    eta = in_context.independent_rate(1 / 12, 1 / 80, 3, 6, noise=0.1)
    sampled = least_squares(x, y, query, target)
    assert np.linalg.norm(sampled - eta * np.eye(3)) < 0.03 * eta * 3**0.5
    assert in_context.independent_rate(1 / 12, 1 / 80, 10, 10) == pytest.approx(1 / 1.65)


def test_descent_is_that_of_autodiff(x64):
    x, y, query, _ = (jnp.asarray(a) for a in prompts(0, 4, 5, covariance(0), np.eye(3), 0.1))
    matrix = jnp.asarray(covariance(5)) / 20

    def gradient(w, x, y):
        return jax.grad(lambda w: 0.5 * jnp.sum((y - x @ w) ** 2))(w)

    for rate in (0.02, matrix):
        found = in_context.descend(x, y, query, rate, 3)
        for b in range(4):
            w = jnp.zeros(3)
            for _ in range(3):
                w = w - (
                    rate @ gradient(w, x[b], y[b])
                    if jnp.ndim(rate)
                    else 0.02 * gradient(w, x[b], y[b])
                )
            assert float(found[b]) == pytest.approx(float(query[b] @ w), rel=1e-12)
    assert (in_context.descend(x, y, query, 0.1, 0) == 0).all()


def test_descent_with_correction_is_written_out(x64):
    x, y, query, _ = (jnp.asarray(a) for a in prompts(3, 2, 5, np.eye(3), np.eye(3), 0.1))
    rate, gamma = 0.05, 0.02
    found = in_context.descend(x, y, query, rate, 2, correction=gamma)
    for b in range(2):
        step = rate * x[b].T @ y[b]
        shrink = jnp.eye(3) - gamma * x[b].T @ x[b]
        second = rate * (x[b] @ shrink).T @ (y[b] - x[b] @ step)
        expected = query[b] @ step + query[b] @ shrink @ second
        assert float(found[b]) == pytest.approx(float(expected), rel=1e-12)
    one = in_context.descend(x, y, query, rate, 1, correction=gamma)
    np.testing.assert_array_equal(one, in_context.descend(x, y, query, rate, 1))


def test_ridge_is_bayes():
    lam, s = covariance(0), covariance(1)
    x, y, query, target = prompts(0, 20_000, 4, lam, s, 0.3)
    with jax.enable_x64(True):
        found = np.asarray(in_context.ridge(x, y, query, 0.3, weight_covariance=s))
    for b in range(3):  # the Gaussian posterior in the space of examples
        cross = x[b] @ s @ query[b]
        expected = cross @ np.linalg.solve(x[b] @ s @ x[b].T + 0.3 * np.eye(4), y[b])
        assert found[b] == pytest.approx(expected, rel=1e-9)
    bayes = ((found - target) ** 2).mean()
    plain = ((np.asarray(in_context.ridge(x, y, query, 0.3)) - target) ** 2).mean()
    step = in_context.one_step(lam, 4, weight_covariance=s, noise=0.3).risk
    assert bayes < plain
    assert bayes < 0.97 * step
    # without noise: it interpolates, with the least norm
    with jax.enable_x64(True):
        fit = np.asarray(in_context.ridge(x[:9, :2], y[:9, :2], x[:9, 0], 0.0))
    np.testing.assert_allclose(fit, y[:9, 0], rtol=1e-9)


def test_types_follow_the_inputs():
    x, y, query, _ = prompts(0, 2, 5, np.eye(3), np.eye(3), 0.1)
    assert in_context.descend(x, y, query, 0.1, 1).dtype == jnp.float32
    compiled = jax.jit(lambda rate: in_context.descend(x, y, query, rate, 2))
    np.testing.assert_allclose(compiled(0.1), in_context.descend(x, y, query, 0.1, 2), rtol=1e-5)


def test_mistakes_are_named():
    eye, x = np.eye(3), np.ones((2, 5, 3))
    with pytest.raises(ValueError, match="covariance is no covariance"):
        in_context.one_step(-eye, 3)
    with pytest.raises(ValueError, match=r"weight_covariance has the shape \(2, 2\)"):
        in_context.one_step(eye, 3, weight_covariance=np.eye(2))
    with pytest.raises(ValueError, match="nothing to predict"):
        in_context.one_step(0 * eye, 3)
    with pytest.raises(ValueError, match="covariance has entries that are not finite"):
        in_context.one_step(eye * np.nan, 3)
    with pytest.raises(ValueError, match=r"matrix has the shape \(2, 2\)"):
        in_context.risk(np.eye(2), eye, 3)
    with pytest.raises(ValueError, match=r"fourth_moment is 0.1; it must be at least"):
        in_context.independent_rate(1.0, 0.1, 3, 3)
    with pytest.raises(ValueError, match="second moments are not resolved"):
        in_context.response_rate(jnp.exp, 3, 3)
    with pytest.raises(ValueError, match="response is not finite"):
        in_context.response_rate(jnp.log, 3, 3)
    with pytest.raises(ValueError, match=r"moments of response are not resolved: rates"):
        in_context.response_rate(lambda z: jnp.sin(300 * z), 3, 3)
    with pytest.raises(ValueError, match="response is zero"):
        in_context.response_rate(lambda z: 0 * z, 3, 3)
    with pytest.raises(ValueError, match="do not fit"):
        in_context.descend(x, np.ones((2, 4)), x[:, 0], 0.1, 1)
    with pytest.raises(ValueError, match=r"rate has the shape \(2, 2\)"):
        in_context.descend(x, x[..., 0], x[:, 0], np.eye(2), 1)
    with pytest.raises(ValueError, match="noise is -1"):
        in_context.ridge(x, x[..., 0], x[:, 0], -1)
