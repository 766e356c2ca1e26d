"""Diagonal blocks of curvature matrices: one layer, or any part of the parameters, at its own cost.

    P^T H P v,    P the embedding of a part into all parameters

which is the Hessian of the loss with the rest held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from metrics import checks
from metrics.programs import remembered
from ntk.types import PyTree, R


def layers(params: PyTree) -> list[str]:
    """Names of the groups of parameters that share a parent, as ``hidden_0`` of ``hidden_0/kernel``."""
    checks.check_params(params)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return list(dict.fromkeys(_path_name(path[:-1]) for path in paths))


def partition(params: PyTree, select: str | Callable[[str], bool]) -> tuple[Any, Any]:
    """Splits params into a block and the rest: two trees, each with None where the other has leaves.

    Args:
        params: pytree.
        select: a path or the beginning of one (``hidden_0``), or a function of the path.

    Returns:
        (block, rest), for `on_block`.

    Raises:
        TypeError: select is neither a path nor a function of one.
        ValueError: nothing is selected.
    """
    checks.check_params(params)
    if isinstance(select, str):
        prefix = select.split("/") if select else []

        def chosen(path: str) -> bool:
            return path.split("/")[: len(prefix)] == prefix
    else:
        chosen = checks.function("select", select, "path")

    def part(keep: bool) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if chosen(_path_name(path)) == keep else None, params
        )

    block = part(True)
    if not jax.tree.leaves(block):
        raise ValueError(f"{select!r} selects no parameter; the layers are {layers(params)}")
    return block, part(False)


@remembered
def on_block(
    function: Callable[[PyTree, PyTree], R],
) -> Callable[[PyTree, tuple[PyTree, PyTree]], R]:
    """A loss or apply as a function of a block only; curvature then costs the block, not the network.

    Args:
        function: ``function(params, batch)``.

    Returns:
        ``function_of_block(block, (batch, rest))``, with block and rest from `partition`.

    Raises:
        TypeError: function is none of params and batch.
    """
    checks.function("function", function, "params", "batch")

    def function_of_block(block: PyTree, batch_and_rest: tuple[PyTree, PyTree]) -> R:
        batch, rest = batch_and_rest
        params = jax.tree.map(
            lambda b, r: r if b is None else b, block, rest, is_leaf=lambda x: x is None
        )
        return function(params, batch)

    return function_of_block


def per_layer(estimate: Callable, params: PyTree, batch: PyTree) -> dict[str, Any]:
    """Any estimate of every layer's own diagonal block of a curvature matrix.

    Args:
        estimate: ``estimate(block, data)``, for instance
            ``lambda block, data: sharpness(on_block(loss), block, data)``.
        params: pytree.
        batch: the data, for every layer the same.

    Returns:
        One estimate per name of `layers`.

    Raises:
        TypeError: estimate is no function of a block and data.
    """
    checks.function("estimate", estimate, "block", "data")
    results = {}
    for name in layers(params):
        block, rest = partition(params, name)
        results[name] = estimate(block, (batch, rest))
    return results


def _path_name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
