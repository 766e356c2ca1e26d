"""Grids: labelled arrays of every unit, each computed once, whatever happens in between."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import grid, loop, rundir, train
from experiments.grid import Axis, Program, Training, Variable, train_grid

AXES = {
    "width": Axis([2, 4, 8], "width", "neurons"),
    "rule": Axis(["ntk", "mup, x²"], "parametrization"),
}
PROGRAM = Program(
    "trivial",
    lambda data, width, rule: {"sum": data + width + len(rule), "row": width * np.arange(5.0)},
    {"sum": Variable("sum of all"), "row": Variable("multiples", "steps", ("step",))},
    {"step": Axis(range(5), "step", "steps")},
)


def session(path, **options):
    (path / "points").mkdir(exist_ok=True)
    return loop.Session(path, configuration="made", **options)


def test_every_unit_lies_at_its_labels_with_names_and_units():
    data = train_grid(AXES, 0.5, PROGRAM)
    assert data["sum"].dims == ("width", "rule")
    assert data["row"].dims == ("width", "rule", "step")
    for width in (2, 4, 8):
        for rule in ("ntk", "mup, x²"):
            unit = data.sel(width=width, rule=rule)
            assert float(unit["sum"]) == 0.5 + width + len(rule)
            np.testing.assert_array_equal(unit["row"], width * np.arange(5.0))
    assert data["row"].attrs == {"long_name": "multiples", "units": "steps"}
    assert data["width"].attrs == {"long_name": "width", "units": "neurons"}
    assert all({"long_name", "units"} <= set(v.attrs) for v in data.variables.values())


def test_units_are_computed_once_and_an_interrupted_grid_goes_on(tmp_path):
    calls = []

    def unit(data, width, rule):
        if len(calls) == 4:
            calls.append(None)
            raise KeyboardInterrupt
        calls.append((width, rule))
        return PROGRAM.unit(data, width, rule)

    program = PROGRAM._replace(unit=unit)
    with pytest.raises(KeyboardInterrupt):
        train_grid(AXES, 0.5, program, session(tmp_path))
    assert len(list((tmp_path / "points").iterdir())) == 4
    for _ in range(2):
        data = train_grid(AXES, 0.5, program, session(tmp_path))
        assert data.identical(train_grid(AXES, 0.5, PROGRAM))
    calls.remove(None)
    assert len(calls) == len(set(calls)) == 6


def test_units_of_another_configuration_are_refused(tmp_path):
    train_grid(AXES, 0.5, PROGRAM, session(tmp_path))
    other = dataclasses.replace(session(tmp_path), configuration="other")
    with pytest.raises(ValueError, match="made by another configuration"):
        train_grid(AXES, 1.5, PROGRAM, other)


@pytest.mark.parametrize("path", [True, False])
def test_two_grids_of_one_session_share_no_points(tmp_path, path):
    def make(name, value, axis):
        program = Program(name, lambda data, x: {"y": value}, {"y": Variable("y")}, steps=0)
        return train_grid({"x": Axis(axis, "x")}, None, program, shared)

    shared = session(tmp_path) if path else loop.Session()
    assert list(make("fit", 1.0, [1, 2])["y"]) == [1.0, 1.0]
    for axis in ([1, 2], [3]):
        with pytest.raises(ValueError, match="two grids of the name 'fit'"):
            make("fit", 2.0, axis)
    assert list(make("other", 2.0, ["fit-1"])["y"]) == [2.0]
    with pytest.raises(ValueError, match="'other' and 'other-fit' both name a point other-fit-1"):
        make("other-fit", 3.0, [1])


def test_progress_counts_every_unit(tmp_path):
    for _ in range(2):
        steps = []
        watched = session(tmp_path, progress=lambda done, *_, steps=steps: steps.append(done))
        train_grid(AXES, 0.5, PROGRAM._replace(steps=3), watched)
        assert sum(steps) == 6 * 3


def test_what_was_loaded_and_computed_is_told_apart(tmp_path):
    axes = {"x": Axis([1, 2], "x")}
    program = Program("p", lambda data, x: {"y": float(x)}, {"y": Variable("y")})
    for expected in ([1.0, 2.0], [np.nan, np.nan]):
        shown = []
        watched = session(tmp_path, progress=lambda done, name, loss, kept=shown: kept.append(loss))
        train_grid(axes, None, program, watched)
        np.testing.assert_array_equal(shown, expected)


def test_types_of_what_is_measured_survive_the_files(tmp_path):
    def unit(data, width):
        return {"word": f"x² {width}", "single": np.float32(width), "count": width, "odd": True}

    program = Program("kinds", unit, {name: Variable(name) for name in unit(0, 1)})
    axes = {"width": AXES["width"]}
    first = train_grid(axes, None, program, session(tmp_path))
    assert first["single"].dtype == np.float32
    assert list(first["word"].values) == ["x² 2", "x² 4", "x² 8"]
    again = train_grid(axes, None, program, session(tmp_path))
    assert again.identical(first)
    assert all(again[name].dtype == first[name].dtype for name in first)


@pytest.mark.parametrize(
    ("axes", "unit", "words"),
    [
        ({"x": Axis([1, 1.0], "x")}, lambda data, x: {"y": x}, "has a value twice: g-1"),
        ({"x": Axis([1, 2], "x")}, lambda data, x: {"z": x}, "does not measure 'y'"),
        ({"x": Axis([1, 2], "x")}, lambda data, x: {"y": np.ones(x)}, r"one shape.*\(1,\)"),
        ({"x": Axis([2, 1], "x")}, lambda data, x: {"y": np.ones(x - 1)}, r"one shape.*\(1,\)"),
    ],
)
def test_errors(axes, unit, words):
    with pytest.raises(ValueError, match=words):
        train_grid(axes, None, Program("g", unit, {"y": Variable("y")}))


def returned(value):
    return lambda data, x: value


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        (returned(None), "unit 'g-1' of the grid 'g' returned None; expected a dict"),
        (returned(3.5), "unit 'g-1' .* returned a value of type float, 3.5; expected a dict"),
        (
            returned({"y": 1j}),
            "unit 'g-1' .*: y is of type complex128 .*; expected an array of real",
        ),
        (returned({"y": {1}}), "unit 'g-1' .*: y is of type object"),
        (returned({"y": None}), "unit 'g-1' .*: y is of type object"),
        (returned({"y": [[1], [1, 2]]}), "unit 'g-1' .*: y is no array"),
        (returned({1: 2}), "unit 'g-1' .* the name 1"),
        (returned({"y": [1, 2, 3], "z": 1}), r"units have \(3,\) \(g-1\)"),
    ],
)
def test_what_a_unit_may_not_return_is_refused_before_it_is_kept(tmp_path, unit, words):
    axes, kept = {"x": Axis([1, 2], "x")}, session(tmp_path)
    with pytest.raises(ValueError, match=words):
        train_grid(axes, None, Program("g", unit, {"y": Variable("y")}), kept)
    assert not list((tmp_path / "points").iterdir())


def test_a_unit_that_is_to_train_returns_a_training_and_keeps_arrays():
    axes = {"x": Axis([1], "x")}
    program = Program("g", lambda data, x: {"y": x}, {"y": Variable("y")}, trains=True)
    with pytest.raises(ValueError, match=r"unit 'g-1' .* expected a grid\.Training"):
        train_grid(axes, None, program)
    sizes = {"row": Axis([1, 2], "row")}
    rows = {"y": Variable("y", dims=("row",))}
    short = Program("g", lambda data, x: {"y": np.ones(3)}, rows, sizes)
    with pytest.raises(ValueError, match=r"3 values along 'row' .*; the coordinate has 2"):
        train_grid(axes, None, short)


def test_names_of_files_are_plain_and_differ():
    assert grid.label("sweep", ("sgd", 16, 0.1, 1.0)) == "sweep-sgd-16-0.1-1"
    points = [("a b",), ("a-b",), ("a/b",), ("../b",), ("x²",), (0.1,), (0.1 + 1e-9,), ("y" * 300,)]
    names = [grid.label("g", point) for point in points]
    assert len(set(names)) == len(names)
    assert all(len(name) < 110 and "/" not in name and name.isascii() for name in names)


# Units that are trained

N, D = 12, 3
DATA = (np.random.default_rng(0).normal(size=(N, D)).astype(np.float32), np.ones(N, np.float32))


def loss(params, batch):
    return jnp.mean((jnp.tanh(batch[0] @ params) @ jnp.ones(4) - batch[1]) ** 2)


@functools.cache
def compiled(runs):
    def measure(params, carry, rate, data):
        return carry, {"loss": data["scale"] * loss(params, data["train"])}

    return train.compile_program(
        lambda data: train.Setup(lambda key: jax.random.normal(key, (D, 4)), loss, optax.sgd),
        {"train": DATA, "scale": np.float32(1)},
        steps=2,
        batch_size=None,
        probe=train.Probe(lambda *_: (), measure),
        runs=runs,
    )


RATES, SEEDS, CHUNKS = (0.1, 0.2), (0, 1, 2), 3


def trained(runs, compile):
    """scale x rate x seed x chunk; all scales share one program."""
    rows = [(rate, seed) for rate in RATES for seed in SEEDS]

    def unit(data, scale):
        return Training(
            lambda: compile(runs),
            "one",
            {"train": data, "scale": np.float32(scale)},
            *zip(*rows),
            chunks=CHUNKS,
            steps=2 * CHUNKS,
            keep=lambda records: {"loss": records["loss"].reshape(2, 3, CHUNKS + 1)},
        )

    variables = {"loss": Variable("loss", dims=("rate", "seed", "chunk"))}
    own = {"rate": Axis(RATES, "learning rate"), "seed": Axis(SEEDS, "seed")}
    return Program("t", unit, variables, own, trains=True)


SCALES = {"scale": Axis([1.0, 2.0], "scale")}


@pytest.mark.parametrize("runs", [None, 6])
def test_trained_units_compile_once_resume_and_load(tmp_path, runs):
    made = []

    def compile(count):
        made.append(count)
        return compiled(count)

    def broken(row):
        if row["run"].startswith("t-2") and row["chunk"] == 2:
            raise OSError("gone")

    program = trained(runs, compile)
    options = {"checkpoint_seconds": 0.0}
    with pytest.raises(OSError, match="gone"):
        train_grid(SCALES, DATA, program, session(tmp_path, sinks=(broken,), **options))
    found = train_grid(SCALES, DATA, program, session(tmp_path, **options))
    assert len(made) == 2
    assert found.identical(train_grid(SCALES, DATA, program, session(tmp_path)))
    assert len(made) == 2, "a program was compiled although nothing was left to train"
    assert found.identical(train_grid(SCALES, DATA, program))
    np.testing.assert_array_equal(found["loss"].sel(scale=2.0), 2 * found["loss"].sel(scale=1.0))
    slope = jax.jit(jax.grad(loss))
    for r, rate in enumerate(RATES):
        params = jax.random.normal(train.stream(jnp.uint32(1), train.INIT), (D, 4))
        for _ in range(2 * CHUNKS):
            params -= rate * slope(params, DATA)
        np.testing.assert_allclose(found["loss"][0, r, 1, -1], loss(params, DATA), rtol=1e-5)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines)) == 2 * 6 * CHUNKS


def test_a_damaged_unit_is_named(tmp_path):
    train_grid(AXES, 0.5, PROGRAM, session(tmp_path))
    victim = tmp_path / "points" / "trivial-4-ntk.npz"
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"trivial-4-ntk\.npz.*delete it and run again"):
        train_grid(AXES, 0.5, PROGRAM, session(tmp_path))
    victim.unlink()
    assert train_grid(AXES, 0.5, PROGRAM, session(tmp_path)).identical(
        train_grid(AXES, 0.5, PROGRAM)
    )
    assert rundir.load_point(tmp_path, "trivial-4-ntk", "made") is not None
