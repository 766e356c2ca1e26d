"""What the study of naive Bayes claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

import numpy as np
import xarray as xr

from experiments import fits
from experiments.claims import Claim, at_least, at_most, listed, over_seeds
from experiments.judges import as_lost

SETTINGS = ("mild correlation", "strong correlation", "no correlation")
PAPER, OURS = "Zheng et al. 2023", "derived here (limits.surrogate)"


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    data = as_lost(data)
    nb, lr = (data.needed.isel(learner=k, drop=True) for k in (0, 1))
    slopes = [slope(np.log(m)) for m in (nb, lr)]
    gap = data.error.isel(learner=1, drop=True) - data.error.isel(learner=0, drop=True)
    more = data.accuracy.isel(learner=0, drop=True) - data.accuracy.isel(learner=1, drop=True)

    examples = "slope of log(examples needed) in log(dimension)"
    errors = "error of logistic regression less that of naive Bayes"
    few = "accuracy of naive Bayes less that of logistic regression"
    bound = "largest share of random scores, 2 to 7 classes, whose excess cross-entropy is below"
    rows = [
        ("1 logistic regression needs more", False, PAPER, at_least, 0.6, slopes[1], examples, "mean"),
        ("1 naive Bayes needs more", True, PAPER, at_least, 0.6, slopes[0], examples, "mean"),
        ("2 naive Bayes does not", False, PAPER, at_most, 0.2, slopes[0], examples, "mean"),
        ("2 logistic regression does not", True, PAPER, at_most, 0.2, slopes[1], examples, "mean"),
        ("3 ten times as many", False, PAPER, at_least, 10.0, (lr / nb).sel(dim=200, drop=True),
         "examples that logistic regression needs over those of naive Bayes, dimension 200", "mean"),
        ("5 cross-entropy bounds the error", False, OURS, at_most, 0.0, data.violations.sel(scaled=1.0, drop=True),
         f"{bound} Psi(regret)", "worst"),
        ("5 a larger bound", True, OURS, at_most, 0.0, data.violations.sel(scaled=1.2, drop=True),
         f"{bound} Psi(1.2 regret)", "worst"),
        ("6 features, 2 of each class", False, PAPER, at_least, 0.0, more.sel(inputs="features", shots=2, drop=True),
         f"{few}, features of a trained network, 2 examples of each class", "mean"),
        ("6 features, 20 of each class", True, PAPER, at_least, 0.0, more.sel(inputs="features", shots=20, drop=True),
         f"{few}, features of a trained network, 20 examples of each class", "mean"),
    ]  # fmt: skip
    for name, control, judge, setting, count in (
        ("4 naive Bayes first", False, at_least, 0, 80),
        ("4 naive Bayes first, strong correlation", True, at_least, 1, 80),
        ("4 then logistic regression", False, at_most, 0, 640),
        ("4 then logistic regression, no correlation", True, at_most, 2, 640),
        ("4 and before both", False, at_most, 0, 6),
    ):
        values = gap.sel(setting=SETTINGS[setting], count=count, drop=True)
        what = f"{errors}, {count} examples, {SETTINGS[setting]}"
        rows.append((name, control, PAPER, judge, 0.0, values, what, "mean"))
    return [
        over_seeds(judge, values, by, name=name, source=source, statement=what, bound=limit, control=control)
        for name, control, source, judge, limit, values, what, by in sorted(rows, key=lambda row: row[0][0])
    ]  # fmt: skip


def slope(logs: xr.DataArray) -> xr.DataArray:
    """Of each seed, over the logarithm of the dimension, by least squares."""
    return fits.slope(logs, np.log(logs.dim))
