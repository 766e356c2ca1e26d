"""A Gram matrix in a folder: other kernels and processes are told, damage costs its tiles, a full disk is one line."""

import functools
import json
import re
import resource
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from ntk import gram
from ntk.large import storage


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(53, 5)).astype(np.float32)


def kernel(x1, x2, get, scale=1.0, power=None):
    x2 = x1 if x2 is None else x2
    square = jnp.sum((x1[:, None] - x2[None]) ** 2, -1)
    return jnp.exp(-(square if power is None else power(square)) / scale)


@pytest.fixture
def job(tmp_path):
    return {"tile": 20, "path": tmp_path / "run", "name": "rbf"}


@pytest.fixture
def matrix(x, job):
    return np.array(gram.gram(kernel, x, **job))


def resumed(x, job):
    """(tiles found on disk, the matrix)."""
    calls = []
    found = gram.gram(kernel, x, **job, progress=lambda *now: calls.append(now))
    return calls[0][0], np.array(found)


def test_another_kernel_under_the_same_name_is_told_by_its_values(x, job, matrix):
    def other(x1, x2, get):
        return kernel(x1, x2, get, scale=1.01)

    with pytest.raises(ValueError, match="belongs to another kernel: on the first two samples"):
        gram.gram(other, x, **job)
    assert resumed(x, job)[0] == 6  # and nothing was lost


def test_rounding_is_no_other_kernel(x, job, matrix):
    assert gram.gram(lambda *a: kernel(*a) * (1 + 1e-6), x, **job).shape == (53, 53)


def test_callables_among_the_options_and_versions_are_compared(x, job):
    gram.gram(kernel, x, **job, power=jnp.sqrt)
    about = json.loads((job["path"] / "manifest.json").read_text())
    assert "sqrt" in about["options"]
    assert set(about["versions"]) == {"widelimit", "jax"}
    with pytest.raises(ValueError, match=r"options is .*sqrt.* there, .*tanh.* here"):
        gram.gram(kernel, x, **job, power=jnp.tanh)
    about["versions"]["jax"] = "0.1"
    (job["path"] / "manifest.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"versions is .*'0.1'"):
        gram.gram(kernel, x, **job, power=jnp.sqrt)


def test_options_are_named_alike_in_every_process():
    assert storage._named(functools.partial(jnp.multiply, 2)).startswith("partial(")
    assert storage._named((1, "a", None)) == "(1, 'a', None)"
    assert "0x" not in storage._named(object())


@pytest.mark.parametrize(
    "line",
    [
        "x y z",
        "0 0",
        "0 99 abc",
        "-1 0 abc",
        "\xb2 0 abc",
        "\xff\xfe",
        "9" * 5000 + " 0 a",
        "0 0 0 0",
        "",
    ],
)
def test_a_damaged_line_of_the_journal_costs_its_tile(line, x, job, matrix):
    journal = job["path"] / "tiles.txt"
    lines = journal.read_text().splitlines()
    lines[2] = line
    journal.write_bytes("".join(f"{text}\n" for text in lines).encode("latin1"))
    with pytest.warns(UserWarning, match="1 of 6 tiles"):
        kept, again = resumed(x, job)
    assert kept == 5
    np.testing.assert_array_equal(again, matrix)


def test_every_flipped_bit_of_the_journal_is_survived(x, job, matrix):
    journal = job["path"] / "tiles.txt"
    content, random = journal.read_bytes(), np.random.default_rng(0)
    for place in random.choice(8 * len(content), 30, replace=False):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        journal.write_bytes(damaged)
        with pytest.warns(UserWarning, match="do not match their checksum"):
            kept, again = resumed(x, job)
        assert 4 <= kept <= 6
        np.testing.assert_array_equal(again, matrix)


@pytest.mark.filterwarnings("ignore:6 of 6 tiles")
def test_a_damaged_matrix_is_refused_and_a_lost_one_computed_again(x, job, matrix):
    file = job["path"] / "gram.npy"
    whole = file.read_bytes()
    for content in (b"", b"no array", whole[:100]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"gram\.npy is damaged"):
            gram.gram(kernel, x, **job)
    file.write_bytes(whole[:-1000])
    with pytest.warns(UserWarning, match="3 of 6 tiles"):
        kept, again = resumed(x, job)
    assert kept == 3
    np.testing.assert_array_equal(again, matrix)
    np.save(file, np.zeros((53, 52), np.float32))
    with pytest.raises(ValueError, match=r"it is float32 \(53, 52\)"):
        gram.gram(kernel, x, **job)
    np.save(file, np.zeros((53, 53), np.float64))
    with pytest.raises(ValueError, match="it is float64"):
        gram.gram(kernel, x, **job)
    file.unlink()
    kept, again = resumed(x, job)
    assert kept == 0
    np.testing.assert_array_equal(again, matrix)


def test_the_space_is_taken_before_the_first_tile(x, job):
    taken = []

    def watch(done, total):
        taken.append((job["path"] / "gram.npy").stat().st_blocks * 512)

    gram.gram(kernel, x, **job, progress=watch)
    assert taken[0] >= 53 * 53 * 4


def test_a_full_disk_is_one_line_before_the_first_tile(x, job):
    """The limit of a file's size stands for a full disk: the system refuses in the same call."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(OSError, match=r"too large: the matrix needs 1\.12e-05 GB.*gram\.npy"):
            gram.gram(kernel, x, **job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(p.name for p in job["path"].iterdir()) == ["lock"]
    assert resumed(x, job)[0] == 0


@pytest.mark.parametrize("tiles", [0, 1, 4])
def test_a_disk_that_fills_later_costs_no_finished_tile(tiles, x, job):
    """No file may be written any further."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(done, total):
        if done == tiles:
            journal = (job["path"] / "tiles.txt").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (journal + 10, hard))

    try:
        with pytest.raises(OSError, match=r"finished tiles are kept.*(gram\.npy|tiles\.txt)"):
            gram.gram(kernel, x, **job, progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    kept, again = resumed(x, job)
    assert kept == tiles
    np.testing.assert_allclose(again, kernel(x, None, "ntk"), rtol=1e-5)


HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.truncate(0)
file.write("process 1 on elsewhere since 2026-01-01\\n")
file.flush()
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_process_is_told_and_death_releases(x, job, matrix):
    lock = job["path"] / "lock"
    command = [sys.executable, "-c", HOLDER, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="in use by process 1 on elsewhere since 2026"):
            gram.gram(kernel, x, **job)
        holder.kill()
    assert resumed(x, job)[0] == 6


def test_a_second_call_within_the_process_is_told(x, job):
    def again(done, total):
        if done == 0:
            with pytest.raises(
                ValueError, match=re.compile("in use by process [0-9]+ on .+ since")
            ):
                gram.gram(kernel, x, **job)

    gram.gram(kernel, x, **job, progress=again)


def test_a_path_that_is_a_file_or_not_a_name_is_refused(x, job):
    job["path"].write_text("")
    with pytest.raises(ValueError, match="is a file"):
        gram.gram(kernel, x, **job)
    with pytest.raises(ValueError, match="path needs name"):
        gram.gram(kernel, x, **(job | {"name": 3}))
