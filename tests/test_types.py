"""What a type checker knows of the library in a user's program, and which wrong calls it reports."""

import importlib
import inspect
import pathlib
import re
import sys
import types

import pytest

api = pytest.importorskip("mypy.api")

ROOT = pathlib.Path(__file__).parents[1]
MODULES = ("ntk", "ntk.gram", "ntk.solve", "ntk.predict", "ntk.empirical", "limits", "metrics")

PROGRAM = """
import jax
import jax.numpy as jnp
import numpy as np

import limits
import metrics
import models
import ntk
from ntk import stax


def family(width: int) -> models.MLP:
    return models.MLP(width, depth=2, outputs=1)


def loss(params: dict, batch: tuple) -> jax.Array:
    return jnp.zeros(())


def apply(params: dict, x: jax.Array) -> jax.Array:
    return x @ params["w"]


x, y, params = jnp.ones((4, 3)), np.ones((4, 1)), {"w": jnp.ones((3, 2))}
traced = ntk.infinite_width(family, x, bias_std=0.1)
reveal_type(traced)  # KernelFn
reveal_type(traced(x, x, "ntk"))  # Array
reveal_type(ntk.infinite_width(family, x, otherwise="refuse", base_width=8))  # KernelFn
sampled = ntk.infinite_width(family, x, otherwise="sample", networks=8)
reveal_type(sampled)  # KernelFn | SampledKernelFn
reveal_type(ntk.attention_error(sampled, x))  # Array
init_fn, apply_fn, kernel_fn = stax.serial(stax.Dense(8), stax.Relu(), stax.Dense(1))
reveal_type(kernel_fn)  # KernelFn
reveal_type(kernel_fn(x))  # Kernel
reveal_type(kernel_fn(x, None, "ntk"))  # Array
reveal_type(kernel_fn(x, get="nngp", diagonal_spatial=True))  # Array
reveal_type(kernel_fn(x, x).ntk)  # Array | None
K = ntk.gram.gram(kernel_fn, x)
reveal_type(K)  # ndarray
reveal_type(ntk.gram.diagonal(kernel_fn, x))  # ndarray
reveal_type(ntk.solve.cholesky(K, y, 1e-3))  # Solution
reveal_type(ntk.solve.conjugate_gradient(K, y, 1e-3).coefficients)  # Array
reveal_type(ntk.solve.regression(kernel_fn, x, y).predict(x))  # ndarray
predict = ntk.predict.gradient_descent_mse(K, y)
reveal_type(predict(1.0))  # Array
reveal_type(predict(1.0, 0.0, 0.0, K))  # tuple[Array, Array]
reveal_type(predict(fx_train_0=None, fx_test_0=0.0, k_test_train=K))  # Array
reveal_type(ntk.predict.gp_inference(K, y)("ntk", K, K))  # Gaussian
reveal_type(ntk.predict.max_learning_rate(K))  # Array
reveal_type(ntk.empirical_ntk(apply, params, x))  # Array
reveal_type(ntk.empirical.empirical_ntk_fn(apply)(x, None, params))  # Array
reveal_type(ntk.linearize(apply, params)(params, x))  # Array
net = limits.parametrize(family, "mup", width=64, base_width=8, example=x)
reveal_type(net)  # Parametrized
reveal_type(net.base_width)  # int | None
reveal_type(limits.classify(*limits.abc("mup", 2)))  # Regime
reveal_type(limits.criticality(jnp.tanh).C_W)  # float | None
reveal_type(limits.depth.gaps(x, y))  # ndarray
reveal_type(metrics.sharpness(loss, params, (x, y)).value)  # Array
reveal_type(metrics.operators.hessian(loss))  # def (Any, Any, Any) -> Any
reveal_type(metrics.stability.threshold(0.1))  # float
reveal_type(metrics.refined_optimum([0.1, 0.2, 0.4], [3.0, 2.0, 3.0]).edge)  # str
reveal_type(models.family("MLP", depth=2, outputs=1)(64))  # Module
ntk.infinite_width(3, x)  # error: call-overload
ntk.infinite_width(family, x, basewidth=8)  # error: call-overload
ntk.infinite_width(family, x, base_width="8")  # error: call-overload
ntk.infinite_width(family, x, otherwise="sampled")  # error: call-overload
limits.parametrize(3, "ntk", width=64)  # error: arg-type
limits.parametrize(family, "ntk", widht=64)  # error: call-arg
ntk.width_axes(family, x, widths=64)  # error: arg-type
kernel_fn(x, get="ntk", patern=None)  # error: call-overload
ntk.gram.gram(kernel_fn, x, tile="large")  # error: arg-type
ntk.solve.cholesky(K, y, dia_reg=1e-3)  # error: call-arg
ntk.predict.gradient_descent_mse(K, y, learning_rate="fast")  # error: arg-type
ntk.empirical_ntk(params, apply, x)  # error: arg-type
metrics.sharpness(loss, params, (x, y), which="top")  # error: arg-type
metrics.sharpness(loss, params, (x, y), num_step=8)  # error: call-arg
"""


def report(folder: pathlib.Path) -> dict[int, tuple[str, str]]:
    """Each line of the program and of a list of all public functions, and what mypy says of it, by number."""
    lines = PROGRAM.split("\n")
    lines += [f"reveal_type({function})" for function in public()]
    file = folder / "program.py"
    file.write_text("\n".join(lines))
    config = ["--config-file", str(ROOT / "setup.cfg"), "--cache-dir", str(ROOT / ".mypy_cache")]
    config += ["--python-version", f"{sys.version_info.major}.{sys.version_info.minor}"]
    out, err, _ = api.run([*config, "--show-error-codes", "--no-pretty", str(file)])
    assert not err
    found = {}
    for line in out.splitlines():
        if match := re.match(r".*program\.py:(\d+): (note|error): (.*)", line):
            found.setdefault(int(match[1]), []).append(match[3])
    return {k: (lines[k - 1], " ".join(found.get(k, []))) for k in range(1, len(lines) + 1)}


def public() -> list[str]:
    """Every public function of the packages and of the modules that they name, by its full name."""
    found = set()
    for name in MODULES:
        package, *inner = name.split(".")
        module = importlib.import_module(package)
        for part in inner:
            module = getattr(module, part)
        found |= {f"{name}.{key}" for key in functions(module, own=bool(inner))}
        for key in getattr(module, "__all__", ()):
            if isinstance(value := getattr(module, key), types.ModuleType) and name != "ntk":
                found |= {f"{name}.{key}.{k}" for k in functions(value, own=True)}
    return sorted(found)


def functions(module: types.ModuleType, own: bool) -> list[str]:
    """Names of the public functions of a module, or of those that are its own."""
    values = {key: getattr(module, key) for key in getattr(module, "__all__", dir(module))}
    return [
        key
        for key, value in values.items()
        if callable(value)
        and not inspect.isclass(value)
        and not key.startswith("_")
        and (not own or getattr(value, "__module__", None) == module.__name__)
    ]


def short(revealed: str) -> str:
    """The revealed type by the last parts of its names; a NamedTuple by its own."""
    text = revealed.removeprefix('Revealed type is "').removesuffix('"')
    while "fallback=" in text:  # tuple[..., fallback=package.Name] stands for Name
        at = text.index("fallback=")
        end = text.index("]", at)
        depth, start = 0, at
        while depth >= 0:
            start -= 1
            depth += {"]": 1, "[": -1}.get(text[start], 0)
        text = text[: start - len("tuple")] + text[at + len("fallback=") : end] + text[end + 1 :]
    text = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text)
    return re.sub(r"ndarray\[tuple\[Any, \.\.\.\], dtype\[Any\]\]", "ndarray", text)


def test_what_a_checker_says(tmp_path, monkeypatch):
    """One run, because it takes twenty seconds where nothing is cached."""
    monkeypatch.chdir(ROOT)  # where mypy finds the packages
    said = report(tmp_path)
    results_have_types(said)
    wrong_calls_are_reported(said)
    right_calls_are_not(said)
    public_functions_have_types(said)


def results_have_types(report):
    asked = [
        (line, said) for line, said in report.values() if re.search(r"reveal_type.*  # ", line)
    ]
    assert len(asked) == PROGRAM.count("reveal_type")
    wrong = {line: said for line, said in asked if short(said) != line.split("  # ")[1]}
    assert not wrong


def wrong_calls_are_reported(report):
    wrong = [(line, said) for line, said in report.values() if "  # error: " in line]
    assert len(wrong) == PROGRAM.count("  # error: ")
    unseen = {line: said for line, said in wrong if f"[{line.split('  # error: ')[1]}]" not in said}
    assert not unseen


def right_calls_are_not(report):
    said = {line: text for line, text in report.values() if text and "  # error: " not in line}
    assert not {line: text for line, text in said.items() if not text.startswith("Revealed type")}


def public_functions_have_types(report):
    """Each says what it takes and what it gives; none is Any, or a function of anything."""
    said = {
        line: text for line, text in report.values() if re.fullmatch(r"reveal_type\([\w.]+\)", line)
    }
    assert len(said) > 150
    assert not {
        line: text
        for line, text in said.items()
        if not re.match(
            r"def (\[.*?\] )?\((?!\*Any)|Overload|_lru_cache_wrapper|custom_jvp", short(text)
        )
    }
