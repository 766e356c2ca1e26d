"""Optimizers under a parametrization: one factor on each parameter's learning rate and gradient.

The factors multiply what goes into and what comes out of an ordinary optax optimizer, leaf by leaf and found
by the leaf's path, so that the same transformation works on dicts, on NNX states and in `nnx.Optimizer`.
"""

import jax
import optax

from ntk import family

# An optimizer's kind says how its update scales with the gradient: "sgd" linearly, "adam" not at all.
_NAMES = {
    "sgd": ("sgd",),
    "adam": (
        *("adam", "adamw", "nadam", "nadamw", "amsgrad", "adamax", "adamaxw", "adabelief"),
        *("rmsprop", "adagrad", "lion"),
    ),
}
KINDS = {getattr(optax, name): kind for kind, names in _NAMES.items() for name in names}


def optimizer_kind(factory, kind=None) -> str:
    """ "sgd" or "adam": how the update of an optax factory scales with the gradient.

    Args:
        factory: an optax optimizer such as `optax.sgd`.
        kind: says it for a factory that is not known here, such as a chain of one's own.

    Raises:
        ValueError: an unknown factory without a kind, or an unknown kind.
    """
    kind = KINDS.get(factory) if kind is None else kind
    if kind in ("sgd", "adam"):
        return kind
    known = sorted(name for names in _NAMES.values() for name in names)
    if kind is not None:
        raise ValueError(f'kind is {kind!r}; allowed are "sgd" and "adam"')
    raise ValueError(
        f"how the update of {getattr(factory, '__name__', factory)!r} scales with the gradient is not known "
        f'(known: {", ".join(known)}). Pass kind="sgd" if it is linear in the gradient, '
        'kind="adam" if a gradient twice as large gives the same update'
    )


def multiply(tree, factors):
    """Each leaf times the factor of its path name; leaves with factor one are returned as they are.

    Raises:
        ValueError: a leaf whose path is not among the factors.
    """

    def times(path, leaf):
        name = family.path_name(path)
        if name not in factors:
            raise ValueError(
                f"{name!r} is not a parameter of the family; there are {list(factors)}"
            )
        factor = factors[name]  # a Python float, or traced
        return leaf if isinstance(factor, float) and factor == 1.0 else leaf * factor

    return jax.tree_util.tree_map_with_path(times, tree)


def scale_per_leaf(
    optimizer, learning_rate, gradient=None
) -> optax.GradientTransformationExtraArgs:
    """The optimizer with every leaf's update multiplied by its own factor.

    Weight decay is exempt: the optimizer sees each parameter divided by its learning-rate factor, so that
    what it adds in proportion to the parameter is the same for every factor. This holds for decoupled decay
    (`optax.adamw`) and for L2 inside a chain (`optax.add_decayed_weights` before `optax.sgd`); it is wrong
    for optimizers that use the parameter's norm (`optax.lamb`, `optax.adafactor`).

    Args:
        optimizer: an optax gradient transformation, its own learning rate included.
        learning_rate: {path name: factor} on the update.
        gradient: {path name: factor} on the gradient before the optimizer: for an Adam-like optimizer the
            same as dividing its eps by that factor.

    Returns:
        A gradient transformation with the optimizer's own state.
    """
    inner = optax.with_extra_args_support(optimizer)
    inverse = {name: 1.0 / factor for name, factor in learning_rate.items()}

    def update(updates, state, params=None, **extra):
        if gradient is not None:
            updates = multiply(updates, gradient)
        if params is not None:
            params = multiply(params, inverse)
        updates, state = inner.update(updates, state, params, **extra)
        return multiply(updates, learning_rate), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
