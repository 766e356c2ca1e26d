"""Papers' results as studies: run, claims that pass or fail, figures."""

import importlib.util
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


_check_layout()
