"""Coordinate check at first order: whether each parameter's own update moves the outputs alike at every width.

Under the NTK parametrization with right roles sum_x |df(x)/dw|^2 eta_w, what one step on a parameter w alone does to
the outputs, is of order one in the width, and so are the outputs. A wrong role makes one of them a power n^+-1. The
exponent is taken between two widths; right is whatever is nearer to 0 than to 1.

Every parameter that starts at zero is drawn, or nothing below it would move.

Source: the tangent kernel as a sum over parameters (Jacot et al. 2018); exponents by role, Yang & Hu (2021), Table 1.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from limits.parametrization import parametrize
from ntk.family import ParamAxes, named_leaves
from ntk.trace import initial

BASE, WIDTHS, SEEDS = 16, (32, 128), 64
OUTPUTS = "outputs"


class Exponents(NamedTuple):
    """Exponents of what a step on each parameter does to the outputs, and of the outputs' size.

    Attributes:
        value: {path name: exponent}, the outputs' among them; nothing for parameters that no output depends on.
        error: their standard errors over initialisations.
    """

    value: dict
    error: dict

    @property
    def worst(self):
        """The name whose exponent is furthest from 0."""
        return max(self.value, key=lambda name: abs(self.value[name]))

    @property
    def verdict(self):
        """ "right", "wrong" if one exponent is nearer to 1, "undecided" within three standard errors of 1/2."""
        above = [(abs(self.value[name]) - 0.5) / max(self.error[name], 1e-9) for name in self.value]
        if max(above) > 3:
            return "wrong"
        return "right" if max(above) < -3 else "undecided"


def measured(family, x, roles=None):
    """(Exponents with these roles, Exponents with one wrong role); one program a width serves both."""
    found = [], []
    for width in WIDTHS:
        net = parametrize(family, "ntk", width=width, base_width=BASE, example=x, roles=roles)
        run = _program(net, x)
        axes = named_leaves(net.axes, is_leaf=_is_axes)
        fans = {name: math.prod(a.shapes[0][k] for k in a.fan_in) for name, a in axes.items()}
        scales = {name: fan**-0.5 for name, fan in fans.items()}
        for place, factors in enumerate((net.factors, _one_wrong(net.factors, axes))):
            moved = run(factors, scales, jax.random.split(jax.random.key(0), SEEDS))
            found[place].append({name: np.asarray(v, float) for name, v in moved.items()})
    return tuple(_exponents(*pair) for pair in found)


def _one_wrong(factors, axes):
    """The factors of a model whose last readout is taken for a first layer, which has no multiplier.

    A model without a readout has an embedding that reads out; it is taken for a readout alone, of multiplier m^-1/2.
    """
    readouts = [n for n, a in axes.items() if a.role == "output" and len(a.shapes[0]) > 1]
    multiplier = dict(factors["multiplier"])
    if readouts:
        multiplier[readouts[-1]] = 1.0
    else:
        name, tied = next((n, a) for n, a in axes.items() if a.role == "tied")
        multiplier[name] = (tied.fans()[1] / tied.fans(0)[1]) ** -0.5
    return factors | {"multiplier": multiplier}


def _is_axes(leaf):
    return isinstance(leaf, ParamAxes)


def _program(net, x):
    """`(factors, scales of what starts at zero, keys) -> {path name: (keys,)}`."""
    inputs = x if isinstance(x, tuple) else (x,)
    laws = initial.laws(net.init)[0]
    zero = [name for name, law in laws.items() if not (law.mean or law.variance)]
    state = net.state(jax.random.key(1))
    kept = {"state": state} if state else {}

    # It runs once for each role: not optimised it compiles fastest.
    @jax.jit
    def run(factors, scales, keys):
        one = net.with_factors(factors)

        def moved(key):
            params = one.init(key)
            named = named_leaves(params)
            for place, name in enumerate(zero):
                draw = jax.random.normal(jax.random.fold_in(key, place), named[name].shape)
                named[name] = draw * scales[name] * factors["init"][name]
            params = jax.tree.unflatten(jax.tree.structure(params), list(named.values()))
            outputs, pull = jax.vjp(lambda p: one.apply(p, *inputs, **kept), params)
            direction = jax.random.rademacher(
                jax.random.fold_in(key, len(zero)), outputs.shape, outputs.dtype
            )
            slopes = named_leaves(pull(direction)[0])
            sizes = {n: factors["sgd"][n] * jnp.sum(g**2) for n, g in slopes.items()}
            return sizes | {OUTPUTS: jnp.mean(outputs**2)}

        return jax.vmap(moved)(keys)

    return run


def _exponents(narrow, wide):
    """Slopes of logarithms of means over initialisations."""
    value, error = {}, {}
    growth = math.log(WIDTHS[1] / WIDTHS[0])
    for name, low in narrow.items():
        high = wide[name]
        if not (low.any() and high.any()):
            continue
        value[name] = math.log(high.mean() / low.mean()) / growth
        spread = [v.std(ddof=1) / v.mean() / math.sqrt(len(v)) for v in (low, high)]
        error[name] = math.hypot(*spread) / growth
    return Exponents(value, error)
