"""What training did: curvature, collapse, kernels and features, as pure functions with their errors."""

from metrics import (
    batch_curvature,
    blocks,
    chunks,
    collapse,
    contrastive,
    denoising,
    examples,
    features,
    frames,
    geometry,
    information,
    kernels,
    learning,
    noise,
    operators,
    probes,
    pruning,
    spectra,
    stability,
)
from metrics.collapse import (
    Collapse,
    collapse_by_layer,
    generalized_collapse,
    neural_collapse,
    ood_orthogonality,
)
from metrics.curvature import Sharpness, eigenpairs, sharpness
from metrics.estimate import Estimate
from metrics.learning import (
    estimated_risk,
    fit_spectrum,
    intrinsic_dimension,
    learning_curve,
)
from metrics.scaling import Optimum, PowerLaw, fit_power_law, refined_optimum
from metrics.spectra import density, diagonal, spectral_density, trace
from metrics.stability import edge_of_stability
from ntk.arguments import strict_package as _strict_package

__all__ = [
    "Collapse",
    "Estimate",
    "Optimum",
    "PowerLaw",
    "Sharpness",
    "batch_curvature",
    "blocks",
    "chunks",
    "collapse",
    "collapse_by_layer",
    "contrastive",
    "denoising",
    "density",
    "diagonal",
    "edge_of_stability",
    "eigenpairs",
    "estimated_risk",
    "examples",
    "features",
    "fit_power_law",
    "fit_spectrum",
    "frames",
    "generalized_collapse",
    "geometry",
    "information",
    "intrinsic_dimension",
    "kernels",
    "learning",
    "learning_curve",
    "neural_collapse",
    "noise",
    "ood_orthogonality",
    "operators",
    "probes",
    "pruning",
    "refined_optimum",
    "sharpness",
    "spectra",
    "spectral_density",
    "stability",
    "trace",
]

_strict_package(globals())


def __dir__() -> list[str]:
    return sorted(__all__)
