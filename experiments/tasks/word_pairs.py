"""Text for word embeddings: windows of words to train on, and pairs of words in one relation to test with."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from experiments.tasks import text


class Corpus(NamedTuple):
    """The alphabetic words of a text.

    Attributes:
        ids: (N,), the text as numbers of words, others left out.
        words: by falling frequency.
        frequency: (words,), sums to one.
        relations: name of a relation -> (P, 2), pairs of words that stand in it.
    """

    ids: np.ndarray
    words: tuple[str, ...]
    frequency: np.ndarray
    relations: dict[str, np.ndarray]


def corpus(data_dir: str, vocabulary: int, analogies: str = "") -> Corpus:
    """Reads a text and finds its pairs of words.

    Args:
        data_dir: a text file or a folder of .txt files; "" for Python's documentation.
        vocabulary: how many of the most frequent alphabetic words to keep.
        analogies: a file of questions, a line "a b c d" each, sections headed ": name"; without one the pairs
            are the text's own: w and w + "s" (plurals or third persons), w and w + "ed" (past tenses). Few of
            them are accidents.

    Raises:
        ValueError: no text there; no relation has two pairs within the vocabulary.
    """
    tokens = text.tokenize(text.read(data_dir), "word")
    known = [i for i, word in enumerate(tokens.vocabulary) if word.isalpha()][:vocabulary]
    place = np.full(len(tokens.vocabulary), -1, np.int32)
    place[known] = np.arange(len(known), dtype=np.int32)
    ids = place[tokens.ids]
    ids = ids[ids >= 0]
    words = tuple(tokens.vocabulary[i] for i in known)
    frequency = np.bincount(ids, minlength=len(words)) / len(ids)
    found = _questions(words, analogies) if analogies else _regular_pairs(words)
    relations = {name: np.array(pairs) for name, pairs in found.items() if len(pairs) > 1}
    if not relations:
        raise ValueError(
            f"the {len(words)} most frequent words hold no two pairs of any relation: give a larger"
            " vocabulary or a longer text"
        )
    return Corpus(ids, words, frequency, relations)


def _regular_pairs(words):
    number = {word: i for i, word in enumerate(words)}
    stems = [word for word in words if len(word) > 2]
    plural = [(number[w], number[w + "s"]) for w in stems if w + "s" in number]
    ends = ((w, w + "d" if w.endswith("e") else w + "ed") for w in stems)
    return {
        "plural": plural,
        "past": [(number[w], number[past]) for w, past in ends if past in number],
    }


def _questions(words, path):
    """The pairs of each section (": name") of a file of questions "a b c d", those within the vocabulary."""
    number, found, section = {word: i for i, word in enumerate(words)}, {}, "all"
    for line in text.read(path).lower().splitlines():
        parts = line.split()
        if parts[:1] == [":"]:
            section = " ".join(parts[1:])
        for pair in (parts[:2], parts[2:4]) if len(parts) == 4 else ():
            if all(word in number for word in pair):
                found.setdefault(section, {})[tuple(number[word] for word in pair)] = None
    return {name: list(pairs) for name, pairs in found.items()}


def windows(
    source: Corpus,
    reach: int,
    seed: int,
    *,
    epochs: int = 1,
    subsample: float = 1.0,
    multiple: int = 1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Words and what stands around them, in the random order of training.

    Args:
        source: the text.
        reach: words to either side.
        seed: of the thinning and the order.
        epochs: passes over the text; frequent words are thinned out anew in each, before the windows are cut.
        subsample: a word of frequency f is kept with probability min(1, sqrt(subsample / f)).
        multiple: the number of windows is cut to a multiple of it, after a cut to four standard deviations below
            what thinning leaves on average: nearly always it is the same for every seed.

    Returns:
        (target (N,), context (N, 2 reach), mask (N, 2 reach)); the mask is False beyond the ends of the text.

    Raises:
        ValueError: a reach or number of epochs that is not positive.

    Source: Mikolov et al. 2013, arXiv:1310.4546, section 2.3.
    """
    if reach < 1 or epochs < 1:
        raise ValueError(f"reach={reach} and epochs={epochs} must be at least 1")
    generator, passes = np.random.default_rng(seed), []
    keep = np.minimum(1, np.sqrt(subsample / np.maximum(source.frequency, 1e-12)))
    for _ in range(epochs):
        kept = source.ids[generator.random(len(source.ids)) < keep[source.ids]]
        padded = np.pad(kept, reach, constant_values=-1)
        cut = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
        passes.append(generator.permutation(cut))
    every = np.concatenate(passes)
    left = epochs * np.bincount(source.ids, minlength=len(keep)) * keep
    count = int(left.sum() - 4 * np.sqrt((left * (1 - keep)).sum()))
    every = every[: max(0, min(count, len(every))) // multiple * multiple]
    around = np.delete(every, reach, axis=1)
    return every[:, reach], np.maximum(around, 0), around >= 0
