"""Patterns on the twelve vertices of an icosahedron, and rules that rotations of the sphere leave as they are.

f(x) = sum_ij x_i x_j K(cos angle_ij) with K = sum_(l <= 6) c_l P_l, c_l ~ N(0, 1): the power spectrum of sum_i x_i
delta_i, weighted. It takes 64 values on the 4096 patterns x in {0, 1}^12. The label is 1 with probability
sigmoid(gain (f - median)), f standardised; a large gain makes it a function of the pattern.

Source: the kind of task of Shwartz-Ziv & Tishby 2017, arXiv:1703.00810, section 3.1; the rules are ours.
"""

from __future__ import annotations

import numpy as np
from numpy.polynomial import legendre
from scipy import special

DEGREE = 6


def patterns() -> np.ndarray:
    """All patterns, (4096, 12), entries 0 and 1."""
    return (np.arange(4096)[:, None] >> np.arange(12)) & 1


def rule(seed: int) -> np.ndarray:
    """f of each pattern, (4096,), of mean 0 and variance 1."""
    golden = (1 + 5**0.5) / 2
    pairs = [(0.0, s, t * golden) for s in (1, -1) for t in (1, -1)]
    corners = np.array([np.roll(pair, turn) for turn in range(3) for pair in pairs])
    cosines = corners @ corners.T / (1 + golden**2)
    kernel = legendre.legval(cosines, np.random.default_rng(seed).standard_normal(DEGREE + 1))
    x = patterns()
    f = np.einsum("ni,ij,nj->n", x, kernel, x)
    return (f - f.mean()) / f.std()


def label_probabilities(seed: int, gain: float) -> np.ndarray:
    """p(y | x) of the labels 0 and 1, (4096, 2); the threshold lies between the two values at the median."""
    f = rule(seed)
    values = np.unique(f.round(8))
    share = (f[None] <= values[:, None] + 1e-7).mean(1)
    middle = min(int(np.abs(share - 0.5).argmin()), len(values) - 2)
    one = special.expit(gain * (f - values[middle : middle + 2].mean()))
    return np.column_stack([1 - one, one])
