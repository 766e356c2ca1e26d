"""Public architectures on tables, states, pairs and fields, written small: functions of their width n."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp


class NormedCritic(nn.Module):
    """Q of a state and an action, with dropout that is off and layer norms."""

    width: int

    @nn.compact
    def __call__(self, x, action):
        h = jnp.concatenate([x, action], -1)
        for _ in range(2):
            h = nn.Dropout(0.1, deterministic=True)(nn.Dense(self.width)(h))
            h = nn.relu(nn.LayerNorm()(h))
        return nn.Dense(1)(h).squeeze(-1)


def critics(n, x, action, count=3):
    ensemble = nn.vmap(
        NormedCritic,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
        in_axes=None,
        out_axes=0,
        axis_size=count,
    )
    return ensemble(n)(x, action)


def droq(module, n, x, action):
    """The mean of an ensemble of critics (Hiraoka et al. 2022)."""
    return critics(n, x, action).mean(0)


def redq(module, n, x, action):
    """The least of an ensemble of critics (Chen et al. 2021)."""
    return critics(n, x, action).min(0)


def sac_actor(module, n, x):
    """Mean and log deviation, the latter squashed (Haarnoja et al. 2018, as in CleanRL)."""
    h = nn.relu(nn.Dense(n)(nn.relu(nn.Dense(n)(x))))
    mean, log_std = jnp.split(nn.Dense(4)(h), 2, -1)
    return jnp.concatenate([mean, -5 + 3.5 * (jnp.tanh(log_std) + 1)], -1)


def pinn(module, n, x):
    """Boundary values by construction (Lagaris et al. 1998; Raissi et al. 2019)."""
    h = x
    for _ in range(3):
        h = nn.tanh(nn.Dense(n)(h))
    return x[:, :1] * (1 - x[:, :1]) * nn.Dense(1)(h) + jnp.sin(jnp.pi * x[:, :1])


def pinn_residual(module, n, x):
    """The residual of a heat equation at the points (Raissi et al. 2019)."""
    net = nn.Sequential([nn.Dense(n), nn.tanh, nn.Dense(n), nn.tanh, nn.Dense(1)])
    net(x)

    def u(z):
        return net(z[None])[0, 0]

    return jax.vmap(lambda z: jax.grad(u)(z)[0] - jax.hessian(u)(z)[1, 1])(x)[:, None]


def spline_basis(x):
    """Quadratic B-splines on seven intervals."""
    grid = jnp.linspace(-2.0, 2.0, 8)[None, None]
    x = x[..., None]
    b = ((x >= grid[..., :-1]) & (x < grid[..., 1:])).astype(x.dtype)
    for k in (1, 2):
        below, above = grid[..., : -k - 1], grid[..., k + 1 :]
        rise = (x - below) / (grid[..., k:-1] - below)
        fall = (above - x) / (above - grid[..., 1:-k])
        b = rise * b[..., :-1] + fall * b[..., 1:]
    return b


def spline_kan(module, n, x):
    """Each edge a spline beside a silu (Liu et al. 2024)."""
    for layer, features in enumerate((n, 1)):
        b = spline_basis(x)
        shape = (x.shape[-1], b.shape[-1], features)
        w = module.param(f"spline_{layer}", nn.initializers.normal(0.3), shape)
        splines = jnp.einsum("bik,iko->bo", b, w) / math.sqrt(x.shape[-1])
        x = nn.Dense(features, use_bias=False)(nn.silu(x)) + splines
    return x


def neural_ode(module, n, x):
    """Euler steps of one vector field (Chen et al. 2018)."""
    x = nn.Dense(n)(x)
    field = nn.Sequential([nn.Dense(n), nn.tanh, nn.Dense(n)])
    for _ in range(3):
        x = x + 0.3 * field(x)
    return nn.Dense(1)(x)


def entity(n, index, size):
    return nn.Embed(size, n, embedding_init=nn.initializers.normal(1.0))(index)


def ncf(module, n, user, item):
    """Products of user and item beside a network of both (He et al. 2017); inputs are single integers."""
    products = entity(n, user, 5) * entity(n, item, 7)
    h = jnp.concatenate([entity(n, user, 5), entity(n, item, 7)], -1)
    return nn.Dense(1)(jnp.concatenate([products, nn.relu(nn.Dense(n)(h))], -1))


def two_towers(module, n, x, y):
    """Cosine of two embeddings at a fixed temperature (Radford et al. 2021)."""
    a, b = (nn.Dense(n)(nn.relu(nn.Dense(n)(z))) for z in (x, y))
    a, b = (z / jnp.linalg.norm(z, axis=-1, keepdims=True) for z in (a, b))
    return (a * b).sum(-1, keepdims=True) * math.sqrt(n)


def siamese(module, n, x, y):
    """The same network twice, and the distance of its outputs (Koch et al. 2015)."""
    embed = nn.Sequential([nn.Dense(n), nn.relu, nn.Dense(n)])
    return nn.Dense(1)(jnp.abs(embed(x) - embed(y)))


def ft_transformer(module, n, x):
    """Each number of a row is a token (Gorishniy et al. 2021)."""
    w, b = (module.param(name, nn.initializers.normal(1.0), (x.shape[1], n)) for name in "wb")
    tokens = x[..., None] * w[None] + b[None]
    first = module.param("cls", nn.initializers.normal(1.0), (1, 1, n))
    tokens = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, n)), tokens], 1)
    h = nn.LayerNorm()(tokens)
    h = tokens + nn.MultiHeadDotProductAttention(2)(h, h)
    return nn.Dense(1)(nn.relu(nn.LayerNorm()(h[:, 0])))


def top_two_experts(module, n, x):
    """The two experts with the largest scores (Shazeer et al. 2017)."""
    x = nn.relu(nn.Dense(n)(x))
    values, chosen = jax.lax.top_k(nn.Dense(4)(x), 2)
    gates = (jax.nn.one_hot(chosen, 4) * nn.softmax(values)[..., None]).sum(1)
    experts = jnp.stack([nn.Dense(n)(nn.relu(nn.Dense(n)(x))) for _ in range(4)], 1)
    return nn.Dense(1)(jnp.einsum("be,ben->bn", gates, experts))


def n_beats(module, n, x):
    """Forecasts added up, and what they explain of the past taken away (Oreshkin et al. 2020)."""
    total = 0.0
    for _ in range(2):
        h = nn.relu(nn.Dense(n)(nn.relu(nn.Dense(n)(x))))
        x = x - nn.Dense(x.shape[-1])(h)
        total = total + nn.Dense(2)(h)
    return total


def real_nvp(module, n, x):
    """Coupling layers (Dinh et al. 2017)."""
    a, b = jnp.split(x, 2, -1)
    for _ in range(2):
        h = nn.relu(nn.Dense(n)(a))
        scale, shift = nn.tanh(nn.Dense(a.shape[-1])(h)), nn.Dense(a.shape[-1])(h)
        a, b = b * jnp.exp(scale) + shift, a
    return jnp.concatenate([a, b], -1)


def class_conditional(module, n, x, label):
    """A label's embedding added to the features, residual blocks (as in score networks)."""
    h = nn.Dense(n)(x) + entity(n, label, 10)
    for _ in range(2):
        h = h + nn.Dense(n)(nn.silu(nn.Dense(n)(h)))
    return nn.Dense(2)(h)


def graph_sage(module, n, x, adjacency):
    """Means over neighbours beside the node itself (Hamilton et al. 2017); the graph is an input of integers."""
    degree = jnp.maximum(adjacency.sum(-1, keepdims=True), 1)
    for _ in range(2):
        around = (adjacency @ x) / degree
        x = nn.relu(nn.Dense(n)(jnp.concatenate([x, around], -1)))
    return nn.Dense(1)(x.mean(1))


def attends(queries, keys, n):
    h = queries + nn.MultiHeadDotProductAttention(2)(queries, keys)
    return h + nn.relu(nn.Dense(n)(h))


def set_transformer(module, n, x):
    """Inducing points, and pooling by a seed that attends (Lee et al. 2019)."""
    x = nn.Dense(n)(x)
    points = module.param("points", nn.initializers.normal(1.0), (1, 2, n))
    seed = module.param("seed", nn.initializers.normal(1.0), (1, 1, n))
    points, seed = (jnp.tile(p, (x.shape[0], 1, 1)) for p in (points, seed))
    x = attends(x, attends(points, x, n), n)
    return nn.Dense(1)(attends(seed, nn.relu(nn.Dense(n)(x)), n))[:, 0]


VECTOR, ACTION = ("float", (5,)), ("float", (2,))
TABLE = {
    "DroQ": (droq, VECTOR, ACTION),
    "REDQ": (redq, VECTOR, ACTION),
    "SAC actor": (sac_actor, VECTOR),
    "PINN": (pinn, ("float", (2,))),
    "PINN residual": (pinn_residual, ("float", (2,))),
    "spline KAN": (spline_kan, VECTOR),
    "neural ODE": (neural_ode, VECTOR),
    "NCF": (ncf, ("integer", (), 5), ("integer", (), 7)),
    "two towers": (two_towers, VECTOR, VECTOR),
    "siamese network": (siamese, VECTOR, VECTOR),
    "FT-Transformer": (ft_transformer, VECTOR),
    "top-2 experts": (top_two_experts, VECTOR),
    "N-BEATS": (n_beats, VECTOR),
    "RealNVP": (real_nvp, ("float", (4,))),
    "class-conditional MLP": (class_conditional, VECTOR, ("integer", (), 10)),
    "GraphSAGE": (graph_sage, ("float", (4, 5)), ("integer", (4, 4), 2)),
    "Set Transformer": (set_transformer, ("float", (4, 3))),
}
