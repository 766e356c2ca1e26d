"""Public architectures on images, written small: functions of their width n, the number of channels."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax


def norm(x):
    """Batch normalisation by statistics that are fixed."""
    return nn.BatchNorm(use_running_average=True)(x)


def cnn(module, n, x):
    """Convolutions and average pooling, as in Flax's MNIST example."""
    for _ in range(2):
        x = nn.avg_pool(nn.relu(nn.Conv(n, (3, 3))(x)), (2, 2), (2, 2))
    return nn.Dense(1)(nn.relu(nn.Dense(n)(x.reshape(x.shape[0], -1))))


def vgg(module, n, x):
    """Blocks of 3 x 3 convolutions with max pooling (Simonyan & Zisserman 2015)."""
    for features in (n, 2 * n):
        x = nn.relu(nn.Conv(features, (3, 3))(nn.relu(nn.Conv(features, (3, 3))(x))))
        x = nn.max_pool(x, (2, 2), (2, 2))
    return nn.Dense(1)(x.reshape(x.shape[0], -1))


def resnet(module, n, x):
    """Post-activation ResNet (He et al. 2015), batch norms with fixed statistics, the last gains at zero."""
    x = nn.relu(norm(nn.Conv(n, (3, 3), use_bias=False)(x)))
    for features, stride in ((n, 1), (2 * n, 2)):
        h = nn.relu(norm(nn.Conv(features, (3, 3), stride, use_bias=False)(x)))
        h = nn.Conv(features, (3, 3), use_bias=False)(h)
        h = nn.BatchNorm(use_running_average=True, scale_init=nn.initializers.zeros)(h)
        if stride == 2:
            x = norm(nn.Conv(features, (1, 1), stride, use_bias=False)(x))
        x = nn.relu(x + h)
    return nn.Dense(1)(x.mean((1, 2)))


def preact_resnet(module, n, x):
    """Pre-activation ResNet (He et al. 2016) without norms."""
    x = nn.Conv(n, (3, 3))(x)
    for _ in range(2):
        h = nn.Conv(n, (3, 3))(nn.relu(x))
        x = x + nn.Conv(n, (3, 3))(nn.relu(h))
    return nn.Dense(1)(nn.relu(x).mean((1, 2)))


def wide_resnet(module, n, x):
    """The stem has 4 channels whatever the width (Zagoruyko & Komodakis 2016)."""
    x = nn.Conv(4, (3, 3), use_bias=False)(x)
    h = nn.Conv(n, (3, 3), use_bias=False)(nn.relu(norm(x)))
    h = nn.Conv(n, (3, 3), use_bias=False)(nn.relu(norm(h)))
    x = nn.Conv(n, (1, 1), use_bias=False)(x) + h
    return nn.Dense(1)(nn.relu(norm(x)).mean((1, 2)))


class StdConv(nn.Conv):
    """A convolution whose weights are standardised over the fan-in of each output."""

    def param(self, name, *args, **kwargs):
        w = super().param(name, *args, **kwargs)
        if name != "kernel":
            return w
        w = w - w.mean((0, 1, 2), keepdims=True)
        return w / jnp.sqrt(w.var((0, 1, 2), keepdims=True) * w[..., 0].size + 1e-10)


def big_transfer(module, n, x):
    """Standardised convolutions and group norms (Kolesnikov et al. 2020)."""
    x = nn.Conv(n, (3, 3), use_bias=False)(x)
    h = nn.relu(nn.GroupNorm(1)(x))
    x = x + StdConv(n, (3, 3), use_bias=False)(h)
    return nn.Dense(1)(nn.relu(nn.GroupNorm(1)(x)).mean((1, 2)))


def se_net(module, n, x):
    """Channels weighed by what all pixels hold (Hu et al. 2018)."""
    x = nn.relu(nn.Conv(n, (3, 3))(x))
    h = nn.Conv(n, (3, 3))(x)
    gate = nn.sigmoid(nn.Dense(n)(nn.relu(nn.Dense(n // 4)(h.mean((1, 2))))))
    x = x + h * gate[:, None, None]
    return nn.Dense(1)(x.mean((1, 2)))


def inception(module, n, x):
    """Branches side by side (Szegedy et al. 2015), pooling by averages."""
    x = nn.relu(nn.Conv(n, (3, 3))(x))
    branches = [nn.Conv(n, (1, 1))(x), nn.Conv(n, (3, 3))(nn.relu(nn.Conv(n, (1, 1))(x)))]
    branches += [nn.Conv(n, (1, 1))(nn.avg_pool(x, (3, 3), padding="SAME"))]
    return nn.Dense(1)(nn.relu(jnp.concatenate(branches, -1)).mean((1, 2)))


def u_net(module, n, x):
    """Down, up by nearest neighbours, and a skip side by side (Ronneberger et al. 2015)."""
    skip = nn.relu(nn.Conv(n, (3, 3))(x))
    h = nn.relu(nn.Conv(n, (3, 3))(nn.avg_pool(skip, (2, 2), (2, 2))))
    h = nn.Conv(n, (3, 3))(jnp.repeat(jnp.repeat(h, 2, 1), 2, 2))
    h = nn.relu(nn.Conv(n, (3, 3))(jnp.concatenate([nn.relu(h), skip], -1)))
    return nn.Conv(1, (1, 1))(h)


def dcgan_generator(module, n, x):
    """Transposed convolutions from a code (Radford et al. 2016)."""
    x = nn.Dense(2 * 2 * n)(x).reshape(x.shape[0], 2, 2, n)
    x = nn.ConvTranspose(n, (3, 3), (2, 2))(nn.relu(norm(x)))
    return nn.ConvTranspose(1, (4, 4), (2, 2), padding="SAME")(nn.relu(norm(x)))


def conv_next(module, n, x):
    """Depthwise convolutions, layer norm, and two pointwise layers (Liu et al. 2022)."""
    x = nn.LayerNorm()(nn.Conv(n, (2, 2), (2, 2))(x))
    h = nn.Conv(n, (3, 3), feature_group_count=n)(x)
    h = nn.Dense(n)(nn.gelu(nn.Dense(4 * n)(nn.LayerNorm()(h))))
    return nn.Dense(1)(nn.LayerNorm()((x + h).mean((1, 2))))


def mobile_net(module, n, x):
    """Depthwise and pointwise convolutions, each with a ReLU (Howard et al. 2017)."""
    x = nn.relu(nn.Conv(n, (3, 3))(x))
    x = nn.relu(norm(nn.Conv(n, (3, 3), feature_group_count=n, use_bias=False)(x)))
    return nn.Dense(1)(nn.relu(norm(nn.Conv(n, (1, 1), use_bias=False)(x))).mean((1, 2)))


def dilated_context(module, n, x):
    """Dilated convolutions (Yu & Koltun 2016)."""
    for dilation in (1, 2):
        x = nn.relu(nn.Conv(n, (3, 3), kernel_dilation=dilation)(x))
    return nn.Dense(1)(x.mean((1, 2)))


def style_net(module, n, x):
    """Instance norms between convolutions (Johnson et al. 2016)."""
    for _ in range(2):
        x = nn.relu(nn.InstanceNorm()(nn.Conv(n, (3, 3))(x)))
    return nn.Dense(1)(x.mean((1, 2)))


def dqn(module, n, x):
    """The Atari network (Mnih et al. 2015): strides, then a dense layer; frames are integers."""
    x = x.astype(jnp.float32) / 255.0
    x = nn.relu(nn.Conv(n, (2, 2), (2, 2))(x))
    x = nn.relu(nn.Conv(n, (3, 3), padding="VALID")(x))
    return nn.Dense(3)(nn.relu(nn.Dense(n)(x.reshape(x.shape[0], -1))))


def mlp_mixer(module, n, x):
    """Mixing of patches and of channels (Tolstikhin et al. 2021)."""
    x = nn.Conv(n, (2, 2), (2, 2))(x).reshape(x.shape[0], 4, n)
    h = jnp.swapaxes(nn.LayerNorm()(x), 1, 2)
    x = x + jnp.swapaxes(nn.Dense(4)(nn.gelu(nn.Dense(8)(h))), 1, 2)
    x = x + nn.Dense(n)(nn.gelu(nn.Dense(2 * n)(nn.LayerNorm()(x))))
    return nn.Dense(1)(nn.LayerNorm()(x).mean(1))


def encoder(x, n, heads=2):
    """One block of a transformer, norms first."""
    h = nn.LayerNorm()(x)
    x = x + nn.MultiHeadDotProductAttention(heads)(h, h)
    return x + nn.Dense(n)(nn.gelu(nn.Dense(2 * n)(nn.LayerNorm()(x))))


def patches(x, n):
    x = nn.Conv(n, (2, 2), (2, 2), padding="VALID")(x)
    return x.reshape(x.shape[0], -1, n)


def vit(module, n, x):
    """Class token and learnt positions; the head starts at zero (Dosovitskiy et al. 2021)."""
    x = patches(x, n)
    token = module.param("cls", nn.initializers.zeros, (1, 1, n))
    x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], 1)
    x = x + module.param("positions", nn.initializers.normal(0.02), (1, x.shape[1], n))
    x = nn.LayerNorm()(encoder(x, n))
    return nn.Dense(2, kernel_init=nn.initializers.zeros)(x[:, 0])


def sincos_2d(side, n):
    """Sines and cosines of both coordinates of a patch, (1, side^2, n)."""
    y, x = jnp.mgrid[:side, :side]
    omega = 1.0 / 100.0 ** (jnp.arange(n // 4) / (n // 4 - 1))
    y, x = (jnp.einsum("m,d->md", z.flatten().astype(omega.dtype), omega) for z in (y, x))
    return jnp.concatenate([jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], axis=1)[None]


def simple_vit(module, n, x):
    """Fixed positions of sines, mean over patches (Beyer et al. 2022)."""
    x = patches(x, n)
    x = x + sincos_2d(2, n)
    x = nn.LayerNorm()(encoder(x, n)).mean(1)
    return nn.Dense(1)(x)


def dit(module, n, x, t):
    """A block of a diffusion transformer, shifts and gains by the time, gates at zero (Peebles & Xie 2023)."""
    x = patches(x, n)
    waves = t[:, None] * jnp.exp(-jnp.arange(3.0))[None]
    c = nn.silu(nn.Dense(n)(jnp.concatenate([jnp.cos(waves), jnp.sin(waves)], -1)))
    c = nn.Dense(6 * n, kernel_init=nn.initializers.zeros)(c)[:, None]
    shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(c, 6, -1)
    h = nn.LayerNorm(use_bias=False, use_scale=False)(x) * (1 + scale1) + shift1
    x = x + gate1 * nn.MultiHeadDotProductAttention(2)(h, h)
    h = nn.LayerNorm(use_bias=False, use_scale=False)(x) * (1 + scale2) + shift2
    x = x + gate2 * nn.Dense(n)(nn.gelu(nn.Dense(2 * n)(h)))
    return nn.Dense(4)(nn.LayerNorm()(x))


def fno(module, n, x):
    """Weights on the lowest Fourier modes of a field, beside pointwise ones (Li et al. 2021)."""
    x = nn.Dense(n)(x)
    init = nn.initializers.normal(n**-0.5)
    real, imaginary = (module.param(name, init, (2, n, n)) for name in ("real", "imaginary"))
    modes = jnp.einsum("bmc,mcd->bmd", jnp.fft.rfft(x, axis=1)[:, :2], lax.complex(real, imaginary))
    x = nn.gelu(jnp.fft.irfft(modes, x.shape[1], axis=1) + nn.Dense(n)(x))
    return nn.Dense(1)(x)


def dense_net(module, n, x):
    """Every layer reads all before it (Huang et al. 2017)."""
    x = nn.Conv(n, (3, 3))(x)
    for _ in range(2):
        x = jnp.concatenate([x, nn.Conv(n, (3, 3))(nn.relu(x))], -1)
    return nn.Dense(1)(nn.relu(x).mean((1, 2)))


IMAGE = ("float", (4, 4, 3))
TABLE = {
    "CNN": (cnn, IMAGE),
    "VGG": (vgg, IMAGE),
    "ResNet": (resnet, IMAGE),
    "pre-activation ResNet": (preact_resnet, IMAGE),
    "Wide ResNet": (wide_resnet, IMAGE),
    "BiT": (big_transfer, IMAGE),
    "SE-Net": (se_net, IMAGE),
    "Inception": (inception, IMAGE),
    "DenseNet": (dense_net, IMAGE),
    "U-Net": (u_net, IMAGE),
    "DCGAN generator": (dcgan_generator, ("float", (5,))),
    "ConvNeXt": (conv_next, IMAGE),
    "MobileNet": (mobile_net, IMAGE),
    "dilated convolutions": (dilated_context, IMAGE),
    "style network": (style_net, IMAGE),
    "DQN": (dqn, ("integer", (6, 6, 2), 256)),
    "MLP-Mixer": (mlp_mixer, IMAGE),
    "ViT": (vit, IMAGE),
    "SimpleViT": (simple_vit, IMAGE),
    "DiT": (dit, IMAGE, ("float", ())),
    "FNO": (fno, ("float", (6, 2))),
}
