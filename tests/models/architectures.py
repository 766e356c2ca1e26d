"""Public architectures as families, by name: what users bring, written small.

`ARCHITECTURES[name].family` is a function of the width (a multiple of 16) that returns a linen module, and
`inputs(name, count, seed)` is a batch for it. The models are in `architectures_vectors`, `_tables`, `_images`,
`_vision`, `_sequences` and `_tokens`.
"""

import importlib.util
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Architecture(NamedTuple):
    """A public architecture.

    Attributes:
        family: a linen module at each width.
        shapes: of each input, as (kind, shape of one example) or ("integer", shape, number of values).
        roles: of parameters that names and shapes cannot tell; None for most.
    """

    family: Callable
    shapes: tuple
    roles: dict | None = None


def _room(name: str) -> Any:
    """A module of this folder, which is not a package."""
    full = f"architectures_{name}"
    if full not in sys.modules:
        path = pathlib.Path(__file__).with_name(f"{full}.py")
        spec = importlib.util.spec_from_file_location(full, path)
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


_ROOMS = [_room(name) for name in ("vectors", "tables", "images", "vision", "sequences", "tokens")]
_LINEN = _ROOMS[0].linen

# Of nn.DenseGeneral, whose kernels do not tell to which fan the axis of the heads belongs.
_HEADS = {
    "DenseGeneral_[012]/kernel": ((0,), (1, 2)),
    "DenseGeneral_3/kernel": ((0, 1), (2,)),
}
ROLES = dict.fromkeys(("LLaMA", "ALiBi", "T5", "modded nanoGPT"), _HEADS)

ARCHITECTURES = {
    name: Architecture(_LINEN(forward), shapes, ROLES.get(name))
    for room in _ROOMS
    for name, (forward, *shapes) in room.TABLE.items()
}


def inputs(name: str, count: int = 3, seed: int = 0) -> Any:
    """A batch of the first `count` of endless random examples: an array, or a tuple of several."""
    out = []
    for place, (kind, shape, *values) in enumerate(ARCHITECTURES[name].shapes):
        draws = [np.random.default_rng([seed, place, k]) for k in range(count)]
        if kind == "integer":
            out.append(np.stack([d.integers(0, values[0], shape).astype("int32") for d in draws]))
        else:
            out.append(np.stack([np.asarray(d.normal(size=shape), "float32") for d in draws]))
    return out[0] if len(out) == 1 else tuple(out)
