"""What the study of random features claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

import functools

import numpy as np
import xarray as xr

from experiments.claims import Claim, at_least, at_most, listed, near, over_seeds
from experiments.judges import as_lost

SIMON = "Simon et al. 2024"
SNNK = "Sehanobish et al. 2024"


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    data = as_lost(data)
    return [
        *_theory_claims(data),
        *_more_claims(data),
        *_phase_claims(data),
        *_image_claims(data),
        *_layer_claims(data),
    ]


def _off(values: xr.DataArray, expected: xr.DataArray, seed: str) -> xr.DataArray:
    """Relative distance of the mean over seeds from what is expected."""
    return abs(values.mean(seed, skipna=False) / expected - 1)


def _theory_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    cases = (
        ("test", data.rf_test, data.theory_test, False),
        ("train", data.rf_train, data.theory_train, False),
        ("control, as many features as one likes", data.rf_test, data.kernel_test, True),
    )
    for name, values, expected, control in cases:
        off = _off(values, expected, "rf_seed")
        words = (
            "mean over trials against theory" if not control else "against the theory of the kernel"
        )
        made.append(
            at_most(
                f"3 {name}, largest",
                f"{SIMON}, Fig. 1",
                f"{'training' if name == 'train' else 'test'} error, {words}: largest relative distance",
                float(off.max()),
                0.08,
                control=control,
                reads=(values, expected),
            )
        )
        if not control:
            middle = "median relative distance over all numbers of features, of samples, and ridges"
            judge = functools.partial(
                at_most, f"3 {name}, median", f"{SIMON}, Fig. 1", f"{name} error: {middle}"
            )
            made.append(judge(float(off.median(skipna=False)), 0.025, reads=(values, expected)))
    usual = data.sel(rf_ridge=data.rf_ridge >= 0.01, sweep="features")
    for name, values in (
        ("cross-validation", usual.rf_estimated),
        ("control, training error", usual.rf_train),
    ):
        off = _off(values, usual.rf_test.mean("rf_seed", skipna=False), "rf_seed")
        made.append(
            at_most(
                f"10 {name}",
                SIMON,
                f"{name.removeprefix('control, ')} as an estimate of the test error, means over trials, any number "
                "of features, ridge 0.01 and more: largest relative distance",
                float(off.max()),
                0.3 if name.startswith("control") else 0.08,
                control=name.startswith("control"),
                reads=(values, usual.rf_test),
            )
        )
    first = data.isel(mode=slice(0, 20))
    off = abs(first.learnt.mean("learn_seed", skipna=False) - first.learnable)
    made.append(
        at_most(
            "9 learnability",
            "Simon et al. 2023",
            "share learnt of each of the first 20 modes, mean over training sets: largest distance from theory",
            float(off.max()),
            0.05,
            reads=(first.learnt, first.learnable),
        )
    )
    for name, total in (
        ("conservation", data.learnable),
        ("control, half of the modes", data.learnable[:, ::2]),
    ):
        made.append(
            at_most(
                f"9 {name}",
                "Simon et al. 2023",
                "sum of learnabilities less (samples - ridge / kappa), over samples: largest over ridges",
                float(
                    (abs(total.sum("mode", skipna=False) - data.conserved) / data.conserved).max()
                ),
                1e-8,
                control=name.startswith("control"),
                reads=(data.learnable, data.conserved),
            )
        )
    return made


def steps(values: xr.DataArray) -> xr.DataArray:
    """Fall of the mean over seeds from each count to the next in standard errors; the last: from first to last."""
    ends = [values.isel(count=slice(None, -1)), values.isel(count=slice(1, None))]
    total = [values.isel(count=[0]), values.isel(count=[-1])]
    found = []
    for a, b in (ends, total):
        fall = a.mean("rf_seed", skipna=False).values - b.mean("rf_seed", skipna=False).values
        spread = a.var("rf_seed", ddof=1).values + b.var("rf_seed", ddof=1).values
        found.append(fall / np.sqrt(spread / values.sizes["rf_seed"]))
    return xr.DataArray(np.concatenate(found), dims="count")


def _more_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    for sweep in ("features", "samples"):
        best = data.rf_best.sel(sweep=sweep).transpose("count", "rf_seed")
        fixed = data.rf_test.sel(sweep=sweep).isel(rf_ridge=0).transpose("count", "rf_seed")
        for name, values, control in (("", best, False), (", control, small ridge", fixed, True)):
            made.append(
                at_least(
                    f"4 more {sweep} never hurt{control * name}",
                    SIMON,
                    f"test error at the {'smallest' if control else 'best'} ridge: fall to the next number of {sweep} "
                    "in standard errors, smallest",
                    float(steps(values)[:-1].min()),
                    -2.0,
                    control=control,
                    reads=(values,),
                )
            )
        made.append(
            at_least(
                f"4 more {sweep} help",
                SIMON,
                f"test error at the best ridge: fall from fewest to most {sweep} in standard errors",
                float(steps(best)[-1]),
                5.0,
                reads=(best,),
            )
        )
    return made


def _phase_claims(data: xr.Dataset) -> list[Claim]:
    edge = data.alpha + data.alpha * (data.alpha - 1) * data.phase_noise
    off = abs(data.ratio - data.ratio_predicted).where(data.beta >= 1.5, 0)
    made = [
        at_most(
            "6 fitting ratio",
            f"{SIMON} (formula derived)",
            "training over test error at the best ridge, beta >= 1.5: largest distance from the formula",
            float(off.max()),
            0.006,
            reads=(data.ratio, data.ratio_predicted),
        )
    ]
    for name, boundary in (("", edge), (", control, noise left out", data.alpha + 0 * edge)):
        clear = abs(data.beta - edge) > 0.1
        wrong = ((data.ratio == 0) != (data.beta >= boundary)) & clear
        made.append(
            at_most(
                f"6 obligatory overfitting{name}",
                SIMON,
                f"points of the phase diagram where no ridge is best and beta < {'alpha' if name else 'the boundary'}, "
                "or the other way round",
                float(wrong.sum()),
                0.0,
                control=bool(name),
                reads=(data.ratio,),
            )
        )
    hard = data.ratio.sel(phase_noise=0, alpha=2).min("beta")
    some = data.ratio.sel(phase_noise=0, alpha=2).isel(beta=0)
    made.append(
        at_most(
            "6 control, a hard target",
            SIMON,
            f"the ratio without noise at alpha = 2, beta = {float(data.beta[0]):g}",
            float(some + 0 * hard),
            0.0,
            control=True,
            reads=(some,),
        )
    )
    return made


def _image_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    kept = data.sel(image_count=data.image_count <= 200)
    plain = kept.sel(image_noise=0.0)
    noisy = kept.isel(image_noise=-1)
    cases = (
        ("", plain, "image_predicted"),
        (", noisy labels", noisy, "image_predicted"),
        (", control, permuted targets", plain, "image_permuted"),
        (", control, linear kernel", plain, "image_linear"),
    )
    for name, part, expected in cases:
        off = _off(part.image_test, part[expected], "image_seed")
        made.append(
            at_most(
                f"7 learning curve{name}",
                SIMON,
                "test error on held-out images, up to 200 of them, four ridges: largest relative distance from the "
                "prediction",
                float(off.max()),
                0.08,
                control="control" in name,
                reads=(part.image_test, part[expected]),
            )
        )
    count = int(data.image_count.values[data.image_count.values <= 200][-1])
    for name, noise in (
        ("", data.image_noise[0]),
        (", control, noisy labels", data.image_noise[-1]),
    ):
        risks = data.image_test.sel(image_count=count, image_noise=noise)
        judge = functools.partial(
            at_least,
            f"8 interpolation is best{name}",
            SIMON,
            f"{count} images: test error at ridge 0.2 over that at none, mean of the seeds",
            bound=1.05,
            control=bool(name),
        )
        made.append(
            over_seeds(judge, risks.sel(image_ridge=0.2) / risks.sel(image_ridge=0.0), "mean")
        )
    return made


def slopes(data: xr.Dataset) -> dict[str, float]:
    """Slope of the relative RMS error, median of the seeds, against the number of features, for each bundle."""
    rms = data.layer_error.median("bundle_seed", skipna=False).transpose("bundle", "layer_features")
    x = np.log(data.layer_features.values)
    return {
        str(b): float(np.polyfit(x, np.log(row), 1)[0])
        for b, row in zip(data.bundle.values, rms.values)
    }


def _layer_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    sizes = {"sin": False, "cos": False, "relu": True, "arc-cosine": False}
    for function, control in sizes.items():
        bias = data.bias.sel(function=function)
        made.append(
            at_most(
                f"S1 unbiased, {function}{', control' * control}",
                SNNK,
                f"mean over draws of {'ReLU features, from relu(x . w)' if control else 'features'}: largest distance "
                "over the norms, in standard errors",
                float(bias.min() if control else bias.max()),
                4.0,
                control=control,
                reads=(bias,),
            )
        )
    low = data.variance.sel(function=["sin", "cos"], norm=data.norm <= 0.6)
    made.append(
        at_most(
            "S2 variance",
            f"{SNNK} (formula derived)",
            "variance over draws, norms up to 0.6: largest relative distance from the exact one",
            float(abs(low - 1).max()),
            0.15,
            reads=(low,),
        )
    )
    for bundle, slope in slopes(data).items():
        made.append(
            near(
                f"S3 rate, {bundle}",
                SNNK,
                "slope of the relative RMS error against features, median of the seeds (the tails are heavy)",
                slope,
                -0.5,
                0.1,
                reads=(data.layer_error,),
            )
        )
    share = data.accuracy.sel(layer_features=256)
    for stage, control in (("two layers", False), ("linear", True)):
        judge = functools.partial(
            at_least,
            f"S4 least squares, {stage}",
            SNNK,
            f"test accuracy of least squares on {'the pixels' if control else 'bundled features of two layers'}, "
            "256 features, worst seed",
            bound=0.97,
            control=control,
        )
        made.append(over_seeds(judge, share.sel(stage=stage)))
    return made
