"""Empirical NTK against neural-tangents, each in its best settings: ``python -m benchmarks.empirical``.

Its structured implementation does not run on current JAX (see ``ntk.reference``), so the contenders
are both of its implementations that do, with ``vmap_axes=0``, and ours; the ratio is to its default. First
calls are compilation; ``temp_MB`` is what the compiled program allocates besides arguments and result.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks import harness
from ntk import reference
from ntk.finite.empirical import empirical_ntk_fn


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


def _task(
    title: str, model: nn.Module, inputs: Callable, n: int, trace_axes: tuple
) -> Callable[..., harness.Comparison]:
    def task(runs: int) -> harness.Comparison:
        x = inputs(2 * n)
        x1, x2 = x[:n], x[n:]
        params = jax.jit(model.init)(jax.random.key(0), x1)
        nt = reference.neural_tangents()
        settings = {"ours": empirical_ntk_fn(model.apply, trace_axes, (), 0)}
        for implementation, name in ((1, "jacobian"), (2, "products")):
            settings[f"neural-tangents {name}"] = nt.empirical_ntk_fn(
                model.apply, trace_axes, (), 0, implementation
            )
        memory = {}

        def maker(name):
            def make():
                fn = jax.jit(settings[name])
                return lambda: fn(x1, x2, params)

            return make

        for name, fn in settings.items():
            analysis = jax.jit(fn).lower(x1, x2, params).compile().memory_analysis()
            memory[name] = round(analysis.temp_size_in_bytes / 1e6, 1)
        ours, theirs = (
            jax.jit(settings[k])(x1[:2], x2[:2], params)
            for k in ("ours", "neural-tangents jacobian")
        )
        difference = float(jnp.abs(ours - theirs).max() / jnp.abs(theirs).max())
        return harness.compare(
            title,
            {name: maker(name) for name in settings},
            ours="ours",
            baseline="neural-tangents jacobian",
            runs=runs,
            notes={"temp_MB": memory, "relative_difference": difference},
        )

    return task


TASKS = {
    "mlp_full": _task("MLP 64-512-512-10, 128 x 128, full", MLP(), _vectors, 128, ()),
    "mlp_traced": _task("MLP 64-512-512-10, 128 x 128, traced", MLP(), _vectors, 128, (-1,)),
    "cnn_full": _task("CNN 64 x 2, 16 x 16 images of 16 x 16", CNN(), _images, 16, ()),
    "cnn_traced": _task("CNN 64 x 2, 16 x 16 images of 16 x 16, traced", CNN(), _images, 16, (-1,)),
    "transformer_full": _task("Transformer d 64, 16 x 16 x 32", Transformer(), _tokens, 16, ()),
    "transformer_traced": _task(
        "Transformer d 64, 16 x 16 x 32, traced", Transformer(), _tokens, 16, (-1,)
    ),
}


if __name__ == "__main__":
    harness.main("empirical", TASKS)
