"""The table of architectures of the documentation: what is measured of each, and the page.

    python tests/models/architecture_table.py [--only NAME ...] [--page]

measures what docs/architectures.json does not have yet (an hour or two), or what is named, and writes
docs/architectures.md; with --page it measures nothing.
"""

import argparse
import dataclasses
import importlib.util
import json
import pathlib
import sys
import time
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import limits
import ntk
from ntk.family import ParamAxes, named_leaves
from ntk.trace.sampled import Estimate, SampledKernelFn, sampled

KERNELS = ("nngp", "ntk")
COUNT = 2
"""Examples of a batch: their kernels and that of the pair."""
NETWORKS = 16
"""Networks at the largest width, twice and four times as many at the others."""
SEEDS = 2
"""Independent evaluations of a kernel by draws."""


def _room(name: str) -> Any:
    """A module of this folder, which is not a package."""
    if name not in sys.modules:
        path = pathlib.Path(__file__).with_name(f"{name}.py")
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


architectures = _room("architectures")
ARCHITECTURES, inputs = architectures.ARCHITECTURES, architectures.inputs


# --- kernels -------------------------------------------------------------------------------------


def by_rule(kernel_fn: Any, x: Any) -> dict[str, Estimate]:
    """Kernels of the rules, means over evaluations, with the error of what is drawn, that of a typical entry."""
    drawn = "attention_seed" in kernel_fn.reads
    seeds: list = [{"attention_seed": 1 + k} for k in range(SEEDS)] if drawn else [{}]
    found = [kernel_fn(x, None, KERNELS, **seed) for seed in seeds]
    out = {}
    for kind in KERNELS:
        values = np.stack([np.asarray(getattr(k, kind), float) for k in found])
        error = (values.var(0, ddof=1).mean() / SEEDS) ** 0.5 if drawn else 0.0
        out[kind] = Estimate(values.mean(0), np.full_like(values[0], error))
    return out


def of_networks(name: str, networks: int = NETWORKS, part: int = 1) -> SampledKernelFn:
    """Kernels by finite networks, of widths that are such a part of the usual ones."""
    x = inputs(name, COUNT)
    first = tuple(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in jax.tree.leaves(x))
    family, _, roles = ARCHITECTURES[name]
    found = sampled(family, first, (None, None, None, roles), True, networks, "")
    return dataclasses.replace(found, widths=tuple(n // part for n in found.widths))


def deviation(one: Estimate, two: Estimate) -> float:
    """The largest of all deviations of two estimates in units of their standard errors, told as that of one entry.

    It is the number that one normal exceeds as rarely as the largest of all entries exceeds what was found.
    """
    first, error = (np.asarray(a, float) for a in one)
    if first.ndim > two.mean.ndim:  # outputs that are correlated, told apart
        first, error = (
            np.trace(a, axis1=-2, axis2=-1) / a.shape[-1] for a in (first, np.square(error))
        )
        error = np.sqrt(error)
    whole = np.sqrt(error**2 + np.asarray(two.standard_error, float) ** 2)
    gap = np.abs(first - np.asarray(two.mean, float))
    most = float(np.max(gap / np.maximum(whole, 1e-12)))  # errors are zero for a readout of zeros
    entries = len(np.unique(np.round(first, 12)))
    chance = min(entries * 2 * (1 - NormalDist().cdf(min(most, 8.0))), 1.0)
    return NormalDist().inv_cdf(1 - chance / 2) if chance < 1 else 0.0


def relative(estimate: Estimate) -> float:
    """The largest standard error in units of the largest entry."""
    size = float(np.abs(np.asarray(estimate.mean)).max())
    return float(np.max(np.asarray(estimate.standard_error))) / size if size else 0.0


def kernel(name: str) -> dict[str, Any]:
    """How the kernels of an architecture are known, and their deviations from finite networks."""
    family, x = ARCHITECTURES[name].family, inputs(name, COUNT)
    try:
        kernel_fn = ntk.infinite_width(family, x)
    except ValueError:
        return {"kernel": "refused"} | _sampled(name)
    rule = by_rule(kernel_fn, x)
    found = of_networks(name).estimate(x)
    error = max(relative(rule[kind]) for kind in KERNELS) * SEEDS**0.5  # of one evaluation
    return {
        "kernel": "draws" if error > 1e-6 else "rule",
        "error": error,
        "networks": max(relative(found[kind]) for kind in KERNELS),
        "z": {kind: deviation(rule[kind], found[kind]) for kind in KERNELS},
    }


def _sampled(name: str) -> dict[str, Any]:
    """Kernels by networks of half the usual widths against those by others, of the usual ones."""
    x = inputs(name, COUNT)
    try:
        found = of_networks(name).estimate(x)
        narrow = of_networks(name, part=2).estimate(x, seed=1)
    except ValueError as refusal:
        return {"sampled": str(refusal)}
    return {
        "error": max(relative(found[kind]) for kind in KERNELS),
        "networks": max(relative(narrow[kind]) for kind in KERNELS),
        "z": {kind: deviation(narrow[kind], found[kind]) for kind in KERNELS},
    }


# --- parametrization -----------------------------------------------------------------------------

KEY = jax.random.key(0)
BASES = (4, 8, 16)
"""Base widths that are tried in turn: far below the widths they keep initial outputs small."""
WIDTHS = (16, 64, 256)
SEEDS_UP_TO = ((300_000, 32), (1_500_000, 16))
"""(parameters at the largest width, initialisations): fewer of what is larger, and 8 of what is larger still."""


def coordinates(name: str) -> dict[str, Any]:
    """Coordinate check of an architecture as it is, and with one role declared wrongly."""
    started = time.perf_counter()
    family, _, roles = ARCHITECTURES[name]
    for base in BASES:
        try:
            check = _checked(name, base, roles)
            break
        except (ZeroDivisionError, TypeError, ValueError) as error:
            refusal = str(error)
    else:
        return {"passed": False, "verdict": refusal}
    axes = ntk.width_axes(family, inputs(name), roles=roles)
    parameter, role = _wrong(axes)
    layer = parameter.rpartition("/")[0]
    try:
        found = _checked(name, base, {parameter: role, **(roles or {})})
        named, verdict = list(found.wrong), found.verdict
    except ValueError as error:  # a law of the initializer that does not go with the role
        named, verdict = [layer] if parameter in str(error) else [], f"refused: {error}"
    return {
        "passed": check.passed,
        "verdict": check.verdict,
        "base width": base,
        "wrong": {
            "parameter": parameter,
            "role": role,
            "named": named,
            "caught": layer in named,
            "verdict": verdict,
        },
        "seconds": round(time.perf_counter() - started, 1),
    }


def _wrong(axes: Any) -> tuple[str, str]:
    """The last hidden matrix declared an input, or, without any, the readout."""
    named = named_leaves(axes, is_leaf=lambda leaf: isinstance(leaf, ParamAxes))
    for role in ("hidden", "output"):
        known = [name for name, axes in named.items() if axes.role == role]
        if known:
            return known[-1], "input"
    raise ValueError("no matrix grows with the width")


def growing(net: Any, params: Any, x: Any) -> dict[str, jax.Array]:
    """Outputs of the layers, but of those whose own parameters do not grow: the width says nothing about them."""
    named = named_leaves(net.axes, is_leaf=lambda leaf: isinstance(leaf, ParamAxes))
    fixed = {name.rpartition("/")[0] for name, axes in named.items() if axes.role == "scalar"}
    fixed -= {name.rpartition("/")[0] for name, axes in named.items() if axes.role != "scalar"}
    found = limits.captured_outputs(net, params, x)
    return {name: out for name, out in found.items() if name not in fixed}


def _checked(name: str, base: int, roles: dict | None) -> limits.CoordinateCheck:
    """Under maximal updates, trained by Adam."""
    family, x = ARCHITECTURES[name].family, inputs(name, 8)
    several = x if isinstance(x, tuple) else (x,)

    def at(width: int) -> Any:
        return limits.parametrize(
            family, "mup", width=width, base_width=base, example=x, roles=roles
        )

    net = at(WIDTHS[0])
    start, state = net.init(KEY), net.state(KEY)
    kept = {"state": state} if state else {}
    out = jax.eval_shape(lambda params: net.apply(params, *several, **kept), start)
    matrices = [leaf for leaf in jax.tree.leaves(start) if leaf.ndim > 1]
    waits = any(not np.any(leaf) for leaf in matrices)  # what is behind them moves a step later
    size = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(at(WIDTHS[-1]).init, KEY)))
    return limits.coordinate_check(
        at,
        WIDTHS,
        (x, jax.random.normal(jax.random.key(1), out.shape)),
        lambda outputs, targets: jnp.mean((outputs - targets) ** 2),
        KEY,
        learning_rate=0.01,
        optimizer=optax.adam,
        steps=2 if waits else 1,
        seeds=next((seeds for most, seeds in SEEDS_UP_TO if size < most), 8),
        features=growing,
    )


# --- the page ------------------------------------------------------------------------------------

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
FOUND, PAGE = DOCS / "architectures.json", DOCS / "architectures.md"

REASONS = {
    "Fourier features": "draws its frequencies from a key of its own: make them a parameter",
    "mixture of experts": "gates that few units draw stay random",
    "hypernetwork": "reads a code of few units",
    "weight normalisation": "weights that start normalised",
    "GAT": "scores of few units stay random",
    "Wide ResNet": "a stem of fixed size is trained: let it grow, or freeze it",
    "BiT": "standardised weights are summed over",
    "MobileNet": "a depthwise convolution of what is no layer of weights",
    "MLP-Mixer": "weights between few patches stay random",
    "FNO": "Fourier transforms of activations",
    "LLaMA": "rotary positions turn units in pairs",
    "linear attention": "keys and queries with a mean",
    "tied GPT": "a table that also reads out",
    "LSTM": "gates of a recurrent network side by side",
    "GRU": "gates of a recurrent network",
    "S4D": "complex numbers",
    "Mamba": "gates of few units stay random",
    "REDQ": "the least of few critics stays random",
    "SAC actor": "heads of few units side by side",
    "PINN residual": "derivatives by the inputs",
    "PixelCNN": "weights under a mask",
    "top-2 experts": "sorting of what few units draw",
    "N-BEATS": "layers of few units in between",
    "RealNVP": "layers of few units in between",
    "ConvMixer": "a depthwise convolution of what is no layer of weights",
    "ALiBi": "biases of few heads, each a law of its own",
    "T5": "trained biases of scores",
    "gMLP": "weights between few tokens stay random",
    "decaying averages": "filters of each unit summed over positions",
    "Hyena": "filters of each unit summed over positions",
    "FNet": "Fourier transforms of activations",
    "DDPM": "layers side by side are split into groups of units",
}
"""Why there is no rule, in a few words; the message says more."""

HEAD = """# Architectures

{count} public architectures as they are written, ten lines of Flax each (`tests/models/architectures*.py`), in the
order of their files. {refused} are refused; the others have kernels. {known} of these were compared with finite
networks for this page, {rules} by rule and {draws} by rules with means over draws (of attention scores, of functions of
several activations, of first-layer weights that are not normal), and {checked} parametrizations were checked. What is
not filled in was not measured.

- *kernel*: by rule; by draws, with the standard error of one evaluation; or refused, why, and the standard error that
  `otherwise="sample"` states instead.
- *NNGP*, *NTK*: deviation of the kernel from means over finite networks of three widths, carried on to infinite width
  by a line in 1/width, in standard errors of both: the largest of all entries, told as the deviation of one number
  that is as unlikely. Above 3 would be wrong. A kernel by `otherwise="sample"` is compared with one by other networks,
  of half the widths.
- *networks*: the standard error of these means, relative to the largest entry.
- *coordinates*: `limits.coordinate_check` of `parametrize(family, "mup")` at widths 16, 64 and 256, trained by Adam.
- *a wrong role*: the layers that the same check names when the role of one matrix is declared wrongly.

`python tests/models/architecture_table.py` measures what is new and writes this page.

| architecture | kernel | NNGP | NTK | networks | coordinates | a wrong role |
| --- | --- | --- | --- | --- | --- | --- |
"""


def page(found: dict[str, dict]) -> str:
    """The page of what was found, in Markdown."""
    kinds = [r["kernel"]["kernel"] for n, r in found.items() if "kernel" in r and n not in REASONS]
    head = HEAD.format(
        count=len(ARCHITECTURES),
        refused=len(REASONS),
        known=len(kinds),
        rules=kinds.count("rule"),
        draws=kinds.count("draws"),
        checked=sum("coordinates" in record for record in found.values()),
    )
    return head + "".join(_row(name, found.get(name, {})) for name in ARCHITECTURES)


def _row(name: str, record: dict) -> str:
    known, checked = record.get("kernel", {}), record.get("coordinates", {})
    z = known.get("z", {})
    networks = _percent(known["networks"]) if "networks" in known else ""
    cells = [name, _kernel(name, known), *(_number(z.get(kind)) for kind in KERNELS), networks]
    return f"| {' | '.join([*cells, *_coordinates(checked)])} |\n"


def _number(z: float | None) -> str:
    return "" if z is None else f"{z:.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _kernel(name: str, known: dict) -> str:
    if name in REASONS:
        sampled = f"; sampled, {_percent(known['error'])}" if "error" in known else ""
        sampled = "; networks have no limit either" if "sampled" in known else sampled
        return f"refused: {REASONS[name]}{sampled}"
    if known.get("kernel") == "draws":
        return f"draws, {_percent(known['error'])}"
    return known.get("kernel", "yes")


def _coordinates(checked: dict) -> tuple[str, str]:
    if not checked:
        return "", ""
    right = "pass" if checked["passed"] else checked["verdict"].split(";")[0].split(". ")[0]
    wrong = checked.get("wrong")
    if wrong is None:
        return right, ""
    named = ", ".join(wrong["named"]) or "none named"
    return right, f"`{wrong['parameter']}` as {wrong['role']}: {named}"


def main() -> None:
    """Measures, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(ARCHITECTURES), default=())
    parser.add_argument("--page", action="store_true", help="write the page, measure nothing")
    options = parser.parse_args()
    found = json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.exists() else {}
    for name in () if options.page else options.only or ARCHITECTURES:
        for part, measure in (("kernel", kernel), ("coordinates", coordinates)):
            if part in found.get(name, {}) and not options.only:
                continue
            found.setdefault(name, {})[part] = measure(name)
            print(name, part, found[name][part], flush=True)
            FOUND.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
