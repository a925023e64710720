"""Batches of tokens: which rows make a step, and the three ways to lay sequences out for one pass through the model.

All of them pad on the right and give no padding mask: under a causal mask nothing that counts can see what stands to
its right. What the losses need is not the logits of every position but a list: position `sources[i]` predicts token
`wanted[i]` of sequence `owners[i]`. So padded, packed and shared layouts give the same numbers to the same losses.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch

IGNORED = -100  # the label of a token that takes no part in the loss
_WINDOW = 50  # steps whose rows are sorted by length together
_WORTH = 0.9  # a prompt is shared, or a row, if that leaves at most this share of the tokens
Ints = np.ndarray[Any, np.dtype[np.int32]]


class Example(NamedTuple):
    """One tokenised sequence: `ids` and `labels` of equal length; labels are IGNORED outside what is learned."""

    ids: Ints
    labels: Ints
    weight: float = 1.0
    key: str = ""

    @property
    def targets(self) -> int:
        """How many tokens are learned."""
        return int((self.labels[1:] != IGNORED).sum())


class Batch(NamedTuple):
    """S sequences in B rows of T tokens; N tokens are learned."""

    ids: torch.Tensor  # (B, T)
    positions: torch.Tensor | None  # (B, T), only where they are not 0, 1, 2 ...
    mask: torch.Tensor | None  # (B, 1, T, T), true where a position may look; only where causal is not enough
    sources: torch.Tensor  # (N,) places in ids, flattened, that predict ...
    wanted: torch.Tensor  # (N,) ... these tokens
    owners: torch.Tensor  # (N,) of these sequences
    ends: torch.Tensor  # (S,) places in ids, flattened, of the sequences' last tokens
    weights: torch.Tensor  # (S,)
    real: int  # tokens of all sequences; a shared prompt counts for each of them

    @property
    def targets(self) -> int:
        """How many tokens are learned."""
        return len(self.wanted)

    def to(self, device: str) -> "Batch":
        """The same batch on another device."""
        moved: list[Any] = [x.to(device, non_blocking=True) if torch.is_tensor(x) else x for x in self]
        return Batch(*moved)


# --- which rows make a step ------------------------------------------------------------------------------------------


def batches(data: Sequence[Any], size: int, rng: Random, strategy: str = "group_by_length",
            length: Callable[[Any], int] = lambda e: len(e.ids)) -> list[list[Any]]:  # fmt: skip
    """One epoch in batches: shuffled, then sorted by length within windows of fifty, then the batches shuffled."""
    order = list(data)
    if strategy != "sequential":
        rng.shuffle(order)
    if strategy == "group_by_length":
        windows = [order[i : i + _WINDOW * size] for i in range(0, len(order), _WINDOW * size)]
        order = [row for window in windows for row in sorted(window, key=length)]
    found = [order[i : i + size] for i in range(0, len(order), size)]
    if strategy == "group_by_length":
        rng.shuffle(found)
    return found


def cut(rows: Sequence[Any], size: int, tokens: int, length: Callable[[Any], int]) -> list[list[Any]]:
    """Rows for one pass each: of like length, at most `size` rows and, if it is not 0, `tokens` padded tokens."""
    parts: list[list[Any]] = []
    for row in sorted(rows, key=length, reverse=True):  # so the first row of a part is its widest
        fits = parts and len(parts[-1]) < size
        if fits and (not tokens or (len(parts[-1]) + 1) * length(parts[-1][0]) <= tokens):
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts


def bins(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Best-fit decreasing: indices in bins whose lengths sum to at most `room`; what is longer has a bin alone."""
    found: list[list[int]] = []
    left: list[tuple[int, int]] = []  # (room left, bin), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect_left(left, (lengths[index], -1))
        space, bin_ = left.pop(place) if place < len(left) else (room, len(found))
        if bin_ == len(found):
            found.append([])
        found[bin_].append(index)
        insort(left, (space - lengths[index], bin_))
    return found


# --- layouts ---------------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where a sequence stands: its first `shared` tokens from `start` on in `row`, the others from `branch` on."""

    row: int
    start: int
    shared: int
    branch: int

    def of(self, index: Any) -> Any:
        """The place in its row of the sequence's token number `index`."""
        place = self.start + index
        return place if self.branch == self.start + self.shared else place + (index >= self.shared) * self._jump

    @property
    def _jump(self) -> int:
        return self.branch - self.start - self.shared


def padded(examples: Sequence[Example], pad: int) -> Batch:
    """A sequence a row."""
    places = [_Place(i, 0, len(e.ids), len(e.ids)) for i, e in enumerate(examples)]
    return _laid_out(examples, places, pad, len(examples), max(len(e.ids) for e in examples))


def packed(groups: Sequence[Sequence[Example]], pad: int) -> Batch:
    """Several sequences one after the other in a row; positions begin anew, and transformers keeps them apart."""
    examples, places = list[Example](), list[_Place]()
    for row, group in enumerate(groups):
        ends = np.cumsum([0, *(len(e.ids) for e in group)])
        places += [_Place(row, int(a), int(b - a), int(b)) for a, b in pairwise(ends)]
        examples += group
    width = max(sum(len(e.ids) for e in group) for group in groups)
    batch = _laid_out(examples, places, pad, len(groups), width)
    positions = torch.arange(width).repeat(len(groups), 1)
    for place, example in zip(places, examples, strict=True):
        end = place.start + len(example.ids)
        positions[place.row, place.start : end] = torch.arange(len(example.ids))
        positions[place.row, end:] = torch.arange(width - end)  # what is left over is a document of its own
    return batch._replace(positions=positions)


def together(groups: Sequence[Sequence[Example]], pad: int, packs: bool) -> tuple[Batch, Sequence[int]]:
    """Sequences of a group share their prompt; single ones share rows, if the model `packs`. And their order."""
    flat = [example for group in groups for example in group]
    if len(flat) > len(groups):
        return grouped(groups, pad), range(len(flat))
    return compact(flat, pad) if packs else (padded(flat, pad), range(len(flat)))


def compact(examples: Sequence[Example], pad: int) -> tuple[Batch, Sequence[int]]:
    """Several sequences a row where that saves much padding, else one; and their places among the examples."""
    longest = max(len(e.ids) for e in examples)
    rows = bins([len(e.ids) for e in examples], longest * 3 // 2)
    width = max(sum(len(examples[i].ids) for i in row) for row in rows)
    if width * len(rows) > _WORTH * longest * len(examples):
        return padded(examples, pad), range(len(examples))
    return packed([[examples[i] for i in row] for row in rows], pad), [i for row in rows for i in row]


def grouped(groups: Sequence[Sequence[Example]], pad: int) -> Batch:
    """The answers to one prompt side by side: the prompt, or whatever they begin with alike, is computed once.

    Where that saves little, a sequence a row. The sequences keep their order: those of the first group first.
    """
    alike = [_common(group) for group in groups]
    totals = [a + sum(len(e.ids) - a for e in group) for a, group in zip(alike, groups, strict=True)]
    examples = [e for group in groups for e in group]
    apart = max(len(e.ids) for e in examples) * len(examples)
    if max(totals) * len(groups) > _WORTH * apart:
        return padded(examples, pad)
    return _shared(groups, alike, max(totals), pad)


def _shared(groups: Sequence[Sequence[Example]], alike: Sequence[int], width: int, pad: int) -> Batch:
    examples, places = list[Example](), list[_Place]()
    positions = np.arange(width)[None].repeat(len(groups), 0)
    part = np.full((len(groups), width), -1)  # 0 in the common beginning, then 1, 2 ... for the branches
    for row, (group, common) in enumerate(zip(groups, alike, strict=True)):
        part[row, :common], branch = 0, common
        for number, example in enumerate(group, 1):
            own = len(example.ids) - common
            places.append(_Place(row, 0, common, branch))
            positions[row, branch : branch + own] -= branch - common
            part[row, branch : branch + own] = number
            branch += own
        examples += group
    parts = torch.from_numpy(part)
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    seen = (parts[:, None, :] == 0) | (parts[:, None, :] == parts[:, :, None])
    batch = _laid_out(examples, places, pad, len(groups), width)
    return batch._replace(positions=torch.from_numpy(positions), mask=(causal & seen)[:, None])


def apart(batch: Batch) -> tuple[Batch, torch.Tensor]:
    """The sequences of shared or packed rows in rows of their own, and where the places of the old rows are in them.

    For models that do not read such rows aright. A beginning that is shared is computed once for each of its sequences.
    """
    width = batch.ids.shape[1]
    last, row = batch.ends % width, batch.ends // width
    if batch.mask is not None:
        seen = batch.mask[row, 0, last]  # (S, T): what a sequence's last token may look at is the sequence
    else:
        assert batch.positions is not None, "padded rows are apart already"
        places = torch.arange(width, device=last.device)[None]
        seen = (places <= last[:, None]) & (places >= (last - batch.positions[row, last])[:, None])
    owners, columns = seen.nonzero(as_tuple=True)
    counts = seen.sum(1)
    nth = torch.arange(len(owners), device=last.device) - (counts.cumsum(0) - counts)[owners]
    ids = batch.ids.new_zeros(len(counts), int(counts.max()))
    ids[owners, nth] = batch.ids[row[owners], columns]
    found = torch.zeros(batch.ids.numel(), dtype=torch.long, device=last.device)
    # of the equal places of several sequences any serves; the first makes runs repeat themselves
    found.scatter_reduce_(0, row[owners] * width + columns, owners * ids.shape[1] + nth, "amin", include_self=False)
    return batch._replace(ids=ids, positions=None, mask=None), found


def _common(group: Sequence[Example]) -> int:
    """How many first tokens all sequences of a group have in common; at least one token stays each one's own."""
    shortest = min(len(e.ids) for e in group) - 1
    rows = np.stack([e.ids[:shortest] for e in group])
    differs = (rows != rows[0]).any(0)
    return int(differs.argmax()) if differs.any() else shortest


def _laid_out(examples: Sequence[Example], places: Sequence[_Place], pad: int, rows: int, width: int) -> Batch:
    ids = np.full((rows, width), pad, dtype=np.int64)
    sources, wanted, counts, ends = [], [], list[int](), list[int]()
    for example, place in zip(examples, places, strict=True):
        own = place.shared
        ids[place.row, place.start : place.start + own] = example.ids[:own]
        ids[place.row, place.branch : place.branch + len(example.ids) - own] = example.ids[own:]
        learned = (example.labels[1:] != IGNORED).nonzero()[0]
        sources.append(place.row * width + place.of(learned))
        wanted.append(example.ids[1:][learned])
        counts.append(len(learned))
        ends.append(place.row * width + int(place.of(len(example.ids) - 1)))

    def whole(parts: list[Any]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    weights = torch.tensor([e.weight for e in examples])
    real = sum(len(e.ids) for e in examples)
    owners = torch.from_numpy(np.arange(len(counts)).repeat(counts))
    return Batch(torch.from_numpy(ids), None, None, whole(sources), whole(wanted), owners, torch.tensor(ends),
                 weights, real)  # fmt: skip
