"""Wrong calls of every public function of limits and models: a message names the value and what is allowed."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import limits
import models
from limits import (
    aspect_ratio,
    attention_svm,
    boundary_tilting,
    cbow,
    deep_kernel_machine,
    depth,
    dmft,
    early_learning,
    eigenlearning,
    ensembles,
    feature_learning,
    finite_width,
    generalization,
    hopfield,
    in_context,
    linear_rank,
    mean_field,
    opposing,
    perceptron,
    pi_net,
    pruning,
    surrogate,
)
from limits.feature_learning import Episodes

KEY, NAN = jax.random.key(0), float("nan")
X = jnp.ones((4, 3))
FAMILY = models.family("MLP", depth=1, outputs=2)
WORDS = cbow.limit(3)
WINDOWS = cbow.Windows(jnp.zeros(2, int), jnp.zeros((2, 1), int), jnp.ones((2, 1), bool))
NOISE = np.full(3, 1 / 3)
START = mean_field.infinite_width(3)
TRAIN = (X, jnp.ones(4))
LINEAR = feature_learning.linear_limit(3, 1)
BATCHES = (jnp.ones((2, 4, 3)), jnp.ones((2, 4, 1)))
PI = pi_net.limit(KEY, 3, 1, rank=2, hidden_layers=1)
EPISODES = Episodes(*[jnp.zeros((1, 1, 2), int)] * 4)
LABELS = np.array([1.0, -1, 1, -1])
POINTS = EYE = np.eye(4)


def parametrize(family=FAMILY, rule="mup", **options):
    options = {"width": 16, "base_width": 8, "example": X} | options
    return limits.parametrize(family, rule, **options)


def optimizer(*args, **options):
    return parametrize(width=8).optimizer(*args, **options)


def check(**options):
    settings = {"widths": [8, 16, 32], "batch": (X, X), "loss": optax.l2_loss, "key": KEY}
    settings |= {"net_at_width": lambda n: None, "learning_rate": 0.1} | options
    return limits.coordinate_check(**settings)


def descend(**options):
    settings = {"alpha": 1.0, "epsilon": 0.1, "learning_rate": 0.1, "steps": [0, 2]} | options
    return mean_field.gradient_descent(START, settings.pop("train", TRAIN), **settings)


def dynamics(overlap=(0.5,), key=KEY, **options):
    settings = {"alpha": 1.0, "epsilon": 0.1, "density": 1.0, "learning_rate": 0.1, "steps": 2}
    return dmft.high_dimensional_descent(overlap, key, **(settings | options))


LINEAR_LAYERS = [deep_kernel_machine.Layer("linear", 1.0), deep_kernel_machine.Layer("linear")]


def machine(gram=EYE, targets=EYE, layers=LINEAR_LAYERS, **options):
    return deep_kernel_machine.fit(gram, targets, layers, **({"noise": 0.1} | options))


# what is called, and a part of what is said
WRONG = [
    # coordinate checks
    (lambda: check(batch=(X * np.nan, X)), "the inputs of batch have entries that are not finite"),
    (lambda: check(batch=(X, X * np.inf)), "the targets of batch have entries that are not finite"),
    # deep kernel machines
    (lambda: machine(np.ones((4, 3))), r"inputs_gram has the shape \(4, 3\); it must be square"),
    (lambda: machine(EYE + np.eye(4, k=1)), "inputs_gram is not symmetric"),
    (lambda: machine(-EYE), "inputs_gram has the eigenvalue -1"),
    (lambda: machine("K"), "inputs_gram is 'K'"),
    (lambda: machine(targets=np.ones((3, 1))), r"targets has the shape \(3, 1\)"),
    (lambda: machine(targets=np.ones(4)), "targets has the shape"),
    (lambda: machine(layers=LINEAR_LAYERS[0]), "it must be a list of Layer"),
    (lambda: machine(layers=["linear"]), r"layers\[0\] is 'linear'; it must be a Layer"),
    (lambda: machine(layers=LINEAR_LAYERS[:1]), "the output's must be inf: add an output layer"),
    (
        lambda: machine(layers=[deep_kernel_machine.Layer(jnp.tanh)]),
        "it must be 'linear' or a Dual",
    ),
    (lambda: machine(layers=[deep_kernel_machine.Layer("linear", 0.0)]), r"\.nu is 0.0"),
    (lambda: machine(noise=-1.0), "noise is -1.0"),
    (lambda: machine(np.ones((4, 4)), noise=0.0, jitter=0.0), "singular in double precision"),
    (lambda: machine(inducing=[0, 4]), "it must hold ids from 0 to 3"),
    (lambda: machine(inducing=[0, 2, 2]), r"inducing has \[2\] more than once"),
    (lambda: machine(inducing=[0, 1], noise=0.0), "with inducing points it must be positive"),
    (lambda: machine(max_steps=0), "max_steps is 0"),
    (lambda: deep_kernel_machine.predict(3, EYE, np.ones(4)), "machine is 3"),
    (
        lambda: deep_kernel_machine.predict(machine(), np.ones((2, 3)), np.ones(2)),
        r"for a diagonal of 2 it must be \(2, 4\)",
    ),
    (lambda: deep_kernel_machine.nngp(EYE, []), "it must be a list of Layer"),
    (
        lambda: deep_kernel_machine.linear_solution(EYE, np.ones((4, 4)), [1.0], 4),
        "targets_gram is singular",
    ),
    (lambda: deep_kernel_machine.linear_solution(EYE, EYE, [0.0], 4), "nus is .*; all must be"),
    (lambda: deep_kernel_machine.linear_solution(EYE, np.eye(3), [1.0], 4), r"\(4, 4\)"),
    # opposing
    (lambda: opposing.sharpness_path(40.0, 3.0, 0.0, [1.0]), "start is 0.0"),
    (lambda: opposing.crossing_time(-1.0, 3.0, 0.1, 0.1), "alpha is -1.0"),
    (lambda: opposing.outliers(0, 100, 5, alpha=1.0, signal=1.0), "key is 0"),
    (lambda: opposing.outliers(KEY, 100, 99, alpha=1.0, signal=1.0), "dim is 99"),
    (
        lambda: opposing.outliers(KEY, 100, 5, alpha=1.0, signal=1.0, share=0.001),
        "share is 0.001: of 100 examples 0",
    ),
    # learning curves
    (lambda: eigenlearning.power_law(0.0, 10), "exponent is 0.0"),
    (lambda: eigenlearning.power_law_target(1.5, 0.5), "count is 0.5; it must be at least 1"),
    (lambda: eigenlearning.power_law(1.5, 10, bins=0), "bins is 0"),
    (lambda: eigenlearning.fitting_ratio(1.5, 4.0, 0.0), "beta is 4.0; it must lie between"),
    (lambda: eigenlearning.fitting_ratio(1.0, 1.5, 0.0), "alpha is 1.0; it must be above 1"),
    (lambda: eigenlearning.overfitting_is_obligatory(1.5, 1.5, -1.0), "relative_noise is -1.0"),
    (lambda: eigenlearning.learning_exponent(4, 2), "teacher_dim is 4; it must be at most"),
    # logistic regression at every step size
    (lambda: perceptron.descend(POINTS, -1.0), "step_size is -1.0"),
    (lambda: perceptron.margin(np.array([[1.0], [-1.0]])), "no hyperplane through the origin"),
    (lambda: perceptron.step_bound(3, 1.0, 2.0, 1.0), "margin is 2.0; it must be at most"),
    # descent in context
    (lambda: in_context.one_step(POINTS, 0), "num_examples is 0"),
    (lambda: in_context.risk(POINTS, -POINTS, 3), "covariance is no covariance"),
    (lambda: in_context.independent_rate(-1.0, 1.0, 2, 3), "variance is -1.0"),
    (lambda: in_context.response_rate("relu", 2, 3), "response is 'relu'; it must be a function"),
    (lambda: in_context.descend(POINTS, POINTS, POINTS, 0.1, 1), r"x has the shape \(4, 4\)"),
    (lambda: in_context.ridge(POINTS[None], POINTS, POINTS, 0.1), "do not fit"),
    # Hopfield networks
    (
        lambda: linear_rank.laziness(3, 2, weight_norm=1.0, target_norm=1.0),
        "rank is 3.0; it must lie between 1 and 2",
    ),
    (lambda: linear_rank.descend(POINTS, X[0], X[0]), r"weights \(4, 4\), readout \(3,\)"),
    (lambda: hopfield.update(POINTS[0, :2], POINTS, 1.0), r"state has the shape \(2,\)"),
    (lambda: hopfield.energy(POINTS, POINTS, -1.0), "beta is -1.0"),
    (lambda: hopfield.retrieve(POINTS, POINTS, 1.0, max_steps=0), "max_steps is 0"),
    (lambda: hopfield.separation(POINTS[0]), r"patterns has the shape \(4,\)"),
    (lambda: hopfield.retrieval_bound(POINTS, 1.0, -0.1), "distance is -0.1"),
    (lambda: early_learning.first_step(0, 9, 1.0, 1.0, 0.1), "dim is 0"),
    (lambda: early_learning.first_step(4, 9, 1.0, 0.0, 0.1), "noise is 0.0"),
    (lambda: early_learning.first_step(4, 9, 1.0, 1.0, 0.5), "flip is 0.5; it must be at least 0"),
    (lambda: hopfield.capacity(1.0, dim=1), "dim is 1; it must be an integer, at least 2"),
    # attention as a support vector machine
    (
        lambda: attention_svm.constraints(POINTS[None], POINTS[:1], [7]),
        "selected has tokens from 7 to 7; there are 4",
    ),
    (lambda: attention_svm.solve(POINTS[None], "l2"), "norm is 'l2'"),
    (
        lambda: attention_svm.descend(POINTS[None], POINTS[:1], LABELS, [2.0], 3, start=POINTS),
        r"values \(4,\) and labels \(1,\) must be .* labels 1 or -1",
    ),
    (lambda: attention_svm.correlation(POINTS, 0 * POINTS), "not be zero"),
    # tilted boundaries
    (lambda: boundary_tilting.tilt(POINTS[0], POINTS), r"means has the shape \(4, 4\)"),
    (lambda: boundary_tilting.tilt(POINTS[0, :3], POINTS[:2]), "must be equally long"),
    (lambda: boundary_tilting.tilt(0 * POINTS[0], POINTS[:2]), "they have no direction"),
    (
        lambda: boundary_tilting.attacked_error(POINTS[0], POINTS[0], np.eye(4), -1.0),
        "radius is -1.0",
    ),
    (lambda: boundary_tilting.discriminant(POINTS[0], 0 * np.eye(4)), "take a larger ridge"),
    (lambda: boundary_tilting.discriminant(POINTS[0], POINTS[:2]), "covariance has the shape"),
    (lambda: boundary_tilting.fitted(POINTS[0], np.eye(4), 6), "num_examples is 6 in 4"),
    (lambda: boundary_tilting.fitted(POINTS[0], -np.eye(4), 60), "must be positive definite"),
    # criticality and statistics of finite width
    (lambda: limits.criticality(3), "activation is 3"),
    (lambda: limits.susceptibilities(jnp.tanh, -1.0, C_W=1.0), "variance is -1.0"),
    (lambda: limits.learning_rates(jnp.tanh, 3), "critical is"),
    (lambda: limits.residual_nu(jnp.tanh, 1.5), "gamma is 1.5"),
    (lambda: finite_width.vertices(jnp.tanh, 0, C_W=1.0, variance=1.0), "depth is 0"),
    (
        lambda: finite_width.metric_covariance(jnp.tanh, 2, np.ones(2), C_W=1.0),
        "gram has the shape",
    ),
    (lambda: finite_width.covariance_of(np.ones((2, 3)), 2), "gram has the shape"),
    (lambda: aspect_ratio.optimal_aspect_ratio(-1.0, 2), "nu is -1.0"),
    (lambda: aspect_ratio.mutual_information(0.1, 0, 1), "m1 is 0"),
    # arrays have the method of integers too
    (lambda: aspect_ratio.mutual_information(0.1, jnp.float32(2), 1), "m1 is .* an integer"),
    (lambda: aspect_ratio.mutual_information(0.1, jnp.ones(2, int), 1), "m1 is an array of int"),
    (lambda: aspect_ratio.mutual_information("a", 2, 1), "v is 'a'; it must be an array"),
    (lambda: aspect_ratio.mutual_information(0.1, 2, 1, order=X), "order is"),
    (lambda: aspect_ratio.optimal_aspect_ratio(KEY, 2), "nu is an array of key<fry>"),
    (lambda: models.MLP(jnp.ones(2), 1, 2), r"MLP: width=.* must be an integer"),
    (lambda: parametrize(width=jnp.float32(16)), "width is .*; it must be a positive integer"),
    (lambda: limits.branch_multiplier("sqrt", jnp.ones(2), 1), "depth is an array of float32"),
    (
        lambda: ensembles.sample_metrics(0, jnp.tanh, 8, 2, np.eye(1), C_W=1.0, networks=2),
        "key is 0",
    ),
    (
        lambda: ensembles.sample_neurons(KEY, 3, 8, 2, C_W=1.0, variance=1.0, networks=2),
        "activation is 3",
    ),
    # pruning, surrogate losses
    (lambda: pruning.perceptron(5.0, 1.5), "keep is 1.5; it must be above 0"),
    (lambda: pruning.perceptron(-5.0, 0.5), "alpha_total is -5.0; it must be positive"),
    (lambda: pruning.perceptron(5.0, 0.5, probe_angle=45), "probe_angle is 45; it must be from 0"),
    (lambda: pruning.perceptron(5.0, 0.5, keep_hard="easy"), "keep_hard is 'easy'"),
    (lambda: pruning.perceptron("5", 0.5), "alpha_total is '5'; it must be an array"),
    (lambda: pruning.frontier([3.0, 0.0]), "alpha_kept is 0.0; it must be positive"),
    (lambda: pruning.frontier(3.0, least=0.0), "least is 0.0; it must be above 0"),
    (lambda: pruning.frontier(3.0, points=2), "points is 2; it must be an integer, at least 3"),
    (lambda: surrogate.logistic_gap(1.2), "regret is 1.2; it must be between 0 and 1"),
    (lambda: surrogate.largest_regret(-0.1), "excess is -0.1; it must not be negative"),
    # parametrize
    (lambda: parametrize(FAMILY(8)), "family is a module, MLP at one width.*lambda width: MLP"),
    (lambda: parametrize(3), "family is 3; it must be a function of the width"),
    (lambda: parametrize(lambda n: 3), r"returned int; it must return a linen module"),
    (lambda: parametrize(rule="mupp"), "rule is 'mupp'; allowed are standard, ntk, mup"),
    (lambda: parametrize(rule=["mup"]), r"rule is \['mup'\]; allowed are"),
    (lambda: parametrize(width=16.0), "width is 16.0; it must be a positive integer"),
    (lambda: parametrize(width="16"), "width is '16'; it must be a positive integer"),
    (lambda: parametrize(width=True), "width is True; it must be a positive integer"),
    (lambda: parametrize(width=-1), "width is -1; it must be a positive integer"),
    (lambda: parametrize(base_width=0), "base_width is 0; it must be a positive integer"),
    (lambda: parametrize(base_width=8.5), "base_width is 8.5; it must be a positive integer"),
    (lambda: parametrize(base_width=None), "base_width is None.*'mup'.*give base_width="),
    (lambda: parametrize(example=None), "needs `example`"),
    (lambda: parametrize(roles="input"), "roles is 'input'; it must be"),
    (lambda: parametrize(roles={"*": "inputs"}), r"'inputs' for '\*' is none of"),
    (lambda: parametrize(roles={"readuot/*": "output"}), "'readuot/.*' matches no parameter"),
    (lambda: parametrize(roles={"readout/kernel": 3}), "roles: 3 for readout/kernel is neither"),
    (lambda: parametrize(roles={3: "input"}), "roles: 3 is no pattern"),
    (lambda: parametrize(learning_rates=2.0), "learning_rates"),
    (lambda: parametrize(learning_rates={"hiden*": 2.0}), r"'hiden\*' matches no parameter"),
    (lambda: parametrize(learning_rates={"*": -1.0}), "is -1.0; it must be a finite number"),
    (lambda: parametrize(learning_rates={"*": NAN}), "is nan; it must be a finite number"),
    (lambda: parametrize(learning_rates={"*": "1"}), "is '1'; it must be a finite number"),
    (lambda: parametrize(bias_std=-1.0), "bias_std is -1.0; it must be a finite number"),
    (lambda: parametrize(bias_std="big"), "bias_std is 'big'; it must be a finite number"),
    (lambda: parametrize(depth_rule="cube", depth=2, base_depth=1, branch="*"), "is 'cube'"),
    (
        lambda: parametrize(depth_rule="sqrt", depth=2.5, base_depth=1, branch="*"),
        "depth is 2.5; it must be a positive integer",
    ),
    (lambda: parametrize(bas_width=8), r"argument 'bas_width' \(did you mean 'base_width'\?\)"),
    (lambda: parametrize(learning_rate={}), "did you mean 'learning_rates'"),
    (lambda: parametrize().lr_scale("adamw"), "kind is 'adamw'; allowed are"),
    # optimizers
    (
        lambda: optimizer(optax.adam, 0.1, weight_decayy=1),
        "adam got an unexpected keyword argument 'weight_decayy'",
    ),
    (lambda: optimizer(optax.adafactor, 0.1), "adafactor is no optimizer of a kind"),
    (lambda: optimizer(optax.adafactor, 0.1, kind="adam"), "size of the parameters by more than"),
    (lambda: optimizer(optax.sgd, 0.1, kind="adam"), 'sgd is of the kind "sgd" and not "adam"'),
    (lambda: optimizer(optax.sgd, 0.1, kind="SGD"), "kind is 'SGD'; allowed are"),
    (lambda: optimizer("adam", 0.1), "factory is 'adam'; it must be a function"),
    # exponents and regimes
    (lambda: limits.named_rule(3), "rule is 3; allowed are"),
    (lambda: limits.layerwise("muP"), "rule is 'muP'; allowed are"),
    (lambda: limits.symmetry("mup", "1"), "t is '1' for input; it must be a finite number"),
    (lambda: limits.symmetry("mup", NAN), "t is nan for input; it must be a finite number"),
    (lambda: limits.symmetry("mup", {"bias": 1}), r"t has the roles \['bias'\]; allowed"),
    (lambda: limits.branch_multiplier("sqrt", 0, 1), "depth is 0 .* at least 1"),
    (lambda: limits.branch_multiplier("sqrt", "2", 1), "depth is '2'; it must be a positive"),
    (lambda: limits.branch_multiplier(["sqrt"], 2, 1), r"depth_rule is \['sqrt'\]; allowed"),
    (lambda: limits.abc("mup", 2.0), "hidden_layers=2.0 must be an integer"),
    (lambda: limits.abc("mup", 0), "hidden_layers=0 must be at least 1"),
    (lambda: limits.abc("mup", 2, optimizer="lion"), "'lion' is not one of"),
    (lambda: limits.classify([0, NAN], [0, 0], 1), r"a is \[0, nan\]; exponents must be finite"),
    (lambda: limits.classify([0, 0], [0, np.inf], 1), r"b is \[0, inf\]; exponents must be"),
    (lambda: limits.classify([0, 0], [0, 0], NAN), "exponents must be finite"),
    (lambda: limits.classify("00", [0, 0], 1), "a is '00'; exponents must be"),
    (lambda: limits.classify(0, [0, 0], 1), "a is 0; it must be one finite number per layer"),
    (lambda: limits.classify([0, 0], [0, 0], 1, omega_out="1"), "omega_out='1' must lie in"),
    (lambda: limits.classify([0, 0], [0, 0], 1, omega_out=2), r"omega_out=2 must lie in"),
    # coordinate checks
    (lambda: check(widths=[8, 16]), r"widths=\[8, 16\] must be at least three"),
    (lambda: check(widths=[8.5, 16, 32]), "width is 8.5; it must be a positive integer"),
    (lambda: check(widths=8), "widths=8 must be at least three integers"),
    (lambda: check(steps=1.5), "steps is 1.5; it must be an integer"),
    (lambda: check(seeds=1), "seeds=1 must be at least 2"),
    (lambda: check(learning_rate="1"), "learning_rate is '1'; it must be a finite number"),
    (lambda: check(learning_rate=-1.0), "learning_rate is -1.0; it must be a finite number"),
    (lambda: check(tolerance=0), "tolerance is 0; it must be a finite number that is positive"),
    (lambda: check(confidence=95), "confidence=95 must lie between 0 and 1"),
    (lambda: check(predicted="mup"), "predicted is 'mup'; it must be a Regime"),
    (lambda: check(batch=X), "batch must be a pair"),
    (lambda: check(net_at_width=3), "net_at_width is 3; it must be a function"),
    (lambda: check(loss="mse"), "loss is 'mse'; it must be a function"),
    (lambda: check(key=0), "key is 0; it must be a key"),
    (lambda: check(toleranse=0.1), "did you mean 'tolerance'"),
    # word vectors
    (lambda: cbow.limit(2.5), "words is 2.5; it must be an integer"),
    (lambda: cbow.limit(1), "words=1 must be at least 2"),
    (lambda: cbow.limit(2**31), "words is 2147483648, for which an array has 4.61e.18 entries"),
    (lambda: cbow.limit(jnp.float32(3)), "words is .*; it must be an integer"),
    (lambda: cbow.limit(3, dtype="words"), "dtype is 'words'; it must be a floating type"),
    (lambda: cbow.train(X, WINDOWS, NOISE, KEY), "embeddings is .*; it must be Embeddings"),
    (lambda: cbow.train(WORDS, WINDOWS, NOISE, 0), "key is 0; it must be a key"),
    (lambda: cbow.train(WORDS, WINDOWS, NOISE[:2], KEY), r"noise has shape \(2,\)"),
    (lambda: cbow.train(WORDS, WINDOWS, -NOISE, KEY), "noise has negative entries"),
    (
        lambda: cbow.train(WORDS, WINDOWS._replace(target=jnp.array([0, 7])), NOISE, KEY),
        "windows.target has numbers from 0 to 7; they must be below the 3 words",
    ),
    (
        lambda: cbow.train(WORDS, WINDOWS, NOISE, KEY, negatives=1.5),
        "negatives is 1.5; it must be an integer",
    ),
    (lambda: cbow.train(WORDS, WINDOWS, NOISE, KEY, batchsize=1), "did you mean 'batch_size'"),
    (lambda: cbow.cosines(jnp.ones(3)), r"vectors has the shape \(3,\)"),
    (lambda: cbow.neighbour_rank(X, jnp.ones((2, 2))), "pairs is .*array of integers"),
    (lambda: cbow.analogies(X, jnp.zeros((2, 3), int)), r"the last of 2"),
    (lambda: cbow.neighbour_rank(X, jnp.zeros((2, 2), int)), r"near has the shape \(4, 3\)"),
    (lambda: cbow.neighbour_rank(EYE, [[0, 4]]), "pairs has numbers from 0 to 4; they must be"),
    (lambda: cbow.analogies(EYE, [[0, 1], [-1, 2]]), "pairs has numbers from -1 to 2"),
    (lambda: limits.layer_outputs(None, {"w": X}, X), "net is None; it must be a network"),
    (lambda: limits.layer_outputs(parametrize(), None, X), "params holds None; it must be a pyt"),
    (lambda: limits.captured_outputs(parametrize(), {"w": X}, "x"), "inputs holds 'x'"),
    # depth
    (lambda: depth.taxonomy(3), "3 is neither a function nor a Dual"),
    (lambda: depth.optimal_activation(1.5), "dimension is 1.5; it must be a positive integer"),
    (lambda: depth.dual_curve(jax.nn.relu, 2.0), "correlations lie in"),
    (lambda: depth.dual_curve(jax.nn.relu, "1"), "xi is '1'; it must be an array"),
    (lambda: depth.gaps("x", POINTS), "x1 is str; it must be an array"),
    (lambda: depth.gaps(POINTS, POINTS[:2, :2]), "x1 has 4 coordinates, x2 has 2"),
    (lambda: depth.deep_kernel(jax.nn.relu, 2.0), "depth is 2.0; it must be a positive integer"),
    (lambda: depth.deep_kernel(jax.nn.relu, 2, "nn"), "kernel is 'nn'"),
    (
        lambda: depth.singular_kernel(jax.nn.relu),
        "only 'singular kernel' has a psi",
    ),
    (
        lambda: depth.deep_classifier(jax.nn.relu, 2, POINTS, LABELS[:2], POINTS),
        r"labels of shape \(2,\) do not match 4",
    ),
    (
        lambda: depth.singular_classifier(jax.nn.relu, POINTS, ["yes"], POINTS),
        "labels is .*array of real numbers",
    ),
    (lambda: depth.hilbert_estimate(POINTS, LABELS, POINTS, "2"), "exponent is '2'"),
    (lambda: depth.hilbert_estimate(POINTS, LABELS, POINTS, -1), "exponent is -1"),
    (lambda: depth.nearest_neighbor(3, LABELS, POINTS), "train is int; it must be an array"),
    (lambda: depth.majority_vote(LABELS, -1), "count is -1; it must be an integer"),
    # one hidden layer
    (lambda: feature_learning.linear_limit(3.0, 1), "inputs is 3.0; it must be an integer"),
    (lambda: feature_learning.linear_limit(3, 0), "outputs=0 must be at least 1"),
    (lambda: feature_learning.linear_limit(3, 1, sigma_u=NAN), "sigma_u is nan"),
    (lambda: feature_learning.particles(0, 8, 3, 1), "key is 0; it must be a key"),
    (lambda: feature_learning.kernel_limit(3, 1, dtype=int), "dtype is .*floating"),
    (lambda: feature_learning.weights(LINEAR), "net is .*; it must be Particles"),
    (lambda: feature_learning.squared_error(X, X[:, :1]), r"targets \(4, 1\); they must be equal"),
    (lambda: feature_learning.cross_entropy(X, jnp.ones(4)), "labels is .*array of integers"),
    (lambda: feature_learning.cross_entropy(X, np.array([0, 1, 0, 7])), "labels run from 0 to 7"),
    (lambda: feature_learning.cross_entropy(X, jnp.array([0, 1, 0, -1])), "labels run from -1"),
    (lambda: feature_learning.cross_entropy(X, [0, 1]), r"labels have the shape \(2,\)"),
    (lambda: feature_learning.gradient(X, TRAIN), "net is .*; it must be Particles or"),
    (lambda: feature_learning.train(LINEAR, BATCHES[0], 0.1), "batches is .*; it must be a pair"),
    (lambda: feature_learning.train(LINEAR, BATCHES, "0.1"), "learning_rate is '0.1'"),
    (lambda: feature_learning.adapt(LINEAR, TRAIN, 0.1, 1.5), "steps is 1.5"),
    (
        lambda: feature_learning.meta_train(LINEAR, X, EPISODES, clip=NAN),
        "clip is nan; it must be a finite number",
    ),
    (lambda: feature_learning.adapted_outputs(LINEAR, X, X), "episodes is .*; it must be Episodes"),
    # mean field
    (lambda: mean_field.apply(X, X[:, :2], alpha=1.0, epsilon=0.1), "must be equally long"),
    (lambda: mean_field.apply(X, X, alpha="1", epsilon=0.1), "alpha is '1'"),
    (lambda: mean_field.moments(X[0]), r"weights has the shape \(3,\)"),
    (lambda: mean_field.infinite_width(0), "dim is 0; it must be an integer, at least 1"),
    (lambda: mean_field.subtract(START, X), "other is .*; it must be Moments"),
    (lambda: mean_field.predict(START, X[:, :2], alpha=1.0, epsilon=0.1), "equally long"),
    (lambda: mean_field.tangent_kernel(START, X, X[:, :2], epsilon=0.1), "equally long"),
    (lambda: descend(steps=[2, 1]), "they must increase, from 0 or more"),
    (lambda: descend(centered="no"), "centered is 'no'; it must be True or False"),
    (lambda: perceptron.descend(POINTS, 1.0, normalised=1), "normalised is 1; it must be True or"),
    (lambda: descend(alpha=NAN), "alpha is nan; it must be a finite number"),
    (lambda: descend(train=X), "train is .*; it must be a pair"),
    (
        lambda: mean_field.lazy_descent(START, TRAIN, [1], epsilon=0.1, learning_rate=99.0),
        "learning_rate 99.0 is unstable; it must be below",
    ),
    (lambda: mean_field.population_loss(START, X, alpha=1.0, epsilon=1.0), "must be Target"),
    (lambda: mean_field.aligned(START, X[0, :2], 1.0), "must be equally long"),
    # pi-nets and dynamical mean fields
    (lambda: pi_net.limit(KEY, 3, 1, rank=2.0, hidden_layers=1), "rank is 2.0"),
    (lambda: pi_net.limit(KEY, 3, 1, rank=0, hidden_layers=1), "rank=0 must be at least 1"),
    (lambda: pi_net.train(LINEAR, BATCHES, 0.1), "net is .*; it must be PiLimit or PiNet"),
    (lambda: pi_net.train(PI, BATCHES, -0.1), "learning_rate is -0.1"),
    *[
        (
            lambda call=call: call(loss=lambda f, y: (f - y) ** 2),
            r"returns float32\[4, 1\]; it must",
        )
        for call in (
            functools.partial(pi_net.train, PI, BATCHES, 0.1),
            functools.partial(pi_net.train, PI.sample(KEY, 8), BATCHES, 0.1),
            functools.partial(feature_learning.train, LINEAR, BATCHES, 0.1),
            functools.partial(feature_learning.gradient, LINEAR, (X, jnp.ones((4, 1)))),
        )
    ],
    (lambda: dynamics(overlap=(2.0,)), r"overlap is \[2.\]; expected one number in"),
    (lambda: dynamics(key=1), "key is 1; it must be a key"),
    (lambda: dynamics(density=0.0), "density is 0.0; it must be positive"),
    (lambda: dynamics(steps=2.5), "steps is 2.5; it must be an integer"),
    # models
    (lambda: models.family("MPL"), r"unknown model 'MPL' \(did you mean 'MLP'\?\)"),
    (lambda: models.family(3), "name is 3; it must be one of"),
    (lambda: models.family("MLP", detph=2), "no field 'detph' .did you mean 'depth'"),
    (lambda: models.MLP(width=8, depth=-1, outputs=2), "MLP: depth=-1 must be at least 0"),
    (lambda: models.MLP(width=8.0, depth=1, outputs=2), "MLP: width=8.0 must be an integer"),
    (lambda: models.MLP(8, 1, 2, activation="relu"), "activation='relu' must be a function"),
    (lambda: models.DeepLinear(width=0, depth=1, outputs=2), "width=0 must be at least 1"),
    (lambda: models.CNN(8, 1, 2, kernel_size=0), "kernel_size=0 must be at least 1"),
    (lambda: models.CNN(8, 1, 2, pooling="max"), "pooling='max' is not one of"),
    (lambda: models.ResNet(8, 2, 2, block_depth="2"), "block_depth='2' must be an integer"),
    (lambda: models.ResNet(8, 2, 2, norm="group"), "norm='group' is not one of"),
    (lambda: models.LinearAttention(4, 1, heads=3), "width=4 is not a multiple of heads=3"),
    (lambda: models.RNN(0, 1), "RNN: width=0 must be at least 1"),
    (lambda: models.initializers.low_rank(0), "low_rank: rank=0 must be at least 1"),
    (lambda: generalization.gaussian_gap(-1.0, 1.0, 2, 5), "mean_norm is -1.0"),
    (lambda: generalization.gaussian_gap(1.0, 1.0, 2, 1), "num_examples"),
    (lambda: generalization.gaussian_gap(100.0, 1.0, 2, 50), "must be at most 20000"),
    (lambda: generalization.gaussian_information(0, 5), "rank"),
    (lambda: generalization.gap_bound(NAN), "information is nan"),
    (lambda: generalization.deep_linear([], 1.0, 5), "layers is empty"),
    (lambda: generalization.deep_linear([X, X], 1.0, 5), "must have 4 columns"),
    (lambda: generalization.gibbs(X, [0.5, 0.5], 3, 1.0), "must be 3 probabilities"),
    (lambda: generalization.gibbs(X, NOISE, 3, 1.0, prior=[1.0]), "must be 4 probabilities"),
    (lambda: generalization.gibbs(X, NOISE, 10_000, 1.0), "at most a million"),
    (lambda: generalization.dropout_contraction(1.5, 3), "rate is 1.5"),
    (lambda: generalization.noise_contraction(1.0, 0.0), "sigma"),
    (lambda: models.Transformer(8, 1, 2, 5, 0), "context=0 must be at least 1"),
    (lambda: models.Transformer(8, 1, 3, 5, 4), "width=8 is not a multiple of heads=3"),
    (lambda: models.ViT(8, 1, 2, 2, patch=2.0), "patch=2.0 must be an integer"),
    (lambda: FAMILY(8).init(KEY, X[0]), r"shape \(3,\) have no batch axis"),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_a_wrong_call_is_named(number):
    call, message = WRONG[number]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_every_public_function_is_called_wrongly():
    sources = "".join(inspect.getsource(call) for call, _ in WRONG)
    sources += inspect.getsource(parametrize) + inspect.getsource(check)
    sources += inspect.getsource(descend) + inspect.getsource(dynamics)
    sources += inspect.getsource(machine)
    helpers = {"captured_outputs", "layer_outputs", "norm", "relu_dual", "identity"}
    for package in (
        *(limits, models, aspect_ratio, cbow, depth, dmft, eigenlearning, ensembles),
        *(limits, models, aspect_ratio, cbow, deep_kernel_machine, depth, dmft, ensembles),
        *(feature_learning, finite_width, mean_field, opposing, perceptron, pi_net),
        *(
            limits,
            models,
            aspect_ratio,
            attention_svm,
            boundary_tilting,
            cbow,
            depth,
            dmft,
            ensembles,
            feature_learning,
        ),
        *(finite_width, hopfield, in_context, mean_field, opposing, perceptron, pi_net),
        *(pruning, surrogate),
        *(
            early_learning,
            finite_width,
            hopfield,
            in_context,
            mean_field,
            opposing,
            perceptron,
            pi_net,
        ),
        *(finite_width, hopfield, in_context, linear_rank, mean_field, opposing, perceptron),
        *(pi_net, models.initializers),
        *(finite_width, generalization, hopfield, in_context, mean_field, opposing),
        *(perceptron, pi_net),
    ):
        for name, value in vars(package).items():
            public = inspect.isfunction(value) and not name.startswith("_") and name not in helpers
            if public and value.__module__.startswith(package.__name__):
                assert f"{name}(" in sources, f"{package.__name__}.{name}"
