"""The time left: what was measured before at the pace of this run; what a study states; or steps that are alike."""

import json
import types

import numpy as np
import pytest

from experiments import clock as clocks
from experiments import loop
from experiments.clock import Clock, Curve
from experiments.grid import Axis, Program, Variable, train_grid

NAN = float("nan")


@pytest.fixture
def now(monkeypatch):
    """The time, and the seconds that were compiled, as the test says."""
    found = types.SimpleNamespace(seconds=0.0, compiled=0.0)
    monkeypatch.setattr(clocks.time, "monotonic", lambda: found.seconds)
    monkeypatch.setattr(clocks.programs, "compile_seconds", lambda: found.compiled)
    return found


def left(words):
    return float(words.removesuffix(" s left, ").rpartition(", ")[2])


def test_what_was_loaded_gives_no_estimate(now, capsys):
    """A rate is that of the units computed in this session, once the first has been compiled."""
    report = loop._plain_progress(10**6, "t", Clock(10**6))
    for seconds, steps, name, loss in (
        (20, 2, "loaded", NAN),
        (30, 20, "compiled", 0.5),
        (50, 10, "trained", 0.5),
    ):
        now.seconds = seconds
        report(steps, name, loss)
    assert capsys.readouterr().err.splitlines() == [
        "t: 2/1000000 steps, loaded",
        "t: 22/1000000 steps, compiled, loss 0.5",
        "t: 32/1000000 steps, 0.5/s, 1999936 s left, trained, loss 0.5",
    ]


def test_the_time_left_weighs_steps_by_their_cost(now):
    """Ten cheap steps took ten seconds; the dear ones that are left take a hundred times as long, each."""
    clock, told = Clock(30, {"cheap": (20, 1.0), "cheap-not": (5, 100.0)}), []
    for steps, name in ((10, "cheap-1"), (10, "cheap-2"), (1, "cheap-not-1")):
        now.seconds += 10
        told.append(clock.pace(steps, name, 0.5))
    # 500 of the announced, and five steps that nobody announced at the mean of 520 / 25.
    assert told[1] == "1/s, 604 s left, "
    pace = (clocks.TRUSTED + 20) / (clocks.TRUSTED + 110)
    assert told[2] == f"0.55/s, {504 * pace:.0f} s left, "


def test_what_is_compiled_is_no_pace_and_comes_once_a_kind(now):
    """Each kind of unit compiles for thirty seconds and then takes as long as was stated."""
    clock, told = Clock(30, {f"size-{n}": (10, float(n)) for n in (1, 2, 3)}), []
    for n in (1, 2):
        now.seconds, now.compiled = now.seconds + 30, now.compiled + 30
        for _ in range(2):
            now.seconds += 5 * n
            told.append(left(clock.pace(5, f"size-{n}-0", 0.5)))
    assert told == [115, 110, 70, 60]


GRIDS = {"small": 4, "large": 2}
COSTS = {"small": 1.0, "large": 40.0}  # of a step; a unit has five


def follow(now, profile=None, *, machine=1.0, cold=True, loaded=0):
    """A run of both grids; every unit of the large one compiles for 20 s. The clock, and (told, true) seconds left."""
    clock, told = Clock(30, None, profile), []
    for name, units in GRIDS.items():
        clock.grid(name, units)
        for unit in range(units):
            clock.begins(5)
            if name == "small" and unit < loaded:
                clock.pace(5, name, NAN)
                clock.ends(True)
                continue
            if name == "large":
                now.seconds, now.compiled = now.seconds + 20 * cold, now.compiled + 20 * cold
            for _ in range(5):
                now.seconds += COSTS[name] * machine
                words = clock.pace(1, f"{name}-{unit}", 0.5)
                told.append((now.seconds, left(words) if "left" in words else NAN))
            clock.ends(False)
    return clock, np.array([(t, now.seconds - seconds) for seconds, t in told])


@pytest.mark.parametrize(
    ("machine", "cold", "loaded"), [(1.0, True, 0), (5.0, True, 0), (0.2, False, 0), (3.0, True, 3)]
)
def test_the_time_left_is_what_it_took_before_at_the_pace_of_now(now, machine, cold, loaded):
    before, _ = follow(now)
    kept = json.loads(clocks.to_json({"s": {"p": before.result()}}))["s"]["p"]
    assert kept["steps"] == 30
    profile = {name: Curve(*curve) for name, curve in kept["grids"].items()}
    start = now.seconds
    _, found = follow(now, profile, machine=machine, cold=cold, loaded=loaded)
    told, true = found[now.seconds - found[:, 1] > start + 5].T
    assert np.all(told[:-1] < 2 * true[:-1])
    assert np.all(told[:-1] > 0.5 * true[:-1])


def test_a_unit_that_measured_nan_was_not_loaded(now):
    clock = Clock(2, None, {"g": Curve(2, [10.0, 20.0], [0.0, 0.0])})
    clock.grid("g", 2)
    for loaded, words in ((False, "10 s left, "), (True, "")):
        clock.begins(1)
        now.seconds += 0 if loaded else 10
        clock.ends(loaded)
        assert clock.pace(1, "g-1", NAN) == words


def test_without_measurements_the_same_run_is_far_off(now):
    """The control: steps that are alike."""
    _, found = follow(now)
    assert found[9, 0] < 0.05 * found[9, 1]


def test_only_what_was_measured_whole_is_kept(now):
    assert follow(now, loaded=1)[0].result() is None
    clock = Clock(3)
    clock.grid("g", 2)
    clock.begins(1)
    clock.ends(False)
    assert clock.result() is None
    clock.grid("h", 1, alone=False)
    assert clock.result() is None
    clock, _ = follow(now)
    clock.resumed()
    assert clock.result() is None


def test_costs_are_those_of_the_preset_or_of_another(monkeypatch):
    table = {"s": {"smoke": {"steps": 3, "grids": {"g": [2, [1.0, 2.0], [0.5, 0.5]]}}}}
    monkeypatch.setattr(clocks, "_table", lambda: table)
    curve = Curve(2, [1.0, 2.0], [0.5, 0.5])
    assert clocks.measured("s", "smoke", 3) == ({"g": curve}, True)
    assert clocks.measured("s", "smoke", 4) == ({"g": curve}, False)
    assert clocks.measured("s", "cpu", 3) == ({"g": curve}, False)
    assert clocks.measured("t", "cpu", 3) == ({}, False)
    np.testing.assert_allclose(curve.at(0.25), [0.5, 0.25])


def test_a_grid_tells_the_clock_what_begins_and_ends(tmp_path):
    clock, axes = Clock(6), {"x": Axis([1, 2, 3], "x")}
    program = Program("p", lambda data, x: {"y": float(x)}, {"y": Variable("y")}, steps=2)
    session = loop.Session(path=tmp_path, clock=clock)
    (tmp_path / "points").mkdir()
    train_grid(axes, None, program, session)
    found = clock.result()
    assert found["steps"] == 6
    assert found["grids"]["p"].units == 3
    again = Clock(6)
    train_grid(axes, None, program, loop.Session(path=tmp_path, clock=again))
    assert again.result() is None


def test_the_costs_that_come_along_are_of_studies_and_grow():
    table = json.loads(clocks.FILE.read_text())
    assert table
    for study, presets in table.items():
        assert (clocks.FILE.parent / "configs" / f"{study}.py").exists()
        for found in presets.values():
            assert found["steps"] > 0
            for units, training, compiling in found["grids"].values():
                assert len(training) == len(compiling) == min(units, clocks.POINTS)
                assert (np.diff([0.0, *training]) >= 0).all()
                assert (np.diff([0.0, *compiling]) >= 0).all()
