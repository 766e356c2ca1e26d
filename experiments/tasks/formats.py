"""Files of data as their authors publish them: IDX (MNIST), CIFAR binary and python, .npz, checked as they are read."""

from __future__ import annotations

import gzip
import hashlib
import math
import pathlib
import zipfile
import zlib
from typing import Any, BinaryIO

import numpy as np

from experiments import checks
from experiments.tasks import pickles

CIFAR_PIXELS = 3 * 32 * 32
DEFLATE = 1040
"""Deflate, of gzip and zip, makes at most 1032 bytes of one (zlib's technical details), and a little for headers."""


def check_md5(path: pathlib.Path, expected: str, advice: str) -> None:
    """Refuses a file that is not the published one.

    Raises:
        ValueError: both checksums, and what to do.
    """
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if digest != expected:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) has MD5 {digest}, the published file has {expected}: it is "
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
        ValueError: not gzip, not IDX, another number of axes, or a length that the header does not announce; no more
            than that length is decompressed.
    """
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    most = path.stat().st_size * (DEFLATE if zipped else 1)
    try:
        with (gzip.open if zipped else open)(path, "rb") as file:
            shape = _idx_shape(path, file, dimensions)
            count = math.prod(shape)
            header = 4 + 4 * dimensions
            content = file.read(count + 1) if header + count <= most else b""
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path} is a damaged or truncated gzip file ({error}); fetch it again"
        ) from error
    if len(content) != count:
        found = f"more than {header + count}" if len(content) > count else header + len(content)
        raise ValueError(
            f"{path} is truncated or damaged: its header announces shape {shape}, that is {header + count} bytes, "
            f"and it has {found if header + count <= most else f'at most {most}'}"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _idx_shape(path: pathlib.Path, file: BinaryIO, dimensions: int) -> tuple[int, ...]:
    magic, expected = file.read(4), bytes([0, 0, 8, dimensions])
    if magic != expected:
        raise ValueError(
            f"{path} begins with bytes {magic.hex() or 'none'}; an IDX file of unsigned bytes with "
            f"{dimensions} axes begins with {expected.hex()}"
        )
    sizes = file.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise ValueError(f"{path} is truncated or damaged: it ends within its header")
    shape = tuple(int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4))
    if 0 in shape:
        raise ValueError(f"{path} is empty: its header announces shape {shape}")
    checks.memory(str(path), math.prod(shape), 1)
    return shape


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
    checks.memory(str(path), path.stat().st_size, 1)
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
        batch = pickles.read(path)
        pixels, labels = batch["data"], _labels(batch[label_key])
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{path} is not a whole CIFAR batch with 'data' and {label_key!r} ({reason}); unpack the archive again"
        ) from error
    if not isinstance(pixels, np.ndarray):
        raise ValueError(f"{path}: 'data' is a {type(pixels).__name__}, expected an array")
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != CIFAR_PIXELS:
        raise ValueError(
            f"{path}: 'data' is {pixels.dtype} {pixels.shape}, expected uint8 (N, {CIFAR_PIXELS})"
        )
    return _channels_last(pixels), labels


def _channels_last(planes: np.ndarray) -> np.ndarray:
    return planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _labels(values: Any) -> np.ndarray:
    """Labels (N,) of a list of whole numbers, or of an array of them."""
    if isinstance(values, np.ndarray):
        if values.ndim != 1 or values.dtype.kind not in "iu":
            raise ValueError(
                f"labels are {values.dtype} {values.shape}, expected whole numbers (N,)"
            )
        return values
    if not isinstance(values, list) or not all(type(v) is int and 0 <= v < 2**31 for v in values):
        raise ValueError("labels are not a list of whole numbers")
    return np.array(values, np.int64)


def read_npz(path: pathlib.Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Arrays of numbers from a .npz file; sizes are compared with the headers before anything is decompressed.

    Args:
        path: the file.
        names: of the arrays that must be there; others are not read.

    Raises:
        ValueError: not such a file; arrays that are missing, are not of real numbers, or do not have the length that
            their header announces.
    """
    try:
        with zipfile.ZipFile(path) as file:
            found = [n.removesuffix(".npy") for n in file.namelist()]
            if not set(names) <= set(found):
                raise ValueError(
                    f"it holds the arrays {', '.join(found)}; expected {', '.join(names)}"
                )
            return {name: _member(file, name) for name in names}
    except Exception as error:  # a damaged archive or header can raise nearly anything
        raise ValueError(
            f"{path} is not a whole .npz file of plain arrays ({str(error)[:300]})"
        ) from error


def _member(file: zipfile.ZipFile, name: str) -> np.ndarray:
    info = file.getinfo(f"{name}.npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed by another method than np.savez_compressed's")
    with file.open(info) as member:
        shape, fortran, dtype = _npy_header(member, name)
        if dtype.kind not in "biuf":
            raise ValueError(
                f"{name} is {dtype}; expected real numbers: floats, whole numbers or booleans"
            )
        size = math.prod(shape) * dtype.itemsize
        # Deflate makes at most DEFLATE bytes of one: a larger announcement cannot be true.
        most = min(info.file_size, info.compress_size * DEFLATE)
        if min(shape, default=0) < 0 or size > most:
            raise ValueError(
                f"{name} announces shape {shape} of {dtype}, {size} bytes; there are fewer"
            )
        checks.memory(f"array {name}", size, 1)
        content = member.read(size)
        if len(content) < size or member.read(1):
            raise ValueError(
                f"{name} announces {size} bytes and has {info.file_size} with its header"
            )
    flat = np.frombuffer(content, dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def _npy_header(member: BinaryIO, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    known = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        version = np.lib.format.read_magic(member)
        return known.get(version, known[2, 0])(member)
    except Exception as error:  # NumPy's words are about its parser
        raise ValueError(
            f"{name} has no header of an array: a dict of 'descr', 'fortran_order' and 'shape', all of plain values"
        ) from error
