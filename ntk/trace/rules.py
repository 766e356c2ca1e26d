"""The two tables of the tracer: how a primitive is read, and what is done with each kind of step.

A new kind of step is a module of `ntk.trace.ops` and a line here; a new primitive a line in `ntk.primitives`, and one
here or in the table of its module.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ntk.primitives import TABLE
from ntk.trace import algebra
from ntk.trace.context import Context
from ntk.trace.coordinates import Number, Refusal, Table, Value, Weight, is_random
from ntk.trace.ops import (
    attention_laws,
    combine,
    convolution,
    copies,
    data,
    dense,
    embedding,
    function,
    mix,
    numbers,
    positions,
    reductions,
    several_laws,
    shapes,
    table,
    vector,
)
from ntk.trace.ops.attention import drawn, is_drawn
from ntk.trace.ops.elementwise import elementwise
from ntk.trace.ops.numbers import Numbers, numbers_step, on_numbers
from ntk.trace.steps import Kind, Step, shape_code

READS: dict[str, Callable] = {
    **shapes.READS,
    **positions.READS,
    **reductions.READS,
    "dot_general": dense.dot,
    "conv_general_dilated": convolution.convolution,
    "gather": embedding.gather,
}
"""Primitives with a rule of their own: `rule(context, equation, equation at the second width, operands) -> result`."""


KINDS: dict[type, Kind] = {
    attention_laws.Attend: attention_laws.ATTEND,
    attention_laws.Scores: attention_laws.SCORES,
    combine.Combine: combine.KIND,
    convolution.Convolution: convolution.KIND,
    copies.Copies: copies.KIND,
    data.Data: data.KIND,
    dense.Dense: dense.KIND,
    embedding.Embedding: embedding.KIND,
    function.Functions: function.KIND,
    mix.Mix: mix.KIND,
    numbers.Numbers: numbers.KIND,
    reductions.Mean: reductions.KIND,
    several_laws.Several: several_laws.KIND,
    table.TableMeans: table.KIND,
    vector.Vector: vector.KIND,
}


def kind(step: Step) -> Kind:
    """What is done with a step."""
    return KINDS[type(step.op)]


def read(context: Context, one: Any, two: Any, values: list[Value]) -> list[Value]:
    """Results of one equation, read at both widths (`one`, `two`), on values.

    Raises:
        Refusal: it has no kernel.
    """
    name = one.primitive.name
    algebra.register(one.primitive)
    if any(isinstance(v.body, Table) for v in values):
        # Read here and not where they arise: constants that only meet constants stay arrays at both widths.
        values = [table.as_process(context, v) for v in values]
    if context.fluctuations:
        # Scores that stay random are drawn where the first function needs more than their covariance.
        values = drawn(context, one, values)
        if name == "stop_gradient" and is_drawn(context, values[0]):
            return [_stopped(context, values[0])]
    if name in READS:
        return [READS[name](context, one, two, values)]
    if name in ("split", "unstack"):
        return (shapes.split if name == "split" else shapes.unstack)(context, one, two, values[0])
    if TABLE[name].random == "key" and not any(is_random(v.body) for v in values):
        # Keys may be made and not used, as by a recurrent layer for its initial state of zeros.
        made = [list(zip(a.aval.shape, b.aval.shape)) for a, b in zip(one.outvars, two.outvars)]
        return [Value(context.fresh_dims(s, "free"), Number(math.nan)) for s in made]
    if name == "random_bits":
        raise Refusal(
            "random numbers are drawn while the network runs (dropout, or noise): switch them off, as by "
            "deterministic=True"
        )
    if name == "fft":
        raise Refusal(
            "a Fourier transform of activations: complex numbers have no rule. Write it as real matrices over "
            'positions (cosines and sines), or take means over finite networks: otherwise="sample"'
        )
    if name in ("while", "cond"):
        raise Refusal(f"a {name} on activations: write it with jnp.where, or as a Python loop")
    if len(one.outvars) != 1:
        raise Refusal(
            'this operation is not known here: take means over finite networks, otherwise="sample"'
        )
    shape = one.outvars[0].aval.shape
    alike = all(_fits(v.aval.shape, shape) for v in one.invars)
    if alike and TABLE[name].elementwise:
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
    index = numbers_step(context, Numbers("stop_gradient", (), (codes,), codes), [value.body.index])
    return Value(value.dims, value.body._replace(index=index))


def _fits(shape: tuple, out: tuple) -> bool:
    """Whether an operand of that shape broadcasts to the result."""
    if shape == ():
        return True
    return len(shape) == len(out) and all(a in (b, 1) for a, b in zip(shape, out))
