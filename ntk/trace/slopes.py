"""Nonlinearities of an activation plus what is zero at initialisation, as of a branch whose last gain starts at zero.

With p = 0 at initialisation, f(u + p h) = f(u) + f'(u) p h to first order in p, which is all that the kernels of a
network read of it: values at p = 0, and derivatives there. Where f has a kink that u meets with positive probability,
as a ReLU of a ReLU does at 0, the derivative is the one that JAX takes.
"""

from __future__ import annotations

from typing import Any

import jax

from ntk import primitives
from ntk.trace import algebra, trees
from ntk.trace.coordinates import Coefficient, Linear, Number, Term, Terms


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
    derivative = primitives.known(primitive.name).slope
    if derivative is None:
        return None
    own = (primitive.name, params, *leaves)
    x, other = leaves[places[0]], leaves[1 - places[0]] if len(leaves) > 1 else None
    slope = derivative(own, x, other, custom)
    value = algebra.applied(
        primitive, params, [Terms(tuple(rest)) if k == places[0] else a for k, a in enumerate(args)]
    )
    moved = Terms((Term(Coefficient(), ((ref, slope),)),))
    return algebra.added(value, algebra.multiplied(moved, Terms(tuple(zeros))))


for _name, _count in (("sign", 1), ("max", 2), ("exp", 1), ("cos", 1), ("sin", 1)):
    _equations = jax.make_jaxpr(getattr(jax.lax, _name))(*(1.0, 2.0)[:_count]).jaxpr.eqns
    trees.register(_equations[0].primitive)
