"""What the functions of this package take, checked before they compute: `@takes(width=count(), key=key)`.

A check is `check(name, value)` and raises TypeError for a value of another type and ValueError for one out of range;
both name the value and what is allowed. Traced values are checked by type and shape alone.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ntk.arguments import is_integer, is_key, keyword_names, refuse_unknown, shown
from ntk.options import check_count, check_real
from ntk.types import P, R

Check: TypeAlias = Callable[[str, Any], None]
"""check(name, value) raises an error that names the argument."""


_UNKNOWN = (
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.ConcretizationTypeError,
)


def takes(**checks: Check) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator that checks arguments by name; an unknown keyword is a TypeError that names the nearest.

    Lists that an `array` check admits are handed on as arrays, as functions index them.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checked(*args: P.args, **options: P.kwargs) -> R:
            refuse_unknown(function.__name__, options, keyword_names(function))
            bound = signature.bind(*args, **options)
            given = bound.arguments
            try:
                for name, check in checks.items():
                    if name in given:
                        check(name, given[name])
                        if hasattr(check, "of_arrays") and isinstance(given[name], list | tuple):
                            given[name] = np.asarray(given[name])
                return function(*bound.args, **bound.kwargs)
            except _UNKNOWN as error:
                refuse_traced(error, **given)
                raise

        return checked

    return decorate


def count(least: int = 1) -> Callable:
    """An integer of at least `least`."""
    return lambda name, value: check_count(name, value, least=least)


def integer(name: str, value: Any) -> None:
    """An integer; its range is the function's own matter."""
    if not is_integer(value):
        raise TypeError(f"{name} is {shown(value)}; it must be an integer")


def number(positive: bool = False) -> Check:
    """A finite number that is not negative (or positive); one inside an array without axes, or traced, too."""

    def check(name: str, value: Any) -> None:
        if isinstance(value, jax.core.Tracer):
            return
        scalar = isinstance(value, jax.Array | np.ndarray | np.generic) and np.ndim(value) == 0
        if scalar and not is_key(value):
            value = np.asarray(value).item()
        check_real(name, value, positive=positive)

    return check


def real(name: str, value: Any) -> None:
    """A finite number of any sign, possibly traced or inside an array without axes."""
    if isinstance(value, jax.core.Tracer):
        return
    if isinstance(value, bool) or np.ndim(value) or np.asarray(value).dtype.kind not in "iuf":
        raise TypeError(f"{name} is {shown(value)}; it must be a finite number")
    if not np.isfinite(value):
        raise ValueError(f"{name} is {value}; it must be a finite number")


def array(ndim: int | None = None, *, integers: bool = False, columns: int | None = None) -> Check:
    """An array of real numbers (or integers) with so many axes (the last of `columns`), of finite entries."""
    what = f"array of {'integers' if integers else 'real numbers'}"
    what += "" if ndim is None else f" with {ndim} axes"
    what += "" if columns is None else f", the last of {columns}"

    def check(name: str, given: Any) -> None:
        value, traced = given, isinstance(given, jax.core.Tracer)
        if isinstance(given, np.ma.MaskedArray):
            raise TypeError(f"{name} is a masked array; give its filled() or compressed() values")
        try:
            value = value if traced else np.asarray(value)
            kinds = (jnp.integer,) if integers else (jnp.integer, jnp.floating, jnp.bool_)
            # What is empty has no type of its own: its range is the function's own matter.
            right = not value.size or any(jnp.issubdtype(value.dtype, kind) for kind in kinds)
        except (TypeError, ValueError):
            right = False
        if not right:
            raise TypeError(f"{name} is {shown(given)}; it must be an {what}")
        if (ndim is not None and value.ndim != ndim) or (columns not in (None, *value.shape[-1:])):
            raise ValueError(f"{name} has the shape {value.shape}; it must be an {what}")
        if not traced and not np.isfinite(value.astype(float)).all():
            raise ValueError(f"{name} has entries that are not finite; drop them first")

    check.of_arrays = True  # type: ignore[attr-defined]  # `takes` hands lists on as arrays
    return check


def key(name: str, value: Any) -> None:
    """A typed PRNG key."""
    if not is_key(value):
        raise TypeError(f"{name} is {shown(value)}; it must be a key: jax.random.key(0)")


def function(name: str, value: Any) -> None:
    """Something to call."""
    if not callable(value):
        raise TypeError(f"{name} is {shown(value)}; it must be a function")


def instance(*types: type, remedy: str = "") -> Check:
    """A value of one of these types."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, types):
            allowed = " or ".join(t.__name__ for t in types)
            raise TypeError(f"{name} is {shown(value)}; it must be {allowed}{remedy}")

    return check


def boolean(name: str, value: Any) -> None:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {shown(value)}; it must be True or False")


def real_dtype(name: str, value: Any) -> None:
    """The type of floating numbers."""
    try:
        right = jnp.issubdtype(value, jnp.floating)
    except (TypeError, ValueError):
        right = False
    if not right:
        raise TypeError(
            f"{name} is {shown(value)}; it must be a floating type, such as jnp.float32"
        )


def pair(name: str, value: Any) -> None:
    """Two arrays, inputs and targets."""
    if not (isinstance(value, tuple | list) and len(value) == 2):
        raise TypeError(f"{name} is {shown(value)}; it must be a pair (inputs, targets)")
    for part, each in zip(("inputs", "targets"), value):
        array()(f"{part} of {name}", each)


def batch(name: str, value: Any) -> None:
    """A pair of which both have the same first axis."""
    pair(name, value)
    inputs, targets = map(np.shape, value)
    if inputs[:1] != targets[:1] or not inputs:
        raise ValueError(
            f"{name} has inputs of shape {inputs} and targets of shape {targets}; they must be as many"
        )


def refuse_traced(error: Exception | None, **arguments: Any) -> None:
    """Refuse traced arguments of what computes on the host, in words of its own instead of JAX's."""
    for name, value in arguments.items():
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
            raise TypeError(
                f"{name} is traced; it must be known: call this outside of jit"
            ) from error


def broadcast(**arrays: Any) -> None:
    """Refuse arrays whose shapes do not broadcast."""
    try:
        np.broadcast_shapes(*map(np.shape, arrays.values()))
    except ValueError as error:
        shapes = ", ".join(f"{name} {np.shape(value)}" for name, value in arrays.items())
        raise ValueError(
            f"the shapes of {shapes} do not broadcast; give numbers, or arrays with axes that are equal or 1"
        ) from error


def same_columns(**arrays: Any) -> None:
    """Refuse matrices whose last axes differ in length."""
    lengths = {name: np.shape(value)[-1] for name, value in arrays.items()}
    if len(set(lengths.values())) > 1:
        shapes = ", ".join(f"{name} {np.shape(value)}" for name, value in arrays.items())
        raise ValueError(f"the last axes must be equally long, not those of {shapes}")
