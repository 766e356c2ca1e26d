"""The kernel function of a network of rules: inputs checked, one triangle where both batches are the same, tiles.

A kernel entry depends on its two samples alone, so that the pairs of samples are cut into tiles that fit the
caches, and everything between the layers stays there.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk import kernel as kernels
from ntk.kernel import Array, Kernel

TILE = {"cpu": 2**16}
"""Entries (pairs of samples times pairs of pixels) of one tile, by platform."""
TILE_ELSEWHERE = 2**24

_BETWEEN = ("correlation", "nngp", "ntk", "coincident")
_FIRST = ("var1", "cov1", "within1", "mask1")
_SECOND = ("var2", "cov2", "within2", "mask2")
_STATIC = (
    "x1_is_x2",
    "is_gaussian",
    "is_reversed",
    "is_input",
    "diagonal_batch",
    "diagonal_spatial",
    "shape1",
    "shape2",
    "batch_axis",
    "channel_axis",
)
NAMES = (*_BETWEEN, *_FIRST, *_SECOND, *_STATIC)
_FIELDS = (
    "correlation",
    "ntk",
    "coincident",
    "var1",
    "within1",
    "mask1",
    "var2",
    "within2",
    "mask2",
)


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


class _Plan(NamedTuple):
    """What of an evaluation is known before it is compiled."""

    names: tuple[str, ...]
    need: Need
    ntk: bool
    symmetric: bool
    coincident: bool
    batch_axis: int
    channel_axis: int
    context: tuple[tuple[str, Any], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class KernelFn:
    """Kernel of an infinitely wide network; a function of inputs, or of a `Kernel` of the activations below it.

    Attributes:
        rule: maps the `Kernel` of the input (a list of them for several inputs) to that of the output.
        needs: maps what must be known of the output to what must be known of the input.
        spec: equal for layers that compute the same thing; repeated blocks of a network are found by it.
        axes: batch and channel axis of the input, or None if any will do.
        scalar: what a layer does to each correlation by itself: a `ntk.duals.Dual`, or ("affine", W_std) for an
            affine map without bias in the NTK parametrization; None for every other layer.
    """

    rule: Callable[..., Any]
    needs: Callable[[Need], Need]
    spec: Hashable
    axes: tuple[int, int] | None = None
    scalar: Any = None

    def __call__(
        self,
        x1_or_kernel: Any,
        x2: Any = None,
        get: str | tuple[str, ...] | None = None,
        *,
        pattern: tuple[Any, Any] | None = None,
        mask_constant: float | None = None,
        diagonal_batch: bool | None = None,
        diagonal_spatial: bool | None = None,
        batch_axis: int | None = None,
        channel_axis: int | None = None,
        **context: Any,
    ) -> Any:
        """Second moments of the network's outputs over initialisations, at infinite width.

        Args:
            x1_or_kernel: first batch of inputs, or the `Kernel` of another network whose output feeds this one; a
                list or tuple of them for a network of several inputs.
            x2: second batch; None means the first. It may have another number of samples.
            get: "nngp", "ntk", another field of `Kernel`, or a tuple of names; None for the whole `Kernel`.
            pattern: graphs for `Aggregate`, one for each batch.
            mask_constant: value of inputs that marks them as hidden, such as padding; nan is allowed.
            diagonal_batch: cov1 and cov2 hold one covariance per sample; True or None.
            diagonal_spatial: whether covariances between equal pixels alone are kept. By default, what the
                network needs, and all pixel pairs in the result.
            batch_axis: position of the batch in the inputs, where the first layer does not say.
            channel_axis: position of the channels.
            **context: passed to every layer.

        Returns:
            An array, a namedtuple of them, or a `Kernel`. NNGP is E[f(x1) f(x2)] of one output; the NTK is the
            kernel of gradient flow on all parameters.

        Raises:
            ValueError: inputs are empty, complex, not finite, of mismatched shapes; an unknown name.

        Source: Lee et al. (2018); Jacot et al. (2018); Novak et al. (2020).
        """
        names = _names(get)
        context["pattern"] = pattern
        leaves = jax.tree.leaves(x1_or_kernel, is_leaf=lambda x: isinstance(x, Kernel))
        if leaves and all(isinstance(leaf, Kernel) for leaf in leaves):
            return _select(self.rule(x1_or_kernel, **context), get)
        x1, mask1 = _checked(x1_or_kernel, mask_constant, "x1")
        symmetric = x2 is None
        x2, mask2 = (x1, mask1) if symmetric else _checked(x2, mask_constant, "x2")
        _check_pair(x1, x2, self.axes)
        if diagonal_batch is False and {"cov1", "cov2"} & set(names or ("cov1",)):
            raise ValueError(
                "diagonal_batch=False asks for covariances between all samples of one batch: "
                "call kernel_fn(x1, None, 'nngp') for them, and keep diagonal_batch unset here"
            )
        batch, channel = self.axes or (0, -1)
        plan = _Plan(
            names,
            self._need(names, diagonal_spatial),
            get is None or "ntk" in names,
            symmetric,
            symmetric or _coincident(x1, x2),
            batch if batch_axis is None else batch_axis,
            channel if channel_axis is None else channel_axis,
            tuple(sorted((k, v) for k, v in context.items() if k != "pattern")),
        )
        return _chosen(self._compiled(plan, x1, x2, mask1, mask2, pattern), get)

    @functools.cached_property
    def _compiled(self) -> Callable[..., Any]:
        """Compiled once per shapes and plan; lives as long as the network."""
        return jax.jit(functools.partial(_evaluate, self.rule), static_argnums=0)

    def _need(self, names: tuple[str, ...], diagonal_spatial: bool | None) -> Need:
        covariance = {"cov1", "cov2", "var1", "var2", "within1", "within2"}
        variance = 0
        if not names or covariance & set(names):
            variance = 1 if diagonal_spatial else 2
        need = self.needs(Need(not diagonal_spatial, variance))
        return need if diagonal_spatial is None else need._replace(pairs=not diagonal_spatial)


def _names(get: str | tuple[str, ...] | None) -> tuple[str, ...]:
    names = () if get is None else (get,) if isinstance(get, str) else tuple(get)
    for name in names:
        if name not in NAMES:
            raise ValueError(
                f"{name!r} is not a kernel; get may be None or any of {', '.join(sorted(NAMES))}"
            )
    return names


def _select(out: Any, get: str | tuple[str, ...] | None) -> Any:
    """The fields asked for of a kernel, or of each of a list of them."""
    if get is None:
        return out
    if not isinstance(out, Kernel):
        return type(out)(_select(k, get) for k in out)
    if isinstance(get, str):
        return getattr(out, get)
    return collections.namedtuple("AnalyticKernel", get)(*(getattr(out, name) for name in get))


def _checked(x: Any, mask_constant: float | None, name: str) -> tuple[Any, Any]:
    """Inputs as floating-point arrays with hidden entries zero, and the masks (None without mask_constant)."""
    if isinstance(x, list | tuple):
        pairs = [_checked(part, mask_constant, f"{name}[{i}]") for i, part in enumerate(x)]
        return tuple(p[0] for p in pairs), tuple(p[1] for p in pairs)
    if not isinstance(x, jax.Array | np.ndarray):
        raise ValueError(
            f"{name} is a {type(x).__name__}; it must be an array, or a list of arrays"
        )
    if jnp.iscomplexobj(x):
        raise ValueError(
            f"{name} is complex ({x.dtype}); stack real and imaginary parts as channels"
        )
    if x.ndim < 2 or 0 in x.shape:
        raise ValueError(
            f"{name} has shape {x.shape}; it needs a batch and a channel axis, and no empty axis"
        )
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(float)
    elif x.dtype.itemsize < 4:
        x = x.astype(jnp.float32)
    mask = None
    if mask_constant is not None:
        mask = jnp.isnan(x) if math.isnan(mask_constant) else x == mask_constant
        x = jnp.where(mask, 0, x)
    if _truth(jnp.isfinite(x).all()) is False:
        raise ValueError(
            f"{name} has entries that are not finite; remove them, or hide them with mask_constant"
        )
    return x, mask


def _check_pair(x1: Any, x2: Any, axes: tuple[int, int] | None) -> None:
    if isinstance(x1, tuple) or isinstance(x2, tuple):
        if not (isinstance(x1, tuple) and isinstance(x2, tuple) and len(x1) == len(x2)):
            raise ValueError("x1 and x2 must be lists of the same number of inputs")
        for a, b in zip(x1, x2):
            _check_pair(a, b, axes)
        return
    batch = (axes or (0, -1))[0] % x1.ndim
    rest1, rest2 = (x.shape[:batch] + x.shape[batch + 1 :] for x in (x1, x2))
    if rest1 != rest2:
        raise ValueError(
            f"samples of x1 have shape {rest1}, and those of x2 {rest2}; they must be the same, channels included"
        )


def _coincident(x1: Any, x2: Any) -> bool:
    """Whether both batches hold the same samples in the same order; False where they are traced."""
    if isinstance(x1, tuple):
        return all(_coincident(a, b) for a, b in zip(x1, x2))
    if x1 is x2:
        return True
    return x1.shape == x2.shape and _truth(jnp.array_equal(x1, x2)) is True


def _truth(x: Array) -> bool | None:
    """A boolean, or None where it is not known before the run."""
    try:
        return bool(x)
    except jax.errors.ConcretizationTypeError:
        return None


class _Result(NamedTuple):
    """A kernel without its arrays, and the arrays that were asked for."""

    kernel: Kernel
    arrays: dict[str, Array]


def _result(kernel: Kernel, names: tuple[str, ...]) -> _Result:
    names = [name for name in (names or _FIELDS) if name not in _STATIC]
    arrays = {name: getattr(kernel, name) for name in names}
    empty = dict.fromkeys(_FIELDS)
    if kernel.is_input:
        empty["ntk"] = kernel.ntk
    if kernel.coincident is not None:
        empty["coincident"] = jnp.ones((), bool)
    return _Result(dataclasses.replace(kernel, **empty), arrays)


def _chosen(out: Any, get: str | tuple[str, ...] | None) -> Any:
    if not isinstance(out, _Result):
        return type(out)(_chosen(part, get) for part in out)
    if get is None:
        return dataclasses.replace(out.kernel, **out.arrays)

    def field(name: str) -> Any:
        return out.arrays[name] if name in out.arrays else getattr(out.kernel, name)

    if isinstance(get, str):
        return field(get)
    return collections.namedtuple("AnalyticKernel", get)(*map(field, get))


def _evaluate(rule: Callable[..., Any], plan: _Plan, x1, x2, mask1, mask2, pattern) -> Any:
    def network(x1, x2, mask1, mask2, pattern, coincident) -> Any:
        parts = zip(*(v if isinstance(x1, tuple) else (v,) for v in (x1, x2, mask1, mask2)))
        inputs = tuple(inputs_to_kernel(*part, coincident, plan) for part in parts)
        out = rule(
            inputs if isinstance(x1, tuple) else inputs[0], pattern=pattern, **dict(plan.context)
        )
        return jax.tree.map(
            lambda k: _result(k, plan.names), out, is_leaf=lambda k: isinstance(k, Kernel)
        )

    first, second = (x[0] if isinstance(x, tuple) else x for x in (x1, x2))
    batch = plan.batch_axis % first.ndim
    sizes = first.shape[batch], second.shape[batch]
    tile = _tile_sizes(sizes, first, batch, plan)
    data = (x1, x2, mask1, mask2, pattern)
    if tile is None:
        return network(*data, jnp.eye(sizes[0], dtype=bool) if plan.coincident else None)
    return _tiled(network, plan, batch, sizes, tile, data)


def _tile_sizes(
    sizes: tuple[int, int], x: Array, batch: int, plan: _Plan
) -> tuple[int, int] | None:
    """Samples of each batch in a tile; None if everything is one tile."""
    channel = plan.channel_axis % x.ndim
    area = math.prod(size for axis, size in enumerate(x.shape) if axis not in (batch, channel))
    entries = area**2 if plan.need.pairs else area
    target = TILE.get(jax.default_backend(), TILE_ELSEWHERE)
    if plan.need.whole or sizes[0] * sizes[1] * entries <= target:
        return None
    # With pixel pairs within each sample a tile of one pair would do three times the work.
    least = 4 if plan.need.variance == 2 else 1
    side = max(math.isqrt(target // entries), least)
    rows = _even(sizes[0], side)
    columns = rows if plan.coincident else _even(sizes[1], max(target // entries // rows, least))
    return None if (rows, columns) == sizes else (rows, columns)


def _even(size: int, most: int) -> int:
    """Largest of equal parts of at most `most` that cover `size`: nearly equal ones overlap least."""
    most = min(most, size)
    return -(-size // -(-size // most))


def _tiled(
    network: Callable,
    plan: _Plan,
    batch: int,
    sizes: tuple[int, int],
    tile: tuple[int, int],
    data: tuple,
) -> Any:
    """Runs `network` on tiles of samples and puts the results together.

    The last tile of a row starts earlier instead of being smaller, so that all have one shape.
    """
    rows, columns = tile
    counts = [-(-size // side) for size, side in zip(sizes, tile)]
    starts = [
        [min(i * side, size - side) for i in range(n)] for size, side, n in zip(sizes, tile, counts)
    ]
    upper = plan.symmetric or plan.coincident
    order = [(i, j) for i in range(counts[0]) for j in range(counts[1]) if not upper or j >= i]
    where = jnp.array([(starts[0][i], starts[1][j]) for i, j in order], jnp.int32)
    x1, x2, mask1, mask2, pattern = data
    graph1, graph2 = (None, None) if pattern is None else pattern

    def cut(tree: Any, start: Array, size: int, axis: int) -> Any:
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis), tree)

    def one(i: Array, j: Array) -> Any:
        graphs = None if pattern is None else (cut(graph1, i, rows, 0), cut(graph2, j, columns, 0))
        coincident = None
        if plan.coincident:
            coincident = (i + jnp.arange(rows))[:, None] == (j + jnp.arange(columns))[None]
        return network(
            cut(x1, i, rows, batch),
            cut(x2, j, columns, batch),
            cut(mask1, i, rows, batch),
            cut(mask2, j, columns, batch),
            graphs,
            coincident,
        )

    whole = jax.eval_shape(
        network,
        *data,
        jax.ShapeDtypeStruct(sizes, bool) if plan.coincident else None,
    )
    is_result = functools.partial(_is, _Result)
    frames = jax.tree.leaves(whole, is_leaf=is_result)

    def body(step: Array, outs: list[dict[str, Array]]) -> list[dict[str, Array]]:
        i, j = where[step, 0], where[step, 1]
        tiles = jax.tree.leaves(one(i, j), is_leaf=is_result)
        # Without the barrier each of the writes would compute the tile again.
        tiles = jax.lax.optimization_barrier([t.arrays for t in tiles])
        return [
            {name: _written(out[name], new[name], name, i, j, frame.kernel, upper) for name in out}
            for out, new, frame in zip(outs, tiles, frames)
        ]

    zeros = [jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), frame.arrays) for frame in frames]
    outs = jax.lax.fori_loop(0, len(order), body, zeros)
    filled = [
        _Result(jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), frame.kernel), out)
        for frame, out in zip(frames, outs)
    ]
    return jax.tree.unflatten(jax.tree.structure(whole, is_leaf=is_result), filled)


def _is(kind: type, x: Any) -> bool:
    return isinstance(x, kind)


def _written(
    out: Array | None, new: Array | None, name: str, i: Array, j: Array, kernel: Kernel, upper: bool
) -> Array | None:
    """`out` with a tile at samples i, j; with `upper` also its mirror image at j, i."""
    if out is None:
        return None
    if out.ndim == 0:
        return new
    if name not in _BETWEEN:
        axis = kernel.batch_axis if name.startswith("mask") else 0
        return jax.lax.dynamic_update_slice_in_dim(out, new, i if name in _FIRST else j, axis)
    rest = (jnp.zeros((), i.dtype),) * (out.ndim - 2)
    out = jax.lax.dynamic_update_slice(out, new, (i, j, *rest))
    if upper:
        mirror = jax.lax.dynamic_update_slice(out, _mirror(new, kernel), (j, i, *rest))
        out = mirror
    return out


def _mirror(x: Array, kernel: Kernel) -> Array:
    order = [1, 0]
    for axis in range(2, x.ndim):
        order.append(axis if kernel.diagonal_spatial else axis ^ 1)
    return jnp.transpose(x, order)


def inputs_to_kernel(
    x1: Array,
    x2: Array,
    mask1: Array | None,
    mask2: Array | None,
    coincident: Array | None,
    plan: _Plan,
) -> Kernel:
    """Moments of the data: inner products over channels, divided by their number.

    Args:
        x1: first batch.
        x2: second batch.
        mask1: True where hidden (the channels with all or none of their position), or None.
        mask2: the same of the second batch.
        coincident: (N1, N2), where the samples are the same; or None.
        plan: axes, and what the network needs.
    """
    batch, channel = plan.batch_axis % x1.ndim, plan.channel_axis % x1.ndim
    masks = [None if m is None else jnp.all(m, channel, keepdims=True) for m in (mask1, mask2)]
    units, norms = [], []
    for x in (x1, x2):
        x = jnp.moveaxis(x, (batch, channel), (0, -1))
        norms.append(jnp.sum(x * x, -1))
        units.append(x * kernels.inverse_sqrt(norms[-1])[..., None])
    width, pixels = x1.shape[channel], x1.ndim - 2
    spread = plan.need.pairs and pixels > 0
    correlation = _inner(*units, pixels, spread, 2)
    kernel = Kernel(
        # The rounding of an inner product grows with its length.
        correlation=jnp.where(
            correlation > 1 - _tolerance(width, correlation.dtype), 1, correlation
        ),
        var1=norms[0] / width,
        var2=norms[1] / width,
        ntk=jnp.zeros((), correlation.dtype) if plan.ntk else None,
        coincident=coincident,
        mask1=masks[0],
        mask2=masks[1],
        shape1=x1.shape,
        shape2=x2.shape,
        diagonal_spatial=not spread and pixels > 0,
        symmetric=plan.symmetric,
        batch_axis=batch,
        channel_axis=channel,
    )
    within = [None, None]
    if plan.need.variance == 2 and pixels:
        for side, (unit, norm) in enumerate(zip(units, norms)):
            one, two = kernels.views_within(jnp.sqrt(norm / width))
            within[side] = _inner(unit, unit, pixels, True, 1) * (one * two)
    return kernel.replace(within1=within[0], within2=within[1])


def _tolerance(width: int, dtype: Any) -> float:
    return float((4 + math.sqrt(width) / 4) * jnp.finfo(dtype).eps)


def _inner(x1: Array, x2: Array, pixels: int, spread: bool, lead: int) -> Array:
    """Inner products over channels; of all pixel pairs (N1, N2, H, H, W, W) if spread, else of equal pixels."""
    one = list(range(2, 2 + pixels))
    two = [10 + axis for axis in one] if spread else one
    batch = [0, 1] if lead == 2 else [0]
    out = [axis for pair in zip(one, two) for axis in pair] if spread else one
    return jnp.einsum(
        x1, [batch[0], *one, 99], x2, [batch[-1], *two, 99], [*batch, *out], precision="highest"
    )
