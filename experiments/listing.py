"""What there is: the text of ``--help`` and of ``--list``, read from the configurations themselves."""

from __future__ import annotations

import ast
import difflib
import pathlib
import re
import shlex
import textwrap
import tokenize
from collections.abc import Sequence
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
    (
        "--list [WORD]",
        "studies, presets, keys, tasks, models, rules: all, or what the word is in, as --list grokking",
    ),
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


def everything(config: str | None = None, word: str = "") -> str:
    """The text of --list: all studies, or the one that ``config`` names; of these what a word is in.

    Args:
        config: as --config takes it.
        word: part of the name of a study, which is then listed with all its keys; else of its title, or of keys, tasks,
            models and rules, which are listed alone. Upper case counts as lower case.

    Raises:
        ValueError: no such study, its file is not a configuration, or nothing has the word in it: the nearest names.
    """
    chosen = [config] if config else settings.studies()
    word = word.lower()
    if not word:
        return "\n\n".join([*map(_study, chosen), _others()])
    heads = {name: _head(name) for name in chosen}
    for parts in (lambda name: name.partition(":")[0], heads.get):
        if found := [name for name in chosen if word in parts(name).lower()]:
            return "\n\n".join(filter(None, [*map(_study, found), _others(word)]))
    found = [_study(name, word) for name in chosen]
    found = list(filter(None, [*found, _others(word)]))
    if not found:
        raise ValueError(f"nothing has {word!r} in it; {_near(word, chosen)}")
    return "\n\n".join(found)


def _near(word: str, chosen: Sequence[str]) -> str:
    """The names that are most like a word, of studies, their keys, tasks, models and rules."""
    names = [*chosen, *task_list.NAMES, *(m.__name__ for m in MODELS), *limits.exponents.RULES]
    for config in chosen:
        names += checks.flatten(settings.load(config)[0])
    # A name of several words is as near as its nearest word.
    words: dict[str, str] = {}
    for name in names:
        for part in (name, *re.split(r"[._]", name)):
            words.setdefault(part.lower(), name)
    close = difflib.get_close_matches(word, words, n=3, cutoff=0.5)
    near = list(dict.fromkeys(words[part] for part in close))
    return f"the nearest are {', '.join(near)}" if near else "--list alone says what there is"


def _head(config: str) -> str:
    """Name and title of a study."""
    path, _ = settings.find_config(config)
    module = settings.load_file(path)
    return f"{path.stem}: {(module.__doc__ or path.stem).strip().splitlines()[0]}"


def _study(config: str, word: str = "") -> str:
    """A study with its presets and keys: all, or those with a word in them, and nothing where there are none."""
    path, _ = settings.find_config(config)
    module = settings.load_file(path)
    values, preset = settings.load(config)
    said, lines, groups = comments(path), [], set()
    for key, value in checks.flatten(values).items():
        if word not in key.lower():
            continue
        parts = key.split(".")
        for group in (".".join(parts[:n]) for n in range(1, len(parts))):
            if group in said and group not in groups:
                lines.append(f"    # {group}: {said[group]}")
            groups.add(group)
        text = value if isinstance(value, str) else repr(value)
        option = shlex.quote(f"--config.{key}={text}")
        lines.append(f"    {option}" + (f"    # {said[key]}" if key in said else ""))
    if word and not lines:
        return ""
    presets = ", ".join(getattr(module, "PRESETS", (preset,)))
    keys = f"keys with {word!r}" if word else "keys"
    return f"{_head(config)}\n  presets: {presets}\n  {keys}, as in {preset}:\n" + "\n".join(lines)


def _others(word: str = "") -> str:
    """Tasks, models and rules: all, or those with a word in their name."""
    architectures = [
        f"  {m.__name__}: {_first(m.__doc__)}" for m in MODELS if word in m.__name__.lower()
    ]
    kinds = []
    for name in task_list.NAMES:
        own = [f"{k}={v!r}" for k, v in task_list.default_config(name).items() if k != "name"]
        if word in name:
            kinds.append(f"  {name}: {', '.join(own)}")
    if word:
        rules = [f"  {name}" for name in limits.exponents.RULES if word in name]
        heads = {
            "tasks (--config.task.name) and their keys:": kinds,
            "models (--config.model.name):": architectures,
            "rules (parametrizations):": rules,
        }
        return "\n\n".join("\n".join([head, *rows]) for head, rows in heads.items() if rows)
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
