"""A study that is ended at random moments goes on to the same bytes; signals and faults are one line each."""

import json
import os
import pathlib
import signal
import sys
import threading

import pytest

from experiments import grid, loop, run, signals

SMALL = pathlib.Path(__file__).with_name("small_study.py")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGHUP", "SIGINT"])
def test_a_study_ended_at_random_moments_goes_on_to_the_same_bytes(name, command_line, tmp_path):
    number = signal.Signals[name]
    command = [sys.executable, str(SMALL), str(tmp_path / "runs"), str(int(number)), "3", "0"]
    done = command_line.run(command, PYTHONPATH=str(command_line.root))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(found["same"])
    expected = -number if name == "SIGKILL" else 128 + number
    assert set(found["ends"]) <= {expected, 0}


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["FULL", "TWO"])
def test_a_full_disk_and_a_second_process_are_told_and_cost_nothing(fault, command_line, tmp_path):
    command = [sys.executable, str(SMALL), str(tmp_path / "runs"), fault, "4", "0"]
    done = command_line.run(command, PYTHONPATH=str(command_line.root))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(found["same"])
    assert set(found["ends"]) <= {0, 2}
    assert 2 in found["ends"]
    told = "".join(log.read_text() for log in (tmp_path / "runs").glob("log*.txt"))
    assert "Traceback" not in told
    words = {"FULL": "could not be written", "TWO": "in use by process"}[fault]
    assert told.count("error: ") == told.count(words) == found["ends"].count(2)


@pytest.fixture
def of_a_terminal():
    """Hangups end the process, though the tests were started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("of_a_terminal")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_end_a_command_with_one_line_and_their_number(
    number, command_line, tmp_path, monkeypatch, capsys
):
    def interrupted(*_arguments, **_options):
        os.kill(os.getpid(), number)
        threading.Event().wait(10)

    monkeypatch.setattr(run, "run", interrupted)
    monkeypatch.setattr(sys, "argv", command_line.study("ntk_convergence.py:smoke", tmp_path)[2:])
    before = signal.getsignal(number)
    assert run.main(sys.argv) == 128 + number
    assert capsys.readouterr().err == "interrupted; the same command goes on from here\n"
    assert signal.getsignal(number) == before


def test_a_hangup_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.interrupting():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


class Collected:
    """An object whose destruction is where a signal lands: Python drops what is raised there."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        signal.raise_signal(self.number)


@pytest.mark.usefixtures("of_a_terminal")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_python_drops_still_ends_the_command(
    number, command_line, tmp_path, monkeypatch, capsys
):
    made = []

    def unit(data, x):
        made.append(x)
        if x == 1:
            Collected(number)
        return {"y": x}

    def dropped_between_units(*_arguments, **_options):
        program = grid.Program("g", unit, {"y": grid.Variable("y")})
        grid.train_grid({"x": grid.Axis([0, 1, 2], "x")}, None, program, loop.Session())

    def dropped_at_the_end(*_arguments, **_options):
        Collected(number)
        return 0

    monkeypatch.setattr(sys, "argv", command_line.study("ntk_convergence.py:smoke", tmp_path)[2:])
    for name, stands in (("run", dropped_between_units), ("_start", dropped_at_the_end)):
        monkeypatch.setattr(run, name, stands)
        assert run.main(sys.argv) == 128 + number
        told = capsys.readouterr().err
        assert "interrupted; the same command goes on from here\n" in told
        assert "Exception ignored" not in told
    assert made == [0, 1]
