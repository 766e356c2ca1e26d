"""More public architectures on sequences and tokens, written small: functions of their width n."""

import flax.linen as nn
import jax.numpy as jnp

VOCABULARY = 6


def embed(n, tokens, size=VOCABULARY):
    return nn.Embed(size, n, embedding_init=nn.initializers.normal(1.0))(tokens)


def heads(x, n):
    return [nn.DenseGeneral((2, n // 2), use_bias=False)(x) for _ in range(3)]


def merge(x, n):
    return nn.DenseGeneral(n, (-2, -1), use_bias=False)(x)


def alibi(module, n, tokens):
    """Scores fall with the distance (Press et al. 2022)."""
    length = tokens.shape[1]
    x = embed(n, tokens)
    q, k, v = heads(nn.RMSNorm()(x), n)
    lag = jnp.arange(length)[None] - jnp.arange(length)[:, None]
    slopes = 2.0 ** -(4 * jnp.arange(1, 3))
    bias = jnp.where(lag[None] > 0, -1e9, slopes[:, None, None] * lag[None])[None]
    x = x + merge(nn.dot_product_attention(q, k, v, bias=bias), n)
    return nn.Dense(VOCABULARY, use_bias=False)(nn.RMSNorm()(x))


def t5(module, n, tokens):
    """Learnt biases of relative positions in buckets (Raffel et al. 2020)."""
    length = tokens.shape[1]
    x = embed(n, tokens)
    q, k, v = heads(nn.RMSNorm()(x), n)
    lag = jnp.arange(length)[None] - jnp.arange(length)[:, None]
    buckets = jnp.where(lag > 0, 4, 0) + jnp.minimum(jnp.abs(lag), 3)
    bias = nn.Embed(8, 2)(buckets).transpose(2, 0, 1)[None]
    x = x + merge(nn.dot_product_attention(q, k, v, bias=bias), n)
    x = x + nn.Dense(n)(nn.relu(nn.Dense(4 * n)(nn.RMSNorm()(x))))
    return nn.Dense(VOCABULARY, use_bias=False)(nn.RMSNorm()(x))


def bert_of_pairs(module, n, tokens, segments, mask):
    """Segments and padding are inputs of integers (Devlin et al. 2019)."""
    x = embed(n, tokens) + embed(n, segments, 2)
    x = x + module.param("positions", nn.initializers.normal(0.02), (1, 8, n))[:, : tokens.shape[1]]
    x = nn.LayerNorm(1e-12)(x)
    h = nn.MultiHeadDotProductAttention(2)(x, x, mask=(mask > 0)[:, None, None])
    x = nn.LayerNorm(1e-12)(x + h)
    x = nn.LayerNorm(1e-12)(x + nn.Dense(n)(nn.gelu(nn.Dense(4 * n)(x))))
    return nn.Dense(2)(nn.tanh(nn.Dense(n)(x[:, 0])))


def decision_transformer(module, n, returns, states, actions, steps):
    """Tokens of returns, states and actions in turn (Chen et al. 2021)."""
    count, length, _ = states.shape
    time = nn.Embed(10, n, embedding_init=nn.initializers.normal(1.0))(steps)
    kinds = (returns[..., None], states, actions)
    x = jnp.stack([nn.Dense(n)(z) + time for z in kinds], 2).reshape(count, 3 * length, n)
    h = nn.LayerNorm()(x)
    mask = nn.make_causal_mask(jnp.ones((count, 3 * length)))
    x = x + nn.MultiHeadDotProductAttention(2)(h, h, mask=mask)
    x = x + nn.Dense(n)(nn.gelu(nn.Dense(4 * n)(nn.LayerNorm()(x))))
    return nn.Dense(2)(nn.LayerNorm()(x).reshape(count, length, 3, n)[:, :, 1])


class Block(nn.Module):
    """A block of a transformer, as nn.scan wants it."""

    width: int

    @nn.compact
    def __call__(self, x, _):
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(2)(h, h)
        h = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
        return x + nn.Dense(self.width)(h), None


def scanned(module, n, tokens):
    """Blocks by nn.scan of nn.remat, as large models are written."""
    blocks = nn.scan(
        nn.remat(Block),
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
        length=2,
    )
    x, _ = blocks(n)(embed(n, tokens), None)
    return nn.Dense(VOCABULARY)(nn.LayerNorm()(x))


def speedrun(module, n, tokens):
    """Norms without gains, of queries and keys too, squared ReLUs, projections that start at zero (modded nanoGPT)."""
    normed = nn.RMSNorm(use_scale=False)
    x = normed(embed(n, tokens))
    q, k, v = heads(normed(x), n)
    h = nn.dot_product_attention(normed(q), normed(k), v, mask=nn.make_causal_mask(tokens))
    zeros = nn.initializers.zeros
    x = x + nn.DenseGeneral(n, (-2, -1), use_bias=False, kernel_init=zeros)(h)
    h = jnp.square(nn.relu(nn.Dense(4 * n, use_bias=False)(normed(x))))
    x = x + nn.Dense(n, use_bias=False)(h)
    return nn.Dense(VOCABULARY, use_bias=False)(normed(x))


def encoder_decoder(module, n, source, target):
    """Cross attention to an encoder (Vaswani et al. 2017)."""
    x = embed(n, source)
    h = nn.LayerNorm()(x)
    x = x + nn.MultiHeadDotProductAttention(2)(h, h)
    y = embed(n, target)
    h = nn.LayerNorm()(y)
    y = y + nn.MultiHeadDotProductAttention(2)(h, h, mask=nn.make_causal_mask(target))
    y = y + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(y), nn.LayerNorm()(x))
    y = y + nn.Dense(n)(nn.relu(nn.Dense(4 * n)(nn.LayerNorm()(y))))
    return nn.Dense(VOCABULARY)(nn.LayerNorm()(y))


def perceiver_io(module, n, x):
    """Latents that read the inputs, queries that read the latents (Jaegle et al. 2022)."""
    latents = module.param("latents", nn.initializers.normal(1.0), (2, n))
    queries = module.param("queries", nn.initializers.normal(1.0), (3, n))
    latents, queries = (jnp.tile(p[None], (x.shape[0], 1, 1)) for p in (latents, queries))
    x = nn.LayerNorm()(nn.Dense(n)(x))
    latents = latents + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(latents), x)
    return nn.Dense(1)(nn.MultiHeadDotProductAttention(2)(queries, nn.LayerNorm()(latents)))


def gated_mlp(module, n, x):
    """Gates that mix tokens (Liu et al. 2021)."""
    x = nn.Dense(n)(x)
    u, v = jnp.split(nn.gelu(nn.Dense(2 * n)(nn.LayerNorm()(x))), 2, -1)
    v = nn.Dense(x.shape[1], bias_init=nn.initializers.ones)(nn.LayerNorm()(v).swapaxes(1, 2))
    x = x + nn.Dense(n)(u * v.swapaxes(1, 2))
    return nn.Dense(1)(x.mean(1))


def ema(module, n, x):
    """Sums of four decaying averages a unit, as in S4D-Real and Mega."""
    x = nn.Dense(n)(x)
    times = jnp.arange(x.shape[1])
    c = module.param("c", nn.initializers.normal(0.5), (n, 4))
    decay = jnp.exp(-0.1 * jnp.arange(1.0, 5.0)[:, None] * times[None])
    kernel = jnp.einsum("cs,st->ct", c, decay)
    lag = times[:, None] - times[None]
    toeplitz = jnp.where(lag >= 0, kernel[:, jnp.abs(lag)], 0.0)
    h = nn.gelu(jnp.einsum("cts,bsc->btc", toeplitz, x))
    return nn.Dense(1)(nn.Dense(n)(h)[:, -1])


def hyena(module, n, x):
    """Long convolutions by filters that a network writes, and gates (Poli et al. 2023)."""
    x = nn.Dense(n)(x)
    length = x.shape[1]
    q, k, v = (nn.Dense(n)(x) for _ in range(3))
    t = jnp.linspace(0, 1, length)[:, None]
    code = jnp.concatenate([t, jnp.cos(2 * jnp.pi * t)], -1)
    filters = nn.Dense(n)(jnp.sin(nn.Dense(n)(code))) * jnp.exp(-t)
    lag = jnp.arange(length)[:, None] - jnp.arange(length)[None]
    filters = jnp.where(lag[..., None] >= 0, filters[jnp.abs(lag)], 0.0)
    return nn.Dense(1)((q * jnp.einsum("tsc,bsc->btc", filters, k * v)).mean(1))


def fnet(module, n, tokens):
    """Fourier transforms in place of attention (Lee-Thorp et al. 2022)."""
    x = embed(n, tokens)
    x = nn.LayerNorm()(x + jnp.fft.fft(jnp.fft.fft(x, axis=-1), axis=-2).real)
    x = nn.LayerNorm()(x + nn.Dense(n)(nn.gelu(nn.Dense(4 * n)(x))))
    return nn.Dense(2)(x[:, 0])


def retention(module, n, x):
    """Linear attention with a decay, and a gate (Sun et al. 2023)."""
    x = nn.Dense(n)(x)
    q, k, v = (nn.Dense(n, use_bias=False)(nn.LayerNorm()(x)) for _ in range(3))
    lag = jnp.arange(x.shape[1])[:, None] - jnp.arange(x.shape[1])[None]
    decay = jnp.where(lag >= 0, 0.9**lag, 0.0)
    h = (jnp.einsum("btc,bsc->bts", q, k) / n**0.5 * decay[None]) @ v
    return nn.Dense(1)(x + nn.Dense(n, use_bias=False)(h))


def wave_net(module, n, x):
    """Gated dilated convolutions with skips (van den Oord et al. 2016)."""
    x, skips = nn.Conv(n, (2,), padding="CAUSAL")(x), 0.0
    for dilation in (1, 2):
        one, two = (
            nn.Conv(n, (2,), kernel_dilation=dilation, padding="CAUSAL")(x) for _ in range(2)
        )
        h = nn.tanh(one) * nn.sigmoid(two)
        skips, x = skips + nn.Dense(n)(h), x + nn.Dense(n)(h)
    return nn.Dense(3)(nn.relu(nn.Dense(n)(nn.relu(skips))))


TOKENS, SEQUENCE = ("integer", (4,), VOCABULARY), ("float", (4, 3))
TABLE = {
    "ALiBi": (alibi, TOKENS),
    "T5": (t5, TOKENS),
    "BERT of pairs": (bert_of_pairs, TOKENS, ("integer", (4,), 2), ("integer", (4,), 2)),
    "decision transformer": (
        decision_transformer,
        ("float", (2,)),
        ("float", (2, 3)),
        ("float", (2, 2)),
        ("integer", (2,), 10),
    ),
    "scanned transformer": (scanned, TOKENS),
    "modded nanoGPT": (speedrun, TOKENS),
    "encoder-decoder": (encoder_decoder, TOKENS, ("integer", (3,), VOCABULARY)),
    "Perceiver IO": (perceiver_io, SEQUENCE),
    "gMLP": (gated_mlp, SEQUENCE),
    "decaying averages": (ema, SEQUENCE),
    "Hyena": (hyena, SEQUENCE),
    "FNet": (fnet, TOKENS),
    "RetNet": (retention, SEQUENCE),
    "WaveNet": (wave_net, SEQUENCE),
}
