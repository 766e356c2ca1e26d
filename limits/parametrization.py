"""abc-parametrizations around an unchanged model: what to multiply, how to initialise, how fast to learn.

A parameter of growth m (its fan relative to the base width) is used as m^-a w, initialised at its standard
deviation at the base width times m^-b, and learns at eta m^-c. At the base width every factor is one and the
network is the plain Flax network, bit for bit.
"""

import math
from collections.abc import Callable
from html import escape
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from limits import optimizers
from limits.exponents import (
    DEPTH_RULES,
    Exponents,
    Rule,
    branch_multiplier,
    depth_alpha,
    named_rule,
)
from limits.optimizers import multiply
from ntk import family as families
from ntk.family import ParamAxes, named_leaves


class Factors(NamedTuple):
    """What is done to one parameter: all Python floats, all one at the base width and depth."""

    multiplier: float
    init: float
    sgd: float
    adam: float
    gradient: float


class Row(NamedTuple):
    """One parameter in a summary."""

    parameter: str
    role: str
    shape: tuple
    init_std: float
    multiplier: float
    lr_sgd: float
    lr_adam: float


class Summary(NamedTuple):
    """A table of all parameters, for the terminal (str) and the notebook (HTML)."""

    title: str
    rows: list[Row]

    def __str__(self):
        cells = [Row._fields, *(self._cells(row) for row in self.rows)]
        lengths = [max(len(line[k]) for line in cells) for k in range(len(Row._fields))]
        lines = ["  ".join(map(str.ljust, line, lengths)).rstrip() for line in cells]
        return "\n".join([self.title, *lines])

    def _repr_html_(self):
        head = "".join(f"<th>{field}</th>" for field in Row._fields)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in self._cells(row)) + "</tr>"
            for row in self.rows
        )
        return f"<table><caption>{escape(self.title)}</caption><tr>{head}</tr>{body}</table>"

    def _cells(self, row):
        return [f"{x:.4g}" if isinstance(x, float) else str(x) for x in row]


class Parametrized(NamedTuple):
    """A network at one width under a rule: pure functions, and the trees of factors that they apply.

    Attributes:
        init: `init(key) -> params`, the model's own initialisation times `init_scale`.
        apply: `apply(params, *inputs, **kwargs)`, the model at params times `multiplier`; keywords as in
            `ntk.family.Network`.
        state: `state(key)`, what the model keeps besides parameters ({} for most), for `apply(..., state=)`.
        optimizer: `optimizer(factory, learning_rate, *, kind=None, **kwargs)`, an optax transformation: the
            factory's, with a factor on each parameter's learning rate. `learning_rate` is a float, a traced
            scalar or a schedule; `kwargs` go to the factory; `kind` is "sgd" or "adam" for a factory that
            is not known. Weight decay does not inherit the factor; Adam's eps follows the gradient.
        summary: `summary()`, one row per parameter; prints in a terminal and in a notebook.
        lr_scale: `lr_scale(kind)`, the tree of learning-rate factors of "sgd" or "adam": the D of the
            scaled Hessian D^(1/2) H D^(1/2).
        axes: tree of ParamAxes; their first shape is at the base width, their last at the width.
        multiplier: tree of forward multipliers m^-a.
        init_scale: tree of factors on the model's own initialisation.
        rule: the Rule.
        width, base_width: as given.
        factors: every factor as a table, {field of Factors: {path name: float}}.
        with_factors: `with_factors(table)`, the same network with other factors, which may be traced: one
            compiled program then serves every rule at a width.
    """

    init: Callable
    apply: Callable
    state: Callable
    optimizer: Callable
    summary: Callable
    lr_scale: Callable
    axes: Any
    multiplier: Any
    init_scale: Any
    rule: Rule
    width: int
    base_width: int
    factors: dict
    with_factors: Callable


def parametrize(
    family,
    rule,
    *,
    width,
    base_width,
    example=None,
    roles=None,
    depth_rule=None,
    depth=None,
    base_depth=None,
    branch=None,
    branch_last=None,
) -> Parametrized:
    """A family at one width under an abc-parametrization, with no change to the model.

    The exponents are statements about the network at width m n_0 relative to base width n_0. They hold
    whatever initializer the model uses: how its standard deviation scales by itself is measured between two
    small widths, and corrected. "standard" therefore changes nothing in a model of fan-in initializers
    (LeCun, He), and adds the missing m^(-1/2) to a constant standard deviation.

    Two things stay with the model: attention logits divided by the head size instead of its square root, and
    a tied readout (role "tied": trained as the embedding it is; the model divides its logits by m for mup and
    mean_field, by sqrt(m) for ntk).

    Args:
        family: a function of the width, see `ntk.family`.
        rule: "standard", "ntk", "mup", "mean_field", or a Rule.
        width: the width n.
        base_width: the width n_0 at which the hyper-parameters were tuned.
        example: input (or tuple of inputs) of a linen model.
        roles: roles of parameters that names and shapes cannot tell, see `ntk.family.width_axes`.
        depth_rule: "sqrt", "1/L" or "completep" for residual networks; needs the next three arguments.
        depth: number of residual branches of this family.
        base_depth: number of residual branches at which the hyper-parameters were tuned.
        branch: pattern of the paths of all parameters inside residual branches, `"block_*"`.
        branch_last: pattern of the parameters (kernel and bias) of the last linear layer of each branch,
            `"block_*/out/*"`: the branch multiplier is applied to them. None if the model itself multiplies
            its branches by `branch_multiplier(depth_rule, depth, base_depth)`.

    Returns:
        Parametrized(init, apply, optimizer, summary, ...).

    Raises:
        ValueError: an unknown rule; a family that is ambiguous, does not grow or reads out with no parameter
            of role "output"; an initializer whose scale follows no power of the fans.

    Source: Yang & Hu (2021), Tensor Programs IV; Yang et al. (2022), Tensor Programs V.
    """
    rule = named_rule(rule)
    probe = base_width * max(1, -(-_PROBE_WIDTH // max(base_width, 1)))
    widths = (base_width, probe, 4 * probe, width)
    axes = families.width_axes(family, example, widths=widths, roles=roles)
    named = named_leaves(axes, is_leaf=_is_axes)
    _check_readout(family, example, widths, named)
    net = families.network(family, width, example)
    own = _own_scales(family, example, widths, named)
    depths = _depth_factors(depth_rule, depth, base_depth, branch, branch_last, named)
    factors = {name: _factors(rule, leaf, own[name], *depths[name]) for name, leaf in named.items()}
    table = {field: {n: getattr(f, field) for n, f in factors.items()} for field in Factors._fields}
    return _parametrized(table, net, axes, rule, width, base_width, family, example)


def _parametrized(factors, net, axes, rule, width, base_width, family, example) -> Parametrized:
    """The pure functions around `net` that apply a table of factors, {field: {path name: factor}}."""

    def tree(field):
        structure = jax.tree.structure(axes, is_leaf=_is_axes)
        return jax.tree.unflatten(structure, factors[field].values())

    def lr_scale(kind):
        if kind not in ("sgd", "adam"):
            raise ValueError(f'kind is {kind!r}; allowed are "sgd" and "adam"')
        return tree(kind)

    def optimizer(factory, learning_rate, *, kind=None, **kwargs):
        kind = optimizers.optimizer_kind(factory, kind)
        gradient = factors["gradient"] if kind == "adam" else None
        inner = factory(learning_rate, **kwargs)
        return optimizers.scale_per_leaf(inner, factors[kind], gradient)

    def init(key):
        return multiply(net.init(key), factors["init"])

    def apply(params, *inputs, **kwargs):
        return net.apply(multiply(params, factors["multiplier"]), *inputs, **kwargs)

    def with_factors(factors):
        return _parametrized(factors, net, axes, rule, width, base_width, family, example)

    return Parametrized(
        init=init,
        apply=apply,
        state=lambda key: families.initial_state(family, width, example, key),
        optimizer=optimizer,
        summary=lambda: _summary(rule, width, base_width, axes, factors, init),
        lr_scale=lr_scale,
        axes=axes,
        multiplier=tree("multiplier"),
        init_scale=tree("init"),
        rule=rule,
        width=width,
        base_width=base_width,
        factors=factors,
        with_factors=with_factors,
    )


def _is_axes(leaf):
    return isinstance(leaf, ParamAxes)


def _growth(axes, index=-1):
    """(m, m_out): growth of the fan that a, b and the first part of c go with, and of the fan-out."""
    m_in, m_out = (now / base for now, base in zip(axes.fans(index), axes.fans(0), strict=True))
    return {
        "hidden": (m_in, m_out),
        "output": (m_in, 1.0),
        "input": (m_out, 1.0),
        "tied": (m_out, 1.0),
        "scalar": (1.0, 1.0),
    }[axes.role]


def _factors(rule, axes, own, multiplier, sgd, adam, gradient):
    """Factors of one parameter: those of its role at this width, times those of its depth."""
    rows = {"hidden": rule.hidden, "output": rule.output, "scalar": Exponents()}
    e = rows.get(axes.role, rule.input)
    m, m_out = _growth(axes)
    init = m**-e.b / own
    return Factors(
        multiplier=multiplier * m**-e.a,
        init=1.0 if math.isclose(init, 1.0, rel_tol=1e-9) else init,
        sgd=sgd * m**-e.sgd * m_out**-e.sgd_out,
        adam=adam * m**-e.adam,
        gradient=gradient * m**e.gradient * m_out**e.gradient_out,
    )


def _depth_factors(depth_rule, depth, base_depth, branch, branch_last, named):
    """{name: (multiplier, sgd, adam, gradient)}: for x + beta branch(x) with beta = m_L^-alpha."""
    if depth_rule is None:
        given = [depth, base_depth, branch, branch_last]
        if any(value is not None for value in given):
            raise ValueError(
                f"depth, base_depth, branch, branch_last = {given} have no effect without a depth_rule: "
                f"{', '.join(DEPTH_RULES)}"
            )
        return dict.fromkeys(named, (1.0, 1.0, 1.0, 1.0))
    if None in (depth, base_depth, branch):
        raise ValueError(
            f"depth_rule={depth_rule!r} needs depth, base_depth and branch (the pattern of the parameters "
            f"inside residual branches, such as 'block_*'); got {depth}, {base_depth}, {branch!r}"
        )
    beta = branch_multiplier(depth_rule, depth, base_depth)
    m, alpha = depth / base_depth, depth_alpha(depth_rule)
    for pattern in filter(None, (branch, branch_last)):
        if not any(families.match(name, [pattern]) for name in named):
            raise ValueError(f"{pattern!r} matches no parameter; there are {list(named)}")
    factors = {}
    for name in named:
        last = branch_last is not None and families.match(name, [branch_last])
        inside = last or families.match(name, [branch])
        scales = (m ** (2 * alpha - 1), m ** (alpha - 1), m**alpha) if inside else (1.0, 1.0, 1.0)
        factors[name] = (beta if last else 1.0, *scales)
    return factors


def _check_readout(family, example, widths, named):
    """Refuse outputs of fixed size that no "output" parameter computes: a tied or hidden readout."""
    if example is None or any(axes.role in ("output", "tied") for axes in named.values()):
        return
    inputs = families.example_inputs(example)

    def outputs(width, key):
        net = families.network(family, width, example)
        state = families.initial_state(family, width, example, key)
        return net.apply(net.init(key), *inputs, **({"state": state} if state else {}))

    shapes = [
        jax.tree.map(jnp.shape, jax.eval_shape(lambda key, w=w: outputs(w, key), jax.random.key(0)))
        for w in widths[1:3]
    ]
    if shapes[0] == shapes[1]:
        raise ValueError(
            'the outputs do not grow with the width, yet no parameter has the role "output". If an embedding '
            'is also the readout, say so with roles={"embed/embedding": "tied"}; otherwise name the readout: '
            f'roles={{path: "output"}}. Parameters: {list(named)}'
        )


def _own_scales(family, example, widths, named):
    """{name: RMS of the model's own initialisation at the last width over that at the first}.

    Measured between the two widths in the middle and matched to the laws that initializers follow, so that
    the ratio is exact.
    """
    if widths[-1] == widths[0]:
        return dict.fromkeys(named, 1.0)
    nets = [families.network(family, width, example) for width in widths[1:3]]
    low, high = (_rms(net.init, _num_keys(widths)) for net in nets)
    scales = {}
    for name, axes in named.items():
        law = _own_law(name, axes, widths, low[name], high[name])
        scales[name] = _laws(axes, widths, 0, -1)[law]
    return scales


_PROBE_WIDTH = 8  # the least width at which a standard deviation is measured


def _num_keys(widths):
    """Enough draws of a single vector at the lower probe width to tell half powers apart."""
    return max(4, 128 // widths[1])


def _rms(init, num_keys):
    """{name: RMS over entries and keys}."""
    # XLA's own generator compiles faster. Op by op, so that the next network finds its shapes compiled.
    keys = [jax.random.key(seed, impl="rbg") for seed in range(num_keys)]
    draws = [named_leaves(init(key)) for key in keys]
    return {
        name: math.sqrt(sum(float(jnp.mean(jnp.square(draw[name]))) for draw in draws) / num_keys)
        for name in draws[0]
    }


def _laws(axes, widths, before, after):
    """How an initializer may scale, as ratios of the standard deviation between two of the widths."""
    (in_0, out_0), (in_1, out_1) = axes.fans(before), axes.fans(after)
    fans = {
        "fan_in": in_1 / in_0,
        "fan_out": out_1 / out_0,
        "width": widths[after] / widths[before],
        "fan_avg": (in_1 + out_1) / (in_0 + out_0),
        "fan_max": max(in_1, out_1) / max(in_0, out_0),
    }
    laws = {"constant": 1.0}
    return laws | {(f, p): m**-p for p in (1 / 2, 1) for f, m in fans.items()}


def _own_law(name, axes, widths, low, high):
    """The law nearest to the measurement, if within its error; powers of one fan come before joint ones."""
    if low == high == 0:
        return "constant"
    entries = [_num_keys(widths) * math.prod(axes.shapes[k]) for k in (1, 2)]
    tolerance = min(0.3, 0.02 + 4 * math.sqrt(sum(0.5 / max(n, 1) for n in entries)))
    if low > 0 and high > 0:
        laws = _laws(axes, widths, 1, 2)
        errors = {law: abs(math.log(high / low / ratio)) for law, ratio in laws.items()}
        for joint in (False, True):
            group = [law for law in laws if (law[0] in ("fan_avg", "fan_max")) == joint]
            nearest = min(group, key=errors.get)
            if errors[nearest] < tolerance:
                return nearest
    raise ValueError(
        f"the initial standard deviation of {name} goes from {low:.3g} at width {widths[1]} to {high:.3g} at "
        f"{widths[2]}, which is no power 0, 1/2 or 1 of its fan-in, fan-out, their mean or maximum. Use a "
        "constant, variance-scaling (LeCun, He, Glorot) or orthogonal initializer, or name the parameter's fans "
        "in `roles`"
    )


def _summary(rule, width, base_width, axes, factors, init):
    named = named_leaves(axes, is_leaf=_is_axes)
    deviations = jax.jit(lambda key: jax.tree.map(jnp.std, init(key)))(jax.random.key(0))
    rows = [
        Row(
            parameter=name,
            role=named[name].role,
            shape=named[name].shapes[-1],
            init_std=float(std),
            multiplier=factors["multiplier"][name],
            lr_sgd=factors["sgd"][name],
            lr_adam=factors["adam"][name],
        )
        for name, std in named_leaves(deviations).items()
    ]
    return Summary(f"{rule.name} at width {width} (base width {base_width})", rows)
