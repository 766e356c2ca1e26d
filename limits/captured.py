"""Outputs of the layers of any model, read off its program: what its weights are multiplied with, and their biases.

A layer is a product h W or a convolution of what depends on the inputs with a parameter, or a row of a table looked up
by them; a parameter added to its result is its bias. This needs no hooks of a library, so that it serves models of NNX,
of Equinox and plain functions; linen modules record their outputs themselves.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ntk import jaxprs
from ntk.model import named_leaves
from ntk.primitives import TABLE
from ntk.types import PyTree, Shape

PRODUCTS = ("dot_general", "conv_general_dilated", "gather")


class _Weights(NamedTuple):
    """A value that depends on parameters alone: their names."""

    names: frozenset[str]


class _Output(NamedTuple):
    """The output of the layer of this number, perhaps in another shape."""

    layer: int


class _Data(NamedTuple):
    """Any other value that depends on the inputs."""


def weighted_outputs(apply: Any, params: PyTree, inputs: tuple) -> dict[str, jax.Array]:
    """Outputs of all layers with weights by path, in the order in which they are called.

    Args:
        apply: `apply(params, *inputs)`.
        params: its parameters.
        inputs: batches, examples first.

    Returns:
        {path of the module, or of the parameter where a module has several products: output, examples first}. Of a
        layer that is called several times, as by a loop (scan), the last.

    Raises:
        ValueError: no product with a parameter is found.
    """
    names, leaves = list(named_leaves(params)), jax.tree.leaves(params)
    structure, (flat, inside) = jax.tree.structure(params), jax.tree.flatten(inputs)

    def run(*args: Any) -> list:
        given = jax.tree.unflatten(inside, args[len(leaves) :])
        return jax.tree.leaves(apply(jax.tree.unflatten(structure, args[: len(leaves)]), *given))

    program = _flat(run, *leaves, *flat)
    layers, places = _layers(program, names)
    if not places:
        raise ValueError(
            "no product of the inputs with a parameter is found, so that the model has no layers to record: give a "
            'function "features(net, params, inputs)" that returns its layers\' outputs by name'
        )
    values = jaxprs.values(program, [*leaves, *flat], lambda equation, operands: None)
    longer = [_longer(x) for x in flat]
    other = _shapes(_flat(run, *leaves, *longer), names)
    found = [
        _examples_first(values[place], shape) for place, shape in zip(places, other, strict=True)
    ]
    return dict(zip(_titles(layers), found))


def _flat(run: Any, *args: Any) -> jaxprs.Program:
    """The program of a function with the calls in it written out, and the last round of each loop."""
    program = jaxprs.flatten(run, *args)
    if not jaxprs.contains(program.jaxpr, ("scan",)):
        return program
    return jaxprs.flatten(lambda *xs: jaxprs.evaluate(program, xs, _last_round), *args)


def _last_round(equation: Any, operands: list) -> list | None:
    """Results of a loop of which the last round is written out; of other equations, and of empty loops, None."""
    params = equation.params
    if equation.primitive.name != "scan" or not params["length"]:
        return None
    body, (fixed, count) = jaxprs.body_of(equation), jaxprs.carried(equation)
    consts, carry, xs = operands[:fixed], operands[fixed : fixed + count], operands[fixed + count :]
    last, rest = (0, slice(1, None)) if params["reverse"] else (-1, slice(-1))

    def step(carry: list, x: list) -> tuple[list, list]:
        out = jaxprs.evaluate(body, [*consts, *carry, *x], lambda equation, operands: None)
        return out[:count], out[count:]

    carry, ys = jax.lax.scan(step, carry, [x[rest] for x in xs], reverse=params["reverse"])
    out = jaxprs.evaluate(body, [*consts, *carry, *(x[last] for x in xs)], _last_round)
    ends = [y[None] for y in out[count:]]
    pairs = zip(ends, ys) if params["reverse"] else zip(ys, ends)
    return [*out[:count], *(jnp.concatenate(pair) for pair in pairs)]


def _layers(program: jaxprs.Program, names: Sequence[str]) -> tuple[list[str], list]:
    """(parameter, variable of the output) of each layer, in order."""
    jaxpr = program.jaxpr
    kinds: dict = dict(zip(jaxpr.invars, (_Weights(frozenset((name,))) for name in names)))
    kinds |= dict.fromkeys(jaxpr.invars[len(names) :], _Data())
    layers: list[str] = []
    places: list = []
    for equation in jaxpr.eqns:
        operands = [kinds.get(v) for v in equation.invars if not hasattr(v, "val")]
        kind = _kind(equation, operands, layers, places)
        if kind is not None:
            kinds.update(dict.fromkeys(equation.outvars, kind))
    return layers, places


def _kind(equation: Any, operands: list, layers: list[str], places: list) -> Any:
    """What the results of an equation are; None if they depend on no argument. A new layer, or its bias, is noted."""
    primitive = equation.primitive.name
    weights = [kind for kind in operands if isinstance(kind, _Weights)]
    data = [kind for kind in operands if isinstance(kind, _Data | _Output)]
    if not data:
        return _Weights(frozenset().union(*(w.names for w in weights))) if weights else None
    if primitive in PRODUCTS and weights and len(weights[0].names) == 1:
        layers.append(*weights[0].names)
        places.append(equation.outvars[0])
        return _Output(len(layers) - 1)
    only = data[0] if len(data) == 1 else None
    if not isinstance(only, _Output):
        return _Data()
    if primitive in ("add", "add_any") and weights:  # the bias
        places[only.layer] = equation.outvars[0]
        return only
    row = TABLE.get(primitive)
    same = row is not None and (row.identity or row.shape in ("order", "axes"))
    return only if same else _Data()


def _titles(layers: Sequence[str]) -> list[str]:
    """The module of each parameter; the parameter itself where a module has several of these."""
    modules = {name: name.rpartition("/")[0] for name in layers}
    shared = {m for m in modules.values() if list(modules.values()).count(m) > 1}
    return [
        name if not modules[name] or modules[name] in shared else modules[name] for name in layers
    ]


def _longer(x: Any) -> Any:
    """A batch of one example more; keys stay."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) or not x.ndim:
        return x
    return jax.ShapeDtypeStruct((x.shape[0] + 1, *x.shape[1:]), x.dtype)


def _shapes(program: jaxprs.Program, names: Sequence[str]) -> list[Shape]:
    return [jaxprs.type_of(place).shape for place in _layers(program, names)[1]]


def _examples_first(values: jax.Array, longer: Shape) -> jax.Array:
    """Moves the axis of examples, which is the one that a further example makes longer, to the front."""
    axis = next((k for k, (n, m) in enumerate(zip(values.shape, longer)) if n != m), 0)
    return jnp.moveaxis(values, axis, 0)
