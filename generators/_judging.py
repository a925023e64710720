"""Judging the answers of many prompts: the options that steps which judge share, and the waves behind them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Literal

from pydantic import Field

from factory.engines.base import Engine, Reply, Request, Sampling
from factory.errors import DataError, SpecError
from factory.options import step
from factory.records import Judgement, Record, Verdict, content_id
from generators._candidates import seed
from generators._judge import (
    ASPECTS,
    JUDGING,
    Answer,
    Case,
    Decision,
    Judge,
    Opinion,
    Scored,
    agreed,
    compare,
    rank,
    score,
    votes_fault,
)
from generators._tally import Tally

PUBLISHED: Mapping[str, tuple[float, str]] = MappingProxyType({
    "consistency": (0.650, "Zheng et al. 2023: GPT-4 as judge of near-equal answers, both orders (GPT-3.5 0.462)"),
    "decided": (0.886, "Cui et al. 2023, UltraFeedback: 340K pairs of 63,967 prompts with 6 possible pairs each"),
    "longer": (0.622, "AlpacaEval: how often people's choice is the longer answer"),
})  # fmt: skip
MOST_RANKED = 26  # a list's labels are letters


@step
class Judging:
    """How answers are judged."""

    judge: str | tuple[str, ...]
    """The engine that judges, or several: each has a vote on every pair."""
    how: Literal["pairwise", "pointwise", "listwise"] = "pairwise"
    """`pairwise` compares two at a time in both orders; `listwise` ranks all, forwards and backwards; `pointwise`
    scores each answer by aspects and compares the means."""
    criterion: str = "Which answer is better?"
    """The question that a pairwise judge is asked."""
    worse: bool = False
    """The criterion asks for the worse answer, so the one that the judge names loses."""
    aspects: tuple[str, ...] = ASPECTS
    """What pointwise scores are given for. These have rubrics in the packaged templates; others are only named."""
    margin: float = Field(default=0.0, ge=0)
    """Pointwise, the better mean must lead by more than this; anything less is a tie."""
    votes: int = Field(default=1, ge=1)
    """Pairwise, how often each judge is asked in each order; more than once needs a temperature."""
    max_pairs: int | None = Field(default=None, ge=1)
    """Pairwise, the most pairs judged of one prompt, drawn by chance; by default all of them."""
    reference: bool = False
    """The judge first answers each task itself, and judges beside this answer: right where it can do the task."""
    structured: bool = False
    """Force verdicts in JSON by a schema; engines `openai` and `vllm` can."""
    judge_sampling: Sampling = JUDGING
    """How verdicts are drawn."""
    templates: Path | None = None
    """A folder with Jinja templates of your own: judge/pairwise, judge/pointwise, judge/listwise."""
    wave: int = Field(default=1024, ge=1)
    """Prompts that are worked on at once."""

    def __post_init__(self) -> None:
        if fault := votes_fault(self.votes, self.judge_sampling):
            raise SpecError(fault)

    @property
    def judges(self) -> tuple[str, ...]:
        return (self.judge,) if isinstance(self.judge, str) else self.judge

    def judge_calls(self, answers: int) -> int:
        """The calls of all judges for a prompt with this many answers."""
        pairs = answers * (answers - 1) // 2
        ways = {
            "pairwise": 2 * self.votes * min(pairs, self.max_pairs or pairs),
            "pointwise": answers * len(self.aspects),
            "listwise": 2,
        }
        return len(self.judges) * (ways[self.how] + self.reference)

    def judged(
        self, by: str, cases: Sequence[Case], engines: Mapping[str, Engine], salt: int, tally: Tally
    ) -> Iterator[Record]:
        """All judges' opinions on a wave of cases, judge after judge, each asked in one call."""
        most = max((len(c.answers) for c in cases), default=0)
        if self.how == "listwise" and most > MOST_RANKED:
            raise DataError(f"{by}: a prompt has {most} answers, listwise ranks at most {MOST_RANKED}: use pairwise")
        decisions: dict[Case, list[Decision]] = {}
        for name in self.judges:
            judge, engine = self._asked(by), _Metered(engines[name], tally)
            for opinion in self._opinions(judge, engine, cases, salt):
                yield from opinion.records
                if isinstance(opinion, Opinion):
                    _note(tally, opinion)
                    decisions.setdefault(opinion.case, []).append(opinion.decision)
        for pair, said in decisions.items():
            _count(tally, pair, agreed(said))

    def _asked(self, by: str) -> Judge:
        return Judge(
            by=by, templates=self.templates, criterion=self.criterion, worse=self.worse, aspects=self.aspects,
            sampling=self.judge_sampling, structured=self.structured, votes=self.votes, reference=self.reference,
        )  # fmt: skip

    def _opinions(
        self, judge: Judge, engine: Engine, cases: Sequence[Case], salt: int
    ) -> Iterable[Opinion] | Iterable[Opinion | Scored]:
        match self.how:
            case "pairwise":
                return compare(judge, engine, chain.from_iterable(self._pairs(c, salt) for c in cases), salt)
            case "listwise":
                return rank(judge, engine, (c for c in cases if len(c.answers) > 1), salt)
            case "pointwise":
                return self._by_scores(judge, engine, cases, salt)

    def _pairs(self, case: Case, salt: int) -> list[Case]:
        """All pairs of a case's answers, or as many as wanted, drawn by the prompt's own chance."""
        draw = Random(seed(salt, "pairs", case.prompt_id))
        pairs = list(combinations(case.answers, 2))
        if self.max_pairs is not None and self.max_pairs < len(pairs):
            pairs = draw.sample(pairs, self.max_pairs)
        return [case._replace(answers=p) for p in pairs]

    def _by_scores(self, judge: Judge, engine: Engine, cases: Sequence[Case], salt: int) -> Iterator[Opinion | Scored]:
        """The scores of each answer, then what they say of each pair."""
        scored = score(judge, engine, (c._replace(answers=(a,)) for c in cases for a in c.answers), salt)
        for case in cases:
            means = dict[Answer, float | None]()
            for answer in case.answers:
                opinion = next(scored)
                means[answer] = opinion.mean
                yield opinion
            for one, other in combinations(case.answers, 2):
                yield self._by_means(case._replace(answers=(one, other)), means[one], means[other], engine.model)

    def _by_means(self, pair: Case, mine: float | None, yours: float | None, model: str) -> Opinion:
        """A score that is missing is no score of zero: such a pair is not judged."""
        if mine is None or yours is None:
            return Opinion(pair, "invalid")
        tied = abs(mine - yours) <= self.margin
        outcome: Literal["win", "lose", "tie"] = "tie" if tied else "win" if mine > yours else "lose"
        one, other = pair.answers
        row = Judgement(pair.prompt_id, one.id, model, "model", other.id, rubric="mean score", verdict=outcome)
        return Opinion(pair, outcome, (row,))


def different(by: str, case: Case) -> tuple[Case, list[Verdict]]:
    """The case without answers whose text was there before, and a verdict on each: nobody can tell them apart."""
    first, verdicts = dict[str, Answer](), list[Verdict]()
    for answer in case.answers:
        if first.setdefault(answer.text.strip(), answer) is not answer:
            twin = first[answer.text.strip()].id
            verdicts.append(
                Verdict(content_id("repeated", answer.id), by, False, "repeated", evidence_id=twin, text=answer.text)
            )
    return case._replace(answers=tuple(first.values())), verdicts


@dataclass(frozen=True)
class _Metered:
    """An engine whose replies' cost a tally notes."""

    engine: Engine
    tally: Tally

    @property
    def model(self) -> str:
        return self.engine.model

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        return self.tally.ask(self.engine, requests)

    def close(self) -> None:
        self.engine.close()


def _note(tally: Tally, opinion: Opinion) -> None:
    """One judge on one pair: readable? the same in both orders? who had the first place?"""
    tally.note("invalid", opinion.decision == "invalid")
    orders = {j.shown_first for j in opinion.judgements} - {""}
    if len(orders) > 1 and opinion.decision != "invalid":
        tally.note("consistency", opinion.decision != "inconsistent")
    for judgement in opinion.judgements:
        if judgement.shown_first and judgement.verdict in ("win", "lose"):
            tally.note("first_slot", (judgement.verdict == "win") == (judgement.shown_first == judgement.completion_id))


def _count(tally: Tally, pair: Case, decision: Decision) -> None:
    """All judges on one pair."""
    tally.count["judged"] += 1
    decided = decision in ("win", "lose")
    tally.count["decided"] += decided
    tally.note("decided", decided)
    tally.note("tied", decision == "tie")
    one, other = (len(a.text) for a in pair.answers)
    if decided and one != other:
        tally.note("longer", (decision == "win") == (one > other))
