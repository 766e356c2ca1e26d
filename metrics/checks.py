"""What the metrics refuse, and the sentence that says what to do instead.

Arguments first: what a user gives, made an array in single precision at least, an integer, a key or a
function; then what the curvature functions ask of losses and parameters.

One file: many short refusals, of one wording, that all other modules look up here.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metrics.estimate import concrete
from ntk.types import Data, Numbers, PyTree

LARGEST = 2**31 - 1
"""Integer: what is larger overflows in JAX's default integers."""


def real(name: str, value: Any, *axes: str | int) -> jax.Array:
    """The value as an array of real numbers, in single precision at least.

    Sums of squares of integers overflow, and those of half precision round and overflow: both are computed in
    single precision (integers in the default precision).

    Args:
        name: of the argument, for the message.
        value: an array, a number or nested lists of them.
        *axes: the shape that is asked for, a size or a letter for each axis, one letter for one size; a last
            "..." stands for any axes. Nothing for any shape.

    Raises:
        TypeError: these are no numbers.
        ValueError: complex numbers, or another shape.
    """
    dtype = _real_dtype(name, value)
    if axes:
        check_shape(name, np.shape(value), axes)
    floating = jnp.issubdtype(dtype, jnp.floating)
    wide = jax.dtypes.canonicalize_dtype(
        jnp.promote_types(dtype, jnp.float32) if floating else float
    )
    if not isinstance(value, jax.Array):
        # NumPy first: JAX would cut 64-bit integers to 32 bits.
        with contextlib.suppress(
            jax.errors.TracerArrayConversionError
        ):  # of a list of traced numbers
            value = np.asarray(value).astype(wide)
    return jnp.asarray(value, wide)


def doubles(name: str, value: Any) -> np.ndarray:
    """The value as a NumPy array of real numbers in double precision, for what is computed on the host."""
    _real_dtype(name, value)
    values = concrete(value)
    if values is None:
        raise TypeError(f"{name} is {_shown(value)}; it must be known: call this outside of jit")
    return values.astype(np.float64)


def _real_dtype(name: str, value: Any) -> Any:
    """The dtype; refused unless it is of real numbers."""
    dtype = dtype_of(name, value)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(f"{name} is complex; it must be real: give its real part, or its modulus")
    if not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)):
        raise TypeError(f"{name} is an array of {dtype}; it must be one of real numbers")
    return dtype


def dtype_of(name: str, value: Any) -> Any:
    """The dtype of an array, or of what would be one."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; give its filled() or its compressed() values")
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return value.dtype
    plain = (bool, int, float, complex, list, tuple)
    if not isinstance(value, plain):
        raise TypeError(f"{name} is {_shown(value)}; it must be an array of real numbers")
    try:
        return jnp.result_type(np.asarray(value))
    except jax.errors.TracerArrayConversionError:
        return jnp.result_type(*jax.tree.leaves(value))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} is {_shown(value)}; it must be an array of real numbers: {error}"
        ) from error


def check_shape(name: str, shape: tuple, axes: Sequence[str | int]) -> None:
    """Refuses a shape that is not the one described, see `real`."""
    fixed = axes[:-1] if axes[-1] == "..." else axes
    fits = len(shape) == len(fixed) or (len(shape) > len(fixed) and axes[-1] == "...")
    sizes: dict = {}
    for size, axis in zip(shape, fixed):
        fits = (
            fits
            and size > 0
            and size == (sizes.setdefault(axis, size) if isinstance(axis, str) else axis)
        )
    if not fits:
        wanted = ", ".join(map(str, axes)) + ("," if len(axes) == 1 else "")
        empty = ", not empty" if 0 in shape else ""
        raise ValueError(f"{name} has shape {tuple(shape)}; it must be ({wanted}){empty}")


def same_shape(**arrays: Data) -> None:
    """Refuses arrays of different shapes: nothing here broadcasts."""
    if len({x.shape for x in arrays.values()}) > 1:
        shapes = " and ".join(f"{name} {tuple(x.shape)}" for name, x in arrays.items())
        raise ValueError(f"{shapes} differ in shape; they must be equal: nothing is broadcast")


def same_trees(**trees: Any) -> None:
    """Refuses pytrees of arrays that differ in structure or in the shape of a leaf."""
    (first, one), (second, other) = trees.items()
    if jax.tree.structure(one) != jax.tree.structure(other):
        raise ValueError(
            f"{first} and {second} differ in structure: {jax.tree.structure(one)} and "
            f"{jax.tree.structure(other)}; give the parameters of one network twice"
        )
    leaves = jax.tree_util.tree_leaves_with_path(one)
    if not leaves:
        raise ValueError(f"{first} holds no arrays")
    for (path, a), b in zip(leaves, jax.tree.leaves(other)):
        same_shape(**{f"{first}/{_name(path)}": a, f"{second}/{_name(path)}": b})


def finite(name: str, array: Numbers) -> Numbers:
    """Refuses what is not finite, where it can be looked at, and says where it is."""
    values = concrete(array)
    if values is not None and not np.isfinite(values).all():
        place = np.argwhere(~np.isfinite(values))[0].tolist()
        raise ValueError(f"{name}{place} is {values[tuple(place)]}; it must be finite")
    return array


def within(name: str, value: Any, holds: Callable, words: str) -> jax.Array:
    """A number, or an array of numbers, for all of which a condition holds, where they can be looked at."""
    array = real(name, value)
    values = concrete(
        value
    )  # inside of a trace a number given is known, an array made of it is not
    if values is not None and not np.all(holds(values)):
        raise ValueError(f"{name} is {value}; it must be {words}")
    return array


def positive(name: str, value: Any) -> jax.Array:
    """A number, or an array of numbers, that is positive and finite."""
    return within(name, value, lambda x: (x > 0) & np.isfinite(x), "positive and finite")


def scalar(name: str, array: jax.Array) -> jax.Array:
    """The array, which must be one number."""
    if array.ndim:
        raise ValueError(f"{name} has shape {array.shape}; it must be one number")
    return array


def broadcasts(name: str, array: jax.Array, shape: tuple[int, ...]) -> None:
    """Refuses an array that does not broadcast to a shape."""
    try:
        fits = np.broadcast_shapes(array.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{name} has shape {array.shape}, which does not broadcast to {shape}")


def integer(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """An integer, between low and high if given, both included.

    Raises:
        TypeError: a float, a boolean, an array, a traced value.
        ValueError: out of range.
    """
    try:
        number = operator.index(value)
        if isinstance(value, bool | np.bool_) or np.ndim(value):
            raise TypeError
    except TypeError as error:
        raise TypeError(
            f"{name} is {_shown(value)}; it must be an integer, known before anything is compiled"
        ) from error
    if (low is not None and number < low) or (high is not None and number > high):
        wanted = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{name} is {number}; it must be {wanted}")
    if abs(number) > LARGEST:
        raise ValueError(f"{name} is {number}; it must be at most {LARGEST}: it counts in 32 bits")
    return number


def floating_type(name: str, value: Any) -> None:
    """Refuses what is no type of floating numbers."""
    try:
        right = jnp.issubdtype(value, jnp.floating)
    except (TypeError, ValueError):
        right = False
    if not right:
        raise TypeError(f"{name} is {_shown(value)}; it must be a floating type, as jnp.float32")


def choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Refuses a word that is none of those allowed."""
    if not isinstance(value, str) or value not in allowed:
        words = " or ".join(map(repr, allowed)) if len(allowed) == 2 else f"one of {tuple(allowed)}"
        raise ValueError(f"{name} is {value!r}; it must be {words}")


def switch(name: str, value: Any) -> None:
    """Refuses what is none of True, False and None."""
    if not (value is None or isinstance(value, bool | np.bool_)):
        raise TypeError(f"{name} is {_shown(value)}; it must be True, False or None")


def boolean(name: str, value: Any) -> bool:
    """True or False, and nothing that would be taken for one of them.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {_shown(value)}; it must be True or False")
    return bool(value)


def key(value: Any, name: str = "key") -> jax.Array:
    """A PRNG key, one of them.

    Raises:
        TypeError: no key.
        ValueError: several keys.
    """
    typed = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    legacy = isinstance(value, jax.Array | np.ndarray) and value.dtype == np.uint32
    if not typed and not (legacy and value.ndim):
        raise TypeError(f"{name} is {_shown(value)}; it must be a PRNG key: jax.random.key(0)")
    if value.ndim != (0 if typed else 1):
        raise ValueError(f"{name} holds keys of shape {value.shape}; give one of them: {name}[0]")
    return value


def function(name: str, value: Any, *arguments: str) -> Callable:
    """A function that can be called with so many arguments, and is no module.

    Raises:
        TypeError: a module, something that cannot be called so, or has no hash.
    """
    call = f"{name}({', '.join(arguments)})"
    if any(c.__name__ == "Module" and c.__module__.startswith("flax") for c in type(value).__mro__):
        raise TypeError(
            f"{name} is the module {type(value).__name__}; it must be a function {call}: for a linen module "
            "lambda params, batch: ... model.apply({'params': params}, batch)"
        )
    if not callable(value):
        raise TypeError(f"{name} is {_shown(value)}; it must be a function {call}")
    try:
        inspect.signature(value).bind(*arguments)
    except ValueError:  # a builtin without a signature
        pass
    except TypeError as error:
        raise TypeError(f"{name} cannot be called as {call}: {error}") from error
    try:
        hash(value)
    except TypeError as error:
        raise TypeError(
            f"{name} has no hash, so that what is compiled for it cannot be found again: "
            f"give a function {call}"
        ) from error
    return value


def labels(
    name: str, value: Any, rows: int, num_classes: int, *, padding: bool = False
) -> jax.Array:
    """Class numbers (rows,), integers 0..num_classes-1; -1 for padded rows where these are allowed."""
    check_integers(name, value, rows)
    values = concrete(value)
    if (
        values is not None
        and values.size
        and (values.min() < -padding or values.max() >= num_classes)
    ):
        raise ValueError(
            f"{name} run from {values.min()} to {values.max()}; they must be 0..{num_classes - 1}"
            + padding * ", or -1 for a padded row"
        )
    return jnp.asarray(value)


def check_integers(name: str, array: Any, rows: int) -> None:
    """Refuses what is not one integer for each row."""
    dtype, shape = dtype_of(name, array), np.shape(array)
    if shape != (rows,) or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"{name} are {dtype}{list(shape)}; they must be integers "
            f"of shape ({rows},), one per row of features"
        )


def integers(name: str, value: Any) -> jax.Array:
    """An array of integers that fit into 32 bits.

    Raises:
        TypeError: these are no integers.
        ValueError: one is too large.
    """
    dtype = dtype_of(name, value)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"{name} are {dtype}; they must be integers")
    values = concrete(value)
    if (
        values is not None
        and values.size
        and max(abs(int(values.min())), int(values.max())) > LARGEST
    ):
        raise ValueError(
            f"{name} run from {values.min()} to {values.max()}; they must fit into 32 bits"
        )
    return jnp.asarray(value)


def layers(**dicts: Any) -> None:
    """Refuses what is no dict of layers."""
    for name, value in dicts.items():
        if not isinstance(value, Mapping) or not value:
            raise TypeError(
                f"{name} is {_shown(value)}; it must be a dict, layer name -> (N, ...), as a model's "
                "features=True returns"
            )


def examples(name: str, batch: PyTree) -> int:
    """Number of examples of a batch: the leading axis that all its leaves share.

    Raises:
        ValueError: they share none.
    """
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
    if not shapes or () in shapes or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(
            f"the leaves of {name} have shapes {shapes}; all need one leading axis, the examples: keep what "
            "the examples share in the loss"
        )
    if shapes[0][0] == 0:
        raise ValueError(f"{name} is empty; it must hold at least 1 example")
    return shapes[0][0]


def _shown(value: Any) -> str:
    """A value in a message: itself where it is short."""
    if isinstance(value, jax.core.Tracer):
        return f"traced ({value.aval})"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"of type {type(value).__name__}"


def _named(value: Any) -> str:
    """`_shown`, after a preposition."""
    return re.sub("^of type ", "a ", _shown(value))


def check_params(params: PyTree) -> int:
    """Counts the parameters.

    Raises:
        ValueError: there is none, or one is not real floating point.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for path, leaf in leaves:
        dtype = dtype_of(f"parameter {_name(path)}", leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"parameter {_name(path)} has dtype {dtype}; curvature needs real "
                "floating-point parameters: leave counters and flags out of params"
            )
    n = sum(jnp.size(leaf) for _, leaf in leaves)
    if n == 0:
        raise ValueError("params holds no numbers; pass a pytree of float arrays")
    return n


@contextlib.contextmanager
def explained(name: str, *arguments: PyTree) -> Iterator[None]:
    """Says of an error inside of a user's function what it was called with.

    Raises:
        ValueError: the function of that name failed.
    """
    try:
        yield
    except Exception as error:  # a function that is not ours can raise anything
        shapes = [jax.tree.map(_kind, argument) for argument in arguments]
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{name} cannot be evaluated on {', '.join(map(_named, shapes))}: {type(error).__name__}: {reason}"
        ) from error


def _kind(leaf: Any) -> Any:
    """What a message says of a leaf: the type and shape of an array."""
    if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
        return f"{leaf.dtype}{list(leaf.shape)}"
    return leaf


def check_loss(loss: Callable, params: PyTree, batch: PyTree) -> None:
    """Refuses a loss that is not one real number."""
    with explained("loss", params, batch):
        out = jax.eval_shape(loss, params, batch)
    if not (hasattr(out, "shape") and out.shape == () and jnp.issubdtype(out.dtype, jnp.floating)):
        shapes = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", out)
        raise ValueError(
            f"the loss returns {shapes}; it must return one real number: "
            "take the mean over examples, and return nothing beside it"
        )


def check_losses(losses: Callable, params: PyTree, batch: PyTree) -> int:
    """Number N of examples of a function that returns a loss for each."""
    with explained("losses", params, batch):
        out = jax.eval_shape(losses, params, batch)
    shape = getattr(out, "shape", None)
    if shape is None or len(shape) != 1 or not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(
            f"losses returns shape {shape}; it must return one number per example, (N,): "
            "operators.per_example(loss) makes it from a mean"
        )
    return shape[0]


def check_scale(scale: Any, params: PyTree) -> None:
    """Refuses factors that do not fit params, or (outside of a trace) are negative."""
    try:
        full = jax.tree.broadcast(scale, params)
        jax.tree.map(
            lambda d, p: jax.eval_shape(
                functools.partial(jnp.broadcast_to, shape=jnp.shape(p)), real("scale", d)
            ),
            full,
            params,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            "scale does not fit params; it must be a pytree like params, or a prefix of one, of "
            f"numbers or of arrays that broadcast to the parameters: {error}"
        ) from error
    for path, factor in jax.tree_util.tree_leaves_with_path(scale):
        if flag(jnp.all(real("scale", factor) >= 0)) is False:
            raise ValueError(
                f"scale {_name(path)} is {factor}; learning-rate factors must be at least 0"
            )


def check_steps(num_steps: int, n: int) -> None:
    """Refuses a number of Lanczos steps that is not positive or exceeds the dimension n."""
    if not 1 <= integer("num_steps", num_steps) <= n:
        raise ValueError(
            f"num_steps is {num_steps}; it must be between 1 and {n}, the number of parameters"
        )


def is_finite(tree: PyTree) -> bool | None:
    """Whether every entry is finite; None inside a trace, where nobody can know."""
    checks = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return flag(functools.reduce(jnp.logical_and, checks))


def check_rank(k: int, rank: int) -> None:
    """Refuses more eigenvalues than a sum over so many examples can have."""
    if k > rank:
        raise ValueError(
            f"k is {k}, but the examples give this matrix only {rank} eigenvalues that are not 0: ask for "
            "fewer, or give more examples"
        )


def check_finite(result: Any, product: Callable, params: PyTree, batch: PyTree) -> None:
    """Refuses a result that is not finite, where it can be looked at, and says why."""
    if is_finite(result) is False:
        explain_non_finite(getattr(product, "loss", None), params, batch)


def explain_non_finite(loss: Callable | None, params: PyTree, batch: PyTree) -> None:
    """Says why the curvature is not finite: a parameter, the loss (of which example), or neither.

    Raises:
        ValueError: always.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if is_finite(leaf) is False:
            raise ValueError(f"parameter {_name(path)} is not finite: the run has diverged")
    if loss is None:
        raise ValueError(
            "the curvature operator's products are not finite: check the loss, the data and the learning rate"
        )
    value = jax.jit(loss)(params, batch)
    if is_finite(value) is not False:
        raise ValueError(
            f"the loss is {value}, but its second derivative is not finite; a square root, norm or "
            "division at 0 does this: add a small constant inside of it"
        )
    bad = _non_finite_examples(loss, params, batch)
    where = f"; so it is on examples {bad[:10]} of the batch" if bad else ""
    raise ValueError(f"the loss is {value}{where}: check the data and the learning rate")


def _non_finite_examples(loss: Callable, params: PyTree, batch: PyTree) -> list[int]:
    """Indices along the common leading axis, each example taken as a batch of one."""
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1 or sizes == {()}:
        return []

    def one(params: PyTree, example: PyTree) -> jax.Array:
        return loss(params, jax.tree.map(lambda leaf: leaf[None], example))

    try:
        values = jax.jit(jax.vmap(one, (None, 0)))(params, batch)
    except (TypeError, ValueError):  # a loss that needs its whole batch
        return []
    return np.flatnonzero(~np.isfinite(np.asarray(values, np.float64))).tolist()


def flag(condition: Any) -> bool | None:
    """The condition as a bool; None inside a trace."""
    value = concrete(condition)
    return None if value is None else bool(value)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/") or "(the only one)"
