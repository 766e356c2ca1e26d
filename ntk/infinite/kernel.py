"""Joint second moments of a layer's activations over two batches of inputs.

Every operation on infinitely wide activations (`ntk.infinite.channels`) maps one `Kernel` to another. What is carried
is the normalised correlation, not the covariance: a coincident pair has correlation one to the last bit, so that
float32 loses nothing where a covariance would cancel.

    correlation = K(x1, x2) / sqrt(K(x1, x1) K(x2, x2)),    nngp = correlation sqrt(var1 var2)

One file: the fields, neural-tangents's names for them, and the layout of pairs of pixels in which both are kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ntk import show
from ntk.activations.elementary import root
from ntk.types import Array


def _static(**kwargs: Any) -> Any:
    return dataclasses.field(metadata={"static": True}, **kwargs)


@show.drawn
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, init=False, repr=False)
class Kernel:
    """Second moments of activations at two batches of inputs, in the infinite-width limit.

    N1, N2 are batch sizes, S the spatial shape (no axes for vectors). A pixel-pair array has every spatial axis
    twice, (N1, N2, H, H, W, W); if `diagonal_spatial`, only equal pixels are kept, (N1, N2, H, W).

    One is built by hand from covariances, `Kernel(nngp=, cov1=, cov2=, ntk=, ...)` with neural-tangents's names: cov2
    is None where both batches are the same. `k.replace(nngp=..., cov1=...)` changes them; `k * c` is the kernel of
    activations times c, `k + c` with independent ones of variance c^2 added, `k[idx]` of indexed activations.

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

    def __init__(self, *args: Any, **given: Any) -> None:
        if args:
            given |= dict(zip(_FIELDS, args, strict=False))
        if given.keys() & _COVARIANCES:
            given = _by_hand(given)
        unknown = sorted(given.keys() - set(_FIELDS))
        if unknown:
            raise TypeError(
                f"Kernel has no {unknown}; there are {sorted({*_FIELDS, *_COVARIANCES})}"
            )
        for field in dataclasses.fields(self):
            default = None if field.default is dataclasses.MISSING else field.default
            object.__setattr__(self, field.name, given.get(field.name, default))

    def _shown(self) -> dict[str, Any]:
        whole = all(hasattr(x, "shape") for x in (self.correlation, self.var1, self.var2))
        second = {"nngp": self.nngp} if whole else {"correlation": self.correlation}
        return second | {"ntk": self.ntk, "shape1": self.shape1, "shape2": self.shape2}

    def __repr__(self) -> str:
        return show.line("Kernel", self._shown())

    def _repr_html_(self) -> str:
        return show.table("Kernel", self._shown())

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
    def within(self) -> tuple[Array, Array]:
        """Covariances of all pixel pairs within each sample of both batches; a ValueError where they are not known."""
        if self.within1 is None or self.within2 is None:
            raise ValueError(
                "the covariances of all pixel pairs are not known: evaluate with diagonal_spatial=False"
            )
        return self.within1, self.within2

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
        """A copy with fields changed; nngp, cov1 and cov2 may be given too, and what is not given stays as it is."""
        if changes.keys() & {"cov1", "cov2"}:
            kept = {"nngp": self.nngp, "cov1": self.cov1, "cov2": self.cov2}
            same = changes.get("cov2", self.cov2) is None
            given = kept | {"coincident": self.coincident, "symmetric": same} | changes
            for name in ("mask1", "mask2", "ntk", "x1_is_x2", "diagonal_spatial"):
                given.setdefault(name, getattr(self, name))
            changes = _by_hand(given)
        elif "nngp" in changes:
            nngp = changes.pop("nngp")
            var1, var2 = changes.get("var1", self.var1), changes.get("var2", self.var2)
            diagonal = changes.get("diagonal_spatial", self.diagonal_spatial)
            changes["correlation"] = _correlation(nngp, var1, var2, diagonal)
        for name in {"x1_is_x2", "diagonal_batch", "is_reversed"} & changes.keys():
            if changes.pop(name) != getattr(self, name):
                raise ValueError(f"{name} of a Kernel follows from its arrays, and is not changed")
        return dataclasses.replace(self, **changes)

    def asdict(self) -> dict[str, Any]:
        """Fields by neural-tangents's names, from which `Kernel(**k.asdict())` is the same kernel."""
        return {name: getattr(self, name) for name in _NAMES}

    def astuple(self) -> tuple[Any, ...]:
        """The values of `asdict`."""
        return tuple(self.asdict().values())

    def slice(self, rows: slice, columns: slice) -> Kernel:
        """The kernel of some samples of each batch."""
        covs = self.cov1[rows], (self.cov1 if self.cov2 is None else self.cov2)[columns]

        def cut(x: Array | None, at: slice) -> Array | None:
            index = [slice(None)] * (0 if x is None else x.ndim)
            index[self.batch_axis : self.batch_axis + 1] = [at]
            return None if x is None else x[tuple(index)]

        ntk = self.ntk
        if ntk is not None and jnp.ndim(ntk):
            ntk = ntk[rows, columns]
        shapes = [
            (*s[: self.batch_axis], c.shape[0], *s[self.batch_axis + 1 :])
            for s, c in zip((self.shape1, self.shape2), covs)
        ]
        out = self.replace(
            nngp=self.nngp[rows, columns],
            ntk=ntk,
            cov1=covs[0],
            cov2=covs[1],
            coincident=None if self.coincident is None else self.coincident[rows, columns],
            mask1=cut(self.mask1, rows),
            mask2=cut(self.mask2, columns),
        )
        return dataclasses.replace(out, shape1=shapes[0], shape2=shapes[1])

    def dot_general(self, other1: Any, other2: Any, is_lhs: bool, dimension_numbers: Any) -> Kernel:
        """The kernel of `jax.lax.dot_general` of the activations and a constant, the same for both batches."""
        # Layers are built on kernels: an import on top would be a circle.
        from ntk.stax.fixed import DotGeneral

        if other1 is None and other2 is None:
            return self
        if other1 is not other2:
            raise ValueError("other1 is not other2; a constant is the same for both batches")
        side = {"lhs" if is_lhs else "rhs": other1}
        axes = {"batch_axis": self.batch_axis, "channel_axis": self.channel_axis}
        return DotGeneral(**side, dimension_numbers=dimension_numbers, **axes).kernel_fn.rule(self)

    # Second moments and J J^T are quadratic in the activations.
    def __mul__(self, number: Any) -> Kernel:
        return self._moved(lambda x: number**2 * x, lambda x: number**2 * x)

    __rmul__ = __mul__

    def __truediv__(self, number: Any) -> Kernel:
        return self * (1 / number)

    # What is added is not trained: J J^T stays.
    def __add__(self, number: Any) -> Kernel:
        return self._moved(lambda x: number**2 + x, lambda x: x)

    __sub__ = __add__

    # Signs of activations leave second moments as they are.
    def __neg__(self) -> Kernel:
        return self

    __pos__ = __neg__

    def _moved(self, covariance: Any, tangent: Any) -> Kernel:
        new = {"nngp": covariance(self.nngp), "cov1": covariance(self.cov1)}
        new["cov2"] = None if self.cov2 is None else covariance(self.cov2)
        return self.replace(**new, ntk=None if self.ntk is None else tangent(self.ntk))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            return getattr(self, index)
        from ntk.stax.fixed import Index

        axes = {"batch_axis": self.batch_axis, "channel_axis": self.channel_axis}
        return Index(index, **axes).kernel_fn.rule(self)


_FIELDS = tuple(field.name for field in dataclasses.fields(Kernel))
_COVARIANCES = {"nngp", "cov1", "cov2", "x1_is_x2", "diagonal_batch", "is_reversed"}
_NAMES = (
    *("nngp", "ntk", "cov1", "cov2", "x1_is_x2", "is_gaussian", "is_reversed", "is_input"),
    *("diagonal_batch", "diagonal_spatial", "shape1", "shape2", "batch_axis", "channel_axis"),
    *("mask1", "mask2"),
)


def _by_hand(given: dict[str, Any]) -> dict[str, Any]:
    """Our fields from covariances by neural-tangents's names."""
    given = dict(given)
    nngp, cov1, cov2 = given.pop("nngp", None), given.pop("cov1", None), given.pop("cov2", None)
    same, reversed_ = given.pop("x1_is_x2", None), given.pop("is_reversed", False)
    if nngp is None or cov1 is None:
        raise ValueError("a Kernel is built of at least nngp= and cov1=")
    if not given.pop("diagonal_batch", True):
        raise ValueError("diagonal_batch=False: give cov1 and cov2 as one covariance per sample")
    diagonal, ntk = given.get("diagonal_spatial", False), given.get("ntk")
    if reversed_ and not diagonal:
        nngp, ntk = _reversed(nngp, 2), None if ntk is None else _reversed(ntk, 2)
        cov1, cov2 = _reversed(cov1, 1), None if cov2 is None else _reversed(cov2, 1)
    pairs = not diagonal and jnp.ndim(cov1) > 1
    other = cov1 if cov2 is None else cov2
    var1, var2 = (pixel_diagonal(c, 1) if pairs else c for c in (cov1, other))
    if cov2 is None and "coincident" not in given:
        given["coincident"] = jnp.eye(jnp.shape(nngp)[0], dtype=bool)
    if same is False and cov2 is None:
        raise ValueError("cov2 is None and x1_is_x2 is False: give the second batch's covariance")
    fields = {
        "correlation": _correlation(nngp, var1, var2, diagonal),
        "var1": var1,
        "var2": var2,
        "ntk": ntk,
        "within1": cov1 if pairs else None,
        "within2": other if pairs else None,
        "symmetric": cov2 is None,
    }
    return given | fields


def _correlation(nngp: Array, var1: Array, var2: Array, diagonal_spatial: bool) -> Array:
    one, two = views(inverse_sqrt(var1), inverse_sqrt(var2), diagonal_spatial)
    return nngp * (one * two)


def _reversed(x: Array, lead: int) -> Array:
    """(..., W, W, H, H) -> (..., H, H, W, W)."""
    pairs = [(axis, axis + 1) for axis in range(lead, jnp.ndim(x), 2)]
    return jnp.transpose(x, (*range(lead), *(a for pair in reversed(pairs) for a in pair)))


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


def mapped(f: Callable[..., Array], kernel: Kernel, *others: Kernel, moves: bool = False) -> Kernel:
    """The kernel each of whose moments is f of that moment: f(x, *others' x, lead, axes).

    Args:
        f: takes an array whose positions begin at axis ``lead``, 2 for moments of the batches and 1 for those within
            one, and stand there ``axes`` times: 2 for pairs of positions, 1 where only equal ones are kept. It never
            sees a moment that is not known, nor the number zero that an `ntk` is before the first trainable layer.
        kernel: the rest of the new kernel is as in this one.
        *others: kernels of the same batches; a moment that one of them does not know is not known.
        moves: f only moves or selects entries, and acts on correlations as it does on covariances: nothing is rounded.
    """
    every = (kernel, *others)

    def one(name: str, lead: int, axes: int) -> Array | None:
        xs = [getattr(k, name) for k in every]
        if any(x is None for x in xs):
            return None
        if name == "ntk":
            if all(jnp.ndim(x) == 0 for x in xs):
                return xs[0]
            xs = [jnp.broadcast_to(x, k.correlation.shape) for x, k in zip(xs, every)]
        return f(*xs, lead=lead, axes=axes)

    both = 1 if kernel.diagonal_spatial else 2
    second = "correlation" if moves else "nngp"
    out = kernel.replace(
        **{second: one(second, 2, both)}, var1=one("var1", 1, 1), var2=one("var2", 1, 1)
    )
    within = {name: one(name, 1, 2) for name in ("within1", "within2")}
    return out.replace(ntk=one("ntk", 2, both), **within)


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
    if kernel.coincident is None:
        raise ValueError("the batches differ: no entry is of one sample with itself")
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
