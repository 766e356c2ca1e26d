"""Mean and variance of each parameter at initialisation, read off the program of `init` itself.

An initializer is a function of random bits that acts on every entry alone. Its program is run on a grid of equally
likely bits in place of random ones, which shows the law of an entry exactly: normal, truncated normal or uniform
up to a shift and a scale. Nothing is sampled.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from ntk.family import named_leaves
from ntk.trace import host
from ntk.trace.sharing import jaxpr_of

_GRID = 512


_SHAPES = frozenset(
    [
        "reshape",
        "broadcast_in_dim",
        "transpose",
        "squeeze",
        "slice",
        "copy",
        "copy_p",
        "stop_gradient",
        "rev",
        "expand_dims",
    ]
)


_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")


class Law(NamedTuple):
    """Law of the entries of a parameter.

    Attributes:
        mean: of an entry.
        variance: of an entry; 0 for a constant.
        kind: "constant", "normal", "truncated normal", "uniform", "orthogonal", or "other".
    """

    mean: float
    variance: float
    kind: str


class _Key:
    """Stands for PRNG keys."""


class _Unknown(Exception):
    """A value that no grid of bits shows."""


def laws(init: Callable, key: Any = None) -> tuple[dict[str, Law], dict[str, tuple[int, ...]]]:
    """Law and shape of each parameter by its path.

    Args:
        init: `init(key) -> params`.
        key: PRNG key; only for initializers that do not act on entries alone (orthogonal ones), which are run.

    Raises:
        ValueError: an initializer whose variance cannot be told.
    """
    key = jax.random.key(0) if key is None else key
    closed, shapes = jaxpr_of(init, key, return_shape=True)
    named = named_leaves(shapes)
    values = _Reader(closed.jaxpr, closed.consts, [_Key()])
    found, unknown = {}, []
    for name, var in zip(named, closed.jaxpr.outvars):
        try:
            found[name] = _law(values.read(var))
        except _Unknown:
            unknown.append(name)
    if unknown:
        found |= _sampled(init, unknown)
    return {name: found[name] for name in named}, {n: tuple(s.shape) for n, s in named.items()}


class _Reader:
    """Values of the variables of a jaxpr, computed when asked for: a scalar for a constant array, or a grid."""

    def __init__(self, jaxpr: jex.Jaxpr, consts: Any, args: list):
        self.known = dict(zip(jaxpr.constvars, consts)) | dict(zip(jaxpr.invars, args))
        self.source = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}

    def read(self, var: Any) -> Any:
        if isinstance(var, jex.Literal):
            return var.val
        if var not in self.known:
            eqn = self.source[var]
            for out, value in zip(eqn.outvars, self.run(eqn)):
                self.known[out] = value
        value = self.known[var]
        if isinstance(value, _Unknown):
            raise value
        return value

    def run(self, eqn: Any) -> list:
        name = eqn.primitive.name
        if name == "random_bits":
            return [_bits(eqn.params["bit_width"])]
        if any(k in eqn.params for k in _CALLS):
            return self.call(eqn)
        args = [self.read(v) for v in eqn.invars]
        if any(isinstance(a, _Key) for a in args) or "random" in name or "threefry" in name:
            return [_Key()] * len(eqn.outvars)
        if name in _SHAPES:
            return [_entry(args[0])]
        if len(eqn.outvars) > 1 or eqn.primitive.name in ("iota", "concatenate", "gather"):
            raise _Unknown
        same = {tuple(v.aval.shape) for v in eqn.invars if v.aval.shape}
        if any(len(shape) != len(eqn.outvars[0].aval.shape) for shape in same):
            raise _Unknown
        if name.startswith(("reduce_", "dot_", "conv_", "cum", "arg", "sort", "triangular")):
            raise _Unknown
        args = [_entry(a) for a in args]
        key = (name, str(eqn.params), *(_identity(a) for a in args))
        if key not in _MEMO:
            _MEMO[key] = (host.bind(eqn.primitive, eqn.params, args), args)
        return [_MEMO[key][0]]

    def call(self, eqn: Any) -> list:
        inner = next(eqn.params[k] for k in _CALLS if k in eqn.params)
        closed = isinstance(inner, jex.ClosedJaxpr)
        jaxpr, consts = (inner.jaxpr, inner.consts) if closed else (inner, ())
        args = []
        for v in eqn.invars:
            try:
                args.append(self.read(v))
            except _Unknown as unknown:
                args.append(unknown)
        reader = _Reader(jaxpr, consts, args)
        return [_Lazy(reader, v).value() for v in jaxpr.outvars]


class _Lazy(NamedTuple):
    reader: _Reader
    var: Any

    def value(self) -> Any:
        try:
            return self.reader.read(self.var)
        except _Unknown as unknown:
            return unknown


def _entry(value: Any) -> Any:
    """A constant array as its one value; a grid as it is."""
    if isinstance(value, np.ndarray) and value.shape == (_GRID,):
        return value
    value = np.asarray(value)
    if value.size == 0 or not (value == value.flat[0]).all():
        raise _Unknown
    return value.flat[0]


@functools.cache
def _bits(width: int) -> np.ndarray:
    """Equally likely random bits, in order."""
    steps = (2 * np.arange(_GRID) + 1).astype(object) * 2**width // (2 * _GRID)
    return np.array(steps.tolist(), f"uint{width}")


_MEMO: dict = {}  # results on grids, by the operation and its operands (kept alive beside them)


def _identity(value: Any) -> Any:
    value = np.asarray(value) if not isinstance(value, np.ndarray) else value
    return id(value) if value.ndim else (value.dtype.str, value.item())


@functools.cache
def _references() -> dict[str, tuple[np.ndarray, float]]:
    """Entries of the known laws on the grid, and their exact variances (mean zero)."""

    def values(draw: Callable) -> np.ndarray:
        closed = jax.make_jaxpr(lambda key: draw(key))(jax.random.key(0))
        out = _Reader(closed.jaxpr, closed.consts, [_Key()]).read(closed.jaxpr.outvars[0])
        return np.asarray(out, np.float64)

    density = math.exp(-2) / math.sqrt(2 * math.pi)
    truncated = 1 - 4 * density / math.erf(math.sqrt(2))
    random, shape = jax.random, (_GRID,)
    return {
        "normal": (values(lambda k: random.normal(k, shape, jnp.float32)), 1.0),
        "truncated normal": (
            values(lambda k: random.truncated_normal(k, -2, 2, shape, jnp.float32)),
            truncated,
        ),
        "uniform": (
            values(lambda k: random.uniform(k, shape, jnp.float32, minval=-1)),
            1 / 3,
        ),
    }


def _law(value: Any) -> Law:
    value = _entry(value)
    if np.ndim(value) == 0:
        return Law(float(value), 0.0, "constant")
    if id(value) not in _LAWS:
        _LAWS[id(value)] = (_fitted(np.asarray(value, np.float64)), value)
    return _LAWS[id(value)][0]


_LAWS: dict = {}


def _fitted(value: np.ndarray) -> Law:
    """Law of a grid, by comparison with the known ones."""
    for kind, (reference, variance) in _references().items():
        scale, shift = np.polyfit(reference, value, 1)
        if np.abs(value - shift - scale * reference).max() <= 1e-5 * abs(scale):
            mean = 0.0 if abs(shift) < 1e-5 * abs(scale) else float(shift)
            return Law(mean, float(scale**2 * variance), kind)
    if len(np.unique(np.round(value, 12))) == 1:
        return Law(float(value[0]), 0.0, "constant")
    raise _Unknown


def _sampled(init: Callable, names: list[str]) -> dict[str, Law]:
    """Root mean squares of parameters whose every draw has the same one, as orthogonal matrices do."""

    @jax.jit
    def squares(key: jax.Array) -> dict[str, jax.Array]:
        drawn = named_leaves(init(key))
        return {name: jnp.mean(jnp.square(drawn[name].astype(float))) for name in names}

    draws = [squares(jax.random.key(seed)) for seed in (0, 1)]
    out = {}
    for name in names:
        one, two = (float(draw[name]) for draw in draws)
        if not math.isclose(one, two, rel_tol=1e-4):
            raise ValueError(
                f"the initial variance of {name} cannot be read off its initializer: draws have mean squares {one:.5g} "
                f"and {two:.5g}. Use an initializer built on jax.random.normal, truncated_normal or uniform, an "
                "orthogonal one, or a constant"
            )
        out[name] = Law(0.0, one, "orthogonal")
    return out
