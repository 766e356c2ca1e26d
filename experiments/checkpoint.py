"""The state of an interrupted run on disk: ``<folder>/<step>/state.npz``, sealed, the newest only."""

from __future__ import annotations

import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from experiments import seals
from experiments.files import named, replace

STATE = "state.npz"


def save(folder: pathlib.Path, step: int, state: Any, configuration: str = "") -> None:
    """Writes a checkpoint, whole or not at all, then drops older ones.

    Args:
        folder: one folder per run; made when missing.
        step: the training step that the state belongs to.
        state: pytree of arrays.
        configuration: hash of the configuration that made it.

    Raises:
        OSError: it cannot be written; the one before is intact.
    """
    file = folder / str(step) / STATE
    leaves = {f"leaf_{i:04d}": _stored(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    with named(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    replace(file, seals.pack_arrays(leaves, configuration, _name(folder, step)))
    for older in _steps(folder):
        if older != step:
            shutil.rmtree(folder / str(older), ignore_errors=True)


def restore(folder: pathlib.Path, like: Any, configuration: str = "") -> tuple[int, Any] | None:
    """The newest (step, state), or None when there is none.

    Args:
        folder: the folder given to `save`.
        like: pytree of arrays with the shapes, dtypes and shardings to restore to.
        configuration: hash of the configuration that must have made it.

    Raises:
        ValueError: the checkpoint is damaged, was made by another configuration, or holds other shapes.
    """
    steps = _steps(folder)
    if not steps:
        return None
    path, step = folder / str(steps[-1]), steps[-1]
    try:
        raw = (path / STATE).read_bytes()
        found = seals.unpack_arrays(raw, configuration, _name(folder, step))
        leaves, tree = jax.tree.flatten(like)
        if len(found) != len(leaves):
            raise ValueError(f"holds {len(found)} arrays, not {len(leaves)}")
        state = jax.tree.unflatten(tree, list(map(_restored, found.values(), leaves)))
    except ValueError as error:
        raise ValueError(
            f"the checkpoint {path} cannot be restored: it {error}; delete it and run again: "
            "only this point starts from its beginning"
        ) from error
    return step, state


def drop(folder: pathlib.Path) -> None:
    """Removes the checkpoints of a run that has finished."""
    shutil.rmtree(folder, ignore_errors=True)


def _stored(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _restored(value: np.ndarray, like: Any) -> Any:
    """A leaf as it was: a key, an array on its devices, or an array of numpy."""
    wanted = _stored(like)
    if value.dtype.kind == "V":  # numpy's files know no bfloat16
        value = value.view(wanted.dtype)
    if (value.shape, value.dtype) != (wanted.shape, wanted.dtype):
        held, asked = (f"{a.dtype}{list(a.shape)}" for a in (value, wanted))
        raise ValueError(f"holds {held} where {asked} is needed")
    if _is_key(like):
        return jax.random.wrap_key_data(value, impl=jax.random.key_impl(like))
    return jax.device_put(value, like.sharding) if isinstance(like, jax.Array) else value


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)


def _steps(folder: pathlib.Path) -> list[int]:
    return sorted(int(f.parent.name) for f in folder.glob(f"*/{STATE}") if f.parent.name.isdigit())


def _name(folder: pathlib.Path, step: int) -> str:
    return f"{folder.name}/{step}"
