"""Claims in words and in files: tables for the terminal, one line for all, JSON. They are made in `judges`."""

from __future__ import annotations

import functools
import json
import math
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from html import escape
from typing import TextIO

import xarray as xr
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.judges import (
    Claim,
    Precondition,
    absent,
    at_least,
    at_most,
    equals,
    every_run,
    near,
    over_seeds,
    reason,
    summary,
    verdict,
    within,
)
from ntk import show

__all__ = [
    "Claim",
    "Claims",
    "Precondition",
    "absent",
    "at_least",
    "at_most",
    "criterion_text",
    "differences",
    "equals",
    "every_run",
    "from_json",
    "listed",
    "near",
    "over_seeds",
    "plain_table",
    "print_table",
    "reason",
    "rich_table",
    "summary",
    "to_json",
    "value_text",
    "verdict",
    "within",
]


@show.drawn
class Claims(list[Claim]):
    """Several claims: their summary as `repr`, their table in a notebook, ``.plot()`` how far inside each lies."""

    def __repr__(self) -> str:
        return f"Claims({summary(self)})"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in ("claim", "measured", "criterion", "verdict"))
        rows = "".join(
            f"<tr><td style='text-align:left'>{'</td><td>'.join(map(escape, _cells(claim)))}</td></tr>"
            for claim in self
        )
        return f"<table><caption>{escape(summary(self))}</caption><tr>{head}</tr>{rows}</table>"


def listed(judge: Callable[[xr.Dataset], Sequence[Claim]]) -> Callable[[xr.Dataset], Claims]:
    """A decorator of a study's ``claims``: they come as `Claims`."""

    @functools.wraps(judge)
    def claims(data: xr.Dataset) -> Claims:
        return Claims(judge(data))

    return claims


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
    return (
        json.dumps(
            _map_floats(rows),
            indent=1,
            allow_nan=False,
            ensure_ascii=False,
            default=lambda x: x.item(),
        )
        + "\n"
    )


def from_json(text: str) -> Claims:
    """The claims that `to_json` wrote.

    Raises:
        ValueError: not JSON, or not a list of claims.
    """
    rows = json.loads(text)
    if not isinstance(rows, list):
        raise ValueError(f"expected a list of claims, found {type(rows).__name__}")
    return Claims(_claim(number, row) for number, row in enumerate(rows))


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
        if verdict(old) != verdict(new):
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
        if why := reason(claim):
            what.append(f"  {why}", style="red")
        outcome = Text(verdict(claim), style="green" if claim.passed else "bold red")
        table.add_row(what, Text(value_text(claim)), Text(criterion_text(claim)), outcome)
    return table


def plain_table(claims: Sequence[Claim], title: str = "") -> str:
    """The same without colour or frame: two lines a claim (three where it is not measured), then the summary."""
    names = max((len(claim.name) for claim in claims), default=0)
    lines = [title, "-" * len(title)] if title else []
    for claim in claims:
        head = f"{verdict(claim):<17}  {claim.name:<{names}}  {value_text(claim)}  ({criterion_text(claim)})"
        lines.append(head)
        for body in (f"{claim.statement} [{claim.source}]", reason(claim)):
            lines += textwrap.wrap(body, 100, initial_indent=" " * 19, subsequent_indent=" " * 19)
    return "\n".join([*lines, summary(claims)]) + "\n"


def _cells(claim: Claim) -> tuple[str, str, str, str]:
    name = f"{claim.name}: {claim.statement}"
    return name, value_text(claim), criterion_text(claim), verdict(claim)


_NUMBER = re.compile(r"-?\d+\.?\d*(?:e[+-]?\d+)?")


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
    ends = interval if isinstance(interval, list) else []
    pair = interval is None or (len(ends) == 2 and all(map(_is_number, ends)))
    right = isinstance(measured, int | float | str) and _is_number(fields.get("margin", "-inf"))
    if not texts or not flags or not right or not pair:
        raise ValueError(f"entry {number} is not a claim: {textwrap.shorten(repr(row), 120)}")
    if not isinstance(measured, str) or measured in ("nan", "inf", "-inf"):
        fields["measured"] = float(measured)
    fields["interval"] = None if interval is None else (float(interval[0]), float(interval[1]))
    fields["margin"] = float(fields.get("margin", -math.inf))
    needs = fields.get("preconditions", [])
    if not isinstance(needs, list) or not all(_is_precondition(need) for need in needs):
        raise ValueError(f"entry {number}: its preconditions are no list of [name, met, found]")
    fields["preconditions"] = tuple(Precondition(*need) for need in needs)
    return Claim(**fields)


def _is_number(value) -> bool:
    """Whether a value of a file is a number, or the name of one that is not finite."""
    return isinstance(value, int | float) or value in ("nan", "inf", "-inf")


def _is_precondition(need) -> bool:
    return isinstance(need, list) and [type(part) for part in need] == [str, bool, str]
