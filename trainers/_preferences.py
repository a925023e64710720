"""Preference rows to items: pairs of answers, and whole rankings, with their weights and margins."""

from collections.abc import Iterable, Sequence
from math import isfinite
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from factory.errors import DataError
from trainers._batches import Batch, Example, grouped
from trainers._chat import Text
from trainers._rows import Read, Row, Skip, key_of, number, read, side_by_side, text_of, weight_of

_PAIRS = "SELECT question AS prompt, good AS chosen, bad AS rejected ..."


class Ranked(NamedTuple):
    """Answers to one prompt, best first; answers of like rank tie. `aspect` is what they were judged for."""

    answers: tuple[Example, ...]
    ranks: tuple[float, ...]  # higher is better
    weight: float = 1.0
    margin: float = 0.0
    aspect: str = ""
    key: str = ""
    heads: tuple[float, ...] = (1.0,)  # how much each head of a reward model learns from it
    reference: tuple[float, ...] = ()  # the reference's log-probabilities of the answers


class RankedBatch(NamedTuple):
    """G prompts with up to K answers; the S sequences of `text` stand in `slots` of (G, K), flattened."""

    text: Batch
    slots: Tensor  # (S,)
    better: Tensor  # (G, K, K) answer k stands above answer j
    filled: Tensor  # (G, K)
    weights: Tensor  # (G, H)
    margins: Tensor  # (G,)
    reference: Tensor  # (S,)

    @property
    def real(self) -> int:
        """Tokens of all sequences."""
        return self.text.real

    def to(self, device: str) -> "RankedBatch":
        """The same batch on another device."""
        moved: list[Any] = [x.to(device) for x in self]
        return RankedBatch(*moved)

    def square(self, values: Tensor) -> Tensor:
        """Values of the sequences (S, ...) at their places in (G, K, ...), zeros elsewhere."""
        flat = values.new_zeros(self.filled.numel(), *values.shape[1:]).index_copy(0, self.slots, values)
        return flat.reshape(*self.filled.shape, *values.shape[1:])


def ranked(rows: Iterable[Row], names: Sequence[str], tokenizer: Any, max_length: int, trainer: str,
           margin_scale: float = 1.0) -> Read[Ranked]:  # fmt: skip
    """Rows with chosen and rejected, or with completions (best first, or with scores)."""
    listed = "completions" in names
    if not listed and not {"chosen", "rejected"} <= set(names):
        raise DataError(
            f"{trainer} needs columns prompt, chosen and rejected, or prompt and completions; found {', '.join(names)}"
            f". Rename them in the query: {_PAIRS}"
        )

    def parse(row: Row, where: str) -> list[Text]:
        answers = tuple(_ranking(row, where)) if listed else (row["chosen"], row["rejected"])
        if trainer == "dpo" and len(answers) != 2:
            raise DataError(
                f"{where}: dpo compares two answers, and this row has {len(answers)} that differ. Give pairs, as the "
                "view `pairs` does, or the first and the last: completions[1] AS chosen, completions[-1] AS rejected"
            )
        return side_by_side(row, answers, tokenizer, where)

    def build(row: Row, found: list[Example]) -> Ranked:
        ranks = tuple(_ranking(row, key_of(row)).values()) if listed else (1.0, 0.0)
        weight, margin = weight_of(row), margin_scale * number(row, "margin", 0.0)
        return Ranked(tuple(found), ranks, weight, margin, str(row.get("aspect") or ""), found[0].key)

    return read(rows, parse, build, tokenizer, max_length, trainer)


def _ranking(row: Row, where: str) -> dict[str, float]:
    """The distinct answers of a row, best first, with their ranks: by their scores, else in the order they come in.

    Samples of one prompt repeat themselves; a repeat counts once, with the mean of its scores. Raises Skip where no
    answer is better than another.
    """
    texts = [text_of(answer) for answer in row["completions"]]
    scores = row.get("scores") or range(len(texts), 0, -1)
    if len(scores) != len(texts):
        raise DataError(f"{where}: {len(texts)} completions, but {len(scores)} scores: each needs one")
    if any(score is None or not isfinite(score) for score in scores):
        raise DataError(f"{where}: its scores are {list(scores)}; leave out answers without a score")
    given: dict[str, list[float]] = {}
    for text, score in zip(texts, scores, strict=True):
        given.setdefault(text, []).append(float(score))
    if len(given) < 2:
        raise Skip("same_sides")
    ranks = {text: fmean(found) for text, found in given.items()}
    if len(set(ranks.values())) < 2:
        raise Skip("no_order")
    return dict(sorted(ranks.items(), key=lambda found: -found[1]))


def collated(items: Sequence[Ranked], pad: int) -> RankedBatch:
    """One batch of items; what the answers of a prompt begin with alike is computed once."""
    most = max(len(i.answers) for i in items)
    ranks = torch.full((len(items), most), torch.nan)
    for row, item in enumerate(items):
        ranks[row, : len(item.ranks)] = torch.tensor(item.ranks, dtype=torch.float32)
    filled = ~ranks.isnan()
    return RankedBatch(
        grouped([i.answers for i in items], pad), filled.reshape(-1).nonzero()[:, 0],
        ranks[:, :, None] > ranks[:, None, :], filled, torch.tensor([[i.weight * h for h in i.heads] for i in items]),
        torch.tensor([i.margin for i in items]), torch.tensor([x for i in items for x in i.reference]),
    )  # fmt: skip


def weight(items: Sequence[Ranked]) -> dict[str, float]:
    """What the sum of a step's losses is divided by."""
    return {"weight": sum(i.weight * h for i in items for h in i.heads)}


def width(item: Ranked) -> int:
    """Tokens of an item's longest answer: what it is sorted by."""
    return max(len(e.ids) for e in item.answers)
