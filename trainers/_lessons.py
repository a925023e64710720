"""From rollouts to what is learned: matrices over all answers, lessons of single answers, batches of lessons."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from factory.errors import DataError
from trainers._batches import Batch, Example, together
from trainers._options import Training
from trainers._rewarding import Rated
from trainers._rollouts import Floats, Rollout


class Experience(NamedTuple):
    """A rollout with all that was measured of it: (T,) each; `values` are the critic's, or zeros."""

    rollout: Rollout
    old: Floats
    ref: Floats
    entropy: Floats
    values: Floats
    rated: Rated
    gold: float | None


class Rolled(NamedTuple):
    """A batch of experiences as matrices (S, T), padded on the right with zeros; `size` answers of each prompt."""

    of: tuple[Experience, ...]
    size: int
    real: Tensor
    old: Tensor
    ref: Tensor
    entropy: Tensor
    values: Tensor
    scores: Tensor  # (S,): what is learned from, clipped and with the penalty for no end
    drawn: Tensor  # log p when it was drawn

    @property
    def kl(self) -> Tensor:
        """log pi - log ref of each token."""
        return (self.old - self.ref) * self.real

    @property
    def lengths(self) -> Tensor:
        """Tokens of each answer, (S,)."""
        return self.real.sum(1)


def rolled(found: Sequence[Experience], size: int, clip: float, penalty: float) -> Rolled:
    """The matrices; scores are clipped to +-`clip` (0: not), and answers without an end lose the penalty."""
    width = max(len(e.old) for e in found)
    real = torch.arange(width)[None] < torch.tensor([len(e.old) for e in found])[:, None]

    def matrix(rows: Sequence[Floats]) -> Tensor:
        whole = np.zeros((len(rows), width), dtype=np.float32)
        for to, row in zip(whole, rows, strict=True):
            to[: len(row)] = row
        return torch.from_numpy(whole)

    scores = torch.tensor([e.rated.value for e in found], dtype=torch.float32)
    scores = scores.clamp(-clip, clip) if clip else scores
    scores = scores - penalty * torch.tensor([float(not e.rollout.ended) for e in found])
    return Rolled(
        tuple(found), size, real, matrix([e.old for e in found]), matrix([e.ref for e in found]),
        matrix([e.entropy for e in found]), matrix([e.values for e in found]), scores,
        matrix([e.rollout.logps for e in found]),
    )  # fmt: skip


# --- lessons ---------------------------------------------------------------------------------------------------------


class Lesson(NamedTuple):
    """One answer, ready to be learned: (T,) each. `beta` weighs the KL in the loss, 0 where it is in the reward."""

    example: Example
    old: Floats
    ref: Floats
    advantages: Floats
    returns: Floats
    values: Floats
    beta: float


Group = tuple[Lesson, ...]  # the answers to one prompt


def lessons(found: Rolled, advantages: Tensor, returns: Tensor | None = None, beta: float = 0.0) -> list[Group]:
    """The lessons of all answers, those to one prompt together. Advantages and returns are (S, T)."""
    returns = torch.zeros_like(advantages) if returns is None else returns
    made = []
    for place, each in enumerate(found.of):
        advantage, gain = (m[place, : len(each.old)].numpy() for m in (advantages, returns))
        made.append(Lesson(each.rollout.example, each.old, each.ref, advantage, gain, each.values, beta))
    return [tuple(made[i : i + found.size]) for i in range(0, len(made), found.size)]


def weighed(groups: Sequence[Group], ratios: Tensor) -> list[Group]:
    """The policy's loss of each token times its ratio, (S, T): the loss is as large as the advantage. Values stay."""
    rows = iter(ratios.numpy())

    def one(lesson: Lesson) -> Lesson:
        return lesson._replace(advantages=lesson.advantages * next(rows)[: len(lesson.old)])

    return [tuple(one(lesson) for lesson in group) for group in groups]


class LessonBatch(NamedTuple):
    """N tokens of S answers; all but `text` and `beta` are (N,). `lengths` are those of the tokens' own answers."""

    text: Batch
    old: Tensor
    ref: Tensor
    advantages: Tensor
    returns: Tensor
    values: Tensor
    lengths: Tensor
    beta: float

    @property
    def real(self) -> int:
        """Tokens of all sequences."""
        return self.text.real

    def to(self, device: str) -> "LessonBatch":
        """The same batch on another device."""
        moved: list[Any] = [x.to(device) if isinstance(x, Tensor | Batch) else x for x in self]
        return LessonBatch(*moved)


def collated(groups: Sequence[Group], pad: int, packs: bool) -> LessonBatch:
    """As `together` lays the answers out, in its order."""
    text, order = together([[lesson.example for lesson in group] for group in groups], pad, packs)
    lessons = [lesson for group in groups for lesson in group]
    flat = [lessons[place] for place in order]

    def column(name: str) -> Tensor:
        return torch.from_numpy(np.concatenate([getattr(lesson, name) for lesson in flat]))

    counts = torch.tensor([len(lesson.old) for lesson in flat])
    return LessonBatch(
        text, column("old"), column("ref"), column("advantages"), column("returns"), column("values"),
        counts.repeat_interleave(counts).float(), flat[0].beta,
    )  # fmt: skip


def totals(groups: Sequence[Group]) -> dict[str, float]:
    """What a step's sums are divided by."""
    flat = [lesson for group in groups for lesson in group]
    return {"tokens": float(sum(len(lesson.old) for lesson in flat)), "answers": float(len(flat))}


def width(group: Group) -> int:
    """Tokens of a group whose answers share their prompt."""
    return len(group[0].example.ids) + sum(len(lesson.old) for lesson in group[1:])


def by_group(options: Training, size: int) -> Training:
    """The options with batches counted in groups instead of answers. Raises DataError where they do not come out."""
    rows = options.per_device_train_batch_size * options.gradient_accumulation_steps
    if rows % size:
        raise DataError(f"an optimiser step has {rows} answers, which num_generations={size} does not divide: "
                        "change per_device_train_batch_size or gradient_accumulation_steps")  # fmt: skip
    return replace(options, per_device_train_batch_size=max(1, options.per_device_train_batch_size // size))
