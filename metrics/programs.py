"""Programs of curvature products: kept by their arguments, and what they say about themselves.

Whether a product convolves or loops decides how it is run, the coarsest of its numbers how precise its results are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from metrics import checks
from ntk.jaxprs import contains, equations
from ntk.types import P, PyTree, R

# Relative rounding of the products of single-precision matrices where no precision is asked for.
_DEFAULT_PRODUCTS = {"gpu": 2.0**-10, "tpu": 2.0**-7}
_PRODUCTS = {"dot_general", "conv_general_dilated"}
_PASSES = 4  # forward and reverse, and the derivative of each


def remembered(make: Callable[P, R]) -> Callable[P, R]:
    """Equal arguments give the same product object, so what was compiled for it is found again."""
    cached = functools.lru_cache(maxsize=64, typed=True)(make)

    @functools.wraps(make)
    def made(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            hash((arguments, tuple(options.values())))
        except TypeError:
            return make(*arguments, **options)  # which refuses, and says what
        return cached(*arguments, **options)  # type: ignore[arg-type]  # hashed above

    return made


def steps_better(product: Callable, params: PyTree, batch: PyTree) -> bool:
    """Whether a compiled loop around the product is slow: it convolves, and on a CPU.

    Raises:
        TypeError: the product is no function (params, batch, vector).
        ValueError: params holds no floating-point numbers.
    """
    checks.function("product", product, "params", "batch", "vector")
    checks.check_params(params)
    check(product, params, batch)
    return jax.default_backend() == "cpu" and _contains(
        product, params, batch, {"conv_general_dilated"}
    )


def loops(product: Callable, params: PyTree, batch: PyTree) -> bool:
    """Whether the product itself is a loop, as over batches: what it computes is then too large to keep."""
    return _contains(product, params, batch, {"scan", "while"})


def rounding(product: Callable, params: PyTree, batch: PyTree) -> float:
    """Relative rounding of the product, by its coarsest arithmetic: half precision, or an accelerator's products.

    An estimate, no bound: one rounding for each pass of a Hessian product, in less than single precision.
    """
    coarse = _DEFAULT_PRODUCTS.get(jax.default_backend(), 0.0)

    def of(equation: Any) -> float:
        types = [v.aval.dtype for v in equation.outvars if hasattr(v.aval, "dtype")]
        floats = [t for t in types if jnp.issubdtype(t, jnp.floating)]
        default = equation.primitive.name in _PRODUCTS and _is_default(equation.params)
        return max([float(jnp.finfo(t).eps) for t in floats] + [coarse * default])

    eps = max([0.0, *map(of, equations(_traced(product, params, batch)))])
    return _PASSES * eps if eps > float(jnp.finfo(jnp.float32).eps) else eps


def _is_default(options: Mapping[str, Any]) -> bool:
    precision = options.get("precision")
    chosen = precision if isinstance(precision, tuple) else (precision,)
    return all(p in (None, jax.lax.Precision.DEFAULT) for p in chosen)


def _contains(
    product: Callable, params: PyTree, batch: PyTree, primitives: Collection[str]
) -> bool:
    # The walk, since printing the equations takes as long as a Hessian product of a small network.
    return contains(_traced(product, params, batch), primitives)


def check(product: Callable, params: PyTree, batch: PyTree) -> None:
    """Refuses a product that cannot be evaluated, or does not return numbers like the parameters."""
    with checks.explained("product", params, batch):
        out = jax.jit(product).trace(params, batch, params).out_info
    shapes = [
        [(leaf.shape, jnp.issubdtype(leaf.dtype, jnp.floating)) for leaf in jax.tree.leaves(tree)]
        for tree in (out, jax.eval_shape(lambda p: p, params))
    ]
    if shapes[0] != shapes[1]:
        found = [tuple(leaf.shape) for leaf in jax.tree.leaves(out)]
        raise ValueError(
            f"product returns arrays of shapes {found}; they must be like the parameters, {[s for s, _ in shapes[1]]}"
        )


def _traced(product: Callable, params: PyTree, batch: PyTree) -> Any:
    with checks.explained("product", params, batch):
        return jax.jit(product).trace(params, batch, params).jaxpr
