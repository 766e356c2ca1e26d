"""Parameters that act on each unit alone: biases, gains, positions that are learnt.

Of the positions p, p'::

    K(p, p') = variance 1(p = p'),    T(p, p') = rate 1(p = p')
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp

from ntk.infinite.inputs import Need
from ntk.infinite.kernel import Array
from ntk.infinite.weight_laws import NORMAL, Standard
from ntk.trace import axes as ax
from ntk.trace import coordinates as co
from ntk.trace import entries
from ntk.trace.axes import Axis
from ntk.trace.context import Context
from ntk.trace.coordinates import Refusal, Value, Weight
from ntk.trace.laws import Law, Setting, gaussian
from ntk.trace.steps import Kind, Note, Step


class Vector(NamedTuple):
    """A parameter, one entry for each unit and position.

    Attributes:
        variance: of an entry; 0 for one that is constant at initialisation.
        rate: what it adds to the tangent kernel.
        sizes: of its axes of positions.
        law: of an entry, in standard units.
    """

    variance: float
    rate: float
    sizes: tuple[int, ...]
    law: Standard


def as_vectors(context: Context, value: Value) -> Value:
    """A parameter without an activation yet, as activations: its axes that grow are units, others positions."""
    if not isinstance(value.body, Weight):
        return value
    own = {a for dim in value.body.own for a in dim if a.kind == "free"}
    renames = {a: (Axis("unit" if a.infinite else "position", a.size),) for a in own}
    return as_random(context, co.renamed(value, renames))


def as_random(context: Context, value: Value) -> Value:
    """A parameter that meets an activation elementwise, as a process."""
    weight = value.body
    if not isinstance(weight, Weight):
        return value
    of = (weight.name, weight.part)
    if of not in context.sources:
        context.consume(weight)
        mean, variance, power, rate = context.law(weight._replace(number=1.0, power=0.0))
        if variance and (power > 0 or mean):
            raise Refusal(
                f"{weight.name} has initial mean {mean:.3g} and variance {variance:.3g} width^{power:g}; a "
                "parameter that acts on each unit alone must be constant at initialisation, or have mean zero and "
                "a standard deviation that does not grow with the width"
            )
        context.sources[of] = (variance, rate, mean, power / 2 if variance else 0.0)
    # Biases of U(-n^-1/2, n^-1/2), as eqx.nn.Linear has them, are a law of fixed variance times a power of the width.
    variance, rate, mean, power = context.sources[of]
    axes = ax.positions(weight.own)
    sizes = tuple(a.size[0] for a in axes)
    # Rates count per standard normal: a constant has none, and is trained as it stands.
    factor = rate if not variance else rate * variance
    law = context.standard(weight) if variance else NORMAL
    key = (of, sizes)
    if key not in context.sources:
        note = Note(
            weight.name, parameters=(weight.name,), axes=" x ".join(map(str, sizes)) or "unit"
        )
        context.sources[key] = context.program.add(Vector(variance, factor, sizes, law), (), note)
        known = {"variance": variance, "mean": mean, "rate": factor, "fixed": law != NORMAL}
        known |= {"power": 2 * power} if power else {}
        context.record(weight.name, role="vector", **known)
    index = context.sources[key]
    units = ax.units(value.dims)
    process = context.program.process(
        index, axes, units, gaussian=True, value=None if variance else mean
    )
    ref = co.Ref(process, (), axes, units, weight.part)
    return Value(
        value.dims,
        co.Linear(((ref, co.Coefficient(weight.number, weight.power + power, weight.arrays)),)),
    )


def vector_law(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    """Law of a parameter that acts on each unit alone."""
    variance, rate, sizes, law = step.op
    # Entries at different positions are independent, and the same for every sample.
    same = jnp.ones((1, 1), setting.dtype)
    for size in sizes:
        eye = jnp.eye(size, dtype=setting.dtype) if need.pairs else jnp.ones(size, setting.dtype)
        same = _outer(same, eye)
    var = jnp.full((1, *sizes), variance, setting.dtype)
    within = (None, None)
    if need.variance == 2 and sizes:
        eyes = jnp.ones((1,), setting.dtype)
        for size in sizes:
            eyes = _outer(eyes, jnp.eye(size, dtype=setting.dtype))
        within = (variance * eyes, variance * eyes)
    ntk = rate * same if setting.plan.ntk else None
    diagonal = bool(sizes) and not need.pairs
    kernel = gaussian(variance * same, var, var, ntk, within, diagonal)
    return Law(
        kernel,
        entries=_identity(sizes, law, variance**0.5, setting),
    )


def _identity(
    sizes: tuple[int, ...], law: Standard, scale: float, setting: Setting
) -> entries.Entries | None:
    """Entries of one weight for each position."""
    if not setting.entries:
        return None
    count = math.prod(sizes)
    eye = jnp.eye(count, dtype=setting.dtype).reshape(1, *sizes, count)
    return dataclasses.replace(entries.of_weights(eye, eye, law, scale), shared=True)


def _outer(x: Array, y: Array) -> Array:
    """All products of entries of x and y."""
    return jnp.expand_dims(x, tuple(range(x.ndim, x.ndim + y.ndim))) * y.reshape(
        (1,) * x.ndim + y.shape
    )


def words(op: Vector, note: Note) -> tuple[str, str]:
    """For a reader."""
    return note.text, f"{op.variance:.6g}"


KIND = Kind("vector", vector_law, words=words, joint=True)
