"""A parametrized network as a table, one row a parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from ntk import show
from ntk.family import ParamAxes, named_leaves
from ntk.types import PRNGKey, PyTree

if TYPE_CHECKING:
    from limits.parametrization import Whole


class Row(NamedTuple):
    """One parameter in a summary."""

    parameter: str
    role: str
    shape: tuple
    init_std: float
    multiplier: float
    lr_sgd: float
    lr_adam: float


@show.drawn
class Summary(NamedTuple):
    """A table of all parameters, for the terminal (str) and the notebook (HTML)."""

    title: str
    rows: list[Row]

    def __repr__(self) -> str:
        return f"Summary({self.title}, {len(self.rows)} parameters; print it)"

    def __str__(self) -> str:
        cells = [Row._fields, *(self._cells(row) for row in self.rows)]
        lengths = [max(len(line[k]) for line in cells) for k in range(len(Row._fields))]
        lines = ["  ".join(map(str.ljust, line, lengths)).rstrip() for line in cells]
        return "\n".join([self.title, *lines])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{field}</th>" for field in Row._fields)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in self._cells(row)) + "</tr>"
            for row in self.rows
        )
        return f"<table><caption>{escape(self.title)}</caption><tr>{head}</tr>{body}</table>"

    def _cells(self, row: Row) -> list[str]:
        return [f"{x:.4g}" if isinstance(x, float) else str(x) for x in row]


def summarise(
    whole: Whole, factors: Mapping[str, Mapping[str, Any]], init: Callable[[PRNGKey], PyTree]
) -> Summary:
    """Summary of a network (`limits.parametrization.Whole`) under a table of factors."""
    named = named_leaves(whole.axes, is_leaf=lambda leaf: isinstance(leaf, ParamAxes))
    deviations = jax.jit(lambda key: jax.tree.map(jnp.std, init(key)))(jax.random.key(0))
    rows = [
        Row(
            parameter=name,
            role=named[name].role,
            shape=named[name].shapes[-1],
            init_std=float(std),
            multiplier=factors["multiplier"][name],
            lr_sgd=factors["sgd"][name],
            lr_adam=factors["adam"][name],
        )
        for name, std in named_leaves(deviations).items()
    ]
    base = f"base width {whole.base_width}" if whole.base_width else "weights of unit variance"
    return Summary(f"{whole.rule.name} at width {whole.width} ({base})", rows)
