"""What the study of the tangent kernel's convergence claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

import functools
import math

import numpy as np
import xarray as xr

import metrics
from experiments.claims import Claim, absent, at_least, at_most, listed, near, over_seeds, within
from experiments.fits import power_law
from experiments.judges import as_lost, completed

JACOT = "Jacot et al. 2018"
ALIGNED = 0.5  # size of the target along the principal component


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    data = completed(as_lost(data), "start_inputs", ("circle", "digits"))
    data = completed(data, "component_inputs", ("sphere", "digits"))
    return [
        *_start_claims(data),
        *_drift_claims(data),
        *_ensemble_claims(data),
        *_component_claims(data),
    ]


def distances(data: xr.Dataset, inputs: str, limit: str = "limit_kernel") -> xr.DataArray:
    """RMS distance of the row at initialisation from a limit, over (seed, width)."""
    off = (data.start_kernel - data[limit]).sel(start_inputs=inputs, drop=True)
    return np.sqrt((off**2).mean("point", skipna=False)).transpose("start_seed", "start_width")


def fit(distance: xr.DataArray) -> metrics.PowerLaw:
    """Power law in the width through RMS values over (seed, width); nan where a run diverged, or of two widths."""
    width = distance.dims[1]
    return power_law(distance[width], distance.where(distance.sizes[width] >= 3))


def drifts(data: xr.Dataset, name: str = "drift") -> xr.DataArray:
    """RMS change of the row in training over (seed, width)."""
    rows = data[f"{name}_kernel"]
    change = rows.sel(moment="end") - rows.sel(moment="start")
    return np.sqrt((change**2).mean("point", skipna=False)).transpose("drift_seed", f"{name}_width")


def _start_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    cases = [(str(name), "limit_kernel") for name in data.start_inputs.values]
    for inputs, limit in [*cases, (cases[0][0], "nngp_kernel")]:
        law = fit(distances(data, inputs, limit))
        control = limit != "limit_kernel"
        made.append(
            within(
                f"1 convergence, {inputs}" + (", to the NNGP" if control else ""),
                f"{JACOT}, Thm 1",
                "exponent in width of the RMS distance of a row of the kernel from "
                + ("the NNGP, not the limit of the NTK" if control else "its limit"),
                law.exponent,
                -0.65,
                -0.35,
                interval=tuple(law.exponent_interval),
                control=control,
                reads=(
                    data.start_kernel.sel(start_inputs=inputs),
                    data[limit].sel(start_inputs=inputs),
                ),
            )
        )
    return made


def _drift_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    for name, rule in (("drift", "ntk"), ("control", "mup")):
        drift = np.sqrt((drifts(data, name) ** 2).mean("drift_seed", skipna=False))
        first, last = (int(drift[f"{name}_width"][i]) for i in (0, -1))
        made.append(
            at_least(
                f"2 constancy, {rule}",
                f"{JACOT}, Thm 2",
                f"RMS change of the row in training at width {first} over that at {last}",
                float(drift[0] / drift[-1]),
                3.0 if name == "drift" else math.sqrt(last / first),
                control=rule == "mup",
                reads=(data[f"{name}_kernel"],),
                preconditions=() if last > first else (absent("second width"),),
            )
        )
    law = fit(drifts(data))
    made.append(
        at_most(
            "2 rate of constancy",
            f"{JACOT}, Thm 2",
            "exponent in width of the RMS change of the row in training",
            law.exponent,
            -0.35,
            interval=tuple(law.exponent_interval),
            resolve=True,
            reads=(data.drift_kernel,),
        )
    )
    middle = data.drift_kernel.isel(point=data.sizes["point"] // 2, drift_width=[0, -1])
    row = middle.mean("drift_seed", skipna=False)
    inflation = (row.sel(moment="end") / row.sel(moment="start")).values
    made.append(
        at_least(
            "2 the kernel inflates, less if wide",
            f"{JACOT}, Fig. 1",
            "Theta(x0, x0) after over before training, less 1: narrowest network over widest",
            float((inflation[0] - 1) / (inflation[-1] - 1)),
            2.0,
            reads=(middle,),
        )
    )
    return made


def _ensemble_claims(data: xr.Dataset) -> list[Claim]:
    wide = data.outputs.isel(ensemble_width=-1)
    mean = wide.mean("ensemble_seed", skipna=False)
    spread = wide.std("ensemble_seed", ddof=1, skipna=False)
    size = float(np.sqrt((data.predicted_mean**2).mean(skipna=False)))
    width = int(data.ensemble_width[-1])
    reads = wide, data.predicted_mean, data.predicted_sd
    made = []
    for what, expected in (("limit", data.predicted_mean), ("untrained limit", 0)):
        off = float(np.sqrt(((mean - expected) ** 2).mean(skipna=False))) / size
        made.append(
            at_most(
                f"3 mean, {what}",
                f"{JACOT}, Sec. 5",
                f"width {width}: RMS distance of the mean output from that of the {what}, over the limit's RMS",
                off,
                0.15,
                control=what != "limit",
                reads=reads[:2],
            )
        )
    made.append(
        near(
            "3 spread",
            f"{JACOT}, Sec. 5",
            f"width {width}: RMS standard deviation of the outputs over that of the limit",
            float(
                np.sqrt((spread**2).mean(skipna=False) / (data.predicted_sd**2).mean(skipna=False))
            ),
            1.0,
            0.25,
            reads=reads,
        )
    )
    z = abs(wide - data.predicted_mean) / data.predicted_sd
    made.append(
        near(
            "3 percentiles",
            f"{JACOT}, Fig. 2",
            f"width {width}: share of outputs between the limit's 10th and 90th percentile",
            float((z < 1.2815515655446004).mean()),
            0.8,
            0.1,
            reads=reads,
        )
    )
    return made


def predicted_along(data: xr.Dataset, rank: int = 2) -> xr.DataArray:
    """What is left along the component if it decays with the eigenvalue of this rank."""
    return ALIGNED * np.exp(-data.eigenvalue.sel(rank=rank, drop=True) * data.time)


def _component_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    for inputs in data.component_inputs.values:
        of = data.sel(component_inputs=inputs)
        made += _decay_claims(of, inputs)
        made += _width_claims(of, inputs)
    return made


def _decay_claims(data: xr.Dataset, inputs: str) -> list[Claim]:
    run = data.along.isel(chunk=-1, component_width=-1)
    end = run.mean("component_seed", skipna=False)
    return [
        at_most(
            f"4 decay, {inputs}" + (", first eigenvalue" if rank == 1 else ""),
            f"{JACOT}, Fig. 3",
            "what is left along the second component at the end, widest network: distance from "
            f"0.5 exp(-lambda_{rank} t), over 0.5",
            float(abs(end - predicted_along(data, rank).isel(chunk=-1))) / ALIGNED,
            0.06,
            control=rank == 1,
            reads=(run, data.eigenvalue, data.time),
        )
        for rank in (2, 1)
    ]


def _width_claims(data: xr.Dataset, inputs: str) -> list[Claim]:
    largest = data.off.mean("component_seed", skipna=False).max("chunk", skipna=False).values
    ends = data.along.isel(chunk=-1)
    gain = ends.isel(component_width=-1) - ends.isel(component_width=0)
    several = () if len(largest) > 1 else (absent("second width"),)
    faster = functools.partial(
        at_least,
        f"4 narrow networks are faster, {inputs}",
        f"{JACOT}, Fig. 3",
        "what is left along the second component at the end, widest network less narrowest (narrow kernels inflate, "
        "but differ more than that at initialisation)",
        bound=0.0,
        preconditions=several,
    )
    return [
        at_most(
            f"4 other components, {inputs}",
            f"{JACOT}, Fig. 3",
            "largest movement off the second component: largest ratio of a width to the next smaller one",
            np.nan if several else float((largest[1:] / largest[:-1]).max()),
            1.0,
            reads=(data.off,),
            preconditions=several,
        ),
        over_seeds(faster, gain, "mean", reads=(ends.isel(component_width=[0, -1]),)),
    ]
