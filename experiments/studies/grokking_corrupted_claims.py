"""What the study of corrupted grokking claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

import functools

import numpy as np
import xarray as xr

from experiments.claims import (
    Claim,
    Precondition,
    absent,
    at_least,
    at_most,
    listed,
    near,
    over_seeds,
)
from experiments.judges import as_lost

DOSHI, GROMOV = "Doshi et al. 2023", "Gromov 2023"
SHUFFLED = "shuffled labels"
# Phases: accuracy on test pairs of a network that generalises, on wrong labels of one that has learnt or dropped them.
GENERALISES, MEMORISES, FORGETS = 0.9, 0.85, 0.1
# Strengths of the regularisers that the paper is about follow these names in the data.
KINDS = ("weight decay", "dropout")
# Inverse participation ratio of a periodic neuron: above 1/2 no second frequency is as strong as the first.
PERIODIC = 0.5


def phase(test: float, corrupted: float) -> str:
    """The phase of a network, from its accuracies on test pairs and on wrong training labels."""
    if np.isnan(test) or np.isnan(corrupted):
        return "diverged"
    if test >= GENERALISES:
        if corrupted >= MEMORISES:
            return "coexistence"
        return "full inversion" if corrupted <= FORGETS else "partial inversion"
    return "memorisation" if corrupted > 0.5 else "forgetting"


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data; of several seeds the worst counts."""
    data = as_lost(data)
    return [
        *_coexistence_claims(data),
        *_pruning_claims(data),
        *_regularisation_claims(data),
        *_phase_claims(data),
        *_analytic_claims(data),
        *_transformer_claims(data),
    ]


def kept_share(data: xr.Dataset) -> float:
    """Expected share of training labels that are right: a redrawn one is with probability 1/p."""
    return 1 - data.attrs["label_noise"] * (1 - 1 / data.attrs["modulus"])


def _settings(names: xr.DataArray) -> list[str]:
    """Regularisers of each kind that a run holds; the kind alone where it holds none, so that no claim vanishes."""
    known = [str(name) for name in names.values]
    every = [[name for name in known if name.startswith(kind)] or [kind] for kind in KINDS]
    return [name for names in every for name in names]


def _coexistence_claims(data: xr.Dataset) -> list[Claim]:
    plain, source = data.sel(regulariser="none"), f"{DOSHI}, abstract (i)"
    last, shuffled = plain.isel(time=-1), data.sel(regulariser=SHUFFLED).isel(time=-1)
    fitted = plain.train >= 0.99
    learnt = plain.test.isel(time=fitted.argmax("time"))
    best = float(plain.train.max("time").min())
    memorised = Precondition(
        "fitted", bool(fitted.any("time").all()), f"a seed learns {best:.2%} of the labels at most"
    )
    rule = "test accuracy, without regularisation,"
    mixed, redrawn = (
        f"{rule} despite wrong labels",
        f"{rule} when {data.attrs['control_noise']:.0%} of the labels are redrawn",
    )
    memory = "share of the wrong training labels that the same network has learnt"
    delay = "test accuracy when 99% of the training labels are learnt"
    claim = functools.partial
    return [
        over_seeds(claim(at_least, "C1 generalises", source, mixed, bound=0.95), last.test),
        over_seeds(
            claim(at_least, "C1 control, shuffled", source, redrawn, bound=0.95, control=True),
            shuffled.test,
        ),
        over_seeds(claim(at_least, "C2 memorises", source, memory, bound=0.85), last.corrupted),
        over_seeds(
            claim(at_most, "C3 delayed", f"{GROMOV}, Fig. 1", delay, bound=0.5),
            learnt,
            reads=(plain.train,),
            preconditions=(memorised,),
        ),
    ]


def _pruning_claims(data: xr.Dataset) -> list[Claim]:
    plain, source = data.sel(regulariser="none"), f"{DOSHI}, abstract (ii)"
    half = plain.sel(share=0.5, method="nearest")
    low, random, high = (half.sel(order=order) for order in ("low", "random", "high"))
    part = f"{float(half.share):.0%}"
    rule = f"test accuracy without {part} of the neurons,"
    memory = f"share of the wrong labels still given without {part} of the neurons,"
    off = f"distance of the training accuracy, without the least periodic {part}, from the right share"
    least, chance, most = "the least periodic", "chosen at random", "the most periodic"
    gap = abs(low.pruned_train - kept_share(data))
    alone = f"least test accuracy while {MEMORISES:.0%} of the wrong labels stay, pruning first"
    known = plain.pruned_corrupted >= MEMORISES
    kept = plain.pruned_test.where(known, np.inf).min("share")  # inf where no share keeps them
    read = plain.pruned_test, plain.pruned_corrupted
    rows = (
        (at_least, "P1 rule stays", f"{rule} {least}", low.pruned_test, 0.98, False),
        (at_least, "P1 control, random", f"{rule} {chance}", random.pruned_test, 0.98, True),
        (at_least, "P1 control, reverse", f"{rule} {most}", high.pruned_test, 0.98, True),
        (at_most, "P2 memory goes", f"{memory} {least}", low.pruned_corrupted, 0.1, False),
        (at_most, "P2 control, random", f"{memory} {chance}", random.pruned_corrupted, 0.1, True),
        (at_most, "P3 right share", off, gap, 0.03, False),
        (at_most, "P4 memory alone", f"{alone} {most}", kept.sel(order="high"), 0.2, False),
        (at_most, "P4 control, reverse", f"{alone} {least}", kept.sel(order="low"), 0.2, True),
    )
    return [
        over_seeds(
            functools.partial(judge, name, source, statement, bound=bound, control=control),
            values,
            reads=read if name.startswith("P4") else (),
            infinite="inf: no share of neurons keeps them" if name.startswith("P4") else "",
        )
        for judge, name, statement, values, bound, control in rows
    ]


def _regularisation_claims(data: xr.Dataset) -> list[Claim]:
    names = ["none", *_settings(data.regulariser), "batch norm"]
    held = set(map(str, data.regulariser.values))
    data = data.reindex(regulariser=names)
    made = []
    for name in names:
        missing = () if name in held else (absent(name),)
        made += _regulariser_claims(name, data.sel(regulariser=name), kept_share(data), missing)
    return made


def _regulariser_claims(name, run: xr.Dataset, share: float, missing: tuple) -> list[Claim]:
    """The claims about one regulariser; of none, and of BatchNorm where it does not unlearn, the controls."""
    last, stages = run.isel(time=-1), f"{DOSHI}, abstract"
    restored = "share of the wrongly labelled training pairs that are answered right"
    peak = "highest training accuracy on the way, wrong labels included"
    off = "distance of the last training accuracy from the share of right labels"
    periodic = "mean inverse participation ratio of all neurons"
    follow = "correlation over neurons of BatchNorm's |gain| with the inverse participation ratio"
    bare, normed = name in ("none", "batch norm"), name == "batch norm"
    unlearns = "R1 control, none" if bare else f"R1 unlearns, {name}"
    regular = f"R2 control, {name}" if bare else f"R2 periodic, {name}"
    gap = abs(last.train - share)
    rows = []
    if not normed:
        rows.append((at_least, unlearns, f"{DOSHI}, abstract (iii)", restored, last.restored, 0.95))
    rows.append((at_least, regular, f"{DOSHI}, abstract (iv)", periodic, last.ipr, 0.6))
    if not bare:
        top = run.train.max("time", skipna=False)
        rows.append((at_least, f"R3 first learns, {name}", stages, peak, top, 0.95))
        rows.append((at_most, f"R3 then unlearns, {name}", stages, off, gap, 0.03))
    if normed:
        with np.errstate(invalid="ignore"):
            alike = xr.corr(last.neuron_gain, last.neuron_ipr, "neuron")
        iii, iv = f"{DOSHI}, abstract (iii)", f"{DOSHI}, abstract (iv)"
        rows.append((at_least, f"R4 generalises, {name}", iii, "test accuracy", last.test, 0.95))
        rows.append((at_least, f"R5 gains, {name}", iv, follow, alike, 0.7))
    return [
        over_seeds(
            functools.partial(judge, title, source, statement, bound=bound),
            values,
            control="control" in title,
            reads=(last.neuron_gain, last.neuron_ipr) if title.startswith("R5") else (),
            preconditions=missing,
        )
        for judge, title, source, statement, values, bound in rows
    ]


def phases(data: xr.Dataset) -> xr.DataArray:
    """The phase of every cell of the phase diagram, in words."""
    named = np.vectorize(phase, otypes=[object])
    return xr.apply_ufunc(named, data.phase_test, data.phase_corrupted)


def _phase_claims(data: xr.Dataset) -> list[Claim]:
    source = f"{DOSHI}, phase diagrams"
    every = (
        "number of phases met, of coexistence, partial and full inversion, memorisation, forgetting"
    )
    cells = data.phase_test, data.phase_corrupted
    plain = data.phase_test.sel(phase_regulariser="none")
    falls = np.concatenate(
        [-plain.diff("fraction").values.ravel(), plain.diff("noise").values.ravel()]
    )
    steps = () if falls.size else (absent("neighbouring cells"),)
    made = [
        at_least("D1 phases", source, every, len(set(phases(data).values.flat)), 5, reads=cells),
        at_most(
            "D2 order, none",
            source,
            "largest fall of the test accuracy from a cell to the next with more data or less noise",
            falls.max() if falls.size else np.nan,
            0.1,
            reads=(plain,),
            preconditions=steps,
        ),
    ]
    for name in ("none", *_settings(data.phase_regulariser)):
        made += _inversion_claims(data, name, plain, source)
    return made


def _inversion_claims(data, name, plain, source) -> list[Claim]:
    """What a regulariser makes of the cells that generalise; where none does under it, its claims fail."""
    inverted = "share of the cells that generalise in which no wrong label is kept (full inversion)"
    reach = "number of cells that generalise, over that without regularisation"
    bare = name == "none"
    title = "D3 control, none" if bare else f"D3 inversion, {name}"
    if name not in data.phase_regulariser:
        needs = (absent(name),)
        made = [at_least(title, source, inverted, np.nan, 0.5, preconditions=needs)]
        return [*made, at_least(f"D4 reach, {name}", source, reach, np.nan, 1, preconditions=needs)]
    run, cells = data.sel(phase_regulariser=name), int((plain >= GENERALISES).sum())
    generalises = run.phase_test >= GENERALISES
    full = (generalises & (run.phase_corrupted <= FORGETS)).sum() / max(generalises.sum(), 1)
    some = Precondition("generalisation", cells > 0, "no cell generalises without regularisation")
    options = {"reads": (run.phase_test, run.phase_corrupted), "control": bare}
    needs = (some,) if bare else ()
    made = [at_least(title, source, inverted, float(full), 0.5, preconditions=needs, **options)]
    if not bare:
        ratio = float(generalises.sum()) / max(cells, 1)
        options = {"reads": (run.phase_test, plain), "preconditions": (some,)}
        made.append(at_least(f"D4 reach, {name}", source, reach, ratio, 1.0, **options))
    return made


def _phase_mismatch(data: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """Mean cosine of W's phase minus those of U and V, over the periodic neurons and over the others, by seed."""
    u, v, w = (data.neuron_phases.sel(vector=name) for name in "UVW")
    cosine, periodic = np.cos(w - u - v), data.neuron_ipr >= PERIODIC
    return cosine.where(periodic).mean("neuron"), cosine.where(~periodic).mean("neuron")


def _analytic_claims(data: xr.Dataset) -> list[Claim]:
    source = f"{GROMOV}, analytic solution"
    follow = "mean cosine of phase(W) - phase(U) - phase(V), which is 0 in the solution, over the"
    above, below = f"neurons of ratio {PERIODIC:g} or more", f"neurons of ratio below {PERIODIC:g}"
    exact = "largest relative error of the logits of 3 (p - 1) neurons with phases on the lattice"
    made, held = [], set(map(str, data.regulariser.values))
    every = ["none", *_settings(data.regulariser)]
    data = data.reindex(regulariser=every)
    for name in every:
        run, bare = data.sel(regulariser=name), name == "none"
        # Without regularisation the periodic neurons hold some of the wrong labels too: drawn, not judged.
        values = _phase_mismatch(run)[int(bare)]
        words = f"{follow} {below}, no regularisation" if bare else f"{follow} {above}"
        title = "A1 control, none" if bare else f"A1 phases, {name}"
        some = Precondition("neurons", not values.isnull().any(), "a seed has no such neuron")
        made.append(
            over_seeds(
                functools.partial(at_least, title, source, words, bound=0.95, control=bare),
                values,
                reads=(run.neuron_phases, run.neuron_ipr),
                preconditions=(some,) if name in held else (absent(name),),
            )
        )
    made.append(at_most("A2 exact", "derived", exact, float(data.exact_error), 1e-10))
    return made + _width_claims(data, source)


def _width_claims(data: xr.Dataset, source: str) -> list[Claim]:
    """The analytic solution needs enough neurons: accuracy of the widest, and of too narrow a one."""
    widths = data.analytic_width.values
    wrong = "accuracy of the analytic solution, random phases, "
    random = (
        "mean accuracy with random phases less the predicted one, at the width where it is farthest"
    )
    off = data.analytic_accuracy - data.analytic_predicted
    farthest = int(np.abs(off.mean("analytic_seed", skipna=False).values).argmax())
    more = () if len(widths) > 1 else (absent("second width"),)
    claim = functools.partial
    return [
        over_seeds(
            claim(at_least, "A3 solves", source, f"{wrong}{widths[-1]} neurons", bound=0.99),
            data.analytic_accuracy.isel(analytic_width=-1),
        ),
        over_seeds(
            claim(
                at_least,
                "A3 control",
                source,
                f"{wrong}{widths[0]} neurons",
                bound=0.99,
                control=True,
                preconditions=more,
            ),
            data.analytic_accuracy.isel(analytic_width=0),
        ),
        over_seeds(
            claim(near, "A4 predicted", "derived", random, target=0, tolerance=0.05),
            off.isel(analytic_width=farthest),
            "mean",
            reads=(off,),
        ),
    ]


def _transformer_claims(data: xr.Dataset) -> list[Claim]:
    source, solves = f"{DOSHI}, Transformers", "test accuracy of the Transformer"
    memory = "share of the wrong training labels that the same Transformer has learnt"
    decays = [float(decay) for decay in data.decay.values] if "decay" in data.coords else []
    judged = [decay for decay in decays if decay] or [np.nan]
    if decays:
        last = data.isel(transformer_time=-1).reindex(decay=sorted({0.0, *judged}))
    else:
        nothing = xr.DataArray([np.nan], dims="seed")
        names = ("test", "corrupted", "pruned_test", "pruned_corrupted")
        last = dict.fromkeys((f"transformer_{name}" for name in names), nothing)
    made = []
    for decay in (0.0, *judged):
        missing = () if decay in decays else (absent("Transformer with such a decay"),)
        control = decay == 0
        name = "T1 control, no decay" if control else f"T1 generalises, decay {decay:g}"
        name = "T1 generalises" if np.isnan(decay) else name
        claim = functools.partial(
            at_least, name, source, solves, bound=0.9, control=control, preconditions=missing
        )
        run = last.sel(decay=decay) if decays and not np.isnan(decay) else last
        made.append(over_seeds(claim, run["transformer_test"]))
    claim = functools.partial(at_least, "T2 memorises", source, memory, bound=0.85)
    made.append(over_seeds(claim, run["transformer_corrupted"], preconditions=missing))
    words = "less the same when the most periodic go first, mean over the shares pruned"
    for quantity, what in (("test", "test accuracy"), ("corrupted", "share of wrong labels given")):
        curves = run[f"transformer_pruned_{quantity}"]
        claim = functools.partial(
            at_least,
            "T3 the rule is periodic" if quantity == "test" else "T3 control, memory",
            source,
            f"{what}, when the least periodic neurons are pruned, {words}",
            bound=0.1,
            control=quantity != "test",
            preconditions=missing,
        )
        if not missing:
            inner = curves.isel(transformer_share=slice(1, -1))
            gap = inner.sel(transformer_order="low") - inner.sel(transformer_order="high")
            curves = gap.mean("transformer_share", skipna=False)
        made.append(over_seeds(claim, curves, reads=() if missing else (inner,)))
    return made
