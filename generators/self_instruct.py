"""Self-Instruct: a model grows a pool of tasks from a few seeds, then writes instances of each.

Source: Wang et al., "Self-Instruct: Aligning Language Models with Self-Generated Instructions" (2022), and its code;
`style: alpaca` is the one-call variant of Taori et al., "Stanford Alpaca" (2023). Departures:

1. Chat models are asked, not only continued: the templates say what is wanted. A folder of your own replaces them.
2. Any script: words are counted by character in Chinese, and an instruction may start with any letter.
3. Rounds of many requests at once keep the engine full; machine demonstrations come from earlier rounds.
4. Exactly `accept` rows (one instance each) are kept, and every casualty is a row with its reason.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Literal, NamedTuple

from pydantic import Field

from factory.engines.base import Engine, Reply, Request, Sampling, in_order
from factory.errors import DataError
from factory.options import step
from factory.records import Completion, Metric, Prompt, Record, Verdict, content_id, user
from factory.text import language, words
from generators import _instances as reading
from generators._instances import Instance, Task
from generators._novelty import Novelty
from generators._tally import Tally
from generators._templates import render

PUBLISHED: Mapping[str, tuple[float, str]] = MappingProxyType({
    "instructions_per_seed": (52_445 / 175, "Wang et al. 2022, table 1: 175 seeds, 52,445 instructions, davinci"),
    "instances_per_instruction": (82_439 / 52_445, "Wang et al. 2022, table 1"),
    "empty_input_share": (35_878 / 82_439, "Wang et al. 2022, table 1"),
    "classification_share": (11_584 / 52_445, "Wang et al. 2022, table 1"),
    "instruction_words": (15.9, "Wang et al. 2022, table 1: mean words"),
    "input_words": (12.7, "Wang et al. 2022, table 1: mean words of those that are not empty"),
    "output_words": (18.9, "Wang et al. 2022, table 1: mean words"),
    "valid_instruction": (0.92, "Wang et al. 2022, table 2: experts on 200 instances"),
    "valid_input": (0.79, "Wang et al. 2022, table 2: experts on 200 instances"),
    "valid_output": (0.58, "Wang et al. 2022, table 2: experts on 200 instances"),
    "valid_all": (0.54, "Wang et al. 2022, table 2: experts on 200 instances"),
})  # fmt: skip
_MEASURES = ("asked", "parsed", "valid", "novel", "answered", "kept")


@step
class SelfInstruct:
    """Grows instructions with inputs and outputs from seed tasks."""

    engine: str
    """The engine that writes."""
    accept: int = Field(default=100, ge=1)
    """How many rows to keep, exactly: an instruction with one input and its output is a row."""
    max_candidates: int | None = None
    """The most instructions to ask for; by default twenty for each wanted row."""
    style: Literal["paper", "alpaca"] = "paper"
    """`paper` writes instructions, sorts them and then writes instances; `alpaca` writes all in one call."""
    at_once: int | None = None
    """Instructions per request: 8 in the paper's style, 20 in Alpaca's."""
    seed_demonstrations: int | None = None
    """Seeds shown in each request: 6 in the paper's style, 3 in Alpaca's."""
    machine_demonstrations: int | None = None
    """Generated instructions shown in each request: 2 in the paper's style, none in Alpaca's."""
    round_requests: int = Field(default=16, ge=1)
    """Requests for instructions in a round."""
    max_instances: int = Field(default=5, ge=1)
    """The most instances kept of one instruction."""
    rouge: float = Field(default=0.7, gt=0, le=1)
    """An instruction whose ROUGE-L with a seed or an earlier one is above this is refused."""
    templates: Path | None = None
    """A folder with Jinja templates of your own: instructions, classify, input_first, output_first, alpaca."""
    sampling: Sampling = Sampling(temperature=0.7, top_p=0.5, presence_penalty=2.0, max_tokens=1024)
    """How instructions are drawn."""
    instance_sampling: Sampling = Sampling(temperature=0.0, presence_penalty=1.5, max_tokens=350)
    """How instances are drawn."""

    def calls(self, prompts: int) -> int:
        """Calls for an expected yield of one row in four candidates: one a request, two a novel instruction."""
        candidates = min(4 * self.accept, self._ceiling)
        return -(-candidates // self._at_once) + (0 if self.style == "alpaca" else candidates)

    def generate(self, prompts: Iterable[Prompt], engines: Mapping[str, Engine], rng: Random) -> Iterator[Record]:
        """Rounds until `accept` rows are kept or the ceiling of candidates is reached."""
        seeds = [_Shown.of(p) for p in prompts]
        if not seeds:
            raise DataError("self_instruct: no seeds to start from; import some into the stage's `from` dataset first")
        work = _Work(self, engines[self.engine], rng, seeds)
        work.learn(seeds)
        while work.count["kept"] < self.accept and work.count["asked"] < self._ceiling:
            # 1. Ask for instructions, showing seeds and what earlier rounds found.
            drafts = yield from work.drafts()
            # 2. Keep those that follow the rules and are new.
            tasks = yield from work.screened(drafts)
            # 3. Write instances for each (Alpaca's came along).
            yield from work.rows(tasks)
        yield from work.figures()
        if short := self.accept - work.count["kept"]:
            yield Metric("yield/self_instruct/short_by", short, len(_MEASURES))

    @property
    def _at_once(self) -> int:
        return self.at_once or (20 if self.style == "alpaca" else 8)

    @property
    def _ceiling(self) -> int:
        return self.max_candidates or 20 * self.accept

    @property
    def _shown(self) -> tuple[int, int]:
        seed, machine = (3, 0) if self.style == "alpaca" else (6, 2)
        wanted = self.seed_demonstrations, self.machine_demonstrations
        return (seed if wanted[0] is None else wanted[0], machine if wanted[1] is None else wanted[1])


class _Shown(NamedTuple):
    """A task as a demonstration shows it."""

    id: str
    instruction: str
    input: str
    output: str
    language: str

    @staticmethod
    def of(prompt: Prompt) -> "_Shown":
        instruction, shown = prompt.meta.get("instruction") or prompt.text, prompt.meta.get("input") or ""
        return _Shown(prompt.id, instruction, shown, prompt.meta.get("output") or "", prompt.language)


class _Draft(NamedTuple):
    """A task as the model wrote it, with the demonstrations and the reply that it came from."""

    task: Task
    parents: tuple[str, ...]
    reply: Reply
    place: int

    @property
    def id(self) -> str:
        """The candidate's own id: one that is refused never becomes a prompt."""
        return content_id("candidate", self.reply.key or self.reply.request.id, self.place)

    def refused(self, reason: str, text: str = "", **more: object) -> Verdict:
        """The verdict on this candidate."""
        return Verdict(self.id, "self_instruct", False, reason, text=text or self.task.instruction, **more)  # type: ignore[arg-type]


Told = Generator[Record, None, list[_Draft]]  # yields verdicts on the way to what it returns


@dataclass
class _Work:
    """The state of one run: the pool, the gate and the counts of the waterfall."""

    options: SelfInstruct
    engine: Engine
    rng: Random
    seeds: list[_Shown]
    machine: list[_Shown] = field(default_factory=list)
    tally: Tally = field(default_factory=lambda: Tally("self_instruct", _MEASURES))

    def __post_init__(self) -> None:
        self.novelty = Novelty(self.options.rouge)
        self.count = self.tally.count
        self.written: Counter[str] = Counter()  # kept instances of each instruction

    def learn(self, seeds: list[_Shown]) -> None:
        """Put the seeds' instructions into the gate, each once."""
        for text, id in {s.instruction: s.id for s in reversed(seeds)}.items():
            self.novelty.add(id, text)

    def drafts(self) -> Told:
        """One round of requests; yields verdicts on what could not be read, returns what could."""
        missing = self.options._ceiling - self.count["asked"]
        number = min(self.options.round_requests, -(-missing // self.options._at_once))
        shown = [self._demonstrations() for _ in range(number)]
        requests = [self._request(s) for s in shown]
        found: list[_Draft] = []
        for demonstrations, reply in zip(shown, in_order(self.engine, requests), strict=True):
            self.count["asked"] += self.options._at_once
            if reply.finish_reason == "error":
                yield Verdict(reply.key or reply.request.id, "self_instruct", False, "engine_error", text=reply.error)
                continue
            parents = tuple(s.id for s in demonstrations)
            tasks, others = self._read(reply)
            found += [_Draft(t, parents, reply, place) for place, t in enumerate(tasks)]
            for place, text in enumerate(others):
                yield _Draft(Task(text), parents, reply, -1 - place).refused("unreadable")
        self.count["parsed"] += len(found)
        return found

    def screened(self, drafts: list[_Draft]) -> Told:
        """The paper's rules, then the ROUGE-L gate, in the order in which the candidates were written."""
        novel: list[_Draft] = []
        for draft in drafts:
            text = draft.task.instruction
            if fault := reading.instruction_fault(text, self.options.style):
                yield draft.refused(fault)
                continue
            self.count["valid"] += 1
            if near := self.novelty.nearest(text):
                yield draft.refused("too_similar", score=near.score, threshold=self.options.rouge, evidence_id=near.id)
                continue
            self.novelty.add(draft.id, text)
            novel.append(draft)
        self.count["novel"] += len(novel)
        return novel

    def rows(self, drafts: list[_Draft]) -> Iterator[Record]:
        """Instances of each task as prompts with completions, until enough are kept."""
        written = ((d, d.reply, d.task.instances) for d in drafts)
        for draft, reply, instances in written if self.options.style == "alpaca" else self._instances(drafts):
            self.count["answered"] += bool(instances)
            if not instances:
                reason = "engine_error" if reply.finish_reason == "error" else "no_instance"
                yield draft.refused(reason, f"{draft.task.instruction}\n{reply.error or reply.text}")
            faults = reading.instance_faults(instances, self.options.max_instances)
            for place, (instance, fault) in enumerate(zip(instances, faults, strict=True)):
                if not fault and self.count["kept"] >= self.options.accept:
                    fault = "enough_accepted"
                if fault:
                    text = f"{draft.task.instruction}\n{instance.input}\n{instance.output}"
                    yield draft._replace(place=1000 * (1 + draft.place) + place).refused(fault, text)
                else:
                    self.count["kept"] += 1
                    yield from self._row(draft, instance, reply)

    def _row(self, draft: _Draft, instance: Instance, reply: Reply) -> Iterator[Record]:
        instruction = draft.task.instruction
        text = f"{instruction}\n{instance.input}" if instance.input else instruction
        meta = {"instruction": instruction, "input": instance.input}
        prompt = Prompt(user(text), "self_instruct", draft.parents, language(text), meta)
        self._note(instruction, instance)
        self.machine.append(_Shown(prompt.id, instruction, instance.input, instance.output, prompt.language))
        yield prompt
        sampling = asdict(reply.request.sampling)
        yield Completion(
            prompt.id, instance.output, self.engine.model, self.options.engine, sampling, reply.request.seed,
            call_key=reply.key,
        )  # fmt: skip

    def _note(self, instruction: str, instance: Instance) -> None:
        self.written[instruction] += 1
        self.tally.note("empty_input_share", not instance.input)
        for name, text in (("instruction", instruction), ("input", instance.input), ("output", instance.output)):
            if text:
                self.tally.note(f"{name}_words", len(words(text)))

    def figures(self) -> Iterator[Metric]:
        """The waterfall, and what the paper tells of its data as well."""
        if self.written:
            self.tally.note("instructions_per_seed", len(self.written) / len({s.instruction for s in self.seeds}))
            self.tally.note("instances_per_instruction", self.written.total() / len(self.written))
        yield from self.tally.metrics()

    def _demonstrations(self) -> list[_Shown]:
        seed, machine = self.options._shown
        by_instruction = {m.instruction: m for m in self.machine}
        some = self.rng.sample(list(by_instruction.values()), min(machine, len(by_instruction)))
        shown = self.rng.sample(self.seeds, min(seed + machine - len(some), len(self.seeds))) + some
        self.rng.shuffle(shown)
        return shown

    def _request(self, shown: list[_Shown]) -> Request:
        main = Counter(s.language for s in shown).most_common(1)[0][0]
        alpaca = self.options.style == "alpaca"
        values = {"tasks": shown if alpaca else [" ".join(s.instruction.split()) for s in shown]}
        text = self._render("alpaca" if alpaca else "instructions", main, wanted=self.options._at_once, **values)
        return Request(user(text), self.options.sampling, self.rng.getrandbits(48))

    def _read(self, reply: Reply) -> tuple[list[Task], list[str]]:
        cut = reply.finish_reason == "length"
        if self.options.style == "alpaca":
            tasks = reading.alpaca_tasks(reply.text, cut)
            return tasks, [] if tasks else [reply.text]
        texts, others = reading.numbered(reply.text, cut)
        return [Task(t) for t in texts], others

    def _instances(self, drafts: list[_Draft]) -> Iterator[tuple[_Draft, Reply, list[Instance]]]:
        kinds = [reading.is_yes(r.text) for r in self._ask("classify", drafts)]
        for kind in kinds:
            self.tally.note("classification_share", kind)
        for wanted, name, read in (
            (True, "output_first", reading.output_first),
            (False, "input_first", reading.input_first),
        ):
            some = [d for d, kind in zip(drafts, kinds, strict=True) if kind is wanted]
            for draft, reply in zip(some, self._ask(name, some), strict=True):
                yield draft, reply, read(reply.text, reply.finish_reason == "length")

    def _ask(self, template: str, drafts: list[_Draft]) -> Iterator[Reply]:
        limit = {"max_tokens": 8} if template == "classify" else {}
        sampling = Sampling(**asdict(self.options.instance_sampling) | limit)
        return in_order(self.engine, [Request(user(self._about(template, d)), sampling) for d in drafts])

    def _about(self, template: str, draft: _Draft) -> str:
        asked = draft.task.instruction
        return self._render(template, language(asked), instruction=asked, wanted=self.options.max_instances)

    def _render(self, name: str, tongue: str, **values: object) -> str:
        return render("self_instruct", name, values, self.options.templates, tongue)
