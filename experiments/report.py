"""Reports finished runs from their files; it never trains.

::

    python -m experiments.report RUN_DIR [RUN_DIR ...] [--out PAGE.html] [--check] [--readme README.md]

For each run directory: the claims, computed anew from data.nc and compared with claims.json, as a table in the
terminal; figures/<name>.png and .pdf; report.html, one self-contained page. For several, also one page of all claims
(claims.html beside the first run directory, or the file that --out names). With --readme, also the lines of these
studies in the table between the marks of that file and, beside it, their pages in docs/studies and figures in figures/.
With --costs, also what the grids of these runs took, in the file by which later runs say what is left of them.

Exit status: 0 when every run could be reported, whether or not its claims hold; 2 when one could not (the others are
reported all the same); with --check, 1 when a claim fails or claims.json disagrees with data.nc.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import io
import os
import pathlib
import re
import signal
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import xarray as xr
from matplotlib.figure import Figure

from experiments import (
    claims,
    clock,
    contract,
    files,
    page,
    plots,
    rundir,
    seals,
    settings,
    signals,
)

README_MARKS = "<!-- studies -->", "<!-- end of studies -->"
README_HEAD = "| study | paper | configuration | claims | figure |\n" + "| - " * 5 + "|"
MANIFEST_KEYS = (
    *("study", "variant", "command", "started", "finished"),
    *("seconds", "versions", "device", "devices", "git"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description="Report finished runs from their files: claims, figures, one page each. Never trains.",
        epilog="Exit status: 0 reported, 1 a claim fails (with --check), 2 a run could not be reported.",
    )
    parser.add_argument("run_dirs", nargs="+", type=pathlib.Path, metavar="RUN_DIR")
    parser.add_argument("--out", type=pathlib.Path, help="file for the page of all claims")
    parser.add_argument(
        "--check", action="store_true", help="exit with status 1 when a claim fails"
    )
    parser.add_argument(
        "--readme", type=pathlib.Path, help="text file whose lines of these studies are renewed"
    )
    parser.add_argument(
        "--costs", type=pathlib.Path, help="file of seconds, such as experiments/costs.json"
    )
    options = parser.parse_args(argv)
    files.printable()
    try:
        with signals.interrupting():
            return _report(options)
    except BrokenPipeError:  # the reader of the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as interrupt:
        print("interrupted; the same command begins again", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)


def _report(options: argparse.Namespace) -> int:
    reports, status = [], 0
    if options.out is not None and options.out.suffix not in (".html", ".htm"):
        print(
            f"report: --out is {str(options.out)!r}; it must be a page, such as claims.html: what stood there is lost",
            file=sys.stderr,
        )
        return 2
    for run_dir in options.run_dirs:
        try:
            reports.append((run_dir, report_run(run_dir)))
        except BrokenPipeError:
            raise
        except (ValueError, OSError, MemoryError) as error:
            print(f"report: {files.message(error)}", file=sys.stderr)
            status = 2
    try:
        if reports and (options.out is not None or len(reports) > 1):
            write_summary(options.out or reports[0][0].resolve().parent / "claims.html", reports)
        if options.readme is not None and status == 0:
            write_readme(options.readme, [report for _, report in reports])
        if options.costs is not None and status == 0:
            write_costs(options.costs, reports)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        print(f"report: {files.message(error)}", file=sys.stderr)
        status = 2
    if options.check and status == 0:
        for run_dir, report in reports:
            failed = [claim.name for claim in report.claims if not claim.passed]
            if failed:
                print(f"check: {run_dir}: does not hold: {'; '.join(failed)}", file=sys.stderr)
            if report.differences:
                print(f"check: {run_dir}: claims.json does not agree with data.nc", file=sys.stderr)
            if failed or report.differences:
                status = 1
    return status


def report_run(run_dir: pathlib.Path) -> page.Report:
    """Reads one run directory, prints its claims, writes its figures and its page.

    Raises:
        ValueError: a file of the run is missing or damaged, or its study is not there any more.
        OSError: the page or a figure cannot be written.
    """
    config, manifest, data, recorded = read_run(run_dir)
    study = import_study(manifest["study"])
    computed = contract.claims(study, _of_study(run_dir, study, "claims", data), data)
    figures = contract.figures(study, _of_study(run_dir, study, "figures", data))
    report = page.Report(
        title=data.attrs.get("title", study.TITLE),
        paper=study.PAPER,
        claims=computed,
        differences=claims.differences(recorded, computed),
        pictures=[save_figure(run_dir, name, figure) for name, figure in figures.items()],
        config=config,
        manifest=manifest,
        tables=contract.tables(study, data),
    )
    rundir.write_text(run_dir / "report.html", page.run_page(report))
    claims.print_table(computed, f"{report.title} ({study.PAPER}), {run_dir}")
    if warning := page.warning(manifest):
        print(warning)
    for sentence in report.differences:
        print(f"claims.json does not agree with data.nc: {sentence}")
    print(f"page: {run_dir / 'report.html'}\n")
    return report


def read_run(
    run_dir: pathlib.Path,
) -> tuple[dict[str, Any], dict[str, Any], xr.Dataset, list[claims.Claim]]:
    """(config, manifest, data, recorded claims) of a finished run.

    Raises:
        ValueError: naming the file that is missing or damaged.
    """
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir} is not a directory; expected one that experiments.run made")
    config, manifest = (
        rundir.read_object(run_dir / name) for name in ("config.json", "manifest.json")
    )
    _check_manifest(run_dir / "manifest.json", manifest)
    data = rundir.read_dataset(run_dir / "data.nc", seals.digest(config))
    path = run_dir / "claims.json"
    try:
        recorded = claims.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); run the command of the run again"
        ) from error
    return config, manifest, data, recorded


def _check_manifest(path: pathlib.Path, manifest: dict[str, Any]) -> None:
    missing = [key for key in MANIFEST_KEYS if key not in manifest]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    kinds = {"study": str, "variant": str, "command": list | str, "versions": dict, "devices": int}
    kinds |= {"seconds": int | float, "device": str}
    for key, kind in kinds.items():
        if not isinstance(manifest[key], kind) or isinstance(manifest[key], bool):
            raise ValueError(
                f"{path}: {key} is {manifest[key]!r}: the file is damaged; run the command of the run again"
            )


def import_study(name: str) -> ModuleType:
    """The module of a study; one outside this package is named by its file.

    Raises:
        ValueError: there is none of that name.
    """
    if str(name).endswith(".py"):
        return settings.find_study(name)
    module = f"experiments.studies.{name}"
    if not str(name).isidentifier():
        raise ValueError(f"no study {name!r}: it is the name of no module")
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ValueError(f"no study {name!r}: there is no module {module}") from error


def save_figure(run_dir: pathlib.Path, name: str, figure: Figure) -> page.Picture:
    """Writes figures/<name>.png and .pdf, whose bytes depend on the figure alone."""
    signals.check()
    folder = run_dir / "figures"
    with files.named(folder):
        folder.mkdir(exist_ok=True)
    drawn = {}
    with plots.style():
        for kind, metadata in (
            ("png", {"Title": name}),
            ("pdf", {"Title": name, "CreationDate": None}),
        ):
            content = io.BytesIO()
            try:
                figure.savefig(content, format=kind, metadata=metadata)
            except Exception as error:  # text that is no mathematics, say
                raise ValueError(f"figure {name!r} cannot be drawn ({error})") from error
            drawn[kind] = content.getvalue()
            files.replace(folder / f"{name}.{kind}", drawn[kind])
    return page.Picture(name, str(figure.get_label()), drawn["png"], figure.get_size_inches()[0])


def write_summary(path: pathlib.Path, reports: Sequence[tuple[pathlib.Path, page.Report]]) -> None:
    """Writes the page of all claims, which links to each run's own page."""
    path = path.resolve()
    linked = [
        (
            pathlib.Path(
                os.path.relpath(run_dir.resolve() / "report.html", path.parent)
            ).as_posix(),
            report,
        )
        for run_dir, report in reports
    ]
    with files.named(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    rundir.write_text(path, page.summary_page(linked))
    every = [claim for _, report in reports for claim in report.claims]
    if len(linked) > 1:
        print("\n".join(page.folders(linked)))
    print(f"{claims.summary(every)}\npage: {path}")


def write_readme(path: pathlib.Path, reports: Sequence[page.Report]) -> None:
    """Renews the lines of these studies in a text file's table, and their pages and first figures beside it.

    The pages are docs/studies/NAME.md, the figures figures/NAME.png. Lines of other studies stay; all are in order of
    their names.

    Raises:
        ValueError: the file lacks the two marks between which the table stands.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error})") from error
    before, begin, rest = text.partition(README_MARKS[0])
    table, end, after = rest.partition(README_MARKS[1])
    if not (begin and end):
        raise ValueError(f"{path} lacks the lines {README_MARKS[0]} and {README_MARKS[1]}")
    rows = {m[1]: m[0] for m in re.finditer(r"^\|.*\(docs/studies/(\w+)\.md\).*$", table, re.M)}
    pictures, pages = path.parent / "figures", path.parent / "docs" / "studies"
    for folder in (pictures, pages):
        with files.named(folder):
            folder.mkdir(parents=True, exist_ok=True)
    for report in reports:
        name = page.study_name(report)
        rows[name] = page.readme_row(report)
        if report.pictures:
            files.replace(pictures / f"{name}.png", report.pictures[0].png)
        about = inspect.getdoc(import_study(report.manifest["study"])) or ""
        rundir.write_text(pages / f"{name}.md", page.study_page(report, about))
    lines = [README_HEAD, *(rows[name] for name in sorted(rows))]
    rundir.write_text(path, f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{after}")


def write_costs(path: pathlib.Path, reports: Sequence[tuple[pathlib.Path, page.Report]]) -> None:
    """Renews what the grids of presets took, see `experiments.clock`, in a file of seconds.

    Raises:
        ValueError: a run was not measured from its beginning to its end in one process, or the file is damaged.
    """
    known = files.read_object(path) if path.exists() else {}
    for run_dir, report in reports:
        manifest = report.manifest
        if not manifest.get("grids"):
            raise ValueError(
                f"{run_dir} does not say what its grids took: it was interrupted, or run on a cluster; run it again in "
                "an empty folder"
            )
        name = page.study_name(report)
        known.setdefault(name, {})[manifest["variant"]] = manifest["grids"]
    rundir.write_text(path, clock.to_json(known))


def _of_study(run_dir: pathlib.Path, study: ModuleType, what: str, data: xr.Dataset):
    try:
        return getattr(study, what)(data)
    except Exception as error:  # data.nc of an older study can fail in any way
        raise ValueError(
            f"{run_dir / 'data.nc'}: {study.__name__} cannot make its {what} from it "
            f"({type(error).__name__}: {error}); if the study has changed since, run it again"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
