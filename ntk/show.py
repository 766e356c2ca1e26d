"""What a result says of itself: one line for a terminal, a table for a notebook, and how it is drawn.

::

    @show.readable
    class Sharpness(NamedTuple):
        value: jax.Array
        ...
"""

from __future__ import annotations

import functools
import importlib
from collections import namedtuple
from collections.abc import Mapping
from html import escape
from typing import Any, TypeVar

import jax
import numpy as np

Result = TypeVar("Result")

LONGEST = 6
"""Entries of an array that are written out."""

FIGURES = "experiments.plots"
"""The module whose function `plot` draws a result; it is asked for by name, and only when a figure is."""


def readable(kind: type[Result]) -> type[Result]:
    """A decorator of a NamedTuple: its `repr` is `text`, in a notebook `html`, and `.plot()` is its figure."""
    for name, method in (("__repr__", text), ("_repr_html_", html)):
        setattr(kind, name, method)
    return drawn(kind)


def drawn(kind: type[Result]) -> type[Result]:
    """A decorator of a result that says itself in its own words: `.plot()` is its figure."""
    kind.plot = plot  # type: ignore[attr-defined]
    return kind


@functools.cache
def bundle(kind: str, names: tuple[str, ...]) -> type:
    """The readable NamedTuple of these fields: one class per set of names, as pytrees of two classes do not match."""
    return readable(namedtuple(kind, names))


def plot(result: Any, **options: Any) -> Any:
    """The figure of a result, which a notebook shows: ``result.plot()`` is ``experiments.plots.plot(result)``.

    Args:
        result: of ntk, limits, metrics or experiments.
        **options: of the figure that its type has, such as caption.

    Returns:
        A matplotlib Figure.

    Raises:
        TypeError: nothing in it can be drawn, or an option that its figure does not have.
        ModuleNotFoundError: what draws is not installed; it says what to install.
    """
    try:
        figures = importlib.import_module(FIGURES)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{type(result).__name__}.plot() needs {FIGURES}, and {error.name} is not installed: pip install widelimit "
            "brings both; where only ntk, limits or metrics were copied, draw the fields of the result yourself",
            name=error.name,
        ) from error
    return figures.plot(result, **options)


def text(result: Any) -> str:
    """A NamedTuple in one line: numbers in four digits, short arrays written out, others by shape and range."""
    return line(type(result).__name__, dict(zip(result._fields, result)))


def html(result: Any) -> str:
    """A NamedTuple as a table of names and values."""
    return table(type(result).__name__, dict(zip(result._fields, result)))


def line(kind: str, values: Mapping[str, Any]) -> str:
    """Named values in one line."""
    return f"{kind}({', '.join(f'{name}={brief(value)}' for name, value in values.items())})"


def table(title: str, values: Mapping[str, Any]) -> str:
    """Named values as a table of HTML."""
    left = "style='text-align:left'"
    rows = "".join(
        f"<tr><th {left}>{escape(name.replace('_', ' '))}</th><td {left}>{escape(brief(value))}</td></tr>"
        for name, value in values.items()
    )
    return f"<table><caption>{escape(title)}</caption>{rows}</table>"


def brief(value: Any) -> str:
    """A value in a few words."""
    if value is None or isinstance(value, bool | int | str):
        return repr(value)
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    if _is_estimate(value):
        return _estimate(value)
    if hasattr(value, "_fields"):
        return text(value)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _array(value)
    if callable(value):
        return "a function"
    if isinstance(value, tuple | list) and all(
        isinstance(v, str | int | float | tuple) for v in value
    ):
        words = ", ".join(brief(v) for v in value[:LONGEST])
        more = ", ..." if len(value) > LONGEST else "," * (len(value) == 1)
        return f"({words}{more})"
    leaves = jax.tree.leaves(value)
    arrays = [leaf for leaf in leaves if hasattr(leaf, "shape")]
    if len(leaves) == len(arrays) and leaves:
        return f"a tree of {len(leaves)} arrays, {sum(leaf.size for leaf in arrays)} numbers"
    return f"{type(value).__name__} of {len(leaves)}"


def _is_estimate(value: Any) -> bool:
    """Whether it is a number with its error, of whatever package."""
    fields = getattr(value, "_fields", ())
    return fields in (("value", "error"), ("mean", "standard_error"))


def _estimate(value: Any) -> str:
    number, error = value
    if getattr(number, "shape", ()) == () and getattr(error, "shape", ()) == ():
        return f"{_array(np.asarray(number)) if _known(number) else brief(number)} ± {brief(error)}"
    return f"{brief(number)} ± {brief(error)}"


def _known(array: Any) -> bool:
    """Whether the values can be looked at: not so inside jit, or where another process has them."""
    return not isinstance(array, jax.core.Tracer) and getattr(array, "is_fully_addressable", True)


def _array(array: Any) -> str:
    kind = f"{tuple(array.shape)} {array.dtype}"
    if not _known(array) or jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended):
        return f"array {kind}"
    values = np.asarray(array)
    if values.dtype.kind not in "biuf":
        return f"array {kind}"
    if values.ndim == 0:
        return f"{values.item():.4g}" if values.dtype.kind == "f" else str(values.item())
    if values.size <= LONGEST and values.ndim == 1:
        return f"[{', '.join(_array(v) for v in values)}]"
    if not values.size:
        return f"array {kind}"
    low, high = values.min(), values.max()
    return f"array {kind}, {low:.4g} to {high:.4g}"
