"""Papers' results as studies: run, claims that pass or fail, figures."""

import importlib.metadata
import importlib.util
import os
import pathlib

__version__ = "0.1.0"


def _check_layout() -> None:
    """The bare names ntk, limits, models and metrics must be this project's: the index has others."""
    root = pathlib.Path(__file__).resolve().parent.parent
    for name in ("ntk", "limits", "models", "metrics"):
        found = importlib.util.find_spec(name)
        where = pathlib.Path(found.origin).resolve().parent if found and found.origin else None
        if where != root / name:
            raise ImportError(
                f"{name!r} resolves to {where}, not to this project's {root / name}. Another distribution or "
                f"folder of that name comes first: pip uninstall {name}, or rename the folder, or run from {root}."
            )


def _run_in_order() -> None:
    """Before 0.12, JAX on a CPU may wait for ever in a program of several loops whose parts run beside one another.

    A recurrent network's two passes are such a program. A flag of XLA, read when a backend starts, runs them in order.
    """
    version = importlib.metadata.version("jax").split(".")[:2]
    flag, flags = (
        "--xla_cpu_enable_concurrency_optimized_scheduler",
        os.environ.get("XLA_FLAGS", ""),
    )
    if tuple(map(int, version)) < (0, 12) and flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}=false".strip()


_check_layout()
_run_in_order()
