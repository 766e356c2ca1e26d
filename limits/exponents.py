"""abc-parametrizations and depth rules as data, and the symmetry that maps each onto equivalent forms.

The exponents are relative: at m times the base width a parameter is used as m^-a w, initialised at its base
standard deviation times m^-b, and learns at eta m^-c.

Source: Yang & Hu (2021), arXiv:2011.14522; Yang et al. (2022), arXiv:2203.03466; Everett et al. (2024),
arXiv:2407.05872.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from ntk import show
from ntk.arguments import is_integer, shown


@show.readable
class Exponents(NamedTuple):
    """Exponents of one role, as powers of the inverse growth of the fan that grows.

    Attributes:
        a: the parameter is used as m^-a w.
        b: it is initialised at the base standard deviation times m^-b.
        sgd: it learns at eta m^-sgd under SGD, with or without momentum.
        adam: the same under Adam and other optimizers that normalise the gradient.
        gradient: its gradient scales as m^-gradient, and so must Adam's eps; 0 leaves eps alone.
        sgd_out: part of c that goes with the fan-out where both fans grow; `sgd` then goes with the fan-in.
        gradient_out: likewise.
    """

    a: float = 0.0
    b: float = 0.0
    sgd: float = 0.0
    adam: float = 0.0
    gradient: float = 0.0
    sgd_out: float = 0.0
    gradient_out: float = 0.0


@show.readable
class Rule(NamedTuple):
    """An abc-parametrization: exponents by role. Biases and norm gains are input-like; scalars have none."""

    name: str
    input: Exponents
    hidden: Exponents
    output: Exponents


# Yang & Hu (2021), Table 1; Adam: Yang et al. (2022), Table 8. Deep mean_field is the symmetry image of mup.
# standard and ntk have one learning rate for all parameters, as practised; see `layerwise`.
RULES = {
    "standard": Rule(
        "standard", input=Exponents(), hidden=Exponents(b=1 / 2), output=Exponents(b=1 / 2)
    ),
    "ntk": Rule(
        "ntk",
        input=Exponents(gradient=1 / 2),
        hidden=Exponents(a=1 / 2, gradient=1 / 2, gradient_out=1 / 2),
        output=Exponents(a=1 / 2, gradient=1 / 2),
    ),
    "mup": Rule(
        "mup",
        input=Exponents(a=-1 / 2, b=1 / 2, sgd=0, adam=1 / 2, gradient=1 / 2),
        hidden=Exponents(a=0, b=1 / 2, sgd=1, sgd_out=-1, adam=1, gradient_out=1),
        output=Exponents(a=1 / 2, b=1 / 2, sgd=0, adam=1 / 2, gradient=1 / 2),
    ),
    "mean_field": Rule(
        "mean_field",
        input=Exponents(a=0, b=0, sgd=-1, adam=0, gradient=1),
        hidden=Exponents(a=1 / 2, sgd=0, sgd_out=-1, adam=1 / 2, gradient=1 / 2, gradient_out=1),
        output=Exponents(a=1, b=0, sgd=-1, adam=0, gradient=1),
    ),
}

# Residual branches are multiplied by depth^-alpha.
DEPTH_RULES = {"sqrt": 1 / 2, "1/L": 1.0, "completep": 1.0}


def named_rule(rule: str | Rule) -> Rule:
    """The rule of that name, or the rule itself."""
    if isinstance(rule, Rule):
        return rule
    if isinstance(rule, str) and rule in RULES:
        return RULES[rule]
    raise ValueError(
        f"rule is {rule!r}; allowed are {', '.join(RULES)}, or a limits.Rule of your own"
    )


def symmetry(rule: str | Rule, t: float | Mapping[str, float]) -> Rule:
    """The equivalent rule with a + t, b - t, c - 2t (SGD) or c - t (Adam, with eps scaled).

    The function computed is the same at every width and step, for every t. t = -a removes the forward
    multipliers, for instance to train an NNX model in place.

    Args:
        rule: a rule or its name.
        t: one number, or one per role {"input": t, "hidden": t, "output": t} (missing roles stay).

    Source: Yang & Hu (2021), section 3.2; Adam: Yang & Littwin (2023).
    """
    rule = named_rule(rule)
    shifts = t if isinstance(t, Mapping) else dict.fromkeys(("input", "hidden", "output"), t)
    unknown = set(shifts) - {"input", "hidden", "output"}
    if unknown:
        raise ValueError(f"t has the roles {sorted(unknown)}; allowed are input, hidden, output")
    for role, amount in shifts.items():
        if isinstance(amount, bool) or not isinstance(amount, int | float):
            raise TypeError(f"t is {amount!r} for {role}; it must be a finite number")
        if not math.isfinite(amount):
            raise ValueError(f"t is {amount!r} for {role}; it must be a finite number")
    moved = {role: _shift(getattr(rule, role), amount) for role, amount in shifts.items()}
    return rule._replace(name=f"{rule.name}, shifted", **moved)


def _shift(e: Exponents, t: float) -> Exponents:
    return e._replace(
        a=e.a + t, b=e.b - t, sgd=e.sgd - 2 * t, adam=e.adam - t, gradient=e.gradient + t
    )


def layerwise(rule: str | Rule) -> Rule:
    """The rule with a learning rate per role, such that each layer alone moves its activations by O(1).

    mup and mean_field are fixed points. For standard and ntk it assumes that the initial readout is not
    aligned with the change of the features (exponent 1/2): with full alignment the outputs grow as m^(1/2).

    Source: Everett et al. (2024), Table 1, full alignment.
    """
    rule = named_rule(rule)
    s = rule.output.a + rule.output.b  # the gradient of a unit of the last layer is of order n^-s
    x, h, f = rule.input, rule.hidden, rule.output
    return Rule(
        f"{rule.name}, layerwise",
        input=x._replace(sgd=-s - 2 * x.a, adam=-x.a, gradient=s + x.a),
        hidden=h._replace(sgd=1 - 2 * h.a, sgd_out=-s, adam=1 - h.a, gradient=h.a, gradient_out=s),
        output=f._replace(sgd=1 - 2 * f.a, adam=1 - f.a, gradient=f.a),
    )


def branch_multiplier(depth_rule: str, depth: int, base_depth: int) -> float:
    """beta in x + beta branch(x): (depth / base_depth)^-alpha, with alpha 1/2 ("sqrt") or 1 ("1/L", "completep").

    Source: sqrt: Yang et al. (2023), Bordelon et al. (2023), claimed for branches of one layer only;
        completep: Dey et al. (2025).
    """
    for name, value in {"depth": depth, "base_depth": base_depth}.items():
        if not is_integer(value):
            raise TypeError(f"{name} is {shown(value)}; it must be a positive integer")
    if min(depth, base_depth) < 1:
        raise ValueError(f"depth is {depth} and base_depth {base_depth}; both must be at least 1")
    return (depth / base_depth) ** -depth_alpha(depth_rule)


def depth_alpha(depth_rule: str) -> float:
    """alpha of a depth rule, by its name."""
    if not isinstance(depth_rule, str) or depth_rule not in DEPTH_RULES:
        raise ValueError(f"depth_rule is {depth_rule!r}; allowed are {', '.join(DEPTH_RULES)}")
    return DEPTH_RULES[depth_rule]
