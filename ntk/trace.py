"""The infinite-width limit of a family of networks, read from its own code.

`infinite_width(family, example)` gives the NNGP and the NTK of the limit of `limits.parametrize(family, "ntk")`: every
weight is its initial standard deviation times a standard normal and is trained at unit rate. `explain` shows the
derivation step by step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from html import escape
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk import axes as ax
from ntk import family as families
from ntk import initial, interpret, moments, spatial
from ntk import run as running
from ntk.activations import described
from ntk.axes import BATCHES, WIDTHS
from ntk.coordinates import Coefficient, Linear, Refusal, is_random
from ntk.evaluate import KernelFn
from ntk.family import match, named_leaves
from ntk.inputs import Plan
from ntk.interpret import Context, Parameter
from ntk.kernel import Array, Kernel
from ntk.layers import process_of
from ntk.loops import Loop, loops
from ntk.moments import Law
from ntk.run import Setting, Sides
from ntk.steps import Note, Program, Step


class Traced(NamedTuple):
    """A family after tracing.

    Attributes:
        steps: the steps that the output depends on.
        notes: what a reader is told of each.
        constants: arrays of the model.
        order: for each axis of positions of the output, its place among those of the last step.
        dtypes: of the inputs of the model.
        parameters: what was found of each parameter, by its path.
        loops: runs of equal blocks of steps.
    """

    steps: tuple[Step, ...]
    notes: tuple[Note, ...]
    constants: tuple[np.ndarray, ...]
    order: tuple[int, ...]
    dtypes: tuple[Any, ...]
    parameters: dict[str, dict]
    loops: tuple[Loop, ...]


def infinite_width(
    family: Callable,
    example: Any,
    *,
    parametrization: str = "ntk",
    base_width: int | None = None,
    learning_rates: Any = None,
    bias_std: float | None = None,
    batched: bool = True,
) -> KernelFn:
    """NNGP and NTK of the infinite-width limit of a family of networks, read from its own code.

    The limit is that of `ntk.empirical_ntk`, and of the outputs' covariance, of the finite networks of the family whose
    weights are their initial standard deviation times a standard normal and are trained at unit rate; a parameter
    that is constant at initialisation (a bias at zero, the gain of a norm) is trained as it stands.

    Args:
        family: a function of the width that returns a linen module, an NNX factory, or (init, apply); see
            `ntk.family`. Widths 64 and 256 must be allowed.
        example: an input (array or jax.ShapeDtypeStruct), or a tuple of several; the batch axis comes first.
        parametrization: "ntk"; no other has a kernel limit.
        base_width: the width whose initial scale is kept, as in `limits.parametrize(..., base_width=...)`: needed where
            an initializer does not divide by the fan-in. None if the model's own scale has a limit.
        learning_rates: factors of the learning rates, 1 by default: a tree like the parameters, or {pattern of the
            path: factor}; 0 freezes a parameter.
        bias_std: standard deviation given to parameters named `bias` that start at zero; None leaves them there.
        batched: whether `apply` takes a batch; False if it takes one example, which `example` is then.

    Returns:
        `kernel_fn(x1, x2=None, get=None)`, see `ntk.evaluate.KernelFn`.

    Raises:
        ValueError: the model contains an operation without a limit here; the message names the primitive, the line
            of the model, and what to do. Also for parametrizations without a kernel limit.

    Source: Yang (2019, 2020), Tensor Programs I and II; Yang & Littwin (2021), Tensor Programs IIb.
    """
    traced = _trace(family, example, parametrization, base_width, learning_rates, bias_std, batched)
    return kernel_function(traced, batched)


def explain(family: Callable, example: Any, **options: Any) -> Explanation:
    """The derivation of `infinite_width(family, example, **options)`: its steps, and what is assumed of each parameter.

    Args:
        family: as in `infinite_width`.
        example: the same.
        **options: the same.

    Returns:
        Explanation(steps, parameters); prints as two tables in a terminal and in a notebook.
    """
    defaults = {
        "parametrization": "ntk",
        "base_width": None,
        "learning_rates": None,
        "bias_std": None,
        "batched": True,
    }
    unknown = set(options) - set(defaults)
    if unknown:
        raise ValueError(f"explain has no option {sorted(unknown)}; there are {sorted(defaults)}")
    return explanation(_trace(family, example, *(defaults | options).values()))


# --- tracing --------------------------------------------------------------------------------------


def _trace(
    family: Callable,
    example: Any,
    parametrization: str,
    base_width: int | None,
    learning_rates: Any,
    bias_std: float | None,
    batched: bool,
) -> Traced:
    _check_parametrization(parametrization)
    inputs = example if isinstance(example, tuple) else (example,)
    if not batched:
        inputs = tuple(jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for x in inputs)
    for x in inputs:
        if not hasattr(x, "shape") or len(x.shape) < 1:
            raise ValueError("example must be an array (or several) whose first axis is the batch")
    first = tuple(
        jax.ShapeDtypeStruct(x.shape[1:] if not batched else x.shape, x.dtype) for x in inputs
    )
    with jax.enable_x64(True):
        nets = [families.network(family, width, first) for width in WIDTHS]
        laws = [initial.laws(net.init) for net in nets]
        parameters = _parameters(laws, family, first, base_width, learning_rates, bias_std)
        shapes = [
            tuple(jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in inputs)
            for batch in BATCHES
        ]
        trees = [_shapes(net.init) for net in nets]
        context = Context(parameters)
        applies = [_apply(net, family, width, first, batched) for net, width in zip(nets, WIDTHS)]
        try:
            out = interpret.trace(applies, trees, shapes, context)
            return _finished(context, out, inputs)
        except Refusal as refusal:
            raise ValueError(str(refusal)) from None


def _check_parametrization(name: str) -> None:
    if name == "ntk":
        return
    frozen = {
        "mup": "under muP features move at every width, so that training does not follow a fixed kernel (and the "
        "outputs at initialisation vanish)",
        "mean_field": "in the mean-field parametrization the outputs at initialisation vanish and features move, so "
        "that training does not follow a fixed kernel",
        "standard": "in the standard parametrization the tangent kernel grows with the width; learning rates that "
        "shrink like 1/width give the NTK parametrization",
    }
    if name in frozen:
        raise ValueError(
            f'no kernel limit: {frozen[name]}. Use parametrization="ntk", or limits.feature_learning for the limit of '
            "training"
        )
    raise ValueError(f'parametrization is {name!r}; only "ntk" has a kernel limit')


def _shapes(init: Callable) -> Any:
    tree = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), tree)


def _apply(net: Any, family: Callable, width: int, first: tuple, batched: bool) -> Callable:
    state = (
        families.initial_state(family, width, first, jax.random.key(0))
        if _keeps(family, width, first)
        else {}
    )
    keywords = {"state": state} if state else {}

    def apply(params: Any, *inputs: Any) -> Any:
        if batched:
            return net.apply(params, *inputs, **keywords)
        return jax.vmap(lambda *x: net.apply(params, *x, **keywords))(*inputs)

    return apply


def _keeps(family: Callable, width: int, first: tuple) -> bool:
    shapes = jax.eval_shape(
        lambda key: families.initial_state(family, width, first, key), jax.random.key(0)
    )
    return bool(jax.tree.leaves(shapes))


def _parameters(
    laws: list, family: Callable, first: tuple, base_width: int | None, rates: Any, bias_std: Any
) -> dict[str, Parameter]:
    (one, shapes1), (two, shapes2) = laws
    if list(one) != list(two):
        raise ValueError(
            f"the parameters of the family differ between widths: {sorted(set(one) ^ set(two))}"
        )
    factors = _rates(rates, one)
    pairs = {name: (one[name], two[name]) for name in one}
    if base_width is not None:
        pairs = _at_base(pairs, family, first, base_width)
    out = {}
    for name, (low, high) in pairs.items():
        if bias_std and name.split("/")[-1] == "bias" and low.kind == high.kind == "constant":
            if low.mean == 0:
                low = high = initial.Law(0.0, bias_std**2, "normal")
        shapes = (shapes1[name], shapes2[name])
        out[name] = Parameter((low, high), shapes, factors[name])
    return out


def _rates(rates: Any, names: Any) -> dict[str, float]:
    if rates is None:
        return dict.fromkeys(names, 1.0)
    given = {name: value for name, value in named_leaves(rates).items()}
    if set(given) == set(names):
        return {name: float(given[name]) for name in names}
    out = dict.fromkeys(names, 1.0)
    if not isinstance(rates, Mapping):
        raise ValueError("learning_rates must be a tree like the parameters, or {pattern: factor}")
    for pattern, value in rates.items():
        found = [name for name in names if match(name, [pattern])]
        if not found:
            raise ValueError(
                f"learning_rates: {pattern!r} matches no parameter; there are {list(names)}"
            )
        out |= dict.fromkeys(found, float(value))
    return out


def _at_base(pairs: dict, family: Callable, first: tuple, base_width: int) -> dict:
    """Laws whose scale at one width is kept: hidden and output weights divide by the growth of their fan-in."""
    base, _ = initial.laws(families.network(family, base_width, first).init)
    axes = families.width_axes(family, first, widths=(base_width, *WIDTHS))
    named = named_leaves(axes, is_leaf=lambda leaf: isinstance(leaf, families.ParamAxes))
    out = {}
    for name in pairs:
        law, fans = base[name], [named[name].fans(k)[0] for k in range(3)]
        ratios = [1.0, 1.0]
        if named[name].role in ("hidden", "output"):
            ratios = [fans[0] / fans[k] for k in (1, 2)]
        out[name] = tuple(law._replace(variance=law.variance * r) for r in ratios)
    return out


def _finished(context: Context, out: Any, inputs: tuple) -> Traced:
    if not is_random(out.body):
        raise Refusal(
            "no infinite-width kernel: the output does not depend on random weights, or is a mean over units, which "
            "is the same for every initialisation"
        )
    if any(a.infinite for a in ax.units(out.dims)):
        raise Refusal(
            "no infinite-width kernel: the outputs grow with the width; add a readout of fixed size"
        )
    body = out.body
    if isinstance(body, Linear):
        powers = {c.power for _, c in body.terms}
        if powers != {0.0}:
            why = f": {context.scales[-1]}" if context.scales else ""
            raise Refusal(
                f"no infinite-width kernel: the outputs are of size width^{max(powers):g}{why}"
            )
    ref = process_of(context, body)
    if ref.maps or body == Coefficient():
        raise AssertionError
    axes = ax.positions(out.dims)
    last = ref.process.index
    order = tuple(ref.axes.index(a) for a in axes if a in ref.axes)
    steps, notes = _pruned(context.program, last)
    dtypes = tuple(np.dtype(x.dtype) for x in inputs)
    constants = tuple(context.program.constants)
    return Traced(steps, notes, constants, order, dtypes, context.facts, loops(steps))


def _pruned(program: Program, last: int) -> tuple[tuple[Step, ...], tuple[Note, ...]]:
    """The steps that the last one depends on, biases put into the layers that they follow."""
    steps, notes = _fused(program, last)
    used = {last}
    for index in range(last, -1, -1):
        if index in used:
            used |= {i for i in steps[index].inputs if isinstance(i, int)}
    new = {old: k for k, old in enumerate(sorted(used))}
    kept = tuple(
        steps[old]._replace(
            inputs=tuple(new[i] if isinstance(i, int) else i for i in steps[old].inputs)
        )
        for old in new
    )
    return kept, tuple(notes[old] for old in new)


def _fused(program: Program, last: int) -> tuple[list[Step], list[Note]]:
    steps, notes = list(program.steps), list(program.notes)
    uses: dict[Any, int] = {}
    for step in steps:
        for source in step.inputs:
            uses[source] = uses.get(source, 0) + 1
    for index, step in enumerate(steps):
        if step.operation != "combine":
            continue
        count, pieces, _ = step.static
        first = step.inputs[0]
        vectors = [steps[i] for i in step.inputs[1:] if isinstance(i, int)]
        plain = all(not maps and not given and number == 1 for _, maps, _, number, given in pieces)
        layer = steps[first] if isinstance(first, int) else None
        fits = (
            plain
            and layer is not None
            and layer.operation == "affine"
            and layer.static[3] is None
            and uses[first] == 1
            and len(vectors) == 1 == len(pieces) - 1
            and vectors[0].operation == "vector"
            and not vectors[0].static[2]
            and pieces[0][2] == tuple(range(len(pieces[0][2])))
        )
        if fits:
            variance, rate, _ = vectors[0].static
            static = (*layer.static[:3], (variance, rate), *layer.static[4:])
            steps[index] = Step("affine", static, layer.inputs)
            names = notes[first].parameters + notes[step.inputs[1]].parameters
            notes[index] = notes[first]._replace(parameters=names)
    return steps, notes


# --- evaluation -----------------------------------------------------------------------------------


def kernel_function(traced: Traced, batched: bool = True) -> KernelFn:
    """The kernel function of a traced network."""

    def pair(x1: Any, x2: Any, coincident: Array | None, plan: Plan) -> Kernel:
        return _evaluated(traced, x1, x2, coincident, plan)

    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError("the kernel of a traced network is a function of inputs, not of a Kernel")

    area = max([math.prod(_sizes(step)) for step in traced.steps] + [1])
    return KernelFn(refuse, lambda need: need, ("traced", id(traced)), None, None, pair, area)


def _sizes(step: Step) -> tuple[int, ...]:
    if step.operation in ("combine", "function", "mean", "data"):
        return step.static[2 if step.operation == "combine" else 1]
    return ()


def _evaluated(traced: Traced, x1: Any, x2: Any, coincident: Any, plan: Plan) -> Kernel:
    firsts, seconds = (x if isinstance(x, tuple) else (x,) for x in (x1, x2))
    if len(firsts) != len(traced.dtypes):
        raise ValueError(f"the network takes {len(traced.dtypes)} inputs, and got {len(firsts)}")
    dtype = next((x.dtype for x in firsts if jnp.issubdtype(x.dtype, jnp.floating)), jnp.float32)
    samples = firsts[0].shape[0], seconds[0].shape[0]
    setting = Setting(samples, dtype, plan, coincident)
    needs = running.needs_of(traced.steps, len(traced.steps) - 1, plan.need)
    values: dict[Any, Any] = {}
    for k, (one, two, kind) in enumerate(zip(firsts, seconds, traced.dtypes)):
        if not np.issubdtype(kind, np.floating):
            one, two = one.astype(jnp.int32), two.astype(jnp.int32)
        values["input", k] = Sides(one, two)
    for k, array in enumerate(traced.constants):
        array = jnp.asarray(array, dtype if array.dtype.kind == "f" else None)
        values["constant", k] = Sides(array, array)
    law = running.run(traced.steps, traced.loops, values, needs, setting)
    kernel = running._broadcast(law.kernel, setting)
    kernel = spatial.reorder(running.fitted(kernel, plan.need), list(traced.order))
    if kernel.ntk is not None and kernel.ntk.ndim == 0:
        kernel = kernel.replace(ntk=jnp.zeros_like(kernel.correlation))
    shape = tuple(kernel.var1.shape[1:])
    return dataclasses.replace(
        kernel,
        coincident=coincident,
        mask1=None,
        mask2=None,
        shape1=(samples[0], *shape, -1),
        shape2=(samples[1], *shape, -1),
        symmetric=plan.symmetric,
        batch_axis=0,
        channel_axis=1 + len(shape),
        is_input=False,
    )


# --- explanation ----------------------------------------------------------------------------------


class StepRow(NamedTuple):
    """One step of a derivation."""

    step: str
    operation: str
    what: str
    positions: str
    K: str
    line: str


class ParameterRow(NamedTuple):
    """What is assumed of a parameter.

    Attributes:
        parameter: its path.
        role: "weights" sum over units, "table" is looked up, "vector" acts on each unit alone.
        initial_variance: that of an entry times the number of entries summed over.
        rate: factor of its part in the NTK.
    """

    parameter: str
    role: str
    initial_law: str
    initial_variance: float
    rate: float


class Explanation(NamedTuple):
    """A derivation as two tables; prints in a terminal and renders in a notebook."""

    steps: list[StepRow]
    parameters: list[ParameterRow]

    def __str__(self) -> str:
        return f"{_table(self.steps, StepRow)}\n\n{_table(self.parameters, ParameterRow)}"

    def _repr_html_(self) -> str:
        return _html(self.steps, StepRow) + _html(self.parameters, ParameterRow)


def _cells(row: Any) -> list[str]:
    return [f"{x:.6g}" if isinstance(x, float) else str(x) for x in row]


def _table(rows: list, kind: Any) -> str:
    lines = [list(kind._fields), *map(_cells, rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(kind._fields))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _html(rows: list, kind: Any) -> str:
    head = "".join(f"<th>{name}</th>" for name in kind._fields)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(row)) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


_TEXTS = {
    "affine": "weights",
    "function": "function",
    "convolve": "convolution",
    "combine": "sum",
    "mean": "mean over units",
    "data": "data",
    "vector": "vector",
    "lookup": "embedding",
    "mix": "side by side",
    "finite": "numbers",
    "scores": "scores",
    "attend": "attention",
}


def explanation(traced: Traced) -> Explanation:
    """The tables of a traced network."""
    rows, index = [], 0
    starts = {loop.start: loop for loop in traced.loops}
    while index < len(traced.steps):
        loop = starts.get(index)
        length, count = (loop.length, loop.count) if loop else (1, 1)
        for k in range(index, index + length):
            if traced.steps[k].operation != "finite":
                number = f"{k}" + (f" (x {count})" if count > 1 else "")
                rows.append(_step_row(number, traced.steps[k], traced.notes[k]))
        index += length * count
    parameters = [
        ParameterRow(
            name,
            facts["role"],
            f"mean {facts['mean']:g}" if not facts["variance"] else "normal",
            facts["variance"],
            facts["rate"],
        )
        for name, facts in traced.parameters.items()
    ]
    return Explanation(rows, parameters)


def _step_row(number: str, step: Step, note: Note) -> StepRow:
    formula = ""
    if step.operation in ("affine", "convolve"):
        formula = f"{step.static[0]:.6g} K" + (
            " averaged over the window" if step.operation == "convolve" else ""
        )
        if step.operation == "affine" and step.static[3]:
            formula += f" + {step.static[3][0]:.6g}"
    elif step.operation in ("vector", "lookup"):
        formula = f"{step.static[0]:.6g}"
    elif step.operation == "function":
        formula = "E[f(u) f(v)]"
    if step.operation in ("function", "mean"):
        text = " + ".join(described(term) for term in step.static[0])
        return StepRow(number, _TEXTS[step.operation], text, note.axes, formula, note.line)
    text = ", ".join(note.parameters) if step.operation in ("affine", "convolve") else note.text
    return StepRow(number, _TEXTS[step.operation], text, note.axes, formula, note.line)


__all__ = ["Explanation", "Law", "explain", "infinite_width", "moments"]
