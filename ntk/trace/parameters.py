"""What is assumed of each parameter of a family: its initial law at both widths, and its learning rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ntk import family as families
from ntk.family import match, named_leaves
from ntk.trace import initial
from ntk.trace.axes import WIDTHS
from ntk.trace.context import Parameter


def read_parameters(
    laws: list, family: Callable, first: tuple, base_width: int | None, rates: Any, bias_std: Any
) -> dict[str, Parameter]:
    """What is assumed of each parameter, by its path."""
    (one, shapes1), (two, shapes2) = laws
    if list(one) != list(two):
        raise ValueError(
            f"the parameters of the family differ between widths: {sorted(set(one) ^ set(two))}"
        )
    factors = _rates(rates, one)
    pairs = {name: (one[name], two[name]) for name in one}
    if base_width is not None:
        pairs = _at_base(pairs, family, first, base_width)
    out = {}
    for name, (low, high) in pairs.items():
        if (
            bias_std
            and name.split("/")[-1] == "bias"
            and low.kind == high.kind == "constant"
            and low.mean == 0
        ):
            low = high = initial.Law(0.0, bias_std**2, "normal")
        shapes = (shapes1[name], shapes2[name])
        out[name] = Parameter((low, high), shapes, factors[name])
    return out


def _rates(rates: Any, names: Any) -> dict[str, float]:
    if rates is None:
        return dict.fromkeys(names, 1.0)
    given = named_leaves(rates)
    if set(given) == set(names):
        return {name: float(given[name]) for name in names}
    out = dict.fromkeys(names, 1.0)
    if not isinstance(rates, Mapping):
        raise ValueError("learning_rates must be a tree like the parameters, or {pattern: factor}")
    for pattern, value in rates.items():
        found = [name for name in names if match(name, [pattern])]
        if not found:
            raise ValueError(
                f"learning_rates: {pattern!r} matches no parameter; there are {list(names)}"
            )
        out |= dict.fromkeys(found, float(value))
    return out


def _at_base(pairs: dict, family: Callable, first: tuple, base_width: int) -> dict:
    """Laws whose scale at one width is kept: hidden and output weights divide by the growth of their fan-in."""
    base, _ = initial.laws(families.network(family, base_width, first).init)
    axes = families.width_axes(family, first, widths=(base_width, *WIDTHS))
    named = named_leaves(axes, is_leaf=lambda leaf: isinstance(leaf, families.ParamAxes))
    out = {}
    for name in pairs:
        law, fans = base[name], [named[name].fans(k)[0] for k in range(3)]
        ratios = [1.0, 1.0]
        if named[name].role in ("hidden", "output"):
            ratios = [fans[0] / fans[k] for k in (1, 2)]
        out[name] = tuple(law._replace(variance=law.variance * r) for r in ratios)
    return out
