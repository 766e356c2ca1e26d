"""What the predictions of ``ntk.predict`` share: kernels as matrices, their spectra and solves.

In the eigenvectors of a kernel with eigenvalues l, gradient flow of the squared error on targets y moves the outputs
f by (1 - exp(-l t)) (y - f_0), and those of a test point by K_td (1 - exp(-l t)) / l (y - f_0).

Source: Lee et al. 2019 (arXiv 1902.06720), equations 8 to 11.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from ntk import options
from ntk.types import Data, PyTree, jitted

T = TypeVar("T")


class Layout(NamedTuple):
    """Outputs (rows, columns): columns are the axes on which the kernel is an identity."""

    shape: tuple[int, ...]
    trace_axes: tuple[int, ...]

    @classmethod
    def of(cls, kernel: Data, y: Data, trace_axes: int | tuple[int, ...]) -> Layout:
        """Layout of targets y under a kernel; refuses shapes that do not fit.

        Raises:
            ValueError: an axis is out of range, the kernel's shape is not that of y in pairs, it is not symmetric, or
                an entry of either is not finite.
        """
        array("k_train_train", kernel)
        check_finite("y_train", y)
        axes = (trace_axes,) if isinstance(trace_axes, int) else tuple(trace_axes)
        if any(not -y.ndim <= a < y.ndim for a in axes):
            raise ValueError(f"trace_axes is {axes}; the targets have shape {y.shape}")
        layout = cls(tuple(y.shape), tuple(sorted({a % y.ndim for a in axes})))
        expected = tuple(n for n in layout.rows for _ in range(2))
        if tuple(kernel.shape) != expected:
            remedy = "; give the targets as y[:, None], or trace_axes=()" if y.ndim == 1 else ""
            raise ValueError(
                f"k_train_train has shape {tuple(kernel.shape)}; targets of shape {layout.shape} "
                f"with trace_axes={layout.trace_axes} need {expected}{remedy}"
            )
        matrix = as_matrix(floating(kernel))
        apart, size = jnp.abs(matrix - matrix.T).max(), jnp.abs(matrix).max()
        check_finite("k_train_train", size)
        # Kernels of sampled networks or of few digits are symmetric up to their rounding.
        if is_concrete(apart) and apart > 1e-3 * size:
            raise ValueError(
                f"k_train_train is not symmetric: entries differ from their mirror images by up to {apart:.3g} "
                f"(the largest is {size:.3g}); give kernel_fn(x_train, None)"
            )
        return layout

    def check_test(self, kernel: Any) -> None:
        """Refuses a kernel between test and training points that does not fit.

        Raises:
            ValueError: not an array, another shape, or entries that are not finite.
        """
        shape = array("k_test_train", kernel).shape
        check_finite("k_test_train", kernel)
        if len(shape) != 2 * len(self.rows) or tuple(shape[1::2]) != self.rows:
            raise ValueError(
                f"k_test_train has shape {tuple(shape)}; its axes come in pairs, of test and of training "
                f"points, and those of training points are {self.rows}"
            )

    def outputs(self, name: str, value: Any, rows: tuple[int, ...] | None = None) -> jax.Array:
        """Outputs given by a user, at that many examples: one number for all, or an array of their shape.

        Raises:
            ValueError: another shape, as nothing else is broadcast, or entries that are not finite.
        """
        sizes = iter(self.rows if rows is None else rows)
        shape = tuple(n if a in self.trace_axes else next(sizes) for a, n in enumerate(self.shape))
        if np.shape(value) not in ((), shape):
            raise ValueError(
                f"{name} has shape {np.shape(value)}; it must be {shape}, or one number for all outputs"
            )
        check_finite(name, value)
        return jnp.broadcast_to(jnp.asarray(value), shape)

    @property
    def rows(self) -> tuple[int, ...]:
        """Sizes of the axes that the kernel has."""
        return tuple(n for a, n in enumerate(self.shape) if a not in self.trace_axes)

    @property
    def columns(self) -> tuple[int, ...]:
        """Sizes of the axes that it lacks."""
        return tuple(self.shape[a] for a in self.trace_axes)

    def flatten(self, y: jax.Array) -> jax.Array:
        """Outputs of any number of examples, or a scalar, as a matrix (rows, columns)."""
        y = jnp.broadcast_to(y, self.shape) if jnp.ndim(y) == 0 else y
        last = range(len(self.shape) - len(self.trace_axes), len(self.shape))
        return jnp.moveaxis(y, self.trace_axes, last).reshape(-1, math.prod(self.columns))

    def unflatten(self, matrix: jax.Array, rows: tuple[int, ...] | None = None) -> jax.Array:
        """(..., rows, columns) as outputs, with the leading axes kept."""
        lead = matrix.shape[:-2]
        rows = self.rows if rows is None else rows
        full = matrix.reshape(*lead, *rows, *self.columns)
        first = len(lead) + len(rows)
        source = range(first, first + len(self.columns))
        return jnp.moveaxis(full, source, [len(lead) + a for a in self.trace_axes])


def array(name: str, kernel: Any) -> jax.Array:
    """The kernel, which must be an array.

    Raises:
        ValueError: it is an object with several kernels, or none.
    """
    if is_array(kernel):
        return kernel
    found = [field for field in ("nngp", "ntk") if getattr(kernel, field, None) is not None]
    remedy = f"give one of its arrays, {' or '.join(f'kernel.{n}' for n in found)}" if found else ""
    raise ValueError(
        f"{name} is a {type(kernel).__name__}, and must be an array; "
        + (remedy or "compute it as kernel_fn(x1, x2, 'ntk')")
    )


def floating(x: Any) -> jax.Array:
    """An array of real numbers in a type to compute in: integers in the default one, half precision in single.

    Raises:
        ValueError: the numbers are complex.
    """
    x = jnp.asarray(x)
    if jnp.iscomplexobj(x):
        raise ValueError(f"an array is complex ({x.dtype}); kernels and targets must be real")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(float)
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)


def check_finite(name: str, values: Any) -> None:
    """Refuses what is not finite, where it can be looked at.

    Raises:
        ValueError: an entry is infinite or no number.
    """
    finite = jnp.isfinite(jnp.asarray(values)).all()
    if is_concrete(finite) and not finite:
        raise ValueError(f"{name} has entries that are not finite; remove these samples")


def times(t: Any, dtype: DTypeLike | None) -> jax.Array:
    """Times as an array; NaN where a tracer is negative.

    Raises:
        ValueError: a time is negative or NaN.
    """
    t = jnp.asarray(t)
    if is_concrete(t):
        if not bool(jnp.all(t >= 0)):
            raise ValueError(f"t is {t}; times of training are not negative (None is infinity)")
        return t.astype(dtype)
    return jnp.where(t >= 0, t, jnp.nan).astype(dtype)


@jitted()
def as_matrix(kernel: Data) -> jax.Array:
    """A kernel with its axes in pairs as a matrix."""
    even, odd = range(0, kernel.ndim, 2), range(1, kernel.ndim, 2)
    rows = math.prod(kernel.shape[::2])
    return jnp.transpose(kernel, (*even, *odd)).reshape(rows, -1)


def as_kernel(matrix: jax.Array, rows: tuple[int, ...]) -> jax.Array:
    """A square matrix (..., n, n) as a kernel with its axes in pairs."""
    lead, k = matrix.ndim - 2, len(rows)
    full = matrix.reshape(*matrix.shape[:lead], *rows, *rows)
    pairs = [lead + i + j * k for i in range(k) for j in range(2)]
    return full.transpose(*range(lead), *pairs)


@jitted(static_argnames="absolute")
def regularised(matrix: jax.Array, diag_reg: float, absolute: bool) -> jax.Array:
    """The matrix with diag_reg, in units of its mean diagonal or absolute, on its diagonal."""
    scale = 1.0 if absolute else jnp.trace(matrix) / len(matrix)
    index = jnp.arange(len(matrix))
    return matrix.at[index, index].add(diag_reg * scale)


class Spectrum(NamedTuple):
    """Eigenvalues, none negative, and eigenvectors in columns."""

    values: jax.Array
    vectors: jax.Array


class Factor(NamedTuple):
    """A matrix, its lower Cholesky factor, and whether that is accurate."""

    matrix: jax.Array
    lower: jax.Array
    accurate: jax.Array


def spectrum(matrix: jax.Array) -> Spectrum:
    """Eigendecomposition of a positive semi-definite matrix.

    Raises:
        ValueError: the matrix is not a tracer, and indefinite or not finite.
    """
    values, vectors = jnp.linalg.eigh(matrix)
    if is_concrete(values):
        _check_semidefinite(values)
    # Eigenvalues below zero are rounding here, and exp(-l t) of them would grow without bound.
    return Spectrum(jnp.maximum(values, 0.0), vectors)


def factorise(matrix: jax.Array) -> Factor:
    """Cholesky decomposition, with a check of its accuracy.

    Raises:
        ValueError: the matrix is not a tracer, and indefinite or not finite.
    """
    lower = jnp.linalg.cholesky(matrix)
    # NaN pivots of a decomposition that failed are not above it either.
    pivots = jnp.diagonal(lower) ** 2
    accurate = jnp.all(pivots > _tolerance(matrix) * pivots.max())
    if is_concrete(accurate) and not accurate:
        values = jnp.linalg.eigvalsh(matrix)
        _check_semidefinite(values)
        warnings.warn(
            f"the kernel is singular to working precision (eigenvalues from {values[0]:.3g} to "
            f"{values[-1]:.3g}): predictions are limits on its range; set diag_reg to regularise",
            RuntimeWarning,
            stacklevel=4,
        )
    return Factor(matrix, lower, accurate)


@jitted()
def solve(factor: Factor, b: jax.Array) -> jax.Array:
    """matrix^-1 b, by the pseudo-inverse where the matrix is singular to working precision."""

    def by_cholesky(b: jax.Array) -> jax.Array:
        return jsp.linalg.cho_solve((factor.lower, True), b)

    def on_range(b: jax.Array) -> jax.Array:
        values, vectors = jnp.linalg.eigh(factor.matrix)
        # Gradient flow from 0 stays in the range of the matrix: its limit is the pseudo-inverse.
        kept = values > _tolerance(factor.matrix) * values[-1]
        inverse = jnp.where(kept, 1.0 / jnp.where(kept, values, 1.0), 0.0)
        return vectors @ (inverse[:, None] * (vectors.T @ b))

    return lax.cond(factor.accurate, by_cholesky, on_range, b)


@jitted()
def relaxation(values: jax.Array, tau: jax.Array) -> jax.Array:
    """1 - exp(-values tau), of every time (rows) and eigenvalue (columns); 0 at eigenvalue 0."""
    return -jnp.expm1(-_exponent(values, tau))


@jitted()
def integrated_decay(values: jax.Array, tau: jax.Array) -> jax.Array:
    """(1 - exp(-values tau)) / values, of every time and eigenvalue, and its limit at eigenvalue 0.

    The limit is tau; for infinite tau, where no test point can depend on it, 0.
    """
    x = _exponent(values, tau)
    tau = tau[:, None]
    # (1 - e^-x) / x by its series, of which derivatives do not cancel; the term left out is x^4 / 120, below 1e-18.
    small = x < 1e-4
    near = jnp.where(small, x, 0.0)
    limit = jnp.where(jnp.isinf(tau), 0.0, tau) * (1 - near / 2 * (1 - near / 3 * (1 - near / 4)))
    safe = jnp.where(values[None, :] > 0.0, values[None, :], 1.0)
    return jnp.where(small, limit, -jnp.expm1(-x) / safe)


def _exponent(values: jax.Array, tau: jax.Array) -> jax.Array:
    """values tau, with 0 inf = 0; at infinite time eigenvalues that are rounding errors are 0."""
    tolerance = len(values) * jnp.finfo(values.dtype).eps * values.max()
    infinite = jnp.isinf(tau)[:, None]
    finite = values[None, :] * jnp.where(infinite, 0.0, tau[:, None])
    ever = jnp.where(values > tolerance, jnp.inf, 0.0)
    return jnp.where(infinite, ever[None, :], finite)


def _tolerance(matrix: jax.Array) -> float:
    return len(matrix) * float(jnp.finfo(matrix.dtype).eps)


def _check_semidefinite(values: jax.Array) -> None:
    low, high = float(values[0]), float(values[-1])
    if not math.isfinite(low + high):
        raise ValueError("k_train_train has entries that are not finite")
    if low < -10 * len(values) * float(jnp.finfo(values.dtype).eps) * abs(high):
        raise ValueError(
            f"k_train_train is indefinite: its eigenvalues go from {low:.3g} to {high:.3g}; "
            f"diag_reg of at least {-low:.3g} in absolute scale would mend it"
        )


def is_concrete(array: ArrayLike) -> bool:
    """Whether the array has values: it is not a tracer of a transformation."""
    try:
        jnp.asarray(array).devices()
    except jax.errors.ConcretizationTypeError:
        return False
    return True


def once(compute: Callable[[Data], T], matrix: Data) -> Callable[[], T]:
    """Returns a function that computes, and keeps the result if the matrix is not a tracer."""
    kept: list[T] = []

    def get() -> T:
        if not is_concrete(matrix):
            return compute(matrix)
        if not kept:
            with jax.ensure_compile_time_eval():
                kept.append(compute(matrix))
        return kept[0]

    return get


def decompositions(
    kernel: Data, diag_reg: float, absolute: bool
) -> tuple[Callable[[], Factor], Callable[[], Spectrum]]:
    """Functions that give the Cholesky factor and the spectrum of the regularised kernel.

    Raises:
        TypeError: diag_reg is no number.
        ValueError: diag_reg is negative, or not finite.
    """
    check_number("diag_reg", diag_reg)

    def regular(k: Data) -> jax.Array:
        return regularised(as_matrix(k), diag_reg, absolute)

    return once(lambda k: factorise(regular(k)), kernel), once(
        lambda k: spectrum(regular(k)), kernel
    )


@jitted()
def in_basis(read: jax.Array, response: jax.Array, modes: jax.Array) -> jax.Array:
    """read diag(response[t]) modes, at every time t."""
    return jnp.einsum("mi,tic->tmc", read, response[:, :, None] * modes[None])


def is_array(value: Any) -> bool:
    """Whether the value is an array, of JAX or NumPy."""
    return isinstance(value, jax.Array | np.ndarray)


def check_number(name: str, value: Any, *, positive: bool = False) -> None:
    """Refuses what is no finite number, or is negative (or zero); tracers pass.

    Raises:
        TypeError: it is no number.
        ValueError: it is not finite, or out of range.
    """
    if is_array(value) or isinstance(value, np.generic):
        if not is_concrete(value):
            return
        value = value.item() if np.ndim(value) == 0 else value
    options.check_real(name, value, positive=positive)


def check_dtype(dtype: DTypeLike | None) -> None:
    """Refuses what is neither None nor a type of real floating-point numbers."""
    try:
        right = dtype is None or jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        right = False
    if not right:
        raise TypeError(f"dtype is {dtype!r}; it must be a floating type, such as jnp.float64")


def double(dtype: DTypeLike | None) -> contextlib.AbstractContextManager:
    """Double precision within, where dtype asks for it."""
    check_dtype(dtype)
    wide = dtype is not None and jnp.dtype(dtype).itemsize == 8
    return jax.enable_x64(True) if wide else contextlib.nullcontext()


def cast(tree: PyTree, dtype: DTypeLike | None) -> Any:
    """The floating-point arrays of the tree in another dtype."""
    return jax.tree.map(
        lambda v: v.astype(dtype) if is_array(v) and jnp.issubdtype(v.dtype, jnp.floating) else v,
        tree,
    )


def in_precision(make: Callable, dtype: DTypeLike | None, kernel: Any, y: Data) -> Callable:
    """A predictor that casts what goes in to dtype, and what comes out to that of the kernel."""
    out = floating(jax.tree.leaves(kernel)[0]).dtype
    with double(dtype):
        inner = make(cast(kernel, dtype), cast(jnp.asarray(y), dtype))

    def predict_fn(*args: Any, **kwargs: Any) -> Any:
        with double(dtype):
            args, kwargs = cast((args, kwargs), dtype)
            return cast(inner(*args, **kwargs), out)

    return predict_fn
