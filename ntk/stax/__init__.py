"""Combinators for infinitely wide networks, with neural-tangents's names: (init_fn, apply_fn, kernel_fn) triples."""

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

globals().update(_strict_functions(globals()))
