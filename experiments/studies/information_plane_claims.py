"""What the study of the information plane claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

import functools

import numpy as np
import xarray as xr

from experiments.claims import Claim, at_least, at_most, listed, over_seeds, within
from experiments.judges import as_lost, completed

PLANE, BOUNDS = "arXiv:1703.00810", "arXiv:2404.03176"
OURS = "derived here (limits.generalization)"
LAST = "last hidden layer"


def compression(bits: xr.DataArray) -> xr.DataArray:
    """The largest value along training less the last."""
    return bits.max("step", skipna=False) - bits.isel(step=-1, drop=True)


def last(bits: xr.DataArray) -> xr.DataArray:
    """Of the last hidden layer."""
    return bits.isel(layer=-1, drop=True)


def first_step(there: xr.DataArray, known: xr.DataArray) -> xr.DataArray:
    """The first step at which something is there, nan where it never is or a value is not known."""
    found = there.step[there.argmax("step")].drop_vars("step")
    return found.where(there.any("step") & known.notnull().all("step"))


def peak(bits: xr.DataArray) -> xr.DataArray:
    """The step of the largest value."""
    return first_step(bits == bits.max("step"), bits)


def _resolution(data, control, name, fine, coarse):
    found = compression(data[f"by_{name}"])
    return found.sel({name: fine}, drop=True) - found.sel({name: coarse}, drop=True)


def _moving(data, control):
    more = compression(data.moving) - compression(data.binned)
    return more.sel(layer=[3, 4, 5]).mean("layer", skipna=False)


def _drift(data, control):
    signal = data.signal.isel(weights=0, drop=True)
    later = (signal < 1) & (signal.step > 0)
    return first_step(later, signal) / peak(last(data.noisy))


EACH, BOTH = ((0,), (1,)), ((0, 1),)
BITS = f"largest less final I(X;T), {LAST}, bits"
# Name, judge, criterion, what stands for the seeds, rules, networks of claim and control, (data, whether it is the
# control) -> one number a network, statement, where the control differs
ROWS = (
    ("1 compression under noise", at_least, {"bound": 1.0}, "mean", EACH, ("tanh", "ReLU"),
     lambda d, c: compression(last(d.noisy)), BITS + ", noise .1", "ReLU"),
    ("2 compression in cells", at_least, {"bound": 2.0}, "worst", BOTH, ("tanh", "ReLU"),
     lambda d, c: compression(last(d.binned)), BITS + ", 30 cells", "ReLU"),
    ("3 ReLU is right", at_least, {"bound": 0.98}, "median", ((0,),), ("ReLU", "shuffled"),
     lambda d, c: d.accuracy.sel(split="test", drop=True).isel(step=-1, drop=True),
     "test accuracy, median of networks, dead ones among them", "shuffled labels"),
    ("3 ReLU is right", at_least, {"bound": 0.9}, "median", ((1,),), ("ReLU", "shuffled"),
     lambda d, c: d.accuracy.sel(split="test", drop=True).isel(step=-1, drop=True),
     "test accuracy, median of networks, dead ones among them", "shuffled labels"),
    ("3 ReLU does not compress", at_most, {"bound": 0.3}, "mean", EACH, ("ReLU", "tanh"),
     lambda d, c: compression(last(d.noisy)), BITS + ", noise .1", "tanh"),
    ("4 cells make it", at_least, {"bound": 0.5}, "mean", BOTH, ("ReLU", "tanh"), _moving,
     "compression in cells up to the largest value of the moment less that in fixed ones, layers 3 to 5, bits", "tanh"),
    ("5 labels are kept", at_least, {"bound": 0.95}, "worst", BOTH, ("tanh", "shuffled"),
     lambda d, c: d.label_share, f"I(T;Y) over I(X;Y), {LAST}, end", "shuffled labels"),
    ("6 bounds bracket", at_most, {"bound": 3.0}, "worst", BOTH, ("tanh", "tanh"),
     lambda d, c: d.outside.isel(bounds_of=int(c), drop=True),
     "distance of noisy I(X;T) out of the pairwise bounds, layers 1, 3, 5, end, standard errors",
     "bounds of twice the noise"),
    ("7 random labels compress", at_least, {"bound": 1.0}, "worst", BOTH, ("shuffled", "shuffled"),
     lambda d, c: compression(d.binned.isel(layer=0 if c else -1, drop=True)), BITS + ", 30 cells", "first layer"),
    ("8 information of labels", at_most, {"bound": 1e-9}, "worst", BOTH, ("tanh", "tanh"),
     lambda d, c: d.excess.isel(labels=int(c), drop=True),
     "largest I(T;Y) - min(I(X;T), I(X;Y)), bits", "labels drawn once"),
    ("9 resolution, cells", at_least, {"bound": 1.0}, "mean", ((0,),), ("tanh", "ReLU"),
     functools.partial(_resolution, name="bins", fine=100, coarse=10),
     f"compression in 100 cells less that in 10, {LAST}, bits", "ReLU"),
    ("9 resolution, noise", at_least, {"bound": 1.0}, "mean", ((1,),), ("tanh", "ReLU"),
     functools.partial(_resolution, name="sigma", fine=0.05, coarse=0.2),
     f"compression under noise .05 less that under .2, {LAST}, bits", "ReLU"),
    ("10 fitting comes first", at_most, {"bound": 0.2}, "median", EACH, ("tanh", "ReLU"),
     lambda d, c: peak(last(d.noisy)) / float(d.step[-1]),
     f"step of the largest noisy I(X;T) over all steps, {LAST}", "ReLU"),
    ("11 drift ends at the peak", within, {"low": 0.5, "high": 2.0}, "median", EACH, ("tanh",), _drift,
     f"step at which mean over deviation of the first layer's gradient falls below 1 over that of the largest "
     f"noisy I(X;T), {LAST}", ""),
)  # fmt: skip


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    data, made = completed(as_lost(data), "rule", (0, 1)), []
    for name, judge, criterion, by, several, networks, values, statement, differs in ROWS:
        for rules in several:
            of = f", rule {rules[0]}" * (len(rules) == 1)
            for control, network in enumerate(networks):
                part = data.sel(network=network, rule=list(rules), drop=True)
                made.append(
                    over_seeds(
                        judge,
                        values(part, bool(control)),
                        by,
                        name=name + of + f", {differs}" * control,
                        source=PLANE,
                        statement=statement + f" ({differs})" * control,
                        control=bool(control),
                        **criterion,
                    )
                )
    return made + _bound_claims(data)


def _bound_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    for k, of in enumerate(("", ", of n^2 examples")):
        ratio = data.gap / data.gap_bound.isel(bound_of=k, drop=True)
        made.append(
            at_most(
                "12 gap under its bound" + of,
                BOUNDS,
                f"largest gap over its bound{of}, Gaussian classes of every kind and number",
                float(ratio.max()),
                1.0,
                control=bool(k),
                reads=(ratio,),
            )
        )
    for classes in ("d = 16, s = 2, r = 16", "d = 16, s = 2, r = 4", "d = 64, s = 3, r = 64"):
        gap = data.gap.sel(classes=classes, drop=True).where(lambda g: g.examples >= 10, drop=True)
        slope = np.polyfit(np.log(gap.examples), np.log(gap), 1)[0] if (gap > 0).all() else np.nan
        made.append(
            within(
                f"13 the gap falls as its bound, {classes}",
                OURS,
                "slope of log(gap) in log(n) from 10 to 100 examples; that of the bound is -.5",
                float(slope),
                -1.0,
                -0.5,
                control="64" in classes,
                reads=(gap,),
            )
        )
    for name, values, judge, bound, words in (
        ("14 Gibbs gap is (I + L) / gamma", data.gibbs, at_most, 1e-9, "largest error of the gap"),
        ("15 funnel", data["last"], at_least, 0.999, "share of linear networks, last layer least"),
    ):
        (dim,) = set(values.dims) - {"bound_seed"}
        for k, of in enumerate(values[dim].values):
            made.append(
                over_seeds(
                    judge,
                    values.isel({dim: k}, drop=True),
                    name=f"{name}, {of}",
                    source=OURS if k or "15" in name else "Aminian et al. 2021",
                    statement=f"{words}, by {of}",
                    bound=bound,
                    control=bool(k),
                )
            )
    return made
