"""What a study's functions must give back; anything else is refused in a line, before it reaches a file."""

from __future__ import annotations

import numbers
import pathlib
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments import seals
from experiments.claims import Claims
from experiments.judges import Claim, Precondition, every_run


def described(value: Any) -> str:
    """A value in a few words: its type, and what it is where that is short."""
    if value is None:
        return "None"
    text = repr(value)
    kind = f"a value of type {type(value).__name__}"
    return f"{kind}, {text}" if len(text) <= 40 and "\n" not in text else kind


def study(module: ModuleType, name: str) -> None:
    """Refuses a study whose words are not text, or whose functions are none.

    Raises:
        ValueError: the name, what it is, and what it must be.
    """
    for word in ("TITLE", "PAPER"):
        if not isinstance(found := getattr(module, word), str):
            raise ValueError(f"{name}: {word} is {described(found)}; it must be text")
    for function in ("check", "claims", "figures", "run", "total_steps"):
        if not callable(found := getattr(module, function)):
            raise ValueError(f"{name}: {function} is {described(found)}; it must be a function")


def called(study: ModuleType, function: str, *arguments: Any) -> Any:
    """``study.function(*arguments)``; what a file of one's own raises is told in a line, with the number of its own.

    Raises:
        ValueError: the function raised one, or anything else in a study that is none of this package.
    """
    try:
        return getattr(study, function)(*arguments)
    except (OSError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        refusal = isinstance(error, ValueError) and str(error)
        if refusal or _ours(study) or "RESOURCE_EXHAUSTED" in str(error):
            raise
        file = pathlib.Path(study.__file__ or study.__name__)
        raise ValueError(told(error, file, function)) from error


def _ours(study: ModuleType) -> bool:
    """Whether a study is of this package."""
    return study.__name__.startswith("experiments.studies.")


def told(error: BaseException, path: pathlib.Path, doing: str = "") -> str:
    """What a Python file raised, in a line: the file, the line of its innermost frame within, ``doing``, the error."""
    lines, frame = [], error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == str(path):
            lines.append(frame.tb_lineno)
        frame = frame.tb_next
    where = f"{path}, line {lines[-1]}:" if lines else f"{path}:"
    reason = f"raised {type(error).__name__}: {error}".rstrip(": ")
    return " ".join(filter(None, [where, doing, reason]))


def total_steps(study: ModuleType, config: Any) -> int:
    """``study.total_steps(config)``, a whole number."""
    found = called(study, "total_steps", config)
    if not isinstance(found, numbers.Integral) or isinstance(found, bool) or found < 0:
        _refuse(study, "total_steps", described(found), "a whole number from 0 on")
    return int(found)


def work(study: ModuleType, config: Any) -> dict[str, tuple[int, float]]:
    """``study.work(config)``, what its steps cost, see `experiments.loop.progress`; empty for a study without it."""
    found = called(study, "work", config) if hasattr(study, "work") else {}
    expected = "a dict {beginning of a unit's name: (steps, seconds of one)}"
    if not isinstance(found, Mapping):
        _refuse(study, "work", described(found), expected)
    for name, pair in found.items():
        right = isinstance(pair, tuple) and len(pair) == 2
        right = right and all(isinstance(v, numbers.Real) and v >= 0 for v in pair)
        if not isinstance(name, str) or not right:
            _refuse(study, "work", f"{name!r}: {described(pair)}", expected)
    return dict(found)


def result(study: ModuleType, data: Any) -> xr.Dataset:
    """What ``study.run`` gave back: a Dataset of real numbers and text."""
    if not isinstance(data, xr.Dataset):
        _refuse(study, "run", described(data), "an xarray.Dataset")
    for name, variable in data.variables.items():
        if not isinstance(name, str) or not _can_be_kept(variable.values):
            found = f"a Dataset whose variable {name!r} is of type {variable.dtype}"
            _refuse(study, "run", found, "variables of real numbers or text")
    try:
        seals.pack_dataset(data, "")
    except (TypeError, ValueError, OverflowError) as error:
        found = f"a Dataset that NetCDF 3 does not hold ({error})"
        _refuse(
            study, "run", found, "whole numbers of 32 bits, and attributes that are numbers or text"
        )
    return data


def claims(study: ModuleType, found: Any, data: xr.Dataset) -> Claims:
    """What ``study.claims`` gave back of the data: a list of claims.

    One of a study of one's own that does not say what it reads is not measured where anything is nan, which reductions
    of xarray pass over.
    """
    expected = "a list of claims, as of experiments.claims.at_most"
    if not isinstance(found, list | tuple) or isinstance(found, Claim):
        _refuse(study, "claims", described(found), expected)
    for claim in found:
        if not isinstance(claim, Claim):
            _refuse(study, "claims", f"a list that holds {described(claim)}", expected)
        words = (claim.name, claim.source, claim.statement)
        if not all(isinstance(word, str) for word in words):
            _refuse(
                study, "claims", f"a claim with {words}", "a name, a source and a statement of text"
            )
    names = [claim.name for claim in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        _refuse(study, "claims", f"several claims of the name {twice[0]!r}", "a name for each")
    if _ours(study):
        return Claims(found)
    lost = every_run(*data.data_vars.values(), infinite="anything")
    return Claims(c if lost.met or _reads(c) else _unread(c, lost.found) for c in found)


def _reads(claim: Claim) -> bool:
    return any(need.name == "every run" for need in claim.preconditions)


def _unread(claim: Claim, found: str) -> Claim:
    why = f"{found}, and the claim does not say what it reads: give reads="
    needs = (*claim.preconditions, Precondition("every run", False, why))
    return claim._replace(passed=False, preconditions=needs)


def figures(study: ModuleType, found: Any) -> Mapping[str, Figure]:
    """What ``study.figures`` gave back: Matplotlib figures by names that are names of files, too."""
    expected = "a dict {name: matplotlib Figure}"
    if not isinstance(found, Mapping):
        _refuse(study, "figures", described(found), expected)
    for name, figure in found.items():
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w .,+=-]{0,99}", name):
            words = "names of letters, digits, '_', '-', '.' (they name files)"
            _refuse(study, "figures", f"a figure of the name {name!r}", words)
        if not isinstance(figure, Figure):
            _refuse(study, "figures", f"{name!r}: {described(figure)}", expected)
    return found


def tables(study: ModuleType, data: xr.Dataset) -> Mapping[str, tuple]:
    """What ``study.tables`` gives, {title: (head, rows, note)} of text; a study need not have it."""
    found = called(study, "tables", data) if hasattr(study, "tables") else {}
    expected = "a dict {title: (head, rows, note)} of text"
    if not isinstance(found, Mapping):
        _refuse(study, "tables", described(found), expected)
    for title, table in found.items():
        if not (isinstance(table, tuple) and len(table) == 3):
            _refuse(study, "tables", f"{title!r}: {described(table)}", expected)
        head, rows, note = table
        cells = [title, *head, note, *(cell for row in rows for cell in row)]
        if not all(isinstance(cell, str) for cell in cells):
            _refuse(study, "tables", f"{title!r} with cells that are no text", expected)
        if any(len(row) != len(head) for row in rows):
            _refuse(
                study, "tables", f"{title!r} with rows of other lengths than its head", expected
            )
    return found


def arrays(unit: str, found: Any) -> dict[str, np.ndarray]:
    """What a unit of a grid gave back, as arrays of real numbers or text."""
    if not isinstance(found, Mapping):
        raise ValueError(f"{unit} returned {described(found)}; expected a dict {{variable: array}}")
    return {name: _array(unit, name, value) for name, value in found.items()}


def _array(unit: str, name: Any, value: Any) -> np.ndarray:
    expected = "expected an array of real numbers or text"
    if not isinstance(name, str):
        raise ValueError(f"{unit} returned the name {name!r}; names of variables are text")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:  # rows of different lengths
        raise ValueError(f"{unit}: {name} is no array ({error}); {expected}") from error
    if array.dtype.kind not in "biufSU":
        raise ValueError(
            f"{unit}: {name} is of type {array.dtype} ({described(value)}); {expected}"
        )
    return array


def _can_be_kept(values: np.ndarray) -> bool:
    if values.dtype.kind == "O":
        return all(isinstance(value, str) for value in values.flat)
    return values.dtype.kind in "biufSUmM"


def _refuse(study: ModuleType, function: str, found: str, expected: str) -> None:
    name = getattr(study, "__file__", None) or study.__name__
    raise ValueError(f"{name}: {function} returned {found}; expected {expected}")
