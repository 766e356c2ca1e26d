"""Compiled programs that are kept between processes."""

import os
import subprocess
import sys

SCRIPT = """
import sys
import jax
from experiments import programs
print(programs.keep())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(float(jax.jit(lambda x: x @ x.T)(jax.numpy.ones((4, 4))).sum()))
"""


def run(tmp_path, **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment = kept | {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"} | environment
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_programs_are_kept_for_this_processor(tmp_path):
    folder, value = run(tmp_path)
    assert folder.startswith(str(tmp_path / "widelimit" / "programs"))
    assert value == "64.0"
    before = sorted(os.listdir(folder))
    assert any("cache" in name for name in before)
    assert run(tmp_path) == [folder, value]  # nothing new is compiled
    assert [n for n in sorted(os.listdir(folder)) if n.endswith("-cache")] == [
        n for n in before if n.endswith("-cache")
    ]


def test_what_jax_was_told_stays(tmp_path):
    own = tmp_path / "own"
    assert run(tmp_path, JAX_COMPILATION_CACHE_DIR=str(own))[0] == str(own)
    assert run(tmp_path, JAX_ENABLE_COMPILATION_CACHE="0")[0] == "None"
    assert not (tmp_path / "widelimit").exists()


def test_a_home_that_cannot_be_written_is_no_error(tmp_path):
    file = tmp_path / "file"
    file.touch()
    assert run(file)[0] == "None"
