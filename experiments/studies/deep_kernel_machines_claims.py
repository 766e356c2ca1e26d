"""What the study of deep kernel machines claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

import numpy as np
import xarray as xr

from experiments.claims import Claim, at_least, at_most, listed, near, over_seeds
from experiments.judges import as_lost

YANG, DERIVED = "Yang et al. 2023", "derived, limits.deep_kernel_machine"
NUS = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4)
TARGETS = ("one direction", "radial")


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    data = as_lost(data)
    return [*_linear(data), *_nngp(data), *_posterior(data), *_sparse(data), *_prediction(data)]


def _seeds(judge, name, source, statement, values, reads=(), by="worst", **criterion) -> Claim:
    """A claim over seeds; one whose name says so is a control."""
    criterion |= {"name": name, "source": source, "statement": statement, "reads": reads}
    return over_seeds(judge, values, by, control="control" in name, **criterion)


def exponents(values: xr.DataArray, x: str) -> np.ndarray:
    """Slopes of log values against log of a dimension, one for each of the rest."""
    logs = np.log(values.transpose(x, ...).values)
    centred = np.log(values[x].values) - np.log(values[x].values).mean()
    return (centred @ logs.reshape(len(logs), -1) / (centred @ centred)).ravel()


def _linear(data: xr.Dataset) -> list[Claim]:
    text = "linear layers: relative distance of the fitted Gram matrices from the closed form, largest layer"
    wrong = "linear layers: relative distance of the closed form of equal nu from that of nu = 3, 20, largest layer"
    equal = data.equal_error.sel(widths="3, 20")
    return [
        _seeds(at_most, "D1 closed form", DERIVED, text, data.linear_error, bound=1e-5),
        _seeds(at_most, "D2 control, equal nu", DERIVED, wrong, equal, bound=1e-2),
    ]


def _nngp(data: xr.Dataset) -> list[Claim]:
    text = "exponent in nu of the distance from the NNGP, nu from {} to {}, {}"
    made, options = [], {"target": -1.0, "tolerance": 0.2, "by": "mean"}
    for kernel in data.kernel.values:
        part = data.distance.sel(kernel=kernel)
        for what, low, high in (("nu to infinity", 1e2, 1e4), ("control, small nu", 0.1, 10)):
            span = part.sel(nu=slice(low, high))
            words = text.format(f"{low:g}", f"{high:g}", kernel)
            name = f"D3 {what}, {kernel}"
            made.append(_seeds(near, name, YANG, words, exponents(span, "nu"), span, **options))
    return made


def _posterior(data: xr.Dataset) -> list[Claim]:
    text = "relative distance of the mean Gram matrix of deep Gaussian processes of width 64 from the machine's"
    prior = "relative distance of the prior's Gram matrix (the NNGP) from the machine's"
    falls = "that distance at one width over that at the next smaller one, largest"
    power = "exponent in the width of the standard deviation of its entries"
    off, sd = data.posterior_distance, data.posterior_sd
    wide, ordered = off.sel(copies=64), off.transpose("copies", ...).values
    return [
        _seeds(at_most, "D4 wide processes are machines", YANG, text, wide, bound=0.05),
        _seeds(
            *(at_most, "D4 the wider the nearer", YANG, falls),
            (ordered[1:] / ordered[:-1]).max(0),
            off,
            bound=1.0,
        ),
        _seeds(
            *(at_most, "D4 control, the NNGP", YANG, prior, data.prior_distance.sel(copies=64)),
            bound=0.05,
        ),
        _seeds(
            *(near, "D5 the posterior narrows", YANG, power, exponents(sd, "copies"), sd, "mean"),
            target=-0.5,
            tolerance=0.12,
        ),
    ]


def _sparse(data: xr.Dataset) -> list[Claim]:
    gap = "objective of all points less that with {} of them inducing, nats"
    text = "relative distance of the Gram matrices with all points inducing from those without"
    rises = "what the objective gains from one nested set of inducing points to the next, nats, smallest"
    bound, gaps = data.bound, data.full - data.bound
    steps = np.diff(bound.transpose(..., "inducing").values, axis=-1).min(-1)
    most, half = gaps.isel(inducing=-1), gaps.isel(inducing=-2)
    reads = bound, data.full
    return [
        _seeds(
            at_most, "D6 all inducing", DERIVED, gap.format("all"), abs(most), reads, bound=1e-5
        ),
        _seeds(at_most, "D6 Gram matrices", DERIVED, text, data.sparse_gram, bound=1e-4),
        _seeds(
            *(at_most, "D6 control, half of them", YANG, gap.format("half"), abs(half), reads),
            bound=1e-5,
        ),
        _seeds(at_least, "D7 a bound that rises", YANG, rises, steps, reads, bound=-1e-5),
        _seeds(
            *(at_least, "D7 a lower bound", YANG, gap.format("a part") + ", smallest"),
            *(gaps.min("inducing", skipna=False), reads),
            bound=-1e-5,
        ),
    ]


def _prediction(data: xr.Dataset) -> list[Claim]:
    ratio = data.error / data.nngp_error
    reads = data.error, data.nngp_error
    pays = "test error at nu = {} over that of the NNGP, target of {}"
    finds = "centred alignment of the hidden Gram matrix with the direction, nu = {}, target of {}"
    rises = (
        "what the training log likelihood gains as nu falls to the next smaller one, nats, smallest"
    )
    made = []
    one, radial = TARGETS
    for name, nu, target in (("", 1.0, one), (" control, no direction", 1.0, radial)):
        at = {"learning_nu": nu, "target": target}
        row = f"D9{name or ' learning pays'}", YANG, pays.format(f"{nu:g}", target), ratio.sel(at)
        made.append(_seeds(at_most, *row, [r.sel(target=target) for r in reads], bound=0.25))
    for name, nu, target in (
        (" the direction is found", 1.0, one),
        (" control, no learning", 1e4, one),
        (" control, no direction", 1.0, radial),
    ):
        found = data.alignment.sel(learning_nu=nu, target=target)
        text = finds.format(f"{nu:g}", target)
        made.append(_seeds(at_least, f"D11{name}", YANG, text, found, bound=0.95))
    frozen = ratio.sel(learning_nu=1e4, target=one)
    text = pays.format("1e4", one)
    made.append(_seeds(at_most, "D9 control, frozen layer", YANG, text, frozen, bound=0.25))
    train = data.train_likelihood.sel(target=one)
    steps = -np.diff(train.transpose(..., "learning_nu").values, axis=-1).min(-1)
    made.append(_seeds(at_least, "D8 the fit improves", YANG, rises, steps, train, bound=0.0))
    best = "share of seeds whose best nu by {} is neither the smallest nor the largest, target of one direction"
    for name, values, words in (
        ("D10 an optimum inside", -data.error.sel(target=one), "test error"),
        ("D10 control, training", train, "training likelihood"),
    ):
        place = values.transpose(..., "learning_nu").values.argmax(-1)
        inside = float(((place > 0) & (place < values.sizes["learning_nu"] - 1)).mean())
        made.append(
            at_least(
                *(name, YANG, best.format(words), inside, 0.75),
                control="control" in name,
                reads=values,
            )
        )
    return made
