"""Curvature against PyHessian, curvlinops, matfree, laplax, kfac-jax, and sharpness tracking against plain training.

    python -m benchmarks.metrics_curvature [--only TASK ...] [--runs N]

The peers are optional (`pip install torch==2.13.0`, then with --no-deps `pyhessian`,
`curvlinops-for-pytorch`, `laplax`, `kfac-jax` and what they import; `matfree`); a row whose peer is missing is skipped.
Same weights, same data (all 1797 digits), same threads: both sides use the cores this process may
run on. Time it on one core, ``taskset -c 0``: torch's worker threads spin on after their work, and with
several cores they take them, and count as CPU time, while the other side runs. All Lanczos runs have one
start vector; every contender runs the cheapest setting with which all eigenvalues are within 1e-3 of a
double-precision ARPACK reference.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from scipy.linalg import eigh_tridiagonal
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.datasets import load_digits

from benchmarks import harness
from metrics import chunks, curvature, operators, spectra
from metrics.curvature import sharpness

TARGET = 1e-3
# The cheapest settings that reach the target; every row prints the error that it measured.
PYHESSIAN_TOLERANCE = {("mlp", 1): 3e-4, ("mlp", 10): 3e-5, ("cnn", 1): 1e-3, ("cnn", 10): 1e-4}
ARPACK_BASIS = {1: 8, 10: 20}


def mlp(params, x):
    x = jnp.tanh(_dense(params["dense_0"], x))
    x = jnp.tanh(_dense(params["dense_1"], x))
    return _dense(params["dense_2"], x)


def cnn(params, x):
    x = x.reshape(-1, 8, 8, 1)
    for name in ("conv_0", "conv_1"):
        layer, dims = params[name], ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, layer["kernel"], (1, 1), "SAME", dimension_numbers=dims)
        x = jax.nn.relu(x + layer["bias"][None, None, None])
    x = x.reshape(-1, 4, 2, 4, 2, 32).max((2, 4)).transpose(0, 3, 1, 2).reshape(-1, 512)
    return _dense(params["dense_1"], jax.nn.relu(_dense(params["dense_0"], x)))


def _dense(layer, x):
    return x @ layer["kernel"] + layer["bias"][None]


def mlp_loss(params, batch):
    return _cross_entropy(mlp(params, batch[0]), batch[1])


def cnn_loss(params, batch):
    return _cross_entropy(cnn(params, batch[0]), batch[1])


def _cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


LOSSES = {"mlp": mlp_loss, "cnn": cnn_loss}
MODELS = {"mlp": mlp, "cnn": cnn}
SHAPES = {
    "mlp": {"dense_0": (64, 256), "dense_1": (256, 256), "dense_2": (256, 10)},
    "cnn": {
        "conv_0": (3, 3, 1, 16),
        "conv_1": (3, 3, 16, 32),
        "dense_0": (512, 64),
        "dense_1": (64, 10),
    },
}


def initial(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: {
            "kernel": jnp.asarray(rng.normal(size=s) / np.sqrt(np.prod(s[:-1])), jnp.float32),
            "bias": jnp.zeros(s[-1], jnp.float32),
        }
        for name, s in shapes.items()
    }


def digits():
    data = load_digits()
    return jnp.asarray(data.data / 16, jnp.float32), jnp.asarray(data.target)


@functools.cache
def trained(name):
    """Sixty steps of Adam on all digits; stepped, since a convolution in a loop is slow on a CPU."""
    loss, params, batch = LOSSES[name], initial(SHAPES[name]), digits()
    transform = optax.adam(3e-3)

    @jax.jit
    def step(params, state, batch):
        update, state = transform.update(jax.grad(loss)(params, batch), state)
        return optax.apply_updates(params, update), state

    state = transform.init(params)
    for _ in range(60):
        params, state = step(params, state, batch)
    return params, batch


@functools.cache
def reference(name):
    """The ten largest eigenvalues in double precision by ARPACK, descending."""
    params, (x, y) = trained(name)
    with jax.enable_x64(True):
        params, x = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), float), (params, x))
        flat, unravel = ravel_pytree(params)
        product = operators.hessian(LOSSES[name])

        @jax.jit
        def multiply(flat, batch, v):
            return ravel_pytree(product(unravel(flat), batch, unravel(v)))[0]

        H = LinearOperator(
            (flat.size, flat.size),
            lambda v: np.asarray(multiply(flat, (x, y), jnp.asarray(v.ravel()))),
            dtype=np.float64,
        )
        values = eigsh(H, 10, which="LA", tol=1e-5, return_eigenvectors=False, ncv=24)
        return np.sort(values)[::-1]


def worst_error(name, values):
    values = np.sort(np.asarray(values, np.float64))[::-1]
    return float(np.max(np.abs(values / reference(name)[: len(values)] - 1)))


def start_of(name):
    """One random start vector for every Lanczos method."""
    flat, unravel = ravel_pytree(trained(name)[0])
    return unravel(jax.random.normal(jax.random.key(0), flat.shape))


def hessian(name):
    """The loss Hessian; of the CNN 32 examples at a time, so that patches stay in a core's cache."""
    if name == "mlp":
        return operators.hessian(mlp_loss)
    return chunks.chunked(operators.hessian(chunks.matrix_convolutions(cnn_loss)), 32)


@functools.cache
def lanczos_steps(name, k):
    """Fewest steps with which the k largest Ritz values reach the target, from one long run."""
    params, batch = trained(name)
    product, key = hessian(name), jax.random.key(0)
    space = curvature.krylov(product, params, batch, key, start_of(name), num_steps=40)
    diagonal, coupling = (np.asarray(a, np.float64) for a in (space.diagonal, space.off_diagonal))
    for m in range(k, 41):
        values = eigh_tridiagonal(diagonal[:m], coupling[: m - 1], eigvals_only=True)[-k:]
        if worst_error(name, values) <= TARGET:
            return m
    raise ValueError(f"{name}, top {k}: 40 Lanczos steps do not reach {TARGET}")


def ours_top(name, k):
    """Lanczos with residuals and eigenvectors; the setting is its number of products."""
    params, batch = trained(name)
    steps, start, product = lanczos_steps(name, k), start_of(name), hessian(name)

    def step():
        return curvature.eigenpairs(product, params, batch, k=k, num_steps=steps, start=start).value

    return step, steps


def torch_problem(name):
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    params, (x, y) = trained(name)
    x, y = torch.tensor(np.asarray(x)), torch.tensor(np.asarray(y)).long()
    layers = []
    for layer, values in params.items():
        kernel, bias = np.asarray(values["kernel"]), np.asarray(values["bias"])
        if layer.startswith("conv"):
            new = torch.nn.Conv2d(kernel.shape[2], kernel.shape[3], 3, padding=1)
            weight = kernel.transpose(3, 2, 0, 1).copy()
        else:
            new = torch.nn.Linear(*kernel.shape)
            weight = kernel.T.copy()
        new.weight.data, new.bias.data = torch.tensor(weight), torch.tensor(bias)
        layers.append(new)
    if name == "mlp":
        tanh = torch.nn.Tanh
        model = torch.nn.Sequential(layers[0], tanh(), layers[1], tanh(), layers[2])
    else:
        relu = torch.nn.ReLU
        pool = (torch.nn.MaxPool2d(2), torch.nn.Flatten())
        convolutions = (torch.nn.Unflatten(1, (1, 8, 8)), layers[0], relu(), layers[1], relu())
        model = torch.nn.Sequential(*convolutions, *pool, layers[2], relu(), layers[3])
    return model, torch.nn.CrossEntropyLoss(), x, y


def pyhessian_top(name, k):
    """Power iteration with deflation; the setting is its tolerance between successive iterates."""
    import pyhessian
    import torch

    model, criterion, x, y = torch_problem(name)
    tolerance = PYHESSIAN_TOLERANCE[name, k]

    def step():
        torch.manual_seed(0)
        model.zero_grad()  # without it a second `hessian` doubles every eigenvalue
        H = pyhessian.hessian(model, criterion, data=(x, y), cuda=False)
        return H.eigenvalues(maxIter=1000, tol=tolerance, top_n=k)[0]

    return step, tolerance


def curvlinops_operator(name):
    from curvlinops import HessianLinearOperator

    model, criterion, x, y = torch_problem(name)
    params = list(model.parameters())
    return HessianLinearOperator(model, criterion, params, [(x, y)], check_deterministic=False)


def curvlinops_top(name, k):
    """ARPACK; the setting is the size of its basis."""
    H, basis = curvlinops_operator(name).to_scipy(), ARPACK_BASIS[k]
    start = np.asarray(ravel_pytree(start_of(name))[0])

    def step():
        return eigsh(H, k, which="LA", tol=TARGET, ncv=basis, v0=start, return_eigenvectors=False)

    return step, basis


def matfree_top(name, k):
    """Lanczos with the steps and the start of ours; values only, no residuals or vectors."""
    from matfree import decomp

    params, batch = trained(name)
    product, steps = operators.hessian(LOSSES[name]), lanczos_steps(name, k)

    @jax.jit
    def top(params, batch, start):
        unravel = ravel_pytree(params)[1]

        def multiply(v):
            return ravel_pytree(product(params, batch, unravel(v)))[0]

        tridiagonal = decomp.tridiag_sym(steps, reortho="full", materialize=True)
        return jnp.linalg.eigvalsh(tridiagonal(multiply, start).J_small)[::-1][:k]

    start = ravel_pytree(start_of(name))[0]
    return lambda: top(params, batch, start), steps


PEERS = {
    "pyhessian": pyhessian_top,
    "curvlinops": curvlinops_top,
    "matfree": matfree_top,
}


def top(name, k, peer, *, runs):
    """Top-k eigenvalues of the loss Hessian, ours against one peer."""
    contenders, notes = {}, {}
    for who, contestant in (("widelimit", ours_top), (peer, PEERS[peer])):
        step, setting = contestant(name, k)
        error = worst_error(name, step())
        notes[who] = {"setting": setting, "error": float(f"{error:.2g}")}
        contenders[who] = lambda step=step: step
    n = sum(p.size for p in jax.tree.leaves(trained(name)[0]))
    task = f"{name} n={n} top-{k} to {TARGET:g}"
    if name == "cnn" or (peer == "pyhessian" and k > 1):  # seconds to half a minute each
        runs = min(runs, 3 if (name, k) != ("cnn", 10) else 2)
    return harness.compare(
        task, contenders, ours="widelimit", baseline=peer, runs=runs, notes=notes
    )


def density(name, *, runs, num_probes=2):
    """Spectral density by stochastic Lanczos quadrature, the same steps and probes."""
    from curvlinops import lanczos_approximate_spectrum

    num_steps, runs = (50, min(runs, 3)) if name == "mlp" else (15, min(runs, 2))
    params, batch = trained(name)
    product, key = hessian(name), jax.random.key(0)
    H = curvlinops_operator(name)

    def make_ours():
        top = reference(name)[0]
        grid = jnp.linspace(-0.1 * top, 1.05 * top, 1024)  # as many points as theirs

        def step():
            spectrum = spectra.spectral_density(
                product, params, batch, key, num_probes=num_probes, num_steps=num_steps
            )
            return spectra.density(spectrum, grid, 0.01 * top)

        return step

    def make_theirs():
        # Boundaries given: by default it finds them first, for twice the time.
        top = float(reference(name)[0])
        bounds = (-0.1 * top, 1.05 * top)
        return lambda: lanczos_approximate_spectrum(
            H, num_steps, num_repeats=num_probes, boundaries=bounds
        )

    contenders = {"widelimit": make_ours, "curvlinops": make_theirs}
    task = f"{name} spectral density, {num_probes} probes of {num_steps} steps"
    return harness.compare(task, contenders, ours="widelimit", baseline="curvlinops", runs=runs)


def laplax_gauss_newton(name):
    """(params, batch, vector) -> product; theirs is of the summed loss, with the data as an argument as ours has it."""
    from laplax.curv.ggn import create_ggn_mv_without_data

    def one(input, params):
        return MODELS[name](params, input[None])[0]

    def product(params, batch, vector):
        x, y = batch
        mv = create_ggn_mv_without_data(one, params, "cross_entropy", 1 / len(x))
        return mv(vector, {"input": x, "target": y})

    return product


def kfac_gauss_newton(name):
    """The same of `kfac_jax.ImplicitExactCurvature`."""
    import kfac_jax

    def loss(params, batch):
        outputs = MODELS[name](params, batch[0])
        kfac_jax.register_softmax_cross_entropy_loss(outputs, batch[1])
        return _cross_entropy(outputs, batch[1])

    curvature_of = kfac_jax.ImplicitExactCurvature(loss)
    return lambda params, batch, vector: curvature_of.multiply_ggn((params, batch), vector)


GAUSS_NEWTON = {"laplax": laplax_gauss_newton, "kfac_jax": kfac_gauss_newton}


def gauss_newton(name, peer, *, runs):
    """One product with the Gauss-Newton matrix of all digits, both sides compiled."""
    params, batch = trained(name)
    vector, model = start_of(name), MODELS[name]

    def product_of(apply):
        return operators.gauss_newton(
            lambda params, batch: apply(params, batch[0]),
            lambda outputs, batch: _cross_entropy(outputs, batch[1]),
        )

    ours = product_of(model)
    if name == "cnn":
        ours = chunks.chunked(product_of(chunks.matrix_convolutions(model)), 32)
    contenders = {"widelimit": jax.jit(ours), peer: jax.jit(GAUSS_NEWTON[peer](name))}
    one, two = (ravel_pytree(fn(params, batch, vector))[0] for fn in contenders.values())
    notes = {"relative difference": float(jnp.linalg.norm(one - two) / jnp.linalg.norm(one))}
    n = len(one)
    return harness.compare(
        f"{name} n={n} Gauss-Newton product, {peer}",
        {
            who: functools.partial(functools.partial, fn, params, batch, vector)
            for who, fn in contenders.items()
        },
        ours="widelimit",
        baseline=peer,
        runs=runs,
        notes=notes,
    )


@functools.partial(jax.jit, static_argnames=("probes", "num_steps", "every"))
def descend(params, batch, learning_rate, *, probes, num_steps, every=10):
    """Gradient descent with a warm-started probe every tenth step; num_steps=0 probes nothing."""

    def update(params, _):
        gradient = jax.grad(mlp_loss)(params, batch)
        return jax.tree.map(lambda p, g: p - learning_rate * g, params, gradient), None

    def body(carry, _):
        params, vector = carry
        params = jax.lax.scan(update, params, None, length=every)[0]
        if not num_steps:
            return (params, vector), (jnp.zeros(()), jnp.zeros(()))
        found = sharpness(mlp_loss, params, batch, num_steps=num_steps, start=vector)
        cold = num_steps > 4
        return (params, None if cold else found.vector), (found.value[0], found.residual[0])

    vector = None if num_steps > 4 else jax.tree.map(lambda p: jnp.zeros((1, *p.shape)), params)
    return jax.lax.scan(body, (params, vector), None, length=probes)


def tracking(*, runs, probes=60, learning_rate=0.5):
    """Sharpness along gradient descent from the edge of stability: the ratio is plain over tracked."""
    shapes = {"dense_0": (64, 64), "dense_1": (64, 64), "dense_2": (64, 10)}
    params, batch = initial(shapes), digits()

    def make(num_steps):
        return lambda: descend(params, batch, learning_rate, probes=probes, num_steps=num_steps)

    values = np.asarray(make(4)()[1][0])
    truth = np.asarray(make(30)()[1][0])
    error = np.abs(values / truth - 1)[3:]  # the first probes start cold
    notes = {
        "median error": float(f"{np.median(error):.2g}"),
        "99 % error": float(f"{np.percentile(error, 99):.2g}"),
        "sharpness x eta / 2, first and last": [
            float(f"{v * learning_rate / 2:.3g}") for v in values[[0, -1]]
        ],
        "gradient evaluations per probe": 8,
    }
    contenders = {"tracked": functools.partial(make, 4), "plain": functools.partial(make, 0)}
    task = f"mlp 64-64-64-10, {10 * probes} steps from the edge, 4 products every tenth"
    return harness.compare(
        task, contenders, ours="tracked", baseline="plain", runs=runs, notes=notes
    )


def tasks():
    """The rows whose peer is installed."""
    rows = {
        f"{name}_top{k}_{peer}": (peer, functools.partial(top, name, k, peer))
        for name in ("mlp", "cnn")
        for k in (1, 10)
        for peer in PEERS
        if not (name == "cnn" and peer == "matfree")  # no stepped driver: a loop over convolutions
    }
    rows |= {f"{name}_density": ("curvlinops", functools.partial(density, name)) for name in LOSSES}
    rows |= {
        f"{name}_gauss_newton_{peer}": (peer, functools.partial(gauss_newton, name, peer))
        for name in MODELS
        for peer in GAUSS_NEWTON
    }
    found = {}
    for row, (peer, run) in rows.items():
        needs = ("torch", peer) if peer in ("pyhessian", "curvlinops") else (peer,)
        missing = [package for package in needs if importlib.util.find_spec(package) is None]
        if missing:
            print(f"{row}: skipped, {' and '.join(missing)} not installed", flush=True)
        else:
            found[row] = run
    return {"tracking": tracking} | found


if __name__ == "__main__":
    harness.main("metrics_curvature", tasks())
