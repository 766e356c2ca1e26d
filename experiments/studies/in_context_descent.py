"""Linear attention trained on regression prompts takes one step of gradient descent, the best one there is.

One layer is trained on prompts of several laws and compared with the closed-form optimum: its matrix, its loss, its
predictions. Beside it, without training: a layer that is a step of descent by construction; descent with curvature
correction, what two layers can do; and a step of softmax regression as a shift of its weights.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from scipy import optimize, special

import models
from experiments import checks, grid, tasks
from experiments.grid import Axis, Training, Variable, train_grid
from experiments.loop import Session
from experiments.studies import in_context_descent_figures as drawn
from experiments.studies.in_context_descent_claims import PREDICTORS, SETTINGS, WRONG, claims
from experiments.tasks.in_context import regression
from experiments.train import Probe, Setup, compile_program
from limits import in_context

TITLE = "Linear attention learns one step of gradient descent, the best one"
PAPER = (
    "Mahankali, Hashimoto & Ma 2023, arXiv:2307.03576; von Oswald et al. 2023, arXiv:2212.07677; "
    "Li et al. 2023, arXiv:2304.13276"
)
__all__ = ["PAPER", "TITLE", "check", "claims", "figures", "run", "total_steps"]

RESPONSES = {"linear": lambda z: z, "ReLU": jax.nn.relu, "sign": jnp.sign}
RULES = {
    "prompt.dim": checks.whole(2, 100),
    "prompt.num_examples": checks.whole(1, 10_000),
    "prompt.noise": checks.real(0),
    "train.learning_rate": checks.positive(),
    "train.steps": checks.STEPS,
    "train.chunk": checks.STEPS,
    "train.batch": checks.whole(),
    "train.start": checks.positive(),
    "train.seeds": checks.SEEDS,
    "train.num_test": checks.whole(2),
    "correction.dim": checks.whole(2, 100),
    "correction.steps": checks.several(checks.whole(1, 20), needs=(1, 2)),
    "correction.num_prompts": checks.whole(2),
    "correction.seeds": checks.SEEDS,
    "softmax.classes": checks.whole(2),
    "softmax.dim": checks.whole(),
    "softmax.trials": checks.whole(),
    "softmax.seeds": checks.SEEDS,
}


def check(config: Any, task: tasks.Task | None) -> None:
    """Refuses a configuration that the study could not carry through; trains nothing.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    checks.values(config, RULES)
    checks.multiple(config, "train.steps", "chunk")
    tokens = (config.prompt.num_examples + 1) * (config.prompt.dim + 1)
    most = max(config.train.num_test, config.train.batch)
    checks.memory("config.train.num_test: prompts", 10.0 * most * tokens * len(config.train.seeds))


def total_steps(config: Any) -> int:
    """Training steps of the whole study, for the progress bar."""
    return len(SETTINGS) * len(config.train.seeds) * config.train.steps


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Trains the study; returns the labelled measurements.

    Args:
        config: as experiments/configs/in_context_descent.py makes it.
        session: files and progress; none are kept by default.

    Raises:
        ValueError: as of `check`.
    """
    session = session or Session()
    check(config, None)
    return xr.merge([part(config, session) for part in (_trained, _correction, _exact)])


# One layer and its optimum


class Law(NamedTuple):
    """A law of prompts, as arrays: one compiled program serves all."""

    covariance: jax.Array
    weight_covariance: jax.Array
    response: jax.Array  # which of RESPONSES


def law(config: Any, setting: str) -> Law:
    """The law of the prompts of a setting."""
    response = list(RESPONSES).index(setting if setting in RESPONSES else "linear")
    return Law(*map(jnp.asarray, covariances(config.prompt.dim, setting)), jnp.asarray(response))


def prompts(config: Any, law: Law, key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Tokens and targets."""
    return regression(
        key,
        count,
        config.prompt.num_examples,
        law.covariance,
        weight_covariance=law.weight_covariance,
        noise=config.prompt.noise,
        response=lambda z: jax.lax.switch(law.response, list(RESPONSES.values()), z),
    )


def covariances(d: int, setting: str) -> tuple[np.ndarray, np.ndarray]:
    """Lam of the inputs, S of the weights."""
    if setting not in ("anisotropic", "whitened", "random start"):
        return np.eye(d), np.eye(d)
    root = np.random.default_rng(0).standard_normal((d, d))
    lam = root @ root.T / d + 0.2 * np.eye(d)
    return lam, np.linalg.inv(lam) if setting == "whitened" else np.eye(d)


def best_matrix(config: Any, setting: str, more: int = 0) -> np.ndarray:
    """G*, or that for so many more examples than there are."""
    part, n = config.prompt, config.prompt.num_examples + more
    if setting in RESPONSES:
        rate = in_context.response_rate(RESPONSES[setting], part.dim, n, noise=part.noise)
        return rate * np.eye(part.dim)
    lam, s = covariances(part.dim, setting)
    return in_context.one_step(lam, n, weight_covariance=s, noise=part.noise).matrix


def layer(config: Any) -> models.LinearAttention:
    """One head as wide as a token."""
    return models.LinearAttention(config.prompt.dim + 1, depth=1)


def predict(model: models.LinearAttention, params: Any, tokens: jax.Array) -> jax.Array:
    """Minus the last entry of the query's token."""
    return -model.apply({"params": params}, tokens)[:, -1, -1]


def start(config: Any, key: jax.Array, structured: jax.Array) -> Any:
    """Reads inputs and writes targets, as in Zhang, Frei & Bartlett 2024; or else anything."""
    d, size = config.prompt.dim, config.train.start**0.5
    keys = jax.random.split(key, 5)
    factor = jax.random.normal(keys[0], (d, d))
    factor = size * factor / jnp.sqrt(jnp.linalg.norm(factor @ factor.T))
    reads = jnp.zeros((d + 1, d + 1)).at[:d, :d].set(factor)
    writes = jnp.zeros((d + 1, d + 1)).at[d, d].set(size)
    made = {"query": reads, "key": reads, "value": -writes, "out": writes}
    return {
        "layer_0": {
            name: {
                "kernel": jnp.where(
                    structured, kernel, size * jax.random.normal(random, kernel.shape)
                )
            }
            for (name, kernel), random in zip(made.items(), keys[1:])
        }
    }


def effective(params: Any) -> jax.Array:
    """G of a layer: how much of y_i x_i it reads, and writes to the query's target."""
    w = {name: part["kernel"] for name, part in params["layer_0"].items()}
    written = -w["value"][-1] @ w["out"][:, -1]
    return written * (w["query"] @ w["key"].T)[:-1, :-1]


def descended(tokens: jax.Array, rate: Any, steps: int = 1, correction: Any = 0.0) -> jax.Array:
    """Predictions of `limits.in_context.descend` for tokens."""
    x, y, query = tokens[:, :-1, :-1], tokens[:, :-1, -1], tokens[:, -1, :-1]
    return in_context.descend(x, y, query, rate, steps, correction=correction)


def bayes(config: Any, setting: str, tokens: jax.Array) -> jax.Array:
    """Predictions of ridge regression with the weights' own covariance: Bayes for linear responses."""
    x, y, query = tokens[:, :-1, :-1], tokens[:, :-1, -1], tokens[:, -1, :-1]
    _, s = covariances(config.prompt.dim, setting)
    return in_context.ridge(x, y, query, config.prompt.noise, weight_covariance=s)


def _trained(config: Any, session: Session) -> xr.Dataset:
    part, model = config.train, layer(config)
    steps = np.arange(part.steps // part.chunk + 1) * part.chunk

    def test(setting):
        return prompts(config, law(config, setting), jax.random.key(2**31 - 1), part.num_test)

    def setup(data):
        def loss(params, numbers):
            key = jax.random.key(numbers[0])
            tokens, targets = prompts(config, data["law"], key, part.batch)
            return jnp.mean((predict(model, params, tokens) - targets) ** 2)

        def optimizer(rate):
            schedule = optax.cosine_decay_schedule(rate, part.steps)
            return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

        return Setup(lambda key: start(config, key, data["structured"]), loss, optimizer)

    def measure(params, carry, rate, data):
        found = predict(model, params, data["tokens"])
        agreement = jnp.corrcoef(found, data["one_step"])[0, 1]
        error = jnp.mean((found - data["targets"]) ** 2)
        return carry, {"loss": error, "agreement": agreement, "matrix": effective(params)}

    def unit(data, setting):
        tokens, targets = test(setting)
        data = {
            # An example of the training set is the number of a batch of fresh prompts.
            "train": jnp.arange(2**20, dtype=jnp.uint32),
            "law": law(config, setting),
            "structured": jnp.asarray(setting != "random start"),
            "tokens": tokens,
            "targets": targets,
            "one_step": descended(tokens, best_matrix(config, setting)),
        }
        count, probe = len(part.seeds), Probe(lambda params, key, data: (), measure)
        options = {"steps": part.chunk, "batch_size": 1, "probe": probe, "runs": count}
        return Training(
            lambda: compile_program(setup, data, **options),
            "layer",
            *(data, [part.learning_rate] * count, part.seeds, len(steps) - 1, part.steps),
            keep=lambda found: {
                "loss": found["loss"],
                "agreement": found["agreement"][:, -1],
                "matrix": found["matrix"][:, -1],
            },
        )

    def theory(data, setting):
        tokens, targets = test(setting)
        best = best_matrix(config, setting)
        made = {"one step": descended(tokens, best), "zero": 0 * targets}
        rate, _ = _best_rates(tokens[:2000], targets[:2000], 2, corrected=False)
        made["two steps"] = descended(tokens, rate, 2)
        made["ridge"] = bayes(config, setting, tokens)
        others = {
            "n + 10": best_matrix(config, setting, 10),
            **{
                name: best_matrix(config, name) for name in ("whitened", "isotropic", "anisotropic")
            },
        }
        return {
            "predictor_loss": [jnp.mean((made[name] - targets) ** 2) for name in PREDICTORS],
            "ridge_agreement": np.corrcoef(made["ridge"], made["one step"])[0, 1],
            "best": best,
            "other": np.stack([others[name] for name in others]),
        }

    axes = {"setting": Axis(list(SETTINGS), "law of the prompts")}
    square = ("row", "column")
    measured = {
        "loss": Variable("squared error on fresh prompts", dims=("seed", "step")),
        "agreement": Variable("correlation of predictions with those of one step", dims=("seed",)),
        "matrix": Variable("effective matrix", dims=("seed", *square)),
    }
    known = {
        "predictor_loss": Variable("squared error on the same prompts", dims=("predictor",)),
        "ridge_agreement": Variable("correlation of ridge regression with one step"),
        "best": Variable("best matrix of one step", dims=square),
        "other": Variable("best matrix of another setting", dims=("wrong", *square)),
    }
    own = {"seed": Axis(list(part.seeds), "seed"), "step": Axis(steps, "training step")}
    named = {
        "predictor": Axis(list(PREDICTORS), "predictor"),
        "wrong": Axis(list(WRONG), "other setting"),
    }
    trained = grid.Program("layer", unit, measured, own, trains=True)
    exact = grid.Program("optimum", theory, known, named, steps=0)
    return xr.merge([train_grid(axes, None, program, session) for program in (trained, exact)])


# What is not trained


@functools.partial(jax.jit, static_argnames="steps")
def _error(tokens, targets, rate, gamma, steps):
    return jnp.mean((descended(tokens, rate, steps, correction=gamma) - targets) ** 2)


def _best_rates(tokens, targets, steps: int, *, corrected: bool) -> tuple[float, float]:
    """Rate and correction of least squared error over prompts, from two starts."""

    def objective(logs):
        rate, gamma = np.exp(logs)
        found = float(_error(tokens, targets, rate, gamma if corrected else 0.0, steps))
        return found if np.isfinite(found) else 1e9

    n = tokens.shape[1]
    options = {"maxfev": 80, "xatol": 1e-3, "fatol": 1e-7}
    found = [
        optimize.minimize(objective, np.log([1 / n, g / n]), method="Nelder-Mead", options=options)
        for g in ((0.2, 0.8) if corrected else (0.2,))
    ]
    rate, gamma = np.exp(min(found, key=lambda end: end.fun).x)
    return float(rate), float(gamma) if corrected else 0.0


def _correction(config: Any, session: Session) -> xr.Dataset:
    part = config.correction

    def draw(key):
        keys, d = jax.random.split(key), part.dim
        x = jax.random.uniform(keys[0], (part.num_prompts, d + 1, d), minval=-1.0)
        z = jnp.einsum("bni,bi->bn", x, jax.random.normal(keys[1], (part.num_prompts, d)))
        return jnp.concatenate([x, z.at[:, -1].set(0)[..., None]], -1), z[:, -1]

    def unit(data, descent_steps, descent, descent_seed):
        key = jax.random.key(descent_seed)
        rate, gamma = _best_rates(*draw(key), descent_steps, corrected=descent == "GD++")
        tokens, targets = draw(jax.random.fold_in(key, 1))
        found = descended(tokens, rate, descent_steps, correction=gamma)
        return {"descent_loss": jnp.mean((found - targets) ** 2), "rate": rate, "gamma": gamma}

    variables = {
        "descent_loss": Variable("squared error on other prompts"),
        "rate": Variable("best rate"),
        "gamma": Variable("best correction"),
    }
    axes = {
        "descent_steps": Axis(list(part.steps), "steps, or layers"),
        "descent": Axis(["GD", "GD++"], "descent"),
        "descent_seed": Axis(list(part.seeds), "seed"),
    }
    return train_grid(axes, None, grid.Program("correction", unit, variables, steps=0), session)


def _exact(config: Any, session: Session) -> xr.Dataset:
    part = config.softmax

    def unit(data, exact_seed):
        random = np.random.default_rng([exact_seed, 7])
        ratios = [_softmax_step(random, part.classes, part.dim) for _ in range(part.trials)]
        ratio, shift = np.max(ratios, axis=0)
        deviation = [_construction(config, exact_seed, sign) for sign in (1.0, -1.0)]
        # Two classes at p = (1/2, 1/2), where the bound is met.
        p = special.softmax(np.array([1e-3, -1e-3]))
        tight = np.linalg.norm(p - 0.5) / (0.5 * np.sqrt(2) * 1e-3)
        found = {"construction": deviation, "softmax_ratio": ratio, "shift_error": shift}
        return found | {"tight_ratio": tight}

    variables = {
        "construction": Variable("largest deviation from descent", dims=("sign",)),
        "softmax_ratio": Variable("largest movement over its bound"),
        "shift_error": Variable("largest difference of a step from a shift of the weights"),
        "tight_ratio": Variable("movement of two even classes over its bound"),
    }
    own = {"sign": Axis([1, -1], "sign of the values")}
    axes = {"exact_seed": Axis(list(part.seeds), "seed")}
    return train_grid(axes, None, grid.Program("exact", unit, variables, own, steps=0), session)


def _construction(config: Any, seed: int, sign: float) -> float:
    """A layer that is a step of descent, against descent, in double precision."""
    d, rate = config.prompt.dim, 0.05
    with jax.enable_x64(True):
        reads = jnp.diag(jnp.array([1.0] * d + [0.0]))
        writes = jnp.zeros((d + 1, d + 1)).at[d, d].set(-sign * rate)
        kernels = {"query": reads, "key": reads, "value": writes, "out": jnp.eye(d + 1)}
        params = {"layer_0": {name: {"kernel": kernel} for name, kernel in kernels.items()}}
        tokens, _ = prompts(config, law(config, "anisotropic"), jax.random.key(seed), 100)
        found = predict(layer(config), params, tokens)
        return float(jnp.abs(found - descended(tokens, rate)).max())


def _softmax_step(random: np.random.Generator, classes: int, dim: int) -> tuple[float, float]:
    """A step in x of |softmax(A x) - b|^2: its movement over |A| |dx| / 2, and its distance from a shift of A."""
    a, x = random.standard_normal((classes, dim)) / 2, random.standard_normal(dim)
    p, target = special.softmax(a @ x), special.softmax(random.standard_normal(classes))
    jacobian = np.diag(p) - np.outer(p, p)
    moved = x - 0.5 * 2 * a.T @ jacobian @ (p - target)
    shifted = a + np.outer(a @ (moved - x), x) / (x @ x)
    new = special.softmax(a @ moved)
    bound = np.linalg.norm(a, 2) * np.linalg.norm(moved - x) / 2
    return np.linalg.norm(new - p) / bound, np.abs(special.softmax(shifted @ x) - new).max()


def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the study by name."""
    return {
        "training": drawn.training(data),
        "matrices": drawn.matrices(data),
        "responses": drawn.responses(data),
    }
