"""What a value of a configuration may be: rules that refuse with the key's path, the value and what is allowed.

A rule is a function ``(path, value)`` that raises. A study declares a rule for each of its keys and calls `values`
with them before it looks at anything else.
"""

from __future__ import annotations

import contextlib
import contextvars
import difflib
import math
import numbers
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Rule = Callable[[str, Any], None]

LARGEST = 2**31 - 1
"""Steps and seeds are 32-bit integers on the device."""
TYPES = {str: "text", bool: "True or False", int: "a whole number", float: "a number"}


def refuse(path: str, value: Any, allowed: str) -> None:
    """Raises the ValueError that all rules share."""
    raise ValueError(f"config.{path} is {_short(value)}; it must be {allowed}")


def whole(least: int = 1, most: int = LARGEST) -> Rule:
    """A whole number from ``least`` to ``most``."""

    def rule(path, value):
        right = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not right or not least <= value <= most:
            refuse(path, value, f"a whole number {_between(least, most)}")

    return rule


def real(low: float = -math.inf, high: float = math.inf, *, inside: bool = False) -> Rule:
    """A finite number from ``low`` to ``high``; with ``inside``, neither of the two."""

    def rule(path, value):
        right = isinstance(value, numbers.Real) and not isinstance(value, bool)
        right = right and abs(value) < 1e300 and low <= value <= high
        if not right or (inside and value in (low, high)):
            refuse(path, value, f"a finite number {_between(low, high, inside)}".rstrip())

    return rule


_TINY, _HUGE = 1e-30, 1e30  # single precision ends not far beyond them


def positive(most: float = _HUGE) -> Rule:
    """A number above 0, up to ``most``, that single precision holds."""

    def rule(path, value):
        real(-math.inf, math.inf)(path, value)
        if not 0 < value <= most:
            refuse(path, value, f"a finite number above 0 and at most {most:g}")
        if value < _TINY:
            refuse(path, value, f"at least {_TINY:g}: single precision holds no smaller ones")

    return rule


def choice(names: Sequence[str]) -> Rule:
    """One of some names."""

    def rule(path, value):
        if value not in tuple(names):
            near = difflib.get_close_matches(str(value), [str(n) for n in names], n=1, cutoff=0.4)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            refuse(path, value, f"one of {', '.join(map(str, names))}{hint}")

    return rule


def instance(kind: type) -> Rule:
    """A value of one type."""

    def rule(path, value):
        if not isinstance(value, kind):
            refuse(path, value, TYPES.get(kind, kind.__name__))

    return rule


def several(
    of: Rule,
    least: int = 1,
    *,
    distinct: bool = True,
    ascending: bool = False,
    needs: Sequence = (),
    most: int = 10_000,
) -> Rule:
    """A tuple of values that each obey a rule.

    Args:
        of: the rule.
        least: how many there must be.
        distinct: whether a value may not come twice.
        ascending: whether each must be larger than the one before.
        needs: values that must be among them, because a claim is about them.
        most: how many there may be.
    """

    def rule(path, value):
        if not isinstance(value, tuple | list):
            refuse(path, value, f"a tuple, such as ({value!r},)")
        if not least <= len(value) <= most:
            refuse(path, value, f"a tuple of {least} or more values ({most} at most)")
        for index, entry in enumerate(value):
            of(f"{path}[{index}]", entry)
        if distinct and len(set(value)) < len(value):
            refuse(path, value, "a tuple without repetitions")
        if ascending and list(value) != sorted(value):
            refuse(path, value, "in ascending order")
        if not set(needs) <= set(value):
            refuse(
                path,
                value,
                f"a tuple that includes {', '.join(map(repr, needs))}: claims are about them",
            )

    return rule


def fixed(*of: Rule) -> Rule:
    """A tuple with one rule for each entry."""

    def rule(path, value):
        if not isinstance(value, tuple | list) or len(value) != len(of):
            refuse(path, value, f"a tuple of {len(of)} values")
        for index, (each, entry) in enumerate(zip(of, value)):
            each(f"{path}[{index}]", entry)

    return rule


SEEDS = several(whole(0))
STEPS = whole(1, 10**8)
WIDTH = whole(1, 2**20)
DEPTH = whole(1, 1000)


def widths(least: int = 1) -> Rule:
    """So many widths, or more, in ascending order."""
    return several(WIDTH, least, ascending=True)


def values(config: Any, rules: Mapping[str, Rule], prefix: str = "") -> None:
    """Applies the rule of every key; a key without one must be finite, and a tuple not empty.

    Args:
        config: a ConfigDict.
        rules: dotted key, relative to ``prefix``, -> rule.
        prefix: dotted key of config within the whole configuration, for the messages.

    Raises:
        ValueError: a key is missing, or its value is not allowed.
    """
    found = flatten(config)
    for key, rule in rules.items():
        if key not in found:
            near = difflib.get_close_matches(key, found, n=1)
            hint = f"; it has {near[0]!r}" if near else ""
            raise ValueError(f"the configuration lacks config.{_join(prefix, key)}{hint}")
        rule(_join(prefix, key), found[key])
    for key, value in found.items():
        if key not in rules:
            _plain(_join(prefix, key), value)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of every leaf of a ConfigDict or dictionary."""
    found = {}
    for key, value in config.items():
        path = _join(prefix, key)
        found |= flatten(value, path) if hasattr(value, "items") and len(value) else {path: value}
    return found


def multiple(config: Any, key: str, of: str) -> None:
    """Refuses a value that is not a multiple of the value of another key beside it, such as steps of chunk.

    Args:
        config: the whole configuration.
        key: dotted path.
        of: name of the other key.
    """
    parent, _, name = key.rpartition(".")
    part = at(config, parent) if parent else config
    if part[name] % part[of]:
        refuse(key, part[name], f"a multiple of {of}, {part[of]}: {name} ({part[name]}) is not")


def six_digits(path: str, numbers_: Sequence[float]) -> None:
    """Refuses numbers that agree in the six digits by which files and labels name them."""
    if len({f"{value:g}" for value in numbers_}) < len(numbers_):
        refuse(path, numbers_, "numbers that differ within their first six digits")


def classes(task: Any) -> None:
    """Refuses a task whose targets are not the numbers of classes."""
    if task.train.y.dtype.kind not in "iu":
        remedy = ": give config.task.kind=classification" * (task.name == "teacher")
        raise ValueError(
            f"config.task.name is {task.name!r} with real targets; this study needs one with classes{remedy}"
        )
    if task.outputs < 2:
        raise ValueError(f"config.task: {task.name} has one class; this study needs two or more")


def at(config: Any, path: str) -> Any:
    """The part of a configuration at a dotted path."""
    for name in path.split("."):
        config = config[name]
    return config


def memory(what: str, entries: float, size: int = 4) -> None:
    """Refuses what cannot fit into the memory of this machine.

    Args:
        what: what needs it, with the keys that decide how much.
        entries: numbers that must be held at once.
        size: bytes of each.

    Raises:
        ValueError: both sizes.
    """
    needed, there = entries * size, machine_memory()
    if (noted := _NOTED.get()) is not None:
        noted.append((needed, what))
    if needed > there:
        raise ValueError(
            f"{what} needs {needed / 2**30:.3g} GiB, and this machine has {there / 2**30:.3g} GiB: make it smaller"
        )


_NOTED: contextvars.ContextVar[list | None] = contextvars.ContextVar("noted", default=None)


@contextlib.contextmanager
def allocations() -> Iterator[list[tuple[float, str]]]:
    """A list that `memory` notes (bytes, what) in, of all that it is asked within."""
    found: list[tuple[float, str]] = []
    token = _NOTED.set(found)
    try:
        yield found
    finally:
        _NOTED.reset(token)


def machine_memory() -> int:
    """Bytes of memory of this machine, or of the container that this process runs in."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            there = min(there, int(pathlib.Path(name).read_text()))
        except (OSError, ValueError):  # no such limit
            continue
    return there


def context(path: str, function: Callable, *arguments: Any, **options: Any) -> Any:
    """Calls what refuses by itself, and puts the key before its message.

    Raises:
        ValueError: what the function raised.
    """
    try:
        return function(*arguments, **options)
    except (Exception, SystemExit) as error:  # networks and readers of data raise nearly anything
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        text = str(reason) or type(error).__name__
        raise ValueError(
            text if text.startswith("config.") else f"config.{path}: {text}"
        ) from error


def _plain(path: str, value: Any) -> None:
    if isinstance(value, tuple | list):
        if not value:
            refuse(path, value, "a tuple of one or more values")
        for index, entry in enumerate(value):
            _plain(f"{path}[{index}]", entry)
    elif isinstance(value, float):
        real()(path, value)
    elif isinstance(value, int) and not isinstance(value, bool):
        whole(-LARGEST)(path, value)


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else str(key)


def _between(low: float, high: float, inside: bool = False) -> str:
    if low == -math.inf and high == math.inf:
        return ""
    if high in (math.inf, LARGEST) and not inside:
        return f"from {low} on" + (f" (up to {high})" if high == LARGEST else "")
    return f"between {low} and {high}" + (", neither of them" if inside else "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:76] + "..."
