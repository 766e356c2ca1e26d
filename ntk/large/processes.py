"""Work shared by the processes of one job, over JAX's own runtime: who does what, and what all are told.

After ``jax.distributed.initialize()`` every process runs the same program. Tiles of a kernel need nothing of one
another, so that each process computes its own on its own devices; what is gathered are results, byte for byte.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from ntk.types import PyTree

_LOST = re.compile("Gloo|NCCL|RCCL|MPI|coordination service|heartbeat|UNAVAILABLE")
"""In messages of the libraries that carry what processes tell one another."""


PART = 2**20
"""Entries that processes send one another at once where they add up."""


class Share(NamedTuple):
    """This process among those that share the work: number ``rank`` of ``size``."""

    rank: int = 0
    size: int = 1

    def own(self, items: Sequence[Any]) -> Sequence[Any]:
        """Every count-th item: what this process does."""
        return items[self.rank :: self.size]


def share(devices: tuple[jax.Device, ...]) -> tuple[Share, tuple[jax.Device, ...]]:
    """The share of this process in the work of devices, and those of them that are its own.

    Raises:
        ValueError: some processes of the job own none of the devices, but others than this one do.
    """
    owners = {device.process_index for device in devices}
    here = jax.process_index()
    if owners == {here}:
        return Share(), devices
    if owners != set(range(jax.process_count())):
        raise ValueError(
            f"devices belong to processes {sorted(owners)} of {jax.process_count()}; give those of all processes "
            "(jax.devices()) to share the work, or this process's own (jax.local_devices())"
        )
    local = tuple(device for device in devices if device.process_index == here)
    found = Share(here, len(owners))
    _meet(found)
    return found, local


@functools.cache
def _meet(share: Share) -> None:
    """Connects the processes at the first call of a job, where they come together.

    For that the transport waits 30 s alone, for what is exchanged afterwards as long as it takes: without this a
    process whose first tile takes half a minute longer counted as lost.
    """
    wait("widelimit", share)


@contextlib.contextmanager
def together(share: Share) -> Iterator[None]:
    """Says that another process is gone, where the transport says that it lost a connection.

    Raises:
        RuntimeError: another process of the job has ended.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if share.size == 1 or not _LOST.search(str(error)):
            raise
        late = "GetKeyValue() timed out" in str(error)
        what = (
            "waited 30 s for another process of the job to begin, which is slower than that or has ended: let all call "
            "jax.devices(), which waits for minutes, where what each does alone is done"
            if late
            else "lost another process of the job, which has ended: its own messages say why"
        )
        raise RuntimeError(
            f"process {share.rank} of {share.size} {what}. Start the job again, with any number of processes; it goes "
            f"on from what is kept on disk ({str(error).splitlines()[0]})"
        ) from error


def gathered(values: np.ndarray, share: Share) -> list[np.ndarray]:
    """An array of every process, in their order: the same bits everywhere. Shapes and dtypes must agree."""
    if share.size == 1:
        return [values]
    # As bytes: without x64 a float64 would arrive as float32.
    raw = np.frombuffer(values.tobytes(), np.uint8)
    with together(share):
        rows = np.asarray(multihost_utils.process_allgather(raw)).reshape(share.size, -1)
    return [np.frombuffer(row.tobytes(), values.dtype).reshape(values.shape) for row in rows]


def placed(values: PyTree, sharding: jax.sharding.Sharding) -> PyTree:
    """Arrays that every process holds whole, on devices of all of them; global ones as they are.

    Unlike ``jax.device_put`` it does not compare what the processes hold, which would be sent to all.
    """

    def put(value: Any) -> Any:
        if isinstance(value, jax.Array) and not value.is_fully_addressable:
            return value
        if jax.dtypes.issubdtype(getattr(value, "dtype", None), jax.dtypes.prng_key):
            data = put(jax.random.key_data(value))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(value))
        value = np.asarray(value, jax.dtypes.canonicalize_dtype(np.asarray(value).dtype))
        return jax.make_array_from_callback(value.shape, sharding, lambda part: value[part])

    return jax.tree.map(put, values)


def whole(values: PyTree) -> PyTree:
    """Arrays on devices of all processes as every process may read them; all processes call it."""

    def fetch(value: Any) -> Any:
        if not isinstance(value, jax.Array) or value.is_fully_addressable:
            return value
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            data = fetch(jax.random.key_data(value))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(value))
        if value.is_fully_replicated:
            return np.asarray(value)
        return multihost_utils.process_allgather(value, tiled=True)

    return jax.tree.map(fetch, values)


def total(values: np.ndarray, share: Share) -> np.ndarray:
    """Sum over processes, in their order: the same bits everywhere; a part at a time, of which all are held."""
    if share.size == 1:
        return values
    flat = values.reshape(-1)
    starts = range(0, max(flat.size, 1), PART)
    # Sums of floating-point numbers depend on their order: one order, that of the processes.
    parts = [functools.reduce(np.add, gathered(flat[s : s + PART], share)) for s in starts]
    return np.concatenate(parts).reshape(values.shape)


def first(make: Callable[[], Any], share: Share) -> Any:
    """What process 0 makes, told to all; its error is the error of all.

    Args:
        make: called in process 0 alone; gives what JSON holds.
        share: the processes.
    """
    if share.size == 1:
        return make()
    answer: dict[str, Any] = {}
    if share.rank == 0:
        try:
            answer = {"value": make()}
        # Told, not raised: the others wait in the gather below, and would for ever.
        except (OSError, TypeError, ValueError) as error:
            answer = {"error": str(error), "kind": type(error).__name__}
    text = _told(json.dumps(answer).encode(), share)
    answer = json.loads(text)
    if "error" in answer:
        kind = {"TypeError": TypeError, "ValueError": ValueError}.get(answer["kind"], OSError)
        raise kind(answer["error"])
    return answer["value"]


def wait(name: str, share: Share) -> None:
    """Until every process is here."""
    if share.size > 1:
        with together(share):
            multihost_utils.sync_global_devices(name)


def _told(text: bytes, share: Share) -> bytes:
    """The bytes of process 0."""
    # What is gathered must have one size in all processes: that of process 0 is told first.
    size = int(gathered(np.array(len(text)), share)[0])
    padded = np.frombuffer(text.ljust(size, b" ")[:size], np.uint8)
    return gathered(padded, share)[0].tobytes()
