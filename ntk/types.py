"""Names of the types that functions of this library take and give."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated as Bool
from typing import Annotated as Float
from typing import Annotated as Integer
from typing import Annotated as Real
from typing import Annotated as Shaped
from typing import Any, ParamSpec, Protocol, TypeAlias, TypeVar, overload

import jax
import numpy as np

# Shapes, `Float[Array, "n d"]`: jaxtyping's names and words for axes. To a user they are `Annotated`, so a checker sees
# an array and nothing is imported or checked; the tests put jaxtyping's own in their place (tests/shapes.py).
__all__ = ["Bool", "Float", "Integer", "Real", "Shaped"]

Array: TypeAlias = jax.Array
Data: TypeAlias = jax.Array | np.ndarray
"""An array as it comes in, of JAX or of NumPy."""
Rows: TypeAlias = jax.Array | np.ndarray | Sequence[Any]
"""Numbers, or rows of them, for each of several examples: an array or a list."""
PRNGKey: TypeAlias = jax.Array
"""A typed key, `jax.random.key(0)`."""
PyTree: TypeAlias = Any
"""Arrays in dicts, lists, tuples and what else `jax.tree` goes through; no checker knows which."""
Shape: TypeAlias = tuple[int, ...]
Axes: TypeAlias = tuple[int, ...]
Scalar: TypeAlias = float | jax.Array
"""A Python number, or an array without axes, traced or not."""
Elementwise: TypeAlias = Callable[[jax.Array], jax.Array]
"""An activation: a function of an array that gives one of the same shape."""
HostFunction: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""The same of arrays of NumPy."""
Family: TypeAlias = Callable[[int], Any]
"""A function of the width that gives a model, see `ntk.family`."""
Numbers = TypeVar("Numbers", np.ndarray, jax.Array)
"""An array of NumPy, which gives one of NumPy, or of JAX, which gives one of JAX."""
Out = TypeVar("Out")
"""What a network gives: an array, or a pytree of them."""
Out_co = TypeVar("Out_co", covariant=True)
P = ParamSpec("P")
R = TypeVar("R")


class KernelOfParams(Protocol[Out_co]):
    """``fn(x1, x2, params, **kwargs)``: a kernel of every output, in the structure of the network's outputs."""

    def __call__(self, x1: PyTree, x2: PyTree | None, params: PyTree, **kwargs: Any) -> Out_co:
        """The kernel; x2 is None for x1."""


class KernelsByName(Protocol[Out_co]):
    """``fn(x1, x2, get, params, **kwargs)``: one kernel for a name, a named tuple of them for several."""

    @overload
    def __call__(
        self, x1: PyTree, x2: PyTree | None, get: str, params: PyTree, **kwargs: Any
    ) -> Out_co: ...
    @overload
    def __call__(
        self,
        x1: PyTree,
        x2: PyTree | None,
        get: tuple[str, ...] | None,
        params: PyTree,
        **kwargs: Any,
    ) -> Any: ...


def two_of(values: Iterable[R]) -> tuple[R, R]:
    """Both of two values, such as those of either batch, as a tuple whose length a checker knows."""
    one, two = values
    return one, two


def jitted(
    *, static_argnames: str | Sequence[str] = ()
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """`jax.jit` as a decorator that keeps, for a checker, what the function takes and gives."""
    return functools.partial(jax.jit, static_argnames=static_argnames)
