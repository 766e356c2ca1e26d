"""What the study of corrupted grokking claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

import numpy as np
import xarray as xr

from experiments.claims import Claim, at_least, at_most

DOSHI, GROMOV = "Doshi et al. 2023", "Gromov 2023"
SHUFFLED = "shuffled labels"
# Phases: accuracy on test pairs of a network that generalises, on wrong labels of one that has learnt or dropped them.
GENERALISES, MEMORISES, FORGETS = 0.9, 0.85, 0.1
# Inverse participation ratio of a periodic neuron: above 1/2 no second frequency is as strong as the first.
PERIODIC = 0.5


def phase(test: float, corrupted: float) -> str:
    """The phase of a network, from its accuracies on test pairs and on wrong training labels."""
    if test >= GENERALISES:
        if corrupted >= MEMORISES:
            return "coexistence"
        return "full inversion" if corrupted <= FORGETS else "partial inversion"
    return "memorisation" if corrupted > 0.5 else "forgetting"


def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data; of several seeds the worst counts."""
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


def _worst(judge, name, source, statement, values, bound, control=False) -> Claim:
    """A claim about the worst of the seeds, with their range as its interval."""
    low, high = float(values.min()), float(values.max())
    measured = low if judge is at_least else high
    return judge(name, source, statement, measured, bound, interval=(low, high), control=control)


def _coexistence_claims(data: xr.Dataset) -> list[Claim]:
    plain, source = data.sel(regulariser="none"), f"{DOSHI}, abstract (i)"
    last, shuffled = plain.isel(time=-1), data.sel(regulariser=SHUFFLED).isel(time=-1)
    learnt = plain.test.isel(time=(plain.train >= 0.99).argmax("time"))
    rule = "test accuracy, without regularisation,"
    mixed, redrawn = f"{rule} despite wrong labels", f"{rule} when every label is redrawn"
    memory = "share of the wrong training labels that the same network has learnt"
    delay = "test accuracy when 99% of the training labels are learnt"
    return [
        _worst(at_least, "C1 generalises", source, mixed, last.test, 0.95),
        _worst(at_least, "C1 control, shuffled", source, redrawn, shuffled.test, 0.95, True),
        _worst(at_least, "C2 memorises", source, memory, last.corrupted, 0.85),
        _worst(at_most, "C3 delayed", f"{GROMOV}, Fig. 1", delay, learnt, 0.5),
    ]


def _pruning_claims(data: xr.Dataset) -> list[Claim]:
    plain, source = data.sel(regulariser="none"), f"{DOSHI}, abstract (ii)"
    half = plain.sel(share=0.5, method="nearest")
    low, random, high = (half.sel(order=order) for order in ("low", "random", "high"))
    rule = "test accuracy without half of the neurons:"
    memory = "share of the wrong labels still given without half of the neurons:"
    off = "distance of the training accuracy, without the least periodic half, from the right share"
    least, chance, most = "the least periodic", "a random half", "the most periodic"
    gap = abs(low.pruned_train - kept_share(data))
    kept = plain.pruned_test.where(plain.pruned_corrupted >= MEMORISES).min("share")
    alone = f"least test accuracy while {MEMORISES:.0%} of the wrong labels stay, pruning first"
    return [
        _worst(at_least, "P1 rule stays", source, f"{rule} {least}", low.pruned_test, 0.98),
        _worst(
            at_least,
            "P1 control, random",
            source,
            f"{rule} {chance}",
            random.pruned_test,
            0.98,
            True,
        ),
        _worst(
            at_least, "P1 control, reverse", source, f"{rule} {most}", high.pruned_test, 0.98, True
        ),
        _worst(at_most, "P2 memory goes", source, f"{memory} {least}", low.pruned_corrupted, 0.1),
        _worst(
            at_most,
            "P2 control, random",
            source,
            f"{memory} {chance}",
            random.pruned_corrupted,
            0.1,
            True,
        ),
        _worst(at_most, "P3 right share", source, off, gap, 0.03),
        _worst(at_most, "P4 memory alone", source, f"{alone} {most}", kept.sel(order="high"), 0.2),
        _worst(
            at_most,
            "P4 control, reverse",
            source,
            f"{alone} {least}",
            kept.sel(order="low"),
            0.2,
            True,
        ),
    ]


def _regularisation_claims(data: xr.Dataset) -> list[Claim]:
    last, stages = data.isel(time=-1), f"{DOSHI}, abstract"
    restored = "share of the wrongly labelled training pairs that are answered right"
    peak = "highest training accuracy on the way, wrong labels included"
    off = "distance of the last training accuracy from the share of right labels"
    periodic = "mean inverse participation ratio of all neurons"
    made = []
    for name in map(str, data.regulariser.values):
        if name == SHUFFLED:
            continue
        run, bare = last.sel(regulariser=name), name in ("none", "batch norm")
        if name != "batch norm":
            made.append(
                _worst(
                    at_least,
                    "R1 control, none" if bare else f"R1 unlearns, {name}",
                    f"{DOSHI}, abstract (iii)",
                    *(restored, run.restored, 0.95, bare),
                )
            )
        made.append(
            _worst(
                at_least,
                f"R2 control, {name}" if bare else f"R2 periodic, {name}",
                f"{DOSHI}, abstract (iv)",
                *(periodic, run.ipr, 0.6, bare),
            )
        )
        if bare:
            continue
        train = data.train.sel(regulariser=name)
        gap = abs(train.isel(time=-1) - kept_share(data))
        made.append(
            _worst(at_least, f"R3 first learns, {name}", stages, peak, train.max("time"), 0.95)
        )
        made.append(_worst(at_most, f"R3 then unlearns, {name}", stages, off, gap, 0.03))
    if "batch norm" in data.regulariser:
        normed = last.sel(regulariser="batch norm")
        follow = xr.corr(normed.neuron_gain, normed.neuron_ipr, "neuron")
        words = (
            "correlation over neurons of BatchNorm's |gain| with the inverse participation ratio"
        )
        made += [
            _worst(
                at_least,
                "R4 generalises, batch norm",
                f"{DOSHI}, abstract (iii)",
                *("test accuracy", normed.test, 0.95),
            ),
            _worst(
                at_least,
                "R5 gains, batch norm",
                f"{DOSHI}, abstract (iv)",
                *(words, follow, 0.7),
            ),
        ]
    return made


def phases(data: xr.Dataset) -> xr.DataArray:
    """The phase of every cell of the phase diagram, in words."""
    named = np.vectorize(phase, otypes=[object])
    return xr.apply_ufunc(named, data.phase_test, data.phase_corrupted)


def _phase_claims(data: xr.Dataset) -> list[Claim]:
    source = f"{DOSHI}, phase diagrams"
    every = (
        "number of phases met, of coexistence, partial and full inversion, memorisation, forgetting"
    )
    made = [at_least("D1 phases", source, every, len(set(phases(data).values.flat)), 5)]
    plain = data.phase_test.sel(phase_regulariser="none")
    falls = np.concatenate(
        [-plain.diff("fraction").values.ravel(), plain.diff("noise").values.ravel()]
    )
    made.append(
        at_most(
            "D2 order, none",
            source,
            "largest fall of the test accuracy from a cell to the next with more data or less noise",
            falls.max() if falls.size else np.nan,
            0.1,
        )
    )
    inverted = "share of the cells that generalise in which no wrong label is kept (full inversion)"
    reach = "number of cells that generalise, over that without regularisation"
    cells = int((plain >= GENERALISES).sum())
    for name in map(str, data.phase_regulariser.values):
        run, bare = data.sel(phase_regulariser=name), name == "none"
        generalises = run.phase_test >= GENERALISES
        if name == "batch norm" or not (bare or generalises.any()):
            continue
        full = (generalises & (run.phase_corrupted <= FORGETS)).sum() / max(generalises.sum(), 1)
        title = "D3 control, none" if bare else f"D3 inversion, {name}"
        made.append(at_least(title, source, inverted, float(full), 0.5, control=bare))
        if not bare:
            ratio = float(generalises.sum()) / max(cells, 1)
            made.append(at_least(f"D4 reach, {name}", source, reach, ratio, 1.0))
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
    random = "largest distance of the mean accuracy with random phases from the predicted one"
    wrong = "accuracy of the analytic solution"
    best = float(data.analytic_accuracy.isel(analytic_width=-1).min())
    off = abs(data.analytic_accuracy.mean("analytic_seed") - data.analytic_predicted)
    made = []
    for name in map(str, data.regulariser.values):
        periodic, others = _phase_mismatch(data.sel(regulariser=name))
        if (
            name == "none"
        ):  # its periodic neurons hold some of the wrong labels too: drawn, not judged
            words = f"{follow} {below}, no regularisation"
            made.append(_worst(at_least, "A1 control, none", source, words, others, 0.95, True))
        elif name not in (SHUFFLED, "batch norm"):
            words = f"{follow} {above}"
            made.append(_worst(at_least, f"A1 phases, {name}", source, words, periodic, 0.95))
    fails = float(data.wrong_phases_accuracy)
    unphased = f"{wrong} with the readout's phases drawn anew"
    return [
        *made,
        at_most("A2 exact", "derived", exact, float(data.exact_error), 1e-10),
        at_least("A3 solves", source, f"{wrong}, random phases, largest width", best, 0.99),
        at_least("A3 control", source, unphased, fails, 0.99, control=True),
        at_most("A4 predicted", "derived", random, float(off.max()), 0.05),
    ]


def _transformer_claims(data: xr.Dataset) -> list[Claim]:
    if "decay" not in data.coords:
        return []
    last, source = data.isel(transformer_time=-1), f"{DOSHI}, Transformers"
    made = []
    for decay in data.decay.values:
        run, control = last.sel(decay=decay), bool(decay == 0)
        name = "T1 control, no decay" if control else f"T1 generalises, decay {decay:g}"
        words = "test accuracy of the Transformer"
        made.append(_worst(at_least, name, source, words, run.transformer_test, 0.9, control))
    memory = "share of the wrong training labels that the same Transformer has learnt"
    made.append(_worst(at_least, "T2 memorises", source, memory, run.transformer_corrupted, 0.85))
    words = (
        "less the same when the most periodic go first, mean over the shares pruned and the seeds"
    )
    for quantity, what in (("test", "test accuracy"), ("corrupted", "share of wrong labels given")):
        curves = run[f"transformer_pruned_{quantity}"].isel(transformer_share=slice(1, -1))
        gap = curves.sel(transformer_order="low") - curves.sel(transformer_order="high")
        by_seed = gap.mean("transformer_share")
        made.append(
            at_least(
                "T3 the rule is periodic" if quantity == "test" else "T3 control, memory",
                source,
                f"{what}, when the least periodic neurons are pruned, {words}",
                float(by_seed.mean()),
                0.1,
                interval=(float(by_seed.min()), float(by_seed.max())),
                control=quantity != "test",
            )
        )
    return made
