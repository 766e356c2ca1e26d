"""Convolutional networks for images (N, H, W, C), as functions of their width (channels)."""

from typing import Any

import jax
from flax import linen as nn

from models.fields import check_fields
from models.mlp import Activation, Initializer, Layers, Outputs


class CNN(nn.Module):
    """Plain convolutional network: `depth` convolutions of `width` channels, then a readout.

    Layers are named `hidden_0`, ..., `readout`; padding keeps the image size, divided by `strides`
    at each layer.

    Attributes:
        width: channels of every hidden layer.
        depth: number of convolutions.
        outputs: units of the readout.
        pooling: what comes before the readout: "average" over all positions, or "flatten", which
            keeps them (the readout's fan_in is then H W width).
        activation: elementwise nonlinearity after each convolution.
        kernel_size: side of the square filters.
        strides: stride of every convolution.
        use_bias: whether every layer, the readout included, has a bias.
        kernel_init: initializer of every kernel; the default has variance 1 / fan_in.
        bias_init: initializer of every bias.

    Raises:
        ValueError: `pooling` is neither "average" nor "flatten"; inputs are not (N, H, W, C).
    """

    width: int
    depth: int
    outputs: int
    pooling: str = "average"
    activation: Activation = nn.relu
    kernel_size: int = 3
    strides: int = 1
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros

    def __post_init__(self) -> None:
        sizes = {"width": 1, "depth": 0, "outputs": 1, "kernel_size": 1, "strides": 1}
        check_fields(self, sizes=sizes, functions=("activation", "kernel_init", "bias_init"))
        if self.pooling not in ("average", "flatten"):
            raise ValueError(f"pooling={self.pooling!r} is not one of 'average', 'flatten'.")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, features: bool = False) -> Outputs:
        """Outputs (N, outputs); with `features`, also each layer's pre-activation by name."""
        check_images(x)
        options: dict[str, Any] = {
            "use_bias": self.use_bias,
            "kernel_init": self.kernel_init,
            "bias_init": self.bias_init,
        }
        window, strides, layers = (self.kernel_size,) * 2, (self.strides,) * 2, {}
        for l in range(self.depth):
            name = f"hidden_{l}"
            layers[name] = h = nn.Conv(self.width, window, strides, name=name, **options)(x)
            x = self.activation(h)
        x = x.mean(axis=(1, 2)) if self.pooling == "average" else x.reshape(x.shape[0], -1)
        layers["readout"] = outputs = nn.Dense(self.outputs, name="readout", **options)(x)
        return (outputs, layers) if features else outputs


class ResNet(nn.Module):
    """Pre-activation residual network with average pooling (He et al. 2016, arXiv:1603.05027).

    x_{l+1} = x_l + branch_scale * branch(x_l), each branch being `block_depth` times (norm,
    activation, 3 x 3 convolution). No layer has a bias, but for the shifts of the norms. Layers
    are named `stem`, `block_0/conv_0`, ..., `block_0` (the residual stream after it), `readout`.

    Attributes:
        width: channels of the stem and of the first stage.
        depth: number of residual blocks in all.
        outputs: units of the readout.
        block_depth: convolutions in a block.
        stages: the blocks are split evenly into stages; each later one halves the image and
            doubles the channels through a 1 x 1 convolution on the shortcut. stages=3, depth=12,
            block_depth=2 is WideResNet-28.
        norm: None, "layer" (over channels) or "batch" (over batch and positions, always with the
            statistics of the batch at hand: there are no running averages).
        activation: elementwise nonlinearity.
        branch_scale: depth multiplier of every residual branch.
        kernel_init: initializer of every kernel; the default has variance 1 / fan_in.

    Raises:
        ValueError: an unknown `norm`; `depth` not a multiple of `stages`; inputs not (N, H, W, C).
    """

    width: int
    depth: int
    outputs: int
    block_depth: int = 2
    stages: int = 1
    norm: str | None = None
    activation: Activation = nn.relu
    branch_scale: float = 1.0
    kernel_init: Initializer = nn.initializers.lecun_normal()

    def __post_init__(self) -> None:
        sizes = {"width": 1, "depth": 0, "outputs": 1, "block_depth": 1, "stages": 1}
        check_fields(self, sizes=sizes, functions=("activation", "kernel_init"))
        if self.norm not in (None, "layer", "batch"):
            raise ValueError(f"norm={self.norm!r} is not one of None, 'layer', 'batch'.")
        if self.depth % self.stages:
            raise ValueError(
                f"depth={self.depth} blocks cannot be split evenly into stages={self.stages}:"
                " make depth a multiple of stages."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, features: bool = False) -> Outputs:
        """Outputs (N, outputs); with `features`, also each layer's output by name."""
        check_images(x)
        x = _conv(self.width, self.kernel_init, "stem")(x)
        layers = {"stem": x}
        for l in range(self.depth):
            stage, first = divmod(l, self.depth // self.stages)
            block = _Block(
                channels=self.width * 2**stage,
                depth=self.block_depth,
                strides=2 if stage > 0 and first == 0 else 1,
                norm=self.norm,
                activation=self.activation,
                scale=self.branch_scale,
                kernel_init=self.kernel_init,
                name=f"block_{l}",
            )
            x, inner = block(x)
            layers |= {f"block_{l}/{name}": h for name, h in inner.items()} | {f"block_{l}": x}
        x = self.activation(_normalise(x, self.norm, "norm")).mean(axis=(1, 2))
        readout = nn.Dense(
            self.outputs, use_bias=False, kernel_init=self.kernel_init, name="readout"
        )
        layers["readout"] = outputs = readout(x)
        return (outputs, layers) if features else outputs


class _Block(nn.Module):
    channels: int
    depth: int
    strides: int
    norm: str | None
    activation: Activation
    scale: float
    kernel_init: Initializer

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, Layers]:
        h, layers = x, {}
        for i in range(self.depth):
            h = self.activation(_normalise(h, self.norm, f"norm_{i}"))
            strides = self.strides if i == 0 else 1
            h = _conv(self.channels, self.kernel_init, f"conv_{i}", strides=strides)(h)
            layers[f"conv_{i}"] = h
        if self.strides > 1:
            x = _conv(self.channels, self.kernel_init, "shortcut", strides=self.strides, side=1)(x)
            layers["shortcut"] = x
        return x + self.scale * h, layers


def _conv(
    channels: int, kernel_init: Initializer, name: str, *, strides: int = 1, side: int = 3
) -> nn.Conv:
    return nn.Conv(
        channels, (side, side), strides, use_bias=False, kernel_init=kernel_init, name=name
    )


def _normalise(x: jax.Array, norm: str | None, name: str) -> jax.Array:
    if norm is None:
        return x
    # Layer normalisation over batch and positions is batch normalisation by the batch at hand.
    axes = -1 if norm == "layer" else (0, 1, 2)
    return nn.LayerNorm(reduction_axes=axes, name=name)(x)


def check_images(x: jax.Array) -> None:
    """Raise ValueError unless x has the shape of a batch of images, (N, H, W, C)."""
    if x.ndim != 4:
        raise ValueError(
            f"inputs of shape {x.shape} are not images (N, H, W, C): add the missing axes,"
            " for instance x[..., None] where there is no channel axis."
        )
