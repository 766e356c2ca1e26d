"""Optimizers under a parametrization: one factor on each parameter's learning rate and gradient.

The factors multiply what goes into and what comes out of an ordinary optax optimizer, leaf by leaf and found
by the leaf's path, so that the same transformation works on dicts, on NNX states and in `nnx.Optimizer`. They are
right for two kinds of optimizer, told apart by what the update does when the gradient is scaled: "sgd" (linear in it)
and "adam" (unchanged). Both act on every entry of a parameter alone, and on its size by weight decay at most.
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
_UNTRIED = "its update cannot be tried"


def optimizer_kind(factory: Callable, kind: str | None = None, **kwargs: Any) -> str:
    """ "sgd" or "adam": how the update of an optax factory scales with the gradient, found by trying it.

    The optimizer takes a few steps on three small parameters, with gradients of two scales, two signs, and changed in
    one entry, and with parameters of two sizes.

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
            f"{name} is no optimizer of a kind that learning-rate factors are known for: {why}. Use one whose "
            'update is linear in the gradient ("sgd", with or without momentum) or does not change with its scale '
            '("adam", adamw, lion, rmsprop, ...), and acts on each entry alone'
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
    draws = np.random.default_rng(0).standard_normal((_STEPS + 1, 34)).astype(np.float32)
    gradients, params = 0.01 * draws[:-1], np.abs(draws[-1]) + 0.5

    @jax.jit
    def steps(gradients: Array, params: Array) -> Array:
        """Updates of all steps, (steps, entries); the parameters stay where they are."""
        transformation = optax.with_extra_args_support(factory(1.0, **kwargs))

        def step(state: Any, gradient: Array) -> tuple[Any, Array]:
            update, state = transformation.update(_leaves(gradient), state, _leaves(params))
            return state, jnp.concatenate([u.ravel() for u in update.values()])

        return jax.lax.scan(step, transformation.init(_leaves(params)), gradients)[1]

    def updates(gradients: np.ndarray, params: np.ndarray = 0 * params) -> np.ndarray:
        with jax.ensure_compile_time_eval(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            single = (np.asarray(x, np.float32) for x in (gradients, params))
            return np.asarray(steps(*single), float)

    try:
        still = updates(gradients)
    except Exception as error:  # what a transformation raises that needs a loss, a mask or a seed
        return None, f"{_UNTRIED} ({type(error).__name__}: {error})"
    if not still.any():
        return None, f"{_UNTRIED} (its first {_STEPS} updates are zero)"
    moved = [updates(g, params) - updates(g) for g in (gradients, -gradients)]
    if not _equal(*moved):
        return None, "its update depends on the size of the parameters by more than weight decay"
    # A larger gradient of the first entry of the kernel, which comes second in the order of names.
    one = gradients * np.where(np.arange(34) == 6, 10, 1)
    if not _equal(*(np.delete(u, 6, axis=1) for u in (updates(one), still))):
        return None, "the update of one entry depends on the gradient of others"
    rest, small = updates(0 * gradients), updates(0.01 * gradients)
    if _equal(100 * (small - rest), still - rest) and not _equal(still, rest):
        return "sgd", "its update is linear in the gradient"
    # Constants beside squared gradients (eps, the start of adagrad) count for nothing where gradients are large.
    if _equal(updates(1e8 * gradients), updates(1e9 * gradients)):
        return "adam", "its update does not change with the scale of the gradient"
    return None, "its update is neither linear in the gradient nor unchanged by its scale"


def _leaves(array: Array) -> dict[str, Array]:
    return {"bias": array[:6], "kernel": array[6:30].reshape(4, 6), "scale": array[30:]}


def _equal(one: np.ndarray, two: np.ndarray) -> bool:
    """Whether two updates are equal, but for rounding and the constants inside optimizers."""
    return bool(np.abs(one - two).max() <= 1e-3 * max(np.abs(one).max(), np.abs(two).max()) + 1e-12)


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
