"""No verdict holds through a run that failed: the data of every study, poisoned variable by variable with nan."""

import functools
import importlib

import numpy as np
import pytest
import xarray as xr

from experiments.claims import reason, verdict

COLLAPSED = {
    "loss": "step",
    "weight_gram": "step row column",
    "mean_gram": "step row column",
    "product": "step row column",
    "accuracy": "step",
    "nc1": "step layer",
    "loss_predicted": "",
    "weight_gram_predicted": "row column",
    "mean_gram_predicted": "row column",
    "product_predicted": "row column",
    "undecayed_weight_gram": "row column",
    "undecayed_mean_gram": "row column",
    "undecayed_product": "row column",
    "undecayed_accuracy": "",
}
ROUNDS = "transformer_order transformer_share"
ACCURACIES = ("train", "corrupted", "restored", "test")
SAM = {
    "edge": (0.0, 0.03, 0.1, 0.3),
    "edge_small": (0.0, 0.1),
    "edge_random": (0.03, 0.1, 0.3),
    "batch": (0.0, 0.1, 0.3, 0.6),
    "batch_random": (0.1, 0.3),
}
# Study -> coordinates, and the dimensions of every variable that its claims read.
SCHEMAS = {
    "learning_rate_transfer": (
        {
            "optimizer": ["sgd", "adam"],
            "parametrization": ["standard", "ntk", "mup"],
            "width": [16, 64],
            "rate": 5,
            "seed": [0, 1, 2],
            "trajectory_parametrization": ["ntk", "mup"],
            "trajectory_width": [16, 64],
            "trajectory_seed": [0, 1],
            "step": [0, 10, 20, 30, 40, 50, 60, 70],
            "coordinate_parametrization": ["mup", "ntk"],
            "coordinate_width": [16, 32, 64],
            "layer": ["hidden_0", "hidden_1"],
        },
        {
            "sweep_loss": "optimizer parametrization width rate seed",
            "trajectory_loss": "trajectory_parametrization trajectory_width trajectory_seed step",
            "sharpness": "trajectory_parametrization trajectory_width trajectory_seed step",
            "trajectory_learning_rate": "trajectory_parametrization",
            "change": "coordinate_parametrization coordinate_width layer",
            "slope": "coordinate_parametrization layer",
            "slope_interval": "coordinate_parametrization layer end",
            "slope_predicted": "coordinate_parametrization layer",
        },
    ),
    "neural_collapse": (
        {
            "free_problem": ["balanced", "imbalanced", "bias", "no_decay"],
            "free_depth": [2, 3],
            "free_seed": [0, 1],
            "free_step": [0, 10, 20],
            "free_row": 3,
            "free_column": 3,
            "free_class": 3,
            "tail_depth": [1, 2],
            "tail_seed": [0, 1],
            "tail_class": 4,
            "map_depth": [1, 3],
            "map_classes": [3, 10],
            "map_start": ["random", "simplex"],
            "map_seed": [0, 1],
            "net_step": [0, 10, 20],
            "net_row": 3,
            "net_column": 3,
            "net_layer": ["hidden_0", "features"],
            "fixed_classifier": ["learnt", "equiangular", "in a plane"],
            "fixed_seed": [0, 1],
        },
        {
            **{
                f"free_{name}": f"free_depth free_problem free_seed free_step {rest}"
                for name, rest in {
                    "loss": "",
                    "weight_gram": "free_row free_column",
                    "mean_gram": "free_row free_column",
                    "product": "free_row free_column",
                    "nc1": "",
                    "angle": "free_class",
                }.items()
            },
            **{
                f"free_{name}_predicted": f"free_depth free_problem {rest}"
                for name, rest in {
                    "loss": "",
                    "weight_gram": "free_row free_column",
                    "mean_gram": "free_row free_column",
                    "product": "free_row free_column",
                }.items()
            },
            "tail_z": "tail_depth tail_seed tail_class",
            "tail_mode_loss": "tail_depth tail_seed tail_class",
            "tail_decay": "tail_depth",
            "map_loss": "map_depth map_classes map_start map_seed",
            "map_simplex_error": "map_depth map_classes map_start map_seed",
            "map_simplex": "map_depth map_classes",
            "map_known": "map_depth map_classes",
            **{
                f"net_{name}": " ".join(f"net_{dim}" for dim in dims.split())
                for name, dims in COLLAPSED.items()
            },
            **dict.fromkeys(("fixed_train", "fixed_test"), "fixed_classifier fixed_seed"),
        },
    ),
    "grokking_corrupted": (
        {
            "regulariser": [
                "none",
                "weight decay 10",
                "dropout 0.5",
                "batch norm",
                "shuffled labels",
            ],
            "seed": [0, 1],
            "time": 4,
            "order": ["low", "high", "random"],
            "share": [0.0, 0.5, 1.0],
            "vector": ["U", "V", "W"],
            "neuron": 6,
            "phase_regulariser": ["none", "weight decay 10", "dropout 0.5"],
            "noise": [0.1, 0.3],
            "fraction": [0.3, 0.9],
            "decay": [0.0, 2.0],
            "transformer_seed": [0, 1],
            "transformer_time": 3,
            "transformer_order": ["low", "high"],
            "transformer_share": [0.0, 0.5, 1.0],
            "analytic_width": [6, 12],
            "analytic_seed": [0, 1, 2],
        },
        {
            **dict.fromkeys((*ACCURACIES, "ipr"), "regulariser seed time"),
            **{f"pruned_{name}": "regulariser seed order share" for name in ACCURACIES},
            "neuron_ipr": "regulariser seed neuron",
            "neuron_gain": "regulariser seed neuron",
            "neuron_phases": "regulariser seed vector neuron",
            "phase_test": "phase_regulariser noise fraction",
            "phase_corrupted": "phase_regulariser noise fraction",
            "transformer_test": "decay transformer_seed transformer_time",
            "transformer_corrupted": "decay transformer_seed transformer_time",
            "transformer_pruned_test": f"decay transformer_seed {ROUNDS}",
            "transformer_pruned_corrupted": f"decay transformer_seed {ROUNDS}",
            "analytic_accuracy": "analytic_width analytic_seed",
            "analytic_predicted": "analytic_width",
            "exact_error": "",
        },
    ),
    "grokking_lazy_rich": (
        {
            "seed": [0, 1, 2],
            "alpha": [0.25, 1.0, 4.0, 32.0],
            "sweep_step": [0, 1, 3, 10, 30, 100],
            "epsilon": [0.1, 1.0],
            "strength": [0.0, 8.0],
            "num_train": [15, 60, 120],
            "examples_seed": [0, 1],
            "batch_size": [0, 15],
            "network_alpha": [2.0],
            "network_seed": [0, 1],
            "data": ["train", "test"],
            "network_step": [0, 10, 20],
            "width": [16, 64, 256],
            "law": ["exponent", "low", "high", "prefactor"],
            "dim": [40, 80],
            "dmft_step": [0, 1, 2],
            "digits_alpha": [0.01, 0.1],
            "digits_seed": [0, 1],
            "digits_step": [0, 10, 20, 30],
        },
        {
            **dict.fromkeys(("train", "test", "movement", "cka", "norm"), "seed alpha sweep_step"),
            "regression_loss": "seed",
            **{f"epsilon_{name}": "epsilon seed" for name in ("train_time", "test_time", "cka")},
            **{f"aligned_{name}_time": "strength seed" for name in ("train", "test")},
            **{
                f"examples_{name}": "num_train examples_seed"
                for name in ("train_time", "test_time", "final")
            },
            "network_loss": "batch_size network_alpha network_seed data network_step",
            "closed_loss": "network_alpha network_seed data network_step",
            "width_distance": "width seed",
            "width_law": "law",
            "dmft_network": "dim seed data dmft_step",
            "dmft_theory": "data dmft_step",
            **{
                f"digits_{name}": "digits_alpha digits_seed digits_step"
                for name in ("train_accuracy", "test_accuracy", "norm")
            },
        },
    ),
    "ntk_convergence": (
        {
            "start_inputs": ["circle", "digits"],
            "start_width": [16, 64, 256],
            "start_seed": [0, 1, 2],
            "point": 4,
            "drift_width": [16, 32, 128],
            "control_width": [16, 128],
            "drift_seed": [0, 1, 2],
            "moment": ["start", "end"],
            "ensemble_width": [64],
            "ensemble_seed": [0, 1, 2],
            "ensemble_angle": 5,
            "component_inputs": ["sphere", "digits"],
            "component_width": [32, 128],
            "component_seed": [0, 1, 2],
            "chunk": 3,
            "rank": [1, 2],
        },
        {
            "start_kernel": "start_inputs start_width start_seed point",
            "limit_kernel": "start_inputs point",
            "nngp_kernel": "start_inputs point",
            "drift_kernel": "drift_width drift_seed moment point",
            "control_kernel": "control_width drift_seed moment point",
            "outputs": "ensemble_width ensemble_seed ensemble_angle",
            "predicted_mean": "ensemble_angle",
            "predicted_sd": "ensemble_angle",
            "along": "component_inputs component_width component_seed chunk",
            "off": "component_inputs component_width component_seed chunk",
            "eigenvalue": "component_inputs rank",
            "time": "component_inputs chunk",
        },
    ),
    "wide_deep_optimality": (
        {
            "singular_dimension": [1, 2],
            "distance": [1e-6, 1e-4, 1e-2],
            "noise_dimension": [1, 2],
            "noise_count": [100, 400],
            "noise_seed": [0, 1, 2],
            "classifier": ["Bayes", "deep network", "Hilbert", "1-NN", "majority"],
            "wrong_activation": ["x² − 1", "ReLU, centred"],
            "nngp_depth": [16.0, 100.0],
            "ntk_depth": [1e3, 1e15],
            "depth_seed": [0, 1],
            "dirichlet_dimension": [1, 2],
            "dirichlet_seed": [0, 1, 2],
            "stripe_count": [300, 3000],
            "exponent": [0.5, 1.0, 2.0],
            "stripe_seed": [0, 1],
            "nearest_depth": [4, 16],
            "majority_depth": [10, 80],
            "relu_depth": [10, 3000],
            "class_seed": [0, 1],
            "label_noise": [0.0, 0.4],
            "digit_seed": [0, 1],
            "network": ["x² − 1", "interior"],
            "digit_dimension": [4, 8],
        },
        {
            "log_psi": "singular_dimension distance",
            "noise_error": "noise_dimension noise_count noise_seed classifier",
            "noise_agreement": "noise_dimension noise_count noise_seed",
            "wrong_agreement": "wrong_activation noise_seed",
            **{
                f"{kernel}_{name}": f"{kernel}_depth depth_seed"
                for kernel in ("nngp", "ntk")
                for name in ("agreement", "fit")
            },
            "dirichlet_error": "dirichlet_dimension dirichlet_seed classifier",
            "dirichlet_agreement": "dirichlet_dimension dirichlet_seed",
            "stripe_error": "stripe_count exponent stripe_seed",
            "nearest_agreement": "nearest_depth class_seed",
            "majority_agreement": "majority_depth class_seed",
            "relu_agreement": "relu_depth class_seed",
            "relu_ratio": "relu_depth class_seed",
            "digit_limit_agreement": "label_noise digit_seed network",
            "digit_nearest": "label_noise digit_seed",
            "digit_deep": "label_noise digit_seed digit_dimension",
        },
    ),
    "random_features": (
        {
            "sweep": ["features", "samples"],
            "count": [64, 128, 256],
            "rf_ridge": [0.001, 0.1],
            "rf_seed": [0, 1, 2],
            "learn_seed": [0, 1],
            "learn_ridge": [0.0, 0.1],
            "mode": 30,
            "phase_noise": [0.0, 2.0],
            "alpha": [1.5, 2.0],
            "beta": [1.2, 1.8],
            "image_noise": [0.0, 0.5],
            "image_seed": [0, 1],
            "image_count": [50, 100],
            "image_ridge": [0.0, 0.2],
            "layer_features": [64, 256],
            "layer_seed": [0, 1],
            "bundle_seed": [0, 1],
            "stage": ["linear", "one layer", "two layers"],
            "bundle": ["layer", "first bundled", "both bundled"],
            "function": ["sin", "cos", "relu", "arc-cosine"],
            "norm": [0.3, 0.6],
        },
        {
            **dict.fromkeys(("theory_test", "theory_train", "kernel_test"), "sweep count rf_ridge"),
            **{
                f"rf_{name}": "sweep count rf_seed rf_ridge"
                for name in ("test", "train", "estimated")
            },
            "rf_best": "sweep count rf_seed",
            "learnt": "learn_seed learn_ridge mode",
            "learnable": "learn_ridge mode",
            "conserved": "learn_ridge",
            "ratio": "phase_noise alpha beta",
            "ratio_predicted": "phase_noise alpha beta",
            "image_test": "image_noise image_seed image_count image_ridge",
            **{
                f"image_{name}": "image_noise image_count image_ridge"
                for name in ("predicted", "permuted", "linear")
            },
            "accuracy": "layer_features layer_seed stage",
            "layer_error": "layer_features bundle_seed bundle",
            "bias": "function norm",
            "variance": "function norm",
        },
    ),
    "cnn_learning_curves": (
        {
            "kind": ["ntk", "nngp"],
            "layers": [1, 2],
            "wavenumber": [10, 14, 20],
            "case_1": ["1 patch: d = 1 by d = 1"],
            "case_2": ["2 patches: d = 1 by d = 2", "2 patches: d = 2 by d = 2"],
            "case_4": [f"4 patches: d = {d} by d = 4" for d in (1, 2, 4)],
            "curve_seed": [0, 1],
            "sample": [64, 128, 256],
            "dimension": [1, 2],
            "ambient": [16, 64],
            "manifold_seed": [0, 1],
            "manifold_sample": [64, 128, 256],
            "get": ["ntk"],
            "image_sample": [32, 64, 128],
        },
        {
            "one_patch": "kind layers wavenumber",
            "two_patches": "kind layers wavenumber",
            **{f"error_{patches}": f"curve_seed case_{patches} sample" for patches in (1, 2, 4)},
            **{f"predicted_{patches}": f"case_{patches} sample" for patches in (1, 2, 4)},
            "manifold_error": "dimension ambient manifold_seed manifold_sample",
            "measured_dimension": "dimension ambient manifold_seed",
            "image_error": "get image_sample",
            "image_dimension": "get",
        },
    ),
    "feature_learning_limit": (
        {
            "rule": ["ntk", "mup"],
            "quantity": ["hidden_0", "hidden_1", "kernel_distance"],
            "layer": ["hidden_0", "hidden_1"],
            "system": ["linear", "tanh", "linear, ntk"],
            "step": 3,
            "word_width": [16, 64, 300, 0],
            "word_seed": [0, 1, 2],
            "background": [0.0, 1.0],
            "few_width": [2, 8, 0],
            "few_seed": [0, 1, 2],
            "kernel_rate": [1.0, 2.0],
            "trained": [0, 1],
        },
        {
            "exponent": "rule quantity",
            "predicted": "rule layer",
            "r": "rule",
            "slope": "system",
            "slope_interval": "system end",
            "limit_loss": "system step",
            "pi_slope": "",
            "pi_slope_interval": "end",
            "gram_slope": "",
            "gram_slope_interval": "end",
            "analogy": "word_seed word_width",
            "word_rank": "word_seed word_width",
            "shuffled_rank": "word_seed",
            "shuffled_analogy": "word_seed",
            "few_accuracy": "background few_seed few_width",
            "few_kernel": "background few_seed kernel_rate trained",
        },
    ),
    "batch_curvature": (
        {
            "law": ["Hessians", "gradients"],
            "spike": [0.7, 1.5, 3.0],
            "synthetic_seed": [0, 1],
            "kind": ["measured noise", "independent Hessians", "independent gradients"],
            "batch": [16, 64, 256],
            "seed": [0, 1, 2],
            "smallest_of": ["all", "batch"],
            "optimizer": ["sgd", "adam"],
            "rate_batch": [1, 4, 64, 256],
            "rate_seed": [0, 1, 2],
        },
        {
            **dict.fromkeys(
                ("random_top", "random_law", "random_bare"), "law spike synthetic_seed"
            ),
            "law_top": "kind seed batch",
            **dict.fromkeys(("law_error", "measured", "measured_error"), "seed batch"),
            **dict.fromkeys(("top", "gap", "early_top", "early_excess"), "seed"),
            "smallest": "seed smallest_of",
            "largest_rate": "optimizer rate_batch rate_seed",
        },
    ),
    "deep_kernel_machines": (
        {
            "widths": ["8", "3, 20"],
            "linear_seed": [0, 1],
            "kernel": ["ReLU", "squared exponential"],
            "nu": [0.1, 1.0, 10.0, 100.0, 1e3, 1e4],
            "nngp_seed": [0, 1, 2],
            "copies": [4, 16, 64],
            "posterior_seed": [0, 1, 2],
            "inducing": [3, 6, 12],
            "sparse_seed": [0, 1],
            "target": ["one direction", "radial"],
            "learning_nu": [1.0, 10.0, 1e4],
            "prediction_seed": [0, 1, 2],
        },
        {
            **dict.fromkeys(("linear_error", "equal_error"), "widths linear_seed"),
            "distance": "kernel nu nngp_seed",
            **dict.fromkeys(
                ("posterior_distance", "prior_distance", "posterior_sd"), "copies posterior_seed"
            ),
            "bound": "sparse_seed inducing",
            **dict.fromkeys(("full", "sparse_gram"), "sparse_seed"),
            **dict.fromkeys(
                ("error", "nngp_error", "train_likelihood", "alignment"),
                "target learning_nu prediction_seed",
            ),
        },
    ),
    "attention_svm": (
        {
            "trained": ["W", "K, Q", "K, Q, no decay"],
            "seed": [0, 1, 2],
            "norm": ["Frobenius", "nuclear"],
            "step": [0, 10, 20],
            "moment": ["step 10", "end"],
            "selected": ["own", "one swapped"],
            "rank": [1, 2, 3, 4, 5],
            "feasible_dim": [1, 2, 8],
            "feasible_seed": [0, 1, 2],
        },
        {
            "correlation": "trained seed norm step",
            "largest_weight": "trained seed moment",
            "optimal": "trained seed",
            "singular": "trained seed rank",
            "slack": "trained seed selected norm",
            "gap": "trained seed norm",
            "optimal_orthonormal": "seed",
            "feasible": "feasible_dim feasible_seed",
        },
    ),
    "hopfield_retrieval": (
        {
            "update_seed": [0, 1, 2],
            "variant": ["right", "wrong"],
            "beta": [0.5, 1.0],
            "dim": [12, 16, 24],
            "pattern_seed": [0, 1, 2],
            "share": [0.7, 0.85, 1.0, 1.15],
            "patterns": ["clustered", "unclustered"],
            "phase_seed": [0, 1, 2],
            "phase_beta": [1.0, 10.0, 50.0],
        },
        {
            **dict.fromkeys(("energy_rise", "error_ratio", "attention"), "update_seed variant"),
            "own_weight": "beta dim pattern_seed share",
            "alpha": "beta",
            "alpha_half": "beta",
            "hebb_count": "dim pattern_seed",
            "participation": "patterns phase_seed phase_beta",
            "inside": "patterns phase_seed phase_beta",
        },
    ),
    "in_context_descent": (
        {
            "setting": ["isotropic", "anisotropic", "whitened", "ReLU", "sign", "random start"],
            "seed": [0, 1, 2],
            "step": [0, 10, 20],
            "row": 3,
            "column": 3,
            "predictor": ["zero", "one step", "two steps", "ridge"],
            "wrong": ["n + 10", "whitened", "isotropic", "anisotropic"],
            "descent_steps": [1, 2],
            "descent": ["GD", "GD++"],
            "descent_seed": [0, 1, 2],
            "sign": [1, -1],
            "exact_seed": [0, 1, 2],
        },
        {
            "loss": "setting seed step",
            "agreement": "setting seed",
            "matrix": "setting seed row column",
            "predictor_loss": "setting predictor",
            "ridge_agreement": "setting",
            "best": "setting row column",
            "other": "setting wrong row column",
            "descent_loss": "descent_steps descent descent_seed",
            "construction": "exact_seed sign",
            **dict.fromkeys(("softmax_ratio", "shift_error", "tight_ratio"), "exact_seed"),
        },
    ),
    "sharpness_aware": (
        {
            **{f"{part}_seed": [0, 1, 2] for part in SAM},
            **{f"{part}_step": [0, 10, 20, 30] for part in SAM},
            **{f"{part}_radius": list(radii) for part, radii in SAM.items()},
            **{f"{part}_noise": [0.0, 0.2] if part == "batch" else [0.0] for part in SAM},
            "formula_seed": [0, 1, 2],
            "sign": [1, -1],
            "edge_of": ["SAM", "plain descent"],
        },
        {
            **{
                f"{part}_{key}": f"{part}_noise {part}_radius {part}_seed {part}_step"
                for part, keys in (
                    *((part, ("sharpness", "edge")) for part in ("edge", "edge_small")),
                    ("edge_random", ("sharpness",)),
                    ("batch", ("sharpness", "accuracy", "weights")),
                    ("batch_random", ("sharpness", "weights")),
                )
                for key in keys
            },
            "residual": "formula_seed sign",
            "limits": "formula_seed",
            "quadratic": "formula_seed edge_of",
        },
    ),
    "early_learning": (
        {
            "dim": [10, 100, 1000],
            "seed": [0, 1, 2],
            "example": ["mislabelled", "new"],
            "labels": ["flipped", "right"],
            "strength": [0.0, 3.0],
            "rate": [0.02, 0.5],
            "linear_dim": [20, 400],
            "linear_seed": [0, 1, 2],
            "linear_step": [1, 10, 100],
            "network_seed": [0, 1, 2],
            "network_step": [0, 10, 20],
        },
        {
            "step_true": "dim seed",
            "step_theory": "dim example",
            "critical_dim": "dim labels",
            **dict.fromkeys(
                ("linear_true", "linear_test"), "strength rate linear_dim linear_seed linear_step"
            ),
            **dict.fromkeys(("network_true", "network_test"), "strength network_seed network_step"),
        },
    ),
    "large_steps": (
        {
            "seed": [0, 1, 2],
            "normalised": [0, 1],
            "step_size": [1.0, 10.0, 1e4, 1e5],
            "first": ["one half", "one"],
            "examples": [10, 100, 1000],
            "method": 3,
            "pair": ["3 vs 8", "1 vs 7"],
            "pair_step_size": [1.0, 1e4],
        },
        {
            "steps": "seed normalised step_size",
            "ratio": "seed normalised step_size",
            "large_difference": "seed first",
            "angle": "seed first",
            "hard_steps": "examples method",
            "hard_wrong": "examples",
            "pair_steps": "pair pair_step_size",
            "pair_loss": "pair pair_step_size",
            "pair_normalised": "pair",
        },
    ),
    "data_pruning": (
        {
            "quantity": [
                *("1 slope", "3 scarce", "3 scarce, blind probe", "3 abundant"),
                *("3 abundant, blind probe", "4 no loss", "4 no loss, easy", "5 plateau"),
                *("5 plateau, at 2", "5 ruin below 2", "7 power law"),
                "7 power law, perfect probe",
            ],
            "setting": 8,
            "seed": [0, 1, 2],
            "of": ["own angle", "wrong angle", "no pruning"],
            "labels": ["right labels", "some wrong labels"],
            "share": [0.05, 0.5],
            "order": ["random", "EL2N", "EL2N, easy", "GraNd at the start", "EL2N, top skipped"],
            "image_seed": [0, 1, 2],
            "epoch": [0, 1, 10],
            "by": ["EL2N", "GraNd"],
            "tenth": ["top", "bottom"],
        },
        {
            "number": "quantity",
            "simulated": "setting seed",
            "predicted": "setting of",
            "accuracy": "labels share order image_seed",
            "full": "labels image_seed",
            "agreement": "labels epoch end",
            "reliability": "labels epoch by end",
            "mislabelled": "labels tenth",
        },
    ),
    "naive_bayes": (
        {
            "dim": [50, 100, 200],
            "seed": [0, 1, 2],
            "learner": ["naive Bayes", "logistic regression"],
            "setting": ["mild correlation", "strong correlation", "no correlation"],
            "count": [6, 80, 640],
            "regime_seed": [0, 1, 2],
            "scaled": [1.0, 1.2],
            "surrogate_seed": [0, 1],
            "feature_seed": [0, 1, 2],
            "inputs": ["features", "pixels"],
            "shots": [2, 20],
        },
        {
            "needed": "dim seed learner",
            "error": "setting count learner regime_seed",
            "violations": "surrogate_seed scaled",
            "accuracy": "feature_seed inputs shots learner",
        },
    ),
    "principles": (
        {
            "activation": [
                *("ReLU", "leaky ReLU", "linear", "tanh", "sin", "erf", "arctan", "GELU", "SWISH"),
                *("softplus", "ReLU, C_W = 1.8", "tanh, C_W = 1.1"),
            ],
            "layer": [1, 2, 3, 4, 5, 6],
            "sampled_activation": ["ReLU", "tanh"],
            "sampled_width": [25, 50, 100],
            "sampled_layer": [1, 2, 3],
            "shape": ["32 x 8", "64 x 16", "128 x 32", "64 x 8", "64 x 32"],
            "pair_activation": ["ReLU", "tanh", "GELU"],
            "entry": ["11,11", "11,12", "11,22", "12,12", "12,22", "22,22"],
            "residual_activation": ["ReLU", "tanh"],
            "gamma": [0.5, 0.8],
            "residual_width": [50, 100],
            "tangent_activation": ["ReLU"],
            "vertex": ["B", "F", "A"],
            "change_activation": ["tanh", "linear"],
            "change_width": [24, 48],
            "rated": ["tanh", "sin", "ReLU"],
            "rule": ["equivalent", "constant"],
            "of": ["biases", "weights"],
            "rate_layer": 4,
            "outputs": [2, 4, 10],
            "seed": [0, 1, 2],
        },
        {
            **dict.fromkeys(("known", "variance", "nu", "a1", "off"), "activation"),
            **dict.fromkeys(("K", "V"), "activation layer"),
            **dict.fromkeys(
                ("sampled", "sampled_error", "sampled_theory"),
                "sampled_activation sampled_width seed sampled_layer",
            ),
            **dict.fromkeys(("aspect", "aspect_error", "aspect_exact"), "shape seed"),
            **dict.fromkeys(("pair", "pair_error", "pair_theory"), "pair_activation seed entry"),
            "pair_alone": "pair_activation seed",
            **dict.fromkeys(
                ("mean_shift", "mean_shift_error", "mean_shift_theory"), "pair_activation seed"
            ),
            **dict.fromkeys(
                ("residual", "residual_error", "residual_theory", "residual_plain"),
                "residual_activation gamma residual_width seed",
            ),
            **dict.fromkeys(
                ("residual_slope", "residual_nu"), "residual_activation gamma residual_width seed"
            ),
            **dict.fromkeys(
                ("tangent", "tangent_error", "tangent_theory"), "tangent_activation seed vertex"
            ),
            **dict.fromkeys(
                ("change", "change_error", "change_theory"), "change_activation change_width seed"
            ),
            "contribution": "rated rule of rate_layer",
            **dict.fromkeys(("cubic", "exact_growth", "series_growth"), "outputs"),
        },
    ),
    "opposing_signals": (
        {
            "flow": ["α = 20", "α = 40", "consistent"],
            "setting": ["R = 3", "R = 4", "α = 20", "below the edge", "consistent", "Adam"],
            "seed": [0, 1, 2],
            "planted_seed": [0, 1],
            "natural_seed": [0, 1],
        },
        {
            **dict.fromkeys(("flow_off", "flow_end", "flow_ratio"), "flow seed"),
            **dict.fromkeys(("crossing", "crossing_predicted", "largest", "tail"), "setting seed"),
            **dict.fromkeys(("correlation", "recall", "share", "random_share"), "setting seed"),
            **dict.fromkeys(("progress", "spike"), "setting seed"),
            **dict.fromkeys(("planted_recall", "unplanted_recall", "calm_recall"), "planted_seed"),
            **dict.fromkeys(("calm_cosine", "other_cosine"), "planted_seed"),
            **dict.fromkeys(("natural_purity", "calm_purity"), "natural_seed"),
            **dict.fromkeys(("rise_step", "removed_step", "random_step"), "natural_seed"),
        },
    ),
    "card": (
        {
            "axes_seed": [0, 1],
            "place": ["base", "widest"],
            "coordinate_rule": ["standard", "mup"],
            "layer": 3,
            "signal_seed": [0, 1, 2],
            "weights": ["own", "mistuned"],
            "signal_depth": 3,
            "critical_seed": [0, 1, 2],
            "assumed": ["own", "twice"],
            "kernel_of": ["ntk", "nngp"],
            "kernel_seed": [0, 1, 2, 3],
            "kernel_width": [32, 64, 128],
            "mode": 20,
            "spectrum_seed": [0, 1],
            "predicted_by": ["ntk", "nngp"],
            "prediction_seed": [0, 1],
            "prediction_width": [32, 64, 128],
            "lazy_rule": ["ntk", "mup"],
            "lazy_seed": [0, 1],
            "lazy_width": [32, 64, 128],
            "sharpness_seed": [0, 1],
            "sharpness_step": [0, 5, 10, 15, 20, 25, 30, 35],
            "early_rate": [0.5, 4.0],
            "transfer_rule": ["standard", "mup"],
            "transfer_width": [32, 128],
            "transfer_rate": [0.01, 0.02, 0.04],
            "transfer_seed": [0, 1, 2],
            "collapse_seed": [0, 1],
            "collapse_step": [0, 10],
            "collapse_labels": ["own", "redrawn"],
            "collapse_measure": ["nc1", "ncc_accuracy"],
        },
        {
            "plain_difference": "axes_seed place",
            "coordinate_slope": "coordinate_rule layer",
            "coordinate_interval": "coordinate_rule layer end",
            "signal_variance": "weights signal_seed signal_depth",
            "signal_growth": "weights signal_seed signal_depth",
            "next_predicted": "critical_seed assumed",
            "next_variance": "critical_seed assumed",
            "kernel_distance": "kernel_of kernel_seed kernel_width",
            "kernel_level": "kernel_of kernel_seed kernel_width",
            "power": "mode",
            "shuffled_power": "spectrum_seed mode",
            "prediction_distance": "predicted_by prediction_seed prediction_width",
            "kernel_change": "lazy_rule lazy_seed lazy_width",
            "sharpness": "sharpness_seed sharpness_step",
            "sharpness_rate": "sharpness_seed",
            "early_rise": "early_rate sharpness_seed",
            "transfer_loss": "transfer_rule transfer_width transfer_rate transfer_seed",
            "collapse": "collapse_seed collapse_step collapse_labels collapse_measure",
            "collapse_accuracy": "collapse_seed collapse_step",
        },
    ),
    "lottery_ticket": (
        {
            "seed": [0, 1, 2],
            "round": [0, 6, 12, 16],
            "net": ["ticket", "new weights", "random mask"],
            "mask": ["ticket", "new weights", "random masks", "other random masks"],
            "budget": ["early", "short", "long"],
        },
        {
            "accuracy": "seed round net budget",
            **dict.fromkeys(("kept", "target"), "seed round mask"),
        },
    ),
    "connectivity_rank": (
        {
            "start": [
                *("zero readout", "aligned task", "standard readout", "Gaussian spectrum"),
                *("both larger", "weights larger"),
            ],
            "rank": [1, 2, 5, 10, 20],
            "seed": [0, 1, 2],
            "task": ["two_alternative"],
            "net_rank": [1, 20],
            "net_seed": [0, 1, 2, 3],
        },
        {
            **dict.fromkeys(("alignment", "features", "moved"), "start rank seed"),
            **dict.fromkeys(("closed", "closed_spread"), "start rank seed"),
            **dict.fromkeys(
                ("net_alignment", "net_features", "net_accuracy"), "task net_rank net_seed"
            ),
        },
    ),
    "short_papers": (
        {
            "seed": [0, 1, 2],
            "ridge": [1e-4, 1.0, 1e3],
            "tilt": ["its own", "random"],
            "temperature": [0.05, 0.2, 1.0],
            "features": ["as learnt", "centred"],
            "labels": ["true", "shuffled"],
            "width": [32, 128],
            "networks": [
                *("trained", "untrained", "trained, shuffled", "untrained, shuffled", "itself")
            ],
            "measure": ["bipartite", "semi", "CKA"],
        },
        {
            "strength": "seed ridge",
            "error": "seed ridge tilt",
            "energy": "seed features temperature",
            "tolerance": "seed features temperature labels",
            "similarity": "seed width networks measure",
        },
    ),
    "score_estimation": (
        {
            "noise": [0.3, 1.0],
            "examples": [50, 200, 800],
            "seed": [0, 1, 2],
            "targets": ["noisy", "exact"],
            "time": [1.0, 10.0, 100.0, 1000.0],
            "width": [64, 1024],
            "net_seed": [0, 1, 2],
            "kernel": ["NTK", "NNGP"],
            "images": [5, 50, 700],
            "pair_seed": [0, 1, 2],
            "of": ["images seen", "other images", "best linear, other images"],
            "variant": ["right", "wrong"],
        },
        {
            "error": "noise examples seed targets time",
            "distance": "width net_seed kernel",
            "risk": "images pair_seed of",
            "stein": "images pair_seed variant",
            "homogeneity": "images pair_seed variant",
            "cosine": "images pair_seed",
            "asymmetry": "images pair_seed",
        },
    ),
    "gradient_noise": (
        {
            "schedule": ["small", "large", "root"],
            "seed": [0, 1, 2],
            "growth_schedule": ["full", "squared"],
            "growth_seed": [0, 1, 2],
            "step": [0, 10, 60, 200, 600, 1200],
            "noise": ["none", "weak", "strong", "critical start"],
            "noise_seed": [0, 1, 2],
            "noise_step": [0, 50, 100, 200],
        },
        {
            **dict.fromkeys(("accuracy", "distance"), "schedule seed step"),
            "growth_distance": "growth_schedule growth_seed step",
            **dict.fromkeys(("variance", "loss"), "noise noise_seed noise_step"),
        },
    ),
    "information_plane": (
        {
            "network": ["tanh", "ReLU", "shuffled"],
            "rule": [0, 1],
            "seed": [0, 1, 2],
            "step": [0, 100, 400, 1000],
            "layer": [1, 2, 3, 4, 5],
            "sigma": [0.05, 0.1, 0.2],
            "bins": [10, 30, 100],
            "weights": [1, 2],
            "split": ["train", "test"],
            "labels": ["probabilities", "one draw"],
            "bounds_of": ["own noise", "twice the noise"],
            "classes": ["d = 16, s = 2, r = 16", "d = 16, s = 2, r = 4", "d = 64, s = 3, r = 64"],
            "examples": [10, 30, 100],
            "bound_of": ["n", "n^2"],
            "bound_seed": [0, 1, 2],
            "gibbs_by": ["I + L", "I"],
            "of": ["bound", "distance"],
        },
        {
            **dict.fromkeys(("noisy", "binned", "moving"), "network rule seed step layer"),
            "by_sigma": "network rule seed step sigma",
            "by_bins": "network rule seed step bins",
            "signal": "network rule seed step weights",
            "accuracy": "network rule seed split step",
            "label_share": "network rule seed",
            "excess": "network rule seed labels",
            "outside": "network rule seed bounds_of",
            "gap": "classes examples",
            "gap_bound": "classes examples bound_of",
            "gibbs": "bound_seed gibbs_by",
            "last": "bound_seed of",
        },
    ),
}


def rates(data):
    """Losses with a best rate inside the grid, another for each width and rule."""
    x = np.arange(5.0)[:, None]
    best = np.linspace(1.6, 2.4, 36).reshape(2, 3, 2, 1, 3)
    grid = xr.DataArray([2.0 ** np.arange(5)] * 2, dims=("optimizer", "rate"))
    bowl = (x - best) ** 2 + 1
    curve = 20 * xr.DataArray([0.3, 0.9, *[1.0] * 6], dims="step") + 0 * data.sharpness
    scaled = data.assign(sharpness=curve * (1 + 0.01 * data.sharpness))
    scaled = scaled.assign(trajectory_learning_rate=0 * data.trajectory_learning_rate + 0.1)
    return scaled.assign(sweep_loss=(data.sweep_loss.dims, bowl)).assign_coords(learning_rate=grid)


def networks(data):
    sizes = {"free_size": ("free_class", [4, 2, 1]), "tail_size": ("tail_class", [40, 20, 10, 5])}
    data = data.assign(net_squared=True, net_accuracy=0 * data.net_accuracy + 1)
    data = data.assign(net_undecayed_accuracy=1.0, tail_threshold=11.5)
    data = data.assign(net_loss=data.net_loss[-1] + 0 * data.net_loss)
    data = data.assign(free_loss=data.free_loss[..., -1] + 0 * data.free_loss)
    crossing = np.array([1.4, 1.2, 0.8, 0.6])[::-1] + 0 * data.tail_mode_loss
    data = data.assign(tail_mode_loss=crossing, tail_decay=0.01 * data.tail_decay)
    return data.assign_coords(sizes).assign_attrs(networks="net", task="digits")


def corrupted(data):
    spread = xr.DataArray([[0.2, 0.95], [0.3, 0.99]], dims=("noise", "fraction"))
    data = data.assign(phase_test=spread + 0 * data.phase_test, train=data.train**0.001)
    data = data.assign(pruned_corrupted=data.pruned_corrupted**0.1)
    data = data.assign(analytic_predicted=data.analytic_accuracy.mean("analytic_seed") + 0.01)
    return data.assign_attrs(label_noise=0.2, control_noise=1.0, modulus=13)


def lazy(data):
    falling = np.array([1.0, 0.8, 0.5, 0.2, 0.05, 0.01])
    data = data.assign(train=falling + 0 * data.train, test=falling * data.test)
    better = {
        f"digits_{name}": data[f"digits_{name}"] ** 0.01
        for name in ("train_accuracy", "test_accuracy")
    }
    data = data.assign(better | {"closed_loss": 1.01 * data.network_loss[1]})
    return data.assign_attrs(threshold=0.1, num_train=60, network_width=50)


def batches(data):
    """Sharper the smaller, with 1/b beside the sizes."""
    inverse = 1 / data.batch
    data = data.assign(measured=data.top + 30 * inverse * (1 + 0.1 * data.measured))
    data = data.assign(gap=30 + data.gap)  # some batches are large enough for the law
    return data.assign_coords(inverse=("batch", inverse.values))


def dichotomy(data):
    falls = xr.DataArray([1.0, 0.5, 0.1], dims="step")
    data = data.assign(limit_loss=data.limit_loss[:, 0] * falls)
    return data.assign(regime=("rule", ["kernel", "feature learning"]), vocabulary=300)


def patches(data):
    return data.assign_attrs(fit_from=64, curve_points=2048)


def retrieved(data):
    """Weights on the own pattern that fall through one half."""
    falling = xr.DataArray([0.9, 0.7, 0.5, 0.2], dims="share")
    return data.assign(own_weight=falling + 0.1 * (data.own_weight - 0.5))


def contradicted(data):
    """A share of one step that falls through one half."""
    falling = xr.DataArray([0.9, 0.7, 0.2], dims="dim")
    return data.assign(step_true=falling + 0.1 * (data.step_true - 0.5))


def opposing(data):
    faster = 0.2 * (data.setting == "Adam")
    return data.assign(progress=data.progress - faster)


def pruned(data):
    """Two settings at which claims look."""
    at = np.tile([20.0, 2.0, 0.4, 1.0], (8, 1))
    at[6:] = [0.0, 1.5, 0.1, 1.0], [0.0, 2.5, 0.1, 1.0]
    return data.assign(at=(("setting", "part"), at))


def principles(data):
    """Simulations above their theory, so that the excess has a power law."""
    return data.assign(sampled=1 + data.sampled, sampled_theory=0.9 * data.sampled_theory)


def whole_card(data):
    parts = importlib.import_module("experiments.configs.card").PARTS
    valley = xr.DataArray([2.0, 1.0, 2.0], dims="transfer_rate")
    data = data.assign({f"{part}_refused": "" for part in parts})
    data = data.assign(coordinate_wrong=("coordinate_rule", ["readout", "none"]))
    data = data.assign(coordinate_verdict=("coordinate_rule", ["wrong", "right"]))
    data = data.assign(
        coordinate_layer=("layer", ["one", "two", "out"]), collapse_layer="two", no_chain=""
    )
    data = data.assign(signal_factor=1.5, limit_nngp=("kernel_row", [1.0, 2.0]))
    data = data.assign(transfer_loss=data.transfer_loss**0.01 * valley)
    return data.assign(collapse_accuracy=1 + 0 * data.collapse_accuracy)


def noisy(data):
    data = data.assign(loss=data.loss + xr.DataArray([3.0, 2.0, 1.0, 0.5], dims="noise_step"))
    return data.assign_attrs(outputs=10, same_epochs=60, critical=2.0, crossing=100)


def plane(data):
    """Signals that fall below one after the start, gaps that fall."""
    falling = xr.DataArray([2.0, 1.5, 0.5, 0.2], dims="step")
    gap = data.gap * 0.1 / data.examples
    return data.assign(signal=falling + 0.1 * data.signal, gap=gap)


DETAILS = {
    "cnn_learning_curves": patches,
    "batch_curvature": batches,
    "learning_rate_transfer": rates,
    "neural_collapse": networks,
    "grokking_corrupted": corrupted,
    "grokking_lazy_rich": lazy,
    "feature_learning_limit": dichotomy,
    "early_learning": contradicted,
    "hopfield_retrieval": retrieved,
    "principles": principles,
    "data_pruning": pruned,
    "opposing_signals": opposing,
    "card": whole_card,
    "gradient_noise": noisy,
    "information_plane": plane,
}


def healthy(study):
    """Data of the study's shape, every number finite; its details as far as the claims need them to be measured."""
    coordinates, variables = SCHEMAS[study]
    random = np.random.default_rng(0)
    sizes = {dim: v if isinstance(v, int) else len(v) for dim, v in coordinates.items()} | {
        "end": 2
    }

    def numbers(dims):
        """As likely as not to be near one another; seeds differ by little."""
        alike = [1 if dim.endswith("seed") else sizes[dim] for dim in dims]
        noise = random.uniform(-0.01, 0.01, [sizes[dim] for dim in dims])
        values = random.uniform(0.2, 0.9, alike) + noise
        return np.sort(values, axis=-1) if dims[-1:] == ["end"] else values  # an interval, in order

    data = xr.Dataset(
        {name: (dims.split(), numbers(dims.split())) for name, dims in variables.items()},
        {dim: values for dim, values in coordinates.items() if not isinstance(values, int)},
    )
    return DETAILS.get(study, lambda data: data)(data)


def judged(study, data):
    module = importlib.import_module(f"experiments.studies.{study}_claims")
    made = module.claims(data)
    assert len({claim.name for claim in made}) == len(made), "two claims of one name"
    return {claim.name: claim for claim in made}


def varied(values, where):
    """Other numbers at some entries: the claims that read them show by theirs."""
    factor = np.exp(np.random.default_rng(1).uniform(-3, 1, values.shape))
    return values.where(~where, values * factor)


def failed(values, where, value=np.nan):
    return values.where(~where, value)


def last_seed(values, seed):
    """Where a variable belongs to the last of the seeds."""
    return xr.ones_like(values, bool) & xr.DataArray(
        np.arange(values.sizes[seed]) == values.sizes[seed] - 1, dims=seed
    )


def check(study, where, failed=failed):
    """Poisons some entries, and demands that the claims that read them are not measured, and no claim is lost."""
    data = healthy(study)
    before = judged(study, data)
    change, lost = (
        judged(study, data.assign({name: make(data[name], at) for name, at in where.items()}))
        for make in (varied, failed)
    )
    assert list(lost) == list(before), "a claim has vanished"
    for key, claim in lost.items():
        numbers = [(c.measured, c.interval, verdict(c)) for c in (before[key], change[key])]
        if numbers[0] != numbers[1] or verdict(before[key]) == "NOT MEASURED":
            assert verdict(claim) == "NOT MEASURED", key
            assert reason(claim)


SEEDS = [
    (study, dim) for study, (dims, _) in SCHEMAS.items() for dim in dims if dim.endswith("seed")
]


@pytest.mark.parametrize(("study", "seed"), SEEDS)
def test_no_verdict_holds_through_a_seed_that_diverged(study, seed):
    data = healthy(study)
    where = {name: last_seed(data[name], seed) for name in data if seed in data[name].dims}
    check(study, where)


@pytest.mark.parametrize(
    ("study", "seed"), [case for case in SEEDS if case[0] != "grokking_lazy_rich"]
)
def test_no_verdict_holds_through_a_seed_whose_numbers_are_infinite(study, seed):
    """There infinite times are those never reached; its other variables are treated alike."""
    data = healthy(study)
    where = {name: last_seed(data[name], seed) for name in data if seed in data[name].dims}
    check(study, where, functools.partial(failed, value=np.inf))


# Claims that two formulas agree: they read no run.
FORMULAS = {"2 at every size", "2 control, formula of aligned tasks"}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("study", SCHEMAS)
def test_no_verdict_holds_against_an_attribute_that_is_not_finite(study, value):
    """Each attribute that is a number, and one that no claim reads."""
    data = healthy(study).assign_attrs(unread=1.0)
    numbers = [key for key, v in data.attrs.items() if isinstance(v, float)]
    before = judged(study, data)
    for key in numbers:
        try:
            lost = judged(study, data.assign_attrs({key: value}))
        except ValueError as error:  # it would be the bound itself
            if "has no finite bound" not in str(error):
                raise
            continue
        assert list(lost) == list(before), "a claim has vanished"
        good = {name for name, claim in lost.items() if claim.passed} - FORMULAS
        assert not good, (key, good)


CASES = [(study, name) for study, (_, variables) in SCHEMAS.items() for name in variables]


@pytest.mark.slow
@pytest.mark.parametrize(("study", "name"), CASES)
def test_no_verdict_holds_through_nan_in_a_variable(study, name):
    values = healthy(study)[name]
    check(study, {name: xr.ones_like(values, bool)})
    for seed in (dim for dim in values.dims if dim.endswith("seed")):
        check(study, {name: last_seed(values, seed)})


@pytest.mark.parametrize("study", SCHEMAS)
def test_healthy_data_is_judged(study):
    """Or else the tests above would test nothing."""
    table = judged(study, healthy(study))
    open_ = [key for key, claim in table.items() if verdict(claim) == "NOT MEASURED"]
    assert len(open_) <= len(table) // 8, {key: reason(table[key]) for key in open_}


@pytest.mark.parametrize(
    ("study", "dim", "value", "claim"),
    [
        ("feature_learning_limit", "background", 0.0, "M1 features help, plain digits"),
        ("feature_learning_limit", "background", 1.0, "M2 the widest is there, lit digits"),
        ("ntk_convergence", "start_inputs", "digits", "1 convergence, digits"),
        ("ntk_convergence", "component_inputs", "sphere", "4 decay, sphere"),
        ("learning_rate_transfer", "coordinate_parametrization", "ntk", "P6 control, ntk as muP"),
    ],
)
def test_a_claim_about_what_was_left_out_does_not_vanish(study, dim, value, claim):
    data = healthy(study)
    whole = judged(study, data)
    left = judged(study, data.drop_sel({dim: [value]}))
    assert set(whole) == set(left)
    assert verdict(whole[claim]) != "NOT MEASURED"
    assert verdict(left[claim]) == "NOT MEASURED"
    assert reason(left[claim])
