"""What is left of a run, in seconds.

Studies are sequences of grids whose units cost nothing alike: a step of one is a matrix product, of another minutes.
What a grid costs is known where it was measured before: costs.json beside this file has the seconds of every grid of
presets, along its units, with those of compiling apart. The time left is what the rest took there, at the pace of what
is done here. Where nothing was measured, a study may say what its steps cost; where nobody does, all steps are alike.

costs.json is made from finished runs, by ``python -m experiments.report RUN_DIR ... --costs experiments/costs.json``.
"""

from __future__ import annotations

import functools
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments import programs

Work = Mapping[str, tuple[int, float]]
"""Beginning of the names of units -> (their steps, seconds that one of them takes on some machine)."""
TRUSTED = 3.0
"""Seconds of training after which the costs that a study states count as much as what was measured."""
SLACK = 0.5
"""Seconds after which the pace of this run counts as much as that of the run which was measured."""
POINTS = 8
"""Most shares of its units at which a grid's seconds are kept."""
FILE = pathlib.Path(__file__).with_name("costs.json")


class Curve(NamedTuple):
    """Seconds of a grid when 1/k, 2/k, ... of its units are done, those of compiling apart."""

    units: int
    training: list[float]
    compiling: list[float]

    def at(self, share: float) -> np.ndarray:
        """(training, compiling) when a share of the units is done."""
        shares = np.linspace(0, 1, len(self.training) + 1)
        both = ([0.0, *self.training], [0.0, *self.compiling])
        return np.array([np.interp(share, shares, seconds) for seconds in both])

    def each(self, units: int) -> list[float]:
        """Seconds of training of each of so many units, none of which is free."""
        seconds = np.diff([self.at(share)[0] for share in np.linspace(0, 1, units + 1)])
        return list(np.maximum(seconds, 1e-2 * seconds.mean()))


Profile = Mapping[str, Curve]
"""Name of a grid -> its seconds, in the order of a study."""


def measured(study: str, preset: str, total_steps: int) -> tuple[Profile, bool]:
    """What the grids of a study took in a preset, or in another one where it was not measured; empty for none.

    Args:
        study: its name.
        preset: from which the configuration began.
        total_steps: of the configuration.

    Returns:
        The seconds, and whether they are of this very preset with as many steps.
    """
    known = _table().get(study, {})
    found = known.get(preset, next(iter(known.values()), None))
    if found is None:
        return {}, False
    same = preset in known and found["steps"] == total_steps
    return {name: Curve(*curve) for name, curve in found["grids"].items()}, same


@functools.cache
def _table() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


def to_json(table: Mapping[str, Any]) -> str:
    """The text of costs.json: a line for each preset of a study."""
    presets = (
        f" {json.dumps(study)}: {{\n"
        + ",\n".join(f"  {json.dumps(name)}: {json.dumps(found)}" for name, found in known.items())
        + "\n }"
        for study, known in sorted(table.items())
    )
    return "{\n" + ",\n".join(presets) + "\n}\n"


def kind(work: Work, name: str) -> str | None:
    """The beginning of a unit's name under which its steps were announced; None where nobody did."""
    own = [key for key in work if name == key or name.startswith(f"{key}-")]
    return max(own, key=len) if own else None


def cost(work: Work, name: str) -> float | None:
    """Seconds of one step of the unit of a name; None where nobody announced them."""
    own = kind(work, name)
    return None if own is None else work[own][1]


class Clock:
    """Is told what begins and ends in a run, says what is left and, at its end, what it took.

    Args:
        total_steps: of the run.
        work: what its steps cost, by the names of the units; without it all cost alike.
        profile: what its grids took in another run; counts before ``work``.
    """

    def __init__(
        self, total_steps: int, work: Work | None = None, profile: Profile | None = None
    ) -> None:
        self.total_steps = total_steps
        self.stated, self.profile = _Stated(total_steps, work or {}), dict(profile or {})
        self.mark = _reading()
        self.name, self.units, self.ended = "", 0, 0
        self.steps, self.reported, self.inside = 0, 0, False  # of the unit that is at work
        self.here, self.there = np.zeros(2), np.zeros(2)  # (training, compiling) of what was done
        self.taken: dict[str, list[np.ndarray]] = {"": [np.zeros(2)]}
        self.whole, self.loaded = True, False

    def grid(self, name: str, units: int, alone: bool = True) -> None:
        """A grid begins; ``alone`` where its units are done one after another, in this process."""
        if self.ended < self.units or not alone:
            self.whole = False
        if not alone:
            self.profile = {}
        names = list(self.profile)
        if name in names:  # what stands before it was done, or is left out
            self.profile = {key: self.profile[key] for key in names[names.index(name) :]}
        self.name, self.units, self.ended, self.reported = name, units, 0, 0
        self.taken[name] = [np.zeros(2)]

    def begins(self, steps: int) -> None:
        """A unit begins, which will report so many steps; 0 where that is not known."""
        self.steps, self.reported, self.inside = steps, 0, True

    def ends(self, loaded: bool) -> None:
        """A unit has ended; where it was loaded from files, nothing was measured."""
        now, self.mark = self._since(), _reading()
        self.whole &= not loaded
        self.taken[self.name].append(self.taken[self.name][-1] + now)
        before = self._there(self.ended, self.ended)
        self.ended, self.reported, self.inside = self.ended + 1, 0, False
        self.loaded = loaded
        if not loaded:
            self.here = self.here + now
            self.there = self.there + self._there(self.ended, self.ended) - before

    def resumed(self) -> None:
        """The unit that is at work goes on from a checkpoint: what it took before is not known here."""
        self.whole = False

    def pace(self, steps: int, name: str, loss: float) -> str:
        """Steps a second and the time left, in words, after steps of the unit of a name."""
        self.reported += steps * self.inside
        rate, left = self.stated.pace(steps, name, loss)
        # Of what was loaded the loss is nan; of a unit that was computed here it may be.
        loaded = np.isnan(loss) and (self.inside or self.loaded)
        if self.name in self.profile and not loaded:
            left = self._left()
        words = [f"{rate:.0f}/s" if rate >= 10 else f"{rate:.2g}/s"] if rate else []
        words += [] if left is None else [f"{left:.0f} s left"]
        return "".join(f"{word}, " for word in words)

    def result(self) -> dict[str, Any] | None:
        """What costs.json holds of a preset, where all of it was measured here and in this process."""
        if not self.whole or self.ended < self.units:
            return None
        found: dict[str, Curve] = {}
        for name, seconds in self.taken.items():
            units = len(seconds) - 1
            if name and units:
                shares = np.linspace(0, units, min(units, POINTS) + 1)[1:]
                both = np.array(seconds).T
                kept = [np.interp(shares, np.arange(units + 1), part) for part in both]
                found[name] = Curve(units, *(_rounded(part) for part in kept))
        return {"steps": self.total_steps, "grids": found}

    def _since(self) -> np.ndarray:
        """(training, compiling) since the last unit ended."""
        seconds, compiled = _reading() - self.mark
        return np.array([max(seconds - compiled, 0.0), compiled])

    def _there(self, units: float, compiled: float) -> np.ndarray:
        """Seconds when so many units of the grid were done, and so many compiled, in the run that was measured."""
        curve = self.profile.get(self.name)
        if curve is None:
            return np.zeros(2)
        shares = (min(number / max(self.units, 1), 1.0) for number in (units, compiled))
        both = [curve.at(share)[part] for part, share in enumerate(shares)]
        return np.array(both) * self.units / curve.units

    def _left(self) -> float:
        # A unit compiles before it reports anything.
        share = min(self.reported / self.steps, 1.0) if self.steps else 0.0
        place = self._there(self.ended + share, self.ended + (self.reported > 0))
        rest = self._there(self.units, self.units) - place
        for name, curve in self.profile.items():
            rest = rest + (curve.at(1.0) if name != self.name else 0.0)
        done = self.there + place - self._there(self.ended, self.ended)
        return float((rest * (SLACK + self.here + self._since()) / (SLACK + done)).sum())


def _reading() -> np.ndarray:
    return np.array([time.monotonic(), programs.compile_seconds()])


def _rounded(seconds: np.ndarray) -> list[float]:
    return [float(f"{value:.3g}") for value in seconds]


class _Stated:
    """Steps a second since the first report: what came before it was compiled, and what was loaded was not trained.

    The time left is the work left, each step at its own cost, at the pace of the work done so far. Where the study
    states costs, they count as `TRUSTED` seconds of measurement, and what is compiled is told apart: as much again is
    expected for each kind of unit that has not been met.
    """

    def __init__(self, total_steps: int, work: Work) -> None:
        self.work = work
        planned = sum(steps for steps, _ in self.work.values())
        self.left = sum(steps * cost for steps, cost in self.work.values())
        self.mean = self.left / planned if planned else 1.0  # of a step that nobody announced
        self.left += (total_steps - planned) * self.mean
        self.start: float | None = None
        self.trained, self.done = 0, 0.0
        self.kinds, self.met = set(self.work), 0
        # compiled before the first unit, and before the first report
        self.before = self.first = programs.compile_seconds()

    def pace(self, steps: int, name: str, loss: float) -> tuple[float, float | None]:
        """Steps a second, 0 at a first report of training, and the seconds left, None where they are not known."""
        if not steps:  # of a unit that is not counted in steps
            return 0.0, None
        own = kind(self.work, name)
        spent = steps * (self.mean if own is None else self.work[own][1])
        self.left = max(self.left - spent, 0.0)
        new = own in self.kinds
        self.kinds.discard(own)
        if np.isnan(loss):
            return 0.0, None
        self.met += new
        now = time.monotonic()
        if self.start is None:
            self.start, self.first = now, programs.compile_seconds()
            return 0.0, self._left(0.0) if self.work else None
        self.trained, self.done = self.trained + steps, self.done + spent
        seconds = now - self.start
        if seconds <= 0:
            return 0.0, None
        return self.trained / seconds, self._left(seconds)

    def _left(self, seconds: float) -> float:
        if not self.work:
            return self.left * seconds / self.done
        compiled = programs.compile_seconds()
        training = max(seconds - (compiled - self.first), 0.0)
        pace = (TRUSTED + training) / (TRUSTED + self.done)
        return self.left * pace + len(self.kinds) * (compiled - self.before) / max(self.met, 1)
