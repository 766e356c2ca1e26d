"""Pickled batches of CIFAR, read without running anything that they say.

A pickle is a program. Its operations are listed first, by `pickletools`, and only those that make numbers, text,
lists, dictionaries and tuples are let through; where it asks for NumPy, it gets the two classes below, which compare
sizes and hold bytes. No object of NumPy takes a state from the file.
"""

from __future__ import annotations

import io
import math
import pathlib
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments import checks

_VALUES = "NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 BINFLOAT FLOAT"
_TEXTS = (
    "STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE BINUNICODE SHORT_BINUNICODE"
    " BINUNICODE8"
)
_LISTS = "EMPTY_LIST APPEND APPENDS LIST EMPTY_DICT DICT SETITEM SETITEMS MARK STOP PROTO FRAME POP POP_MARK"
_MEMO = "PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET"
_FEW = frozenset(
    [
        "EMPTY_TUPLE",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
        "GLOBAL",
        "STACK_GLOBAL",
        "REDUCE",
        "BUILD",
    ]
)
_MANY = frozenset(f"{_VALUES} {_TEXTS} {_LISTS} {_MEMO}".split())
MOST = 200
"""Tuples and objects of a batch: an array needs a dozen operations; deeply nested ones overflow Python's stack."""


def read(path: pathlib.Path) -> Any:
    """The value in a pickle of plain values and arrays of whole numbers.

    Raises:
        Exception: of nearly any type, where the file is damaged or asks for something else.
    """
    checks.memory(str(path), path.stat().st_size, 2)
    content = path.read_bytes()
    _check_operations(content)
    return _plain(_Reader(io.BytesIO(content), encoding="latin1").load())


def _check_operations(content: bytes) -> None:
    few = 0
    for operation, argument, _ in pickletools.genops(content):
        few += operation.name in _FEW
        if operation.name not in _MANY | _FEW or few > MOST:
            raise pickle.UnpicklingError(
                f"operation {operation.name} is not allowed in a data file"
            )
        # The memo is an array: a large index would allocate it whole.
        if operation.name.endswith("PUT") and int(argument) > len(content):
            raise pickle.UnpicklingError("an index of the memo beyond the file's length")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: v.array() if isinstance(v, _Array) else v for key, v in value.items()}
    raise pickle.UnpicklingError(f"the file holds a {type(value).__name__}, expected a dictionary")


class _Array:
    """What the file says of an array."""

    def __init__(self) -> None:
        self.shape, self.dtype, self.fortran, self.content = (0,), "u1", False, b""

    def __setstate__(self, state: Any) -> None:
        _, self.shape, dtype, self.fortran, self.content = state
        self.dtype = dtype.name

    def array(self) -> np.ndarray:
        """The array, once its sizes agree."""
        content = self.content
        if isinstance(content, str):  # of Python 2
            content = content.encode("latin1")
        whole = isinstance(self.shape, tuple) and all(type(n) is int and n >= 0 for n in self.shape)
        dtype = np.dtype(self.dtype)
        if not (whole and isinstance(content, bytes)):
            raise pickle.UnpicklingError("an array without shape or content")
        if math.prod(self.shape) * dtype.itemsize != len(content):
            raise pickle.UnpicklingError(
                f"an array of shape {self.shape} has {len(content)} bytes: it is truncated or damaged"
            )
        flat = np.frombuffer(content, dtype)
        return flat.reshape(self.shape, order="F" if self.fortran else "C")


class _Type:
    """A type of whole numbers or floats by its name, without any state of NumPy's."""

    def __init__(self, name: Any) -> None:
        if name not in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"):
            raise pickle.UnpicklingError(f"arrays of {name!r} are not allowed in a data file")
        self.name = name

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("|", "<"):
            raise pickle.UnpicklingError(f"byte order {state[1]!r} is not allowed in a data file")


class _Call:
    """A function that the file may call, and change nothing of."""

    __slots__ = ("function",)

    def __init__(self, function: Callable) -> None:
        object.__setattr__(self, "function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function has no state")


class _Reader(pickle.Unpickler):
    """Python's own interface for refusing what a pickle asks for."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _Call(lambda *_: _Array())
        if (module, name) == ("numpy", "ndarray"):
            return _Call(lambda *_: _Array())
        if (module, name) == ("numpy", "dtype"):
            return _Call(lambda code, align=False, copy=False: _Type(code))
        if (module, name) == ("_codecs", "encode"):
            return _Call(lambda text, encoding="latin1": text.encode("latin1"))
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a data file")
