"""Data on its way into a network: checked, and turned into the `Kernel` of the first layer.

The first covariance is K(x1, x2) = sum_c x1_c x2_c / channels, of every pair of pixels where that is asked for.

Source: Lee et al. (2018), without its bias and weights, which belong to the first layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk.arguments import axis_within
from ntk.infinite import channels
from ntk.infinite import kernel as kernels
from ntk.infinite.kernel import Array, Kernel


class Need(NamedTuple):
    """What must be known of a layer's activations for the result that was asked for.

    Attributes:
        pairs: covariances between all pixel pairs of two inputs, not of equal pixels alone.
        variance: within one input, 0: nothing but a scale, 1: the variance of each pixel, 2: all pixel pairs.
        whole: whether a layer acts on the batch as a whole, so that it cannot be cut into tiles.
    """

    pairs: bool
    variance: int
    whole: bool = False


def join(*needs: Need) -> Need:
    """The least that serves every need."""
    return Need(
        any(need.pairs for need in needs),
        max(need.variance for need in needs),
        any(need.whole for need in needs),
    )


class Plan(NamedTuple):
    """What of an evaluation is known before it is compiled.

    `differentiated`: whether derivatives are taken of the result, not its values.
    `near`: whether any samples lie close together, where that is known before.
    """

    names: tuple[str, ...]
    need: Need
    ntk: bool
    symmetric: bool
    coincident: bool
    batch_axis: int
    channel_axis: int
    context: tuple[tuple[str, Any], ...]
    differentiated: bool = False
    near: bool | None = None


def checked(x: Any, mask_constant: float | None, name: str, least: int = 2) -> tuple[Any, Any]:
    """Inputs as floating-point arrays with hidden entries zero, and the masks (None without mask_constant).

    They have at least so many axes: a model that is traced may take one number an example.
    """
    if isinstance(x, list | tuple):
        pairs = [checked(part, mask_constant, f"{name}[{i}]", least) for i, part in enumerate(x)]
        return tuple(p[0] for p in pairs), tuple(p[1] for p in pairs)
    if not isinstance(x, jax.Array | np.ndarray):
        raise ValueError(
            f"{name} is a {type(x).__name__}; it must be an array, or a list of arrays"
        )
    if not (jnp.issubdtype(x.dtype, jnp.number) or jnp.issubdtype(x.dtype, jnp.bool_)):
        raise TypeError(f"{name} is an array of {x.dtype}; it must be of numbers")
    if jnp.iscomplexobj(x):
        raise ValueError(
            f"{name} is complex ({x.dtype}); stack real and imaginary parts as channels"
        )
    if x.ndim < least or 0 in x.shape:
        axes = "a batch and a channel axis" if least == 2 else "a batch axis"
        raise ValueError(f"{name} has shape {x.shape}; it needs {axes}, and no empty axis")
    x = jax.device_put(x) if isinstance(x, np.ndarray) else x  # jnp.asarray compiles a copy
    if not jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(float)
    elif x.dtype.itemsize < 4:
        x = x.astype(jnp.float32)
    mask = None
    if mask_constant is not None:
        # nan is equal to nothing, itself included.
        mask = jnp.where(jnp.isnan(mask_constant), jnp.isnan(x), x == mask_constant)
        x = jnp.where(mask, 0, x)
    if _truth(lambda xp, x: xp.isfinite(x).all(), x) is False:
        raise ValueError(
            f"{name} has entries that are not finite; remove them, or hide them with mask_constant"
        )
    return x, mask


def check_axes(x: Any, batch: int, channel: int) -> None:
    """Refuses axes of batch and channels that an input lacks, or that are the same."""
    for part in jax.tree.leaves(x):
        found = [
            axis_within(name, axis, part.ndim)
            for name, axis in (("batch_axis", batch), ("channel_axis", channel))
        ]
        if found[0] == found[1]:
            raise ValueError(
                f"batch_axis {batch} and channel_axis {channel} are one axis of inputs of shape {part.shape}"
            )


def check_samples(x: Any, samples: tuple[jax.ShapeDtypeStruct, ...], name: str) -> None:
    """Raises a ValueError unless x is batches of samples of the shapes with which a model was read."""
    parts = x if isinstance(x, list | tuple) else (x,)
    if len(parts) != len(samples):
        raise ValueError(f"the network takes {len(samples)} inputs, and {name} holds {len(parts)}")
    for k, (part, sample) in enumerate(zip(parts, samples)):
        which = f"{name}[{k}]" if len(samples) > 1 else name
        if not isinstance(part, jax.Array | np.ndarray):
            continue  # `checked` says what it is
        if part.shape[1:] != sample.shape or not part.ndim:
            raise ValueError(
                f"{which} has the shape {part.shape}; the network was read with samples of shape {sample.shape}: give "
                "a batch of those, or call ntk.infinite_width again with such an example"
            )
        whole = not jnp.issubdtype(sample.dtype, jnp.floating)
        if whole and _truth(lambda xp, x: (x == xp.floor(x)).all(), part) is False:
            raise ValueError(
                f"{which} has entries that are no integers; the network was read with {sample.dtype}"
            )


def check_pair(x1: Any, x2: Any, axes: tuple[int, int] | None) -> None:
    """Raises a ValueError if samples of the two batches differ in shape."""
    if isinstance(x1, tuple) or isinstance(x2, tuple):
        if not (isinstance(x1, tuple) and isinstance(x2, tuple) and len(x1) == len(x2)):
            raise ValueError("x1 and x2 must be lists of the same number of inputs")
        for a, b in zip(x1, x2):
            check_pair(a, b, axes)
        return
    batch = (axes or (0, -1))[0] % x1.ndim
    rest1, rest2 = (x.shape[:batch] + x.shape[batch + 1 :] for x in (x1, x2))
    if rest1 != rest2:
        raise ValueError(
            f"samples of x1 have shape {rest1}, and those of x2 {rest2}; they must be the same, channels included"
        )


def coincident_batches(x1: Any, x2: Any) -> bool:
    """Whether both batches hold the same samples in the same order; False where they are traced."""
    if isinstance(x1, tuple):
        return all(coincident_batches(a, b) for a, b in zip(x1, x2))
    if x1 is x2:
        return True
    same = x1.shape == x2.shape
    return same and _truth(lambda xp, one, two: xp.array_equal(one, two), x1, x2) is True


def _truth(fn: Callable[..., Any], *xs: Any) -> bool | None:
    """fn(module, *xs), or None where it is not known before the run; by numpy on a CPU, which compiles nothing."""
    if any(isinstance(x, jax.core.Tracer) for x in xs):
        return None
    here = all(getattr(x, "is_fully_addressable", True) for x in xs)
    if jax.default_backend() == "cpu" and here:
        return bool(fn(np, *map(np.asarray, xs)))
    return bool(fn(jnp, *xs))


def inputs_to_kernel(
    x1: Array,
    x2: Array,
    mask1: Array | None,
    mask2: Array | None,
    coincident: Array | None,
    plan: Plan,
    product: Array | None = None,
) -> Kernel:
    """Moments of the data: inner products over channels, divided by their number.

    A vanishing pixel has no direction, so that derivatives through its correlation and its norm do not exist, although
    that of their product does. Where derivatives are taken it has therefore a small norm, of relative size
    eps^(1/2): a relative error of about eps in first and eps^(1/2) in second derivatives of smooth kernels.

    Args:
        x1: first batch.
        x2: second batch.
        mask1: True where hidden (the channels with all or none of their position), or None.
        mask2: the same of the second batch.
        coincident: (N1, N2), where the samples are the same; or None.
        plan: axes, and what the network needs.
        product: `product_of_units` of the same arguments, where it is known.
    """
    batch, channel = plan.batch_axis % x1.ndim, plan.channel_axis % x1.ndim
    masks = [None if m is None else jnp.all(m, channel, keepdims=True) for m in (mask1, mask2)]
    # K = |x1| |x2| cos / channels: the mean over channels of their products.
    units, norms = _units(x1, x2, plan)
    width, pixels = x1.shape[channel], x1.ndim - 2
    spread = plan.need.pairs and pixels > 0
    correlation = _inner(units[0], units[1], pixels, spread, 2) if product is None else product
    kernel = Kernel(
        correlation=channels.snap(correlation, width),
        var1=norms[0] / width,
        var2=norms[1] / width,
        ntk=jnp.zeros((), correlation.dtype) if plan.ntk else None,
        coincident=coincident,
        mask1=masks[0],
        mask2=masks[1],
        shape1=x1.shape,
        shape2=x2.shape,
        is_input=True,
        diagonal_spatial=not spread and pixels > 0,
        symmetric=plan.symmetric,
        batch_axis=batch,
        channel_axis=channel,
    )
    within: list[Array | None] = [None, None]
    if plan.need.variance == 2 and pixels:
        for side, (unit, norm) in enumerate(zip(units, norms)):
            one, two = kernels.views_within(jnp.sqrt(norm / width))
            within[side] = _inner(unit, unit, pixels, True, 1) * (one * two)
    return kernel.replace(within1=within[0], within2=within[1])


def product_of_units(x1: Array, x2: Array, plan: Plan) -> Array:
    """Inner products of the samples divided by their norms, as a matrix product leaves them: beyond 1 by rounding."""
    pixels = x1.ndim - 2
    one, two = _units(x1, x2, plan)[0]
    return _inner(one, two, pixels, plan.need.pairs and pixels > 0, 2)


def _units(x1: Array, x2: Array, plan: Plan) -> tuple[list[Array], list[Array]]:
    """Both batches with the norm of their channels divided out, channels last; and the squares of the norms."""
    batch, channel = plan.batch_axis % x1.ndim, plan.channel_axis % x1.ndim
    sides = [jnp.moveaxis(x, (batch, channel), (0, -1)) for x in (x1, x2)]
    # Unit vectors, whose products are correlations: of equal samples 1 up to rounding, whatever their norms.
    norms = [jnp.sum(x * x, -1) for x in sides]
    if plan.differentiated:
        norms = _positive(norms)
    return [x * kernels.inverse_sqrt(n)[..., None] for x, n in zip(sides, norms)], norms


def _positive(norms: list[Array]) -> list[Array]:
    """Squared norms, those that vanish in value replaced by a small one; their derivatives stay."""
    top = functools.reduce(jnp.maximum, map(jnp.max, norms))
    small = jnp.finfo(top.dtype).eps * jnp.where(top > 0, top, 1)
    return [x + jax.lax.stop_gradient(jnp.where(x > 0, 0, small)) for x in norms]


def _inner(x1: Array, x2: Array, pixels: int, spread: bool, lead: int) -> Array:
    """Inner products over channels; of all pixel pairs (N1, N2, H, H, W, W) if spread, else of equal pixels."""
    one = list(range(2, 2 + pixels))
    two = [10 + axis for axis in one] if spread else one
    batch = [0, 1] if lead == 2 else [0]
    out = [axis for pair in zip(one, two) for axis in pair] if spread else one
    return jnp.einsum(
        x1, [batch[0], *one, 99], x2, [batch[-1], *two, 99], [*batch, *out], precision="highest"
    )
