"""A family of networks indexed by its width, and the parameter axes that go to infinity with it.

A family is a function of the width that returns one of

- a linen module: `lambda width: MLP(width)`;
- an NNX factory, called with the keyword `rngs`: `lambda width: lambda rngs: MLP(width, rngs=rngs)`;
- a pair of plain functions `(init, apply)`, with `init(key) -> params`.

A family may change the size of its parameters with the width, not their number. Parameters are named by
their path in the tree, `hidden_0/kernel`.
"""

import math
import operator
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ntk import conventions


class Network(NamedTuple):
    """A family at one width.

    Attributes:
        init: `init(key) -> params`; for linen the "params" collection, for NNX the nnx.Param variables as
            nested dicts of arrays. It is the model's own initialisation, to the bit.
        apply: `apply(params, *inputs, **kwargs)`; keywords go to the model (`method`, `rngs`, `mutable` of
            linen included). A model that keeps more than parameters (batch statistics, random counts) takes
            that as `state=initial_state(...)`; with `mutable=["batch_stats"]` (linen) or `mutable=True`
            (NNX) it returns `(outputs, new_state)`.
    """

    init: Callable
    apply: Callable


class ParamAxes(NamedTuple):
    """What the axes of one parameter do as the width grows.

    Attributes:
        shapes: the shape at each of the widths compared.
        infinite: axes whose size depends on the width.
        fan_in: axes that a unit sums over. Several axes may form one fan (attention heads, convolutions).
        fan_out: axes of the units computed.
        role: "hidden" if both fans grow, "input" if only the fan-out does (first layers, embeddings, biases,
            norm gains), "output" if only the fan-in does, "scalar" if none; "tied" is an embedding that the
            model also reads out with, which no shape can tell.
    """

    shapes: tuple
    infinite: tuple
    fan_in: tuple
    fan_out: tuple
    role: str

    def fans(self, index=-1):
        """(fan_in, fan_out) as numbers, at the width of that index."""
        shape = self.shapes[index]
        return math.prod(shape[k] for k in self.fan_in), math.prod(shape[k] for k in self.fan_out)


def network(family, width, example=None) -> Network:
    """The family at one width, as a pair of pure functions.

    Args:
        family: a function of the width, see the module's first lines.
        width: a positive integer.
        example: what a linen model is called with at initialisation: one array (or jax.ShapeDtypeStruct), or
            a tuple of several inputs. NNX and plain pairs do not need it.

    Raises:
        ValueError: the family is none of the three kinds, or a linen family comes without an example.
    """
    return _split(family, width, example)[0]


def initial_state(family, width, example, key) -> dict:
    """Whatever the model keeps besides parameters, as nested dicts: {} for most models.

    Linen: all collections but "params", for instance {"batch_stats": ...}. NNX: all variables but nnx.Param.
    """
    return _split(family, width, example)[1](key)


def check_width(name, width) -> int:
    """The width as an int; ValueError unless it is a positive integer."""
    integer = hasattr(width, "__index__") and not isinstance(width, bool)
    if not integer or operator.index(width) < 1:
        raise ValueError(f"{name} is {width!r}; it must be a positive integer")
    return operator.index(width)


def _check_family(family):
    """Refuse what is no function of the width, a module at one width among it; flax is not imported for that."""
    classes = {f"{c.__module__.split('.')[0]}.{c.__name__}" for c in type(family).__mro__}
    if "flax.Module" in classes:
        raise ValueError(
            f"family is a module, {type(family).__name__} at one width; it must be a function of the width: "
            f"lambda width: {type(family).__name__}(width)"
        )
    if not callable(family):
        raise ValueError(f"family is {family!r}; it must be a function of the width")


def _split(family, width, example):
    _check_family(family)
    model = family(check_width("width", width))
    if isinstance(model, tuple) and len(model) == 2 and all(callable(part) for part in model):
        return Network(*model), lambda key: {}
    from flax import linen

    if isinstance(model, linen.Module):
        return _from_linen(model, example)
    from flax import nnx

    if callable(model) and not isinstance(model, nnx.Module):
        return _from_nnx(model)
    raise ValueError(
        f"family({width}) returned {type(model).__name__}; it must return a linen module, a pair (init, apply), "
        "or, for NNX, a function of rngs: family = lambda width: lambda rngs: MyModel(width, rngs=rngs)"
    )


def _from_linen(module, example):
    from flax import errors

    if example is None:
        raise ValueError("a linen family needs `example`: one input array, or a tuple of inputs")
    examples = example_inputs(example)

    def init(key):
        return module.init(key, *examples).get("params", {})

    def state(key):
        return {
            name: value for name, value in module.init(key, *examples).items() if name != "params"
        }

    def apply(params, *inputs, state=None, **kwargs):
        try:
            return module.apply({"params": params, **(state or {})}, *inputs, **kwargs)
        except (errors.ScopeCollectionNotFound, errors.ModifyScopeVariableError) as error:
            raise ValueError(
                f"{type(module).__name__} keeps more than parameters: pass state=ntk.initial_state(...) to apply, "
                f'and mutable=["batch_stats"] where it is updated ({str(error).splitlines()[0]})'
            ) from error

    return Network(init, apply), state


def _from_nnx(factory):
    from flax import nnx

    def build(key):
        model = factory(rngs=nnx.Rngs(key))
        if not isinstance(model, nnx.Module):
            raise ValueError(
                f"an NNX family must give an nnx.Module when called with rngs; got {type(model).__name__}"
            )
        return model

    graph, _, rest = nnx.split(nnx.eval_shape(lambda: build(jax.random.key(0))), nnx.Param, ...)
    kept = sorted(named_leaves(nnx.to_pure_dict(rest)))

    def init(key):
        return nnx.to_pure_dict(nnx.state(build(key), nnx.Param))

    def state(key):
        return nnx.to_pure_dict(nnx.split(build(key), nnx.Param, ...)[2])

    def apply(params, *inputs, state=None, mutable=False, **kwargs):
        if kept and not state:
            raise ValueError(
                f"the model keeps {kept} besides its parameters: pass state=ntk.initial_state(...) to apply, "
                "and mutable=True where it is updated"
            )
        model = nnx.merge(graph, params, state or {})
        outputs = model(*inputs, **kwargs)
        if not mutable:
            return outputs
        return outputs, nnx.to_pure_dict(nnx.split(model, nnx.Param, ...)[2])

    return Network(init, apply), state


def example_inputs(example) -> tuple:
    """The example as a tuple of inputs, zeros where it is only a shape."""
    inputs = example if isinstance(example, tuple) else (example,)
    if not any(hasattr(leaf, "shape") for leaf in jax.tree.leaves(inputs)):
        raise TypeError(
            f"example is {example!r}; it must be an input array (or jax.ShapeDtypeStruct), or a tuple of inputs"
        )
    return jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x, inputs
    )


def check_batches(inputs: tuple) -> None:
    """Refuses what is no batch of numbers with a real kernel."""
    for x in inputs:
        dtype = getattr(x, "dtype", None)
        if not hasattr(x, "shape") or dtype is None:
            raise ValueError(
                f"example holds {x!r}; it must be an array (or a tuple of several) whose first axis is the batch"
            )
        if not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)):
            raise TypeError(f"example is an array of {dtype}; it must be of numbers")
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise ValueError(
                f"example is complex ({dtype}); stack real and imaginary parts as channels"
            )
        if 0 in x.shape:
            raise ValueError(
                f"example has shape {x.shape}, an empty axis; give the shape of at least one input"
            )


def path_name(path) -> str:
    """`hidden_0/kernel` of a key path; the same for a dict, an nnx.State and a boxed linen parameter."""
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree, is_leaf=None) -> dict[str, Any]:
    """The leaves of a tree by their path names, in the tree's order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return {path_name(path): leaf for path, leaf in leaves}


def match(name, patterns):
    """The first of the patterns that fits the name (`*` stands for anything, slashes too), or None."""
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)


def width_axes(family, example=None, *, widths=(64, 256), roles=None):
    """Which axes of each parameter go to infinity with the width, as fan-in and fan-out roles.

    Only shapes are computed (`jax.eval_shape`), no array is allocated. Axes are read off shapes and the
    names that Flax gives: `kernel` is (..., in, out), with the heads of `query`, `key`, `value` in the
    fan-out and those of `out` in the fan-in; `bias` and `scale` are vectors; a stack of layers (nn.scan,
    nnx.vmap) has a leading axis in neither fan, one layer for each unit (nn.vmap) a leading axis of units. Other
    matrices are read as (in, out), but for those that only grow in rows and are not called like a readout: they may
    be tables of a few numbers for each unit, and are ambiguous.

    Args:
        family: a function of the width, see `network`.
        example: see `network`.
        widths: two or more widths to compare.
        roles: what names and shapes cannot tell, {pattern of the path: role or (fan_in, fan_out) axes};
            `{"embed/embedding": "tied"}`, `{"*/mix": ((0,), (1, 2))}`. "scalar" leaves a parameter alone.

    Returns:
        A tree like the parameters with ParamAxes as leaves (itself a tuple: map over it with
        `is_leaf=lambda x: isinstance(x, ParamAxes)`).

    Raises:
        ValueError: the trees differ between widths, nothing grows, or a parameter is ambiguous.
    """
    if not isinstance(roles, Mapping | None):
        raise TypeError(f"roles is {roles!r}; it must be {{pattern of the path: role}}")
    roles = dict(roles or {})
    if len(set(widths)) < 2:
        raise ValueError(
            f"widths are {widths}; axes show by comparing at least two different widths"
        )
    key = jax.random.key(0)
    trees = [jax.eval_shape(network(family, width, example).init, key) for width in widths]
    shapes = _compare([named_leaves(tree) for tree in trees], widths)
    _check_patterns(roles, shapes)
    stacked = conventions.stacked(shapes)
    axes = [_param_axes(name, shapes, stacked, roles) for name in shapes]
    return jax.tree.unflatten(jax.tree.structure(trees[0]), axes)


def _compare(leaves, widths):
    """{name: (shape at each width)}, after the checks that the trees are the same and grow."""
    first, width = leaves[0], widths[0]
    for other, at in zip(leaves[1:], widths[1:], strict=True):
        differ = set(first) ^ set(other)
        differ |= {name for name in first if name in other and first[name].ndim != other[name].ndim}
        if differ:
            raise ValueError(
                f"the family's parameters differ between widths {width} and {at}: {sorted(differ)}. "
                "The width may change their sizes, not their number: keep the depth fixed within a family"
            )
    shapes = {name: tuple(tree[name].shape for tree in leaves) for name in first}
    if all(len(set(sizes)) == 1 for sizes in shapes.values()):
        raise ValueError(
            f"no parameter of the family grows between the widths {tuple(widths)}: "
            f"does it use its width? Shapes: { {name: sizes[0] for name, sizes in shapes.items()} }"
        )
    return shapes


def _check_patterns(roles, shapes):
    for pattern, role in roles.items():
        if not isinstance(pattern, str):
            raise TypeError(f"roles: {pattern!r} is no pattern of a path, such as 'embed/*'")
        if not any(fnmatchcase(name, pattern) for name in shapes):
            raise ValueError(f"roles: {pattern!r} matches no parameter; there are {list(shapes)}")
        if isinstance(role, str) and role not in conventions.ROLES:
            raise ValueError(f"roles: {role!r} for {pattern!r} is none of {conventions.ROLES}")


def _param_axes(name, shapes, stacked, roles):
    sizes = shapes[name]
    infinite = tuple(k for k, along in enumerate(zip(*sizes, strict=True)) if len(set(along)) > 1)
    axes = tuple(range(name in stacked, len(sizes[0])))
    pattern = match(name, roles)
    given = roles[pattern] if pattern is not None else None
    if isinstance(given, str):
        fans = _fans_of_role(name, given, axes, infinite)
        return ParamAxes(sizes, infinite, *fans, given)
    fan_in, fan_out = (
        _check_fans(name, given, axes) if given else conventions.fans(name, shapes, axes, infinite)
    )
    grows = (not set(fan_in).isdisjoint(infinite), not set(fan_out).isdisjoint(infinite))
    role = {(0, 0): "scalar", (0, 1): "input", (1, 0): "output", (1, 1): "hidden"}[grows]
    return ParamAxes(sizes, infinite, fan_in, fan_out, role)


def _fans_of_role(name, role, axes, infinite):
    """Fans of a parameter whose role the user names: the growing axes are on the side that the role says."""
    finite = tuple(k for k in axes if k not in infinite)
    needed = {"hidden": 2, "scalar": 0}.get(role, 1)
    if len(infinite) < needed:
        raise ValueError(
            f"roles: {name} has {len(infinite)} axes that grow with the width; {role!r} needs at least {needed}"
        )
    if role == "hidden":
        return tuple(k for k in axes if k != infinite[-1]), infinite[-1:]
    return (infinite, finite) if role == "output" else (finite, infinite)


def _check_fans(name, given, axes):
    try:
        fan_in, fan_out = (tuple(k % (axes[-1] + 1) for k in fan) for fan in given)
    except TypeError:
        raise TypeError(
            f"roles: {given!r} for {name} is neither a role nor a pair (fan_in axes, fan_out axes)"
        ) from None
    if set(fan_in) & set(fan_out) or not set(fan_in + fan_out) <= set(range(axes[-1] + 1)):
        raise ValueError(f"roles: {given} for {name} are not two disjoint groups of its axes")
    return fan_in, fan_out
