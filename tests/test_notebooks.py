"""Every notebook runs from top to bottom, quickly, and is committed without its outputs."""

import pathlib
import time

import nbformat
import pytest
from nbclient import NotebookClient

# The others take as long again each; `make test-studies` runs them.
QUICK = {"00_tour"}
NOTEBOOKS = sorted((pathlib.Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


# What a notebook's text says of its figures, asserted in a cell of its own at the end.
CLAIMS = {
    "00_tour": """
assert checks["mup"].passed, checks["mup"].verdict
assert checks["ntk"].passed, checks["ntk"].verdict
assert all(np.isfinite(c.change).all() and np.isfinite(c.size).all() for c in checks.values())
assert np.isfinite(sweep.min("learning_rate")).all()
assert np.isfinite(followed).all() and (followed * stable / 2 < 2).all(), followed
assert (followed[:, -1] > followed.min("step")).all()
""",
    "theory_of_your_model": """
assert critical.kind == "half-stable"
assert abs(nngp / critical.variance - 1) < 1e-4
assert np.abs(theory.K / critical.variance - 1).max() < 1e-6
assert default.K[-1] < 1e-3 * default.K[0]
off = {width: predicted[width] / last[width] for width in WIDTHS}
assert off[32] < 0.85 and abs(off[256] - 1) < 0.1, off
assert 480 < (DEPTH + 1) / ratio < 500
""",
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_no_outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in cells)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else pytest.mark.slow)
        for path in NOTEBOOKS
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_notebook_runs(path):
    notebook = nbformat.read(path, as_version=4)
    if path.stem in CLAIMS:
        notebook.cells.append(nbformat.v4.new_code_cell(CLAIMS[path.stem]))
    start = time.monotonic()
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": path.parent}}).execute()
    figures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert figures, "a notebook draws something"
    print(f"{path.stem}: {time.monotonic() - start:.0f} s")
