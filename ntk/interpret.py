"""A network's own program, equation by equation, turned into steps on processes.

`trace` reads the jaxpr of `apply` at two widths and two batch sizes side by side: what differs between them are the
axes of units and of samples. What each primitive does is in `ntk.primitives` (elementwise operations and shapes) and
`ntk.layers` (what meets weights, and sums).

Source: Yang (2019), "Tensor Programs I: Wide feedforward or recurrent neural networks of any architecture are
Gaussian processes"; Yang (2020), "Tensor Programs II: Neural tangent kernel for any architecture".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from ntk import axes as ax
from ntk import coordinates as co
from ntk.axes import BATCHES, WIDTHS, Axis
from ntk.coordinates import Finite, Number, Refusal, Value, Weight
from ntk.initial import Law
from ntk.steps import Note, Program

_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}
_CALLS |= {"checkpoint": "jaxpr", "remat": "jaxpr", "remat2": "jaxpr"}
_CALLS |= {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
_CALLS |= {"custom_vjp_call_jaxpr": "fun_jaxpr"}


class Parameter(NamedTuple):
    """A parameter of the family.

    Attributes:
        laws: its law at both widths.
        shapes: its shape at both widths.
        rate: factor of its learning rate.
    """

    laws: tuple[Law, Law]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    rate: float


class Output(NamedTuple):
    """What was traced: the program, and the steps and dimensions of the output.

    Attributes:
        program: the steps.
        index: of the step that gives the moments of the output.
        order: for each axis of positions of the output, its place in those moments.
    """

    program: Program
    index: int
    order: tuple[int, ...]
    parameters: dict[str, dict]


class Context:
    """What the rules of primitives share."""

    def __init__(self, parameters: Mapping[str, Parameter]):
        self.program = Program()
        self.parameters = parameters
        self.sample = Axis("sample", BATCHES)
        self.used: dict[str, np.ndarray] = {}
        self.sources: dict = {}
        self.facts: dict[str, dict] = {}
        self.sizes: set = {WIDTHS}
        self.scales: list[str] = []
        self.fluctuations: set[int] = set()

    # --- numbers ------------------------------------------------------------------------------------

    def number(self, one: Any, two: Any) -> Number:
        """A scalar at both widths as c width^p."""
        one, two = float(one), float(two)
        if one == two or not (math.isfinite(one) and math.isfinite(two)):
            return Number(one)
        candidates = [((WIDTHS), 1.0, 1.0)] + [
            (size, *ax.growth([Axis("unit", size)])) for size in self.sizes if size[0] != size[1]
        ]
        for size, slope, _ in candidates:
            for power in (1, -1, 0.5, -0.5, 0.25, -0.25, 1.5, -1.5, 2, -2):
                a, b = one / size[0] ** power, two / size[1] ** power
                if math.isclose(a, b, rel_tol=1e-5):
                    return Number(snapped(b) * slope**power, float(power))
        raise Refusal(
            f"a number that depends on the width as no power of it ({one:.6g} at width {WIDTHS[0]}, {two:.6g} at "
            f"{WIDTHS[1]})"
        )

    def array(self, one: Any, two: Any) -> Value:
        """A constant array of the model."""
        one, two = np.asarray(one), np.asarray(two)
        if one.size and (one == one.flat[0]).all() and (two == two.flat[0]).all():
            body = (
                self.number(one.flat[0], two.flat[0])
                if one.dtype.kind in "fiub"
                else Number(float(one.flat[0]))
            )
            return Value(self.fresh_dims(list(zip(one.shape, two.shape)), "free"), body)
        if one.shape != two.shape:
            raise Refusal(
                f"a constant array of shape {one.shape} whose entries differ along an axis that grows with the width"
            )
        dims = self.fresh_dims(list(zip(one.shape, two.shape)), "position")
        return Value(dims, Finite(self.program.constant(one)))

    def fresh_dims(self, shape: list, kind: str) -> ax.Dims:
        """Axes of a new array of the given size pairs."""
        dims = []
        for size in shape:
            if size == (1, 1):
                dims.append(())
            elif size == BATCHES:
                dims.append((self.sample,))
            elif size[0] != size[1] and size[0] * BATCHES[1] == size[1] * BATCHES[0]:
                rest = Axis(kind, (size[0] // BATCHES[0],) * 2)
                dims.append((self.sample, rest))
            else:
                self.sizes.add(tuple(size))
                dims.append((Axis(kind if size[0] == size[1] else "free", tuple(size)),))
        return tuple(dims)

    # --- parameters ---------------------------------------------------------------------------------

    def law(self, weight: Weight) -> tuple[float, float, float, float]:
        """(mean, variance, power of the variance, learning-rate factor) of what is left of a parameter."""
        parameter = self.parameters[weight.name]
        one, two = parameter.laws
        variance, power = 0.0, 0.0
        if one.variance or two.variance:
            variance, power = _law(weight.name, one.variance, two.variance)
        mean = one.mean * weight.number
        if one.mean != two.mean:
            raise Refusal(f"the initial mean of {weight.name} depends on the width")
        return mean, variance * weight.number**2, power + 2 * weight.power, parameter.rate

    def consume(self, weight: Weight) -> None:
        """Marks a parameter as used; a second use is refused."""
        shape = self.parameters[weight.name].shapes[0]
        used = self.used.setdefault(weight.name, np.zeros(shape, bool))
        region = [slice(None)] * len(shape)
        for axis, start, stop in weight.part:
            region[axis] = slice(start, stop)
        if used[tuple(region)].any():
            raise Refusal(
                f"the parameter {weight.name} is used twice (tied or recurrent weights). Uses of one matrix are "
                "correlated, which is not followed: give each use its own parameter"
            )
        used[tuple(region)] = True

    def record(self, name: str, **facts: Any) -> None:
        self.facts.setdefault(name, {}).update(facts)

    def as_random(self, value: Value) -> Value:
        """A parameter that meets an activation elementwise, as a process."""
        weight = value.body
        if not isinstance(weight, Weight):
            return value
        key = (weight.name, weight.part)
        if key not in self.sources:
            self.consume(weight)
            mean, variance, power, rate = self.law(weight._replace(number=1.0, power=0.0))
            if variance and (power or mean):
                raise Refusal(
                    f"{weight.name} has initial mean {mean:.3g} and variance {variance:.3g} width^{power:g}; a "
                    "parameter that acts on each unit alone must be constant at initialisation, or have mean zero and "
                    "a standard deviation that does not depend on the width"
                )
            self.sources[key] = (variance, rate, mean)
        variance, rate, mean = self.sources[key]
        axes = ax.positions(weight.own)
        sizes = tuple(a.size[0] for a in axes)
        factor = rate if not variance else rate * variance
        key = (key, sizes)
        if key not in self.sources:
            note = Note(
                "parameter", parameters=(weight.name,), axes=" x ".join(map(str, sizes)) or "unit"
            )
            self.sources[key] = self.program.add("vector", (variance, factor, sizes), (), note)
            self.record(weight.name, variance=variance, mean=mean, rate=factor, role="vector")
        index = self.sources[key]
        units = ax.units(value.dims)
        process = self.program.process(
            index, axes, units, gaussian=True, value=None if variance else mean
        )
        ref = co.Ref(process, (), axes, units, weight.part)
        return Value(
            value.dims,
            co.Linear(((ref, co.Coefficient(weight.number, weight.power, weight.arrays)),)),
        )


def _law(name: str, one: float, two: float) -> tuple[float, float]:
    """Variance as c width^p, corrected for laws such as 2 / (fan_in + fan_out) with one fan fixed."""
    ratio = math.log(two / one) / math.log(WIDTHS[1] / WIDTHS[0]) if one > 0 and two > 0 else 0.0
    power = round(2 * ratio) / 2
    if math.isclose(ratio, power, abs_tol=1e-4):
        return snapped(two / WIDTHS[1] ** power), float(power)
    # 1 / variance affine in the width
    slope = (1 / two - 1 / one) / (WIDTHS[1] - WIDTHS[0])
    if slope > 0 and abs(ratio + 1) < 0.5:
        return snapped(1 / slope), -1.0
    raise Refusal(
        f"the initial variance of {name} goes from {one:.4g} at width {WIDTHS[0]} to {two:.4g} at {WIDTHS[1]}, which "
        "is no power of the width"
    )


def snapped(x: float) -> float:
    """The nearest simple fraction, if single precision cannot tell it from x."""
    if x == 0 or not math.isfinite(x):
        return x
    for scale in (1, 2**10):
        top = round(x * scale * 720)
        if top and math.isclose(top / (720 * scale), x, rel_tol=5e-7):
            return top / (720 * scale)
    return x


def line_of(equation: Any) -> str:
    """File and line of the model that an equation came from, as far as its traceback tells."""
    traceback = getattr(getattr(equation, "source_info", None), "traceback", None)
    frames = getattr(traceback, "frames", None) or []
    skip = ("/jax/", "/flax/", "/ntk/", "contextlib", "functools", "/jaxlib/", "<frozen")
    for frame in frames:
        name = str(getattr(frame, "file_name", ""))
        if name and not any(part in name for part in skip):
            return f"{name}:{getattr(frame, 'line_num', '?')}"
    return ""


def trace(
    apply: Callable, params: tuple[Any, Any], inputs: tuple[Any, Any], context: Context
) -> Value:
    """The output of `apply(params, *inputs)` as a value, with its steps in `context.program`.

    Args:
        apply: the network at both widths.
        params: trees of shapes at both, with the paths of `context.parameters`.
        inputs: tuples of shapes at both, with batch sizes BATCHES.
        context: parameters; the steps are added to its program.

    Raises:
        Refusal: what has no kernel, with the primitive, the line of the model, and what to do.
    """
    closed = [jax.make_jaxpr(apply[k])(params[k], *inputs[k]) for k in (0, 1)]
    names = list(context.parameters)
    values = []
    leaves = [jax.tree.leaves((params[k], inputs[k])) for k in (0, 1)]
    for k, (one, two) in enumerate(zip(*leaves)):
        shape = list(zip(one.shape, two.shape))
        if k < len(names):
            dims = context.fresh_dims(shape, "free")
            values.append(Value(dims, Weight(names[k], own=dims)))
        else:
            values.append(
                Value(context.fresh_dims(shape, "position"), Finite(("input", k - len(names))))
            )
            if any(a.kind == "free" for a in ax.flat(values[-1].dims)):
                raise Refusal("the inputs grow with the width; they must have a fixed size")
    outs = run(context, [c.jaxpr for c in closed], [c.consts for c in closed], values)
    if len(outs) != 1:
        raise Refusal(
            f"no infinite-width kernel: the network returns {len(outs)} arrays; its kernel is that of one: let apply return the outputs alone"
        )
    return outs[0]


def run(context: Context, jaxprs: list, consts: list, args: list[Value]) -> list[Value]:
    """Values of the outputs of a jaxpr, read at both widths at once."""
    from ntk import primitives

    first, second = jaxprs
    if len(first.eqns) != len(second.eqns):
        raise Refusal("the program of the model differs between widths: it must not depend on it")
    env = dict(zip(first.constvars, (context.array(a, b) for a, b in zip(*consts))))
    env |= dict(zip(first.invars, args))

    def read(one: Any, two: Any) -> Value:
        if isinstance(one, jex.Literal):
            return context.array(one.val, two.val)
        return env[one]

    for one, two in zip(first.eqns, second.eqns):
        name = one.primitive.name
        if name != two.primitive.name:
            raise Refusal(
                f"the program of the model differs between widths ({name}, {two.primitive.name})"
            )
        values = [read(a, b) for a, b in zip(one.invars, two.invars)]
        outer = context.program.line
        context.program.line = line_of(one) or outer
        try:
            if name in _CALLS:
                outs = _call(context, one, two, values)
            else:
                outs = primitives.rule(context, one, two, values)
        except Refusal as refusal:
            raise _located(refusal, name, context.program.line) from None
        except ax.Mismatch as mismatch:
            raise _located(Refusal(str(mismatch)), name, context.program.line) from None
        context.program.line = outer
        env.update(zip(one.outvars, outs))
    return [read(a, b) for a, b in zip(first.outvars, second.outvars)]


def _located(refusal: Refusal, name: str, line: str) -> Refusal:
    if getattr(refusal, "located", False):
        return refusal
    where = f" at {line}" if line else ""
    text = str(refusal).removeprefix("no infinite-width kernel: ")
    out = Refusal(f"no infinite-width kernel: {text} ({name}{where})")
    out.located = True
    return out


def _call(context: Context, one: Any, two: Any, values: list[Value]) -> list[Value]:
    key = _CALLS[one.primitive.name]
    inner = [eqn.params[key] for eqn in (one, two)]
    jaxprs = [getattr(j, "jaxpr", j) for j in inner]
    consts = [getattr(j, "consts", ()) for j in inner]
    if one.primitive.name.startswith("custom") and any(co.is_random(v.body) for v in values):
        _check_derivative(one, jex.ClosedJaxpr(jaxprs[0], consts[0]))
    return run(context, jaxprs, consts, values)


def _check_derivative(equation: Any, inner: jex.ClosedJaxpr) -> None:
    """Refuses a derivative rule that is not the derivative, such as a straight-through estimator."""
    alone = jex.Jaxpr([], equation.invars, equation.outvars, [equation])
    call = jex.jaxpr_as_fun(jex.ClosedJaxpr(alone, []))
    body = jex.jaxpr_as_fun(inner)
    avals = [v.aval for v in equation.invars]
    if not all(jnp.issubdtype(a.dtype, jnp.floating) for a in avals):
        raise Refusal("a custom derivative rule of a function with arguments that are not floats")
    points = [
        jnp.asarray(np.resize(np.linspace(-3.05, 3, 61) + 0.01 * k, a.shape), a.dtype)
        for k, a in enumerate(avals)
    ]
    ones = [jnp.ones_like(p) for p in points]
    with jax.ensure_compile_time_eval():
        rules = [jax.jvp(f, points, ones)[1] for f in (call, body)]
    for a, b in zip(*rules):
        same = np.isclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-4)
        if same.mean() < 0.95:
            raise Refusal(
                "a function has a derivative rule of its own that is not its derivative; the tangent kernel would have "
                "to follow it: write it without custom_jvp and custom_vjp"
            )


def scaled_shape(one: Any, two: Any) -> list:
    """Size pairs of the first output of an equation."""
    return list(zip(one.outvars[0].aval.shape, two.outvars[0].aval.shape))


def materialised(context: Context, value: Value, axes: set) -> Value:
    """An array of numbers with some of its constant axes written out as positions."""
    if not axes:
        return value
    renames = {a: (Axis("position", a.size),) for a in axes}
    dims = ax.substitute(value.dims, renames)
    from ntk.steps import shape_code

    if isinstance(value.body, Number):
        array = np.full(tuple(s for _, s in shape_code(dims)), value.body.number)
        return Value(dims, Finite(context.program.constant(array), value.body.power))
    static = ("broadcast", (), (shape_code(value.dims),), shape_code(dims))
    index = finite_step(context, static, [value.body.index])
    return Value(dims, value.body._replace(index=index))


def finite_step(context: Context, static: tuple, inputs: list) -> Any:
    """Index of a step on arrays of numbers; computed at once if all of them are constants."""
    from ntk.numbers import run_finite

    if all(isinstance(i, tuple) and i[0] == "constant" for i in inputs):
        arrays = [context.program.constants[i[1]] for i in inputs]
        with jax.ensure_compile_time_eval():
            out = run_finite(static, [jnp.asarray(a) for a in arrays], 1, jnp.result_type(float))
        return context.program.constant(np.asarray(out))
    return context.program.add("finite", static, inputs)
