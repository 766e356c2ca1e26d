"""neural-tangents 0.6.5 on current JAX, without TensorFlow: the peer of our tests and benchmarks.

Its last release stops at JAX 0.5, and imports TensorFlow for one experimental submodule. Here the
names that JAX has moved since exist while it imports, and only then; the submodule is an empty
placeholder. Its analytic kernels, ``predict``, ``batch``, ``monte_carlo_kernel_fn`` and the
empirical implementations ``JACOBIAN_CONTRACTION`` and ``NTK_VECTOR_PRODUCTS`` run.
``STRUCTURED_DERIVATIVES``, ``AUTO`` and ``predict.max_learning_rate`` stay broken: they need
internals of JAX and SciPy that no longer exist.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax

from ntk import arguments

_NAME = "neural_tangents"
_MOVED = ("Jaxpr", "JaxprEqn", "Literal", "Var", "Primitive")
_INSTALL = "`pip install --no-deps neural-tangents==0.6.5 frozendict` (without TensorFlow)"


@functools.cache
def neural_tangents() -> types.SimpleNamespace:
    """The package neural-tangents; its functions run under any JAX settings of the caller.

    Returns:
        Its public names (``stax``, ``predict``, ``batch``, ``Kernel``, ...). Functions, and
        functions that they return, are wrapped: inside them rank promotion, warnings and the key
        style are as the package expects; strict settings stay strict for everything else.

    Raises:
        ImportError: neural-tangents or frozendict is not installed.

    Source: Novak et al. 2020, "Neural Tangents" (arXiv 1912.02803).
    """
    with _moved_names(), _permissive():
        try:
            package = importlib.import_module(_NAME)
        except ModuleNotFoundError as error:
            raise ImportError(
                f"neural-tangents cannot be imported ({error}); install it with {_INSTALL}"
            ) from error
    return _facade(package, submodules=("stax", "predict"))


def from_neural_tangents(kernel_fn: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel function of neural-tangents, for ``ntk.predict``, ``ntk.gram`` and ``ntk.solve``.

    Args:
        kernel_fn: third element of a neural-tangents triple ``(init_fn, apply_fn, kernel_fn)``.

    Returns:
        ``kernel_fn(x1, x2=None, get=None)``, with neural-tangents's options: an array for a string ``get``, a named
        tuple of arrays for a tuple, and neural-tangents's own ``Kernel`` for None.

    Raises:
        ValueError: kernel_fn is not a function.
    """
    if not callable(kernel_fn):
        raise ValueError(
            f"kernel_fn is {type(kernel_fn).__name__}, not a function; "
            "give the third element of (init_fn, apply_fn, kernel_fn)"
        )
    wrapped = _permit(kernel_fn)

    @arguments.strict
    def kernel(
        x1: Any,
        x2: Any = None,
        get: Any = None,
        *,
        pattern: Any = None,
        mask_constant: Any = None,
        diagonal_batch: Any = None,
        diagonal_spatial: Any = None,
    ) -> Any:
        return wrapped(
            x1,
            x2,
            get,
            pattern=pattern,
            mask_constant=mask_constant,
            diagonal_batch=diagonal_batch,
            diagonal_spatial=diagonal_spatial,
        )

    return kernel


@contextlib.contextmanager
def _moved_names() -> Iterator[None]:
    """Names of JAX, and the experimental submodule, where neural-tangents looks for them."""
    import jax.core
    import jax.extend.core
    import jax.extend.linear_util
    from jax.interpreters import ad

    util = types.ModuleType("jax.util")
    vars(util).update(
        safe_map=lambda f, *xs: list(map(f, *_equal_lengths(xs))),
        safe_zip=lambda *xs: list(zip(*_equal_lengths(xs))),
    )
    modules = {
        "jax.util": util,
        f"{_NAME}.experimental": types.ModuleType(f"{_NAME}.experimental"),
    }
    names = [(jax.core, name, getattr(jax.extend.core, name)) for name in _MOVED]
    names.append((ad, "zeros_like_p", jax.extend.core.Primitive("zeros_like")))
    added = [entry for entry in names if not _has(*entry[:2])]
    added_modules = [name for name in modules if name not in sys.modules]
    try:
        for module, name, value in added:
            setattr(module, name, value)
        for name in added_modules:
            sys.modules[name] = modules[name]
        yield
    finally:
        for module, name, _ in added:
            delattr(module, name)
        for name in added_modules:
            del sys.modules[name]


def _has(module: types.ModuleType, name: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return hasattr(module, name)


def _equal_lengths(xs: tuple) -> list[list]:
    lists = [list(x) for x in xs]
    if len({len(x) for x in lists}) > 1:
        raise ValueError(f"lengths differ: {[len(x) for x in lists]}")
    return lists


@contextlib.contextmanager
def _permissive() -> Iterator[None]:
    with (
        jax.numpy_rank_promotion("allow"),
        jax.legacy_prng_key("allow"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def _facade(module: types.ModuleType, submodules: tuple[str, ...] = ()) -> types.SimpleNamespace:
    public = {k: v for k, v in vars(module).items() if not k.startswith("_")}
    facade = {k: _permit(v) for k, v in public.items() if not inspect.ismodule(v)}
    facade |= {name: _facade(public[name]) for name in submodules}
    return types.SimpleNamespace(**facade)


def _permit(value: Any) -> Any:
    """Wraps functions, also those inside plain tuples and lists; leaves the rest alone."""
    if type(value) in (tuple, list):
        return type(value)(map(_permit, value))
    if inspect.isgenerator(value):
        return _permit_generator(value)
    if inspect.isclass(value) or not callable(value) or hasattr(value, "_permitted"):
        return value

    @functools.wraps(value)  # keeps the attributes in which neural-tangents notes requirements
    def permitted(*args: Any, **kwargs: Any) -> Any:
        with _permissive():
            return _permit(value(*args, **kwargs))

    vars(permitted).update(_permitted=True)
    return permitted


def _permit_generator(generator: Iterator) -> Iterator:
    while True:
        with _permissive():
            try:
                value = next(generator)
            except StopIteration:
                return
        yield value
