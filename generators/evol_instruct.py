"""Evol-Instruct: instructions evolve over rounds, in depth and in breadth, and failed evolutions are eliminated.

Source: Xu et al., "WizardLM: Empowering Large Language Models to Follow Complex Instructions" (2023), section 3, and
its code. In each round every instruction is rewritten by one of five operations, drawn uniformly. It is eliminated
where a model finds it equal to the one before (no information gain), where its answer says "sorry" in fewer than 80
words, or is punctuation and stop words only, and where it copies words of the evolving prompt. What is eliminated
leaves its parent in the pool, which evolves again in the next round. Departures:

1. The figures of the source's "sorry" rule hold for Chinese too, two characters for a word; so do all other rules.
2. The model is not shown the phrases of the prompt as markup (#Given Prompt#); a leaked phrase counts only where the
   parent does not have it. A rewriting equal to its parent but for case and spaces is eliminated without asking.
3. An equality check that fails, is cut or cannot be read eliminates with this reason: nothing vouches for the gain.
4. A repeated instruction is eliminated: `duplicate`, with the earlier one as evidence.
5. A cut reply is eliminated (`truncated`), and a model that declines to rewrite (`refused`).
"""

from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Literal, NamedTuple

from pydantic import Field

from factory.engines.base import Engine, Reply, Request, Sampling
from factory.errors import DataError
from factory.options import step
from factory.records import Completion, Prompt, Record, user
from factory.text import language, normalise, words
from generators import _evolution as rules
from generators._candidates import casualty, fault, seed, task_fault, waves
from generators._judge import neutral, nonce_for
from generators._tally import Tally
from generators._templates import render

Operation = Literal["add_constraints", "deepen", "concretize", "increase_reasoning", "in_breadth"]
PUBLISHED: Mapping[str, tuple[float, str]] = MappingProxyType({
    "rows_per_seed": (4.8, "WizardLM: 250K instructions from Alpaca's 52K in 4 rounds, seeds counted"),
})  # fmt: skip


@step
class EvolInstruct:
    """Evolves instructions over rounds, in depth and in breadth, and eliminates failed evolutions."""

    engine: str
    """The engine that evolves, and answers."""
    judge: str = ""
    """The engine that checks for a gain of information; by default the one that evolves."""
    rounds: int = Field(default=4, ge=1)
    """How often each instruction evolves."""
    operations: tuple[Operation, ...] = ("add_constraints", "deepen", "concretize", "increase_reasoning", "in_breadth")
    """The operations of which each evolution draws one: four in depth, one in breadth."""
    answer: bool = True
    """Answer what evolved; without answers the elimination rules that read them are off."""
    sampling: Sampling = Sampling(temperature=1.0, top_p=0.9, max_tokens=2048)
    """How evolved instructions are drawn."""
    answer_sampling: Sampling = Sampling(temperature=1.0, top_p=0.9, max_tokens=2048)
    """How answers are drawn."""
    templates: Path | None = None
    """A folder with Jinja templates of your own: evolve, equal."""
    wave: int = Field(default=1024, ge=1)
    """Instructions that evolve together."""

    def calls(self, prompts: int) -> int:
        """How many engine calls the given number of prompts causes, at most."""
        return prompts * self.rounds * (3 if self.answer else 2)

    def generate(self, prompts: Iterable[Prompt], engines: Mapping[str, Engine], rng: Random) -> Iterator[Record]:
        """What evolves in each round, with its answer; every elimination is a verdict with its reason."""
        work = _Work(self, engines[self.engine], engines[self.judge or self.engine], rng.getrandbits(48))
        for wave in waves(prompts, self.wave):
            pool = work.started(wave)
            for turn in range(1, self.rounds + 1):
                # 1. Rewrite every instruction of the pool by an operation of its own.
                born = yield from work.evolved(pool, turn)
                # 2. Eliminate those that gained nothing, in a model's eyes.
                gained = yield from work.compared(born)
                # 3. Answer the others, and eliminate those that cannot be answered.
                kept = yield from work.answered(gained)
                # 4. What evolved takes its parent's place; where it failed, the parent tries again.
                pool = [kept.get(place, former) for place, former in enumerate(pool)]
        if not work.tally.count["seeds"]:
            raise DataError(
                "evol_instruct: nothing to evolve; import some prompts into the stage's `from` dataset first"
            )
        yield from work.metrics()


class _Member(NamedTuple):
    """An instruction of the pool, and its ancestors from the seed down to its parent."""

    prompt: Prompt
    ancestors: tuple[str, ...] = ()


class _Child(NamedTuple):
    """An evolved instruction that is not eliminated yet: whose place it would take, and the reply that wrote it."""

    place: int
    parent: _Member
    prompt: Prompt
    reply: Reply


Told = Generator[Record, None, list[_Child]]  # yields verdicts on the way to what it returns


@dataclass
class _Work:
    """One run: `seen` holds the normal form of every instruction so far, with its id."""

    options: EvolInstruct
    engine: Engine
    judge: Engine
    salt: int
    seen: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        measures = ("asked", "written", "gained", "answered", "kept")
        self.tally = Tally("evol_instruct", measures if self.options.answer else (*measures[:3], "kept"))

    def started(self, wave: list[Prompt]) -> list[_Member]:
        """The pool of the first round."""
        self.tally.count["seeds"] += len(wave)
        for prompt in wave:
            self.seen.setdefault(normalise(prompt.text), prompt.id)
        return [_Member(prompt) for prompt in wave]

    def evolved(self, pool: list[_Member], turn: int) -> Told:
        """One evolution of each member."""
        drawn = [self._operation(member, turn) for member in pool]
        requests = [self._evolve(member, op, turn) for member, op in zip(pool, drawn, strict=True)]
        children: list[_Child] = []
        replies = self.tally.ask(self.engine, requests)
        for place, (member, operation, reply) in enumerate(zip(pool, drawn, replies, strict=True)):
            self.tally.count["asked"] += 1
            text = rules.evolved(reply.text)
            reason, evidence = task_fault(reply) or rules.instruction_fault(text, member.prompt.text), member.prompt.id
            if not reason and (known := self.seen.get(normalise(text))):
                reason, evidence = "duplicate", known
            if reason:
                yield casualty("evol_instruct", reply, reason, reply.text, evidence)
                continue
            prompt = self._prompt(member, text, operation, turn, reply)
            self.seen[normalise(text)] = prompt.id
            self.tally.count["written"] += 1
            children.append(_Child(place, member, prompt, reply))
        return children

    def compared(self, children: list[_Child]) -> Told:
        """The equality check of each with its parent."""
        requests = [Request(user(self._compare(c)), Sampling(temperature=0.0, max_tokens=128)) for c in children]
        gained: list[_Child] = []
        for child, reply in zip(children, self.tally.ask(self.judge, requests), strict=True):
            equal = rules.equality(reply)
            failed = fault(reply) or ("unreadable" if equal is None else "")
            if reason := failed or ("no_information_gain" if equal else ""):
                text = f"{child.prompt.text}\n{reply.error or reply.text}" if failed else child.prompt.text
                yield casualty("evol_instruct", reply, reason, text, child.parent.prompt.id)
                continue
            gained.append(child)
        self.tally.count["gained"] += len(gained)
        return gained

    def answered(self, children: list[_Child]) -> Generator[Record, None, dict[int, _Member]]:
        """Yield the rows that stay; returns them by their place in the pool."""
        kept: dict[int, _Member] = {}
        for child, reply in self._answers(children):
            failed = fault(reply) if reply else ""
            self.tally.count["answered"] += not failed
            if reply and (reason := failed or rules.answer_fault(reply.text)):
                text = f"{child.prompt.text}\n{reply.error or reply.text}"
                yield casualty("evol_instruct", reply, reason, text, child.parent.prompt.id)
                continue
            yield child.prompt
            if reply:
                yield self._completion(child, reply)
                self.tally.note("answer_tokens", reply.completion_tokens)
            self._note(child)
            kept[child.place] = _Member(child.prompt, child.prompt.parents)
        return kept

    def metrics(self) -> Iterator[Record]:
        """The counts, and how many rows a seed came to, itself counted."""
        seeds = self.tally.count["seeds"]
        self.tally.note("rows_per_seed", (seeds + self.tally.count["kept"]) / seeds)
        yield from self.tally.metrics()

    def _answers(self, children: list[_Child]) -> Iterator[tuple[_Child, Reply | None]]:
        if not self.options.answer:
            yield from ((child, None) for child in children)
            return
        requests = [
            Request(c.prompt.messages, self.options.answer_sampling, seed(self.salt, c.prompt.id, "answer"))
            for c in children
        ]
        yield from zip(children, self.tally.ask(self.engine, requests), strict=True)

    def _note(self, child: _Child) -> None:
        self.tally.count["kept"] += 1
        self.tally.note("instruction_words", len(words(child.prompt.text)))
        self.tally.note("words_added", len(words(child.prompt.text)) - len(words(child.parent.prompt.text)))

    def _operation(self, member: _Member, turn: int) -> Operation:
        return Random(seed(self.salt, member.prompt.id, turn, "operation")).choice(self.options.operations)

    def _evolve(self, member: _Member, operation: Operation, turn: int) -> Request:
        values = {"instruction": member.prompt.text, "operation": operation}
        text = self._render("evolve", member, values)
        return Request(user(text), self.options.sampling, seed(self.salt, member.prompt.id, turn, "evolve"))

    def _prompt(self, member: _Member, text: str, operation: Operation, turn: int, reply: Reply) -> Prompt:
        meta = {"operation": operation, "round": turn, "call_key": reply.key}
        messages = (*member.prompt.messages[:-1], *user(text))
        parents = (*member.ancestors, member.prompt.id)
        return Prompt(messages, "evol_instruct", parents, language(text), meta)

    def _completion(self, child: _Child, reply: Reply) -> Completion:
        return Completion(
            child.prompt.id, reply.text.strip(), self.engine.model, self.options.engine,
            asdict(self.options.answer_sampling), reply.request.seed, reply.finish_reason, reply.completion_tokens,
            call_key=reply.key,
        )  # fmt: skip

    def _compare(self, child: _Child) -> str:
        first, second = child.parent.prompt.text, child.prompt.text
        values = {"first": neutral(first), "second": neutral(second), "nonce": nonce_for(first, second)}
        return self._render("equal", child.parent, values)

    def _render(self, name: str, member: _Member, values: Mapping[str, object]) -> str:
        return render("evol_instruct", name, values, self.options.templates, member.prompt.language)
