"""What the study of wide and deep classifiers claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

import functools

import numpy as np
import xarray as xr

from experiments.claims import (
    Claim,
    Precondition,
    absent,
    at_least,
    at_most,
    listed,
    near,
    over_seeds,
)
from experiments.judges import as_lost

RBU = "Radhakrishnan et al. 2022"
FLIPPED, STRIPES = 0.2, 16
CLASSIFIERS = ("Bayes", "deep network", "Hilbert", "1-NN", "majority")


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    data = as_lost(data)
    return [
        _singular_claim(data),
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


def _singular_claim(data: xr.Dataset) -> Claim:
    off = exponents(data) + data.singular_dimension.values
    low, high = data.distance.values[[0, -1]]
    return at_most(
        "1 exponent of the singular kernel",
        f"{RBU}, taxonomy",
        f"slope of log psi against log r, r from {low:.0e} to {high:.0e}: largest distance from -d over the dimensions",
        float(abs(off).max()),
        0.01,
        reads=(data.log_psi,),
    )


def _noise_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    count = int(data.noise_count.sel(noise_count=400, method="nearest"))
    chosen = data.sel(noise_count=count)
    for d in data.noise_dimension.values:
        line = chosen.noise_error.sel(noise_dimension=d)
        pair = line.sel(classifier="1-NN"), line.sel(classifier="deep network")
        better = functools.partial(
            at_least,
            f"2 better than 1-NN, d = {d}",
            f"{RBU}, taxonomy",
            f"label noise {FLIPPED}, {count} examples: error of 1-NN less that of the deep network, mean of the seeds",
            bound=0.03,
        )
        made.append(over_seeds(better, pair[0] - pair[1], "mean", reads=pair))
    alike = functools.partial(
        at_least,
        "2 the deep network is the Hilbert estimate",
        f"{RBU}, optimal activations",
        f"share of test examples on which both decide alike, {count} examples: smallest over dimensions and seeds",
        bound=0.99,
    )
    made.append(over_seeds(alike, chosen.noise_agreement))
    for name in data.wrong_activation.values:
        wrong = functools.partial(
            at_least,
            f"2 control, {name}",
            f"{RBU}, optimal activations",
            f"the same share for a network of {name}, d = {data.noise_dimension.values[0]}: largest over the seeds",
            bound=0.99,
            control=True,
        )
        made.append(over_seeds(wrong, data.wrong_agreement.sel(wrong_activation=name)))
    fits = xr.concat(
        [data.nngp_fit[-1], data.ntk_fit[-1]], "kernel", coords="minimal", compat="override"
    )
    fitted = functools.partial(
        at_least,
        "2 training examples are fitted",
        RBU,
        "training accuracy of the deepest NNGP and NTK, d = 1: smallest over the seeds",
        bound=1.0,
    )
    made.append(over_seeds(fitted, fits, reads=(data.nngp_fit[-1], data.ntk_fit[-1])))
    return made


def _dirichlet_claims(data: xr.Dataset) -> list[Claim]:
    made, error = [], data.dirichlet_error
    count = data.sizes["dirichlet_dimension"]
    for worse, better in zip(CLASSIFIERS[1:], CLASSIFIERS):
        if worse == "Hilbert":
            continue
        better = "deep network" if better == "Hilbert" else better
        pair = error.sel(classifier=worse), error.sel(classifier=better)
        gaps = pair[0] - pair[1]
        closest = int(np.argmin(gaps.mean("dirichlet_seed", skipna=False).values))
        less = functools.partial(
            at_least,
            f"3 Dirichlet, {better} < {worse}",
            f"{RBU}, Dirichlet experiments",
            f"difference of the mean errors: smallest over the {count} tasks",
            bound=0.002,
        )
        made.append(over_seeds(less, gaps.isel(dirichlet_dimension=closest), "mean", reads=pair))
    agrees = data.dirichlet_agreement
    least = int(np.argmin(agrees.mean("dirichlet_seed", skipna=False).values))
    alike = functools.partial(
        at_least,
        "3 Dirichlet, deep network = Hilbert",
        f"{RBU}, Dirichlet experiments",
        f"share of test examples on which both decide alike: smallest of the {count} tasks' means",
        bound=0.99,
    )
    made.append(over_seeds(alike, agrees.isel(dirichlet_dimension=least), "mean", reads=(agrees,)))
    return made


def _stripe_claims(data: xr.Dataset) -> list[Claim]:
    error = data.stripe_error.mean("stripe_seed", skipna=False)
    counts = data.stripe_count.values
    enough = counts[counts >= 1000] if (counts >= 1000).any() else counts[-1:]
    many = error.sel(exponent=[0.5, 1.0, 2.0]).sel(stripe_count=enough)
    lead = many.sel(exponent=[0.5, 2.0]).min("exponent", skipna=False) - many.sel(exponent=1.0)
    made = [
        at_least(
            "4 stripes, alpha = d is best",
            f"{RBU}, singular kernels; Devroye et al. 1998",
            f"from {enough[0]} examples on: error of the better of alpha = d/2 and 2d less that of alpha = d, smallest",
            float(lead.min(skipna=False)),
            0.01,
            reads=(data.stripe_error.sel(exponent=[0.5, 1.0, 2.0]),),
        )
    ]
    for exponent in (1.0, 0.5, 2.0):
        ends = data.stripe_error.sel(exponent=exponent).isel(stripe_count=[0, -1])
        excess = error.sel(exponent=exponent) - FLIPPED
        made.append(
            at_most(
                f"4 stripes, alpha = {exponent:g} converges",
                "Devroye et al. 1998",
                f"excess over the Bayes error at {counts[-1]} examples, over that at {counts[0]}",
                float(excess[-1] / excess[0]),
                0.6,
                control=exponent != 1.0,
                reads=(ends,),
                preconditions=() if len(counts) > 1 else (absent("second number of examples"),),
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
        alike = functools.partial(
            at_least,
            f"{number} {what}",
            f"{RBU}, taxonomy",
            f"share of test examples decided alike at depth {deepest}: smallest over the seeds",
            bound=0.99,
        )
        made.append(over_seeds(alike, line[-1]))
    ratio = functools.partial(
        near,
        "6 NTK of ReLU, ratio",
        f"{RBU}, taxonomy",
        f"mean off-diagonal over diagonal entry at depth {int(data.relu_depth[-1])}",
        target=0.25,
        tolerance=0.002,
    )
    return [*made, over_seeds(ratio, data.relu_ratio[-1])]


def _depth_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    for kernel, layers in (("nngp", 100), ("ntk", 10**15), ("ntk", 1000)):
        depths = data[f"{kernel}_depth"].values.tolist()
        line = data[f"{kernel}_agreement"].reindex({f"{kernel}_depth": [layers]})[0]
        alike = functools.partial(
            at_least,
            f"7 {kernel.upper()} of depth {layers:.0e}",
            f"{RBU}, optimal activations",
            "share of test examples decided as the Hilbert estimate does, d = 1: smallest over the seeds",
            bound=0.99,
            control=layers == 1000,
            preconditions=() if layers in depths else (absent("network of such depth"),),
        )
        made.append(over_seeds(alike, line))
    return made


def _digit_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    for network, limit in zip(data.network.values, ("nearest neighbour", "majority of 0-2 or 3-9")):
        alike = functools.partial(
            at_least,
            f"8 digits, {network} is the {limit}",
            f"{RBU}, taxonomy",
            "share of test images decided alike: smallest over label noises and seeds",
            bound=0.98,
        )
        made.append(over_seeds(alike, data.digit_limit_agreement.sel(network=network)))
    noisy, missing = data.isel(label_noise=-1), ()
    # All classifiers here go by labels near an input: where these are mostly of other classes, no weights help.
    least = data.digit_nearest.isel(label_noise=0).mean("digit_seed", skipna=False)
    told = Precondition(
        "neighbours tell the class",
        float(least) <= 0.5,
        f"1-NN is wrong for a share of {float(least):.2g} of the inputs at label noise {float(least.label_noise):g}",
    )
    deep = noisy.digit_deep.reindex(digit_dimension=[8])[..., 0]
    if 8 not in data.digit_dimension:
        missing = (absent("network of exponent 8"),)
    better = functools.partial(
        at_least,
        "8 digits with noisy labels, better than 1-NN",
        RBU,
        "error of 1-NN less that of the network of exponent 8, mean of the seeds",
        bound=0.05,
        preconditions=(*missing, told),
    )
    pair = noisy.digit_nearest, deep
    return [*made, over_seeds(better, pair[0] - pair[1], "mean", reads=pair)]
