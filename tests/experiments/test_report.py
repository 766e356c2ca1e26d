"""The report: from files only, with a tiny study; damaged files are one message and leave the others reported."""

import html.parser
import io
import json
import os
import re
import shlex
import sys
import types

import numpy as np
import pytest
import xarray as xr

from experiments import claims, clock, page, plots, report, rundir

MANIFEST = {
    "study": "tiny",
    "variant": "smoke",
    "command": ["python", "-m", "experiments.run", "--config=experiments/configs/tiny.py"],
    "started": "2026-01-01T00:00:00+0000",
    "finished": "2026-01-01T00:01:12+0000",
    "seconds": 72.0,
    "versions": {"jax": "0.10.2"},
    "device": "cpu",
    "devices": 2,
    "git": "",
}


def study_claims(data):
    gap = float(data["losses"].max() - data["losses"].min())
    return [
        claims.at_most("P1 <gap>", "Someone & Else 2020", "the losses lie close", gap, 1.0),
        claims.at_most(
            "P1 control", "Someone 2020", "shuffled losses lie close", 2.0, 1.0, control=True
        ),
    ]


def study_figures(data):
    return {"loss_curves": plots.loss_curves(data["losses"])}


@pytest.fixture(autouse=True)
def study(monkeypatch):
    """A study that nobody trains: the report must not need its run function."""
    module = types.ModuleType("experiments.studies.tiny")
    module.TITLE, module.PAPER = (
        "A tiny study & its claims",
        "Someone & Else 2020, arXiv 0000.00000",
    )
    module.claims, module.figures = study_claims, lambda data: {}
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def write_run(path, scale=0.5, recorded=None):
    path.mkdir(parents=True)
    losses = xr.DataArray(
        scale * np.arange(6.0).reshape(2, 3) / 5 + 0.1,
        dims=("width", "learning_rate"),
        coords={"width": [64, 128], "learning_rate": [0.25, 0.5, 1.0]},
    )
    data = xr.Dataset({"losses": losses})
    config = {"study": "tiny", "task": {"name": "digits", "data_dir": ""}, "widths": [64, 128]}
    (path / "config.json").write_text(json.dumps(config))
    (path / "manifest.json").write_text(json.dumps(MANIFEST))
    (path / "claims.json").write_text(claims.to_json(recorded or study_claims(data)))
    rundir.write_dataset(path / "data.nc", data)
    return path


class Reader(html.parser.HTMLParser):
    """Collects what a browser would fetch or run, the text it would show, and tags left open."""

    def __init__(self):
        super().__init__()
        self.addresses, self.tags, self.open, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read_page(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert not reader.open
    return reader, " ".join(" ".join(reader.text).split())


def test_one_run_gives_a_table_figures_and_a_page_of_its_own(tmp_path, capsys, study):
    study.figures = study_figures
    run_dir = write_run(tmp_path / "a")
    assert report.main([str(run_dir)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"holds +P1 <gap> +0\.5 +\(<= 1\)", out)
    assert re.search(r"fails, as it must +P1 control +2 ", out)
    assert "1 of 1 claims hold; 1 of 1 controls fail, as they must" in out
    assert (run_dir / "figures" / "loss_curves.png").read_bytes()[:4] == b"\x89PNG"
    assert (run_dir / "figures" / "loss_curves.pdf").read_bytes()[:4] == b"%PDF"
    assert not (tmp_path / "claims.html").exists()
    reader, text = read_page(run_dir / "report.html")
    assert "script" not in reader.tags
    linked = [address for address in reader.addresses if not address.startswith("data:")]
    assert linked == ["figures/loss_curves.pdf", "data.nc", "claims.json", "config.json"]
    assert all((run_dir / address).is_file() for address in linked)
    for words in (
        *("A tiny study & its claims", "P1 <gap>", "≤ 1", "fails, as it must", "smoke preset"),
        *(
            "2 x cpu",
            "1 min 12 s",
            "task.name digits",
            "jax 0.10.2",
            "--config=experiments/configs/tiny.py",
        ),
        "Look at the large marks",
    ):
        assert words in text


@pytest.mark.parametrize("variant", ["smoke", "cpu"])
def test_only_a_smoke_run_warns_that_its_claims_decide_nothing(tmp_path, capsys, variant):
    runs = [write_run(tmp_path / name) for name in "ab"]
    for run in runs:
        (run / "manifest.json").write_text(json.dumps(MANIFEST | {"variant": variant}))
    readme = tmp_path / "README.md"
    readme.write_text("\n".join(report.README_MARKS))
    assert report.main([*map(str, runs), "--readme", str(readme)]) == 0
    pages = [read_page(path)[1] for path in (runs[0] / "report.html", tmp_path / "claims.html")]
    for text in (*pages, readme.read_text(), capsys.readouterr().out):
        assert ("its claims decide nothing" in text) == (variant == "smoke")


def test_a_claim_that_is_not_measured_says_why(tmp_path, study):
    needs = (claims.Precondition("fitted", False, "training accuracy < 1"),)
    study.claims = lambda data: [
        claims.at_most("P1", "Someone 2020", "falls", 0.5, 1.0, preconditions=needs)
    ]
    run_dir = write_run(tmp_path / "a")
    readme = tmp_path / "README.md"
    readme.write_text("\n".join(report.README_MARKS))
    assert report.main([str(run_dir), "--readme", str(readme)]) == 0
    _, text = read_page(run_dir / "report.html")
    assert "NOT MEASURED" in text
    assert "Not measured: fitted: training accuracy < 1" in text
    about = (tmp_path / "docs" / "studies" / "tiny.md").read_text()
    assert "NOT MEASURED (fitted: training accuracy &lt; 1)" in about


def test_the_same_files_give_the_same_bytes(tmp_path, study):
    study.figures = study_figures
    run_dir = write_run(tmp_path / "a")
    made = []
    for _ in range(2):
        assert report.main([str(run_dir)]) == 0
        files = ("report.html", "figures/loss_curves.png", "figures/loss_curves.pdf")
        made.append([(run_dir / file).read_bytes() for file in files])
    assert made[0] == made[1]


def test_several_runs_share_a_page_that_links_to_theirs(tmp_path, capsys):
    runs = [str(write_run(tmp_path / name)) for name in "ab"]
    assert report.main(runs) == 0
    reader, text = read_page(tmp_path / "claims.html")
    assert [address for address in reader.addresses if "html" in address] == [
        "a/report.html",
        "b/report.html",
    ]
    assert "2 of 2 claims hold; 2 of 2 controls fail, as they must" in text
    assert "2 of 2 claims hold; 2 of 2 controls fail, as they must" in capsys.readouterr().out
    assert report.main([runs[0], "--out", str(tmp_path / "pages" / "all.html")]) == 0
    reader, _ = read_page(tmp_path / "pages" / "all.html")
    assert "../a/report.html" in reader.addresses


def test_several_runs_are_told_apart_by_folder_and_by_the_keys_that_differ(tmp_path, capsys):
    runs = [write_run(tmp_path / name) for name in "abc"]
    for run_dir, widths in zip(runs, ([64, 128], [64, 256], [64, 128])):
        config = json.loads((run_dir / "config.json").read_text())
        config["widths"] = widths
        config["task"]["name"] = "mnist" if run_dir.name == "c" else "digits"
        (run_dir / "config.json").write_text(json.dumps(config))
    assert report.main([str(run_dir) for run_dir in runs]) == 0
    _, text = read_page(tmp_path / "claims.html")
    printed = capsys.readouterr().out
    for line in (
        "a: task.name = digits, widths = [64, 128]",
        "b: task.name = digits, widths = [64, 256]",
        "c: task.name = mnist, widths = [64, 128]",
    ):
        assert line in text
        assert line in printed


def test_the_command_can_be_pasted_into_a_shell(tmp_path):
    run_dir = write_run(tmp_path / "a")
    words = ["python", "-m", "experiments", "--config.widths=(64, 128)", "--config.names=('a b',)"]
    manifest = MANIFEST | {"command": words}
    (run_dir / "manifest.json").write_text(json.dumps(manifest))
    assert report.main([str(run_dir)]) == 0
    assert shlex.split(page.command(manifest)) == words
    assert page.command(manifest) in read_page(run_dir / "report.html")[1]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("study", 5),
        ("variant", None),
        ("command", 3),
        ("versions", []),
        ("devices", "two"),
        ("seconds", "long"),
        ("seconds", True),
        ("device", {}),
    ],
)
def test_a_manifest_of_other_types_is_one_message(key, value, tmp_path, capsys):
    run_dir = write_run(tmp_path / "a")
    (run_dir / "manifest.json").write_text(json.dumps(MANIFEST | {key: value}))
    assert report.main([str(run_dir)]) == 2
    assert f"manifest.json: {key} is {value!r}" in capsys.readouterr().err


def test_check_says_what_does_not_hold(tmp_path, capsys):
    run_dir = write_run(tmp_path / "a", scale=3.0)
    assert report.main([str(run_dir), "--check"]) == 1
    assert "does not hold: P1 <gap>" in capsys.readouterr().err


def test_claims_that_differ_from_the_recorded_ones_are_named(tmp_path, capsys):
    fine = write_run(tmp_path / "a")
    recorded = study_claims(rundir.read_dataset(fine / "data.nc"))
    changed = [recorded[0]._replace(measured=0.25), recorded[1]]
    run_dir = write_run(tmp_path / "b", recorded=changed)
    assert report.main([str(run_dir)]) == 0
    sentence = "P1 <gap>: recorded 0.25, computed 0.5"
    assert sentence in capsys.readouterr().out
    assert sentence in read_page(run_dir / "report.html")[1]
    assert report.main([str(run_dir), "--check"]) == 1
    assert report.main([str(fine), "--check"]) == 0


def test_a_failing_claim_is_a_result_unless_asked_to_check(tmp_path):
    run_dir = write_run(tmp_path / "a", scale=3.0)
    assert report.main([str(run_dir)]) == 0
    assert "✗ FAILS" in read_page(run_dir / "report.html")[1]
    assert report.main([str(run_dir), "--check"]) == 1


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("data.nc", None, r"data\.nc is missing"),
        ("data.nc", b"CDF\x02 cut", r"data\.nc cannot be read"),
        ("claims.json", None, r"claims\.json cannot be read"),
        (
            "claims.json",
            b'[{"name": "P1"}]',
            r"claims\.json cannot be read \(entry 0 is not a claim",
        ),
        ("claims.json", b"\xff", r"claims\.json cannot be read"),
        ("manifest.json", None, r"manifest\.json cannot be read"),
        ("manifest.json", b"{", r"manifest\.json cannot be read"),
        ("manifest.json", b"[]", r"manifest\.json holds a list"),
        ("manifest.json", b'{"study": "tiny"}', r"manifest\.json lacks variant, command"),
        ("manifest.json", json.dumps(MANIFEST | {"study": "gone"}).encode(), "no study 'gone'"),
        ("config.json", b"nothing", r"config\.json cannot be read"),
    ],
)
def test_a_damaged_run_is_one_message_and_the_others_are_reported(
    tmp_path, capsys, file, content, message
):
    broken, fine = write_run(tmp_path / "broken"), write_run(tmp_path / "fine")
    if content is None:
        (broken / file).unlink()
    else:
        (broken / file).write_bytes(content)
    assert report.main([str(broken), str(fine), "--check"]) == 2
    shown = capsys.readouterr()
    assert re.search(message, shown.err)
    assert len(shown.err.splitlines()) == 1
    assert str(broken) in shown.err or "gone" in shown.err
    assert (fine / "report.html").exists()
    assert not (broken / "report.html").exists()


def test_data_of_an_older_study_is_explained(tmp_path, capsys, study):
    run_dir = write_run(tmp_path / "a")
    study.claims = lambda data: data["sharpness"]
    assert report.main([str(run_dir)]) == 2
    assert re.search(
        r"data\.nc: .*tiny cannot make its claims from it \(KeyError", capsys.readouterr().err
    )
    assert report.main([str(tmp_path / "nothing")]) == 2
    assert "is not a directory" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["figures/loss_curves.png", "report.html"])
def test_a_full_disk_names_the_file_and_leaves_the_old_one(
    name, tmp_path, capsys, monkeypatch, study
):
    study.figures = study_figures
    run_dir = write_run(tmp_path / "a")
    assert report.main([str(run_dir)]) == 0
    capsys.readouterr()
    file = run_dir / name
    before, real = file.read_bytes(), os.fsync

    def full(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}") == f"{file}.part":
            raise OSError(27, "File too large")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert report.main([str(run_dir)]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"report: {file} could not be written (File too large); what was saved before is intact\n"
    )
    assert file.read_bytes() == before
    assert not list(run_dir.glob("**/*.part"))


@pytest.mark.parametrize("name", ["../../x", "a.b", "", "a b"])
def test_a_study_of_no_name_is_one_message(name, tmp_path, capsys):
    run_dir = write_run(tmp_path / "a")
    manifest = json.loads((run_dir / "manifest.json").read_text())
    (run_dir / "manifest.json").write_text(json.dumps(manifest | {"study": name}))
    assert report.main([str(run_dir)]) == 2
    assert "it is the name of no module" in capsys.readouterr().err


def test_claims_in_too_many_brackets_are_one_message(tmp_path, capsys):
    run_dir = write_run(tmp_path / "a")
    (run_dir / "claims.json").write_text("[" * 100_000)
    assert report.main([str(run_dir)]) == 2
    assert "claims.json cannot be read" in capsys.readouterr().err


def test_letters_that_a_terminal_lacks_end_nothing(tmp_path, monkeypatch):
    run_dir = write_run(tmp_path / "é")
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert report.main([str(run_dir)]) == 0
    stream.flush()
    assert b"\\xe9" in stream.buffer.getvalue()


def test_the_page_of_all_claims_takes_no_other_files_place(tmp_path, capsys):
    run_dir = write_run(tmp_path / "a")
    before = (run_dir / "data.nc").read_bytes()
    assert report.main([str(run_dir), "--out", str(run_dir / "data.nc")]) == 2
    assert "it must be a page" in capsys.readouterr().err
    assert (run_dir / "data.nc").read_bytes() == before
    page = tmp_path / "claims.html"
    page.write_text("of other runs")
    assert report.main([str(tmp_path / "none"), "--out", str(page)]) == 2
    assert page.read_text() == "of other runs"


def test_a_page_that_cannot_be_written_is_one_message(tmp_path, capsys, monkeypatch):
    run_dir = write_run(tmp_path / "a")

    def full(path, text):
        raise OSError(28, f"{path} could not be written (No space left on device)")

    monkeypatch.setattr(rundir, "write_text", full)
    assert report.main([str(run_dir)]) == 2
    assert "No space left" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.42, "0.42 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.9, "60 s"),
        (312, "5 min 12 s"),
        (7380, "2 h 3 min"),
    ],
)
def test_durations_in_words(seconds, words):
    assert page.duration(seconds) == words


def test_nested_keys_are_shown_as_on_the_command_line():
    config = {"a": 1, "task": {"name": "digits", "more": {"x": [1, 2]}}, "none": {}}
    assert page.flatten(config) == {
        "a": 1,
        "task.name": "digits",
        "task.more.x": [1, 2],
        "none": {},
    }


def test_readme_table_is_renewed_between_its_marks(tmp_path, study):
    study.figures, study.__doc__ = study_figures, "What it does, for x < 1.\n\nHow."
    run = write_run(tmp_path / "run")
    readme = tmp_path / "README.md"
    other = "| [Other](docs/studies/other.md) | paper | `other:cpu` | 1 of 1 claims hold |  |"
    readme.write_text(
        f"before\n{report.README_MARKS[0]}\nPREVIOUS\n{other}\n{report.README_MARKS[1]}\nafter\n"
    )
    for _ in range(2):  # a second time changes nothing
        assert report.main([str(run), "--readme", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "PREVIOUS" not in text
    assert text.index(other) < text.index("(docs/studies/tiny.md)")  # another study's line stays
    assert text.count("tiny:smoke") == 1
    about = (tmp_path / "docs" / "studies" / "tiny.md").read_text()
    assert "\n\nWhat it does, for x &lt; 1.\n\nHow.\n\n" in about
    assert about.count("| P1 &lt;gap&gt; | 0.5 | &lt;= 1 | holds |") == 1
    picture = (tmp_path / "figures" / "tiny.png").read_bytes()
    assert picture == (run / "figures" / "loss_curves.png").read_bytes()


def test_readme_without_marks_is_left_alone(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("no table")
    assert report.main([str(write_run(tmp_path / "run")), "--readme", str(readme)]) == 2
    assert "lacks the lines" in capsys.readouterr().err
    assert readme.read_text() == "no table"


def test_what_grids_took_is_kept_for_later_runs(tmp_path, capsys, monkeypatch):
    file = tmp_path / "costs.json"
    file.write_text('{"other": {"cpu": {"steps": 1, "grids": {}}}}')
    took = {"steps": 3, "grids": {"g": [2, [1.0, 2.0], [0.5, 0.5]]}}
    run = write_run(tmp_path / "run")
    assert report.main([str(run), "--costs", str(file)]) == 2
    assert "does not say what its grids took" in capsys.readouterr().err
    (run / "manifest.json").write_text(json.dumps(MANIFEST | {"grids": took}))
    assert report.main([str(run), "--costs", str(file)]) == 0
    assert list(json.loads(file.read_text())) == ["other", "tiny"]
    monkeypatch.setattr(clock, "FILE", file)
    clock._table.cache_clear()
    found = clock.measured("tiny", "smoke", 3)
    clock._table.cache_clear()
    assert found == ({"g": clock.Curve(2, [1.0, 2.0], [0.5, 0.5])}, True)
