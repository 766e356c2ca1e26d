"""Per-layer factors of a network's Jacobian, read off its jaxpr.

A weight that enters a network once, through a matrix product, a convolution or an embedding look-up,
has the Jacobian ``J[o, c, f] = sum_s a[s, c] d[o, s, f]``: ``a`` is what the layer reads at its ``s``
positions and ``d`` the derivative of output ``o`` by what the layer writes. The two factors are far
smaller than their product, and the kernel ``J J^T`` can be had from Gram matrices of each. Weights
that enter in any other way (twice, inside a loop, through an unknown operation) are found too, and
left to their plain Jacobian.

One file: of each known operation how it is found, what it reads and what it writes must agree.

Source: Novak, Sohl-Dickstein, Schoenholz 2022, "Fast Finite Width Neural Tangent Kernel"
(arXiv 2206.08720), sections 3.3 and 3.4.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex
from jax.typing import DTypeLike

from ntk.jaxprs import Program, apply, outputs, read, values

# Operations that only rearrange a weight: sums over all its entries do not see them.
_REARRANGING = frozenset({"reshape", "transpose", "squeeze", "expand_dims", "copy", "neg", "rev"})


class Layer(NamedTuple):
    """One weight, the equation that consumes it, and the bias added to the result, if any.

    Attributes:
        leaf: index of the weight among the inputs of the program.
        equation: index of the consuming equation.
        operand: which of its operands the weight is.
        site: index of the equation whose result the layer writes: its product, after scalar factors.
        scales: scalars that multiply (power 1) or divide (-1) weight or product before the site.
        bias: index of the bias among the inputs, or None.
        bias_scales: the same for the bias.
    """

    leaf: int
    equation: int
    operand: int
    site: int
    scales: tuple[tuple[Any, int], ...]
    bias: int | None = None
    bias_scales: tuple[tuple[Any, int], ...] = ()


class _Graph(NamedTuple):
    """Who consumes and who makes each variable: equation number and operand; equation."""

    program: Program
    consumers: dict[Any, list[tuple[int | None, int]]]
    producers: dict

    def only_use(self, var: Any) -> tuple[Any, int, int] | None:
        """The one equation that consumes the variable, its number and operand; None for more."""
        uses = self.consumers[var]
        # A weight that enters twice has a Jacobian that is a sum of products, not one product of two factors.
        if len(uses) != 1:
            return None
        index, operand = uses[0]
        return None if index is None else (self.program.jaxpr.eqns[index], index, operand)


def find_layers(program: Program, leaves: Sequence[int]) -> list[Layer]:
    """The weights, among the inputs numbered ``leaves``, that enter once by a known operation."""
    consumers: dict[Any, list[tuple[int | None, int]]] = defaultdict(list)
    producers: dict = {}
    for i, equation in enumerate(program.jaxpr.eqns):
        for k, atom in enumerate(equation.invars):
            if not isinstance(atom, jex.Literal):
                consumers[atom].append((i, k))
        producers |= dict.fromkeys(equation.outvars, equation)
    for atom in program.jaxpr.outvars:
        if not isinstance(atom, jex.Literal):
            consumers[atom].append((None, 0))
    graph = _Graph(program, consumers, producers)
    layers = [layer for leaf in leaves if (layer := _find_layer(graph, leaf)) is not None]
    free = set(leaves) - {layer.leaf for layer in layers}
    for i, layer in enumerate(layers):
        layers[i] = _with_bias(graph, layer, free)
        free -= {layers[i].bias}
    return layers


def _find_layer(graph: _Graph, leaf: int) -> Layer | None:
    """Walks from a weight, through rearrangements and scalings, to the equation that consumes it."""
    var = graph.program.jaxpr.invars[leaf]
    scales: tuple[tuple[Any, int], ...] = ()
    while (use := graph.only_use(var)) is not None:
        equation, index, operand = use
        factor = _scalar_factor(graph, equation, operand)
        if factor is None and not _rearranges(equation):
            known = _KNOWN.get(equation.primitive.name)
            if known is None or not known(equation, operand, scales):
                return None
            return _to_site(graph, Layer(leaf, index, operand, index, scales))
        scales += () if factor is None else (factor,)
        var = equation.outvars[0]
    return None


def _to_site(graph: _Graph, layer: Layer) -> Layer:
    """Moves the site past scalar factors, so that a bias added after them shares its derivative."""
    eqns = graph.program.jaxpr.eqns
    if eqns[layer.equation].primitive.name == "gather":
        return layer
    while (use := graph.only_use(eqns[layer.site].outvars[0])) is not None:
        factor = _scalar_factor(graph, use[0], use[2])
        if factor is None:
            break
        layer = layer._replace(site=use[1], scales=(*layer.scales, factor))
    return layer


def _with_bias(graph: _Graph, layer: Layer, leaves: set[int]) -> Layer:
    """Finds a bias, one entry per feature, that is added to what the layer writes."""
    eqns = graph.program.jaxpr.eqns
    equation = eqns[layer.equation]
    written: Any = eqns[layer.site].outvars[0]
    use = graph.only_use(written)
    if use is None or use[0].primitive.name != "add" or equation.primitive.name == "gather":
        return layer
    if use[0].outvars[0].aval.shape != written.aval.shape:
        return layer
    bias, scales, varying = _trace_back(graph, use[0].invars[1 - use[2]], leaves)
    if bias is None or varying != _feature_dimensions(equation, layer.operand):
        return layer
    return layer._replace(bias=bias, bias_scales=scales)


def _trace_back(graph: _Graph, atom: Any, leaves: set[int]) -> tuple[int | None, tuple, set]:
    """The input of which the atom is a scaled broadcast, the scalars, and where the atom varies."""
    inputs = {graph.program.jaxpr.invars[leaf]: leaf for leaf in leaves}
    shape = atom.aval.shape
    scales: tuple[tuple[Any, int], ...] = ()
    varying = {d for d, n in enumerate(shape) if n > 1}
    while not isinstance(atom, jex.Literal) and graph.only_use(atom) is not None:
        if atom in inputs:
            return inputs[atom], scales, varying
        equation = graph.producers.get(atom)
        if equation is None:
            break
        source = equation.invars[0].aval
        factor = next(
            ((k, f) for k in (0, 1) if (f := _scalar_factor(graph, equation, k))), (0, None)
        )
        if factor[1] is not None:
            scales += (factor[1],)
        elif equation.primitive.name == "broadcast_in_dim" and atom.aval.shape == shape:
            kept = zip(equation.params["broadcast_dimensions"], source.shape)
            varying = {d for d, n in kept if n > 1}
            shape = None
        elif not _keeps_order(equation):
            break
        atom = equation.invars[factor[0]]
    return None, (), set()


def _keeps_order(equation: Any) -> bool:
    """Whether the operation only inserts or removes dimensions of size 1, or changes precision."""
    if equation.primitive.name not in ("reshape", "squeeze", "expand_dims", "convert_element_type"):
        return False
    source, target = equation.invars[0].aval, equation.outvars[0].aval
    return [n for n in source.shape if n > 1] == [n for n in target.shape if n > 1]


def _rearranges(equation: Any) -> bool:
    name, source, target = (
        equation.primitive.name,
        equation.invars[0].aval,
        equation.outvars[0].aval,
    )
    if name in ("convert_element_type", "broadcast_in_dim"):
        return source.size == target.size and jnp.issubdtype(target.dtype, jnp.floating)
    return name in _REARRANGING


def _scalar_factor(graph: _Graph, equation: Any, operand: int) -> tuple[Any, int] | None:
    """The scalar by which the equation multiplies (power 1) or divides (-1) the operand."""
    name = equation.primitive.name
    if name != "mul" and not (name == "div" and operand == 0):
        return None
    other = equation.invars[1 - operand]
    made_by = None if isinstance(other, jex.Literal) else graph.producers.get(other)
    if made_by is not None and made_by.primitive.name == "broadcast_in_dim":
        other = made_by.invars[0]
    if other.aval.size != 1 or equation.invars[operand].aval.size != equation.outvars[0].aval.size:
        return None
    return other, 1 if name == "mul" else -1


def run(
    program: Program, layers: Sequence[Layer], args: Sequence, shifts: Sequence
) -> tuple[list, list]:
    """Runs the program with ``shifts[i]`` added to what layer i writes.

    Returns:
        Its outputs, and for each layer what it reads: floats (groups, positions, channels), or the
        row numbers (positions,) of a look-up in a large table, -1 where nothing is read.
    """
    reads_at, writes_at = defaultdict(list), defaultdict(list)
    for i, layer in enumerate(layers):
        reads_at[layer.equation].append(i)
        writes_at[layer.site].append(i)
    reads: list = [None] * len(layers)
    places = {id(equation): index for index, equation in enumerate(program.jaxpr.eqns)}

    def rule(equation: Any, operands: list) -> list | None:
        index, results = places[id(equation)], None
        for i in reads_at[index]:
            reads[i] = _READS[equation.primitive.name](equation, operands, layers[i].operand)
        for i in writes_at[index]:
            results = apply(program.jaxpr, equation, operands) if results is None else results
            results = [results[0] + shifts[i]]
        return results

    env = values(program, args, rule)
    reads = [_scaled(env, layer, a) for layer, a in zip(layers, reads)]
    return outputs(program, env), reads


def _scaled(env: dict, layer: Layer, a: jax.Array) -> jax.Array:
    """Takes the scalars into what the layer reads, and gives the bias a channel of its own."""
    if layer.scales:
        a = a * _product(env, layer.scales, a.dtype)
    if layer.bias is None:
        return a
    # d z / d b = 1 at every position: a bias is one more weight, of a channel that reads one.
    ones = jnp.full((*a.shape[:-1], 1), _product(env, layer.bias_scales, a.dtype))
    return jnp.concatenate([a, ones], axis=-1)


def _product(env: dict, scales: tuple, dtype: DTypeLike | None) -> jax.Array:
    factors = [jnp.squeeze(read(env, atom)) ** power for atom, power in scales]
    return jnp.asarray(math.prod(factors), dtype)


def written_shape(program: Program, layer: Layer) -> jax.ShapeDtypeStruct:
    """Shape of what the layer writes."""
    aval: Any = program.jaxpr.eqns[layer.site].outvars[0].aval
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def written_as_matrix(program: Program, layer: Layer, d: jax.Array) -> jax.Array:
    """Brings a derivative by what the layer writes to (..., groups, positions, features)."""
    equation = program.jaxpr.eqns[layer.equation]
    return _WRITES[equation.primitive.name](equation, layer.operand, d)


# Matrix products.


def _dot_dimensions(equation: Any, operand: int) -> tuple[tuple, tuple, tuple]:
    """Contracted, batch and free dimensions of the operand that is not the weight."""
    contracted, batch = equation.params["dimension_numbers"]
    contracted, batch = tuple(contracted[1 - operand]), tuple(batch[1 - operand])
    ndim = len(equation.invars[1 - operand].aval.shape)
    return contracted, batch, tuple(d for d in range(ndim) if d not in contracted + batch)


def _dot_reads(equation: Any, operands: list, operand: int) -> jax.Array:
    contracted, batch, free = _dot_dimensions(equation, operand)
    a = operands[1 - operand]
    groups, positions, channels = (
        math.prod(a.shape[d] for d in dims) for dims in (batch, free, contracted)
    )
    return a.transpose(batch + free + contracted).reshape(groups, positions, channels)


def _dot_writes(equation: Any, operand: int, d: jax.Array) -> jax.Array:
    _, batch, free = _dot_dimensions(equation, operand)
    shape = equation.outvars[0].aval.shape
    lead, nb, nf = d.shape[: d.ndim - len(shape)], len(batch), len(free)
    groups = math.prod(shape[:nb])
    if operand == 1:
        positions, features = math.prod(shape[nb : nb + nf]), math.prod(shape[nb + nf :])
        return d.reshape(*lead, groups, positions, features)
    split = len(shape) - nf
    features, positions = math.prod(shape[nb:split]), math.prod(shape[split:])
    return d.reshape(*lead, groups, features, positions).swapaxes(-1, -2)


# Convolutions.


def _conv_known(equation: Any, operand: int, scales: tuple) -> bool:
    # Groups of examples would have filters of their own.
    return operand == 1 and equation.params["batch_group_count"] == 1


def _conv_reads(equation: Any, operands: list, operand: int) -> jax.Array:
    """Patches: (groups, examples and positions, channels and offsets)."""
    p = equation.params
    x = operands[1 - operand].transpose(p["dimension_numbers"].lhs_spec)
    rhs, spec = equation.invars[1].aval.shape, p["dimension_numbers"].rhs_spec
    padding = [(lo, hi, dil - 1) for (lo, hi), dil in zip(p["padding"], p["lhs_dilation"])]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *padding])
    for axis, (stride, dilation) in enumerate(zip(p["window_strides"], p["rhs_dilation"]), 2):
        width = rhs[spec[axis]]
        count = (x.shape[axis] - (width - 1) * dilation - 1) // stride + 1
        stops = [k * dilation + (count - 1) * stride + 1 for k in range(width)]
        slices = [
            lax.slice_in_dim(x, k * dilation, stop, stride, axis) for k, stop in enumerate(stops)
        ]
        x = jnp.stack(slices, axis=-1)
    n, groups, spatial = x.shape[0], p["feature_group_count"], len(p["window_strides"])
    x = x.reshape(n, groups, -1, *x.shape[2:])
    x = jnp.moveaxis(x, 2, 2 + spatial)
    return x.swapaxes(0, 1).reshape(groups, n * math.prod(x.shape[2 : 2 + spatial]), -1)


def _conv_writes(equation: Any, operand: int, d: jax.Array) -> jax.Array:
    out, groups = (
        equation.params["dimension_numbers"].out_spec,
        equation.params["feature_group_count"],
    )
    lead = d.ndim - len(out)
    batch, feature, *spatial = (lead + s for s in out)
    d = d.transpose(*range(lead), feature, batch, *spatial)
    features, positions = d.shape[lead], math.prod(d.shape[lead + 1 :])
    d = d.reshape(*d.shape[:lead], groups, features // groups, positions)
    return d.swapaxes(-1, -2)


# Look-ups of rows of a table.


def _gather_known(equation: Any, operand: int, scales: tuple) -> bool:
    """Whole rows, by their number, as ``jnp.take(table, ids, axis=0)`` makes them."""
    # Scales are taken into what is read, which row numbers cannot hold.
    if operand != 0 or scales:
        return False
    table, indices = (v.aval.shape for v in equation.invars)
    dims, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    positions = len(indices) - 1
    return (
        tuple(dims.collapsed_slice_dims) == (0,) == tuple(dims.start_index_map)
        and not dims.operand_batching_dims
        and tuple(dims.offset_dims) == tuple(range(positions, positions + len(table) - 1))
        and tuple(sizes) == (1, *table[1:])
        and equation.params["mode"] in _ROW_MODES
    )


_SMALL_TABLE = 1024
_ROW_MODES = (
    lax.GatherScatterMode.CLIP,
    lax.GatherScatterMode.FILL_OR_DROP,
    lax.GatherScatterMode.PROMISE_IN_BOUNDS,
)


def _gather_reads(equation: Any, operands: list, operand: int) -> jax.Array:
    """Row numbers; of a small table the rows as unit vectors, which may be contracted in either way."""
    rows, ids = operands[0].shape[0], operands[1].reshape(-1)
    if equation.params["mode"] == lax.GatherScatterMode.CLIP:
        ids = jnp.clip(ids, 0, rows - 1)
    ids = jnp.where((ids >= 0) & (ids < rows), ids, -1)
    return ids if rows > _SMALL_TABLE else jax.nn.one_hot(ids, rows, dtype=operands[0].dtype)[None]


def _gather_writes(equation: Any, operand: int, d: jax.Array) -> jax.Array:
    table, indices = (v.aval.shape for v in equation.invars)
    lead = d.shape[: d.ndim - len(equation.outvars[0].aval.shape)]
    return d.reshape(*lead, 1, math.prod(indices[:-1]), math.prod(table[1:]))


def _feature_dimensions(equation: Any, operand: int) -> set[int]:
    """Dimensions of the result, larger than 1, that are not positions."""
    shape = equation.outvars[0].aval.shape
    if equation.primitive.name == "conv_general_dilated":
        dims = {equation.params["dimension_numbers"].out_spec[1]}
    else:
        _, batch, free = _dot_dimensions(equation, operand)
        first = len(batch) if operand == 1 else len(shape) - len(free)
        dims = set(range(len(shape))) - set(range(first, first + len(free)))
    return {d for d in dims if shape[d] > 1}


_KNOWN = {
    "dot_general": lambda equation, operand, scales: True,
    "conv_general_dilated": _conv_known,
    "gather": _gather_known,
}
_READS = {
    "dot_general": _dot_reads,
    "conv_general_dilated": _conv_reads,
    "gather": _gather_reads,
}
_WRITES = {
    "dot_general": _dot_writes,
    "conv_general_dilated": _conv_writes,
    "gather": _gather_writes,
}
