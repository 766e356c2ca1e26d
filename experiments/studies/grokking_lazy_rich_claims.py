"""What the study of lazy and rich grokking claims: criteria G1-G9, fixed before the run, and their controls."""

from __future__ import annotations

import numpy as np
import xarray as xr

from experiments.claims import Claim, at_least, at_most, near

KUMAR = "Kumar et al. 2024"
GROKS = 4.0  # a network groks if its test loss takes this many times as many steps to fall as its training loss


def crossing(steps: np.ndarray, loss: np.ndarray, fraction: float) -> float:
    """The step at which a recorded loss first falls to a fraction of its start; inf if it does not.

    Between two records the loss is taken for a power of the step.
    """
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
    """A curve of the sweep at a time for each seed and alpha; the last value where the time is infinite."""
    return curve.sel(sweep_step=time.clip(max=curve.sweep_step.values[-1]), method="nearest")


def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    return [
        *_alpha_claims(data),
        *_feature_claims(data),
        *_alignment_claims(data),
        *_example_claims(data),
        *_theory_claims(data),
        *_digits_claims(data),
    ]


ALPHAS = [0.25, 1.0, 4.0]  # rich to nearly lazy; all of them grok


def _seeds(make, name, place, statement, values, bound, **rest) -> Claim:
    """A claim about the median over seeds, with their range as its interval."""
    values = np.asarray(values, float)
    span = (values.min(), values.max())
    return make(
        name, f"{KUMAR}, {place}", statement, np.median(values), bound, interval=span, **rest
    )


def _alpha_claims(data: xr.Dataset) -> list[Claim]:
    found = times(data)
    ratio = (found.test / found.train).sel(alpha=ALPHAS)
    typical = ratio.median("seed").values
    last = (data.test.isel(sweep_step=-1) / data.test.isel(sweep_step=0)).isel(alpha=-1)
    laziest = f"alpha = {data.alpha.values[-1]:g}"
    share = data.attrs["threshold"]
    lazy = data.regression_loss / data.test.isel(sweep_step=0, alpha=0)
    fitted = at_time(data.test, found.train).sel(alpha=ALPHAS[-1]) / data.regression_loss
    final = data.test.isel(sweep_step=-1).sel(alpha=ALPHAS) / data.regression_loss
    return [
        at_least(
            "G1 delay grows with alpha",
            f"{KUMAR}, Fig. 3a",
            f"test over training time (median over seeds): smallest growth between alphas {ALPHAS}",
            (typical[1:] / typical[:-1]).min(),
            1.0,
        ),
        _seeds(
            at_least,
            "G1 delay, alpha 4 over 0.25",
            "Fig. 3a",
            "test over training time at alpha = 4, over the same at alpha = 0.25",
            ratio[:, -1] / ratio[:, 0],
            2.0,
        ),
        _seeds(
            at_least,
            "G2 first a kernel machine",
            "Sec. 3",
            "test loss when the training loss has fallen, over kernel regression's, alpha = 4",
            fitted,
            0.5,
        ),
        _seeds(
            at_most,
            "G2 then better than its kernel",
            "Sec. 3",
            f"final test loss over kernel regression's with the initial kernel, largest over alphas {ALPHAS}",
            final.max("alpha"),
            0.25,
        ),
        _seeds(
            at_most,
            "G3 control, lazy network",
            "Fig. 3a",
            f"final over first test loss at {laziest}",
            last,
            share,
            control=True,
        ),
        _seeds(
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
    found = times(data)
    moved = at_time(data.movement, found.train) / at_time(data.movement, found.test)
    grown = at_time(data.norm, found.test) / data.norm.isel(sweep_step=0)
    first = data.cka.isel(sweep_step=0)
    aligned = (data.cka.isel(sweep_step=-1) / first).sel(alpha=ALPHAS)
    turned = (at_time(data.cka, found.train) - first) / (at_time(data.cka, found.test) - first)
    smallest = grown.sel(alpha=ALPHAS).min("alpha")
    return [
        _seeds(
            at_most,
            "G4 features come late",
            "Sec. 3",
            "movement of the tangent kernel when the training loss has fallen, over that when the test loss has, "
            "alpha = 4",
            moved.sel(alpha=ALPHAS[-1]),
            0.5,
        ),
        _seeds(
            at_most,
            "G4 alignment comes late",
            "Sec. 3",
            "gain in alignment (CKA) with the target when the training loss has fallen, over that when the test loss "
            "has, alpha = 4",
            turned.sel(alpha=ALPHAS[-1]),
            0.5,
        ),
        _seeds(
            at_least,
            "G4 kernel aligns",
            "Fig. 3",
            f"final over first alignment (CKA) of the kernel with the target, smallest over alphas {ALPHAS}",
            aligned.min("alpha"),
            2.0,
        ),
        _seeds(
            at_least,
            "G5 no weight decay needed",
            "Sec. 4",
            f"norm of the weights at generalisation over the first one, smallest over alphas {ALPHAS}",
            smallest,
            1.2,
        ),
        _seeds(
            at_most,
            "G5 control, falling weight norm",
            "Sec. 4",
            "the same number, if a falling norm explained it",
            smallest,
            1.0,
            control=True,
        ),
    ]


def _alignment_claims(data: xr.Dataset) -> list[Claim]:
    delay = (data.epsilon_test_time - data.epsilon_train_time).median("seed").values
    cka = data.epsilon_cka.median("seed").values
    ratio = data.aligned_test_time / data.aligned_train_time
    wait = (data.aligned_test_time - data.aligned_train_time).median("seed")
    strongest = f"{data.strength.values[-1]:g}"
    return [
        at_most(
            "G6 delay falls with epsilon",
            f"{KUMAR}, Fig. 3b",
            "steps between training and test time (median over seeds): largest ratio to the next smaller epsilon",
            (delay[1:] / delay[:-1]).max(),
            1.0,
        ),
        at_least(
            "G6 alignment rises with epsilon",
            f"{KUMAR}, Fig. 3b",
            "initial alignment of the kernel (median over seeds): smallest ratio to the next smaller epsilon",
            (cka[1:] / cka[:-1]).min(),
            1.0,
        ),
        _seeds(
            at_least,
            "G6 misaligned features grok",
            "Sec. 3",
            "test over training time of plain Gaussian weights, alpha = 4",
            ratio.isel(strength=0),
            GROKS,
        ),
        _seeds(
            at_least,
            "G6 control, aligned features",
            "Sec. 3",
            f"the same with weights spread {strongest} times wider along the target's direction",
            ratio.isel(strength=-1),
            GROKS,
            control=True,
        ),
        at_most(
            "G6 alignment ends the delay",
            f"{KUMAR}, Sec. 3",
            "steps between training and test time with these weights over those with plain ones",
            float(wait[-1] / wait[0]),
            0.1,
        ),
    ]


def _example_claims(data: xr.Dataset) -> list[Claim]:
    ratio = data.examples_test_time / data.examples_train_time
    few, many = data.num_train.values[[0, -1]]
    middle = data.attrs["num_train"]
    return [
        _seeds(
            at_least,
            f"G7 groks, P = {middle}",
            "Sec. 3, Goldilocks zone",
            "test over training time with a number of examples between D and D^2",
            ratio.sel(num_train=middle),
            GROKS,
        ),
        _seeds(
            at_most,
            f"G7 control, too few, P = {few}",
            "Sec. 3, Goldilocks zone",
            "final over first test loss",
            data.examples_final.isel(num_train=0),
            data.attrs["threshold"],
            control=True,
        ),
        _seeds(
            at_least,
            f"G7 control, so many, P = {many}",
            "Sec. 3, Goldilocks zone",
            "test over training time with about D^2 / 2 examples, as many as quadratic features",
            ratio.isel(num_train=-1),
            GROKS,
            control=True,
        ),
    ]


def _theory_claims(data: xr.Dataset) -> list[Claim]:
    off = abs(np.log(data.network_loss / data.closed_loss)).sel(data="test")
    law = data.width_law
    made = [
        at_most(
            "G8 closed dynamics are exact",
            "limits.mean_field",
            f"largest relative difference of the test loss of {data.attrs['network_width']} neurons under gradient "
            "descent from the closed dynamics of its moments, over training, alphas and seeds",
            float(np.expm1(off.sel(batch_size=0).max())),
            0.01,
        ),
        near(
            "G8 infinite width",
            "limits.mean_field",
            "exponent in width of the distance of the outputs from those at infinite width",
            float(law.sel(law="exponent")),
            -0.5,
            0.15,
            interval=(float(law.sel(law="low")), float(law.sel(law="high"))),
        ),
    ]
    highest = data.dmft_network.isel(dim=-1).mean("seed")
    made.append(
        at_most(
            f"G8 infinite dimension, D = {data.dim.values[-1]}",
            "limits.dmft",
            "mean over training of the relative difference of the test loss (mean over seeds) from dynamical "
            "mean-field theory",
            float(abs(highest / data.dmft_theory - 1).sel(data="test").mean()),
            0.1,
        )
    )
    for batch_size in data.batch_size.values[1:]:
        made.append(
            at_most(
                f"G8 minibatches of {batch_size}",
                f"{KUMAR}, Fig. 1",
                "the same relative difference under stochastic gradient descent, mean over training, alphas and seeds",
                float(np.expm1(off.sel(batch_size=batch_size).mean())),
                0.1,
            )
        )
    return made


def digits_times(data: xr.Dataset) -> xr.Dataset:
    """First steps with a training accuracy of 0.95 and a test accuracy of 0.85; inf where it is not reached."""
    bounds = {"train": 0.95, "test": 0.85}
    reached = {key: data[f"digits_{key}_accuracy"] >= bound for key, bound in bounds.items()}
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
    large, small = ratio.digits_alpha.values[-1], ratio.digits_alpha.values[0]
    return [
        _seeds(
            make,
            f"G9 {name}",
            "Fig. 5",
            f"steps to a test accuracy of 0.85 over steps to a training accuracy of 0.95, alpha = {alpha:g}",
            ratio.sel(digits_alpha=alpha),
            1.5,
            control=control,
        )
        for make, name, alpha, control in (
            (at_least, "digits, large output", large, False),
            (at_least, "control, digits, small output", small, True),
        )
    ]
