"""NC1-NC4 and class-distance normalised variance in one compiled program, against the usual algorithm.

    python -m benchmarks.metrics_collapse [--only TASK] [--runs N]

The baseline is what published collapse scripts do: a d x d within-class covariance, a d x d
pseudo-inverse of the between-class covariance, pairwise distances to every class mean. It runs in
PyTorch where that is installed, in NumPy otherwise; its name says which.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

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


def measured_torch(torch, h, y, w):
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
    target = torch.eye(classes) - 1 / classes
    target = target / torch.linalg.norm(target)
    gaps = []
    for gram in (centered @ centered.T, w @ w.T, w @ centered.T):
        gaps.append(torch.linalg.norm(gram / torch.linalg.norm(gram) - target))
    length = torch.linalg.norm(centered, dim=1)
    cosine = (centered @ centered.T) / (length[:, None] * length[None])
    angles = cosine[~torch.eye(classes, dtype=bool)]
    square = (h**2).sum(1)[:, None] + (mean**2).sum(1)[None]
    nearest = (square - 2 * h @ mean.T).argmin(1)
    agree = (nearest == (h @ w.T).argmax(1)).float().mean()
    right = (nearest == y).float().mean()
    return nc1, quotient, cdnv, *gaps, length.std() / length.mean(), angles.std(), agree, right


def measured_numpy(h, y, w):
    classes, samples = w.shape[0], h.shape[0]
    members = np.eye(classes, dtype=h.dtype)[y]
    count = members.sum(0)
    mean = members.T @ h / count[:, None]
    rest = h - mean[y]
    within = rest.T @ rest / samples
    spread = (members.T @ rest**2).sum(1) / count
    centered = mean - mean.mean(0)
    between = centered.T @ centered / classes
    nc1 = np.trace(within @ np.linalg.pinv(between, rcond=1e-5)) / classes
    quotient = np.trace(within) / np.trace(between)
    square = (mean**2).sum(1)
    distance = square[:, None] + square[None] - 2 * mean @ mean.T
    np.fill_diagonal(distance, np.inf)
    cdnv = ((spread[:, None] + spread[None]) / (2 * distance)).sum() / (classes * (classes - 1))
    target = np.eye(classes, dtype=h.dtype) - 1 / classes
    target = target / np.linalg.norm(target)
    gaps = []
    for gram in (centered @ centered.T, w @ w.T, w @ centered.T):
        gaps.append(np.linalg.norm(gram / np.linalg.norm(gram) - target))
    length = np.linalg.norm(centered, axis=1)
    cosine = (centered @ centered.T) / (length[:, None] * length[None])
    angles = cosine[~np.eye(classes, dtype=bool)]
    nearest = ((h**2).sum(1)[:, None] + square[None] - 2 * h @ mean.T).argmin(1)
    agree, right = np.mean(nearest == (h @ w.T).argmax(1)), np.mean(nearest == y)
    return nc1, quotient, cdnv, *gaps, length.std() / length.mean(), angles.std(), agree, right


def comparison(name, runs):
    samples, dim, classes = SIZES[name]
    h, y, w = data(samples, dim, classes)
    try:
        import torch
    except ImportError:
        torch = None

    def ours():
        arrays = [jnp.asarray(a) for a in (h, y, w)]

        @jax.jit
        def step(h, y, w):
            return collapse.neural_collapse(h, y, classes, weights=w)

        return lambda: step(*arrays)

    def baseline():
        if torch is None:
            return lambda: measured_numpy(h, y, w)
        arrays = [torch.as_tensor(a) for a in (h, y, w)]
        return lambda: measured_torch(torch, *arrays)

    mine, theirs = ours()(), baseline()()
    pairs = zip(
        (mine.nc1.value, mine.quotient.value, mine.cdnv.value, mine.nc4.value),
        (theirs[0], theirs[1], theirs[2], theirs[-2]),
    )
    peer = "numpy" if torch is None else f"torch_{torch.__version__}"
    # Two products with r = classes directions each, and one pass each for sums and distances.
    notes = {
        "difference": max(abs(float(a) / float(b) - 1) for a, b in pairs),
        "gigaflop": 1e-9 * samples * dim * (4 * classes + 4),
        "megabyte_read": 1e-6 * 3 * h.nbytes,
    }
    return harness.compare(
        f"collapse {name}",
        {"widelimit": ours, peer: baseline},
        ours="widelimit",
        baseline=peer,
        runs=runs,
        notes=notes,
    )


def task(name):
    return lambda *, runs: comparison(name, runs)


if __name__ == "__main__":
    harness.main("metrics_collapse", {name: task(name) for name in SIZES})
