"""Layers as triples (init_fn, apply_fn, kernel_fn), and what combines them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ntk import evaluate, rules
from ntk.evaluate import Need
from ntk.kernel import Kernel


class MaskedArray(NamedTuple):
    """Activations, and where they are hidden; what `apply_fn` returns where `mask_constant` is given.

    Attributes:
        masked_value: activations, zero where hidden.
        mask: True where hidden; broadcasts against the activations.
    """

    masked_value: jax.Array
    mask: jax.Array | None


class Layer(NamedTuple):
    """A layer: unpacks as init_fn(key, input_shape), apply_fn(params, x), kernel_fn(x1, x2, get)."""

    init_fn: Callable
    apply_fn: Callable
    kernel_fn: Callable


@dataclasses.dataclass(frozen=True, eq=False)
class KernelFn:
    """Kernel of an infinitely wide network; a function of inputs, or of a `Kernel` of activations below it.

    Attributes:
        rule: maps the `Kernel` of the input (a list of them for several inputs) to that of the output.
        needs: maps what must be known of the output to what must be known of the input.
        spec: equal for layers that compute the same thing; repeated blocks of a network are found by it.
    """

    rule: Callable[..., Any]
    needs: Callable[[Need], Need]
    spec: Hashable

    def __call__(
        self,
        x1_or_kernel,
        x2=None,
        get: str | tuple[str, ...] | None = None,
        *,
        pattern=None,
        mask_constant: float | None = None,
        diagonal_batch: bool | None = None,
        diagonal_spatial: bool | None = None,
        **kwargs,
    ):
        """See `ntk.evaluate.evaluate`."""
        return evaluate.evaluate(
            self,
            x1_or_kernel,
            x2,
            get,
            pattern=pattern,
            mask_constant=mask_constant,
            diagonal_batch=diagonal_batch,
            diagonal_spatial=diagonal_spatial,
            **kwargs,
        )


def unchanged(x, *_):
    """The first argument: no need or mask is changed by most layers."""
    return x


def layer(
    init: Callable,
    apply: Callable,
    rule: Callable,
    spec: Hashable,
    *,
    needs: Callable[[Need], Need] = unchanged,
    mask: Callable = unchanged,
    remask: bool = True,
) -> Layer:
    """A layer from pure functions, with masks carried along.

    Args:
        init: (key, input_shape) -> (output_shape, params).
        apply: (params, inputs, mask=, rng=, pattern=, ...) -> outputs, without regard to hidden outputs.
        rule: Kernel -> Kernel, or a list of them.
        spec: equal for layers that do the same.
        needs: what the input must give for what the output must give.
        mask: (mask, input_shape) -> mask of the output; lists for several inputs.
        remask: whether the rule makes covariances of hidden positions non-zero.
    """

    def apply_fn(params, inputs, *, mask_constant=None, **kwargs):
        values, masks = _split_masks(inputs, mask_constant)
        outputs = apply(params, values, mask=masks, **kwargs)
        shapes = jax.tree.map(jnp.shape, values) if isinstance(values, jax.Array) else [v.shape for v in values]
        if all(m is None for m in (masks if isinstance(masks, list | tuple) else [masks])):
            return outputs
        out_mask = mask(masks, values.shape if isinstance(values, jax.Array) else shapes)
        return MaskedArray(outputs, out_mask)

    return Layer(init, apply_fn, KernelFn(rule, needs, spec))


def _split_masks(inputs, mask_constant):
    return inputs, None


def elementwise(dual, spec: Hashable | None = None) -> Layer:
    """A nonlinearity from its dual activation.

    Args:
        dual: `ntk.duals.Dual`; its `fn` acts on finite activations, None if there is no such function.
        spec: hashable and equal for equal nonlinearities, so that a repeated block compiles once; by default the
            dual itself, which is equal only for the same Python functions.

    Returns:
        (init_fn, apply_fn, kernel_fn).
    """

    def init(key, input_shape):
        return input_shape, ()

    def apply(params, inputs, **kwargs):
        if dual.fn is None:
            raise ValueError("this nonlinearity is defined by its kernel alone: it has no apply_fn")
        return dual.fn(inputs)

    def rule(kernel: Kernel, **kwargs) -> Kernel:
        return rules.elementwise(kernel, dual)

    def needs(out: Need) -> Need:
        return Need(out.pairs, max(out.variance, 1))

    return layer(init, apply, rule, spec or ("elementwise", dual), needs=needs)
