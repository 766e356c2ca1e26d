"""What the study of data pruning claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

import functools

import xarray as xr

from experiments import fits
from experiments.claims import Claim, at_least, at_most, listed, over_seeds, within
from experiments.judges import as_lost

COMPARED = 6  # settings, the first, of which the theory is compared with simulations
LABELS = ("right labels", "some wrong labels")
ORDERS = ("random", "EL2N", "EL2N, easy", "GraNd at the start", "EL2N, top skipped")
OURS, THEIRS, DIET = "derived here (limits.pruning)", "Sorscher et al. 2022", "Paul et al. 2021"
# Name of each number -> whether it is a control, its source, what it is, and the ends of its criterion
CROSS, OVER = (
    "error of easy less that of hard, .4 kept of",
    "error over that of all, .4 kept of 10 a dimension",
)
TURN = "error times examples a dimension: share 1e-4 over share 1e-2, kept a dimension"
THEORY = {
    "1 slope": (False, THEIRS, "slope of log error in log alpha, 50 to 100, no pruning", -1.02, -0.95),
    "3 scarce": (False, THEIRS, f"{CROSS} 2 a dimension", -1, -0.1),
    "3 scarce, blind probe": (True, THEIRS, f"{CROSS} 2, probe at 90 degrees", -1, -0.1),
    "3 abundant": (False, THEIRS, f"{CROSS} 10 a dimension", 0.005, 1),
    "3 abundant, blind probe": (True, THEIRS, f"{CROSS} 10, probe at 90 degrees", 0.005, 1),
    "4 no loss": (False, THEIRS, f"{OVER}, the hard ones", 0, 1.01),
    "4 no loss, easy": (True, THEIRS, f"{OVER}, the easy ones", 0, 1.01),
    "5 plateau": (False, OURS, f"{TURN} 3", 0.98, 1.02),
    "5 plateau, at 2": (True, OURS, f"{TURN} 2", 0.98, 1.02),
    "5 ruin below 2": (False, OURS, f"{TURN} 1.5", 10, 1e9),
    "7 power law": (False, THEIRS, "slope of the frontier from 6 to 12, probe at 30 degrees", -1.4, -1),
    "7 power law, perfect probe": (True, OURS, "the same from 1.9 to 2.2, perfect probe", -1.4, -1),
}  # fmt: skip


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    data = as_lost(data)
    made = []
    for name, (control, source, what, low, high) in THEORY.items():
        number = data.number.sel(quantity=name, drop=True)
        made.append(
            within(name, source, what, float(number), low, high, control=control, reads=number)
        )
    made += [*_simulations(data), *_images(data)]
    return sorted(made, key=lambda claim: int(claim.name.split()[0].rstrip("b")))


def _simulations(data: xr.Dataset) -> list[Claim]:
    made, ratio = [], data.simulated / data.predicted
    error = fits.standard_error(data.simulated, "seed")
    far = abs(data.simulated.mean("seed", skipna=False) - data.predicted) / (2 * error + 0.01)
    what = "largest difference of simulated and predicted errors over 2 standard errors + .01"
    for of in ("own angle", "wrong angle"):
        largest = far.sel(of=of, drop=True).isel(setting=slice(COMPARED)).max(skipna=False)
        own = of == "own angle"
        made.append(
            at_most(f"2 theory, {of}", OURS, what, float(largest), 1.0, control=not own, reads=far.sel(of=of))
        )  # fmt: skip
    for of, kept, judge in (
        ("own angle", 2.5, functools.partial(within, low=0.8, high=1.25)),
        ("no pruning", 2.5, functools.partial(at_most, bound=0.25)),
        ("no pruning", 1.5, functools.partial(at_most, bound=0.25)),
    ):
        there = (data["at"] == xr.DataArray([0.0, kept, 0.1, 1.0], dims="part")).all("part")
        one = ratio.sel(of=of, drop=True).isel(setting=there.argmax("setting").item(), drop=True)
        one = one.where(there.any())  # else the first setting stands there
        what = f"perfect probe, .1 kept, {kept:g} a dimension: simulated error over that of theory"
        name = f"6 {'theory' if of == 'own angle' else 'gain'}, {kept:g} a dimension"
        made.append(
            over_seeds(judge, one, "mean", name=name, source=OURS, statement=f"{what}, {of}", control=kept < 2)
        )  # fmt: skip
    return made


def _images(data: xr.Dataset) -> list[Claim]:
    right, wrong = (data.sel(labels=name, drop=True) for name in LABELS)

    def gain(part, order, share=0.5, over="random"):
        base = part.full if over == "all" else part.accuracy.sel(order=over, share=share)
        return part.accuracy.sel(order=order, share=share) - base

    _, hard, easy, first, window = ORDERS
    source = {
        "9 better than random, GraNd at the start": f"{DIET}; Kirsch 2023",
        "14 scarce: easy is better": THEIRS,
    }
    rows = [
        ("8 half is enough", False, at_least, -0.01, gain(right, hard, over="all"), "EL2N, .5 kept, less all"),
        ("8 half is enough, easy", True, at_least, -0.01, gain(right, easy, over="all"), "the easy half less all"),
        ("9 better than random", False, at_least, 0.0, gain(right, hard), "EL2N less random, .5 kept"),
        ("9 better than random, GraNd at the start", True, at_least, 0.0, gain(right, first),
         "GraNd at initialisation less random, .5 kept (useless, as in a published reproduction)"),
        ("12 wrong labels: hard is worse", False, at_most, 0.0, gain(wrong, hard), "EL2N less random, .5 kept"),
        ("12 wrong labels: hard is worse, easy", True, at_most, 0.0, gain(wrong, easy), "easy less random"),
        ("13 wrong labels: skip the top", False, at_least, 0.03, gain(wrong, window, over="all"),
         "EL2N without the top .15, .5 kept, less all"),
        ("13 skip the top, right labels", True, at_least, 0.03, gain(right, window, over="all"), "the same"),
        ("14 scarce: easy is better", False, at_least, 0.0, gain(right, easy, 0.05, hard), "easy less EL2N, .05 kept"),
        ("14 scarce: easy is better, .5 kept", True, at_least, 0.0, gain(right, easy, 0.5, hard), "easy less EL2N"),
    ]  # fmt: skip
    made = [
        over_seeds(
            judge, values, "mean", name=name, source=source.get(name, DIET), control=control, bound=bound,
            statement=f"test accuracy, {LABELS[name.startswith(('12', '13 w'))]}: {what}",
        )
        for name, control, judge, bound, values, what in rows
    ]  # fmt: skip
    for name, control, bound, found, what in (
        ("10 scores agree", False, 0.95, right.agreement.sel(epoch=1), "EL2N with GraNd after an epoch"),
        ("10 scores agree, at the start", True, 0.95, right.agreement.sel(epoch=0), "at initialisation"),
        ("10b EL2N is reliable", False, 0.9, right.reliability.sel(epoch=10, by="EL2N"), "EL2N after 10 epochs"),
        ("10b EL2N at the start", True, 0.9, right.reliability.sel(epoch=0, by="EL2N"), "EL2N at initialisation"),
        ("10b GraNd at the start, though useless", False, 0.7, right.reliability.sel(epoch=0, by="GraNd"),
         "GraNd at initialisation, which loses to random"),
    ):  # fmt: skip
        value, error = found.values
        of = "of two means of half of the networks, " if "b" in name.split()[0] else ""
        made.append(
            at_least(
                name, DIET, f"Spearman's correlation {of}{what}", value, bound, control=control, reads=found,
                interval=(value - 2 * error, value + 2 * error) if error >= 0 else None,
            )
        )  # fmt: skip
    for tenth in ("top", "bottom"):
        found = wrong.mislabelled.sel(tenth=tenth)
        what = f"share of wrong labels in the {tenth} tenth by EL2N"
        control = tenth == "bottom"
        made.append(
            at_least(f"11 wrong labels, {tenth}", DIET, what, float(found), 0.8, control=control, reads=found)
        )  # fmt: skip
    return made
