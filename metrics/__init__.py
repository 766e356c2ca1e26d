"""What training did: curvature, collapse, kernels and features, as pure functions with their errors."""

from metrics.curvature import Sharpness, sharpness
from metrics.scaling import Optimum, PowerLaw, fit_power_law, refined_optimum

__all__ = [
    "Optimum",
    "PowerLaw",
    "Sharpness",
    "fit_power_law",
    "refined_optimum",
    "sharpness",
]
