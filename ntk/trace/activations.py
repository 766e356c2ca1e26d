"""The dual activation of a function read from a program: a closed form where its values show one, else its series."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from ntk.activations import closed_forms, hermite, polynomials
from ntk.activations.closed_forms import Dual
from ntk.infinite.kernel import Array
from ntk.trace import algebra
from ntk.types import Elementwise

_X = np.concatenate([np.linspace(-6, 6, 9601) + 0.000123, [-11.0, 9.5]])
"""Places where a function is compared with the known ones: what lies between two of them, .00125 apart, is not seen."""
_FIT = slice(2400, 7200, 100)
"""Some of them between -3 and 3, through which polynomials are drawn."""
_TAILS = np.array([-1e4, -600.0, -70.0, -25.0, -16.0, 16.0, 25.0, 70.0, 600.0, 1e4])
_TOLERANCE = 1e-11
_SINGLE = 3e-7
"""Tolerance for functions whose constants went through single precision, as sqrt(1/2) in `nn.gelu`."""


@dataclasses.dataclass(frozen=True)
class Function:
    """A function of one Gaussian.

    Attributes:
        tree: its tree, with parameters by their place in the step.
        parameter: place of the parameter by which it is differentiated, or None.
    """

    tree: Any
    parameter: int | None = None

    def __call__(self, z: Any) -> Any:
        if self.parameter is None:
            return algebra.function(self.tree)(z)
        value = algebra.parameters(self.tree)[self.parameter]
        f = algebra.function(self.tree, self.parameter)
        p = jnp.full_like(z, value)
        # d/dp of f(z, p) at the initial value, a function of z again.
        return jax.jvp(lambda q: f(z, q), (p,), (jnp.ones_like(p),))[1]

    def on_host(self, z: np.ndarray) -> np.ndarray:
        """The same on numpy arrays, in double precision."""
        if self.parameter is None:
            return algebra.on_host(self.tree)(z)
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            return np.asarray(self(jnp.asarray(z, float)))


class Known(NamedTuple):
    """A function with its dual activation, and what to call it."""

    dual: Dual
    name: str
    polynomial: tuple[float, ...] | None = None


@functools.lru_cache(maxsize=512)
def known(function: Function) -> Known:
    """Dual of a function.

    Raises:
        ValueError: as in `ntk.hermite.dual`.
    """
    f = function.on_host
    y = f(_X)
    if not np.isfinite(y).all():
        raise ValueError(
            f"the activation {name_of(function.tree)} is not finite at {_X[~np.isfinite(y)][0]:.3g}"
        )
    for find in (_polynomial, _homogeneous, _closed):
        found = find(f, y, function.tree)
        if found is not None:
            return found
    name = _public_name(y) or name_of(function.tree)
    return Known(hermite.dual(function), f"{name} (Hermite series)")


def expectation(dual: Dual) -> Elementwise:
    """q -> E[f(u)], which the dual of a function has; that of a map of kernels alone has none."""
    if dual.mean is None:
        raise ValueError("a map of kernels that is no function of activations has no mean")
    return dual.mean


def _same(y: np.ndarray, other: np.ndarray, tolerance: float = _TOLERANCE) -> bool:
    scale = max(np.abs(y).max(), 1e-300)
    return bool(np.abs(y - other).max() <= tolerance * scale)


def _far(f: Callable, guess: Callable) -> bool:
    """Whether f is the guess far out too, where a clipped function differs."""
    y, other = f(_TAILS), guess(_TAILS)
    return bool((np.abs(y - other) <= 1e-9 * np.abs(other)).all())


def scaled(dual: Dual, c: float) -> Dual:
    """Dual of c f."""
    if c == 1:
        return dual

    def moments(q1: Array, q2: Array, rho: Array) -> tuple[Array, Array]:
        k, slope = dual.moments(q1, q2, rho)
        return c * c * k, c * c * slope

    own = dual.mean
    mean = None if own is None else lambda q: c * own(q)
    return Dual(None, moments, lambda q: c * c * dual.norm(q), dual.homogeneous, mean, dual.error)


def _polyval(c: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.polynomial.polynomial.polyval(x, c)


def _polynomial(f: Callable, y: np.ndarray, tree: Any) -> Known | None:
    for degree in range(5):
        p = np.polynomial.Polynomial.fit(_X[_FIT], y[_FIT], degree).convert()
        c = np.zeros(degree + 1)
        c[: len(p.coef)] = p.coef
        c = np.where(np.abs(c) < 1e-10 * max(np.abs(c).max(), 1e-300), 0, c)
        c = np.where(np.abs(c - np.round(c, 8)) < 1e-10, np.round(c, 8), c)
        guess = functools.partial(_polyval, c)
        if _same(y, guess(_X)) and _far(f, guess):
            coefficients = tuple(float(a) for a in c)
            if degree == 1 and c[0] == 0:
                text = "x" if c[1] == 1 else f"{c[1]:.4g} x"
                return Known(closed_forms.abrelu(c[1], c[1]), text, coefficients)
            terms = [f"{a:.4g}" + ("" if k == 0 else f" x^{k}") for k, a in enumerate(c) if a]
            return Known(
                polynomials.polynomial_dual(coefficients), " + ".join(terms) or "0", coefficients
            )
    return None


def _two_sided(low: float, high: float, degree: int, x: np.ndarray) -> np.ndarray:
    return np.where(x < 0, low, high) * np.abs(x) ** degree


def _homogeneous(f: Callable, y: np.ndarray, tree: Any) -> Known | None:
    # f(c x) = c^d f(x) for c > 0: two values and the degree are all of f.
    low, high = (float(v) for v in f(np.array([-1.0, 1.0])))
    low, high = (round(v, 12) if abs(v - round(v, 8)) < 1e-12 else v for v in (low, high))
    for degree in (0, 1, 2, 3):
        guess = functools.partial(_two_sided, low, high, degree)
        if not (_same(y, guess(_X)) and _far(f, guess)):
            continue
        if degree == 1:
            if low == 0:
                name = "relu" if high == 1 else f"{high:.4g} relu"
            else:
                name = f"{-low:.4g} min(x, 0) + {high:.4g} max(x, 0)"
            # a min(x, 0) is -a at -1.
            return Known(closed_forms.abrelu(-low, high), name)
        if degree == 0 and math.isclose(low, -high):
            return Known(scaled(closed_forms.sign(), high), f"{high:.4g} sign")
        if low == 0:
            one = polynomials.rectified_monomial(degree)
            return Known(scaled(one, high), f"{high:.4g} max(x, 0)^{degree}")
    return None


def _uses(tree: Any, names: tuple[str, ...]) -> bool:
    if tree[0] in ("z", "number", "parameter"):
        return False
    return tree[0] in names or any(_uses(child, names) for child in tree[2:])


def _closed(f: Callable, y: np.ndarray, tree: Any) -> Known | None:
    if _uses(tree, ("erf", "erfc")):
        gelu = _X * special.ndtr(_X)
        c = float(f(np.ones(1))[0]) / (0.5 * (1 + math.erf(math.sqrt(0.5))))
        c = round(c, 6) if abs(c - round(c, 6)) < _SINGLE else c
        if _same(y, c * gelu, _SINGLE):
            return Known(
                scaled(closed_forms.gelu(), c), "gelu" if abs(c - 1) < 1e-12 else f"{c:.4g} gelu"
            )
        top, bottom = (float(v) for v in f(np.array([60.0, -60.0])))
        a, c = (top - bottom) / 2, (top + bottom) / 2
        # (f(1/2) - c) / a = erf(b / 2), a and c from both ends.
        share = (float(f(np.full(1, 0.5))[0]) - c) / a if a else 1.0
        b = 2 * float(special.erfinv(share)) if abs(share) < 1 else 0.0
        if b and _same(y, a * special.erf(b * _X) + c):
            return Known(closed_forms.erf(a, b, c), f"{a:.4g} erf({b:.4g} x) + {c:.4g}")
    if _uses(tree, ("sin", "cos")):
        return _wave(f, y)
    if _uses(tree, ("exp", "exp2")):
        # f(1) / f(0) = e^b of a exp(b x) and of a exp(b x^2) alike; the values elsewhere tell which it is.
        one, zero = (float(v) for v in f(np.array([1.0, 0.0])))
        if zero and one / zero > 0:
            b = math.log(one / zero)
            if _same(y, zero * np.exp(b * _X)):
                return Known(closed_forms.exponential(zero, b), f"{zero:.4g} exp({b:.4g} x)")
            if b < 0 and _same(y, zero * np.exp(b * _X**2)):
                return Known(closed_forms.gaussian(zero, b), f"{zero:.4g} exp({b:.4g} x^2)")
    return None


def _wave(f: Callable, y: np.ndarray) -> Known | None:
    """a sin(b x + c), from f(x + h) + f(x - h) = 2 cos(b h) f(x)."""
    h = 0.05
    minus, zero, plus, one, two, three = (
        float(v) for v in f(np.array([-h, 0.0, h, 1.0, 1.0 + h, 1.0 - h]))
    )
    # At 0 or at 1, whichever is not near a zero of f: the quotient is 2 cos(b h).
    sums = ((zero, plus + minus), (one, two + three))
    value, total = max(sums, key=lambda pair: abs(pair[0]))
    if not value or abs(total / (2 * value)) > 1:
        return None
    b = math.acos(total / (2 * value)) / h
    b = round(b, 9)
    if not b:
        return None
    # a cos c, from f(h) - f(-h) = 2 a cos(c) sin(b h), and a sin c = f(0).
    along, across = (plus - minus) / (2 * math.sin(b * h)), zero
    a, c = math.hypot(along, across), math.atan2(across, along)
    a, c = round(a, 10), round(c, 10)
    shifts = {c: c, round(math.pi / 2, 10): math.pi / 2, round(-math.pi / 2, 10): -math.pi / 2}
    c = shifts.get(c, c)
    if not _same(y, a * np.sin(b * _X + c)):
        return None
    return Known(closed_forms.sine(a, b, c), f"{a:.4g} sin({b:.4g} x + {c:.4g})")


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(x, 0)


_PUBLIC: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu(x), by tanh": lambda x: (
        x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "silu(x)": lambda x: x * _sigmoid(x),
    "sigmoid(x)": _sigmoid,
    "softplus(x)": _softplus,
    "elu(x)": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "mish(x)": lambda x: x * np.tanh(_softplus(x)),
}


def _public_name(y: np.ndarray) -> str | None:
    """What `jax.nn` calls a function of these values."""
    return next((name for name, f in _PUBLIC.items() if _same(y, f(_X), _SINGLE)), None)


def name_of(tree: Any) -> str:
    """A short text of a tree."""
    if tree[0] == "z":
        return "x"
    if tree[0] in ("number", "parameter"):
        return f"{tree[-1]:.4g}"
    args = [name_of(child) for child in tree[2:]]
    if tree[0] in _SIGNS and len(args) == 2:
        text = f"({args[0]} {_SIGNS[tree[0]]} {args[1]})"
    else:
        text = f"{tree[0]}({', '.join(args)})"
    return text if len(text) < 60 else f"{tree[0]}(...)"


_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}


def described(term: tuple) -> str:
    """A term of a function step for a reader."""
    number, arrays, factors, alone = term
    parts = []
    if number != 1:
        parts.append(f"{number:.4g}")
    if arrays:
        parts.append("scale(x)" if factors else "shift(x)")
    for _, _, tree in factors:
        parts.append(known(Function(tree)).name)
    if alone is not None:
        parts.append(f"{float(algebra.on_host(alone)(0.0)):.4g}")
    return " * ".join(parts) or "1"
