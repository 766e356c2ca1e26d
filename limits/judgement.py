"""What a coordinate check says: powers of the width fitted, and compared with those of a regime.

The fit is log y = s log n + const, seed by seed. Near the base width n_0 y is n^s (1 + c (n_0/n)^p). In training
p = 1/2: initial outputs of that size stand beside the targets, and with both of order one at n_0 the number c is of
order one. At initialisation nothing stands beside anything: the weights are independent and of mean zero, so that
moments of the layers are series in 1/n, and p = 1. |c| = 2 bends the fitted exponent by `_bend`. Other parametrizations
lie half a power away. Therefore a layer is

- right, if its deviation is within the tolerance, and the interval and |c| = 1 together exclude half a power;
- wrong, if its deviation is larger than the interval and |c| = 2 together, or stays in a fit with that correction. So
  many layers and steps are compared that this interval covers all of them at once (Bonferroni): a right network is
  called wrong in at most 1 - confidence of the cases. Where a size at initialisation deviates by more than the
  tolerance and is undecided, nothing after it is called wrong: it can follow from that size;
- undecided otherwise, and whatever was fitted where the largest width is less than twice the smallest: seeds that
  happen to agree are no evidence there.

Source: derived.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from limits.regimes import Regime
from ntk import show
from ntk.types import Float


@show.readable
class Scaling(NamedTuple):
    """n^exponent fitted over the widths, seed by seed.

    Attributes:
        exponent: (steps, layers), mean over seeds; nan where a value is zero or not finite.
        interval: (steps, layers, 2), its confidence interval from the spread over seeds.
    """

    exponent: Float[np.ndarray, "..."]
    interval: Float[np.ndarray, "... 2"]


class Measured(NamedTuple):
    """What was measured of all layers.

    Attributes:
        names: of the layers.
        places: of each layer in a Regime.
        widths: (widths,).
        values: size, change and own change; the seeds are on the second axis, layers on the last.
        fits: the Scaling of each.
        confidence: of the intervals.
        base: the base width, 1 for a network without.
    """

    names: tuple[str, ...]
    places: Sequence[int]
    widths: np.ndarray
    values: tuple[np.ndarray, np.ndarray, np.ndarray]
    fits: Sequence[Scaling]
    confidence: float
    base: int = 1

    @property
    def of_all(self) -> float:
        """Confidence of one interval at which those of all layers and stages hold together."""
        stages = self.values[1].shape[2] + 2
        return 1 - (1 - self.confidence) / (stages * len(self.names))


class _Stage(NamedTuple):
    """One comparison of all layers: values (widths, seeds, layers) and what is expected of them."""

    when: str
    what: str
    values: np.ndarray
    exponent: np.ndarray
    interval: np.ndarray
    expected: tuple
    inherited: bool  # a deviation is handed on to later layers
    may_vanish: bool
    order: float  # corrections are of order n^-order


class _Finding(NamedTuple):
    """What is wrong with a layer at a stage, and whether that is certain; `text` is empty if nothing is."""

    certain: bool
    text: str
    widths: tuple[int, ...] = ()  # those that would decide it
    deviates: bool = False  # by more than the tolerance


_RIGHT = _Finding(True, "")


def fit(
    widths: np.ndarray,
    values: np.ndarray,
    confidence: float,
    *,
    corrected: float | None = None,
    pooled: bool = False,
) -> Scaling:
    """Scaling of positive values (widths, seeds, ...).

    Args:
        widths: (widths,).
        values: what scales.
        confidence: coverage of the intervals (Student's t).
        corrected: the order p of a correction n^-p that is fitted too; None for none.
        pooled: whether the intervals come from the spread of the seeds at each width, in place of that of the seeds'
            slopes: more degrees of freedom, and no luck of few slopes that agree. Small widths spread more, so that
            these spreads are not taken as one: the degrees of freedom are those of Satterthwaite 1946.
    """
    x = np.log(widths)
    columns = [x, np.ones(len(x))]
    if corrected is not None:
        columns.append((widths / widths.min()) ** -corrected)
    row = np.linalg.pinv(np.stack(columns, 1))[0]
    seeds = values.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(values)
        slopes = np.einsum("w,w...->...", row, logs)
        slopes = np.where(np.isfinite(slopes), slopes, np.nan)
        if pooled:
            shares = np.einsum("w,w...->w...", row**2, logs.var(1, ddof=1))
            total = shares.sum(0)
            # Where all seeds agree to the last bit nothing is spread over any degrees of freedom.
            freedom = (seeds - 1) * total**2 / np.where(total > 0, (shares**2).sum(0), 1)
            spread, freedom = np.sqrt(total), np.maximum(freedom, seeds - 1)
        else:
            spread, freedom = slopes.std(0, ddof=1), seeds - 1
    half = stats.t.ppf((1 + confidence) / 2, freedom) * spread / np.sqrt(seeds)
    mean = slopes.mean(axis=0)
    return Scaling(mean, np.stack([mean - half, mean + half], axis=-1))


def judge(
    measured: Measured, predicted: Regime, tolerance: float
) -> tuple[tuple[str, ...], bool, str]:
    """(wrong, passed, verdict), from the first stage at which a layer deviates."""
    stages, names = list(_stages(measured, predicted)), measured.names
    findings = [[_finding(s, l, measured, tolerance) for l in range(len(names))] for s in stages]
    doubts: list[str] = []
    widths: tuple[int, ...] = ()
    for stage, found in zip(stages, findings):
        wrong: dict[str, str] = {}
        for l, (name, finding) in enumerate(zip(names, found)):
            if not finding.text or _recovers(stages, findings, stage, l):
                continue
            if finding.certain:
                wrong[name] = f"{name} is wrong {stage.when}: {stage.what} {finding.text}"
                continue
            doubts.append(f"{name} is undecided {stage.when}: {stage.what} {finding.text}")
            widths = max(widths, finding.widths, key=lambda w: w[-1:])
            if stage is stages[0] and finding.deviates and not wrong:
                return (), False, f"{doubts[-1]}. {_advice(measured, widths)}"
        if wrong:
            named = tuple(wrong)[:1] if stage.inherited else tuple(wrong)
            text = "; ".join(wrong[name] for name in named)
            return named, False, f"{text}. Later deviations can follow from this."
    if doubts:
        return (), False, f"{'; '.join(doubts)}. {_advice(measured, widths)}"
    right = f"{', '.join(names)} scale as predicted ({predicted.kind}), within {tolerance}."
    return (), True, right


def _recovers(
    stages: Sequence[_Stage], findings: Sequence[Sequence[_Finding]], stage: _Stage, l: int
) -> bool:
    """Whether a layer that moves too little by its own update in an early step does not in the last.

    Queries and keys of attention do: at initialisation their gradient is a sum of independent terms.
    """
    own = [k for k, other in enumerate(stages) if "own" in other.what]
    early = stage in [stages[k] for k in own[:-1]]
    return early and stage.exponent[l] < stage.expected[l] and not findings[own[-1]][l].text


def _stages(measured: Measured, predicted: Regime) -> Iterator[_Stage]:
    (size, change, own), (size_fit, change_fit, own_fit) = measured.values, measured.fits
    steps, places = change.shape[2], list(measured.places)

    def each(exponents: Sequence[float]) -> tuple[float, ...]:
        return tuple(exponents[place] for place in places)

    start = size[:, :, 0], size_fit.exponent[0], size_fit.interval[0]
    yield _Stage("at initialisation", "its size", *start, each(predicted.initial), True, True, 1)
    for t in range(steps):
        values = own[:, :, t], own_fit.exponent[t], own_fit.interval[t]
        expected = each([-r for r in (predicted.layers if t else predicted.first)])
        what = "the change by its own update"
        yield _Stage(f"at step {t + 1}", what, *values, expected, False, t + 1 < steps, 1 / 2)
    end = change[:, :, -1], change_fit.exponent[-1], change_fit.interval[-1]
    yield _Stage(f"at step {steps}", "its change", *end, each(predicted.change), True, False, 1 / 2)


def _finding(stage: _Stage, l: int, measured: Measured, tolerance: float) -> _Finding:
    values, expected, widths = stage.values[:, :, l], stage.expected[l], measured.widths
    if np.isnan(values).all() and "own" in stage.what:
        return _RIGHT  # no parameter is the layer's own
    if not np.isfinite(values).all():
        first = widths[~np.isfinite(values).all(axis=1)].min()
        return _Finding(True, f"is not finite from width {first} (lower the learning rate)")
    zero = values == 0
    if zero.any():
        if stage.may_vanish:
            return _RIGHT
        if zero.all(axis=1).any():
            unread = "is exactly zero: the loss does not depend on the layer, or it is frozen"
            return _Finding(True, unread)
        undone = f"is exactly zero in {zero.sum()} of {zero.size} runs: steps of one length may undo one another"
        return _Finding(False, undone, tuple(widths.tolist()))
    exponent, (low, high) = stage.exponent[l], stage.interval[l]
    deviation, half = abs(exponent - expected), (high - low) / 2
    text = f"scales as n^{exponent:.2f} [{low:.2f}, {high:.2f}], predicted n^{expected or 0:g}"
    bend = _bend(widths, measured.base, stage.order)
    if widths.max() < 2 * widths.min():
        return _Finding(False, text, _deciding(widths, bend, half, tolerance))
    if deviation <= tolerance:
        if deviation + half + bend / 2 < 1 / 2:
            return _RIGHT
        return _Finding(False, text, _deciding(widths, bend, half, tolerance))
    low, high = fit(widths, values, measured.of_all, pooled=True).interval
    large = deviation > bend + max(tolerance, (high - low) / 2)
    bent = fit(widths, values, measured.of_all, corrected=stage.order, pooled=True).interval
    stays = max(bent[0] - expected, expected - bent[1]) > tolerance
    certain = large or (stays and not low <= expected <= high)
    return _Finding(certain, text, _deciding(widths, max(deviation, bend), half, tolerance), True)


def _bend(widths: np.ndarray, base: int, order: float) -> float:
    """By how much a correction 2 (base/n)^order changes the slope of log y against log n."""
    x = np.log(widths) - np.log(widths).mean()
    return abs(float(x @ (2 * (base / widths) ** order) / (x @ x)))


def _deciding(
    widths: np.ndarray, deviation: float, half: float, tolerance: float
) -> tuple[int, ...]:
    """As many widths, at which corrections of order n^-1/2 and the interval come down to the tolerance."""
    octaves = math.log2(widths.max() / widths.min()) * max(1, half / tolerance)
    octaves = min(max(math.ceil(octaves), 4), 8)
    factor = 2 ** math.ceil(max(0, 2 * math.log2(deviation / tolerance))) if deviation else 1
    low = int(widths.min()) * min(factor, 64)
    count = max(len(widths), 3)
    return tuple(low * 2 ** round(octaves * k / (count - 1)) for k in range(count))


def _advice(measured: Measured, widths: tuple[int, ...]) -> str:
    text = f"Widths {', '.join(map(str, widths))} would decide it"
    factor = widths[0] // int(measured.widths.min())
    if factor > 1:
        smaller = ", ".join(str(width // factor) for width in widths)
        text += f", or {smaller} with a base width {factor} times smaller"
    text += "; more seeds narrow the intervals."
    lost = ~np.isfinite(measured.values[1]).all(axis=(1, 3))  # (widths, steps)
    if lost.any():
        step, width = lost.any(0).argmax() + 1, measured.widths[lost.any(1)].min()
        text += (
            f" Outputs are not finite from step {step}, at width {width}: lower the learning rate."
        )
    return text
