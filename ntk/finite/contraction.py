"""Contraction of Jacobians, whole or in per-layer factors, into the kernel ``J1 J2^T``.

Shapes are written with the letters
    n, m  examples of the first and second batch
    t     output entries over which the kernel is averaged
    g     output entries of which only the diagonal is kept
    r, q  the other output entries of the first and second batch
    b     groups of a layer (grouped convolutions, batched products)
    s, u  positions where a layer reads (pixels, tokens)
    c, f  what it reads and writes there: channels and features

A layer reads a (n, b, s, c), and the outputs change by d (n, t, g, r, b, s, f) with what it writes: the kernel of its
weights is

    K[g, n, r, m, q] = sum_{t b c f} (sum_s a_1 d_1)(sum_u a_2 d_2),

in whichever order takes the fewest multiplications (`_costs`).

Source: Novak et al. 2022 (arXiv 2206.08720).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ntk import jaxprs as programs
from ntk.finite import contracted_sums, layer_factors
from ntk.finite.linearize import pushforward
from ntk.finite.output_axes import OutputAxes

_BLOCKS = 4  # row blocks of a symmetric kernel: 10 of 16 blocks are computed
_MIN_SYMMETRIC = 1 << 28  # multiplications below which splitting costs more than it saves
# Multiplications of a large product that take as long, measured on two CPU cores:
_WRITE = 16  # writing and reading one number
_BATCHED = 2  # one multiplication of a product of each example
_NDIM = 7  # of Factors.writes


class Product(NamedTuple):
    """Two factors of what a layer writes: (n, t, g, r, b, 1, f) and (n, 1, 1, 1, b, s, f).

    Where they do not vary with b, s or f that dimension may be 1 too.
    """

    outputs: jax.Array
    positions: jax.Array


class Factors(NamedTuple):
    """Jacobian of one output of a batch of examples.

    Attributes:
        reads: for each layer floats (n, b, s, c), or row numbers (n, s) of a look-up.
        writes: for each layer (n, t, g, r, b, s, f).
        products: for each layer the factors of what it writes, or None.
        jacobians: of other parameters (n, g, r, ...).
        sums: for each layer that is contracted by its factors: how they vary with the output
            (n, t, g, r, b, f), and the others times what it reads, summed over positions (n, b, f, c).
    """

    reads: list[jax.Array]
    writes: list[jax.Array]
    products: list[Product | None]
    jacobians: list[jax.Array]
    sums: list[tuple[jax.Array, jax.Array]]


class Network(NamedTuple):
    """A network on a batch: ``example(params, arrays)`` is its list of outputs on one example.

    Attributes:
        example: function of parameters and of arrays without their axis of examples.
        params: list of floating-point arrays.
        arrays: list of inputs.
        axes: axis of the examples in each input, None where all examples share it.
    """

    example: Callable
    params: list[jax.Array]
    arrays: list[jax.Array]
    axes: tuple[int | None, ...]

    def map(self, fun: Callable) -> Any:
        """``fun(arrays)`` of every example, stacked along axis 0."""
        if all(a is None for a in self.axes):
            return jax.tree.map(lambda v: jnp.expand_dims(v, 0), fun(self.arrays))
        return jax.vmap(fun, in_axes=(list(self.axes),))(self.arrays)


def by_jacobians(
    one: Network, two: Network | None, axes: Sequence[OutputAxes], use_layers: bool
) -> list[jax.Array]:
    """Kernel of every output by contraction of Jacobians; ``two`` None for the first with itself."""

    def factors_of(net: Network) -> list[Factors]:
        def of_batch(params: list[jax.Array], arrays: list[jax.Array]) -> Any:
            of_example = lambda x: jacobian_factors(net.example, params, x, axes, use_layers)  # noqa: E731
            return net._replace(arrays=arrays).map(of_example)

        leaves, products, tree = contracted_sums.contracted(of_batch)(net.params, net.arrays)
        n = leaves[0].shape[0] if leaves else 0
        products = tree.unflatten([_Leaf(_product(f, n)) for f in products])
        return [
            f._replace(products=[leaf.product for leaf in p.writes])
            for f, p in zip(tree.unflatten(leaves), products)
        ]

    first, second = factors_of(one), None if two is None else factors_of(two)
    kernels = []
    for i, axis in enumerate(axes):
        f1, f2 = first[i], None if second is None else second[i]
        if axis.single:
            # Examples meet themselves alone: kernels of one example each, n = m = 1.
            f1, f2 = jax.tree.map(lambda v: jnp.expand_dims(v, 1), (f1, f2))
            kernels.append(jax.vmap(contract)(f1, f2))
        else:
            kernels.append(contract(f1, f2))
    return kernels


class _Leaf(NamedTuple):
    """Keeps what belongs to one leaf of a tree together."""

    product: Product | None


def _product(factors: Sequence[jax.Array] | None, n: int) -> Product | None:
    """Of a derivative by what a layer writes: its factors that vary with the output, and the others."""
    if factors is None or factors[0].ndim != _NDIM:
        return None
    groups = [
        [f for f in factors if (math.prod(f.shape[1:4]) > 1) == varies] for varies in (True, False)
    ]
    one = jnp.ones((1,) * _NDIM, jnp.result_type(*factors))
    outputs, positions = (functools.reduce(jnp.multiply, group, one) for group in groups)
    if outputs.shape[5] > 1:
        return None
    return Product(*(jnp.broadcast_to(f, (n, *f.shape[1:])) for f in (outputs, positions)))


def by_products(one: Network, two: Network | None, axes: Sequence[OutputAxes]) -> list[jax.Array]:
    """Kernel of every output by products with it, one for each entry of the second output."""
    two = one if two is None else two

    def entry(arrays1: list[jax.Array], arrays2: list[jax.Array], index: int) -> jax.Array:
        outputs, pullback = jax.vjp(lambda p: two.example(p, arrays2), two.params)
        basis = _basis(outputs[index], axes[index])

        def column(cotangent: jax.Array) -> jax.Array:
            cotangents = [jnp.zeros_like(y) for y in outputs]
            cotangents[index] = cotangent
            tangents = pullback(cotangents)[0]
            return pushforward(lambda p: one.example(p, arrays1), one.params, tangents)[1][index]

        # J1 J2^T e for every unit vector e of the second output: one pass back, one forward.
        columns = jax.vmap(column)(basis.reshape(-1, *outputs[index].shape))
        columns = columns.reshape(*basis.shape[:3], *columns.shape[1:])
        order = axes[index].example_order
        columns = columns.transpose(0, 1, 2, *(3 + a for a in order))
        columns = columns.reshape(*basis.shape[:3], *basis.shape[:2], -1)
        return jnp.einsum("tgqtgr->grq", columns)

    kernels = []
    for i, axis in enumerate(axes):
        if axis.single:
            both = Network(one.example, one.params, [*one.arrays, *two.arrays], one.axes + two.axes)
            k = both.map(lambda a, i=i: entry(a[: len(one.arrays)], a[len(one.arrays) :], i))
            kernels.append(k[:, :, None, :, None, :])
        else:
            k = one.map(lambda a, i=i: two.map(lambda b: entry(a, b, i)))
            kernels.append(k.transpose(2, 0, 3, 1, 4))
    return kernels


def jacobian_factors(
    fun: Callable, params: Sequence, x: Sequence, axes: Sequence[OutputAxes], use_layers: bool
) -> list[Factors]:
    """Jacobians of one example: ``fun(params, x)`` gives a list of arrays; Factors without n for each.

    Args:
        fun: function of a list of parameters and a list of other arrays.
        params: floating-point arrays.
        x: arrays.
        axes: for each output.
        use_layers: whether to look for layers; if not, every parameter gets its Jacobian.
    """
    count = len(params)
    program = programs.flatten(
        lambda *args: fun(list(args[:count]), list(args[count:])), *params, *x
    )
    layers = layer_factors.find_layers(program, range(count)) if use_layers else []
    used = {leaf for layer in layers for leaf in (layer.leaf, layer.bias)}
    others = [i for i in range(count) if i not in used]

    def perturbed(shifts: list[jax.Array], values: list[jax.Array]) -> Any:
        args = [*params, *x]
        for i, value in zip(others, values):
            args[i] = value
        return layer_factors.run(program, layers, args, shifts)

    # The derivative by what a layer writes is that by a shift added to it, at shift zero.
    shifts = [
        jnp.zeros(s.shape, s.dtype)
        for s in (layer_factors.written_shape(program, l) for l in layers)
    ]
    outputs, pullback, reads = jax.vjp(perturbed, shifts, [params[i] for i in others], has_aux=True)
    factors = []
    for index, axis in enumerate(axes):
        writes, jacobians = _pull_back(pullback, outputs, index, axis)
        # Parameters that are no layer's add their inner products: one matrix for all of them.
        lead = writes[0].shape[:3] if writes else jacobians[0].shape[:3] if jacobians else ()
        writes = [layer_factors.written_as_matrix(program, l, d) for l, d in zip(layers, writes)]
        rows = [j.reshape(*lead, -1).transpose(1, 2, 0, 3) for j in jacobians]
        rows = [jnp.concatenate(rows, axis=-1)] if rows else []
        factors.append(Factors(reads, writes, [None] * len(writes), rows, []))
    return factors


def _pull_back(pullback: Callable, outputs: list, index: int, axes: OutputAxes) -> tuple:
    """Derivatives of all entries of one output, in the order (t, g, r)."""
    basis = _basis(outputs[index], axes)
    zeros = [jnp.zeros_like(o) for o in outputs]
    pull = lambda ct: pullback([*zeros[:index], ct, *zeros[index + 1 :]])  # noqa: E731
    rows = jax.vmap(pull)(basis.reshape(-1, *outputs[index].shape))
    return jax.tree.map(lambda d: d.reshape(*basis.shape[:3], *d.shape[1:]), rows)


def _basis(output: jax.Array, axes: OutputAxes) -> jax.Array:
    """Unit vectors (t, g, r, *shape) of the output of one example."""
    sizes = [math.prod(output.shape[a] for a in group) for group in axes.of_example()]
    order = axes.example_order
    basis = jnp.eye(output.size, dtype=output.dtype)
    basis = basis.reshape(*sizes, *(output.shape[a] for a in order))
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return basis.transpose(0, 1, 2, *(3 + i for i in inverse))


def contract(one: Factors, two: Factors | None) -> jax.Array:
    """Kernel (g, n, r, m, q) between two batches; ``two`` None for the first with itself."""
    one, two = _with_jacobians(one, two)
    if two is not None:
        return _contract(one, two)
    n = jax.tree.leaves(one)[0].shape[0]
    cost = sum(_costs(a, d, a, d)[0] for a, d in zip(one.reads, one.writes))
    cost += sum(n * (m.size + d.size * d.shape[3]) for d, m in one.sums)
    cost += sum(n * j.size * j.shape[2] for j in one.jacobians)
    if n < _BLOCKS or cost < _MIN_SYMMETRIC:
        return _contract(one, one)
    edges = [i * n // _BLOCKS for i in range(_BLOCKS + 1)]
    upper = [
        _contract(_rows(one, start, stop), _rows(one, start, n))
        for start, stop in itertools.pairwise(edges)
    ]
    rows = []
    for i in range(_BLOCKS):
        mirrored = [
            lax.slice_in_dim(upper[j], edges[i] - edges[j], edges[i + 1] - edges[j], axis=3)
            for j in range(i)
        ]
        rows.append(
            jnp.concatenate([b.transpose(0, 3, 4, 1, 2) for b in mirrored] + [upper[i]], axis=3)
        )
    return jnp.concatenate(rows, axis=1)


def _with_jacobians(one: Factors, two: Factors | None) -> tuple[Factors, Factors | None]:
    """Replaces the factors of each layer by its Jacobian or by sums, where these are contracted faster."""
    other = one if two is None else two
    pairs = zip(one.reads, one.writes, other.reads, other.writes)
    products = [None if None in pair else pair[0] for pair in zip(one.products, other.products)]
    costs = [_costs(*pair, product) for pair, product in zip(pairs, products)]
    ways = [cost.index(min(cost)) for cost in costs]

    def replaced(f: Factors) -> Factors:
        layers = list(zip(ways, f.reads, f.writes, f.products))
        gram = [(a, d) for way, a, d, _ in layers if way == 0]
        jacobians = [_jacobian(a, d) for way, a, d, _ in layers if way == 1]
        sums_ = [_sums(a, d, p) for way, a, d, p in layers if way == 2 and p is not None]
        reads, writes = ([layer[i] for layer in gram] for i in (0, 1))
        return Factors(reads, writes, [None] * len(gram), f.jacobians + jacobians, sums_)

    return replaced(one), None if two is None else replaced(two)


def _rows(factors: Factors, start: int, stop: int) -> Factors:
    return jax.tree.map(lambda v: v[start:stop], factors)


def _contract(one: Factors, two: Factors) -> jax.Array:
    terms = [_by_gram(*layer) for layer in zip(one.reads, one.writes, two.reads, two.writes)]
    terms += [_rows_product(*rows) for rows in zip(one.jacobians, two.jacobians)]
    terms += [_by_sums(*s1, *s2) for s1, s2 in zip(one.sums, two.sums)]
    return sum(terms[1:], terms[0])


def _costs(
    a1: jax.Array, d1: jax.Array, a2: jax.Array, d2: jax.Array, product: Product | None = None
) -> tuple[float, float, float]:
    """Multiplications that take as long as each way to contract a layer: Gram matrices, Jacobians, sums."""
    n, t, g, r, b, s, f = d1.shape
    m, q, u = d2.shape[0], d2.shape[3], d2.shape[5]
    c = a1.shape[-1] if a1.ndim == 4 else 1
    pairs = n * m * s * u * b
    by_gram = pairs * (c + _WRITE) + pairs * g * r * q * (t * f + _WRITE)
    if a1.ndim != 4:
        return by_gram, math.inf, math.inf
    entries = (_BATCHED * s + _WRITE) * n + (_BATCHED * u + _WRITE) * m
    by_jacobian = b * c * f * t * g * entries * (n * r + m * q) / (n + m)
    by_jacobian += n * m * g * r * q * (t * b * c * f + _WRITE)
    by_sums = math.inf
    if product is not None:
        width = product.positions.shape[6]
        by_sums = b * c * width * (entries + _BATCHED * n * m)
        by_sums += n * m * g * r * q * (_BATCHED * t * b * f + _WRITE)
    return by_gram, by_jacobian, by_sums


def _by_gram(a1: jax.Array, d1: jax.Array, a2: jax.Array, d2: jax.Array) -> jax.Array:
    """sum_bsu (a1 a2^T)[n, m, b, s, u] (d1 d2^T)[n, r, m, q, g, b, s, u]."""
    if a1.ndim == 2:
        # Rows of a look-up are unit vectors, whose inner products are 1 where the numbers agree; -1 has read nothing.
        same = (a1[:, :, None, None] == a2[None, None, :, :]) & (a1 >= 0)[:, :, None, None]
        gram = jnp.expand_dims(same.astype(d1.dtype), 0)
    else:
        gram = dot("nbsc,mbuc->bnsmu", a1, a2)
    # One group and one position: the Gram matrix of what is read does not depend on what the other one sums over.
    if d1.shape[4] == d1.shape[5] == d2.shape[5] == 1:
        return gram * dot("ntgrbsf,mtgqbuf->gnrmq", d1, d2)
    both = dot("ntgrbsf,mtgqbuf->gbnrsmqu", d1, d2)
    return (both * gram[None, :, :, None, :, :, None, :]).sum((1, 4, 7))


def _jacobian(a: jax.Array, d: jax.Array) -> jax.Array:
    """Jacobian of a layer from what it reads and writes."""
    # Features before channels: a product of each example writes them so, and nothing is reordered.
    return dot("nbsc,ntgrbsf->ngrtbfc", a, d)


def _sums(a: jax.Array, d: jax.Array, product: Product) -> tuple[jax.Array, jax.Array]:
    """See Factors; a dimension f of size 1 in the sums stands for one of any size."""
    n, t, g, r, b, s, f = d.shape
    outputs = jnp.broadcast_to(product.outputs, (n, t, g, r, b, 1, f))
    width = product.positions.shape[6]
    # With d = p q, p without positions: sum_s a d = p (sum_s a q), and the sum is one for all outputs.
    positions = jnp.broadcast_to(product.positions, (n, 1, 1, 1, b, s, width))
    return outputs[:, :, :, :, :, 0], dot("nbsc,nbsf->nbfc", a, positions[:, 0, 0, 0])


def _by_sums(d1: jax.Array, m1: jax.Array, d2: jax.Array, m2: jax.Array) -> jax.Array:
    gram = dot("nbfc,mbfc->nmbf", m1, m2)[:, :, None, None, None]
    return dot("nmtgrbf,mtgqbf->gnrmq", d1[:, None] * gram, d2)


def _rows_product(j1: jax.Array, j2: jax.Array) -> jax.Array:
    """Kernel from Jacobians (n, g, r, ...), as one product of two matrices for each g."""
    (n, g, r), (m, _, q) = j1.shape[:3], j2.shape[:3]
    rows, columns = (j.swapaxes(0, 1).reshape(g, -1, math.prod(j.shape[3:])) for j in (j1, j2))
    if g == 1:
        kernel = dot("nk,mk->nm", rows[0], columns[0])
    else:
        kernel = dot("gnk,gmk->gnm", rows, columns)
    return kernel.reshape(g, n, r, m, q)


def dot(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Accumulated in at least float32, and without the short products of some accelerators."""
    dtype = jnp.promote_types(jnp.result_type(x, y), jnp.float32)
    return jnp.einsum(
        subscripts, x, y, precision=lax.Precision.HIGHEST, preferred_element_type=dtype
    )
