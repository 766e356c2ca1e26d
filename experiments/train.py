"""The compiled training loop: everything about a run but its learning rate and its seed, compiled once.

A `Program` trains one run at a time, or many at once (vmapped over a leading run axis, sharded over
devices). Learning rate and seed are arguments, so that a sweep compiles once per shape.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from metrics import checks
from metrics.estimate import norm
from ntk import jaxprs
from ntk.large import processes

# Streams of random numbers of one seed; a step's batch is fold_in(stream, step), so any step can be replayed.
INIT, BATCHES, PROBE = range(3)

# What runs once: initialisers compile twice as fast, and run as fast (at level 0 they run eight times slower).
ONCE = {"xla_backend_optimization_level": 1}


class State(NamedTuple):
    """What a run carries from step to step."""

    params: Any
    opt_state: Any
    step: jax.Array
    carry: Any  # of the probe, for instance the start vector of the next Lanczos
    memory: Any = ()  # of the loss, where it has one


class Setup(NamedTuple):
    """What is trained: ``init(key) -> params``, ``loss(params, batch) -> scalar``, and
    ``optimizer(learning_rate) -> optax.GradientTransformation`` (the rate may be traced).

    A loss that remembers, such as `losses.early_learning`, has ``memory(data)``, what it starts from; it is then
    ``loss(params, batch, memory) -> (scalar, memory)``."""

    init: Callable
    loss: Callable
    optimizer: Callable
    memory: Callable | None = None


class Probe(NamedTuple):
    """A measurement between chunks of training.

    ``start(params, key, data) -> carry``; ``measure(params, carry, learning_rate, data) -> (carry, {name: array})``.
    """

    start: Callable
    measure: Callable


class Program(NamedTuple):
    """Compiled functions of one shape; with ``runs`` set, every argument has a leading run axis.

    ``start(learning_rate, seed, data) -> State``; ``advance(state, learning_rate, seed, data) -> (state, losses)``
    where losses has one entry per step; ``measure(state, learning_rate, data) -> (state, {name: scalar})``.
    ``place(tree, of_runs)`` puts arrays where the program takes them: data, so that this is not done in every call, or
    with of_runs a state. ``share`` is this process among those whose devices train.
    """

    start: Callable
    advance: Callable
    measure: Callable
    steps: int
    runs: int | None
    compile_seconds: float
    devices: int = 1
    place: Callable = lambda tree, of_runs: tree
    share: processes.Share = processes.Share()


def sam(
    learning_rate: Any, radius: Any = 0.05, momentum: float | None = None
) -> optax.GradientTransformationExtraArgs:
    """Sharpness-aware minimisation: descent by the gradient at w + radius g/|g|, two gradients of one batch a step.

    Args:
        learning_rate: a number, at least 0, a traced one or a schedule.
        radius: rho, at least 0, in the units of the parameters, or a schedule; 0 is plain descent.
        momentum: of the outer step, at least 0 and below 1; none by default.

    Returns:
        Its update needs ``grad_fn(params, _)``, the gradient on the batch; `training_step` and `fit` give it. Where the
        gradient is zero it looks nowhere else.

    Raises:
        TypeError: an argument is no number; of its update: there is no grad_fn.
        ValueError: an argument is out of range.

    Source: Foret et al. (2021), arXiv:2010.01412, equations 2 and 3.
    """
    for name, value in (("learning_rate", learning_rate), ("radius", radius)):
        if not callable(value):
            checks.within(name, value, lambda x: (x >= 0) & np.isfinite(x), "at least 0 and finite")
    if momentum is not None:
        checks.within("momentum", momentum, lambda x: (x >= 0) & (x < 1), "at least 0 and below 1")
    ascent = optax.chain(optax.stateless(_direction), optax.sgd(radius))
    both = optax.contrib.sam(optax.sgd(learning_rate, momentum), ascent, opaque_mode=True)

    def update(updates, state, params=None, *, grad_fn=None, **_):
        if grad_fn is None:
            raise TypeError(
                "sam's update needs grad_fn, a function (params, _) -> gradient on the batch: train with training_step "
                "or fit, or call update(gradient, state, params, grad_fn=...)"
            )
        return both.update(updates, state, params, grad_fn=grad_fn)

    return optax.GradientTransformationExtraArgs(both.init, update)


def _direction(gradient: Any, params: Any = None) -> Any:
    """The gradient over its norm at any scale, 0 where it is 0."""
    wide = jax.tree.map(lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32)), gradient)
    size = norm(jnp.stack([norm(g) for g in jax.tree.leaves(wide) if g.size]))
    size = jnp.where(size == 0, 1, size)
    return jax.tree.map(lambda g, w: (w / size).astype(g.dtype), gradient, wide)


OPTIMIZERS = {"sgd": optax.sgd, "adam": optax.adam, "sam": sam}
"""Optimizers by name, functions of the learning rate."""


def stream(seed: jax.Array, name: int) -> jax.Array:
    """The key of one named stream of a seed."""
    return jax.random.fold_in(jax.random.key(seed), name)


def draw_batch(seed: jax.Array, step: jax.Array, train: Any, batch_size: int | None) -> Any:
    """The minibatch of one step: uniform with replacement, a function of (seed, step) alone; None is full batch."""
    if batch_size is None:
        return train
    size = jax.tree.leaves(train)[0].shape[0]
    key = jax.random.fold_in(stream(seed, BATCHES), step)
    rows = jax.random.randint(key, (batch_size,), 0, size)
    return jax.tree.map(lambda leaf: leaf[rows], train)


def training_step(
    setup: Callable, batch_size: int | None, constrain: Callable = lambda b: b
) -> Callable:
    """One step of training as a pure function ``(state, learning_rate, seed, data) -> (state, loss)``.

    Args:
        setup: ``data -> Setup``.
        batch_size: examples per step, or None for the full batch.
        constrain: places the batch on devices.
    """

    def step(state: State, learning_rate: jax.Array, seed: jax.Array, data: Any):
        _, loss, optimizer, memory = setup(data)
        batch = constrain(draw_batch(seed, state.step, data["train"], batch_size))

        def remembering(params, batch):
            return loss(params, batch, state.memory) if memory else (loss(params, batch), ())

        slope = jax.value_and_grad(remembering, has_aux=True)
        (value, remembered), gradient = slope(state.params, batch)
        updates, opt_state = optax.with_extra_args_support(optimizer(learning_rate)).update(
            gradient,
            state.opt_state,
            state.params,
            grad_fn=lambda params, _: slope(params, batch)[1],  # of those that look elsewhere
        )
        params = optax.apply_updates(state.params, updates)
        return State(params, opt_state, state.step + 1, state.carry, remembered), value

    return step


def contains_convolution(function: Callable, *arguments: Any) -> bool:
    """Whether the jaxpr of ``function(*arguments)`` has a convolution, at any depth."""
    program = jax.make_jaxpr(function)(*arguments)
    return jaxprs.contains(program.jaxpr, {"conv_general_dilated"})


def compile_program(
    setup: Callable,
    data: Any,
    *,
    steps: int,
    batch_size: int | None,
    probe: Probe,
    runs: int | None = None,
    devices: int = 1,
) -> Program:
    """Compiles one training program ahead of time, so that nothing can compile later.

    Args:
        setup: ``data -> Setup``, called while tracing. What differs between programs of one shape (the factors
            of a parametrization, for instance) is best put in ``data``: then they share this compilation.
        data: {"train": batch, ...}; batch is a pytree of arrays with a leading example axis, the rest is free.
        steps: training steps per call of ``advance``.
        batch_size: examples per step; None for the full batch.
        probe: what is measured between calls.
        runs: how many runs one call trains (a multiple of ``devices``); None for one run without a run axis.
        devices: shards the runs, or without ``runs`` the batch of one run, over this many devices. In a job of
            several processes (``jax.distributed.initialize()``) either this process's own or all there are; with all
            every process makes the same calls on the same data, and losses and measurements reach all.

    Raises:
        ValueError: fewer devices are there, or they do not divide the runs or the batch.
    """
    chosen = _devices(runs, batch_size, data, devices)
    mesh = jax.make_mesh(
        (devices,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,), devices=chosen
    )
    share, _ = processes.share(chosen)
    everywhere = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec("devices"))
    by_run = everywhere if runs is None else split
    shard_batch = devices > 1 and runs is None
    constrain = (
        (lambda batch: jax.lax.with_sharding_constraint(batch, split))
        if shard_batch
        else lambda batch: batch
    )
    step = training_step(setup, batch_size, constrain)

    def start(learning_rate, seed, data):
        init, _, optimizer, memory = setup(data)
        params = init(stream(seed, INIT))
        carry = probe.start(params, stream(seed, PROBE), data)
        opt_state, zero = optimizer(learning_rate).init(params), jnp.zeros((), jnp.int32)
        return State(params, opt_state, zero, carry, memory(data) if memory else ())

    def advance(state, learning_rate, seed, data):
        return jax.lax.scan(
            lambda state, _: step(state, learning_rate, seed, data), state, length=steps
        )

    def measure(state, learning_rate, data):
        carry, values = probe.measure(state.params, state.carry, learning_rate, data)
        return state._replace(carry=carry), values

    rate, seed = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.uint32)
    # XLA's CPU backend runs a convolution inside a compiled loop about 50 times slower: step it there.
    stepped = jax.default_backend() == "cpu" and contains_convolution(
        lambda r, s, d: step(start(r, s, d), r, s, d), rate, seed, data
    )
    if stepped:
        advance = step
    if runs is not None:
        start, measure, advance = (
            jax.vmap(start, (0, 0, None)),
            jax.vmap(measure, (0, 0, None)),
            jax.vmap(advance, (0, 0, 0, None)),
        )
        rate, seed = jnp.zeros((runs,), jnp.float32), jnp.zeros((runs,), jnp.uint32)

    def place(tree: Any, of_runs: bool) -> Any:
        if share.size > 1:
            return processes.placed(tree, by_run if of_runs else everywhere)
        return jax.device_put(tree, by_run) if of_runs else tree

    begin = time.perf_counter()
    data = place(data, False)
    # What is read on the host is there in every process.
    read = everywhere if share.size > 1 else by_run
    compiled_start = _compile(
        start, (by_run, by_run, everywhere), by_run, rate, seed, data, options=ONCE
    )
    state = jax.eval_shape(start, rate, seed, data)
    compiled_advance = _compile(
        advance,
        (by_run, by_run, by_run, everywhere),
        (by_run, read),
        *(state, rate, seed, data),
        donate_argnums=0,
    )
    compiled_measure = _compile(
        measure, (by_run, by_run, everywhere), (by_run, read), state, rate, data, donate_argnums=0
    )
    return Program(
        compiled_start,
        functools.partial(_advance_by_steps, compiled_advance, steps)
        if stepped
        else compiled_advance,
        compiled_measure,
        steps,
        runs,
        time.perf_counter() - begin,
        devices,
        place,
        share,
    )


def _compile(function, in_shardings, out_shardings, *arguments, donate_argnums=(), options=None):
    jitted = jax.jit(
        function,
        in_shardings=in_shardings,
        out_shardings=out_shardings,
        donate_argnums=donate_argnums,
        compiler_options=options,
    )
    if all(sharding.is_fully_addressable for sharding in in_shardings):
        return jitted.lower(*arguments).compile()
    arguments = tuple(jax.tree.map(_shape, argument) for argument in arguments)
    compiled = jitted.lower(*arguments).compile()

    def placing(*arguments):
        return compiled(*map(processes.placed, arguments, in_shardings))

    return placing


def _shape(value: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(value.shape, value.dtype)


def _advance_by_steps(step, steps, state, learning_rate, seed, data):
    losses = []
    for _ in range(steps):
        state, loss = step(state, learning_rate, seed, data)
        losses.append(loss)
    return state, np.stack(jax.device_get(losses), axis=-1)


def _devices(
    runs: int | None, batch_size: int | None, data: Any, devices: int
) -> tuple[jax.Device, ...]:
    """So many devices: of this process, or else all."""
    there, own = len(jax.devices()), jax.local_devices()
    if not 1 <= devices <= there:
        raise ValueError(
            f"devices is {devices}, but there are {there}; ask for 1 to {there} "
            "(on a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=N makes N virtual ones)"
        )
    if len(own) < devices < there:
        raise ValueError(
            f"devices is {devices}, but this process has {len(own)} and the job {there}; ask for all {there}, or for 1 "
            f"to {len(own)} in each process"
        )
    if runs is not None and runs % devices:
        raise ValueError(
            f"{runs} runs cannot be split over {devices} devices: pad them to a multiple"
        )
    if runs is None and batch_size is not None and batch_size % devices:
        raise ValueError(
            f"a batch of {batch_size} cannot be split over {devices} devices: make it a multiple"
        )
    if runs is None and batch_size is None and devices > 1:
        examples = jax.tree.leaves(data["train"])[0].shape[0]
        if examples % devices:
            raise ValueError(
                f"a full batch of {examples} cannot be split over {devices} devices: make it a multiple"
            )
    return tuple(own[:devices] if devices <= len(own) else jax.devices())


def fit(loss: Callable, params: Any, optimizer: Any, key: jax.Array, steps: int) -> Any:
    """Parameters after so many steps on ``loss(params, key)``, which draws batch and noise from a key of each step.

    For small networks inside of a compiled function: nothing is measured, kept or resumed on the way.

    Args:
        loss: a scalar.
        params: pytree of arrays.
        optimizer: an optax.GradientTransformation; one that looks elsewhere, as `sam`, does so with the same key.
        key: PRNG key, of all steps.
        steps: updates.
    """

    def step(state, key):
        params, memory = state
        slope = jax.grad(loss)
        updates, memory = optax.with_extra_args_support(optimizer).update(
            slope(params, key), memory, params, grad_fn=lambda elsewhere, _: slope(elsewhere, key)
        )
        return (optax.apply_updates(params, updates), memory), None

    state = params, optimizer.init(params)
    return jax.lax.scan(step, state, jax.random.split(key, steps))[0][0]
