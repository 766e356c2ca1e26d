"""Regression on inducing points: the exact machine where all samples are points, its normal equations elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk import solve
from ntk.regression import inducing

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


def test_sums_are_kept_and_go_on_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(inducing, "KEPT", 2)
    file, calls, most = tmp_path / "sums", [], [6]

    class Rows:
        """Samples on disk whose reading is interrupted."""

        chunks, shape, dtype = (7, 3), X.shape, X.dtype

        def __getitem__(self, where):
            calls.append(where.start)
            if len(calls) > most[0]:
                raise KeyboardInterrupt
            return X[where]

    options = {"points": X[::6], "diag_reg": 0.1, "block": 15, "path": file}
    # Six readings: the last block, which tells the samples from others, and five of the six.
    with pytest.raises(KeyboardInterrupt):
        solve.inducing(kernel_fn, Rows(), Y, **options)
    assert int(np.load(file)["done"]) == 4
    most[0], before = 100, len(calls)
    found = solve.inducing(kernel_fn, Rows(), Y, **options)
    assert calls[before:] == [75, 60, 75]  # nothing before the fifth block is read again
    whole = solve.inducing(kernel_fn, X, Y, **options | {"path": tmp_path / "whole"})
    np.testing.assert_array_equal(found.coefficients, whole.coefficients)
    plain = solve.inducing(kernel_fn, X, Y, **options | {"path": None})
    np.testing.assert_allclose(found.coefficients, plain.coefficients, rtol=1e-5, atol=1e-7)
    # The sums serve another regularisation, and no other targets.
    other = solve.inducing(kernel_fn, X, Y, **options | {"diag_reg": 0.5})
    plain = solve.inducing(kernel_fn, X, Y, **options | {"diag_reg": 0.5, "path": None})
    np.testing.assert_allclose(other.coefficients, plain.coefficients, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="belongs to another solve"):
        solve.inducing(kernel_fn, X, Y + 1, **options)
