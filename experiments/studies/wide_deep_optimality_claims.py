"""What the study of wide and deep classifiers claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from experiments.claims import Claim, at_least, at_most, equals, near

RBU = "Radhakrishnan et al. 2022"
FLIPPED, STRIPES = 0.2, 16
CLASSIFIERS = ("Bayes", "deep network", "Hilbert", "1-NN", "majority")


def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    return [
        *_taxonomy_claims(data),
        *_noise_claims(data),
        *_dirichlet_claims(data),
        *_stripe_claims(data),
        *_class_claims(data),
        *_depth_claims(data),
        *_digit_claims(data),
    ]


def exponents(data: xr.Dataset) -> np.ndarray:
    """Slope of log psi against log r for each dimension."""
    return np.polyfit(np.log(data.distance.values), data.log_psi.values.T, 1)[0]


def _taxonomy_claims(data: xr.Dataset) -> list[Claim]:
    off = exponents(data) + data.singular_dimension.values
    alpha = data.alpha.sel(activation="ReLU, centred").item()
    kind = data.kind.sel(activation="ReLU").item()
    return [
        at_most(
            "1 exponent of the singular kernel",
            f"{RBU}, taxonomy",
            "slope of log psi against log r, r from 1e-6 to 1e-1: largest distance from -d over the dimensions",
            float(abs(off).max()),
            0.01,
        ),
        near(
            "1 control, centred ReLU as optimal for d = 2",
            f"{RBU}, optimal activations",
            "alpha = -4 ln|A'| / ln B' of the centred ReLU, by quadrature",
            alpha,
            2,
            0.01,
            control=True,
        ),
        equals(
            "1 control, ReLU as a consistent network",
            f"{RBU}, taxonomy",
            "class of the ReLU network at infinite depth: only singular kernels can be consistent",
            str(kind),
            "singular kernel",
            control=True,
        ),
    ]


def _spread(values: xr.DataArray, dim: str) -> tuple[float, float]:
    """Mean with two standard errors over the seeds."""
    mean, count = float(values.mean()), values.sizes[dim]
    half = 2 * float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return (mean - half, mean + half) if count > 1 else (mean, mean)


def _noise_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    chosen = data.sel(noise_count=400)
    for d in data.noise_dimension.values:
        line = chosen.noise_error.sel(noise_dimension=d)
        gain = line.sel(classifier="1-NN") - line.sel(classifier="deep network")
        made.append(
            at_least(
                f"2 better than 1-NN, d = {d}",
                f"{RBU}, taxonomy",
                "label noise 0.2, 400 examples: error of 1-NN less that of the deep network, mean of the seeds",
                float(gain.mean()),
                0.03,
                interval=_spread(gain, "noise_seed"),
            )
        )
    made.append(
        at_least(
            "2 the deep network is the Hilbert estimate",
            f"{RBU}, optimal activations",
            "share of test examples on which both decide alike, 400 examples: smallest over dimensions and seeds",
            float(chosen.noise_agreement.min()),
            0.99,
        )
    )
    made.append(
        at_least(
            "2 training examples are fitted",
            RBU,
            "training accuracy of the deepest NNGP and NTK, d = 1: smallest over the seeds",
            float(min(data.nngp_fit[-1].min(), data.ntk_fit[-1].min())),
            1.0,
        )
    )
    return made


def _dirichlet_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    for worse, better in zip(CLASSIFIERS[1:], CLASSIFIERS):
        if worse == "Hilbert":
            continue
        better = "deep network" if better == "Hilbert" else better
        error = data.dirichlet_error
        gaps = error.sel(classifier=worse) - error.sel(classifier=better)
        closest = gaps.isel(dirichlet_dimension=int(np.argmin(gaps.mean("dirichlet_seed").values)))
        made.append(
            at_least(
                f"3 Dirichlet, {better} < {worse}",
                f"{RBU}, Dirichlet experiments",
                "difference of the mean errors: smallest over the four tasks",
                float(closest.mean()),
                0.002,
                interval=_spread(closest, "dirichlet_seed"),
            )
        )
    made.append(
        at_least(
            "3 Dirichlet, deep network = Hilbert",
            f"{RBU}, Dirichlet experiments",
            "share of test examples on which both decide alike: smallest of the four tasks' means",
            float(data.dirichlet_agreement.mean("dirichlet_seed").min()),
            0.99,
        )
    )
    return made


def _stripe_claims(data: xr.Dataset) -> list[Claim]:
    error = data.stripe_error.mean("stripe_seed")
    many = error.sel(exponent=[0.5, 1.0, 2.0]).sel(stripe_count=slice(1000, None))
    lead = many.sel(exponent=[0.5, 2.0]).min("exponent") - many.sel(exponent=1.0)
    made = [
        at_least(
            "4 stripes, alpha = d is best",
            f"{RBU}, singular kernels; Devroye et al. 1998",
            "from 1000 examples on: error of the better of alpha = d/2 and 2d less that of alpha = d, smallest",
            float(lead.min()),
            0.01,
        )
    ]
    for exponent in (1.0, 0.5, 2.0):
        excess = error.sel(exponent=exponent) - FLIPPED
        made.append(
            at_most(
                f"4 stripes, alpha = {exponent:g} converges",
                "Devroye et al. 1998",
                "excess over the Bayes error at the most examples, over that at the fewest",
                float(excess[-1] / excess[0]),
                0.6,
                control=exponent != 1.0,
            )
        )
    return made


def _class_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    for number, name, what in (
        (5, "nearest", "x² − 1 is the nearest neighbour"),
        (6, "majority", "an interior fixed point is the majority"),
        (6, "relu", "the NTK of ReLU is the majority"),
    ):
        line = data[f"{name}_agreement"]
        deepest = int(line[f"{name}_depth"][-1])
        made.append(
            at_least(
                f"{number} {what}",
                f"{RBU}, taxonomy",
                f"share of test examples decided alike at depth {deepest}: smallest over the seeds",
                float(line[-1].min()),
                0.99,
            )
        )
    made.append(
        near(
            "6 NTK of ReLU, ratio",
            f"{RBU}, taxonomy",
            f"mean off-diagonal over diagonal entry at depth {int(data.relu_depth[-1])}",
            float(data.relu_ratio[-1].mean()),
            0.25,
            0.002,
            interval=(float(data.relu_ratio[-1].min()), float(data.relu_ratio[-1].max())),
        )
    )
    return made


def _depth_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    for kernel, layers in (("nngp", 100), ("ntk", 10**15), ("ntk", 1000)):
        line = data[f"{kernel}_agreement"].sel({f"{kernel}_depth": layers})
        made.append(
            at_least(
                f"7 {kernel.upper()} of depth {layers:.0e}",
                f"{RBU}, optimal activations",
                "share of test examples decided as the Hilbert estimate does, d = 1: smallest over the seeds",
                float(line.min()),
                0.99,
                control=layers == 1000,
            )
        )
    return made


def _digit_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    agrees = data.digit_limit_agreement.min(["label_noise", "digit_seed"])
    for network, limit in zip(data.network.values, ("nearest neighbour", "majority of 0-2 or 3-9")):
        made.append(
            at_least(
                f"8 digits, {network} is the {limit}",
                f"{RBU}, taxonomy",
                "share of test images decided alike: smallest over label noises and seeds",
                float(agrees.sel(network=network)),
                0.98,
            )
        )
    noisy = data.isel(label_noise=-1)
    gain = noisy.digit_nearest - noisy.digit_deep.sel(digit_dimension=8)
    made.append(
        at_least(
            "8 digits with noisy labels, better than 1-NN",
            RBU,
            "error of 1-NN less that of the network of exponent 8, mean of the seeds",
            float(gain.mean()),
            0.05,
            interval=_spread(gain, "digit_seed"),
        )
    )
    return made
