"""What width and depth do: parametrizations, regimes, coordinate checks, limits."""

from limits import (
    aspect_ratio,
    attention_svm,
    boundary_tilting,
    cbow,
    deep_kernel_machine,
    depth,
    dmft,
    early_learning,
    eigenlearning,
    ensembles,
    feature_learning,
    finite_width,
    generalization,
    hopfield,
    in_context,
    linear_rank,
    mean_field,
    opposing,
    perceptron,
    pi_net,
    pruning,
    surrogate,
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
from ntk.arguments import strict_functions as _strict_functions

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
    "attention_svm",
    "boundary_tilting",
    "branch_multiplier",
    "captured_outputs",
    "cbow",
    "classify",
    "coordinate_check",
    "criticality",
    "deep_kernel_machine",
    "depth",
    "dmft",
    "early_learning",
    "eigenlearning",
    "ensembles",
    "feature_learning",
    "finite_width",
    "generalization",
    "hopfield",
    "in_context",
    "layer_outputs",
    "layerwise",
    "learning_rates",
    "linear_rank",
    "mean_field",
    "named_rule",
    "opposing",
    "parametrize",
    "perceptron",
    "pi_net",
    "pruning",
    "residual_nu",
    "surrogate",
    "susceptibilities",
    "symmetry",
]

globals().update(_strict_functions(globals()))


def __dir__() -> list[str]:
    return sorted(__all__)
