"""Information and generalisation where both are exact: a Gaussian classifier, the Gibbs algorithm, noisy layers.

Gaussian: Y = 1 or -1 with equal odds, T | Y ~ N(Y m, s^2 I_r), the classifier w = (1/n) sum_i Y_i T_i predicts
sign(w . T). An example t = Y T is wrong where |sqrt(n) w + t|^2 < |sqrt(n) w - t|^2, and these are independent
noncentral chi squares, for training and test examples alike. Of linear layers T_l = A_l .. A_1 X only the rank counts:

    I(w; T_i) = E_w KL(training example || test example) = -(r/2) log(1 - 1/n)

Gibbs: hypotheses h with P(h | S) prop. to prior(h) exp(-gamma L_S(h)) have the gap (I(W;S) + L(W;S)) / gamma exactly,
L the lautum information (KL with its arguments exchanged).

Source: "Information-Theoretic Generalization Bounds for Deep Neural Networks", arXiv:2404.03176 (setting);
Bu, Zou & Veeravalli 2020, arXiv:1901.04609, and Xu & Raginsky 2017 (bounds); Aminian et al. 2021, arXiv:2107.13656
(Gibbs). The errors in closed form and the place of the funnel's minimum are derived here. Information is in nats.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from limits.arguments import array, count, number, takes
from ntk import show
from ntk.types import Float, Integer, Real


@show.readable
class Gap(NamedTuple):
    """Expected 0-1 errors of the Gaussian classifier on a training and on a test example; the gap is test - train."""

    train: float
    test: float


@show.readable
class Layers(NamedTuple):
    """A deep linear network, layer by layer from the input, l = 0 .. L.

    Attributes:
        ranks: (L + 1,), of A_l .. A_1.
        information: (L + 1,), I(w; T_l) of one training example, nats.
        distance: (L + 1,), root mean square 2-Wasserstein distance of training and test features.
        bound: (L + 1,), the distance times the Lipschitz constant of the layers after it; the last is the smallest.
    """

    ranks: Integer[np.ndarray, "levels"]
    information: Float[np.ndarray, "levels"]
    distance: Float[np.ndarray, "levels"]
    bound: Float[np.ndarray, "levels"]


@show.readable
class Gibbs(NamedTuple):
    """The Gibbs algorithm, averaged over data sets.

    Attributes:
        gap: expected test loss less training loss.
        mutual: I(W;S), nats.
        lautum: L(W;S), nats.
    """

    gap: float
    mutual: float
    lautum: float


@takes(
    mean_norm=number(), scale=number(positive=True), rank=count(), num_examples=count(2),
)  # fmt: skip
def gaussian_gap(mean_norm: float, scale: float, rank: int, num_examples: int) -> Gap:
    """Training and test error of the averaging classifier, exactly.

    Args:
        mean_norm: |m|, of the mean as the features have it.
        scale: s.
        rank: r, the dimension of the features.
        num_examples: n, 2 or more.

    Returns:
        Gap. With a = 1/sqrt(n) the training error is P((1 + a) u < (1 - a) v), the test error P(u' < v'), u and v
        noncentral chi squares of r degrees; each a mixture of beta laws, summed to 1e-13.

    Raises:
        TypeError: an argument of another type.
        ValueError: one out of range, or n (|m| / s)^2 above 20000, where sums are long and errors vanish.
    """
    signal = (mean_norm / scale) ** 2
    if num_examples * signal > 2e4:
        raise ValueError(
            f"num_examples (mean_norm / scale)^2 is {num_examples * signal:g}; it must be at most 20000"
        )
    root = math.sqrt(num_examples)
    fitted = [signal * root * (root + side) / 2 for side in (1, -1)]
    fresh = [signal * (root + side) ** 2 / 2 for side in (1, -1)]
    return Gap(_below(rank, fitted, (1 - 1 / root) / 2), _below(rank, fresh, 0.5))


def _below(rank: int, signals: Sequence[float], share: float) -> float:
    """P(u / (u + v) < share) of noncentral chi squares u, v; both are mixtures of central ones over Poisson counts."""
    (i, p), (j, q) = (_poisson(signal / 2) for signal in signals)
    return float(p @ special.betainc(rank / 2 + i[:, None], rank / 2 + j[None], share) @ q)


def _poisson(mean: float) -> tuple[np.ndarray, np.ndarray]:
    reach = 8 * math.sqrt(mean) + 30
    k = np.arange(max(0, math.floor(mean - reach)), math.ceil(mean + reach) + 1)
    return k, np.exp(special.xlogy(k, mean) - mean - special.gammaln(k + 1))


@takes(rank=count(), num_examples=count(2))
def gaussian_information(rank: int, num_examples: int) -> float:
    """I(w; T_i) = -(r/2) log(1 - 1/n) of one training example, nats, whatever the mean, noise and matrices.

    Args:
        rank: r.
        num_examples: n, 2 or more.

    Raises:
        TypeError: an argument of another type.
        ValueError: one out of range.
    """
    return -rank / 2 * math.log1p(-1 / num_examples)


@takes(information=number(), num_examples=count())
def gap_bound(information: float, num_examples: int = 1) -> float:
    """sqrt(I / 2n), which the expected gap of a loss in [0, 1] cannot exceed.

    Args:
        information: I(W;S) of all examples in nats, or I(W;Z_i) of one with num_examples 1, which is never worse.
        num_examples: n.

    Raises:
        TypeError: an argument of another type.
        ValueError: one out of range.

    Source: Xu & Raginsky 2017; Bu, Zou & Veeravalli 2020; with the sub-Gaussian constant 1/2 of such a loss.
    """
    return math.sqrt(information / (2 * num_examples))


@takes(scale=number(positive=True), num_examples=count(2))
def deep_linear(
    layers: Sequence[Real[ArrayLike, "_units _before"]], scale: float, num_examples: int
) -> Layers:
    """Bounds of every layer of a deep linear network on the Gaussian problem.

    E W_2^2 = s^2 |A|_F^2 (1/n + (1 - sqrt(1 - 1/n))^2) with A = A_l .. A_1. The information falls with the rank, so its
    bound shrinks with depth (the gap itself need not). As |A_(>l)| |A_(<=l)|_F >= |A_L .. A_1|_F, the bound by distance
    is smallest at the last layer, never between: only the distance alone has a funnel.

    Args:
        layers: A_1, .., A_L, each (units, units before), from the input on.
        scale: s.
        num_examples: n, 2 or more.

    Raises:
        TypeError: an argument of another type.
        ValueError: no layers, shapes that do not follow one another, or an argument out of range.
    """
    if not len(layers):
        raise ValueError("layers is empty; it must hold a matrix or more")
    for l, matrix in enumerate(layers):
        array(2)(f"layers[{l}]", matrix)
    matrices = [np.asarray(matrix, float) for matrix in layers]
    for l, (first, then) in enumerate(itertools.pairwise(matrices)):
        if then.shape[1] != first.shape[0]:
            raise ValueError(
                f"layers[{l + 1}] has the shape {then.shape}; it must have {first.shape[0]} columns, the units before"
            )
    before, after = [np.eye(matrices[0].shape[1])], [np.eye(len(matrices[-1]))]
    for forward, backward in zip(matrices, matrices[::-1]):
        before.append(forward @ before[-1])
        after.append(after[-1] @ backward)
    unit = math.sqrt(1 / num_examples + (1 - math.sqrt(1 - 1 / num_examples)) ** 2)
    distance = scale * unit * np.array([np.linalg.norm(a) for a in before])
    lipschitz = np.array([np.linalg.norm(a, 2) for a in after[::-1]])
    ranks = np.array([np.linalg.matrix_rank(a) for a in before])
    return Layers(
        ranks, ranks * gaussian_information(1, num_examples), distance, lipschitz * distance
    )


@takes(
    losses=array(2), probabilities=array(1), num_examples=count(),
    inverse_temperature=number(positive=True),
)  # fmt: skip
def gibbs(
    losses: Real[ArrayLike, "H K"],
    probabilities: Real[ArrayLike, "K"],
    num_examples: int,
    inverse_temperature: float,
    *,
    prior: Real[ArrayLike, "H"] | None = None,
) -> Gibbs:
    """The Gibbs algorithm on finitely many hypotheses and kinds of examples, over all data sets.

    Args:
        losses: (H, K), of hypothesis h on an example of kind k.
        probabilities: (K,), of the kinds.
        num_examples: n, drawn independently.
        inverse_temperature: gamma, of the mean loss over the data set.
        prior: (H,), positive, of sum 1; uniform by default.

    Returns:
        Gibbs, exact; gap = (mutual + lautum) / gamma is not used but holds.

    Raises:
        TypeError: an argument of another type.
        ValueError: shapes that differ, no probabilities, or more than a million data sets up to order.
    """
    losses, odds = np.asarray(losses, float), np.asarray(probabilities, float)
    prior = np.full(len(losses), 1 / max(1, len(losses))) if prior is None else prior
    array(1)("prior", prior)
    prior = np.asarray(prior, float)
    for name, given, size, least in (
        ("probabilities", odds, losses.shape[1], 0),
        ("prior", prior, len(losses), 1e-300),
    ):
        if len(given) != size or (given < least).any() or abs(given.sum() - 1) > 1e-9 or not size:
            raise ValueError(
                f"{name} is {given}; with losses of shape {losses.shape} it must be {size} probabilities of sum 1"
            )
    sets = math.comb(num_examples + len(odds) - 1, num_examples)
    if sets > 1_000_000:
        raise ValueError(
            f"num_examples is {num_examples}: {sets} data sets of {len(odds)} kinds, at most a million"
        )
    # A data set is how often each kind occurs: bars among stars.
    bars = np.array(
        list(itertools.combinations(range(num_examples + len(odds) - 1), len(odds) - 1)), int
    ).reshape(sets, -1)
    ends = np.column_stack([np.full(sets, -1), bars, np.full(sets, num_examples + len(odds) - 1)])
    counts = np.diff(ends, axis=1) - 1
    log_weight = special.gammaln(num_examples + 1) + (
        special.xlogy(counts, odds) - special.gammaln(counts + 1)
    ).sum(1)
    empirical = counts @ losses.T / num_examples
    log_chosen = np.log(prior) - inverse_temperature * empirical
    log_chosen -= special.logsumexp(log_chosen, axis=1, keepdims=True)
    chosen = np.exp(log_chosen)
    # A hypothesis that no data set chooses has a mean that underflows, but not the logarithm of one.
    log_mean = special.logsumexp(log_weight[:, None] + log_chosen, axis=0)
    log_ratio, mean, weight = log_chosen - log_mean, np.exp(log_mean), np.exp(log_weight)
    return Gibbs(
        float(weight @ (chosen * (losses @ odds - empirical)).sum(1)),
        float(weight @ (chosen * log_ratio).sum(1)),
        float(-weight @ (log_ratio @ mean)),
    )


@takes(rate=number(), width=count())
def dropout_contraction(rate: float, width: int) -> float:
    """1 - rate^width, by which dropout of that many units shrinks every KL divergence at least; attained by copies.

    Args:
        rate: probability that a unit is dropped, 0 to 1.
        width: units.

    Raises:
        TypeError: an argument of another type.
        ValueError: one out of range.
    """
    if rate > 1:
        raise ValueError(f"rate is {rate}; it must be between 0 and 1")
    return 1 - rate**width


@takes(diameter=number(), sigma=number(positive=True))
def noise_contraction(diameter: float, sigma: float) -> float:
    """1 - 2 Q(D / 2 sigma), by which noise added to features at most D apart shrinks every KL divergence at least.

    Args:
        diameter: D, largest distance of two features.
        sigma: standard deviation of the noise.

    Raises:
        TypeError: an argument of another type.
        ValueError: one out of range.

    Source: Dobrushin's coefficient, the total variation of the two farthest; Polyanskiy & Wu 2017.
    """
    return math.erf(diameter / (2 * math.sqrt(2) * sigma))
