"""Joint second moments of a layer's activations over two batches of inputs.

Every operation on infinitely wide activations (`ntk.rules`) maps one `Kernel` to another. What is carried is
the normalised correlation, not the covariance: a coincident pair has correlation one to the last bit, so that
float32 loses nothing where a covariance would cancel.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ntk.arcs import root

Array = jax.Array


def _static(**kwargs: Any) -> Any:
    return dataclasses.field(metadata={"static": True}, **kwargs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kernel:
    """Second moments of activations at two batches of inputs, in the infinite-width limit.

    N1, N2 are batch sizes, S the spatial shape (no axes for vectors). A pixel-pair array has every spatial axis
    twice, (N1, N2, H, H, W, W); if `diagonal_spatial`, only equal pixels are kept, (N1, N2, H, W).

    Attributes:
        correlation: cosine of the angle between activations, in [-1, 1]; pixel pairs of (N1, N2).
        var1: mean square of the first batch's activations, (N1, *S).
        var2: the same of the second batch, (N2, *S).
        ntk: neural tangent kernel, shaped as `correlation`, a scalar zero before the first trainable layer, or
            None where it was not asked for.
        within1: covariance between pixels of one input of the first batch, (N1, H, H, W, W), or None where no
            later layer needs it.
        within2: the same of the second batch.
        coincident: (N1, N2), True where both inputs are the same sample; None if the batches are unrelated.
        mask1: True where an input is hidden, (N1, *S), or None.
        mask2: the same of the second batch.
        shape1: shape of the first batch's activations, as `apply_fn` would return.
        shape2: the same of the second batch.
        is_gaussian: the channels are independent mean-zero Gaussians.
        is_input: no layer with random weights has been applied yet.
        diagonal_spatial: only equal pixels are kept.
        symmetric: the second batch was left out, so it equals the first.
        batch_axis: position of the batch in the shapes.
        channel_axis: position of the channels in the shapes.
    """

    correlation: Array
    var1: Array
    var2: Array
    ntk: Array | None
    within1: Array | None = None
    within2: Array | None = None
    coincident: Array | None = None
    mask1: Array | None = None
    mask2: Array | None = None
    shape1: tuple[int, ...] = _static(default=())
    shape2: tuple[int, ...] = _static(default=())
    is_gaussian: bool = _static(default=False)
    is_input: bool = _static(default=False)
    diagonal_spatial: bool = _static(default=False)
    symmetric: bool = _static(default=False)
    batch_axis: int = _static(default=0)
    channel_axis: int = _static(default=1)

    @property
    def nngp(self) -> Array:
        """Covariance between the two batches, shaped as `correlation`."""
        one, two = views(root(self.var1), root(self.var2), self.diagonal_spatial)
        return self.correlation * (one * two)

    @property
    def cov1(self) -> Array:
        """Covariance within each input of the first batch: all pixel pairs where known, else equal pixels."""
        return self.var1 if self.within1 is None else self.within1

    @property
    def cov2(self) -> Array | None:
        """The same of the second batch; None if it is the first."""
        if self.symmetric:
            return None
        return self.var2 if self.within2 is None else self.within2

    @property
    def x1_is_x2(self) -> bool:
        """Whether both batches are the same."""
        return self.coincident is not None

    @property
    def diagonal_batch(self) -> bool:
        """Always True: `cov1` and `cov2` hold one covariance per sample."""
        return True

    @property
    def is_reversed(self) -> bool:
        """Always False: spatial axes keep the order of the inputs."""
        return False

    def replace(self, **changes: Any) -> Kernel:
        """A copy with fields changed; `nngp` may be given in place of `correlation`."""
        if "nngp" in changes:
            nngp = changes.pop("nngp")
            var1, var2 = changes.get("var1", self.var1), changes.get("var2", self.var2)
            diagonal = changes.get("diagonal_spatial", self.diagonal_spatial)
            one, two = views(inverse_sqrt(var1), inverse_sqrt(var2), diagonal)
            changes["correlation"] = nngp * (one * two)
        return dataclasses.replace(self, **changes)

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


def inverse_sqrt(x: Array) -> Array:
    """1 / sqrt(x), and 0 where x is 0: a vanishing activation has correlation 0 with every other."""
    positive = x > 0
    return jnp.where(positive, jax.lax.rsqrt(jnp.where(positive, x, 1)), 0)


def packed(one: Array, two: Array) -> Array | tuple[Array, Array]:
    """Both as one complex array, where there is one for them.

    XLA's CPU backend compiles every array that a loop carries by itself, and would compute what the two share
    twice: packed, a layer takes less than half the time.
    """
    if (
        one.shape == two.shape
        and one.dtype == two.dtype
        and one.dtype in (jnp.float32, jnp.float64)
    ):
        return jax.lax.complex(one, two)
    return one, two


def unpacked(both: Array | tuple[Array, Array]) -> tuple[Array, Array]:
    """Inverse of `packed`."""
    return both if isinstance(both, tuple) else (jnp.real(both), jnp.imag(both))


def _spread(x: Array, side: int, lead: int) -> Array:
    """(N, H, W) -> (N, H, 1, W, 1) for side 0, (N, 1, H, 1, W) for side 1."""
    shape = list(x.shape[:lead])
    for size in x.shape[lead:]:
        shape += [size, 1] if side == 0 else [1, size]
    return x.reshape(shape)


def views(x1: Array, x2: Array, diagonal_spatial: bool) -> tuple[Array, Array]:
    """Per-sample arrays (N1, *S) and (N2, *S), shaped to broadcast against pixel pairs of (N1, N2)."""
    one, two = x1[:, None], x2[None]
    if diagonal_spatial:
        return one, two
    return _spread(one, 0, 2), _spread(two, 1, 2)


def views_within(x: Array) -> tuple[Array, Array]:
    """A per-sample array (N, *S) twice, shaped to broadcast against pixel pairs of one sample."""
    return _spread(x, 0, 1), _spread(x, 1, 1)


def pixel_diagonal(x: Array, lead: int) -> Array:
    """Equal pixels of a pixel-pair array: (..., H, H, W, W) -> (..., H, W)."""
    for _ in range((x.ndim - lead) // 2):
        x = jnp.diagonal(x, axis1=lead, axis2=lead + 1)  # the diagonal is appended as the last axis
    return x


def same_pixel(shape: tuple[int, ...]) -> Array:
    """True at equal pixels, for a pixel-pair shape (H, H, W, W)."""
    same = jnp.ones((1,) * len(shape), bool)
    for axis in range(0, len(shape), 2):
        eye = jnp.eye(shape[axis], shape[axis + 1], dtype=bool)
        same = same & eye.reshape((1,) * axis + eye.shape + (1,) * (len(shape) - axis - 2))
    return same


def same_entry(kernel: Kernel) -> Array:
    """True where both sides of a covariance are the same pixel of the same sample; shaped as `correlation`."""
    shape = kernel.correlation.shape
    same = kernel.coincident.reshape(shape[:2] + (1,) * (len(shape) - 2))
    return same if kernel.diagonal_spatial else same & same_pixel(shape[2:])[None, None]


def pixel_mask(kernel: Kernel, mask: Array) -> Array:
    """A mask in the layout of the activations, as (N, *S), for the layout of `kernel`.

    Raises:
        ValueError: channels are hidden separately.
    """
    if mask.shape[kernel.channel_axis] != 1:
        raise ValueError(
            f"a mask of shape {mask.shape} hides channels separately (axis {kernel.channel_axis}); "
            "in an infinitely wide network a position is hidden with all its channels"
        )
    mask = jnp.squeeze(jnp.moveaxis(mask, (kernel.batch_axis, kernel.channel_axis), (0, -1)), -1)
    return mask
