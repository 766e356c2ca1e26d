"""Initial weights of higher rank learn lazily on average, unless low-rank weights are aligned with the task.

Two-layer linear networks against the closed form of `limits.linear_rank`, and ReLU recurrent networks whose recurrent
weights are cut to a rank at equal Frobenius norm. The authors' fourth task, sequential MNIST, is left out. At 7 noisy
steps no observer makes more than 96.9 % of the two-alternative choices right.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from flax import linen as nn

import ntk
from experiments import checks, grid, losses, train
from experiments.grid import Axis, train_grid, variables
from experiments.loop import Session
from experiments.studies import connectivity_rank_figures as drawn
from experiments.studies.connectivity_rank_claims import RANKS, claims
from experiments.tasks import Task, neuro
from limits import linear_rank
from metrics import kernels
from metrics.features import effective_rank
from models import RNN
from models.initializers import low_rank

TITLE = "The rank of initial weights makes learning lazy or rich"
PAPER = "Liu et al. 2023, arXiv:2310.08513"
__all__ = ["PAPER", "TITLE", "check", "claims", "figures", "run", "total_steps"]

# Size of the readout, whether W_0 is aligned with the task, whether its singular values are equal; factors on F and b
STARTS = {
    "zero readout": (0.0, False, True, 1.0, 1.0),
    "aligned task": (0.0, True, True, 1.0, 1.0),
    "standard readout": (1.0, False, True, 1.0, 1.0),
    "Gaussian spectrum": (0.0, False, False, 1.0, 1.0),
    "both larger": (0.0, False, True, 2.0, 4.0),
    "weights larger": (0.0, False, True, 2.0, 1.0),
}
_POSITIVE = ("linear.task_norm", "linear.ratio", "networks.gain", "networks.learning_rate")
_COUNTS = ("networks.batch_size", "networks.steps", "networks.chunk", "networks.num_trials")
RULES = {
    **dict.fromkeys(_POSITIVE, checks.positive()),
    **dict.fromkeys(_COUNTS, checks.STEPS),
    "linear.dim": checks.whole(max(RANKS), 1000),
    "linear.ranks": checks.several(checks.whole(), ascending=True, needs=RANKS),
    "linear.seeds": checks.SEEDS,
    "networks.tasks": checks.several(checks.choice(tuple(neuro.TASKS))),
    "networks.length": checks.whole(4, 1000),
    "networks.width": checks.whole(2, 10_000),
    "networks.ranks": checks.several(checks.whole(), 2, ascending=True, needs=(1,)),
    "networks.seeds": checks.several(checks.whole(0), 2),
}


def check(config: Any, task: Task | None) -> None:
    """Refuses a configuration that the study could not carry through, by a ValueError that names the key."""
    checks.values(config, RULES)
    checks.multiple(config, "networks.steps", "chunk")
    for part, most in (("linear", "dim"), ("networks", "width")):
        if config[part].ranks[-1] != config[part][most]:
            checks.refuse(f"{part}.ranks", config[part].ranks, f"ranks up to {part}.{most}")


def total_steps(config: Any) -> int:
    """Steps of all recurrent networks, for the progress bar."""
    part = config.networks
    return part.steps * len(part.seeds) * len(part.ranks) * len(part.tasks)


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """The labelled measurements of a configuration (by default nothing is kept); a ValueError as of `check`."""
    check(config, None)
    return xr.merge([_linear(config.linear, session), _networks(config.networks, session)])


def problem(seed: int, dim: int, rank: int, how: tuple, size: float, b: float) -> tuple:
    """W_0 (hidden, inputs) of Frobenius norm size, the readout, and the task of norm b."""
    readout, aligned, flat = how
    keys = jax.random.split(jax.random.key(seed), 3)
    beta = jax.random.normal(keys[0], (dim,))
    beta *= b / jnp.linalg.norm(beta)
    directions = beta[:, None] if aligned else None
    init = low_rank(rank, nn.initializers.normal(), flat=flat, directions=directions)
    w = init(keys[1], (dim, dim), beta.dtype).T
    w *= size / jnp.linalg.norm(w)
    return w, readout * jax.random.normal(keys[2], (dim,)) / dim**0.5, beta


def _linear(part: Any, session: Session | None) -> xr.Dataset:
    def unit(data, start, rank):
        *how, weights, task = STARTS[start]
        b, size = task * part.task_norm, weights * (part.ratio * part.task_norm) ** 0.5
        known = partial(linear_rank.laziness, dim=part.dim, weight_norm=size, target_norm=b)
        with jax.enable_x64(True):
            made = [problem(seed, part.dim, rank, how, size, b) for seed in part.seeds]
            w, a, beta = map(np.stack, zip(*made))
            spread = [float(effective_rank(each).participation) for each in w]
        found = linear_rank.descend(w, a, beta)
        spanned = np.linalg.svd(w)[2][:, :rank] @ beta[..., None]
        closed = known(rank, overlap=np.square(spanned).sum((1, 2)) / b**2)
        return {
            "alignment": found.kernel_alignment,
            "features": found.representation_alignment,
            "moved": found.weight_change,
            "participation": spread,
            "closed": closed.kernel_alignment,
            "closed_spread": known(spread).kernel_alignment,
        }

    names = variables(
        "seed",
        alignment="kernel alignment",
        features="representation alignment",
        moved="distance of the weights from the start",
        participation="participation of the initial singular values",
        closed="kernel alignment by the closed form",
        closed_spread="kernel alignment by the closed form at the participation",
    )
    axes = {"start": Axis(list(STARTS), "start"), "rank": Axis(list(part.ranks), "initial rank")}
    program = grid.Program("linear", unit, names, {"seed": Axis(list(part.seeds), "seed")}, steps=0)
    sizes = {"dim": part.dim, "ratio": part.ratio, "task_norm": part.task_norm}
    return train_grid(axes, None, program, session).assign_attrs(sizes)


def _network(part: Any, rank: int) -> tuple:
    """What `train` takes of recurrent networks of a rank: setup and probe."""
    base = nn.initializers.variance_scaling(part.gain**2, "fan_in", "normal")
    others = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    model = RNN(part.width, 3, kernel_init=others, recurrent_init=low_rank(rank, base))

    def apply(recurrent, x, rest, **options):
        return model.apply({"params": rest | {"recurrent": recurrent}}, x, **options)

    tangent = ntk.empirical_ntk_fn(apply, (), vmap_axes=(0, 0, {"rest": None}))

    def seen(p, x):
        h = nn.relu(apply(p["recurrent"], x, p, features=True)[1]["recurrent"][:, -1])
        return h, tangent(x[:16], None, p["recurrent"], rest=p), p["recurrent"]["kernel"]

    def measure(params, first, rate, data):
        (h, k, w), (h_0, k_0, w_0) = (seen(p, data["probe"][0]) for p in (params, first))
        choices = apply(params["recurrent"], data["test"][0], params)[:, -1]
        return first, {
            "net_alignment": kernels.alignment(k, k_0),
            "net_features": kernels.representation_alignment(h, h_0),
            "net_moved": jnp.linalg.norm(w - w_0),
            "net_accuracy": losses.accuracy(choices, data["test"][1][:, -1]),
        }

    def setup(data):
        loss = losses.supervised("cross_entropy", lambda p, x: apply(p["recurrent"], x, p))
        init = lambda key: model.init(key, data["probe"][0])["params"]  # noqa: E731
        return train.Setup(init, loss, partial(optax.sgd, momentum=0.9))

    return setup, train.Probe(lambda params, key, data: params, measure)


def _networks(part: Any, session: Session | None) -> xr.Dataset:
    options = {"steps": part.chunk, "batch_size": part.batch_size, "runs": len(part.seeds)}
    chunks, rates = part.steps // part.chunk, [part.learning_rate] * len(part.seeds)

    def unit(data, task, net_rank):
        sizes = enumerate({"train": part.num_trials, "test": 1000, "probe": 32}.items())
        data = {n: tuple(neuro.TASKS[task](count, part.length, i)) for i, (n, count) in sizes}
        setup, probe = _network(part, net_rank)
        build = partial(train.compile_program, setup, data, probe=probe, **options)
        given = (task, net_rank), data, rates, part.seeds, chunks, part.steps
        return grid.Training(build, *given, lambda found: {k: v[:, -1] for k, v in found.items()})

    names = variables(
        "net_seed",
        net_alignment="kernel alignment, recurrent weights, all steps",
        net_features="representation alignment, last step",
        net_moved="distance of the recurrent weights from the start",
        net_accuracy="test accuracy of the choice",
    )
    ranks = Axis(list(part.ranks), "initial rank")
    axes = {"task": Axis(list(part.tasks), "task"), "net_rank": ranks}
    own = {"net_seed": Axis(list(part.seeds), "seed")}
    return train_grid(axes, None, grid.Program("networks", unit, names, own, True), session)


def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the study by name."""
    return {name: getattr(drawn, name)(data) for name in ("laziness", "recurrent", "heat_map")}
