"""Matrices that are used more than once: recurrent networks and repeated layers, against recursions by hand."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

import ntk

DENSE = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
X = np.random.default_rng(1).normal(size=(3, 4, 3))


def family(forward):
    class Net(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            return forward(self, x, self.width)

    return Net


def kernels(forward, x=X):
    x = jnp.asarray(x)
    out = ntk.infinite_width(family(forward), x)(x, None, ("nngp", "ntk"))
    return tuple(np.asarray(k) for k in out)


def dense(n, **options):
    return nn.Dense(n, kernel_init=DENSE, **options)


def relu_moments(k, q1, q2):
    """E[relu relu], E[step step] of Gaussians of covariance k and variances q1, q2."""
    norms = np.sqrt(q1 * q2)
    angle = np.arccos(np.clip(k / norms, -1, 1))
    value = norms * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
    return value, (np.pi - angle) / (2 * np.pi)


def rnn(readout, length=4):
    def forward(module, x, n):
        mix, read = dense(n, use_bias=False), dense(n)
        h, states = jnp.zeros((x.shape[0], n)), []
        for t in range(length):
            h = nn.relu(read(x[:, t]) + mix(h))
            states.append(h)
        return dense(1, use_bias=False)(readout(states))

    return forward


def by_hand(weights):
    """(NNGP, NTK) of an RNN whose readout is a weighted sum of its states; Alemohammad et al. (2021), theorem 1."""
    count, length, _ = X.shape
    state, tangent = np.zeros((2, length + 1, length + 1, count, count))
    variances = {}
    for t in range(length):
        for s in (t, *range(t)):
            inner = X[:, t] @ X[:, s].T / 3
            pre = inner + state[t, s]
            slope = inner + 1 + state[t, s] + tangent[t, s]  # the bias is at zero, and trained
            if s == t:
                variances[t] = np.diag(pre)
            value, step = relu_moments(pre, variances[t][:, None], variances[s][None])
            state[t + 1, s + 1], tangent[t + 1, s + 1] = value, step * slope
            state[s + 1, t + 1], tangent[s + 1, t + 1] = value.T, (step * slope).T
    w = np.asarray(weights)
    value = np.einsum("t,s,tsab->ab", w, w, state[1:, 1:])
    return value, value + np.einsum("t,s,tsab->ab", w, w, tangent[1:, 1:])


READOUTS = {
    "last": (lambda states: states[-1], [0, 0, 0, 1]),
    "mean": (lambda states: sum(states) / 4, [1 / 4] * 4),
    "stacked": (lambda states: jnp.stack(states, 1).mean(1), [1 / 4] * 4),
    "difference": (lambda states: states[3] - states[0], [-1, 0, 0, 1]),
}


@pytest.mark.parametrize("name", READOUTS)
def test_a_recurrent_network_has_the_kernel_of_its_recursion(x64, name):
    readout, weights = READOUTS[name]
    for found, expected in zip(kernels(rnn(readout)), by_hand(weights)):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_recursion_needs_the_matrix_to_be_one(x64):
    """With a matrix of its own at every step the states' covariances between steps differ."""

    def untied(module, x, n):
        h, states = jnp.zeros((x.shape[0], n)), []
        for t in range(4):
            h = nn.relu(dense(n)(x[:, t]) + dense(n, use_bias=False)(h))
            states.append(h)
        return dense(1, use_bias=False)(sum(states) / 4)

    apart = kernels(untied)[0]
    assert (by_hand([1 / 4] * 4)[0] / apart > 1.05).any()


def test_a_scan_is_the_loop_written_out():
    cell = nn.SimpleCell

    def scanned(module, x, n):
        out = nn.RNN(cell(n, kernel_init=DENSE, recurrent_kernel_init=DENSE))(x)
        return dense(1, use_bias=False)(out[:, -1])

    def unrolled(module, x, n):
        mix, read = dense(n, use_bias=False), dense(n)
        h = jnp.zeros((x.shape[0], n))
        for t in range(x.shape[1]):
            h = nn.tanh(read(x[:, t]) + mix(h))
        return dense(1, use_bias=False)(h)

    x = np.asarray(X, "float32")
    for one, two in zip(kernels(scanned, x), kernels(unrolled, x)):
        np.testing.assert_allclose(one, two, rtol=1e-6)


def test_a_block_used_twice(x64):
    """x2 = x1 + W relu(x1), x1 = x0 + W relu(x0): the second sum has E relu(x0) relu(x1) twice."""

    def forward(module, x, n):
        x, block = dense(n, use_bias=False)(x[:, 0]), dense(n, use_bias=False)
        for _ in range(2):
            x = x + block(nn.relu(x))
        return dense(1, use_bias=False)(x)

    k0 = X[:, 0] @ X[:, 0].T / 3
    q0 = np.diag(k0)
    f00, d00 = relu_moments(k0, q0[:, None], q0[None])
    k1, t1 = k0 + f00, k0 + f00 + d00 * k0
    q1 = np.diag(k1)
    f11, d11 = relu_moments(k1, q1[:, None], q1[None])
    # x1 and x0 have the covariance of x0 alone: W relu(x0) is independent of it
    f01, d01 = relu_moments(k0, q0[:, None], q1[None])
    f10, d10 = f01.T, d01.T
    k2 = k0 + f00 + f01 + f10 + f11
    t2 = k0 + (f00 + d00 * k0) + (f11 + d11 * t1) + (f01 + d01 * k0) + (f10 + d10 * k0)
    nngp, tangent = kernels(forward)
    np.testing.assert_allclose(nngp, k2, rtol=1e-6)
    np.testing.assert_allclose(tangent, k2 + t2, rtol=1e-6)


def gates(module, x, n):
    """The cell of a GRU without its reset gate."""
    update, new = dense(n), dense(n)
    h = dense(n)(x[:, 0])
    for _ in range(3):
        gate = nn.sigmoid(update(h))
        h = nn.tanh(gate * h + (1 - gate) * nn.tanh(new(h)))
    return dense(1)(h)


def parts(module, x, n):
    layer = dense(n)
    one, two = jnp.split(dense(2 * n)(x[:, 0]), 2, -1)
    return dense(1)(layer(nn.relu(one)) + layer(nn.relu(two)))


def embedding_that_reads_out(module, x, n):
    table = nn.Embed(6, n, embedding_init=nn.initializers.normal(1.0))
    return table.attend(nn.relu(dense(n)(table(x)))) / n


def transpose(module, x, n):
    layer = nn.Dense(n, use_bias=False)
    h = layer(nn.relu(dense(n)(x[:, 0])))
    w = layer.variables["params"]["kernel"]
    return dense(1)(nn.relu(h) @ w.T)


def shared_convolution(module, x, n):
    layer = nn.Conv(n, (3,))
    return dense(1)(layer(nn.relu(layer(dense(n)(x)))).mean(1))


REFUSED = {
    "gates": (gates, X, "otherwise=.sample."),
    "parts of a layer": (parts, X, "layers side by side or split"),
    "tied readout": (
        embedding_that_reads_out,
        np.zeros((3, 2), int),
        "Embed_0/embedding is used twice",
    ),
    "transpose": (transpose, X, "a matrix and its transpose"),
    "convolution": (shared_convolution, X, "Conv_0/kernel is used twice"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_uses_of_one_parameter_are_refused_by_its_name(name):
    forward, x, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        kernels(forward, x)
