"""A family of networks indexed by its width, and the parameter axes that go to infinity with it.

A family is a function of the width that returns one of

- a linen module: `lambda width: MLP(width)`;
- an NNX factory, called with the keyword `rngs`: `lambda width: lambda rngs: MLP(width, rngs=rngs)`;
- an Equinox factory, called with the keyword `key`: `lambda width: lambda key: MLP(width, key=key)`;
- a pair of plain functions `(init, apply)`, with `init(key) -> params`.

A family may change the size of its parameters with the width, not their number. Parameters are named by
their path in the tree, `hidden_0/kernel`. Several inputs are a tuple wherever a batch or an example is asked for, and
the model gets each by itself. Static keywords of the model's call are `call=dict(train=False)`.
"""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ntk import conventions, jaxprs, model, show
from ntk.arguments import is_integer, is_key
from ntk.model import Network as Network
from ntk.model import called as called
from ntk.model import example_inputs as example_inputs
from ntk.model import named_leaves as named_leaves
from ntk.model import path_name as path_name
from ntk.trace import sharing
from ntk.types import Axes, Family, PRNGKey, PyTree


@show.readable
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

    def fans(self, index: int = -1) -> tuple[int, int]:
        """(fan_in, fan_out) as numbers, at the width of that index."""
        shape = self.shapes[index]
        return math.prod(shape[k] for k in self.fan_in), math.prod(shape[k] for k in self.fan_out)


def network(
    family: Family, width: int, example: Any = None, *, call: Mapping[str, Any] | None = None
) -> Network:
    """The family at one width, as a pair of pure functions.

    Args:
        family: a function of the width, see the module's first lines.
        width: a positive integer.
        example: what a linen model is called with at initialisation: one array (or jax.ShapeDtypeStruct), or
            a tuple of several inputs. The others do not need it.
        call: static keywords of every call of the model, at initialisation too: `dict(train=False)`.

    Raises:
        ValueError: the family is none of the four kinds, or a linen family comes without an example.
    """
    return _model(family, width, example, call).network


def initial_state(
    family: Family, width: int, example: Any, key: PRNGKey, *, call: Mapping[str, Any] | None = None
) -> dict:
    """Whatever the model keeps besides parameters, as a tree: {} for most models.

    Linen: all collections but "params", for instance {"batch_stats": ...}. NNX: all variables but nnx.Param. Equinox:
    arrays that are not of floating numbers.
    """
    return _model(family, width, example, call).state(key)


class Initialised(NamedTuple):
    """A family at one width, its initialisation traced and not run.

    Attributes:
        model: the functions.
        program: the program of `init`, in which equal modules share parameters.
        shapes: what it returns, a tree of jax.ShapeDtypeStruct.
        state: shapes of what the model keeps besides parameters.
    """

    model: model.Model
    program: jaxprs.Program
    shapes: PyTree
    state: PyTree


def initialised(
    family: Family, width: int, example: Any, call: Mapping[str, Any] | None = None
) -> Initialised:
    """The family at one width as `Initialised`; arguments as of `network`."""
    made, key = _model(family, width, example, call), jax.eval_shape(jax.random.key, 0)
    whole, (shapes, state) = sharing.jaxpr_of(made.variables, key, return_shape=True)
    jaxpr, consts = jaxprs.program_of(whole)
    outvars = jaxpr.outvars[: len(jax.tree.leaves(shapes))]
    return Initialised(made, jaxprs.Program(jaxpr.replace(outvars=outvars), consts), shapes, state)


def _model(
    family: Family, width: int, example: Any, call: Mapping[str, Any] | None = None
) -> model.Model:
    model.check_family(family)
    made = called(family, call)(check_width("width", width))
    return model.read(made, width, example)


def check_width(name: str, width: Any) -> int:
    """The width as an int; ValueError unless it is a positive integer."""
    if not is_integer(width) or operator.index(width) < 1:
        raise ValueError(f"{name} is {width!r}; it must be a positive integer")
    return operator.index(width)


def check_batches(inputs: tuple) -> None:
    """Refuses what is no batch of numbers with a real kernel."""
    for x in inputs:
        dtype = getattr(x, "dtype", None)
        if not hasattr(x, "shape") or dtype is None:
            raise ValueError(
                f"example holds {x!r}; it must be an array (or a tuple of several) whose first axis is the batch"
            )
        if is_key(x):
            raise ValueError(
                "example holds a PRNG key, and a kernel is of a network that draws nothing when it is called: leave "
                "the key out, and switch off what draws: call=dict(deterministic=True), call=dict(train=False), "
                "call=dict(key=None), as the model has it"
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


def match(name: str, patterns: Iterable[str]) -> str | None:
    """The first of the patterns that fits the name (`*` stands for anything, slashes too), or None."""
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)


def width_axes(
    family: Family,
    example: Any = None,
    *,
    widths: Sequence[int] = (64, 256),
    roles: Mapping[str, Any] | None = None,
    call: Mapping[str, Any] | None = None,
) -> PyTree:
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
        call: static keywords of the model's call, see `network`.

    Returns:
        A tree like the parameters with ParamAxes as leaves (itself a tuple: map over it with
        `is_leaf=lambda x: isinstance(x, ParamAxes)`).

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import linen as nn
        >>> import ntk
        >>> family = lambda n: nn.Sequential([nn.Dense(n), nn.relu, nn.Dense(n), nn.relu, nn.Dense(3)])
        >>> axes = ntk.width_axes(family, jnp.ones((1, 4)))
        >>> [axes[f"layers_{k}"]["kernel"].role for k in (0, 2, 4)]
        ['input', 'hidden', 'output']

    Raises:
        ValueError: the trees differ between widths, nothing grows, or a parameter is ambiguous.
    """
    if len(set(widths)) < 2:
        raise ValueError(
            f"widths are {widths}; axes show by comparing at least two different widths"
        )
    made = {width: initialised(family, width, example, call) for width in dict.fromkeys(widths)}
    return axes_of(made, widths, roles)


def axes_of(
    made: Mapping[int, Initialised], widths: Sequence[int], roles: Mapping[str, Any] | None
) -> PyTree:
    """`width_axes` of a family that is initialised at these widths."""
    if not isinstance(roles, Mapping | None):
        raise TypeError(f"roles is {roles!r}; it must be {{pattern of the path: role}}")
    roles = dict(roles or {})
    shapes = _compare([named_leaves(made[width].shapes) for width in widths], widths)
    _check_patterns(roles, shapes)
    stacked, first = conventions.stacked(shapes), made[widths[0]]
    axes = [_param_axes(name, shapes, stacked, roles, first.model.fans) for name in shapes]
    return jax.tree.unflatten(jax.tree.structure(first.shapes), axes)


def _compare(leaves: list[dict[str, Any]], widths: Sequence[int]) -> conventions.Shapes:
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


def _check_patterns(roles: dict[str, Any], shapes: conventions.Shapes) -> None:
    for pattern, role in roles.items():
        if not isinstance(pattern, str):
            raise TypeError(f"roles: {pattern!r} is no pattern of a path, such as 'embed/*'")
        if not any(fnmatchcase(name, pattern) for name in shapes):
            raise ValueError(f"roles: {pattern!r} matches no parameter; there are {list(shapes)}")
        if isinstance(role, str) and role not in conventions.ROLES:
            raise ValueError(f"roles: {role!r} for {pattern!r} is none of {conventions.ROLES}")


def _param_axes(
    name: str,
    shapes: conventions.Shapes,
    stacked: set[str],
    roles: dict[str, Any],
    known: Mapping[str, tuple[Axes, Axes]] | None,
) -> ParamAxes:
    sizes = shapes[name]
    infinite = tuple(k for k, along in enumerate(zip(*sizes, strict=True)) if len(set(along)) > 1)
    # The first axis of a stack counts layers, and is in neither fan.
    axes = tuple(range(name in stacked, len(sizes[0])))
    pattern = match(name, roles)
    given = roles[pattern] if pattern is not None else None
    if isinstance(given, str):
        fans = _fans_of_role(name, given, axes, infinite)
        return ParamAxes(sizes, infinite, *fans, given)
    if given:
        fan_in, fan_out = _check_fans(name, given, axes)
    elif known is not None and name in known:
        fan_in, fan_out = known[name]
    else:
        fan_in, fan_out = conventions.fans(name, shapes, axes, infinite, flax=known is None)
    grows = (not set(fan_in).isdisjoint(infinite), not set(fan_out).isdisjoint(infinite))
    role = {(0, 0): "scalar", (0, 1): "input", (1, 0): "output", (1, 1): "hidden"}[grows]
    return ParamAxes(sizes, infinite, fan_in, fan_out, role)


def _fans_of_role(name: str, role: str, axes: Axes, infinite: Axes) -> tuple[Axes, Axes]:
    """Fans of a parameter whose role the user names: the growing axes are on the side that the role says."""
    finite = tuple(k for k in axes if k not in infinite)
    needed = {"hidden": 2, "scalar": 0}.get(role, 1)
    if len(infinite) < needed:
        raise ValueError(
            f"roles: {name} has {len(infinite)} axes that grow with the width; {role!r} needs at least {needed}"
        )
    # With several growing axes the last is the fan-out, as in (..., in, out).
    if role == "hidden":
        return tuple(k for k in axes if k != infinite[-1]), infinite[-1:]
    return (infinite, finite) if role == "output" else (finite, infinite)


def _check_fans(name: str, given: Any, axes: Axes) -> tuple[Axes, Axes]:
    try:
        fan_in, fan_out = (tuple(k % (axes[-1] + 1) for k in fan) for fan in given)
    except TypeError:
        raise TypeError(
            f"roles: {given!r} for {name} is neither a role nor a pair (fan_in axes, fan_out axes)"
        ) from None
    if set(fan_in) & set(fan_out) or not set(fan_in + fan_out) <= set(range(axes[-1] + 1)):
        raise ValueError(f"roles: {given} for {name} are not two disjoint groups of its axes")
    return fan_in, fan_out
