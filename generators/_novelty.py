"""Is this text new? The novelty gate of Self-Instruct: ROUGE-L F1 against everything in the pool.

Source: Wang et al. 2022, "Self-Instruct", section 2.2 (keep an instruction only if its ROUGE-L with every earlier one
is below 0.7). Departures: the original scores the whole pool for every candidate; here exact upper bounds leave a
handful, with the same decisions as `rouge_score`. Texts are split by `factory.text.words`, the same tokens for ASCII,
so that the gate works for Chinese too; the original drops every other script.

ROUGE-L F1 of texts of a and b words is 2 * lcs / (a + b). The longest common subsequence is at most the number of
words they share, counted with repeats, and that is at most min(a, b). The pool is an inverted index of (word,
occurrence): "the ... the" holds the first and the second "the". So the words shared with every pool text are one
`bincount` over the lists of the candidate's words.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np
from rapidfuzz.distance import LCSseq

from factory.errors import SpecError
from factory.text import words

_SLACK = 1e-9  # bounds are compared with this much mercy, so rounding never costs an exact decision


@dataclass(frozen=True, slots=True)
class Match:
    """The nearest text of the pool and its ROUGE-L F1, from 0 to 1."""

    id: str
    score: float


@dataclass
class Novelty:
    """A growing pool that tells whether a text is too near to one of its own.

    `threshold` is a ROUGE-L F1 from 0 to 1; only what is above it counts as near. Raises SpecError for another value.
    """

    threshold: float
    _ids: list[str] = field(default_factory=list, init=False, repr=False)
    _texts: list[array[int]] = field(default_factory=list, init=False, repr=False)
    _lengths: array[int] = field(default_factory=lambda: array("i"), init=False, repr=False)
    _numbers: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _holders: dict[tuple[int, int], array[int]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise SpecError(f"the novelty threshold is {self.threshold}: give a ROUGE-L F1 from 0 to 1")

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, id: str, text: str) -> None:
        """Put a text into the pool."""
        tokens = array("q", (self._numbers.setdefault(word, len(self._numbers)) for word in words(text)))
        for item in _counted(tokens):
            self._holders.setdefault(item, array("i")).append(len(self._ids))
        self._ids.append(id)
        self._texts.append(tokens)
        self._lengths.append(len(tokens))

    def nearest(self, text: str) -> Match | None:
        """The pool's text with the highest ROUGE-L F1, the first added of equals; None if it is not above threshold.

        A text without a word is near to nothing, as in ROUGE itself.
        """
        unknown = len(self._numbers)  # words the pool never saw match nothing, so one number does for all of them
        tokens = array("q", (self._numbers.get(word, unknown) for word in words(text)))
        best: tuple[float, int] | None = None
        for bound, place in self._survivors(tokens):
            if bound < (best[0] if best else self.threshold) - _SLACK:
                break
            score = _rouge_l(tokens, self._texts[place])
            if score > self.threshold and (best is None or (score, -place) > (best[0], -best[1])):
                best = score, place
        return Match(self._ids[best[1]], best[0]) if best else None

    def _survivors(self, tokens: array[int]) -> list[tuple[float, int]]:
        """The bound and place of every pool text that may be above threshold, highest bound first."""
        lists = [self._holders[item] for item in _counted(tokens) if item in self._holders]
        if not lists:
            return []
        shared = np.bincount(np.concatenate([np.frombuffer(holders, np.int32) for holders in lists]))
        # A text that shares s words has at least s of them, so its bound is at most 2s / (a + s).
        least = max(1, int(np.ceil(self.threshold * len(tokens) / (2 - self.threshold) - _SLACK)))
        places = np.flatnonzero(shared >= least)
        bounds = 2 * shared[places] / (len(tokens) + np.frombuffer(self._lengths, np.int32)[places])
        alive = bounds >= self.threshold - _SLACK
        bounds, places = bounds[alive], places[alive]
        order = np.argsort(-bounds, kind="stable")
        return list(zip(bounds[order].tolist(), places[order].tolist(), strict=True))


def _counted(tokens: array[int]) -> list[tuple[int, int]]:
    """Every word with the number of its occurrence, so that sets of these count shared words with repeats."""
    seen: dict[int, int] = {}
    items = []
    for token in tokens:
        seen[token] = seen.get(token, 0) + 1
        items.append((token, seen[token]))
    return items


def _rouge_l(left: array[int], right: array[int]) -> float:
    """The F1 in `rouge_score`'s own order of operations, so that both round alike at the threshold."""
    common = LCSseq.similarity(left, right)
    if not common:
        return 0.0
    precision, recall = common / len(right), common / len(left)
    return float(2 * precision * recall / (precision + recall))
