"""A claim of a paper, with the number measured and the criterion it was to meet, stated before the run.

A control is a claim that must *fail* its criterion (the wrong parametrization must not transfer, shuffled labels
must not align): `passed` says whether the claim turned out as it should, so for a control that the criterion was
missed. The four verdicts in words::

    claim      holds                 criterion met
    claim      FAILS                 criterion missed
    control    fails, as it must     criterion missed
    control    CONTROL HOLDS         criterion met: the experiment does not tell right from wrong
    either     NOT MEASURED          a precondition is not met, or the number is not finite

Preconditions say when a number is about the paper at all: every run that the claim reads is there, the training set
is fitted, the optimum lies inside its grid, the interval leaves no doubt. A claim that counts a diverged run as
something says so in its statement; elsewhere a nan in what it reads leaves it NOT MEASURED, and so does an infinity,
unless the claim says in words how infinity counts (``infinite``). `passed` is then false, for a control too.

One file: how a claim is judged, what it needs before that, and the words for both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from ntk import show


class Precondition(NamedTuple):
    """What must be so before a claim is judged: its name, whether it is so, and what was found."""

    name: str
    met: bool
    found: str = ""


@show.drawn
class Claim(NamedTuple):
    """One line of the table of claims; make it with `at_most`, `at_least`, `within`, `near` or `equals`.

    ``margin`` is how far the measured number lies inside the criterion, negative outside.
    """

    name: str
    source: str
    statement: str
    measured: float | str
    criterion: str
    passed: bool
    interval: tuple[float, float] | None = None
    control: bool = False
    preconditions: tuple[Precondition, ...] = ()
    margin: float = -math.inf

    def __repr__(self) -> str:
        value = self.measured if isinstance(self.measured, str) else f"{self.measured:.4g}"
        control = "control: must fail " * self.control
        return f"Claim({verdict(self)}: {self.name}, {value}, {control}{self.criterion})"

    def _repr_html_(self) -> str:
        return show.table(
            f"{verdict(self)}: {self.name}",
            {
                "statement": f"{self.statement} [{self.source}]",
                "measured": self.measured,
                "interval": self.interval,
                "criterion": self.criterion,
                "control": self.control,
                "reason": reason(self),
            },
        )


def at_most(name: str, source: str, statement: str, measured: float, bound: float, **rest) -> Claim:
    """The claim that ``measured <= bound``.

    Args:
        name: short and unique in its study, for instance "P1 mup".
        source: paper and place, for instance "Noci et al. 2024, Fig. 2".
        statement: what is claimed, in one sentence with the measured quantity and its unit.
        measured: the number; not finite means not measured.
        bound: the largest number that passes.
        **rest: ``interval`` (low, high) of the measurement, low <= high, whose ends may be infinite, not nan;
            ``resolve=True`` where that is its error, which must be finite and not reach across an end of the
            criterion; ``control=True`` for a claim that must fail; ``reads``, the array or arrays that the number is
            made of, all of whose entries must be finite; ``infinite``, in words, what an infinity among them stands
            for where it is no diverged run, such as "inf: never reached", which the statement then says too;
            ``preconditions``, further ones.
    """
    bound = _real(name, "bound", bound)
    return _judge(
        name, source, statement, measured, -math.inf, bound, f"<= {_number(bound)}", **rest
    )


def at_least(
    name: str, source: str, statement: str, measured: float, bound: float, **rest
) -> Claim:
    """The claim that ``measured >= bound``; arguments as in `at_most`."""
    bound = _real(name, "bound", bound)
    return _judge(
        name, source, statement, measured, bound, math.inf, f">= {_number(bound)}", **rest
    )


def within(
    name: str, source: str, statement: str, measured: float, low: float, high: float, **rest
) -> Claim:
    """The claim that ``low <= measured <= high``; arguments as in `at_most`."""
    low, high = _real(name, "low", low), _real(name, "high", high)
    if not low <= high:
        raise ValueError(f"claim {name!r}: low {_number(low)} is larger than high {_number(high)}")
    text = f"in [{_number(low)}, {_number(high)}]"
    return _judge(name, source, statement, measured, low, high, text, **rest)


def near(
    name: str, source: str, statement: str, measured: float, target: float, tolerance: float, **rest
) -> Claim:
    """The claim that ``|measured - target| <= tolerance``; arguments as in `at_most`."""
    target, tolerance = _real(name, "target", target), _real(name, "tolerance", tolerance)
    if not tolerance >= 0:
        raise ValueError(f"claim {name!r}: tolerance is {tolerance}; it must be 0 or larger")
    text = f"{_number(target)} ± {_number(tolerance)}"
    low, high = target - tolerance, target + tolerance
    return _judge(name, source, statement, measured, low, high, text, **rest)


def equals(
    name: str,
    source: str,
    statement: str,
    measured: str,
    expected: str,
    *,
    control: bool = False,
    reads: xr.DataArray | Sequence[xr.DataArray] = (),
    infinite: str = "",
    preconditions: Sequence[Precondition] = (),
) -> Claim:
    """The claim that a verdict in words is the expected one, for instance the name of a regime.

    A number that is not finite, or no word at all, is no verdict: the claim is NOT MEASURED. The rest as in `at_most`.
    """
    _check_words(name, source, statement, control, expected=expected)
    statement = _statement(statement, infinite)
    needs = _needs(reads, preconditions, infinite)
    if _wordless(measured):
        needs += (Precondition("in words", False, f"the measured verdict is {measured!r}"),)
    passed = all(need.met for need in needs) and (measured == expected) != control
    return Claim(
        name, source, statement, str(measured), f"is {expected}", passed, None, control, needs
    )


def over_seeds(
    judge: Callable[..., Claim],
    values: xr.DataArray | Sequence[float],
    by: str = "worst",
    *,
    reads: xr.DataArray | Sequence[xr.DataArray] = (),
    infinite: str = "",
    **claim,
) -> Claim:
    """The claim about several seeds: the only road from their numbers to one. A nan is never skipped.

    Args:
        judge: `at_most`, `at_least`, `within`, `near`, or one of them with arguments filled in.
        values: one number a seed.
        by: what stands for the seeds. "worst": the seed that speaks most against the claim, for a control the one
            that comes nearest to meeting the criterion; its interval is the range. "median": with the range.
            "mean": with two standard errors, which must leave no doubt about the verdict (one seed has none).
        reads: arrays besides ``values`` whose entries must be finite.
        infinite: see `at_most`, for ``values`` too; a mean of infinities is not measured all the same.
        **claim: what judge takes besides: name, source, statement, bound (or target and tolerance), control, ...

    Returns:
        What ``judge`` makes of the number, NOT MEASURED where an entry of ``values`` or ``reads`` is nan, or infinite
        without words.

    Raises:
        ValueError: another ``by``, or no values.
    """
    if by not in ("worst", "median", "mean"):
        raise ValueError(f"by={by!r} is not known; take 'worst', 'median' or 'mean'")
    if not callable(judge):
        raise TypeError(f"judge is {judge!r}; it must be at_most, at_least, within or near")
    given = np.asarray(values)
    if given.dtype.kind not in "biuf":
        raise TypeError(
            f"values of claim {claim.get('name')!r} are of type {given.dtype}; they must be one real number a seed"
        )
    found = given.astype(float).ravel()
    if not found.size:
        raise ValueError("over_seeds needs the number of at least one seed")
    claim |= {"reads": (xr.DataArray(values), *_arrays(reads)), "infinite": infinite}
    counted = np.isfinite(found) | (np.isinf(found) & bool(infinite) & (by != "mean"))
    if not counted.all():
        return judge(measured=math.nan, **claim)
    span = (found.min(), found.max()) if found.size > 1 else None
    if by == "mean":
        several = {"interval": _two_errors(found), "resolve": True} if found.size > 1 else {}
        return judge(measured=found.mean(), **several, **claim)
    if by == "median":
        return judge(measured=np.median(found), interval=span, **claim)
    # Every one: of a control, the seed that comes nearest to a band need not be the first or the last.
    ends = [judge(measured=end, interval=span, **claim) for end in np.unique(found)]
    return min(ends, key=lambda end: -end.margin if end.control else end.margin)


def as_lost(data: xr.Dataset, but: Callable[[str], bool] = lambda name: False) -> xr.Dataset:
    """The data with nan for every infinity, so that no ratio or comparison makes an ordinary number of one.

    An attribute or a label that is not finite leaves nothing known: all is compared with the ones, or chosen by the
    others.

    Args:
        data: of a study.
        but: whether the variable of this name means something by an infinity, as a time that was never reached.
    """
    settings = [*data.attrs.values(), *(label.values for label in data.coords.values())]
    numbers = [v for v in map(np.asarray, settings) if v.dtype.kind == "f"]
    known = all(np.isfinite(value).all() for value in numbers)

    def lost(values: xr.DataArray) -> xr.DataArray:
        if values.dtype.kind != "f":
            return values
        kept = values > -np.inf if but(str(values.name)) else np.isfinite(values)
        return values.where(kept & known)

    return data.map(lost, keep_attrs=True)


def completed(data: xr.Dataset, dim: str, wanted: Sequence[Any]) -> xr.Dataset:
    """The data with nan at values of a dimension that the run does not hold, so that no claim about them vanishes.

    Args:
        data: of a study.
        dim: one of its dimensions.
        wanted: the values that the claims of the study are about.
    """
    if dim not in data.coords:
        raise ValueError(
            f"the data has no labels along {dim!r}; it has {', '.join(map(str, data.coords))}"
        )
    missing = [value for value in wanted if value not in data[dim].values]
    if not missing:
        return data
    numbers = [name for name, v in data.items() if dim in v.dims and v.dtype.kind in "fiu"]
    filled = data[numbers].astype(float).reindex({dim: [*data[dim].values, *missing]})
    return filled.assign({name: v for name, v in data.items() if dim not in v.dims})


def every_run(*arrays: xr.DataArray, infinite: str = "") -> Precondition:
    """That every entry is finite, unlike those of a diverged run; else which variable it is in, and which run.

    Args:
        *arrays: what is looked at; arrays of words are passed over.
        infinite: what an infinity stands for, in words; it is then no diverged run.
    """
    lost = np.isnan if infinite else lambda values: ~np.isfinite(values)
    for array in _arrays(arrays):
        if array.dtype.kind not in "fc" or not (missing := lost(array.values)).any():
            continue
        first = tuple(np.argwhere(missing)[0].tolist())
        labels = {key: _label(value) for key, value in array[first].coords.items()}
        labels = dict(zip(array.dims, first)) | labels  # a dimension without labels is counted
        run = ", ".join(f"{key} {label}" for key, label in labels.items())
        count = f"{int(missing.sum())} of {array.size}"
        value = "nan" if np.isnan(array.values[first]) else f"{array.values[first]:g}"
        found = f"{array.name or 'what is measured'} is {value}{' at ' * bool(run)}{run} ({count})"
        return Precondition("every run", False, found)
    return Precondition("every run", True)


def absent(what: str) -> Precondition:
    """The unmet precondition of a claim whose experiment the run does not hold."""
    return Precondition("measured", False, f"the run has no {what}")


def reason(claim: Claim) -> str:
    """Why a claim is not measured; nothing where it is."""
    _check_claim(claim)
    return "; ".join(f"{need.name}: {need.found}" for need in claim.preconditions if not need.met)


def verdict(claim: Claim) -> str:
    """The outcome in words, see the top of this file; capitals where something is wrong."""
    _check_claim(claim)
    finite = isinstance(claim.measured, str) or math.isfinite(claim.measured)
    if not finite or not all(need.met for need in claim.preconditions):
        return "NOT MEASURED"
    if claim.control:
        return "fails, as it must" if claim.passed else "CONTROL HOLDS"
    return "holds" if claim.passed else "FAILS"


def summary(claims: Sequence[Claim]) -> str:
    """One line: how many claims hold or are open, how many controls fail as they must, what became of the others."""
    for claim in claims:
        _check_claim(claim)
    proper, controls = ([c for c in claims if c.control == kind] for kind in (False, True))
    parts = []
    if proper:
        lost = sum(verdict(claim) == "NOT MEASURED" for claim in proper)
        words = f"{sum(c.passed for c in proper)} of {len(proper)} claims hold"
        parts.append(words + f", {lost} not measured" * bool(lost))
    if controls:
        parts.append(_controls(controls))
    return "; ".join(parts) or "no claims"


def _controls(controls: Sequence[Claim]) -> str:
    found = [verdict(claim) for claim in controls]
    failed, held = (found.count(words) for words in ("fails, as it must", "CONTROL HOLDS"))
    if failed == len(found):
        return f"{failed} of {len(found)} controls fail, as they must"
    words = [f"{failed} of {len(found)} controls fail as they must"]
    words += [f"{held} {'holds' if held == 1 else 'hold'}, which must not be"] * bool(held)
    lost = len(found) - failed - held
    words += [f"{lost} not measured"] * bool(lost)
    return ", ".join(words)


def _judge(
    name,
    source,
    statement,
    measured,
    low,
    high,
    text,
    *,
    interval=None,
    resolve=False,
    control=False,
    reads=(),
    infinite="",
    preconditions=(),
) -> Claim:
    _check_words(name, source, statement, control, resolve)
    statement = _statement(statement, infinite)
    bounds = [bound for bound in (low, high) if not math.isinf(bound)]
    if any(math.isnan(bound) for bound in bounds) or not bounds:
        raise ValueError(f"claim {name!r}: the criterion {text!r} has no finite bound")
    measured = _real(name, "measured", measured)
    interval = None if interval is None else _pair(name, interval)
    needs = _needs(reads, preconditions, infinite)
    if interval is not None and not interval[0] <= interval[1]:
        found = f"({interval[0]:g}, {interval[1]:g}) is not two numbers in order"
        needs += (Precondition("interval", False, found),)
    if resolve and math.isfinite(measured):
        needs += (_resolved(measured, interval, bounds),)
    if not math.isfinite(measured) and all(need.met for need in needs):
        needs += (Precondition("finite", False, f"the measured number is {measured}"),)
    met = low <= measured <= high
    passed = all(need.met for need in needs) and met != control
    margin = -math.inf if math.isnan(measured) else min(measured - low, high - measured)
    return Claim(name, source, statement, measured, text, passed, interval, control, needs, margin)


def _needs(reads, preconditions, infinite) -> tuple[Precondition, ...]:
    arrays = _arrays(reads)
    several = isinstance(preconditions, tuple | list) and not isinstance(
        preconditions, Precondition
    )
    for need in preconditions if several else [None]:
        if not isinstance(need, Precondition) or not isinstance(need.met, bool | np.bool_):
            raise TypeError(
                f"preconditions are {preconditions!r}; they must be a list of Precondition(name, True or False, found)"
            )
    return (*((every_run(*arrays, infinite=infinite),) if arrays else ()), *preconditions)


def _check_words(name, source, statement, control, resolve=False, **texts) -> None:
    """Refuses words that are no text, and switches that are neither True nor False."""
    for key, value in {"name": name, "source": source, "statement": statement, **texts}.items():
        if not isinstance(value, str):
            raise TypeError(f"{key} of claim {name!r} is {value!r}; it must be text")
    for key, value in {"control": control, "resolve": resolve}.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{key} of claim {name!r} is {value!r}; it must be True or False")


def _real(name, what, value) -> float:
    """One real number, as Python's; anything else is refused."""
    number = np.asarray(value)
    if number.ndim or number.dtype.kind not in "biuf":
        shown = f"an array of shape {number.shape}" if number.ndim else repr(value)
        raise TypeError(f"{what} of claim {name!r} is {shown}; it must be one real number")
    return float(number)


def _pair(name, interval) -> tuple[float, float]:
    try:
        low, high = interval
    except (TypeError, ValueError):
        raise TypeError(
            f"interval of claim {name!r} is {interval!r}; it must be two real numbers, or None"
        ) from None
    return _real(name, "interval[0]", low), _real(name, "interval[1]", high)


def _check_claim(claim) -> None:
    if not isinstance(claim, Claim):
        raise TypeError(f"claim is {claim!r}; it must be a Claim, as of claims.at_most")


def _arrays(reads) -> tuple[xr.DataArray, ...]:
    """One array, or each of several."""
    several = reads if isinstance(reads, tuple | list) else (reads,)
    for array in several:
        if not isinstance(array, xr.DataArray | np.ndarray):
            raise TypeError(
                f"reads holds {type(array).__name__}; it must be an array or a list of arrays: data.loss, not 'loss'"
            )
    return tuple(xr.DataArray(a) if isinstance(a, np.ndarray) else a for a in several)


def _statement(statement: str, infinite: str) -> str:
    """The statement, which says how infinity counts."""
    if not isinstance(infinite, str):
        raise TypeError(
            f"infinite is {infinite!r}; say in words what an infinity stands for, such as 'inf: never reached'"
        )
    return f"{statement} ({infinite})" if infinite else statement


def _wordless(measured) -> bool:
    """Whether what should be a verdict in words is none: a number that is not finite, or nothing."""
    try:
        return not math.isfinite(float(measured))
    except (TypeError, ValueError):
        return not isinstance(measured, str) or not measured.strip()


CLEAR = "clear of the criterion"
"""The precondition that the interval of a measurement's error leaves no doubt about the verdict."""


def _resolved(measured, interval, bounds) -> Precondition:
    """That the interval of a measurement's error lies on one side of every end of the criterion.

    Else how many times the runs would narrow it to the distance from the criterion: it goes as the inverse root of
    their number.
    """
    if interval is None or not all(map(math.isfinite, interval)):
        return Precondition(CLEAR, False, "one run gives no interval")
    low, high = interval
    inside = [bound for bound in bounds if low < bound < high]
    if not inside:
        return Precondition(CLEAR, True)
    times, bound = max((_times(measured, interval, bound), bound) for bound in inside)
    found = f"{_number(bound)} lies in [{low:.3g}, {high:.3g}]"
    decide = (
        f"{math.ceil(round(times, 6))} times the runs"
        if times <= MOST_RUNS
        else f"not even {MOST_RUNS} times the runs"
    )
    return Precondition(CLEAR, False, f"{found}; {decide} would decide")


MOST_RUNS = 100
"""Times the runs that a sentence advises."""


def _times(measured, interval, bound) -> float:
    """The square of how far the interval reaches towards a bound, over the distance from it."""
    reach = interval[1] - measured if bound > measured else measured - interval[0]
    return (reach / abs(bound - measured)) ** 2 if bound != measured else math.inf


def _two_errors(values: np.ndarray) -> tuple[float, float]:
    half = 2 * values.std(ddof=1) / math.sqrt(values.size)
    return values.mean() - half, values.mean() + half


def _label(value) -> str:
    value = value.item()
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _number(value: float) -> str:
    """Every digit of a bound, so that the words and the test are the same; 3.0 as 3."""
    return repr(float(value)).removesuffix(".0")
