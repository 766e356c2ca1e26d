"""Optimizers under a parametrization: one factor on each parameter's learning rate and gradient.

The factors multiply what goes into and what comes out of an ordinary optax optimizer, leaf by leaf and found
by the leaf's path, so that the same transformation works on dicts, on NNX states and in `nnx.Optimizer`. They are
right for two kinds of optimizer: "sgd", linear in the gradient, and "adam", any other function of an entry's own
gradients (adam, lion, clipped entries, adam on matrices and sgd on the rest). Both act on every entry of a parameter
alone, and on its size by weight decay at most. An optimizer of the kind "adam" is given the gradient times the factor
that keeps its entries of order one at every width (the d of abcd-parametrizations: Yang & Littwin 2023,
arXiv:2308.01814), so that whatever it does with them, its eps and its clipping included, is the same at every width.

A factor f on the rate of a "sgd" optimizer is the same as training w / sqrt(f) at the plain rate (an abc symmetry: Yang
& Hu 2021, section 3). The optimizer is given these coordinates: the gradient times sqrt(f), and its update times
sqrt(f). A step then changes the loss by the squared norm of what it is given, at every width, so that a clipped global
norm, or noise added to the gradient, means the same at every width too.
"""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ntk import family
from ntk.types import Array, PyTree, Scalar

KINDS = ("sgd", "adam")
_STEPS = 12
# Steps that are tried where an optimizer waits for many gradients (optax.MultiSteps).
_ACCUMULATED = 256
_UNTRIED = "its update cannot be tried"
_ZERO = "zero)"
_ENTRIES = 34
_SHARPNESS_AWARE = (
    "it is sharpness-aware (SAM): it takes its gradient away from the parameters, by one radius along the gradient of "
    "all of them, of which all layers but the last have a share that vanishes with the width; each layer needs a "
    "radius of its own (Haas et al. 2024, arXiv:2411.00075), not a learning rate. Train the plain network, init and "
    "apply of ntk.network(...), with it"
)


def optimizer_kind(factory: Callable, kind: str | None = None, **kwargs: Any) -> str:
    """ "sgd" or "adam": whether the update of an optax factory is linear in the gradient, found by trying it.

    The optimizer takes a few steps on three small parameters, with gradients of several scales, two signs, and changed
    in one entry, and with parameters of two sizes, at rest and moving. An optimizer that is linear in small gradients
    and keeps only the direction of large ones (`optax.clip_by_global_norm` before `optax.sgd`) is of the kind "sgd".

    Args:
        factory: an optax optimizer such as `optax.sgd`: `factory(learning_rate, **kwargs)` is the transformation.
        kind: what it is expected to be; one that cannot be tried (its update needs more than gradients and
            parameters) is taken at this word.
        **kwargs: hyperparameters of the factory; traced ones are left at their defaults for the trial.

    Returns:
        The kind.

    Raises:
        TypeError: the factory is no function of a learning rate.
        ValueError: an unknown kind; another kind than the one given; an optimizer of neither kind, with what it does.
    """
    if kind not in (None, *KINDS):
        raise ValueError(f'kind is {kind!r}; allowed are "sgd" and "adam"')
    if not callable(factory):
        raise TypeError(
            f"factory is {factory!r}; it must be a function of the learning rate, such as optax.adam"
        )
    name = getattr(getattr(factory, "func", factory), "__name__", repr(factory))
    found, why = _tried(factory, kwargs)
    if found is None:
        if kind and why.startswith(_UNTRIED):
            return kind
        raise ValueError(
            f"{name} is no optimizer of a kind that learning-rate factors are known for: {why}. Use one that acts on "
            "each entry of a parameter alone: optax.sgd with or without momentum, adam, adamw, lion, rmsprop, ..."
        )
    if kind is not None and found != kind:
        raise ValueError(
            f'{name} is of the kind "{found}" and not "{kind}": {why}. Leave kind= out'
        )
    return found


def _tried(factory: Callable, kwargs: dict[str, Any]) -> tuple[str | None, str]:
    """(kind or None, what was seen)."""
    kwargs = {k: v for k, v in kwargs.items() if not isinstance(v, jax.core.Tracer)}
    try:
        return _measured_once(factory, tuple(sorted(kwargs.items())))
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
        return _measured(factory, kwargs)


@functools.lru_cache(maxsize=256)
def _measured_once(factory: Callable, items: tuple) -> tuple[str | None, str]:
    return _measured(factory, dict(items))


def _measured(factory: Callable, kwargs: dict[str, Any]) -> tuple[str | None, str]:
    found = _watched(factory, kwargs, _STEPS)
    return _watched(factory, kwargs, _ACCUMULATED) if found[1].endswith(_ZERO) else found


def _watched(factory: Callable, kwargs: dict[str, Any], count: int) -> tuple[str | None, str]:
    draws = np.random.default_rng(0).standard_normal((count + 1, _ENTRIES)).astype(np.float32)
    # A mean beside the noise: what estimates a distance from the gradients' agreement shows it.
    gradients, params = 0.01 * (draws[:-1] + 0.5), np.abs(draws[-1]) + 0.5

    @jax.jit
    def steps(gradients: Array, params: Array) -> Array:
        """Updates of all steps, (steps, entries), with the parameters of each step."""
        transformation = optax.with_extra_args_support(factory(1.0, **kwargs))

        def step(state: Any, given: tuple[Array, Array]) -> tuple[Any, Array]:
            gradient, params = given
            update, state = transformation.update(_leaves(gradient), state, _leaves(params))
            return state, jnp.concatenate([u.ravel() for u in update.values()])

        return jax.lax.scan(step, transformation.init(_leaves(params[0])), (gradients, params))[1]

    def updates(gradients: np.ndarray, params: np.ndarray = 0 * params) -> np.ndarray:
        with jax.ensure_compile_time_eval(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            single = (gradients, np.broadcast_to(params, gradients.shape))
            return np.asarray(steps(*(np.asarray(x, np.float32) for x in single)), float)

    try:
        with jax.ensure_compile_time_eval(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = factory(1.0, **kwargs).init(_leaves(params))
        if _sharpness_aware(state):
            return None, _SHARPNESS_AWARE
        still = updates(gradients)
    except Exception as error:  # what a transformation raises that needs a loss, a mask or a seed
        return None, f"{_UNTRIED} ({type(error).__name__}: {error})"
    if not still.any():
        return None, f"{_UNTRIED} (its first {count} updates are {_ZERO}"
    moved = [updates(g, params) - updates(g) for g in (gradients, -gradients)]
    if not _equal(*moved):
        return None, "its update depends on the size of the parameters by more than weight decay"
    rest = updates(0 * gradients)

    def linear(small: float, large: float) -> bool:
        one, two = (updates(scale * gradients) - rest for scale in (small, large))
        return bool(one.any()) and _equal(one * (large / small), two)

    def alone(scale: float) -> bool:
        """Whether a larger gradient of one entry, the kernel's first, leaves the others' updates, on the same way."""
        one = gradients * np.where(np.arange(_ENTRIES) == 6, 10, 1)
        way = params - scale * np.cumsum(gradients, 0)
        return _equal(*(np.delete(updates(scale * g, way), 6, axis=1) for g in (one, gradients)))

    def clipped() -> bool:
        """Whether only the norm of the gradient is clipped: of small ones never, of large ones always."""
        size = np.linalg.norm(gradients, axis=1, keepdims=True)
        large, direction = (updates(g) - rest for g in (1e8 * gradients, 1e-4 * gradients / size))
        return linear(1e-6, 1e-4) and alone(1e-6) and _parallel(large, direction)

    each = alone(1)
    if (each and linear(0.01, 1) and linear(1, 1e8)) or clipped():
        return "sgd", "its update is linear in the gradient"
    if not each:
        return None, "the update of one entry depends on the gradient of others"
    return "adam", "its update is no linear function of the gradient"


def _sharpness_aware(state: Any) -> bool:
    """Whether a state is of `optax.contrib.sam`, or has one inside."""

    def is_sam(part: Any) -> bool:
        return isinstance(part, optax.contrib.SAMState)

    return any(map(is_sam, jax.tree.leaves(state, is_leaf=is_sam)))


def _leaves(array: Array) -> dict[str, Array]:
    return {"bias": array[:6], "kernel": array[6:30].reshape(4, 6), "scale": array[30:]}


def _equal(one: np.ndarray, two: np.ndarray) -> bool:
    """Whether two updates are equal, but for rounding and the constants inside optimizers."""
    return bool(np.abs(one - two).max() <= 1e-3 * max(np.abs(one).max(), np.abs(two).max()) + 1e-12)


def _parallel(one: np.ndarray, two: np.ndarray) -> bool:
    """Whether one update is a positive number times the other."""
    ratio = np.sum(one * two) / np.sum(two * two)
    return bool(ratio > 0) and _equal(one, ratio * two)


def multiply(tree: PyTree, factors: Mapping[str, Scalar]) -> PyTree:
    """Each leaf times the factor of its path name; leaves with factor one are returned as they are.

    Raises:
        ValueError: a leaf whose path is not among the factors.
    """

    def times(path: tuple, leaf: Array) -> Array:
        name = family.path_name(path)
        if name not in factors:
            raise ValueError(
                f"{name!r} is not a parameter of the family; there are {list(factors)}"
            )
        factor = factors[name]  # a Python float, or traced
        return leaf if isinstance(factor, float) and factor == 1.0 else leaf * factor

    return jax.tree_util.tree_map_with_path(times, tree)


def scale_per_leaf(
    optimizer: optax.GradientTransformation,
    learning_rate: Mapping[str, Scalar],
    gradient: Mapping[str, Scalar] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer with every leaf's update multiplied by its own factor.

    Weight decay is exempt: the optimizer sees each parameter divided by its learning-rate factor, so that
    what it adds in proportion to the parameter is the same for every factor. This holds for decoupled decay
    (`optax.adamw`) and for L2 inside a chain (`optax.add_decayed_weights` before `optax.sgd`); it is wrong
    for optimizers that use the parameter's norm (`optax.lamb`, `optax.adafactor`).

    Args:
        optimizer: an optax gradient transformation, its own learning rate included.
        learning_rate: {path name: factor} on the update; a parameter of factor 0 stays where it is.
        gradient: {path name: factor} on the gradient before the optimizer: for an Adam-like optimizer the
            same as dividing its eps by that factor.

    Returns:
        A gradient transformation with the optimizer's own state.
    """
    inner = optax.with_extra_args_support(optimizer)
    inverse = {
        name: 1.0 if isinstance(factor, float) and factor == 0 else 1.0 / factor
        for name, factor in learning_rate.items()
    }

    def update(
        updates: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, Any]:
        if gradient is not None:
            updates = multiply(updates, gradient)
        if params is not None:
            params = multiply(params, inverse)
        updates, state = inner.update(updates, state, params, **extra)
        return multiply(updates, learning_rate), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
