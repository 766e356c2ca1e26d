"""Which parameters a model reads out with, and whether a rule can act on them."""

import jax
import jax.numpy as jnp

from ntk import family as families


def check_readout(family, example, widths, named, rule):
    """Refuse outputs of fixed size that no "output" parameter computes: a tied or hidden readout."""
    if example is None or any(axes.role in ("output", "tied") for axes in named.values()):
        return
    inputs = families.example_inputs(example)

    def outputs(width, key):
        net = families.network(family, width, example)
        state = families.initial_state(family, width, example, key)
        return net.apply(net.init(key), *inputs, **({"state": state} if state else {}))

    shapes = [
        jax.tree.map(jnp.shape, jax.eval_shape(lambda key, w=w: outputs(w, key), jax.random.key(0)))
        for w in widths[1:3]
    ]
    if shapes[0] == shapes[1]:
        raise ValueError(
            'the outputs do not grow with the width, yet no parameter has the role "output". If an embedding '
            'is also the readout, say so with roles={"embed/embedding": "tied"}; otherwise name the readout: '
            f'roles={{path: "output"}}. Parameters: {list(named)}'
        )
