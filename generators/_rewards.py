"""Rewards of many answers at once, with judges among them: what a generator needs beyond `factory.scorers`.

A judge scores each answer (the mean of its aspects), or decides a knock-out among the answers of one prompt, in both
orders, all matches of a round at once. The reward of a knock-out is the share of its rounds that an answer won, so that
only the answers of one prompt compare. What the judge left open is nobody's win: the lot alone makes no order, and an
answer none of whose matches could be read has no reward.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import NamedTuple

from factory import rewards as notation
from factory.engines.base import Engine, Sampling
from factory.records import Completion, Judgement, Prompt, Record, Verdict
from factory.rewards import Part, Reward, Sample
from factory.scorers import Scored, Scorer, combined, opened
from generators._judge import Case, Judge, Opinion, compare, score

Group = tuple[Prompt, Sequence[Completion]]  # a prompt with answers that differ from each other


class Rated(NamedTuple):
    """One answer's reward: None where there is none, with the reason and what was said instead."""

    value: float | None
    opinions: tuple[Judgement, ...] = ()
    reason: str = ""
    said: str = ""
    evidence: str = ""


class _Given(NamedTuple):
    """What one part gives for one answer."""

    score: float | None
    rationale: str = ""
    judgements: tuple[Judgement, ...] = ()
    faults: tuple[Verdict, ...] = ()

    @property
    def fault(self) -> tuple[str, str, str]:
        """Why there is no score, what was said instead, and the call that said it."""
        for first in self.faults:
            return f"judge_{first.reason}", first.text, first.record_id
        return "no_score", self.rationale, ""


@dataclass
class Rewarder:
    """A reward that is ready to rate: models stay loaded from wave to wave."""

    by: str
    reward: Reward
    engines: Mapping[str, Engine]
    templates: Path | None
    salt: int
    asides: dict[str, list[Record]] = field(default_factory=dict)  # opinions that are no reward, by prompt

    def rate(self, groups: Sequence[Group]) -> list[list[Rated]]:
        """The rewards of all groups' answers, in their order."""
        columns = [self._part(place, part, groups) for place, part in enumerate(self.reward.parts)]
        scored = combined(self.reward, [[given.score for given in column] for column in columns])
        answers = [(prompt, completion) for prompt, completions in groups for completion in completions]
        rated = iter([
            self._rated(prompt, completion, total, given)
            for (prompt, completion), total, given in zip(answers, scored, zip(*columns, strict=True), strict=True)
        ])  # fmt: skip
        return [[next(rated) for _ in completions] for _, completions in groups]

    def taken(self, prompt_id: str) -> list[Record]:
        """The opinions of a prompt's knock-outs, and those on answers without a reward; once."""
        return self.asides.pop(prompt_id, [])

    @cached_property
    def _scorers(self) -> dict[int, Scorer]:
        return {i: opened(p) for i, p in enumerate(self.reward.parts) if not isinstance(p, notation.Judge)}

    def _part(self, place: int, part: Part, groups: Sequence[Group]) -> list[_Given]:
        if isinstance(part, notation.Judge):
            return self._knocked_out(part, groups) if part.way == "tournament" else self._scored(part, groups)
        samples = [Sample.of(p, c.text) for p, completions in groups for c in completions]
        return [_Given(value) for value in self._scorers[place](samples)]

    def _rated(self, prompt: Prompt, completion: Completion, total: Scored, given: Sequence[_Given]) -> Rated:
        if total.value is None:
            for one in given:
                self._aside(prompt, *one.judgements, *one.faults)
            return Rated(None, (), *next((g for g in given if g.score is None), _Given(None)).fault)
        lone = self.reward.parts[0].weight == len(given) == 1
        if lone and given[0].judgements:  # a judge's own rows, one for each aspect: their mean is the reward
            return Rated(total.value, given[0].judgements)
        told = lone and given[0].rationale
        opinion = Judgement(
            prompt.id, completion.id, self.reward.name, self.reward.kind, rubric=self.by, aspect="reward",
            score=total.value, rationale=told or total.told(self.reward),
        )  # fmt: skip
        return Rated(total.value, (opinion,))

    # --- judges ------------------------------------------------------------------------------------------------------

    def _judge(self, part: notation.Judge) -> Judge:
        return Judge(
            by=self.by, templates=self.templates, criterion=part.criterion, aspects=part.aspects,
            sampling=Sampling(temperature=0.0, max_tokens=part.max_tokens), reference=part.reference,
            structured=part.structured,
        )  # fmt: skip

    def _scored(self, part: notation.Judge, groups: Sequence[Group]) -> list[_Given]:
        cases = (Case.of(p, c) for p, completions in groups for c in completions)
        judged = score(self._judge(part), self.engines[part.judge], cases, self.salt)
        return [_Given(scored.mean, judgements=scored.judgements, faults=scored.faults) for scored in judged]

    def _knocked_out(self, part: notation.Judge, groups: Sequence[Group]) -> list[_Given]:
        brackets = [_Bracket.drawn(prompt, completions, self.salt) for prompt, completions in groups]
        while matches := [(b, pair) for b in brackets for pair in b.pairs]:
            cases = [Case.of(b.prompt, *pair) for b, pair in matches]
            for (bracket, pair), opinion in zip(
                matches, compare(self._judge(part), self.engines[part.judge], cases, self.salt), strict=True
            ):
                self._aside(bracket.prompt, *opinion.records)
                bracket.play(pair, opinion)
            for bracket in brackets:
                bracket.next_round()
        return [b.given(c) for b in brackets for c in b.entered]

    def _aside(self, prompt: Prompt, *records: Record) -> None:
        self.asides.setdefault(prompt.id, []).extend(records)


@dataclass
class _Bracket:
    """The knock-out of one prompt's answers.

    An answer without a partner goes on to the next round, and that round counts as won with its next win. Of an
    undecided match the one whom the lot put first goes on, without a win.
    """

    prompt: Prompt
    entered: Sequence[Completion]
    left: list[Completion]
    rounds: int
    wins: Counter[str] = field(default_factory=Counter)
    byes: Counter[str] = field(default_factory=Counter)  # rounds without a partner since the last win
    read: set[str] = field(default_factory=set)  # who had a match that could be read
    faults: dict[str, tuple[Verdict, ...]] = field(default_factory=dict)  # of the first match that could not
    through: list[Completion] = field(default_factory=list)

    @staticmethod
    def drawn(prompt: Prompt, completions: Sequence[Completion], salt: int) -> "_Bracket":
        """The lot is drawn by the prompt's name."""
        order = list(completions)
        Random(f"{salt} bracket {prompt.id}").shuffle(order)
        rounds = max(0, len(order) - 1).bit_length()
        return _Bracket(prompt, completions, order, rounds)

    @property
    def pairs(self) -> list[tuple[Completion, Completion]]:
        """Who meets whom in this round."""
        return list(zip(self.left[0::2], self.left[1::2], strict=False))

    def play(self, pair: tuple[Completion, Completion], opinion: Opinion) -> None:
        """Note a match's winner, where there is one, and who goes on."""
        ahead = pair[1] if opinion.decision == "lose" else pair[0]
        self.through.append(ahead)
        if opinion.decision in ("win", "lose"):
            self.wins[ahead.id] += 1 + self.byes.pop(ahead.id, 0)
        for one in pair:
            if opinion.decision != "invalid":
                self.read.add(one.id)
            else:
                self.faults.setdefault(one.id, opinion.faults)

    def next_round(self) -> None:
        """Only those who go on are left, and the one without a partner."""
        if len(self.left) > 1 and len(self.left) % 2:
            self.byes[self.left[-1].id] += 1
            self.through.append(self.left[-1])
        self.left, self.through = (self.through, []) if len(self.left) > 1 else (self.left, [])

    def given(self, completion: Completion) -> _Given:
        """The share of all rounds that an answer won: 1 for who won all, also for a lone entry."""
        if not self.rounds:
            return _Given(1.0, "the only answer")
        if completion.id not in self.read:
            return _Given(None, faults=self.faults.get(completion.id, ()))
        wins = self.wins[completion.id]
        return _Given(wins / self.rounds, f"{wins} of {self.rounds} rounds won")


def of_copy(rated: Rated, completion: Completion) -> Rated:
    """The same reward for another completion with the same text."""
    return rated._replace(opinions=tuple(replace(o, completion_id=completion.id) for o in rated.opinions))


def unrated(by: str, completion: Completion, rated: Rated) -> Verdict:
    """The verdict on an answer that has no reward."""
    return Verdict(completion.id, by, False, rated.reason, evidence_id=rated.evidence, text=rated.said)
