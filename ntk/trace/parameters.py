"""What is assumed of each parameter of a family: its initial law at both widths, and its learning rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypedDict

from ntk import family as families
from ntk.family import named_leaves
from ntk.options import drawn_biases, rate_factors
from ntk.trace import initial
from ntk.trace.axes import WIDTHS
from ntk.trace.context import Parameter
from ntk.types import PyTree, two_of

Assumed: TypeAlias = tuple[int | None, PyTree, float | None, PyTree]
"""base_width, learning_rates, bias_std and roles, as `ntk.infinite_width` takes them."""


class Options(TypedDict, total=False):
    """Keywords of `ntk.infinite_width` on which the type of its result does not depend."""

    parametrization: str
    base_width: int | None
    learning_rates: PyTree
    bias_std: float | None
    roles: PyTree
    batched: bool
    attention_samples: int
    call: Any
    networks: int


def check_parametrization(name: str) -> None:
    """Refuses parametrizations without a kernel limit."""
    if name == "ntk":
        return
    frozen = {
        "mup": "under muP features move at every width, so that training does not follow a fixed kernel (and the "
        "outputs at initialisation vanish)",
        "mean_field": "in the mean-field parametrization the outputs at initialisation vanish and features move, so "
        "that training does not follow a fixed kernel",
        "standard": "in the standard parametrization the tangent kernel grows with the width; learning rates that "
        "shrink like 1/width give the NTK parametrization",
    }
    if name in frozen:
        raise ValueError(
            f'no kernel limit: {frozen[name]}. Use parametrization="ntk", or limits.feature_learning for the limit of '
            "training"
        )
    raise ValueError(f'parametrization is {name!r}; only "ntk" has a kernel limit')


def read_parameters(
    laws: Sequence[tuple[dict[str, initial.Law], dict[str, tuple[int, ...]]]],
    family: Callable,
    first: tuple,
    base_width: int | None,
    rates: PyTree,
    bias_std: float | None,
    roles: PyTree = None,
    widths: tuple[int, int] = WIDTHS,
) -> dict[str, Parameter]:
    """What is assumed of each parameter, by its path.

    A rate counts per standard normal: a weight of standard deviation s that learns at unit rate as s times a standard
    normal has the factor 1, one that learns at unit rate as it stands has 1 / s^2.
    """
    (one, shapes1), (two, shapes2) = laws
    if list(one) != list(two):
        raise ValueError(
            f"the parameters of the family differ between widths: {sorted(set(one) ^ set(two))}"
        )
    factors = rate_factors(rates, one)
    pairs = {name: (one[name], two[name]) for name in one}
    fans: dict[str, int] = {}
    normal = initial.Law(0.0, (bias_std or 0.0) ** 2, "normal")
    biases = set(drawn_biases(one, bias_std)) & set(drawn_biases(two, bias_std))
    pairs |= dict.fromkeys(biases, (normal, normal))
    if base_width is not None:
        base = initial.laws(families.network(family, base_width, first).init)[0]
        base |= dict.fromkeys(biases, normal)
        pairs, fans = _at_base(base, family, first, base_width, roles, widths)
        # A weight w = s p that is trained at unit rate as it stands is p trained at rate 1 / s^2.
        factors = {name: r / (base[name].variance or 1.0) for name, r in factors.items()}
    elif roles is not None:
        families.width_axes(family, first, widths=widths, roles=roles)
    return {
        name: Parameter(pair, (shapes1[name], shapes2[name]), factors[name], fans.get(name))
        for name, pair in pairs.items()
    }


def _at_base(
    base: dict[str, initial.Law],
    family: Callable,
    first: tuple,
    base_width: int,
    roles: Any,
    widths: tuple[int, int],
) -> tuple[dict[str, tuple[initial.Law, initial.Law]], dict[str, int]]:
    """Laws of weights drawn as at one width, and their fan-in there where it grows.

    They are used times m^-1/2 where their fan-in is m times what it is there.
    """
    axes = families.width_axes(family, first, widths=(base_width, *widths), roles=roles)
    named = named_leaves(axes, is_leaf=lambda leaf: isinstance(leaf, families.ParamAxes))
    out, kept = {}, {}
    for name, law in base.items():
        fans, ratios = [named[name].fans(k)[0] for k in range(3)], (1.0, 1.0)
        if named[name].role in ("hidden", "output"):
            ratios, kept[name] = (fans[0] / fans[1], fans[0] / fans[2]), fans[0]
        out[name] = two_of(
            law._replace(mean=law.mean * r**0.5, variance=law.variance * r) for r in ratios
        )
    return out, kept
