"""Compares finished runs of one study from their files; it never trains.

::

    python -m experiments.compare RUN_DIR RUN_DIR [RUN_DIR ...] [--out PAGE.html]

One page, compare.html beside the first run directory or the file that --out names: the keys in which the runs differ,
their verdicts side by side, and their measurements over one another, one figure a variable.

Exit status: 0 the page is written, 2 it could not be and one message says why.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments import claims, files, page, report, rundir
from experiments.plots import drawing

MOST_PANELS = 12
STYLES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1, 1, 1)))
"""Lines of two runs that lie on one another can still be told apart."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.compare",
        description="Compare finished runs of one study: differing keys, verdicts, curves over one another.",
    )
    parser.add_argument("run_dirs", nargs="+", type=pathlib.Path, metavar="RUN_DIR")
    parser.add_argument("--out", type=pathlib.Path, help="file for the page")
    options = parser.parse_args(argv)
    try:
        path = options.out or options.run_dirs[0].resolve().parent / "compare.html"
        write_page(path, options.run_dirs)
    except (ValueError, OSError) as error:
        print(f"compare: {files.message(error)}", file=sys.stderr)
        return 2
    return 0


def write_page(path: pathlib.Path, run_dirs: Sequence[pathlib.Path]) -> None:
    """Writes the page that compares these runs, and prints its two tables.

    Raises:
        ValueError: fewer than two runs, runs of different studies, or a file of one is missing or damaged.
        OSError: the page cannot be written.
    """
    if len({run_dir.resolve() for run_dir in run_dirs}) < max(2, len(run_dirs)):
        raise ValueError(
            f"two or more different run directories are compared; given: {', '.join(map(str, run_dirs))}"
        )
    runs = dict(zip(_names(run_dirs), map(report.read_run, run_dirs)))
    studies = {manifest["study"] for _, manifest, _, _ in runs.values()}
    if len(studies) > 1:
        raise ValueError(
            f"the runs are of different studies, {', '.join(sorted(studies))}; compare those of one. "
            "One page with all their claims: python -m experiments.report RUN_DIR ..."
        )
    keys = differing_keys({name: config for name, (config, *_) in runs.items()})
    verdicts = side_by_side({name: judged for name, (*_, judged) in runs.items()})
    figures, left_out = curves({name: data for name, (_, _, data, _) in runs.items()})
    head = ("", *runs)
    tables = {
        "Keys that differ": (("key", *runs), keys, "" if keys else "No key differs."),
        "Verdicts": (("claim", *runs), verdicts, ""),
    }
    if left_out:
        tables["Not drawn"] = (("variable", "why"), list(left_out.items()), "")
    (study,) = studies
    title = f"{pathlib.PurePath(study).stem}: {len(runs)} runs compared"
    addresses = {
        name: pathlib.Path(
            os.path.relpath(run_dir.resolve() / "report.html", path.resolve().parent)
        ).as_posix()
        for name, run_dir in zip(runs, run_dirs)
    }
    pictures = [_picture(name, figure) for name, figure in figures.items()]
    with files.named(path.resolve().parent):
        path.resolve().parent.mkdir(parents=True, exist_ok=True)
    rundir.write_text(path, page.comparison_page(title, addresses, tables, pictures))
    for rows in (keys, verdicts):
        print(_text((head, *rows)))
    print(f"page: {path}")


def _names(run_dirs: Sequence[pathlib.Path]) -> list[str]:
    """The folders' own names where these differ, else their paths."""
    short = [run_dir.resolve().name for run_dir in run_dirs]
    return short if len(set(short)) == len(short) else [str(run_dir) for run_dir in run_dirs]


def differing_keys(configs: Mapping[str, dict]) -> list[tuple[str, ...]]:
    """(key, value in each run) of every key of the configurations in which they differ."""
    flat = [page.flatten(config) for config in configs.values()]
    keys = dict.fromkeys(itertools.chain(*flat))
    rows = [(key, *(page.plain(one[key]) if key in one else "-" for one in flat)) for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def side_by_side(judged: Mapping[str, Sequence[claims.Claim]]) -> list[tuple[str, ...]]:
    """(claim, verdict and value in each run), "-" where a run has no claim of that name."""
    found = [{claim.name: claim for claim in made} for made in judged.values()]
    rows = []
    for name in dict.fromkeys(itertools.chain(*found)):
        ours = [one.get(name) for one in found]
        rows.append(
            (name, *(f"{claims.verdict(c)}: {claims.value_text(c)}" if c else "-" for c in ours))
        )
    return rows


def curves(runs: Mapping[str, xr.Dataset]) -> tuple[dict[str, Figure], dict[str, str]]:
    """The measurements of the runs over one another.

    Args:
        runs: name -> labelled result.

    Returns:
        ({variable: figure}, {variable: why it is not drawn}). A figure has one line a run: the median over seeds with
        their band, against the last dimension that has numbers; one panel for each place of the other dimensions.
    """
    made, left_out = {}, {}
    for name in dict.fromkeys(itertools.chain(*(data.data_vars for data in runs.values()))):
        arrays = {run: data[name] for run, data in runs.items() if name in data}
        if any(array.dtype.kind not in "iuf" for array in arrays.values()):
            continue
        if len(arrays) < 2 or len({array.dims for array in arrays.values()}) > 1:
            left_out[name] = "not in two of the runs, or with other dimensions"
            continue
        lines = {run: _lines(array) for run, array in arrays.items()}
        panels = list(dict.fromkeys(itertools.chain(*lines.values())))
        if not panels:
            left_out[name] = "no dimension with numbers"
        elif len(panels) > MOST_PANELS:
            left_out[name] = f"{len(panels)} panels, more than {MOST_PANELS}"
        else:
            made[name] = _figure(str(name), lines, panels, list(runs))
    return made, left_out


def _is_seed(dim: str) -> bool:
    return dim == "seed" or dim.endswith("_seed")


def _lines(array: xr.DataArray) -> dict[str, xr.DataArray]:
    """Panel -> (seed, horizontal axis); {} where no dimension has two or more numbers."""
    seeds = [dim for dim in array.dims if _is_seed(dim)]
    wide = [
        dim
        for dim in array.dims
        if dim not in seeds
        and dim in array.coords
        and array[dim].dtype.kind in "iuf"
        and array.sizes[dim] > 1
    ]
    if not wide:
        return {}
    rest = [dim for dim in array.dims if dim not in (*seeds, wide[-1])]
    found = {}
    for place in itertools.product(*(range(array.sizes[dim]) for dim in rest)):
        line = array.isel(dict(zip(rest, place)))
        named = [
            (dim, line.coords[dim].item() if dim in line.coords else k)
            for dim, k in zip(rest, place)
        ]
        title = ", ".join(f"{drawing.words(dim)} {drawing.NAMES.get(v, v)}" for dim, v in named)
        if len(seeds) > 1:
            line = line.stack(seed=seeds)
        elif seeds:
            line = line.rename({seeds[0]: "seed"})
        found[title] = line
    return found


@drawing.style()
def _figure(name: str, lines: Mapping, panels: list[str], runs: list[str]) -> Figure:
    first = next(iter(next(iter(lines.values())).values()))
    (dim,) = (dim for dim in first.dims if dim != "seed")
    label = drawing.label_of(first, drawing.words(name))
    caption = f"{label[:1].upper()}{label[1:]} of the runs over one another; bands span the seeds."
    made, axes = drawing.figure(panels, caption=caption, sharey=False)
    for ax, panel in zip(axes, panels):
        values = []
        for number, run in enumerate(runs):
            if (line := lines.get(run, {}).get(panel)) is None:
                continue
            drawing.curve(ax, line, dim, drawing.PALETTE[number % len(drawing.PALETTE)], label=run)
            ax.lines[-1].set_linestyle(STYLES[number % len(STYLES)])
            values.append((line[dim].values.astype(float), line.values.ravel()))
        for set_scale, part in ((ax.set_xscale, 0), (ax.set_yscale, 1)):
            if drawing.spans_decades(np.concatenate([pair[part] for pair in values])):
                set_scale("log")
        drawing.log_ticks(ax.xaxis)
        drawing.log_ticks(ax.yaxis)
        ax.set_title(panel, fontsize=8)
        ax.set_xlabel(drawing.label_of(first[dim], drawing.words(dim)))
    axes[0].set_ylabel(label)
    drawing.legend(axes[-1], "run")
    return made


@drawing.style()
def _picture(name: str, figure: Figure) -> page.Picture:
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Title": name})
    return page.Picture(
        name, str(figure.get_label()), content.getvalue(), figure.get_size_inches()[0]
    )


def _text(rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ("  ".join(cell.ljust(n) for cell, n in zip(row, widths)).rstrip() for row in rows)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
