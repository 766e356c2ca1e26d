"""What a theory card claims about a model: criteria fixed before the run, a control for each part."""

from __future__ import annotations

import functools

import numpy as np
import xarray as xr

import metrics
from experiments.claims import (
    Claim,
    Precondition,
    at_least,
    at_most,
    equals,
    listed,
    near,
    over_seeds,
    within,
)
from experiments.fits import power_law, standard_error
from experiments.judges import as_lost

YANG = "Yang & Hu 2021, arXiv:2011.14522"
JACOT = "Jacot et al. 2018, arXiv:1806.07572"
LEE = "Lee et al. 2019, arXiv:1902.06720"
PDLT = "Roberts, Yaida & Hanin 2022, arXiv:2106.10165"
COHEN = "Cohen et al. 2021, arXiv:2103.00065"
CANATAR = "Canatar, Bordelon & Pehlevan 2021, arXiv:2006.13198"
PAPYAN = "Papyan, Han & Donoho 2020, arXiv:2008.08186"
TP5 = "Yang et al. 2022, arXiv:2203.03466"


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the parts that apply; the others have none, and the card says why."""
    data = as_lost(data)
    made = []
    for part, judged in CLAIMS.items():
        if not str(data[f"{part}_refused"].values):
            made += judged(data)
    return made


def law(values: xr.DataArray, seed: str, width: str) -> metrics.PowerLaw:
    """Power law in the width of the values' RMS over seeds; nan where one is not finite or not positive."""
    return power_law(values[width], values.transpose(seed, width))


def _axes(data: xr.Dataset) -> list[Claim]:
    base, widest = (data.plain_difference.sel(place=place) for place in ("base", "widest"))
    exact = functools.partial(
        at_most,
        source=f"{YANG}, Sec. 4",
        statement="largest difference of the outputs under muP from the plain network's",
        bound=0.0,
    )
    return [
        over_seeds(functools.partial(exact, "axes: plain at the base width"), base),
        over_seeds(functools.partial(exact, "axes, control: at the widest"), widest, control=True),
    ]


def _coordinates(data: xr.Dataset) -> list[Claim]:
    mup = data.sel(coordinate_rule="mup")
    wrong = str(mup.coordinate_wrong.values)
    decided = Precondition(
        "decided", wrong != "undecided", str(mup.coordinate_verdict.values).rsplit(". ", 1)[-1]
    )
    made = [
        equals(
            "coordinates: layers that are wrong under muP",
            f"{TP5}, App. D",
            "whose size at initialisation, own change or change in all has another exponent in the width",
            wrong,
            "none",
            reads=mup.coordinate_slope,
            preconditions=(decided,),
        )
    ]
    for rule in reversed(data.coordinate_rule.values.tolist()):
        line = data.sel(coordinate_rule=rule)
        off = abs(line.coordinate_slope).values
        missing = Precondition(
            "every run", np.isfinite(off).all(), "a layer's change is not finite"
        )
        worst = int(np.argmax(np.nan_to_num(off, nan=-1)))
        ends = line.coordinate_interval.values[worst].tolist()
        low, high = sorted(map(abs, ends)) if np.isfinite(ends).all() else (np.nan, np.nan)
        low = 0.0 if ends[0] < 0 < ends[1] else low
        control = rule != "mup"
        layer = str(data.coordinate_layer.values[worst])
        made.append(
            at_most(
                f"coordinates{', control' * control}: {rule}",
                f"{TP5}, App. D",
                f"largest |exponent in the width| of a layer's change in training, here of {layer}"
                + (", which muP alone keeps at 0" if control else ""),
                float(off[worst]),
                0.15,
                interval=(min(low, off[worst]), max(high, off[worst])) if missing.met else None,
                resolve=missing.met,
                control=control,
                preconditions=(missing,) if control else (missing, decided),
            )
        )
    return made


def _signals(data: xr.Dataset) -> list[Claim]:
    made = []
    depth = data.sizes["signal_depth"] - 1
    for weights in ("own", "mistuned"):
        for name, words in (
            ("variance", "factor of the mean square of a layer's outputs"),
            ("growth", "factor of a small difference of two inputs, squared"),
        ):
            both = data[f"signal_{name}"]
            factors = (both[..., -1] / both[..., 0]) ** (1 / depth)
            factor = factors.sel(weights=weights)
            own, other = factors.sel(weights="own"), factors.sel(weights="mistuned")
            told = Precondition(
                "told by the weights",
                bool((abs(other / own - 1) > 0.02).all()),
                "weights of another size change nothing: the last of these layers is normalised",
            )
            control = weights == "mistuned"
            statement = f"{words} from layer to layer at initialisation, {depth + 1} layers"
            if control:
                times = float(data.signal_factor)
                statement += f", each layer's weights {times:.2g} times the one before"
            judge = functools.partial(
                within,
                f"signals{', control' * control}: {name}",
                f"{PDLT}, Sec. 3 and 5",
                statement,
                low=0.8,
                high=1.25,
                preconditions=(told,),
            )
            made.append(over_seeds(judge, factor, control=control, reads=both))
    return made


def _criticality(data: xr.Dataset) -> list[Claim]:
    if str(data.no_chain.values):
        return []
    made = []
    for assumed in ("own", "twice"):
        pair = [data[name].sel(assumed=assumed) for name in ("next_predicted", "next_variance")]
        control = assumed == "twice"
        judge = functools.partial(
            near,
            f"criticality{', control' * control}: recursion",
            f"{PDLT}, eq. (5.12)",
            "relative distance of the last hidden layer's variance from the recursion's"
            + (" at twice the variance of the weights" if control else "")
            + ", mean over seeds",
            target=0.0,
            tolerance=0.1,
        )
        off = pair[1] / pair[0] - 1
        made.append(over_seeds(judge, off, "mean", control=control, reads=pair))
    return made


def _kernel(data: xr.Dataset) -> list[Claim]:
    made = []
    for name in ("ntk", "nngp"):
        control = name == "nngp"
        found = data.sel(kernel_of=name)
        exists = Precondition(
            "a kernel",
            not control or bool((data.limit_nngp != 0).any()),
            "outputs are zero at initialisation, and so is the NNGP",
        )
        fitted = law(found.kernel_distance, "kernel_seed", "kernel_width")
        words = "the NNGP, which is not its limit" if control else "the NTK of infinite width"
        made.append(
            within(
                f"kernel{', control' * control}: convergence",
                f"{JACOT}, Thm 1",
                f"exponent in the width of the tangent kernel's relative distance from {words}",
                fitted.exponent,
                -0.65,
                -0.35,
                interval=tuple(fitted.exponent_interval),
                resolve=True,
                control=control,
                reads=found.kernel_distance,
                preconditions=(exists,),
            )
        )
        level = found.kernel_level.isel(kernel_width=-1)
        error = float(standard_error(level, "kernel_seed"))
        made.append(
            at_most(
                f"kernel{', control' * control}: z-score",
                f"{JACOT}, Thm 1",
                f"distance of the mean trace at width {int(level.kernel_width)} from that of {words}, in standard "
                "errors over initialisations",
                abs(float(level.mean(skipna=False)) - 1) / error if error else np.nan,
                3.0,
                control=control,
                reads=found.kernel_level,
                preconditions=(exists,),
            )
        )
    return made


def _spectrum(data: xr.Dataset) -> list[Claim]:
    top = max(data.sizes["mode"] // 10, 1) - 1
    words = f"share of the targets in the top {top + 1} of {data.sizes['mode']} modes of the kernel"
    source = f"{CANATAR}, eq. 8"
    return [
        at_least(
            "spectrum: the targets lie in the top modes",
            source,
            words,
            float(data.power[top]),
            0.3,
            reads=data.power,
        ),
        over_seeds(
            functools.partial(
                at_least,
                "spectrum, control: shuffled targets",
                source,
                f"{words}, which are shuffled",
                bound=0.3,
            ),
            data.shuffled_power[:, top],
            control=True,
        ),
    ]


def _prediction(data: xr.Dataset) -> list[Claim]:
    made = []
    for name in ("ntk", "nngp"):
        values = data.prediction_distance.sel(predicted_by=name)
        fitted = law(values, "prediction_seed", "prediction_width")
        control = name == "nngp"
        made.append(
            at_most(
                f"prediction{', control' * control}: by the {name.upper()}",
                f"{LEE}, Thm 2.1",
                "exponent in the width of the distance of trained outputs on test inputs from the prediction, over "
                "their change",
                fitted.exponent,
                -0.25,
                interval=tuple(fitted.exponent_interval),
                resolve=True,
                control=control,
                reads=values,
            )
        )
    return made


def _laziness(data: xr.Dataset) -> list[Claim]:
    made = []
    for rule in ("ntk", "mup"):
        values = data.kernel_change.sel(lazy_rule=rule)
        fitted = law(values, "lazy_seed", "lazy_width")
        control = rule == "mup"
        made.append(
            at_most(
                f"laziness{', control' * control}: {rule}",
                f"{JACOT}, Thm 2; {YANG}",
                "exponent in the width of the relative change of the tangent kernel in training",
                fitted.exponent,
                -0.35,
                interval=tuple(fitted.exponent_interval),
                resolve=True,
                control=control,
                reads=values,
            )
        )
    return made


def late(data: xr.Dataset) -> xr.DataArray:
    """Sharpness over the edge of stability, mean over the last quarter of training, of each seed."""
    ratio = data.sharpness * data.sharpness_rate / 2
    return ratio[:, -ratio.sizes["sharpness_step"] // 4 :].mean("sharpness_step", skipna=False)


def _sharpness(data: xr.Dataset) -> list[Claim]:
    made = []
    for place, rate in enumerate(data.early_rate.values):
        control = place == 1
        judge = functools.partial(
            at_most,
            f"sharpness{', control' * control}: {rate:g} of the largest stable rate",
            f"{COHEN}, Sec. 2",
            f"loss in the first chunk of steps over the loss before, at {rate:g} times 2 / sharpness",
            bound=1.0,
        )
        made.append(over_seeds(judge, data.early_rise.isel(early_rate=place), control=control))
    judge = functools.partial(
        at_most,
        "sharpness: stays at or below the edge",
        f"{COHEN}, Sec. 3",
        "late sharpness over 2/eta; near 1 training is at the edge of stability",
        bound=1.3,
    )
    made.append(over_seeds(judge, late(data), reads=data.sharpness))
    return made


def optima(data: xr.Dataset, rule: str) -> list[metrics.Optimum]:
    """Best rates at the smallest and at the largest width."""
    losses = data.transfer_loss.sel(transfer_rule=rule)
    rates = data.transfer_rate.values
    return [metrics.refined_optimum(rates, losses.isel(transfer_width=k).values.T) for k in (0, 1)]


def _transfer(data: xr.Dataset) -> list[Claim]:
    made = []
    widths = data.transfer_width.values
    for rule in ("mup", "standard"):
        found, control = optima(data, rule), rule == "standard"
        moves = found[1].per_seed - found[0].per_seed
        drift = float(abs(moves.mean()))
        error = 2 * float(moves.std(ddof=1)) / moves.size**0.5
        step = float(np.diff(np.log2(data.transfer_rate.values)).max())
        error += step * sum(one.edge == "divergence" for one in found)
        ends = [one.edge for one in found if one.edge not in ("", "divergence")]
        inside = Precondition(
            "inside the grid", not ends, f"the best rate lies at: {', '.join(ends)}"
        )
        made.append(
            at_most(
                f"transfer{', control' * control}: {rule}",
                f"{TP5}, Fig. 1",
                f"the best learning rate of Adam moves by |log2| from width {widths[0]} to {widths[1]}, mean over "
                "seeds; a rate at which a seed diverges counts as infinitely bad",
                drift,
                0.5,
                interval=(max(drift - error, 0.0), drift + error) if error >= 0 else None,
                resolve=True,
                control=control,
                preconditions=(inside,),
            )
        )
    return made


def _collapse(data: xr.Dataset) -> list[Claim]:
    made = []
    fitted = float(data.collapse_accuracy[:, -1].min(skipna=False))
    needs = Precondition("fitted", fitted == 1.0, f"training accuracy is {fitted:.3g} at the end")
    for labels in ("own", "redrawn"):
        nc1 = data.collapse.sel(collapse_measure="nc1", collapse_labels=labels)
        control = labels == "redrawn"
        judge = functools.partial(
            at_most,
            f"collapse{', control' * control}: NC1 of {data.collapse_layer.values!s}",
            f"{PAPYAN}, NC1",
            "within-class over between-class variance of the last layer that grows with the width, after training over "
            "before" + (", of redrawn labels" if control else ""),
            bound=0.5,
            preconditions=(needs,),
        )
        made.append(over_seeds(judge, nc1[:, -1] / nc1[:, 0], control=control, reads=nc1))
    return made


CLAIMS = {
    "axes": _axes,
    "coordinates": _coordinates,
    "signals": _signals,
    "criticality": _criticality,
    "kernel": _kernel,
    "spectrum": _spectrum,
    "prediction": _prediction,
    "laziness": _laziness,
    "sharpness": _sharpness,
    "transfer": _transfer,
    "collapse": _collapse,
}
