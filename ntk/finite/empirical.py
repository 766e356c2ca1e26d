"""Kernels of one finite network: empirical NTK, empirical NNGP, and products with the NTK.

For a function ``f(params, x)`` the NTK is ``sum_w (d f(x1) / d w) (d f(x2) / d w)^T`` over all
parameters w, and the NNGP is ``f(x1) f(x2)^T``. Any JAX function and any parameter pytree will do.

One file: four functions of the same arguments, mostly documentation; `ntk.finite.contraction` does the work.

Source: Jacot et al. 2018 (arXiv 1806.07572), equation 3; Novak et al. 2022 (arXiv 2206.08720) for its computation.
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ntk import arguments, show
from ntk.finite import contraction
from ntk.finite.linearize import pushforward
from ntk.finite.output_axes import arrange, output_axes
from ntk.model import check_call
from ntk.types import KernelOfParams, KernelsByName, Out, PyTree


class NtkImplementation(enum.IntEnum):
    """How the empirical NTK is computed; the result is the same, cost and memory are not.

    Attributes:
        AUTO: per weight the cheapest contraction: layers' factors where the weight enters once
            through a known operation, and otherwise its Jacobian.
        JACOBIAN_CONTRACTION: the Jacobian of every weight, contracted.
        NTK_VECTOR_PRODUCTS: a product with the NTK for every output; no Jacobian is stored.
        STRUCTURED_DERIVATIVES: the same as AUTO, under neural-tangents's name.
    """

    AUTO = 0
    JACOBIAN_CONTRACTION = 1
    NTK_VECTOR_PRODUCTS = 2
    STRUCTURED_DERIVATIVES = 3


def empirical_ntk(
    apply: Callable[..., Out],
    params: PyTree,
    x1: PyTree,
    x2: PyTree | None = None,
    *,
    trace_axes: tuple[int, ...] = (),
    diagonal_axes: tuple[int, ...] = (),
    vmap_axes: Any = 0,
    implementation: NtkImplementation | int | str = NtkImplementation.AUTO,
    call: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Out:
    """Empirical NTK between two batches whose examples do not interact.

    Args:
        apply: ``apply(params, x, **kwargs) -> outputs``; arrays or pytrees. Give the same function
            object in every call: the compiled kernel is kept with it. Of a tuple of inputs, ``apply(params, *x)``,
            unless it takes one input only.
        params: pytree of floating-point parameters; of Flax's variables the "params" only.
        x1: inputs, examples along axis 0.
        x2: other inputs, None for x1 itself: half of the kernel is then computed and mirrored.
        trace_axes: output axes (of ``apply``'s result, batch axis included) over which the kernel is
            averaged: the trace over each pair of axes, divided by its size.
        diagonal_axes: output axes of which only the diagonal is kept.
        vmap_axes: axis of the examples in inputs and outputs; None where examples interact
            (batch normalisation), at the cost of one backward pass over the batch per output entry. Whether they
            do is tried on up to four examples, wherever inputs and parameters have values (not inside jit).
        implementation: see :class:`NtkImplementation`; also its name in lower case.
        call: static keywords of the model's call, ``dict(train=False)``; as elsewhere in this library.
        **kwargs: passed to apply; the tuple ``(a, b)`` gives a for x1 and b for x2.

    Returns:
        The kernel: every output axis appears twice, side by side; traced axes not at all, diagonal
        axes once. So outputs (n1, k) and (n2, k) give (n1, n2, k, k). A pytree if apply returns one.

    Example:
        >>> import jax.numpy as jnp
        >>> import ntk
        >>> x = jnp.array([[1.0, 2.0], [3.0, 0.0]])
        >>> theta = ntk.empirical_ntk(lambda w, x: x @ w, jnp.zeros((2, 1)), x, trace_axes=(-1,))
        >>> theta.tolist()  # of a linear model x x^T
        [[5.0, 3.0], [3.0, 9.0]]

    Raises:
        TypeError: apply is no function, an axis no integer, an input no array of numbers.
        ValueError: complex or missing inputs or parameters, an empty batch, axes out of range or
            both traced and diagonal, shapes that differ along such an axis, unknown implementation; examples that
            interact, though vmap_axes says they do not; variables that are no parameters.

    Source: Jacot et al. 2018 (arXiv 1806.07572), equation 3; Novak et al. 2022 (arXiv 2206.08720).
    """
    arguments.refuse_unread("empirical_ntk", empirical_ntk, apply, kwargs)
    fn = empirical_ntk_fn(apply, trace_axes, diagonal_axes, vmap_axes, implementation)
    check_call(call)
    same = {name: (value, value) for name, value in (call or {}).items()}
    return fn(x1, x2, params, **same, **kwargs)


def empirical_ntk_fn(
    f: Callable[..., Out],
    trace_axes: tuple[int, ...] = (-1,),
    diagonal_axes: tuple[int, ...] = (),
    vmap_axes: Any = None,
    implementation: NtkImplementation | int | str = NtkImplementation.AUTO,
) -> KernelOfParams[Out]:
    """Returns ``ntk_fn(x1, x2, params, **kwargs)``, with neural-tangents's arguments and results.

    Args:
        f: ``f(params, x, **kwargs) -> outputs``; arrays or pytrees.
        trace_axes: output axes over which the kernel is averaged.
        diagonal_axes: output axes of which only the diagonal is kept.
        vmap_axes: axis of the examples in inputs and outputs, or a triple (inputs, outputs, kwargs)
            of axes or pytrees of axes. None: examples may interact, and every output entry costs a
            backward pass over the whole batch. Give 0 wherever examples do not interact.
        implementation: see :class:`NtkImplementation`.

    Returns:
        ``ntk_fn(x1, x2, params, **kwargs)``; x2 is None for x1. Parameters are its arguments, so it
        compiles once per shape. Cross-terms between several outputs are left out.

    Raises:
        ValueError: see :func:`empirical_ntk`.
    """
    settings = _Settings(
        arguments.hashable(f),
        arguments.as_axes(trace_axes),
        arguments.as_axes(diagonal_axes),
        _implementation(implementation),
    )

    def ntk_fn(x1: PyTree, x2: PyTree | None, params: PyTree, **kwargs: Any) -> PyTree:
        arguments.check_inputs(x1, x2, params)
        kwargs1, kwargs2 = arguments.split_kwargs(kwargs, x2)
        axes = arguments.map_axes(vmap_axes, x1, kwargs1)
        arrays1, static1 = arguments.partition((x1, kwargs1))
        own = settings._replace(f=arguments.spread(settings.f, x1, kwargs))
        with arguments.explained(own.f, params, x1=(x1, kwargs1), x2=(x2, kwargs2)):
            _check_apart(own.f, axes, static1, arrays1, params)
            if x2 is None:
                return _ntk(own, axes, static1, None, arrays1, None, params)
            arrays2, static2 = arguments.partition((x2, kwargs2))
            _check_apart(own.f, axes, static2, arrays2, params)
            return _ntk(own, axes, static1, static2, arrays1, arrays2, params)

    return ntk_fn


def empirical_nngp_fn(
    f: Callable[..., Out], trace_axes: tuple[int, ...] = (-1,), diagonal_axes: tuple[int, ...] = ()
) -> KernelOfParams[Out]:
    """Returns ``nngp_fn(x1, x2, params, **kwargs)``: outer product of the network's outputs.

    Args:
        f: ``f(params, x, **kwargs) -> outputs``; arrays or pytrees.
        trace_axes: output axes over which the kernel is averaged.
        diagonal_axes: output axes of which only the diagonal is kept.

    Raises:
        ValueError: see :func:`empirical_ntk`.
    """
    f = arguments.hashable(f)
    trace_axes, diagonal_axes = arguments.as_axes(trace_axes), arguments.as_axes(diagonal_axes)

    def nngp_fn(x1: PyTree, x2: PyTree | None, params: PyTree, **kwargs: Any) -> PyTree:
        arguments.check_inputs(x1, x2, params)
        kwargs1, kwargs2 = arguments.split_kwargs(kwargs, x2)
        fn = arguments.spread(f, x1, kwargs)
        with arguments.explained(fn, params, x1=(x1, kwargs1), x2=(x2, kwargs2)):
            out1 = fn(params, x1, **kwargs1)
            out2 = out1 if x2 is None else fn(params, x2, **kwargs2)

        def outer(y1: jax.Array, y2: jax.Array) -> jax.Array:
            axes = output_axes(y1.shape, y2.shape, trace_axes, diagonal_axes, None)
            order = axes.trace + axes.diagonal + axes.rest
            sizes = [math.prod(y1.shape[a] for a in group) for group in axes[:2]]
            # f f^T, as sums over traced axes of products of entries, for each diagonal entry.
            rows, columns = (y.transpose(order).reshape(*sizes, -1) for y in (y1, y2))
            kernel = contraction.dot("tgr,tgq->grq", rows, columns)
            return arrange(kernel, y1.shape, y2.shape, axes)

        return jax.tree.map(outer, out1, out2)

    return nngp_fn


def empirical_kernel_fn(
    f: Callable[..., Out],
    trace_axes: tuple[int, ...] = (-1,),
    diagonal_axes: tuple[int, ...] = (),
    vmap_axes: Any = None,
    implementation: NtkImplementation | int | str = NtkImplementation.AUTO,
) -> KernelsByName[Out]:
    """Returns ``kernel_fn(x1, x2, get, params, **kwargs)`` for NNGP and NTK by name.

    Args:
        f: ``f(params, x, **kwargs) -> outputs``; arrays or pytrees.
        trace_axes: output axes over which the kernels are averaged.
        diagonal_axes: output axes of which only the diagonal is kept.
        vmap_axes: see :func:`empirical_ntk_fn`; of the NTK only.
        implementation: see :class:`NtkImplementation`; of the NTK only.

    Returns:
        A function whose ``get`` is ``"nngp"``, ``"ntk"``, a tuple of these, or None for both; a
        tuple gives an ``EmpiricalKernel`` named tuple.

    Raises:
        ValueError: see :func:`empirical_ntk`; unknown name in ``get``.
    """
    fns = {
        "nngp": empirical_nngp_fn(f, trace_axes, diagonal_axes),
        "ntk": empirical_ntk_fn(f, trace_axes, diagonal_axes, vmap_axes, implementation),
    }

    def kernel_fn(
        x1: PyTree,
        x2: PyTree | None,
        get: str | tuple[str, ...] | None,
        params: PyTree,
        **kwargs: Any,
    ) -> Any:
        if get is not None and not isinstance(get, str | tuple | list):
            raise TypeError(f"get is {get!r}; it must be 'nngp', 'ntk', a tuple of these, or None")
        get = arguments.lower(get)
        names = ("nngp", "ntk") if get is None else (get,) if isinstance(get, str) else get
        for name in names:
            if name not in fns:
                raise ValueError(f"get has {name!r}; there are 'nngp' and 'ntk'")
        kernels = [fns[name](x1, x2, params, **kwargs) for name in names]
        if isinstance(get, str):
            return kernels[0]
        return jax.tree.map(lambda *k: show.bundle("EmpiricalKernel", tuple(names))(*k), *kernels)

    return kernel_fn


def empirical_ntk_vp_fn(
    f: Callable[..., Out], x1: PyTree, x2: PyTree | None, params: PyTree, **kwargs: Any
) -> Callable[[Out], Out]:
    """Returns ``ntk_vp(v) = NTK(x1, x2) v`` without the NTK: one backward and one forward pass.

    Args:
        f: ``f(params, x, **kwargs) -> outputs``.
        x1: inputs of the kernel's rows.
        x2: inputs of its columns; None for x1.
        params: pytree of parameters.
        **kwargs: passed to f; the tuple ``(a, b)`` gives a for x1 and b for x2.

    Returns:
        A function of a pytree shaped as ``f(params, x2)``, giving one shaped as ``f(params, x1)``.

    Source: Novak et al. 2022 (arXiv 2206.08720), appendix L.
    """
    f = arguments.spread(arguments.hashable(f), x1, kwargs)
    arguments.check_inputs(x1, x2, params)
    kwargs1, kwargs2 = arguments.split_kwargs(kwargs, x2)
    floats, rebuild = arguments.split_params(params)

    def ntk_vp_fn(cotangents: Out) -> Out:
        x2_ = x1 if x2 is None else x2
        outputs, pullback = jax.vjp(lambda p: f(rebuild(p), x2_, **kwargs2), floats)
        _check_cotangents(cotangents, outputs)
        # J1 (J2^T v): the kernel itself is never there.
        tangents = pullback(cotangents)[0]
        return pushforward(lambda p: f(rebuild(p), x1, **kwargs1), floats, tangents)[1]

    return ntk_vp_fn


def _check_cotangents(given: PyTree, outputs: PyTree) -> None:
    shapes = [jax.tree.map(lambda y: tuple(jnp.shape(y)), tree) for tree in (given, outputs)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the vector has shapes {shapes[0]}; it must be shaped as f(params, x2), {shapes[1]}"
        )


def _check_apart(
    f: Callable, axes: arguments.MapAxes, static: tuple, arrays: list, params: PyTree
) -> None:
    """Refuses examples that interact: f of a few of them is not f of each."""
    sizes = {v.shape[a] for v, a in zip(arrays, axes.arrays) if a is not None}
    if len(sizes) > 1:
        raise ValueError(
            f"the inputs have {sorted(sizes)} examples; all need the same number of them"
        )
    traced = any(isinstance(v, jax.core.Tracer) for v in jax.tree.leaves((arrays, params)))
    if traced or not sizes or sizes == {1}:
        return
    few = [
        v if a is None else jax.lax.slice_in_dim(jnp.asarray(v), 0, min(v.shape[a], _TRIED), axis=a)
        for v, a in zip(arrays, axes.arrays)
    ]
    # Sizes of batches take different roads through coarse products: here they must agree.
    with jax.default_matmul_precision("highest"):
        gap = float(_interaction(f, axes, static, few, params))
    if gap > 1:
        raise ValueError(
            "examples interact: f(x)[:1] is not f(x[:1]), as with batch normalisation in training mode or random "
            "numbers drawn for a whole batch; with vmap_axes=None the kernel is that of f itself"
        )


_TRIED = 4  # examples


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _interaction(
    f: Callable, axes: arguments.MapAxes, static: tuple, arrays: list, params: PyTree
) -> jax.Array:
    """Largest difference between f of the examples together and apart, in units of what rounding explains."""
    floats, rebuild = arguments.split_params(params)
    together = jax.tree.leaves(_outputs(f, rebuild, static, floats, arrays))
    examples = arguments.broadcast(axes.outputs, len(together))
    one = functools.partial(_example, f, rebuild, static, axes.arrays, examples)
    apart = contraction.Network(one, floats, arrays, axes.arrays).map(lambda a: one(floats, a))

    def gap(y: jax.Array, z: jax.Array, axis: int | None) -> jax.Array:
        z = z if axis is None else jnp.moveaxis(z, 0, axis)
        if y.shape != z.shape:
            raise ValueError(
                f"f gives outputs of shape {y.shape} for examples together and {z.shape} for each: name the axis of "
                "the examples in vmap_axes, or use vmap_axes=None"
            )
        # Room for sums in another order: ten thousand roundings, and a tenth in half precision.
        eps = min(0.1, 1e4 * float(jnp.finfo(y.dtype).eps))
        return jnp.max(jnp.abs(y - z)) / (eps * jnp.max(jnp.abs(y)) + jnp.finfo(y.dtype).tiny)

    _check_real(together)
    return jnp.max(jnp.stack(list(map(gap, together, apart, examples))).astype(jnp.float32))


def _check_real(outputs: list) -> None:
    for y in outputs:
        if not jnp.issubdtype(y.dtype, jnp.floating):
            raise ValueError(f"f returns {y.dtype}; the NTK is of real floating-point outputs")


class _Settings(NamedTuple):
    f: Callable
    trace_axes: tuple[int, ...]
    diagonal_axes: tuple[int, ...]
    implementation: NtkImplementation


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _ntk(
    settings: _Settings,
    axes: arguments.MapAxes,
    static1: tuple,
    static2: tuple | None,
    arrays1: list,
    arrays2: list | None,
    params: PyTree,
) -> PyTree:
    """Compiled once per function, shapes and settings; everything that has values is an argument."""
    floats, rebuild = arguments.split_params(params)
    second = static1 if static2 is None else static2
    other = arrays1 if arrays2 is None else arrays2
    shapes1, shapes2 = (
        jax.eval_shape(functools.partial(_outputs, settings.f, rebuild, s), floats, arrays)
        for s, arrays in ((static1, arrays1), (second, other))
    )
    leaves1, tree = jax.tree.flatten(shapes1)
    leaves2 = jax.tree.leaves(shapes2)
    examples = arguments.broadcast(axes.outputs, len(leaves1))
    outputs = [
        output_axes(y1.shape, y2.shape, settings.trace_axes, settings.diagonal_axes, example)
        for y1, y2, example in zip(leaves1, leaves2, examples)
    ]
    _check_real(leaves1)
    one, two = (
        contraction.Network(
            functools.partial(_example, settings.f, rebuild, s, axes.arrays, examples),
            floats,
            arrays,
            axes.arrays,
        )
        for s, arrays in ((static1, arrays1), (second, other))
    )
    columns = None if arrays2 is None else two
    if settings.implementation == NtkImplementation.NTK_VECTOR_PRODUCTS:
        kernels = contraction.by_products(one, columns, outputs)
    else:
        use_layers = settings.implementation != NtkImplementation.JACOBIAN_CONTRACTION
        kernels = contraction.by_jacobians(one, columns, outputs, use_layers)
    return tree.unflatten(
        arrange(k, y1.shape, y2.shape, a)
        for k, y1, y2, a in zip(kernels, leaves1, leaves2, outputs)
    )


def _outputs(
    f: Callable, rebuild: Callable[[list], PyTree], static: tuple, floats: list, arrays: list
) -> PyTree:
    x, kwargs = arguments.combine(arrays, static)
    return f(rebuild(floats), x, **kwargs)


def _example(
    f: Callable,
    rebuild: Callable[[list], PyTree],
    static: tuple,
    in_axes: tuple[int | None, ...],
    out_axes: list[int | None],
    floats: list,
    arrays: list,
) -> list[jax.Array]:
    """The network on one example, given and returned without the axis of the examples."""
    arrays = [v if a is None else jnp.expand_dims(v, a) for v, a in zip(arrays, in_axes)]
    outputs = jax.tree.leaves(_outputs(f, rebuild, static, floats, arrays))
    return [y if e is None else jnp.squeeze(y, e) for y, e in zip(outputs, out_axes)]


def _implementation(value: NtkImplementation | int | str) -> NtkImplementation:
    names = [i.name.lower() for i in NtkImplementation]
    if isinstance(value, str) and value.lower() in names:
        return NtkImplementation[value.upper()]
    if isinstance(value, int) and not isinstance(value, bool) and value in list(NtkImplementation):
        return NtkImplementation(value)
    raise ValueError(f"implementation is {value!r}; there are {names} and 0 to 3")
