"""What a layer is: a triple (init_fn, apply_fn, kernel_fn) made from pure functions, with masks carried along."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk import arguments
from ntk.activations.closed_forms import Dual
from ntk.infinite import channels
from ntk.infinite.evaluate import KernelFn, Need
from ntk.infinite.kernel import Array, Kernel
from ntk.regression import spectra
from ntk.types import PRNGKey, PyTree

Shape = tuple[int, ...]


class Layer(NamedTuple):
    """A layer: unpacks as init_fn(key, input_shape), apply_fn(params, x), kernel_fn(x1, x2, get).

    Attributes:
        init_fn: (key, input_shape) -> (output_shape, params).
        apply_fn: (params, x, rng=, mask_constant=, pattern=) -> the finite network's output.
        kernel_fn: its kernels at infinite width; see `ntk.infinite.evaluate.KernelFn`.
    """

    init_fn: Callable[[PRNGKey, Any], tuple[Any, PyTree]]
    apply_fn: Callable[..., Any]
    kernel_fn: KernelFn


class MaskedArray(NamedTuple):
    """Activations, and where they are hidden; what `apply_fn` returns where `mask_constant` is given.

    Attributes:
        masked_value: activations.
        mask: True where hidden; broadcasts against the activations.
    """

    masked_value: Any
    mask: Any


def unmask_fn(fn: Callable) -> Callable:
    """An apply_fn that returns arrays, zero where hidden, in place of `MaskedArray`."""

    def unmask(x: Any) -> Any:
        if isinstance(x, MaskedArray):
            return x.masked_value if x.mask is None else jnp.where(x.mask, 0, x.masked_value)
        return type(x)(unmask(part) for part in x) if isinstance(x, list | tuple) else x

    @functools.wraps(fn)  # its signature tells whether it takes several inputs as one tuple
    def unmasked(*args: Any, **kwargs: Any) -> Any:
        return unmask(fn(*args, **kwargs))

    return unmasked


def check_counts(**counts: Any) -> None:
    """Raises a ValueError for a number, or one of several, that is not a positive integer."""
    for name, value in counts.items():
        for count in value if isinstance(value, tuple | list) else (value,):
            if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
                raise ValueError(f"{name} is {value!r}; it must be positive, and an integer")


def check_scales(**scales: Any) -> None:
    """Raises a ValueError for a standard deviation that is negative or not finite; None and tracers pass."""
    for name, value in scales.items():
        if value is None or (isinstance(value, jax.Array) and not spectra.is_concrete(value)):
            continue
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        real = real or (spectra.is_array(value) and value.ndim == 0 and not np.iscomplexobj(value))
        if not real or not (jnp if spectra.is_array(value) else math).isfinite(value):
            raise ValueError(f"{name} is {value!r}; it must be a finite number")
        if value < 0:
            raise ValueError(
                f"{name} is {value!r}; it must not be negative: kernels have its square"
            )


def keep(x: Any, *_: Any) -> Any:
    """The first argument: what most layers do to shapes, masks and needs."""
    return x


def layer(
    apply: Callable,
    rule: Callable,
    spec: Hashable,
    *,
    shape: Callable[[Any], Any] = keep,
    params: Callable[[Array, Any], Any] = lambda key, input_shape: (),
    needs: Callable[[Need], Need] = keep,
    mask: Callable[[Any, Any], Any] = keep,
    remask: bool = True,
    axes: tuple[int, int] | None = None,
    scalar: Any = None,
    reads: frozenset[str] = frozenset(),
) -> Layer:
    """A layer from pure functions; masks and shapes are carried along.

    Args:
        apply: (params, inputs, mask=, rng=, pattern=) -> outputs, whatever their hidden entries.
        rule: `Kernel` -> `Kernel`, or lists of them.
        spec: equal for layers that do the same, and hashable.
        shape: shape of the input (list of shapes) -> shape of the output.
        params: (key, shape of the input) -> parameters.
        needs: what must be known of the output -> of the input.
        mask: (mask, shape of the input) -> mask of the output; lists for several inputs.
        remask: whether the rule may make moments of hidden entries non-zero.
        axes: batch and channel axis of the input, None if any will do.
        scalar: what it does to a correlation by itself; see `KernelFn`.
        reads: options of the kernel function that it reads; see `KernelFn`.
    """

    def init_fn(key: PRNGKey, input_shape: Any) -> tuple[Any, Any]:
        _check_axes(axes, len(input_shape))
        return shape(input_shape), params(key, input_shape)

    @arguments.strict
    def apply_fn(
        params: PyTree,
        inputs: Any,
        *,
        rng: PRNGKey | None = None,
        mask_constant: float | None = None,
        pattern: Any = None,
    ) -> Any:
        values, masks = split_masks(inputs, mask_constant)
        if axes is not None:
            _check_axes(axes, jnp.ndim(values))
        outputs = apply(params, values, mask=masks, rng=rng, pattern=pattern)
        if absent(masks):
            return outputs
        shapes = [v.shape for v in values] if isinstance(values, list) else values.shape
        return attach_masks(outputs, mask(masks, shapes))

    def masked_rule(kernel: Any, **context: Any) -> Any:
        single = isinstance(kernel, Kernel)
        parts = [kernel] if single else list(kernel)
        out = rule(kernel, **context)  # first, because a rule may know better what is wrong
        for part in parts if axes is not None else ():
            # Moments have no channel axis, so that no shape shows which one it was.
            given = _check_axes(axes, len(part.shape1))
            if given != (part.batch_axis, part.channel_axis):
                name = spec[0] if isinstance(spec, tuple) else spec
                raise ValueError(
                    f"{name} has its batch and channels in axes {given}, and its input has them in "
                    f"{(part.batch_axis, part.channel_axis)}: give all layers the same batch_axis and channel_axis"
                )
        masks = []
        for mask_name, shape_name in (("mask1", "shape1"), ("mask2", "shape2")):
            before = [getattr(k, mask_name) for k in parts]
            shapes = [getattr(k, shape_name) for k in parts]
            after = None
            if not absent(before):
                after = mask(before[0] if single else before, shapes[0] if single else shapes)
            masks.append(after)
            new = shape(shapes[0] if single else shapes)
            if isinstance(out, Kernel):
                out = out.replace(**{shape_name: tuple(new)})
        if not isinstance(out, Kernel):  # a fan-out: each copy keeps its masks
            return out
        if remask:
            return channels.hide(out, *masks)
        return out.replace(mask1=masks[0], mask2=masks[1])

    return Layer(init_fn, apply_fn, KernelFn(masked_rule, needs, spec, axes, scalar, reads=reads))


def _check_axes(axes: tuple[int, int] | None, ndim: int) -> tuple[int, ...]:
    """Batch and channel axis from the left, checked; () where a layer has none."""
    names = ("batch_axis", "channel_axis")
    found = tuple(arguments.axis_within(name, axis, ndim) for name, axis in zip(names, axes or ()))
    if axes is not None and len(set(found)) < len(found):
        raise ValueError(f"batch_axis {axes[0]} and channel_axis {axes[1]} are one axis of {ndim}")
    return found


def absent(masks: Any) -> bool:
    """Whether there is no mask, nor one in a list."""
    return masks is None or (isinstance(masks, list) and all(absent(m) for m in masks))


def split_masks(inputs: Any, mask_constant: float | None) -> tuple[Any, Any]:
    """Values with zeros where hidden, and masks."""
    if isinstance(inputs, MaskedArray):
        value, mask = inputs
    elif isinstance(inputs, list | tuple):
        parts = [split_masks(part, mask_constant) for part in inputs]
        return [p[0] for p in parts], [p[1] for p in parts]
    elif mask_constant is None:
        return inputs, None
    else:
        value = inputs
        mask = jnp.where(jnp.isnan(mask_constant), jnp.isnan(inputs), inputs == mask_constant)
    return (value if mask is None else jnp.where(mask, 0, value)), mask


def attach_masks(outputs: Any, masks: Any) -> Any:
    """Outputs with their masks, if there are any."""
    if isinstance(outputs, list):
        return [attach_masks(o, m) for o, m in zip(outputs, masks)]
    return outputs if masks is None else MaskedArray(outputs, masks)


def elementwise(dual: Dual, spec: Hashable | None = None) -> Layer:
    """A nonlinearity from its dual activation.

    Args:
        dual: its `fn` acts on finite activations; None if there is no such function.
        spec: hashable and equal for equal nonlinearities, so that a repeated block compiles once; by default the
            dual itself, which equals only one made of the same Python functions.

    Returns:
        (init_fn, apply_fn, kernel_fn).
    """

    def apply(params: PyTree, inputs: Array, **_: Any) -> Array:
        if dual.fn is None:
            raise ValueError("this nonlinearity is defined by its kernel alone: it has no apply_fn")
        return dual.fn(inputs)

    def rule(kernel: Kernel, **_: Any) -> Kernel:
        return channels.elementwise(kernel, dual)

    def needs(out: Need) -> Need:
        return out._replace(variance=max(out.variance, 1))

    for value in jax.tree.leaves(spec):
        if isinstance(value, float) and not math.isfinite(value):
            name, options = (spec[0], spec[1:]) if isinstance(spec, tuple) else (spec, ())
            raise ValueError(f"{name}{options} has a number that is not finite; give finite ones")
    spec = ("elementwise", dual if spec is None else spec)
    return layer(apply, rule, spec, needs=needs, scalar=dual)


def pixel_axis(kernel: Kernel, axis: int) -> int:
    """Number of a spatial axis of the activations among the spatial axes."""
    return axis - (axis > kernel.batch_axis) - (axis > kernel.channel_axis)
