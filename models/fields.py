"""What the fields of a model may be, checked when it is built and not where it first fails."""

import operator
from typing import Any

import numpy as np


def check_fields(model: object, *, sizes: dict[str, int], functions: tuple[str, ...] = ()) -> None:
    """Refuse sizes that are no integers or too small, and functions that cannot be called.

    Args:
        model: a module.
        sizes: {field: least allowed value}.
        functions: fields that must be callable.

    Raises:
        TypeError: a size that is no integer, a function that is none.
        ValueError: a size that is too small.
    """
    kind = type(model).__name__
    for name, least in sizes.items():
        check_number(kind, name, getattr(model, name), least)
    for name in functions:
        if not callable(getattr(model, name)):
            raise TypeError(f"{kind}: {name}={getattr(model, name)!r} must be a function.")


def check_number(kind: str, name: str, value: Any, least: int) -> None:
    """Refuses what is no integer, or smaller than the least allowed.

    Raises:
        TypeError: it is no integer.
        ValueError: it is too small.
    """
    try:
        operator.index(value)
        if isinstance(value, bool) or np.ndim(value):  # arrays are indices too, if of one integer
            raise TypeError
    except TypeError as error:
        raise TypeError(
            f"{kind}: {name}={value!r} must be an integer, at least {least}."
        ) from error
    if value < least:
        raise ValueError(f"{kind}: {name}={value!r} must be at least {least}.")
