"""Several runs of one study on one page: from files only, with runs that nobody trained."""

import json

import numpy as np
import pytest
import xarray as xr

from experiments import claims, compare, rundir
from experiments.plots import drawing

MANIFEST = {
    "study": "tiny",
    "variant": "smoke",
    "command": ["python", "-m", "experiments"],
    "started": "2026-01-01T00:00:00+0000",
    "finished": "2026-01-01T00:01:12+0000",
    "seconds": 72.0,
    "versions": {"jax": "0.10.2"},
    "device": "cpu",
    "devices": 1,
    "git": "",
}


def result(scale, widths=(64, 128)):
    """Losses over rule, width, step and seed; a scalar; words."""
    steps = np.arange(4)
    values = scale * (1 + np.arange(len(widths) * 2 * 4 * 3.0)).reshape(2, len(widths), 4, 3)
    return xr.Dataset(
        {
            "loss": xr.DataArray(
                values,
                dims=("rule", "width", "step", "fit_seed"),
                attrs={"long_name": "training loss"},
            ),
            "risk": xr.DataArray(float(scale)),
            "layer": xr.DataArray("hidden"),
        },
        {"rule": ["ntk", "mup"], "width": list(widths), "step": steps, "fit_seed": [0, 1, 2]},
    )


def judged(scale):
    """One claim of both runs, and one that only the larger has."""
    made = [claims.at_most("P1 <small>", "Someone 2020", "the scale is small", scale, 1.5)]
    if scale > 1:
        made.append(claims.at_least("P2 large", "Someone 2020", "the scale is large", scale, 1.5))
    return made


def write_run(path, scale, study="tiny", **keys):
    path.mkdir(parents=True)
    config = {"study": study, "task": {"name": "digits"}, "scale": scale} | keys
    (path / "config.json").write_text(json.dumps(config))
    (path / "manifest.json").write_text(json.dumps(MANIFEST | {"study": study}))
    (path / "claims.json").write_text(claims.to_json(judged(scale)))
    rundir.write_dataset(path / "data.nc", result(scale))
    return path


def test_a_page_of_two_runs(tmp_path, capsys):
    one = write_run(tmp_path / "one", 1.0)
    two = write_run(tmp_path / "two", 2.0, extra=3)
    assert compare.main([str(one), str(two)]) == 0
    out = capsys.readouterr().out
    assert "P1 <small>" in out
    assert str(tmp_path / "compare.html") in out
    text = (tmp_path / "compare.html").read_text()
    assert text.count("<img") == 1  # the loss; a scalar and words have no curve
    assert "P1 &lt;small&gt;" in text
    assert 'href="one/report.html"' in text
    assert "training loss of the runs" in text.lower()
    assert "<script" not in text
    assert ">risk<" in text
    assert "no dimension with numbers" in text


def test_keys_that_differ_and_no_others():
    configs = {"a": {"n": {"x": 1, "y": [1, 2]}, "same": ""}, "b": {"n": {"x": 2}, "same": ""}}
    assert compare.differing_keys(configs) == [("n.x", "1", "2"), ("n.y", "[1, 2]", "-")]


def test_verdicts_stand_side_by_side():
    rows = compare.side_by_side({"one": judged(1.0), "two": judged(2.0)})
    assert rows == [("P1 <small>", "holds: 1", "FAILS: 2"), ("P2 large", "-", "holds: 2")]


def test_curves_have_one_line_a_run_against_the_last_numbers():
    figures, left_out = compare.curves({"one": result(1.0), "two": result(2.0)})
    assert list(figures) == ["loss"]
    assert left_out == {"risk": "no dimension with numbers"}
    axes = figures["loss"].axes
    assert [ax.get_title(loc="left") for ax in axes] == [
        f"rule {drawing.NAMES[rule]}, width {n}" for rule in ("ntk", "mup") for n in (64, 128)
    ]
    one, two = axes[1].lines
    np.testing.assert_array_equal(one.get_xdata(), np.arange(4))
    # of rule ntk at width 128: the middle seed
    np.testing.assert_allclose(one.get_ydata(), [14, 17, 20, 23])
    np.testing.assert_allclose(two.get_ydata(), [28, 34, 40, 46])
    assert one.get_linestyle() != two.get_linestyle()


def test_a_place_that_one_run_lacks_has_the_line_of_the_other():
    figures, _ = compare.curves({"one": result(1.0), "two": result(2.0, widths=(64, 256))})
    lines = {ax.get_title(loc="left"): len(ax.lines) for ax in figures["loss"].axes}
    assert lines["rule NTK, width 64"] == 2
    assert lines["rule NTK, width 128"] == lines["rule NTK, width 256"] == 1


def test_variables_that_cannot_be_laid_over_one_another_are_named():
    other = result(1.0)[["risk", "layer"]]
    many = result(1.0, widths=tuple(range(1, 9)))
    assert "not in two of the runs" in compare.curves({"a": result(1.0), "b": other})[1]["loss"]
    assert "16 panels" in compare.curves({"a": many, "b": many})[1]["loss"]


@pytest.mark.parametrize("wrong", ["one run", "twice", "another study", "damaged"])
def test_what_cannot_be_compared_is_one_message(tmp_path, capsys, wrong):
    one = write_run(tmp_path / "one", 1.0)
    two = write_run(tmp_path / "two", 2.0, study="tiny" if wrong == "damaged" else "other")
    if wrong == "damaged":
        (two / "data.nc").write_bytes(b"no")
    arguments = {"one run": [one], "twice": [one, one]}.get(wrong, [one, two])
    assert compare.main([*map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    expected = {"another study": "different studies, other, tiny", "damaged": "data.nc"}
    assert expected.get(wrong, "two or more different run directories") in error
    assert not (tmp_path / "compare.html").exists()
