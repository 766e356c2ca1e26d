"""Training dynamics in function space: what gradient descent on a kernel machine predicts.

A network so wide that its NTK stays put trains like kernel regression with that NTK: its outputs on
the training points follow ``df/dt = -K grad loss(f)``, in closed form for the squared error. Kernels
have their output axes in pairs, ``(n1, n2, k, k)``, except for ``trace_axes``, along which they are
identities.

Source: Lee et al. 2019, "Wide neural networks of any depth evolve as linear models under gradient
descent" (arXiv 1902.06720).
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ntk import arguments
from ntk.regression import ode, spectra
from ntk.regression.posterior import gp_inference, gradient_descent_mse_ensemble
from ntk.regression.predictors import Flow, Gaussian, ODEState, StateFlow
from ntk.types import Data, Float, PyTree

__all__ = [
    "Gaussian",
    "ODEState",
    "gp_inference",
    "gradient_descent",
    "gradient_descent_mse",
    "gradient_descent_mse_ensemble",
    "max_learning_rate",
]

Axes = int | tuple[int, ...]


@arguments.strict
def gradient_descent_mse(
    k_train_train: Data,
    y_train: Data,
    learning_rate: float = 1.0,
    diag_reg: float = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: Axes = (-1,),
    *,
    dtype: DTypeLike | None = None,
) -> Flow:
    """Gradient flow on the mean squared error, 1/2 mean (f - y)^2, in closed form.

    Args:
        k_train_train: kernel of the training points.
        y_train: their targets.
        learning_rate: step size; t is counted in steps of it.
        diag_reg: added to the diagonal of the kernel, in units of its mean.
        diag_reg_absolute_scale: whether diag_reg is absolute instead.
        trace_axes: axes of y_train that the kernel lacks.
        dtype: ``jnp.float64`` to decompose and solve in double precision whatever the inputs are.

    Returns:
        ``predict_fn(t=None, fx_train_0=0., fx_test_0=None, k_test_train=None)``: outputs on the
        training points, the test points or both, for those of ``fx_..._0`` that are not None. t is
        None for infinity, or an array, whose axes then lead. Finite times share one
        eigendecomposition; infinity takes a Cholesky decomposition, and its training outputs are
        the targets. A kernel that is singular to working precision moves nothing along the
        directions that it does not see: infinity is then the limit on its range, and a
        RuntimeWarning says so, unless the kernel is a tracer.

    Raises:
        ValueError: shapes do not fit (initial outputs are one number for all, or an array of their shape), the learning
            rate is not positive, the kernel is indefinite, or is no array, entries of an array are not finite, or (from
            predict_fn) nothing is asked for, test outputs without k_test_train, or a negative time. Inside of a trace
            values cannot be looked at, and nan goes through.

    Source: Lee et al. 2019, equations 8 to 11.
    """
    spectra.check_number("learning_rate", learning_rate, positive=True)
    if dtype is not None:
        make = functools.partial(
            gradient_descent_mse,
            learning_rate=learning_rate,
            diag_reg=diag_reg,
            diag_reg_absolute_scale=diag_reg_absolute_scale,
            trace_axes=trace_axes,
        )
        return spectra.in_precision(make, dtype, k_train_train, y_train)
    layout = spectra.Layout.of(k_train_train, y_train, trace_axes)
    k_train_train = spectra.floating(k_train_train)
    factor, spectrum = spectra.decompositions(k_train_train, diag_reg, diag_reg_absolute_scale)
    y = layout.flatten(spectra.floating(y_train).astype(k_train_train.dtype))

    @arguments.strict
    def predict_fn(
        t: Any = None, fx_train_0: Any = 0.0, fx_test_0: Any = None, k_test_train: Any = None
    ) -> Any:
        _check_request(layout, fx_train_0, fx_test_0, k_test_train)
        start = layout.outputs("fx_train_0", 0.0 if fx_train_0 is None else fx_train_0)
        start = layout.flatten(start.astype(y.dtype))
        lead = () if t is None else jnp.shape(t)
        # At infinity all targets are met, and test outputs move by K_td K_dd^-1 (y - f_0).
        train = weights = y
        if t is None and fx_test_0 is not None:
            weights = spectra.solve(factor(), y - start)
        elif t is not None:
            # The gradient of 1/2 mean (f - y)^2 is (f - y) / y.size.
            tau = spectra.times(t, y.dtype).reshape(-1) * (learning_rate / y.size)
            values, vectors = spectrum()
            modes = vectors.T @ (y - start)
            train = start[None] + spectra.in_basis(vectors, spectra.relaxation(values, tau), modes)
            weights = spectra.in_basis(vectors, spectra.integrated_decay(values, tau), modes)
            train, weights = (v.reshape(*lead, *y.shape) for v in (train, weights))
        train = layout.unflatten(train)
        if fx_test_0 is None:
            return train
        moved = spectra.as_matrix(k_test_train).astype(y.dtype) @ weights
        moved = layout.unflatten(moved, k_test_train.shape[::2])
        first = layout.outputs("fx_test_0", fx_test_0, k_test_train.shape[::2]).astype(y.dtype)
        test = moved + jnp.expand_dims(first, tuple(range(len(lead))))
        return test if fx_train_0 is None else (train, test)

    return predict_fn


@arguments.strict
def gradient_descent(
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    k_train_train: Data,
    y_train: Data,
    learning_rate: float = 1.0,
    momentum: float | None = None,
    trace_axes: Axes = (-1,),
    *,
    rtol: float = 1.4e-8,
    atol: float = 1.4e-8,
    max_steps: int = 100_000,
    dtype: DTypeLike | None = None,
) -> StateFlow:
    """Gradient flow, with or without momentum, on any loss, by numerical integration.

    Args:
        loss: ``loss(fx, y)``, a scalar.
        k_train_train: kernel of the training points.
        y_train: their targets.
        learning_rate: step size; time is ``learning_rate * t``, or its square root times t under
            momentum.
        momentum: coefficient m of ``v <- m v - gradient``; None for plain gradient descent.
        trace_axes: axes of y_train that the kernel lacks.
        rtol: relative error of each step of the integrator (neural-tangents's default); values
            below the rounding error of the dtype are raised to it.
        atol: absolute error of each step.
        max_steps: steps of the integrator in all; results that they do not reach are NaN.
        dtype: ``jnp.float64`` to integrate in double precision whatever the inputs are.

    Returns:
        ``predict_fn(t=None, fx_train_or_state_0=0., fx_test_0=None, k_test_train=None)``: as in
        :func:`gradient_descent_mse`; given an :class:`ODEState` it returns one. None is infinity,
        reached when a doubling of time moves the state by less than ten tolerances. Reverse mode
        differentiates by kernels, targets, initial outputs, times, and what the loss closes over.
        Along the kinks of a loss (hinge) steps are of 2 t / max_steps, and so is the error.

    Raises:
        TypeError: loss is no function.
        ValueError: shapes do not fit, loss returns anything but one number, max_steps is not positive, velocities
            without momentum, or as in :func:`gradient_descent_mse`.

    Warns:
        RuntimeWarning: max_steps did not reach all times.

    Source: Lee et al. 2019, equation 3; momentum: supplement B.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}; it must be at least 1")
    if momentum is not None and spectra.is_concrete(momentum) and not 0 <= momentum < 1:
        raise ValueError(f"momentum is {momentum}; it must be at least 0 and less than 1, or None")
    spectra.check_number("learning_rate", learning_rate, positive=True)
    if dtype is not None:
        make = functools.partial(
            gradient_descent,
            loss,
            learning_rate=learning_rate,
            momentum=momentum,
            trace_axes=trace_axes,
            rtol=rtol,
            atol=atol,
            max_steps=max_steps,
        )
        return spectra.in_precision(make, dtype, k_train_train, y_train)
    layout = spectra.Layout.of(k_train_train, y_train, trace_axes)
    k_dd = spectra.as_matrix(spectra.floating(k_train_train))
    one_number = arguments.scalar_loss(loss)
    jax.eval_shape(one_number, jax.ShapeDtypeStruct(layout.shape, k_dd.dtype), y_train)
    eps = float(jnp.finfo(k_dd.dtype).eps)
    rtol, atol = max(rtol, 4 * eps), max(atol, 4 * eps)
    # v_(k+1) = m v_k - g and theta_(k+1) = theta_k + lr v_(k+1), in time steps dt = lr^(1/2) with q = dt v, are
    # dq/dt = (m - 1) / dt q - g: friction, and units of time of lr^(1/2). Without momentum dt = lr.
    pace = learning_rate if momentum is None else learning_rate**0.5
    friction = None if momentum is None else (momentum - 1.0) / pace

    @functools.partial(jax.jit, static_argnames="rows")
    def solution(
        k_dd: jax.Array,
        y: jax.Array,
        k_td: jax.Array | None,
        start: ODEState,
        end: jax.Array,
        rows: tuple[int, ...],
    ) -> tuple[ODEState, jax.Array]:
        def rate(s: PyTree) -> ODEState:
            g = layout.flatten(jax.grad(one_number)(layout.unflatten(s.fx_train), y))
            pull = ODEState(-k_dd @ g, None if k_td is None or s.fx_test is None else -k_td @ g)
            if friction is None:
                return pull
            force = jax.tree.map(
                lambda p, q: p + friction * q, tuple(pull[:2]), (s.qx_train, s.qx_test)
            )
            return ODEState(s.qx_train, s.qx_test, *force)

        order = jnp.argsort(end.reshape(-1))
        path = ode.integrate(
            rate, start, end.reshape(-1)[order] * pace, rtol=rtol, atol=atol, max_steps=max_steps
        )
        # The integrator wants times in order.
        back = jnp.argsort(order)
        states = ODEState(
            *(
                None
                if v is None
                else layout.unflatten(v[back].reshape(*end.shape, *v.shape[1:]), shape)
                for v, shape in zip(path.states, (layout.rows, rows, layout.rows, rows))
            )
        )
        return states, path.reached

    @arguments.strict
    def predict_fn(
        t: Any = None,
        fx_train_or_state_0: Any = 0.0,
        fx_test_0: Any = None,
        k_test_train: Any = None,
    ) -> Any:
        given = isinstance(fx_train_or_state_0, ODEState)
        if given and fx_test_0 is not None:
            raise ValueError("fx_test_0 is part of the ODEState; leave it None")
        state = fx_train_or_state_0 if given else ODEState(fx_train_or_state_0, fx_test_0)
        _check_request(layout, state.fx_train, state.fx_test, k_test_train)
        rows = layout.rows if k_test_train is None else k_test_train.shape[::2]
        k_td = None if k_test_train is None else spectra.as_matrix(k_test_train).astype(k_dd.dtype)
        if momentum is None and not (state.qx_train is None and state.qx_test is None):
            raise ValueError("the ODEState has velocities qx_..., and momentum is None")
        end = spectra.times(jnp.inf if t is None else t, k_dd.dtype)
        start = _start(layout, state, tuple(rows), k_dd.dtype, momentum is not None)
        result, reached = solution(k_dd, y_train, k_td, start, end, tuple(rows))
        if _is_false(reached):
            warnings.warn(
                f"{max_steps} steps did not reach all times, and results there are NaN; raise max_steps, "
                "or rtol and atol",
                RuntimeWarning,
                stacklevel=2,
            )
        if given:
            return result
        if fx_test_0 is None:
            return result.fx_train
        return result.fx_test if fx_train_or_state_0 is None else (result.fx_train, result.fx_test)

    return predict_fn


@arguments.strict
def max_learning_rate(
    ntk_train_train: Data,
    y_train_size: int | None = None,
    momentum: float = 0.0,
    eps: float = 1e-12,
) -> Float[jax.Array, ""]:
    """Largest stable learning rate of gradient descent on the mean squared error.

    Args:
        ntk_train_train: NTK of the training points.
        y_train_size: number of target entries; None for the rows of the kernel, which fits
            ``trace_axes=()``.
        momentum: coefficient of momentum.
        eps: added to the largest eigenvalue, against division by zero.

    Returns:
        ``2 (1 + momentum) y_train_size / (largest eigenvalue + eps)``.

    Raises:
        ValueError: no target entries; a momentum below 0 or from 1 on, with which no rate is stable; a kernel with
            entries that are not finite.

    Source: Lee et al. 2019, section 2.2; Goh 2017, "Why momentum really works".
    """
    ntk_train_train = spectra.floating(spectra.array("ntk_train_train", ntk_train_train))
    matrix = spectra.as_matrix(ntk_train_train)
    size = len(matrix) if y_train_size is None else y_train_size
    if _is_false(jnp.asarray(size) > 0):
        raise ValueError(f"y_train_size is {size}; it must be positive")
    if _is_false((jnp.asarray(momentum) >= 0) & (jnp.asarray(momentum) < 1)):
        raise ValueError(f"momentum is {momentum}; it must be at least 0 and less than 1")
    spectra.check_finite("ntk_train_train", matrix)
    return 2 * (1 + momentum) * size / (jnp.linalg.eigvalsh(matrix)[-1] + eps)


def _is_false(values: jax.Array) -> bool:
    """Whether one of the values is False; not known inside jit, grad and vmap."""
    try:
        return not np.asarray(values).all()
    except jax.errors.TracerArrayConversionError:
        return False


def _start(
    layout: spectra.Layout, state: ODEState, rows: tuple, dtype: DTypeLike | None, moving: bool
) -> ODEState:
    """The state at time 0 as matrices."""

    def matrix(name: str, rows: tuple[int, ...]) -> jax.Array:
        value = getattr(state, name)
        outputs = layout.outputs(name, 0.0 if value is None else value, rows)
        return layout.flatten(outputs.astype(dtype))

    has_test = state.fx_test is not None
    return ODEState(
        matrix("fx_train", layout.rows),
        matrix("fx_test", rows) if has_test else None,
        matrix("qx_train", layout.rows) if moving else None,
        matrix("qx_test", rows) if moving and has_test else None,
    )


def _check_request(layout: spectra.Layout, fx_train: Any, fx_test: Any, k_test_train: Any) -> None:
    if fx_train is None and fx_test is None:
        raise ValueError("fx_train_0 and fx_test_0 are both None: nothing is asked for")
    if fx_test is not None and k_test_train is None:
        raise ValueError("fx_test_0 is given: predictions on test points need k_test_train")
    if k_test_train is not None:
        layout.check_test(k_test_train)
