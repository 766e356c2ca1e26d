"""Equal modules of a linen model, traced once: what makes a deep model as quick to read as a shallow one."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import types
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax

_SURROUNDINGS = frozenset(["name", "path", "parent", "scope", "make_rng", "has_rng"])
_GENERATED = frozenset(["__init__", "__eq__", "__hash__", "__repr__"])  # of a dataclass


class _Seen(NamedTuple):
    """A module that was traced.

    Attributes:
        variables: its own.
        out: what it returned.
        function: of the variables of a module like it and of its inputs, jitted.
        trace: the trace that its arrays belong to; in another, such as the body of a loop, they mean nothing.
    """

    variables: dict
    out: Any
    function: Callable
    trace: Any


def jaxpr_of(fn: Callable, *args: Any, **options: Any) -> Any:
    """`jax.make_jaxpr(fn, **options)(*args)`, in which equal modules of the user's are traced once.

    Modules are equal if their class and all their fields are, and if they are called on equal shapes. The first is
    traced as it stands. The others are calls of one jitted function of their own parameters; where they are
    initialised, they get the parameters of the first, which have the same laws, and what else it keeps. Exempt are
    modules that hold others, that change what they keep, and that ask for their name or surroundings.
    """
    # An error may come of modules that hand out results by the way: tried again as it stands, or shown by it.
    with contextlib.suppress(Exception), _equal_modules_once():
        return jax.make_jaxpr(fn, **options)(*args)
    return jax.make_jaxpr(fn, **options)(*args)


def _equal_modules_once() -> contextlib.AbstractContextManager:
    if "flax" not in sys.modules:  # and so no model of it
        return contextlib.nullcontext()
    from flax import linen

    seen: dict[Hashable, _Seen | None] = {}
    asked = [
        False
    ]  # of each module being traced: whether it contains one that asks for its surroundings

    def call(next_fn: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        module = context.module
        if type(module).__module__.startswith("flax.") or context.method_name != "__call__":
            return next_fn(*args, **kwargs)
        key, arrays = _key(module, args, kwargs)
        earlier = seen.get(key)
        if earlier is not None and earlier.trace == module.scope.trace_level:
            seen[key] = None  # while it is traced as a function, by this very path
            try:
                out = _again(module, earlier, arrays)
            except Exception:
                # Whatever it is: as it stands, the module works, or shows a better message.
                return next_fn(*args, **kwargs)
            seen[key] = earlier
            return out
        asked.append(_asks(type(module)))
        out = next_fn(*args, **kwargs)
        special = asked.pop()
        asked[-1] |= special
        if key is not None and not special:
            function = _function(module, args, kwargs)
            if seen.get(key, ()) is not None:  # None is for what failed
                seen[key] = _Seen(module.variables, out, function, module.scope.trace_level)
        return out

    return linen.intercept_methods(call)


def _key(module: Any, args: tuple, kwargs: dict) -> tuple[Hashable, list]:
    """What a module and its call must have in common with an earlier one; None if it is exempt. And its arrays."""
    fields = {f.name: getattr(module, f.name) for f in dataclasses.fields(module)}
    fixed, arrays = [], []
    for value in (*args, *kwargs.values()):
        if isinstance(value, jax.Array):
            arrays.append(value)
            value = (value.shape, value.dtype, value.weak_type)
        fixed.append(value)
    rest = [value for name, value in fields.items() if name not in ("name", "parent")]
    if any(_holds_module(value) for value in (*rest, *fixed)):
        return None, arrays
    mode = module.is_initializing(), bool(module.variables)
    key = (type(module), tuple(rest), tuple(fixed), tuple(kwargs), mode)
    try:
        hash(key)
    except TypeError:
        return None, arrays
    return key, arrays


def _holds_module(value: Any) -> bool:
    from flax import linen

    return any(isinstance(leaf, linen.Module) for leaf in jax.tree.leaves(value))


def _again(module: Any, seen: _Seen, arrays: list) -> Any:
    """The result of a module that is equal to an earlier one."""
    if not module.is_initializing():
        return seen.function(module.variables, *arrays)
    for collection, variables in seen.variables.items():
        for name, value in variables.items():
            module.put_variable(collection, name, value)
    return jax.tree.map(lambda x: x, seen.out)


def _function(module: Any, args: tuple, kwargs: dict) -> Callable:
    """A module and its call as a function of its variables and of the arrays among its arguments."""
    net, _ = module.unbind()

    def call(variables: dict, *arrays: jax.Array) -> Any:
        given = iter(arrays)
        values = [next(given) if isinstance(v, jax.Array) else v for v in (*args, *kwargs.values())]
        return net.apply(variables, *values[: len(args)], **dict(zip(kwargs, values[len(args) :])))

    return jax.jit(call)


def _asks(kind: type) -> bool:
    """Whether a module of that class may depend on where it stands, or on random numbers."""
    methods = [
        getattr(method, "__wrapped__", method).__code__
        for base in kind.__mro__
        if not base.__module__.startswith(("flax.", "builtins"))
        for name, method in vars(base).items()
        if isinstance(method, types.FunctionType) and name not in _GENERATED
    ]
    return any(not _SURROUNDINGS.isdisjoint(_names(code)) for code in methods)


def _names(code: types.CodeType) -> set[str]:
    """Names that a function and those inside it look up."""
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))
