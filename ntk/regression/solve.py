"""Kernel regression: coefficients (K + reg I)^-1 y, and how far to trust them.

`cholesky` serves matrices that fit a device, `conjugate_gradient` also those on disk or stored
nowhere. Where values are concrete, mistakes are errors and bad conditioning is a warning; inside
jit, grad and vmap the fields of `Solution` tell the same.

A matrix that is singular to working precision is made regular by jitter, as Gaussian-process
regression does. `ntk.predict` asks for the limit of gradient descent instead, which moves nothing
along the directions that a kernel does not see: there it takes the pseudo-inverse.

One file: both solvers take, refuse and report the same, and half of it says what.

Source: Rasmussen & Williams (2006), algorithm 2.1; Frangella, Tropp & Udell (2021), arXiv:2110.02820.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ntk import arguments, show
from ntk.large import gram, tiles
from ntk.regression import factor, krylov, spectra
from ntk.regression.inducing import Inducing, inducing
from ntk.types import Array, Bool, Data, Float, Integer, PRNGKey, Real

__all__ = [
    "Inducing",
    "Regression",
    "Solution",
    "cholesky",
    "conjugate_gradient",
    "inducing",
    "regression",
]


@show.readable
class Solution(NamedTuple):
    """Coefficients of kernel regression.

    Attributes:
        coefficients: c = (K + reg I)^-1 y, shaped as y.
        residual: |y - (K + reg I) c| / |y| of each output, computed afresh, shape y.shape[1:].
        iterations: steps of conjugate gradients; 0 of Cholesky.
        jitter: added to the diagonal besides the regularisation, so that a decomposition exists to
            working precision; absolute. 0 of conjugate gradients.
        condition: estimate of the condition number of the matrix that was solved: from below by
            Cholesky; the largest eigenvalue over the regularisation by conjugate gradients, which
            is exact where the kernel's eigenvalues fall below the regularisation, and from below, by a
            few times, with rank 0.
        converged: a decomposition was found; the residual of every output is within the tolerance.
        leave_one_out: y_i - f(x_i) with f fitted to all other samples; None if not asked for.
    """

    coefficients: Float[Array, "n *outputs"]
    residual: Float[Array, "*outputs"]
    iterations: Integer[Array, ""]
    jitter: Float[Array, ""]
    condition: Float[Array, ""]
    converged: Bool[Array, ""]
    leave_one_out: Float[Array, "left *outputs"] | None = None


@show.readable
class Regression(NamedTuple):
    """A fitted kernel machine.

    Attributes:
        predict: maps inputs to outputs (n, ...), arrays of the host, streaming the kernel in tiles.
        solution: its coefficients, and how far to trust them.
    """

    predict: Callable[[Any], np.ndarray]
    solution: Solution


def regression(
    kernel_fn: Callable[..., Any],
    x_train: Any,
    y_train: Real[Data, "n *outputs"],
    get: str = "ntk",
    *,
    solver: Callable[[Any, Any], Solution] | None = None,
    tile: int = gram.TILE,
    devices: Sequence[jax.Device] | None = None,
    path: str | os.PathLike | None = None,
    name: str | None = None,
    dtype: DTypeLike | None = None,
    **kwargs: Any,
) -> Regression:
    """Kernel regression: the mean of infinitely many networks trained for infinitely long.

    With "ntk" all layers are trained, with "nngp" the last one (a Gaussian process posterior mean);
    exact at infinite width, for outputs that start at zero.

    Args:
        kernel_fn: see `ntk.gram.gram`; its kernel is (n1, n2).
        x_train: n samples along axis 0 of an array, or of each array of a list.
        y_train: targets (n, ...).
        get: name of the kernel.
        solver: maps kernel and targets to a `Solution`; `cholesky` by default.
        tile: see `ntk.gram.gram`.
        devices: see `ntk.gram.gram`.
        path: see `ntk.gram.gram`; the solver is given the memory-mapped matrix.
        name: see `ntk.gram.gram`.
        dtype: ``jnp.float64`` to compute the kernel, to solve and to predict in double precision.
        **kwargs: options that the solver reads, such as diag_reg or leave_one_out; the others are passed
            to kernel_fn.

    Returns:
        A `Regression`.

    Raises:
        TypeError: a keyword that nobody reads; targets that are no numbers; dtype is no floating type.
        ValueError: from `ntk.gram.gram` and the solver.

    Source: Jacot et al. (2018), section 5; Lee et al. (2018).
    """
    solver = solver or cholesky
    read = arguments.keyword_names(solver) or frozenset()
    own = inspect.signature(regression).parameters
    arguments.refuse_unknown("regression", kwargs, own, read, arguments.keyword_names(kernel_fn))
    of_solver = {key: value for key, value in kwargs.items() if key in read}
    rest = {key: value for key, value in kwargs.items() if key not in read}
    if dtype is not None and "dtype" in read:
        of_solver["dtype"] = dtype

    _check_arguments(y_train, 0.0, dtype)

    def in_precision(x: Any) -> Any:
        return x if dtype is None else spectra.cast(x, dtype)

    with spectra.double(dtype):
        x_train, rest = in_precision((x_train, rest))
        options = {"tile": tile, "devices": devices, **rest}
        kernel = gram.gram(kernel_fn, x_train, None, get, path=path, name=name, **options)
        solution = solver(kernel, y_train, **of_solver)
    coefficients = np.asarray(solution.coefficients)
    columns = coefficients.reshape(coefficients.shape[0], -1)

    def predict(x: Any) -> np.ndarray:
        with spectra.double(dtype):
            out = gram.product(kernel_fn, in_precision(x), x_train, get, **options)(columns)
        return out.reshape(-1, *coefficients.shape[1:])

    return Regression(predict, solution)


@arguments.strict
def cholesky(
    kernel: Real[Array | np.ndarray, "n n"],
    y: Real[Data, "n *outputs"],
    diag_reg: float | Array = 0.0,
    *,
    diag_reg_absolute_scale: bool = False,
    leave_one_out: bool = False,
    dtype: DTypeLike | None = None,
) -> Solution:
    """Kernel regression by Cholesky decomposition, with jitter where rounding asks for it.

    Args:
        kernel: positive semi-definite (n, n). Of a kernel (n, n, k, k) give
            ``kernel.transpose(0, 2, 1, 3).reshape(n * k, n * k)`` and ``y.reshape(n * k)``.
        y: targets (n, ...).
        diag_reg: added to the diagonal, in units of its mean; not negative.
        diag_reg_absolute_scale: whether diag_reg is absolute instead.
        leave_one_out: also give the residuals of leaving out each sample, in closed form; about
            six times the work.
        dtype: ``jnp.float64`` to solve in double precision whatever the inputs are. Where double
            precision is not enabled, results are then arrays of numpy.

    Returns:
        A `Solution`. Pivots below sqrt(n) eps max(K) count as zero: jitter starts at four times
        that, and grows tenfold up to what the rounding of the kernel's own dtype explains.
        Coefficients and leave-one-out residuals can be differentiated.

    Raises:
        ValueError: shapes do not fit; entries are not finite; the matrix is not symmetric, or
            indefinite beyond rounding; diag_reg is negative.

    Warns:
        RuntimeWarning: jitter was needed.

    Source: Rasmussen & Williams (2006), algorithm 2.1, and equation 5.12 for leave-one-out.
    """
    _check_arguments(y, diag_reg, dtype)
    if _lacks_double(dtype, kernel, y):
        scale = {"diag_reg_absolute_scale": diag_reg_absolute_scale}
        with jax.enable_x64(True):
            found = cholesky(
                kernel, y, diag_reg, **scale, leave_one_out=leave_one_out, dtype=jnp.float64
            )
        return jax.tree.map(np.asarray, found)
    kernel = jnp.asarray(kernel)
    matrix, y = _floating(kernel, dtype), jnp.asarray(y)
    y = y.astype(matrix.dtype)
    _check(matrix.shape, y, diag_reg)
    _check_values(matrix, y)
    given = kernel.dtype if jnp.issubdtype(kernel.dtype, jnp.floating) else matrix.dtype
    # Of the type that the kernel came in: one computed in single and solved in double has errors of single precision.
    limit = 100 * jnp.finfo(given).eps
    shift = _shift(matrix, diag_reg, diag_reg_absolute_scale, matrix.dtype)
    n = y.shape[0]
    found = factor.solve(matrix, y.reshape(n, -1), shift, limit, bool(leave_one_out))
    if _is(found.found, False):
        raise ValueError(
            f"the matrix is indefinite beyond the rounding of {given}: with jitter of "
            f"{float(found.jitter):.3g}, the most that explains, a pivot is {float(found.pivot):.3g}; "
            "compute the kernel in float64, or raise diag_reg"
        )
    if _is(found.jitter > 0, True):
        warnings.warn(
            f"the matrix is singular to working precision: jitter of {float(found.jitter):.3g} "
            f"was added to its diagonal, and its condition number is still "
            f"{float(found.condition):.1e} or more; raise diag_reg, or solve with "
            "dtype=jnp.float64",
            RuntimeWarning,
            stacklevel=2,
        )
    left = None if found.leave_one_out is None else found.leave_one_out.reshape(y.shape)
    residual, steps = found.residual.reshape(y.shape[1:]), jnp.zeros((), int)
    rest = (found.jitter, found.condition, found.found, left)
    return Solution(found.x.reshape(y.shape), residual, steps, *rest)


@arguments.strict
def conjugate_gradient(
    kernel: Real[Array | np.ndarray | np.memmap, "n n"] | Callable[[Array], Any],
    y: Real[Data, "n *outputs"],
    diag_reg: float | Array,
    *,
    diag_reg_absolute_scale: bool = False,
    rank: int = 100,
    tolerance: float = 1e-4,
    max_steps: int = 1000,
    leave_one_out: Sequence[int] = (),
    key: Array | None = None,
    path: str | os.PathLike | None = None,
    dtype: DTypeLike | None = None,
) -> Solution:
    """Kernel regression by conjugate gradients with a randomised Nystrom preconditioner.

    Args:
        kernel: positive semi-definite (n, n): an array; a ``np.memmap``, read in blocks of rows; or
            a function v -> K v of (n, k), such as `ntk.gram.product`.
        y: targets (n, ...); outputs share the products, and each has its own steps.
        diag_reg: added to the diagonal, in units of its mean; positive.
        diag_reg_absolute_scale: whether diag_reg is absolute instead; a function needs that.
        rank: eigenvalues that the preconditioner takes care of, for one product with as many
            vectors; no more than half of n are used. 0 for none.
        tolerance: of `Solution.residual`. In float32 no less than 1e-7 times the condition number
            can be had.
        max_steps: most products with the matrix in the iteration.
        leave_one_out: samples to be left out, one at a time; each costs one more right-hand side.
            `Solution.leave_one_out` holds them in this order.
        key: PRNG key of the preconditioner; ``jax.random.key(0)`` by default.
        path: file that keeps the iteration after every step, for a matrix on disk or a function: the same call
            goes on there after a kill, with other max_steps or tolerance too. One more product tells whether it is the
            same kernel, and the preconditioner is made again.
        dtype: as in `cholesky`; a function is given arrays of this dtype, or of that of y.

    Returns:
        A `Solution`. Coefficients can be differentiated if the kernel is an array.

    Raises:
        ValueError: as of `cholesky`; diag_reg is not positive; a direction of negative curvature; path with an array,
            inside jit, or of another solve.

    Warns:
        RuntimeWarning: the tolerance was not reached.

    Source: Frangella, Tropp & Udell (2021), "Randomized Nystrom preconditioning" (arXiv
    2110.02820), algorithms 2.1 and 5.1.
    """
    options: dict[str, Any] = {
        "diag_reg_absolute_scale": diag_reg_absolute_scale,
        "rank": rank,
        "tolerance": tolerance,
        "max_steps": max_steps,
        "leave_one_out": leave_one_out,
        "key": key,
        "path": path,
    }
    _check_arguments(y, diag_reg, dtype)
    if _lacks_double(dtype, y if callable(kernel) else kernel, y):
        with jax.enable_x64(True):
            double = conjugate_gradient(kernel, y, diag_reg, **options, dtype=jnp.float64)
        return jax.tree.map(np.asarray, double)
    _check_options(rank, tolerance, max_steps)
    n = jnp.shape(y)[0] if jnp.ndim(y) else 0
    matrix: Any
    if callable(kernel):
        matrix, y = kernel, _floating(y, dtype)
        if not diag_reg_absolute_scale:
            raise ValueError(
                "the diagonal of a function is not known: give diag_reg in absolute units, such as "
                "1e-3 * ntk.gram.diagonal(...).mean(), with diag_reg_absolute_scale=True"
            )
        _check(getattr(kernel, "shape", (n, n)), y, diag_reg, positive=True)
    else:
        matrix = kernel if isinstance(kernel, np.memmap) else _floating(kernel, dtype)
        y = jnp.asarray(y).astype(dtype or matrix.dtype)
        _check(matrix.shape, y, diag_reg, positive=True)
        if not isinstance(matrix, np.memmap):
            _check_values(matrix, y)
    left = _left_out(leave_one_out, n)
    shift = _shift(matrix, diag_reg, diag_reg_absolute_scale, y.dtype)
    # Leaving out sample i takes (A^-1)_ii, an entry of the solution for the unit vector i.
    sides = [y.reshape(n, -1), (jnp.arange(n)[:, None] == left[None]).astype(y.dtype)]
    key = jax.random.key(0) if key is None else key
    arguments = (jnp.concatenate(sides, 1), shift, key, min(rank, n // 2), tolerance, max_steps)
    if path is not None and (isinstance(matrix, jax.Array) or tiles.is_traced(y)):
        raise ValueError(
            "path keeps the iteration of a matrix on disk or of a function, outside jit; leave it out"
        )
    if isinstance(matrix, jax.Array):
        x, found = krylov.solve_array(matrix, *arguments)
    else:
        on_disk = isinstance(matrix, np.memmap)
        times = functools.partial(krylov.rows_times, matrix) if on_disk else matrix
        loop: Any = jax.lax.while_loop if tiles.is_traced(y) else krylov.host_loop
        if path is not None:
            loop = _kept(path, y, shift, key, rank)
        x, found = krylov.solve_function(times, *arguments, loop)
    return _reported(y, left, x, found, shift, tolerance)


def _kept(path: Any, y: Array, shift: Array, key: PRNGKey, rank: int) -> krylov.Kept:
    """The file of an iteration, whose folder is made, and what tells it from others."""
    mark = hashlib.blake2b(digest_size=16)
    for part in (y, shift, jax.random.key_data(key)):
        mark.update(f"{part.dtype}{part.shape}".encode() + np.asarray(part).tobytes())
    file = pathlib.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    return krylov.Kept(file, f"{mark.hexdigest()} {rank}")


def _reported(
    y: Data,
    left: Array,
    x: Array,
    found: krylov.Result,
    shift: Array,
    tolerance: float,
) -> Solution:
    """The solution of all right-hand sides: targets, then unit vectors of the samples left out."""
    outputs = x.shape[1] - left.size
    c, inverse = x[:, :outputs], x[:, outputs:]
    residual = found.residual[:outputs]
    # Eigenvalues of the kernel begin at zero or above: the smallest of all is the shift, or more.
    condition = jax.lax.stop_gradient(found.top / shift)
    leave_one_out = None
    if left.size:
        diagonal = inverse[left, jnp.arange(left.size)]
        leave_one_out = (c[left] / diagonal[:, None]).reshape(left.size, *y.shape[1:])
    # Of the unit vectors, too: leave-one-out residuals are no better than these.
    converged = jnp.all(found.residual <= tolerance)
    if _is(jnp.all(jnp.isfinite(found.residual)) & ~found.indefinite, False):
        raise ValueError(
            "the matrix has a direction of negative curvature, or entries that are not finite; "
            "compute the kernel in float64, or raise diag_reg"
        )
    if _is(converged, False):
        warnings.warn(
            f"conjugate gradients reached a relative residual of {float(found.residual.max()):.1e} "
            f"in {int(found.steps)} steps, not {tolerance:.1e} (condition number "
            f"{float(condition):.1e}); raise rank, max_steps or diag_reg, or solve with "
            "dtype=jnp.float64",
            RuntimeWarning,
            stacklevel=3,
        )
    return Solution(
        c.reshape(y.shape),
        residual.reshape(y.shape[1:]),
        found.steps,
        jnp.zeros((), y.dtype),
        condition,
        converged,
        leave_one_out,
    )


def _lacks_double(dtype: DTypeLike | None, kernel: Any, y: Any) -> bool:
    """Whether double precision is asked for, or brought along by numpy, but not enabled."""
    brought = isinstance(kernel, np.ndarray) and kernel.dtype == np.float64
    wanted = brought if dtype is None else np.dtype(dtype) == np.float64
    if not wanted or jax.dtypes.canonicalize_dtype(np.float64) == np.float64:
        return False
    if any(isinstance(v, jax.Array) and tiles.is_traced(v) for v in (kernel, y)):
        raise ValueError(
            "dtype is float64, but inside jit, grad or vmap double precision must be enabled around "
            "them: use `with jax.enable_x64(True):`"
        )
    return True


def _floating(x: Any, dtype: DTypeLike | None) -> Array:
    """An array of dtype, or of its own if that is at least float32."""
    x = spectra.floating(x)
    return x if dtype is None else x.astype(dtype)


def _is(x: Any, value: bool | None) -> bool:
    """Whether a boolean has this value; None for one that is not known before the run."""
    try:
        return bool(x) is value
    except jax.errors.ConcretizationTypeError:
        return value is None


def _shift(matrix: Any, diag_reg: Any, absolute: bool, dtype: DTypeLike | None) -> Array:
    """What diag_reg adds to the diagonal."""
    shift = diag_reg if absolute else diag_reg * matrix.diagonal().mean()
    return jnp.asarray(shift, dtype)


def _check_arguments(y: Any, diag_reg: Any, dtype: DTypeLike | None) -> None:
    """Refuses what is no array of numbers, no number and no floating type; their values are looked at later."""
    spectra.check_dtype(dtype)
    for name, value in (("y", y), ("diag_reg", diag_reg)):
        found = value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype
        if not any(jnp.issubdtype(found, kind) for kind in (jnp.number, jnp.bool_)):
            what = "an array of numbers (n, ...)" if name == "y" else "a number, zero or positive"
            raise TypeError(f"{name} is {value!r}; it must be {what}")
        if jnp.issubdtype(found, jnp.complexfloating):
            raise ValueError(f"{name} is complex ({found}); kernels and targets must be real")


def _check(shape: tuple[int, ...], y: Array, diag_reg: Any, positive: bool = False) -> None:
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise ValueError(
            f"the kernel has shape {shape}; it must be square (n, n). Of (n, n, k, k) give "
            "kernel.transpose(0, 2, 1, 3).reshape(n * k, n * k)"
        )
    if y.ndim == 0 or y.shape[0] != shape[0]:
        raise ValueError(
            f"y has shape {y.shape}; with a kernel {shape} it must be ({shape[0]}, ...)"
        )
    good = jnp.asarray(diag_reg) > 0 if positive else jnp.asarray(diag_reg) >= 0
    if jnp.ndim(diag_reg) or _is(good & jnp.isfinite(diag_reg), False):
        need = "positive" if positive else "zero or positive"
        raise ValueError(f"diag_reg is {diag_reg}; it must be {need}, and finite")
    spectra.check_finite("y", y)


@jax.jit
def _largest(matrix: Array) -> tuple[Array, Array]:
    """Largest entry, and largest difference from the transpose; NaN if an entry is not finite."""
    return jnp.abs(matrix).max(), jnp.abs(matrix - matrix.T).max()


def _check_values(matrix: Array, y: Array) -> None:
    size, gap = _largest(matrix)
    if _is(jnp.isfinite(size) & jnp.isfinite(gap), False):
        raise ValueError("the kernel has entries that are not finite; compute it in float64")
    # Tiles of one matrix by different programs differ by a few units in the last place, not by half of the digits.
    if _is(gap > jnp.sqrt(jnp.finfo(matrix.dtype).eps) * size, True):
        raise ValueError(
            f"the kernel is not symmetric: it differs from its transpose by up to {float(gap):.3g}, "
            f"where its largest entry is {float(size):.3g}"
        )


def _check_options(rank: int, tolerance: float, max_steps: int) -> None:
    for name, value, least in (("rank", rank, 0), ("max_steps", max_steps, 1)):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    if not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}; it must be positive")


def _left_out(indices: Sequence[int], n: int) -> Array:
    left = np.asarray(indices, int).reshape(-1)
    if left.size and not (-n <= left.min() and left.max() < n):
        raise ValueError(f"leave_one_out names samples {left.min()} to {left.max()} of {n}")
    return jnp.asarray(left % max(n, 1))
