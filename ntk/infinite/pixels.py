"""What operations on pixels do to a `Kernel` in the infinite-width limit.

A fixed linear map L of the pixels turns a pixel-pair covariance K into L K L^T, whatever it is called (pooling,
resizing, indexing, aggregation over a graph, attention with given weights): `linear`. A convolution with random
weights averages K over pixel pairs moved together: `convolve`.

    linear      K' = L K L^T
    convolve    K'(p, p') = W_std^2 mean_d K(p + d, p' + d) + b_std^2,    d over the window

Source: Novak et al. (2019), equation 6; Xiao et al. (2018), equation 4.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from ntk.infinite import channels
from ntk.infinite import kernel as kernels
from ntk.infinite.kernel import Array, Kernel


def linear(
    kernel: Kernel,
    map1: Callable[[Array], Array],
    map2: Callable[[Array], Array],
    *,
    selects: bool = False,
) -> Kernel:
    """Moments after a fixed linear map of the pixels, the same for every channel.

    Args:
        kernel: moments of the activations.
        map1: (N1, M, *S) -> (N1, M, *S_out), linear in the pixels of each of the M copies; may differ by sample.
        map2: the same for the second batch.
        selects: every output is one input pixel, so that equal pixels stay equal.

    Raises:
        ValueError: only equal pixels are kept, and outputs mix pixels.
    """
    if kernel.diagonal_spatial and not selects and kernel.var1.ndim > 1:
        raise ValueError(
            "pooling and other mixtures of pixels need covariances of all pixel pairs: "
            "leave diagonal_spatial unset or False"
        )
    # Covariances, not correlations: a mixture of pixels weighs them by their size.
    nngp = _two_sided(kernel, kernel.nngp, map1, map2)
    ntk = kernel.ntk
    if ntk is not None and ntk.ndim:
        ntk = _two_sided(kernel, ntk, map1, map2)
    ends = []
    for cov, var, f in ((kernel.within1, kernel.var1, map1), (kernel.within2, kernel.var2, map2)):
        if cov is None and var.ndim == 1 and not selects:
            cov = var  # no pixels yet
        if cov is not None:
            cov = both_sides(cov, f, f, 1)
            var = kernels.pixel_diagonal(cov, 1)
            cov = cov if var.ndim > 1 else None
        elif selects:
            var = f(var[:, None])[:, 0]
        else:  # nothing below needs the variance: any positive scale carries the covariance
            shape = jax.eval_shape(f, var[:, None]).shape[2:]
            mean = jnp.mean(var, tuple(range(1, var.ndim)))
            var = jnp.broadcast_to(mean.reshape((-1,) + (1,) * len(shape)), var.shape[:1] + shape)
        ends.append((var, cov))
    (var1, within1), (var2, within2) = ends
    out = kernel.replace(nngp=nngp, var1=var1, var2=var2, mask1=None, mask2=None)
    return out.replace(ntk=ntk, within1=within1, within2=within2)


def _two_sided(kernel: Kernel, x: Array, map1: Callable, map2: Callable) -> Array:
    if kernel.diagonal_spatial:  # equal pixels are selected: one map serves both sides
        return map1(x)
    return both_sides(x, map1, map2, 2)


def both_sides(x: Array, map1: Callable, map2: Callable, lead: int) -> Array:
    """L1 x L2^T over the pixel pairs of x, (N1, N2, H, H, W, W) for lead 2 and (N, H, H, W, W) for lead 1."""
    pairs = (x.ndim - lead) // 2
    swap = tuple(range(lead))[::-1]
    batch = tuple(range(lead))
    first, second = tuple(range(lead, x.ndim, 2)), tuple(range(lead + 1, x.ndim, 2))
    # L1 acts on first pixels, for which samples of the other batch and second pixels are copies; then L2 on the others.
    x = jnp.transpose(x, batch + second + first)
    y = map1(x.reshape(x.shape[0], -1, *x.shape[lead + pairs :]))
    x = y.reshape(*x.shape[: lead + pairs], *y.shape[2:])
    seconds = tuple(range(lead, lead + pairs))
    outs = tuple(range(lead + pairs, x.ndim))
    x = jnp.transpose(x, swap + outs + seconds)
    split = lead + len(outs)
    y = map2(x.reshape(x.shape[0], -1, *x.shape[split:]))
    y = y.reshape(*x.shape[:split], *y.shape[2:])
    order = swap
    for i in range(len(outs)):
        order += (lead + i, lead + len(outs) + i)
    return jnp.transpose(y, order)


def convolve(
    kernel: Kernel,
    window: Sequence[int],
    strides: Sequence[int],
    padding: str,
    W_std: float = 1.0,
    b_std: float | None = None,
    *,
    fan_in: float | None = None,
    shared: bool = True,
    transpose: bool = False,
    dilation: Sequence[int] | None = None,
) -> Kernel:
    """Moments after a convolution with random weights: K averaged over pixel pairs moved together.

    Args:
        kernel: moments of its input.
        window: size of the filter along each spatial axis.
        strides: strides along each.
        padding: "VALID", "SAME" (zeros) or "CIRCULAR".
        W_std: standard deviation of the weights times the square root of the fan-in.
        b_std: standard deviation of the biases, or None.
        fan_in: as in `channels.affine`; with the pixels of the filter counted in.
        shared: whether all positions have the same weights; else different positions become independent.
        transpose: the transposed convolution.
        dilation: as in `window_mean`.

    Returns:
        The moments of a Gaussian.

    Source: Novak et al. (2019), equation 6; Xiao et al. (2018), equation 4. Garriga-Alonso et al. (2019).
    """

    def box(x: Array, lead: int, axes: int) -> Array:
        return window_mean(x, lead, axes, window, strides, padding, transpose, dilation)

    axes = 1 if kernel.diagonal_spatial else 2
    var1, var2 = box(kernel.var1, 1, 1), box(kernel.var2, 1, 1)
    within = [None if w is None else box(w, 1, 2) for w in (kernel.within1, kernel.within2)]
    mean = box(kernel.nngp, 2, axes)
    out = kernel.replace(within1=within[0], within2=within[1])
    out = channels.gaussian(out, mean, var1, var2, W_std, b_std)
    if kernel.ntk is not None:
        ntk = box(kernel.ntk, 2, axes) if kernel.ntk.ndim else kernel.ntk
        out = out.replace(ntk=channels.trained(out, mean, ntk, W_std, b_std, fan_in))
    return out if shared or kernel.diagonal_spatial else independent_pixels(out)


def independent_pixels(kernel: Kernel) -> Kernel:
    """Moments with the covariances between different pixels set to zero."""

    def keep(x: Array, lead: int, axes: int) -> Array:
        return x if axes == 1 else jnp.where(kernels.same_pixel(x.shape[lead:]), x, 0)

    return kernels.mapped(keep, kernel, moves=True)


def window_mean(
    x: Array,
    lead: int,
    axes: int,
    window: Sequence[int],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    transpose: bool = False,
    dilation: Sequence[int] | None = None,
) -> Array:
    """Mean over windows of pixels, for pixel pairs over both pixels moved together.

    Args:
        x: pixel pairs, or pixels; `lead` axes come before them.
        lead: number of leading axes.
        axes: 2 for pixel pairs (every spatial axis twice), 1 for pixels.
        window: size along each spatial axis.
        strides: strides along each.
        padding: "VALID", "SAME" (zeros) or "CIRCULAR", or zeros before and after each spatial axis.
        transpose: of the transposed convolution: the input is spread out by the strides.
        dilation: distance of neighbouring entries of a window along each axis, with explicit zeros; None means 1.
    """
    sizes = x.shape[lead::axes]
    over = [tuple(range(lead + axes * i, lead + axes * (i + 1))) for i in range(len(window))]
    pads, interior = [(0, 0)] * len(window), [0] * len(window)
    if transpose:
        pads = [_transposed_pads(width, stride, padding) for width, stride in zip(window, strides)]
        interior = [stride - 1 for stride in strides]
    elif not isinstance(padding, str):
        pads = list(padding)
    elif padding != "VALID":
        pads = jax.lax.padtype_to_pads(sizes, window, strides, "SAME")
    spread = [((0, 0), 0)] * lead + [
        (pad, inside) for pad, inside in zip(pads, interior) for _ in range(axes)
    ]
    # A pair of pixels (p, p') moves by (d, d): the weight at d meets both, and those at other places are independent.
    if axes == 2:
        x = materialised(x)
    if padding == "CIRCULAR" and not transpose:
        x = jnp.pad(x, [pad for pad, _ in spread], "wrap")
    elif any(pad != (0, 0) or inside for pad, inside in spread):
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(*pad, inside) for pad, inside in spread])
    dilation = [1] * len(window) if dilation is None else dilation
    for i, (size, width, stride) in enumerate(zip(sizes, window, strides)):
        x = _window_sum(x, over[i], width, 1 if transpose else stride, dilation[i])
        if padding == "CIRCULAR" and transpose:
            for axis in over[i]:
                x = wrap(x, axis, size * stride)
    # At the border, too: weights have the variance W_std^2 / (channels times window), and padded zeros are inputs.
    return x / math.prod(window)


def materialised(x: Array) -> Array:
    """x, in memory: XLA's CPU compiler would compute it again in every shifted copy, entry by entry inside the pad.

    Its optimization barriers are removed before it fuses; a branch is not.
    """
    if jax.default_backend() != "cpu":
        return x
    known = x.ravel()[0] < jnp.inf
    return jax.lax.cond(known, lambda x: x, lambda x: jnp.full_like(x, jnp.nan), x)


def _window_sum(
    x: Array, over: tuple[int, ...], width: int, stride: int, dilation: int = 1
) -> Array:
    """Sum of `width` copies of x, all axes of `over` moved together; without the incomplete windows."""
    parts = []
    for d in range(width):
        start, stop, step = [0] * x.ndim, list(x.shape), [1] * x.ndim
        for axis in over:
            # First entries of the windows that fit.
            count = (x.shape[axis] - (width - 1) * dilation - 1) // stride + 1
            first = d * dilation
            start[axis], stop[axis], step[axis] = first, first + (count - 1) * stride + 1, stride
        parts.append(jax.lax.slice(x, start, stop, step))
    return functools.reduce(operator.add, parts)


def _transposed_pads(
    width: int, stride: int, padding: str | Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """Zeros around the spread input of a transposed convolution, as in `jax.lax.conv_transpose`."""
    if padding == "SAME":
        total = width + stride - 2
        low = width - 1 if stride > width - 1 else -(-total // 2)
    else:
        total = width + stride - 2 + max(width - stride, 0)
        low = width - 1
    return low, total - low


def wrap(x: Array, axis: int, size: int) -> Array:
    """Sums what overhangs `size` positions onto the other end, evenly from both sides."""
    low = -((x.shape[axis] - size) // 2) % size
    high = -(low + x.shape[axis]) % size
    x = jnp.pad(x, [(low, high) if a == axis else (0, 0) for a in range(x.ndim)])
    x = x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :])
    return jnp.sum(x, axis)


def flatten(kernel: Kernel) -> Kernel:
    """Moments after all pixels become channels: the mean over equal pixels."""

    def mean(x: Array, lead: int, axes: int) -> Array:
        x = kernels.pixel_diagonal(x, lead) if axes == 2 else x
        return jnp.mean(x, tuple(range(lead, x.ndim)))

    # A layer above has other weights at every pixel, which are independent: pairs of different pixels do not meet.
    out = kernels.mapped(mean, kernel.replace(within1=None, within2=None))
    return out.replace(mask1=None, mask2=None, diagonal_spatial=False, is_gaussian=False)


def pool_all(kernel: Kernel, mean: bool = True) -> Kernel:
    """Moments after the sum or mean over all pixels; hidden pixels are left out of the mean.

    Args:
        kernel: moments of the activations.
        mean: the mean, else the sum.
    """

    def weights(mask: Array | None, var: Array) -> Callable[[Array], Array]:
        axes = tuple(range(2, var.ndim + 1))
        if mask is None:
            return lambda x: (jnp.mean if mean else jnp.sum)(x, axes)
        seen = ~jnp.broadcast_to(kernels.pixel_mask(kernel, mask), var.shape)
        seen = seen[:, None].astype(var.dtype)
        count = jnp.maximum(jnp.sum(seen, axes), 1) if mean else 1
        return lambda x: jnp.sum(x * seen, axes) / count

    if kernel.var1.ndim == 1:
        return kernel
    if kernel.mask1 is None and kernel.mask2 is None and not kernel.diagonal_spatial:
        return _pool_pairs(kernel, mean)
    out = linear(kernel, weights(kernel.mask1, kernel.var1), weights(kernel.mask2, kernel.var2))
    return out.replace(diagonal_spatial=False)


def _pool_pairs(kernel: Kernel, mean: bool) -> Kernel:
    reduce = jnp.mean if mean else jnp.sum

    def pool(x: Array, lead: int) -> Array:
        return reduce(x, tuple(range(lead, x.ndim)))

    # Without `within` nothing below needs the variance: any positive scale carries the covariance.
    var1 = pool(kernel.var1 if kernel.within1 is None else kernel.within1, 1)
    var2 = pool(kernel.var2 if kernel.within2 is None else kernel.within2, 1)
    nngp, ntk = pool(kernel.nngp, 2), kernel.ntk
    out = kernel.replace(nngp=nngp, var1=var1, var2=var2, within1=None, within2=None)
    return out.replace(ntk=ntk if ntk is None or ntk.ndim == 0 else pool(ntk, 2))


def concatenate(parts: Sequence[Kernel], axis: int) -> Kernel:
    """Moments of independent mean-zero activations put side by side along a spatial axis.

    Args:
        parts: moments of the activations.
        axis: spatial axis, 0 for the first.

    Raises:
        ValueError: an input is not a mean-zero Gaussian.
    """
    if not all(k.is_gaussian for k in parts):
        raise ValueError(
            "FanInConcat along pixels needs independent mean-zero Gaussians: "
            "end each branch with a layer of random weights"
        )

    def join(*arrays: Array, lead: int, axes: int) -> Array:
        if axes == 1:
            return jnp.concatenate(arrays, lead + axis)
        one = lead + 2 * axis
        sizes = [x.shape[one] for x in arrays]
        rows = []
        for i, x in enumerate(arrays):
            pads = [(0, 0)] * x.ndim
            # Independent and of mean zero: covariances between branches are zeros.
            pads[one + 1] = (sum(sizes[:i]), sum(sizes[i + 1 :]))
            rows.append(jnp.pad(x, pads))
        return jnp.concatenate(rows, one)

    return kernels.mapped(join, *parts).replace(mask1=None, mask2=None)


def take(kernel: Kernel, batch: slice) -> Kernel:
    """Moments of some samples of both batches."""

    def pick(x: Array, lead: int, axes: int = 0) -> Array:
        return x[batch] if lead == 1 else x[batch][:, batch]

    same = None if kernel.coincident is None else pick(kernel.coincident, 2)
    return kernels.mapped(pick, kernel, moves=True).replace(coincident=same)


def reorder(kernel: Kernel, order: Sequence[int]) -> Kernel:
    """Moments with the spatial axes in another order.

    Args:
        kernel: moments of the activations.
        order: old numbers of the new spatial axes.
    """
    if list(order) == sorted(order):
        return kernel

    def move(x: Array, lead: int, axes: int) -> Array:
        new = list(range(lead))
        for old in order:
            new += range(lead + axes * old, lead + axes * (old + 1))
        return jnp.transpose(x, new)

    return kernels.mapped(move, kernel, moves=True)
