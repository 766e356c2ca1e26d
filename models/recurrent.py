"""A recurrent network as a function of its width."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from models.fields import check_fields
from models.mlp import Activation, Initializer, Outputs


class RNN(nn.Module):
    """Vanilla recurrent network, h_t = s(W_in x_t + W h_{t-1}) from h_0 = 0, with a linear readout of every step.

    Inputs (N, T, d), outputs (N, T, outputs). Layers are named `input`, `recurrent`, which is one matrix at all steps
    and has no bias, and `readout`. What the readout reads is `activation` of the feature `recurrent`, (N, T, width).

    Attributes:
        width: hidden units.
        outputs: units of the readout.
        activation: elementwise nonlinearity s.
        use_bias: whether input and readout have biases.
        kernel_init: initializer of the kernels of input and readout; the default has variance 1 / fan_in.
        recurrent_init: initializer of the recurrent kernel, for instance `models.initializers.low_rank(5)`.

    Raises:
        ValueError: a field out of range; inputs that are not (N, T, d).

    Kernels: `ntk.infinite_width` takes this module, or a function of its outputs (its last step), with the identity
    as activation, and refuses relu, tanh and erf in it. `flax.linen.RNN(SimpleCell)` with a readout of its last
    state, out[:, -1], has kernels with tanh.

    Source: for the kernels of such networks Alemohammad et al. 2021, arXiv:2006.10246.
    """

    width: int
    outputs: int
    activation: Activation = nn.relu
    use_bias: bool = False
    kernel_init: Initializer = nn.initializers.lecun_normal()
    recurrent_init: Initializer = nn.initializers.lecun_normal()

    def __post_init__(self) -> None:
        functions = ("activation", "kernel_init", "recurrent_init")
        check_fields(self, sizes={"width": 1, "outputs": 1}, functions=functions)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, features: bool = False) -> Outputs:
        """Outputs (N, T, outputs); with `features`, also each layer's output of all steps by name."""
        x = jnp.asarray(x)
        if x.ndim != 3:
            raise ValueError(f"inputs of shape {x.shape} must be (N, T, d): a sequence an example.")

        def dense(
            units: int,
            name: str,
            kernel_init: Initializer = self.kernel_init,
            use_bias: bool = self.use_bias,
        ) -> nn.Dense:
            return nn.Dense(units, use_bias=use_bias, kernel_init=kernel_init, name=name)

        def step(
            net: nn.Module, h: jax.Array, x: jax.Array
        ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            # Read step by step, not at once: the tracer then sees which inputs a state comes from.
            read = dense(self.width, "input")(x)
            z = read + dense(self.width, "recurrent", self.recurrent_init, use_bias=False)(h)
            return self.activation(z), (read, z)

        scan = nn.scan(
            step, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1
        )
        start = jnp.zeros((x.shape[0], self.width), jnp.result_type(x, jnp.float32))
        _, (read, hidden) = scan(self, start, x)
        outputs = dense(self.outputs, "readout")(self.activation(hidden))
        layers = {"input": read, "recurrent": hidden, "readout": outputs}
        return (outputs, layers) if features else outputs
