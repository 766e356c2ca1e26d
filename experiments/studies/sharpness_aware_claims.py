"""What the study of sharpness-aware minimisation claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

import functools

import numpy as np
import xarray as xr

from experiments.claims import Claim, at_least, at_most, listed, over_seeds, within
from experiments.judges import as_lost, completed

EDGE, CHEN = "Long & Bartlett 2023", "Chen, Hsieh & Gong 2022"
# Part -> radii and shares of redrawn labels that claims are about
PARTS = {
    "edge": ((0.0, 0.03, 0.1, 0.3), (0.0,)),
    "edge_small": ((0.0, 0.1), (0.0,)),
    "edge_random": ((0.03, 0.1, 0.3), (0.0,)),
    "batch": ((0.0, 0.1, 0.3, 0.6), (0.0, 0.2)),
    "batch_random": ((0.1, 0.3), (0.0,)),
}


def late(values: xr.DataArray, step: str) -> xr.DataArray:
    """Median over the second half of training."""
    steps = values[step]
    return values.where(steps >= steps.max() / 2, drop=True).median(step, skipna=False)


def exponent(values: xr.DataArray, radius: str) -> xr.DataArray:
    """Slope of log(value) against log(radius), of each seed."""
    log = np.log(values[radius])
    log = log - log.mean()
    return (np.log(values) * log).sum(radius, skipna=False) / (log**2).sum()


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    data = as_lost(data)
    for part, (radii, noises) in PARTS.items():
        data = completed(completed(data, f"{part}_radius", radii), f"{part}_noise", noises)
    made, plain = [], data.edge_edge.sel(edge_noise=0, edge_radius=0.0, drop=True)

    def add(name, source, statement, judge, values, by="median", control=False):
        made.append(
            over_seeds(
                judge, values, by, name=name, source=source, statement=statement, control=control
            )
        )

    def at(part, key, radius, noise=0.0):
        return data[f"{part}_{key}"].sel(
            {f"{part}_radius": radius, f"{part}_noise": noise}, drop=True
        )

    def ratio(part, radius, edge=None):
        edge = at(part, "edge", radius) if edge is None else edge
        return late(at(part, "sharpness", radius) / edge, f"{part}_step")

    def end(part, key, radius, noise=0.0):
        found = at(part, key, radius, noise).isel({f"{part}_step": -1}, drop=True)
        return found.rename({f"{part}_seed": "seed"})

    words = "sharpness over {}, radius {:g}, median of the second half of training"
    near = functools.partial(within, low=0.9, high=1.15)
    for radius in PARTS["edge"][0][1:]:
        told = words.format("the edge of SAM", radius)
        add(f"1 edge, radius {radius:g}", EDGE, told, near, ratio("edge", radius))
        told = words.format("2/eta", radius)
        wrong = ratio("edge", radius, plain)
        add(f"1 2/eta, radius {radius:g}", EDGE, told, near, wrong, control=True)
    near = functools.partial(within, low=0.95, high=1.05)
    told = words.format("2/eta", 0)
    add("2 plain descent", "Cohen et al. 2021", told, near, ratio("edge", 0.0))
    told = words.format("the edge of radius 0.1", 0)
    wrong = ratio("edge", 0.0, at("edge", "edge", 0.1))
    add("2 plain descent, edge of SAM", EDGE, told, near, wrong, control=True)
    below = functools.partial(at_most, bound=0.9)
    for radius in PARTS["edge_small"][0]:
        for part, rate in (("edge_small", "small"), ("edge", "large")):
            told = words.format(f"its edge, {rate} learning rate", radius)
            name = f"3 below the edge, radius {radius:g}" + ", large rate" * (part == "edge")
            add(name, EDGE, told, below, ratio(part, radius), control=part == "edge")
    near = functools.partial(within, low=-0.6, high=-0.25)
    for part, words in (("edge", ""), ("edge_random", ", random direction")):
        sharp = late(at(part, "sharpness", [0.03, 0.1, 0.3]), f"{part}_step")
        told = f"exponent of the late sharpness in the radius, 0.03 to 0.3{words}"
        values = exponent(sharp, f"{part}_radius")
        add(f"4 exponent{words}", EDGE, told, near, values, control=part != "edge")
    told = "test accuracy, radius 0.6 less radius 0, {:.0%} of the labels redrawn, mean of paired seeds"
    for noise in (0.2, 0.0):
        gain = end("batch", "accuracy", 0.6, noise) - end("batch", "accuracy", 0.0, noise)
        judge = functools.partial(at_least, bound=0.05)
        name = f"5 label noise {noise:g}"
        add(name, CHEN, told.format(noise), judge, gain, "mean", control=not noise)
    for number, key, radius, judge, what in (
        (6, "sharpness", 0.1, functools.partial(at_most, bound=0.3), "flatter"),
        (7, "weights", 0.3, functools.partial(at_least, bound=1.1), "weights grow"),
    ):
        for part, words in (("batch", ""), ("batch_random", ", random direction")):
            told = f"{key} after training on batches, radius {radius:g} over radius 0{words}"
            change = end(part, key, radius) / end("batch", key, 0.0)
            add(f"{number} {what}{words}", CHEN, told, judge, change, control=part != "batch")
    told = "largest |eta lambda* (1 + rho lambda*/|g|) - 2| of 1000 settings, double precision"
    for sign, words in ((1, ""), (-1, ", other sign of rho")):
        judge, values = functools.partial(at_most, bound=1e-12), data.residual.sel(sign=sign)
        add(f"8 formula{words}", EDGE, told + words, judge, values, "worst", control=sign < 0)
    told = "relative distance of the edge from its limits at small and large radii"
    add("8 limits", EDGE, told, functools.partial(at_most, bound=1e-3), data.limits, "worst")
    told = "curvature of a quadratic after SAM over the edge of "
    near = functools.partial(within, low=0.999, high=1.001)
    for edge in ("SAM", "plain descent"):
        values = data.quadratic.sel(edge_of=edge)
        name = f"9 quadratic, {edge}"
        add(name, "derived here", told + edge, near, values, "worst", control=edge != "SAM")
    return made
