"""Law of each parameter at initialisation, read off the program of `init` itself.

An initializer is a function of random bits that acts on every entry alone. Its program is run on a grid of equally
likely bits in place of random ones, which shows the law of an entry exactly: normal, truncated normal or uniform
up to a shift and a scale, or another by its quantiles. What does not act on entries alone (orthogonal matrices,
identities, tables of sines, masks) is drawn with two keys and told apart by what the draws have in common.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk import jaxprs
from ntk.family import named_leaves
from ntk.primitives import TABLE
from ntk.trace.sharing import jaxpr_of

_GRID = 512
_FINE = 2**14
"""Equally likely bits on which a law without a name is read."""


class Law(NamedTuple):
    """Law of the entries of a parameter.

    Attributes:
        mean: of an entry.
        variance: of an entry; 0 for a constant.
        kind: "constant", "normal", "truncated normal", "uniform", "other", "orthogonal"; "fixed" for an array that
            is the same for every key, "unknown" for what was not told.
        quantiles: of an "other" law, equally likely values with mean 0 and variance 1, in order.
    """

    mean: float
    variance: float
    kind: str
    quantiles: tuple[float, ...] = ()


class _Key:
    """Stands for PRNG keys."""


class _Draw(NamedTuple):
    """An array of random entries: one entry on the grid of bits.

    Attributes:
        grid: its values.
        tag: what it was drawn with, and how its entries were moved since. Arrays with one tag are functions of the
            same bits entry by entry; those with different tags have a joint law that one grid does not show.
    """

    grid: np.ndarray
    tag: tuple


class _Unknown(Exception):
    """A value that no grid of bits shows."""


def laws(init: Callable) -> tuple[dict[str, Law], dict[str, tuple[int, ...]]]:
    """Law and shape of each parameter by its path.

    Args:
        init: `init(key) -> params`; run only where an initializer does not act on entries alone (orthogonal ones).
    """
    closed, shapes = jaxpr_of(init, jax.random.key(0), return_shape=True)
    return laws_of(jaxprs.program_of(closed), shapes), {
        n: tuple(s.shape) for n, s in named_leaves(shapes).items()
    }


def laws_of(program: jaxprs.Program, shapes: Any) -> dict[str, Law]:
    """Law of each parameter by its path.

    Args:
        program: of `init`.
        shapes: what it returns, as a tree.
    """
    named = named_leaves(shapes)
    found, unknown = {}, []
    values = _values(program, (True,) * len(named))
    for place, (name, value) in enumerate(zip(named, values)):
        try:
            value = _entry(value)
            found[name] = _law(value) or _other(program, place)
        except _Unknown:
            unknown.append(name)
    if unknown:
        wanted = [name in unknown for name in named]
        found |= dict(zip(unknown, _drawn(program, wanted)))
    return {name: found[name] for name in named}


def _values(program: jaxprs.Program, wanted: Sequence[bool], count: int = _GRID) -> list:
    """Wanted outputs of a program of keys: a scalar for a constant array, a draw, or what they are unknown by."""

    def rule(equation: Any, args: list) -> list:
        if equation.primitive.name in jaxprs.INNER:
            return jaxprs.evaluate(jaxprs.living(jaxprs.inner(equation)), args, rule)
        try:
            return _results(equation, args, count)
        except _Unknown as unknown:
            return [unknown] * len(equation.outvars)

    env = jaxprs.values(jaxprs.living(program, wanted), [_Key()], rule)
    return [jaxprs.read(env, v) if want else None for v, want in zip(program.jaxpr.outvars, wanted)]


def _results(eqn: Any, args: list, count: int) -> list:
    """Results of one equation on constants, keys and draws."""
    if any(isinstance(a, _Unknown) for a in args):
        raise _Unknown
    name, row = eqn.primitive.name, TABLE[eqn.primitive.name]
    if name == "random_bits":
        return [_Draw(_bits(eqn.params["bit_width"], count), (args[0],))]
    if any(isinstance(a, _Key) for a in args) or row.random:
        return [_Key() for _ in eqn.outvars]
    if row.shape:
        return [_reshaped(eqn, _entry(args[0]), row.shape != "order")]
    if len(eqn.outvars) > 1 or row.mixes:
        raise _Unknown
    same = {tuple(v.aval.shape) for v in eqn.invars if v.aval.shape}
    if any(len(shape) != len(eqn.outvars[0].aval.shape) for shape in same):
        raise _Unknown
    return [_applied(eqn, [_entry(a) for a in args])]


def _reshaped(eqn: Any, value: Any, moved: bool) -> Any:
    if not isinstance(value, _Draw):
        return value
    before, after = (math.prod(v.aval.shape) for v in (eqn.invars[0], eqn.outvars[0]))
    if after > before:
        raise _Unknown  # one draw for several entries
    return value._replace(tag=value.tag + ((str(eqn.params),) if moved else ()))


def _applied(eqn: Any, args: list) -> Any:
    """An elementwise primitive."""
    tags = {a.tag for a in args if isinstance(a, _Draw)}
    if len(tags) > 1:
        raise _Unknown
    args = [a.grid if isinstance(a, _Draw) else a for a in args]
    key = (eqn.primitive.name, str(eqn.params), *(_identity(a) for a in args))
    if key not in _MEMO:
        _MEMO[key] = (jaxprs.bind(eqn.primitive, eqn.params, args), args)
    out = _MEMO[key][0]
    return _Draw(out, tags.pop()) if tags else out


def _entry(value: Any) -> Any:
    """A constant array as its one value; a draw as it is."""
    if isinstance(value, _Unknown):
        raise value
    if isinstance(value, _Draw):
        return value
    value = np.asarray(value)
    if value.size == 0 or not (value == value.flat[0]).all():
        raise _Unknown
    return value.flat[0]


@functools.cache
def _bits(width: int, count: int) -> np.ndarray:
    """Equally likely random bits, in order."""
    # Middles of `count` equal parts of all integers: every value is as likely as any other.
    steps = (2 * np.arange(count) + 1).astype(object) * 2**width // (2 * count)
    return np.array(steps.tolist(), f"uint{width}")


_MEMO: dict = {}  # results on grids, by the operation and its operands (kept alive beside them)


def _identity(value: Any) -> Any:
    value = np.asarray(value) if not isinstance(value, np.ndarray) else value
    return id(value) if value.ndim else (value.dtype.str, value.item())


@functools.cache
def _references() -> dict[str, tuple[np.ndarray, float]]:
    """Entries of the known laws on the grid, and their exact variances (mean zero)."""

    def values(draw: Callable) -> np.ndarray:
        program = jaxprs.program_of(jax.make_jaxpr(draw)(jax.eval_shape(random.key, 0)))
        (out,) = _values(program, (True,))
        return np.asarray(out.grid, np.float64)

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


def _law(value: Any) -> Law | None:
    """Law of a constant or of a draw; None for a draw without a name."""
    if not isinstance(value, _Draw):
        return Law(float(value), 0.0, "constant")
    grid = value.grid
    if id(grid) not in _LAWS:
        _LAWS[id(grid)] = (_fitted(np.asarray(grid, np.float64)), grid)
    return _LAWS[id(grid)][0]


_LAWS: dict = {}


def _fitted(value: np.ndarray) -> Law | None:
    """Law of a grid, by comparison with the known ones."""
    for kind, (reference, variance) in _references().items():
        # An initializer that shifts and scales a known law gives a straight line against it, entry by entry.
        scale, shift = np.polyfit(reference, value, 1)
        if np.abs(value - shift - scale * reference).max() <= 1e-5 * abs(scale):
            mean = 0.0 if abs(shift) < 1e-5 * abs(scale) else float(shift)
            return Law(mean, float(scale**2 * variance), kind)
    if len(np.unique(np.round(value, 12))) == 1:
        return Law(float(value[0]), 0.0, "constant")
    return None


def _other(program: jaxprs.Program, place: int) -> Law:
    """A law without a name, from its values on a finer grid; mean and variance to about 1e-4."""
    wanted = [k == place for k in range(len(program.jaxpr.outvars))]
    value = _values(program, wanted, _FINE)[place]
    grid = np.sort(np.asarray(value.grid, np.float64))
    mean, variance = float(grid.mean()), float(grid.var())
    coarse = float(np.var(grid[_FINE // 64 :: _FINE // 32]))
    if not math.isfinite(variance) or abs(coarse - variance) > 0.25 * variance:
        raise _Unknown  # without a variance, as a Cauchy law
    mean = 0.0 if abs(mean) < 1e-5 * math.sqrt(variance) else mean
    scaled = (grid - grid.mean()) / math.sqrt(variance)
    return Law(mean, variance, "other", tuple(scaled.tolist()))


def _drawn(whole: jaxprs.Program, wanted: Sequence[bool]) -> list[Law]:
    """Laws of the wanted parameters, which no grid shows, from two draws.

    Op by op, so that parameters of one shape are compiled once.
    """
    program = jaxprs.living(whole, wanted)
    outs = [v for v, want in zip(program.jaxpr.outvars, wanted) if want]
    keys = [jax.random.key(seed) for seed in (0, 1)]
    draws = [jaxprs.values(program, [key], lambda *_: None) for key in keys]
    return [
        _compared(*(np.asarray(jaxprs.read(draw, v), np.float64) for draw in draws)) for v in outs
    ]


def _compared(one: np.ndarray, two: np.ndarray) -> Law:
    """What two draws have in common."""
    square = float(np.mean(one**2))
    if np.array_equal(one, two):
        if (one == one.flat[0]).all():
            return Law(float(one.flat[0]), 0.0, "constant")
        return Law(float(one.mean()), square, "fixed")
    if all(map(_is_orthogonal, (one, two))):
        return Law(0.0, square, "orthogonal")
    return Law(0.0, square, "unknown")


def _is_orthogonal(draw: np.ndarray) -> bool:
    """Whether rows or columns of a matrix are orthogonal and of one length, and no entries stand out.

    A permutation, or an orthogonal matrix in the middle of a window of zeros, has entries that do: they have no
    Gaussian limit.
    """
    if draw.ndim < 2:
        return False
    matrix = draw.reshape(-1, draw.shape[-1])
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    gram = matrix @ matrix.T
    size = np.trace(gram) / len(gram)
    # The fourth moment over the square of the second is 3 of entries that tend to Gaussians.
    spread = np.mean(draw**4) / np.mean(draw**2) ** 2 if size else math.inf
    return bool(np.abs(gram - size * np.eye(len(gram))).max() < 1e-4 * size and spread < 6)


def refusal(name: str, law: Law) -> str | None:
    """Why a parameter of that law has no rule here; None if it has one."""
    if law.kind == "fixed":
        return (
            f"{name} is the same array for every key, and not a constant (an identity, a table of positions): what it "
            "computes depends on the place of each unit. Use a random or a constant initializer; keep a fixed table "
            "out of the parameters, and add it to the inputs of a layer of weights"
        )
    if law.kind == "unknown":
        return (
            f"the initial law of {name} cannot be read off its initializer: its entries are not independent draws of "
            "one law with a variance, and not an orthogonal matrix (a mask, a triangle, a window that is zero but for "
            "its middle, rows that are normalised or alike). Use an initializer that draws every entry alone, as "
            "those built on jax.random.normal, truncated_normal or uniform do, an orthogonal one, or a constant"
        )
    return None
