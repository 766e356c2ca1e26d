"""Files of a run: atomic, checksummed, resumable; every failure is one message and leaves the rest readable."""

import errno
import json
import os

import numpy as np
import pytest
import xarray as xr

from experiments import checkpoint, rundir

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
    (tmp_path / "metrics.jsonl").write_text('{"run": "a"}\nrubbish\n{"run": "b"}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not JSON"):
        rundir.keep_metrics(tmp_path, lambda row: True)


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
