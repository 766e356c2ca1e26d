"""Regression on inducing points: the exact machine where all samples are points, its normal equations elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk import solve

RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 3)).astype(np.float32)
Y = np.stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2]], 1)[..., None]
TEST = RNG.normal(size=(11, 3)).astype(np.float32)


def kernel_fn(x1, x2, get, length=2.0):
    """exp(-distance / length): smooth enough to be spanned by few points, well conditioned."""
    x2 = x1 if x2 is None else x2
    square = jnp.sum((x1[:, None] - x2[None]) ** 2, -1)
    return jnp.exp(-jnp.sqrt(square + 1e-12) / length)


def test_all_samples_as_points_give_the_exact_machine():
    exact = solve.regression(kernel_fn, X, Y, diag_reg=1e-2, length=1.5)
    found = solve.inducing(kernel_fn, X, Y, X, diag_reg=1e-2, length=1.5, block=32)
    np.testing.assert_allclose(found.predict(TEST), exact.predict(TEST), atol=2e-5)
    assert found.unseen < 1e-5
    assert found.predict(TEST).shape == (11, 2, 1)


def test_few_points_solve_their_normal_equations_whatever_the_block():
    points, reg = X[::6], 0.3
    found = solve.inducing(kernel_fn, X, Y, points, diag_reg=reg, diag_reg_absolute_scale=True)
    with jax.enable_x64(True):
        x, z = X.astype(float), points.astype(float)
        cross, inner = (np.asarray(kernel_fn(a, z, "ntk")) for a in (x, z))
    y = Y.reshape(90, 2)
    want = np.linalg.solve(cross.T @ cross + reg * inner, cross.T @ y)
    np.testing.assert_allclose(found.coefficients.reshape(15, 2), want, rtol=1e-3, atol=1e-5)
    left = np.linalg.norm(y - cross @ want, axis=0) / np.linalg.norm(y, axis=0)
    np.testing.assert_allclose(found.residual[:, 0], left, rtol=1e-4)
    seen = np.trace(cross @ np.linalg.solve(inner, cross.T)) / 90
    assert found.unseen == pytest.approx(1 - seen, rel=1e-4)
    for block in (7, 45):
        other = solve.inducing(
            kernel_fn, X, Y, points, diag_reg=reg, diag_reg_absolute_scale=True, block=block
        )
        np.testing.assert_allclose(other.coefficients, found.coefficients, rtol=1e-4, atol=1e-6)


def test_what_the_points_do_not_span_falls_with_their_number_and_so_does_the_distance_to_the_exact_machine():
    exact = solve.regression(kernel_fn, X, Y, diag_reg=1e-2).predict(TEST)
    unseen, distance = [], []
    for m in (10, 30, 80):
        found = solve.inducing(kernel_fn, X, Y, X[:m], diag_reg=1e-2)
        unseen.append(found.unseen)
        distance.append(np.abs(found.predict(TEST) - exact).max())
    assert unseen[0] > unseen[1] > unseen[2]
    assert distance[0] > distance[1] > distance[2]


def test_a_memory_map_is_read_by_blocks(tmp_path):
    np.save(tmp_path / "x.npy", X)
    stored = np.load(tmp_path / "x.npy", mmap_mode="r")
    found = solve.inducing(kernel_fn, stored, Y, X[:20], diag_reg=1e-2, block=16)
    want = solve.inducing(kernel_fn, X, Y, X[:20], diag_reg=1e-2, block=16)
    np.testing.assert_array_equal(found.coefficients, want.coefficients)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"diag_reg": -1.0}, "diag_reg is -1.0; it must be zero or positive"),
        ({"block": 0}, "block is 0; it must be a whole number of rows"),
        ({"y_train": Y[:5]}, r"it must be \(90, \.\.\.\)"),
        ({"y_train": Y * np.nan}, "not finite"),
        ({"points": 3}, "points must be an array"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    arguments = {"x_train": X, "y_train": Y, "points": X[:4], **change}
    with pytest.raises(ValueError, match=message):
        solve.inducing(kernel_fn, **arguments)


def test_an_unknown_keyword_is_a_type_error():
    with pytest.raises(TypeError, match="lenght"):
        solve.inducing(kernel_fn, X, Y, X[:4], lenght=2.0)


def test_points_that_coincide_need_jitter():
    found = solve.inducing(kernel_fn, X, Y, np.concatenate([X[:4], X[:4]]), diag_reg=1e-2)
    want = solve.inducing(kernel_fn, X, Y, X[:4], diag_reg=1e-2)
    assert found.jitter > 0
    np.testing.assert_allclose(found.predict(TEST), want.predict(TEST), atol=1e-2)
