"""Combinators for infinitely wide networks, with neural-tangents's names: (init_fn, apply_fn, kernel_fn) triples."""

import functools as _functools
from collections.abc import Callable
from typing import Any

from ntk.arguments import strict_functions as _strict_functions
from ntk.stax.attention import GlobalSelfAttention
from ntk.stax.combinators import (
    FanInConcat,
    FanInProd,
    FanInSum,
    FanOut,
    elementwise,
    parallel,
    repeat,
    serial,
    unmask_fn,
)
from ntk.stax.convolution import (
    AvgPool,
    Conv,
    ConvLocal,
    ConvTranspose,
    GlobalAvgPool,
    GlobalSumPool,
    ImageResize,
    SumPool,
)
from ntk.stax.custom import (
    AggregateImplementation,
    AttentionMechanism,
    Bool,
    Diagonal,
    Padding,
    PositionalEmbedding,
    layer,
    requires,
    supports_masking,
)
from ntk.stax.custom import named as _named
from ntk.stax.layers import Layer as _Layer
from ntk.stax.layers import MaskedArray
from ntk.stax.linear import (
    Aggregate,
    Dense,
    DotGeneral,
    Dropout,
    Flatten,
    Identity,
    Index,
    LayerNorm,
    Slice,
)
from ntk.stax.nonlinearities import (
    ABRelu,
    Abs,
    Cos,
    Elementwise,
    ElementwiseNumerical,
    Elu,
    Erf,
    Exp,
    ExpNormalized,
    Gabor,
    Gaussian,
    Gelu,
    HardTanh,
    Hermite,
    LeakyRelu,
    Mish,
    Monomial,
    Polynomial,
    Rbf,
    RectifiedMonomial,
    Relu,
    Relu6,
    Selu,
    Sigmoid,
    Sigmoid_like,
    Sign,
    Silu,
    Sin,
    Softplus,
    Step,
    Tanh,
)


def _naming(fn: Callable) -> Callable:
    """The same function, whose layers carry its name."""

    @_functools.wraps(fn)
    def named(*args: Any, **kwargs: Any) -> Any:
        made = fn(*args, **kwargs)
        return _named(made, fn.__name__) if isinstance(made, _Layer) else made

    return named


globals().update(
    {name: _naming(fn) for name, fn in _strict_functions(globals()).items() if name != "layer"}
)
