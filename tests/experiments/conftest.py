"""One smoke run of each study through the command line, shared by all the tests that read its files."""

import fcntl
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory):
    """Study -> folder of its finished run, and what it printed; run once, for several test processes too."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def finished(study):
        path, printed = folder / f"smoke-{study}", folder / f"smoke-{study}.txt"
        with open(folder / f"smoke-{study}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not printed.exists():
                config = ROOT / "experiments" / "configs" / f"{study}.py:smoke"
                done = subprocess.run(
                    [
                        sys.executable,
                        "-m",
                        "experiments.run",
                        f"--config={config}",
                        f"--workdir={path}",
                    ],
                    capture_output=True,
                    text=True,
                    cwd=ROOT,
                    env=os.environ
                    | {
                        "XLA_FLAGS": "--xla_backend_optimization_level=0",
                        "PYTHONWARNINGS": "ignore",
                    },
                )
                assert done.returncode == 0, done.stderr
                printed.write_text(done.stdout)
        return path, printed.read_text()

    return finished
