"""What there is: the text of ``--help`` and of ``--list``, read from the configurations themselves."""

from __future__ import annotations

import ast
import pathlib
import shlex
import textwrap
import tokenize
from typing import Any

import limits
import models
from experiments import checks, settings
from experiments.tasks import task as task_list

OPTIONS = (
    ("--config=STUDY:PRESET", "a study by name, or a Python file with get_config(preset)"),
    ("--config.KEY=VALUE", "any key of the configuration, such as --config.sweep.steps=500"),
    ("--workdir=FOLDER", "folder of the run; runs/STUDY-PRESET by default"),
    ("--check", "only say whether the study would accept all this; train nothing"),
    (
        "--plan",
        "say units, steps, memory and hours, from a measured unit of each grid; keep nothing",
    ),
    (
        "--devices=N",
        "devices to spread the runs of a sweep (or one run's batch) over; 1 by default",
    ),
    (
        "--cluster=ADDRESS",
        "do units elsewhere: local:4, slurm:cores=1,memory=4GB,jobs=8, tcp://HOST:PORT",
    ),
    ("--checkpoint_seconds=S", "seconds between checkpoints of what is in training; 20 by default"),
    ("--tensorboard=FOLDER", "also write metrics for TensorBoard"),
    ("--wandb=PROJECT", "also send metrics to Weights & Biases"),
    ("--list", "studies, presets, keys, tasks, models, rules; with --config, those of one study"),
    ("--help", "this text"),
)
MODELS = (
    models.MLP,
    models.DeepLinear,
    models.LinearAttention,
    models.RNN,
    models.CNN,
    models.ResNet,
    models.Transformer,
    models.ViT,
)


def hint() -> str:
    """Where to look, for messages."""
    return f"studies: {', '.join(settings.studies())}; python -m experiments --list says more"


def usage() -> str:
    """The text of --help."""
    rows = "\n".join(f"  {option:24} {what}" for option, what in OPTIONS)
    return (
        "Runs a study: checks its configuration, trains, judges its claims, draws its figures.\n\n"
        "usage: python -m experiments --config=STUDY:PRESET [--config.KEY=VALUE ...] [--workdir=FOLDER]\n\n"
        f"{rows}\n\nstudies: {', '.join(settings.studies())}\n"
        "The same command again goes on with what was interrupted and skips what has finished.\n"
        "Exit status: 0 it ran, 2 it could not run (one message says why), 130 interrupted.\n"
        "Finished runs are reported anew by: python -m experiments.report FOLDER ..."
    )


def everything(config: str | None = None) -> str:
    """The text of --list: all studies, or the one that ``config`` names.

    Raises:
        ValueError: no such study, or its file is not a configuration.
    """
    chosen = [config] if config else settings.studies()
    parts = [_study(name) for name in chosen]
    return "\n\n".join([*parts, _others()])


def _study(config: str) -> str:
    path, _ = settings.find_config(config)
    module = settings.load_file(path)
    values, preset = settings.load(config)
    said, lines, groups = comments(path), [], set()
    for key, value in checks.flatten(values).items():
        parts = key.split(".")
        for group in (".".join(parts[:n]) for n in range(1, len(parts))):
            if group in said and group not in groups:
                lines.append(f"    # {group}: {said[group]}")
            groups.add(group)
        text = value if isinstance(value, str) else repr(value)
        option = shlex.quote(f"--config.{key}={text}")
        lines.append(f"    {option}" + (f"    # {said[key]}" if key in said else ""))
    title = (module.__doc__ or path.stem).strip().splitlines()[0]
    presets = ", ".join(getattr(module, "PRESETS", (preset,)))
    return f"{path.stem}: {title}\n  presets: {presets}\n  keys, as in {preset}:\n" + "\n".join(
        lines
    )


def _others() -> str:
    architectures = [f"  {m.__name__}: {_first(m.__doc__)}" for m in MODELS]
    kinds = []
    for name in task_list.NAMES:
        own = [f"{k}={v!r}" for k, v in task_list.default_config(name).items() if k != "name"]
        kinds.append(f"  {name}: {', '.join(own)}")
    return "\n".join(
        [
            "tasks (--config.task.name) and their keys:",
            *kinds,
            "",
            "models (--config.model.name):",
            *architectures,
            "  FILE.py:NAME: a function of the width in a file, or a linen, NNX or Equinox class; FILE.py:NAME:FIELD",
            "    for a class whose width is another field than 'width'",
            "",
            f"rules (parametrizations): {', '.join(limits.exponents.RULES)}",
        ]
    )


def _first(text: str | None) -> str:
    return (text or "").strip().splitlines()[0]


def comments(path: pathlib.Path) -> dict[str, str]:
    """Dotted key -> the comment at the end of its line, or above it, of every key that get_config sets.

    Keys are those of ``config.a.b = value`` and of dictionaries ``config.a = {"b": value}`` within.
    """
    with tokenize.open(path) as file:
        source = file.read()
    lines, beside, above = source.splitlines(), {}, {}
    for token in tokenize.generate_tokens(iter(source.splitlines(keepends=True)).__next__):
        if token.type == tokenize.COMMENT:
            row, text = token.start[0], token.string.lstrip("# ")
            alone = lines[row - 1].lstrip().startswith("#")
            (above if alone else beside)[row] = text
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = ast.unparse(node.targets[0])
            if target.startswith("config."):
                _collect(target.removeprefix("config."), node, node.value, beside, above, found)
    return found


def _collect(path: str, node: Any, value: ast.expr, beside: dict, above: dict, found: dict) -> None:
    """Comments of a key and, where its value is a dictionary, of the keys on other lines within."""
    is_group, row = isinstance(value, ast.Dict), node.lineno - 1
    ends = [node.lineno] if is_group else [value.end_lineno, node.lineno]
    text = next((beside[end] for end in ends if end in beside), "")
    block: list[str] = []
    while row in above:
        block.insert(0, above[row])
        row -= 1
    text = " ".join(filter(None, [" ".join(block), text]))
    if text:
        found.setdefault(path, textwrap.shorten(text, 200))
    if is_group:
        for key, inner in zip(value.keys, value.values):
            if isinstance(key, ast.Constant) and key.lineno != node.lineno:
                _collect(f"{path}.{key.value}", key, inner, beside, above, found)
