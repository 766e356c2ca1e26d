"""Entries of layers that sum over a fixed number of weights, and what linear maps of positions do to them.

Such a layer is z = sum_m a_m w_m: its entries a_m are the inputs of the sample, or one for a bias, times the standard
deviation of the weight; see `ntk.infinite.true_law`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import overload

import jax
import jax.numpy as jnp
import numpy as np

from ntk.infinite import weight_laws
from ntk.infinite.kernel import Array
from ntk.infinite.weight_laws import NORMAL, Standard
from ntk.trace.coordinates import Refusal


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Entries:
    """Entries of a process in both batches.

    Attributes:
        one: (N1, *S, d), d entries for each position.
        two: (N2, *S, d).
        laws: law and number of the weights, in order; d in all.
        rest: whether a Gaussian process is added whose entries are not here.
        shared: whether one weight that is not normal is the same for every sample, as a random bias.
    """

    one: Array
    two: Array
    laws: tuple[tuple[Standard, int], ...] = dataclasses.field(metadata={"static": True})
    rest: bool = dataclasses.field(default=False, metadata={"static": True})
    shared: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def kurtosis(self) -> np.ndarray:
        """Excess kurtosis of each weight, (d,)."""
        return np.concatenate(
            [np.full(n, weight_laws.excess_kurtosis(law)) for law, n in self.laws]
        )

    @property
    def normal(self) -> bool:
        """Whether all weights are."""
        return all(law == NORMAL for law, _ in self.laws)


def of_weights(one: Array, two: Array, law: Standard, scale: float) -> Entries:
    """Entries of data times weights of a standard deviation."""
    return Entries(scale * one, scale * two, ((law, one.shape[-1]),))


@overload
def mapped(entries: Entries, maps: Sequence[Callable[[Array], Array]]) -> Entries: ...
@overload
def mapped(entries: None, maps: Sequence[Callable[[Array], Array]]) -> None: ...
def mapped(entries: Entries | None, maps: Sequence[Callable[[Array], Array]]) -> Entries | None:
    """Entries after a map of (N, d, *S) in each batch."""
    if entries is None:
        return None

    def one(x: Array, run: Callable) -> Array:
        return jnp.moveaxis(run(jnp.moveaxis(x, -1, 1)), 1, -1)

    return dataclasses.replace(
        entries, one=one(entries.one, maps[0]), two=one(entries.two, maps[1])
    )


def scaled(entries: Entries | None, factors: Sequence[Array]) -> Entries | None:
    """Entries times numbers (N, *S) in each batch."""
    if entries is None:
        return None
    one, two = (x * f[..., None] for x, f in zip((entries.one, entries.two), factors))
    return dataclasses.replace(entries, one=one, two=two)


def added(parts: Sequence[Entries | None]) -> Entries | None:
    """Entries of a sum of independent processes; None for one without entries, which must be Gaussian."""
    known = [p for p in parts if p is not None]
    if not known or (all(p.normal for p in known) and len(known) < len(parts)):
        return None
    sides = []
    for arrays in ([p.one for p in known], [p.two for p in known]):
        shape = jnp.broadcast_shapes(*(a.shape[:-1] for a in arrays))
        sides.append(
            jnp.concatenate([jnp.broadcast_to(a, (*shape, a.shape[-1])) for a in arrays], -1)
        )
    # Parts without entries are Gaussian: their variance counts in z, and their cumulants are none.
    rest = len(known) < len(parts) or any(p.rest for p in known)
    shared = any(p.shared and not p.normal for p in known)
    if rest and shared:
        raise Refusal(
            "no infinite-width kernel: a random parameter of each unit that is not normal at initialisation (a uniform "
            "bias) is added to a sum over units: the law of one weight next to a Gaussian has a rule in layers that "
            "read the data only. Let its initializer be normal"
        )
    one, two = sides
    return Entries(one, two, tuple(law for p in known for law in p.laws), rest, shared)


def patches(
    one: Array,
    two: Array,
    law: Standard,
    window: Sequence[int],
    strides: Sequence[int],
    padding: Sequence,
    scale: float,
    dilation: Sequence[int],
) -> Entries:
    """Entries of a convolution of data (N, *S, C): those of each window."""
    count = len(window)
    if count > 3:
        raise Refusal(
            "a convolution over more than three axes of data with weights that are not normal at initialisation: use "
            'a normal initializer, nn.initializers.variance_scaling(1.0, "fan_in", "normal")'
        )
    letters = "DHW"[-count:]
    numbers = ("N" + letters + "C", letters + "IO", "N" + letters + "C")

    def side(x: Array) -> Array:
        return jax.lax.conv_general_dilated_patches(
            x,
            tuple(window),
            tuple(strides),
            list(padding),
            rhs_dilation=tuple(dilation),
            dimension_numbers=numbers,
            precision=jax.lax.Precision.HIGHEST,
        )

    return of_weights(side(one), side(two), law, scale)


def copied(entries: Entries | None, size: int) -> Entries | None:
    """Entries of `size` units, each with weights of its own, in the last place of the positions."""
    if entries is None:
        return None
    sides = []
    for x in (entries.one, entries.two):
        # Copy i reads weights of block i alone: d entries become size x d, with zeros elsewhere.
        eye = jnp.eye(size, dtype=x.dtype)
        eye = eye.reshape((1,) * (x.ndim - 1) + (size, size, 1))
        sides.append((x[..., None, None, :] * eye).reshape(*x.shape[:-1], size, -1))
    return dataclasses.replace(entries, one=sides[0], two=sides[1], laws=entries.laws * size)
