"""What combines layers: in sequence, side by side, and branches that part and meet.

    FanInSum K_1 + K_2,    FanInProd K_1 K_2,    FanInConcat (n_1 K_1 + n_2 K_2) / (n_1 + n_2) along n channels

One file: a block that repeats is found in `serial`, evaluated by `iterate` and `shortcut`, and the same in `repeat`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntk import arguments
from ntk.activations.closed_forms import Dual
from ntk.infinite import channels, pixels, repeated
from ntk.infinite import kernel as kernels
from ntk.infinite.evaluate import KernelFn, Need, join
from ntk.infinite.kernel import Array, Kernel
from ntk.regression import spectra
from ntk.stax.layers import Layer as Layer
from ntk.stax.layers import Shape, check_counts, layer, pixel_axis
from ntk.stax.layers import elementwise as elementwise
from ntk.stax.layers import unmask_fn as unmask_fn
from ntk.types import PRNGKey, PyTree


def serial(*layers: Layer) -> Layer:
    """Layers one after the other; a block of layers that repeats is evaluated as a loop.

    Args:
        *layers: triples (init_fn, apply_fn, kernel_fn).

    Returns:
        (init_fn, apply_fn, kernel_fn).
    """
    layers = tuple(Layer(*one) for one in layers)
    fns = tuple(as_kernel_fn(one.kernel_fn) for one in layers)

    def init_fn(key: PRNGKey, input_shape: Any) -> tuple[Any, tuple]:
        params = []
        for one in layers:
            key, part = jax.random.split(key)
            input_shape, new = one.init_fn(part, input_shape)
            params.append(new)
        return input_shape, tuple(params)

    @arguments.strict
    def apply_fn(
        params: PyTree,
        inputs: Any,
        *,
        rng: PRNGKey | None = None,
        mask_constant: float | None = None,
        pattern: Any = None,
    ) -> Any:
        kwargs = given(mask_constant=mask_constant, pattern=pattern)
        keys = (
            [None] * len(layers)
            if rng is None
            else list(jax.random.split(rng, max(len(layers), 1)))
        )
        check_params("serial", params, len(layers))
        for one, param, key in zip(layers, params, keys):
            inputs = one.apply_fn(param, inputs, rng=key, **kwargs)
        return inputs

    blocks = periods([fn.spec for fn in fns])

    def rule(kernel: Any, **context: Any) -> Any:
        for start, length, count in blocks:
            block = fns[start : start + length]

            def once(k: Any, block: tuple[KernelFn, ...] = block) -> Any:
                for fn in block:
                    k = fn.rule(k, **context)
                return k

            short = shortcut(block, once, kernel, count)
            kernel = iterate(once, kernel, count) if short is None else short
        return kernel

    def needs(out: Need) -> Need:
        for fn in reversed(fns):
            out = fn.needs(out)
        return out

    axes = next((fn.axes for fn in fns if fn.axes is not None), None)
    return Layer(
        init_fn,
        apply_fn,
        KernelFn(rule, needs, ("serial", *(fn.spec for fn in fns)), axes, reads=_reads(fns)),
    )


def given(**options: Any) -> dict[str, Any]:
    """The options that are not None: a layer of the user's own need not know the others."""
    return {name: value for name, value in options.items() if value is not None}


def check_params(name: str, params: PyTree, count: int) -> None:
    """Raises a ValueError for parameters of another number of layers."""
    if len(params) != count:
        raise ValueError(
            f"{name} has {count} layers, and params is of {len(params)}; give those of init_fn"
        )


def _reads(fns: tuple[KernelFn, ...]) -> frozenset[str]:
    return frozenset().union(*(fn.reads for fn in fns))


def as_kernel_fn(fn: Callable) -> KernelFn:
    """A kernel function; a plain function Kernel -> Kernel becomes one that needs everything."""
    if isinstance(fn, KernelFn):
        return fn
    return KernelFn(lambda k, **context: fn(k), lambda out: Need(True, 2, True), ("function", fn))


def periods(specs: list[Hashable]) -> list[tuple[int, int, int]]:
    """Splits a sequence into blocks (start, length, repetitions), greedily by the most that repeats."""
    specs = [_key(spec) for spec in specs]
    blocks, start = [], 0
    while start < len(specs):
        best = (start, 1, 1)
        for length in range(1, (len(specs) - start) // 2 + 1):
            count = 1
            block = specs[start : start + length]
            while specs[start + count * length : start + (count + 1) * length] == block:
                count += 1
            if count >= 3 and count * length > best[1] * best[2]:
                best = (start, length, count)
        blocks.append(best)
        start += best[1] * best[2]
    return blocks


def _key(spec: Any) -> Any:
    """A spec in which an array, whose value may be traced, equals itself alone."""
    if isinstance(spec, tuple):
        return tuple(map(_key, spec))
    return ("array", id(spec)) if spectra.is_array(spec) else spec


def iterate(once: Callable, kernel: Any, count: int) -> Any:
    """Applies `once` count times: as a loop from where it leaves the structure of its input unchanged.

    The first application may change it, as a first layer does: the NTK becomes an array, widths settle.
    """
    while count:
        kernel = once(kernel)
        count -= 1
        if count >= 2 and _structure(jax.eval_shape(once, kernel)) == _structure(kernel):
            loop = jax.lax.fori_loop(
                0, count, lambda _, k: _packed(once(_unpacked(k))), _packed(kernel)
            )
            return _unpacked(loop)
    return kernel


def _packed(tree: PyTree) -> Any:
    """Correlation and NTK of each kernel as one array."""

    def pack(k: Any) -> Any:
        if not isinstance(k, Kernel) or k.ntk is None:
            return k
        return k.replace(correlation=kernels.packed(k.correlation, k.ntk), ntk=None)

    return jax.tree.map(pack, tree, is_leaf=lambda k: isinstance(k, Kernel))


def _unpacked(tree: PyTree) -> Any:
    def unpack(k: Any) -> Any:
        if not isinstance(k, Kernel) or not _holds_both(k.correlation):
            return k
        correlation, ntk = kernels.unpacked(k.correlation)
        return k.replace(correlation=correlation, ntk=ntk)

    return jax.tree.map(unpack, tree, is_leaf=lambda k: isinstance(k, Kernel))


def _holds_both(x: Any) -> bool:
    return isinstance(x, tuple) or jnp.iscomplexobj(x)


def shortcut(block: tuple[KernelFn, ...], once: Callable, kernel: Any, count: int) -> Kernel | None:
    """`count` blocks of (affine map, homogeneous nonlinearity) at once; None where that does not apply."""
    if not isinstance(kernel, Kernel) or count < SHALLOW or len(block) != 2:
        return None
    affine, dual = (fn.scalar for fn in block)
    if not isinstance(affine, tuple) or not isinstance(dual, Dual) or isinstance(affine, Dual):
        return None
    W_std, b_std = affine
    out = repeated.shortcut(kernel, dual, W_std, b_std, count)
    if out is None:
        return None
    # The shortcut knows moments alone; shapes are those after one block.
    after = jax.eval_shape(once, kernel)
    return out.replace(shape1=after.shape1, shape2=after.shape2)


SHALLOW = 3
"""Fewest repetitions that are evaluated as one scalar map."""


def _structure(tree: PyTree) -> Any:
    leaves, definition = jax.tree.flatten(tree)
    return definition, [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]


def repeat(layer: Layer, n: int) -> Layer:
    """One layer n times with parameters of its own each time; compiles once, whatever n.

    Args:
        layer: triple whose output has the shape of its input.
        n: number of times; 0 for the identity.

    Returns:
        (init_fn, apply_fn, kernel_fn); parameters are those of ``serial(*[layer] * n)``, stacked along a
        new first axis.

    Raises:
        ValueError: n is negative or not an integer, or the layer changes the shape of its input.
    """
    if not (isinstance(n, int) and n == 0):
        check_counts(n=n)
    one = Layer(*layer)
    fn = as_kernel_fn(one.kernel_fn)

    def split(key: PRNGKey, _: None) -> tuple[PRNGKey, PRNGKey]:
        rest, own = jax.random.split(key)
        return rest, own

    def init_fn(key: PRNGKey, input_shape: Shape) -> tuple[Shape, Any]:
        output_shape, _ = one.init_fn(key, input_shape)
        if tuple(output_shape) != tuple(input_shape):
            raise ValueError(
                f"a repeated layer must keep the shape of its input, and this one maps {tuple(input_shape)} to "
                f"{tuple(output_shape)}; put the first layer before the repeat"
            )
        # The keys that `serial` would split off: both forms draw the same parameters.
        _, keys = jax.lax.scan(split, key, None, n)
        return output_shape, jax.vmap(lambda k: one.init_fn(k, input_shape)[1])(keys)

    @arguments.strict
    def apply_fn(
        params: PyTree,
        inputs: Any,
        *,
        rng: PRNGKey | None = None,
        mask_constant: float | None = None,
        pattern: Any = None,
    ) -> Any:
        kwargs = given(mask_constant=mask_constant, pattern=pattern)
        keys = None if rng is None else jax.random.split(rng, n)

        def step(x: Any, part: Any) -> tuple[Any, None]:
            return one.apply_fn(part[0], x, rng=part[1], **kwargs), None

        return jax.lax.scan(step, inputs, (params, keys), n)[0]

    def rule(kernel: Any, **context: Any) -> Any:
        return iterate(lambda k: fn.rule(k, **context), kernel, n)

    def needs(out: Need) -> Need:
        return join(fn.needs(out), fn.needs(fn.needs(out)))

    return Layer(
        init_fn, apply_fn, KernelFn(rule, needs, ("repeat", fn.spec, n), fn.axes, reads=fn.reads)
    )


def parallel(*layers: Layer) -> Layer:
    """Layers side by side: each acts on its own input, and there are as many outputs.

    Args:
        *layers: triples (init_fn, apply_fn, kernel_fn).

    Returns:
        (init_fn, apply_fn, kernel_fn) on lists or tuples.
    """
    layers = tuple(Layer(*one) for one in layers)
    fns = tuple(as_kernel_fn(one.kernel_fn) for one in layers)

    def check(inputs: Any) -> None:
        if len(inputs) != len(layers):
            raise ValueError(f"parallel has {len(layers)} layers, and got {len(inputs)} inputs")

    def init_fn(key: PRNGKey, input_shape: Any) -> tuple[Any, tuple]:
        check(input_shape)
        keys = jax.random.split(key, max(len(layers), 1))
        parts = [one.init_fn(k, s) for one, k, s in zip(layers, keys, input_shape)]
        return type(input_shape)(s for s, _ in parts), tuple(p for _, p in parts)

    @arguments.strict
    def apply_fn(
        params: PyTree,
        inputs: Any,
        *,
        rng: PRNGKey | None = None,
        mask_constant: float | None = None,
        pattern: Any = None,
    ) -> Any:
        kwargs = given(mask_constant=mask_constant, pattern=pattern)
        check(inputs)
        keys = (
            [None] * len(layers)
            if rng is None
            else list(jax.random.split(rng, max(len(layers), 1)))
        )
        check_params("parallel", params, len(layers))
        parts = zip(layers, params, inputs, keys)
        return type(inputs)(one.apply_fn(p, x, rng=key, **kwargs) for one, p, x, key in parts)

    def rule(kernels: Any, **context: Any) -> Any:
        check(kernels)
        return type(kernels)(fn.rule(k, **context) for fn, k in zip(fns, kernels))

    def needs(out: Need) -> Need:
        return join(*(fn.needs(out) for fn in fns))

    axes = next((fn.axes for fn in fns if fn.axes is not None), None)
    return Layer(
        init_fn,
        apply_fn,
        KernelFn(rule, needs, ("parallel", *(fn.spec for fn in fns)), axes, reads=_reads(fns)),
    )


def FanOut(num: int) -> Layer:
    """Copies its input, for branches such as residual connections.

    Args:
        num: number of copies, a list of which is returned.

    Raises:
        ValueError: num is not a positive integer.
    """
    check_counts(num=num)
    return layer(
        lambda params, x, **_: [x] * num,
        lambda kernel, **_: [kernel] * num,
        ("FanOut", num),
        shape=lambda s: [s] * num,
        mask=lambda m, _: [m] * num,
    )


def FanInSum() -> Layer:
    """Sums independent branches, each ending in a layer of random weights."""
    return layer(
        lambda params, xs, **_: sum(xs[1:], start=xs[0]),
        lambda kernels, **_: channels.add(kernels),
        "FanInSum",
        shape=_first,
        mask=_all_masks,
        remask=False,
    )


def FanInProd() -> Layer:
    """Multiplies independent branches entry by entry."""

    def apply(params: PyTree, xs: Sequence[Array], **_: Any) -> Array:
        out = xs[0]
        for x in xs[1:]:
            out = out * x
        return out

    return layer(
        apply,
        lambda kernels, **_: channels.multiply(kernels),
        "FanInProd",
        shape=_first,
        mask=_all_masks,
        remask=False,
    )


def FanInConcat(axis: int = -1) -> Layer:
    """Concatenates independent branches along channels or pixels.

    Args:
        axis: axis of the activations; not the batch in the infinite-width limit.
    """

    def shape(shapes: Sequence[Shape]) -> Shape:
        at = arguments.axis_within("FanInConcat's axis", axis, len(shapes[0]))
        rest = {s[:at] + s[at + 1 :] for s in map(tuple, shapes)}
        if len(rest) > 1:
            raise ValueError(
                f"FanInConcat along axis {axis} needs inputs that agree elsewhere, got {list(shapes)}"
            )
        return (*shapes[0][:at], sum(s[at] for s in shapes), *shapes[0][at + 1 :])

    def rule(kernels: Sequence[Kernel], **_: Any) -> Kernel:
        first = kernels[0]
        at = arguments.axis_within("FanInConcat's axis", axis, len(first.shape1))
        if at == first.channel_axis:
            return channels.concatenate_channels(kernels)
        if at == first.batch_axis:
            raise ValueError(
                "FanInConcat along the batch has no kernel: entries would depend on other samples"
            )
        return pixels.concatenate(kernels, pixel_axis(first, at))

    def mask(masks: Sequence[Array | None], shapes: Sequence[Shape]) -> Array:
        at = axis % len(shapes[0])
        full = []
        for m, s in zip(masks, shapes):
            one = [1] * len(s)
            m = jnp.zeros(one, bool) if m is None else m
            full.append(jnp.broadcast_to(m, (*m.shape[:at], s[at], *m.shape[at + 1 :])))
        common = tuple(max(sizes) for sizes in zip(*(m.shape for m in full)))
        full = [jnp.broadcast_to(m, (*common[:at], m.shape[at], *common[at + 1 :])) for m in full]
        return jnp.concatenate(full, at)

    return layer(
        lambda params, xs, **_: jnp.concatenate(xs, axis),
        rule,
        ("FanInConcat", axis),
        shape=shape,
        mask=mask,
        remask=False,
    )


def _first(shapes: Any) -> Shape:
    return tuple(shapes[0])


def _all_masks(masks: Any, shapes: Any) -> Array:
    """Hidden where every branch that hides anything does."""
    return functools.reduce(operator.and_, [m for m in masks if m is not None])
