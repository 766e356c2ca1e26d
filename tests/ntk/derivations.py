"""NNGP and NTK of the networks of `modules.py`, derived by hand and integrated in numpy.

Every function maps the inputs to (K, T), both in double precision: K is the covariance of the outputs, T the tangent
kernel. A layer of weights of mean size one maps (K, T) to (K, T + K), a bias trained from zero adds 1 to T, and an
activation f maps them to (E[f f'], T * E[f' f']).
"""

import math

import numpy as np

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_REACH = 9.0  # standard deviations


def expectation(f, k, kink=0.0):
    """E[f(u) f(v)] for each pair of a covariance matrix; f is smooth but for one kink."""
    out = np.empty_like(k)
    for i, j in np.ndindex(k.shape):
        one, two = math.sqrt(k[i, i]), k[i, j] / math.sqrt(k[i, i])
        rest = math.sqrt(max(k[j, j] - two**2, 1e-16))
        first, weights = _pieces(np.array(kink / one))
        inner, inner_weights = _pieces((kink - two * first) / rest)
        v = two * first[:, None] + rest * inner
        out[i, j] = weights @ (f(one * first) * (inner_weights * f(v)).sum(-1))
    return out


def _pieces(kink):
    """Nodes of a standard normal on both sides of a kink, for an array of kinks."""
    kink = np.clip(kink, -_REACH, _REACH)[..., None]
    parts = [(-_REACH, kink), (kink, _REACH)]
    z = np.concatenate([(a + b) / 2 + (b - a) / 2 * _NODES for a, b in parts], -1)
    w = np.concatenate([(b - a) / 2 * _WEIGHTS for a, b in parts], -1)
    return z, w * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


def activated(f, slope, k, t, kink=0.0):
    return expectation(f, k, kink), t * expectation(slope, k, kink)


def relu(k, t):
    return activated(lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float), k, t)


def tanh(k, t):
    return activated(np.tanh, lambda z: 1 - np.tanh(z) ** 2, k, t)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def dense(k, t, bias=1.0):
    return k, t + k + bias


def data(x, bias=1.0):
    """The first layer: (K, T) of its outputs."""
    return dense(x @ x.T / x.shape[1], 0.0, bias)


def gated_linear_unit(x):
    k, t = data(x)
    gate, gate_t = activated(sigmoid, lambda z: sigmoid(z) * sigmoid(-z), k, t)
    return dense(k * gate, t * gate + k * gate_t)


def rms_normed(x):
    k, t = _normed(*relu(*data(x)))
    k, t = dense(k, t + k)  # the gain of norm_0 adds K
    k, t = relu(*_normed(k, t))
    return dense(k, t + k)  # the gain of norm_1 acts before the ReLU: E[f'(u) u f'(v) v] = E[f f']


def _normed(k, t, epsilon=1e-6):
    """Divided by the root mean square over units, which is the same number in every network."""
    size = np.sqrt(np.outer(np.diag(k) + epsilon, np.diag(k) + epsilon))
    return k / size, t / size


def squared_relu(x):
    """Arc-cosine kernels of degree 2 and 1 (Cho & Saul 2009, equation 6)."""
    k = x @ x.T / x.shape[1]
    size = np.sqrt(np.outer(np.diag(k), np.diag(k)))
    cos = np.clip(k / size, -1, 1)
    angle = np.arccos(cos)
    sin = np.sqrt(1 - cos**2)
    two = size**2 * (3 * sin * cos + (np.pi - angle) * (1 + 2 * cos**2)) / (2 * np.pi)
    one = size * (sin + (np.pi - angle) * cos) / (2 * np.pi)
    return two, k * 4 * one + two


def snake(x, a):
    def by_a(z):
        return z * np.sin(2 * a * z) / a - np.sin(a * z) ** 2 / a**2

    k, t = data(x)
    gained = expectation(by_a, k)
    k, t = activated(lambda z: z + np.sin(a * z) ** 2 / a, lambda z: 1 + np.sin(2 * a * z), k, t)
    return dense(k, t + gained)


def swish(x, beta):
    def s(z):
        return sigmoid(beta * z)

    k, t = data(x)
    gained = expectation(lambda z: z**2 * s(z) * s(-z), k)
    k, t = activated(lambda z: z * s(z), lambda z: s(z) + beta * z * s(z) * s(-z), k, t)
    return dense(k, t + gained)


def two_branches(x):
    k, t = data(x, bias=0.0)
    one, one_t = tanh(k, t)
    two, two_t = relu(k, t)
    deep, deep_t = activated(np.cos, np.sin, *dense(two, two_t, bias=0.0))
    t = one_t * two * deep + one * two_t * deep + one * two * deep_t
    return dense(one * two * deep, t, bias=0.0)


def dense_net(x):
    k, t = relu(*data(x, bias=0.0))
    for _ in range(2):  # each new layer is as wide as all before it
        new, new_t = relu(*dense(k, t, bias=0.0))
        k, t = (k + new) / 2, (t + new_t) / 2
    return dense(k, t, bias=0.0)


def positional_biases(x, std):
    n, positions, channels = x.shape
    flat = x.reshape(n * positions, channels)
    same = np.tile(np.eye(positions), (n, n))
    k = flat @ flat.T / channels + std**2 * same
    k, t = tanh(k, k)
    k, t = relu(*dense(k, t, bias=same))
    mean = np.kron(np.eye(n), np.full((1, positions), 1 / positions))
    return dense(mean @ k @ mean.T, mean @ t @ mean.T)


def mixed_pooling(x):
    n, positions, channels = x.shape
    flat = x.reshape(n * positions, channels)
    k, t = relu(*dense(_window(flat @ flat.T / channels, n), 0.0))
    pool = np.kron(np.eye(n), [[0.65, 0.35, 0, 0], [0, 0, 0.65, 0.35]])
    k, t = (_window(pool @ m @ pool.T, n) for m in (k, t))
    k, t = relu(*dense(k, t))
    last = np.kron(np.eye(n), [[1.0, 0.5]])
    return dense(last @ k @ last.T, last @ t @ last.T)


def _window(m, n):
    """Mean over a window of three positions with zeros around, of both samples at once."""
    size = len(m) // n
    m = np.pad(m.reshape(n, size, n, size), ((0, 0), (1, 1), (0, 0), (1, 1)))
    shifts = [m[:, s : s + size, :, s : s + size] for s in range(3)]
    return (sum(shifts) / 3).reshape(n * size, n * size)


def kinked(x, f, slope, kink):
    return dense(*activated(f, slope, *data(x), kink))
