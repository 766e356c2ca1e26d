"""More public architectures on images, written small: functions of their width n, the number of channels."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def norm(x):
    """Batch normalisation by statistics that are fixed."""
    return nn.BatchNorm(use_running_average=True)(x)


def conv_mixer(module, n, x):
    """Depthwise and pointwise convolutions, each with a norm (Trockman & Kolter 2022)."""
    x = norm(nn.gelu(nn.Conv(n, (2, 2), (2, 2))(x)))
    x = x + norm(nn.gelu(nn.Conv(n, (3, 3), feature_group_count=n)(x)))
    x = norm(nn.gelu(nn.Conv(n, (1, 1))(x)))
    return nn.Dense(1)(x.mean((1, 2)))


def swin(module, n, x):
    """Attention within windows, which are shifted in every other block (Liu et al. 2021), without masks."""
    count, height, width, _ = x.shape
    x = nn.Dense(n)(x)
    for shift in (0, 1):
        h = jnp.roll(nn.LayerNorm()(x), (-shift, -shift), (1, 2))
        h = h.reshape(count, height // 2, 2, width // 2, 2, n).transpose(0, 1, 3, 2, 4, 5)
        h = h.reshape(-1, 4, n)
        h = nn.MultiHeadDotProductAttention(2)(h, h)
        h = h.reshape(count, height // 2, width // 2, 2, 2, n).transpose(0, 1, 3, 2, 4, 5)
        x = x + jnp.roll(h.reshape(count, height, width, n), (shift, shift), (1, 2))
        x = x + nn.Dense(n)(nn.gelu(nn.Dense(4 * n)(nn.LayerNorm()(x))))
    return nn.Dense(1)(nn.LayerNorm()(x).mean((1, 2)))


def resnext(module, n, x):
    """Convolutions in four groups (Xie et al. 2017)."""
    x = nn.relu(norm(nn.Conv(n, (3, 3), use_bias=False)(x)))
    h = nn.relu(norm(nn.Conv(n, (1, 1), use_bias=False)(x)))
    h = nn.relu(norm(nn.Conv(n, (3, 3), feature_group_count=4, use_bias=False)(h)))
    x = nn.relu(x + norm(nn.Conv(n, (1, 1), use_bias=False)(h)))
    return nn.Dense(1)(x.mean((1, 2)))


def efficient_net(module, n, x):
    """Inverted bottleneck with squeeze and excitation (Tan & Le 2019), without its depthwise convolution."""
    x = nn.swish(norm(nn.Conv(n, (3, 3), use_bias=False)(x)))
    h = nn.swish(norm(nn.Conv(4 * n, (1, 1), use_bias=False)(x)))
    s = nn.swish(nn.Conv(n // 4, (1, 1))(h.mean((1, 2), keepdims=True)))
    h = h * nn.sigmoid(nn.Conv(4 * n, (1, 1))(s))
    x = x + norm(nn.Conv(n, (1, 1), use_bias=False)(h))
    return nn.Dense(1)(nn.swish(x).mean((1, 2)))


def ddpm_block(x, time, n):
    h = nn.Conv(n, (3, 3))(nn.swish(nn.GroupNorm(4)(x)))
    h = h + nn.Dense(n)(nn.swish(time))[:, None, None]
    h = nn.Conv(n, (3, 3), kernel_init=nn.initializers.zeros)(nn.swish(nn.GroupNorm(4)(h)))
    return (x if x.shape == h.shape else nn.Dense(n)(x)) + h


def ddpm(module, n, x, t):
    """U-Net with group norms and the time added to the channels (Ho et al. 2020)."""
    waves = t[:, None] * jnp.exp(-jnp.arange(4.0))[None]
    time = nn.Dense(n)(jnp.concatenate([jnp.sin(waves), jnp.cos(waves)], -1))
    time = nn.Dense(n)(nn.swish(time))
    skip = ddpm_block(nn.Conv(n, (3, 3))(x), time, n)
    h = ddpm_block(nn.Conv(n, (3, 3), (2, 2))(skip), time, n)
    h = jax.image.resize(h, (*skip.shape[:3], n), "nearest")
    h = ddpm_block(jnp.concatenate([h, skip], -1), time, n)
    return nn.Conv(3, (3, 3))(nn.swish(nn.GroupNorm(4)(h)))


def le_net(module, n, x):
    """LeCun et al. (1998): tanh, average pooling, dense layers."""
    x = nn.avg_pool(nn.tanh(nn.Conv(n, (3, 3), padding="VALID")(x)), (2, 2), (2, 2))
    x = nn.tanh(nn.Dense(n)(x.reshape(x.shape[0], -1)))
    return nn.Dense(3)(nn.tanh(nn.Dense(2 * n)(x)))


def pixel_cnn(module, n, x):
    """Masked convolutions (van den Oord et al. 2016)."""
    for layer in range(2):
        mask = np.ones((3, 3, 1, 1), "float32")
        mask[1, 1 + layer :], mask[2] = 0, 0
        mask = jnp.broadcast_to(mask, (3, 3, x.shape[-1], n))
        x = nn.relu(nn.Conv(n, (3, 3), mask=mask)(x))
    return nn.Dense(1)(x)


def layer_norm_cnn(module, n, x):
    """A norm over pixels and channels, as in many reinforcement learning agents."""
    x = nn.Conv(n, (3, 3))(x)
    axes = (1, 2, 3)
    x = nn.relu(nn.LayerNorm(reduction_axes=axes, use_bias=False, use_scale=False)(x))
    return nn.Dense(1)(x.reshape(x.shape[0], -1))


IMAGE = ("float", (4, 4, 3))
TABLE = {
    "ConvMixer": (conv_mixer, IMAGE),
    "Swin": (swin, IMAGE),
    "ResNeXt": (resnext, IMAGE),
    "EfficientNet": (efficient_net, IMAGE),
    "DDPM": (ddpm, IMAGE, ("float", ())),
    "LeNet": (le_net, IMAGE),
    "PixelCNN": (pixel_cnn, ("float", (3, 3, 1))),
    "layer norm of images": (layer_norm_cnn, IMAGE),
}
