"""What each primitive does to the values of a traced network."""

from __future__ import annotations

import math
from typing import Any

from ntk.primitives import known
from ntk.trace import positions, products, shapes, sums, trees
from ntk.trace.context import Context, finite_step
from ntk.trace.convolutions import convolution
from ntk.trace.coordinates import Number, Refusal, Value, Weight, is_random
from ntk.trace.elementwise import elementwise
from ntk.trace.finite import on_numbers
from ntk.trace.lookups import gather, scatter
from ntk.trace.scores import drawn, is_drawn
from ntk.trace.shapes import split, unstack
from ntk.trace.steps import shape_code


def rule(context: Context, one: Any, two: Any, values: list[Value]) -> list[Value]:
    """Results of one equation, read at both widths (`one`, `two`), on values.

    Raises:
        Refusal: it has no kernel.
    """

    name = one.primitive.name
    trees.register(one.primitive)
    values = [context.table(v) for v in values]
    values = drawn(context, one, values)
    if name == "stop_gradient" and is_drawn(context, values[0]):
        return [_stopped(context, values[0])]
    if name in RULES:
        return [RULES[name](context, one, two, values)]
    if name in ("split", "unstack"):
        return (split if name == "split" else unstack)(context, one, two, values[0])
    if known(name).random == "key" and not any(is_random(v.body) for v in values):
        # Keys may be made and not used, as by a recurrent layer for its initial state of zeros.
        shapes = [list(zip(a.aval.shape, b.aval.shape)) for a, b in zip(one.outvars, two.outvars)]
        return [Value(context.fresh_dims(s, "free"), Number(math.nan)) for s in shapes]
    if name == "random_bits":
        raise Refusal(
            "random numbers are drawn while the network runs (dropout, or noise): switch them off, as by "
            "deterministic=True"
        )
    if name.startswith(("reduce_window", "select_and")) and name != "reduce_window_sum":
        raise Refusal(
            "max pooling of activations: its law is that of a whole window at once, for which there is no rule. Use "
            'nn.avg_pool, or take means over finite networks: otherwise="sample"'
        )
    if name == "fft":
        raise Refusal(
            "a Fourier transform of activations: complex numbers have no rule. Write it as real matrices over "
            'positions (cosines and sines), or take means over finite networks: otherwise="sample"'
        )
    if name in ("while", "cond"):
        raise Refusal(f"a {name} on activations: write it with jnp.where, or as a Python loop")
    if len(one.outvars) != 1:
        raise Refusal("this operation is not known")
    shape = one.outvars[0].aval.shape
    alike = all(_fits(v.aval.shape, shape) for v in one.invars)
    if alike and known(name).elementwise:
        return [elementwise(context, one, values)]
    if not any(is_random(v.body) or isinstance(v.body, Weight) for v in values):
        return [on_numbers(context, one, two, values)]
    raise Refusal(
        "this operation on activations is not known. Write it with sums, products, elementwise "
        'functions, convolutions and reshapes, or take means over finite networks: otherwise="sample"'
    )


def _stopped(context: Context, value: Value) -> Value:
    """Numbers whose dependence on random scores is not followed by the tangent kernel."""
    codes = shape_code(value.dims)
    index = finite_step(context, ("stop_gradient", (), (codes,), codes), [value.body.index])
    return Value(value.dims, value.body._replace(index=index))


def _fits(shape: tuple, out: tuple) -> bool:
    """Whether an operand of that shape broadcasts to the result."""
    if shape == ():
        return True
    return len(shape) == len(out) and all(a in (b, 1) for a, b in zip(shape, out))


RULES = {
    **shapes.RULES,
    **positions.RULES,
    **sums.RULES,
    "dot_general": products.dot,
    "conv_general_dilated": convolution,
    "gather": gather,
    "scatter-add": scatter,
}
