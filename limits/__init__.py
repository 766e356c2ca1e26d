"""What width and depth do: parametrizations, regimes, coordinate checks, limits."""

from limits.exponents import Exponents, Rule, branch_multiplier, named_rule, symmetry
from limits.parametrization import Parametrized, parametrize

__all__ = [
    "Exponents",
    "Parametrized",
    "Rule",
    "branch_multiplier",
    "named_rule",
    "parametrize",
    "symmetry",
]
