"""What width and depth do: parametrizations, regimes, coordinate checks, limits."""

from limits import (
    aspect_ratio,
    cbow,
    depth,
    dmft,
    ensembles,
    feature_learning,
    finite_width,
    mean_field,
    opposing,
    perceptron,
    pi_net,
)
from limits.coordinates import (
    CoordinateCheck,
    captured_outputs,
    coordinate_check,
    layer_outputs,
)
from limits.criticality import (
    Criticality,
    criticality,
    learning_rates,
    residual_nu,
    susceptibilities,
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
    "Criticality",
    "Exponents",
    "Parametrized",
    "Regime",
    "Rule",
    "abc",
    "aspect_ratio",
    "branch_multiplier",
    "captured_outputs",
    "cbow",
    "classify",
    "coordinate_check",
    "criticality",
    "depth",
    "dmft",
    "ensembles",
    "feature_learning",
    "finite_width",
    "layer_outputs",
    "layerwise",
    "learning_rates",
    "mean_field",
    "named_rule",
    "opposing",
    "parametrize",
    "perceptron",
    "pi_net",
    "residual_nu",
    "susceptibilities",
    "symmetry",
]
