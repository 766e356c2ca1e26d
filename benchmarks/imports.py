"""Time to import, in fresh processes: ``python -m benchmarks.imports``.

The contenders import JAX first; ``seconds_over_jax`` is what is left after JAX's own time. neural-tangents is imported
through `ntk.reference`, without TensorFlow, which its own import would add.
"""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys

from benchmarks import harness

STATEMENTS = {
    "jax": "import jax",
    "ours": "import jax, ntk; from ntk import stax",
    "neural-tangents": "from ntk import reference; reference.neural_tangents()",
}


def _fresh(statement: str) -> None:
    subprocess.run([sys.executable, "-c", statement], check=True)


def imports(runs: int) -> harness.Comparison:
    """One row: a process that imports, from start to end."""
    contenders = {
        name: lambda statement=statement: functools.partial(_fresh, statement)
        for name, statement in STATEMENTS.items()
    }
    row = harness.compare("import", contenders, ours="ours", baseline="neural-tangents", runs=runs)
    jax = row.timings["jax"].wall
    over = {
        name: statistics.median(a - b for a, b in zip(row.timings[name].wall, jax))
        for name in ("ours", "neural-tangents")
    }
    return row._replace(notes={"seconds_over_jax": over})


if __name__ == "__main__":
    harness.main("imports", {"import": imports})
