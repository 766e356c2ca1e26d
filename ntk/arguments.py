"""How kernels take their arguments: keywords, axes of examples, parameters.

One file: what every function of this package asks of its arguments, a function each, none of them long.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk.types import P, PyTree, R


def strict(fn: Callable[P, R]) -> Callable[P, R]:
    """The function, whose error for a keyword that it does not read names the nearest that it does."""
    known = keyword_names(fn)
    if known is None:
        return fn
    name = "kernel_fn" if fn.__name__ == "__call__" else fn.__name__

    @functools.wraps(fn)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if not kwargs.keys() <= known:
            refuse_unknown(name, kwargs, known)
        return fn(*args, **kwargs)

    return checked


def strict_functions(names: dict[str, Any]) -> dict[str, Callable]:
    """The public functions of a module, `strict`."""
    public = {name: fn for name, fn in names.items() if not name.startswith("_")}
    return {name: strict(fn) for name, fn in public.items() if inspect.isfunction(fn)}


def strict_package(namespace: dict[str, Any]) -> None:
    """Makes functions of a package `strict`, in place: those in its namespace, and those of its modules named there."""
    public = [namespace.get(name) for name in namespace["__all__"]]
    for module in filter(inspect.ismodule, public):
        own = {k: v for k, v in vars(module).items() if _module_of(v) == module.__name__}
        vars(module).update(strict_functions(own))
    namespace.update(strict_functions(namespace))


def _module_of(value: Any) -> str | None:
    return getattr(value, "__module__", None)


def keyword_names(fn: Callable) -> frozenset[str] | None:
    """Names of the keywords that a function reads; None if it takes any."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):  # some built-in functions do not tell
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    named = frozenset(p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY)
    return named - {"self"}


def refuse_unknown(name: str, given: Iterable[str], *known: Iterable[str] | None) -> None:
    """Refuses keywords that nobody reads.

    Args:
        name: of the function that was called.
        given: names of its keywords.
        *known: names that are read, by itself and by each function that it passes them on to; None for a
            function that takes any.

    Raises:
        TypeError: a keyword is not known; names the nearest that is.
    """
    read: set[str] = set()
    for more in known:
        if more is None:
            return
        read.update(more)
    names = sorted(read)
    for keyword in sorted(set(given) - read):
        near = difflib.get_close_matches(keyword, names, 1, 0.4)
        hint = (
            f" (did you mean {near[0]!r}?)" if near else f"; it reads {', '.join(names) or 'none'}"
        )
        raise TypeError(f"{name} got an unexpected keyword argument {keyword!r}{hint}")


def refuse_unread(name: str, fn: Callable, inner: Callable, kwargs: dict[str, Any]) -> None:
    """Refuses keywords that `fn` passes on to `inner`, which does not read them either.

    Of an ``inner`` that takes any, only those that resemble one of ``fn``'s own are refused.

    Raises:
        TypeError: names the nearest that one of the two reads; ``inner`` is no function.
    """
    if not kwargs:
        return
    parameters = inspect.signature(fn).parameters.values()
    own = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    known = keyword_names(inner) if callable(inner) else frozenset()
    if known is None:
        for keyword in kwargs:
            if difflib.get_close_matches(keyword, own, 1, 0.8):
                refuse_unknown(name, [keyword], own)
        return
    refuse_unknown(name, kwargs, own, known)


def lower(get: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    """Names of kernels in lower case, as neural-tangents takes them in any."""
    if get is None or isinstance(get, str):
        return get and get.lower()
    return tuple(name.lower() for name in get)


class MapAxes(NamedTuple):
    """Axes of the examples: of each array of inputs and kwargs; of all or of each of the outputs."""

    arrays: tuple[int | None, ...]
    outputs: int | tuple[int | None, ...] | None


def map_axes(vmap_axes: Any, x: PyTree, kwargs: dict) -> MapAxes:
    """Axes of the examples from an axis, or from a triple for inputs, outputs and kwargs.

    Raises:
        ValueError: kwargs that are not there, or axes for inputs without outputs or the reverse.
    """
    for axis in jax.tree.leaves(vmap_axes):
        if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
            raise TypeError(f"vmap_axes has {axis!r}; axes are integers, or None")
    # neural-tangents's (inputs, outputs, kwargs); a tuple of another length is one axis for each input.
    triple = isinstance(vmap_axes, tuple) and len(vmap_axes) == 3
    x_axes, out_axes, kw_axes = vmap_axes if triple else (vmap_axes, vmap_axes, {})
    kw_axes = {} if kw_axes is None else kw_axes
    if isinstance(kw_axes, int):
        kw_axes = dict.fromkeys(kwargs, kw_axes)
    unknown = sorted(set(kw_axes) - set(kwargs))
    if unknown:
        raise ValueError(f"vmap_axes names {unknown}, which are not among {sorted(kwargs)}")
    wanted = (x_axes, {name: kw_axes.get(name) for name in kwargs})
    try:
        axes = jax.tree.broadcast(wanted, (x, kwargs), is_leaf=lambda a: a is None)
    except ValueError as error:
        raise ValueError(
            f"vmap_axes {vmap_axes!r} has another structure than the inputs: {error}"
        ) from error
    places = jax.tree.leaves((x, kwargs), is_leaf=lambda v: v is None)
    axes = jax.tree.leaves(axes, is_leaf=lambda a: a is None)
    axes = [a for a, v in zip(axes, places) if v is not None]  # None is no input
    values = jax.tree.leaves((x, kwargs))
    axes = [None if is_key(v) and not v.shape else a for a, v in zip(axes, values)]
    for axis, value in zip(axes, values):
        if axis is not None and is_array(value) and not -np.ndim(value) <= axis < np.ndim(value):
            raise ValueError(
                f"vmap_axes has {axis}; an input of shape {np.shape(value)} has no such axis: examples go along axis 0"
            )
    arrays = tuple(
        None if a is None else a % np.ndim(v) for a, v in zip(axes, values) if is_array(v)
    )
    if out_axes is not None and not isinstance(out_axes, int):
        out_axes = tuple(jax.tree.leaves(out_axes, is_leaf=lambda a: a is None))
    if (out_axes is None) != all(a is None for a in arrays):
        raise ValueError(
            f"vmap_axes is {vmap_axes!r}: give axes to both inputs and outputs, or none"
        )
    return MapAxes(arrays, out_axes)


def split_kwargs(kwargs: dict, x2: PyTree | None) -> tuple[dict, dict]:
    """kwargs of the two batches: pairs are divided, and ``rng`` gives each batch its own key."""
    first, second = {}, {}
    for name, value in kwargs.items():
        if isinstance(value, tuple) and len(value) == 2:
            first[name], second[name] = value
        elif name == "rng" and value is not None and x2 is not None:
            # Two batches are two calls of the network, with noise of their own; x2 = None is one batch, and one noise.
            first[name], second[name] = jax.random.split(value)
        else:
            first[name] = second[name] = value
    return first, second


def per_sample(value: Any, n1: int, n2: int) -> bool:
    """Whether an argument is a tuple (a, b) of arrays with leading axes n1 and n2."""
    if not (isinstance(value, tuple) and len(value) == 2):
        return False
    for side, n in zip(value, (n1, n2)):
        leaves = jax.tree.leaves(side)
        if not leaves or any(np.shape(v)[:1] != (n,) for v in leaves):
            return False
    return True


def is_array(value: Any) -> bool:
    """Whether the value is an array, of JAX or NumPy."""
    return isinstance(value, jax.Array | np.ndarray | np.generic)


def is_key(value: Any) -> bool:
    """Whether the value is a PRNG key, or an array of them."""
    dtype = getattr(value, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def is_integer(value: Any) -> bool:
    """Whether the value is one integer: arrays have the method of integers too, whatever they hold.

    Raises:
        TracerIntegerConversionError: it is traced.
    """
    try:
        operator.index(value)
        return not (isinstance(value, bool | np.bool_) or np.ndim(value))
    except jax.errors.TracerIntegerConversionError:
        raise
    except TypeError:
        return False


def shown(value: Any) -> str:
    """A value in a message, in a line: itself where it is short, an array of several numbers by its kind."""
    if is_array(value) and (np.ndim(value) or is_key(value)):
        return f"an array of {value.dtype} of shape {value.shape}"
    text = " ".join(repr(value).split())
    return text if len(text) < 80 else f"of type {type(value).__name__}"


def partition(tree: PyTree) -> tuple[list, tuple]:
    """Arrays, which are traced, and all else, which is static."""
    leaves, treedef = jax.tree.flatten(tree)
    arrays = [v for v in leaves if is_array(v)]
    return arrays, (treedef, tuple(None if is_array(v) else (v,) for v in leaves))


def combine(arrays: list, static: tuple) -> PyTree:
    """The tree that was partitioned, with other arrays."""
    treedef, rest = static
    values = iter(arrays)
    return treedef.unflatten([next(values) if r is None else r[0] for r in rest])


def split_params(params: PyTree) -> tuple[list, Callable[[list], PyTree]]:
    """Floating-point leaves, and the function that puts others in their places."""
    leaves, treedef = jax.tree.flatten(params)
    is_float = [jnp.issubdtype(jnp.result_type(v), jnp.floating) for v in leaves]

    def rebuild(floats: list) -> PyTree:
        values = iter(floats)
        return treedef.unflatten([next(values) if d else v for v, d in zip(leaves, is_float)])

    return [jnp.asarray(v) for v, d in zip(leaves, is_float) if d], rebuild


def broadcast(out_axes: Any, count: int) -> list[int | None]:
    """The axis of the examples in each of the outputs.

    Raises:
        ValueError: another number of axes than of outputs.
    """
    axes = list(out_axes) if isinstance(out_axes, tuple) else [out_axes] * count
    if len(axes) != count:  # None stands for an output that is None
        axes = [axis for axis in axes if axis is not None]
    if len(axes) != count:
        raise ValueError(f"vmap_axes gives {len(axes)} output axes; f returns {count} arrays")
    return axes


def as_axes(axes: int | Sequence[int]) -> tuple[int, ...]:
    """Axes as a tuple.

    Raises:
        TypeError: one is no integer.
    """
    given: Sequence[Any] = axes if isinstance(axes, tuple | list) else (axes,)
    for axis in given:
        if isinstance(axis, bool | np.bool_) or not isinstance(axis, int | np.integer):
            raise TypeError(
                f"axes hold {axis!r}; axes are integers: trace_axes=(-1,), or () for none"
            )
    return tuple(int(axis) for axis in given)


def axis_within(name: str, axis: int, ndim: int) -> int:
    """The axis counted from the front.

    Raises:
        TypeError: it is no integer.
        ValueError: arrays of ndim axes do not have it.
    """
    (axis,) = as_axes((axis,))
    if not -ndim <= axis < ndim:
        raise ValueError(f"{name} is {axis}; its inputs have axes {-ndim} to {ndim - 1}")
    return axis % ndim


def hashable(f: Callable) -> Callable:
    """Compiled kernels are kept by function: one that has no hash is compiled for anew.

    Raises:
        TypeError: a module, or what cannot be called.
    """
    if any(c.__name__ == "Module" and c.__module__.startswith("flax") for c in type(f).__mro__):
        raise TypeError(
            f"f is the module {type(f).__name__}; give a function of parameters and inputs: for a linen module "
            "lambda params, x: model.apply({'params': params}, x)"
        )
    if not callable(f):
        raise TypeError(f"f is of type {type(f).__name__}; it must be a function f(params, x)")
    try:
        hash(f)
    except TypeError:
        # A new function each time, which JAX's caches tell apart by itself.
        @functools.wraps(f)
        def new(*args: Any, **kwargs: Any) -> Any:
            return f(*args, **kwargs)

        return new
    return f


def spread(f: Callable, x: PyTree, kwargs: dict) -> Callable:
    """f, of a tuple of inputs that it takes one by one, as a function of parameters and the tuple.

    A function that can take the tuple itself as its one input gets it; ``*inputs`` are several.
    """
    if not isinstance(x, tuple):
        return f
    try:
        signature = inspect.signature(f)
        # Only whether the call would fit: a TypeError of the call itself could come from inside f.
        signature.bind(None, *x, **kwargs)
    except (TypeError, ValueError):
        return f
    if not any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()):
        with contextlib.suppress(TypeError):
            signature.bind(None, x, **kwargs)
            return f
    return _spread(f)


@functools.lru_cache(maxsize=256)
def _spread(f: Callable) -> Callable:
    """The same function for the same f: what is compiled for it is found again."""
    return lambda params, x, **kwargs: f(params, *x, **kwargs)


def scalar_loss(loss: Callable[..., Any]) -> Callable[..., Any]:
    """loss(outputs, targets), which says what it returned where that is not one number.

    Raises:
        TypeError: it cannot be called.
        ValueError: (from the function returned) it is not one real number.
    """
    if not callable(loss):
        raise TypeError(f"loss is {shown(loss)}; it must be a function of outputs and targets")

    @functools.wraps(loss)
    def one_number(outputs: Any, targets: Any) -> Any:
        value = loss(outputs, targets)
        right = isinstance(value, float) or (is_array(value) and not np.ndim(value))
        if not (right and jnp.issubdtype(jnp.result_type(value), jnp.floating)):
            given = shown(value) if not is_array(value) else f"{value.dtype}{list(value.shape)}"
            raise ValueError(
                f"loss(outputs, targets) returns {given}; it must return one real number: the mean or the sum over "
                "examples and outputs, and nothing beside it"
            )
        return value

    return one_number


@contextlib.contextmanager
def explained(f: Callable, params: PyTree, **batches: tuple[PyTree, dict]) -> Iterator[None]:
    """Says of an error inside of f which batch f cannot be evaluated on, given as (inputs, kwargs) by name.

    Raises:
        ValueError: f itself fails there.
    """
    try:
        yield
    except Exception as error:
        for name, (x, kwargs) in batches.items():
            try:
                if x is not None:
                    jax.eval_shape(lambda p, x=x, kwargs=kwargs: f(p, x, **kwargs), params)
            except Exception as inner:
                if "unexpected keyword argument" in str(inner):
                    raise error from None  # nothing is wrong with the inputs
                shapes = [np.shape(leaf) for leaf in jax.tree.leaves(x)]
                raise ValueError(
                    f"f cannot be evaluated on {name} of shapes {shapes} with these params: "
                    f"{type(inner).__name__}: {str(inner).splitlines()[0] if str(inner) else ''}"
                ) from error
        raise


def check_inputs(x1: PyTree, x2: PyTree | None, params: PyTree) -> None:
    """Refuses what has no real kernel.

    Raises:
        TypeError: what is no array of numbers.
        ValueError: complex arrays, an empty batch, no inputs, no parameters, batches that do not fit each other,
            whatever is not a parameter among the parameters.
    """
    for name, tree in (("x1", x1), ("x2", x2), ("params", params)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if name != "params" and is_key(leaf):
                continue
            dtype = _number_type(name, leaf)
            if jnp.issubdtype(dtype, jnp.complexfloating):
                raise ValueError(f"{name} is complex; kernels are of real inputs and parameters")
            if name != "params" and np.size(leaf) == 0:
                raise ValueError(
                    f"{name} has an array of shape {np.shape(leaf)}: the batch is empty"
                )
            if name == "params" and not jnp.issubdtype(dtype, jnp.floating):
                where = jax.tree_util.keystr(path, simple=True, separator="/")
                raise ValueError(
                    f"params/{where} is {dtype}, no parameter: leave counters and flags out of params, and close "
                    "apply over them"
                )
    if not jax.tree.leaves(x1):
        raise ValueError("x1 has no arrays")
    if not jax.tree.leaves(params):
        raise ValueError("params has no floating-point arrays to differentiate by")
    _check_collections(params)
    if x2 is not None:
        _check_pair(x1, x2)


def _number_type(name: str, leaf: Any) -> Any:
    try:
        dtype = jnp.result_type(leaf)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} holds {type(leaf).__name__}; it must be a pytree of arrays of numbers"
        ) from error
    if not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)):
        raise TypeError(f"{name} holds {dtype}; it must be a pytree of arrays of numbers")
    return dtype


def _check_collections(params: PyTree) -> None:
    """The statistics that Flax keeps beside the parameters are no parameters, though floating-point."""
    others = sorted(set(params) - {"params"}) if isinstance(params, Mapping) else []
    if isinstance(params, Mapping) and "params" in params and others:
        raise ValueError(
            f"params has the collections {['params', *others]}; only 'params' are parameters: give "
            "variables['params'], and apply = lambda p, x: model.apply({**variables, 'params': p}, x)"
        )
    variables = jax.tree.leaves(params, is_leaf=lambda v: _variable_kind(v) is not None)
    kinds = {kind for v in variables if (kind := _variable_kind(v)) and kind != "Param"}
    if kinds:
        raise ValueError(
            f"params holds variables of kind {sorted(kinds)}; only nnx.Param are parameters: split them off by "
            "graph, params, rest = nnx.split(model, nnx.Param, ...)"
        )


def _variable_kind(value: Any) -> str | None:
    """Param, BatchStat, ...: which kind of NNX variable the value is; None for anything else."""
    names = [c.__name__ for c in type(value).__mro__ if c.__module__.startswith("flax.nnx")]
    if "Variable" not in names:
        return None
    return "Param" if "Param" in names else names[0]


def _check_pair(x1: PyTree, x2: PyTree) -> None:
    """Two batches of the same inputs differ in their numbers of examples only."""
    if jax.tree.structure(x1) != jax.tree.structure(x2):
        raise ValueError(
            f"x1 and x2 differ in structure: {jax.tree.structure(x1)} and {jax.tree.structure(x2)}"
        )
    for a, b in zip(jax.tree.leaves(x1), jax.tree.leaves(x2)):
        if np.ndim(a) != np.ndim(b):
            raise ValueError(
                f"x1 has an array of shape {np.shape(a)} and x2 of {np.shape(b)}: give both their axis of examples"
            )
