"""What the study of lazy and rich grokking claims: criteria G1-G9, fixed before the run, and their controls."""

# One file: the criteria share the times and delays that they are read from.

from __future__ import annotations

import functools

import numpy as np
import xarray as xr

from experiments.claims import Claim, Precondition, absent, at_least, at_most, listed, over_seeds
from experiments.judges import as_lost
from experiments.studies.grokking_theory_claims import KUMAR, theory_claims

GROKS = 4.0  # a network groks if its test loss takes this many times as many steps to fall as its training loss
NEVER = "inf: not within the steps of the run"  # what a time that `crossing` or `digits_times` gives as inf stands for


def crossing(steps: np.ndarray, loss: np.ndarray, fraction: float) -> float:
    """The step at which a recorded loss first falls to a fraction of its start; inf if it does not, nan if it diverged.

    Between two records the loss is taken for a power of the step.
    """
    if not np.isfinite(loss).all():
        return np.nan
    low = np.flatnonzero(loss <= fraction * loss[0])
    if not len(low):
        return np.inf
    k = int(low[0])
    if k < 2:  # before step 1 a power law means nothing
        return float(steps[k])
    (t0, t1), (l0, l1) = np.log(steps[k - 1 : k + 1]), np.log(loss[k - 1 : k + 1])
    return float(np.exp(t0 + (t1 - t0) * (np.log(fraction * loss[0]) - l0) / (l1 - l0)))


def times(data: xr.Dataset) -> xr.Dataset:
    """Steps at which the losses of the sweep over alpha fall below the threshold: train and test, (seed, alpha)."""
    steps = data.sweep_step.values
    found = {
        key: xr.apply_ufunc(
            lambda loss: crossing(steps, loss, data.attrs["threshold"]),
            data[key].astype(float),
            input_core_dims=[["sweep_step"]],
            vectorize=True,
        )
        for key in ("train", "test")
    }
    return xr.Dataset(found)


def at_time(curve: xr.DataArray, time: xr.DataArray) -> xr.DataArray:
    """A curve of the sweep at a time for each seed and alpha; the last value where the time is infinite or nan."""
    last = curve.sweep_step.values[-1]
    return curve.sel(sweep_step=time.fillna(last).clip(max=last), method="nearest")


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    data = as_lost(data, lambda name: name.endswith("_time"))
    return [
        *_alpha_claims(data),
        *_feature_claims(data),
        _decayed_claim(data),
        *_alignment_claims(data),
        *_example_claims(data),
        *theory_claims(data),
        *_digits_claims(data),
    ]


ALPHAS = [0.25, 1.0, 4.0]  # rich to nearly lazy; all of them grok


def alphas(data: xr.Dataset) -> list[float]:
    """The measured alphas next to `ALPHAS`."""
    measured = data.alpha.values
    return sorted({float(measured[np.abs(np.log(measured / a)).argmin()]) for a in ALPHAS})


def _median(make, name, place, statement, values, bound, **rest) -> Claim:
    """A claim about the median over seeds."""
    claim = functools.partial(make, name, f"{KUMAR}, {place}", statement, bound=bound)
    return over_seeds(claim, values, "median", **rest)


def _medians(values: xr.DataArray, dim: str = "seed") -> np.ndarray:
    """Medians over the seeds; nan where one is nan."""
    return values.median(dim, skipna=False).values


def _fitted(times: xr.DataArray, share: float) -> Precondition:
    """That every training loss falls below the threshold within the steps."""
    never = int((~np.isfinite(times)).sum())
    found = f"{never} of {times.size} training losses never fall to {share:g} of their first value"
    return Precondition("fitted", not never, found)


def _alpha_claims(data: xr.Dataset) -> list[Claim]:
    found, chosen = times(data), alphas(data)
    ratio = (found.test / found.train).sel(alpha=chosen)
    typical = _medians(ratio)
    growth = (typical[1:] / typical[:-1]).min() if len(chosen) > 1 else np.nan
    last = (data.test.isel(sweep_step=-1) / data.test.isel(sweep_step=0)).isel(alpha=-1)
    laziest, high, low = f"alpha = {data.alpha.values[-1]:g}", chosen[-1], chosen[0]
    share = data.attrs["threshold"]
    lazy = data.regression_loss / data.test.isel(sweep_step=0, alpha=0)
    fitted = at_time(data.test, found.train).sel(alpha=high) / data.regression_loss
    final = data.test.isel(sweep_step=-1).sel(alpha=chosen) / data.regression_loss
    trained = (_fitted(found.train.sel(alpha=chosen), share),)
    curves = data.train.sel(alpha=chosen), data.test.sel(alpha=chosen), data.regression_loss
    return [
        at_least(
            "G1 delay grows with alpha",
            f"{KUMAR}, Fig. 3a",
            f"test over training time (median over seeds): smallest growth between alphas {chosen}",
            growth,
            1.0,
            reads=curves[:2],
            preconditions=trained if len(chosen) > 1 else (absent("second alpha"),),
        ),
        _median(
            at_least,
            f"G1 delay, alpha {high:g} over {low:g}",
            "Fig. 3a",
            f"test over training time at alpha = {high:g}, over the same at alpha = {low:g}",
            ratio[:, -1] / ratio[:, 0],
            2.0,
            reads=curves[:2],
            infinite=NEVER,
            preconditions=trained,
        ),
        _median(
            at_least,
            "G2 first a kernel machine",
            "Sec. 3",
            f"test loss when the training loss has fallen, over kernel regression's, alpha = {high:g}",
            fitted,
            0.5,
            reads=curves,
            preconditions=trained,
        ),
        _median(
            at_most,
            "G2 then better than its kernel",
            "Sec. 3",
            f"final test loss over kernel regression's with the initial kernel, largest over alphas {chosen}",
            final.max("alpha", skipna=False),
            0.25,
            reads=curves[1:],
            preconditions=trained,
        ),
        _median(
            at_most,
            "G3 control, lazy network",
            "Fig. 3a",
            f"final over first test loss at {laziest}",
            last,
            share,
            control=True,
            reads=(data.test.isel(alpha=-1), data.train.isel(alpha=-1)),
            preconditions=(_fitted(found.train.isel(alpha=-1), share),),
        ),
        _median(
            at_most,
            "G3 control, linearised network",
            "Sec. 3",
            "kernel regression's test loss over the first one",
            lazy,
            share,
            control=True,
        ),
    ]


def _feature_claims(data: xr.Dataset) -> list[Claim]:
    """The kernel moves while the network memorises, too, so that the first claim fails; it turns late."""
    found, chosen = times(data), alphas(data)
    moved = at_time(data.movement, found.train) / at_time(data.movement, found.test)
    grown = at_time(data.norm, found.test) / data.norm.isel(sweep_step=0)
    first = data.cka.isel(sweep_step=0)
    aligned = (data.cka.isel(sweep_step=-1) / first).sel(alpha=chosen)
    turned = (at_time(data.cka, found.train) - first) / (at_time(data.cka, found.test) - first)
    smallest = grown.sel(alpha=chosen).min("alpha", skipna=False)
    high, share = chosen[-1], data.attrs["threshold"]
    laziest = {"alpha": high}
    curves = (data.train.sel(alpha=chosen), data.test.sel(alpha=chosen))
    late = {
        "reads": (*(curve.sel(laziest) for curve in curves), data.movement.sel(laziest)),
        "preconditions": (_fitted(found.train.sel(laziest), share),),
    }
    turning = late | {"reads": (*late["reads"][:2], data.cka.sel(laziest))}
    return [
        _median(
            at_most,
            "G4 features come late",
            "Sec. 3",
            "movement of the tangent kernel when the training loss has fallen, over that when the test loss has, "
            f"or at the end, alpha = {high:g}",
            moved.sel(laziest),
            0.5,
            **late,
        ),
        _median(
            at_most,
            "G4 alignment comes late",
            "Sec. 3",
            "gain in alignment (CKA) with the target when the training loss has fallen, over that when the test loss "
            f"has, or at the end, alpha = {high:g}",
            turned.sel(laziest),
            0.5,
            **turning,
        ),
        _median(
            at_least,
            "G4 kernel aligns",
            "Fig. 3",
            f"final over first alignment (CKA) of the kernel with the target, smallest over alphas {chosen}",
            aligned.min("alpha", skipna=False),
            2.0,
        ),
        _median(
            at_least,
            "G5 no weight decay needed",
            "Sec. 4",
            f"norm of the weights at generalisation, or at the end, over the first one, smallest over alphas {chosen}",
            smallest,
            1.2,
            reads=(*curves, data.norm.sel(alpha=chosen)),
        ),
    ]


def _decayed_claim(data: xr.Dataset) -> Claim:
    """G5 where it must not hold: the network on images is trained with weight decay."""
    decayed = data.isel(digits_alpha=-1)
    when = digits_times(decayed).test
    last = float(decayed.digits_step[-1])
    norm = decayed.digits_norm.sel(digits_step=when.clip(max=last), method="nearest")
    return _median(
        at_least,
        "G5 control, weight decay",
        "Sec. 4",
        "the same ratio of the network on images, which is trained with weight decay",
        norm / decayed.digits_norm.isel(digits_step=0),
        1.2,
        control=True,
        reads=(decayed.digits_test_accuracy, decayed.digits_norm),
    )


def _alignment_claims(data: xr.Dataset) -> list[Claim]:
    delay = _medians(data.epsilon_test_time - data.epsilon_train_time)
    cka = _medians(data.epsilon_cka)
    several = () if len(delay) > 1 else (absent("second epsilon"),)
    ratio = data.aligned_test_time / data.aligned_train_time
    wait = _medians(data.aligned_test_time - data.aligned_train_time)
    strongest = f"{data.strength.values[-1]:g}"
    times = data.aligned_test_time, data.aligned_train_time
    return [
        at_most(
            "G6 delay falls with epsilon",
            f"{KUMAR}, Fig. 3b",
            "steps between training and test time (median over seeds): largest ratio to the next smaller epsilon",
            np.nan if several else (delay[1:] / delay[:-1]).max(),
            1.0,
            reads=(data.epsilon_test_time, data.epsilon_train_time),
            infinite=NEVER,
            preconditions=several,
        ),
        at_least(
            "G6 alignment rises with epsilon",
            f"{KUMAR}, Fig. 3b",
            "initial alignment of the kernel (median over seeds): smallest ratio to the next smaller epsilon",
            np.nan if several else (cka[1:] / cka[:-1]).min(),
            1.0,
            reads=(data.epsilon_cka,),
            preconditions=several,
        ),
        _median(
            at_least,
            "G6 misaligned features grok",
            "Sec. 3",
            "test over training time of plain Gaussian weights",
            ratio.isel(strength=0),
            GROKS,
            reads=[time.isel(strength=0) for time in times],
            infinite=NEVER,
        ),
        _median(
            at_least,
            "G6 control, aligned features",
            "Sec. 3",
            f"the same with weights spread {strongest} times wider along the target's direction",
            ratio.isel(strength=-1),
            GROKS,
            control=True,
            reads=[time.isel(strength=-1) for time in times],
            infinite=NEVER,
        ),
        at_most(
            "G6 alignment ends the delay",
            f"{KUMAR}, Sec. 3",
            "steps between training and test time with these weights over those with plain ones",
            float(wait[-1] / wait[0]),
            0.1,
            reads=[time.isel(strength=[0, -1]) for time in times],
            infinite=NEVER,
        ),
    ]


def _example_claims(data: xr.Dataset) -> list[Claim]:
    middle = data.attrs["num_train"]
    missing = () if middle in data.num_train else (absent(f"network of {middle} examples"),)
    few, many = data.num_train.values[[0, -1]]
    every = data.reindex(num_train=sorted({*data.num_train.values.tolist(), middle}))
    ratio = every.examples_test_time / every.examples_train_time
    times = every.examples_test_time, every.examples_train_time
    fitted = _fitted(data.examples_train_time.isel(num_train=0), data.attrs["threshold"])
    fewer, more = (
        Precondition(f"{word} examples", different, f"the {which} training set has {middle}, too")
        for word, which, different in (
            ("fewer", "smallest", few < middle),
            ("more", "largest", many > middle),
        )
    )
    return [
        _median(
            at_least,
            f"G7 groks, P = {middle}",
            "Sec. 3, Goldilocks zone",
            "test over training time with a number of examples between D and D^2",
            ratio.sel(num_train=middle),
            GROKS,
            reads=[time.sel(num_train=middle) for time in times],
            infinite=NEVER,
            preconditions=missing,
        ),
        _median(
            at_most,
            f"G7 control, too few, P = {few}",
            "Sec. 3, Goldilocks zone",
            "final over first test loss",
            data.examples_final.isel(num_train=0),
            data.attrs["threshold"],
            control=True,
            reads=(data.examples_final.isel(num_train=0),),
            preconditions=(fitted, fewer),
        ),
        _median(
            at_least,
            f"G7 control, so many, P = {many}",
            "Sec. 3, Goldilocks zone",
            "test over training time with about D^2 / 2 examples, as many as quadratic features",
            ratio.sel(num_train=many),
            GROKS,
            control=True,
            reads=[time.sel(num_train=many) for time in times],
            infinite=NEVER,
            preconditions=(more,),
        ),
    ]


# Accuracies on images that count as learnt and as generalised.
DIGITS = {"train": 0.95, "test": 0.85}


def digits_times(data: xr.Dataset) -> xr.Dataset:
    """First steps with a training accuracy of 0.95 and a test accuracy of 0.85; inf where it is not reached."""
    reached = {key: data[f"digits_{key}_accuracy"] >= bound for key, bound in DIGITS.items()}
    first = {
        key: data.digits_step[hit.argmax("digits_step")].drop_vars("digits_step")
        for key, hit in reached.items()
    }
    return xr.Dataset(
        {key: first[key].where(hit.any("digits_step"), np.inf) for key, hit in reached.items()}
    )


def _digits_claims(data: xr.Dataset) -> list[Claim]:
    found = digits_times(data)
    ratio = found.test / found.train
    ratio = ratio.fillna(np.inf)  # neither is reached, which the preconditions say
    made = []
    for name, place in (("digits, large output", -1), ("control, digits, small output", 0)):
        run, reached = data.isel(digits_alpha=place), found.isel(digits_alpha=place)
        words = (
            f"steps to a test accuracy of {DIGITS['test']} over steps to a training accuracy of {DIGITS['train']}, "
            f"alpha = {data.digits_alpha.values[place]:g}"
        )
        made.append(
            _median(
                at_least,
                f"G9 {name}",
                "Fig. 5",
                words,
                ratio.isel(digits_alpha=place),
                1.5,
                control=place == 0,
                reads=(run.digits_train_accuracy, run.digits_test_accuracy),
                infinite=NEVER,
                preconditions=[_reached(run, key, reached[key]) for key in DIGITS],
            )
        )
    return made


def _reached(run: xr.Dataset, key: str, times: xr.DataArray) -> Precondition:
    """That an accuracy on images comes to its threshold within the steps, for every seed."""
    best = run[f"digits_{key}_accuracy"].max("digits_step")
    never = int(np.isinf(times).sum())
    found = f"{never} of {times.size} seeds stay below a {key} accuracy of {DIGITS[key]}: {float(best.min()):.3g}"
    return Precondition({"train": "fitted", "test": "generalisation"}[key], not never, found)
