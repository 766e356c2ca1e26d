"""What the study of three short papers claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

import numpy as np
import xarray as xr

from experiments import fits
from experiments.claims import Claim, at_least, at_most, listed, over_seeds
from experiments.judges import as_lost, completed

KINDS = ("as learnt", "centred")
TILT, CONTRAST, MATCH = "arXiv:1608.07690", "arXiv:2012.09740", "arXiv:1511.07543"


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    data = as_lost(data)
    for dim, wanted in (("width", (128,)), ("ridge", (1e-4, 1e3)), ("temperature", (0.05, 1.0))):
        data = completed(data, dim, wanted)
    weak, strong = (data.sel(ridge=r) for r in (1e-4, 1e3))
    cold, hot = (data.sel(temperature=t) for t in (0.05, 1.0))
    cost = weak.error - strong.error.sel(tilt="its own", drop=True)
    spread, whole = hot.energy - cold.energy, hot.tolerance - cold.tolerance
    energy, tolerance = ([d.sel(features=f, drop=True) for f in KINDS] for d in (spread, whole))
    alike = {n: data.similarity.sel(networks=n, drop=True) for n in data.networks.values.tolist()}
    one, semi, cka = (
        {n: v.sel(width=128, measure=m) for n, v in alike.items()} for m in data.measure.values
    )
    learnt = (
        one["trained"] - one["untrained"],
        one["trained, shuffled"] - one["untrained, shuffled"],
    )
    excess = [[more[n] - one[n] for n in ("trained", "itself")] for more in (semi, cka)]
    wider = [doubling(alike[n].sel(measure="bipartite")) for n in ("trained", "trained, shuffled")]
    errors = "test error, ridge 1e-4 less 1e3 (wrong: tilted at random)"
    trained = "matched correlation, trained less untrained (wrong: examples shuffled)"
    ends = "tolerance at temperature 1 less that at 0.05"
    energies = "energy at temperature 1 less that at 0.05"
    rows = [
        (TILT, "1 tilt", "strength, ridge 1e-4", at_least, 5.0, weak.strength, strong.strength),
        (TILT, "2 at no cost", errors, at_most, 0.02, *cost.transpose("tilt", ...)),
        *(
            row
            for e, t, kind in zip(energy, tolerance, ("", ", centred (added after a first run)"))
            for row in (
                (CONTRAST, "3 cold is uniform" + kind, energies, at_least, 0.02, e, None),
                (
                    CONTRAST,
                    "4 hot is tolerant" + kind,
                    ends,
                    at_least,
                    0.1,
                    *t.transpose("labels", ...),
                ),
            )
        ),
        (MATCH, "5 convergence is learnt", trained, at_least, 0.05, *learnt),
        (MATCH, "6 partners are shared", "semi-matched less matched", at_least, 0.02, *excess[0]),
        (MATCH, "7 CKA does not see it", "CKA less matched", at_least, 0.1, *excess[1]),
        (MATCH, "8 wider matches better", "matched, a doubling of width", at_least, 0.02, *wider),
    ]
    made = []
    for source, name, text, judge, bound, right, wrong in rows:
        common = {"source": source, "statement": f"{text}, mean over seeds", "bound": bound}
        made.append(over_seeds(judge, right, "mean", name=name, **common))
        if wrong is not None:
            common["control"] = True
            made.append(over_seeds(judge, wrong, "mean", name=f"{name}, wrong", **common))
    return made


def doubling(values: xr.DataArray) -> xr.DataArray:
    """Slope in log2(width), by least squares."""
    return fits.slope(values, np.log2(values.width))
