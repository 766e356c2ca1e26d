"""The state of an interrupted run on disk: a thin layer over orbax, the newest checkpoint only."""

from __future__ import annotations

import pathlib
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp


def save(folder: pathlib.Path, step: int, state: Any) -> None:
    """Writes ``folder/<step>`` (orbax renames it into place when it is whole), then drops older ones.

    Args:
        folder: one folder per run; made when missing.
        step: the training step that the state belongs to.
        state: pytree of arrays.
    """
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.resolve() / str(step), state, force=True)
    for older in _steps(folder):
        if older != step:
            shutil.rmtree(folder / str(older), ignore_errors=True)


def restore(folder: pathlib.Path, like: Any) -> tuple[int, Any] | None:
    """The newest (step, state), or None when there is none.

    Args:
        folder: the folder given to `save`.
        like: pytree of arrays with the shapes, dtypes and shardings to restore to.

    Raises:
        ValueError: the checkpoint cannot be read, or holds other shapes.
    """
    steps = _steps(folder)
    if not steps:
        return None
    path = folder.resolve() / str(steps[-1])
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            state = checkpointer.restore(path, jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"the checkpoint {path} cannot be restored ({reason}); delete it and run again: "
            "only this point starts from its beginning"
        ) from error
    return steps[-1], state


def drop(folder: pathlib.Path) -> None:
    """Removes the checkpoints of a run that has finished."""
    shutil.rmtree(folder, ignore_errors=True)


def _steps(folder: pathlib.Path) -> list[int]:
    if not folder.exists():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())
