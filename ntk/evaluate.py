"""Evaluates a network of rules on data: tiles, symmetry, and only what the result needs."""

from __future__ import annotations

from typing import NamedTuple


class Need(NamedTuple):
    """What must be known of a layer's activations for the result that was asked for.

    Attributes:
        pairs: covariances between all pixel pairs of two inputs, not of equal pixels alone.
        variance: within one input, 0: nothing but a scale, 1: the variance of each pixel, 2: all pixel pairs.
    """

    pairs: bool
    variance: int


def join(*needs: Need) -> Need:
    """The least that serves every need."""
    return Need(any(need.pairs for need in needs), max(need.variance for need in needs))
