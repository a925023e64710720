"""A weak model drafts, a strong one criticises and rewrites, and a judge in both orders decides whether that helped.

No paper has just this recipe. Nearest: Ji et al. 2024, "Aligner" (a corrector rewrites another model's answers);
Saunders et al. 2022, "Self-critiquing models" (critique before refinement); Zheng et al. 2023 (two games in swapped
order). Departures:

1. A pair is emitted only on a double win: the judge names the rewrite in both orders. Aligner takes every correction.
2. A rewrite that lost to its draft in both orders is a regression. It stays a row with its opinions, and is counted.
3. The strong model writes its critique before the rewrite, and the critique is kept as a judgement of the draft.

What is left to learn from is, for each prompt, the rewrite after a double win, else the draft that nobody beat; after a
fault neither, because nobody compared them. The other half of weak-to-strong, training a strong base model on a weak
one's labels (Burns et al. 2023), needs no generator: see specs/pgr.yaml.
"""

import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import NamedTuple

from pydantic import Field

from factory.engines.base import Engine, Reply, Request, Sampling, in_order
from factory.options import step
from factory.records import Completion, Judgement, Prompt, Record, Verdict, user
from factory.text import words
from generators._candidates import casualty, fault, seed, waves
from generators._judge import Case, Judge, Opinion, compare, dialogue, neutral, nonce_for
from generators._refusals import refuses
from generators._tally import Tally
from generators._templates import render

PUBLISHED: Mapping[str, tuple[float, str]] = MappingProxyType({
    "net_win_rate": (0.219, "Ji et al. 2024, Aligner-7B: helpfulness, wins less losses, mean over 11 models"),
    "consistency": (0.65, "Zheng et al. 2023: GPT-4 says the same in both orders of near-equal pairs"),
})  # fmt: skip
_MEASURES = ("prompts", "drafted", "criticised", "rewritten", "changed", "judged", "improved")


@step
class WeakToStrong:
    """Drafts by a weak model, critique and rewrite by a strong one, pairs where a judge prefers the rewrite twice."""

    weak: str
    """The engine that drafts."""
    strong: str
    """The engine that criticises and rewrites."""
    judge: str = ""
    """The engine that decides; by default the strong one."""
    templates: Path | None = None
    """A folder with templates of your own: weak_to_strong/critique.jinja, weak_to_strong/rewrite.jinja, judge/..."""
    wave: int = Field(default=1024, ge=1)
    """Prompts that go through each step together."""
    weak_sampling: Sampling = Sampling(temperature=0.7, max_tokens=512)
    """How drafts are drawn."""
    strong_sampling: Sampling = Sampling(temperature=0.0, max_tokens=1024)
    """How critiques and rewrites are drawn."""
    reference: bool = False
    """The judge first answers each task itself, and judges beside this answer."""
    structured: bool = False
    """Force verdicts in JSON by a schema; engines `openai` and `vllm` can."""
    judge_sampling: Sampling = Sampling(temperature=0.0, max_tokens=1024)
    """How opinions are drawn."""

    def calls(self, prompts: int) -> int:
        """A draft, a critique, a rewrite and two opinions for each prompt, and the judge's own answer if wanted."""
        return (5 + self.reference) * prompts

    def generate(self, prompts: Iterable[Prompt], engines: Mapping[str, Engine], rng: Random) -> Iterator[Record]:
        """Waves of prompts, each step of a wave at once; the rows come in the order of the prompts within a step."""
        work = _Work(self, engines, rng.getrandbits(48))
        for wave in waves(prompts, self.wave):
            # 1. The weak model drafts.
            drafts = yield from work.drafted(wave)
            # 2. The strong one says what is wrong with each draft, and rewrites it.
            criticised = yield from work.criticised(drafts)
            changed = yield from work.rewritten(criticised)
            # 3. The judge compares what was changed with its draft, in both orders.
            yield from work.judged(changed)
        yield from work.tally.metrics()


class _Draft(NamedTuple):
    """A draft with its prompt and, later, its critique."""

    prompt: Prompt
    completion: Completion
    critique: str = ""


class _Change(NamedTuple):
    """A draft and the rewrite that differs from it."""

    draft: _Draft
    rewrite: Completion


@dataclass
class _Work:
    """One run: its options and engines, the salt of its seeds, and its counts."""

    options: WeakToStrong
    engines: Mapping[str, Engine]
    salt: int
    tally: Tally = field(default_factory=lambda: Tally("weak_to_strong", _MEASURES))

    def drafted(self, prompts: list[Prompt]) -> Generator[Record, None, list[_Draft]]:
        """The weak model's answers. One that failed or was cut is no draft: to mend it would be no improvement."""
        sampling = self.options.weak_sampling
        requests = (Request(p.messages, sampling, self._seed("draft", p.id, sampling)) for p in prompts)
        drafts = list[_Draft]()
        for prompt, reply in zip(prompts, in_order(self.engines[self.options.weak], requests), strict=True):
            self.tally.count["prompts"] += 1
            yield prompt
            if reason := fault(reply):
                yield casualty("weak_to_strong", reply, reason, evidence=prompt.id)
                continue
            self.tally.count["drafted"] += 1
            drafts.append(_Draft(prompt, self._completion(prompt, reply, self.options.weak, ())))
            yield drafts[-1].completion
        return drafts

    def criticised(self, drafts: list[_Draft]) -> Generator[Record, None, list[_Draft]]:
        """The strong model's critiques, each a judgement of its draft without a score."""
        engine, found = self.engines[self.options.strong], list[_Draft]()
        for draft, reply in zip(drafts, self._ask("critique", drafts), strict=True):
            if reason := fault(reply) or ("refused" if refuses(_first_sentence(reply.text)) else ""):
                yield _lost(draft.completion, reply, reason)
                continue
            self.tally.count["criticised"] += 1
            found.append(draft._replace(critique=reply.text.strip()))
            yield Judgement(
                draft.prompt.id, draft.completion.id, engine.model, "model", rubric="weak_to_strong/critique",
                aspect="critique", rationale=found[-1].critique, call_key=reply.key,
            )  # fmt: skip
        return found

    def rewritten(self, drafts: list[_Draft]) -> Generator[Record, None, list[_Change]]:
        """The rewrites; returns those that differ from their drafts. The others leave nothing to compare."""
        changes = list[_Change]()
        for draft, reply in zip(drafts, self._ask("rewrite", drafts), strict=True):
            if reason := fault(reply):
                yield _lost(draft.completion, reply, reason)
                continue
            rewrite = self._completion(draft.prompt, reply, self.options.strong, (draft.completion.id,))
            self.tally.count["rewritten"] += 1
            yield rewrite
            changed = rewrite.text != draft.completion.text
            self.tally.note("changed_rate", changed)
            self.tally.note("words_ratio", len(words(rewrite.text)) / (len(words(draft.completion.text)) or 1))
            if changed:
                changes.append(_Change(draft, rewrite))
            else:
                yield from _kept(draft.completion, rewrite, "unchanged")
        self.tally.count["changed"] += len(changes)
        return changes

    def judged(self, changes: list[_Change]) -> Iterator[Record]:
        """Both orders of each pair, and what follows for draft and rewrite."""
        options = self.options
        judge = Judge(
            by="weak_to_strong", templates=options.templates, sampling=options.judge_sampling,
            reference=options.reference, structured=options.structured,
        )  # fmt: skip
        cases = [Case.of(d.prompt, rewrite, d.completion) for d, rewrite in changes]
        engine = self.engines[options.judge or options.strong]
        for change, opinion in zip(changes, compare(judge, engine, cases, self.salt), strict=True):
            yield from opinion.judgements
            yield from self._decided(change, opinion)

    def _decided(self, change: _Change, opinion: Opinion) -> Iterator[Verdict]:
        draft, rewrite = change.draft.completion, change.rewrite
        if opinion.decision == "invalid":
            yield from opinion.faults
            reason = opinion.faults[0].reason if opinion.faults else "unreadable"
            yield Verdict(draft.id, "weak_to_strong", False, f"judge_{reason}", evidence_id=rewrite.id)
            yield Verdict(rewrite.id, "weak_to_strong", False, f"judge_{reason}", evidence_id=draft.id)
            return
        self._count(opinion)
        if opinion.decision == "win":
            yield from _kept(rewrite, draft, "improved")
        else:
            yield from _kept(draft, rewrite, {"lose": "regression"}.get(opinion.decision, opinion.decision))

    def _count(self, opinion: Opinion) -> None:
        won, lost = opinion.decision == "win", opinion.decision == "lose"
        self.tally.count["judged"] += 1
        self.tally.count["improved"] += won
        self.tally.note("win_rate", won)
        self.tally.note("regression_rate", lost)
        self.tally.note("net_win_rate", won - lost)
        self.tally.note("tie_rate", opinion.decision == "tie")
        self.tally.note("consistency", opinion.decision != "inconsistent")

    def _ask(self, template: str, drafts: list[_Draft]) -> Iterator[Reply]:
        sampling = self.options.strong_sampling
        requests = (
            Request(user(self._text(template, d)), sampling, self._seed(template, d.completion.id, sampling))
            for d in drafts
        )
        return in_order(self.engines[self.options.strong], requests)

    def _text(self, template: str, draft: _Draft) -> str:
        shown = {"task": dialogue(draft.prompt), "draft": draft.completion.text, "critique": draft.critique}
        values = {name: neutral(text) for name, text in shown.items()} | {"nonce": nonce_for(*shown.values())}
        return render("weak_to_strong", template, values, self.options.templates, draft.prompt.language)

    def _seed(self, role: str, id: str, sampling: Sampling) -> int:
        """Without a temperature nothing is drawn, so the same question is the same call in every run."""
        return seed(self.salt, role, id) if sampling.temperature else 0

    def _completion(self, prompt: Prompt, reply: Reply, engine: str, parents: tuple[str, ...]) -> Completion:
        return Completion(
            prompt.id, reply.text.strip(), self.engines[engine].model, engine, asdict(reply.request.sampling),
            reply.request.seed, reply.finish_reason, reply.completion_tokens, parents, reply.key,
        )  # fmt: skip


def _kept(better: Completion, other: Completion, reason: str) -> Iterator[Verdict]:
    """The verdicts on a draft and its rewrite: one is kept, and the other has its reason and the first as evidence."""
    yield Verdict(better.id, "weak_to_strong", True)
    yield Verdict(other.id, "weak_to_strong", False, reason, evidence_id=better.id)


def _lost(draft: Completion, reply: Reply, reason: str) -> Verdict:
    """The verdict on a draft that nobody could judge, with what came instead of a critique or a rewrite."""
    call = reply.key or reply.request.id
    return Verdict(draft.id, "weak_to_strong", False, reason, evidence_id=call, text=reply.error or reply.text)


def _first_sentence(text: str) -> str:
    """A critique may quote a refusal; one that opens with it is none."""
    return re.split(r"(?<=[.!?。！？:：])\s|\n", text.strip(), maxsplit=1)[0]
