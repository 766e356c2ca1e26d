"""Fully connected networks as functions of their width.

Every model of this package is called as `module.apply({"params": params}, x)`; with
`features=True` it returns `(outputs, features)`, where `features` maps the path of each layer in
the parameter tree to that layer's output (a pre-activation), from the input to the readout. A
model contains no parametrization: multipliers and learning rates are applied from outside.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
from flax import linen as nn

from models.fields import check_fields

Activation = Callable[[jax.Array], jax.Array]
Initializer = nn.initializers.Initializer
Layers: TypeAlias = dict[str, jax.Array]
Outputs: TypeAlias = jax.Array | tuple[jax.Array, Layers]
"""Outputs; with `features=True`, also each layer's by its path."""


class MLP(nn.Module):
    """Multi-layer perceptron: `depth` hidden layers of `width` units, then a linear readout.

    Inputs of shape (N, ...) are flattened to (N, d); outputs have shape (N, outputs). Layers are
    named `hidden_0`, ..., `readout`. What the readout reads is `activation` of the last hidden
    layer's feature.

    Attributes:
        width: units of every hidden layer.
        depth: number of hidden layers; 0 is a linear model.
        outputs: units of the readout.
        activation: elementwise nonlinearity after each hidden layer.
        use_bias: whether every layer, the readout included, has a bias.
        kernel_init: initializer of every kernel; the default has variance 1 / fan_in.
        bias_init: initializer of every bias.
    """

    width: int
    depth: int
    outputs: int
    activation: Activation = nn.relu
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros

    def __post_init__(self) -> None:
        functions = ("activation", "kernel_init", "bias_init")
        check_fields(self, sizes={"width": 1, "depth": 0, "outputs": 1}, functions=functions)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, features: bool = False) -> Outputs:
        """Outputs (N, outputs); with `features`, also each layer's pre-activation by name."""

        def dense(units: int, name: str) -> nn.Dense:
            return nn.Dense(
                units,
                use_bias=self.use_bias,
                kernel_init=self.kernel_init,
                bias_init=self.bias_init,
                name=name,
            )

        x, layers = _flatten(x), {}
        for l in range(self.depth):
            layers[f"hidden_{l}"] = h = dense(self.width, f"hidden_{l}")(x)
            x = self.activation(h)
        layers["readout"] = outputs = dense(self.outputs, "readout")(x)
        return (outputs, layers) if features else outputs


class DeepLinear(nn.Module):
    """Deep linear network: a product of `depth + 1` matrices, without biases.

    Inputs of shape (N, ...) are flattened to (N, d). Layers are named as in `MLP`.

    Attributes:
        width: units of every hidden layer.
        depth: number of hidden layers.
        outputs: units of the readout.
        kernel_init: initializer of every matrix; the default has variance 1 / fan_in.
    """

    width: int
    depth: int
    outputs: int
    kernel_init: Initializer = nn.initializers.lecun_normal()

    def __post_init__(self) -> None:
        sizes = {"width": 1, "depth": 0, "outputs": 1}
        check_fields(self, sizes=sizes, functions=("kernel_init",))
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, features: bool = False) -> Outputs:
        """Outputs (N, outputs); with `features`, also each layer's output by name."""
        x, layers = _flatten(x), {}
        for l in range(self.depth + 1):
            name, units = (
                (f"hidden_{l}", self.width) if l < self.depth else ("readout", self.outputs)
            )
            x = nn.Dense(units, use_bias=False, kernel_init=self.kernel_init, name=name)(x)
            layers[name] = x
        return (x, layers) if features else x


def _flatten(x: jax.Array) -> jax.Array:
    if x.ndim < 2:
        raise ValueError(
            f"inputs of shape {x.shape} have no batch axis: give (N, ...), for one example x[None]."
        )
    return x.reshape(x.shape[0], -1)
