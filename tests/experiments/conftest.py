"""A study's command line, and one smoke run of each study, shared by all the tests that read its files."""

import fcntl
import os
import pathlib
import signal
import subprocess
import sys
from typing import NamedTuple

import pytest


class CommandLine(NamedTuple):
    """How the tests start a study."""

    root: pathlib.Path = pathlib.Path(__file__).parent.parent.parent

    @property
    def settings(self):
        """The tests' environment, with one device."""
        flags = os.environ["XLA_FLAGS"].split()
        return os.environ | {
            "XLA_FLAGS": " ".join(flag for flag in flags if "device_count" not in flag),
            "PYTHONWARNINGS": "ignore",
        }

    def study(self, config, workdir, *options):
        """Arguments of a study's run."""
        config = self.root / "experiments" / "configs" / config
        program = [sys.executable, "-m", "experiments.run"]
        return [*program, f"--config={config}", f"--workdir={workdir}", *options]

    def run(self, arguments, **settings):
        return subprocess.run(
            arguments, capture_output=True, text=True, cwd=self.root, env=self.settings | settings
        )


@pytest.fixture(scope="session")
def command_line():
    return CommandLine()


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory, command_line):
    """Study -> folder of its finished run, and what it printed; run once, for several test processes too."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def finished(study):
        path, printed = folder / f"smoke-{study}", folder / f"smoke-{study}.txt"
        with open(folder / f"smoke-{study}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not printed.exists():
                done = command_line.run(command_line.study(f"{study}.py:smoke", path))
                assert done.returncode == 0, done.stderr
                printed.write_text(done.stdout)
        return path, printed.read_text()

    return finished


@pytest.fixture(autouse=True)
def interruptible():
    """SIGINT as from a terminal: a process that was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
