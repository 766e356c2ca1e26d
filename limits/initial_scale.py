"""How the standard deviations of a model's own initialisation scale with its width: measured, then matched to a law."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from ntk import family as families
from ntk.family import ParamAxes, named_leaves
from ntk.types import Family, PRNGKey, PyTree

PROBE_WIDTH = 8  # the least width at which a standard deviation is measured

Law: TypeAlias = str | tuple[str, float]
"""How a standard deviation scales: "constant", or (fan, power)."""


def own_scales(
    family: Family, example: Any, widths: Sequence[int], named: Mapping[str, ParamAxes]
) -> dict[str, float]:
    """{name: RMS of the model's own initialisation at the last width over that at the first}.

    Measured between the two widths in the middle and matched to the laws that initializers follow, so that
    the ratio is exact.
    """
    if widths[-1] == widths[0]:
        return dict.fromkeys(named, 1.0)
    nets = [families.network(family, width, example) for width in widths[1:3]]
    low, high = (_rms(net.init, _num_keys(widths)) for net in nets)
    scales = {}
    for name, axes in named.items():
        law = _own_law(name, axes, widths, low[name], high[name])
        scales[name] = _laws(axes, widths, 0, -1)[law]
    return scales


def _num_keys(widths: Sequence[int]) -> int:
    """Enough draws of a single vector at the lower probe width to tell half powers apart."""
    return max(4, 128 // widths[1])


def _rms(init: Callable[[PRNGKey], PyTree], num_keys: int) -> dict[str, float]:
    """{name: RMS over entries and keys}."""
    # XLA's own generator compiles faster. Op by op, so that the next network finds its shapes compiled.
    keys = [jax.random.key(seed, impl="rbg") for seed in range(num_keys)]
    draws = [named_leaves(init(key)) for key in keys]
    return {
        name: math.sqrt(sum(float(jnp.mean(jnp.square(draw[name]))) for draw in draws) / num_keys)
        for name in draws[0]
    }


def _laws(axes: ParamAxes, widths: Sequence[int], before: int, after: int) -> dict[Law, float]:
    """How an initializer may scale, as ratios of the standard deviation between two of the widths."""
    (in_0, out_0), (in_1, out_1) = axes.fans(before), axes.fans(after)
    fans = {
        "fan_in": in_1 / in_0,
        "fan_out": out_1 / out_0,
        "width": widths[after] / widths[before],
        "fan_avg": (in_1 + out_1) / (in_0 + out_0),
        "fan_max": max(in_1, out_1) / max(in_0, out_0),
    }
    laws = {"constant": 1.0}
    return laws | {(f, p): m**-p for p in (1 / 2, 1) for f, m in fans.items()}


def _own_law(name: str, axes: ParamAxes, widths: Sequence[int], low: float, high: float) -> Law:
    """The law nearest to the measurement, if within its error; powers of one fan come before joint ones."""
    if low == high == 0:
        return "constant"
    entries = [_num_keys(widths) * math.prod(axes.shapes[k]) for k in (1, 2)]
    tolerance = min(0.3, 0.02 + 4 * math.sqrt(sum(0.5 / max(n, 1) for n in entries)))
    if low > 0 and high > 0:
        laws = _laws(axes, widths, 1, 2)
        errors = {law: abs(math.log(high / low / ratio)) for law, ratio in laws.items()}
        for joint in (False, True):
            group = [law for law in laws if (law[0] in ("fan_avg", "fan_max")) == joint]
            nearest = min(group, key=errors.__getitem__)
            if errors[nearest] < tolerance:
                return nearest
    raise ValueError(
        f"the initial standard deviation of {name} goes from {low:.3g} at width {widths[1]} to {high:.3g} at "
        f"{widths[2]}, which is no power 0, 1/2 or 1 of its fan-in, fan-out, their mean or maximum. Use a "
        "constant, variance-scaling (LeCun, He, Glorot) or orthogonal initializer, or name the parameter's fans "
        "in `roles`"
    )
