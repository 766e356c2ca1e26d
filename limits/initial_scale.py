"""How the standard deviations of a model's own initialisation scale with its width: read at two, matched to a law.

They are read off the program of `init` (`ntk.trace.initial`), which makes no parameter; what no such reading shows
(a mask, rows that are normalised) is drawn and measured.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from ntk.family import Initialised, ParamAxes, named_leaves
from ntk.types import PRNGKey

PROBE_WIDTH = 8  # the least width at which a standard deviation is measured
_EXACT = 1e-4
"""Largest deviation of the logarithm of a ratio of standard deviations that were read, not measured."""

Law: TypeAlias = str | tuple[str, float]
"""How a standard deviation scales: "constant", or (fan, power)."""


class _Rms(NamedTuple):
    """RMS of the entries of a parameter, and its relative error; None of one that was read off the initializer."""

    value: float
    error: float | None


def own_scales(
    made: Mapping[int, Initialised], widths: Sequence[int], named: Mapping[str, ParamAxes]
) -> dict[str, float]:
    """{name: RMS of the model's own initialisation at the last width over that at the first}.

    Taken at the two widths in the middle and matched to the laws that initializers follow, so that the ratio is exact.
    """
    if widths[-1] == widths[0]:
        return dict.fromkeys(named, 1.0)
    low, high = (_rms(made[width], _num_keys(widths)) for width in widths[1:3])
    scales = {}
    for name, axes in named.items():
        law = _own_law(name, axes, widths, low[name], high[name])
        scales[name] = _laws(axes, widths, 0, -1)[law]
    return scales


def _num_keys(widths: Sequence[int]) -> int:
    """Enough draws of a single vector at the lower probe width to tell half powers apart."""
    return max(4, 128 // widths[1])


def _rms(made: Initialised, num_keys: int) -> dict[str, _Rms]:
    """{name: RMS of the entries}."""
    from ntk.trace import initial  # with all that reads models: not imported before it is needed

    laws = initial.laws_of(made.program, made.shapes)
    found = {name: _read(law) for name, law in laws.items()}
    drawn = [name for name, law in laws.items() if law.kind == "unknown"]
    if not drawn:
        return found

    @jax.jit
    def squares(key: PRNGKey) -> dict[str, jax.Array]:
        entries = named_leaves(made.model.network.init(key))
        return {name: jnp.mean(jnp.square(entries[name])) for name in drawn}

    draws = [squares(jax.random.key(seed)) for seed in range(num_keys)]
    sizes = named_leaves(made.shapes)
    for name in drawn:
        mean = sum(float(draw[name]) for draw in draws) / num_keys
        entries = max(1, num_keys * sizes[name].size)
        found[name] = _Rms(math.sqrt(mean), math.sqrt(0.5 / entries))
    return found


def _read(law: Any) -> _Rms:
    """RMS of a law; that of an orthogonal matrix, or of a fixed table, is of all its entries at one draw."""
    if law.kind in ("fixed", "orthogonal"):
        return _Rms(math.sqrt(law.variance), 0.0)
    return _Rms(math.sqrt(law.mean**2 + law.variance), None)


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


def _own_law(name: str, axes: ParamAxes, widths: Sequence[int], low: _Rms, high: _Rms) -> Law:
    """The law nearest to the measurement, if within its error; powers of one fan come before joint ones."""
    if low.value == high.value == 0:
        return "constant"
    tolerance = min(0.3, 0.02 + 4 * math.hypot(low.error or 0.0, high.error or 0.0))
    if low.error is None and high.error is None:
        tolerance = _EXACT
    if low.value > 0 and high.value > 0:
        laws, growth = _laws(axes, widths, 1, 2), high.value / low.value
        errors = {law: abs(math.log(growth / ratio)) for law, ratio in laws.items()}
        for joint in (False, True):
            group = [law for law in laws if (law[0] in ("fan_avg", "fan_max")) == joint]
            nearest = min(group, key=errors.__getitem__)
            if errors[nearest] < tolerance:
                return nearest
    raise ValueError(
        f"the initial standard deviation of {name} goes from {low.value:.3g} at width {widths[1]} to {high.value:.3g} "
        f"at {widths[2]}, which is no power 0, 1/2 or 1 of its fan-in, fan-out, their mean or maximum. Use a "
        "constant, variance-scaling (LeCun, He, Glorot) or orthogonal initializer, or name the parameter's fans "
        "in `roles`"
    )
