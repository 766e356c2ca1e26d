"""Predictions with their uncertainty: Gaussian processes, and ensembles of trained wide networks.

With d training and t test points, K the NNGP and T the NTK, at infinite time::

    nngp     mean K_td K_dd^-1 y    covariance K_tt - K_td K_dd^-1 K_dt
    ntk      mean T_td T_dd^-1 y    covariance K_tt + A K_dd A^T - A K_dt - K_td A^T,    A = T_td T_dd^-1

and at time t A is T_td T_dd^-1 (1 - exp(-t T_dd)).

Source: Lee et al. 2018 (arXiv 1711.00165); Lee et al. 2019 (arXiv 1902.06720), equations 13 to 16.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ntk import arguments, show
from ntk.regression import spectra
from ntk.regression.predictors import Ensemble, Gaussian, Posterior
from ntk.types import Data

Axes = int | tuple[int, ...]


@arguments.strict
def gp_inference(
    k_train_train: Any,
    y_train: Data,
    diag_reg: float = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: Axes = (-1,),
    *,
    dtype: DTypeLike | None = None,
) -> Posterior:
    """Posterior of a Gaussian process, or of an ensemble of networks trained to the end.

    Args:
        k_train_train: array, or an object with ``nngp`` and ``ntk``.
        y_train: targets.
        diag_reg: added to the diagonal, in units of its mean.
        diag_reg_absolute_scale: whether diag_reg is absolute instead.
        trace_axes: axes of y_train that the kernels lack.
        dtype: ``jnp.float64`` to solve in double precision whatever the inputs are.

    Returns:
        ``predict_fn(get=None, k_test_train=None, k_test_test=None)``. get is "nngp" (Bayesian
        network), "ntk" (ensemble of trained networks, each from its own initialisation), "ntkgp"
        (Gaussian process with the NTK), a tuple, or None for the first two. Means, or
        :class:`Gaussian` where k_test_test is given. Without k_test_train: the targets themselves.

    Raises:
        ValueError: shapes do not fit, entries that are not finite, an indefinite kernel, an unknown or missing kernel;
            arrays where the covariance for "ntk" takes both kernels.

    Source: Lee et al. 2018 (arXiv 1711.00165); Lee et al. 2019, section 2.3.1; He, Lakshminarayanan,
    Teh 2020 (arXiv 2007.05864) for ntkgp.
    """
    if dtype is not None:
        make = functools.partial(
            gp_inference,
            diag_reg=diag_reg,
            diag_reg_absolute_scale=diag_reg_absolute_scale,
            trace_axes=trace_axes,
        )
        return spectra.in_precision(make, dtype, _kernels(k_train_train), y_train)
    kernels = _kernels(k_train_train)
    first, *others = jax.tree.leaves(kernels)
    layout = spectra.Layout.of(first, y_train, trace_axes)
    for other in others:
        spectra.check_finite("k_train_train", other)
    y = layout.flatten(spectra.floating(y_train).astype(first.dtype))
    factors = {
        name: spectra.decompositions(kernel, diag_reg, diag_reg_absolute_scale)[0]
        for name, kernel in kernels._asdict().items()
        if kernel is not None
    }

    @arguments.strict
    def predict_fn(
        get: str | tuple[str, ...] | None = None, k_test_train: Any = None, k_test_test: Any = None
    ) -> Any:
        names = _names(get, ("nngp", "ntk", "ntkgp"))
        if "ntk" in names and k_test_train is not None and k_test_test is not None:
            _check_both(k_train_train, k_test_train)
        results = [
            _posterior(layout, y, kernels, factors, g, k_test_train, k_test_test) for g in names
        ]
        return _collect(get, names, results)

    return predict_fn


def _posterior(
    layout: spectra.Layout,
    y: jax.Array,
    kernels: _Kernels,
    factors: dict[str, Callable[[], spectra.Factor]],
    get: str,
    k_td: Any,
    k_tt: Any,
) -> jax.Array | Gaussian:
    name = "nngp" if get == "nngp" else "ntk"
    k_dd = _named(kernels, name)
    if k_td is None:
        mean = layout.unflatten(y)
        return mean if k_tt is None else Gaussian(mean, jnp.zeros_like(k_dd))
    layout.check_test(_named(k_td, name))
    rows = _named(k_td, name).shape[::2]
    cross = spectra.as_matrix(_named(k_td, name))
    mean = layout.unflatten(cross @ spectra.solve(factors[name](), y), rows)
    if k_tt is None:
        return mean
    prior = "ntk" if get == "ntkgp" else "nngp"
    spectra.check_finite("k_test_train", _named(k_td, prior))
    spectra.check_finite("k_test_test", _named(k_tt, prior))
    covariance = spectra.as_matrix(_named(k_tt, prior))
    # A K_dt with A = T_td T_dd^-1 (of "ntkgp" with T in place of K, and of "nngp" with K in place of T).
    reduction = cross @ spectra.solve(factors[name](), spectra.as_matrix(_named(k_td, prior)).T)
    if get == "ntk":
        weights = spectra.solve(factors[name](), cross.T)
        spread = spectra.as_matrix(_named(kernels, "nngp"))
        # The networks start at random outputs of covariance K, of which training leaves f_t - A f_d: all four terms.
        covariance += weights.T @ spread @ weights - reduction.T
    covariance -= reduction
    _warn_of_negative(covariance, spectra.as_matrix(_named(k_tt, prior)))
    return Gaussian(mean, spectra.as_kernel(covariance, rows))


def _warn_of_negative(covariance: jax.Array, prior: jax.Array) -> None:
    """Says that variances are negative beyond rounding, where they are known."""
    least, scale = jnp.diagonal(covariance).min(), jnp.abs(jnp.diagonal(prior)).max()
    if not spectra.is_concrete(least) or least >= -(jnp.finfo(prior.dtype).eps ** 0.5) * scale:
        return
    warnings.warn(
        f"variances are negative, down to {float(least):.3g} beside {float(scale):.3g}, the largest of the prior: the "
        "kernels of training and test points are not blocks of one positive semi-definite matrix, or their rounding is "
        "larger than diag_reg; compute them by one kernel function, or in float64",
        RuntimeWarning,
        stacklevel=3,
    )


def gradient_descent_mse_ensemble(
    kernel_fn: Callable,
    x_train: Any,
    y_train: Data,
    learning_rate: float = 1.0,
    diag_reg: float = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: Axes = (-1,),
    *,
    dtype: DTypeLike | None = None,
    **kernel_fn_train_train_kwargs: Any,
) -> Ensemble:
    """Mean and covariance of an infinite ensemble of wide networks under gradient flow on the MSE.

    Args:
        kernel_fn: ``kernel_fn(x1, x2, get, **kwargs)``, giving an object with ``nngp`` and ``ntk``
            for a tuple ``get``.
        x_train: training inputs.
        y_train: their targets.
        learning_rate: step size; t is counted in steps of it.
        diag_reg: added to the diagonal of the kernel, in units of its mean.
        diag_reg_absolute_scale: whether diag_reg is absolute instead.
        trace_axes: axes of y_train that the kernels lack.
        dtype: ``jnp.float64`` to decompose and solve in double precision.
        **kernel_fn_train_train_kwargs: passed to kernel_fn.

    Returns:
        ``predict_fn(t=None, x_test=None, get=None, compute_cov=False, **kernel_kwargs)``. get is
        "nngp" (only the last layer trains), "ntk", a tuple, or None for both; t as in
        :func:`gradient_descent_mse`; x_test None for the training points without diag_reg.

    Raises:
        ValueError: as in :func:`gp_inference`.

    Source: Lee et al. 2019, equations 13 to 16.
    """
    given = kernel_fn_train_train_kwargs
    arguments.refuse_unread(
        "gradient_descent_mse_ensemble", gradient_descent_mse_ensemble, kernel_fn, given
    )
    spectra.check_number("learning_rate", learning_rate, positive=True)
    axes = trace_axes
    reg = (diag_reg, diag_reg_absolute_scale)
    kept: dict[str, tuple] = {}

    def train(names: tuple[str, ...]) -> dict[str, tuple]:
        """Kernels and decompositions of the training points; kept unless they are tracers."""
        missing = tuple(n for n in names if n not in kept)
        found = {n: v for n, v in kept.items() if n in names}
        if missing:
            new = _ask(kernel_fn, x_train, None, missing, kernel_fn_train_train_kwargs)
            for n, kernel in new.items():
                kernel = spectra.floating(kernel) if dtype is None else kernel.astype(dtype)
                spectra.check_finite("k_train_train", kernel)
                found[n] = (kernel, *spectra.decompositions(kernel, *reg))
                if spectra.is_concrete(kernel):
                    kept[n] = found[n]
        return found

    def predict_fn(
        t: Any = None,
        x_test: Any = None,
        get: str | tuple[str, ...] | None = None,
        compute_cov: bool = False,
        **kwargs: Any,
    ) -> Any:
        arguments.refuse_unread("predict_fn", predict_fn, kernel_fn, kwargs)
        names = _names(get, ("nngp", "ntk"))
        needed = tuple(n for n in ("nngp", "ntk") if n in names or (compute_cov and n == "nngp"))
        with spectra.double(dtype):
            found = train(needed)
            out = spectra.floating(y_train).dtype if dtype is not None else None
            kernels = _Kernels(**{n: v[0] for n, v in found.items()})
            first = jax.tree.leaves(kernels)[0]
            layout = spectra.Layout.of(first, y_train, axes)
            y = layout.flatten(spectra.floating(y_train).astype(first.dtype))
            k_td, k_tt = None, True if compute_cov else None
            if x_test is not None:
                test_kwargs, both = _merge(kernel_fn_train_train_kwargs, kwargs)
                k_td = _Kernels(**_ask(kernel_fn, x_test, x_train, needed, both))
                if compute_cov:
                    k_tt = _ask(kernel_fn, x_test, None, ("nngp",), test_kwargs)["nngp"]
                k_td, k_tt = spectra.cast((k_td, k_tt), first.dtype)
                for leaf in jax.tree.leaves((k_td, k_tt)):
                    spectra.check_finite("the kernel of test points", leaf)
            if t is None:
                factors = {n: v[1] for n, v in found.items()}
                results = [_posterior(layout, y, kernels, factors, g, k_td, k_tt) for g in names]
            else:
                # The loss is a mean over all entries of y, and so is its gradient.
                tau = spectra.times(t, first.dtype) * (learning_rate / y.size)
                results = [
                    _ensemble_at(layout, y, kernels, found[g][2](), g, k_td, k_tt, tau)
                    for g in names
                ]
            return _collect(get, names, results if out is None else spectra.cast(results, out))

    return predict_fn


def _ensemble_at(
    layout: spectra.Layout,
    y: jax.Array,
    kernels: _Kernels,
    spectrum: spectra.Spectrum,
    get: str,
    k_td: Any,
    k_tt: Any,
    tau: jax.Array,
) -> jax.Array | Gaussian:
    """Mean and covariance at finite times tau, of any shape."""
    values, vectors = spectrum
    times = tau.reshape(-1)
    project = vectors.T
    if k_td is None:
        rows, read, initial = layout.rows, vectors, None
        response = spectra.relaxation(values, times)
    else:
        rows = _named(k_td, get).shape[::2]
        read = spectra.as_matrix(_named(k_td, get)) @ vectors
        response = spectra.integrated_decay(values, times)
    mean = spectra.in_basis(read, response, project @ y)
    mean = layout.unflatten(mean.reshape(*tau.shape, *mean.shape[1:]), rows)
    if k_tt is None:
        return mean
    if get == "nngp" and k_td is None:
        # exp(-K t) K exp(-K t): what is left of the initial outputs.
        covariance = spectra.in_basis(
            vectors, values[None] * (1.0 - spectra.relaxation(values, 2 * times)), project
        )
    elif get == "nngp":
        # K_tt - 2 K_td (E / K) K_dt + K_td (E / K) K (E / K) K_dt with E = 1 - exp(-K t): 2 E - E^2 = 1 - exp(-2 K t).
        covariance = spectra.as_matrix(k_tt)[None] - spectra.in_basis(
            read, spectra.integrated_decay(values, 2 * times), read.T
        )
    elif k_td is None:
        # exp(-T t) K exp(-T t), K and T with eigenvectors of their own.
        covariance = _spread(vectors, 1.0 - response, project, _named(kernels, "nngp"))
    else:
        initial = project @ spectra.as_matrix(_named(k_td, "nngp")).T
        reduction = spectra.in_basis(read, response, initial)
        covariance = spectra.as_matrix(k_tt)[None] + _spread(
            read, response, project, _named(kernels, "nngp")
        )
        covariance = covariance - reduction - reduction.swapaxes(1, 2)
    covariance = covariance.reshape(*tau.shape, *covariance.shape[1:])
    return Gaussian(mean, spectra.as_kernel(covariance, rows))


def _spread(read: jax.Array, response: jax.Array, project: jax.Array, nngp: jax.Array) -> jax.Array:
    """A K A^T with A = read diag(response) project, at every time."""
    inner = project @ spectra.as_matrix(nngp) @ project.T
    inner = response[:, :, None] * inner[None] * response[:, None, :]
    return jnp.einsum("mi,tij,nj->tmn", read, inner, read)


class _Kernels(NamedTuple):
    nngp: jax.Array | None = None
    ntk: jax.Array | None = None


def _kernels(kernel: Any) -> _Kernels:
    """The kernels that an array (any of the two) or an object with attributes holds."""
    if spectra.is_array(kernel):
        # One array serves any name, but not both kernels at once, see `_check_both`.
        kernel = spectra.floating(kernel)
        return _Kernels(kernel, kernel)
    kernels = _Kernels(*(getattr(kernel, name, None) for name in _Kernels._fields))
    kernels = jax.tree.map(spectra.floating, kernels)
    if kernels == (None, None):
        raise ValueError(f"k_train_train is {type(kernel).__name__}: neither array, nngp nor ntk")
    return kernels


def _named(kernel: Any, name: str) -> jax.Array:
    value = kernel if spectra.is_array(kernel) else getattr(kernel, name, None)
    if value is None:
        raise ValueError(
            f"the {name} kernel is needed and missing; compute kernels with get=('nngp', 'ntk')"
        )
    return value


def _check_both(*kernels: Any) -> None:
    """The covariance of trained networks takes the NNGP and the NTK: one array cannot be both."""
    if any(map(spectra.is_array, kernels)):
        raise ValueError(
            "the covariance for get='ntk' takes the NNGP and the NTK of training points, and of test and "
            "training points: give kernel_fn(x1, x2, ('nngp', 'ntk')) in place of arrays"
        )


def _ask(kernel_fn: Callable, x1: Any, x2: Any, names: tuple[str, ...], kwargs: dict) -> dict:
    if len(names) == 1:
        return {names[0]: kernel_fn(x1, x2, names[0], **kwargs)}
    result = kernel_fn(x1, x2, names, **kwargs)
    return {name: getattr(result, name) for name in names}


def _merge(train: dict, test: dict) -> tuple[dict, dict]:
    """kwargs of the test-test and of the test-train kernel."""
    test_test, test_train = dict(train), dict(train)
    for name, value in test.items():
        old: Any = train.get(name)
        pairs = all(isinstance(v, tuple) and len(v) == 2 for v in (old, value))
        test_test[name] = value
        # (first, second batch): test points come first against training points.
        test_train[name] = (value[0], old[0]) if pairs else value
        arrays = all(spectra.is_array(v) for v in jax.tree.leaves((old, value)))
        if not arrays and old != value:
            raise ValueError(
                f"{name} is {old!r} for the training kernel and {value!r} for the test"
            )
    return test_test, test_train


def _names(get: str | tuple[str, ...] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    get = arguments.lower(get)
    names = ("nngp", "ntk") if get is None else (get,) if isinstance(get, str) else get
    for name in names:
        if name not in known:
            raise ValueError(f"get has {name!r}; there are {known}")
    return names


def _collect(get: Any, names: tuple[str, ...], results: list) -> Any:
    return results[0] if isinstance(get, str) else show.bundle("Gaussians", tuple(names))(*results)
