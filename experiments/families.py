"""A model named in a configuration: one of `models`, or a class or a family in anyone's Python file."""

from __future__ import annotations

import ast
import inspect
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import models
from experiments import files, settings

NEEDED = {"Transformer": {"heads": 4}, "ViT": {"heads": 4, "patch": 4}}
"""What an architecture of `models` must be given, where a configuration says nothing of it."""


def load(name: str, fields: Mapping[str, Any] | None = None, **given: Any) -> Callable:
    """The family of a name: a function of the width, as `ntk.family` takes it.

    Args:
        name: "MLP" or another architecture of `models`; or "FILE.py:NAME" or "FILE.py:NAME:FIELD". NAME is a family, a
            function of the width, or a linen, NNX or Equinox class; FIELD is then that of its width, "width" by
            default.
        fields: arguments that the model must have.
        **given: what a study knows of its data and asks for (outputs, depth, ...); an architecture of `models` must
            have them all, a model of a file gets those that it has an argument for.

    Returns:
        ``width -> model``.

    Raises:
        TypeError: an architecture of `models` lacks one of the fields.
        ValueError: no such file or name, or a name that says no file, or nothing in it; a class without that field,
            or with arguments that nobody gives; a module at one width.
    """
    fields = dict(fields or {})
    if not is_file(name):
        _check_architecture(name)
        return models.family(name, **fields, **given)
    file, _, rest = name.rpartition(".py:")
    attribute, _, width = rest.partition(":")
    path = files.expanded(f"{file}.py")
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}, which model {name!r} should be in")
    # What stands beside the file can be imported by it; last, so that it hides nothing.
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)
    found = _attribute(settings.load_file(path.resolve()), path, attribute)
    where = f"{path.name}:{attribute}"
    if inspect.isclass(found):
        return _of_class(found, where, width or "width", fields, given)
    if not callable(found) or hasattr(found, "apply"):
        raise ValueError(
            f"{where} is of type {type(found).__name__}; it must be a class, or a function of the width: "
            f"{attribute} = lambda width: ..."
        )
    if width:
        raise ValueError(f"{where} is a function, and {width!r} the field of a class: leave it out")
    return _of_function(found, where, fields, given)


def for_task(
    name: str, task: Any, fields: Mapping[str, Any] | None = None, **given: Any
) -> Callable:
    """`load` with the sizes of a task: outputs, and for tokens vocabulary and context.

    Args:
        name: as in `load`.
        task: an `experiments.tasks.Task`.
        fields: as in `load`.
        **given: as in `load`.
    """
    sizes, fields = {"outputs": task.outputs}, dict(fields or {})
    tokens = {"vocabulary": task.outputs, "context": task.input_shape[0]}
    if is_file(name):
        given = sizes | tokens | given
    else:
        given |= tokens if name == "Transformer" else sizes
        given = NEEDED.get(name, {}) | given
    given = {field: value for field, value in given.items() if field not in fields}
    return load(name, fields, **given)


def is_file(name: str) -> bool:
    """Whether the name of a model is one in a file."""
    return ".py:" in name


def _check_architecture(name: str) -> None:
    """Refuses what was meant as a model of a file, and does not say which."""
    if name.endswith(".py"):
        raise ValueError(
            f"model {name!r} is a file; say which of its families or classes: {name}:NAME"
        )
    module, colon, rest = name.partition(":")
    if colon or "/" in name:
        raise ValueError(
            f"model {name!r} names no file; write {module}.py:{rest or 'NAME'}, the path of the file with its .py and "
            "the name of a family or class in it, or an architecture of models"
        )


def keywords(text: str) -> dict[str, Any]:
    """Keywords of a call that were written as text, ``"train=False"``.

    Raises:
        ValueError: they are none, or their values are no plain ones.
    """
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError
        return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, AttributeError):
        raise ValueError(
            f"call is {text!r}; it must be keywords of the model's call with plain values, such as train=False"
        ) from None


def _attribute(module: Any, path: pathlib.Path, name: str) -> Any:
    here = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
    if not name or not hasattr(module, name):
        near = settings.nearest(name, here)
        raise ValueError(
            f"{path} has no {name!r}{near}; it has: {', '.join(here) or 'no function and no class'}"
        )
    return getattr(module, name)


def _of_class(found: Any, where: str, width: str, fields: dict, given: dict) -> Callable:
    # Of __init__: the signature of an NNX class itself is (*args, **kwargs).
    parameters = dict([*inspect.signature(found.__init__).parameters.items()][1:])
    named = [n for n, p in parameters.items() if n not in ("parent", "name", "rngs", "key")]
    if width not in named:
        raise ValueError(
            f"{where} has no field {width!r}; name the one that is its width, as {where}:FIELD "
            f"(it has: {', '.join(named) or 'none'})"
        )
    values = _chosen(where, parameters, fields, given, {width})
    start = next((name for name in ("rngs", "key") if name in parameters), None)

    def linen(n):
        return found(**values, **{width: n})

    def of_rngs(n):
        return lambda rngs: found(**values, **{width: n}, rngs=rngs)

    def of_key(n):
        return lambda key: found(**values, **{width: n}, key=key)

    return {"rngs": of_rngs, "key": of_key, None: linen}[start]


def _of_function(found: Callable, where: str, fields: dict, given: dict) -> Callable:
    parameters = inspect.signature(found).parameters
    if not parameters:
        raise ValueError(f"{where} takes no argument; it must be a function of the width")
    first = next(iter(parameters))
    values = _chosen(where, parameters, fields, given, {first})
    return lambda width: found(width, **values)


def _chosen(where: str, parameters: Mapping, fields: dict, given: dict, taken: set) -> dict:
    """The arguments of a model, the width apart: its fields, and those given that it has."""
    for name in fields:
        if name not in parameters:
            near = settings.nearest(name, list(parameters))
            raise ValueError(
                f"{where} has no argument {name!r}{near}; it has: {', '.join(parameters)}"
            )
    values = {n: v for n, v in given.items() if n in parameters and n not in taken} | fields
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    missing = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind in plain and name not in {*values, *taken, "rngs", "key"}
    ]
    if missing:
        drawn = next((name for name in ("rngs", "key") if name in parameters), "")
        inner, given_key = (f"lambda {drawn}: ", f", {drawn}={drawn}") if drawn else ("", "")
        raise ValueError(
            f"{where} needs {', '.join(missing)}, which the study does not know; give a function of the width that "
            f"does: family = lambda width: {inner}{where.partition(':')[2]}(..., {missing[0]}=...{given_key})"
        )
    return values
