"""Critique and revision under the principles of a constitution, then preferences by an AI judge.

Source: Bai et al. 2022, "Constitutional AI": section 3 (critique and revise a harmful draft, a random principle at each
step, four rounds; every revision is kept) and section 4 (AI labels of preference, each under a random principle, an
ensemble of principles). Departures:

1. The drafts are what another step or model answered: `from` is a dataset of answers, for example of `adversarial`.
2. A label is the judge's word in both orders, not a probability of "(A)"; every vote is a row, and the view `pairs`
   tells the share of votes. Labels compare the first draft with the last revision of the same prompt.
3. A critique or revision that failed ends its chain; what was revised before stays.

Each revision is a completion whose parent is the answer that it revises. What was revised is dropped as "revised", also
where the judge preferred it: no row to learn from, but the rejected side of a pair. Critiques are judgements of the
answer that they criticise (aspect "critique", the principle as rubric). Prompts of held-out cells are left out, with
that reason.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from types import MappingProxyType

from pydantic import Field

from factory.engines.base import Engine, Reply, Request, Sampling
from factory.options import step
from factory.records import Answered, Completion, Judgement, Prompt, Record, Verdict, content_id, user
from generators._candidates import casualty, fault, seed, waves
from generators._constitution import Principle, read_constitution
from generators._judge import Case, Judge, agreed, neutral, pair_requests, read_pair
from generators._tally import Tally
from generators._templates import render

PUBLISHED: Mapping[str, tuple[float, str]] = MappingProxyType({
    "rounds": (4.0, "Bai et al. 2022, section 3.1: revisions of each red-team response"),
    "principles": (16.0, "Bai et al. 2022, sections 3.1 and 4.1: principles drawn from"),
})  # fmt: skip
_MEASURES = ("prompts", "drafts", "revised", "pairs", "labelled", "preferred")


@step
class Constitutional:
    """Criticises and revises answers under a constitution, and labels which of two answers it prefers."""

    engine: str
    """The engine that criticises and revises."""
    judge: str = ""
    """The engine that labels preferences; by default the one that revises."""
    constitution: Path = Path("constitutions/default.yaml")
    """The principles: a file beside the spec, or one of the packaged constitutions default.yaml and mini.yaml."""
    rounds: int = Field(default=4, ge=1)
    """Critiques and revisions of each draft, one after the other, each under a principle drawn at random."""
    drafts: int = Field(default=1, ge=1)
    """Answers of each prompt that are revised: the first ones."""
    labels: int = Field(default=16, ge=0)
    """Principles, drawn at random, under each of which the judge compares draft and last revision (0: no labels)."""
    wave: int = Field(default=1024, ge=1)
    """Drafts that go through each step together."""
    templates: Path | None = None
    """A folder with templates of your own: constitutional/critique.jinja, constitutional/revise.jinja, judge/..."""
    sampling: Sampling = Sampling(temperature=0.7, max_tokens=1024)
    """How critiques and revisions are drawn."""
    structured: bool = False
    """Force verdicts in JSON by a schema; engines `openai` and `vllm` can."""
    judge_sampling: Sampling = Sampling(temperature=0.0, max_tokens=1024)
    """How labels are drawn."""

    def calls(self, prompts: int) -> int:
        """A critique and a revision a round, two orders a label, for each draft."""
        return prompts * self.drafts * 2 * (self.rounds + self.labels)

    def review(self, answered: Iterable[Answered], engines: Mapping[str, Engine], rng: Random) -> Iterator[Record]:
        """Each prompt with its draft and revisions, in the order of the prompts within a round; then the labels."""
        principles = read_constitution(self.constitution)
        work = _Work(self, engines, principles, rng.getrandbits(48))
        for some in waves(answered, self.wave):
            chains = yield from work.begun(some)
            for number in range(1, self.rounds + 1):
                yield from work.round(chains, number)
            yield from work.labelled([c for c in chains if c.last is not c.draft])
        work.tally.note("principles", len(principles))
        yield from work.tally.metrics()


@dataclass
class _Chain:
    """A prompt, its draft, and the newest revision. It is broken where a critique or a revision failed."""

    prompt: Prompt
    draft: Completion
    last: Completion
    whole: bool = True
    revisions: int = 0


@dataclass
class _Work:
    """One run: how it asks, and what it counts."""

    options: Constitutional
    engines: Mapping[str, Engine]
    principles: Sequence[Principle]
    salt: int
    tally: Tally = field(default_factory=lambda: Tally("constitutional", _MEASURES, "revised"))

    @property
    def count(self) -> Counter[str]:
        return self.tally.count

    def begun(self, some: Sequence[Answered]) -> Generator[Record, None, list[_Chain]]:
        """A chain for each draft; a verdict for each prompt that has none, or is held out."""
        chains = list[_Chain]()
        for one in some:
            self.count["prompts"] += 1
            drafts = [c for c in one.completions if c.text.strip()][: self.options.drafts]
            if one.prompt.meta.get("heldout") or not drafts:
                reason = "heldout_cell" if one.prompt.meta.get("heldout") else "no_draft"
                id = content_id("candidate", "constitutional", one.prompt.id)
                yield Verdict(id, "constitutional", False, reason, evidence_id=one.prompt.id, text=one.prompt.text)
                continue
            chains += [_Chain(one.prompt, d, d) for d in drafts]
        self.count["drafts"] += len(chains)
        return chains

    def round(self, chains: Sequence[_Chain], number: int) -> Iterator[Record]:
        """One critique and one revision of every chain that is whole: two waves."""
        engine = self.engines[self.options.engine]
        alive = [c for c in chains if c.whole]
        drawn = [self._principle(c, number) for c in alive]
        # 1. Critiques.
        asked = [self._critique(c, p, number) for c, p in zip(alive, drawn, strict=True)]
        going = list[tuple[_Chain, Principle, Reply]]()
        for chain, principle, reply in zip(alive, drawn, list(self.tally.ask(engine, asked)), strict=True):
            if (yield from self._failed(chain, reply)):
                continue
            going.append((chain, principle, reply))
        # 2. Revisions; a chain's first rows come with its first revision.
        asked = [self._revision(c, p, r.text, number) for c, p, r in going]
        for (chain, principle, critique), reply in zip(going, self.tally.ask(engine, asked), strict=True):
            if (yield from self._failed(chain, reply)):
                continue
            yield from self._revised(chain, principle, critique, reply, engine)

    def _revised(
        self, chain: _Chain, principle: Principle, critique: Reply, reply: Reply, engine: Engine
    ) -> Iterator[Record]:
        before = chain.last
        if not chain.revisions:
            self.count["revised"] += 1
            yield chain.prompt
            yield chain.draft
        chain.last = self._completion(chain, reply, engine)
        chain.revisions += 1
        yield Judgement(
            chain.prompt.id, before.id, engine.model, "model", rubric=principle.name, aspect="critique",
            rationale=critique.text.strip(), call_key=critique.key,
        )  # fmt: skip
        yield chain.last
        if before.id != chain.last.id:
            yield Verdict(before.id, "constitutional", False, "revised", evidence_id=chain.last.id)
        self.tally.note("changed", float(chain.last.text != before.text))

    def _failed(self, chain: _Chain, reply: Reply) -> Generator[Record, None, bool]:
        """Whether a reply is no critique or revision; then its chain ends, with the reason."""
        if reason := fault(reply):
            chain.whole = False
            yield casualty("constitutional", reply, reason, evidence=chain.prompt.id)
        return bool(reason)

    def labelled(self, chains: Sequence[_Chain]) -> Iterator[Record]:
        """Which answer each of some principles prefers. A revision that most of them like less is dropped."""
        for chain in chains:
            self.tally.note("rounds", chain.revisions)
            self.tally.note("draft_characters", len(chain.draft.text))
            self.tally.note("revision_characters", len(chain.last.text))
        engine = self.engines[self.options.judge or self.options.engine]
        pairs = [c for c in chains if c.last.text.strip() != c.draft.text.strip()]
        cases = [(c, Case.of(c.prompt, c.last, c.draft), self._judges(c)) for c in pairs]
        asked = [[pair_requests(j, case, self.salt) for j in judges] for _, case, judges in cases]
        replies = self.tally.ask(engine, [r for some in asked for requests in some for r in requests])
        for (chain, case, judges), some in zip(cases, asked, strict=True):
            self.count["pairs"] += 1
            decisions = []
            for judge, requests in zip(judges, some, strict=True):
                opinion = read_pair(judge, case, [next(replies) for _ in requests], engine.model)
                yield from opinion.records
                decisions.append(opinion.decision)
                self.tally.note("inconsistent", float(opinion.decision == "inconsistent"))
            yield from self._decided(chain, Counter(decisions), agreed(decisions) if decisions else "invalid")

    def _decided(self, chain: _Chain, votes: Counter[str], decision: str) -> Iterator[Record]:
        if not votes["win"] + votes["lose"]:
            return
        share = votes["win"] / (votes["win"] + votes["lose"])
        self.count["labelled"] += 1
        self.count["preferred"] += decision == "win"
        self.tally.note("label_agreement", max(share, 1 - share))
        if decision == "lose":
            last = chain.last.id
            yield Verdict(last, "constitutional", False, "draft_preferred", share, 0.5, chain.draft.id)

    def _judges(self, chain: _Chain) -> list[Judge]:
        """One judge for each principle that was drawn; principles that ask the same are one."""
        rng = Random(seed(self.salt, "labels", chain.draft.id))
        drawn = rng.sample(list(self.principles), min(self.options.labels, len(self.principles)))
        options = self.options
        return [
            Judge(
                by="constitutional",
                templates=options.templates,
                criterion=criterion,
                sampling=options.judge_sampling,
                structured=options.structured,
            )
            for criterion in dict.fromkeys(p.prefer[chain.prompt.language] for p in drawn)
        ]

    def _principle(self, chain: _Chain, number: int) -> Principle:
        return Random(seed(self.salt, number, chain.draft.id)).choice(list(self.principles))

    def _critique(self, chain: _Chain, principle: Principle, number: int) -> Request:
        return self._request("critique", chain, number, principle=principle.critique[chain.prompt.language])

    def _revision(self, chain: _Chain, principle: Principle, critique: str, number: int) -> Request:
        wanted = principle.revise[chain.prompt.language]
        return self._request("revise", chain, number, principle=wanted, critique=neutral(critique.strip()))

    def _request(self, name: str, chain: _Chain, number: int, **more: str) -> Request:
        task = Case.of(chain.prompt, chain.last).task
        values = {"task": neutral(task), "answer": neutral(chain.last.text), **more}
        text = render("constitutional", name, values, self.options.templates, chain.prompt.language)
        return Request(user(text), self.options.sampling, seed(self.salt, name, number, chain.draft.id))

    def _completion(self, chain: _Chain, reply: Reply, engine: Engine) -> Completion:
        return Completion(
            chain.prompt.id, reply.text.strip(), engine.model, self.options.engine, asdict(self.options.sampling),
            reply.request.seed, reply.finish_reason, reply.completion_tokens, (chain.last.id,), reply.key,
        )  # fmt: skip
