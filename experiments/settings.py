"""From a command line to a configuration: which file, which preset, which keys are set to what.

A study is named by its configuration: one of ours by name, as ``learning_rate_transfer:cpu``, anyone's by file, as
``my_config.py:PRESET``. Its ``get_config(preset)`` gives an ml_collections ConfigDict whose key ``study`` names a
module of experiments.studies, or a Python file (relative to the configuration's) with the same functions.

One file: every refusal of a command line (a path, a preset, a key, a value) names what was near in the same words.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import json
import pathlib
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections

from experiments import checks, contract, files, tasks

ROOT = pathlib.Path(__file__).resolve().parent
STUDY = ("TITLE", "PAPER", "check", "claims", "figures", "run", "total_steps")
"""What a study's module defines."""
WORDS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}


class Options(NamedTuple):
    """A command line. ``changes`` are (dotted key, text), in their order; ``list`` is a word, "" for everything."""

    config: str | None = None
    workdir: str | None = None
    devices: int = 1
    cluster: str | None = None
    checkpoint_seconds: float = 20.0
    tensorboard: str | None = None
    wandb: str | None = None
    check: bool = False
    plan: bool = False
    list: str | None = None
    help: bool = False
    changes: tuple[tuple[str, str], ...] = ()


def parse(arguments: Sequence[str]) -> Options:
    """The options of a command line (without the program's name): ``--name=value`` or ``--name value``.

    Raises:
        ValueError: an unknown option, one without its value, or a value of another type.
    """
    fields, changes, rest = {}, [], list(arguments)
    kinds = {name: type(default) for name, default in Options._field_defaults.items()}
    del kinds["changes"]
    while rest:
        argument = rest.pop(0)
        _check_text(argument)
        name, given, text = argument.lstrip("-").partition("=")
        name = {"h": "help"}.get(name, name)
        if not argument.startswith("-") or not name:
            raise ValueError(f"unexpected argument {argument!r}; options are written --name=value")
        if not name.startswith("config.") and name not in kinds:
            raise ValueError(
                f"unknown option --{name}{nearest(name, [*kinds])}; there are: "
                + ", ".join(f"--{known}" for known in kinds)
                + ", and --config.KEY for each key of the configuration"
            )
        if kinds.get(name) is bool:
            if given:
                raise ValueError(f"--{name} takes no value, not {text!r}")
            fields[name] = True
            continue
        if name == "list":  # its word may be left out
            word = text or (rest.pop(0) if rest and not rest[0].startswith("-") else "")
            _check_text(word)
            fields[name] = word
            continue
        if not given:
            if not rest or rest[0].startswith("--"):
                raise ValueError(f"--{name} needs a value: --{name}=VALUE")
            text = rest.pop(0)
            _check_text(text)
        if name.startswith("config."):
            if "\0" in text:
                raise ValueError(f"--{name} is {text!r}; text has no zero bytes")
            changes.append((name.removeprefix("config."), text))
        else:
            fields[name] = _option(name, text, kinds[name])
    return Options(**fields, changes=tuple(changes))


def _check_text(argument: str) -> None:
    """Refuses bytes that are no letters: no file of a run could say them."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{argument!r} is no text in UTF-8; rename what it names") from None


def _option(name: str, text: str, kind: type) -> Any:
    if kind is int or kind is float:
        try:
            return kind(text)
        except ValueError:
            raise ValueError(
                f"--{name} is {text[:80]!r}; it must be {checks.TYPES[kind]}"
            ) from None
    if not text or "\0" in text:
        raise ValueError(f"--{name} is {text!r}; it must not be empty")
    return text


def nearest(name: str, names: Sequence[str]) -> str:
    """' (did you mean ...?)', or nothing where no name is near, or the name is there."""
    close = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {close[0]!r}?)" if close and close[0] != name else ""


def studies() -> list[str]:
    """Names of the studies of this package: those with a module and a configuration of that name."""
    # Other modules in studies draw or judge for one.
    files = [{file.stem for file in (ROOT / part).glob("[a-z]*.py")} for part in _FOLDERS]
    return sorted(files[0] & files[1])


_FOLDERS = ("studies", "configs")


def find_config(text: str) -> tuple[pathlib.Path, str]:
    """(file, preset or "") of the value of --config: a study's name or a file, and :PRESET.

    Raises:
        ValueError: there is no such study or file.
    """
    name, colon, preset = text.partition(":")
    if colon and not preset:
        raise ValueError(
            f"--config is {text!r}, without a preset; leave the colon out, or name one"
        )
    if name in studies():
        return ROOT / "configs" / f"{name}.py", preset
    file = files.expanded(name)
    for path in (file, ROOT.parent / file):
        if path.is_file():
            return path.resolve(), preset
    raise ValueError(
        f"there is no configuration {name!r}{nearest(file.stem, studies())}; give the name of a study "
        f"({', '.join(studies())}) or a Python file with get_config(preset)"
    )


def load_file(path: pathlib.Path) -> types.ModuleType:
    """The module of a Python file.

    Raises:
        ValueError: the file cannot be read, is not Python, or raises; with the file and the line.
    """
    spec = importlib.util.spec_from_file_location(f"_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file: its name must end with .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""
        raise ValueError(f"{path}{line} is not Python: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(contract.told(error, path)) from error
    return module


def load(text: str, changes: Sequence[tuple[str, str]] = ()) -> tuple[Any, str]:
    """The configuration that --config names, with its changes, and the name of its preset.

    Raises:
        ValueError: no such file, study or preset; a file that is not a configuration; an unknown key.
    """
    path, preset = find_config(text)
    module = load_file(path)
    make = getattr(module, "get_config", None)
    if not callable(make):
        raise ValueError(f"{path} has no function get_config(preset): it is not a configuration")
    config = _call(make, path, preset)
    if isinstance(config, dict | ml_collections.ConfigDict):
        config = _plain_config(config, path)
    else:
        raise ValueError(
            f"{path}: get_config returned a {type(config).__name__}; expected an ml_collections.ConfigDict"
        )
    if "study" not in config or not isinstance(config.study, str):
        raise ValueError(f"{path}: the configuration has no key 'study' that names its study")
    change(config, changes)
    if config.study.endswith(".py"):
        config.study = str((path.parent / files.expanded(config.study)).resolve())
    _locate_models(config, path.parent)
    return config, preset or _default_preset(make)


def _plain_config(config: Any, path: pathlib.Path) -> ml_collections.ConfigDict:
    """What get_config returned, as a configuration that can be changed and kept."""
    try:
        config = ml_collections.ConfigDict(config)
        json.dumps(config.to_dict())
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: the configuration must hold numbers, text and tuples only, under names of text ({error})"
        ) from error
    return config


def check_keys(config: Any) -> None:
    """Refuses a key that no preset of the study has: nothing would read it. A study of one's own reads what it likes.

    Free are the fields of a model, the keys that a task has, a network's group under a name of its own, and the groups
    that the study names in ``OPEN``.

    Raises:
        ValueError: names the key, and those that are there.
    """
    if config.study not in studies():
        return
    module = load_file(ROOT / "configs" / f"{config.study}.py")
    known = {key for preset in module.PRESETS for key in checks.flatten(module.get_config(preset))}
    opened = getattr(find_study(config.study), "OPEN", ())
    for key in checks.flatten(config):
        group, _, name = key.rpartition(".")
        top = key.partition(".")[0]
        of_network = "model" in config[top] if hasattr(config[top], "keys") else False
        own = of_network and not any(other.startswith(f"{top}.") for other in known)
        if key in known or own or group in opened or ".model." in f".{key}":
            continue
        there = {other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == group}
        if f".{group}".endswith(".task"):
            there = set(tasks.default_config(checks.at(config, group).name))
        if name not in there:
            where = f"config.{group}" if group else "the configuration"
            raise ValueError(
                f"config.{key} is read by nothing{nearest(name, sorted(there))}; "
                f"{where} has: {', '.join(sorted(there)) or 'no such group'}"
            )


def model_files(config: Any) -> dict[str, pathlib.Path]:
    """Dotted key -> file, of every model of a configuration that is in a file."""
    found = {}
    for key, value in checks.flatten(config).items():
        if f".{key}".endswith(".model.name") and isinstance(value, str) and ".py:" in value:
            found[key] = files.expanded(f"{value.rpartition('.py:')[0]}.py")
    return found


def _locate_models(config: Any, folder: pathlib.Path) -> None:
    """Files of models with their whole path: from where the command is given, or beside the configuration."""
    for key, file in model_files(config).items():
        there = next((p for p in (file, folder / file) if p.is_file()), None)
        if there is not None:
            part, name = _find(config, key)
            part[name] = f"{there.resolve()}:{part[name].rpartition('.py:')[2]}"


def _call(make: Any, path: pathlib.Path, preset: str) -> Any:
    try:
        return make(preset) if preset else make()
    except ValueError as error:
        raise ValueError(str(error) or f"{path}: get_config raised a ValueError") from error
    except (Exception, SystemExit) as error:
        raise ValueError(contract.told(error, path, f"get_config({preset!r})")) from error


def _default_preset(make: Any) -> str:
    parameters = [*inspect.signature(make).parameters.values()]
    known = parameters and isinstance(parameters[0].default, str)
    return parameters[0].default if known else "default"


def change(config: Any, changes: Sequence[tuple[str, str]]) -> None:
    """Sets keys of a configuration to values given as text, each of the type that the key has.

    Setting the name of a task exchanges the task's keys for that task's; what both have and the preset sets stays.

    Raises:
        ValueError: an unknown key, or a text that is no value of its type.
    """
    # Names of tasks first: they decide which other keys there are.
    for key, text in sorted(changes, key=lambda item: not f".{item[0]}".endswith(".task.name")):
        part, name = _find(config, key)
        if f".{key}".endswith(".task.name"):
            holder, _ = _find(config, key.removesuffix(".name"), group=True)
            fresh = checks.context(key, tasks.default_config, text)
            usual = checks.context(key, tasks.default_config, holder.task.name)
            fresh.update({k: v for k, v in holder.task.items() if k in fresh and v != usual[k]})
            fresh.name = text
            holder.task = fresh
        else:
            value = read(f"config.{key}", text, part[name])
            with (
                part.ignore_type()
            ):  # `read` has seen to it; a number may stand where another kind stood
                part[name] = value


def _find(config: Any, key: str, group: bool = False) -> tuple[Any, str]:
    """The part of the configuration that holds a key, and the key's last name; whether it may name a group."""
    *parents, name = key.split(".")
    part, path = config, "config"
    for step in [*parents, name]:
        if not isinstance(part, ml_collections.ConfigDict):
            raise ValueError(f"{path} is {part!r}: it has no keys, such as {step!r}")
        if step not in part:
            every = [k.rpartition(".")[2] for k in checks.flatten(part)]
            hint = nearest(step, [*part.keys()]) or nearest(step, every)
            raise ValueError(
                f"{path} has no key {step!r}{hint}; it has: {', '.join(map(str, part.keys()))}"
            )
        holder, part, path = part, part[step], f"{path}.{step}"
    if isinstance(part, ml_collections.ConfigDict) and not group:
        raise ValueError(
            f"{path} is a group of keys; set one of them: {', '.join(f'--{path}.{k}' for k in part)}"
        )
    return holder, name


def read(path: str, text: str, before: Any) -> Any:
    """The value that a text stands for, of the type of the value before.

    Raises:
        ValueError: it is none; says which type is expected, with an example.
    """
    if isinstance(before, str):
        return text
    if isinstance(before, bool):
        value = WORDS.get(text.lower())
    else:
        value = _literal(text)
    kind = type(before)
    if kind is float and type(value) is int:
        value = _float(value)
    if kind is tuple or kind is list:
        value = _tuple(value, before)
        example = repr(before[:2]) if before else "(1, 2)"
        expected = f"a tuple such as {example}"
    else:
        expected = f"{checks.TYPES.get(kind, kind.__name__)} such as {before!r}"
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{path} is {text[:80]!r}; it must be {expected}")
    return value


def _literal(text: str) -> Any:
    if text.strip().lower() in ("nan", "inf", "-inf", "infinity", "-infinity"):
        return float(text)
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _tuple(value: Any, before: Sequence) -> Any:
    if not _plain(value) or not isinstance(value, tuple | list):
        return None
    entries = (tuple(v) if isinstance(v, list) else v for v in value)
    decimal = before and all(type(v) is float for v in before)
    return tuple(_float(v) if decimal and type(v) is int else v for v in entries)


def _plain(value: Any) -> bool:
    """Whether a value is made of numbers, text and tuples: no complex number, bytes, set or None."""
    if isinstance(value, tuple | list):
        return all(map(_plain, value))
    return isinstance(value, int | float | str)


def _float(value: int) -> float:
    return float(value) if abs(value) < 2**1000 else float("inf")


def find_study(name: str) -> types.ModuleType:
    """The module of a study: experiments.studies.<name>, or a Python file.

    Raises:
        ValueError: there is no such study (names the nearest), or the file lacks what a study defines.
    """
    if name.endswith(".py"):
        if not pathlib.Path(name).is_file():
            raise ValueError(f"there is no study {name!r}: config.study names no file")
        study = load_file(pathlib.Path(name))
        missing = [part for part in STUDY if not hasattr(study, part)]
        if missing:
            raise ValueError(
                f"{name} is not a study: it lacks {', '.join(missing)} (see experiments/studies)"
            )
        contract.study(study, name)
        return study
    if name not in studies():
        raise ValueError(
            f"unknown study {name!r}{nearest(name, studies())}; there are: {', '.join(studies())}, "
            "or the name of a file that ends with .py"
        )
    return importlib.import_module(f"experiments.studies.{name}")


def optional(name: str, extra: str) -> Any:
    """A package that only some options need.

    Raises:
        ValueError: it is not installed; with the extra that has it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"{name} is not installed; pip install 'widelimit[{extra}]', or leave the option out"
        ) from error
