"""The theory card of a model: its axes, its limits, its training, each claim about the user's own network.

A part is one unit: a card that was killed goes on with the next. A part that does not apply says why, in the library's
own words, and has no claims.

Of the perceptron of `models` the two claims on signals fail, as they must: with Flax's own initialisation (W_std 1)
each layer of ReLU halves its signal; the critical W_std is sqrt 2, as the table of criticality says.
"""

from __future__ import annotations

import textwrap
from typing import Any

import jax
import numpy as np
import xarray as xr

from experiments import checks, families, grid, losses, tasks
from experiments.configs.card import DEPTH
from experiments.grid import Axis, Variable, train_grid
from experiments.loop import Session
from experiments.studies import card_figures as drawn
from experiments.studies import card_model
from experiments.studies.card_claims import claims
from experiments.studies.card_parts import PARTS, TABLES, Part

TITLE = "The theory card of a model"
PAPER = "Each claim names its paper"
__all__ = ["PAPER", "TITLE", "check", "claims", "figures", "run", "tables", "total_steps"]

_RATE = checks.positive()
RULES = {
    "call": checks.instance(str),
    "inputs": checks.choice(("auto", "vectors", "as they are")),
    "loss": checks.choice(("auto", *losses.LOSSES)),
    "parts": checks.several(checks.choice(PARTS)),
    "model.name": checks.instance(str),
    "base_width": checks.WIDTH,
    "widths": checks.widths(3),
    "seeds": checks.several(checks.whole(0), 2),
    "coordinates.rules": checks.several(
        checks.choice(("standard", "ntk", "mup")), 2, needs=("mup",)
    ),
    "coordinates.base_width": checks.WIDTH,
    "coordinates.widths": checks.widths(3),
    "coordinates.seeds": checks.whole(2, 1000),
    "coordinates.batch": checks.whole(2),
    "coordinates.steps": checks.STEPS,
    "coordinates.learning_rate": _RATE,
    "signals.examples": checks.whole(2),
    "kernel.examples": checks.whole(2),
    "kernel.seeds": checks.whole(2),
    "spectrum.examples": checks.whole(20),
    "prediction.examples": checks.whole(2),
    "prediction.steps": checks.STEPS,
    "prediction.learning_rate": _RATE,
    "laziness.examples": checks.whole(2),
    "laziness.steps": checks.STEPS,
    "laziness.learning_rate": _RATE,
    "sharpness.examples": checks.whole(2),
    "sharpness.steps": checks.STEPS,
    "sharpness.chunk": checks.STEPS,
    "sharpness.learning_rate": _RATE,
    "transfer.batch": checks.whole(),
    "transfer.steps": checks.STEPS,
    "transfer.log2_rates": checks.fixed(
        checks.real(-100, 100), checks.real(-100, 100), checks.whole(3, 1000)
    ),
    "collapse.examples": checks.whole(2),
    "collapse.steps": checks.STEPS,
    "collapse.learning_rate": _RATE,
}


def check(config: Any, task: tasks.Task) -> None:
    """Refuses a configuration that the card could not carry through, and a model that does not run on the data.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    checks.values(config, RULES)
    checks.multiple(config, "sharpness.steps", "chunk")
    for part, chunks in (("transfer", 10), ("collapse", 8)):
        if config[part].steps % chunks:
            checks.refuse(f"{part}.steps", config[part].steps, f"a multiple of {chunks}")
    if config.sharpness.steps // config.sharpness.chunk < 16:
        checks.refuse("sharpness.steps", config.sharpness.steps, "16 chunks or more")
    for path, part in (("base_width", config), ("coordinates.base_width", config.coordinates)):
        if part.widths[0] <= part.base_width:
            checks.refuse(path, part.base_width, f"below all widths, {part.widths}")
    low, high, _ = config.transfer.log2_rates
    if not low < high:
        checks.refuse("transfer.log2_rates", (low, high), "a lower and a higher power of two")
    made = checks.context("model", model, config, task)
    widths = {config.base_width, *config.widths}
    if "coordinates" in config.parts:
        widths |= {config.coordinates.base_width, *config.coordinates.widths}
    for width in sorted(widths):
        net = checks.context("model", card_model.at_width, made, width)
        shapes = checks.context("model", jax.eval_shape, net.init, jax.random.key(0))
        size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        checks.memory(f"config.widths: training at {width}", 4 * size * len(config.seeds))
        checks.context("model", jax.eval_shape, net.apply, shapes, made.x[:2])


def total_steps(config: Any) -> int:
    """Parts of the card, for the progress bar."""
    return len(config.parts)


def model(config: Any, task: tasks.Task) -> card_model.Model:
    """The user's family with its data, as it takes them: vectors, where its outputs are then those of the task.

    Raises:
        ValueError: the model runs neither on vectors nor on the inputs as they are.
    """
    fields = config.model.to_dict()
    name = fields.pop("name")
    family = _family(name, task, fields)
    call, errors, ran = families.keywords(config.call), {}, []
    shapes = {"vectors": (len(task.train.x), -1), "as they are": task.train.x.shape}
    if task.train.x.dtype.kind in "iu" or task.train.x.ndim == 2:
        del shapes["vectors"]
    wanted = [config.inputs] if config.inputs in shapes else list(shapes)
    for kind in wanted:
        x = task.train.x.reshape(shapes[kind])
        try:
            found = card_model.tried(family, config.base_width, x[:2], call)
        except Exception as error:  # networks raise nearly anything
            errors[kind] = error
            continue
        ran.append(card_model.made(config, task, family, call, x, found))
    if ran:
        return next((one for one in ran if not one.unfit), ran[0])
    said = "; ".join(
        f"inputs {kind} {task.train.x[:1].reshape(1, *shapes[kind][1:]).shape[1:]}: {card_model.sentence(error)}"
        for kind, error in errors.items()
    )
    raise ValueError(f"{name} at width {config.base_width} does not run on {task.name}. {said}")


def _family(name: str, task: tasks.Task, fields: dict[str, Any]) -> Any:
    """The family; one of a file keeps its own depth, unless it has none or another than the default is asked for."""
    if families.is_file(name) and fields.get("depth") == DEPTH:
        own = {field: value for field, value in fields.items() if field != "depth"}
        try:
            return families.for_task(name, task, **own)
        except ValueError:  # it needs a depth, or is refused for another reason, below
            pass
    return families.for_task(name, task, **fields)


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Measures the card.

    Args:
        config: as experiments/configs/card.py makes it.
        session: files and progress; none are kept by default.

    Raises:
        ValueError: as `check`.
    """
    session = session or Session()
    task = tasks.load(config.task)
    check(config, task)
    made = model(config, task)
    found = [_part(name, config, made, session) for name in PARTS]
    about = {
        "title": f"The theory card of {_short(config.model.name)}",
        "model": config.model.name,
        "task": config.task.name,
        "inputs": f"{made.x.shape[1:]}".replace(",)", ")"),
        "loss": made.loss,
    }
    return xr.merge(found).assign_attrs(about)


def _short(name: str) -> str:
    return name.rpartition("/")[2] if families.is_file(name) else name


def _part(name: str, config: Any, made: card_model.Model, session: Session) -> xr.Dataset:
    """One part as labelled arrays; where it does not apply, nan and the reason."""
    what = PARTS[name]
    coordinates = what.coordinates(config)
    refused = f"{name}_refused"

    def unit(data: Any) -> dict[str, Any]:
        if name not in config.parts:
            return _nothing(what, coordinates) | {refused: "switched off by config.parts"}
        try:
            return what.measure(config, data) | {refused: ""}
        except card_model.NOT_HERE as error:
            return _nothing(what, coordinates) | {refused: card_model.sentence(error)}

    variables = what.variables | {refused: Variable("why this part does not apply")}
    program = grid.Program(name, unit, variables, coordinates, steps=int(name in config.parts))
    return train_grid({}, made, program, session)


def _nothing(what: Part, coordinates: dict[str, Axis]) -> dict[str, Any]:
    """nan, or no word, in every variable of a part."""

    def empty(name: str, dims: tuple[str, ...]) -> np.ndarray:
        shape = [len(coordinates[dim].values) if dim in coordinates else 1 for dim in dims]
        return np.full(shape, "" if name in what.words else np.nan)

    return {name: empty(name, variable.dims) for name, variable in what.variables.items()}


def refusals(data: xr.Dataset) -> dict[str, str]:
    """Part -> why it does not apply, of those that do not."""
    found = {name: str(data[f"{name}_refused"].values) for name in PARTS}
    return {name: why for name, why in found.items() if why}


def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the parts that apply."""
    missing = refusals(data)
    return {name: draw(data) for name, draw in drawn.FIGURES.items() if name not in missing} or {
        "nothing": drawn.nothing()
    }


def tables(data: xr.Dataset) -> dict[str, tuple]:
    """Title -> (head, rows, note) of the card's tables: what does not apply, parameters, activations, derivation."""
    missing = refusals(data)
    made, lacking = {}, dict(missing)
    if "criticality" not in missing and str(data.no_chain.values):
        lacking["criticality, recursion"] = str(data.no_chain.values)
    if lacking:
        rows = [(name, textwrap.shorten(why, 600)) for name, why in lacking.items()]
        made["What does not apply"] = (("part", "why"), rows, "")
    for title, table in TABLES.items():
        if table.part not in missing:
            columns = [data[name].values for name in table.columns.values()]
            rows = [tuple(map(_cell, row)) for row in zip(*columns)]
            made[title] = (tuple(table.columns), rows, table.note)
    return made


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return _brief(value)
    return "-" if np.isnan(value) else f"{value:.4g}"


def _brief(text: str) -> str:
    """A verdict on many layers: the first three of its clauses, and what it says last."""
    first, *more = text.split("; ")
    if len(more) < 4:
        return text
    _, _, advice = more[-1].partition(". ")
    return "; ".join([first, *more[:2]]) + f"; and {len(more) - 2} more (in data.nc). {advice}"
