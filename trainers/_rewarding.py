"""Rewards of rollouts: the notation of `factory.rewards`, scored as everywhere else, with errors that name the row."""

import math
from collections.abc import Callable, Sequence
from statistics import pstdev
from typing import NamedTuple

from factory.errors import DataError
from factory.records import Completion, Prompt
from factory.rewards import Judge, Model, Part, Reward, Sample
from factory.scorers import Scorer, combined, opened

Ask = Callable[[Judge, Sequence[tuple[Prompt, Completion]]], list[float | None]]  # a judge's scores, by its engine


class Answer(NamedTuple):
    """What is rewarded, and what its prompt's row is called."""

    prompt: Prompt
    completion: Completion
    key: str


class Rated(NamedTuple):
    """An answer's reward, how it was made in words, and how far the members of an ensemble are apart."""

    value: float
    told: str = ""
    spread: float | None = None


class Rewarder:
    """A reward that is ready: models stay loaded from batch to batch."""

    def __init__(self, reward: Reward, ask: Ask | None = None) -> None:
        if reward.judges and ask is None:
            raise DataError(f"reward {{judge: {reward.judges[0]}}}: a judge is an engine; give it with --engine "
                            f"{reward.judges[0]}=USE:MODEL, or in a spec")  # fmt: skip
        if any(p.way == "tournament" for p in reward.parts if isinstance(p, Judge)):
            raise DataError("reward judge: a tournament ranks answers to one prompt, and gives no reward that lasts: "
                            "use way: score")  # fmt: skip
        self.reward, self.ask = reward, ask
        self.scorers: dict[int, Scorer] = {i: opened(p) for i, p in enumerate(reward.parts) if not isinstance(p, Judge)}

    def rate(self, answers: Sequence[Answer]) -> list[Rated | None]:
        """The rewards of answers; None where a judge gave none. Raises DataError, with the row, for other gaps."""
        columns = self._columns(answers)
        found = self._rated(columns, len(answers))
        for answer, row, rated in zip(answers, zip(*columns, strict=True), found, strict=True):
            if rated is None:
                self._refuse(answer, row)
        return found

    def measure(self, answers: Sequence[Answer]) -> list[Rated | None]:
        """The same of a reward that nobody learns from: None where there is none."""
        return self._rated(self._columns(answers), len(answers))

    def _rated(self, columns: Sequence[Sequence[float | None]], count: int) -> list[Rated | None]:
        scored, spreads = combined(self.reward, columns), self._spreads(columns, count)
        several = len(columns) > 1
        return [
            None if s.value is None else Rated(s.value, s.told(self.reward) if several else "", spread)
            for s, spread in zip(scored, spreads, strict=True)
        ]

    def _columns(self, answers: Sequence[Answer]) -> list[list[float | None]]:
        """Each part's scores of all answers."""
        parts = enumerate(self.reward.parts)
        return [self._part(place, part, answers) if answers else [] for place, part in parts]

    def _part(self, place: int, part: Part, answers: Sequence[Answer]) -> list[float | None]:
        if isinstance(part, Judge):
            assert self.ask is not None, "checked at the start"
            return self.ask(part, [(a.prompt, a.completion) for a in answers])
        samples = [Sample.of(a.prompt, a.completion.text) for a in answers]
        try:
            return self.scorers[place](samples)
        except DataError as error:
            raise DataError(f"{_culprit(self.scorers[place], answers, samples)}: {error}") from error

    def _refuse(self, answer: Answer, row: Sequence[float | None]) -> None:
        """A judge may fail now and then; a rule, a model or a function that gives no number is a mistake."""
        for part, score in zip(self.reward.parts, row, strict=True):
            if not isinstance(part, Judge) and (score is None or not math.isfinite(score)):
                raise DataError(
                    f"row {answer.key}: {part.name} gave no number for {answer.completion.text[:60]!r}. Rules need the "
                    "right answer in the meta, or a column `answer` (SELECT ..., completion AS answer FROM sft); "
                    "functions and SQL must give a finite number for every answer"
                )
            if score is None:
                return

    def _spreads(self, columns: Sequence[Sequence[float | None]], count: int) -> list[float | None]:
        """The deviation among several models of one thing, whose mean counts, or among the heads of one model."""
        models = [i for i, part in enumerate(self.reward.parts) if isinstance(part, Model)]
        if len(models) > 1:
            if self.reward.combine not in ("mean", "lower"):  # objectives that differ are meant to
                return [None] * count
            rows = [[columns[i][row] for i in models] for row in range(count)]
            return [pstdev([x for x in row if x is not None]) if None not in row else None for row in rows]
        found = getattr(self.scorers[models[0]], "spreads", None) if models else None
        return list(found) if found else [None] * count


def _culprit(scorer: Scorer, answers: Sequence[Answer], samples: Sequence[Sample]) -> str:
    """The first row whose answer fails alone; if none does, all of them together do."""
    for answer, sample in zip(answers, samples, strict=True):
        try:
            scorer([sample])
        except DataError:
            return f"row {answer.key}"
    return f"rows {answers[0].key} to {answers[-1].key} together"
