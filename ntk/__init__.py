"""Kernels of wide networks: infinite-width NNGP and NTK, finite-width NTK, predictions, large Gram matrices.

``import ntk`` and ``from ntk import stax`` run what was written for neural-tangents with its imports.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ntk import reference, stax
from ntk.activations import hermite
from ntk.activations.closed_forms import Dual
from ntk.arguments import strict_package as _strict_package
from ntk.family import (
    Network,
    ParamAxes,
    initial_state,
    named_leaves,
    network,
    path_name,
    width_axes,
)
from ntk.finite import empirical
from ntk.finite.empirical import (
    NtkImplementation,
    empirical_kernel_fn,
    empirical_nngp_fn,
    empirical_ntk,
    empirical_ntk_fn,
    empirical_ntk_vp_fn,
)
from ntk.finite.linearize import linearize, taylor_expand
from ntk.finite.monte_carlo import monte_carlo_kernel_fn
from ntk.infinite.depth_map import depth_map
from ntk.infinite.kernel import Kernel
from ntk.large import gram
from ntk.large.batching import batch
from ntk.reference import from_neural_tangents
from ntk.regression import predict, solve

if TYPE_CHECKING:  # at run time they are found when they are asked for, see below
    from ntk.trace.limit import attention_error, explain, infinite_width, nonlinearities

__all__ = [
    "Dual",
    "Kernel",
    "Network",
    "NtkImplementation",
    "ParamAxes",
    "attention_error",
    "batch",
    "depth_map",
    "empirical",
    "empirical_kernel_fn",
    "empirical_nngp_fn",
    "empirical_ntk",
    "empirical_ntk_fn",
    "empirical_ntk_vp_fn",
    "explain",
    "from_neural_tangents",
    "gram",
    "hermite",
    "infinite_width",
    "initial_state",
    "linearize",
    "monte_carlo_kernel_fn",
    "named_leaves",
    "network",
    "nonlinearities",
    "path_name",
    "predict",
    "reference",
    "solve",
    "stax",
    "taylor_expand",
    "width_axes",
]

_strict_package(globals())

# The tracer, with the parts of SciPy that it uses, is half of the time of an import: it waits until it is asked for.
_TRACED = ("nonlinearities", "attention_error", "explain", "infinite_width")


def __getattr__(name: str) -> Any:
    if name in _TRACED:
        return getattr(importlib.import_module("ntk.trace.limit"), name)
    raise AttributeError(f"module 'ntk' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_TRACED})
