"""The infinite-width limit of any Flax model, read from its own code.

A family is traced at two widths (`interpret`), each of its primitives becomes a step on Gaussian processes
(`primitives` and the modules that it lists), and the steps are evaluated on data (`run`).
"""

from ntk.trace.explanation import Explanation
from ntk.trace.limit import activations, attention_error, explain, infinite_width

__all__ = ["Explanation", "activations", "attention_error", "explain", "infinite_width"]
