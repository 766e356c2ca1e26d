"""What width and depth do: parametrizations, regimes, coordinate checks, limits."""

from limits import cbow, depth, dmft, feature_learning, mean_field, opposing, pi_net
from limits.coordinates import (
    CoordinateCheck,
    captured_outputs,
    coordinate_check,
    layer_outputs,
)
from limits.exponents import (
    RULES,
    Exponents,
    Rule,
    branch_multiplier,
    layerwise,
    named_rule,
    symmetry,
)
from limits.parametrization import Parametrized, parametrize
from limits.regimes import ABC, Regime, abc, classify

__all__ = [
    "ABC",
    "RULES",
    "CoordinateCheck",
    "Exponents",
    "Parametrized",
    "Regime",
    "Rule",
    "abc",
    "branch_multiplier",
    "captured_outputs",
    "cbow",
    "classify",
    "coordinate_check",
    "depth",
    "dmft",
    "feature_learning",
    "layer_outputs",
    "layerwise",
    "mean_field",
    "named_rule",
    "opposing",
    "parametrize",
    "pi_net",
    "symmetry",
]
