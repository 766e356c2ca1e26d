"""Shape of features and weights: effective rank, participation, pruning, change since the start, matching of units.

With singular values s_j, and coordinates v_k of one unit::

    entropy exp(-sum_j p_j log p_j), p_j = s_j / sum s      participation (sum s^2)^2 / sum s^4
    stable sum s^2 / max s^2                                IPR sum_k (|v_k| / |v|)^(2r)

Source: Roy & Vetterli 2007; Gao et al. 2017; Rudelson & Vershynin 2007; Doshi et al. 2023, arXiv:2310.13061 (IPR).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from metrics import checks
from metrics.estimate import Estimate, mean_estimate, norm, power_of_two
from ntk import show
from ntk.types import Bool, Data, Float, Integer, Real


@show.readable
class Rank(NamedTuple):
    """Three soft ranks of one matrix, all between 1 and min(N, d); from singular values s_j."""

    entropy: Float[jax.Array, ""]  # exp of the entropy of s_j / sum s (Roy & Vetterli 2007)
    participation: Float[jax.Array, ""]  # (sum s^2)^2 / sum s^4, of covariance eigenvalues s^2
    stable: Float[jax.Array, ""]  # sum s^2 / max s^2


@show.readable
class Change(NamedTuple):
    """How far features are from those of the initial network on the same examples."""

    relative: Estimate  # mean over examples of |h - h_0| / |h_0|
    coordinate: (
        Estimate  # mean over examples of |h - h_0| / sqrt(d): Theta(1) when features are learnt
    )
    cosine: Estimate  # mean over examples of cos(h, h_0)


@show.readable
class Matching(NamedTuple):
    """Units of one network paired with those of another by their correlation over the same examples.

    Attributes:
        correlation: (d,), of each unit with its partner, each of the others used once at most.
        partner: (d,), the partner's number.
        semi: (d,), of each unit with the other that is most like it, which several units may share.
    """

    correlation: Float[np.ndarray, "d"]
    partner: Integer[np.ndarray, "d"]
    semi: Float[np.ndarray, "d"]


def effective_rank(matrix: Real[Data, "N ..."], *, centered: bool = False) -> Rank:
    """Effective ranks of a weight matrix or of features.

    Args:
        matrix: (N, ...), flattened to (N, d).
        centered: subtract the mean over rows (features of N examples).

    Returns:
        Rank; 0 for a zero matrix, NaN for one that is not finite. Exact for the matrix given: features of N
        examples show at most N directions, so compare ranks at equal N.

    Raises:
        TypeError: matrix holds no numbers.
        ValueError: it is not (N, d) or more, or empty.

    Source: Roy & Vetterli 2007; Gao et al. 2017 (participation); Rudelson & Vershynin 2007 (stable).
    """
    matrix = checks.real("matrix", matrix, "N", "d", "...")
    rows = matrix.reshape(matrix.shape[0], -1)
    rows = rows / power_of_two(rows)
    if checks.boolean("centered", centered):
        rows = rows - jnp.mean(rows, axis=0, keepdims=True)
    s = jnp.linalg.svd(rows, compute_uv=False)
    share = _ratio(s, jnp.sum(s))
    square = _ratio(s, s[0]) ** 2
    entropy = -jnp.sum(share * jnp.log(jnp.where(share > 0, share, 1)))
    return Rank(
        jnp.where(s[0] == 0, 0, jnp.exp(entropy)),
        _ratio(jnp.sum(square) ** 2, jnp.sum(square**2)),
        jnp.sum(square),
    )


def inverse_participation_ratio(vectors: Data, *, axis: int = -1, power: int = 2) -> jax.Array:
    """IPR = sum_k (|v_k| / |v|)^(2r): 1 on one coordinate, n^(1-r) spread evenly over n.

    Args:
        vectors: any shape, real or complex.
        axis: of the coordinates.
        power: r, at least 1.

    Returns:
        The shape without axis; 0 for a zero vector (a neuron dead under weight decay).

    Raises:
        TypeError: vectors holds no numbers, or axis or power is no integer.
        ValueError: axis or power is out of range.

    Source: Doshi et al. 2023 (arXiv 2310.13061), section 3.
    """
    if not jnp.issubdtype(checks.dtype_of("vectors", vectors), jnp.complexfloating):
        vectors = checks.real("vectors", vectors)
    axis = _axis(axis, vectors.shape)
    checks.integer("power", power, 1)
    square = jnp.abs(vectors / power_of_two(vectors, axis)) ** 2
    return jnp.sum(_ratio(square, jnp.sum(square, axis=axis, keepdims=True)) ** power, axis=axis)


def fourier_ipr(weights: Data, *, axis: int = -1, power: int = 2) -> jax.Array:
    """Inverse participation ratio in the Fourier basis of Z_p: 1 for a neuron tuned to one frequency.

    Coefficients of frequencies 0..p/2 of the real transform. For the analytic solution of modular
    addition it is 1; Gaussian weights give about 4/p. Average it over a neuron's input and output
    weights to sort neurons for pruning.

    Args:
        weights: real, any shape; axis runs over the p residues.
        axis: of the residues.
        power: r.

    Returns:
        The shape without axis.

    Raises:
        TypeError: weights holds no numbers, or axis or power is no integer.
        ValueError: weights is complex; axis or power is out of range.

    Source: Doshi et al. 2023 (arXiv 2310.13061), section 3.
    """
    weights = checks.real("weights", weights)
    axis = _axis(axis, weights.shape)
    return inverse_participation_ratio(jnp.fft.rfft(weights, axis=axis), axis=axis, power=power)


def _axis(axis: int, shape: tuple[int, ...]) -> int:
    if not shape or 0 in shape:
        raise ValueError(f"an array of shape {shape} has no coordinates; give some along an axis")
    return checks.integer("axis", axis, -len(shape), len(shape) - 1) % len(shape)


@show.readable
class Tuning(NamedTuple):
    """The frequency that carries most of each neuron's weights, over n neurons."""

    frequency: Integer[jax.Array, "n"]  # 1..p/2
    # in radians: weight vector j is about cos(2 pi frequency x / p + phase)
    phase: Float[jax.Array, "j n"]
    # part of the squared weights at this frequency, mean over the vectors
    share: Float[jax.Array, "n"]


def fourier_tuning(weights: Real[Data, "j n p"]) -> Tuning:
    """Frequency and phases of neurons on Z_p, to compare with the analytic solution of modular addition.

    There the three weight vectors of a neuron (both inputs, readout) have one frequency, and phases s, t and s + t.

    Args:
        weights: (j, n, p): j weight vectors of each of n neurons over the p residues.

    Returns:
        Tuning; the frequency is common to a neuron's vectors, the constant (frequency 0) is no candidate but counts
        in the share. A neuron of zero weights has share 0 and a frequency and phases that mean nothing.

    Raises:
        TypeError: weights holds no numbers.
        ValueError: weights is not (j, n, p) with p >= 2.
    """
    weights = checks.real("weights", weights, "j", "n", "p")
    if weights.shape[-1] < 2:
        raise ValueError("weights has 1 residue; a frequency needs at least 2")
    weights = weights / power_of_two(weights, -1)
    p = weights.shape[-1]
    waves = jnp.fft.rfft(weights, axis=-1)
    # The coefficients at k and p - k carry equal power; the constant, and p/2 where it is there, stand alone.
    count = jnp.where((jnp.arange(waves.shape[-1]) * 2) % p == 0, 1, 2)
    power = jnp.abs(waves) ** 2 * count[None, None].astype(weights.dtype)
    share = _ratio(power, jnp.sum(power, axis=-1, keepdims=True))
    share = jnp.mean(share, axis=0)[:, 1:]
    best = jnp.argmax(share, axis=-1)
    phase = jnp.angle(jnp.take_along_axis(waves[..., 1:], best[None, :, None], axis=-1))
    return Tuning(best + 1, phase[..., 0], jnp.max(share, axis=-1))


def pruning_mask(
    scores: Real[Data, "n"], share: jax.Array | float, *, highest: bool = False
) -> Bool[jax.Array, "n"]:
    """Which neurons stay when a share of them is removed in the order of their scores.

    Args:
        scores: (n,), for instance `fourier_ipr` averaged over a neuron's weight vectors.
        share: removed; round(share n) neurons. May be traced.
        highest: remove those of highest score, instead of lowest.

    Returns:
        Booleans (n,); of equal scores the first go first.

    Raises:
        TypeError: scores or share are no numbers.
        ValueError: scores is not (n,) or (outside of a trace) not finite, share not a number in [0, 1].

    Source: Doshi et al. 2023 (arXiv 2310.13061), section 3.1.
    """
    scores = checks.finite("scores", checks.real("scores", scores, "n"))
    share = checks.within("share", share, lambda s: (s >= 0) & (s <= 1), "in [0, 1]")
    if share.ndim:
        raise ValueError(f"share has shape {share.shape}; it must be one number")
    rank = jnp.argsort(jnp.argsort(-scores if checks.boolean("highest", highest) else scores))
    return rank >= jnp.round(share * scores.size)


def pruned_outputs(
    hidden: Real[Data, "N n"],
    readout: Real[Data, "n outputs"],
    scores: Real[Data, "n"],
    groups: int,
    *,
    highest: bool = False,
) -> Float[jax.Array, "steps N outputs"]:
    """Outputs hidden @ readout as more and more neurons are pruned, at the cost of one forward pass.

    The output is a sum over neurons: it is summed group by group, and the groups are accumulated from the last
    neuron to be removed to the first.

    Args:
        hidden: (N, n), the neurons' activations.
        readout: (n, outputs).
        scores: (n,).
        groups: number of equal steps; divides n.
        highest: remove neurons of highest score first, instead of lowest.

    Returns:
        (groups + 1, N, outputs); entry g is without the share g / groups of the neurons, as `pruning_mask` removes
        them: the first is the whole network, the last is zero.

    Raises:
        TypeError: arrays of no numbers, groups no integer.
        ValueError: groups does not divide n, shapes do not fit, or scores are not finite.
    """
    hidden, readout = checks.real("hidden", hidden, "N", "n"), checks.real("readout", readout)
    count, size = hidden.shape
    checks.check_shape("readout", readout.shape, (size, "outputs"))
    scores = checks.finite("scores", checks.real("scores", scores, size))
    if checks.integer("groups", groups) < 1 or size % groups:
        raise ValueError(f"groups is {groups}; it must be a divisor of the {size} neurons")
    order = jnp.argsort(-scores if checks.boolean("highest", highest) else scores)[::-1]
    parts = jnp.einsum(
        "xgk,gkq->gxq",
        hidden[:, order].reshape(count, groups, -1),
        readout[order].reshape(groups, size // groups, -1),
    )
    return jnp.concatenate([jnp.zeros_like(parts[:1]), jnp.cumsum(parts, axis=0)])[::-1]


def feature_change(features: Real[Data, "N ..."], initial: Real[Data, "N ..."]) -> Change:
    """Change of features since initialisation, with standard errors over examples.

    Args:
        features: (N, ...), flattened to (N, d).
        initial: the same shape.

    Returns:
        Change; examples whose features are zero count as unchanged in cosine and relative change.

    Raises:
        TypeError: arrays of no numbers.
        ValueError: shapes differ, or there are fewer than 2 examples, which have no standard error.
    """
    features = checks.real("features", features, "N", "d", "...")
    initial = checks.real("initial", initial, "N", "d", "...")
    if features.shape[0] < 2:
        raise ValueError(
            "features are of 1 example; a standard error over examples needs at least 2"
        )
    if features.shape != initial.shape:
        raise ValueError(
            f"features have shapes {features.shape} and {initial.shape}; they must be equal"
        )
    h, start = (a.reshape(a.shape[0], -1) for a in (features, initial))
    moved, before, after = norm(h - start, 1), norm(start, 1), norm(h, 1)
    units = (_ratio(h, after[:, None]), _ratio(start, before[:, None]))
    cosine = jnp.where((before == 0) | (after == 0), 1, jnp.sum(units[0] * units[1], axis=1))
    rows = (_ratio(moved, before), moved / jnp.sqrt(h.shape[1]), cosine)
    return Change(*map(mean_estimate, rows))


def feature_change_by_layer(
    features: Mapping[str, Real[Data, "N ..."]], initial: Mapping[str, Real[Data, "N ..."]]
) -> dict[str, Change]:
    """`feature_change` of every entry of two dicts, as a model's features=True returns.

    Args:
        features: layer name -> (N, ...).
        initial: the same names.

    Returns:
        layer name -> Change.

    Raises:
        TypeError: features or initial is no dict.
        ValueError: names differ, or shapes of a layer.
    """
    checks.layers(features=features, initial=initial)
    if features.keys() != initial.keys():
        raise ValueError(
            f"layers differ: {sorted(features)} and {sorted(initial)}; give one network twice"
        )
    return {name: feature_change(features[name], initial[name]) for name in features}


def matching(one: Real[jax.Array, "N d"], other: Real[jax.Array, "N e"]) -> Matching:
    """Pairs the units of two networks so that the sum of correlations is largest (bipartite), and each freely (semi).

    Chance finds large correlations among many units and few examples: compare with `matching` of examples in
    another order, and of untrained networks.

    Args:
        one: (N, d), activations of d units on N examples.
        other: (N, e) of another network on the same examples, e >= d.

    Returns:
        Matching; a constant unit correlates 0 with all.

    Raises:
        TypeError: these are no numbers, or traced.
        ValueError: they are no matrices with as many rows, an entry is not finite, or other has fewer units than one.

    Source: Li, Yosinski et al. 2015, Convergent Learning (arXiv:1511.07543), sections 3 and 4.
    """
    units = []
    for name, values in (("one", one), ("other", other)):
        centred = checks.doubles(name, values)
        checks.check_shape(name, centred.shape, ("N", "d"))
        checks.finite(name, centred)
        # Each unit in units of its largest activation: squares of others could overflow
        largest = np.abs(centred).max(axis=0)
        centred = centred / np.where(largest == 0, 1, largest)
        deviation = centred.std(axis=0)
        constant = deviation <= 1e-12
        centred = centred - centred.mean(axis=0)
        units.append(np.where(constant, 0, centred) / np.where(constant, 1, deviation))
    if len(units[0]) != len(units[1]) or units[0].shape[1] > units[1].shape[1]:
        raise ValueError(
            f"one has shape {units[0].shape} and other {units[1].shape}; they must have as many examples, and other "
            "as many units or more: give the narrower network first"
        )
    correlations = units[0].T @ units[1] / len(units[0])
    rows, partner = optimize.linear_sum_assignment(correlations, maximize=True)
    return Matching(correlations[rows, partner], partner, correlations.max(axis=1))


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """0 where the denominator is 0, without a NaN on the way; what is NaN stays so."""
    empty = denominator == 0
    return jnp.where(empty, 0, numerator / jnp.where(empty, 1, denominator))
