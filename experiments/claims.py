"""A claim of a paper, with the number measured and the criterion it was to meet, stated before the run.

A control is a claim that must *fail* its criterion (the wrong parametrization must not transfer, shuffled labels
must not align): `passed` says whether the claim turned out as it should, so for a control that the criterion was
missed. The four verdicts in words::

    claim      holds                 criterion met
    claim      FAILS                 criterion missed
    control    fails, as it must     criterion missed
    control    CONTROL HOLDS         criterion met: the experiment does not tell right from wrong

A number that is not finite decides nothing: the verdict is NOT MEASURED and `passed` is false, for a control too.
"""

from __future__ import annotations

import json
import math
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import NamedTuple, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


class Claim(NamedTuple):
    """One line of the table of claims; make it with `at_most`, `at_least`, `within`, `near` or `equals`."""

    name: str
    source: str
    statement: str
    measured: float | str
    criterion: str
    passed: bool
    interval: tuple[float, float] | None = None
    control: bool = False


def at_most(name: str, source: str, statement: str, measured: float, bound: float, **rest) -> Claim:
    """The claim that ``measured <= bound``.

    Args:
        name: short and unique in its study, for instance "P1 mup".
        source: paper and place, for instance "Noci et al. 2024, Fig. 2".
        statement: what is claimed, in one sentence with the measured quantity and its unit.
        measured: the number; not finite means not measured.
        bound: the largest number that passes.
        **rest: ``interval`` (low, high) of the measurement, ``control=True`` for a claim that must fail.
    """
    return _judge(
        name, source, statement, measured, -math.inf, bound, f"<= {_number(bound)}", **rest
    )


def at_least(
    name: str, source: str, statement: str, measured: float, bound: float, **rest
) -> Claim:
    """The claim that ``measured >= bound``; arguments as in `at_most`."""
    return _judge(
        name, source, statement, measured, bound, math.inf, f">= {_number(bound)}", **rest
    )


def within(
    name: str, source: str, statement: str, measured: float, low: float, high: float, **rest
) -> Claim:
    """The claim that ``low <= measured <= high``; arguments as in `at_most`."""
    if not low <= high:
        raise ValueError(f"claim {name!r}: low {low} is larger than high {high}")
    text = f"in [{_number(low)}, {_number(high)}]"
    return _judge(name, source, statement, measured, low, high, text, **rest)


def near(
    name: str, source: str, statement: str, measured: float, target: float, tolerance: float, **rest
) -> Claim:
    """The claim that ``|measured - target| <= tolerance``; arguments as in `at_most`."""
    if not tolerance >= 0:
        raise ValueError(f"claim {name!r}: tolerance is {tolerance}; it must be 0 or larger")
    text = f"{_number(target)} ± {_number(tolerance)}"
    low, high = target - tolerance, target + tolerance
    return _judge(name, source, statement, measured, low, high, text, **rest)


def equals(
    name: str, source: str, statement: str, measured: str, expected: str, *, control: bool = False
) -> Claim:
    """The claim that a verdict in words is the expected one, for instance the name of a regime."""
    return Claim(
        name,
        source,
        statement,
        measured,
        f"is {expected}",
        (measured == expected) != control,
        None,
        control,
    )


def verdict(claim: Claim) -> str:
    """The outcome in words, see the top of this file; capitals where something is wrong."""
    if isinstance(claim.measured, float) and not math.isfinite(claim.measured):
        return "NOT MEASURED"
    if claim.control:
        return "fails, as it must" if claim.passed else "CONTROL HOLDS"
    return "holds" if claim.passed else "FAILS"


def summary(claims: Sequence[Claim]) -> str:
    """One line: how many claims hold, how many controls fail as they must."""
    controls = [claim for claim in claims if claim.control]
    proper = [claim for claim in claims if not claim.control]
    parts = []
    if proper:
        parts.append(f"{sum(c.passed for c in proper)} of {len(proper)} claims hold")
    if controls:
        parts.append(
            f"{sum(c.passed for c in controls)} of {len(controls)} controls fail, as they must"
        )
    return "; ".join(parts) or "no claims"


def value_text(claim: Claim) -> str:
    """The measured value with its interval, in as many digits as the verdict needs to be plain."""
    if isinstance(claim.measured, str):
        return claim.measured
    text = f"{claim.measured:.4g}"
    if float(text) != claim.measured and float(text) in map(
        float, _NUMBER.findall(claim.criterion)
    ):
        text = repr(claim.measured)  # .50001 must not be shown as .5 beside "<= 0.5"
    if claim.interval is not None:
        low, high = claim.interval
        text += f" [{low:.3g}, {high:.3g}]"
    return text


def criterion_text(claim: Claim) -> str:
    """The criterion, with the word control where it must be missed."""
    return f"control: must fail {claim.criterion}" if claim.control else claim.criterion


def to_json(claims: Sequence[Claim]) -> str:
    """A JSON list of objects, one per claim; numbers that are not finite are written as strings."""
    rows = [{**claim._asdict(), "verdict": verdict(claim)} for claim in claims]
    return json.dumps(_map_floats(rows), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def from_json(text: str) -> list[Claim]:
    """The claims that `to_json` wrote.

    Raises:
        ValueError: not JSON, or not a list of claims.
    """
    rows = json.loads(text)
    if not isinstance(rows, list):
        raise ValueError(f"expected a list of claims, found {type(rows).__name__}")
    return [_claim(number, row) for number, row in enumerate(rows)]


def differences(
    recorded: Sequence[Claim], computed: Sequence[Claim], tolerance: float = 1e-6
) -> list[str]:
    """Where two lists of claims disagree, one sentence each; measured numbers up to a relative tolerance."""
    before, now = ({claim.name: claim for claim in claims} for claims in (recorded, computed))
    found = [f"{name} is recorded but no longer computed" for name in before if name not in now]
    found += [f"{name} is computed but was not recorded" for name in now if name not in before]
    for name in before:
        if name not in now:
            continue
        old, new = before[name], now[name]
        if (old.criterion, old.control) != (new.criterion, new.control):
            found.append(f"{name}: criterion was {criterion_text(old)}, now {criterion_text(new)}")
        if not _same(old.measured, new.measured, tolerance):
            found.append(f"{name}: recorded {old.measured}, computed {new.measured}")
        if old.passed != new.passed:
            found.append(f"{name}: recorded as {verdict(old)!r}, computed as {verdict(new)!r}")
    return found


def print_table(claims: Sequence[Claim], title: str = "", file: TextIO | None = None) -> None:
    """Prints the claims: a coloured table on a terminal, plain lines that grep and diff can read elsewhere."""
    file = sys.stdout if file is None else file
    if file.isatty():
        console = Console(file=file)
        console.print(rich_table(claims, title))
        console.print(Text(summary(claims), style="bold"))
    else:
        file.write(plain_table(claims, title))


def rich_table(claims: Sequence[Claim], title: str = "") -> Table:
    """The table of claims for a terminal."""
    table = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("claim", ratio=1, overflow="fold")
    for column in ("measured", "criterion", "verdict"):
        table.add_column(column, overflow="fold")
    for claim in claims:
        what = Text.assemble((claim.name, "bold"), f"  {claim.statement}  ", (claim.source, "dim"))
        outcome = Text(verdict(claim), style="green" if claim.passed else "bold red")
        table.add_row(what, Text(value_text(claim)), Text(criterion_text(claim)), outcome)
    return table


def plain_table(claims: Sequence[Claim], title: str = "") -> str:
    """The same without colour or frame: two lines a claim, then the summary."""
    names = max((len(claim.name) for claim in claims), default=0)
    lines = [title, "-" * len(title)] if title else []
    for claim in claims:
        head = f"{verdict(claim):<17}  {claim.name:<{names}}  {value_text(claim)}  ({criterion_text(claim)})"
        lines.append(head)
        body = f"{claim.statement} [{claim.source}]"
        lines += textwrap.wrap(body, 100, initial_indent=" " * 19, subsequent_indent=" " * 19)
    return "\n".join([*lines, summary(claims)]) + "\n"


_NUMBER = re.compile(r"-?\d+\.?\d*(?:e[+-]?\d+)?")


def _judge(
    name, source, statement, measured, low, high, text, *, interval=None, control=False
) -> Claim:
    bounds = [bound for bound in (low, high) if not math.isinf(bound)]
    if any(math.isnan(bound) for bound in bounds) or not bounds:
        raise ValueError(f"claim {name!r}: the criterion {text!r} has no finite bound")
    measured = float(measured)
    met = low <= measured <= high
    passed = math.isfinite(measured) and met != control
    interval = None if interval is None else (float(interval[0]), float(interval[1]))
    return Claim(name, source, statement, measured, text, passed, interval, control)


def _number(value: float) -> str:
    """Every digit of a bound, so that the words and the test are the same; 3.0 as 3."""
    return repr(float(value)).removesuffix(".0")


def _same(a: float | str, b: float | str, tolerance: float) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=tolerance, abs_tol=1e-12)


def _map_floats(value):
    if isinstance(value, dict):
        return {key: _map_floats(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_map_floats(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _claim(number: int, row) -> Claim:
    fields = (
        {} if not isinstance(row, dict) else {key: row[key] for key in Claim._fields if key in row}
    )
    texts = all(
        isinstance(fields.get(key), str) for key in ("name", "source", "statement", "criterion")
    )
    flags = all(isinstance(fields.get(key), bool) for key in ("passed", "control"))
    measured, interval = fields.get("measured"), fields.get("interval")
    pair = interval is None or (isinstance(interval, list) and len(interval) == 2)
    if not texts or not flags or not isinstance(measured, int | float | str) or not pair:
        raise ValueError(f"entry {number} is not a claim: {textwrap.shorten(repr(row), 120)}")
    if not isinstance(measured, str) or measured in ("nan", "inf", "-inf"):
        fields["measured"] = float(measured)
    fields["interval"] = None if interval is None else (float(interval[0]), float(interval[1]))
    return Claim(**fields)
