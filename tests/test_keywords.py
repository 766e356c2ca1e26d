"""No keyword is swallowed: a misspelt one is a TypeError in every public function, and in what they return."""

import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import pytest
from flax import linen

import limits
import metrics
import models
import ntk
from experiments import families, judges, plots, tasks
from experiments.studies import neural_collapse_claims
from metrics import collapse
from ntk import arguments, gram, predict, solve, stax
from ntk.trace import limit

PACKAGES = ("ntk", "limits", "metrics", "models", "experiments")
X = jnp.ones((3, 2))
NET = stax.serial(stax.Dense(4), stax.Relu(), stax.Dense(1))
PARAMS = NET.init_fn(jax.random.key(0), X.shape)[1]
KERNEL = NET.kernel_fn(X, None)


class Perceptron(linen.Module):
    width: int

    @linen.compact
    def __call__(self, x):
        normal = linen.initializers.normal(1.0)  # other laws of first weights are drawn with a seed
        return linen.Dense(1)(linen.relu(linen.Dense(self.width, kernel_init=normal)(x)))


def parametrized():
    return limits.parametrize(Perceptron, "mup", width=8, base_width=4, example=X)


def loss(f, y):
    return jnp.sum((f - y) ** 2)


# Functions that pass keywords on.
OPEN = {
    "ntk.finite.empirical.empirical_ntk": lambda **k: ntk.empirical_ntk(
        NET.apply_fn, PARAMS, X, **k
    ),
    "ntk.finite.empirical.empirical_ntk_vp_fn": lambda **k: ntk.empirical_ntk_vp_fn(
        NET.apply_fn, X, None, PARAMS, **k
    )(X[:, :1]),
    "ntk.large.gram.gram": lambda **k: gram.gram(NET.kernel_fn, X, **k),
    "ntk.large.gram.product": lambda **k: gram.product(NET.kernel_fn, X, **k),
    "ntk.large.gram.diagonal": lambda **k: gram.diagonal(NET.kernel_fn, X, **k),
    "ntk.regression.solve.regression": lambda **k: solve.regression(
        NET.kernel_fn, X, X[:, :1], **k
    ),
    "ntk.regression.inducing.inducing": lambda **k: solve.inducing(
        NET.kernel_fn, X, X[:, :1], X[:2], **k
    ),
    "ntk.regression.posterior.gradient_descent_mse_ensemble": lambda **k: (
        predict.gradient_descent_mse_ensemble(NET.kernel_fn, X, X[:, :1], **k)
    ),
    "ntk.stax.custom.requires": stax.requires,
    "ntk.stax.nonlinearities.Elementwise": lambda **k: stax.Elementwise(jnp.tanh, **k),
    "ntk.trace.limit.nonlinearities": lambda **k: ntk.nonlinearities(Perceptron, X, **k),
    "ntk.trace.limit.explain": lambda **k: ntk.explain(Perceptron, X, **k),
    "metrics.collapse.collapse_by_layer": lambda **k: collapse.collapse_by_layer(
        {"a": X}, jnp.array([0, 1, 1]), 2, **k
    ),
    "experiments.families.for_task": lambda **k: families.for_task(
        "MLP", tasks.Task("t", None, None, 1, (2,)), depth=1, **k
    ),
    "experiments.families.load": lambda **k: families.load("MLP", outputs=1, **k),
    "experiments.plots.results.plot": lambda **k: plots.plot(collapse.Estimate(1.0, 0.1), **k),
    "ntk.show.plot": lambda **k: limits.abc("mup", 2).plot(**k),
    "experiments.judges.at_least": lambda **k: judges.at_least("n", "s", "t", 1.0, 0.0, **k),
    "experiments.judges.at_most": lambda **k: judges.at_most("n", "s", "t", 1.0, 2.0, **k),
    "experiments.judges.near": lambda **k: judges.near("n", "s", "t", 1.0, 1.0, 0.1, **k),
    "experiments.judges.within": lambda **k: judges.within("n", "s", "t", 1.0, 0.0, 2.0, **k),
    "experiments.judges.over_seeds": lambda **k: judges.over_seeds(
        judges.at_most, [1.0, 2.0], "worst", name="n", source="s", statement="t", bound=3.0, **k
    ),
    "experiments.studies.neural_collapse_claims.modes": lambda **k: neural_collapse_claims.modes(
        [4, 4], 8.0, 2, (0.1, 0.1), **k
    ),
    "models.family": lambda **k: models.family("MLP", outputs=1, **k),
}

# Functions whose keywords are the caller's own names, or those of a function that it gives.
NAMES = {
    "experiments.checks.context",
    "experiments.grid.variables",
    "experiments.studies.deep_kernel_machines.fitted",
    "experiments.studies.in_context_descent.descended",
    "experiments.studies.neural_collapse_claims.frame_errors",
    "limits.arguments.broadcast",
    "limits.arguments.refuse_traced",
    "limits.arguments.same_columns",
    "limits.arguments.takes",
    "limits.optimizers.optimizer_kind",
    "metrics.checks.layers",
    "metrics.checks.same_shape",
    "metrics.checks.same_trees",
    "ntk.arguments.explained",
    "ntk.stax.combinators.given",
    "ntk.stax.layers.check_counts",
    "ntk.stax.layers.check_scales",
    "ntk.trace.sharing.jaxpr_of",
}

RETURNED = {
    "kernel_fn": lambda: (NET.kernel_fn, (X, None, "ntk")),
    "kernel_fn of a Kernel": lambda: (NET.kernel_fn, (KERNEL, None, "ntk")),
    "traced kernel_fn": lambda: (ntk.infinite_width(Perceptron, X), (X, None, "ntk")),
    "batch": lambda: (ntk.batch(NET.kernel_fn, 2), (X, None, "ntk")),
    "apply_fn": lambda: (NET.apply_fn, (PARAMS, X)),
    "apply_fn of a layer": lambda: (stax.Relu().apply_fn, ((), X)),
    "apply_fn of parallel": lambda: (stax.parallel(stax.Relu()).apply_fn, (((),), (X,))),
    "apply_fn of repeat": lambda: (stax.repeat(stax.Relu(), 2).apply_fn, ((), X)),
    "empirical_ntk_fn": lambda: (ntk.empirical_ntk_fn(NET.apply_fn), (X, None, PARAMS)),
    "empirical_nngp_fn": lambda: (ntk.empirical_nngp_fn(NET.apply_fn), (X, None, PARAMS)),
    "empirical_kernel_fn": lambda: (ntk.empirical_kernel_fn(NET.apply_fn), (X, None, None, PARAMS)),
    "monte_carlo_kernel_fn": lambda: (
        ntk.monte_carlo_kernel_fn(NET.init_fn, NET.apply_fn, jax.random.key(0), 2),
        (X, None, "nngp"),
    ),
    "linearize": lambda: (ntk.linearize(NET.apply_fn, PARAMS), (PARAMS, X)),
    "gradient_descent_mse": lambda: (predict.gradient_descent_mse(KERNEL.ntk, X[:, :1]), ()),
    "gradient_descent": lambda: (predict.gradient_descent(loss, KERNEL.ntk, X[:, :1]), ()),
    "gp_inference": lambda: (predict.gp_inference(KERNEL, X[:, :1]), ()),
    "gradient_descent_mse_ensemble": lambda: (
        predict.gradient_descent_mse_ensemble(NET.kernel_fn, X, X[:, :1]),
        (),
    ),
    "parametrized apply": lambda: (
        parametrized().apply,
        (parametrized().init(jax.random.key(0)), X),
    ),
}


def public_functions():
    """Every function that a module of the packages defines under a public name."""
    for package in map(importlib.import_module, PACKAGES):
        names = [package.__name__]
        names += [m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
        for name in names:
            if "._" in name or ".configs." in name:
                continue
            module = importlib.import_module(name)
            for key, value in vars(module).items():
                if inspect.isfunction(value) and value.__module__ == name and key[0] != "_":
                    yield f"{name}.{key}", value


def test_every_public_function_refuses_a_misspelt_keyword():
    for _, fn in public_functions():
        if arguments.keyword_names(fn) is None:
            continue
        with pytest.raises(TypeError, match="mispelt"):
            fn(mispelt=1)


def test_functions_that_pass_keywords_on_are_tried():
    found = {name for name, fn in public_functions() if arguments.keyword_names(fn) is None}
    assert found - NAMES == set(OPEN)


@pytest.mark.parametrize("name", OPEN)
def test_a_keyword_that_is_passed_on_is_refused_where_nobody_reads_it(name):
    with pytest.raises(TypeError, match="mispelt"):
        OPEN[name](mispelt=1)


@pytest.mark.parametrize("name", RETURNED)
def test_returned_functions_refuse_a_misspelt_keyword(name):
    fn, positional = RETURNED[name]()
    with pytest.raises(TypeError, match="mispelt"):
        fn(*positional, mispelt=1)


@pytest.mark.parametrize(
    ("call", "nearest"),
    [
        (lambda: NET.kernel_fn(X, None, "ntk", mask_const=1), "mask_constant"),
        (lambda: ntk.batch(NET.kernel_fn, 2)(X, None, "ntk", diag_spatial=1), "diagonal_spatial"),
        (lambda: gram.gram(NET.kernel_fn, X, tilesize=3), "tile"),
        (lambda: NET.apply_fn(PARAMS, X, rgn=1), "rng"),
        (lambda: predict.gp_inference(KERNEL, X[:, :1], diag_regg=1), "diag_reg"),
        (lambda: predict.gradient_descent_mse(KERNEL.ntk, X[:, :1])(fx_train=1.0), "fx_train_0"),
        (lambda: limit.explain(Perceptron, X, basewidth=3), "base_width"),
        (lambda: ntk.infinite_width(Perceptron, X, basewidth=3), "base_width"),
        (lambda: models.family("MLP", dept=3), "depth"),
        (lambda: stax.Elementwise(jnp.tanh, ordr=3), "order"),
        (lambda: stax.Dense(1, Wstd=2), "W_std"),
        (lambda: stax.Conv(1, (3, 3), pading="SAME"), "padding"),
        (lambda: ntk.batch(NET.kernel_fn, batchsize=2), "batch_size"),
        (lambda: collapse.neural_collapse(X, jnp.array([0, 1, 1]), 2, wieghts=X), "weights"),
        (lambda: collapse.class_means(X, jnp.array([0, 1, 1]), classes=2), "num_classes"),
        (lambda: limits.criticality(activatoin="relu"), "activation"),
    ],
)
def test_the_nearest_name_is_given(call, nearest):
    with pytest.raises(TypeError, match=f"did you mean {nearest!r}"):
        call()


@pytest.mark.parametrize("package", [ntk, limits, metrics])
def test_every_function_of_a_package_and_of_its_modules_tells_the_nearest_name(package):
    told = 0
    for module in (package, *filter(inspect.ismodule, map(package.__dict__.get, package.__all__))):
        for key, value in vars(module).items():
            if not inspect.isfunction(value) or arguments.keyword_names(value) is None:
                continue
            own = value.__module__ == module.__name__ and key[0] != "_"
            if value is limits.feature_learning.identity:  # known by what it is
                continue
            if own or (module is package and key in package.__all__):
                with pytest.raises(TypeError, match=r"did you mean|it reads"):
                    value(mispelt=1)
                told += 1
    assert told > 20


@pytest.mark.parametrize(
    ("kernel_fn", "option"),
    [
        (NET.kernel_fn, {"pattern": (X, X)}),
        (NET.kernel_fn, {"attention_seed": 1}),
        (limit.infinite_width(Perceptron, X), {"mask_constant": 1.0}),
        (limit.infinite_width(Perceptron, X), {"channel_axis": 1}),
        (limit.infinite_width(Perceptron, X), {"attention_seed": 1}),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(kernel_fn, option):
    with pytest.raises(TypeError, match=f"{next(iter(option))} is given"):
        kernel_fn(X, None, "ntk", **option)
    with pytest.raises(TypeError, match="mask_constant is given"):
        NET.kernel_fn(KERNEL, None, "ntk", mask_constant=1.0)


def test_what_a_model_may_take_is_refused_where_it_resembles_an_option():
    """A network takes any keyword: one that is nearly an option of the kernel is no keyword of the network."""
    net = ntk.network(Perceptron, 4, X)
    params = net.init(jax.random.key(0))
    message = (
        r"empirical_ntk got an unexpected keyword argument 'trace_axs' \(did you mean 'trace_axes'"
    )
    with pytest.raises(TypeError, match=message):
        ntk.empirical_ntk(net.apply, params, X, trace_axs=(-1,))
