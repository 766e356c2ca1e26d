"""Finite networks of a family in the NTK parametrization: the ones whose kernels tend to `infinite_width`'s.

A weight of standard deviation s is s times a parameter that is trained at unit rate; what is constant at initialisation
is trained as it stands.

    T = sum over parameters w of rate_w (df/dw)(df/dw)^T

with the rate s^2 of a weight w = s p, so that p is trained at unit rate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk import family as families
from ntk.family import named_leaves
from ntk.finite import empirical
from ntk.options import drawn_biases
from ntk.trace import initial
from ntk.trace.parameters import Assumed, read_parameters

PyTree = Any


class Finite(NamedTuple):
    """The family at one width.

    Attributes:
        draw: `draw(key)`, its weights as they enter the model, a dict by path.
        apply: `apply(weights, x)`, outputs of a batch (a tuple of batches for several inputs).
        rates: {path: factor of what the parameter adds to the NTK}.
        variances: {path: variance of its entries}, 0 for constants; None where they are not independent of mean zero.
        width: the width.
    """

    draw: Callable
    apply: Callable
    rates: dict[str, float]
    variances: dict[str, float | None]
    width: int


def finite(
    family: Callable, width: int, first: tuple, assumed: Assumed, batched: bool = True
) -> Finite:
    """The family at one width; `assumed` is (base_width, learning_rates, bias_std, roles)."""
    net = families.network(family, width, first)
    own = initial.laws(net.init)
    parameters = read_parameters([own, own], family, first, *assumed, widths=(width, 2 * width))
    laws = {name: p.laws[0] for name, p in parameters.items()}
    drawn = set(drawn_biases(own[0], assumed[2]))
    state = families.initial_state(family, width, first, jax.random.key(0))
    kept = {"state": state} if state else {}

    def random(name: str) -> bool:
        return laws[name].variance > 0 and laws[name].kind != "fixed"

    factors = {
        name: (law.variance / own[0][name].variance) ** 0.5
        for name, law in laws.items()
        if random(name) and name not in drawn
    }
    tree = jax.tree.structure(jax.eval_shape(net.init, jax.random.key(0)))

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        weights = named_leaves(net.init(key))
        for place, (name, value) in enumerate(weights.items()):
            if name in drawn:
                noise = jax.random.normal(jax.random.fold_in(key, place), value.shape, value.dtype)
                weights[name] = laws[name].variance ** 0.5 * noise
            elif name in factors:
                weights[name] = factors[name] * value
        return weights

    def apply(weights: dict[str, jax.Array], x: PyTree) -> jax.Array:
        params = jax.tree.unflatten(tree, list(weights.values()))
        inputs = x if isinstance(x, tuple) else (x,)
        if batched:
            return net.apply(params, *inputs, **kept)
        return jax.vmap(lambda *one: net.apply(params, *one, **kept))(*inputs)

    fans = _fans_of_zeros(family, width, first, laws, net, assumed[3])
    # A unit rate is of a parameter of unit variance; a matrix of zeros is fan^-1/2 times one.
    rates = {
        name: p.rate * (laws[name].variance or (p.fan or 1) / fans.get(name, p.fan or 1))
        for name, p in parameters.items()
    }
    centred = ("constant", "normal", "truncated normal", "uniform", "other", "orthogonal")
    variances = {
        name: None if law.kind not in centred or law.mean else law.variance
        for name, law in laws.items()
    }
    return Finite(draw, apply, rates, variances, width)


def _fans_of_zeros(
    family: Callable, width: int, first: tuple, laws: dict, net: Any, roles: Any
) -> dict[str, int]:
    """Fan-in of matrices that are zero at initialisation, where it grows with the width."""
    shapes = named_leaves(jax.eval_shape(net.init, jax.random.key(0)))
    zeros = [
        name
        for name, law in laws.items()
        if not law.variance and not law.mean and len(shapes[name].shape) > 1
    ]
    if not zeros:
        return {}
    # Fans of others are not asked for, and may be ambiguous.
    given = {**(roles or {}), **{name: "scalar" for name in laws if name not in zeros}}
    axes = families.width_axes(family, first, widths=(width, 2 * width), roles=given)
    named = named_leaves(axes, is_leaf=lambda leaf: isinstance(leaf, families.ParamAxes))
    grow = [name for name in zeros if named[name].role in ("hidden", "output")]
    return {name: named[name].fans(0)[0] for name in grow}


def tangent(net: Finite, weights: dict, x1: PyTree, x2: PyTree | None, rates: dict) -> jax.Array:
    """sum over parameters of their rate times J J^T, averaged over the outputs: (N1, N2, pairs of positions)."""
    # w = scale p with p trained at unit rate: d/dp (d/dp)^T has the factor rate = scale^2.
    scales = {name: rate**0.5 for name, rate in rates.items() if rate > 0}
    moved = {name: weights[name] / scale for name, scale in scales.items()}

    def apply(params: dict, x: PyTree) -> jax.Array:
        changed = {name: params[name] * scale for name, scale in scales.items()}
        return net.apply(weights | changed, x)

    channels = len(jax.eval_shape(net.apply, weights, x1).shape) > 1
    if not moved:
        out = jax.eval_shape(net.apply, weights, x1)
        return jnp.zeros([n for n in out.shape[: -1 if channels else None] for _ in (0, 1)])
    return empirical.empirical_ntk(
        apply, moved, x1, x2, trace_axes=(-1,) if channels else (), vmap_axes=0
    )


def readout(net: Finite, weights: dict, x: PyTree) -> tuple[str, ...]:
    """Parameters in which the outputs are linear, all at once: of a fresh last layer, given all others.

    The covariance of the outputs given the others is the sum of their variances times J J^T, whose mean is the NNGP and
    whose spread is smaller by the root of the width. () where there is no such set.
    """
    names = list(weights)
    # What is zero at initialisation hides how outputs depend on the rest: all parameters are moved.
    noise = np.random.default_rng(0)
    moved = [
        np.asarray(w) + np.asarray(0.3 * noise.normal(size=w.shape), w.dtype)
        for w in weights.values()
    ]

    @jax.jit
    def outputs(factors: jax.Array) -> jax.Array:
        return net.apply({n: f * w for n, f, w in zip(names, factors, moved)}, x)

    def along(chosen: tuple, t: float) -> np.ndarray:
        factors = np.array([t if name in chosen else 1.0 for name in names], np.float32)
        return np.asarray(outputs(factors), float)

    whole = along((), 1.0)
    small = 1e-4 * max(np.abs(whole).max(), 1e-30)

    def is_affine(chosen: tuple) -> bool:
        # Affine in the factor t if its slopes over [-1, 1], [0, 1] and [1, 2] are one.
        points = [along(chosen, t) for t in (-1.0, 0.0, 2.0)]
        slopes = [(whole - points[0]) / 2, whole - points[1], points[2] - whole]
        return all(np.abs(s - slopes[0]).max() < small for s in slopes)

    able = [name for name in names if net.variances[name] is not None and is_affine((name,))]
    for start in able:  # one beside a skip connection leads to no such set
        chosen: tuple[str, ...] = (start,)
        for name in able:
            if name not in chosen and is_affine((*chosen, name)):
                chosen = (*chosen, name)
        # A readout is all that the outputs are made of: without it they vanish.
        if np.abs(along(chosen, 0.0)).max() < small:
            return chosen
    return ()


def kernels(
    net: Finite, last: tuple[str, ...], key: jax.Array, x1: PyTree, x2: PyTree | None
) -> tuple[jax.Array, jax.Array]:
    """(NNGP, NTK) of one network; the NNGP is its mean over the parameters `last`, or f f^T without them."""
    weights = net.draw(key)
    ntk = tangent(net, weights, x1, x2, net.rates)
    if last:
        variances = {name: net.variances[name] for name in last}
        return tangent(net, weights, x1, x2, variances), ntk
    nngp = empirical.empirical_nngp_fn(
        lambda p, x: net.apply(p, x),
        (-1,) if len(jax.eval_shape(net.apply, weights, x1).shape) > 1 else (),
    )(x1, x2, weights)
    return nngp, ntk


def stack(net: Finite, last: tuple[str, ...]) -> Callable:
    """`(keys, x1, x2) -> (NNGPs, NTKs)` of a network for each key, one after the other by one compiled program.

    The loop is Python's: compiled without optimisation XLA has slow convolutions alone for the body of a loop of its
    own (a U-Net takes sixteen times as long).
    """

    @jax.jit
    def one(key: jax.Array, x1: PyTree, x2: PyTree | None) -> tuple:
        return kernels(net, last, key, x1, x2)

    def run(keys: jax.Array, x1: PyTree, x2: PyTree | None) -> tuple:
        found = [jax.device_get(one(key, x1, x2)) for key in keys]
        return tuple(np.stack(each) for each in zip(*found))

    return run
