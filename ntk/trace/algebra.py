"""Sums and products of functions of Gaussian processes, unit by unit."""

from __future__ import annotations

import functools
from typing import Any

from ntk.trace.coordinates import (
    Coefficient,
    Linear,
    Number,
    Pieces,
    Ref,
    Refusal,
    Term,
    Terms,
    Weight,
)
from ntk.trace.trees import _PRIMITIVES, Tree, Z, replace, times_number


def scaled(body: Any, c: Coefficient) -> Any:
    """The body times a coefficient; a number where that is zero."""
    if not c.number and isinstance(body, Number | Linear | Terms):
        return Number(0.0)
    if isinstance(body, Number):
        return Number(body.number * c.number, body.power + c.power)
    if isinstance(body, Linear):
        return Linear(tuple((ref, old.times(c)) for ref, old in body.terms))
    if isinstance(body, Weight):
        new = Coefficient(body.number, body.power, body.arrays).times(c)
        return body._replace(number=new.number, power=new.power, arrays=new.arrays)
    if isinstance(body, Pieces):
        parts = tuple((scaled(b, c), dims) for b, dims in body.parts)
        return body._replace(parts=parts)
    return collected(t._replace(coefficient=t.coefficient.times(c)) for t in body.terms)


def constant_term(number: float, power: float = 0.0) -> Term:
    """A number as a term."""
    return Term(Coefficient(number, power), ())


def as_terms(body: Any) -> tuple[Term, ...]:
    """Terms of a body; a sum of processes must have been sealed into one."""
    if isinstance(body, Terms):
        return body.terms
    if isinstance(body, Linear):
        return tuple(Term(c, ((ref, Z),)) for ref, c in body.terms)
    if isinstance(body, Number):
        return (constant_term(body.number, body.power),) if body.number else ()
    raise TypeError(body)


def univariate(body: Any) -> tuple[Ref, Tree] | None:
    """(process, function) if the body is a function of one process without further numbers, else None."""
    terms = as_terms(body)
    everything = {ref for t in terms for ref, _ in t.factors}
    refs = {ref for ref in everything if ref.process.value is None}
    alone = not refs and len(everything) == 1 and len(terms) == 1  # a parameter
    if alone and not terms[0].coefficient.arrays and not terms[0].coefficient.power:
        tree = terms[0].factors[0][1]
        return next(iter(everything)), times_number(tree, terms[0].coefficient.number)
    if len(refs) != 1 or any(t.coefficient.arrays or t.coefficient.power for t in terms):
        return None
    total: Tree | None = None
    for t in terms:
        tree = times_number(_product(t.factors), t.coefficient.number)
        total = tree if total is None else ("add", (), total, tree)
    return next(iter(refs)), total


def at_parameter(tree: Tree, ref: Ref) -> Tree:
    """A function of a parameter that is constant at initialisation, as a leaf of a function of something else."""
    return replace(tree, ("parameter", ref.process.index, ref.process.value))


def _product(factors: tuple) -> Tree:
    trees = [
        tree if ref.process.value is None else at_parameter(tree, ref) for ref, tree in factors
    ]
    if not trees:
        return ("number", 1.0)
    return functools.reduce(lambda a, b: ("mul", (), a, b), trees)


def collected(terms: Any) -> Terms:
    """Terms with those that are functions of one process alone, and have one coefficient, put together."""
    groups: dict = {}
    for t in terms:
        free = [ref for ref, _ in t.factors if ref.process.value is None]
        if len(free) > 1:
            key = (id(t),)
        else:
            key = (free[0] if free else None, t.coefficient.arrays, t.coefficient.power)
            if not free and t.factors:
                key = (*key, t.factors)
        groups.setdefault(key, []).append(t)
    out = []
    alone = {key[0] for key in groups if len(key) > 1 and key[0] is not None and not any(key[1:3])}
    if len(alone) == 1 and (None, (), 0.0) in groups:  # a constant joins the only function there is
        target = (next(iter(alone)), (), 0.0)
        groups[target] = groups[target] + groups.pop((None, (), 0.0))
    for key, group in groups.items():
        if len(group) == 1 or len(key) == 1:
            out.extend(group)
            continue
        if key[0] is None:
            number = sum(t.coefficient.number for t in group)
            out.append(Term(group[0].coefficient._replace(number=number), group[0].factors))
            continue
        total = None
        for t in group:
            tree = times_number(_product(t.factors), t.coefficient.number)
            total = tree if total is None else ("add", (), total, tree)
        out.append(Term(group[0].coefficient._replace(number=1.0), ((key[0], total),)))
    return Terms(tuple(t for t in out if t.coefficient.number != 0))


def multiplied(one: Any, two: Any) -> Terms:
    """Product of two bodies, unit by unit."""
    first, second = as_terms(one), as_terms(two)
    if len(first) * len(second) > 64:
        raise Refusal("a product of long sums: insert a layer of weights between the factors")
    out = []
    for a in first:
        for b in second:
            factors = dict(a.factors)
            for ref, tree in b.factors:
                factors[ref] = ("mul", (), factors[ref], tree) if ref in factors else tree
            out.append(Term(a.coefficient.times(b.coefficient), tuple(factors.items())))
    return collected(out)


def added(one: Any, two: Any) -> Any:
    """Sum of two bodies."""
    if isinstance(one, Linear) and isinstance(two, Linear):
        total: dict = {}
        for ref, c in one.terms + two.terms:
            key = (ref, c.arrays, c.power)
            total[key] = total.get(key, 0.0) + c.number
        return Linear(
            tuple(
                (ref, Coefficient(n, power, arrays))
                for (ref, arrays, power), n in total.items()
                if n
            )
        )
    return collected(as_terms(one) + as_terms(two))


def applied(primitive: Any, params: tuple, args: list) -> Terms | None:
    """A nonlinear primitive on functions of one process; None if the arguments are not of that kind."""
    found = [None if isinstance(a, Number) else univariate(a) for a in args]
    if any(f is None and not isinstance(a, Number) for f, a in zip(found, args)):
        return None
    refs = {f[0] for f in found if f is not None}
    free = {ref for ref in refs if ref.process.value is None} or set(list(refs)[:1])
    found = [f if f is None or f[0] in free else (f[0], at_parameter(f[1], f[0])) for f in found]
    refs = free
    if not refs:
        return None
    if len(refs) != 1 or any(isinstance(a, Number) and a.power for a in args):
        return None
    _PRIMITIVES[primitive.name] = primitive
    trees = [("number", a.number) if f is None else f[1] for f, a in zip(found, args)]
    return Terms((Term(Coefficient(), ((refs.pop(), (primitive.name, params, *trees)),)),))
