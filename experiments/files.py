"""Files that are written whole or not at all, and whose errors name them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file of a run.

    Raises:
        ValueError: it is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        ValueError: it is missing or holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes the whole file as JSON or leaves the old one."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes the whole file or leaves the old one."""
    replace(path, text.encode())


def replace(path: pathlib.Path, content: bytes) -> None:
    """Writes the whole file, to the disk, or leaves the old one."""
    part = path.with_name(path.name + ".part")
    with named(path):
        try:
            with open(part, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise


def expanded(name: str | os.PathLike) -> pathlib.Path:
    """The path of a name that a user gave, ``~`` and ``~USER`` being home folders.

    Raises:
        ValueError: there is no such user.
    """
    try:
        return pathlib.Path(name).expanduser()
    except RuntimeError:
        raise ValueError(
            f"{str(name)!r} begins with the home folder of a user who is not known here; write the whole path"
        ) from None


@contextlib.contextmanager
def named(path: pathlib.Path) -> Iterator[None]:
    """An error of the file system says which file, and that nothing is lost."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            error.errno,
            f"{path} could not be written ({reason}); what was saved before is intact",
        ) from error


def printable() -> None:
    """Has the terminal's letters that it does not have written as escapes, rather than end what writes them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def message(error: Exception) -> str:
    """The words of an error in a line, as printable text; one of the file system names its file."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    line = " ".join(text.split()) or type(error).__name__
    # Who writes a name of thousands of letters need not read them all.
    return (
        line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
    )


_LONGEST = 900
