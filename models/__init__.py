"""Flax (linen) architectures, each a function of its width; they contain no parametrization."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from models import initializers
from models.convnet import CNN, ResNet
from models.linear_attention import LinearAttention
from models.mlp import MLP, DeepLinear
from models.recurrent import RNN
from models.transformer import Transformer, ViT

__all__ = [
    "CNN",
    "MLP",
    "RNN",
    "DeepLinear",
    "LinearAttention",
    "ResNet",
    "Transformer",
    "ViT",
    "family",
    "initializers",
]


def family(name: str, **fields: Any) -> Callable[[int], nn.Module]:
    """The architecture of that name as a function of its width: ``family("MLP", depth=2, outputs=10)(256)``.

    Args:
        name: one of MLP, DeepLinear, LinearAttention, RNN, CNN, ResNet, Transformer, ViT.
        **fields: the architecture's other fields.

    Returns:
        ``width -> linen module``.

    Raises:
        TypeError: an unknown field.
        ValueError: an unknown architecture.
    """
    architectures = {
        m.__name__: m
        for m in (MLP, DeepLinear, LinearAttention, RNN, CNN, ResNet, Transformer, ViT)
    }
    if not isinstance(name, str):
        raise TypeError(f"name is {name!r}; it must be one of {', '.join(architectures)}")
    if name not in architectures:
        near = difflib.get_close_matches(name, architectures, n=1, cutoff=0.4)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"unknown model {name!r}{hint}; there are: {', '.join(architectures)}")
    known = [
        key for key in architectures[name].__dataclass_fields__ if key not in ("parent", "name")
    ]
    for field in fields:
        if field not in known:
            nearest = difflib.get_close_matches(field, known, n=1, cutoff=0.0)[0]
            raise TypeError(
                f"{name} has no field {field!r} (did you mean {nearest!r}?); it has: {', '.join(known)}"
            )
    return functools.partial(_at_width, architectures[name], fields)


def _at_width(architecture: Callable, fields: dict[str, Any], width: int) -> nn.Module:
    return architecture(width=width, **fields)


def __dir__() -> list[str]:
    return sorted(__all__)
