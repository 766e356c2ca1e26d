"""What training did: curvature, collapse, kernels and features, as pure functions with their errors."""

from metrics.curvature import Sharpness, sharpness

__all__ = ["Sharpness", "sharpness"]
