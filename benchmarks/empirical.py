"""Empirical NTK against neural-tangents, each in its best settings: ``python -m benchmarks.empirical``.

Its structured implementation does not run on current JAX (see ``ntk.reference``), so the contenders
are both of its implementations that do, with ``vmap_axes=0``, and ours; the ratio is to its default. First
calls are compilation; ``temp_MB`` is what the compiled program allocates besides arguments and result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import ntk
from benchmarks import harness
from ntk import reference


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (512, 512):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.Conv(64, (3, 3))(x))
        return nn.Dense(10)(x.mean((1, 2)))


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(64, 64)(ids)
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
            x = x + nn.Dense(64)(nn.gelu(nn.Dense(128)(nn.LayerNorm()(x))))
        return nn.Dense(10)(x.mean(1))


def _images(n: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (n, 16, 16, 3))


def _tokens(n: int) -> jax.Array:
    return jax.random.randint(jax.random.key(1), (n, 32), 0, 64)


def _vectors(n: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (n, 64))


class Task(NamedTuple):
    """A network, its inputs, and the axes of its outputs that the kernel is traced over.

    Attributes:
        title: for the table.
        model: a Flax module.
        inputs: number of samples -> inputs.
        samples: in each of the two batches.
        trace_axes: () for the kernel of all pairs of outputs.
    """

    title: str
    model: nn.Module
    inputs: Callable[[int], jax.Array]
    samples: int
    trace_axes: tuple[int, ...]

    def arguments(self) -> tuple[jax.Array, jax.Array, Any]:
        """Both batches and parameters."""
        x = self.inputs(2 * self.samples)
        x1, x2 = x[: self.samples], x[self.samples :]
        return x1, x2, jax.jit(self.model.init)(jax.random.key(0), x1)

    def ours(self) -> tuple[Any, ...]:
        """Our kernel function, and its arguments."""
        fn = ntk.empirical_ntk_fn(self.model.apply, self.trace_axes, (), 0)
        return fn, *self.arguments()


def measure(task: Task, runs: int) -> harness.Comparison:
    """One line of the table."""
    fn, *args = task.ours()
    nt = reference.neural_tangents()
    settings = {"ours": fn}
    for implementation, name in ((1, "jacobian"), (2, "products")):
        settings[f"neural-tangents {name}"] = nt.empirical_ntk_fn(
            task.model.apply, task.trace_axes, (), 0, implementation
        )

    def maker(name: str) -> Callable[[], Callable[[], Any]]:
        def make() -> Callable[[], Any]:
            compiled = jax.jit(settings[name])
            return lambda: compiled(*args)

        return make

    memory = {}
    for name, fn in settings.items():
        analysis = jax.jit(fn).lower(*args).compile().memory_analysis()
        memory[name] = round(analysis.temp_size_in_bytes / 1e6, 1)
    x1, x2, params = args
    ours, theirs = (
        jax.jit(settings[k])(x1[:2], x2[:2], params) for k in ("ours", "neural-tangents jacobian")
    )
    difference = float(jnp.abs(ours - theirs).max() / jnp.abs(theirs).max())
    return harness.compare(
        task.title,
        {name: maker(name) for name in settings},
        ours="ours",
        baseline="neural-tangents jacobian",
        runs=runs,
        notes={"temp_MB": memory, "relative_difference": difference},
    )


TASKS = {
    "mlp_full": Task("MLP 64-512-512-10, 128 x 128, full", MLP(), _vectors, 128, ()),
    "mlp_traced": Task("MLP 64-512-512-10, 128 x 128, traced", MLP(), _vectors, 128, (-1,)),
    "cnn_full": Task("CNN 64 x 2, 16 x 16 images of 16 x 16", CNN(), _images, 16, ()),
    "cnn_traced": Task("CNN 64 x 2, 16 x 16 images of 16 x 16, traced", CNN(), _images, 16, (-1,)),
    "transformer_full": Task("Transformer d 64, 16 x 16 x 32", Transformer(), _tokens, 16, ()),
    "transformer_traced": Task(
        "Transformer d 64, 16 x 16 x 32, traced", Transformer(), _tokens, 16, (-1,)
    ),
}


if __name__ == "__main__":
    harness.main(
        "empirical",
        {name: lambda runs, task=task: measure(task, runs) for name, task in TASKS.items()},
    )
