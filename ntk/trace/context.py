"""What the rules of primitives share: the parameters, the steps written so far, and arrays as values."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ntk.arguments import is_key
from ntk.infinite.weight_laws import NORMAL, Standard
from ntk.trace import axes as ax
from ntk.trace import coordinates as co
from ntk.trace import initial
from ntk.trace.axes import BATCHES, WIDTHS, Axis
from ntk.trace.coordinates import Number, NumberArray, Refusal, Table, Value, Weight
from ntk.trace.steps import Note, Program


class Parameter(NamedTuple):
    """A parameter of the family.

    Attributes:
        laws: its law at both widths.
        shapes: its shape at both widths.
        rate: factor of its learning rate.
        fan: number of entries that it sums over at the base width, if there is one and that number grows.
    """

    laws: tuple[initial.Law, initial.Law]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    rate: float
    fan: int | None = None


HEADS = (
    "a nonlinearity, a norm, or weights of one head alone act on the outputs of attention whose scores stay random "
    "(scaled by 1/sqrt(d)): given its scores each head has a law of its own, and only a layer that sums over all heads "
    "has a rule here. Let the output projection come first, or scale scores by 1/d (attention_scale='1/d' in `models`)"
)


class Context:
    """What the rules of primitives share."""

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        attention_samples: int = 1024,
        double: bool = False,
    ):
        self.double = double  # whether the model runs in double precision
        self.program = Program()
        self.parameters = parameters
        self.sample = Axis("sample", BATCHES)
        self.used: dict[str, np.ndarray] = {}
        self.sources: dict = {}
        self.facts: dict[str, dict] = {}
        self.sizes: set = {WIDTHS}
        self.scales: list[str] = []
        self.fluctuations: set[int] = set()
        self.sums: set[int] = set()  # over infinitely many units of mean zero
        self.attention_samples = attention_samples
        self.heads: dict[int, tuple[int, tuple[int, ...]]] = {}
        self.unlike: dict[int, str] = {}  # what is no Gaussian though a layer of weights, and why
        self.custom = 0  # how many functions with a derivative rule of their own are being read
        self.hows: dict[tuple, tuple] = {}  # by the parameter: what layers of weights sum over
        self.ties: dict[tuple, list[int]] = {}  # by the parameter: its layers of weights
        self.copied: dict[int, tuple] = {}  # by the process whose units a process tells apart
        # by id: a body, and the line and module that made it
        self.origins: dict[int, tuple[Any, str, str]] = {}

    def made(self, values: Sequence[Value | None]) -> None:
        """Notes where in the model values were made: their steps are written where they are first read."""
        for value in values:
            if value is not None:
                origin = (value.body, self.program.line, self.program.module)
                self.origins.setdefault(id(value.body), origin)

    @contextlib.contextmanager
    def origin(self, body: Any) -> Iterator[None]:
        """Steps that are written inside belong to where the body was made."""
        program, (line, module) = self.program, (self.program.line, self.program.module)
        _, program.line, program.module = self.origins.get(id(body), (body, line, module))
        try:
            yield
        finally:
            program.line, program.module = line, module

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
            # The power whose factor is the same at both widths.
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
        if is_key(one):
            raise Refusal(
                "the network draws random numbers when it is called, so that it has no kernel: switch that off with "
                "call=dict(deterministic=True) or call=dict(train=False), as the model has it; an NNX factory may also "
                "return model.eval()"
            )
        one, two = np.asarray(one), np.asarray(two)
        if one.dtype.kind == "c":
            raise Refusal(
                "complex numbers in the model have no rule: write real and imaginary parts, or take means over finite "
                'networks: otherwise="sample"'
            )
        if one.size and _uniform(one) and _uniform(two):
            dims = self.fresh_dims(list(zip(one.shape, two.shape)), "free")
            if one.dtype.kind not in "fiub":
                return Value(dims, Number(float(one.flat[0])))
            try:
                return Value(dims, self.number(one.flat[0], two.flat[0]))
            except Refusal:
                # Refused where something else than a constant reads it.
                return Value(dims, Table(one, two))
        dims = self.fresh_dims(list(zip(one.shape, two.shape)), "position")
        if one.shape != two.shape or not np.allclose(
            one, two, rtol=1e-5, atol=1e-7, equal_nan=True
        ):
            return Value(dims, Table(one, two))
        return Value(dims, NumberArray(self.program.constant(one)))

    def fresh_dims(self, shape: list, kind: str) -> ax.Dims:
        """Axes of a new array of the given size pairs."""
        dims: list[tuple[Axis, ...]] = []
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
        why = initial.refusal(weight.name, one) or initial.refusal(weight.name, two)
        if why:
            raise Refusal(why)
        variance, power = 0.0, 0.0
        if one.variance or two.variance:
            variance, power = variance_law(weight.name, one.variance, two.variance)
        mean = one.mean * weight.number
        if one.mean != two.mean:
            raise Refusal(f"the initial mean of {weight.name} depends on the width")
        return mean, variance * weight.number**2, power + 2 * weight.power, parameter.rate

    def zero(self, weight: Weight, count: float, grows: float) -> tuple[float, float]:
        """(variance, rate) of a sum over entries with weights that are zero at initialisation.

        The weights are fan_in^-1/2 times what is trained where their fan-in grows, or, with a base width, what they
        are there times (growth of the fan-in)^-1/2.
        """
        parameter = self.parameters[weight.name]
        if grows:
            count = parameter.fan or 1.0
        return 0.0, parameter.rate * count * weight.number**2

    def standard(self, weight: Weight) -> Standard:
        """Law of an entry of a parameter, shifted and scaled to mean 0 and variance 1."""
        law = self.parameters[weight.name].laws[0]
        if law.kind in ("truncated normal", "uniform", "other"):
            return Standard(law.kind, law.quantiles)
        return NORMAL

    def consume(self, weight: Weight, how: tuple | None = None) -> None:
        """Marks a parameter as used; a second use is refused, but by a layer like the first.

        Args:
            weight: the parameter.
            how: which dimensions a layer of weights sums over; None for what may use it once.
        """
        key = (weight.name, weight.part)
        if how is not None and self.hows.setdefault(key, how) == how and key in self.ties:
            self.program.joint = True
            return
        if how is not None:
            self.ties[key] = []
        shape = self.parameters[weight.name].shapes[0]
        used = self.used.setdefault(weight.name, np.zeros(shape, bool))
        region = [slice(None)] * len(shape)
        for axis, start, stop in weight.part:
            region[axis] = slice(start, stop)
        if used[tuple(region)].any():
            raise used_twice(weight.name)
        used[tuple(region)] = True

    def vanishes(self, body: Any) -> bool:
        """Whether a body is made of scores alone that vanish as the width grows, as under a factor 1/d."""
        small = self.fluctuations | self.sums
        return isinstance(body, co.Linear) and all(
            ref.process.index in small and c.power < 0 for ref, c in body.terms
        )

    def are_scores(self, body: Any) -> bool:
        """Whether a body is made of scores alone that stay random, as under a factor 1/sqrt(d)."""
        if not isinstance(body, co.Linear) or not body.terms:
            return False
        alone = all(ref.process.index in self.fluctuations for ref, _ in body.terms)
        return alone and max(c.power for _, c in body.terms) == 0

    def check_scores(self, body: Any) -> None:
        """Refuses scores of a size that grows, and such as were mixed with other activations."""
        if not isinstance(body, co.Linear | co.Terms | co.Pieces):
            return
        if any(ref.process.index in self.fluctuations for ref in co.refs_of(body)):
            raise Refusal(
                "a softmax or another nonlinearity of attention scores that grow with the width, or that were added to "
                "or multiplied with other activations: scale them by 1/sqrt(d) or 1/d, d the size of a head, and leave "
                "out what is trained beside them (biases of scores), or freeze it: learning_rates={name: 0}"
            )

    def check_heads(self, body: Any, pooled: Any = (), mean: bool = False) -> None:
        """Refuses what acts on the heads of random attention one by one.

        Args:
            body: of activations.
            pooled: axes that are summed over.
            mean: whether without random weights, so that one head alone has no limit either.
        """
        for ref in co.refs_of(body):
            for index, _ in ref.process.bases:
                if index not in self.heads:
                    continue
                count, places = self.heads[index]
                own = [ref.units[k] for k in places] if len(ref.units) == count else ref.units
                if any(a not in pooled for a in own) or (mean and not own):
                    raise Refusal(HEADS)

    def limit(self, value: Value) -> Value:
        """The value, with zeros in place of scores that vanish."""
        if not self.vanishes(value.body):
            return value
        zeros = np.zeros((1,) * len(value.dims))
        return Value(value.dims, NumberArray(self.program.constant(zeros)))

    def add_layer(
        self, name: str, op: Any, source: Any, axes: tuple, variance: float, role: str = "weights"
    ) -> int:
        """Number of the step of a layer of fresh weights, which is recorded for a reader."""
        facts = {"variance": variance, "rate": op.rate, "fixed": op.law != NORMAL}
        self.record(name, role=role, mean=0.0, **facts)
        note = Note(name, axes=ax.sizes_text(axes), parameters=(name,))
        return self.program.add(op, (source,), note)

    def record(self, name: str, **facts: Any) -> None:
        self.facts.setdefault(name, {}).update(facts)


def used_twice(name: str) -> Refusal:
    """The refusal of a parameter that is used twice."""
    return Refusal(
        f"the parameter {name} is used twice in different ways (an embedding that also reads out, a matrix and its "
        "transpose, a convolution, a part of it): uses of one matrix are correlated, which is followed only where each "
        "is a dense layer alike. Give each use its own parameter, or take means over finite networks: "
        'otherwise="sample"'
    )


def variance_law(name: str, one: float, two: float) -> tuple[float, float]:
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
    # 720 = 6!: halves to sixths and their multiples, and these over 1024, as widths of powers of two make them.
    for scale in (1, 2**10):
        top = round(x * scale * 720)
        if top and math.isclose(top / (720 * scale), x, rel_tol=5e-7):
            return top / (720 * scale)
    return x


def scaled_shape(one: Any, two: Any) -> list:
    """Size pairs of the first output of an equation."""
    return list(zip(one.outvars[0].aval.shape, two.outvars[0].aval.shape))


def _uniform(array: np.ndarray) -> bool:
    """Whether all entries are the same number, nan (what `jnp.var` has for no samples) among them."""
    first = array.flat[0]
    return bool(((array == first) | ((array != array) & (first != first))).all())
