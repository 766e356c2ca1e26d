"""A model at one width as a pair of pure functions: of linen, NNX, Equinox, or a pair already.

What the three libraries do differently is here alone: where parameters and what is kept besides them live, what
initialisation is called with, and which axes of a matrix are summed over.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk import jaxprs, show
from ntk.arguments import is_key, shown
from ntk.types import Axes, Family, PRNGKey, PyTree


@show.readable
class Network(NamedTuple):
    """A family at one width.

    Attributes:
        init: `init(key) -> params`; for linen the "params" collection, for NNX the nnx.Param variables as
            nested dicts of arrays, for Equinox the module with all but floating arrays left out. It is the model's
            own initialisation, to the bit.
        apply: `apply(params, *inputs, **kwargs)`; keywords go to the model (`method`, `rngs`, `mutable` of
            linen included). A model that keeps more than parameters (batch statistics, random counts) takes
            that as `state=initial_state(...)`; with `mutable=["batch_stats"]` (linen) or `mutable=True`
            (NNX) it returns `(outputs, new_state)`. An Equinox module, which acts on one example, is mapped over
            the first axis of its inputs.
    """

    init: Callable[[PRNGKey], PyTree]
    apply: Callable[..., Any]


class Model(NamedTuple):
    """A network, and what a model says besides.

    Attributes:
        network: its functions.
        state: `state(key)`, whatever it keeps besides parameters, as a tree; {} for most.
        variables: `variables(key)`, (parameters, state) in one pass, to be traced.
        fans: {path name: (fan_in, fan_out) axes} of parameters whose layer is known to write them otherwise than
            Flax; None if it writes them as Flax does.
    """

    network: Network
    state: Callable[[PRNGKey], dict]
    variables: Callable[[PRNGKey], tuple[PyTree, PyTree]]
    fans: dict | None = None


class Called(NamedTuple):
    """A model whose every call has these keywords."""

    model: Any
    keywords: dict


def called(family: Family, call: Mapping[str, Any] | None) -> Callable:
    """The family, whose models are called with these static keywords at initialisation and ever after.

    Raises:
        TypeError: call is no mapping of names to values.
    """
    check_call(call)
    if not call:
        return family
    check_family(family)
    return lambda width: Called(family(width), dict(call))


def check_call(call: Mapping[str, Any] | None) -> None:
    """Refuses what are no keywords."""
    names = isinstance(call, Mapping | None) and all(isinstance(name, str) for name in call or ())
    if not names:
        raise TypeError(
            f"call is {call!r}; it must be keywords that the model is called with: dict(train=False)"
        )


def check_family(family: Family) -> None:
    """Refuse what is no function of the width, a module at one width among it; nothing is imported for that."""
    classes = {f"{c.__module__.split('.')[0]}.{c.__name__}" for c in type(family).__mro__}
    if classes & {"flax.Module", "equinox.Module"}:
        raise ValueError(
            f"family is a module, {type(family).__name__} at one width; it must be a function of the width: "
            f"lambda width: {type(family).__name__}(width)"
        )
    refuse_layer("family is", family)
    if not callable(family):
        raise ValueError(f"family is {shown(family)}; it must be a function of the width")


def refuse_layer(words: str, value: Any) -> None:
    """Refuses a triple of `stax` in place of a model or of a family, or its kernel."""
    triple = isinstance(value, tuple) and len(value) == 3 and all(map(callable, value))
    if triple or type(value).__name__ == "KernelFn":
        raise ValueError(
            f"{words} {'a layer of stax, (init_fn, apply_fn, kernel_fn)' if triple else 'a kernel_fn'}: it has its "
            "infinite-width kernel already, kernel_fn(x1, x2, 'ntk'). A family is a function of the width that returns "
            "a finite model: family = lambda width: MyModel(width)"
        )


def read(model: Any, width: int, example: Any) -> Model:
    """The functions of what a family returned at a width."""
    model, call = model if isinstance(model, Called) else (model, {})
    refuse_layer(f"family({width}) returned", model)
    if isinstance(model, tuple) and len(model) == 2 and all(callable(part) for part in model):
        init, apply = model
        return Model(
            Network(init, _with_keywords(apply, call)), lambda key: {}, lambda key: (init(key), {})
        )
    named = _keywords(model)
    if "key" in named and "rngs" not in named:
        return _from_equinox(model, call)
    from flax import linen

    if isinstance(model, linen.Module):
        return _from_linen(model, example, call)
    if (
        callable(model)
        and not _is_module_of("flax.nnx", model)
        and not _is_module_of("equinox", model)
    ):
        return _from_nnx(model, call)
    raise ValueError(
        f"family({width}) returned {type(model).__name__}; it must return a linen module, a pair (init, apply), "
        "for NNX a function of rngs: family = lambda width: lambda rngs: MyModel(width, rngs=rngs), or for Equinox "
        "a function of the key: lambda width: lambda key: MyModel(width, key=key)"
    )


def _with_keywords(apply: Callable, call: dict) -> Callable:
    if not call:
        return apply

    @functools.wraps(apply)  # its signature tells whether it takes several inputs as one tuple
    def called(*args: Any, **kwargs: Any) -> Any:
        return apply(*args, **{**call, **kwargs})

    return called


def _keywords(model: Any) -> frozenset[str]:
    """Names of the arguments of a factory; none for a module, which is called with inputs."""
    if not inspect.isroutine(model) and not hasattr(model, "func"):
        return frozenset()
    try:
        return frozenset(inspect.signature(model).parameters)
    except (TypeError, ValueError):
        return frozenset()


def _from_linen(module: Any, example: Any, call: dict) -> Model:
    from flax import errors

    if example is None:
        raise ValueError("a linen family needs `example`: one input array, or a tuple of inputs")
    examples = example_inputs(example)
    at_start = {k: v for k, v in call.items() if k not in ("rngs", "mutable")}

    def variables(key: PRNGKey) -> tuple[PyTree, dict]:
        found = module.init(key, *examples, **at_start)
        return found.get("params", {}), {k: v for k, v in found.items() if k != "params"}

    def init(key: PRNGKey) -> PyTree:
        return variables(key)[0]

    def state(key: PRNGKey) -> dict:
        # Only what it depends on is run: statistics that start at 0 and 1 need no forward pass.
        program, shapes = jax.make_jaxpr(lambda k: variables(k)[1], return_shape=True)(key)
        leaves = jaxprs.evaluate(jaxprs.living(program), [key], lambda *_: None)
        tree = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
        return jax.tree.map(lambda s, x: x if is_key(s) else jnp.asarray(x, s.dtype), shapes, tree)

    def apply(params: PyTree, *inputs: Any, state: PyTree | None = None, **kwargs: Any) -> Any:
        try:
            return module.apply({"params": params, **(state or {})}, *inputs, **{**call, **kwargs})
        except (errors.ScopeCollectionNotFound, errors.ModifyScopeVariableError) as error:
            raise ValueError(
                f"{type(module).__name__} keeps more than parameters: pass state=ntk.initial_state(...) to apply, "
                f'and mutable=["batch_stats"] where it is updated ({str(error).splitlines()[0]})'
            ) from error

    return Model(Network(init, apply), state, variables)


def _from_nnx(factory: Callable, call: dict) -> Model:
    from flax import nnx

    def build(key: PRNGKey) -> Any:
        model = factory(rngs=nnx.Rngs(key))
        if not isinstance(model, nnx.Module):
            raise ValueError(
                f"an NNX family must give an nnx.Module when called with rngs; got {type(model).__name__}"
            )
        return model

    graph, *states = nnx.split(nnx.eval_shape(lambda: build(jax.random.key(0))), nnx.Param, ...)
    kept = sorted(named_leaves(nnx.to_pure_dict(states[-1])))

    def init(key: PRNGKey) -> PyTree:
        return nnx.to_pure_dict(nnx.state(build(key), nnx.Param))

    def variables(key: PRNGKey) -> tuple[PyTree, dict]:
        parts: Any = nnx.split(build(key), nnx.Param, ...)
        _, params, rest = parts
        return nnx.to_pure_dict(params), nnx.to_pure_dict(rest)

    def state(key: PRNGKey) -> dict:
        return variables(key)[1]

    def apply(
        params: PyTree,
        *inputs: Any,
        state: PyTree | None = None,
        mutable: Any = False,
        **kwargs: Any,
    ) -> Any:
        if kept and not state:
            raise ValueError(
                f"the model keeps {kept} besides its parameters: pass state=ntk.initial_state(...) to apply, "
                "and mutable=True where it is updated"
            )
        model = nnx.merge(graph, params, state or {})
        outputs = model(*inputs, **{**call, **kwargs})
        if not mutable:
            return outputs
        return outputs, nnx.to_pure_dict(nnx.split(model, nnx.Param, ...)[-1])

    return Model(Network(init, apply), state, variables)


def _is_module_of(library: str, model: Any) -> bool:
    """By the names of its classes: importing flax.nnx (IPython among it) takes longer than reading a linen model."""
    return any(
        c.__name__ == "Module" and c.__module__.startswith(library) for c in type(model).__mro__
    )


def _is_parameter(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and jnp.issubdtype(getattr(leaf, "dtype", object), jnp.floating)


def _from_equinox(factory: Callable, call: dict) -> Model:
    import equinox as eqx

    def build(key: PRNGKey) -> Any:
        model = factory(key=key)
        if not _is_module_of("equinox", model):
            raise ValueError(
                f"an Equinox family must give an eqx.Module when called with key; got {type(model).__name__}"
            )
        return model

    def arrays(model: Any) -> Any:
        return eqx.filter(model, lambda leaf: hasattr(leaf, "dtype") and not _is_parameter(leaf))

    whole = eqx.filter_eval_shape(build, jax.random.key(0))
    static = eqx.filter(whole, lambda leaf: not hasattr(leaf, "dtype"))
    kept = sorted(named_leaves(arrays(whole)))

    def init(key: PRNGKey) -> PyTree:
        return eqx.filter(build(key), _is_parameter)

    def state(key: PRNGKey) -> PyTree:
        return arrays(build(key)) if kept else {}

    def variables(key: PRNGKey) -> tuple[PyTree, PyTree]:
        return init(key), state(key)

    def apply(params: PyTree, *inputs: Any, state: PyTree | None = None, **kwargs: Any) -> Any:
        if kept and not state:
            raise ValueError(
                f"the model keeps {kept} besides its parameters: pass state=ntk.initial_state(...) to apply"
            )
        model = eqx.combine(params, state or static, static)
        axes = tuple(0 if jnp.ndim(x) else None for x in inputs)
        return jax.vmap(lambda *x: model(*x, **{**call, **kwargs}), axes)(*inputs)

    return Model(Network(init, apply), state, variables, _equinox_fans(whole))


_LEADING_OUTPUTS = {"weight": 2, "weight_ih": 2, "weight_hh": 2, "bias": 1, "bias_n": 1}


def _equinox_fans(model: Any) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Fans of the layers of `equinox.nn`, whose matrices are (out, in) and whose kernels are (out, in, *window)."""
    import equinox as eqx

    nn = eqx.nn
    matrices = (nn.Linear, nn.Conv, nn.ConvTranspose, nn.GRUCell, nn.LSTMCell)
    vectors = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU)
    kinds = (*matrices, *vectors, nn.Embedding)
    found = {}
    for path, layer in jax.tree_util.tree_leaves_with_path(
        model, is_leaf=lambda m: isinstance(m, kinds)
    ):
        if not isinstance(layer, kinds):
            continue
        for name, leaf in named_leaves(layer).items():
            rank, space = leaf.ndim, getattr(layer, "num_spatial_dims", 0)
            # Axes of one layer; what there is before them was put there by a vmap.
            own = 1 if isinstance(layer, vectors) else 2
            if isinstance(layer, matrices):
                own = _LEADING_OUTPUTS[name] + space
            if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
                own = len(layer.shape)
            stack = rank - own  # layers made by vmap have an axis before their own
            axes = tuple(range(stack, rank))
            fans: tuple[Axes, Axes] = ((), axes)
            if isinstance(layer, nn.Embedding):
                fans = (axes[:1], axes[1:])
            elif isinstance(layer, matrices) and name.startswith("weight"):
                fans = (axes[1:], axes[:1])
            found[f"{path_name(path)}/{name}" if path else name] = fans
    return found


def example_inputs(example: Any) -> tuple:
    """The example as a tuple of inputs, zeros (or a fixed key) where it is only a shape."""
    inputs = example if isinstance(example, tuple) else (example,)
    if not any(hasattr(leaf, "shape") for leaf in jax.tree.leaves(inputs)):
        raise TypeError(
            f"example is {example!r}; it must be an input array (or jax.ShapeDtypeStruct), or a tuple of inputs"
        )
    return jax.tree.map(_filled, inputs)


def _filled(x: Any) -> Any:
    if not isinstance(x, jax.ShapeDtypeStruct):
        return x
    if is_key(x):
        return jax.random.split(jax.random.key(0), x.shape) if x.shape else jax.random.key(0)
    return jax.device_put(np.zeros(x.shape, x.dtype))  # jnp.zeros is compiled for every shape


def path_name(path: tuple) -> str:
    """`hidden_0/kernel` of a key path; the same for a dict, an nnx.State and a boxed linen parameter."""
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: PyTree, is_leaf: Callable | None = None) -> dict[str, Any]:
    """The leaves of a tree by their path names, in the tree's order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return {path_name(path): leaf for path, leaf in leaves}
