"""Every block of Python in the how-to pages runs in its order; every example of a docstring gives what it says."""

import doctest
import importlib
import inspect
import pathlib
import re
import subprocess
import sys

import pytest

import limits
import metrics
import ntk
from experiments import tasks

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted((DOCS / "howto").glob("*.md"))


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_a_page_shows_runs(page, capsys):
    names = {"__name__": page.stem}
    for block in blocks(page):
        if not block.startswith("# mine.py"):
            exec(compile(block, page.name, "exec"), names)
    if page.stem == "mup":
        assert "scale as predicted" in capsys.readouterr().out


def test_what_the_readme_shows_runs(tmp_path, monkeypatch):
    """All but its last block, which is about a training of the reader's own; its data are made fewer."""
    monkeypatch.chdir(tmp_path)
    few = tasks.load(tasks.default_config("digits"))
    few = few._replace(train=type(few.train)(*(leaf[:64] for leaf in few.train)))
    monkeypatch.setattr(tasks, "load", lambda config: few)
    *shown, last = blocks(ROOT / "README.md")
    assert "along_training" in last
    names = {"__name__": "readme"}
    for block in shown:
        exec(compile(block, "README.md", "exec"), names)
    assert names["found"].passed
    assert names["theta"].shape == (64, 64)


NAME = re.compile(r"(?<![\w./])((?:ntk|limits|metrics|models|experiments)(?:\.[A-Za-z_]\w*)+)")
TEXTS = ["README.md", "CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in DOCS.rglob("*.md"))]


@pytest.mark.parametrize("text", sorted(t for t in TEXTS if "_build" not in t))
def test_names_that_a_page_gives_exist(text):
    """In spans of code: what a table says is to be called is there to be called."""
    for span in re.findall(r"`([^`\n]+)`", (ROOT / text).read_text(encoding="utf-8")):
        for name in NAME.findall(span):
            if name.endswith((".py", ".jsonl")):
                continue
            package, *rest = name.split(".")
            found = importlib.import_module(package)
            for part in rest:
                if not hasattr(found, part):
                    found = importlib.import_module(f"{found.__name__}.{part}")
                else:
                    found = getattr(found, part)


def test_the_study_of_the_page_runs_from_anywhere(tmp_path):
    (block,) = blocks(ROOT / "docs" / "howto" / "study.md")
    (tmp_path / "mine.py").write_text(block)
    command = ["-m", "experiments", "--config=mine.py:smoke", "--workdir=run"]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "1 of 1 claims hold" in done.stdout
    assert (tmp_path / "run" / "data.nc").exists()


def examples():
    """Public functions whose documentation shows an example."""
    found = {}
    for package in (ntk, limits, metrics):
        for name in package.__all__:
            value = getattr(package, name)
            if callable(value) and ">>>" in (inspect.getdoc(value) or ""):
                found[f"{package.__name__}.{name}"] = value
    return found


def test_the_functions_that_everyone_meets_first_show_an_example():
    first = {
        *("ntk.width_axes", "ntk.infinite_width", "ntk.empirical_ntk"),
        *("limits.parametrize", "limits.criticality"),
        *("metrics.sharpness", "metrics.trace", "metrics.fit_power_law"),
    }
    assert first <= set(examples())


@pytest.mark.parametrize("name", sorted(examples()))
def test_what_a_docstring_shows_is_what_comes_out(name):
    text = inspect.getdoc(examples()[name])
    found = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    said = []
    doctest.DocTestRunner(verbose=False).run(found, out=said.append)
    assert not said, "".join(said)
