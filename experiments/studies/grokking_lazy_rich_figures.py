"""The figures of the study grokking_lazy_rich: the theory's curves over the measured ones, in the same axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import plots
from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, PALETTE, curve

TRAIN, TEST, THEORY = PALETTE[0], PALETTE[1], {"color": INK, "linewidth": 1, "linestyle": DASHED}


def figures(data: xr.Dataset, times: xr.Dataset) -> dict[str, Any]:
    """All figures by name; ``times`` are the training and test times of the sweep over alpha."""
    made = {
        "two_phases": two_phases(data),
        "delay": delay(data, times),
        "features": features(data, times),
        "alignment": alignment(data),
        "examples": examples(data),
        "high_dimension": high_dimension(data),
        "digits": digits(data),
    }
    wait = (data.map_test_time - data.map_train_time).median("map_seed")
    made["map"] = plots.heat_map(
        np.log10(wait.where(np.isfinite(wait)))
        .rename(map_alpha="alpha", map_epsilon="epsilon")
        .assign_attrs(long_name="log10 of the delay in steps"),
        caption="Steps between the fall of the training and of the test loss (median over seeds), "
        "against output scale (alpha) and initial alignment (epsilon). The delay grows to "
        "the right, where training is lazier. Grey: the test loss has not fallen at the "
        "end.",
    )
    law = data.width_law
    made["width"] = plots.scaling_law(
        data.width_distance.median("seed").assign_attrs(long_name="distance from infinite width"),
        float(law.sel(law="exponent")),
        float(law.sel(law="prefactor")),
        low=data.width_distance.min("seed"),
        high=data.width_distance.max("seed"),
        theory=-0.5,
        caption="Distance of the outputs of a network of finite width from those at infinite width, "
        "relative, root mean square over inputs and training, from the closed dynamics (bars "
        "span the seeds). The theory's slope is -1/2 (dashed): so the start fluctuates.",
    )
    return made


def _panel(ax: Axes, x: str, y: str = "", *, x_log: bool = True, y_log: bool = True) -> None:
    ax.set(xlabel=x, xscale="log" if x_log else "linear", yscale="log" if y_log else "linear")
    if y:
        ax.set_ylabel(y)


def _finish(axes: list[Axes], legend: Axes) -> None:
    for ax in axes:
        drawing.log_ticks(ax.xaxis)
        drawing.log_ticks(ax.yaxis)
    drawing.legend(legend)


@drawing.style()
def two_phases(data: xr.Dataset) -> Figure:
    """Training and test loss of explicit networks, with the closed dynamics over them."""
    titles = [f"α = {alpha:g}" for alpha in data.network_alpha.values]
    made, axes = drawing.figure(
        titles,
        panel=(3.6, 3.0),
        caption=f"Training and test loss of networks of {data.attrs['network_width']} neurons under "
        "gradient descent (and with minibatches, thin; bands span the seeds). Dashed: the "
        "closed dynamics of their weights' two moments, which must lie on the lines. Look "
        "how the test loss falls long after the training loss, and later at larger α.",
    )
    found = data[["network_loss", "closed_loss"]].rename(network_seed="seed")
    found = found.sel(network_step=slice(1, None))
    for ax, alpha in zip(axes, found.network_alpha.values):
        for part, color in (("test", TEST), ("train", TRAIN)):
            chosen = found.sel(network_alpha=alpha, data=part)
            for batch_size in chosen.batch_size.values[1:]:
                thin = drawing.median(chosen.network_loss.sel(batch_size=batch_size))
                label = f"{part}, minibatches"
                ax.plot(thin.network_step, thin, color=color, linewidth=0.7, label=label)
            full = chosen.network_loss.sel(batch_size=0)
            curve(ax, full, "network_step", color, label=f"{part}, full batch")
            theory = drawing.median(chosen.closed_loss)
            label = "closed dynamics" if part == "train" else None
            ax.plot(theory.network_step, theory, label=label, **THEORY)
        _panel(ax, "step", y_log=False)
    axes[0].set_ylabel("mean squared error")
    _finish(axes, axes[-1])
    return made


def _ends(ax: Axes, values: xr.DataArray, dim: str, color, label: str) -> None:
    """Median and range over seeds against a setting; an arrow where the median is infinite."""
    middle = values.median("seed")
    bounded = values.where(np.isfinite(values))
    shown = middle.where(np.isfinite(middle))
    ax.plot(values[dim], shown, "o-", color=color, label=label)
    low, high = bounded.min("seed"), bounded.max("seed")
    ax.fill_between(
        values[dim], low, high, where=np.isfinite(shown), color=color, alpha=0.15, linewidth=0
    )
    never = values[dim].values[~np.isfinite(middle.values)]
    ax.plot(never, np.full(len(never), 0.97), "^", color=color, transform=ax.get_xaxis_transform())


@drawing.style()
def delay(data: xr.Dataset, times: xr.Dataset) -> Figure:
    """When the losses fall, against alpha, and what the test loss comes to."""
    made, (left, right) = drawing.figure(
        ["when the losses fall", "final test loss"],
        panel=(3.4, 3.0),
        sharey=False,
        caption="Against the output scale α (large is lazy; points are medians, bands span the "
        "seeds). Left: step at which the loss falls below the threshold; the gap is the "
        "delay, a triangle at the top means never. Right: what the test loss comes to; the "
        "dashed line is kernel regression with the initial kernel, where the lazy network "
        "must end.",
    )
    _ends(left, times.test, "alpha", TEST, "test")
    _ends(left, times.train, "alpha", TRAIN, "train")
    final = data.test.isel(sweep_step=-1)
    _ends(right, final, "alpha", TEST, "test")
    right.axhline(float(data.regression_loss.median()), label="kernel regression", **THEORY)
    _panel(left, "α", "step")
    _panel(right, "α", "mean squared error")
    drawing.width_ticks(left, data.alpha.values)
    drawing.width_ticks(right, data.alpha.values)
    drawing.log_ticks(left.yaxis)
    drawing.log_ticks(right.yaxis)
    left.legend(loc="upper left")
    right.legend(loc="lower right")
    return made


@drawing.style()
def features(data: xr.Dataset, times: xr.Dataset) -> Figure:
    """What the moments say: parts of the test loss, movement and alignment of the kernel."""
    one = data.isel(seed=0).sel(sweep_step=slice(1, None))
    shown = [alpha for alpha in data.alpha.values if alpha <= 4]
    middle = shown[-1]
    made, axes = drawing.figure(
        [f"test loss, α = {middle:g}", "movement of the kernel", "alignment with target"],
        panel=(3.3, 3.0),
        sharey=False,
        caption="Sufficient statistics along training, one seed. Left: the parts of the test loss "
        "and their sum; dashed: the linearised network, which it follows until features "
        "move. Middle and right: relative change of the tangent kernel and its alignment "
        "(CKA) with the target, for each α. Circles: the training loss has fallen; dots: "
        "the test loss has. Most of the movement lies between the two.",
    )
    parts = one.sel(alpha=middle)
    names = {"test": "sum", "misalignment": "misalignment", "variance": "variance"}
    for number, (key, label) in enumerate(names.items()):
        axes[0].plot(one.sweep_step, parts[key], color=PALETTE[number + 1], label=label)
    axes[0].plot(one.sweep_step, one.lazy_test, label="linearised", **THEORY)
    axes[0].legend(loc="lower left")
    for ax, key in zip(axes[1:], ("movement", "cka")):
        for alpha, color in drawing.sequential(shown).items():
            line = one[key].sel(alpha=alpha)
            ax.plot(one.sweep_step, line, color=color, label=f"α = {alpha:g}")
            for part, face in (("train", "white"), ("test", color)):
                time = float(times[part].isel(seed=0).sel(alpha=alpha))
                if np.isfinite(time):
                    value = float(line.interp(sweep_step=time))
                    ax.plot(time, value, "o", color=color, markerfacecolor=face, zorder=5)
    _panel(axes[0], "step", "mean squared error")
    axes[0].set_ylim(bottom=max(float(parts.test.min()) / 5, 1e-6))
    _panel(axes[1], "step", "relative change")
    _panel(axes[2], "step", "CKA", y_log=False)
    _finish(axes, axes[2])
    return made


@drawing.style()
def alignment(data: xr.Dataset) -> Figure:
    """When the losses fall, against the two ways to align the initial features with the target."""
    made, axes = drawing.figure(
        ["quadratic features", "weights along the target"],
        panel=(3.4, 3.0),
        caption="Steps at which the losses fall, against the alignment of the initial features "
        "(medians; bands span the seeds). Left: ε, the share of quadratic features. Right: "
        "extra spread of the initial weights along the target's direction. Better "
        "alignment shortens the delay; aligned features do not grok.",
    )
    for ax, prefix, dim in ((axes[0], "epsilon", "epsilon"), (axes[1], "aligned", "strength")):
        _ends(ax, data[f"{prefix}_test_time"], dim, TEST, "test")
        _ends(ax, data[f"{prefix}_train_time"], dim, TRAIN, "train")
    _panel(axes[0], "ε", "step")
    _panel(axes[1], "strength", x_log=False)
    _finish(axes, axes[1])
    return made


@drawing.style()
def examples(data: xr.Dataset) -> Figure:
    """The Goldilocks zone of the number of examples."""
    made, (left, right) = drawing.figure(
        ["final test loss", "delay"],
        panel=(3.4, 3.0),
        sharey=False,
        caption="Against the number of training examples (medians; bands span the seeds). Left: "
        "test loss after training; dashed: kernel regression with the initial kernel. "
        "Right: test over training time; a triangle at the top means that the test loss "
        "never falls. With few examples nothing generalises, with about D^2/2 the kernel "
        "does so at once; between them lies the delay.",
    )
    names = ["final", "first", "regression", "train_time", "test_time"]
    found = data[[f"examples_{name}" for name in names]].rename(examples_seed="seed")
    _ends(left, found.examples_final, "num_train", TEST, "network")
    regression = found.examples_regression / found.examples_first
    left.plot(found.num_train, regression.median("seed"), label="kernel regression", **THEORY)
    ratio = found.examples_test_time / found.examples_train_time
    _ends(right, ratio, "num_train", PALETTE[2], "")
    _panel(left, "examples P", "share of the first test loss")
    _panel(right, "examples P", "test time / training time")
    for ax in (left, right):
        drawing.width_ticks(ax, found.num_train.values)
        drawing.log_ticks(ax.yaxis)
    left.legend(loc="lower left")
    return made


@drawing.style()
def high_dimension(data: xr.Dataset) -> Figure:
    """Networks of several input dimensions, with dynamical mean-field theory over them."""
    titles = [f"D = {dim}" for dim in data.dim.values]
    made, axes = drawing.figure(
        titles,
        panel=(3.4, 3.0),
        caption="Training and test loss of a few neurons, not centred, for several input "
        "dimensions (medians; bands span the seeds). Dashed: dynamical mean-field theory, "
        "exact as the dimension and the number of examples go to infinity together. Look "
        "how the bands close on it.",
    )
    for ax, dim in zip(axes, data.dim.values):
        for part, color in (("test", TEST), ("train", TRAIN)):
            chosen = data.sel(dim=dim, data=part)
            curve(ax, chosen.dmft_network, "dmft_step", color, label=part)
            label = "theory" if part == "train" else None
            ax.plot(chosen.dmft_step, chosen.dmft_theory, label=label, **THEORY)
        _panel(ax, "step", x_log=False)
    axes[0].set_ylabel("mean squared error")
    _finish(axes, axes[-1])
    return made


@drawing.style()
def digits(data: xr.Dataset) -> Figure:
    """Accuracy and features of the MLP on images."""
    names = ["digits_test_accuracy", "digits_train_accuracy", "digits_alignment"]
    found = data[names].rename(digits_seed="seed").sel(digits_step=slice(1, None))
    titles = [f"images, α = {alpha:g}" for alpha in found.digits_alpha.values]
    made, axes = drawing.figure(
        titles,
        panel=(3.3, 2.9),
        caption="Accuracy of an MLP on images over training, for each output scale α (bands span "
        "the seeds), and the alignment of its last features with their first (dotted; 1 is "
        "lazy). Larger α: the training data are fit before features move, and the test "
        "accuracy comes later.",
    )
    for ax, alpha in zip(axes, found.digits_alpha.values):
        chosen = found.sel(digits_alpha=alpha)
        curve(ax, chosen.digits_test_accuracy, "digits_step", TEST, label="test")
        curve(ax, chosen.digits_train_accuracy, "digits_step", TRAIN, label="train")
        features = drawing.median(chosen.digits_alignment)
        ax.plot(
            features.digits_step, features, ":", color=INK, linewidth=1, label="feature alignment"
        )
        _panel(ax, "step", y_log=False)
    axes[0].set_ylabel("accuracy")
    _finish(axes, axes[-1])
    return made
