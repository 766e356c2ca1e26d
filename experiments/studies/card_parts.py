"""The parts of a theory card: what measures each, which variables come of it, which tables are made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.grid import Axis, Variable, variables
from experiments.studies import card_start as start
from experiments.studies import card_training as training
from experiments.studies.card_model import Model


class Part(NamedTuple):
    """One part of the card.

    Attributes:
        measure: ``(config, model) -> {variable: array}``.
        variables: what it measures.
        coordinates: ``config -> {dimension: Axis}``; other dimensions are as long as the model makes them.
        words: variables that are text.
    """

    measure: Callable[[Any, Model], dict[str, Any]]
    variables: Mapping[str, Variable]
    coordinates: Callable[[Any], dict[str, Axis]]
    words: tuple[str, ...] = ()


class Table(NamedTuple):
    """A table of the page: the part that it is of, its columns (head -> variable), what to know of it."""

    part: str
    columns: Mapping[str, str]
    note: str = ""


def _seeds(config: Any) -> Axis:
    return Axis(list(config.seeds), "seed")


def _widths(config: Any) -> Axis:
    return Axis(list(config.widths), "width", "neurons")


def _steps(steps: int, chunks: int) -> Axis:
    return Axis(np.arange(chunks + 1) * (steps // chunks), "training step", "steps")


_DERIVATION = ("step", "operation", "what", "positions", "K", "line")
PARTS = {
    "axes": Part(
        start.axes,
        variables("axes_seed place", plain_difference="largest difference from the plain network")
        | variables(
            "parameter_row",
            parameter="parameter",
            role="role",
            shape="shape",
            init_std="standard deviation at initialisation under muP",
            multiplier="multiplier under muP",
            lr_sgd="factor of the learning rate of SGD under muP",
            lr_adam="factor of the learning rate of Adam under muP",
        ),
        lambda config: {
            "axes_seed": _seeds(config),
            "place": Axis(["base", "widest"], "width"),
        },
        ("parameter", "role", "shape"),
    ),
    "coordinates": Part(
        training.coordinates,
        variables(
            "coordinate_rule layer coordinate_width", coordinate_change="RMS change of the outputs"
        )
        | variables("coordinate_rule layer", coordinate_slope="exponent of the change in the width")
        | variables(
            "coordinate_rule layer end", coordinate_interval="exponent of the change, interval"
        )
        | variables(
            "coordinate_rule",
            coordinate_verdict="verdict against muP",
            coordinate_name="parametrization",
            coordinate_wrong="layers that are wrong",
        )
        | variables("layer", coordinate_layer="layer"),
        lambda config: {
            "coordinate_width": Axis(list(config.coordinates.widths), "width", "neurons"),
            "coordinate_rule": Axis(list(config.coordinates.rules), "parametrization"),
            "end": Axis(["low", "high"], "end of the interval"),
        },
        ("coordinate_verdict", "coordinate_name", "coordinate_wrong", "coordinate_layer"),
    ),
    "signals": Part(
        start.signals,
        variables(
            "weights signal_seed signal_depth",
            signal_variance="mean square of a layer's outputs",
            signal_growth="mean square change for a small change of the input",
            signal_correlation="mean cosine of two inputs",
        )
        | variables("signal_depth", signal_layer="layer")
        | variables("", signal_factor="each layer's weights over the ones before, control"),
        lambda config: {
            "signal_seed": _seeds(config),
            "weights": Axis(["own", "mistuned"], "weights"),
        },
        ("signal_layer",),
    ),
    "criticality": Part(
        start.criticality,
        variables(
            "activation_row",
            activation="nonlinearity",
            critical_kind="universality class",
            critical_std="critical W_std",
            critical_bias="critical variance of biases",
            critical_variance="critical variance of preactivations",
            own_std="W_std of the model",
        )
        | variables("", no_chain="why there is no recursion")
        | variables(
            "critical_seed assumed",
            next_predicted="variance of the last hidden layer, predicted",
            next_variance="variance of the last hidden layer",
        ),
        lambda config: {
            "critical_seed": _seeds(config),
            "assumed": Axis(["own", "twice"], "variance of the weights"),
        },
        ("activation", "critical_kind", "no_chain"),
    ),
    "kernel": Part(
        start.kernel,
        variables(
            "kernel_of kernel_seed kernel_width",
            kernel_distance="relative distance of the tangent kernel from a limit",
            kernel_level="trace of the tangent kernel over that of a limit",
        )
        | variables(
            "kernel_row kernel_column",
            limit_ntk="NTK of infinite width",
            limit_nngp="NNGP of infinite width",
        )
        | variables("step_row", **{f"step_{k}": f"derivation, {k}" for k in _DERIVATION})
        | variables(
            "law_row",
            law_parameter="parameter",
            law="law at initialisation",
            law_variance="variance times the entries summed over",
        ),
        lambda config: {
            "kernel_width": _widths(config),
            "kernel_seed": Axis(list(range(config.kernel.seeds)), "seed"),
            "kernel_of": Axis(["ntk", "nngp"], "limit"),
        },
        (*(f"step_{k}" for k in _DERIVATION), "law_parameter", "law"),
    ),
    "spectrum": Part(
        start.spectrum,
        variables(
            "mode",
            eigenvalue="eigenvalue of the NTK over the examples",
            power="share of the targets in the top modes",
        )
        | variables("spectrum_seed mode", shuffled_power="the same of shuffled targets"),
        lambda config: {"spectrum_seed": _seeds(config)},
    ),
    "prediction": Part(
        training.prediction,
        variables(
            "predicted_by prediction_seed prediction_width",
            prediction_distance="distance of trained outputs from the prediction, over their change",
        ),
        lambda config: {
            "predicted_by": Axis(["ntk", "nngp"], "kernel"),
            "prediction_seed": _seeds(config),
            "prediction_width": _widths(config),
        },
    ),
    "laziness": Part(
        training.laziness,
        variables(
            "lazy_rule lazy_seed lazy_width",
            kernel_change="relative change of the tangent kernel in training",
            kernel_alignment="alignment of the tangent kernels after and before training",
        )
        | variables(
            "lazy_rule lazy_seed lazy_width moment",
            target_alignment="alignment of the tangent kernel with the targets",
        ),
        lambda config: {
            "lazy_rule": Axis(["ntk", "mup"], "parametrization"),
            "lazy_seed": _seeds(config),
            "lazy_width": _widths(config),
            "moment": Axis(["before", "after"], "moment of training"),
        },
    ),
    "sharpness": Part(
        training.sharpness,
        variables(
            "sharpness_seed sharpness_step", sharpness="sharpness", sharpness_loss="training loss"
        )
        | variables("sharpness_seed", sharpness_rate="learning rate")
        | variables(
            "early_rate sharpness_seed",
            early_rise="loss in the first chunk of steps over the loss before",
        ),
        lambda config: {
            "sharpness_seed": _seeds(config),
            "early_rate": Axis(
                [config.sharpness.learning_rate, training.TOO_LARGE],
                "learning rate over the largest stable one",
            ),
            "sharpness_step": _steps(
                config.sharpness.steps, config.sharpness.steps // config.sharpness.chunk
            ),
        },
    ),
    "transfer": Part(
        training.transfer,
        variables(
            "transfer_rule transfer_width transfer_rate transfer_seed",
            transfer_loss="training loss",
        ),
        lambda config: {
            "transfer_rule": Axis(list(training.TRANSFER), "parametrization"),
            "transfer_width": Axis([config.widths[0], config.widths[-1]], "width", "neurons"),
            "transfer_rate": Axis(2.0 ** np.linspace(*config.transfer.log2_rates), "learning rate"),
            "transfer_seed": _seeds(config),
        },
    ),
    "collapse": Part(
        training.collapse,
        variables(
            "collapse_seed collapse_step collapse_labels collapse_measure",
            collapse="measure of collapse",
        )
        | variables("collapse_seed collapse_step", collapse_accuracy="accuracy on the training set")
        | variables("", collapse_layer="layer"),
        lambda config: {
            "collapse_seed": _seeds(config),
            "collapse_step": _steps(config.collapse.steps, training.CHUNKS),
            "collapse_labels": Axis(["own", "redrawn"], "labels"),
            "collapse_measure": Axis(list(training.MEASURES), "measure of collapse"),
        },
        ("collapse_layer",),
    ),
}

TABLES = {
    "Parameters and muP": Table(
        "axes",
        {
            "parameter": "parameter",
            "role": "role",
            "shape": "shape",
            "initial deviation": "init_std",
            "multiplier": "multiplier",
            "rate of SGD": "lr_sgd",
            "rate of Adam": "lr_adam",
        },
        "At the largest width under muP: role of the axes, standard deviation at initialisation, multiplier, and "
        "factors of the learning rates tuned at the base width.",
    ),
    "Coordinate check": Table(
        "coordinates",
        {"rule": "coordinate_name", "verdict against maximal update": "coordinate_verdict"},
    ),
    "Criticality": Table(
        "criticality",
        {
            "nonlinearity": "activation",
            "class": "critical_kind",
            "critical W_std": "critical_std",
            "W_std of the model": "own_std",
            "critical variance of biases": "critical_bias",
            "critical K": "critical_variance",
        },
        "W_std is the deviation of the weights times the root of the fan-in. At the critical one a signal neither "
        "grows nor fades in a chain of layers, at any variance K of the preactivations where none is given.",
    ),
    "Derivation of the kernels": Table(
        "kernel", {name: f"step_{name}" for name in _DERIVATION}, "Read from the model's own code."
    ),
    "Laws of the parameters": Table(
        "kernel",
        {"parameter": "law_parameter", "law": "law", "variance times fan-in": "law_variance"},
    ),
}
