"""What the study of feature-learning limits claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

import numpy as np
import xarray as xr

from experiments.claims import Claim, at_least, at_most, near

YANG, PI = "Yang & Hu 2021", "Yang, Santacroce, Hu 2022"
LEARNS, KERNEL, UNKNOWN = "feature learning", "kernel", "diverged"


def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    return [
        *_dichotomy_claims(data),
        *_convergence_claims(data),
        *_word_claims(data),
        *_few_shot_claims(data),
    ]


def measured_regimes(data: xr.Dataset) -> list[str]:
    """Feature learning where some hidden layer moves by more than n^-0.1, a kernel where all move by less."""
    moves = data.exponent.sel(quantity=data.layer.values).max("quantity", skipna=False)
    return [UNKNOWN if np.isnan(m) else LEARNS if m > -0.1 else KERNEL for m in moves.values]


def _dichotomy_claims(data: xr.Dataset) -> list[Claim]:
    layers = data.layer.values
    off = abs(data.exponent.sel(quantity=layers).values - data.predicted.values)
    kinds = [str(kind) for kind in data.regime.values]
    wrong = sum(kind != found for kind, found in zip(kinds, measured_regimes(data)))
    swapped = sum(found != KERNEL for found in measured_regimes(data))
    lazy = np.array([kind == KERNEL for kind in kinds])
    slopes = data.exponent.sel(quantity="kernel_distance").values
    return [
        at_most(
            "D1 exponents",
            f"{YANG}, dynamical dichotomy",
            "exponent in width of the change of the hidden layers: largest distance from the prediction",
            off.max(),
            0.15,
        ),
        at_most(
            "D2 dichotomy",
            f"{YANG}, dynamical dichotomy",
            "rules whose measured regime (some hidden layer moves, exponent > -0.1) is not the predicted one",
            wrong,
            0,
        ),
        at_most(
            "D2 control, all kernels",
            f"{YANG}, dynamical dichotomy",
            "the same, if every rule were predicted to be a kernel machine",
            swapped,
            0,
            control=True,
        ),
        at_most(
            "D3 kernel machines",
            f"{YANG}, kernel limits",
            "distance from the network's own linearisation falls as n^-r at least: largest exponent + r, kernel rules",
            (slopes + data.r.values)[lazy].max(initial=-np.inf),
            0.1,
        ),
        at_most(
            "D3 control, feature learning",
            f"{YANG}, kernel limits",
            "exponent of that distance for the rules that learn features, the largest, against n^-1/4",
            slopes[~lazy].max(initial=-np.inf),
            -0.25,
            control=True,
        ),
    ]


def _convergence_claims(data: xr.Dataset) -> list[Claim]:
    systems = {name: data.sel(system=name) for name in data.system.values}
    measured = {
        name: (float(line.slope), line.slope_interval.values) for name, line in systems.items()
    }
    measured["pi-net"] = (float(data.pi_slope), data.pi_slope_interval.values)
    measured["Word2Vec"] = (float(data.gram_slope), data.gram_slope_interval.values)
    what = {
        "pi-net": "test outputs, two hidden ReLU layers",
        "Word2Vec": "inner products of all words",
    }
    return [
        near(
            f"L {'control, ' * control}{name}",
            f"{PI}, the limit" if name == "pi-net" else f"{YANG}, explicit limits",
            f"distance of trained finite networks from the limit, exponent in width"
            f" ({what.get(name, 'test outputs, one hidden layer')})",
            slope,
            -0.5,
            0.1,
            interval=tuple(interval),
            control=control,
        )
        for name, (slope, interval) in measured.items()
        for control in (name == "linear, ntk",)
    ]


def _word_claims(data: xr.Dataset) -> list[Claim]:
    chance = 1 / (int(data.vocabulary) - 3)
    limit, widest = data.sel(word_width=0), data.isel(word_width=-2)
    narrow = data.isel(word_width=0)
    source = f"{YANG}, Word2Vec"
    made = []
    for control in (False, True):
        rank = float(data.kernel_rank if control else limit.word_rank.mean())
        right = float(data.kernel_analogy if control else limit.analogy.mean())
        name = "control, kernel limit" if control else "limit"
        ranks, shares = (
            (None, None) if control else map(_range, (limit.word_rank, limit.analogy / chance))
        )
        made += [
            at_most(
                f"W1 similarity, {name}",
                source,
                "share of the vocabulary nearer to a word than its plural or past tense; chance 0.5",
                rank,
                0.15,
                interval=ranks,
                control=control,
            ),
            at_least(
                f"W2 analogies, {name}",
                source,
                f"right answers to b - a + c over those of chance ({chance:.2g})",
                right / chance,
                10,
                interval=shares,
                control=control,
            ),
        ]
    gap = widest.analogy - limit.analogy
    lost = limit.analogy - narrow.analogy
    made += [
        near(
            "W3 the widest is there",
            source,
            f"analogies at width {int(widest.word_width)} minus those of the limit, mean over seeds",
            float(gap.mean()),
            0,
            0.01,
            interval=_range(gap),
        ),
        at_least(
            "W4 wider is better",
            source,
            f"analogies of the limit minus those at width {int(narrow.word_width)}, the worst seed",
            float(lost.min()),
            0.01,
        ),
    ]
    return made


def _range(values: xr.DataArray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _few_shot_claims(data: xr.Dataset) -> list[Claim]:
    made, source = [], f"{YANG}, MAML"
    for background in data.background.values:
        line = data.sel(background=background)
        where = "lit digits" if background else "plain digits"
        limit, kernel = line.few_accuracy.sel(few_width=0), line.few_kernel
        gain = limit - kernel.sel(trained=1).max("kernel_rate")
        learned = (kernel.sel(trained=1) - kernel.sel(trained=0)).max("kernel_rate")
        gap = line.few_accuracy.isel(few_width=-2) - limit
        made += [
            at_least(
                f"M1 features help, {where}",
                source,
                "accuracy of the limit minus that of the best kernel limit, on digits not trained on, mean over seeds",
                float(gain.mean()),
                0.05,
                interval=_range(gain),
            ),
            at_least(
                f"M1 control, kernel, {where}",
                source,
                "what meta-training adds to the accuracy of the kernel limit, the best rate",
                float(learned.mean()),
                0.05,
                interval=_range(learned),
                control=True,
            ),
            near(
                f"M2 the widest is there, {where}",
                source,
                f"accuracy at width {int(data.few_width[-2])} minus that of the limit, mean over seeds",
                float(gap.mean()),
                0,
                0.02,
                interval=_range(gap),
            ),
        ]
    return made
