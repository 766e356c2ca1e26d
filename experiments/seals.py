"""Seals: which configuration made a file, under which name, and a checksum over both and the content.

Points and checkpoints are npz archives, with their seal as the archive's comment; data.nc has it among its attributes.
``np.load`` and ``xarray`` read them without knowing. The checksum is taken over every byte of the file, with zeros
where it will stand itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from typing import Any

import numpy as np
import xarray as xr

_ZEROS = b"0" * 64
# What stands before the checksum: in the comment, and in a NetCDF 3 header (a text attribute of 64 characters)
_IN_ARCHIVE, _IN_DATASET = b'"sha256": "', b"sha256\0\0\0\0\0\2\0\0\0@"
CORRUPT = "is corrupt (its checksum does not match)"
FOREIGN = "was made by another configuration"


def digest(config: dict[str, Any]) -> str:
    """The hash of a configuration; the order of its keys does not matter."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def pack_arrays(arrays: dict[str, np.ndarray], configuration: str, name: str) -> bytes:
    """An npz archive with its seal as the comment."""
    body = io.BytesIO()
    np.savez(body, **arrays)
    seal = {"configuration": configuration, "name": name, "sha256": _ZEROS.decode()}
    comment = json.dumps(seal).encode()
    # A zip archive ends in its comment, after the comment's length in two bytes.
    raw = body.getvalue()[:-2] + struct.pack("<H", len(comment)) + comment
    return _stamp(raw, raw.rfind(_IN_ARCHIVE) + len(_IN_ARCHIVE))


def unpack_arrays(raw: bytes, configuration: str, name: str) -> dict[str, np.ndarray]:
    """The arrays of `pack_arrays`.

    Raises:
        ValueError: the bytes are not those that were sealed, or were sealed for something else.
    """
    at = raw.rfind(_IN_ARCHIVE)
    _check(raw, at + len(_IN_ARCHIVE) if at >= 0 else at)
    _compare(archive_seal(raw), configuration, name)
    with np.load(io.BytesIO(raw)) as arrays:
        return {key: arrays[key] for key in arrays.files}


def archive_seal(raw: bytes) -> dict[str, str]:
    """The seal of an archive, not compared with anything.

    Raises:
        ValueError: there is none.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            return dict(json.loads(archive.comment))
    except (OSError, ValueError, TypeError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(CORRUPT) from error


def pack_dataset(data: xr.Dataset, configuration: str) -> bytes:
    """NetCDF 3, whose bytes depend on the data alone, with the seal among its attributes."""
    data = data.assign_attrs(configuration=configuration, sha256=_ZEROS.decode())
    raw = bytes(data.to_netcdf(engine="scipy", format="NETCDF3_64BIT"))
    return _stamp(raw, raw.find(_IN_DATASET) + len(_IN_DATASET))


def unpack_dataset(raw: bytes) -> tuple[xr.Dataset, str]:
    """The data of `pack_dataset`, and its configuration's hash.

    Raises:
        ValueError: the bytes are not those that were sealed.
    """
    at = raw.find(_IN_DATASET)
    _check(raw, at + len(_IN_DATASET) if at >= 0 else at)
    data = xr.load_dataset(io.BytesIO(raw), engine="scipy")
    del data.attrs["sha256"]
    return data, data.attrs.pop("configuration")


def _compare(seal: dict[str, str], configuration: str, name: str) -> None:
    if seal.get("name") != name:
        raise ValueError(f"was saved as {seal.get('name')!r}, not as {name!r}")
    if seal.get("configuration") != configuration:
        raise ValueError(FOREIGN)


def _stamp(raw: bytes, at: int) -> bytes:
    return raw[:at] + hashlib.sha256(raw).hexdigest().encode() + raw[at + 64 :]


def _check(raw: bytes, at: int) -> None:
    if at < 0:
        raise ValueError("has no checksum: it is damaged, or an older version wrote it")
    whole = hashlib.sha256(raw[:at] + _ZEROS + raw[at + 64 :]).hexdigest().encode()
    if raw[at : at + 64] != whole:
        raise ValueError(CORRUPT)
