"""Public architectures on vectors, sets and graphs, written small: functions of their width n."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

EDGES = (
    (0, 1, 1, 2, 3, 3, 0),
    (1, 0, 2, 1, 0, 2, 3),
)  # senders, receivers of a graph of four nodes


def linen(forward):
    """A linen family of a function `forward(module, n, *inputs)`, under its name."""

    def call(self, *inputs):
        return forward(self, self.width, *inputs)

    fields = {"__annotations__": {"width": int}, "__call__": nn.compact(call)}
    fields["__module__"] = __name__
    return type(nn.Module)(forward.__name__.title().replace("_", ""), (nn.Module,), fields)


def mlp(module, n, x):
    """Rosenblatt's; ReLU, two hidden layers."""
    for _ in range(2):
        x = nn.relu(nn.Dense(n)(x))
    return nn.Dense(1)(x)


def residual_mlp(module, n, x):
    """Pre-activation residual blocks with layer norms, as in tabular models (Gorishniy et al. 2021)."""
    x = nn.Dense(n)(x)
    for _ in range(2):
        x = x + nn.Dense(n)(nn.relu(nn.Dense(2 * n)(nn.LayerNorm()(x))))
    return nn.Dense(1)(nn.relu(nn.LayerNorm()(x)))


def swiglu_mlp(module, n, x):
    """Gated linear units (Shazeer 2020)."""
    x = nn.Dense(n)(x)
    x = x + nn.Dense(n)(nn.silu(nn.Dense(2 * n)(x)) * nn.Dense(2 * n)(x))
    return nn.Dense(1)(x)


def highway(module, n, x):
    """Highway network (Srivastava et al. 2015)."""
    x = nn.tanh(nn.Dense(n)(x))
    gate = nn.sigmoid(nn.Dense(n)(x))
    x = gate * nn.relu(nn.Dense(n)(x)) + (1 - gate) * x
    return nn.Dense(1)(x)


def siren(module, n, x):
    """Sines with their own initialisation (Sitzmann et al. 2020), at a frequency of 3."""
    init = nn.initializers.variance_scaling(2 / 3 / 9, "fan_in", "uniform")
    for _ in range(2):
        x = jnp.sin(3.0 * nn.Dense(n, kernel_init=init)(x))
    return nn.Dense(1)(x)


def nerf(module, n, x):
    """Positional encoding of points, and the encoding again half-way (Mildenhall et al. 2020)."""
    waves = x[..., None] * 2.0 ** jnp.arange(2.0)[None, None]
    code = jnp.concatenate([jnp.sin(waves), jnp.cos(waves)], -1).reshape(x.shape[0], -1)
    h = nn.relu(nn.Dense(n)(code))
    h = nn.relu(nn.Dense(n)(jnp.concatenate([h, code], -1)))
    return nn.Dense(1)(h)


def fourier_features(module, n, x):
    """A fixed random projection, its sines and cosines, then a network (Tancik et al. 2020)."""
    b = jax.random.normal(jax.random.key(7), (x.shape[-1], 6))
    x = jnp.concatenate([jnp.sin(x @ b), jnp.cos(x @ b)], -1)
    return nn.Dense(1)(nn.relu(nn.Dense(n)(x)))


def wide_and_deep(module, n, x):
    """A linear model beside a deep one (Cheng et al. 2016)."""
    deep = nn.relu(nn.Dense(n)(nn.relu(nn.Dense(n)(x))))
    return nn.Dense(1)(deep) + nn.Dense(1)(x)


def film(module, n, x, c):
    """Features scaled and shifted by a condition (Perez et al. 2018)."""
    h, c = nn.Dense(n)(x), nn.relu(nn.Dense(n)(c))
    h = nn.relu(h * (1 + nn.Dense(n)(c)) + nn.Dense(n)(c))
    return nn.Dense(1)(h)


def kan(module, n, x):
    """Each edge a sum of radial functions, FastKAN (Li 2024)."""
    for features in (n, n, 1):
        basis = [jnp.exp(-((x - g) ** 2)) for g in (-1.0, 0.0, 1.0)]
        x = sum(nn.Dense(features, use_bias=False)(b) for b in basis)
    return x


def maxout(module, n, x):
    """The largest of two pieces (Goodfellow et al. 2013)."""
    for _ in range(2):
        x = nn.Dense(2 * n)(x).reshape(x.shape[0], n, 2).max(-1)
    return nn.Dense(1)(x)


def mixture_of_experts(module, n, x):
    """Four experts weighed by a softmax of the input (Jacobs et al. 1991)."""
    x = nn.relu(nn.Dense(n)(x))
    gates = nn.softmax(nn.Dense(4)(x))
    experts = jnp.stack([nn.relu(nn.Dense(n)(x)) for _ in range(4)], -1)
    return nn.Dense(1)((experts * gates[:, None, :]).sum(-1))


def hypernetwork(module, n, x):
    """A network that writes the first weights of another (Ha et al. 2017)."""
    code = module.param("code", nn.initializers.normal(1.0), (1, 4))
    written = nn.Dense(x.shape[-1] * n)(nn.relu(nn.Dense(n)(code))).reshape(x.shape[-1], n)
    return nn.Dense(1)(nn.relu(x @ written / math.sqrt(x.shape[-1])))


def weight_norm(module, n, x):
    """Directions and lengths of the weights apart (Salimans & Kingma 2016)."""
    for _ in range(2):
        x = nn.relu(nn.WeightNorm(nn.Dense(n))(x))
    return nn.Dense(1)(x)


def autoencoder(module, n, x):
    """A code half as wide as the hidden layers."""
    code = nn.Dense(n // 2)(nn.relu(nn.Dense(n)(x)))
    return nn.Dense(x.shape[-1])(nn.relu(nn.Dense(n)(code)))


def vae_encoder(module, n, x):
    """The mean of the code; the head of its variance is not asked for (Kingma & Welling 2014)."""
    h = nn.relu(nn.Dense(n)(x))
    mean, log_variance = nn.Dense(2)(h), nn.Dense(2)(h)
    nn.softplus(log_variance).sum()
    return mean


def actor_critic(module, n, x):
    """The critic of a network with two heads, one of which is not used (as in CleanRL's PPO)."""
    h = nn.tanh(nn.Dense(n)(nn.tanh(nn.Dense(n)(x))))
    nn.log_softmax(nn.Dense(4, kernel_init=nn.initializers.orthogonal(0.01))(h))
    return nn.Dense(1)(h)


def dueling_dqn(module, n, x):
    """A value and advantages without their mean (Wang et al. 2016)."""
    h = nn.relu(nn.Dense(n)(x))
    value = nn.Dense(1)(nn.relu(nn.Dense(n)(h)))
    advantage = nn.Dense(3)(nn.relu(nn.Dense(n)(h)))
    return value + advantage - advantage.mean(-1, keepdims=True)


class Critic(nn.Module):
    """Q of a state and an action."""

    width: int

    @nn.compact
    def __call__(self, x, action):
        h = jnp.concatenate([x, action], -1)
        for _ in range(2):
            h = nn.relu(nn.Dense(self.width)(h))
        return nn.Dense(1)(h)[..., 0]


def twin_critics(module, n, x, action):
    """Two critics by nn.vmap (as in SAC and TD3)."""
    ensemble = nn.vmap(
        Critic,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
        in_axes=None,
        out_axes=-1,
        axis_size=2,
    )
    return ensemble(n)(x, action)


def deep_o_net(module, n, x, y):
    """Inner product of a branch and a trunk (Lu et al. 2021)."""
    branch, trunk = (nn.Dense(n)(nn.relu(nn.Dense(n)(z))) for z in (x, y))
    return (branch * trunk).sum(-1, keepdims=True) / math.sqrt(n)


def deep_sets(module, n, x):
    """Features of the elements of a set, added (Zaheer et al. 2017)."""
    h = nn.relu(nn.Dense(n)(nn.relu(nn.Dense(n)(x))))
    return nn.Dense(1)(nn.relu(nn.Dense(n)(h.sum(1))))


def point_net(module, n, x):
    """The largest of each feature over points (Qi et al. 2017)."""
    h = nn.relu(nn.Dense(n)(nn.relu(nn.Dense(n)(x))))
    return nn.Dense(1)(nn.relu(nn.Dense(n)(h.max(1))))


def gcn(module, n, x):
    """Graph convolutions on a given graph (Kipf & Welling 2017)."""
    senders, receivers = (jnp.array(e) for e in EDGES)
    add = jax.vmap(functools.partial(jax.ops.segment_sum, segment_ids=receivers, num_segments=4))
    degree = 1.0 + jax.ops.segment_sum(jnp.ones(len(senders)), receivers, 4)
    for features in (n, n):
        h = nn.Dense(features)(x) / jnp.sqrt(degree)[None, :, None]
        x = nn.relu((h + add(h[:, senders])) / jnp.sqrt(degree)[None, :, None])
    return nn.Dense(1)(x.mean(1))


def graph_net(module, n, x):
    """Messages along edges, added at nodes (Battaglia et al. 2018)."""
    senders, receivers = (jnp.array(e) for e in EDGES)
    h = nn.relu(nn.Dense(n)(x))
    messages = nn.relu(nn.Dense(n)(h[:, senders]) + nn.Dense(n)(h[:, receivers]))
    incoming = jnp.zeros((x.shape[0], 4, n)).at[:, receivers].add(messages)
    h = nn.relu(nn.Dense(n)(h) + nn.Dense(n)(incoming))
    return nn.Dense(1)(h.mean(1))


def gin(module, n, x):
    """Graph isomorphism network, neighbours by an adjacency matrix (Xu et al. 2019)."""
    adjacency = jnp.zeros((4, 4)).at[jnp.array(EDGES[1]), jnp.array(EDGES[0])].set(1.0)
    for _ in range(2):
        x = x + jnp.einsum("rs,bsc->brc", adjacency, x)
        x = nn.relu(nn.Dense(n)(nn.relu(nn.Dense(n)(x))))
    return nn.Dense(1)(x.sum(1))


def gat(module, n, x):
    """Attention of edges by a vector of weights (Velickovic et al. 2018)."""
    adjacency = jnp.eye(4).at[jnp.array(EDGES[1]), jnp.array(EDGES[0])].set(1.0)
    h = nn.Dense(n)(x)
    scores = nn.leaky_relu(nn.Dense(1)(h) + jnp.swapaxes(nn.Dense(1)(h), 1, 2), 0.2)
    weights = nn.softmax(jnp.where(adjacency[None] > 0, scores, -1e9))
    return nn.Dense(1)(nn.relu(weights @ h).mean(1))


VECTOR, SET, GRAPH = ("float", (5,)), ("float", (3, 5)), ("float", (4, 5))
TABLE = {
    "MLP": (mlp, VECTOR),
    "residual MLP": (residual_mlp, VECTOR),
    "SwiGLU MLP": (swiglu_mlp, VECTOR),
    "highway network": (highway, VECTOR),
    "SIREN": (siren, VECTOR),
    "NeRF": (nerf, ("float", (3,))),
    "Fourier features": (fourier_features, VECTOR),
    "wide and deep": (wide_and_deep, VECTOR),
    "FiLM": (film, VECTOR, ("float", (3,))),
    "KAN": (kan, VECTOR),
    "maxout": (maxout, VECTOR),
    "mixture of experts": (mixture_of_experts, VECTOR),
    "hypernetwork": (hypernetwork, VECTOR),
    "weight normalisation": (weight_norm, VECTOR),
    "autoencoder": (autoencoder, VECTOR),
    "VAE encoder": (vae_encoder, VECTOR),
    "actor-critic": (actor_critic, VECTOR),
    "dueling DQN": (dueling_dqn, VECTOR),
    "twin critics": (twin_critics, VECTOR, ("float", (2,))),
    "DeepONet": (deep_o_net, VECTOR, ("float", (2,))),
    "DeepSets": (deep_sets, SET),
    "PointNet": (point_net, SET),
    "GCN": (gcn, GRAPH),
    "GraphNet": (graph_net, GRAPH),
    "GIN": (gin, GRAPH),
    "GAT": (gat, GRAPH),
}
