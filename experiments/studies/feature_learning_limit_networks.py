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
import ntk
from experiments import losses, tasks
from experiments.fits import power_law
from experiments.grid import Axis, Program, Variable, array, train_grid
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

    def unit(part, dichotomy_width):
        sizes = (task.train.x.shape[1], *[dichotomy_width] * part.depth, task.outputs)
        starts = [gaussians(jax.random.key(seed), sizes) for seed in part.seeds]
        rules = [abc_factors(rule, part.depth, dichotomy_width) for rule in part.rules]
        run = functools.partial(train_twins, steps=part.steps)
        rate = part.learning_rate
        return {"change": [[run(s, f, batch, test, rate) for s in starts] for f in rules]}

    words = "RMS change of pre-activations, and of outputs from the linearisation's"
    order = ("rule", "quantity", "dichotomy_seed", "dichotomy_width")
    variables = {"change": Variable(words, dims=("rule", "dichotomy_seed", "quantity"))}
    own = {
        "rule": Axis(list(part.rules), "parametrization"),
        "quantity": Axis([*names, "kernel_distance"], "what changes"),
        "layer": Axis(names, "layer"),
        "dichotomy_seed": Axis(list(part.seeds), "seed"),
    }
    axes = {"dichotomy_width": Axis(list(part.widths), "width", "neurons")}
    made = train_grid(axes, part, Program("dichotomy", unit, variables, own), session)
    made = made.transpose(*order, ...)
    fits = [[power_law(part.widths, values) for values in rows] for rows in made["change"].values]
    regimes = [limits.classify(*limits.abc(RULES.get(r, r), part.depth)) for r in part.rules]
    changes = [regime.change[: part.depth] for regime in regimes]
    dims, exponent = ("rule", "quantity"), "exponent of the change in the width"
    intervals = [[law.exponent_interval for law in row] for row in fits]
    return made.assign(
        exponent=array(dims, [[law.exponent for law in row] for row in fits], exponent),
        exponent_interval=array((*dims, "end"), intervals, f"{exponent}, 95 % interval"),
        predicted=array(("rule", "layer"), changes, f"{exponent}, predicted"),
        regime=array("rule", [regime.kind for regime in regimes], "regime"),
        r=array("rule", [regime.r for regime in regimes], "exponent r of the parametrization"),
    )


# Finite networks against the explicit limit of one hidden layer


def convergence(config: Any, task: tasks.Task, session: Session) -> xr.Dataset:
    """Loss of finite networks and of the limit along training, and the distance of their outputs after it."""
    part = config.convergence
    batch, test = examples(task, part.num_train, part.num_test)
    batches = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (part.steps, *leaf.shape)), batch)

    def unit(part, system):
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

    variables = {
        "distance": Variable("RMS distance of outputs from the limit's", dims=("width", "seed")),
        "loss": Variable("training loss", dims=("width", "seed", "step")),
        "limit_loss": Variable("training loss of the limit", dims=("step",)),
    }
    own = {**_networks(part), "step": Axis(np.arange(part.steps), "training step", "steps")}
    axes = {"system": Axis(list(part.systems), "network and parametrization")}
    made = train_grid(axes, part, Program("convergence", unit, variables, own), session)
    fits = [power_law(part.widths, rows.T) for rows in made["distance"].values]
    intervals = [law.exponent_interval for law in fits]
    return made.assign(
        slope=array("system", [law.exponent for law in fits], SLOPE),
        slope_interval=array(("system", "end"), intervals, f"{SLOPE}, 95 % interval"),
    )


SLOPE = "exponent of the distance in the width"


def _networks(part: Any) -> dict[str, Axis]:
    return {
        "width": Axis(list(part.widths), "width", "neurons"),
        "seed": Axis(list(part.seeds), "seed"),
    }


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

    def unit(part):
        sizes = {"rank": pi.rank, "hidden_layers": pi.hidden_layers}
        make = functools.partial(pi_net.limit, inputs=test.shape[1], outputs=task.outputs, **sizes)
        start = jax.jit(make, compiler_options=ONCE)(jax.random.key(0))
        goal = outputs(start)
        nets = [[sample(start, jax.random.key(s), n) for n in part.widths] for s in part.seeds]
        distance = [[rms(outputs(net) - goal) for net in row] for row in nets]
        return {"pi_distance": distance, "pi_size": rms(goal)}

    variables = {
        "pi_distance": Variable("RMS distance of outputs from the limit's", dims=("seed", "width")),
        "pi_size": Variable("RMS of the limit's outputs"),
    }
    made = train_grid({}, part, Program("pi-nets", unit, variables, _networks(part)), session)
    law = power_law(part.widths, made["pi_distance"].values)
    return made.assign(
        pi_slope=array((), law.exponent, SLOPE),
        pi_slope_interval=array("end", law.exponent_interval, f"{SLOPE}, 95 % interval"),
    )
