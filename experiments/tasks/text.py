"""Next-token prediction on text: characters or words of a file, or of Python's own documentation.

The embedded default is `pydoc_data.topics`, about 465 000 characters of English and code that come with every
Python. It is the same for one Python version and differs a little between versions: quote the version with a result.
"""

from __future__ import annotations

import collections
import re
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from experiments import checks, files
from experiments.tasks.arrays import Data, Task, choose

UNKNOWN = "<unk>"
TEST_FRACTION = 0.1


class Tokens(NamedTuple):
    """A text as int32 ids (N,), and the words or characters that they stand for."""

    ids: np.ndarray
    vocabulary: tuple[str, ...]


def default_config() -> ml_collections.ConfigDict:
    """``data_dir`` is a text file or a folder of .txt files, empty for Python's documentation.

    ``level`` is "character" or "word" (lower case); ``vocabulary`` keeps so many of the most frequent tokens,
    the rest become <unk>, 0 keeps all; ``length`` tokens per example; ``num_train`` and ``num_test`` examples,
    0 for all there are.
    """
    return ml_collections.ConfigDict(
        {
            "name": "text",
            "data_dir": "",
            "level": "character",
            "vocabulary": 0,
            "length": 64,
            "num_train": 0,
            "num_test": 0,
            "seed": 0,
        }
    )


def load(config: Any) -> Task:
    """Windows of ``length`` tokens that do not overlap: x the tokens, y the tokens that follow each.

    The last tenth of the text is the test set, so that no test window lies between training windows.
    """
    if config.length < 1:
        raise ValueError(f"length is {config.length}; it must be at least 1 token")
    tokens = tokenize(read(config.data_dir), config.level, config.vocabulary)
    border = len(tokens.ids) - round(TEST_FRACTION * len(tokens.ids))
    parts = []
    for key, ids in (("num_train", tokens.ids[:border]), ("num_test", tokens.ids[border:])):
        windows = (len(ids) - 1) // config.length
        if windows < 1:
            raise ValueError(
                f"the text has {len(tokens.ids)} tokens, too few for {key.removeprefix('num_')} windows of "
                f"{config.length}; give a longer text or a smaller length"
            )
        used = windows * config.length
        x, y = ids[:used].reshape(windows, -1), ids[1 : used + 1].reshape(windows, -1)
        parts.append(choose(key, Data(x, y), getattr(config, key), config.seed))
    return Task(config.name, *parts, outputs=len(tokens.vocabulary), input_shape=(config.length,))


def read(source: str) -> str:
    """The text of a file, of all .txt files in a folder in the order of their names, or the embedded one.

    Raises:
        ValueError: nothing there, or not UTF-8.
    """
    if not source:
        return _python_documentation()
    path = files.expanded(source)
    parts = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    # Whole files only: a pipe or a device would be waited for.
    odd = next((part for part in parts if not part.is_file()), None)
    if not parts or odd is not None:
        raise ValueError(
            f"no text at {str(odd or path)!r}: set config.task.data_dir to a UTF-8 text file (for instance text8 from "
            "its author's page, http://mattmahoney.net/dc/textdata.html), to a folder of .txt files, or to '' for "
            "Python's documentation"
        )
    checks.memory(f"the text of {path}", sum(part.stat().st_size for part in parts), 16)
    try:
        text = "\n".join(part.read_text(encoding="utf-8") for part in parts)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error})") from error
    if not text.strip():
        raise ValueError(f"{path} is empty")
    return text


def tokenize(text: str, level: str, vocabulary: int = 0) -> Tokens:
    """Splits a text and numbers its tokens by falling frequency, equal ones alphabetically.

    Args:
        text: any text.
        level: "character", or "word": runs of letters and digits in lower case, every other sign by itself.
        vocabulary: number of tokens kept, <unk> (id 0) among them; 0 keeps all and has no <unk>.

    Raises:
        ValueError: an unknown level, or a vocabulary of one.
    """
    if level not in ("character", "word"):
        raise ValueError(f"level is {level!r}; expected 'character' or 'word'")
    if vocabulary < 0 or vocabulary == 1:
        raise ValueError(f"vocabulary is {vocabulary}; expected 0 (all tokens) or at least 2")
    pieces = list(text) if level == "character" else re.findall(r"\w+|[^\w\s]", text.lower())
    counts = collections.Counter(pieces)
    known = sorted(counts, key=lambda piece: (-counts[piece], piece))
    if vocabulary and vocabulary < len(known):
        known = [UNKNOWN, *known[: vocabulary - 1]]
    index = {piece: number for number, piece in enumerate(known)}
    ids = np.fromiter((index.get(piece, 0) for piece in pieces), np.int32, count=len(pieces))
    return Tokens(ids, tuple(known))


def _python_documentation() -> str:
    try:
        from pydoc_data import topics
    except ImportError as error:
        raise ValueError(
            "this Python comes without pydoc_data, the embedded text; set config.task.data_dir to a text file"
        ) from error
    return "\n".join(topics.topics[name] for name in sorted(topics.topics))
