"""Units of a grid on a Dask cluster: the same bytes as in one process, whoever dies on the way."""

import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments import cluster

SMALL = pathlib.Path(__file__).with_name("small_study.py")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("local", "must be local:N, slurm:cores=1"),
        ("cloud:3", "must be local:N"),
        ("local:0", "give the number of workers, such as local:4"),
        ("local:two", "give the number of workers"),
        ("slurm:jobs=2", "needs memory="),
        ("slurm:memory=1GB,jobs=0", "jobs=0; it must be a whole number from 1 on"),
        ("slurm:memory", "options of slurm are written KEY=VALUE"),
    ],
)
def test_an_address_that_means_nothing_is_refused(address, message):
    with pytest.raises(ValueError, match=message):
        cluster.parsed(address)


def test_addresses_are_read():
    assert cluster.parsed("local:4") == ("local", {"workers": 4})
    kind, options = cluster.parsed("slurm:memory=4GB,cores=2,jobs=8,queue=gpu,walltime=01:00:00")
    assert kind == "slurm"
    assert options == {
        "cores": 2,
        "processes": 1,
        "jobs": 8,
        "memory": "4GB",
        "queue": "gpu",
        "walltime": "01:00:00",
    }
    assert cluster.parsed("tcp://10.0.0.1:8786") == ("tcp", {})


@pytest.fixture
def small(command_line):
    """Starts the small study in a folder, with so many kills of its driver."""

    def start(folder, kills, *options):
        arguments = [sys.executable, str(SMALL), str(folder), str(int(signal.SIGKILL)), str(kills)]
        settings = command_line.settings | {"PYTHONPATH": str(command_line.root)}
        with (folder.parent / f"{folder.name}.txt").open("w") as printed:
            return subprocess.Popen(
                [*arguments, "0", *options], cwd=command_line.root, env=settings, stdout=printed
            )

    return start


@pytest.fixture
def whole(small, tmp_path):
    """data.nc of the study in one process."""
    assert small(tmp_path / "one", 0).wait() == 0
    return (tmp_path / "one" / "whole" / "data.nc").read_bytes()


def workers(of):
    """The processes that a process, or a child of it, has spawned to compute."""
    found, children = [], {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            children.setdefault(parent, []).append((int(entry.name), words))
    todo = [of]
    while todo:
        for process, words in children.get(todo.pop(), []):
            todo.append(process)
            if b"spawn_main" in words:
                found.append(process)
    return found


@pytest.mark.slow
def test_a_cluster_gives_the_bytes_of_one_process_though_its_driver_is_killed(
    small, whole, tmp_path
):
    assert small(tmp_path / "two", 2, "--cluster=local:2").wait() == 0
    printed = (tmp_path / "two.txt").read_text().splitlines()[-1]
    assert json.loads(printed)["same"] == [True, True]
    assert (tmp_path / "two" / "whole" / "data.nc").read_bytes() == whole


@pytest.mark.slow
def test_units_of_workers_that_are_killed_are_done_elsewhere(small, whole, tmp_path):
    process = small(tmp_path / "two", 0, "--cluster=local:2", "--checkpoint_seconds=0.05")
    log, killed = tmp_path / "two" / "log.txt", 0
    while process.poll() is None:
        time.sleep(0.5)
        started = log.exists() and "cluster: local:2" in log.read_text()
        if started and killed < 6 and (there := workers(process.pid)):
            os.kill(there[killed % len(there)], signal.SIGKILL)
            killed += 1
    assert process.returncode == 0, log.read_text()
    assert killed > 2
    assert (tmp_path / "two" / "whole" / "data.nc").read_bytes() == whole


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("dask_jobqueue") is None, reason="dask-jobqueue is not installed"
)
def test_a_job_of_slurm_asks_for_what_the_address_says(command_line):
    code = """
from dask_jobqueue import SLURMCluster
from experiments import cluster
_, options = cluster.parsed("slurm:memory=4GB,cores=2,jobs=8,queue=gpu,walltime=01:00:00")
options.pop("jobs")
with SLURMCluster(**options) as made:
    print(made.job_script())
"""
    done = command_line.run([sys.executable, "-W", "ignore", "-c", code])
    assert done.returncode == 0, done.stderr
    for line in ("-p gpu", "--cpus-per-task=2", "--mem=4G", "-t 01:00:00"):
        assert f"#SBATCH {line}" in done.stdout
