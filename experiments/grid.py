"""A grid of experiments: axes x units -> labelled arrays. The one road from a configuration to its results.

A unit is one point of the axes. It is a task of its own, a pure function of the point and of the data that all units
share, and it is resumable: what it measured is kept in points/, what it is training in checkpoints/, and who runs the
study again finds both. Any process could do any unit.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from experiments import cluster, contract, loop, signals, train
from experiments.clock import Clock


class Axis(NamedTuple):
    """The values of a coordinate; over its own dimension, or over those in ``dims``."""

    values: Sequence[Any]
    long_name: str
    units: str = "1"
    dims: tuple[str, ...] | None = None


class Variable(NamedTuple):
    """What a unit measures, with its dimensions after those of the grid."""

    long_name: str
    units: str = "1"
    dims: tuple[str, ...] = ()


def variables(dims: str, **long_names: str) -> dict[str, Variable]:
    """Variables over the same dimensions, which are named with spaces between; "" for single numbers."""
    return {name: Variable(text, dims=tuple(dims.split())) for name, text in long_names.items()}


class Training(NamedTuple):
    """A unit that is trained: runs of one compiled program, resumed in their middle.

    Attributes:
        compile: -> the program; called when a run is left to train.
        shape: units of the same shape share one compilation.
        data: of the program.
        learning_rates: one per run.
        seeds: one per run.
        chunks: calls of ``advance``.
        steps: of one run.
        keep: records of `loop.train_runs` -> {variable: array}.
    """

    compile: Callable[[], train.Program]
    shape: Hashable
    data: Any
    learning_rates: Sequence[float]
    seeds: Sequence[int]
    chunks: int
    steps: int
    keep: Callable[[dict[str, np.ndarray]], Mapping[str, Any]] = lambda records: records


class Program(NamedTuple):
    """What is done at every point of a grid.

    Attributes:
        name: of the grid, unique within the study; it begins the names of its files.
        unit: a pure function ``(data, **point) -> {variable: array}``, or ``-> Training``.
        variables: what a unit measures; other entries of its result are kept in points/ but not returned.
        coordinates: of dimensions that the variables have beyond the grid's.
        trains: whether the unit is a `Training`.
        steps: of a unit that is none, for the progress bar; 0 counts none.
    """

    name: str
    unit: Callable[..., Mapping[str, Any] | Training]
    variables: Mapping[str, Variable]
    coordinates: Mapping[str, Axis] = {}
    trains: bool = False
    steps: int = 1


def train_grid(
    axes: Mapping[str, Axis], data: Any, program: Program, session: loop.Session | None = None
) -> xr.Dataset:
    """Every unit of a grid, from the files of the run where it is there already, as labelled arrays.

    Args:
        axes: dimension -> its values; their product are the units, the last axis fastest.
        data: what all units read.
        program: what a unit does.
        session: files and progress; none are kept by default.

    Returns:
        program.variables over the dimensions of the axes and then their own, with ``long_name`` and ``units``; empty
        where an axis is.

    Raises:
        ValueError: a unit does not measure a variable, or measures it in other dimensions or shapes than another;
            the session has a grid of that name already, or one whose points would have the same names.
    """
    session = session or loop.Session()
    compiled: dict[Hashable, train.Program] = {}
    points = [
        dict(zip(axes, point)) for point in itertools.product(*(a.values for a in axes.values()))
    ]
    labels = [label(program.name, point.values()) for point in points]
    if len(set(labels)) < len(labels):
        twice = sorted(name for name in set(labels) if labels.count(name) > 1)
        raise ValueError(f"an axis of {program.name} has a value twice: {', '.join(twice)}")
    _claim(session, program.name, labels)
    units: list[dict[str, np.ndarray]] = []
    if session.clock is not None:
        session.clock.grid(program.name, len(points), alone=session.cluster is None)
    if session.plan is not None:
        found = session.plan.units(program, data, points, labels)
    elif session.cluster is None or not points:
        found = (unit(program, data, *both, session, compiled) for both in zip(points, labels))
    else:
        found = cluster.units(session.cluster, program, data, points, labels, session)
    for name, measured in zip(labels, found):
        units.append(measured)
        _check_shapes(program, name, units[-1], units[0])
    if not units:
        return xr.Dataset()
    shape = tuple(len(axis.values) for axis in axes.values())
    variables = {
        name: array(
            (*axes, *what.dims),
            np.reshape(
                np.stack([unit[name] for unit in units]), (*shape, *np.shape(units[0][name]))
            ),
            what.long_name,
            what.units,
        )
        for name, what in program.variables.items()
    }
    return xr.Dataset(variables, coordinates({**axes, **program.coordinates}))


def coordinates(axes: Mapping[str, Axis]) -> dict[str, xr.Variable]:
    """Axes as xarray takes them."""
    return {
        name: array((name,) if a.dims is None else a.dims, a.values, a.long_name, a.units)
        for name, a in axes.items()
    }


def array(dims: Any, values: Any, long_name: str, units: str = "1") -> xr.Variable:
    """An array with its dimensions, what it is, and its units ("1" for none)."""
    return xr.Variable(dims, np.asarray(values), {"long_name": long_name, "units": units})


def label(name: str, point: Any) -> str:
    """The name of a unit's files: readable, and different for every point whatever its values are."""
    exact = "-".join([name, *map(_word, point)])
    plain = re.sub(r"[^A-Za-z0-9_.=+-]+", "-", exact)
    if plain == exact and len(plain) < 100:
        return plain
    return f"{plain[:90]}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


def _word(value: Any) -> str:
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else str(value)


def _claim(session: loop.Session, name: str, labels: Sequence[str]) -> None:
    """Refuses a grid whose points would be read from, or written over, another grid's of the session."""
    if name in session.grids:
        raise ValueError(
            f"there are two grids of the name {name!r} in this study; give each Program a name of its own"
        )
    for other, taken in session.grids.items():
        if both := taken.intersection(labels):
            raise ValueError(
                f"the grids {other!r} and {name!r} both name a point {min(both)}; rename one of the Programs"
            )
    session.grids[name] = set(labels)


def unit(program, data, point, name, session, compiled) -> dict[str, np.ndarray]:
    """What one unit measured: from its files, or now. ``compiled`` keeps programs by their shape."""
    signals.check()
    which = f"unit {name!r} of the grid {program.name!r}"
    clock = session.clock or Clock(0)
    if program.trains:
        training = program.unit(data, **point)
        if not isinstance(training, Training):
            raise ValueError(
                f"{which} returned {contract.described(training)}; expected a grid.Training (trains=True)"
            )
        clock.begins(len(training.seeds) * training.steps)
        found = loop.load_runs(session, name, len(training.seeds))
        loaded = bool(found)
        records = _trained(training, name, session, compiled, found)
        kept = contract.arrays(f"keep of {which}", training.keep(records))
        clock.ends(loaded)
        return kept
    clock.begins(program.steps)
    found, shown = loop.load(session, name), float("nan")
    loaded = found is not None
    if found is None:
        found = contract.arrays(which, program.unit(data, **point))
        _check_shapes(program, name, found)
        loop.keep(session, name, found)
        shown = _shown(found)
    clock.ends(loaded)
    session.progress(program.steps, name, shown)
    return found


def _trained(training, name, session, compiled, found) -> dict[str, np.ndarray]:
    runs = training.learning_rates, training.seeds
    if found:
        session.progress(len(training.seeds) * training.steps, name, np.nan)
        return found
    if training.shape not in compiled:
        compiled[training.shape] = training.compile()
    options = {"chunks": training.chunks, "name": name, "session": session}
    return loop.train_runs(compiled[training.shape], training.data, *runs, **options)


def _check_shapes(program, label, unit, first=None) -> None:
    """Refuses a unit that lacks a variable, or measures it in other shapes than announced or than the first unit."""
    sizes = {name: len(axis.values) for name, axis in program.coordinates.items() if not axis.dims}
    for name, (_, _, dims) in program.variables.items():
        if name not in unit:
            raise ValueError(
                f"a unit of {program.name} does not measure {name!r}: {label} returned {', '.join(unit) or 'nothing'}"
            )
        shape = np.shape(unit[name])
        like = np.shape((first or unit)[name])
        if len(shape) != len(dims) or shape != like:
            raise ValueError(
                f"{name} of {program.name} must have one shape of dimensions {dims}; units have {shape} ({label}) "
                f"and {like}"
            )
        for dim, size in zip(dims, shape):
            if sizes.get(dim, size) != size:
                raise ValueError(
                    f"{name} of {program.name} has {size} values along {dim!r} ({label}); "
                    f"the coordinate has {sizes[dim]}"
                )


def _shown(found: Mapping[str, np.ndarray]) -> float:
    """A number for the progress bar: the mean of what was measured first."""
    first = next(iter(found.values()), np.array(np.nan))
    return float(np.mean(first)) if first.dtype.kind in "fiub" and first.size else float("nan")
