"""What the axes of a parameter mean by the names and shapes that Flax gives: fan-in, fan-out, stacks of layers."""

import math
import re
from collections.abc import Mapping
from typing import TypeAlias

from ntk.types import Axes, Shape

Shapes: TypeAlias = Mapping[str, tuple[Shape, ...]]
"""{path name: shape at each width}."""
ROLES = ("input", "hidden", "output", "scalar", "tied")
_VECTORS = re.compile(r"(bias|scale|b)_?\d*")
# Vectors with a number for each unit, by name: as a readout of one output would be.
_GAINS = re.compile(
    r"(alpha|beta|gamma|delta|eps(ilon)?|gains?|shift|offset|(negative_)?slope|threshold|temperature|log_\w+|"
    r"layer_?scale|(\w+_)?(scale|bias))_?\d*"
)
_KERNELS = {"kernel", "w", "W", "weight"}
# Matrices that sum over their first axis, by name: a table with some numbers for each unit has the same shape.
_READOUTS = re.compile(
    r"(kernel|weights?|matrix|[uvwUVW]|readout|head|output|out|logits|last|unembed\w*|(out_)?proj\w*)"
    r"(_?(\d+|out|last|readout|head|kernel|weights?))?"
)
_SPLIT_HEADS = {"query", "key", "value", "qkv"}


def stacked(shapes: Shapes) -> set[str]:
    """Names of the parameters whose first axis counts layers.

    A scope is a stack if all its parameters share a first axis of fixed size and one of its biases or gains
    has an axis too many.
    """
    scopes: dict[str, list[str]] = {}
    for name in shapes:
        parts = name.split("/")
        for end in range(len(parts)):
            scopes.setdefault("/".join(parts[:end]), []).append(name)
    found = set()
    for names in scopes.values():
        first = {shape[:1] for name in names for shape in shapes[name]}
        if len(first) == 1 and any(len(shapes[name][0]) > _vector_rank(name) for name in names):
            found.update(names)
    return found


def _vector_rank(name: str) -> float:
    """How many axes a bias or gain has in a single layer; more than there can be for other parameters."""
    *scope, leaf = name.split("/")
    if not _VECTORS.fullmatch(leaf):
        return math.inf
    return 2 if scope and scope[-1] in _SPLIT_HEADS else 1


def fans(
    name: str, shapes: Shapes, axes: Axes, infinite: Axes, flax: bool = True
) -> tuple[Axes, Axes]:
    """(fan_in, fan_out) by the conventions of Flax; without it, of what does not depend on them."""
    *scope, leaf = name.split("/")
    if _VECTORS.fullmatch(leaf):
        return (), axes
    if len(axes) == 1 and infinite and not (_GAINS.fullmatch(leaf) or _is_bias(name, shapes)):
        raise _ambiguous(
            name,
            shapes,
            "a bias or gain, of role 'input', and a readout of one output, of role 'output', look alike",
        )
    if not flax and len(axes) > 1 and infinite and (len(infinite) > 1 or _is_matrix(name)):
        raise _ambiguous(
            name, shapes, "matrices may be (in, out) or, as Equinox has them, (out, in)"
        )
    last = (axes[:-1], axes[-1:])
    bias = shapes.get("/".join([*scope, "bias"]))
    if len(axes) > 2 and axes[0] in infinite and _one_layer_a_unit(shapes[name], bias, axes[0]):
        return axes[1:-1], (axes[0], axes[-1])
    if len(axes) == 2 and infinite == axes[:1] and not _is_matrix(name):
        raise _ambiguous(
            name, shapes, "a readout (in, out) and a table of some numbers a unit look alike"
        )
    if len(axes) <= 2 or not set(infinite) - {axes[-1]}:
        return ((), axes) if len(axes) < 2 else last
    features = len(bias[0]) - axes[0] if bias else 1
    if features > 1:
        return axes[:-features], axes[-features:]
    if scope and scope[-1] in _SPLIT_HEADS:
        return axes[:1], axes[1:]
    known = leaf in _KERNELS and (not set(infinite) & set(axes[:-2]) or bias or "out" in scope[-1:])
    if not known:
        raise _ambiguous(
            name, shapes, "its axes may be split into fan-in and fan-out in several ways"
        )
    return last


def _one_layer_a_unit(
    kernels: tuple[Shape, ...], biases: tuple[Shape, ...] | None, first: int
) -> bool:
    """Whether the first axis counts layers of few units, one for each unit: it is the bias's first axis too.

    The bias of a layer with several axes of features has the kernel's last axes instead.
    """
    if not biases:
        return False
    return all(
        len(b) > first + 1
        and b[first] == k[first]
        and b[-1] == k[-1]
        and b[first:] != k[-len(b) + first :]
        for k, b in zip(kernels, biases, strict=True)
    )


def _is_matrix(name: str) -> bool:
    """Whether a parameter is called like a matrix, or is the first of a pair (matrix, vector)."""
    *scope, leaf = name.split("/")
    return bool(_READOUTS.fullmatch(leaf)) or (leaf == "0" and bool(scope))


def _is_bias(name: str, shapes: Shapes) -> bool:
    """Whether an unnamed vector is the second of a pair (matrix, vector) with as many columns."""
    scope, _, leaf = name.rpartition("/")
    matrix = shapes.get(f"{scope}/0")
    return (
        bool(scope)
        and leaf == "1"
        and matrix is not None
        and [m[-1:] for m in matrix] == list(shapes[name])
    )


def _ambiguous(name: str, shapes: Shapes, why: str) -> ValueError:
    return ValueError(
        f"{name} of shapes {list(shapes[name])} is ambiguous: {why}. Say which it is with "
        f"roles={{{name!r}: role}}, a role of {ROLES} or a pair (fan_in axes, fan_out axes)"
    )
