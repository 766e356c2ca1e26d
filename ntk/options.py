"""What `ntk.infinite_width` and `limits.parametrize` are both told of a family's parameters, read in one place.

The limit and the finite network whose limit it is are given the same options, and these functions say what they mean:
which factor a parameter's learning rate has, and which biases are drawn.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from ntk.arguments import is_integer, shown
from ntk.family import match, named_leaves

MOST_ENTRIES = 2**40
"""Entries of an array, 4 TB in single precision."""


def check_real(name: str, value: Any, *, positive: bool = False) -> float:
    """The value as a float; refused unless it is a finite number, not negative (or positive).

    Raises:
        TypeError: it is no number.
        ValueError: it is not finite, or out of range.
    """
    allowed = "positive" if positive else "not negative"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {shown(value)}; it must be a finite number that is {allowed}")
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise ValueError(f"{name} is {shown(value)}; it must be a finite number that is {allowed}")
    return float(value)


def check_count(name: str, value: Any, *, least: int = 1) -> int:
    """The value as an int; refused unless it is an integer of at least `least`.

    Raises:
        TypeError: it is no integer.
        ValueError: it is smaller.
    """
    if not is_integer(value):
        raise TypeError(f"{name} is {shown(value)}; it must be an integer, at least {least}")
    if operator.index(value) < least:
        raise ValueError(f"{name} is {shown(value)}; it must be an integer, at least {least}")
    return operator.index(value)


def check_entries(name: str, value: Any, entries: int) -> None:
    """Refuses a size whose arrays no machine holds: far beyond, XLA does not raise but ends the process.

    Raises:
        ValueError: more than `MOST_ENTRIES`.
    """
    if entries > MOST_ENTRIES:
        raise ValueError(
            f"{name} is {value!r}, for which an array has {float(entries):.3g} entries; no machine holds more than "
            f"{MOST_ENTRIES:.3g}: make it smaller"
        )


def rate_factors(rates: Any, names: Iterable[str]) -> dict[str, float]:
    """{path name: factor of the learning rate} of all parameters.

    Args:
        rates: None for 1 everywhere; a tree like the parameters; or {pattern of the path: factor}, of which later
            ones win. 0 freezes a parameter.
        names: path names of the parameters.

    Raises:
        TypeError: neither of these.
        ValueError: a pattern that fits no parameter, or a factor that is negative or not finite.
    """
    factors = dict.fromkeys(names, 1.0)
    if rates is None:
        return factors
    given = named_leaves(rates)
    if set(given) == set(factors):
        rates = given
    elif not isinstance(rates, Mapping):
        raise TypeError(
            f"learning_rates is {type(rates).__name__}; it must be a tree like the parameters, or {{pattern: factor}}"
        )
    for pattern, value in rates.items():
        found = [name for name in factors if match(name, [pattern])]
        if not found:
            raise ValueError(
                f"learning_rates: {pattern!r} matches no parameter; there are {list(factors)}"
            )
        value = value.item() if getattr(value, "ndim", 1) == 0 else value
        factors |= dict.fromkeys(found, check_real(f"learning_rates[{pattern!r}]", value))
    return factors


def drawn_biases(laws: Mapping[str, Any], bias_std: float | None) -> tuple[str, ...]:
    """Names of the parameters that `bias_std` draws: those called `bias` that start at zero.

    Args:
        laws: {path name: initial Law}.
        bias_std: their standard deviation; None or 0 leaves them at zero.
    """
    if bias_std is None or not check_real("bias_std", bias_std):
        return ()
    return tuple(
        name
        for name, law in laws.items()
        if name.split("/")[-1] == "bias" and law.variance == 0 and law.mean == 0
    )
