"""Image files as their authors publish them: IDX (MNIST), CIFAR binary and python, checked as they are read."""

from __future__ import annotations

import gzip
import hashlib
import math
import pathlib
import pickle
import zlib

import numpy as np

CIFAR_PIXELS = 3 * 32 * 32


def check_md5(path: pathlib.Path, expected: str, advice: str) -> None:
    """Refuses a file that is not the published one.

    Raises:
        ValueError: both checksums, and what to do.
    """
    found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if found != expected:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) has MD5 {found}, the published file has {expected}: it is "
            f"damaged or another file. {advice} For a file of your own, set config.task.verify=False"
        )


def check_size(path: pathlib.Path, expected: int, advice: str) -> None:
    """Refuses a file whose length is not the published one's.

    Raises:
        ValueError: both lengths, and what to do.
    """
    found = path.stat().st_size
    if found != expected:
        raise ValueError(
            f"{path} has {found} bytes, the published file has {expected}: it is damaged or another file. "
            f"{advice} For a file of your own, set config.task.verify=False"
        )


def read_idx(path: pathlib.Path, dimensions: int) -> np.ndarray:
    """An IDX file of unsigned bytes, plain or gzipped (told by its content, not its name).

    Args:
        path: the file.
        dimensions: expected number of axes: 3 for images (N, H, W), 1 for labels (N,).

    Returns:
        uint8 array.

    Raises:
        ValueError: not gzip, not IDX, another number of axes, or a length that the header does not announce.
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"{path} is a damaged or truncated gzip file ({error}); fetch it again"
            ) from error
    magic = content[:4]
    expected = bytes([0, 0, 8, dimensions])
    if magic != expected:
        raise ValueError(
            f"{path} begins with bytes {magic.hex() or 'none'}; an IDX file of unsigned bytes with "
            f"{dimensions} axes begins with {expected.hex()}"
        )
    header = 4 + 4 * dimensions
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4))
    expected_size = header + math.prod(shape)
    if len(content) != expected_size:
        raise ValueError(
            f"{path} is truncated or damaged: its header announces shape {shape}, that is {expected_size} bytes, "
            f"and it has {len(content)}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_cifar_binary(path: pathlib.Path, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Records of a CIFAR binary file: label bytes, then 32x32 red, green and blue planes.

    Args:
        path: the file.
        label_bytes: 1 for CIFAR-10; 2 for CIFAR-100 (coarse, fine), of which the fine label is taken.

    Returns:
        (images uint8 (N, 32, 32, 3), labels uint8 (N,)).

    Raises:
        ValueError: the length is not a whole number of records.
    """
    content = np.fromfile(path, np.uint8)
    record = label_bytes + CIFAR_PIXELS
    if len(content) == 0 or len(content) % record:
        raise ValueError(
            f"{path} is truncated or damaged: {len(content)} bytes is not a whole number of {record}-byte records"
        )
    records = content.reshape(-1, record)
    return _channels_last(records[:, label_bytes:]), records[:, label_bytes - 1]


def read_cifar_python(path: pathlib.Path, label_key: str) -> tuple[np.ndarray, np.ndarray]:
    """A pickled CIFAR batch; only arrays and plain values are let through, no other object is made.

    Args:
        path: the file.
        label_key: "labels" for CIFAR-10, "fine_labels" for CIFAR-100.

    Returns:
        (images uint8 (N, 32, 32, 3), labels int64 (N,)).

    Raises:
        ValueError: not such a pickle, or arrays of another shape.
    """
    try:
        with open(path, "rb") as file:
            batch = _ArraysOnly(file, encoding="latin1").load()
        pixels, labels = np.asarray(batch["data"]), np.asarray(batch[label_key])
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{path} is not a whole CIFAR batch with 'data' and {label_key!r} ({reason}); unpack the archive again"
        ) from error
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != CIFAR_PIXELS:
        raise ValueError(
            f"{path}: 'data' is {pixels.dtype} {pixels.shape}, expected uint8 (N, {CIFAR_PIXELS})"
        )
    return _channels_last(pixels), labels


def _channels_last(planes: np.ndarray) -> np.ndarray:
    return planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


class _ArraysOnly(pickle.Unpickler):
    """Python's own interface for refusing the rest: a pickle from the network could otherwise run code."""

    def find_class(self, module: str, name: str):
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.zeros(1).__reduce__()[0]
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            # Python 2 wrote align and copy as 0 and 1, which newer NumPy warns about.
            return lambda code, align=False, copy=False: np.dtype(code, bool(align), bool(copy))
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text.encode("latin1")
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a data file")
