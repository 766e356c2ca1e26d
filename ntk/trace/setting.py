"""What the evaluation of a traced network shares between its steps."""

from __future__ import annotations

from typing import Any, NamedTuple

from ntk.inputs import Plan
from ntk.kernel import Array


class Sides(NamedTuple):
    """An array of numbers in the first and in the second batch."""

    one: Array
    two: Array


class Setting(NamedTuple):
    """What an evaluation shares between steps."""

    samples: tuple[int, int]
    dtype: Any
    plan: Plan
    coincident: Array | None
