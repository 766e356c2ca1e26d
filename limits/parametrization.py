"""abc-parametrizations around an unchanged model: what to multiply, how to initialise, how fast to learn.

A parameter of growth m (its fan relative to the base width) is used as m^-a w, initialised at its standard
deviation at the base width times m^-b, and learns at eta m^-c. At the base width every factor is one and the
network is the plain Flax network, bit for bit.

One file: factors of use, initialisation and rate come of one reading of how each parameter grows.

Source: Yang & Hu (2021), arXiv:2011.14522; Yang et al. (2022), arXiv:2203.03466; Jacot et al. (2018).
"""

import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import optax

from limits import optimizers
from limits.exponents import (
    DEPTH_RULES,
    RULES,
    Exponents,
    Rule,
    branch_multiplier,
    depth_alpha,
    named_rule,
)
from limits.initial_scale import PROBE_WIDTH, own_scales
from limits.optimizers import multiply
from limits.readout import check_readout
from limits.summary import Summary, summarise
from ntk import family as families
from ntk import show
from ntk.arguments import strict
from ntk.family import ParamAxes, named_leaves
from ntk.options import drawn_biases, rate_factors
from ntk.types import Array, Family, PRNGKey, PyTree

Table: TypeAlias = dict[str, dict[str, Any]]
"""{field of Factors: {path name: factor}}, of floats that may be traced."""


class Factors(NamedTuple):
    """What is done to one parameter: all Python floats, all one at the base width and depth."""

    multiplier: float
    init: float
    sgd: float
    adam: float
    gradient: float


@show.drawn
class Parametrized(NamedTuple):
    """A network at one width under a rule: pure functions, and the trees of factors that they apply.

    Attributes:
        init: `init(key) -> params`, the model's own initialisation times `init_scale`.
        apply: `apply(params, *inputs, **kwargs)`, the model at params times `multiplier`; keywords as in
            `ntk.family.Network`.
        state: `state(key)`, what the model keeps besides parameters ({} for most), for `apply(..., state=)`.
        optimizer: `optimizer(factory, learning_rate, *, kind=None, **kwargs)`, an optax transformation: the
            factory's, with a factor on each parameter's learning rate. `learning_rate` is a float, a traced
            scalar or a schedule; `kwargs` go to the factory; `kind` is "sgd", "adam" or "entrywise" for a factory that
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

    init: Callable[[PRNGKey], PyTree]
    apply: Callable[..., Any]
    state: Callable[[PRNGKey], dict]
    optimizer: Callable[..., optax.GradientTransformationExtraArgs]
    summary: Callable[[], Summary]
    lr_scale: Callable[[str], PyTree]
    axes: PyTree
    multiplier: PyTree
    init_scale: PyTree
    rule: Rule
    width: int
    base_width: int | None
    factors: Table
    with_factors: Callable[[Table], "Parametrized"]

    def __repr__(self) -> str:
        base = f"base width {self.base_width}" if self.base_width else "weights of unit variance"
        count = len(self.factors["multiplier"])
        return f"Parametrized({self.rule.name} at width {self.width}, {base}, {count} parameters)"

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()


@strict
def parametrize(
    family: Family,
    rule: str | Rule,
    *,
    width: int,
    base_width: int | None = None,
    example: Any = None,
    roles: Mapping[str, Any] | None = None,
    learning_rates: PyTree | None = None,
    bias_std: float | None = None,
    depth_rule: str | None = None,
    depth: int | None = None,
    base_depth: int | None = None,
    branch: str | None = None,
    branch_last: str | None = None,
    call: Mapping[str, Any] | None = None,
) -> Parametrized:
    """A family at one width under an abc-parametrization, with no change to the model.

    With a base width n_0 the exponents are statements about the network at width m n_0 relative to n_0, where it is
    the model itself. They hold whatever initializer the model uses: how its standard deviation scales by itself is
    read off its program at two widths, and corrected. "standard" therefore changes nothing in a model of fan-in
    initializers (LeCun, He), and adds the missing m^(-1/2) to a constant standard deviation.

    Without one, which only "ntk" allows, the network is the textbook's: each weight is a parameter of unit variance
    times its initial standard deviation at this width, so that the outputs at initialisation are those of the model;
    what is constant at initialisation (a bias at zero, the gain of a norm) stays as it is, but a matrix of zeros
    whose fan-in grows is used times fan_in^(-1/2), and all factors of optimizers are one.

    Either way each weight keeps the law of its initializer up to its scale (Flax's own is a truncated normal), and
    `ntk.infinite_width(family, x, base_width=, roles=, learning_rates=, bias_std=)` is the infinite-width limit
    of `parametrize(family, "ntk", width=n, ...)` with the same values: `ntk.empirical_ntk(net.apply, net.init(key), x)`
    tends to it with errors of order n^-1/2.

    Two things stay with the model: attention logits divided by the head size instead of its square root, and
    a tied readout (role "tied": trained as the embedding it is; the model divides its logits by m for mup and
    mean_field, by sqrt(m) for ntk).

    Args:
        family: a function of the width, see `ntk.family`.
        rule: "standard", "ntk", "mup", "mean_field", or a Rule.
        width: the width n.
        base_width: the width n_0 at which the hyper-parameters were tuned, and at which the network is the plain
            model bit for bit. None for the NTK parametrization of weights of unit variance.
        example: input (or tuple of inputs) of a linen model.
        roles: roles of parameters that names and shapes cannot tell, see `ntk.family.width_axes`.
        learning_rates: factors on the learning rates, as in `ntk.infinite_width`: a tree like the parameters, or
            {pattern of the path: factor}. A factor r multiplies the parameter by sqrt(r) and divides its initial
            value, which is the same as a learning rate r times as large, for every optimizer, but for weight decay,
            which stays as it is; 0 stops its gradient.
        bias_std: standard deviation of a normal law given to parameters named `bias` that start at zero.
        depth_rule: "sqrt", "1/L" or "completep" for residual networks; needs the next three arguments.
        depth: number of residual branches of this family.
        base_depth: number of residual branches at which the hyper-parameters were tuned.
        branch: pattern of the paths of all parameters inside residual branches, `"block_*"`.
        branch_last: pattern of the parameters (kernel and bias) of the last linear layer of each branch,
            `"block_*/out/*"`: the branch multiplier is applied to them. None if the model itself multiplies
            its branches by `branch_multiplier(depth_rule, depth, base_depth)`.
        call: static keywords of every call of the model, `dict(train=False)`; those given to `apply` come first.

    Returns:
        Parametrized(init, apply, optimizer, summary, ...).

    Example:
        >>> import jax.numpy as jnp
        >>> import limits
        >>> from flax import linen as nn
        >>> family = lambda n: nn.Sequential([nn.Dense(n), nn.relu, nn.Dense(n), nn.relu, nn.Dense(3)])
        >>> net = limits.parametrize(family, "mup", width=256, base_width=64, example=jnp.ones((1, 4)))
        >>> adam, multiplier = net.lr_scale("adam"), net.multiplier
        >>> [float(adam[f"layers_{k}"]["kernel"]) for k in (0, 2, 4)]
        [0.5, 0.25, 0.5]
        >>> [float(multiplier[f"layers_{k}"]["kernel"]) for k in (0, 2, 4)]
        [2.0, 1.0, 0.5]

    Raises:
        TypeError: an unknown option, with the nearest one; a value of another type.
        ValueError: an unknown rule; a family that is ambiguous, does not grow or reads out with no parameter
            of role "output", or with one whose scale does not reach the outputs (weight normalisation); an
            initializer whose scale follows no power of the fans; no base width for a rule that needs one.

    Source: Yang & Hu (2021), Tensor Programs IV; Yang et al. (2022), Tensor Programs V; Jacot et al. (2018) for
    the form without a base width.
    """
    rule, family = named_rule(rule), families.called(family, call)
    widths = _compared(rule, width, base_width)
    made = {n: families.initialised(family, n, example) for n in dict.fromkeys(widths)}
    axes = families.axes_of(made, widths, roles)
    # A tree of Equinox modules holds their sizes: those of this width, so that it fits the parameters.
    structure = jax.tree.structure(made[width].shapes)
    axes = jax.tree.unflatten(structure, jax.tree.leaves(axes, is_leaf=_is_axes))
    named = named_leaves(axes, is_leaf=_is_axes)
    check_readout([made[n] for n in widths], example, named, rule)
    rates = rate_factors(learning_rates, named)
    net = made[width].model.network
    laws = {}
    if base_width is None or bias_std is not None:
        laws = _initial_laws(net, whole=base_width is None)
    biases = drawn_biases(laws, bias_std)
    if base_width is None:
        factors = {n: _unit(n, named[n], laws[n], bias_std if n in biases else 0) for n in named}
    else:
        own = own_scales(made, widths, named)
        factors = {name: _factors(rule, leaf, own[name]) for name, leaf in named.items()}
    depths = _depth_factors(depth_rule, depth, base_depth, branch, branch_last, named)
    factors = {n: _times(_times(factors[n], depths[n]), _learning(rates[n])) for n in named}
    table = {field: {n: getattr(f, field) for n, f in factors.items()} for field in Factors._fields}
    held = frozenset(name for name, rate in rates.items() if rate == 0)
    whole = Whole(
        family, example, width, base_width, rule, _with_biases(net, biases, bias_std), axes
    )
    return _parametrized(whole, table, held)


class Whole(NamedTuple):
    """What a parametrized network is made of, but for its factors."""

    family: Family
    example: Any
    width: int
    base_width: int | None
    rule: Rule
    net: families.Network
    axes: Any


def _compared(rule: Rule, width: int, base_width: int | None) -> tuple[int, int, int, int]:
    """Widths whose shapes are compared: the base, two for measurements, the width."""
    families.check_width("width", width)
    if base_width is not None:
        families.check_width("base_width", base_width)
        probe = base_width * max(1, -(-PROBE_WIDTH // base_width))
        return base_width, probe, 4 * probe, width
    if rule != RULES["ntk"]:
        raise ValueError(
            f"base_width is None; the rule {rule.name!r} says how a network differs from the one at a base width: give "
            'base_width=, the width at which it is your own model (only "ntk" has a form without)'
        )
    return 64, 64, 256, width


def _initial_laws(net: families.Network, whole: bool) -> dict[str, Any]:
    """Law of each parameter; those that have none are refused if all are needed."""
    from ntk.trace import initial  # reads `init`; not needed, and not imported, with a base width

    with jax.enable_x64(True):
        laws = initial.laws(net.init)[0]
    for name, law in laws.items():
        why = initial.refusal(name, law)
        if whole and why:
            raise ValueError(why)
    return laws


def _with_biases(
    net: families.Network, names: tuple[str, ...], std: float | None
) -> families.Network:
    """The network with normal draws in place of the biases of those names."""
    if not names or std is None:
        return net
    ids = {name: zlib.crc32(name.encode()) for name in names}

    def init(key: PRNGKey) -> PyTree:
        def draw(path: tuple, leaf: Array) -> Array:
            name = families.path_name(path)
            if name not in ids:
                return leaf
            return std * jax.random.normal(
                jax.random.fold_in(key, ids[name]), leaf.shape, leaf.dtype
            )

        return jax.tree_util.tree_map_with_path(draw, net.init(key))

    return net._replace(init=init)


def _parametrized(whole: Whole, factors: Table, held: frozenset[str]) -> Parametrized:
    """The pure functions around a network that apply a table of factors, {field: {path name: factor}}.

    `held` are the parameters that do not learn.
    """
    net, axes = whole.net, whole.axes

    def tree(field: str) -> PyTree:
        structure = jax.tree.structure(axes, is_leaf=_is_axes)
        return jax.tree.unflatten(structure, factors[field].values())

    def lr_scale(kind: str) -> PyTree:
        if kind not in ("sgd", "adam"):
            raise ValueError(f'kind is {kind!r}; allowed are "sgd" and "adam"')
        return tree(kind)

    def optimizer(
        factory: Callable, learning_rate: Any, *, kind: str | None = None, **kwargs: Any
    ) -> Any:
        kind = optimizers.optimizer_kind(factory, kind, **kwargs)
        inner = factory(learning_rate, **kwargs)
        if kind == "entrywise":
            optimizers.check_entrywise(whole.rule.name, factors)
        if kind != "sgd":
            return optimizers.scale_per_leaf(inner, factors["adam"], factors["gradient"])
        roots = {name: factor**0.5 for name, factor in factors["sgd"].items()}
        return optimizers.scale_per_leaf(inner, roots, roots)

    def init(key: PRNGKey) -> PyTree:
        return multiply(net.init(key), factors["init"])

    def apply(params: PyTree, *inputs: Any, **kwargs: Any) -> Any:
        return net.apply(_held(multiply(params, factors["multiplier"]), held), *inputs, **kwargs)

    return Parametrized(
        init=init,
        apply=apply,
        state=lambda key: families.initial_state(whole.family, whole.width, whole.example, key),
        optimizer=optimizer,
        summary=lambda: summarise(whole, factors, init),
        lr_scale=lr_scale,
        axes=axes,
        multiplier=tree("multiplier"),
        init_scale=tree("init"),
        rule=whole.rule,
        width=whole.width,
        base_width=whole.base_width,
        factors=factors,
        with_factors=lambda factors: _parametrized(whole, factors, held),
    )


def _held(params: PyTree, names: frozenset[str]) -> PyTree:
    """The parameters, with no gradient for those of these names."""
    if not names:
        return params

    def hold(path: tuple, leaf: Array) -> Array:
        return jax.lax.stop_gradient(leaf) if families.path_name(path) in names else leaf

    return jax.tree_util.tree_map_with_path(hold, params)


def _is_axes(leaf: Any) -> bool:
    return isinstance(leaf, ParamAxes)


def _growth(axes: ParamAxes, index: int = -1) -> tuple[float, float]:
    """(m, m_out): growth of the fan that a, b and the first part of c go with, and of the fan-out."""
    m_in, m_out = (now / base for now, base in zip(axes.fans(index), axes.fans(0), strict=True))
    return {
        "hidden": (m_in, m_out),
        "output": (m_in, 1.0),
        "input": (m_out, 1.0),
        "tied": (m_out, 1.0),
        "scalar": (1.0, 1.0),
    }[axes.role]


def _factors(rule: Rule, axes: ParamAxes, own: float) -> Factors:
    """Factors of one parameter at this width, by its role."""
    rows = {"hidden": rule.hidden, "output": rule.output, "scalar": Exponents()}
    e = rows.get(axes.role, rule.input)
    m, m_out = _growth(axes)
    init = m**-e.b / own
    return Factors(
        multiplier=m**-e.a,
        init=1.0 if math.isclose(init, 1.0, rel_tol=1e-9) else init,
        sgd=m**-e.sgd * m_out**-e.sgd_out,
        adam=m**-e.adam,
        gradient=m**e.gradient * m_out**e.gradient_out,
    )


def _unit(name: str, axes: ParamAxes, law: Any, bias_std: float | None) -> Factors:
    """Factors of a parameter of unit variance, used times its standard deviation; of a constant, none.

    A matrix of zeros is used times fan_in^-1/2, or its tangent kernel would grow with the width.
    """
    std = bias_std or math.sqrt(law.variance)
    if std == 0 and axes.role in ("hidden", "output") and not law.mean:
        std = axes.fans()[0] ** -0.5
    if std == 0 and axes.role in ("hidden", "output"):
        raise ValueError(
            f"{name} of role {axes.role!r} is constant at initialisation, so that it has no standard deviation to be "
            "written as a multiplier: give base_width=, or another initializer"
        )
    return Factors(std, 1 / std, 1.0, 1.0, 1.0) if std else Factors(1.0, 1.0, 1.0, 1.0, 1.0)


def _learning(rate: float) -> Factors:
    """Factors that make a parameter learn `rate` times as fast, by the symmetry of a, b and c.

    Used times s = sqrt(rate), it moves the network s times as far for the same step; SGD's step is s times as long too,
    Adam's is not.
    """
    if rate == 0:
        return Factors(1.0, 1.0, 0.0, 0.0, 1.0)
    s = math.sqrt(rate)
    return Factors(s, 1 / s, 1.0, s, 1 / s)


def _times(one: Factors, two: Factors) -> Factors:
    return Factors(*(x * y for x, y in zip(one, two)))


def _depth_factors(
    depth_rule: str | None,
    depth: int | None,
    base_depth: int | None,
    branch: str | None,
    branch_last: str | None,
    named: Mapping[str, ParamAxes],
) -> dict[str, Factors]:
    """{name: Factors} for x + beta branch(x) with beta = m_L^-alpha."""
    if depth_rule is None:
        given = [depth, base_depth, branch, branch_last]
        if any(value is not None for value in given):
            raise ValueError(
                f"depth, base_depth, branch, branch_last = {given} have no effect without a depth_rule: "
                f"{', '.join(DEPTH_RULES)}"
            )
        return dict.fromkeys(named, Factors(1.0, 1.0, 1.0, 1.0, 1.0))
    if depth is None or base_depth is None or branch is None:
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
        factors[name] = Factors(beta if last else 1.0, 1.0, *scales)
    return factors
