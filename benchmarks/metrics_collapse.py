"""NC1-NC4 and class-distance normalised variance in one compiled program, against the usual algorithm.

    python -m benchmarks.metrics_collapse [--only TASK] [--runs N]

Two baselines in PyTorch (skipped where it is not installed):

* ``accumulators``: the algorithm of the `neural-collapse` repository (not on PyPI) on the whole data as
  one batch: a pass each for class means, variances, the d x d within-class covariance and decisions,
  then NC1 three ways (pseudo-inverse, truncated SVD, quotient), and pair kernels of the means.
* ``lean``: the same numbers with shared intermediates and one d x d pseudo-inverse. It is the
  baseline of the ratio; the ratio to the first is among the notes.

Time it on one core, ``taskset -c 0 python -m benchmarks.metrics_collapse``: torch's worker threads spin
on after their work, and with several cores they take them, and count as CPU time, while the other runs.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import statistics

import jax.numpy as jnp
import numpy as np
from scipy.sparse.linalg import svds

from benchmarks import harness
from metrics import collapse

SIZES = {"10k_128_10": (10_000, 128, 10), "20k_512_10": (20_000, 512, 10)}
SIZES["20k_512_100"] = (20_000, 512, 100)


def data(samples, dim, classes):
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(samples) % classes)
    means = rng.standard_normal((classes, dim))
    features = means[labels] + 0.3 * rng.standard_normal((samples, dim))
    weights = means + 0.1 * rng.standard_normal((classes, dim))
    return features.astype(np.float32), labels, weights.astype(np.float32)


def accumulated(torch, h, y, w):
    classes, (samples, dim) = w.shape[0], h.shape

    def members():
        return (y[:, None] == torch.arange(classes)[None]).T.to(h.dtype)

    count = members().sum(1)
    mean = members() @ h / count[:, None]
    spread = (members() @ (h - mean[y]) ** 2).sum(1) / count
    rest = h - mean[y]
    within = rest.T @ rest / samples
    square = (h**2).sum(1)[:, None] + (mean**2).sum(1)[None]
    nearest = (square - 2 * h @ mean.T).argmin(1)
    hits = torch.zeros(classes).scatter_add_(0, y, (nearest == (h @ w.T).argmax(1)).float())
    agree = (hits / count).mean()
    centered = mean - mean.mean(0)
    between = centered.T @ centered / classes
    nc1 = torch.trace(torch.linalg.pinv(between, rtol=1e-5) @ within) / classes
    vectors, values, _ = svds(between.numpy(), k=min(classes, dim) - 1)
    truncated = np.trace(within.numpy() @ (vectors / values) @ vectors.T) / classes
    quotient = torch.trace(within) / torch.trace(between)
    distance = torch.cdist(mean, mean) ** 2
    distance.fill_diagonal_(torch.inf)
    cdnv = ((spread[:, None] + spread[None]) / (2 * distance)).sum() / (classes * (classes - 1))
    unit = torch.nn.functional.normalize(centered)
    pairs = torch.cdist(unit, unit)[~torch.eye(classes, dtype=bool)]
    kernels = pairs.mean(), pairs.var(), pairs.log().mean(), pairs.log().var()
    duality = (w * centered).sum(1).var()
    return (
        nc1,
        quotient,
        cdnv,
        *frame_errors(torch, centered, w),
        duality,
        *kernels,
        truncated,
        agree,
    )


def frame_errors(torch, centered, w):
    target = torch.eye(len(w)) - 1 / len(w)
    target = target / torch.linalg.norm(target)
    grams = (centered @ centered.T, w @ w.T, w @ centered.T)
    return [torch.linalg.norm(gram / torch.linalg.norm(gram) - target) for gram in grams]


def lean(torch, h, y, w):
    classes, samples = w.shape[0], h.shape[0]
    members = torch.nn.functional.one_hot(y, classes).T.to(h.dtype)
    count = members.sum(1)
    mean = members @ h / count[:, None]
    rest = h - mean[y]
    within = rest.T @ rest / samples
    spread = (members @ rest**2).sum(1) / count
    centered = mean - mean.mean(0)
    between = centered.T @ centered / classes
    nc1 = torch.trace(within @ torch.linalg.pinv(between, rtol=1e-5)) / classes
    quotient = torch.trace(within) / torch.trace(between)
    distance = torch.cdist(mean, mean) ** 2
    distance.fill_diagonal_(torch.inf)
    cdnv = ((spread[:, None] + spread[None]) / (2 * distance)).sum() / (classes * (classes - 1))
    length = torch.linalg.norm(centered, dim=1)
    cosine = (centered @ centered.T) / (length[:, None] * length[None])
    angles = cosine[~torch.eye(classes, dtype=bool)]
    square = (h**2).sum(1)[:, None] + (mean**2).sum(1)[None]
    nearest = (square - 2 * h @ mean.T).argmin(1)
    agree = (nearest == (h @ w.T).argmax(1)).float().mean()
    right, equal = (nearest == y).float().mean(), length.std() / length.mean()
    return nc1, quotient, cdnv, *frame_errors(torch, centered, w), equal, angles.std(), right, agree


def comparison(name, runs):
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    samples, dim, classes = SIZES[name]
    h, y, w = data(samples, dim, classes)
    arrays, tensors = (
        [as_array(a) for a in (h, y, w)] for as_array in (jnp.asarray, torch.as_tensor)
    )

    def ours():
        return lambda: collapse.neural_collapse(*arrays[:2], classes, weights=arrays[2])

    def peer(measure):
        return lambda: lambda: measure(torch, *tensors)

    # Two products with r = classes directions each, and one pass each for sums and distances.
    row = harness.compare(
        f"collapse {name}",
        {"widelimit": ours, "lean": peer(lean), "accumulators": peer(accumulated)},
        ours="widelimit",
        baseline="lean",
        runs=runs,
        notes={
            "gigaflop": 1e-9 * samples * dim * (4 * classes + 4),
            "megabyte_read": 1e-6 * 2 * h.nbytes,
        },
    )
    mine, differences = ours()(), []
    for theirs in (accumulated(torch, *tensors), lean(torch, *tensors)):
        pairs = zip(
            (mine.nc1.value, mine.quotient.value, mine.cdnv.value, mine.nc3.error, mine.nc4.value),
            (*theirs[:3], theirs[5], theirs[-1]),
        )
        differences += [abs(float(a) / float(b) - 1) for a, b in pairs]
    row.notes["difference"] = float(f"{max(differences):.2g}")
    slow, fast = row.timings["accumulators"], row.timings["widelimit"]
    for clock in ("wall", "cpu"):
        ratios = [a / b for a, b in zip(getattr(slow, clock), getattr(fast, clock))]
        row.notes[f"accumulators over ours, {clock}"] = float(f"{statistics.median(ratios):.3g}")
    return row


def tasks():
    if importlib.util.find_spec("torch") is None:
        print("metrics_collapse: skipped, torch is not installed", flush=True)
        return {}
    return {name: functools.partial(comparison, name) for name in SIZES}


if __name__ == "__main__":
    harness.main("metrics_collapse", tasks())
