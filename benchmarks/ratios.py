"""The tables of docs/speed.md and README.md, from the results: ``python -m benchmarks.ratios`` writes them anew.

A cell is the median ratio [smallest, largest] of the pairs on one machine; README's ranges go over machines.
"""

from __future__ import annotations

import json
import pathlib
import re
import statistics
from collections.abc import Callable
from typing import Any

RESULTS = pathlib.Path(__file__).parent / "results"
PAGES = RESULTS.parent.parent / "docs" / "speed.md", RESULTS.parent.parent / "README.md"

ROWS = {
    "a notebook's session: 4 networks, 6 sizes, 3 kernels each": ("first_call", "session"),
    "first kernel of 20 samples, ReLU": ("first_call", "first_relu"),
    "Gelu": ("first_call", "first_gelu"),
    "Erf": ("first_call", "first_erf"),
    "two convolutions": ("first_call", "first_convolution"),
    "ReLU MLP, 5 layers": ("kernels", "relu_5"),
    "without biases": ("kernels", "relu_5_no_bias"),
    "100 layers, against its `serial`": ("kernels", "relu_100_serial"),
    "against its `repeat`": ("kernels", "relu_100_repeat"),
    "100 layers without biases": ("kernels", "relu_100_no_bias"),
    "Gelu MLP, 5 layers": ("kernels", "gelu_5"),
    "Erf MLP, 5 layers": ("kernels", "erf_5"),
    "any callable as activation, 3 layers, 250 x 250": ("kernels", "callable_3"),
    "3 convolutions, global pooling, 16 images of 16 x 16": ("kernels", "conv_pool"),
    "3 convolutions, flattened, 64 images of 32 x 32": ("kernels", "conv_flatten"),
    "empirical NTK, MLP 64-512-512-10, 128 x 128": (
        "empirical",
        "MLP 64-512-512-10, 128 x 128, full",
    ),
    "the same, traced": ("empirical", "MLP 64-512-512-10, 128 x 128, traced"),
    "empirical NTK, small CNN": ("empirical", "CNN 64 x 2, 16 x 16 images of 16 x 16"),
    "the CNN, traced": ("empirical", "CNN 64 x 2, 16 x 16 images of 16 x 16, traced"),
    "empirical NTK, small Transformer": ("empirical", "Transformer d 64, 16 x 16 x 32"),
    "the Transformer, traced": ("empirical", "Transformer d 64, 16 x 16 x 32, traced"),
}
"""What a row of docs/speed.md is called, and where its ratios stand: file and task."""

SHORT = {
    "a notebook's session in a fresh process: four networks, six sizes, three kernels each": (
        "session",
    ),
    "first kernel of 20 samples, fresh process": (
        "first_relu",
        "first_gelu",
        "first_erf",
        "first_convolution",
    ),
    "2000 x 2000 NTK, ReLU MLP of 5 layers": ("relu_5",),
    "the same of 100 layers, against its `repeat`": ("relu_100_repeat",),
    "Gelu, Erf": ("gelu_5", "erf_5"),
    "any callable as activation": ("callable_3",),
    "convolutions with global pooling": ("conv_pool",),
    "convolutions, flattened": ("conv_flatten",),
    "empirical NTK of an MLP": tuple(
        f"MLP 64-512-512-10, 128 x 128, {kind}" for kind in ("full", "traced")
    ),
    "empirical NTK of a CNN": tuple(
        f"CNN 64 x 2, 16 x 16 images of 16 x 16{kind}" for kind in ("", ", traced")
    ),
    "empirical NTK of a Transformer": tuple(
        f"Transformer d 64, 16 x 16 x 32{kind}" for kind in ("", ", traced")
    ),
}
"""What a row of README.md is called, and its tasks."""


def results(name: str) -> list[dict[str, Any]]:
    """Every machine of a file of results, with its rows."""
    return json.loads((RESULTS / f"{name}.json").read_text())["machines"]


def machines() -> list[tuple[str, int | None, int | None]]:
    """(processor, vector width, cores in use) of all files that the tables read, in order."""
    found: dict[tuple[str, int | None, int | None], None] = {}
    for name in dict.fromkeys(file for file, _ in ROWS.values()):
        found |= {_machine(entry): None for entry in results(name)}
    return list(found)


def _machine(entry: dict[str, Any]) -> tuple[str, int | None, int | None]:
    machine = entry["machine"]
    return machine["processor"], machine["vector_bits"], machine["cores_used"]


def measured(name: str, task: str) -> dict[tuple[str, int | None, int | None], list[float]]:
    """Ratios of the pairs of a task, by machine."""
    return {
        _machine(entry): row["wall_ratio"]
        for entry in results(name)
        for row in entry["rows"]
        if row["task"] == task
    }


def number(ratio: float) -> str:
    """Two digits."""
    return f"{float(f'{ratio:.2g}'):g}"


def cell(ratios: list[float] | None) -> str:
    """Of one machine."""
    if not ratios:
        return "-"
    middle = number(statistics.median(ratios))
    return (
        middle
        if len(ratios) == 1
        else f"{middle} [{number(min(ratios))}, {number(max(ratios))}] ({len(ratios)})"
    )


def table() -> str:
    """Of docs/speed.md: a column a machine."""
    columns = machines()
    heads = [
        f"{processor}, {f'{bits} bits, ' if bits else ''}{cores} core{'s' * (cores != 1)}"
        for processor, bits, cores in columns
    ]
    lines = [f"| work | {' | '.join(heads)} |", "|" + " --- |" * (1 + len(heads))]
    for title, (name, task) in ROWS.items():
        found = measured(name, task)
        lines.append(f"| {title} | {' | '.join(cell(found.get(c)) for c in columns)} |")
    return "\n".join(lines)


def ranges() -> str:
    """Of README.md: medians from the smallest to the largest of all machines."""
    files = {task: name for name, task in ROWS.values()}
    lines = ["| work | how many times faster |", "| --- | --- |"]
    for title, tasks in SHORT.items():
        medians = [
            statistics.median(ratios)
            for task in tasks
            for ratios in measured(files[task], task).values()
        ]
        low, high = number(min(medians)), number(max(medians))
        lines.append(f"| {title} | {low if low == high else f'{low}-{high}'}x |")
    return "\n".join(lines)


def renewed(page: str, text: Callable[[], str]) -> str:
    """A page with its table between the two marks."""
    mark = re.compile(r"(<!-- ratios -->\n).*?(<!-- /ratios -->)", re.S)
    if len(mark.findall(page)) != 1:
        raise ValueError("a page has one table, between <!-- ratios --> and <!-- /ratios -->")
    return mark.sub(lambda found: found[1] + text() + "\n" + found[2], page)


if __name__ == "__main__":
    for page, text in zip(PAGES, (table, ranges)):
        page.write_text(renewed(page.read_text(), text))
