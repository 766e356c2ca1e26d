"""Networks on digits for the study of feature-learning limits: the dichotomy, and convergence to explicit limits."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import limits
import metrics
import ntk
from experiments import losses, rundir, tasks
from experiments.loop import Session
from experiments.train import ONCE
from limits import feature_learning as one_layer
from limits import pi_net
from limits.exponents import Exponents, Rule


def uniform(q: float) -> Rule:
    """From ntk (q = 1/2) to mean_field (q = 1): readout n^-q and learning rate n^(2q - 1), so that r = 1 - q."""
    c = 1 - 2 * q
    return Rule(
        f"r={1 - q:.2g}",
        input=Exponents(sgd=c),
        hidden=Exponents(a=1 / 2, sgd=c),
        output=Exponents(a=q, sgd=c),
    )


RULES = {
    "r=1/3": uniform(2 / 3),
    "r=1/6": uniform(5 / 6),
    # feature learning with a frozen input layer
    "logits/sqrt(n)": Rule(
        "logits/sqrt(n)",
        input=Exponents(),
        hidden=Exponents(b=1 / 2),
        output=Exponents(a=1 / 2, b=1 / 2),
    ),
}
SYSTEMS = ("linear", "tanh", "linear, ntk")

# What runs once for each shape compiles several times faster unoptimised.
sample = jax.jit(
    lambda limit, key, width: limit.sample(key, width), static_argnums=2, compiler_options=ONCE
)
linear_limit = jax.jit(one_layer.linear_limit, static_argnums=(0, 1), compiler_options=ONCE)
_particles = jax.jit(one_layer.particles, static_argnums=(1, 2, 3), compiler_options=ONCE)
_apply = jax.jit(lambda net, x, *rest: net.apply(x, *rest), static_argnums=2)


def kept(session: Session, label: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `compute` returns, from the files of the run where it is there already; one step of progress."""
    found = session.path and rundir.load_point(session.path, label)
    if not found:
        found = {name: np.asarray(value) for name, value in compute().items()}
        if session.path:
            rundir.save_point(session.path, label, found)
    session.progress(1, label, float(np.mean(next(iter(found.values())))))
    return found


def fit(widths: Sequence[int], values: np.ndarray) -> metrics.PowerLaw:
    """Power law in the width through values (seeds, widths), none where a run diverged."""
    if not (np.isfinite(values) & (values > 0)).all():
        nothing = np.full(2, np.nan)
        return metrics.PowerLaw(np.nan, np.nan, np.nan, nothing, nothing, nothing)
    return metrics.fit_power_law(np.asarray(widths), values, jax.random.key(0))


@jax.jit
def rms(x: jax.Array) -> jax.Array:
    """Root of the mean square."""
    return jnp.sqrt(jnp.square(x).mean())


def examples(task: tasks.Task, num_train: int, num_test: int) -> tuple[Any, ...]:
    """((x, y) to train on, x to test on), the inputs scaled so that pre-activations are of order one."""
    scale = task.train.x.shape[1] ** -0.5
    x, y = task.train.x[:num_train] * scale, task.train.y[:num_train]
    return (x, y), task.test.x[:num_test] * scale


# The dichotomy: how far features move, and whether the network is its own linearisation


def abc_factors(rule: str, depth: int, width: int) -> dict[str, np.ndarray]:
    """Powers of the width of a rule, (depth + 1,) each: multipliers n^-a, initial deviations n^-b, rates n^-c."""
    exponents = limits.abc(RULES.get(rule, rule), depth)
    powers = (float(width) ** -np.array(values) for values in exponents)
    return dict(zip(("multiplier", "deviation", "rate"), np.array(list(powers), np.float32)))


def layers(weights: Sequence[jax.Array], x: jax.Array, multiplier: jax.Array) -> list[jax.Array]:
    """Pre-activations of every layer of a tanh network, W^l = n^-a_l w^l, the outputs last."""
    found = []
    for l, w in enumerate(weights):
        found.append(multiplier[l] * (x @ w))
        x = jnp.tanh(found[-1])
    return found


@functools.partial(jax.jit, static_argnums=1, compiler_options=ONCE)
def gaussians(key: jax.Array, sizes: tuple[int, ...]) -> list[jax.Array]:
    """Standard normal weights of the layers of a network, cut from one draw: generators are slow to compile."""
    shapes = list(itertools.pairwise(sizes))
    ends = np.cumsum([m * n for m, n in shapes])
    pieces = jnp.split(jax.random.normal(key, (ends[-1],)), ends[:-1])
    return [piece.reshape(shape) for piece, shape in zip(pieces, shapes)]


@functools.partial(jax.jit, static_argnames="steps")
def train_twins(
    normals: Sequence[jax.Array],
    factors: dict[str, jax.Array],
    batch: tuple,
    test: jax.Array,
    learning_rate: float,
    *,
    steps: int,
) -> jax.Array:
    """Full-batch gradient descent of a network and of its linearisation at initialisation, side by side.

    The rule's factors are data, so that all rules at a width share one compiled program.

    Args:
        normals: from `gaussians`.
        factors: from `abc_factors`.
        batch: (inputs (N, d), targets).
        test: (T, d), where changes are measured.
        learning_rate: eta.
        steps: of both.

    Returns:
        (depth + 1,): RMS change of the pre-activations of each hidden layer of the network, and RMS distance of
        its outputs from those of its linearisation.
    """
    start = [b * w for b, w in zip(factors["deviation"], normals)]
    rates = learning_rate * factors["rate"]

    def outputs(weights, x):
        return layers(weights, x, factors["multiplier"])[-1]

    initial, tangent = jax.linearize(lambda weights: outputs(weights, batch[0]), start)

    def linear(weights):
        return initial + tangent(jax.tree.map(jnp.subtract, weights, start))

    def step(twins, _):
        functions = (lambda weights: outputs(weights, batch[0])), linear
        slopes = [
            jax.grad(lambda w, f=f: losses.squared_error(f(w), batch[1]))(weights)
            for f, weights in zip(functions, twins)
        ]
        return jax.tree.map(lambda w, g, r: w - r * g, twins, tuple(slopes), (list(rates),) * 2), ()

    (net, line), _ = jax.lax.scan(step, (start, start), length=steps)
    before, now = (layers(weights, test, factors["multiplier"]) for weights in (start, net))
    moved = [rms(y - x) for x, y in zip(before[:-1], now[:-1])]
    return jnp.stack([*moved, rms(now[-1] - ntk.linearize(outputs, start)(line, test))])


def dichotomy(config: Any, task: tasks.Task, session: Session) -> xr.Dataset:
    """Change of the features and distance from the linearisation, their exponents in width, and the theory's."""
    part = config.dichotomy
    names = [f"hidden_{l}" for l in range(part.depth)]
    batch, test = examples(task, part.num_train, part.num_test)

    def at_width(width):
        sizes = (task.train.x.shape[1], *[width] * part.depth, task.outputs)
        starts = [gaussians(jax.random.key(seed), sizes) for seed in part.seeds]
        rules = [abc_factors(rule, part.depth, width) for rule in part.rules]
        run = functools.partial(train_twins, steps=part.steps)
        rate = part.learning_rate
        return {"change": [[run(s, f, batch, test, rate) for s in starts] for f in rules]}

    found = [
        kept(session, f"dichotomy-{width}", functools.partial(at_width, width))["change"]
        for width in part.widths
    ]
    change = np.moveaxis(np.array(found), (0, 3), (3, 1))  # rule, quantity, seed, width
    fits = [[fit(part.widths, values) for values in rows] for rows in change]
    regimes = [limits.classify(*limits.abc(RULES.get(r, r), part.depth)) for r in part.rules]
    dims = ("rule", "quantity")
    return xr.Dataset(
        {
            "change": ((*dims, "dichotomy_seed", "dichotomy_width"), change),
            "exponent": (dims, [[law.exponent for law in row] for row in fits]),
            "exponent_interval": (
                (*dims, "end"),
                [[law.exponent_interval for law in row] for row in fits],
            ),
            "predicted": (("rule", "layer"), [regime.change[: part.depth] for regime in regimes]),
            "regime": ("rule", [regime.kind for regime in regimes]),
            "r": ("rule", [regime.r for regime in regimes]),
        },
        {
            "rule": list(part.rules),
            "quantity": [*names, "kernel_distance"],
            "layer": names,
            "dichotomy_width": list(part.widths),
            "dichotomy_seed": list(part.seeds),
        },
    )


# Finite networks against the explicit limit of one hidden layer


def convergence(config: Any, task: tasks.Task, session: Session) -> xr.Dataset:
    """Loss of finite networks and of the limit along training, and the distance of their outputs after it."""
    part = config.convergence
    batch, test = examples(task, part.num_train, part.num_test)
    batches = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (part.steps, *leaf.shape)), batch)

    def of_system(system):
        limit, activation = one_hidden_layer(part, system, batch[0].shape[1], task.outputs)
        options = {"activation": activation, "loss": losses.squared_error}
        goal = one_layer.train(limit, batches, part.learning_rate, **options)
        outputs = _apply(goal.net, test, activation)
        distance, loss = [], []
        for width, seed in itertools.product(part.widths, part.seeds):
            net = sample(limit, jax.random.key(seed), width)
            # ntk in mean-field units: readouts of order sqrt(n), slower input weights
            size, slower = (width**0.5, 1 / width) if system == "linear, ntk" else (1.0, 1.0)
            rates = one_layer.Particles(u=part.learning_rate * slower, v=part.learning_rate)
            net = net._replace(v=np.float32(size) * net.v)
            trained = one_layer.train(net, batches, rates, **options)
            distance.append(rms(_apply(trained.net, test, activation) - outputs))
            loss.append(trained.losses)
        shape = len(part.widths), len(part.seeds)
        return {
            "distance": np.reshape(distance, shape),
            "loss": np.reshape(loss, (*shape, part.steps)),
            "limit_loss": goal.losses,
        }

    found = [
        kept(session, f"convergence-{number}", functools.partial(of_system, system))
        for number, system in enumerate(part.systems)
    ]
    every = {name: np.array([point[name] for point in found]) for name in found[0]}
    fits = [fit(part.widths, rows.T) for rows in every["distance"]]
    dims = ("system", "width", "seed")
    return xr.Dataset(
        {
            "distance": (dims, every["distance"]),
            "loss": ((*dims, "step"), every["loss"]),
            "limit_loss": (("system", "step"), every["limit_loss"]),
            "slope": ("system", [law.exponent for law in fits]),
            "slope_interval": (("system", "end"), [law.exponent_interval for law in fits]),
        },
        {
            "system": list(part.systems),
            "width": list(part.widths),
            "seed": list(part.seeds),
            "step": np.arange(part.steps),
        },
    )


def one_hidden_layer(part: Any, system: str, inputs: int, outputs: int) -> tuple[Any, Callable]:
    """The limit of a system at its start, and its activation."""
    if system == "tanh":
        return _particles(jax.random.key(0), part.population, inputs, outputs), jnp.tanh
    return linear_limit(inputs, outputs), one_layer.identity


def pi_nets(config: Any, task: tasks.Task, session: Session) -> xr.Dataset:
    """Distance of trained pi-nets from the trained limit, deep and nonlinear."""
    part, pi = config.convergence, config.convergence.pi
    count = pi.steps * pi.batch_size
    batch, test = examples(task, count, part.num_test)
    batches = jax.tree.map(lambda leaf: leaf.reshape(pi.steps, -1, *leaf.shape[1:]), batch)

    def outputs(net):
        trained, _ = pi_net.train(net, batches, pi.learning_rate, loss=losses.squared_error)
        return _apply(trained, test)

    def compute():
        sizes = {"rank": pi.rank, "hidden_layers": pi.hidden_layers}
        make = functools.partial(pi_net.limit, inputs=test.shape[1], outputs=task.outputs, **sizes)
        start = jax.jit(make, compiler_options=ONCE)(jax.random.key(0))
        goal = outputs(start)
        nets = [[sample(start, jax.random.key(s), n) for n in part.widths] for s in part.seeds]
        distance = [[rms(outputs(net) - goal) for net in row] for row in nets]
        return {"distance": distance, "size": rms(goal)}

    found = kept(session, "pi-nets", compute)
    law = fit(part.widths, found["distance"])
    return xr.Dataset(
        {
            "pi_distance": (("seed", "width"), found["distance"]),
            "pi_size": found["size"],
            "pi_slope": law.exponent,
            "pi_slope_interval": ("end", law.exponent_interval),
        },
        {"width": list(part.widths), "seed": list(part.seeds)},
    )
