"""A number with its standard error, and the look at an array's values that jit forbids."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np


class Estimate(NamedTuple):
    """A value and its standard error, of one shape."""

    value: jax.Array
    error: jax.Array


def concrete(array) -> np.ndarray | None:
    """The values, or None where they cannot be looked at (inside jit, vmap or scan; on other hosts).

    Checks of values run where this is not None: a compiled function cannot raise.
    """
    try:
        return np.asarray(array) if getattr(array, "is_fully_addressable", True) else None
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError):
        return None
