"""Blocks of (affine map, homogeneous nonlinearity), repeated, on the correlation alone: faster than layer by layer.

On the gap g = 1 - correlation of the unit vectors (u, v) = (W_std s, b_std) / norm, s^2 the variance of each sample::

    g <- u_1 u_2 g + ((u_1 - u_2)^2 + (v_1 - v_2)^2) / 2,    ntk <- u_1 u_2 ntk + 1 - g

and then the activation's own map of the gap, with ntk times the slope: no digits cancel near correlation one.

Source: Cho & Saul (2009), Jacot et al. (2018), theorem 1; the form in the gap is derived.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from ntk.activations.closed_forms import Dual
from ntk.activations.elementary import root
from ntk.infinite import kernel as kernels
from ntk.infinite.channels import snap
from ntk.infinite.depth_map import depth_map
from ntk.infinite.kernel import Array, Kernel

_UNROLLED = 2
"""Layers in one pass over the matrix: a loop over single layers spends its time on memory."""

_State: TypeAlias = tuple[Array, Array | None, Array]
"""Gap, NTK and variances."""


def applies(kernel: Kernel, dual: Dual, W_std: float, b_std: float | None) -> bool:
    """Whether `chain` can stand for the blocks: activations of vectors, unmasked, and settings that are numbers."""
    settings = [W_std] if b_std is None else [W_std, b_std]
    if not all(isinstance(v, int | float) for v in settings) or kernel.within1 is not None:
        return False
    if kernel.mask1 is not None or kernel.mask2 is not None or dual.homogeneous != 1:
        return False
    return b_std is None or (b_std > 0 and dual.gap is not None)


def shortcut(
    kernel: Kernel, dual: Dual, W_std: float, b_std: float | None, depth: int
) -> Kernel | None:
    """`chain`, or None where it does not apply."""
    if not applies(kernel, dual, W_std, b_std):
        return None
    try:
        return chain(kernel, dual, W_std, b_std, depth)
    except ValueError:  # a map too steep for a table
        return None


def chain(kernel: Kernel, dual: Dual, W_std: float, b_std: float | None, depth: int) -> Kernel:
    """Moments after `depth` times (affine map in the NTK parametrization, nonlinearity).

    Args:
        kernel: moments of the input.
        dual: dual activation, homogeneous of degree 1.
        W_std: standard deviation of the weights times the square root of the fan-in.
        b_std: standard deviation of the biases; None for no bias.
        depth: number of layers.

    Raises:
        ValueError: without biases, as in `ntk.infinite.depth_map.depth_map`.

    Source: without biases `ntk.infinite.depth_map`; Cho & Saul (2009); Jacot et al. (2018), theorem 1.
    """
    if b_std is None:
        out = _mapped(kernel, dual, W_std, depth)
    else:
        out = _recursion(kernel, dual, W_std, b_std, depth)
    return out.replace(is_gaussian=False, is_input=False)


def _mapped(kernel: Kernel, dual: Dual, W_std: float, depth: int) -> Kernel:
    """One map of the correlation, tabulated over the whole depth."""
    table = depth_map(dual, W_std, None, depth)
    correlation, own, gain = table.maps(snap(kernel.correlation))
    ntk, below = None, kernel.ntk
    if below is not None:
        ntk = own * _outer(kernel, root(_variances(kernel)))
        ntk = ntk + (gain * below if below.ndim else 0)
    var1, var2 = table.variance * kernel.var1, table.variance * kernel.var2
    return kernel.replace(correlation=correlation, var1=var1, var2=var2, ntk=ntk)


def _recursion(kernel: Kernel, dual: Dual, W_std: float, b_std: float, depth: int) -> Kernel:
    """Layer by layer, on the gap 1 - correlation and the NTK of the normalised preactivations.

    With unit vectors (u, v) = (W_std s, b_std) / norm of each sample, s the root of its variance, an affine map
    makes gap <- u1 u2 gap + ((u1 - u2)^2 + (v1 - v2)^2) / 2: nothing cancels, and a coincident pair keeps gap
    zero. The NTK becomes u1 u2 ntk + 1 - gap.
    """
    gap_map = dual.gap
    if gap_map is None:
        raise ValueError("the activation has no map of gaps: evaluate layer by layer")
    norm = float(dual.norm(1.0))  # type: ignore[arg-type]  # a Python number keeps double precision
    # u and v are divided by sqrt(2) here: squares of their differences need no factor 1/2, and u_1 u_2 has one of 2.
    unit = (W_std**2, W_std * 2**-0.5, b_std * 2**-0.5)

    def affine(gap: Array, ntk: Array | None, var: Array, start: Array | None = None) -> _State:
        out = unit[0] * var + b_std**2
        inverse = kernels.inverse_sqrt(out)
        u, v = (unit[1] * root(var)) * inverse, unit[2] * inverse
        factor = 2 * _outer(kernel, u)
        gap = factor * gap + (_difference(kernel, u) ** 2 + _difference(kernel, v) ** 2)
        if start is not None:
            # In units of the norms the layer's own part, its new NNGP, is the correlation.
            ntk = 1 - gap
            if start.ndim:
                ntk = ntk + start * _outer(kernel, W_std * inverse)
        elif ntk is not None:
            ntk = (factor * ntk + 1) - gap
        return gap, ntk, out

    def nonlinear(gap: Array, ntk: Array | None, var: Array, first: bool = False) -> _State:
        gap, slope = gap_map(gap, first)
        # The slope is E f' f' over E f^2: the norms of the activations are divided out at the same time.
        return gap, None if ntk is None else ntk * slope, norm * var

    state = affine(1 - snap(kernel.correlation), None, _variances(kernel), kernel.ntk)
    state = nonlinear(*state, first=True)
    rounds, rest = divmod(depth - 1, _UNROLLED)
    if rounds < 3:
        rounds, rest = 0, depth - 1

    def layers(state: _State, count: int) -> _State:
        for _ in range(count):
            state = nonlinear(*affine(*state))
        return state

    def packed(gap: Array, ntk: Array | None, var: Array) -> tuple:
        return (gap if ntk is None else kernels.packed(gap, ntk)), var

    def unpacked(both: Any, var: Array) -> _State:
        return (both, None, var) if state[1] is None else (*kernels.unpacked(both), var)

    def several(_: int, carry: tuple) -> tuple:
        return packed(*layers(unpacked(*carry), _UNROLLED))

    state = layers(state, rest)
    if rounds:
        state = unpacked(*jax.lax.fori_loop(0, rounds, several, packed(*state)))
    gap, ntk, var = state
    if ntk is not None:
        ntk = ntk * _outer(kernel, root(var))
    one, two = _split(kernel, var)
    return kernel.replace(correlation=1 - gap, var1=one, var2=two, ntk=ntk)


def _variances(kernel: Kernel) -> Array:
    """Of both batches in a row, so that one program serves both."""
    return jnp.concatenate([kernel.var1.ravel(), kernel.var2.ravel()])


def _split(kernel: Kernel, x: Array) -> tuple[Array, Array]:
    one, two = x[: kernel.var1.size], x[kernel.var1.size :]
    return one.reshape(kernel.var1.shape), two.reshape(kernel.var2.shape)


def _outer(kernel: Kernel, x: Array) -> Array:
    one, two = kernels.views(*_split(kernel, x), kernel.diagonal_spatial)
    return one * two


def _difference(kernel: Kernel, x: Array) -> Array:
    one, two = kernels.views(*_split(kernel, x), kernel.diagonal_spatial)
    return one - two
