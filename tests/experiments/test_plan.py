"""``--plan`` says what a study would take from one measured unit a grid, and keeps nothing."""

import pathlib
import re
import time
import types

import numpy as np
import pytest
import xarray as xr

from experiments import checks, clock, grid, loop, plan, run, settings
from experiments.grid import Axis, Variable, train_grid

small_study = settings.load_file(pathlib.Path(__file__).with_name("small_study.py"))


@pytest.fixture
def planned(tmp_path, monkeypatch, capsys):
    """(status, output, errors) of the command with --plan, of a study's module, in an empty folder."""

    def command(module, *options):
        file = tmp_path / "small.py"
        file.write_text(small_study.CONFIG)
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        monkeypatch.setattr(run, "find_study", lambda name: module)
        status = run.main(["experiments", f"--config={file}:smoke", "--plan", *options])
        assert not [*(tmp_path / "here").iterdir()]
        return status, *capsys.readouterr()

    return command


def study(*units, between=lambda data: None, **parts):
    """A module whose grids have the sizes 4, 1, 2, one for each of the functions of a size."""
    module = types.ModuleType("experiments.studies.small")
    sizes = {"size": Axis((4, 1, 2), "size")}

    def everything(config, session):
        found = []
        for k, unit in enumerate(units):
            program = grid.Program(f"part{k}", unit, {f"y{k}": Variable("y")})
            found.append(train_grid(sizes, None, program, session))
            between(found[-1])
        return xr.merge(found)

    module.check = lambda config, task: checks.memory(
        "config.units: a matrix", config.units * 2**20, 8
    )
    module.total_steps = lambda config: 3 * len(units)
    module.run = everything
    for name, value in parts.items():
        setattr(module, name, value)
    return module


def quick(data, size):
    return {"y0": float(size), "y1": float(size)}


def slow(data, size):
    time.sleep(5)
    return quick(data, size)


def test_units_steps_and_hours_of_a_small_study(planned):
    status, out, err = planned(small_study.make_module(), "--devices=1")
    assert (status, err) == (0, "")
    assert "units     10 (units 6, runs 2, together 2)" in out
    assert "steps     806\n" in out
    assert "of its 160 steps" in out
    assert re.search(r"flops +\(a\) some .*: the seconds above, on one device", out)
    assert "at least" not in out
    assert re.search(r"hours .*\(a\).* on 1: .* on 8: .* on 64: ", out)
    assert "every unit of units, runs, together is taken to cost what" in out
    assert "not met" not in out
    assert "units that were met" not in out  # all steps were


def test_the_cheapest_unit_is_measured_and_the_others_weighted_by_their_costs():
    points = [{"size": size} for size in (4, 1, 2)]
    labels = [f"part-{size}" for size in (4, 1, 2)]

    def unit(data, size):
        time.sleep(0.05 * size)
        return {"y": size}

    program = grid.Program("part", unit, {"y": Variable("y")})
    for work, total, longest in (
        ({}, 3, 1),
        ({f"part-{s}": (1, 0.1 * s) for s in (1, 2, 4)}, 7, 4),
    ):
        made = plan.Plan(work)
        found = made.units(program, None, points, labels)
        (part,) = made.parts
        assert [int(unit["y"]) for unit in found] == [1, 1, 1]
        assert (part.label, part.units, part.steps) == ("part-1", 3, 1)
        assert 0.05 <= part.seconds < 0.2
        np.testing.assert_allclose(
            (part.total, part.longest), part.seconds * np.array([total, longest])
        )
    made = plan.Plan({}, {"part": clock.Curve(3, [4.0, 5.0, 7.0], [0.0, 0.0, 0.0])})
    made.units(program, None, points, labels)
    (part,) = made.parts
    assert part.label == "part-1"
    np.testing.assert_allclose(
        (part.total, part.longest), part.seconds * np.array([7, 4]), rtol=1e-6
    )
    dear = plan.Plan(
        {"part-1": (1, 3.0), "part": (2, 1.0)}
    )  # the study knows better than the numbers
    dear.units(program, None, points, labels)
    assert dear.parts[0].label != "part-1"


def test_a_trained_unit_is_measured_by_chunks_and_its_records_are_filled_up(monkeypatch):
    asked = []

    def train_runs(program, data, rates, seeds, *, chunks, name):
        asked.append((len(seeds), chunks))
        time.sleep(0.02 * chunks * len(seeds))
        return {"loss": np.tile(np.arange(chunks + 1.0), (len(seeds), 1))}

    monkeypatch.setattr(loop, "train_runs", train_runs)
    monkeypatch.setattr(loop, "side_by_side", lambda program: 2)
    monkeypatch.setattr(plan, "ENOUGH", 0.1)
    compiled = types.SimpleNamespace(runs=None, steps=10, compile_seconds=0.0)

    def unit(data, scale):
        runs = {"learning_rates": (0.1,) * 5, "seeds": range(5), "chunks": 30, "steps": 300}
        return grid.Training(lambda: compiled, "one", None, **runs)

    made = plan.Plan({})
    program = grid.Program("runs", unit, {"loss": Variable("loss")}, trains=True)
    (found,) = made.units(program, None, [{"scale": 1}], ["runs-1"])
    (part,) = made.parts
    assert asked[0] == (2, 1)
    assert 1 < asked[-1][1] < 30
    assert part.steps == 5 * 300
    assert part.seconds == pytest.approx(0.02 * 30 * 5, rel=0.3)
    assert found["loss"].shape == (5, 31)
    np.testing.assert_array_equal(found["loss"][:, asked[-1][1] :], asked[-1][1])


@pytest.mark.parametrize("every", [True, False])
def test_compiling_is_counted_for_one_unit_or_for_all(every, monkeypatch):
    """For all where the second one that is measured compiles as well."""
    spent, seen = [0.0], []
    monkeypatch.setattr(plan.programs, "compile_seconds", lambda: spent[0])

    def unit(data, size):
        if size not in seen and (every or not seen):
            spent[0] += 2.0
        seen.append(size)
        return {"y": size}

    made = plan.Plan({})
    program = grid.Program("part", unit, {"y": Variable("y")})
    made.units(program, None, [{"size": s} for s in (4, 1, 2)], ["part-4", "part-1", "part-2"])
    (part,) = made.parts
    assert seen == [1, 2]
    assert (part.shapes, part.compiled) == ((3, 6.0) if every else (1, 2.0))
    assert part.seconds < 0.1


def test_compiling_of_trained_units_is_counted_once_a_shape(monkeypatch):
    spent = [0.0]
    monkeypatch.setattr(plan.programs, "compile_seconds", lambda: spent[0])
    monkeypatch.setattr(loop, "side_by_side", lambda program: 1)
    monkeypatch.setattr(
        loop, "train_runs", lambda *_, chunks, **__: {"loss": np.zeros((1, chunks + 1))}
    )

    def compile():
        spent[0] += 3.0
        return types.SimpleNamespace(runs=None, steps=10, compile_seconds=3.0)

    def unit(data, width, rate):
        runs = {"learning_rates": (rate,), "seeds": (0,), "chunks": 1, "steps": 10}
        return grid.Training(compile, width, None, **runs)

    made = plan.Plan({})
    points = [{"width": w, "rate": r} for w in (8, 16) for r in (0.1, 0.2, 0.3)]
    program = grid.Program("runs", unit, {"loss": Variable("loss")}, trains=True)
    made.units(program, None, points, [f"runs-{i}" for i in range(6)])
    assert (made.parts[0].shapes, made.parts[0].compiled) == (2, 6.0)


def test_memory_that_was_checked_and_flops_of_stated_costs_are_said(planned):
    work = {"part0": (3, 2.0)}
    status, out, _ = planned(study(quick, work=lambda config: work))
    assert status == 0
    assert "largest allocation checked (a) 48 MiB, config.units: a matrix" in out
    assert "flops     (a) at most 2.4e+11" in out
    assert "units of part0 are weighted by the costs" in out
    assert "taken to cost what" not in out


def test_what_does_not_end_is_said_or_refused(planned, monkeypatch):
    monkeypatch.setattr(plan, "PATIENCE", 0.3)
    start = time.monotonic()
    status, out, err = planned(study(quick, slow))
    assert status == 0, err
    assert "not met   a unit of part1 does not end within 0.3 s" in out
    assert "hours     (a) at least, on devices" in out
    assert "of 6 steps the units that were met are 3, which alone are counted" in out
    assert "and those that were not met" in out
    assert time.monotonic() - start < 4


def test_nothing_measured_is_a_refusal(planned, monkeypatch):
    monkeypatch.setattr(plan, "PATIENCE", 0.3)
    status, out, err = planned(study(slow))
    assert (status, out) == (2, "")
    assert "cannot be planned: a unit of part0 does not end within 0.3 s" in err


def test_a_study_without_grids_is_refused(planned):
    status, out, err = planned(study())
    assert (status, out) == (2, "")
    assert "no grid of units" in err


def test_results_that_only_a_run_has_end_the_plan_in_words(planned):
    def between(data):
        if "y0" in data and float(data.y0.std()) == 0:
            raise FloatingPointError("no spread")

    status, out, _ = planned(study(quick, quick, between=between))
    assert status == 0
    assert (
        "not met   what comes after part0 needs real results (FloatingPointError: no spread)" in out
    )


@pytest.mark.parametrize("option", ["--cluster=local:2", "--tensorboard=x", "--wandb=x"])
def test_options_that_a_plan_would_not_read_are_refused(planned, option):
    status, out, err = planned(study(quick), option)
    assert (status, out) == (2, "")
    assert f"leave {option.partition('=')[0]} out" in err


def test_a_configuration_that_the_study_refuses_is_refused(planned):
    status, _, err = planned(study(quick), "--config.units=100000000")
    assert status == 2
    assert "make it smaller" in err
