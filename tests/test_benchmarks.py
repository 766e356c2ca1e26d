"""What the pages state of speed stands in the files of results, and these name their machines."""

import json
import pathlib
import re
import statistics

import pytest

from benchmarks import harness, ratios

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted(ratios.RESULTS.glob("*.json"))


def entries(path):
    """Of every machine; the file of regressions has one."""
    body = json.loads(path.read_text())
    return body.get("machines", [body])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_result_names_its_machine(path):
    for entry in entries(path):
        assert entry["machine"]["processor"]
        assert {"vector_bits", "cores", "cores_used"} <= entry["machine"].keys()
        for row in entry["rows"]:
            assert row
            if "timings" in row:  # else the medians alone were kept
                ours, other = (row["timings"][row[key]] for key in ("ours", "baseline"))
                for kind in ("wall", "cpu"):
                    expected = [b / max(a, 1e-9) for a, b in zip(ours[kind], other[kind])]
                    assert row[f"{kind}_ratio"] == pytest.approx(expected)


@pytest.mark.parametrize("page", ratios.PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_results(page):
    text = dict(zip(ratios.PAGES, (ratios.table, ratios.ranges)))[page]
    assert ratios.renewed(page.read_text(), text) == page.read_text(), (
        "python -m benchmarks.ratios writes the tables anew"
    )


def test_ratios_of_metrics_are_those_of_the_results():
    """The last cell of a row, in CPU seconds: median [smallest, largest]."""
    known = set()
    for name in ("metrics_curvature", "metrics_collapse"):
        for entry in ratios.results(name):
            for row in entry["rows"]:
                ours = row["timings"][row["ours"]]["cpu"]
                for times in row["timings"].values():
                    found = [b / a for a, b in zip(ours, times["cpu"])]
                    values = statistics.median(found), min(found), max(found)
                    known.add("{}x [{}, {}]".format(*map(ratios.number, values)))
    page = ratios.PAGES[0].read_text()
    stated = re.findall(r"\| (\S+x \[[^|]*\]) \|$", page, re.M)
    assert len(stated) > 15
    assert [cell for cell in stated if cell not in known] == []


def test_results_of_other_machines_stay(tmp_path, monkeypatch):
    def row(task, seconds):
        timing = harness.Timing(1.0, [seconds], [seconds])
        return harness.Comparison(task, {"a": timing, "b": timing}, "a", "b", [1.0], [1.0], {})

    here = harness.machine()
    harness.save("x", [row("one", 1.0), row("two", 1.0)], tmp_path)
    monkeypatch.setattr(harness, "machine", lambda: here | {"processor": "another"})
    harness.save("x", [row("one", 2.0)], tmp_path)
    monkeypatch.setattr(harness, "machine", lambda: here)
    harness.save("x", [row("one", 3.0)], tmp_path)
    kept = {
        (entry["machine"]["processor"], r["task"]): r["timings"]["a"]["wall"][0]
        for entry in entries(tmp_path / "x.json")
        for r in entry["rows"]
    }
    name = here["processor"]
    assert kept == {(name, "one"): 3.0, (name, "two"): 1.0, ("another", "one"): 2.0}
    # Other versions are another measurement of the same machine.
    monkeypatch.setattr(harness, "machine", lambda: here | {"versions": {}})
    harness.save("x", [row("two", 4.0)], tmp_path)
    names = [entry["machine"]["processor"] for entry in entries(tmp_path / "x.json")]
    assert names == ["another", name]


def test_a_page_without_its_table_is_refused():
    with pytest.raises(ValueError, match="one table"):
        ratios.renewed("no marks", str)


def test_iterations_on_the_page_are_those_of_the_results():
    body = json.loads((ratios.RESULTS / "regression_scale.json").read_text())
    found = {(r["road"], r["samples"]): r.get("iterations") for r in body["rows"]}
    page = (ROOT / "docs" / "speed.md").read_text()
    both = re.findall(r"^\| ([\d,]+) \| (\d+|not run), (\d+|not run) \|", page, re.MULTILINE)
    assert len(both) == 5
    for samples, *stated in both:
        n = int(samples.replace(",", ""))
        plain = found.get(("plain", n), found.get(("kept_plain", n)))
        expected = found.get(("cg", n)), plain
        assert [str(k or "not run") for k in expected] == stated
    kept = re.findall(r"^\| ([\d,]+) \| [^|]*GiB \| [^|]*\| [^|]*\| (\d+) \|", page, re.MULTILINE)
    assert len(kept) == 4
    for samples, stated in kept:
        assert found["kept", int(samples.replace(",", ""))] == int(stated)
