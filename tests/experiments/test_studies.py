"""Every study end to end: its smoke preset through the command line, the report, and kill -9 in the middle."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import xarray as xr

import experiments.run

ROOT = pathlib.Path(__file__).parent.parent.parent
STUDIES = sorted(
    p.stem for p in (ROOT / "experiments" / "configs").glob("*.py") if p.stem != "__init__"
)
SWEEP = "learning_rate_transfer.py:smoke"
# Less than smoke: what is tested here is files, not claims.
SMALL = (
    "--config.sweep.widths=(16, 32)",
    "--config.trajectory.widths=(16, 32)",
    "--config.coordinates.widths=()",
    "--config.parametrizations=('ntk', 'mup')",
    "--config.sweep.optimizers=('sgd',)",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, command_line):
    folder = tmp_path_factory.mktemp("finished")
    done = command_line.run(command_line.study(SWEEP, folder / "run", *SMALL))
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stdout


# The lightest; `make test-studies` runs the others.
QUICK = {"attention_svm"}
NAMES = {"long_name", "units"}


@pytest.mark.parametrize(
    "study",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in STUDIES],
)
def test_smoke_runs_and_reports(study, smoke_run):
    path, printed = smoke_run(study)
    claims = json.loads((path / "claims.json").read_text())
    assert any(claim["control"] for claim in claims), "a study has a control that must fail"
    assert any(not claim["control"] for claim in claims)
    assert all(claim["criterion"] and claim["source"] for claim in claims)
    assert (path / "data.nc").exists()
    assert (path / "report.html").stat().st_size > 10_000
    pictures = list((path / "figures").glob("*.png"))
    assert pictures
    assert {p.with_suffix(".pdf").name for p in pictures} == {
        p.name for p in (path / "figures").glob("*.pdf")
    }
    assert "claims hold" in printed
    with xr.open_dataset(path / "data.nc", engine="scipy") as data:
        unnamed = [name for name, v in data.variables.items() if NAMES - set(v.attrs)]
    assert not unnamed, "arrays without a long name and units"


@pytest.mark.parametrize(
    "study",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in STUDIES],
)
def test_a_finished_study_is_recognised(study, smoke_run, command_line):
    path, _ = smoke_run(study)
    kept = [path / "data.nc", *(path / "points").iterdir()]
    before = {file: file.stat().st_mtime_ns for file in kept}
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["points"] == sorted(file.stem for file in kept[1:])
    done = command_line.run(command_line.study(f"{study}.py:smoke", path))
    assert done.returncode == 0, done.stderr
    assert "is finished: nothing is left to train" in done.stderr
    assert {file: file.stat().st_mtime_ns for file in kept} == before
    assert json.loads((path / "manifest.json").read_text())["seconds"] == manifest["seconds"]


def test_killed_and_run_again_equals_uninterrupted(finished, command_line, tmp_path):
    """kill -9 while a point trains, with a checkpoint on disk: the same command ends in the same bytes."""
    command = command_line.study(SWEEP, tmp_path / "run", *SMALL, "--checkpoint_seconds=0")
    process = subprocess.Popen(
        command, cwd=ROOT, env=command_line.settings, stderr=subprocess.DEVNULL
    )
    checkpoints = tmp_path / "run" / "checkpoints"
    points = tmp_path / "run" / "points"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        # The first trajectory is under way: every sweep point is finished, and a state is on disk.
        if list(checkpoints.glob("trajectory*/1")) or list(points.glob("trajectory*")):
            break
        time.sleep(0.005)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run" / "data.nc").exists()
    before = {p.name: p.stat().st_mtime_ns for p in points.iterdir()}
    done = command_line.run(command)
    assert done.returncode == 0, done.stderr
    after = {p.name: p.stat().st_mtime_ns for p in points.iterdir()}
    assert all(after[name] == stamp for name, stamp in before.items()), "a finished point ran again"
    expected, _ = finished
    assert (tmp_path / "run" / "data.nc").read_bytes() == (expected / "data.nc").read_bytes()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [
        (row["run"], row["seed"], row["learning_rate"], row["chunk"])
        for row in map(json.loads, lines)
    ]
    assert len(rows) == len(set(rows)), "a row of metrics is there twice"


def test_the_same_command_again_trains_nothing(finished, command_line):
    path, _ = finished
    before = {p: p.stat().st_mtime_ns for p in (path / "points").iterdir()}
    done = command_line.run(command_line.study(SWEEP, path, *SMALL))
    assert done.returncode == 0, done.stderr
    assert {p: p.stat().st_mtime_ns for p in (path / "points").iterdir()} == before


def test_runs_spread_over_devices_give_the_same_numbers(finished, command_line, tmp_path):
    import numpy as np

    from experiments import rundir

    flags = f"{command_line.settings['XLA_FLAGS']} --xla_force_host_platform_device_count=5"
    command = command_line.study(SWEEP, tmp_path / "run", *SMALL, "--devices=5")
    done = command_line.run(command, XLA_FLAGS=flags)
    assert done.returncode == 0, done.stderr
    one, five = (rundir.read_dataset(p / "data.nc") for p in (finished[0], tmp_path / "run"))
    np.testing.assert_allclose(five.sweep_loss, one.sweep_loss, rtol=1e-3, equal_nan=True)


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        (
            "learning_rate_transfr.py:smoke",
            (),
            ("there is no configuration", "learning_rate_transfer"),
        ),
        ("learning_rate_transfer.py:smok", (), ("unknown preset 'smok'", "smoke")),
        (SWEEP, ("--config.tsak.name=x",), ("tsak", "task")),
        (SWEEP, ("--config.study=x",), ("unknown study 'x'",)),
        (
            SWEEP,
            ("--config.task.name=digit",),
            ("unknown task", "digits"),
        ),
        (
            SWEEP,
            ("--config.model.name=MLPP",),
            ("unknown model 'MLPP'", "MLP"),
        ),
        (
            SWEEP,
            ("--config.parametrizations=('mupp',)",),
            ("'mupp'", "mup"),
        ),
        (
            SWEEP,
            ("--config.sweep.optimizers=('adm',)",),
            ("'adm'", "adam"),
        ),
        (SWEEP, ("--devices=99",), ("devices is 99",)),
        (SWEEP, ("--confg=1",), ("confg",)),
        (
            "learning_rate_transfer.py:paper",
            ("--config.task.data_dir=nowhere",),
            ("cifar", "nowhere"),
        ),
    ],
)
def test_a_mistake_is_one_message(
    config, options, words, command_line, tmp_path, capsys, monkeypatch
):
    """In this process: each start of Python with its imports takes longer than all of these."""
    monkeypatch.setattr(sys, "argv", command_line.study(config, tmp_path / "run", *options)[2:])
    assert experiments.run.main(sys.argv) == 2
    message = capsys.readouterr().err.splitlines()
    assert [line for line in message if line.startswith("error:")] == message[:1]
    for word in words:
        assert word in "\n".join(message)


def test_a_mistake_ends_the_process_with_status_2(command_line, tmp_path):
    done = command_line.run(command_line.study(SWEEP, tmp_path / "run", "--config.study=x"))
    assert done.returncode == 2, done.stderr
    messages = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(messages) == 1
    assert "Traceback" not in done.stderr


def test_a_damaged_point_is_named_and_the_rest_stays_readable(finished, command_line, tmp_path):
    import shutil

    path = tmp_path / "run"
    shutil.copytree(finished[0], path)
    victim = sorted((path / "points").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:100])
    done = command_line.run(command_line.study(SWEEP, path, *SMALL))
    assert done.returncode == 2
    assert victim.name in done.stderr
    assert "delete it and run again" in done.stderr
    report = command_line.run([sys.executable, "-m", "experiments.report", str(path)])
    assert report.returncode == 0, report.stderr
