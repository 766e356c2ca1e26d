"""Compiled programs that are kept between processes."""

import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp

from experiments import programs

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


def test_seconds_of_compiling_are_those_of_the_clock():
    jax.jit(lambda x: x)(1.0)
    before, start = programs.compile_seconds(), time.monotonic()
    inner = jax.jit(lambda x: jnp.sin(x @ x.T))
    jax.jit(lambda x: inner(x).sum() + inner(x).mean())(jnp.ones((5, 5))).block_until_ready()
    assert 0 < programs.compile_seconds() - before <= time.monotonic() - start


def test_what_is_traced_within_another_function_is_part_of_it(monkeypatch):
    now = [11.0]
    for name in ("_spans", "_lengths"):
        monkeypatch.setattr(programs, name, {})
    monkeypatch.setattr(programs.time, "monotonic", lambda: now[0])
    events = (("jaxpr_trace_duration", 11, 1.0, 1.0), ("jaxpr_trace_duration", 12, 3.0, 3.0))
    for name, at, seconds, total in (*events, ("backend_compile_duration", 20, 2.0, 5.0)):
        now[0] = at
        programs._listen(f"/jax/core/compile/{name}", seconds)
        assert programs.compile_seconds() == total
    programs._listen("/jax/checkpoint/write", 9.0)
    assert programs.compile_seconds() == 5.0
