"""Magpie: an aligned model writes instructions by itself when it is given nothing but the opening of a user's turn.

Source: Xu et al., "Magpie: Alignment Data Synthesis from Scratch by Prompting Aligned LLMs with Nothing" (2024),
sections 2 and 3, and its code: the template up to the user's words, n = 200 at a time, temperature 1, top_p 1; then the
model answers; instructions are tagged by quality, difficulty and safety and filtered. Departures:

1. The opening is the chat template's own: a conversation that ends with an empty user message. So any local model
   works, with a system message that steers the subject where one is given. A server gets `pre_query` as raw text.
2. An instruction may have several lines; it ends with the end of the turn, which some models need as a `stop`. The code
   ends it at the first line break: `stop: ["\\n"]` does that.
3. The three tags come from one call that replies with three lines, not from three models. A cut reply has none.
4. Repetitions are found by exact text and by ROUGE-L, not by the distance of embeddings; the filter `semantic` can do
   that on what is made here. The stage's `from` dataset holds what new instructions must differ from; it may be small.
5. What has fewer than three words ("Thanks!") asks for nothing and is refused as `too_short`.
6. Exactly `accept` rows are kept, and every casualty is a row with its reason.
"""

import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Literal, NamedTuple

from pydantic import Field

from factory.engines.base import Engine, Reply, Request, Sampling
from factory.options import step
from factory.records import Completion, Message, Prompt, Record, content_id, user
from factory.text import language, normalise, words
from generators._candidates import casualty, fault, seed
from generators._judge import neutral, nonce_for
from generators._novelty import Novelty
from generators._tally import Tally
from generators._templates import render

Quality = Literal["very poor", "poor", "average", "good", "excellent"]
PUBLISHED: Mapping[str, tuple[float, str]] = MappingProxyType({
    "unsafe": (0.01, "Magpie, section 3.3: less than 1 % of the instructions of Llama-3-8B and 70B, by Llama-Guard-2"),
    "usd_per_1000": (0.12, "Magpie, 3M rows with Llama-3-8B on 4 A100"),
})  # fmt: skip
_QUALITIES = ("very poor", "poor", "average", "good", "excellent")
_DIFFICULTIES = ("very easy", "easy", "medium", "hard", "very hard")
_LEAST_WORDS = 3  # "Thanks!" and "Hi there" ask for nothing
_TAG = {
    name: re.compile(rf"[\s*_#-]*(?:{name}|{chinese})[\s*_]*[:：][\s*_]*({'|'.join(values)})[\s*_.。]*", re.IGNORECASE)
    for name, chinese, values in (
        ("quality", "质量", _QUALITIES),
        ("difficulty", "难度", _DIFFICULTIES),
        ("safety", "安全性?", ("safe", "unsafe")),
    )
}


@step
class Magpie:
    """Draws instructions from a model's empty user turn, tags and answers them."""

    engine: str
    """The aligned model that writes and answers."""
    judge: str = ""
    """The engine that tags; by default the one that writes."""
    accept: int = Field(default=100, ge=1)
    """How many rows to keep, exactly: an instruction with its answer is a row."""
    max_candidates: int | None = None
    """The most instructions to draw; by default ten for each wanted row."""
    n: int = Field(default=200, ge=1)
    """Instructions drawn in a round."""
    pre_query: str = ""
    """The text that a chat template puts before a user's words, for servers; local models know it themselves."""
    system: str = ""
    """A system message that steers what is asked; it stays out of the rows. Local models only."""
    least_quality: Quality = "average"
    """An instruction tagged below this is refused."""
    keep_unsafe: bool = False
    """Keep instructions tagged as unsafe, for sets of refusals."""
    rouge: float = Field(default=0.7, gt=0, le=1)
    """An instruction whose ROUGE-L with an earlier one is above this is refused; 1 refuses exact copies only."""
    templates: Path | None = None
    """A folder with Jinja templates of your own: tags."""
    sampling: Sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=512)
    """How instructions are drawn."""
    answer_sampling: Sampling = Sampling(temperature=0.0, max_tokens=2048)
    """How answers are drawn."""

    def calls(self, prompts: int) -> int:
        """Calls for an expected yield of one row in two candidates, each tagged, and the answers."""
        return 2 * min(2 * self.accept, self._ceiling) + self.accept

    def generate(self, prompts: Iterable[Prompt], engines: Mapping[str, Engine], rng: Random) -> Iterator[Record]:
        """Rounds until `accept` rows are kept or the ceiling of candidates is reached."""
        work = _Work(self, engines[self.engine], engines[self.judge or self.engine], rng.getrandbits(48))
        work.learn(prompts)
        while work.tally.count["kept"] < self.accept and work.tally.count["asked"] < self._ceiling:
            # 1. Let the model write what a user would.
            drafts = yield from work.drawn()
            # 2. Refuse what is too short, or was said before.
            novel = yield from work.screened(drafts)
            # 3. Tag the others, and refuse what is poor or unsafe.
            fit = yield from work.tagged(novel)
            # 4. Answer as many as are still wanted.
            yield from work.answered(fit)
        yield from work.tally.metrics()

    @property
    def _ceiling(self) -> int:
        return self.max_candidates or 10 * self.accept


class _Draft(NamedTuple):
    """An instruction, the reply that wrote it, and its tags."""

    text: str
    reply: Reply
    tags: Mapping[str, str] = MappingProxyType({})

    @property
    def id(self) -> str:
        """The candidate's own id: one that is refused never becomes a prompt."""
        return content_id("candidate", self.reply.key or self.reply.request.id)


Told = Generator[Record, None, list[_Draft]]  # yields verdicts on the way to what it returns


@dataclass
class _Work:
    """One run: the pool of what was said before, and the counts."""

    options: Magpie
    engine: Engine
    judge: Engine
    salt: int
    said: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.novelty = Novelty(self.options.rouge)
        self.tally = Tally("magpie", ("asked", "written", "novel", "fit", "answered", "kept"))

    def learn(self, prompts: Iterable[Prompt]) -> None:
        """Put what is there already into the pool."""
        for prompt in prompts:
            if self.said.setdefault(normalise(prompt.text), prompt.id) == prompt.id:
                self.novelty.add(prompt.id, prompt.text)

    def drawn(self) -> Told:
        """One round of user turns that the model writes; yields verdicts on those that hold none."""
        asked = self.tally.count["asked"]
        number = min(self.options.n, self.options._ceiling - asked)
        opening = self.options.pre_query or self._opening()
        requests = [
            Request(opening, self.options.sampling, seed(self.salt, "user", place))
            for place in range(asked, asked + number)
        ]
        drafts: list[_Draft] = []
        for reply in self.tally.ask(self.engine, requests):
            self.tally.count["asked"] += 1
            if reason := fault(reply):
                yield casualty("magpie", reply, reason)
            else:
                drafts.append(_Draft(reply.text.strip(), reply))
        self.tally.count["written"] += len(drafts)
        return drafts

    def screened(self, drafts: list[_Draft]) -> Told:
        """The rules on the text alone, in the order of asking."""
        novel: list[_Draft] = []
        for draft in drafts:
            if len(words(draft.text)) < _LEAST_WORDS:
                yield casualty("magpie", draft.reply, "too_short", draft.text)
            elif (known := self.said.setdefault(normalise(draft.text), draft.id)) != draft.id:
                yield casualty("magpie", draft.reply, "duplicate", draft.text, known)
            elif near := self.novelty.nearest(draft.text):
                yield casualty(
                    "magpie", draft.reply, "too_similar", draft.text, near.id, near.score, self.options.rouge
                )
            else:
                self.novelty.add(draft.id, draft.text)
                novel.append(draft)
        self.tally.count["novel"] += len(novel)
        return novel

    def tagged(self, drafts: list[_Draft]) -> Told:
        """Those that a model finds good enough, with its tags; one without all three tags has none that count."""
        fit: list[_Draft] = []
        for draft, reply in zip(drafts, self.tally.ask(self.judge, map(self._tagging, drafts)), strict=True):
            tags = _tags(reply.text)
            if reason := fault(reply) or ("unreadable" if len(tags) < len(_TAG) else ""):
                yield casualty("magpie", reply, reason, f"{draft.text}\n{reply.error or reply.text}")
                continue
            self.tally.note("unsafe", tags["safety"] == "unsafe")
            self.tally.note("quality", _QUALITIES.index(tags["quality"]) + 1)
            self.tally.note("difficulty", _DIFFICULTIES.index(tags["difficulty"]) + 1)
            if reason := self._unfit(tags):
                yield casualty("magpie", reply, reason, draft.text)
            else:
                fit.append(draft._replace(tags=tags))
        self.tally.count["fit"] += len(fit)
        return fit

    def answered(self, drafts: list[_Draft]) -> Iterator[Record]:
        """Rows: each instruction with its answer, until enough are kept."""
        missing = self.options.accept - self.tally.count["kept"]
        for draft in drafts[missing:]:
            yield casualty("magpie", draft.reply, "enough_accepted", draft.text)
        prompts = [self._prompt(draft) for draft in drafts[:missing]]
        requests = [Request(p.messages, self.options.answer_sampling, seed(self.salt, p.id, "answer")) for p in prompts]
        for prompt, reply in zip(prompts, self.tally.ask(self.engine, requests), strict=True):
            if reason := fault(reply):
                yield casualty("magpie", reply, reason, f"{prompt.text}\n{reply.error or reply.text}")
                continue
            self.tally.count["answered"] += 1
            self.tally.count["kept"] += 1
            self.tally.note("instruction_words", len(words(prompt.text)))
            self.tally.note("answer_tokens", reply.completion_tokens)
            yield prompt
            yield Completion(
                prompt.id, reply.text.strip(), self.engine.model, self.options.engine,
                asdict(self.options.answer_sampling), reply.request.seed, reply.finish_reason, reply.completion_tokens,
                call_key=reply.key,
            )  # fmt: skip

    def _opening(self) -> tuple[Message, ...]:
        return (*([Message("system", self.options.system)] if self.options.system else []), Message("user", ""))

    def _tagging(self, draft: _Draft) -> Request:
        values = {"task": neutral(draft.text), "nonce": nonce_for(draft.text)}
        text = render("magpie", "tags", values, self.options.templates, language(draft.text))
        return Request(user(text), Sampling(temperature=0.0, max_tokens=64))

    def _unfit(self, tags: Mapping[str, str]) -> str:
        if tags["safety"] == "unsafe" and not self.options.keep_unsafe:
            return "unsafe"
        return (
            "poor_quality" if _QUALITIES.index(tags["quality"]) < _QUALITIES.index(self.options.least_quality) else ""
        )

    def _prompt(self, draft: _Draft) -> Prompt:
        meta = {**draft.tags, "call_key": draft.reply.key}
        return Prompt(user(draft.text), "magpie", (), language(draft.text), meta)


def _tags(text: str) -> dict[str, str]:
    """Each tag by the last line that holds it and nothing else: a menu or a quotation in a sentence is none."""
    lines = text.rsplit("</think>", 1)[-1].splitlines()
    said = ((name, pattern.fullmatch(line)) for line in lines for name, pattern in _TAG.items())
    return {name: found[1].lower() for name, found in said if found}
