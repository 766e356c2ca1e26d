"""The primitives of JAX that this package knows by name: one table of what it needs to know of each.

What a primitive does to the activations of a traced network is with the steps that it makes (`ntk.trace.ops`); how a
layer's Jacobian is read off its product, with the layers (`ntk.finite.layer_factors`).
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import special


class Primitive(NamedTuple):
    """What is known of a primitive.

    Attributes:
        numpy: the same on numpy arrays: `numpy(*arrays)` with the result in the type of the first where it is plain,
            else `numpy(params, *arrays)`; None where JAX runs it.
        plain: see numpy.
        elementwise: whether it acts on each entry alone.
        identity: whether it changes no number but by rounding.
        arithmetic: whether its operands have one type.
        power: of the width, of the result: a function of (powers of the operands, params); "common", that of all
            operands; "sum", the largest; "order", none, of operands of one size. None where the operands have none.
        slope: its derivative by x, a tree of `ntk.trace.algebra`, from (tree of the result, x, the other operand,
            whether a derivative rule of its own surrounds it).
        mixes: whether an entry of the result is made of several ones, or is none of theirs.
        shape: "order" where it only changes the shape, and keeps the order of entries; "axes" where it only reorders
            axes; "part" where it picks entries.
        random: "key" where it makes keys, "draw" where it draws numbers.
    """

    numpy: Callable | None = None
    plain: bool = False
    elementwise: bool = False
    identity: bool = False
    arithmetic: bool = False
    power: Callable | str | None = None
    slope: Callable | None = None
    mixes: bool = False
    shape: str = ""
    random: str = ""


# --- on numpy: entry by entry --------------------------------------------------------------------


def _select(params: dict, which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    if which.dtype == bool:
        return np.where(which, cases[1], cases[0])
    return np.choose(which, cases)


def _convert(params: dict, x: np.ndarray) -> np.ndarray:
    return x.astype(params["new_dtype"])


def _bitcast(params: dict, x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view(params["new_dtype"])


def _power(params: dict, x: np.ndarray) -> np.ndarray:
    y = params["y"]
    return x**y if y >= 0 else 1 / x**-y


def _clamp(low: np.ndarray, x: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.clip(x, low, high)


# --- on numpy: shapes and sums -------------------------------------------------------------------


def _spread(params: dict, x: np.ndarray, *_: Any) -> np.ndarray:
    shape = params["shape"]
    inside = [1] * len(shape)
    for axis, size in zip(params["broadcast_dimensions"], x.shape):
        inside[axis] = size
    return np.broadcast_to(x.reshape(inside), shape)


def _slice(params: dict, x: np.ndarray) -> np.ndarray:
    strides = params["strides"] or (1,) * x.ndim
    return x[tuple(map(slice, params["start_indices"], params["limit_indices"], strides))]


def _pad(params: dict, x: np.ndarray, value: np.ndarray) -> np.ndarray:
    sizes = [
        max(low + high + n + max(n - 1, 0) * inner, 0)
        for (low, high, inner), n in zip(params["padding_config"], x.shape)
    ]
    out = np.full(sizes, value)
    source, target = [], []
    for (low, _, inner), n, size in zip(params["padding_config"], x.shape, sizes):
        step = inner + 1
        places = low + step * np.arange(n)
        inside = np.flatnonzero((places >= 0) & (places < size))  # negative padding cuts off
        first, count = (inside[0], inside.size) if inside.size else (0, 0)
        source.append(slice(first, first + count))
        start = places[first] if count else 0
        target.append(slice(start, start + step * max(count - 1, 0) + bool(count), step))
    out[tuple(target)] = x[tuple(source)]
    return out


def _iota(params: dict) -> np.ndarray:
    shape, axis = params["shape"], params["dimension"]
    along = np.arange(shape[axis], dtype=params["dtype"])
    return np.broadcast_to(
        along.reshape([-1 if k == axis else 1 for k in range(len(shape))]), shape
    )


def _reduced(fn: Callable) -> Primitive:
    def rule(params: dict, x: np.ndarray) -> np.ndarray:
        return np.asarray(fn(x, axis=tuple(params["axes"]))).astype(x.dtype, copy=False)

    return Primitive(rule, mixes=True)


def _dot(params: dict, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    (left, right), (batch1, batch2) = params["dimension_numbers"]
    letters = iter(string.ascii_letters)
    one, two = ([""] * a.ndim for a in (x, y))
    for pairs in (zip(batch1, batch2), zip(left, right)):
        for i, j in pairs:
            one[i] = two[j] = next(letters)
    one, two = ([name or next(letters) for name in names] for names in (one, two))
    rest = [n for k, n in enumerate(one) if k not in (*left, *batch1)]
    rest += [n for k, n in enumerate(two) if k not in (*right, *batch2)]
    out = [one[i] for i in batch1] + rest
    kind = params["preferred_element_type"] or np.result_type(x, y)
    path = f"{''.join(one)},{''.join(two)}->{''.join(out)}"
    return np.einsum(path, x.astype(kind), y.astype(kind), optimize=True)


# --- derivatives, as trees -----------------------------------------------------------------------


def _times(number: float, tree: tuple) -> tuple:
    return ("mul", (), ("number", number), tree)


def _plus(tree: tuple, number: float) -> tuple:
    return tree if number == 0 else ("add", (), tree, ("number", number))


def _largest_slope(sign: float) -> Callable:
    def slope(own: tuple, x: tuple, other: tuple, custom: bool) -> tuple:
        gap = _plus(x, -other[1])  # positive where x is chosen, times the sign
        gap = gap if sign == 1 else _times(sign, gap)
        # At a tie JAX gives each operand of `max` half of the derivative; rules such as that of `jax.nn.relu` are zero.
        if custom:
            return ("sign", (), ("max", (), gap, ("number", 0.0)))
        return _plus(_times(0.5, ("sign", (), gap)), 0.5)

    return slope


def _product(one: tuple, two: tuple) -> tuple:
    return ("mul", (), one, two)


def _erf_slope(own: tuple, x: tuple, *_: Any) -> tuple:
    return _times(2 / math.sqrt(math.pi), ("exp", (), _times(-1.0, _product(x, x))))


# --- the table -----------------------------------------------------------------------------------


def _each(fn: Callable | None = None, **columns: Any) -> Primitive:
    """On each entry alone, in the type of the first operand."""
    return Primitive(fn, plain=True, elementwise=True, **columns)


def _same(rule: Callable | None = None) -> Primitive:
    """Changes no number."""
    return Primitive(rule or (lambda x: x), plain=rule is None, elementwise=True, identity=True)


def _comparison(fn: Callable, power: str | None = None) -> Primitive:
    return Primitive(lambda params, *args: fn(*args), elementwise=True, power=power)


def _scaling(exponent: float) -> Callable:
    return lambda powers, params: exponent * powers[0]


class _Table(dict):
    """Rows by name; an empty one for primitives that are not listed."""

    def __missing__(self, name: str) -> Primitive:
        return Primitive()


_LISTED: dict[str, Primitive] = {
    # arithmetic
    "add": _each(np.add, arithmetic=True, power="sum"),
    "sub": _each(np.subtract, arithmetic=True, power="sum"),
    "add_any": _each(np.add, arithmetic=True, power="common"),
    "mul": _each(np.multiply, arithmetic=True, power=lambda powers, _: sum(powers)),
    "div": _each(np.true_divide, arithmetic=True, power=lambda powers, _: powers[0] - powers[1]),
    "max": _each(np.maximum, arithmetic=True, power="common", slope=_largest_slope(1.0)),
    "min": _each(np.minimum, arithmetic=True, power="common", slope=_largest_slope(-1.0)),
    "neg": _each(np.negative, power=_scaling(1.0)),
    "abs": _each(np.abs, power=_scaling(1.0), slope=lambda own, x, *_: ("sign", (), x)),
    "sign": _each(np.sign, power=_scaling(0.0)),
    "square": _each(np.square, power=_scaling(2.0)),
    "sqrt": _each(np.sqrt, power=_scaling(0.5)),
    "rsqrt": _each(lambda x: 1 / np.sqrt(x), power=_scaling(-0.5)),
    "integer_pow": Primitive(
        _power, elementwise=True, power=lambda powers, params: powers[0] * params["y"]
    ),
    "pow": _each(np.power),
    "cbrt": _each(np.cbrt),
    "rem": _each(np.fmod),
    "clamp": _each(_clamp),
    "nextafter": _each(np.nextafter),
    "select_n": Primitive(_select, elementwise=True),
    # functions
    "exp": _each(np.exp, slope=lambda own, *_: own),
    "exp2": _each(np.exp2),
    "expm1": _each(np.expm1),
    "log": _each(np.log),
    "log1p": _each(np.log1p),
    "logistic": _each(
        special.expit, slope=lambda own, *_: _product(own, _plus(_times(-1.0, own), 1.0))
    ),
    "sin": _each(np.sin, slope=lambda own, x, *_: ("cos", (), x)),
    "cos": _each(np.cos, slope=lambda own, x, *_: _times(-1.0, ("sin", (), x))),
    "tan": _each(np.tan),
    "asin": _each(np.arcsin),
    "acos": _each(np.arccos),
    "atan": _each(np.arctan),
    "atan2": _each(np.arctan2),
    "sinh": _each(np.sinh),
    "cosh": _each(np.cosh),
    "tanh": _each(np.tanh, slope=lambda own, *_: _plus(_times(-1.0, _product(own, own)), 1.0)),
    "asinh": _each(np.arcsinh),
    "acosh": _each(np.arccosh),
    "atanh": _each(np.arctanh),
    "erf": _each(special.erf, slope=_erf_slope),
    "erfc": _each(special.erfc),
    "erf_inv": _each(special.erfinv),
    "lgamma": _each(special.gammaln),
    "digamma": _each(special.digamma),
    "polygamma": _each(),
    "igamma": _each(),
    "igammac": _each(),
    "igamma_grad_a": _each(),
    "bessel_i0e": _each(),
    "bessel_i1e": _each(),
    "regularized_incomplete_beta": _each(),
    "zeta": _each(),
    # rounding, comparisons, bits (shifts and casts of bits have no rule on activations)
    "floor": _each(np.floor),
    "ceil": _each(np.ceil),
    "round": _each(),
    "is_finite": _comparison(np.isfinite),
    "eq": _comparison(np.equal),
    "ne": _comparison(np.not_equal),
    "lt": _comparison(np.less, "order"),
    "le": _comparison(np.less_equal, "order"),
    "gt": _comparison(np.greater, "order"),
    "ge": _comparison(np.greater_equal, "order"),
    "and": _each(np.bitwise_and),
    "or": _each(np.bitwise_or),
    "xor": _each(np.bitwise_xor),
    "not": _each(np.bitwise_not),
    "shift_right_logical": Primitive(np.right_shift, plain=True),
    "bitcast_convert_type": Primitive(_bitcast),
    # no change
    "convert_element_type": _same(_convert),
    "copy": _same(),
    "copy_p": _same(),
    "stop_gradient": _same(),
    "reduce_precision": _same(),
    "optimization_barrier": _same(),
    # shapes
    "reshape": Primitive(lambda params, x: x.reshape(params["new_sizes"]), shape="order"),
    "broadcast_in_dim": Primitive(_spread, shape="order"),
    "squeeze": Primitive(
        lambda params, x: np.squeeze(x, tuple(params["dimensions"])), shape="order"
    ),
    "expand_dims": Primitive(
        lambda params, x: np.expand_dims(x, params["dimensions"]), shape="order"
    ),
    "transpose": Primitive(lambda params, x: np.transpose(x, params["permutation"]), shape="axes"),
    "slice": Primitive(_slice, shape="part"),
    "rev": Primitive(lambda params, x: np.flip(x, params["dimensions"]), shape="part"),
    # what makes entries of several others, or of none
    "iota": Primitive(_iota, mixes=True),
    "concatenate": Primitive(
        lambda params, *xs: np.concatenate(xs, params["dimension"]), mixes=True
    ),
    "stack": Primitive(lambda params, *xs: np.stack(xs, params["axis"]), mixes=True),
    "pad": Primitive(_pad, mixes=True),
    "dot_general": Primitive(_dot, mixes=True),
    "reduce_and": _reduced(np.all),
    "reduce_max": _reduced(np.max),
    "reduce_min": _reduced(np.min),
    "reduce_or": _reduced(np.any),
    "reduce_prod": _reduced(np.prod),
    "reduce_sum": _reduced(np.sum),
    # keys and draws
    "random_seed": Primitive(random="key"),
    "random_wrap": Primitive(random="key"),
    "random_unwrap": Primitive(random="key"),
    "random_split": Primitive(random="key"),
    "random_fold_in": Primitive(random="key"),
    "random_bits": Primitive(random="draw"),
    "random_gamma": Primitive(random="draw"),
    "threefry2x32": Primitive(random="draw"),
}
_MIXING = dict.fromkeys(
    [
        "argmax",
        "argmin",
        "conv_general_dilated",
        "cumlogsumexp",
        "cummax",
        "cummin",
        "cumprod",
        "cumsum",
        "gather",
        "reduce_window_max",
        "reduce_window_min",
        "reduce_window_sum",
        "sort",
        "triangular_solve",
    ],
    Primitive(mixes=True),
)
TABLE = _Table(_LISTED | _MIXING)
