"""The report as one HTML page: no script, nothing fetched, readable on a phone, in the dark and on paper."""

from __future__ import annotations

import base64
import json
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from experiments.claims import Claim, criterion_text, reason, summary, value_text, verdict
from experiments.judges import CLEAR

CSS = """
:root { --ink: #1b1d20; --muted: #5d6369; --line: #dfe2e6; --paper: #fff; --soft: #f5f6f8;
  --good: #116b3a; --good-soft: #e3f4ea; --bad: #a8230f; --bad-soft: #fdeae6; --link: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --muted: #a2a9b1; --line: #363b41; --paper: #15171a;
  --soft: #1f2226; --good: #7ddba3; --good-soft: #12351f; --bad: #ff9d8a; --bad-soft: #45190f; --link: #8ab8f5; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: break-word;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: clamp(1.6rem, 4vw, 2.2rem); line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .8rem; }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .5rem; }
p { margin: .4rem 0; max-width: 46rem; }
a { color: var(--link); }
.muted, figcaption, td small { color: var(--muted); }
.summary { font-size: 1.1rem; font-weight: 600; margin-top: 1rem; }
.warning { background: var(--bad-soft); color: var(--bad); padding: .7rem 1rem; border-radius: .5rem; margin: 1rem 0; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-weight: 600; font-size: .85rem; color: var(--muted); }
th, td { padding: .6rem .9rem .6rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td small { display: block; font-size: .85rem; }
.plain td { font-size: .88rem; padding: .3rem .9rem .3rem 0; overflow-wrap: anywhere; }
.number { white-space: nowrap; font-variant-numeric: tabular-nums; }
.verdict { display: inline-block; padding: .1rem .6rem; border-radius: 1rem; font-size: .88rem; font-weight: 600;
  white-space: nowrap; }
.good { color: var(--good); background: var(--good-soft); }
.bad { color: var(--bad); background: var(--bad-soft); }
.open { color: var(--muted); background: var(--soft); }
figure { margin: 1.8rem 0 2.4rem; }
.scroll { overflow-x: auto; background: #fff; border: 1px solid var(--line); border-radius: .5rem; padding: .6rem; }
.scroll img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { margin-top: .6rem; max-width: 46rem; }
figcaption strong { color: var(--ink); }
pre { background: var(--soft); padding: .8rem 1rem; border-radius: .5rem; overflow-x: auto; margin: .6rem 0; }
pre, code { font: .88rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.facts { columns: 22rem 2; column-gap: 2.5rem; }
.facts div { display: flex; justify-content: space-between; gap: 1rem; padding: .22rem 0;
  border-bottom: 1px solid var(--line); break-inside: avoid; font-size: .92rem; }
.facts dt { color: var(--muted); }
.facts dd { margin: 0; text-align: right; overflow-wrap: anywhere; min-width: 0; }
@media (max-width: 40rem) {
  main { padding: 1.5rem 1rem 3rem; }
  table, tbody, tr, td { display: block; width: 100%; }
  thead { display: none; }
  tr { border-bottom: 1px solid var(--line); padding: .9rem 0; }
  td { border: 0; padding: .12rem 0; }
  td[data-label]::before { content: attr(data-label) "  "; color: var(--muted); font-size: .85rem; }
  .number { white-space: normal; }
  .wide img { max-width: none; width: 44rem; }
  .wide::after { content: "swipe sideways"; color: #5f6368; font-size: .75rem; position: sticky; left: 0; }
}
@media print { .scroll { border: 0; } figure, tr { break-inside: avoid; } }
"""


class Picture(NamedTuple):
    """A drawn figure: its name, its caption, the PNG file's bytes and its width in inches."""

    name: str
    caption: str
    png: bytes
    inches: float


class Report(NamedTuple):
    """All that a page shows of one run; tables are title -> (head, rows, note)."""

    title: str
    paper: str
    claims: Sequence[Claim]
    differences: Sequence[str]
    pictures: Sequence[Picture]
    config: dict[str, Any]
    manifest: dict[str, Any]
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]], str]] = {}


def warning(manifest: dict[str, Any]) -> str:
    """What a reader of the claims must know about a run, if anything."""
    if manifest["variant"] != "smoke":
        return ""
    return "A smoke run is too small and too short: its claims decide nothing, whether they hold or not."


def run_page(report: Report) -> str:
    """The page of one run: claims, figures, how to repeat it, configuration, versions."""
    manifest = report.manifest
    line = f"{manifest['variant']} preset · {device(manifest)} · {duration(manifest['seconds'])}"
    parts = [
        f"<h1>{escape(report.title)}</h1>",
        f"<p class=muted>{escape(report.paper)}</p>",
        f"<p class=muted>{escape(line)}</p>",
        _warning(manifest),
        f"<p class=summary>{escape(summary(report.claims))}</p>",
        _differences(report.differences),
        "<h2>Claims</h2>",
        _claims(report.claims),
        *(_table(title, *table) for title, table in report.tables.items()),
        "<h2>Figures</h2>" if report.pictures else "",
        *(_figure(picture, f"figures/{picture.name}.pdf") for picture in report.pictures),
        "<h2>Repeat it</h2>",
        f"<pre>{escape(command(manifest))}</pre>",
        '<p>Beside this page: the measurements, <a href="data.nc">data.nc</a> '
        '(<code>xarray.load_dataset</code>), <a href="claims.json">claims.json</a>, '
        '<a href="config.json">config.json</a>.</p>',
        "<h2>Configuration</h2>",
        _facts(flatten(report.config)),
        "<h2>Versions, device, time</h2>",
        _facts(_provenance(manifest)),
    ]
    return _document(report.title, parts)


def summary_page(reports: Sequence[tuple[str, Report]]) -> str:
    """The claims of several runs on one page.

    Args:
        reports: (address of the run's own page, report) for each.
    """
    every = [claim for _, report in reports for claim in report.claims]
    parts = ["<h1>All claims</h1>", f"<p class=summary>{escape(summary(every))}</p>"]
    for (address, report), folder in zip(reports, folders(reports)):
        about = f"{report.paper} · {report.manifest['variant']} preset · {duration(report.manifest['seconds'])}"
        parts += [
            f'<h2><a href="{escape(address)}">{escape(report.title)}</a></h2>',
            f"<p class=muted>{escape(about)}</p>",
            f"<p class=muted>{escape(folder)}</p>",
            _warning(report.manifest),
            f"<p>{escape(summary(report.claims))}</p>",
            _differences(report.differences),
            _claims(report.claims),
        ]
    return _document("All claims", parts)


def comparison_page(
    title: str,
    addresses: Mapping[str, str],
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]], str]],
    pictures: Sequence[Picture],
) -> str:
    """Several runs of one study on one page.

    Args:
        title: of the page.
        addresses: run -> address of its own page.
        tables: title -> (head, rows, note).
        pictures: the runs' curves over one another.
    """
    links = ", ".join(f'<a href="{escape(to)}">{escape(run)}</a>' for run, to in addresses.items())
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{links}</p>",
        *(_table(name, *table) for name, table in tables.items()),
        "<h2>Curves</h2>" if pictures else "",
        *(_figure(picture) for picture in pictures),
    ]
    return _document(title, parts)


def folders(reports: Sequence[tuple[str, Report]]) -> list[str]:
    """The folder of each run and, of several runs of one study, the keys in which they differ.

    Args:
        reports: (address of the run's own page, report) for each.
    """
    found = []
    for address, report in reports:
        here = flatten(report.config)
        same = [r.config for _, r in reports if r.manifest["study"] == report.manifest["study"]]
        keys = [key for key in here if any(_value(config, key) != here[key] for config in same)]
        name = address.rpartition("/")[0] or "."
        values = ", ".join(f"{key} = {plain(here[key])}" for key in keys)
        found.append(f"{name}: {values}" if values else name)
    return found


def _value(config: dict[str, Any], key: str) -> Any:
    return flatten(config).get(key, "(not there)")


def readme_row(report: Report) -> str:
    """A study as a line of a Markdown table: its page in docs/studies, paper, configuration, claims, first figure."""
    name = study_name(report)
    cells = (
        f"[{_cell(report.title)}](docs/studies/{name}.md)",
        _cell(report.paper),
        f"`{name}:{report.manifest['variant']}`",
        _verdicts(report),
        f"[figure](figures/{name}.png)" if report.pictures else "",
    )
    return f"| {' | '.join(cells)} |"


def study_page(report: Report, about: str) -> str:
    """A study's page of the documentation, in Markdown: its text, every claim as measured, first figure.

    Args:
        report: of a run of the study.
        about: the text of its module, in paragraphs.
    """
    name = study_name(report)
    command = (
        f"python -m experiments --config={report.manifest['study']}:{report.manifest['variant']}"
    )
    lines = [
        f"# {_cell(report.title)}",
        f"{_cell(report.paper)}",
        f"```\n{command}\n```",
        _verdicts(report),
        *([escape(about, quote=False)] if about else []),
    ]
    if report.pictures:
        lines.append(f"![{name}](../../figures/{name}.png)")
    table = ["| claim | measured | criterion | verdict |", "| - | - | - | - |"]
    for claim in report.claims:
        why = reason(claim)
        outcome = f"{verdict(claim)} ({why})" if why else verdict(claim)
        cells = (claim.name, value_text(claim), criterion_text(claim), outcome)
        table.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n\n".join([*lines, "\n".join(table)]) + "\n"


def study_name(report: Report) -> str:
    """Name of the study, without the folder and the ending of a user's own file."""
    return pathlib.PurePath(report.manifest["study"]).stem


def _verdicts(report: Report) -> str:
    return f"{warning(report.manifest)} {summary(report.claims)}".strip()


def _cell(text: str) -> str:
    """Text that cannot end a cell of a Markdown table or begin a tag in it."""
    return escape(text, quote=False).replace("|", "\\|").replace("\n", " ")


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys with dots between them, as they are set on the command line."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def duration(seconds: float) -> str:
    """A time in words: 0.4 s, 5 min 12 s, 2 h 3 min."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def device(manifest: dict[str, Any]) -> str:
    """The kind of device, and how many where there are several."""
    count = manifest["devices"]
    return f"{count} x {manifest['device']}" if count != 1 else str(manifest["device"])


def command(manifest: dict[str, Any]) -> str:
    """The command line that made the run, quoted for a shell."""
    words = manifest["command"]
    return words if isinstance(words, str) else shlex.join(map(str, words))


def _provenance(manifest: dict[str, Any]) -> dict[str, Any]:
    shown = {
        key: value
        for key, value in manifest.items()
        if key not in ("command", "versions", "seconds")
    }
    return shown | {"time": duration(manifest["seconds"])} | manifest["versions"]


def _claims(claims: Sequence[Claim]) -> str:
    rows = "".join(_row(claim) for claim in claims)
    head = "".join(f"<th>{name}</th>" for name in ("Claim", "Measured", "Criterion", "Verdict"))
    note = ""
    if any(claim.control for claim in claims):
        note = (
            "<p class=muted>A control is a setting that must miss the criterion. If it met it, the experiment could "
            "not tell right from wrong.</p>"
        )
    if any(need.name == CLEAR and not need.met for claim in claims for need in claim.preconditions):
        note += (
            "<p class=muted>A number that is not clear of its criterion, because an end of the criterion lies in the "
            "interval of its error, decides nothing. The interval narrows as the inverse root of the number of runs "
            "(seeds); so many would decide if the number stayed what it is.</p>"
        )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{note}"


def _row(claim: Claim) -> str:
    criterion = criterion_text(claim).replace("<=", "≤").replace(">=", "≥")
    mark, kind = ("✓", "good") if claim.passed else ("✗", "bad")
    if verdict(claim) == "NOT MEASURED":
        mark, kind = "–", "open"
    why = f"<small>Not measured: {escape(reason(claim))}</small>" if reason(claim) else ""
    return (
        f"<tr><td><strong>{escape(claim.name)}</strong> {escape(claim.statement)}"
        f"<small>{escape(claim.source)}</small>{why}</td>"
        f'<td class=number data-label="measured">{escape(value_text(claim))}</td>'
        f'<td class=number data-label="criterion">{escape(criterion)}</td>'
        f'<td><span class="verdict {kind}">{mark} {escape(verdict(claim))}</span></td></tr>'
    )


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>"
        + "".join(f'<td data-label="{escape(n)}">{escape(c)}</td>' for n, c in zip(head, row))
        + "</tr>"
        for row in rows
    )
    below = f"<p class=muted>{escape(note)}</p>" if note else ""
    table = f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody>"
    return f"<h2>{escape(title)}</h2><table class=plain>{table}</table>{below}"


def _figure(picture: Picture, pdf: str = "") -> str:
    """A figure with its caption, and a link to the file of it that a paper takes."""
    data = base64.b64encode(picture.png).decode()
    words = picture.name.replace("_", " ").capitalize()
    wide = " wide" if picture.inches > 7 else ""
    link = f' <a href="{escape(pdf)}">PDF</a>' if pdf else ""
    return (
        f'<figure><div class="scroll{wide}"><img alt="{escape(words)}: {escape(picture.caption)}" '
        f'width="{picture.inches * 96:.0f}" src="data:image/png;base64,{data}"></div>'
        f"<figcaption><strong>{escape(words)}.</strong> {escape(picture.caption)}{link}</figcaption></figure>"
    )


def _warning(manifest: dict[str, Any]) -> str:
    text = warning(manifest)
    return f"<div class=warning>{escape(text)}</div>" if text else ""


def _differences(differences: Sequence[str]) -> str:
    if not differences:
        return ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in differences)
    return (
        "<div class=warning><strong>claims.json does not agree with data.nc.</strong> The table shows what data.nc "
        f"gives now.<ul>{items}</ul></div>"
    )


def _facts(facts: dict[str, Any]) -> str:
    rows = "".join(
        f"<div><dt>{escape(key)}</dt><dd>{escape(plain(value))}</dd></div>"
        for key, value in facts.items()
    )
    return f"<dl class=facts>{rows}</dl>"


def plain(value: Any) -> str:
    """A value of a configuration in words."""
    if isinstance(value, str):
        return value or "(empty)"
    return json.dumps(value, ensure_ascii=False)


def _document(title: str, parts: Sequence[str]) -> str:
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )
