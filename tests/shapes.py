"""Shapes in annotations, such as ``Float[Array, "n d"]``, checked at every call that a test makes.

To a user `Float` is `typing.Annotated`, which costs nothing and checks nothing. Here the annotations of each public
function are read anew with jaxtyping's names in place of these, once its module has been imported, and the function is
replaced by one that checks its arguments and its result after the call: a call that is refused is the function's own
matter. An axis has one length within one call, and in the fields of the results that the call takes and gives.
"""

import contextlib
import functools
import importlib.abc
import importlib.machinery
import inspect
import io
import re
import sys
import types
from typing import Annotated, Any, NamedTuple

import jax
import jaxtyping
import numpy as np
from beartype.door import is_bearable
from beartype.vale import Is

PACKAGES = ("ntk", "limits", "metrics", "models")
NAMES = ("Bool", "Float", "Integer", "Real", "Shaped")
SHAPED = re.compile(rf"\b(?:{'|'.join(NAMES)})\[")

annotated, exercised = set(), set()
"""Full names of the functions of whose arguments or results shapes are known, of those that were called and right."""


class Shape(NamedTuple):
    """One annotation: its text, and what it stands for in jaxtyping."""

    text: str
    hint: Any


class ArrayOf:
    """What `Float` is in the tests: the kind of a result is checked too; what an argument may be is a type checker's
    matter, and of numbers and lists the shape is that of their array."""

    def __init__(self, name, result):
        self.dtype, self.result = getattr(jaxtyping, name), result

    def __getitem__(self, what):
        kind, axes = what
        arrays = self.dtype[jax.Array, axes], self.dtype[np.ndarray, axes]
        # numpy gives a number of its own where an array would have no axes
        kind = kind | np.generic if self.result else object
        return Annotated[kind, Is[lambda value: isinstance(_array(value), arrays)]]


def _array(value):
    return value if isinstance(value, jax.Array | np.ndarray) else np.asarray(value)


def shaped(annotations, namespace):
    """The annotations that have shapes, by name."""
    taken, given = (
        dict(namespace) | {name: ArrayOf(name, result) for name in NAMES}
        for result in (False, True)
    )
    texts = {key: getattr(text, "__forward_arg__", text) for key, text in annotations.items()}
    evaluated = [key for key, text in texts.items() if "Annotated[" in repr(text)]
    assert not evaluated, f"{evaluated} of {namespace['__name__']}: import annotations first"
    return {
        key: Shape(text, eval(text, given if key == "return" else taken))
        for key, text in texts.items()
        if isinstance(text, str) and SHAPED.search(text)
    }


@functools.cache
def fields(kind):
    """Fields that have shapes, of a NamedTuple."""
    if not hasattr(kind, "_fields"):
        return {}
    return shaped(kind.__annotations__, vars(sys.modules[kind.__module__]))


def verify(what, value, shape=None):
    """Compares a value, and the fields of the results in it, with their annotations."""
    if shape and not is_bearable(value, shape.hint):
        axes = io.StringIO()
        with contextlib.redirect_stdout(axes):
            jaxtyping.print_bindings()
        found = [f"{a.dtype}{a.shape}" for a in map(_array, jax.tree.leaves(value))]
        raise AssertionError(f"{what} is {found}, not {shape.text}\n{axes.getvalue()}")
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        for name, part in value._asdict().items():
            verify(f"{what}.{name}", part, fields(type(value)).get(name))
    elif isinstance(value, dict):
        for name, part in value.items():
            verify(f"{what}[{name!r}]", part)
    elif isinstance(value, tuple | list):
        for index, part in enumerate(value):
            verify(f"{what}[{index}]", part)


def checked(function, name, hints):
    """The function, whose arguments and result are compared with their annotations."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        result = function(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        with jaxtyping.jaxtyped("context"):
            for key, value in given.items():
                verify(f"{name}: {key}", value, hints.get(key))
            verify(f"{name}: its result", result, hints.get("return"))
        exercised.add(name)
        return result

    return wrapper


def check(module):
    """Replaces the public functions of a module that have shapes in their annotations."""
    for key, value in list(vars(module).items()):
        function = inspect.unwrap(value) if callable(value) else None
        if key.startswith("_") or not isinstance(function, types.FunctionType):
            continue
        if isinstance(
            value, jax.custom_jvp | jax.custom_vjp
        ):  # no function, but an object with rules
            continue
        if function.__module__ != module.__name__ or function.__name__ != key:
            continue
        name = f"{module.__name__}.{key}"
        hints = shaped(function.__annotations__, vars(module))
        kind = function.__annotations__.get("return")
        if hints or fields(vars(module).get(kind, kind)):
            annotated.add(name)
            setattr(module, key, checked(value, name, hints))


class Loader(importlib.machinery.SourceFileLoader):
    """Runs a module, then has its functions checked."""

    def exec_module(self, module):
        super().exec_module(module)
        check(module)


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of the four packages where Python does."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] not in PACKAGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec and type(spec.loader) is importlib.machinery.SourceFileLoader:
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


def install():
    """Has every module of the packages checked that is imported from now on."""
    early = [name for name in sys.modules if name.split(".")[0] in PACKAGES]
    assert not early, f"imported before their shapes could be checked: {early}"
    sys.meta_path.insert(0, Finder())
