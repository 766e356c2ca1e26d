"""What width and depth do: parametrizations, regimes, coordinate checks, limits."""

from limits.coordinates import (
    CoordinateCheck,
    captured_outputs,
    coordinate_check,
    layer_outputs,
)
from limits.exponents import Exponents, Rule, branch_multiplier, named_rule, symmetry
from limits.parametrization import Parametrized, parametrize
from limits.regimes import ABC, Regime, abc, classify

__all__ = [
    "ABC",
    "CoordinateCheck",
    "Exponents",
    "Parametrized",
    "Regime",
    "Rule",
    "abc",
    "branch_multiplier",
    "captured_outputs",
    "classify",
    "coordinate_check",
    "layer_outputs",
    "named_rule",
    "parametrize",
    "symmetry",
]
