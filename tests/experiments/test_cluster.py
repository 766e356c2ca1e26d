"""Units of a grid on a Dask cluster: the same bytes as in one process, whoever dies on the way."""

import importlib.util
import json
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
import types

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
    address = "slurm:memory=4GB,cores=2,jobs=8,queue=gpu,gpus=1,walltime=01:00:00"
    kind, options = cluster.parsed(address)
    assert kind == "slurm"
    assert options == {
        "cores": 1,  # threads: one unit at a time
        "job_cpu": 2,
        "job_extra_directives": ["--gpus=1"],
        "processes": 1,
        "jobs": 8,
        "memory": "4GB",
        "queue": "gpu",
        "walltime": "01:00:00",
    }
    assert cluster.parsed("tcp://10.0.0.1:8786") == ("tcp", {})


@pytest.mark.parametrize("deaths", [0, 2, 3])
def test_workers_that_die_while_they_start_are_started_again(deaths):
    """Dask gives up a cluster for one of them, as in nanny.py's start_unsafe: 'Nanny failed to start.'"""
    started = []

    def start(**workers_and_scheduler):
        started.append(workers_and_scheduler)
        if len(started) <= deaths:
            raise RuntimeError("Nanny failed to start.")
        return "a cluster"

    dask = types.SimpleNamespace(SpecCluster=start, Nanny=None, Scheduler=None)
    if deaths == cluster.STARTS:
        with pytest.raises(OSError, match=r"local:4 one died while it started, 3 times"):
            cluster._local_cluster(dask, 4)
    else:
        assert cluster._local_cluster(dask, 4) == "a cluster"
        assert len(started) == deaths + 1
        assert len(started[-1]["workers"]) == 4


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


# One node, this machine; a few more of its cores and no authentication, as it has no other.
SLURM = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=8000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Slurm's own daemons with one node, and what a process needs in its environment to find them."""
    if not (shutil.which("slurmd") and shutil.which("slurmctld")) or os.getuid() != 0:
        pytest.skip("slurmd and slurmctld are not installed, or this is not root")
    folder, host = tmp_path_factory.mktemp("slurm"), socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    user = pwd.getpwuid(os.getuid()).pw_name
    text = SLURM.format(host=host, ports=free_ports(2), user=user, folder=folder)
    (folder / "slurm.conf").write_text(text)
    settings = {"SLURM_CONF": str(folder / "slurm.conf")}
    environment, daemons = os.environ | settings, []

    def ask(*words):
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        return done.stdout.strip()

    try:
        for name in ("slurmctld", "slurmd"):
            with (folder / f"{name}.txt").open("w") as printed:
                command = [name, "-D"]
                daemons.append(
                    subprocess.Popen(command, env=environment, stdout=printed, stderr=printed)
                )
        until = time.monotonic() + 30
        while "idle" not in ask("sinfo", "-h", "-o", "%T"):
            if time.monotonic() > until:
                pytest.skip(
                    f"Slurm does not run here: {(folder / 'slurmd.log').read_text()[-500:]}"
                )
            time.sleep(0.5)
        yield settings
        ask("scancel", "--state=PENDING")
        ask("scancel", "--state=RUNNING")
        until = time.monotonic() + 20
        while ask("squeue", "-h") and time.monotonic() < until:
            time.sleep(0.5)
    finally:
        for daemon in daemons:
            daemon.terminate()
            daemon.wait(20)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("dask_jobqueue") is None, reason="dask-jobqueue is not installed"
)
def test_jobs_of_slurm_give_the_bytes_of_one_process(small, whole, slurm, tmp_path, monkeypatch):
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    options = "--cluster=slurm:memory=2GB,cores=1,jobs=2,walltime=00:10:00"
    assert small(tmp_path / "two", 0, options).wait() == 0, (tmp_path / "two/log.txt").read_text()
    assert "cluster: slurm:" in (tmp_path / "two" / "log.txt").read_text()
    assert (tmp_path / "two" / "whole" / "data.nc").read_bytes() == whole


@pytest.mark.slow
def test_slurm_tells_a_kernels_processes_of_one_another(slurm, tmp_path, command_line):
    code = """
import sys
import jax, numpy as np
jax.distributed.initialize()
from ntk import gram, stax
x = np.random.default_rng(0).normal(size=(53, 6)).astype(np.float32)
kernel_fn = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))[2]
found = gram.gram(kernel_fn, x, tile=20, path=sys.argv[1], name="relu", devices=jax.devices())
print(jax.process_index(), jax.process_count(), float(np.asarray(found).sum()), flush=True)
"""
    arguments = ["srun", "-n", "2", sys.executable, "-c", code, str(tmp_path / "kernel")]
    done = command_line.run(arguments, **slurm, PYTHONPATH=str(command_line.root))
    assert done.returncode == 0, done.stderr
    rows = sorted(line.split() for line in done.stdout.splitlines() if line[:1].isdigit())
    assert [row[:2] for row in rows] == [["0", "2"], ["1", "2"]]
    assert rows[0][2] == rows[1][2]
    assert len(list((tmp_path / "kernel").glob("tiles*.txt"))) == 2


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("dask_jobqueue") is None, reason="dask-jobqueue is not installed"
)
def test_a_job_of_slurm_asks_for_what_the_address_says(command_line):
    code = """
from dask_jobqueue import SLURMCluster
from experiments import cluster
_, options = cluster.parsed("slurm:memory=4GB,cores=2,jobs=8,queue=gpu,gpus=1,walltime=01:00:00")
options.pop("jobs")
with SLURMCluster(**options) as made:
    print(made.job_script())
"""
    done = command_line.run([sys.executable, "-W", "ignore", "-c", code])
    assert done.returncode == 0, done.stderr
    for line in ("-p gpu", "--cpus-per-task=2", "--mem=4G", "--gpus=1", "-t 01:00:00"):
        assert f"#SBATCH {line}" in done.stdout
    assert "--nthreads 1 " in done.stdout
