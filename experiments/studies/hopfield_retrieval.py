"""Modern Hopfield networks: energy, retrieval, exponential capacity and the phases of fixed points.

Closed forms of `limits.hopfield` against drawn patterns: updates never raise the energy and are attention; the
retrieval error obeys its bound; the own pattern loses its weight at the predicted number of patterns, exponential in
the dimension, where the classical memory of Hebb's rule holds linearly many; clustered patterns have a phase in which
fixed points are means of clusters.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from flax import linen as nn

from experiments import checks, grid, tasks
from experiments.grid import Axis, Variable, train_grid
from experiments.loop import Session
from experiments.studies import hopfield_retrieval_figures as drawn
from experiments.studies.hopfield_retrieval_claims import PATTERNS, claims
from limits import hopfield

TITLE = "Modern Hopfield networks retrieve, average and cluster"
PAPER = "Ramsauer et al. 2021, arXiv:2008.02217"
__all__ = ["PAPER", "TITLE", "check", "claims", "figures", "run", "total_steps"]

RULES = {
    "single.count": checks.whole(2),
    "single.dim": checks.whole(2),
    "single.seeds": checks.SEEDS,
    "capacity.betas": checks.several(checks.positive(), ascending=True, needs=(0.5, 1.0)),
    "capacity.dims": checks.several(checks.whole(2), 3, ascending=True, needs=(12, 16, 24)),
    "capacity.shares": checks.several(checks.positive(), ascending=True, needs=(0.85, 1.0, 1.15)),
    "capacity.states": checks.whole(),
    "capacity.largest": checks.whole(2),
    "capacity.seeds": checks.SEEDS,
    "phases.clusters": checks.whole(2),
    "phases.dim": checks.whole(2),
    "phases.spread": checks.positive(),
    "phases.betas": checks.several(checks.positive(), ascending=True, needs=(1.0, 10.0, 50.0)),
    "phases.seeds": checks.SEEDS,
}


def check(config: Any, task: tasks.Task | None) -> None:
    """Refuses a configuration that the study could not carry through.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    checks.values(config, RULES)
    part = config.capacity
    checks.memory(
        "config.capacity.largest: patterns", 3.0 * part.largest * (max(part.dims) + part.states)
    )


def total_steps(config: Any) -> int:
    """Draws of the capacity, for the progress bar."""
    part = config.capacity
    return len(part.betas) * len(part.dims) * len(part.seeds)


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Evaluates the study; returns the labelled measurements.

    Args:
        config: as experiments/configs/hopfield_retrieval.py makes it.
        session: files and progress; none are kept by default.

    Raises:
        ValueError: as of `check`.
    """
    check(config, None)
    return xr.merge([part(config, session) for part in (_updates, _capacity, _hebb, _phases)])


def sphere(random: np.random.Generator, count: int, dim: int) -> np.ndarray:
    """Random unit vectors."""
    x = random.standard_normal((count, dim), np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _seeds(part: Any) -> Axis:
    return Axis(list(part.seeds), "seed of the patterns")


def _updates(config: Any, session: Session | None) -> xr.Dataset:
    part, beta = config.single, 20.0

    def unit(data, update_seed):
        random = np.random.default_rng(update_seed)
        with jax.enable_x64(True):
            x = jnp.asarray(sphere(random, part.count, part.dim), float)
            away = jnp.asarray(0.02 * random.standard_normal(x.shape))
            # Fixed points too: there another temperature leads uphill.
            states = x + 20 * away
            states = jnp.concatenate([states, hopfield.retrieve(states, x, 4.0).state])
            before = hopfield.energy(states, x, 4.0)
            after = [hopfield.energy(hopfield.update(states, x, b), x, 4.0) for b in (4.0, 8.0)]
            error = jnp.linalg.norm(hopfield.update(x + away, x, beta) - x, axis=-1)
            bound = hopfield.retrieval_bound(x, beta, jnp.linalg.norm(away, axis=-1))
            wrong = bound * jnp.exp(-beta * hopfield.separation(x))
            rises = [float(jnp.max(new - before)) for new in after]
            ratios = [float(jnp.max(error / b)) for b in (bound, wrong)]
        keys = np.asarray(x, np.float32)
        attended = nn.dot_product_attention(*[keys[:, None]] * 3)[:, 0]
        ours = [hopfield.update(keys, keys, scale) for scale in (part.dim**-0.5, 1 / part.dim)]
        return {
            "energy_rise": rises,
            "error_ratio": ratios,
            "attention": [float(jnp.abs(update - attended).max()) for update in ours],
        }

    variant = ("variant",)
    variables = {
        "energy_rise": Variable("largest increase of the energy in an update", dims=variant),
        "error_ratio": Variable("largest retrieval error over its bound", dims=variant),
        "attention": Variable("largest difference from Flax's attention", dims=variant),
    }
    own = {"variant": Axis(["right", "wrong"], "variant")}
    program = grid.Program("updates", unit, variables, own, steps=0)
    return train_grid({"update_seed": _seeds(part)}, None, program, session)


def _capacity(config: Any, session: Session | None) -> xr.Dataset:
    part = config.capacity

    def unit(data, beta, dim, pattern_seed):
        random, own = np.random.default_rng([pattern_seed, dim, round(100 * beta)]), []
        for share in part.shares:
            count = round(math.exp(share * hopfield.capacity(beta) * dim))
            if count > part.largest:
                own.append(math.nan)  # left out
                continue
            weights = []
            while sum(map(len, weights)) < part.states:
                x = sphere(random, max(count, 2), dim)
                scores = beta * dim * x[: part.states] @ x.T
                top = scores.max(axis=1, keepdims=True)
                weights.append(
                    np.exp(np.diagonal(scores) - top[:, 0]) / np.exp(scores - top).sum(axis=1)
                )
            own.append(np.concatenate(weights).mean())
        return {"own_weight": own}

    def theory(data, beta):
        return {"alpha": hopfield.capacity(beta), "alpha_half": hopfield.capacity(beta / 2)}

    dims = Axis(list(part.dims), "dimension")
    axes = {"beta": Axis(list(part.betas), "inverse temperature over the dimension"), "dim": dims}
    own = {
        "share": Axis(list(part.shares), "log(patterns) / dimension over its predicted capacity")
    }
    weight = {"own_weight": Variable("weight on the own pattern", dims=("share",))}
    drawn_ = grid.Program("capacity", unit, weight, own)
    known = {
        "alpha": Variable("predicted capacity"),
        "alpha_half": Variable("predicted capacity at half the inverse temperature"),
    }
    exact = grid.Program("capacity-theory", theory, known, steps=0)
    return xr.merge(
        [
            train_grid(axes | {"pattern_seed": _seeds(part)}, None, drawn_, session),
            train_grid({"beta": axes["beta"]}, None, exact, session),
        ]
    )


def _hebb(config: Any, session: Session | None) -> xr.Dataset:
    """Patterns that a Hebbian memory of signs holds: their mean overlap after an update falls through 0.9."""

    def unit(data, dim, pattern_seed):
        random, counts, overlaps = np.random.default_rng([pattern_seed, dim]), range(1, dim + 1), []
        for count in counts:
            x = random.choice([-1.0, 1.0], size=(200, count, dim))
            couplings = np.einsum("bni,bnj->bij", x, x) * (1 - np.eye(dim))
            overlaps.append(
                (
                    np.sign(np.einsum("bij,bj->bi", couplings, x[:, 0]) + 1e-9 * x[:, 0]) * x[:, 0]
                ).mean()
            )
        return {"hebb_count": float(np.interp(-0.9, -np.array(overlaps), list(counts)))}

    axes = {
        "dim": Axis(list(config.capacity.dims), "dimension"),
        "pattern_seed": _seeds(config.capacity),
    }
    variables = {"hebb_count": Variable("patterns that a Hebbian memory holds")}
    return train_grid(axes, None, grid.Program("hebb", unit, variables, steps=0), session)


@jax.jit
def _fixed_points(x, beta):
    return hopfield.retrieve(x, x, beta, tolerance=1e-5).weights


def _phases(config: Any, session: Session | None) -> xr.Dataset:
    part, clusters = config.phases, config.phases.clusters

    def unit(data, patterns, phase_seed):
        random = np.random.default_rng(phase_seed)
        x = sphere(random, clusters**2, part.dim)
        cluster = np.repeat(np.arange(clusters), clusters)
        if patterns == "clustered":
            x = x[cluster] + part.spread * random.standard_normal(x.shape)
            x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
        weights = np.stack([_fixed_points(x, beta) for beta in part.betas])
        inside = (weights * (cluster[:, None] == cluster[None])).sum(-1)
        taking_part = np.median(1 / (weights**2).sum(-1), axis=1)
        return {"participation": taking_part, "inside": inside.mean(axis=1)}

    dims = ("phase_beta",)
    variables = {
        "participation": Variable("patterns that take part in a fixed point", dims=dims),
        "inside": Variable("weight on the own cluster", dims=dims),
    }
    own = {"phase_beta": Axis(list(part.betas), "inverse temperature")}
    axes = {"patterns": Axis(list(PATTERNS), "patterns"), "phase_seed": _seeds(part)}
    return train_grid(axes, None, grid.Program("phases", unit, variables, own, steps=0), session)


def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the study by name."""
    return {"capacity": drawn.capacity(data), "phases": drawn.phases(data)}
