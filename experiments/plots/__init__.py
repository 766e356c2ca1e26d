"""The figures of studies and results: labelled arrays or a result in, a matplotlib Figure out; nothing is global.

Colours can be told apart with any colour vision (Okabe & Ito 2008, two of them darkened to a contrast of 3 to 1; the
sequential scale is viridis, wider is darker), and curves by their marks as well (`drawing.stroke`).
A figure carries its caption, what to look at, in its label: ``figure.get_label()``; `experiments.report` prints it.
`plot` draws any result by its type; ``result.plot()`` is the same.
"""

from __future__ import annotations

from experiments.plots.curvature import (
    batch_sharpness,
    diagonal,
    edge_of_stability,
    eigenpairs,
    estimates,
    example_scores,
    forgetting,
    opposing_signals,
    spectral_density,
)
from experiments.plots.drawing import figure, style
from experiments.plots.features import (
    cka_matrix,
    class_means,
    collapse_over_training,
    effective_rank,
    feature_change,
    generalized_collapse,
    kernel_spectrum,
    neural_collapse,
    participation,
    weight_movement,
)
from experiments.plots.results import plot
from experiments.plots.training import (
    coordinate_check,
    heat_map,
    loss_curves,
    optimum_against_width,
    scaling_law,
    sharpness_over_training,
    training_dynamics,
)

__all__ = [
    "batch_sharpness",
    "cka_matrix",
    "class_means",
    "collapse_over_training",
    "coordinate_check",
    "diagonal",
    "edge_of_stability",
    "effective_rank",
    "eigenpairs",
    "estimates",
    "example_scores",
    "feature_change",
    "figure",
    "forgetting",
    "generalized_collapse",
    "heat_map",
    "kernel_spectrum",
    "loss_curves",
    "neural_collapse",
    "opposing_signals",
    "optimum_against_width",
    "participation",
    "plot",
    "scaling_law",
    "sharpness_over_training",
    "spectral_density",
    "style",
    "training_dynamics",
    "weight_movement",
]
