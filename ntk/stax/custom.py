"""Layers of one's own in neural-tangents's form, and the names by which its layers are told what to do.

A layer function returns (init_fn, apply_fn, kernel_fn), with kernel_fn a function of a `Kernel`; `layer` makes of it
what `serial` and the others take. `serial` takes plain triples too.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from ntk import arguments
from ntk.infinite import channels
from ntk.infinite.evaluate import KernelFn, Need
from ntk.infinite.kernel import Kernel
from ntk.stax import layers
from ntk.stax.layers import Layer
from ntk.types import PyTree


class Padding(enum.StrEnum):
    """Padding of convolutions and pools: of a torus, with zeros, or none."""

    CIRCULAR = "CIRCULAR"
    SAME = "SAME"
    VALID = "VALID"


class PositionalEmbedding(enum.StrEnum):
    """Positional embeddings of `GlobalSelfAttention`: none, added to the input, or put beside it."""

    NONE = "NONE"
    SUM = "SUM"
    CONCAT = "CONCAT"


class AttentionMechanism(enum.StrEnum):
    """What `GlobalSelfAttention` makes of its scores."""

    SOFTMAX = "SOFTMAX"
    IDENTITY = "IDENTITY"
    ABS = "ABS"
    RELU = "RELU"


class AggregateImplementation(enum.StrEnum):
    """How `Aggregate` is given its graph: as a matrix, or as lists of edges."""

    DENSE = "DENSE"
    SPARSE = "SPARSE"


class Bool(enum.IntEnum):
    """Yes, no, or only where entries off the diagonal vanish."""

    NO = 0
    MAYBE = 1
    YES = 2

    # Of `Bool` alone, though it is an int: neural-tangents has it so.
    def __and__(self, other: Bool) -> Bool:  # type: ignore[override]
        return min(self, other)

    __rand__ = __and__  # type: ignore[assignment]


class Diagonal(NamedTuple):
    """Whether a layer can do with equal pixels alone.

    Attributes:
        input: of its input.
        output: whether its output has them alone.
    """

    input: Bool = Bool.YES
    output: Bool = Bool.NO

    def __and__(self, other: Diagonal) -> Diagonal:
        return Diagonal(self.input & other.input, self.output & other.output)

    def __bool__(self) -> bool:
        return self.input == Bool.YES and self.output > Bool.NO


_REQUIREMENTS = (
    *("diagonal_batch", "diagonal_spatial", "batch_axis", "channel_axis"),
    *("mask_constant", "use_dropout"),
)


def requires(**requirements: Any) -> Callable:
    """A decorator that says what a kernel_fn needs of the `Kernel` that it gets.

    Args:
        **requirements: `batch_axis`, `channel_axis` (compared with the kernel's), `diagonal_spatial` (a bool or a
            `Diagonal`: False, or `Bool.NO`, asks for all pairs of pixels), `diagonal_batch` (True); `mask_constant` and
            `use_dropout` are taken, and ask for nothing here.

    Returns:
        A decorator of functions of a `Kernel`.

    Raises:
        TypeError: another requirement, with the nearest one.
        ValueError: diagonal_batch=False: a `Kernel` has one covariance per sample. Of the function: a kernel that does
            not meet the requirements.
    """
    arguments.refuse_unknown("requires", requirements, _REQUIREMENTS)
    if not requirements.get("diagonal_batch", True):
        raise ValueError(
            "diagonal_batch=False asks for covariances between samples of one batch, which a Kernel does not keep: "
            "kernel_fn(x, None, 'nngp') is that covariance"
        )

    def decorate(kernel_fn: Callable) -> Callable:
        @functools.wraps(kernel_fn)
        def checked(k: Any, **kwargs: Any) -> Any:
            if isinstance(k, Kernel):
                _check(getattr(kernel_fn, "__name__", "the layer"), k, requirements)
            return kernel_fn(k, **kwargs)

        vars(checked).update(requirements=requirements)
        return checked

    return decorate


def _check(name: str, kernel: Kernel, requirements: dict[str, Any]) -> None:
    for axis in ("batch_axis", "channel_axis"):
        wanted = requirements.get(axis)
        if wanted is not None and wanted % len(kernel.shape1) != getattr(kernel, axis):
            raise ValueError(
                f"{name} requires {axis} {wanted}, and its input has {getattr(kernel, axis)}"
            )
    if _needs_pairs(requirements) and kernel.diagonal_spatial:
        raise ValueError(
            f"{name} requires covariances between all pixels, and its input has those of equal pixels alone: call the "
            "kernel function with diagonal_spatial=False"
        )


def _needs_pairs(requirements: dict[str, Any]) -> bool:
    wanted = requirements.get("diagonal_spatial")
    return wanted is False or (isinstance(wanted, Diagonal) and wanted.input == Bool.NO)


def layer(layer_fn: Callable) -> Callable[..., Layer]:
    """A decorator that makes layers of functions that return (init_fn, apply_fn, kernel_fn).

    Args:
        layer_fn: returns `init_fn(key, input_shape) -> (output_shape, params)`, `apply_fn(params, inputs, **kwargs)`,
            and `kernel_fn(k, **kwargs)`, which maps a `Kernel` (or a list of them) to another by `k.replace(nngp=...,
            ntk=..., cov1=..., cov2=...)`: cov2 is None where the second batch is the first, ntk where it was not
            asked for.

    Returns:
        A function of the same arguments whose kernel_fn takes inputs, or a `Kernel`.
    """

    @functools.wraps(layer_fn)
    def made(*args: Any, **kwargs: Any) -> Layer:
        init_fn, apply_fn, kernel_fn = layer_fn(*args, **kwargs)
        return named(Layer(init_fn, apply_fn, _kernel_fn(init_fn, kernel_fn)), layer_fn.__name__)

    return made


def named(made: Any, name: str) -> Any:
    """A layer whose three functions are called by its name, as neural-tangents's are."""
    for fn in made:
        object.__setattr__(fn, "__name__", name)
    return made


def _kernel_fn(init_fn: Callable, kernel_fn: Callable) -> KernelFn:
    if isinstance(kernel_fn, KernelFn):
        return kernel_fn
    requirements = getattr(kernel_fn, "requirements", {})
    known = arguments.keyword_names(kernel_fn)

    def shape(before: Any) -> Any:
        out, key = [], jax.eval_shape(jax.random.key, 0)  # not a step of the kernel's program
        jax.eval_shape(lambda key: out.append(init_fn(key, before)[0]), key)
        return tuple(out[0])

    def rule(kernel: Any, **context: Any) -> Any:
        read = context if known is None else {n: v for n, v in context.items() if n in known}
        out = kernel_fn(kernel, **{n: v for n, v in read.items() if v is not None})
        if not isinstance(out, Kernel):
            return out
        first = kernel if isinstance(kernel, Kernel) else list(kernel)
        if isinstance(first, Kernel):
            return out.replace(shape1=shape(first.shape1), shape2=shape(first.shape2))
        shapes = [shape([getattr(k, name) for k in first]) for name in ("shape1", "shape2")]
        return out.replace(shape1=shapes[0], shape2=shapes[1])

    def needs(out: Need) -> Need:
        if Diagonal() == requirements.get("diagonal_spatial") or requirements.get(
            "diagonal_spatial"
        ):
            return out._replace(variance=max(out.variance, 1))
        # What a layer of one's own reads is not known: all that there is.
        return Need(True, 2, out.whole)

    batch, channel = requirements.get("batch_axis"), requirements.get("channel_axis")
    return KernelFn(
        rule,
        needs,
        ("layer", id(kernel_fn), kernel_fn),
        None if batch is None or channel is None else (batch, channel),
        reads=frozenset({"pattern"} & (known or frozenset())),
    )


def supports_masking(remask_kernel: bool) -> Callable:
    """A decorator of layer functions, below `layer`, whose layers then carry masks along.

    Args:
        remask_kernel: whether the kernel_fn may make covariances of hidden entries other than zero.

    Returns:
        A decorator. The layer function may return a fourth function, `mask_fn(mask, input_shape) -> mask`; its apply_fn
        takes `mask=` (None, or True where an input is hidden).
    """

    def decorate(layer_fn: Callable) -> Callable:
        @functools.wraps(layer_fn)
        def masking(*args: Any, **kwargs: Any) -> tuple[Callable, Callable, Callable]:
            init_fn, apply_fn, kernel_fn, *rest = layer_fn(*args, **kwargs)
            return (init_fn, *_masking(apply_fn, kernel_fn, rest, remask_kernel))

        return masking

    return decorate


def _masking(
    apply_fn: Callable, kernel_fn: Callable, rest: list, remask: bool
) -> tuple[Callable, Callable]:
    carry = rest[0] if rest else layers.keep

    def after(masks: Any, shapes: Any) -> Any:
        return None if layers.absent(masks) else carry(masks, shapes)

    def apply_with_masks(
        params: PyTree, inputs: Any, *, mask_constant: float | None = None, **kwargs: Any
    ) -> Any:
        values, masks = layers.split_masks(inputs, mask_constant)
        outputs = apply_fn(params, values, mask=None if layers.absent(masks) else masks, **kwargs)
        shapes = [v.shape for v in values] if isinstance(values, list) else values.shape
        return layers.attach_masks(outputs, after(masks, shapes))

    @functools.wraps(kernel_fn)
    def kernel_with_masks(k: Any, **kwargs: Any) -> Any:
        parts = [k] if isinstance(k, Kernel) else list(k)
        out = kernel_fn(k, **kwargs)
        if not isinstance(out, Kernel):
            return out
        masks = []
        for side in ("1", "2"):
            before = [getattr(part, f"mask{side}") for part in parts]
            shapes = [getattr(part, f"shape{side}") for part in parts]
            one = isinstance(k, Kernel)
            masks.append(after(before[0] if one else before, shapes[0] if one else shapes))
        if remask:
            return channels.hide(out, *masks)
        return out.replace(mask1=masks[0], mask2=masks[1])

    return apply_with_masks, kernel_with_masks
