"""The dynamical dichotomy: what an abc-parametrization does to training as the width goes to infinity.

A network of L hidden layers and width n uses W^l = n^-a_l w^l with w^l_ij ~ N(0, n^-2b_l), and w^l learns
at rate eta n^-c_l, for l = 1 ... L+1; layer L+1 is the readout.

Layer l moves by n^-r_l, where with SGD g = min(a_{L+1} + b_{L+1}, 2 a_{L+1} + c_{L+1}) is the gradient's exponent::

    r_l = g + 2 a_l + c_l - [l > 1],    r_{L+1} = 2 a_{L+1} + c_{L+1} - 1,    r = min over hidden layers

Where the outputs neither start nor move beyond order one, all r_l >= 0 is stable: r = 0 learns features, r > 0 has a
kernel limit.

Source: Yang & Hu 2021, arXiv:2011.14522, theorem 3.6; one c_l a layer follows from the same count.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from limits.exponents import Rule, named_rule
from ntk import show


@show.readable
class ABC(NamedTuple):
    """Exponents of the layers 1 ... L+1, each a tuple of length L+1."""

    a: tuple[float, ...]
    b: tuple[float, ...]
    c: tuple[float, ...]


@show.readable
class Regime(NamedTuple):
    """Regime of a parametrization, and what scales how with the width n.

    Attributes:
        kind: "feature learning", "kernel", "unstable" or "trivial".
        stable: nothing blows up, at initialisation or in training.
        nontrivial: the outputs move by order one.
        r: hidden pre-activations move as n^-r, the least of `layers[:-1]`.
        layers: (r_1, ..., r_L, r_{L+1}): the update of layer l's own weights moves its pre-activations,
            or the outputs, as n^-r_l.
        first: the same for the first step alone. It is slower for hidden layers where the readout is
            initialised smaller than it becomes.
        frozen: numbers l of the layers with r_l > 0, which do not learn at infinite width.
        initial: exponents of the pre-activations and the outputs at initialisation, n^initial.
        change: exponents of their change in training, n^change, updates of earlier layers included.
        failed: the conditions of stability that fail; for "trivial", of nontriviality.
        reasons: all of it in words.
    """

    kind: str
    stable: bool
    nontrivial: bool
    r: float
    layers: tuple[float, ...]
    first: tuple[float, ...]
    frozen: tuple[int, ...]
    initial: tuple[float, ...]
    change: tuple[float, ...]
    failed: tuple[str, ...]
    reasons: tuple[str, ...]


def abc(rule: str | Rule, hidden_layers: int, *, optimizer: str = "sgd") -> ABC:
    """Exponents of a rule ("standard", "ntk", "mup", "mean_field" or a Rule) for L hidden layers.

    Args:
        rule: a name or a limits.Rule.
        hidden_layers: L, at least 1.
        optimizer: "sgd" or "adam", whose learning-rate exponents to take.

    Raises:
        ValueError: an unknown rule or optimizer; no hidden layer.
    """
    rule = named_rule(rule)
    _check_optimizer(optimizer)
    if isinstance(hidden_layers, bool) or not isinstance(hidden_layers, int):
        raise TypeError(f"hidden_layers={hidden_layers!r} must be an integer, at least 1.")
    if hidden_layers < 1:
        raise ValueError(f"hidden_layers={hidden_layers} must be at least 1.")
    rows = (rule.input, *[rule.hidden] * (hidden_layers - 1), rule.output)
    rates = [e.adam if optimizer == "adam" else e.sgd + e.sgd_out for e in rows]
    return ABC(tuple(e.a for e in rows), tuple(e.b for e in rows), tuple(rates))


def classify(
    a: Sequence[float],
    b: Sequence[float],
    c: float | Sequence[float],
    *,
    optimizer: str = "sgd",
    omega_out: float = 1.0,
) -> Regime:
    """Regime of the abc-parametrization (a, b, c): feature learning, kernel, unstable or trivial.

    With one learning rate c and SGD this is the theorem of the source. One c_l per layer follows from the
    same count: the gradient of a unit of the last hidden layer is n^-g with g = min(a_{L+1} + b_{L+1},
    2 a_{L+1} + c_{L+1}), the initial readout or its update, and stable hidden layers pass it down; an SGD
    step on layer l then changes its pre-activations by n^-(g + 2 a_l + c_l) times |x^{l-1}|^2, which is n,
    or 1 for the inputs. Adam's step has entries n^-c_l whatever the gradient, so that r_l = a_l + c_l - 1,
    + 1 for the inputs (eps scaled with the gradient).

    Args:
        a: exponents of the multipliers, for the layers 1 ... L+1.
        b: exponents of the initial standard deviations, likewise.
        c: exponents of the learning rate, one number or one per layer.
        optimizer: "sgd" or "adam".
        omega_out: alignment of the initial readout with the change of the last hidden layer: they sum to
            n^omega_out. 1 is the law of large numbers, which training reaches; 1/2 the central limit, if
            they stay independent.

    Returns:
        Regime. For an unstable one the exponents hold at most for the first steps.

    Raises:
        TypeError: exponents that are no numbers.
        ValueError: a and b not of one length of at least 2; c neither one number nor of that length;
            exponents that are not finite; an unknown optimizer; omega_out not in [1/2, 1].

    Source: Yang & Hu 2021, arXiv:2011.14522, section 3 and theorem 3.6, for tanh or smoothed ReLU; alignment:
    Everett et al. 2024, arXiv:2407.05872.
    """
    a, b, c = _layers(a, b, c)
    _check_optimizer(optimizer)
    if not isinstance(omega_out, int | float) or not 0.5 <= omega_out <= 1:
        raise ValueError(f"omega_out={omega_out!r} must lie in [1/2, 1].")
    depth = len(a) - 1
    readout = a[-1] + b[-1]
    scale: Sequence[float] = a
    gradient = early = 0.0
    if optimizer == "sgd":
        update = 2 * a[-1] + c[-1]
        scale, gradient, early = [2 * x for x in a], min(readout, update), readout
    own = [scale[l] + c[l] - (l > 0) for l in range(depth + 1)]
    layers = (*(gradient + x for x in own[:-1]), own[-1])
    r = min(layers[:-1])
    change = [-min(layers[: l + 1]) for l in range(depth)]
    moved = min(layers[-1], readout + r - omega_out)
    stability = _stability(a, b, layers, r, omega_out, "2 a + c" if optimizer == "sgd" else "a + c")
    failed = tuple(text for holds, text in stability if not holds)
    stable, nontrivial = not failed, _close(moved, 0.0)
    kind = "unstable" if failed else "trivial" if moved > 1e-9 else "feature learning"
    if kind == "feature learning" and r > 1e-9:
        kind = "kernel"
    frozen = tuple(l + 1 for l, x in enumerate(layers) if x > 1e-9)
    if kind == "trivial":
        failed = (
            f"the outputs move as n^{-moved:g}: neither the readout nor the features reach them",
        )
    return Regime(
        kind=kind,
        stable=stable,
        nontrivial=nontrivial,
        r=r,
        layers=layers,
        first=(*(early + x for x in own[:-1]), own[-1]),
        frozen=frozen,
        initial=_initial(a, b),
        change=tuple(x + 0.0 for x in (*change, -moved)),  # no negative zeros
        failed=failed,
        reasons=_reasons(kind, failed, layers, frozen),
    )


def _stability(
    a: tuple[float, ...],
    b: tuple[float, ...],
    layers: tuple[float, ...],
    r: float,
    omega_out: float,
    update: str,
) -> Iterator[tuple[bool, str]]:
    """(holds, what fails otherwise) of each condition, in the order of the layers."""
    last, initial = len(a), _initial(a, b)
    for l, x in enumerate(initial[:-1], 1):
        fan = "0" if l == 1 else "1/2"
        yield (
            _close(x, 0.0),
            f"layer {l} starts at n^{x:g}: a_{l} + b_{l} = {a[l - 1] + b[l - 1]:g}, not {fan}",
        )
    readout = a[-1] + b[-1]
    yield (
        initial[-1] < 1e-9,
        f"the outputs start at n^{initial[-1]:g}: a_{last} + b_{last} = {readout:g} is below 1/2",
    )
    for l, x in enumerate(layers[:-1], 1):
        yield x > -1e-9, f"layer {l} moves as n^{-x:g}: r_{l} = {x:g} is below 0"
    yield (
        layers[-1] > -1e-9,
        f"the readout's update moves the outputs as n^{-layers[-1]:g}: {update} of layer {last} is"
        f" {layers[-1] + 1:g}, below 1",
    )
    total = readout + r
    yield (
        total > omega_out - 1e-9,
        f"the features' change moves the outputs as n^{omega_out - total:g} through the initial readout:"
        f" a_{last} + b_{last} + r = {total:g} is below {omega_out:g}",
    )


def _initial(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, ...]:
    return tuple((l > 0) / 2 - (x + y) for l, (x, y) in enumerate(zip(a, b)))


def _reasons(
    kind: str, failed: Sequence[str], layers: tuple[float, ...], frozen: Sequence[int]
) -> tuple[str, ...]:
    if kind == "unstable":
        return tuple(f"unstable: {text}" for text in failed)
    if kind == "trivial":
        return tuple(f"trivial: {text}" for text in failed)
    hidden = [f"layer {l}" for l in range(1, len(layers)) if l not in frozen]
    first = (
        f"feature learning: r = 0 in {', '.join(hidden)}"
        if hidden
        else f"kernel regime: no hidden layer's features move (r = {min(layers[:-1]):g})"
    )
    return (
        first,
        *(
            f"{'the readout' if l == len(layers) else f'layer {l}'} is frozen:"
            f" its update acts as n^{-layers[l - 1]:g}"
            for l in frozen
        ),
    )


def _layers(
    a: Sequence[float], b: Sequence[float], c: float | Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    a, b = _exponents("a", a), _exponents("b", b)
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(
            f"a has {len(a)} and b {len(b)} layers: give one number per layer, readout included,"
            " for at least one hidden layer."
        )
    c = _exponents("c", c if hasattr(c, "__len__") else (c,) * len(a))
    if len(c) != len(a):
        raise ValueError(f"c has {len(c)} layers: give one number, or {len(a)} as for a and b.")
    return a, b, c


def _exponents(name: str, values: Any) -> tuple[float, ...]:
    """The exponents as floats; refused unless they are finite numbers."""
    try:
        floats = tuple(map(float, values))
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {values!r}; it must be one finite number per layer") from None
    if isinstance(values, str) or not all(map(math.isfinite, floats)):
        raise ValueError(f"{name} is {values!r}; exponents must be finite numbers, one per layer")
    return floats


def _check_optimizer(optimizer: str) -> None:
    if optimizer not in ("sgd", "adam"):
        raise ValueError(f"optimizer={optimizer!r} is not one of 'sgd', 'adam'.")


def _close(x: float, y: float) -> bool:
    return math.isclose(x, y, abs_tol=1e-9)
