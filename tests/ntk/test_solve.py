import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk import gram, solve

N = 60


def with_spectrum(eigenvalues, seed=0):
    """A symmetric matrix with these eigenvalues."""
    n = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    matrix = (q * eigenvalues) @ q.T
    return (matrix + matrix.T) / 2


@pytest.fixture
def kernel():
    return with_spectrum(np.geomspace(1, 1e-8, N))


@pytest.fixture
def y():
    return np.random.default_rng(1).normal(size=(N, 2, 1))


def direct(kernel, y, reg):
    columns = np.linalg.solve(kernel + reg * np.eye(len(kernel)), y.reshape(len(y), -1))
    return columns.reshape(y.shape)


@pytest.mark.parametrize("reg", [1e-6, 1e-2])
def test_cholesky_conjugate_gradients_and_numpy_agree(kernel, y, reg):
    want = direct(kernel, y, reg)
    options = {"diag_reg_absolute_scale": True}
    by_cholesky = solve.cholesky(kernel, y, reg, **options)
    by_iteration = solve.conjugate_gradient(kernel, y, reg, rank=20, tolerance=1e-10, **options)
    for found in (by_cholesky, by_iteration):
        assert found.coefficients.dtype == np.float64
        assert found.coefficients.shape == y.shape
        np.testing.assert_allclose(found.coefficients, want, rtol=1e-5, atol=1e-6 * abs(want).max())
        assert found.residual.shape == (2, 1)
        assert found.residual.max() < 1e-8
        assert found.converged
        assert found.jitter == 0
    assert by_cholesky.iterations == 0 < by_iteration.iterations


def test_regularisation_is_in_units_of_the_mean_of_the_diagonal(kernel, y):
    iterate = functools.partial(solve.conjugate_gradient, tolerance=1e-9, rank=20)
    for solver in (solve.cholesky, iterate):
        found = solver(kernel, y, 1e-2)
        want = direct(kernel, y, 1e-2 * np.trace(kernel) / N)
        np.testing.assert_allclose(found.coefficients, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("condition", [1e2, 1e6, 1e12])
def test_condition_number_is_estimated_from_below(y, condition):
    matrix = with_spectrum(np.geomspace(1, 1 / condition, N))
    found = solve.cholesky(matrix, y)
    assert 0.3 * condition < found.condition < 1.01 * condition
    assert found.jitter == 0
    reg = 100 / condition
    found = solve.conjugate_gradient(matrix, y, reg, diag_reg_absolute_scale=True, rank=20)
    assert 0.9 < found.condition / (1 / reg + 1) < 1.1


def test_without_a_preconditioner_the_largest_eigenvalue_is_bounded_by_what_was_multiplied(y):
    """The first direction is y: |A y| / |y| is nearer to a lonely eigenvalue than Rayleigh's quotient."""
    matrix, reg = with_spectrum(np.r_[1000.0, np.ones(N - 1)]), 1e-3
    options = {"diag_reg_absolute_scale": True, "rank": 0, "tolerance": 1e-6}
    found = solve.conjugate_gradient(matrix, y, reg, **options)
    columns = y.reshape(N, -1)
    stretched = np.linalg.norm(matrix @ columns, axis=0) / np.linalg.norm(columns, axis=0)
    assert 0.999 * stretched.max() / reg < found.condition < 1001 * 1.001 / reg


def test_duplicated_points_are_solved_with_jitter_that_is_reported():
    x = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    x = np.concatenate([x, x])
    y = np.stack([x[:, 0], np.sin(x[:, 1])], 1)
    square = np.sum((x[:, None] - x[None]) ** 2, -1)
    matrix = np.exp(-square).astype(np.float32)
    with pytest.warns(RuntimeWarning, match="singular to working precision: jitter of"):
        found = solve.cholesky(matrix, y)
    scale = np.sqrt(60) * np.finfo(np.float32).eps
    assert 3 * scale < found.jitter < 50 * scale
    assert found.condition > 1e4
    assert found.converged
    np.testing.assert_allclose(matrix @ found.coefficients, y, atol=1e-2)
    with pytest.warns(RuntimeWarning, match="jitter of"):
        double = solve.cholesky(matrix, y, dtype=jnp.float64)
    assert double.jitter < 1e-6 * found.jitter
    np.testing.assert_allclose(matrix @ double.coefficients, y, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert solve.cholesky(matrix, y, 1e-3).jitter == 0


def test_double_precision_of_a_float32_kernel_on_request(y):
    matrix = with_spectrum(np.geomspace(1, 1e-5, N)).astype(np.float32)
    want = direct(matrix.astype(float), y, 0)
    single = solve.cholesky(jnp.asarray(matrix), y)
    double = solve.cholesky(jnp.asarray(matrix), y, dtype=jnp.float64)
    assert single.coefficients.dtype == np.float32
    assert double.coefficients.dtype == np.float64
    error = [abs(found.coefficients - want).max() / abs(want).max() for found in (single, double)]
    assert error[1] < 1e-9 < 1e-4 < error[0]
    assert jnp.zeros(()).dtype == np.float32  # double precision stayed inside


def refitted(kernel, y, reg):
    """Residual of each sample under a fit to all others."""
    out = np.empty_like(y)
    for i in range(len(y)):
        rest = np.arange(len(y)) != i
        weights = direct(kernel[np.ix_(rest, rest)], y[rest], reg)
        out[i] = y[i] - np.tensordot(kernel[i, rest], weights, 1)
    return out


def test_leave_one_out_equals_refitting(kernel, y):
    reg = 1e-3
    want = refitted(kernel, y, reg)
    found = solve.cholesky(kernel, y, reg, diag_reg_absolute_scale=True, leave_one_out=True)
    np.testing.assert_allclose(found.leave_one_out, want, rtol=1e-6, atol=1e-8)
    left = [3, -1, 17]
    found = solve.conjugate_gradient(
        kernel, y, reg, diag_reg_absolute_scale=True, leave_one_out=left, tolerance=1e-10, rank=20
    )
    np.testing.assert_allclose(found.leave_one_out, want[left], rtol=1e-6, atol=1e-7)
    assert solve.cholesky(kernel, y, reg).leave_one_out is None


def test_preconditioner_pays_on_an_ill_conditioned_kernel(y):
    eigenvalues = np.concatenate([np.geomspace(1e4, 1, 18), np.geomspace(1e-3, 1e-6, N - 18)])
    matrix = with_spectrum(eigenvalues)
    steps = {}
    for rank in (0, 20):
        found = solve.conjugate_gradient(
            matrix, y, 1e-3, diag_reg_absolute_scale=True, rank=rank, tolerance=1e-8
        )
        assert found.converged
        np.testing.assert_allclose(
            found.coefficients, direct(matrix, y, 1e-3), rtol=1e-3, atol=1e-3
        )
        steps[rank] = int(found.iterations)
    assert steps[20] <= 15
    assert steps[0] > 8 * steps[20]


def test_a_matrix_on_disk_and_a_function_give_the_same(kernel, y, tmp_path, monkeypatch):
    stored = np.lib.format.open_memmap(tmp_path / "k.npy", "w+", float, kernel.shape)
    stored[:] = kernel
    monkeypatch.setattr("ntk.regression.krylov.BLOCK", 7 * N)
    shapes = []

    def times(v):
        shapes.append(v.shape)
        return kernel @ np.asarray(v)

    options = {"diag_reg_absolute_scale": True, "tolerance": 1e-10, "rank": 20}
    want = solve.conjugate_gradient(kernel, y, 1e-2, **options)
    on_disk = solve.conjugate_gradient(stored, y, 1e-2, **options)
    by_function = solve.conjugate_gradient(times, y, 1e-2, dtype=jnp.float64, **options)
    for found in (on_disk, by_function):
        np.testing.assert_allclose(found.coefficients, want.coefficients, rtol=1e-6, atol=1e-8)
        assert abs(found.iterations - want.iterations) <= 2
    assert shapes[0] == (N, 20)
    assert set(shapes[1:]) == {(N, 2)}


def test_a_kernel_stored_nowhere(y):
    def kernel_fn(x1, x2, get):
        x2 = x1 if x2 is None else x2
        return jnp.exp(-jnp.abs(x1[:, 0][:, None] - x2[:, 0][None]))

    x = np.linspace(0, 3, N, dtype=np.float32)[:, None]
    y = y[:, 0, 0].astype(np.float32)
    product = gram.product(kernel_fn, x, tile=25)
    reg = 1e-1 * gram.diagonal(kernel_fn, x).mean()
    found = solve.conjugate_gradient(product, y, reg, diag_reg_absolute_scale=True)
    want = direct(np.asarray(kernel_fn(x, None, "ntk"), float), y, reg)
    np.testing.assert_allclose(found.coefficients, want, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("solver", [solve.cholesky, solve.conjugate_gradient])
def test_inside_jit_flags_take_the_place_of_errors(y, solver):
    good = with_spectrum(np.geomspace(1, 1e-2, N))
    compiled = jax.jit(functools.partial(solver, diag_reg=1e-2, diag_reg_absolute_scale=True))
    found = compiled(jnp.asarray(good), jnp.asarray(y))
    np.testing.assert_allclose(found.coefficients, direct(good, y, 1e-2), rtol=1e-2, atol=1e-2)
    assert found.converged
    assert not compiled(jnp.asarray(good - 0.5 * np.eye(N)), jnp.asarray(y)).converged


@pytest.mark.parametrize("solver", [solve.cholesky, solve.conjugate_gradient])
def test_solutions_can_be_differentiated(x64, y, solver):
    matrix = with_spectrum(np.geomspace(1, 1e-2, N))
    rng = np.random.default_rng(3)
    change, weights = 1e-2 * rng.normal(size=(N, N)), rng.normal(size=y.shape)
    iterate = solver is solve.conjugate_gradient
    options = {"tolerance": 1e-12, "rank": 20} if iterate else {"leave_one_out": True}

    def loss(t):
        kernel = jnp.asarray(matrix) + t * (change + change.T)
        found = solver(kernel, jnp.asarray(y), 0.1 + t, **options)
        value = jnp.sum(weights * found.coefficients)
        return value if iterate else value + jnp.mean(found.leave_one_out**2)

    h = 1e-4
    want = (loss(h) - loss(-h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(loss)(0.0), want, rtol=1e-4)


def test_an_indefinite_matrix_is_refused(y):
    for dtype, smallest in ((np.float64, -1e-9), (np.float32, -3e-2)):
        matrix = with_spectrum(np.append(np.geomspace(1, 1e-2, N - 1), smallest)).astype(dtype)
        with pytest.raises(
            ValueError, match=f"indefinite beyond the rounding of {np.dtype(dtype)}"
        ):
            solve.cholesky(matrix, y.astype(dtype))
    with pytest.raises(ValueError, match="negative curvature"):
        solve.conjugate_gradient(matrix, y, 1e-3)
    matrix = with_spectrum(np.append(np.geomspace(1, 1e-2, N - 1), -1e-6)).astype(np.float32)
    with pytest.warns(RuntimeWarning, match="jitter"):  # rounding of float32 explains as much
        solve.cholesky(matrix, y, dtype=jnp.float64)


def test_what_was_not_reached_is_reported(kernel, y):
    with pytest.warns(RuntimeWarning, match=r"relative residual of .* in 3 steps, not 1.0e-10"):
        found = solve.conjugate_gradient(kernel, y, 1e-6, rank=0, max_steps=3, tolerance=1e-10)
    assert not found.converged
    true = y - (np.einsum("ij,jkl->ikl", kernel, found.coefficients))
    true = true - 1e-6 * np.trace(kernel) / N * found.coefficients
    np.testing.assert_allclose(
        found.residual, np.linalg.norm(true, axis=0) / np.linalg.norm(y, axis=0), rtol=1e-6
    )


def test_mistakes_are_named(kernel, y):
    for solver in (solve.cholesky, solve.conjugate_gradient):
        wrong = {
            r"shape \(60, 50\); it must be square": (kernel[:, :50], y, 1.0),
            r"transpose\(0, 2, 1, 3\)": (kernel[:, :, None, None], y, 1.0),
            r"must be \(60, ...\)": (kernel, y[:50], 1.0),
            "diag_reg is -0.1": (kernel, y, -0.1),
            "diag_reg is nan": (kernel, y, float("nan")),
            "the kernel has entries that are not finite": (
                np.where(kernel > 0.1, np.inf, kernel),
                y,
                1.0,
            ),
            "y has entries that are not finite": (kernel, y * np.nan, 1.0),
            "not symmetric": (np.triu(kernel), y, 1.0),
            "complex": (kernel * 1j, y, 1.0),
        }
        for message, arguments in wrong.items():
            with pytest.raises(ValueError, match=message):
                solver(*arguments)
    with pytest.raises(ValueError, match="diag_reg is 0; it must be positive"):
        solve.conjugate_gradient(kernel, y, 0)
    with pytest.raises(ValueError, match="diagonal of a function is not known"):
        solve.conjugate_gradient(lambda v: v, y, 1.0)
    with pytest.raises(ValueError, match=r"maps vectors \(60, 30\) to \(60, 1\)"):
        solve.conjugate_gradient(lambda v: v[:, :1], y, 1.0, diag_reg_absolute_scale=True)
    for change in ({"rank": -1}, {"max_steps": 0}, {"tolerance": 0.0}, {"leave_one_out": [60]}):
        with pytest.raises(ValueError, match=next(iter(change))):
            solve.conjugate_gradient(kernel, y, 1.0, **change)
    with pytest.raises(ValueError, match="inside jit, grad or vmap double precision"):
        jax.jit(lambda k: solve.cholesky(k, y, dtype=jnp.float64))(jnp.asarray(kernel))


def linear_kernel(x1, x2, get, *, power=1):
    x2 = x1 if x2 is None else x2
    return (x1 @ x2.T) ** power


def test_options_of_a_regression_act(x64):
    x = np.random.default_rng(2).normal(size=(12, 3))
    y = np.random.default_rng(3).normal(size=(12, 1))
    x_test = np.random.default_rng(4).normal(size=(4, 3))

    def expected(reg):
        inverse = np.linalg.inv(x @ x.T + reg * np.eye(12))
        return x_test @ x.T @ inverse @ y, (inverse @ y)[:, 0] / np.diag(inverse)

    mean = np.trace(x @ x.T) / 12
    for reg in (1e-2, 100.0):
        fit = solve.regression(linear_kernel, x, y, diag_reg=reg, leave_one_out=True)
        predictions, left_out = expected(reg * mean)
        np.testing.assert_allclose(fit.predict(x_test), predictions, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(fit.solution.leave_one_out[:, 0], left_out, rtol=1e-6)
    options = {"diag_reg": 0.3, "diag_reg_absolute_scale": True}
    fit = solve.regression(linear_kernel, x, y, **options)
    np.testing.assert_allclose(fit.predict(x_test), expected(0.3)[0], rtol=1e-8)
    partial = functools.partial(solve.cholesky, **options)
    np.testing.assert_array_equal(
        solve.regression(linear_kernel, x, y, solver=partial).predict(x_test), fit.predict(x_test)
    )
    options |= {"solver": solve.conjugate_gradient, "rank": 0}
    loose, tight = (
        solve.regression(linear_kernel, x, y, tolerance=t, **options).solution
        for t in (0.999, 1e-12)
    )
    assert loose.iterations < tight.iterations
    squared = solve.regression(linear_kernel, x, y, diag_reg=1e-3, power=2)
    k = (x @ x.T) ** 2
    c = np.linalg.solve(k + 1e-3 * np.trace(k) / 12 * np.eye(12), y)
    np.testing.assert_allclose(squared.predict(x_test), (x_test @ x.T) ** 2 @ c, rtol=1e-6)


def test_a_regression_in_double_precision_computes_its_kernel_in_it():
    x = np.random.default_rng(2).normal(size=(12, 3)).astype(np.float32)
    y = np.random.default_rng(3).normal(size=(12, 1)).astype(np.float32)
    fit = solve.regression(linear_kernel, x, y, diag_reg=1e-9, dtype=jnp.float64)
    wide = x.astype(np.float64)
    k = wide @ wide.T
    c = np.linalg.solve(k + 1e-9 * np.trace(k) / 12 * np.eye(12), y)
    assert fit.solution.coefficients.dtype == fit.predict(x).dtype == np.float64
    np.testing.assert_allclose(fit.predict(x), k @ c, rtol=1e-5)


@pytest.mark.parametrize(
    ("keyword", "nearest"),
    [
        ("diag_regg", "diag_reg"),
        ("leave_out", "leave_one_out"),
        ("powr", "power"),
        ("tilesize", "tile"),
    ],
)
def test_a_misspelt_option_of_a_regression_names_the_nearest(keyword, nearest):
    x = np.ones((3, 2))
    with pytest.raises(TypeError, match=f"{keyword!r}.*{nearest!r}"):
        solve.regression(linear_kernel, x, x[:, :1], **{keyword: 1})


def test_an_iteration_is_kept_and_goes_on_to_the_same_bits(kernel, y, tmp_path):
    """After three kills the same call has done no step twice, and ends where an uninterrupted one does."""
    options = {"diag_reg_absolute_scale": True, "tolerance": 1e-9, "rank": 10, "dtype": jnp.float64}
    file = tmp_path / "state"

    def solved(stop=None, **changes):
        calls = []

        def times(v):
            calls.append(v.shape)
            if len(calls) == stop:
                raise KeyboardInterrupt
            return kernel @ np.asarray(v)

        arguments = {**options, "path": file, **changes}
        return solve.conjugate_gradient(times, y, 1e-4, **arguments), len(calls)

    want, total = solved(path=None)
    assert total > 20
    for stop in (2, 5, 9):
        with pytest.raises(KeyboardInterrupt):
            solved(stop)
    found, calls = solved()
    np.testing.assert_array_equal(found.coefficients, want.coefficients)
    assert found.iterations == want.iterations
    # The second call kept 3 steps and the third 6; the preconditioner is made again, and one product more of each call
    # that goes on tells whether the kernel is the same.
    assert calls == total - 3 - 6 + 1
    with pytest.raises(ValueError, match="holds steps with another kernel"):
        solve.conjugate_gradient(
            lambda v: 1.1 * kernel @ np.asarray(v), y, 1e-4, **options, path=file
        )
    with pytest.raises(ValueError, match="another solve"):
        solve.conjugate_gradient(lambda v: v, y + 1, 1e-4, **options, path=file)
    file.write_bytes(b"broken")
    with pytest.raises(ValueError, match="cannot be read"):
        solved()
    with pytest.raises(ValueError, match="path keeps the iteration of a matrix on disk"):
        solve.conjugate_gradient(kernel, y, 1e-4, **options, path=file)
