"""Random networks of layers that neural-tangents has too: both libraries agree in double precision."""

import jax.numpy as jnp
import numpy as np
import pytest

from ntk import reference, stax

GET = ("nngp", "ntk")


def nonlinearity(s, rng):
    a, b, c = rng.uniform(0.3, 1.2, 3)
    kinds = {
        "Relu": lambda: s.Relu(),
        "LeakyRelu": lambda: s.LeakyRelu(a / 2),
        "ABRelu": lambda: s.ABRelu(-a, b),
        "Abs": lambda: s.Abs(),
        "Erf": lambda: s.Erf(a, b, c),
        "Gelu": lambda: s.Gelu(),
        "Sin": lambda: s.Sin(a, b, c),
        "Cos": lambda: s.Cos(a, b, c),
        "Rbf": lambda: s.Rbf(a),
        "Gaussian": lambda: s.Gaussian(a, -b),
        "Exp": lambda: s.Exp(a, b / 3),
        "Polynomial": lambda: s.Polynomial((a, b, c / 3)),
    }
    return kinds[rng.choice(sorted(kinds))]()


def affine(s, rng, pixels):
    settings = {
        "W_std": rng.uniform(0.7, 1.5),
        "b_std": None if rng.random() < 0.3 else rng.uniform(0.1, 0.5),
        "parameterization": str(rng.choice(["ntk", "standard"])),
    }
    if not pixels or rng.random() < 0.2:
        return s.Dense(4, **settings)
    padding = str(rng.choice(["SAME", "CIRCULAR"]))
    return s.Conv(4, tuple(rng.integers(1, 4, 2).tolist()), padding=padding, **settings)


def block(s, rng, pixels):
    """A nonlinearity and a layer of weights: alone, normalised, or beside a skip connection."""
    kind = rng.choice(["plain", "normalised", "residual", "product"])
    branch = s.serial(nonlinearity(s, rng), affine(s, rng, pixels))
    if kind == "normalised":
        return s.serial(s.LayerNorm(), branch)
    if kind == "residual":
        return s.serial(s.FanOut(2), s.parallel(branch, s.Identity()), s.FanInSum())
    if kind == "product":
        other = s.serial(nonlinearity(s, rng), affine(s, rng, pixels))
        last = affine(s, rng, pixels)
        return s.serial(s.FanOut(2), s.parallel(branch, other), s.FanInProd(), last)
    return branch


def random_network(s, seed):
    rng = np.random.default_rng(seed)
    pixels = seed % 2 == 1
    layers = [affine(s, rng, pixels)]
    for _ in range(rng.integers(1, 4)):
        layers.append(block(s, rng, pixels))
        if pixels and rng.random() < 0.3:
            layers.append(
                s.AvgPool((2, 2), (1, 1), "SAME", normalize_edges=bool(rng.random() < 0.5))
            )
    layers.append(nonlinearity(s, rng))
    if pixels:
        layers.append(s.Flatten() if rng.random() < 0.5 else s.GlobalAvgPool())
    return s.serial(*layers, s.Dense(1, rng.uniform(0.7, 1.5), rng.uniform(0.1, 0.5)))


SEEDS = [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 75))]


@pytest.mark.parametrize("seed", SEEDS)
def test_random_networks_agree(seed, x64):
    shape = (3, 4, 2) if seed % 2 else (5,)
    rng = np.random.default_rng(1000 + seed)
    x1, x2 = (jnp.asarray(rng.standard_normal((n, *shape))) for n in (3, 2))
    ours = random_network(stax, seed)[2]
    theirs = random_network(reference.neural_tangents().stax, seed)[2]
    for second in (None, x2):
        for one, two in zip(ours(x1, second, GET), theirs(x1, second, GET)):
            assert one.shape == two.shape
            np.testing.assert_allclose(one, two, rtol=1e-7, atol=1e-7 * np.abs(two).max())
