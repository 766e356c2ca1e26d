"""Nonlinearities of an activation plus what is zero at initialisation, as of a branch whose last gain starts at zero.

With p = 0 at initialisation, f(u + p h) = f(u) + f'(u) p h to first order in p, which is all that the kernels of a
network read of it: values at p = 0, and derivatives there. Where f has a kink that u meets with positive probability,
as a ReLU of a ReLU does at 0, the derivative is the one that JAX takes.
"""

from __future__ import annotations

import math
from typing import Any

import jax

from ntk.trace import algebra, trees
from ntk.trace.coordinates import Coefficient, Linear, Number, Term, Terms
from ntk.trace.trees import Tree


def applied(primitive: Any, params: tuple, args: list, custom: bool) -> Terms | None:
    """A primitive on such a sum (and numbers); None if it is none, or its derivative is not known.

    Args:
        primitive: with one argument that is random.
        params: its parameters.
        args: its arguments.
        custom: whether it is inside a function with a derivative rule of its own, as `jax.nn.relu` is.
    """
    places = [k for k, a in enumerate(args) if isinstance(a, Linear | Terms)]
    if len(places) != 1 or any(isinstance(a, Number) and a.power for a in args):
        return None
    terms = algebra.as_terms(args[places[0]])
    zeros = [t for t in terms if any(ref.process.value == 0 for ref, _ in t.factors)]
    rest = [t for t in terms if t not in zeros]
    if not zeros or not rest:
        return None
    alone = algebra.univariate(Terms(tuple(rest)))
    if alone is None or alone[0].process.value is not None:
        return None
    ref, tree = alone
    leaves = [
        tree if k == places[0] else ("number", getattr(a, "number", None))
        for k, a in enumerate(args)
    ]
    slope = _slope(primitive.name, dict(params), leaves, places[0], custom)
    if slope is None:
        return None
    value = algebra.applied(
        primitive, params, [Terms(tuple(rest)) if k == places[0] else a for k, a in enumerate(args)]
    )
    moved = Terms((Term(Coefficient(), ((ref, slope),)),))
    return algebra.added(value, algebra.multiplied(moved, Terms(tuple(zeros))))


def _slope(name: str, params: dict, leaves: list, place: int, custom: bool) -> Tree | None:
    """The derivative of a primitive in one argument, at trees."""
    x = leaves[place]
    own = (name, tuple(sorted(params.items())), *leaves)
    if name in ("max", "min"):
        sign = 1.0 if name == "max" else -1.0
        gap = _times(sign, _plus(x, -leaves[1 - place][1]))  # positive where x is chosen
        if custom:
            return ("sign", (), ("max", (), gap, ("number", 0.0)))
        return _plus(_times(0.5, ("sign", (), gap)), 0.5)
    if name == "abs":
        return ("sign", (), x)
    if name == "tanh":
        return _plus(_times(-1.0, _product(own, own)), 1.0)
    if name == "logistic":
        return _product(own, _plus(_times(-1.0, own), 1.0))
    if name == "exp":
        return own
    if name == "sin":
        return ("cos", (), x)
    if name == "cos":
        return _times(-1.0, ("sin", (), x))
    if name == "erf":
        return _times(2 / math.sqrt(math.pi), ("exp", (), _times(-1.0, _product(x, x))))
    return None


def _times(number: float, tree: Tree) -> Tree:
    return trees.times_number(tree, number)


def _product(one: Tree, two: Tree) -> Tree:
    return ("mul", (), one, two)


def _plus(tree: Tree, number: float) -> Tree:
    return tree if number == 0 else ("add", (), tree, ("number", number))


for _name, _count in (("sign", 1), ("max", 2), ("exp", 1), ("cos", 1), ("sin", 1)):
    _equations = jax.make_jaxpr(getattr(jax.lax, _name))(*(1.0, 2.0)[:_count]).jaxpr.eqns
    trees.register(_equations[0].primitive)
