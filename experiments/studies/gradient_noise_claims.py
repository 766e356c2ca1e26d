"""What the study of gradient noise claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from experiments.claims import Claim, at_least, listed, over_seeds, within
from experiments.judges import as_lost

LONGER, ADDED = "Hoffer, Hubara & Soudry 2017", "Neelakantan et al. 2015"
OURS = "derived here: a random walk from the initial variance"
TRAINED = 0.5  # a network is trained if its final loss is below this share of the loss of chance


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    data, made = as_lost(data), []
    accuracy = {
        (name, when): data.accuracy.sel(schedule=name, step=step, drop=True)
        for name in ("small", "large", "root")
        for when, step in (("epochs", data.same_epochs), ("updates", int(data.step[-1])))
    }
    ahead = {
        (name, when): accuracy["small", "updates"] - accuracy[name, when] for name, when in accuracy
    }
    gain = {
        when: accuracy["root", when] - accuracy["large", when] for when in ("epochs", "updates")
    }
    fits = {
        "large batch": fit(data.distance.sel(schedule="large", drop=True)),
        "full batch": fit(data.growth_distance.sel(growth_schedule="full", drop=True)),
        "squared error": fit(data.growth_distance.sel(growth_schedule="squared", drop=True)),
    }
    limit = TRAINED * math.log(data.outputs)
    ends = {
        name: data.loss.sel(noise=name, drop=True).isel(noise_step=-1, drop=True)
        for name in data.noise.values
    }
    trained = {
        name: (found < limit).where(found.notnull()) - (ends["none"] < limit)
        for name, found in ends.items()
    }
    strong, weak = (data.sel(noise=name, drop=True) for name in ("strong", "weak"))
    at = {"noise_step": data.crossing, "drop": True}
    learns = first_learning(strong, data.outputs)
    start = strong.variance.isel(noise_step=0, drop=True)
    better = "test accuracy of small batches less that of large ones"
    rows = (
        (False, "1 equal epochs", at_least, {"bound": 0.005}, "mean", LONGER,
         f"{better}, as many epochs", ahead["large", "epochs"], ()),
        (True, "1 equal epochs, equal updates", at_least, {"bound": 0.005}, "mean", LONGER,
         f"{better}, as many updates", ahead["large", "updates"], ()),
        (False, "2 equal updates", within, {"low": -0.005, "high": 0.005}, "mean", LONGER,
         f"{better}, as many updates", ahead["large", "updates"], ()),
        (True, "2 equal updates, equal epochs", within, {"low": -0.005, "high": 0.005}, "mean", LONGER,
         f"{better}, as many epochs", ahead["large", "epochs"], ()),
        (False, "3 root of the batch", at_least, {"bound": 0.003}, "mean", LONGER,
         "test accuracy of large batches at a rate that grows as the root of the batch less that at the same rate, "
         "as many epochs", gain["epochs"], ()),
        (True, "3 root of the batch, equal updates", at_least, {"bound": 0.003}, "mean", LONGER,
         "the same, as many updates", gain["updates"], ()),
        *(
            (name == "squared error", f"4 logarithmic growth, {name}", at_least, {"bound": 0.99}, "worst", LONGER,
             f"R^2 of |w - w_0| as a line in log(updates) from 50 on, {name}", found[0], ())
            for name, found in fits.items()
        ),
        (False, "5 logarithm above power law", at_least, {"bound": 0.0}, "worst", LONGER,
         "R^2 of the line less that of a power law, large batch", fits["large batch"][0] - fits["large batch"][1], ()),
        (False, "6 noise trains", at_least, {"bound": 0.4}, "mean", ADDED,
         "share of networks with a final loss below half of chance with noise less that without", trained["strong"],
         (ends["strong"], ends["none"])),
        (True, "6 noise trains, weak noise", at_least, {"bound": 0.4}, "mean", ADDED,
         "the same, a thirtieth of the variance", trained["weak"], (ends["weak"], ends["none"])),
        (False, "7 a random walk", within, {"low": 0.95, "high": 1.05}, "worst", OURS,
         "fan_in times variance of weights at the predicted step of criticality, over critical",
         strong.variance.sel(**at) / data.critical, ()),
        (True, "7 a random walk, weak noise", within, {"low": 0.95, "high": 1.05}, "worst", OURS,
         "the same, a thirtieth of the variance", weak.variance.sel(**at) / data.critical, ()),
        (False, "8 learning begins at criticality", within, {"low": 0.8, "high": 1.25}, "median", OURS,
         "fan_in times variance of weights where the loss is first below .9 of chance, over critical",
         learns / data.critical, (strong.loss, strong.variance)),
        (True, "8 learning begins at criticality, start", within, {"low": 0.8, "high": 1.25}, "median", OURS,
         "the same at initialisation", start / data.critical, ()),
        (False, "9 critical weights need no noise", at_least, {"bound": 0.4}, "mean", OURS,
         "share with a final loss below half of chance from critical weights without noise less that from small ones",
         trained["critical start"], (ends["critical start"], ends["none"])),
    )  # fmt: skip
    for control, name, judge, criterion, by, source, statement, values, reads in rows:
        said = {"name": name, "source": source, "statement": statement, "control": control}
        made.append(over_seeds(judge, values, by, reads=reads, **said, **criterion))
    return made


def fit(distance: xr.DataArray) -> tuple[np.ndarray, np.ndarray]:
    """R^2 of each seed's distance as a line and as a power of the updates, from 50 on."""
    late = distance.where(distance.step >= 50, drop=True).transpose(..., "step")
    x, found = np.log(late.step.values), []
    for y in late.values:
        if not (np.isfinite(y) & (y > 0)).all():
            found.append((math.nan, math.nan))
            continue
        line = np.polyval(np.polyfit(x, y, 1), x)
        power = np.exp(np.polyval(np.polyfit(x, np.log(y), 1), x))
        found.append([1 - np.var(y - p) / np.var(y) for p in (line, power)])
    return tuple(np.transpose(found))


def first_learning(data: xr.Dataset, outputs: int) -> xr.DataArray:
    """fan_in times variance at the first measurement with a loss below .9 of chance; nan where there is none."""
    below = data.loss < 0.9 * math.log(outputs)
    place = below.argmax("noise_step")
    return data.variance.isel(noise_step=place, drop=True).where(below.any("noise_step"))
