"""Public architectures on sequences and tokens, written small: functions of their width n."""

import flax.linen as nn
import jax.numpy as jnp

VOCABULARY = 6


def embed(n, tokens, size=VOCABULARY, **names):
    return nn.Embed(size, n, embedding_init=nn.initializers.normal(1.0), **names)(tokens)


def attend(x, mask=None, heads=2):
    return nn.MultiHeadDotProductAttention(heads, use_bias=False)(x, x, mask=mask)


def gpt(module, n, tokens):
    """One block with a causal mask and learnt positions (Radford et al. 2019), untied."""
    x = embed(n, tokens) + embed(n, jnp.arange(tokens.shape[1])[None], tokens.shape[1])
    x = x + attend(nn.LayerNorm()(x), nn.make_causal_mask(tokens))
    x = x + nn.Dense(n)(nn.gelu(nn.Dense(4 * n)(nn.LayerNorm()(x))))
    return nn.Dense(VOCABULARY, use_bias=False)(nn.LayerNorm()(x))


def bert(module, n, tokens):
    """Token types that are all one, norms last, and the pooled first token (Devlin et al. 2019)."""
    positions = jnp.arange(tokens.shape[1])[None]
    types = jnp.zeros_like(tokens)
    x = embed(n, tokens) + embed(n, positions, tokens.shape[1]) + embed(n, types, 2)
    x = nn.LayerNorm()(x)
    x = nn.LayerNorm()(x + attend(x))
    x = nn.LayerNorm()(x + nn.Dense(n)(nn.gelu(nn.Dense(2 * n)(x))))
    return nn.Dense(2)(nn.tanh(nn.Dense(n)(x[:, 0])))


def sinusoid(length, n):
    """sin and cos of the position at frequencies from 1 to 1e-4 (Vaswani et al. 2017), (length, n)."""
    angle = jnp.arange(length)[:, None] * 10000.0 ** (-2 * jnp.arange(n // 2)[None] / n)
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], -1).reshape(length, n)


def transformer(module, n, tokens):
    """The original encoder, with sinusoidal positions, norms last (Vaswani et al. 2017)."""
    x = embed(n, tokens) + sinusoid(tokens.shape[1], n)[None]
    x = nn.LayerNorm()(x + attend(x))
    x = nn.LayerNorm()(x + nn.Dense(n)(nn.relu(nn.Dense(2 * n)(x))))
    return nn.Dense(1)(x.mean(1))


def rms_transformer(module, n, tokens):
    """RMS norms and gated units without biases, as in T5 and PaLM."""
    x = embed(n, tokens)
    x = x + attend(nn.RMSNorm()(x), nn.make_causal_mask(tokens))
    h = nn.RMSNorm()(x)
    h = nn.silu(nn.Dense(2 * n, use_bias=False)(h)) * nn.Dense(2 * n, use_bias=False)(h)
    x = x + nn.Dense(n, use_bias=False)(h)
    return nn.Dense(VOCABULARY, use_bias=False)(nn.RMSNorm()(x))


def rotate(x):
    """Pairs of units turned by their position (Su et al. 2021), (B, T, H, D)."""
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] * 100.0 ** (-jnp.arange(half)[None] / half)
    sin, cos = (f(angle)[None, :, None] for f in (jnp.sin, jnp.cos))
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def llama(module, n, tokens):
    """Rotary positions (Touvron et al. 2023)."""
    x = embed(n, tokens)
    q, k, v = (nn.DenseGeneral((2, n // 2), use_bias=False)(nn.RMSNorm()(x)) for _ in range(3))
    mask = nn.make_causal_mask(tokens)
    h = nn.dot_product_attention(rotate(q), rotate(k), v, mask=mask)
    x = x + nn.DenseGeneral(n, (-2, -1), use_bias=False)(h)
    return nn.Dense(VOCABULARY, use_bias=False)(nn.RMSNorm()(x))


def growing_heads(module, n, x):
    """Heads of fixed size whose number grows, as most models are scaled."""
    x = nn.Dense(n)(x)
    h = nn.LayerNorm()(x)
    x = x + nn.MultiHeadDotProductAttention(n // 16, use_bias=False)(h, h)
    return nn.Dense(1)(nn.LayerNorm()(x).mean(1))


def perceiver(module, n, x):
    """Learnt latents that attend to the inputs (Jaegle et al. 2021)."""
    latents = module.param("latents", nn.initializers.normal(1.0), (1, 2, n))
    latents = jnp.broadcast_to(latents, (x.shape[0], 2, n))
    x = nn.Dense(n)(x)
    h = latents + nn.MultiHeadDotProductAttention(2, use_bias=False)(latents, x)
    h = h + nn.Dense(n)(nn.gelu(nn.Dense(n)(nn.LayerNorm()(h))))
    return nn.Dense(1)(h.mean(1))


def linear_attention(module, n, x):
    """Attention by positive features of queries and keys (Katharopoulos et al. 2020)."""
    x = nn.Dense(n)(x)
    q, k = (nn.elu(nn.Dense(n)(x)) + 1 for _ in range(2))
    weights = jnp.einsum("btc,bsc->bts", q, k)
    weights = weights / weights.sum(-1, keepdims=True)
    x = x + nn.Dense(n)(weights @ nn.Dense(n)(x))
    return nn.Dense(1)(nn.LayerNorm()(x).mean(1))


def tied_gpt(module, n, tokens):
    """Logits by the embedding itself (Press & Wolf 2017), divided by the root of the width."""
    table = nn.Embed(VOCABULARY, n, embedding_init=nn.initializers.normal(1.0))
    x = table(tokens)
    x = x + nn.Dense(n)(nn.gelu(nn.Dense(2 * n)(nn.LayerNorm()(x))))
    return table.attend(nn.LayerNorm()(x)) / n**0.5


def cbow(module, n, tokens):
    """The mean of a context's vectors, as in word2vec and fastText (Mikolov et al. 2013)."""
    return nn.Dense(VOCABULARY)(embed(n, tokens).mean(1))


def text_cnn(module, n, tokens):
    """Windows of words, the largest of each feature over time (Kim 2014)."""
    x = embed(n, tokens)
    h = [nn.relu(nn.Conv(n, (size,))(x)).max(1) for size in (2, 3)]
    return nn.Dense(2)(jnp.concatenate(h, -1))


def temporal_cnn(module, n, x):
    """Causal convolutions (Bai et al. 2018)."""
    for _ in range(2):
        x = nn.relu(nn.Conv(n, (2,), padding="CAUSAL")(x))
    return nn.Dense(1)(x[:, -1])


def normal(variance):
    return nn.initializers.variance_scaling(variance, "fan_in", "normal")


def rnn(module, n, x):
    """Elman's, written as a loop (Elman 1990)."""
    mix, read = nn.Dense(n, kernel_init=normal(1.0)), nn.Dense(n, use_bias=False)
    h = jnp.zeros((x.shape[0], n))
    for t in range(x.shape[1]):
        h = nn.tanh(read(x[:, t]) + mix(h))
    return nn.Dense(1)(h)


def recurrent(cell):
    """A cell of Flax's over the sequence, and a readout of its last state."""

    def forward(module, n, x):
        return nn.Dense(1)(nn.RNN(cell(n))(x)[:, -1])

    forward.__name__ = cell.__name__
    return forward


def universal_transformer(module, n, x):
    """The same block twice (Dehghani et al. 2019), without attention."""
    x = nn.Dense(n)(x)
    block = nn.Dense(n)
    for _ in range(2):
        x = x + block(nn.relu(x))
    return nn.Dense(1)(nn.relu(x))


def s4d(module, n, x):
    """A diagonal state-space layer, S4D-Lin of four states a unit (Gu et al. 2022)."""
    x = nn.Dense(n)(x)
    rates = -0.5 + 1j * jnp.pi * jnp.arange(4)
    c = module.param("c", nn.initializers.normal(0.5), (n, 4))
    log_step = module.param("log_step", nn.initializers.constant(jnp.log(0.1)), (n,))
    times = jnp.exp(log_step)[:, None, None] * jnp.arange(x.shape[1])[None, None]
    kernel = 2 * jnp.sum(c[..., None] * jnp.exp(rates[None, :, None] * times).real, 1)
    shift = jnp.arange(x.shape[1])[:, None] - jnp.arange(x.shape[1])[None]
    toeplitz = jnp.where(shift[None] >= 0, kernel[:, jnp.abs(shift)], 0.0)
    h = nn.gelu(jnp.einsum("cts,bsc->btc", toeplitz, x) + x)
    return nn.Dense(1)(nn.Dense(n)(h)[:, -1])


def mamba(module, n, x):
    """A selective state space of two states a unit (Gu & Dao 2023), without its convolution."""
    x, gate = nn.Dense(n)(x), nn.silu(nn.Dense(n)(x))
    step = nn.softplus(nn.Dense(n)(x))[..., None]
    b, c = (nn.Dense(2)(x)[:, :, None] for _ in range(2))
    rates = -jnp.arange(1.0, 3.0)[None, None]
    state, out = jnp.zeros((x.shape[0], n, 2)), []
    for t in range(x.shape[1]):
        state = jnp.exp(step[:, t] * rates) * state + step[:, t] * b[:, t] * x[:, t, :, None]
        out.append((state * c[:, t]).sum(-1))
    return nn.Dense(1)((jnp.stack(out, 1) * gate).mean(1))


TOKENS, SEQUENCE = ("integer", (4,), VOCABULARY), ("float", (4, 3))
TABLE = {
    "GPT": (gpt, TOKENS),
    "BERT": (bert, TOKENS),
    "transformer": (transformer, TOKENS),
    "RMSNorm transformer": (rms_transformer, TOKENS),
    "LLaMA": (llama, TOKENS),
    "growing heads": (growing_heads, SEQUENCE),
    "Perceiver": (perceiver, SEQUENCE),
    "linear attention": (linear_attention, SEQUENCE),
    "tied GPT": (tied_gpt, TOKENS),
    "CBOW": (cbow, TOKENS),
    "TextCNN": (text_cnn, TOKENS),
    "TCN": (temporal_cnn, SEQUENCE),
    "RNN": (rnn, SEQUENCE),
    "SimpleCell": (recurrent(nn.SimpleCell), SEQUENCE),
    "LSTM": (recurrent(nn.OptimizedLSTMCell), SEQUENCE),
    "GRU": (recurrent(nn.GRUCell), SEQUENCE),
    "universal transformer": (universal_transformer, SEQUENCE),
    "S4D": (s4d, SEQUENCE),
    "Mamba": (mamba, SEQUENCE),
}
