"""The one judging core: how answers are put before a judge, and how its reply is read. Pure functions around an engine.

Sources: Zheng et al. 2023, "Judging LLM-as-a-Judge" (two games in swapped order; a winner only if both agree); Cui et
al. 2023, "UltraFeedback" (aspects with rubrics); Ouyang et al. 2022, "InstructGPT" (a ranking of K answers is C(K,2)
pairs). Departures:

1. Nothing is guessed: a reply without a readable verdict is `invalid`, a cut or failed one as well, with its reason.
2. Candidates are hostile. Each stands behind a fence with a nonce that none of the texts contains, reserved chat
   markers are taken apart, and only the reply's last line (or its JSON) is read: no text of a candidate can decide.
3. Rankings are asked for twice, the list forwards and backwards, and a pair wins only if both agree.
4. One aspect of one answer is one request; UltraFeedback rates four answers in one.
"""

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from factory.engines.base import Engine, Reply, Request, Sampling, in_order
from factory.records import Completion, Judgement, Message, Outcome, Prompt, Verdict, content_id, user
from generators import _verdicts as reading
from generators._templates import render

ASPECTS = ("helpfulness", "honesty", "instruction_following", "harmlessness", "style")
JUDGING = Sampling(temperature=0.0, max_tokens=1024)
Decision = Literal["win", "lose", "tie", "inconsistent", "invalid"]
T = TypeVar("T")

_LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MARKERS = re.compile(
    r"[<＜](?=[|｜]|/?(?:s|[se]op|(?:bos|eos|pad|unk)(?:_token)?|think|tool_call|tool_response|(?:start|end)_of_turn)[>＞]"
    r"|<SYS>>|<?/SYS>>)|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|[gs]MASK)\])",
    re.IGNORECASE,
)


class Answer(NamedTuple):
    """A text to judge, with its completion's id."""

    id: str
    text: str


class Case(NamedTuple):
    """A task with the answers that are judged: one (scores), two (pairs) or more (rankings)."""

    prompt_id: str
    task: str
    answers: tuple[Answer, ...]
    language: str = ""
    reference: str = ""

    @staticmethod
    def of(prompt: Prompt, *completions: Completion) -> "Case":
        """The case of a prompt's completions."""
        return Case(prompt.id, dialogue(prompt), tuple(Answer(c.id, c.text) for c in completions), prompt.language)


@dataclass(frozen=True, kw_only=True)
class Judge:
    """How opinions are asked. A stored `win` always means the better answer, whatever the criterion asks for."""

    by: str  # the generator that asks; its faults' verdicts carry this name
    templates: Path | None = None
    criterion: str = "Which answer is better?"
    worse: bool = False  # the criterion asks for the worse answer: the one that the judge names loses
    aspects: tuple[str, ...] = ASPECTS
    sampling: Sampling = JUDGING
    structured: bool = False  # JSON by schema, where the engine can force it
    votes: int = 1  # times it is asked in each order
    reference: bool = False  # the judge answers the task itself first, and judges beside this answer


@dataclass(frozen=True)
class Opinion:
    """What one judge thinks of one pair in both orders: `decision` is how the first answer of the case fared."""

    case: Case
    decision: Decision
    judgements: tuple[Judgement, ...] = ()
    faults: tuple[Verdict, ...] = ()

    @property
    def records(self) -> tuple[Judgement | Verdict, ...]:
        return (*self.judgements, *self.faults)


@dataclass(frozen=True)
class Scored:
    """What one judge thinks of one answer: a score from 1 to 5 for each aspect, None where it gave none."""

    case: Case
    scores: Mapping[str, float | None]
    judgements: tuple[Judgement, ...] = ()
    faults: tuple[Verdict, ...] = ()

    @property
    def records(self) -> tuple[Judgement | Verdict, ...]:
        return (*self.judgements, *self.faults)

    @property
    def mean(self) -> float | None:
        """The mean of all aspects; None where one is missing, for means of different aspects do not compare."""
        values = [v for v in self.scores.values() if v is not None]
        return sum(values) / len(values) if values and len(values) == len(self.scores) else None


def votes_fault(votes: int, sampling: Sampling) -> str:
    """Why a judge cannot be asked so many times in each order, or ""."""
    if votes == 1 or sampling.temperature > 0:
        return ""
    return f"votes is {votes}, but at temperature 0 all of them are one; raise the temperature of judge_sampling"


# --- whole waves ---------------------------------------------------------------------------------------------------


def compare(judge: Judge, engine: Engine, cases: Iterable[Case], salt: int = 0) -> Iterator[Opinion]:
    """One opinion on each pair, in the cases' order; all requests are one stream, so the engine stays full."""
    return _asked(judge, engine, cases, salt, pair_requests, read_pair)


def score(judge: Judge, engine: Engine, cases: Iterable[Case], salt: int = 0) -> Iterator[Scored]:
    """The scores of each answer, in the cases' order."""
    return _asked(judge, engine, cases, salt, score_requests, read_scores)


def rank(judge: Judge, engine: Engine, cases: Iterable[Case], salt: int = 0) -> Iterator[Opinion]:
    """The opinions on all C(K,2) pairs of each case, one case after the other."""
    for opinions in _asked(judge, engine, cases, salt, ranking_requests, read_ranking):
        yield from opinions


def agreed(decisions: Iterable[Decision]) -> Decision:
    """What several judges decide together: each readable one has a vote, and a tie of votes is a tie."""
    votes = Counter(d for d in decisions if d != "invalid")
    if not votes:
        return "invalid"
    if votes["win"] == votes["lose"]:
        return "inconsistent" if votes["inconsistent"] or votes["win"] else "tie"
    return "win" if votes["win"] > votes["lose"] else "lose"


def _asked(
    judge: Judge,
    engine: Engine,
    cases: Iterable[Case],
    salt: int,
    ask: Callable[[Judge, Case, int], list[Request]],
    read: Callable[[Judge, Case, Sequence[Reply], str], T],
) -> Iterator[T]:
    waiting: deque[tuple[Case, int]] = deque()  # cases in flight, with the number of their requests
    guided = _referenced(judge, engine, list(cases)) if judge.reference else ((case, case) for case in cases)

    def requests() -> Iterator[Request]:
        for case, shown in guided:
            asked = ask(judge, shown, salt)
            waiting.append((case, len(asked)))
            yield from asked

    replies: list[Reply] = []
    for reply in in_order(engine, requests()):
        replies.append(reply)
        if len(replies) == waiting[0][1]:
            yield read(judge, waiting.popleft()[0], replies, engine.model)
            replies = []


def _referenced(judge: Judge, engine: Engine, cases: Sequence[Case]) -> Iterator[tuple[Case, Case]]:
    """Each case, and the same with the judge's own answer to its task, which it wrote without seeing the others.

    Reference-guided grading (Zheng et al. 2023, section 3.4). A task it could not answer is judged without.
    """
    tasks = list(dict.fromkeys(case.task for case in cases))
    sampling = replace(judge.sampling, temperature=0.0, schema="")
    replies = in_order(engine, [Request(user(neutral(task)), sampling) for task in tasks])
    own = {task: reply.text.strip() for task, reply in zip(tasks, replies, strict=True) if _whole(reply)}
    for case in cases:
        yield case, case._replace(reference=own.get(case.task, ""))


# --- pairs ---------------------------------------------------------------------------------------------------------


def pair_requests(judge: Judge, case: Case, salt: int = 0) -> list[Request]:
    """Each vote in both orders: first as the case names the answers, then swapped."""
    shown = {"task": neutral(case.task), "nonce": nonce_for(case.task, case.reference, *(a.text for a in case.answers))}
    first, second = (neutral(a.text) for a in case.answers)
    texts = [
        _render(judge, "pairwise", case, criterion=judge.criterion, first=a, second=b, **shown)
        for a, b in ((first, second), (second, first))
    ]
    asked = texts * judge.votes
    return [_request(judge, text, reading.PAIR_SCHEMA, salt, place, case) for place, text in enumerate(asked)]


def read_pair(judge: Judge, case: Case, replies: Sequence[Reply], model: str) -> Opinion:
    """The opinion in the replies to `pair_requests`, in that order. A failed request leaves no judgement behind."""
    if failed := _failures(judge, case, replies):
        return Opinion(case, "invalid", (), failed)
    judgements, faults = list[Judgement](), list[Verdict]()
    for place, reply in enumerate(replies):
        named, rationale = reading.verdict(reply.text, judge.structured) if _whole(reply) else (None, reply.text)
        if named is None:
            faults.append(_fault(judge, case, reply))
        outcome = _outcome(named, swapped=bool(place % 2) != judge.worse)
        judgements.append(_judgement(judge, case, model, reply, outcome, place % 2, rationale))
    return Opinion(case, _decision(judgements), tuple(judgements), tuple(faults))


def _outcome(named: str | None, swapped: bool) -> Outcome:
    if named is None:
        return "invalid"
    if named == "tie":
        return "tie"
    return "win" if (named == "A") != swapped else "lose"


def _judgement(
    judge: Judge, case: Case, model: str, reply: Reply, outcome: Outcome, shown: int, rationale: str
) -> Judgement:
    one, other = case.answers
    return Judgement(
        case.prompt_id, one.id, model, "model", other.id, rubric=judge.criterion, shown_first=case.answers[shown].id,
        verdict=outcome, rationale=rationale, call_key=reply.key,
    )  # fmt: skip


def _decision(judgements: Sequence[Judgement]) -> Decision:
    """Each order has one say, the majority of its votes; a pair is decided only where the orders say the same."""
    orders: dict[str, list[Outcome]] = {}
    for judgement in judgements:
        orders.setdefault(judgement.shown_first, []).append(judgement.verdict or "invalid")
    said = {_majority(votes) for votes in orders.values()}
    if "invalid" in said:
        return "invalid"
    return said.pop() if len(said) == 1 else "inconsistent"


def _majority(votes: Sequence[Outcome]) -> Outcome:
    wins, losses = votes.count("win"), votes.count("lose")
    if wins == losses:
        return "invalid" if votes.count("invalid") == len(votes) else "tie"
    return "win" if wins > losses else "lose"


# --- scores --------------------------------------------------------------------------------------------------------


def score_requests(judge: Judge, case: Case, salt: int = 0) -> list[Request]:
    """One request for each aspect."""
    (answer,) = case.answers
    nonce = nonce_for(case.task, case.reference, answer.text)
    shown = {"task": neutral(case.task), "answer": neutral(answer.text), "nonce": nonce}
    texts = [_render(judge, "pointwise", case, aspect=aspect, **shown) for aspect in judge.aspects]
    return [_request(judge, text, reading.SCORE_SCHEMA, salt, place, case) for place, text in enumerate(texts)]


def read_scores(judge: Judge, case: Case, replies: Sequence[Reply], model: str) -> Scored:
    """The scores in the replies to `score_requests`. What is not a whole number from 1 to 5 is no score."""
    scores, judgements, faults = dict[str, float | None](), list[Judgement](), list[Verdict]()
    for aspect, reply in zip(judge.aspects, replies, strict=True):
        value, rationale = reading.score(reply.text, judge.structured) if _whole(reply) else (None, reply.text)
        scores[aspect] = value
        if value is None:
            faults.append(_fault(judge, case, reply))
        if reply.finish_reason != "error":
            judgements.append(
                Judgement(
                    case.prompt_id, case.answers[0].id, model, "model", rubric="score 1-5", aspect=aspect, score=value,
                    verdict="invalid" if value is None else None, rationale=rationale, call_key=reply.key,
                )
            )  # fmt: skip
    return Scored(case, scores, tuple(judgements), tuple(faults))


# --- rankings ------------------------------------------------------------------------------------------------------


def ranking_requests(judge: Judge, case: Case, salt: int = 0) -> list[Request]:
    """The list forwards, then backwards."""
    shown = {"task": neutral(case.task), "nonce": nonce_for(case.task, case.reference, *(a.text for a in case.answers))}
    texts = [neutral(a.text) for a in case.answers]
    asked = [
        _render(judge, "listwise", case, answers=list(zip(_LABELS, order, strict=False)), **shown)
        for order in (texts, texts[::-1])
    ]
    return [_request(judge, text, reading.RANKING_SCHEMA, salt, place, case) for place, text in enumerate(asked)]


def read_ranking(judge: Judge, case: Case, replies: Sequence[Reply], model: str) -> list[Opinion]:
    """One opinion on each pair of the list; the list's failures come with the first of them."""
    failed = _failures(judge, case, replies)
    number, ranks, faults = len(case.answers), list[list[int] | None](), list(failed)
    for backwards, reply in enumerate(replies):
        found = reading.ranking(reply.text, _LABELS[:number], judge.structured) if _whole(reply) else None
        ranks.append(found[::-1] if found and backwards else found)
        if found is None and not failed:
            faults.append(_fault(judge, case, reply))
    opinions = list[Opinion]()
    for i, j in combinations(range(number), 2):
        pair = case._replace(answers=(case.answers[i], case.answers[j]))
        judgements = [
            replace(_judgement(judge, pair, model, reply, _placed(rank, i, j), shown, ""), rubric="ranking")
            for shown, (reply, rank) in enumerate(zip(replies, ranks, strict=True))
            if not failed
        ]
        decision = _decision(judgements) if judgements else "invalid"
        opinions.append(Opinion(pair, decision, tuple(judgements), () if opinions else tuple(faults)))
    return opinions


def _placed(ranks: list[int] | None, i: int, j: int) -> Outcome:
    if ranks is None:
        return "invalid"
    return "tie" if ranks[i] == ranks[j] else "win" if ranks[i] < ranks[j] else "lose"


# --- what all share ------------------------------------------------------------------------------------------------


def neutral(text: str) -> str:
    """The text with reserved chat markers taken apart by a blank: `< |im_end|>` ends no turn. Idempotent."""
    return _MARKERS.sub(lambda found: found[0] + " ", text)


def nonce_for(*texts: str) -> str:
    """Six hexadecimal digits made of the texts and in none of them: no candidate can write its own fence."""
    whole, tries = "\n".join(texts).lower(), 0
    while (nonce := content_id("nonce", *texts, tries)[:6]) in whole:
        tries += 1
    return nonce


def dialogue(prompt: Prompt) -> str:
    """What is asked: the text of a one-turn prompt, or all turns with their roles."""
    if len(prompt.messages) == 1:
        return prompt.text
    return "\n\n".join(f"{m.role}: {m.content}" for m in prompt.messages)


def _render(judge: Judge, name: str, case: Case, **values: object) -> str:
    shown = {"structured": judge.structured, "reference": neutral(case.reference), **values}
    return render("judge", name, shown, judge.templates, case.language)


def _request(judge: Judge, text: str, schema: str, salt: int, place: int, case: Case) -> Request:
    """Without a temperature nothing is drawn, so the same question is the same call in every run."""
    drawn = judge.sampling.temperature > 0
    seed = (salt ^ int(content_id("judge", *(a.id for a in case.answers))[:12], 16)) + place if drawn else 0
    opening = "" if judge.structured or not case.reference else _render(judge, "opening", case)
    begun = (Message("assistant", f"{opening}\n"),) if opening else ()
    return Request((*user(text), *begun), replace(judge.sampling, schema=schema if judge.structured else ""), seed)


def _whole(reply: Reply) -> bool:
    return reply.finish_reason == "stop"


def _failures(judge: Judge, case: Case, replies: Sequence[Reply]) -> tuple[Verdict, ...]:
    return tuple(_fault(judge, case, r) for r in replies if r.finish_reason == "error")


def _fault(judge: Judge, case: Case, reply: Reply) -> Verdict:
    reasons = {"error": "engine_error", "length": "truncated", "content_filter": "content_filter"}
    return Verdict(
        reply.key or reply.request.id, judge.by, False, reasons.get(reply.finish_reason, "unreadable"),
        evidence_id=case.answers[0].id, text=reply.error or reply.text,
    )  # fmt: skip
