"""Optimizers under a parametrization: one factor on each parameter's learning rate and gradient.

The factors multiply what goes into and what comes out of an ordinary optax optimizer, leaf by leaf and found
by the leaf's path, so that the same transformation works on dicts, on NNX states and in `nnx.Optimizer`. They are
right for optimizers that act on every entry of a parameter alone, and on its size by weight decay at most:

- "sgd", linear in the gradient: the optimizer is given w / sqrt(f) for a factor f on the rate, in which all rates are
  equal (an abc symmetry: Yang & Hu 2021, section 3). A step changes the loss by the squared norm of the gradient that
  it is given, at every width, so that clipping this norm means the same at every width.
- "adam", unchanged by the gradient's scale. It is given the gradient times the factor that keeps its entries of order
  one at every width (the d of abcd-parametrizations: Yang & Littwin 2023, arXiv:2308.01814), so that its eps means the
  same at every width.
- "entrywise", any other function of an entry's own gradients (clipped entries, noise, adam on matrices and sgd on the
  rest), treated as "adam". It has factors under the rules whose rates for "sgd" and "adam" are one rule for both, as
  those of mup are and those of ntk are not.

A clipped norm before adam sees a gradient whose norm grows with the width. Clip outside, where the norm of all
gradients is of order one under mup: `optax.chain(optax.clip_by_global_norm(1.0), net.optimizer(optax.adam, rate))`.
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
from ntk.arguments import keyword_names, refuse_unknown
from ntk.types import Array, PyTree, Scalar

KINDS = ("sgd", "adam", "entrywise")
_STEPS = 12
# Steps that are tried where an optimizer waits for many gradients (optax.MultiSteps).
_ACCUMULATED = 256
_UNTRIED = "its update cannot be tried"
_ZERO = "zero)"
_SIDE = 128  # of a matrix: smaller ones some optimizers treat otherwise (optax.adafactor)
_ENTRIES = 10 + _SIDE**2
_SHARPNESS_AWARE = (
    "it is sharpness-aware (SAM): it takes its gradient away from the parameters, by one radius along the gradient of "
    "all of them, of which all layers but the last have a share that vanishes with the width; each layer needs a "
    "radius of its own (Haas et al. 2024, arXiv:2411.00075), not a learning rate. Train the plain network, init and "
    "apply of ntk.network(...), with it"
)


def optimizer_kind(factory: Callable, kind: str | None = None, **kwargs: Any) -> str:
    """ "sgd", "adam" or "entrywise": what the update of an optax factory does to gradients, found by trying it.

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
        TypeError: the factory is no function of a learning rate, or reads no such hyperparameter.
        ValueError: an unknown kind; another kind than the one given; an optimizer of no kind, with what it does.
    """
    if kind not in (None, *KINDS):
        raise ValueError(f'kind is {kind!r}; allowed are "sgd", "adam" and "entrywise"')
    if not callable(factory):
        raise TypeError(
            f"factory is {factory!r}; it must be a function of the learning rate, such as optax.adam"
        )
    name = getattr(getattr(factory, "func", factory), "__name__", repr(factory))
    refuse_unknown(name, kwargs, keyword_names(factory), ("kind",))
    found, why = _tried(factory, kwargs)
    if found is None:
        if kind and why.startswith(_UNTRIED):
            return kind
        raise ValueError(
            f"{name} is no optimizer of a kind that learning-rate factors are known for: {why}. Use one that acts on "
            "each entry of a parameter alone: optax.sgd with or without momentum, adam, adamw, lion, rmsprop, ...; a "
            "clipped norm goes outside, optax.chain(optax.clip_by_global_norm(1.0), net.optimizer(optax.adam, rate)); "
            'what cannot be tried is taken at the word of kind="adam" or "sgd"'
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
        one = gradients * np.where(np.arange(_ENTRIES) == 6, 1000, 1)
        way = params - min(scale, 1) * np.cumsum(gradients, 0)
        return _equal(*(np.delete(updates(scale * g, way), 6, axis=1) for g in (one, gradients)))

    def clipped() -> bool:
        """Whether only the norm of the gradient is clipped: of small ones never, of large ones always."""
        size = np.linalg.norm(gradients, axis=1, keepdims=True)
        large, direction = (updates(g) - rest for g in (1e8 * gradients, 1e-4 * gradients / size))
        return linear(1e-6, 1e-4) and alone(1e-6) and _parallel(large, direction)

    if clipped():
        return "sgd", "its update is linear in the gradient, up to its norm"
    if not (alone(1) and alone(1e8)):
        return None, "the update of one entry depends on the gradient of others"
    if not rest.any() and linear(0.01, 1) and linear(1, 1e8):
        return "sgd", "its update is linear in the gradient"
    # Constants beside squared gradients (eps) count for nothing where gradients are large.
    same = _equal(updates(1e8 * gradients), updates(1e9 * gradients))
    if same and not rest.any() and not linear(0.01, 1):
        return "adam", "its update does not change with the scale of the gradient"
    return "entrywise", "its update is some function of each entry's gradients"


def _sharpness_aware(state: Any) -> bool:
    """Whether a state is of `optax.contrib.sam`, or has one inside."""

    def is_sam(part: Any) -> bool:
        return isinstance(part, optax.contrib.SAMState)

    return any(map(is_sam, jax.tree.leaves(state, is_leaf=is_sam)))


def _leaves(array: Array) -> dict[str, Array]:
    kernel = array[6:-4].reshape(_SIDE, _SIDE)
    return {"bias": array[:6], "kernel": kernel, "scale": array[-4:]}


def _equal(one: np.ndarray, two: np.ndarray) -> bool:
    """Whether two updates are equal, but for rounding and the constants inside optimizers."""
    return bool(np.abs(one - two).max() <= 1e-3 * max(np.abs(one).max(), np.abs(two).max()) + 1e-12)


def _parallel(one: np.ndarray, two: np.ndarray) -> bool:
    """Whether one update is a positive number times the other."""
    ratio = np.sum(one * two) / np.sum(two * two)
    return bool(ratio > 0) and _equal(one, ratio * two)


def check_entrywise(rule: str, factors: Mapping[str, Mapping[str, Scalar]]) -> None:
    """Refuses an optimizer of the kind "entrywise" where sgd and adam go with different rules.

    Args:
        rule: name of the rule.
        factors: {field: {path name: factor}}, see `limits.parametrization.Factors`.

    Raises:
        ValueError: the product of adam's two factors is not sgd's for a parameter.
    """
    for name, sgd in factors["sgd"].items():
        adam = factors["adam"][name] * factors["gradient"][name]
        if isinstance(sgd, float) and isinstance(adam, float) and not np.isclose(adam, sgd):
            raise ValueError(
                "this optimizer is neither linear in the gradient, as sgd, nor unchanged by its scale, as adam, and "
                f"under the rule {rule!r} the learning rate of {name} goes with the width in two ways for them: an "
                "optimizer that is now one, now the other has no right rate. Use the rule "
                '"mup", "mean_field" or "standard", or an optimizer of one kind'
            )


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
