"""Strict settings for every test: implicit rank promotion, warnings and legacy PRNG keys are errors."""

import importlib.metadata
import importlib.util
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

# Most of what a test computes it computes once: unoptimised it compiles a third faster, and through the older
# emitters that JAX 0.10 still has in half of that. Later ones end the process at a flag that they do not know.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    + " --xla_cpu_use_fusion_emitters=false"
    * importlib.metadata.version("jaxlib").startswith("0.10."),
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")
# What one process compiled the next one finds: the workers of this run, the runs that a test starts, the next run.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Not in the user's folder; runs that a test starts share theirs.
os.environ.setdefault("XDG_CACHE_HOME", tempfile.mkdtemp(prefix="widelimit-"))

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")

# Before the first import of a package. A wheel's tests have pytest alone: what users get checks no shapes.
SHAPES = None
if importlib.util.find_spec("beartype"):
    spec = importlib.util.spec_from_file_location(
        "shapes", pathlib.Path(__file__).with_name("shapes.py")
    )
    SHAPES = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(SHAPES)
    SHAPES.install()


@pytest.fixture(scope="session")
def shapes():
    """The module that checks the shapes in annotations at every call."""
    return SHAPES


@pytest.fixture(autouse=True, scope="module")
def _few_compiled_programs():
    """Drops compiled programs before they take more pieces of memory than Linux gives one process (65,530)."""
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture
def x64():
    """Double precision for one test, and only for it."""
    with jax.enable_x64(True):
        yield


# One process of a job: address, number of processes, its own number, folder.
JOB = """
import os, pathlib, signal, sys
import jax, numpy as np
address, count, index, folder, *rest = sys.argv[1:]
count, index, folder = int(count), int(index), pathlib.Path(folder)
jax.distributed.initialize(address, count, index, heartbeat_timeout_seconds=10)
"""


@pytest.fixture(scope="session")
def job():
    """Runs code in every process of a job over loopback; their exit statuses. What they say is in stderr-N.txt."""

    def run(count, folder, code, *rest, devices=8, timeout=240):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        folder.mkdir(exist_ok=True)
        flags = [f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f]
        flags.append(f"--xla_force_host_platform_device_count={devices}")
        several = []
        for i in range(count):
            with (folder / f"stderr-{i}.txt").open("w") as errors:
                command = [sys.executable, "-c", JOB + code, address, str(count), str(i)]
                several.append(
                    subprocess.Popen(
                        [*command, str(folder), *rest],
                        cwd=pathlib.Path(__file__).parents[1],
                        env=os.environ | {"XLA_FLAGS": " ".join(flags)},
                        stderr=errors,
                    )
                )
        try:
            return [process.wait(timeout) for process in several]
        finally:
            for process in several:
                process.kill()
                process.wait()

    return run
