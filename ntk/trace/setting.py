"""What the evaluation of a traced network shares between its steps."""

from __future__ import annotations

from typing import Any, NamedTuple

from ntk.infinite.inputs import Plan
from ntk.infinite.kernel import Array


class Sides(NamedTuple):
    """An array of numbers in the first and in the second batch."""

    one: Array
    two: Array


class Setting(NamedTuple):
    """What an evaluation shares between steps.

    Attributes:
        samples: in either batch.
        dtype: of the kernels.
        plan: of the evaluation.
        coincident: (N1, N2), where the samples are the same; or None.
        entries: whether a weight that is not normal may show, so that entries are kept, see `ntk.trace.entries`.
    """

    samples: tuple[int, int]
    dtype: Any
    plan: Plan
    coincident: Array | None
    entries: bool = False
