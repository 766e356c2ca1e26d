"""CPU seconds to read large models, each in a fresh process, imports not counted: ``python -m benchmarks.reading``.

`limits.parametrize` of BERT-base and ResNet-50, `ntk.infinite_width` of a pre-activation ResNet-18 and of a ViT-B/16,
at their public sizes; no parameter of them is ever made. The floor is what no reading can do without: JAX's own tracing
of `init` (for `infinite_width` of `apply`) at two widths. The ratio is the floor over ours: how far from it we are.
"""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from benchmarks import harness


class EncoderBlock(nn.Module):
    """Attention and two dense layers; the norms first (ViT) or last (BERT)."""

    width: int
    heads: int
    first: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.LayerNorm()(x) if self.first else x
        x = x + nn.MultiHeadDotProductAttention(self.heads)(h, h)
        x = h = nn.LayerNorm()(x) if not self.first else x
        h = nn.LayerNorm()(x) if self.first else x
        x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(h)))
        return x if self.first else nn.LayerNorm()(x)


class Bert(nn.Module):
    """BERT-base at width 768 (Devlin et al. 2019): 12 layers, 12 heads, 30,522 tokens."""

    width: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        n, places, types = self.width, jnp.arange(tokens.shape[1])[None], jnp.zeros_like(tokens)
        x = nn.Embed(30522, n)(tokens) + nn.Embed(512, n)(places) + nn.Embed(2, n)(types)
        x = nn.LayerNorm()(x)
        for _ in range(12):
            x = EncoderBlock(n, 12, first=False)(x)
        return nn.Dense(2)(nn.tanh(nn.Dense(n)(x[:, 0])))


class ViT(nn.Module):
    """ViT-B/16 with 16 heads (Dosovitskiy et al. 2021): class token, learnt positions, 12 layers."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(self.width, (16, 16), (16, 16))(x).reshape(x.shape[0], -1, self.width)
        token = self.param("cls", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], 1)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, x.shape[1], self.width))
        for _ in range(12):
            x = EncoderBlock(self.width, 16, first=True)(x)
        return nn.Dense(1000)(nn.LayerNorm()(x)[:, 0])


def _norm(**options: Any) -> Any:
    return nn.BatchNorm(use_running_average=True, **options)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, or three with a bottleneck (He et al. 2015)."""

    features: int
    stride: int
    bottleneck: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False)
        outputs = 4 * self.features if self.bottleneck else self.features
        if self.bottleneck:
            h = nn.relu(_norm()(conv(self.features, (1, 1))(x)))
            h = nn.relu(_norm()(conv(self.features, (3, 3), self.stride)(h)))
            h = conv(outputs, (1, 1))(h)
        else:
            h = nn.relu(_norm()(conv(self.features, (3, 3), self.stride)(x)))
            h = conv(self.features, (3, 3))(h)
        h = _norm()(h)
        if x.shape != h.shape:
            x = _norm()(conv(outputs, (1, 1), self.stride)(x))
        return nn.relu(x + h)


class PreactivationBlock(nn.Module):
    """Norms and nonlinearities before each of two convolutions (He et al. 2016)."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False)
        h = nn.relu(_norm()(x))
        if self.stride > 1 or x.shape[-1] != self.features:
            x = conv(self.features, (1, 1), self.stride)(h)
        h = conv(self.features, (3, 3), self.stride)(h)
        return x + conv(self.features, (3, 3))(nn.relu(_norm()(h)))


class PreactivationResNet(nn.Module):
    """A ResNet for ImageNet whose sums are of convolutions alone, 64 channels wide (He et al. 2016).

    Those of the first ResNets are of maxima, whose joint law over all pixels is drawn, up to 256 of them.
    """

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(self.width, (7, 7), 2, use_bias=False)(x)
        for stage in range(4):
            for k in range(2):
                stride = 2 if stage and not k else 1
                x = PreactivationBlock(self.width * 2**stage, stride)(x)
        return nn.Dense(1000)(nn.relu(_norm()(x)).mean((1, 2)))


class ResNet(nn.Module):
    """A ResNet for ImageNet, 64 channels wide (He et al. 2015), its first pooling by averages."""

    width: int
    blocks: tuple[int, ...]
    bottleneck: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(_norm()(nn.Conv(self.width, (7, 7), 2, use_bias=False)(x)))
        x = nn.avg_pool(x, (3, 3), (2, 2), padding="SAME")
        for stage, count in enumerate(self.blocks):
            for k in range(count):
                stride = 2 if stage and not k else 1
                x = ResidualBlock(self.width * 2**stage, stride, self.bottleneck)(x)
        return nn.Dense(1000)(x.mean((1, 2)))


class Task(NamedTuple):
    """What is read, and how.

    Attributes:
        family: the model at each width.
        example: shape of the inputs.
        widths: (base width, width) for `parametrize`; None for `infinite_width`.
    """

    family: Callable[[int], Any]
    example: Any
    widths: tuple[int, int] | None


IMAGE = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((1, 128), jnp.int32)
RESNET_50 = functools.partial(ResNet, blocks=(3, 4, 6, 3), bottleneck=True)
TASKS = {
    "parametrize_bert_base": Task(Bert, TOKENS, (192, 768)),
    "parametrize_resnet_50": Task(RESNET_50, IMAGE, (16, 64)),
    "infinite_width_resnet_18": Task(PreactivationResNet, IMAGE, None),
    "infinite_width_vit_b_16": Task(ViT, IMAGE, None),
}


def read(task: Task) -> Any:
    """Reads the model of a task."""
    if task.widths is None:
        import ntk

        return ntk.infinite_width(task.family, task.example)
    import limits

    base, width = task.widths
    return limits.parametrize(
        task.family, "mup", width=width, base_width=base, example=task.example
    )


def floor(task: Task) -> Any:
    """JAX's own tracing of the model at two widths."""
    key, found = jax.random.key(0), []
    for width in task.widths or (64, 256):
        model = task.family(width)
        params = jax.eval_shape(model.init, key, task.example)
        found.append(params)
        if task.widths is None:
            found.append(jax.make_jaxpr(model.apply)(params, task.example))
    return found


def seconds(task: Task, what: Callable[[Task], Any]) -> float:
    """Of one reading in this process."""
    import limits  # noqa: F401  # its import is not counted

    start = time.process_time()
    what(task)
    return time.process_time() - start


def _fresh(name: str, what: str) -> float:
    words = [sys.executable, "-m", "benchmarks.reading", what, name]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def _row(name: str, runs: int) -> harness.Comparison:
    found: dict[str, list[float]] = {"ours": [], "floor": []}
    for _ in range(runs):
        for what, times in found.items():
            times.append(_fresh(name, what))
    timings = {w: harness.Timing(statistics.median(t), t, t) for w, t in found.items()}
    ratio = [b / a for a, b in zip(found["ours"], found["floor"])]
    return harness.Comparison(name, timings, "ours", "floor", ratio, ratio, {})


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["ours", name]:
            print(seconds(TASKS[name], read))
        case ["floor", name]:
            print(seconds(TASKS[name], floor))
        case _:
            harness.main("reading", {name: functools.partial(_row, name) for name in TASKS})
