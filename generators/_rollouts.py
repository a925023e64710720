"""Labels for the steps of many solutions at once: by rollouts, by a judge, or where both agree.

The search goes by waves: each wave asks about one step (or all) of every solution that is still alive, and all its
requests are in flight together. A prefix that several solutions share is asked about once. Every rollout is a request
with a seed of its own; one that fails is a verdict with its reason and counts neither for the step nor against it.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from factory.answers import final_answer, same_answer
from factory.engines.base import Engine, Reply, Request, Sampling
from factory.records import Completion, Judgement, Message, Outcome, Prompt, Record, user
from generators._candidates import casualty, fault, seed, task_fault
from generators._steps import Part, verdict
from generators._tally import Tally

Search = Literal["forward", "binary", "all"]
NAME = "process_steps"


class Label(NamedTuple):
    """What is known of a step; all None where it was asked about in vain. `disputed`: rollouts and judge differ."""

    hard: int | None = None
    soft: float | None = None
    rollouts: int = 0
    disputed: bool = False


@dataclass
class Solution:
    """A solution, its steps, and the labels found so far by the steps' places."""

    prompt: Prompt
    asked: tuple[Message, ...]
    completion: Completion
    gold: str | None
    parts: Sequence[Part]
    labels: dict[int, Label] = field(default_factory=dict)

    def key(self, place: int) -> tuple[str, str]:
        """Two solutions that begin with the same steps ask the same there."""
        return self.prompt.id, self.parts[place].prefix


def wanted(labels: Mapping[int, Label], count: int, search: Search) -> list[int]:
    """The places of the steps to ask about next; none when the search is over.

    `forward` goes from the first step on until one is wrong. `binary` halves the steps between the last that is known
    to be right and the first that is known to be wrong, as OmegaPRM does. `all` asks about every step at once.
    """
    unknown = [place for place in range(count) if place not in labels]
    if search == "all" or not unknown:
        return unknown
    if search == "forward":
        before = [labels[place] for place in range(unknown[0])]
        return [] if any(label.hard == 0 or label.disputed for label in before) else unknown[:1]
    right = max((place for place, label in labels.items() if label.hard == 1), default=-1)
    wrong = min((place for place, label in labels.items() if label.hard == 0), default=count)
    between = [place for place in range(right + 1, wrong) if place not in labels]
    undecided = wrong == count or len(between) < wrong - right - 1
    return [] if undecided or not between else [between[(len(between) - 1) // 2]]


def settled(labels: Mapping[int, Label], count: int, search: Search) -> list[Label]:
    """All steps' labels once the search is over. Without `all`, what comes behind the first wrong step has none.

    `binary` gives the steps before one from which the answer can be reached the label that follows: it can be reached.
    """
    found = [labels.get(place, Label()) for place in range(count)]
    if search == "all":
        return found
    if search == "binary":
        right = max((place for place, label in enumerate(found) if label.hard == 1), default=-1)
        found = [Label(1) if place < right and found[place].hard is None else one for place, one in enumerate(found)]
    end = next((place for place, label in enumerate(found) if label.hard == 0 or label.disputed), count)
    return [label if place <= end else Label() for place, label in enumerate(found)]


def ending(reply: Reply, prefix: str) -> str | None:
    """The answer that a reply brings a prefix to. One that a step names on the way is none, unless nothing follows."""
    return final_answer(reply.text if reply.text.strip() else prefix) if reply.finish_reason == "stop" else None


@dataclass
class Rollouts:
    """Asks an engine to go on from each prefix, `n` times, and counts how often it ends right."""

    engine: Engine
    n: int
    threshold: float
    sampling: Sampling
    salt: int
    tally: Tally

    def ask(self, wave: Sequence[tuple[Solution, int]]) -> Generator[Record, None, dict[tuple[str, str], Label]]:
        """The label of every prefix in the wave, each asked about once; yields a verdict on every failed rollout."""
        prefixes = {s.key(place): s for s, place in wave}
        ends: dict[tuple[str, str], list[bool]] = {key: [] for key in prefixes}
        asked = [key for key in prefixes for _ in range(self.n)]
        requests = (self._request(prefixes[key], key[1], i) for key in prefixes for i in range(self.n))
        for key, reply in zip(asked, self.tally.ask(self.engine, requests), strict=True):
            self.tally.count["calls"] += 1
            solution, said = prefixes[key], ending(reply, key[1])
            self.tally.note("failed_rollout_rate", said is None)
            if said is None:
                yield casualty(NAME, reply, task_fault(reply) or "no_answer", evidence=solution.completion.id)
            else:
                ends[key].append(same_answer(said, solution.gold or ""))
        return {key: self._label(found) for key, found in ends.items()}

    def _request(self, solution: Solution, prefix: str, number: int) -> Request:
        asked = (*solution.asked, Message("assistant", prefix))
        return Request(asked, self.sampling, seed(self.salt, solution.prompt.id, prefix, number))

    def _label(self, ends: Sequence[bool]) -> Label:
        if not ends:
            return Label()
        share = sum(ends) / len(ends)
        return Label(int(share > self.threshold), share, len(ends))


@dataclass
class Judge:
    """Asks an engine whether a step is right. `question` renders what it is asked about a solution's step."""

    engine: Engine
    sampling: Sampling
    question: Callable[[Solution, int], str]
    tally: Tally

    def ask(self, wave: Sequence[tuple[Solution, int]]) -> Generator[Record, None, dict[tuple[str, str], Label]]:
        """The judge's label of every prefix in the wave; yields its opinions, and verdicts on unreadable ones."""
        sharing: dict[tuple[str, str], list[tuple[Solution, int]]] = {}
        for solution, place in wave:
            sharing.setdefault(solution.key(place), []).append((solution, place))
        requests = (Request(user(self.question(*some[0])), self.sampling) for some in sharing.values())
        found: dict[tuple[str, str], Label] = {}
        for (key, some), reply in zip(sharing.items(), self.tally.ask(self.engine, requests), strict=True):
            self.tally.count["calls"] += 1
            said = verdict(reply.text) if reply.finish_reason == "stop" else None
            found[key] = Label() if said is None else Label(int(said))
            yield from self._told(some, reply, said)
        return found

    def _told(self, some: Sequence[tuple[Solution, int]], reply: Reply, said: bool | None) -> Iterator[Record]:
        if said is None:
            yield casualty(NAME, reply, fault(reply) or "unreadable_judgement", evidence=some[0][0].completion.id)
        if reply.finish_reason == "error":
            return
        outcome: Outcome = "invalid" if said is None else "win" if said else "lose"
        for solution, place in some:
            yield Judgement(
                solution.prompt.id, solution.completion.id, self.engine.model, "model", rubric=f"{NAME}/judge",
                aspect=f"step/{place}", verdict=outcome, rationale=reply.text, call_key=reply.key,
            )  # fmt: skip


def agreed(one: Label, two: Label) -> Label:
    """The consensus: a label only where both have the same one. The rollouts' share and count stay in any case."""
    both = one.hard is not None and two.hard is not None
    hard = one.hard if both and one.hard == two.hard else None
    return Label(hard, one.soft, one.rollouts, disputed=both and hard is None)
