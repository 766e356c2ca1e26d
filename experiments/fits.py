"""Means with errors, lines and power laws through the measurements of a study; what is lost makes the fit nan."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import xarray as xr

import metrics


def slope(values: xr.DataArray, along: xr.DataArray) -> xr.DataArray:
    """Slope of values by least squares, one for each entry of their other dimensions.

    Args:
        values: has the dimension of ``along``; a nan in a line is nan in its slope.
        along: (points,), such as the logarithm of a coordinate.
    """
    x = along - along.mean()
    return (values * x).sum(along.dims, skipna=False) / (x**2).sum()


def standard_error(values: xr.DataArray, over: str) -> xr.DataArray:
    """Of the mean over a dimension, such as seeds; nan where one entry is lost, or there is but one."""
    return values.std(over, ddof=1, skipna=False) / values.sizes[over] ** 0.5


def power_law(x: Any, y: Any) -> metrics.PowerLaw:
    """Power law through values (points,) or (seeds, points); nan where one of them is lost or not positive.

    Args:
        x: the points, such as widths.
        y: the values.
    """
    x, y = np.asarray(x), np.asarray(y)
    if not (np.isfinite(y) & (y > 0)).all():
        nothing = np.full(2, np.nan)
        return metrics.PowerLaw(np.nan, np.nan, np.nan, nothing, nothing, nothing)
    return metrics.fit_power_law(x, y, jax.random.key(0))
