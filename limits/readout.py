"""Which parameters a model reads out with, and whether a rule can act on them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from limits.exponents import Rule
from ntk import family as families
from ntk import jaxprs
from ntk.family import Initialised, ParamAxes
from ntk.trace import sharing
from ntk.types import Array, PyTree


def check_readout(
    made: Sequence[Initialised], example: Any, named: Mapping[str, ParamAxes], rule: Rule
) -> None:
    """Refuse outputs of fixed size that no "output" parameter computes, and readouts whose scale does nothing.

    Args:
        made: the family at the widths whose shapes are compared; the second is the one at which it is run, if it has
            to be.
        example: its inputs; without any (plain pairs, NNX) nothing can be checked.
        named: {path name: ParamAxes}.
        rule: the Rule.
    """
    if example is None:
        return
    readouts = [name for name, axes in named.items() if axes.role == "output"]
    if not readouts and not any(axes.role == "tied" for axes in named.values()):
        _check_outputs_grow(made[1:3], example, named)
    if rule.output.a + rule.output.b != 1 / 2 and readouts:
        _check_scales(made[1], example, readouts, rule)


def _outputs(made: Initialised) -> Callable[..., PyTree]:
    """(params, state, inputs) -> outputs."""

    def outputs(params: PyTree, state: PyTree, *inputs: Any) -> PyTree:
        return made.model.network.apply(params, *inputs, **({"state": state} if state else {}))

    return outputs


def _check_outputs_grow(
    made: Sequence[Initialised], example: Any, named: Mapping[str, ParamAxes]
) -> None:
    shapes = []
    for one in made:
        inputs = families.example_inputs(example)
        out = jax.eval_shape(_outputs(one), one.shapes, one.state, *inputs)
        shapes.append(jax.tree.map(jnp.shape, out))
    if shapes[0] == shapes[1]:
        raise ValueError(
            'the outputs do not grow with the width, yet no parameter has the role "output". If an embedding '
            'is also the readout, say so with roles={"embed/embedding": "tied"}; otherwise name the readout: '
            f'roles={{path: "output"}}. Parameters: {list(named)}'
        )


def _check_scales(made: Initialised, example: Any, readouts: Sequence[str], rule: Rule) -> None:
    """Refuse a readout that the model normalises: the outputs, linear in its scale otherwise, do not depend on it."""
    outputs = _outputs(made)
    inputs = families.example_inputs(example)
    names, tree = list(families.named_leaves(made.shapes)), jax.tree.structure(made.shapes)

    def flat(leaves: list, state: PyTree, *inputs: Any) -> list[Array]:
        return jax.tree.leaves(outputs(tree.unflatten(leaves), state, *inputs))

    program = sharing.jaxpr_of(flat, jax.tree.leaves(made.shapes), made.state, *inputs).jaxpr
    for name in readouts:
        place = names.index(name)
        marks = [k == place for k in range(len(program.invars))]
        if _is_transformed(program, marks)[0] and _is_scale_free(made, name, flat, inputs):
            raise ValueError(
                f"the outputs do not depend on the scale of {name} (weight normalisation): the factors by which "
                f"{rule.name!r} makes readouts smaller as the width grows would do nothing. Leave the readout without "
                "normalisation, or let the model multiply its outputs by base_width / width and name the kernel's "
                f'role: roles={{{name!r}: "scalar"}}'
            )


def _is_scale_free(made: Initialised, name: str, flat: Callable, inputs: Sequence) -> bool:
    """Whether outputs of a random network do not depend on the scale of a parameter."""
    draw = functools.partial(jax.random.normal, jax.random.key(1))
    params = made.model.network.init(jax.random.key(0))
    leaves = [
        draw(x.shape, x.dtype) if n == name else x for n, x in families.named_leaves(params).items()
    ]
    place = list(families.named_leaves(params)).index(name)
    drawn = [draw(x.shape, x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in inputs]

    @jax.jit
    def sizes(leaves: list, state: PyTree, inputs: list) -> list[Array | int]:
        def at(kernel: Array) -> list[Array]:
            return flat([*leaves[:place], kernel, *leaves[place + 1 :]], state, *inputs)

        values, slopes = jax.jvp(at, (leaves[place],), (leaves[place],))
        return [sum(jnp.sum(x**2) for x in xs) for xs in (values, slopes)]

    value, slope = map(float, sizes(leaves, made.model.state(jax.random.key(0)), drawn))
    return slope <= 1e-6 * value


_POWERS = frozenset(["integer_pow", "square", "pow", "sqrt", "rsqrt", "abs", "reduce_max", "sign"])


def _is_transformed(jaxpr: Any, marks: Sequence[bool]) -> tuple[bool, list[bool]]:
    """Whether a parameter goes through more than reshapes and factors before it meets the data.

    Args:
        jaxpr: a program.
        marks: of its arguments: True for that parameter, False for all else.

    Returns:
        (whether it does, marks of the results: True for what was made of the parameter and constants alone).
    """
    own = {v for v, mark in zip(jaxpr.invars, marks, strict=True) if mark}
    data = set(jaxpr.invars) - own
    for equation in jaxpr.eqns:
        variables = [v for v in equation.invars if not isinstance(v, jex.Literal)]
        given = [v in own for v in variables]
        inner = jaxprs.inner(equation)
        alone = any(given) and data.isdisjoint(variables)
        results = [alone] * len(equation.outvars)
        if any(given) and inner is not None and len(inner.jaxpr.invars) == len(equation.invars):
            marks = [not isinstance(v, jex.Literal) and v in own for v in equation.invars]
            found, results = _is_transformed(inner.jaxpr, marks)
            if found:
                return True, []
        elif (equation.primitive.name in _POWERS and alone) or sum(given) > 1:
            return True, []
        own.update(v for v, mark in zip(equation.outvars, results) if mark)
        data.update(v for v, mark in zip(equation.outvars, results) if not mark and variables)
    return False, [not isinstance(v, jex.Literal) and v in own for v in jaxpr.outvars]
