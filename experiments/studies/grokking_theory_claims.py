"""What the study of lazy and rich grokking claims about its theories: criteria G8."""

from __future__ import annotations

import functools

import numpy as np
import xarray as xr

from experiments.claims import Claim, absent, at_most, near, over_seeds

KUMAR = "Kumar et al. 2024"


def theory_claims(data: xr.Dataset) -> list[Claim]:
    """Closed dynamics, infinite width and infinite dimension against trained networks."""
    law, sizes = data.width_law, data.batch_size.values.tolist()
    highest = data.dmft_network.isel(dim=-1).sel(data="test")
    far = abs(highest.mean("seed", skipna=False) / data.dmft_theory.sel(data="test") - 1)
    made = [
        _descent_claim(data, 0),
        near(
            "G8 infinite width",
            "limits.mean_field",
            "exponent in width of the distance of the outputs from those at infinite width",
            float(law.sel(law="exponent")),
            -0.5,
            0.15,
            interval=(float(law.sel(law="low")), float(law.sel(law="high"))),
            resolve=True,
            reads=(law, data.width_distance),
        ),
        at_most(
            f"G8 infinite dimension, D = {data.dim.values[-1]}",
            "limits.dmft",
            "mean over training of the relative difference of the test loss (mean over seeds) from dynamical "
            "mean-field theory",
            float(far.mean(skipna=False)),
            0.1,
            reads=(highest, data.dmft_theory),
        ),
    ]
    return made + [_descent_claim(data, size) for size in [s for s in sizes if s] or [None]]


def _descent_claim(data: xr.Dataset, batch_size: int | None) -> Claim:
    """Networks against the closed dynamics: exact for full batches (0), close for minibatches."""
    off = np.expm1(abs(np.log(data.network_loss / data.closed_loss)).sel(data="test"))
    missing, values = (absent("networks of such batches"),), off.isel(batch_size=0)
    if batch_size in data.batch_size:
        missing, values = (), off.sel(batch_size=batch_size)
    inner = [dim for dim in values.dims if dim != "network_seed"]
    if batch_size == 0:
        claim = functools.partial(
            at_most,
            "G8 closed dynamics are exact",
            "limits.mean_field",
            f"largest relative difference of the test loss of {data.attrs['network_width']} neurons under gradient "
            "descent from the closed dynamics of its moments, over training, alphas and seeds",
            bound=0.01,
        )
        return over_seeds(claim, values.max(inner, skipna=False), preconditions=missing)
    claim = functools.partial(
        at_most,
        "G8 minibatches" + (f" of {batch_size}" if batch_size else ""),
        f"{KUMAR}, Fig. 1",
        "the same relative difference under stochastic gradient descent, mean over training, alphas and seeds",
        bound=0.1,
    )
    return over_seeds(claim, values.mean(inner, skipna=False), "mean", preconditions=missing)
