"""Files of a run: atomic, checksummed, resumable; every failure is one message and leaves the rest readable."""

import errno
import json
import os
import platform
import subprocess
import sys
import time
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from experiments import checkpoint, manifest, rundir, seals

CONFIG = {"study": "s", "task": {"name": "digits", "seed": 0}, "widths": (1, 2)}


def open_run(path, **changes):
    return rundir.open_run(path, CONFIG | changes, "s", "smoke")


def test_the_same_configuration_opens_the_folder_again(tmp_path):
    first = open_run(tmp_path / "a")
    started = rundir.read_json(first / "manifest.json")["started"]
    assert rundir.read_json(open_run(tmp_path / "a") / "manifest.json")["started"] == started


def test_another_configuration_is_refused_and_the_difference_named(tmp_path):
    open_run(tmp_path)
    with pytest.raises(ValueError, match=r"task\.seed: 0 there, 1 asked.*another --workdir"):
        open_run(tmp_path, task={"name": "digits", "seed": 1})
    assert rundir.read_json(tmp_path / "config.json")["task"]["seed"] == 0


def test_points_round_trip_and_a_damaged_one_is_named(tmp_path):
    run = open_run(tmp_path)
    assert rundir.load_point(run, "p") is None
    rundir.save_point(run, "p", {"loss": np.arange(3.0)})
    np.testing.assert_array_equal(rundir.load_point(run, "p")["loss"], np.arange(3.0))
    file = run / "points" / "p.npz"
    raw = bytearray(file.read_bytes())
    raw[60] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ValueError, match=r"p\.npz is corrupt.*delete it and run again"):
        rundir.load_point(run, "p")


def test_datasets_with_the_same_content_have_the_same_bytes(tmp_path):
    data = xr.Dataset({"a": (("width", "name"), np.ones((2, 2)))}, {"name": ["ntk", "mup"]})
    rundir.write_dataset(tmp_path / "1.nc", data)
    rundir.write_dataset(tmp_path / "2.nc", data.copy(deep=True))
    assert (tmp_path / "1.nc").read_bytes() == (tmp_path / "2.nc").read_bytes()
    back = rundir.read_dataset(tmp_path / "1.nc")
    assert float(back.a.sel(name="mup").sum()) == 2.0


def test_a_damaged_or_missing_dataset_is_named(tmp_path):
    with pytest.raises(ValueError, match="has not finished"):
        rundir.read_dataset(tmp_path / "data.nc")
    (tmp_path / "data.nc").write_bytes(b"not a netcdf file")
    with pytest.raises(ValueError, match=r"data\.nc cannot be read"):
        rundir.read_dataset(tmp_path / "data.nc")


def test_a_full_disk_leaves_the_earlier_file(tmp_path, monkeypatch):
    run = open_run(tmp_path)
    rundir.save_point(run, "p", {"loss": np.zeros(2)})

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"could not be written \(No space left on device\)"):
        rundir.save_point(run, "p", {"loss": np.ones(2)})
    np.testing.assert_array_equal(rundir.load_point(run, "p")["loss"], np.zeros(2))
    assert not list(run.rglob("*.part"))


def test_metrics_lose_a_cut_last_line_and_the_rows_that_are_trained_again(tmp_path):
    rundir.append_metrics(tmp_path, [{"run": "a", "chunk": 1}, {"run": "b", "chunk": 1}])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"run": "b", "chu')
    rundir.keep_metrics(tmp_path, lambda row: row["run"] == "a")
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"run": "a", "chunk": 1}]


def test_a_damaged_metrics_line_is_named(tmp_path):
    row = '{"run": "a", "chunk": 1}'
    for line, words in (
        ("rubbish", "not JSON"),
        ("3", "no row"),
        ('["run"]', "no row"),
        ('{"run": 1}', "no row"),
    ):
        (tmp_path / "metrics.jsonl").write_text(f"{row}\n{line}\n{row}\n")
        with pytest.raises(ValueError, match=rf"metrics\.jsonl, line 2 is {words}"):
            rundir.keep_metrics(tmp_path, lambda row: True)


def test_appending_metrics_reads_the_file_once(tmp_path, monkeypatch):
    """A run that begins costs the same however many came before: the cost of many runs is linear."""
    rundir.append_metrics(tmp_path, [{"run": "before", "chunk": 1}])
    read = []
    monkeypatch.setattr(rundir, "_rows", lambda file, text: iter(read.append(text) or ()))
    for run in range(20):
        rundir.drop_metrics(tmp_path, f"r{run}", 0)
        rundir.append_metrics(tmp_path, [{"run": f"r{run}", "chunk": 1}])
    assert len(read) <= 1


def test_only_rows_that_are_trained_again_are_dropped(tmp_path):
    rows = [{"run": run, "chunk": chunk} for run in "ab" for chunk in (1, 2, 3)]
    rundir.append_metrics(tmp_path, rows)
    for after, expected in ((3, 6), (2, 5), (0, 3)):
        rundir.drop_metrics(tmp_path, "a", after)
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == expected
        assert [json.loads(line) for line in lines][-3:] == rows[3:]


def test_a_row_is_not_glued_to_a_cut_one(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"run": "a", "chunk": 1}')
    rundir.drop_metrics(tmp_path, "b", 0)
    rundir.append_metrics(tmp_path, [{"run": "b", "chunk": 1}])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["run"] for line in lines] == ["a", "b"]


STATE = {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3), "step": np.array(4, np.int32)}


def test_the_newest_checkpoint_comes_back(tmp_path):
    assert checkpoint.restore(tmp_path / "c", STATE) is None
    checkpoint.save(tmp_path / "c", 1, STATE)
    checkpoint.save(tmp_path / "c", 2, STATE | {"step": np.array(5, np.int32)})
    step, state = checkpoint.restore(tmp_path / "c", STATE)
    assert (step, int(state["step"])) == (2, 5)
    np.testing.assert_array_equal(state["w"], STATE["w"])
    assert [entry.name for entry in (tmp_path / "c").iterdir()] == ["2"]
    checkpoint.drop(tmp_path / "c")
    assert checkpoint.restore(tmp_path / "c", STATE) is None


def test_a_damaged_checkpoint_is_named(tmp_path):
    checkpoint.save(tmp_path / "c", 1, STATE)
    for file in (tmp_path / "c" / "1").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoint .*c/1 cannot be restored.*delete it"):
        checkpoint.restore(tmp_path / "c", STATE)


ARRAYS = {"loss": np.arange(3.0), "name": np.array(["x² − 1"]), "count": np.array(4)}


def test_numpy_reads_points_and_their_seal_is_the_comment(tmp_path):
    run = open_run(tmp_path)
    rundir.save_point(run, "p", ARRAYS, "made")
    with np.load(run / "points" / "p.npz") as read:
        assert sorted(read.files) == sorted(ARRAYS)
        for key, value in ARRAYS.items():
            np.testing.assert_array_equal(read[key], value)
    with zipfile.ZipFile(run / "points" / "p.npz") as archive:
        assert archive.testzip() is None
        seal = json.loads(archive.comment)
    assert (seal["configuration"], seal["name"]) == ("made", "p")


def test_every_flipped_bit_of_a_point_and_of_data_is_refused(tmp_path):
    run = open_run(tmp_path)
    rundir.save_point(run, "p", ARRAYS, "made")
    data = xr.Dataset({"a": ("x", np.arange(3.0))}, attrs={"task": "digits"})
    rundir.write_dataset(run / "data.nc", data, "made")
    reads = {
        run / "points" / "p.npz": lambda: rundir.load_point(run, "p", "made"),
        run / "data.nc": lambda: rundir.read_dataset(run / "data.nc", "made"),
    }
    for file, read in reads.items():
        whole = file.read_bytes()
        damaged = [bytearray(whole) for _ in whole]
        for place, copy in enumerate(damaged):
            copy[place] ^= 1 << place % 8
        cut = [whole[:length] for length in range(0, len(whole), 7)]
        for content in [*damaged, *cut, whole + b"0"]:
            file.write_bytes(content)
            with pytest.raises(ValueError, match=rf"{file.name}.*delete it and run"):
                read()
        file.write_bytes(whole)
        assert read() is not None


def test_xarray_reads_data_and_its_seal_is_an_attribute(tmp_path):
    data = xr.Dataset({"a": ("x", np.arange(3.0))}, attrs={"task": "digits"})
    rundir.write_dataset(tmp_path / "data.nc", data, "made")
    with xr.open_dataset(tmp_path / "data.nc", engine="scipy") as read:
        assert read.attrs["configuration"] == "made"
        assert len(read.attrs["sha256"]) == 64
        assert read.drop_attrs(deep=False).equals(data.drop_attrs())
    assert rundir.read_dataset(tmp_path / "data.nc", "made").identical(data)
    with pytest.raises(ValueError, match="made by another configuration"):
        rundir.read_dataset(tmp_path / "data.nc", "other")


def test_a_point_of_another_configuration_or_name_is_refused(tmp_path):
    run = open_run(tmp_path)
    rundir.save_point(run, "p", ARRAYS, "made")
    with pytest.raises(ValueError, match=r"p\.npz was made by another configuration"):
        rundir.load_point(run, "p", "other")
    (run / "points" / "p.npz").rename(run / "points" / "q.npz")
    with pytest.raises(ValueError, match=r"q\.npz was saved as 'p', not as 'q'"):
        rundir.load_point(run, "q", "made")


def test_a_point_without_a_seal_is_refused(tmp_path):
    run = open_run(tmp_path)
    np.savez(run / "points" / "p.npz", **ARRAYS)
    with pytest.raises(ValueError, match="has no checksum"):
        rundir.load_point(run, "p")


@pytest.mark.parametrize("lost", [("config.json",), ("config.json", "manifest.json")])
def test_without_config_json_another_configuration_is_refused_and_the_same_goes_on(tmp_path, lost):
    run = open_run(tmp_path)
    rundir.save_point(run, "p", ARRAYS, seals.digest(CONFIG))
    for name in lost:
        (run / name).unlink()
    with pytest.raises(ValueError, match=r"another configuration \(config.json is lost"):
        open_run(tmp_path, study="t")
    assert not (run / "config.json").exists()
    assert rundir.load_point(open_run(tmp_path), "p", seals.digest(CONFIG)) is not None


@pytest.mark.parametrize("content", ["[1]", "3", "null", "{}", '{"format": "2"}', "{", "[" * 10**5])
@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_a_damaged_description_is_one_line_and_nothing_is_lost(tmp_path, name, content):
    run = open_run(tmp_path)
    rundir.save_point(run, "p", ARRAYS)
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{tmp_path}.*") as error:
        open_run(tmp_path)
    assert "\n" not in str(error.value)
    assert (run / name).read_text() == content
    assert rundir.load_point(run, "p") is not None


def test_a_folder_of_an_older_version_is_refused(tmp_path):
    run = open_run(tmp_path)
    old = {"study": "s", "started": "2026-01-01T00:00:00+0000", "seconds": 3.0}
    (run / "manifest.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match=r"older version.*give another --workdir"):
        open_run(tmp_path)


def test_what_changed_since_the_run_began_is_said_and_kept(tmp_path, monkeypatch):
    run = open_run(tmp_path)
    assert rundir.changes(run) == []
    now = manifest.environment()
    later = now | {"git": "f00", "dirty": True, "versions": now["versions"] | {"jax": "9.9"}}
    monkeypatch.setattr(manifest, "environment", lambda: later)
    said = rundir.changes(run)
    assert [sentence.split(",")[0] for sentence in said] == [
        "jax is 9.9",
        "commit is f00 with uncommitted changes",
    ]
    assert rundir.changes(run) == said
    assert rundir.read_manifest(run)["changes"] == said


def test_seconds_add_up_over_sessions_that_left_something(tmp_path, monkeypatch):
    run = open_run(tmp_path)
    clock = iter([0.0, 2.0, 10.0, 13.0, 20.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))

    def session(name, error):
        with rundir.timed(run):
            if name:
                rundir.save_point(run, name, ARRAYS)
            if error:
                raise error

    session("a", None)  # 2 s
    with pytest.raises(KeyboardInterrupt):
        session("b", KeyboardInterrupt())  # 3 s
    session(None, None)  # from 20 on, but nothing was done
    assert rundir.read_manifest(run)["seconds"] == 5.0


def test_a_finished_run_is_recognised_until_a_point_is_gone(tmp_path):
    run, data = open_run(tmp_path), xr.Dataset({"a": ("x", np.ones(2))})
    rundir.save_point(run, "p", ARRAYS, "made")
    assert rundir.finished(run, "made") is None
    rundir.finish_run(run, data, "made")
    assert rundir.finished(run, "made").identical(data)
    (run / "points" / "p.npz").unlink()
    assert rundir.finished(run, "made") is None


def test_only_a_folder_without_results_is_forgotten(tmp_path):
    run = open_run(tmp_path)
    rundir.forget(run)
    rundir.save_point(open_run(tmp_path, study="t"), "p", ARRAYS)
    rundir.forget(run)
    with pytest.raises(ValueError, match="another configuration"):
        open_run(tmp_path)


HOLD = """
import fcntl, os, pathlib, sys, time
descriptor = os.open(pathlib.Path(sys.argv[1]) / "lock", os.O_RDWR | os.O_CREAT)
fcntl.flock(descriptor, fcntl.LOCK_EX)
os.write(descriptor, b"process 7 on elsewhere since noon")
print("held", flush=True)
time.sleep(60)
"""


def test_one_process_at_a_time_and_death_releases(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match="is in use by process 7 on elsewhere since noon"),
            rundir.lock(tmp_path),
        ):
            pass
    finally:
        other.kill()
        other.communicate()
    with rundir.lock(tmp_path) as path:
        holder = (path / "lock").read_text()
        assert holder.startswith(f"process {os.getpid()} on {platform.node()} since 20")
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()}"), rundir.lock(path):
            pass


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"lock could not be written \("), rundir.lock(path):
            pass
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"metrics\.jsonl could not be written \(No space left"):
        rundir.append_metrics(tmp_path, [{"run": "a", "chunk": 1}])


def test_checkpoints_of_another_configuration_or_damaged_anywhere_are_refused(tmp_path):
    folder = tmp_path / "c"
    checkpoint.save(folder, 1, STATE, "made")
    assert checkpoint.restore(folder, STATE, "made")[0] == 1
    with pytest.raises(ValueError, match="made by another configuration"):
        checkpoint.restore(folder, STATE, "other")
    for file in sorted(f for f in (folder / "1").rglob("*") if f.is_file() and f.stat().st_size):
        whole = file.read_bytes()
        damaged = bytearray(whole)
        damaged[len(whole) // 2] ^= 4
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"c/1 cannot be restored"):
            checkpoint.restore(folder, STATE, "made")
        file.write_bytes(whole)
    folder.rename(tmp_path / "d")
    with pytest.raises(ValueError, match="was saved as 'c/1', not as 'd/1'"):
        checkpoint.restore(tmp_path / "d", STATE, "made")


def test_a_checkpoint_without_its_state_does_not_count(tmp_path):
    checkpoint.save(tmp_path / "c", 1, STATE)
    (tmp_path / "c" / "2").mkdir()
    (tmp_path / "c" / "2" / "state.npz.part").write_bytes(b"half")
    assert checkpoint.restore(tmp_path / "c", STATE)[0] == 1


def test_a_checkpoint_on_a_full_disk_is_one_line_and_the_last_one_stays(tmp_path):
    checkpoint.save(tmp_path / "c", 1, STATE)
    (tmp_path / "c" / "2").mkdir()
    (tmp_path / "c" / "2" / "state.npz.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"state\.npz could not be written \(No space left") as error:
        checkpoint.save(tmp_path / "c", 2, STATE)
    assert "\n" not in str(error.value)
    assert checkpoint.restore(tmp_path / "c", STATE)[0] == 1


def test_a_state_comes_back_as_it_was(tmp_path):
    """Keys, low precision, scalars, and arrays on other devices than the first."""
    second = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    state = {
        "key": jax.random.split(jax.random.key(3), 2),
        "half": jnp.arange(3, dtype=jnp.bfloat16) / 3,
        "count": jnp.int32(4),
        "there": jax.device_put(jnp.arange(2.0), second),
        "alive": np.array([True, False]),
    }
    checkpoint.save(tmp_path / "c", 1, state)
    _, found = checkpoint.restore(tmp_path / "c", jax.tree.map(lambda leaf: leaf.copy(), state))
    assert found["there"].sharding == second
    assert isinstance(found["alive"], np.ndarray)
    for name in state:
        assert found[name].dtype == state[name].dtype
        assert (found[name] == state[name]).all()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"w": np.zeros((2, 2), np.float32), "step": STATE["step"]}, r"float32\[2, 3\] where"),
        ({"w": np.zeros((2, 3)), "step": STATE["step"]}, r"float32\[2, 3\] where float64"),
        ({"w": STATE["w"]}, "holds 2 arrays, not 1"),
    ],
)
def test_a_checkpoint_of_other_shapes_is_refused(tmp_path, other, words):
    checkpoint.save(tmp_path / "c", 1, STATE)
    with pytest.raises(ValueError, match=rf"c/1 cannot be restored: it .*{words}"):
        checkpoint.restore(tmp_path / "c", other)
