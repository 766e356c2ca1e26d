"""Every block of Python in the how-to pages runs, in the order of its page."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "howto").glob("*.md"))


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
