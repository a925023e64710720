"""Texts with near-duplicates put in, and the truth about them: for the tests and the benchmark of the filters."""

import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import polars as pl

from factory.text import jaccard, shingles

SCHEMA = dict.fromkeys(("id", "text", "prompt", "language", "finish_reason"), pl.String) | {"priority": pl.Float64}


def frame(
    *texts: str, prompts: Sequence[str] = (), priorities: Sequence[float | None] = (), start: int = 0
) -> pl.DataFrame:
    """What a filter is shown: completions "0", "1", ... that all answer one prompt, if no others are given."""
    columns: dict[str, Any] = {
        "id": [str(start + i) for i in range(len(texts))],
        "text": list(texts),
        "prompt": list(prompts) or ["What is it?"] * len(texts),
        "language": [""] * len(texts),
        "finish_reason": ["stop"] * len(texts),
        "priority": list(priorities) or [None] * len(texts),
    }
    return pl.DataFrame(columns, schema=SCHEMA)


# -- real texts --------------------------------------------------------------------------------------------------------


def english(data: Path) -> list[str]:
    """All English rows of the shared data: instructions with their answers, dialogues, word problems."""
    rows = [
        *(_alpaca(row) for name in ("alpaca_9k.json", "alpaca_en_demo.json") for row in json.loads(_read(data / name))),
        *(_shared_gpt(row) for row in json.loads(_read(data / "dpo_en_demo.json"))),
        *(f"{row['question']}\n{row['answer']}" for name in ("train", "test") for row in _lines(data, f"gsm8k_{name}")),
        *(json.loads(line)["chosen"] for line in _unzipped(data / "hh_rlhf_harmless_test.jsonl.gz").splitlines()),
    ]
    return [row for row in rows if row]


def chinese(data: Path) -> list[str]:
    """The rows of the Chinese demo."""
    return [_alpaca(row) for row in json.loads(_read(data / "alpaca_zh_demo.json"))]


def _alpaca(row: Mapping[str, str]) -> str:
    return "\n".join(filter(None, (row["instruction"], row.get("input"), row["output"])))


def _shared_gpt(row: Mapping[str, Any]) -> str:
    return "\n".join([*(turn["value"] for turn in row["conversations"]), row["chosen"]["value"]])


def _lines(data: Path, name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in _read(data / f"{name}.jsonl").splitlines()]


def _unzipped(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode()


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


# -- edits -------------------------------------------------------------------------------------------------------------


def with_edits(texts: Sequence[str], number: int, seed: int) -> tuple[list[str], list[tuple[int, int]]]:
    """The texts and behind them edited copies of some; and (copy, original) of each."""
    rng = Random(f"edits {seed}")
    origins = [rng.randrange(len(texts)) for _ in range(number)]
    return [*texts, *(edited(texts[i], rng) for i in origins)], [(len(texts) + k, i) for k, i in enumerate(origins)]


def edited(text: str, rng: Random) -> str:
    """One kind of edit, as strong as people and models make them: a word in forty, or something at an end."""
    pieces = re.findall(r"[一-鿿]|[^\s一-鿿]+\s*|\s+", text) or [text]
    return "".join(rng.choice(_EDITS)(pieces, rng))


def _each(pieces: list[str], rng: Random, change: Callable[[str, Random], str]) -> list[str]:
    pieces = list(pieces)
    for _ in range(1 + len(pieces) // 40):
        place = rng.randrange(len(pieces))
        pieces[place] = change(pieces[place], rng)
    return pieces


def _typo(piece: str, rng: Random) -> str:
    at = rng.randrange(len(piece) + 1)
    return piece[:at] + rng.choice("aeiousrnt") + piece[at:]


def _swapped(pieces: list[str], rng: Random) -> list[str]:
    at = rng.randrange(len(pieces))
    return [*pieces[:at], *reversed(pieces[at : at + 2]), *pieces[at + 2 :]]


_EDITS: list[Callable[[list[str], Random], list[str]]] = [
    lambda pieces, rng: _each(pieces, rng, lambda piece, rng: rng.choice(pieces)),  # other words
    lambda pieces, rng: _each(pieces, rng, lambda piece, rng: piece + rng.choice(pieces)),  # more words
    lambda pieces, rng: _each(pieces, rng, lambda piece, rng: ""),  # fewer words
    lambda pieces, rng: _each(pieces, rng, _typo),
    _swapped,
    lambda pieces, rng: ["Please help me. ", *pieces],
    lambda pieces, rng: [*pieces, " Thank you!"],
    lambda pieces, rng: pieces[: len(pieces) - len(pieces) // 12],  # cut off
    lambda pieces, rng: [piece.upper().replace(",", " ;") for piece in pieces],
    lambda pieces, rng: [piece.replace(".", " . ").replace("\n", "  \r\n") for piece in pieces],
]


# -- more texts of the same kind ---------------------------------------------------------------------------------------


def like(texts: Sequence[str], copies: int, seed: int) -> Iterator[str]:
    """The texts again and again in other words: every rarer word stands for another one about as frequent, another one
    in each copy. So a copy has the same lengths and near-duplicates as the texts, and shares with them what any two
    texts share, phrases of common words."""
    yield from texts
    counts = Counter(word for text in texts for word in _WORD.findall(text))
    ranked = [word for word, _ in counts.most_common()][200:]
    for copy in range(1, copies):
        rng, others = Random(f"words {seed} {copy}"), dict[str, str]()
        for first in range(0, len(ranked), 2000):
            group = ranked[first : first + 2000]
            others |= zip(group, rng.sample(group, len(group)), strict=True)
        for text in texts:
            yield _WORD.sub(lambda found, to=others: to.get(found[0], found[0]), text)  # type: ignore[misc]


_WORD = re.compile(r"[^\W\d_]+")


def families(rows: int, templates: int, seed: int) -> list[str]:
    """Rows in dense families: a template of sixty words with some words of its own in each row."""
    rng = Random(f"families {seed}")
    words = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "r", "st", "l", "ck", "m", "ve")]
    bases = [[rng.choice(words) for _ in range(60)] for _ in range(templates)]
    found = []
    for _ in range(rows):
        row = list(rng.choice(bases))
        for _ in range(rng.randrange(1, 8)):
            row[rng.randrange(60)] = rng.choice(words)
        found.append(" ".join(row))
    return found


# -- the truth ---------------------------------------------------------------------------------------------------------


def true_pairs(texts: Sequence[str], threshold: float, ngram: int = 3) -> dict[tuple[int, int], float]:
    """(later, earlier) and the Jaccard similarity of all pairs that reach the threshold, by multiplying the whole
    matrix of rows and shingles with itself: no hashing and no filter of candidates."""
    from scipy.sparse import csr_matrix

    numbers: dict[str, int] = {}
    rows = [[numbers.setdefault(s, len(numbers)) for s in shingles(text, ngram)] for text in texts]
    bounds = np.cumsum([0, *map(len, rows)])
    flat = np.fromiter((s for row in rows for s in row), np.int64, bounds[-1])
    matrix = csr_matrix((np.ones(len(flat), np.float32), flat, bounds), (len(rows), len(numbers)))
    sizes, turned, found = np.diff(bounds), matrix.T.tocsr(), dict[tuple[int, int], float]()
    for begin in range(0, len(rows), 500):
        common = (matrix[begin : begin + 500] @ turned).tocoo()
        row, near = common.row + begin, common.col
        similarity = common.data / (sizes[row] + sizes[near] - common.data)
        for k in np.flatnonzero((similarity >= threshold - 1e-6) & (near < row)).tolist():
            exact = jaccard(shingles(texts[row[k]], ngram), shingles(texts[near[k]], ngram))
            if exact >= threshold:
                found[int(row[k]), int(near[k])] = exact
    return found


def greedy(
    texts: Sequence[str], threshold: float, ngram: int = 3, prompts: Sequence[str] = (), order: Sequence[int] = ()
) -> dict[int, tuple[float, int]]:
    """Row by row in plain Python: of each dropped row its similarity to the nearest kept one, and that one.

    A copy of an earlier row shares its fate: what was near to the first is near to the second.
    """
    parts = [[shingles(text, ngram) for text in part] for part in (texts, prompts) if part]
    kept, found = list[int](), dict[int, tuple[float, int]]()
    first = dict[tuple[frozenset[str], ...], int]()
    for row in order or range(len(texts)):
        same = first.setdefault(tuple(frozenset(part[row]) for part in parts), row)
        if same in found:
            found[row] = found[same]
            continue
        near = [(min(jaccard(part[row], part[k]) for part in parts), -place, k) for place, k in enumerate(kept)]
        score, _, nearest = max(near, default=(0.0, 0, -1))
        if nearest >= 0 and score >= threshold:
            found[row] = score, nearest
        else:
            kept.append(row)
    return found
