"""The Principles of Deep Learning Theory (Roberts, Yaida & Hanin 2022), its statistics of wide networks simulated.

Which variances are critical for which activation, and how signals flow there; fluctuations of the metric, of two inputs
and of the tangent kernel at first order in 1 / width (`limits.finite_width`) against networks drawn without weights
(`limits.ensembles`) and with them; the ratio of depth to width that they depend on; residual connections, learning
rates that treat all layers alike, and what the optimal aspect ratio is worth. Controls: initialisations that are not
critical, predictions without the correction in question, depth without width.
"""

# One file: each experiment is a prediction, its simulation and the grid of both, on the same families.

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import limits
from experiments import checks, grid, tasks
from experiments.grid import Axis, Program, Variable, train_grid
from experiments.loop import Session
from experiments.studies import principles_figures as drawn
from experiments.studies.principles_claims import SHAPES, claims
from limits import aspect_ratio, ensembles, finite_width
from ntk import empirical_ntk, stax

TITLE = "Criticality, finite width and the depth-to-width ratio"
PAPER = "Roberts, Yaida & Hanin 2022, arXiv:2106.10165"
__all__ = ["PAPER", "TITLE", "check", "claims", "figures", "run", "total_steps"]


def leaky(z):
    """Slopes 0.1 and 1."""
    return jnp.where(z > 0, z, 0.1 * z)


def linear(z):
    """The identity."""
    return z


def gelu(z):
    """The exact one, not its approximation by tanh."""
    return jax.nn.gelu(z, approximate=False)


# Name -> activation, and the C_W (with C_b = 0) of the controls that are not at their critical one.
CASES = {
    "ReLU": (jax.nn.relu, None),
    "leaky ReLU": (leaky, None),
    "linear": (linear, None),
    "tanh": (jnp.tanh, None),
    "sin": (jnp.sin, None),
    "erf": (jax.scipy.special.erf, None),
    "arctan": (jnp.arctan, None),
    "GELU": (gelu, None),
    "SWISH": (jax.nn.swish, None),
    "softplus": (jax.nn.softplus, None),
    "ReLU, C_W = 1.8": (jax.nn.relu, 1.8),
    "tanh, C_W = 1.1": (jnp.tanh, 1.1),
}
SAMPLED = ("ReLU", "tanh")
PAIRS = ("ReLU", "tanh", "GELU")
RATED = ("tanh", "sin", "ReLU")
LAYERS = {
    "ReLU": (stax.Relu(), 2.0),
    "tanh": (stax.Elementwise(jnp.tanh), 1.0),
    "linear": (stax.Elementwise(linear), 1.0),
}
OUTPUTS = 8
GRAM = np.array([[1.0, 0.4], [0.4, 1.3]])
VARIANCES = np.geomspace(0.1, 100, 25)
PARTS = ("sampled", "aspect", "pairs", "residual", "tangent", "change")
_NETWORKS = checks.whole(100, 10**8)
RULES = {
    "seeds": checks.several(checks.whole(0), 2),
    "theory.depth": checks.whole(100, 10**5),
    "theory.variance": checks.positive(1e3),
    "sampled.widths": checks.several(checks.WIDTH, 3, ascending=True, needs=(25, 100)),
    "sampled.depth": checks.whole(3, 1000),
    "pairs.width": checks.WIDTH,
    "pairs.depth": checks.whole(2, 1000),
    "residual.widths": checks.several(checks.WIDTH, 2, ascending=True, most=2),
    "residual.depth": checks.whole(2, 1000),
    "residual.gammas": checks.several(checks.real(0, 1, inside=True), ascending=True),
    "tangent.width": checks.WIDTH,
    "change.widths": checks.widths(2),
    "rates.depth": checks.whole(20, 10**4),
    **{f"{n}.networks": _NETWORKS for n in PARTS},
}


def check(config: Any, task: tasks.Task) -> None:
    """Refuses a configuration that the study could not carry through; draws nothing.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    checks.values(config, RULES)
    for part in (config.sampled, config.residual, config.pairs):
        checks.memory("config: metrics of all networks", 3.0 * part.networks * part.depth)
    widest = max(config.tangent.width, *config.change.widths)
    checks.memory("config.tangent, config.change: 100 networks", 100 * 20.0 * widest**2)


def total_steps(config: Any) -> int:
    """Units of the study, for the progress bar."""
    each = (
        len(SAMPLED) * len(config.sampled.widths)
        + len(SHAPES)
        + len(PAIRS)
        + 2 * len(config.residual.gammas) * len(config.residual.widths)
        + 1
        + 2 * len(config.change.widths)
    )
    return len(CASES) + each * len(config.seeds) + 2 * len(RATED)


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Computes and draws the study; returns the labelled measurements.

    Raises:
        ValueError: see `check`.
    """
    session = session or Session()
    check(config, None)
    parts = (_theory, _sampled, _aspect, _pairs, _residual, _tangent, _rates, _information)
    return xr.merge([part(config, session) for part in parts])


def _key(seed, *place):
    """Networks of one unit: others for every part, activation and size."""
    return functools.reduce(jax.random.fold_in, place, jax.random.key(seed))


def _blocks(networks, statistic):
    """A statistic over blocks of networks: mean and standard error; a variance of variances is heavy-tailed."""
    values = np.array([statistic(part) for part in np.array_split(networks.astype(float), 20)])
    return values.mean(0), values.std(0, ddof=1) / math.sqrt(20)


def _seeds(config):
    return {"seed": Axis(list(config.seeds), "seed")}


def _start(name):
    """Activation and initialisation of a case: C_W, C_b, and the K that it keeps, or None."""
    fn, C_W = CASES[name]
    found = limits.criticality(fn)
    return fn, (C_W or found.C_W, 0.0 if C_W else found.C_b), found


def _theory_unit(config: Any, activation: str) -> dict[str, Any]:
    """Class, susceptibilities, and the metric layer by layer."""
    depth, (fn, (C_W, C_b), found) = config.theory.depth, _start(activation)
    nothing = np.full(depth, np.nan)
    numbers = {name: getattr(found, name) for name in ("variance", "nu", "a1")}
    numbers = {name: np.nan if value is None else value for name, value in numbers.items()}
    if found.kind == "none":
        C_W, C_b = 1.0, 0.0
    K = found.variance or config.theory.variance
    flow = [limits.susceptibilities(fn, k, C_W=C_W, C_b=C_b) for k in VARIANCES]
    points = (K,) if found.kind == "half-stable" else (0.1, 1.0, 10.0)
    at = [limits.susceptibilities(fn, k, C_W=C_W, C_b=C_b) for k in points]
    layers = {"K": nothing, "V": nothing}
    if found.kind != "none":
        made = finite_width.vertices(fn, depth, C_W=C_W, C_b=C_b, variance=K)
        layers = {"K": made.K, "V": made.V}
    return {
        "known": float(found.kind != "none"),
        "C_W": C_W,
        "C_b": C_b,
        **numbers,
        "off": max(abs(s[k] - 1) for s in at for k in (1, 2)),
        **layers,
        "parallel": np.array([s.parallel for s in flow]),
        "perpendicular": np.array([s.perpendicular for s in flow]),
    }


def _theory(config, session):
    names = {
        "known": "whether it has a critical point",
        "C_W": "variance of the weights times fan-in",
        "C_b": "variance of the biases",
        "variance": "critical variance",
        "nu": "slope of V / K² in depth",
        "a1": "second-order coefficient of the flow at 0",
        "off": "largest |susceptibility - 1|",
    }
    layers = {"K": "variance of a layer", "V": "variance of the metric, times width"}
    slopes = {"parallel": "χ∥", "perpendicular": "χ⊥"}
    variables = grid.variables("", **names)
    variables |= grid.variables("layer", **layers)
    variables |= grid.variables("at", **slopes)
    own = {
        "layer": Axis(range(1, config.theory.depth + 1), "layer"),
        "at": Axis(VARIANCES, "variance"),
    }
    axes = {"activation": Axis(list(CASES), "activation")}
    return train_grid(axes, config, Program("theory", _theory_unit, variables, own), session)


def _sampled_unit(config: Any, sampled_activation: str, sampled_width: int, seed: int):
    """Variance of the metric over networks without weights, and what the recursion says."""
    part, (fn, (C_W, _), _) = config.sampled, _start(sampled_activation)
    key = _key(seed, 1, SAMPLED.index(sampled_activation), sampled_width)
    drawn_networks = ensembles.sample_metrics(
        key, fn, sampled_width, part.depth, [[1.0]], C_W=C_W, networks=part.networks
    )[..., 0]
    value, error = _blocks(drawn_networks, lambda G: G.var(0, ddof=1))
    theory = finite_width.vertices(fn, part.depth, C_W=C_W, variance=1.0)
    return {
        "sampled": sampled_width * value,
        "sampled_error": sampled_width * error,
        "sampled_theory": theory.V,
        "sampled_K": theory.K,
    }


def _sampled(config, session):
    texts = {
        "sampled": "variance of the metric, times width",
        "sampled_error": "its standard error",
        "sampled_theory": "the same at first order in 1 / width",
        "sampled_K": "variance at infinite width",
    }
    axes = {
        "sampled_activation": Axis(SAMPLED, "activation"),
        "sampled_width": Axis(list(config.sampled.widths), "width", "neurons"),
    } | _seeds(config)
    variables = grid.variables("sampled_layer", **texts)
    own = {"sampled_layer": Axis(range(1, config.sampled.depth + 1), "layer")}
    return train_grid(axes, config, Program("sampled", _sampled_unit, variables, own), session)


def _aspect_unit(config: Any, shape: str, seed: int) -> dict[str, Any]:
    width, depth = SHAPES[shape]
    key, count = _key(seed, 2, width, depth), config.aspect.networks
    last = ensembles.sample_metrics(
        key, jax.nn.relu, width, depth, [[1.0]], C_W=2.0, networks=count
    )[:, -1, 0]
    value, error = _blocks(last, lambda G: G.var(ddof=1))
    return {
        "aspect": value,
        "aspect_error": error,
        "aspect_exact": (1 + 5 / width) ** (depth - 1) - 1,
    }


def _aspect(config, session):
    texts = {
        "aspect": "variance of the last metric, ReLU",
        "aspect_error": "its standard error",
        "aspect_exact": "the same, exact",
    }
    axes = {"shape": Axis(list(SHAPES), "width x depth")} | _seeds(config)
    variables = grid.variables("", **texts)
    return train_grid(axes, config, Program("aspect", _aspect_unit, variables), session)


@functools.cache
def _pair_theory(activation: str, depth: int):
    """Where two inputs begin, and their covariances; one input's variance."""
    fn, (C_W, C_b), found = _start(activation)
    gram, scales = GRAM * (found.variance or 1.0), {"C_W": C_W, "C_b": C_b}
    both = finite_width.metric_covariance(fn, depth, gram, **scales)
    alone = finite_width.vertices(fn, depth, variance=gram[0, 0], **scales)
    return (fn, gram, scales), both, alone.V[-1]


def _pairs_unit(config: Any, pair_activation: str, seed: int) -> dict[str, Any]:
    """Covariance of two inputs' metric: the six entries of the recursion, and the shift of its mean."""
    part = config.pairs
    (fn, gram, scales), theory, alone = _pair_theory(pair_activation, part.depth)
    key = _key(seed, 3, PAIRS.index(pair_activation))
    G = ensembles.sample_metrics(
        key, fn, part.width, part.depth, gram, networks=part.networks, **scales
    )[:, -1]
    entries = np.triu_indices(3)
    covariance = _blocks(G, lambda G: np.cov(G.T)[entries])
    shift = _blocks(G[:, 1] - theory.gram[-1, 0, 1], np.mean)
    return {
        "pair": part.width * covariance[0],
        "pair_error": part.width * covariance[1],
        "pair_theory": theory.covariance[-1][entries],
        "pair_alone": alone,
        "mean_shift": part.width * shift[0],
        "mean_shift_error": part.width * shift[1],
        "mean_shift_theory": theory.mean_shift[-1, 1],
    }


def _pairs(config, session):
    texts = {
        "pair": "covariance of the metrics of two inputs, times width",
        "pair_error": "its standard error",
        "pair_theory": "the same at first order in 1 / width",
    }
    single = {
        "pair_alone": "variance of one input's metric, times width, at first order",
        "mean_shift": "mean of the off-diagonal metric less its limit, times width",
        "mean_shift_error": "its standard error",
        "mean_shift_theory": "the same at first order",
    }
    variables = grid.variables("entry", **texts)
    variables |= grid.variables("", **single)
    own = {"entry": Axis(["11,11", "11,12", "11,22", "12,12", "12,22", "22,22"], "entry")}
    axes = {"pair_activation": Axis(PAIRS, "activation")} | _seeds(config)
    return train_grid(axes, config, Program("pairs", _pairs_unit, variables, own), session)


@functools.cache
def _residual_theory(activation: str, gamma: float, depth: int):
    """V with the three-point function and without, and its slope in deep networks."""
    fn = CASES[activation][0]
    options = {"C_W": (1 - gamma**2) * limits.criticality(fn).C_W, "variance": 1.0, "gamma": gamma}
    deep = finite_width.vertices(fn, max(DEEP, depth), **options)
    plain = finite_width.vertices(fn, depth, skew=False, **options)
    ratio = (deep.V / deep.K**2)[[DEEP // 2 - 1, DEEP - 1]]
    return fn, options, deep.V[depth - 1], plain.V[-1], (ratio[1] - ratio[0]) / (DEEP // 2)


DEEP = 800  # layers, where slopes are read


def _residual_unit(
    config: Any, residual_activation: str, gamma: float, residual_width: int, seed: int
):
    """V of z' = gamma z + W s(z), simulated and in theory."""
    part = config.residual
    fn, options, theory, plain, slope = _residual_theory(residual_activation, gamma, part.depth)
    key = _key(seed, 4, SAMPLED.index(residual_activation), round(100 * gamma), residual_width)
    found = ensembles.sample_neurons(
        key, fn, residual_width, part.depth, networks=part.networks, **options
    )
    last = np.stack([found.squares[:, -1], found.square[:, -1]], axis=1)
    value, error = _blocks(last, lambda m: m[:, 0].mean() - m[:, 1].mean() ** 2)
    return {
        "residual": residual_width * value,
        "residual_error": residual_width * error,
        "residual_theory": theory,
        "residual_plain": plain,
        "residual_slope": slope,
        "residual_nu": limits.residual_nu(fn, gamma),
    }


def _residual(config, session):
    texts = {
        "residual": "variance of the metric with skip connections, times width",
        "residual_error": "its standard error",
        "residual_theory": "the same at first order in 1 / width",
        "residual_plain": "the same without the three-point function",
        "residual_slope": "slope of V / K² in depth, deep network",
        "residual_nu": "the same in closed form",
    }
    axes = {
        "residual_activation": Axis(SAMPLED, "activation"),
        "gamma": Axis(list(config.residual.gammas), "strength of the skip connection"),
        "residual_width": Axis(list(config.residual.widths), "width", "neurons"),
    } | _seeds(config)
    variables = grid.variables("", **texts)
    return train_grid(axes, config, Program("residual", _residual_unit, variables), session)


def _network(activation: str, width: int):
    """(key -> parameters, parameters -> outputs) with weights, three layers, all rates one in NTK parametrization."""
    layer, C_W = LAYERS[activation]
    layers = [stax.Dense(width, C_W**0.5), layer] * 2
    init_fn, apply_fn, _ = stax.serial(*layers, stax.Dense(OUTPUTS, C_W**0.5))
    x = jnp.ones((1, width))
    theory = finite_width.vertices(CASES[activation][0], 3, C_W=C_W, variance=C_W, lambda_W=C_W)
    return lambda key: init_fn(key, x.shape)[1], apply_fn, x, theory


@functools.cache
def _kernels(activation: str, width: int):
    """keys -> B, F, A of each network, over pairs of outputs."""
    init, apply_fn, x, theory = _network(activation, width)
    pairs = OUTPUTS * (OUTPUTS - 1)

    def one(key):
        params = init(key)
        z, H = apply_fn(params, x)[0], empirical_ntk(apply_fn, params, x, None, trace_axes=())[0, 0]
        diagonal = jnp.diagonal(H)
        off = diagonal - theory.Theta[-1]
        return (
            jnp.stack(
                [
                    (H**2).sum() - (diagonal**2).sum(),
                    z @ H @ z - (z**2 * diagonal).sum(),
                    off.sum() ** 2 - (off**2).sum(),
                ]
            )
            / pairs
        )

    return jax.jit(jax.vmap(one)), np.array([theory.B[-1], theory.F[-1], theory.A[-1]])


@functools.cache
def _changes(activation: str, width: int):
    """keys -> P of each network: z_i times the second derivative of z_i along the gradient of z_j, over pairs."""
    init, apply_fn, x, theory = _network(activation, width)

    def outputs(params):
        return apply_fn(params, x)[0]

    def one(key):
        params = init(key)

        def second(along):
            def first(params):
                return jax.jvp(outputs, (params,), (along,))[1]

            return jax.jvp(first, (params,), (along,))[1]

        dH = jax.vmap(second)(jax.jacrev(outputs)(params))  # [j, i]
        z = outputs(params)
        return ((dH @ z).sum() - jnp.diagonal(dH) @ z)[None] / (OUTPUTS * (OUTPUTS - 1))

    return jax.jit(jax.vmap(one)), theory.P[-1:]


def _over_networks(made, key, width, count):
    """Mean, standard error and theory of what is measured on each network, times width."""
    draw, theory = made
    parts = [np.asarray(draw(keys)) for keys in jax.random.split(key, (-(-count // 100), 100))]
    values = width * np.concatenate(parts)[:count].astype(float)
    return values.mean(0), values.std(0, ddof=1) / math.sqrt(count), theory


def _tangent_unit(config: Any, tangent_activation: str, seed: int) -> dict[str, Any]:
    part = config.tangent
    made = _kernels(tangent_activation, part.width)
    key = _key(seed, 5, list(LAYERS).index(tangent_activation))
    names = ("tangent", "tangent_error", "tangent_theory")
    return dict(zip(names, _over_networks(made, key, part.width, part.networks)))


def _change_unit(config: Any, change_activation: str, change_width: int, seed: int):
    made = _changes(change_activation, change_width)
    key = _key(seed, 6, list(LAYERS).index(change_activation), change_width)
    found = _over_networks(made, key, change_width, config.change.networks)
    return {name: part[0] for name, part in zip(("change", "change_error", "change_theory"), found)}


def _tangent(config, session):
    kernels = {
        "tangent": "statistics of tangent kernels, times width",
        "tangent_error": "their standard errors",
        "tangent_theory": "the same at first order in 1 / width",
    }
    changes = {
        "change": "mean of dH z, the kernel's derivative with the output, times width",
        "change_error": "its standard error",
        "change_theory": "the same at first order",
    }
    vertex = {"vertex": Axis(list("BFA"), "statistic")}
    tangent = grid.variables("vertex", **kernels)
    change = grid.variables("", **changes)
    wide = Axis(list(config.change.widths), "width", "neurons")
    axes = {"tangent_activation": Axis(["ReLU"], "activation")} | _seeds(config)
    own = {"change_activation": Axis(["tanh", "linear"], "activation"), "change_width": wide}
    return xr.merge(
        [
            train_grid(axes, config, Program("tangent", _tangent_unit, tangent, vertex), session),
            train_grid(
                own | _seeds(config), config, Program("change", _change_unit, change), session
            ),
        ]
    )


def _rates_unit(config: Any, rated: str, rule: str) -> dict[str, Any]:
    """What each layer's biases and weights add to the last layer's tangent kernel."""
    depth, fn = config.rates.depth, CASES[rated][0]
    critical = limits.criticality(fn)
    K = finite_width.vertices(fn, depth, C_W=critical.C_W, variance=1.0).K
    layers = [limits.susceptibilities(fn, k, C_W=critical.C_W) for k in K]
    carried = np.append(np.cumprod([s.perpendicular for s in layers[-2::-1]])[::-1], 1.0)
    squares = K / critical.C_W  # <s^2> of the layer before
    constant = np.ones(depth), np.ones(depth)
    rates = limits.learning_rates(critical, depth) if rule == "equivalent" else constant
    return {"contribution": np.stack([rates[0] * carried, rates[1] * squares * carried])}


def _rates(config, session):
    variables = {
        "contribution": Variable("contribution to the tangent kernel", dims=("of", "rate_layer"))
    }
    own = {
        "of": Axis(["biases", "weights"], "parameters"),
        "rate_layer": Axis(range(1, config.rates.depth + 1), "layer"),
    }
    axes = {
        "rated": Axis(RATED, "activation"),
        "rule": Axis(["equivalent", "constant"], "learning rates"),
    }
    return train_grid(axes, config, Program("rates", _rates_unit, variables, own), session)


GROUPS = {2: (1, 1), 4: (2, 2), 10: (5, 5)}
RATIOS = np.geomspace(0.02, 20, 31)


def _information_unit(config: Any, outputs: int) -> dict[str, Any]:
    """The series' third coefficient by exact quadrature in x = log(1 + v), and the exact information."""
    m1, m2 = GROUPS[outputs]
    x = np.array([0.004, 0.008, 0.012, 0.016])
    exact = aspect_ratio.mutual_information(np.expm1(x), m1, m2, order="lognormal")
    cubic = np.polyfit(x, (exact / (m1 * m2 / 8 * x**2) - 1) / x, 2)[-1]
    best = aspect_ratio.optimal_aspect_ratio(1.0, outputs)
    at = np.append(best * RATIOS, [best, 2 * best])
    series = aspect_ratio.mutual_information(at, m1, m2)
    information = aspect_ratio.mutual_information(np.expm1(at), m1, m2, order="lognormal")
    return {
        "cubic": cubic,
        "aspect_ratio": best,
        "exact_growth": information[-1] / information[-2],
        "series_growth": series[-1] / series[-2],
        "information": information[:-2],
        "series": series[:-2],
    }


def _information(config, session):
    texts = {
        "cubic": "third coefficient of the information over the second",
        "aspect_ratio": "depth over width at the series' maximum, times nu",
        "exact_growth": "exact information at twice that ratio over that at it",
        "series_growth": "the same of the series",
    }
    curves = {"information": "exact", "series": "series to third order"}
    variables = grid.variables("", **texts)
    variables |= {
        name: Variable(f"mutual information, {text}", "nat", ("ratio",))
        for name, text in curves.items()
    }
    own = {"ratio": Axis(RATIOS, "depth over width, over the series' optimum")}
    axes = {"outputs": Axis(list(GROUPS), "outputs")}
    program = Program("information", _information_unit, variables, own, steps=0)
    return train_grid(axes, config, program, session)


def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the study by name."""
    return {
        "depth_over_width": drawn.depth_over_width(data),
        "flow": drawn.flow(data),
        "susceptibilities": drawn.susceptibilities(data),
        "order_of_the_error": drawn.order_of_the_error(data),
        "residual_connections": drawn.residual_connections(data),
        "contributions": drawn.contributions(data),
        "information": drawn.information(data),
    }
