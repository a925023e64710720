"""`process_steps`: solutions, split into steps, with a label for each: can the answer still be reached from here?

Sources: Wang et al., "Math-Shepherd" (2023), sections 3.2 and 3.3: the hard label of a step is 1 if any of N rollouts
from there ends right, the soft one is their share; Luo et al., "OmegaPRM" (2024): the first wrong step by binary
search; Zhang et al., "The Lessons of Developing Process Reward Models" (2025): a label is kept only where rollouts and
a judge agree; Lightman et al., "Let's Verify Step by Step" (2023): labels end with the first wrong step. Departures:

1. A rollout that failed (an error, cut off, refused, without an answer) is a row with its reason. It makes `rollouts`
   smaller and never counts against the step; a step without any rollout has no label.
2. Answers are compared as quantities (factory/answers.py), not as strings.
3. The last step's label is the outcome itself: from there nothing is left to roll out, so its `rollouts` is 0.
4. Solutions that begin with the same steps share the rollouts of that beginning.
5. What a judge is shown stands behind a fence with a nonce, and reserved chat markers are taken apart: a step is
   hostile text, and cannot end the turn or speak for the judge.

`PUBLISHED` stands beside the metrics `conformance/process_steps/*`.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Literal

from pydantic import Field

from factory.answers import final_answer, same_answer
from factory.engines.base import Engine, Reply, Request, Sampling
from factory.errors import SpecError
from factory.options import step
from factory.records import Answered, Completion, Judgement, Message, Metric, Prompt, Record, Step, Verdict
from generators._candidates import casualty, seed, task_fault, waves
from generators._judge import neutral, nonce_for
from generators._rollouts import NAME, Judge, Label, Rollouts, Search, Solution, agreed, settled, wanted
from generators._steps import Style, split
from generators._tally import Tally
from generators._templates import render

PUBLISHED: Mapping[str, tuple[float, str]] = MappingProxyType({
    "label_accuracy": (0.85, "Math-Shepherd: hard labels beside people's, 160 steps; benchmarks/process_steps.py"),
    "rollouts_per_step": (8.0, "Math-Shepherd: N = 8"),
    "agreement": (0.4, "Zhang et al. 2025: the part of the data where rollouts and a judge agreed"),
})  # fmt: skip
_TYPICAL_STEPS = 3  # steps of a solution that are asked about, for the estimate of calls


@step
class ProcessSteps:
    """Labels the steps of solutions by rollouts, by a judge, or where both agree."""

    engine: str = ""
    """The engine that writes solutions; without one the prompts' existing completions are labelled."""
    rollout: str = ""
    """The engine that goes on from each step; by default the one that writes."""
    judge: str = ""
    """The engine that judges steps, for `labels: judge` and `labels: consensus`."""
    labels: Literal["rollouts", "judge", "consensus"] = "rollouts"
    """Where labels come from; `consensus` labels a step only where rollouts and judge agree."""
    n: int = Field(default=1, ge=1)
    """Solutions to write for each problem."""
    rollouts: int = Field(default=8, ge=1)
    """Rollouts from each step; every one is a request of its own."""
    threshold: float = Field(default=0.0, ge=0, lt=1)
    """A step is right if more than this share of its rollouts ends right; 0 means any, as in Math-Shepherd."""
    search: Search = "forward"
    """`forward` stops behind the first wrong step, `binary` finds it by halving, `all` asks about every step."""
    keep: Literal["all", "right"] = "all"
    """`right` keeps only solutions whose every step holds (process rejection); the others get a verdict."""
    style: Style = "lines"
    """What a step is: a line, a paragraph between blank lines, a part that begins `Step 2:` or `2.`, or a sentence."""
    answer: str = "answer"
    """Key of the right answer in each prompt's meta; a whole solution may stand there (`#### 18`). Where it is missing
    and `engine` writes, an imported completion of the prompt says it."""
    max_steps: int = Field(default=40, ge=1)
    """A solution with more steps is not labelled: a model that babbles would cost many rollouts."""
    together: int = Field(default=256, ge=1)
    """Problems worked on at a time: the rollouts of all of them are in flight together."""
    templates: Path | None = None
    """A folder with Jinja templates of your own: solve, judge."""
    sampling: Sampling = Sampling(temperature=1.0, max_tokens=1024)
    """How solutions are drawn."""
    rollout_sampling: Sampling = Sampling(temperature=0.7, max_tokens=1024)
    """How rollouts are drawn."""
    judge_sampling: Sampling = Sampling(temperature=0.0, max_tokens=256)
    """How the judge answers."""

    def __post_init__(self) -> None:
        if self.labels != "judge" and not (self.rollout or self.engine):
            raise SpecError(f"{NAME}: name `rollout`, the engine that goes on from each step, or `labels: judge`")
        if self.labels != "rollouts" and not self.judge:
            raise SpecError(f"{NAME}: `labels: {self.labels}` needs `judge`, the engine that judges steps")
        if self.labels != "rollouts" and self.search == "binary":
            raise SpecError(f"{NAME}: `search: binary` needs `labels: rollouts`; a judge does not say what follows")

    def calls(self, prompts: int) -> int:
        """Calls for solutions of a few steps, of which the last needs no rollout."""
        each = {"rollouts": self.rollouts, "judge": 1, "consensus": self.rollouts + 1}[self.labels]
        return prompts * self.n * (bool(self.engine) + (_TYPICAL_STEPS - 1) * each)

    def generate(self, prompts: Iterable[Prompt], engines: Mapping[str, Engine], rng: Random) -> Iterator[Record]:
        """`review` of prompts alone."""
        return self.review((Answered(prompt, ()) for prompt in prompts), engines, rng)

    def review(self, answered: Iterable[Answered], engines: Mapping[str, Engine], rng: Random) -> Iterator[Record]:
        """Block by block: the problems, their solutions with outcome, steps and labels; at last the metrics."""
        work = _Work(self, engines, rng.getrandbits(48))
        for block in waves(answered, self.together):
            # 1. Write solutions, or take those that are there, and split them.
            solutions = yield from work.solved(block)
            # 2. Ask about one step of all solutions after the other.
            yield from work.searched(solutions)
            # 3. Hand out the steps; reject what does not hold.
            for solution in solutions:
                yield from work.rows(solution)
        yield from work.metrics()


Sketch = tuple[Answered, Completion, str]  # a solution, and what is wrong with it


@dataclass
class _Work:
    """The state of one run: the two ways to a label, and the counts."""

    options: ProcessSteps
    engines: Mapping[str, Engine]
    salt: int

    def __post_init__(self) -> None:
        options, by, engines = self.options, self.options.labels, self.engines
        self.tally = Tally(NAME, ("asked", "answered", "labelled", "kept"))
        going_on = None if by == "judge" else engines[options.rollout or options.engine]
        judging = None if by == "rollouts" else engines[options.judge]
        self.rollouts = going_on and Rollouts(
            going_on, options.rollouts, options.threshold, options.rollout_sampling, self.salt, self.tally
        )
        self.judge = judging and Judge(judging, options.judge_sampling, self._question, self.tally)

    # --- solutions ---------------------------------------------------------------------------------------------------

    def solved(self, block: list[Answered]) -> Generator[Record, None, list[Solution]]:
        """The solutions that can be labelled; yields prompts, completions and outcomes, and verdicts on the others."""
        ready, found = list[Answered](), list[Solution]()
        for one in block:
            yield one.prompt
            if reason := self._unfit(one):
                yield Verdict(one.prompt.id, NAME, False, reason, text=one.prompt.text)
            else:
                ready.append(one)
        sketches = self._written(ready) if self.options.engine else self._existing(ready)
        for one, completion, reason in (yield from sketches):
            yield completion
            solution = self._split(one, completion)
            yield from self._outcome(solution, reason)
            if reason := reason or self._fault(solution):
                yield Verdict(completion.id, NAME, False, reason, evidence_id=one.prompt.id, text=completion.text)
            else:
                found.append(solution)
        self.tally.count["answered"] += len(found)
        return found

    def _unfit(self, one: Answered) -> str:
        if self.rollouts and self._gold(one) is None:
            return "no_reference_answer"
        return "" if self.options.engine or one.completions else "no_solution"

    def _written(self, block: list[Answered]) -> Generator[Record, None, list[Sketch]]:
        options, engine = self.options, self.engines[self.options.engine]
        asked = [(one, i) for one in block for i in range(options.n)]
        requests = (
            Request(self._conversation(one.prompt), options.sampling, seed(self.salt, one.prompt.id, i))
            for one, i in asked
        )
        sketches = list[Sketch]()
        for (one, _), reply in zip(asked, self.tally.ask(engine, requests), strict=True):
            self.tally.count["asked"] += 1
            self.tally.count["calls"] += 1
            if reply.finish_reason == "error":
                yield casualty(NAME, reply, "engine_error", evidence=one.prompt.id)
            else:
                reason = task_fault(reply)
                sketches.append((one, self._completion(one.prompt, reply, engine), reason))
        return sketches

    def _existing(self, block: list[Answered]) -> Generator[Record, None, list[Sketch]]:
        ends = {"length": "truncated", "content_filter": "refused"}
        sketches = [(one, c, ends.get(c.finish_reason, "")) for one in block for c in one.completions]
        self.tally.count["asked"] += len(sketches)
        yield from ()
        return sketches

    def _completion(self, prompt: Prompt, reply: Reply, engine: Engine) -> Completion:
        return Completion(
            prompt.id, reply.text.strip(), engine.model, self.options.engine, asdict(self.options.sampling),
            reply.request.seed, reply.finish_reason, reply.completion_tokens, call_key=reply.key,
        )  # fmt: skip

    def _split(self, one: Answered, completion: Completion) -> Solution:
        parts, gold = split(completion.text, self.options.style), self._gold(one)
        solution = Solution(one.prompt, self._conversation(one.prompt), completion, gold, parts)
        if self.rollouts and gold is not None and parts:
            right = _ends_right(solution)
            solution.labels[len(parts) - 1] = Label(int(right), float(right))
        return solution

    def _fault(self, solution: Solution) -> str:
        if not solution.parts or (self.rollouts and final_answer(solution.completion.text) is None):
            return "no_answer"
        return "too_many_steps" if len(solution.parts) > self.options.max_steps else ""

    def _outcome(self, solution: Solution, reason: str) -> Iterator[Judgement]:
        """What the answer is worth. One that cannot be read is invalid, not wrong; so is one that may be cut."""
        if solution.gold is None:
            return
        said = None if reason else final_answer(solution.completion.text)
        right = said is not None and _ends_right(solution)
        self.tally.note("right_answers", right)
        yield Judgement(
            solution.prompt.id, solution.completion.id, NAME, "rule", aspect="exact",
            verdict="invalid" if said is None else None, score=None if said is None else float(right),
            rationale=reason or (f"{said} beside {solution.gold}" if said else "no answer found"),
        )  # fmt: skip

    def _gold(self, one: Answered) -> str | None:
        imported = [c.text for c in one.completions if c.engine == "import"] if self.options.engine else []
        value = one.prompt.meta.get(self.options.answer, next(iter(imported), None))
        text = "" if value is None else str(value).strip()
        return final_answer(text) or text or None

    def _conversation(self, prompt: Prompt) -> tuple[Message, ...]:
        """The prompt as the solver sees it: with how to write steps and answer. The row stays as it was imported."""
        asked = render(NAME, "solve", {"problem": prompt.text}, self.options.templates, prompt.language)
        return (*prompt.messages[:-1], Message("user", asked))

    # --- labels ------------------------------------------------------------------------------------------------------

    def searched(self, solutions: list[Solution]) -> Iterator[Record]:
        """Waves until no solution has a step to ask about; yields failed rollouts and the judge's opinions."""
        while wave := [(s, p) for s in solutions for p in wanted(s.labels, len(s.parts), self.options.search)]:
            rolled = (yield from self.rollouts.ask(wave)) if self.rollouts else {}
            judged = (yield from self.judge.ask(wave)) if self.judge else {}
            for solution, place in wave:
                one, two = rolled.get(solution.key(place)), judged.get(solution.key(place))
                solution.labels[place] = agreed(one, two) if one and two else one or two or Label()
                self._counted(solution.labels[place], one, two)

    def _counted(self, label: Label, one: Label | None, two: Label | None) -> None:
        self.tally.note("label_rate", label.hard is not None)
        if one:
            self.tally.note("rollouts_per_step", label.rollouts)
        if one and two and one.hard is not None and two.hard is not None:
            self.tally.note("agreement", not label.disputed)
        if label.soft is not None:
            self.tally.note("soft_mean", label.soft)

    def _question(self, solution: Solution, place: int) -> str:
        texts = [part.text for part in solution.parts]
        shown = {"problem": solution.prompt.text, "before": "\n".join(texts[:place]), "step": texts[place]}
        values = {name: neutral(text) for name, text in shown.items()} | {"nonce": nonce_for(*shown.values())}
        values |= {"number": str(place + 1)}
        return render(NAME, "judge", values, self.options.templates, solution.prompt.language)

    # --- rows --------------------------------------------------------------------------------------------------------

    def rows(self, solution: Solution) -> Iterator[Record]:
        """The steps with their labels, what is wrong with some, and the verdict on the whole."""
        completion, parts = solution.completion, solution.parts
        labels = settled(solution.labels, len(parts), self.options.search)
        steps = [
            Step(completion.id, place, part.text, label.hard, label.soft, label.rollouts)
            for place, (part, label) in enumerate(zip(parts, labels, strict=True))
        ]
        yield from steps
        for place, one in enumerate(steps):
            known = solution.labels.get(place)
            if known and known.hard is None and one.label is None:
                reason = "disputed" if known.disputed else "unlabelled"
                yield Verdict(one.id, NAME, False, reason, evidence_id=completion.id, text=one.text)
        whole = self._known(labels)
        fault = self._rejected(solution, steps)
        if fault and self.options.keep == "right":
            yield fault
        else:
            self.tally.count["kept"] += whole

    def _known(self, labels: list[Label]) -> bool:
        """Whether all steps have labels, up to the first wrong one; counts them."""
        hard = [label.hard for label in labels]
        found = [label for label in hard if label is not None]
        for label in found:
            self.tally.note("wrong_step_rate", label == 0)
        self.tally.note("steps_per_solution", len(found))
        self.tally.count["steps"] += len(found)
        whole = None not in (hard[: hard.index(0)] if 0 in hard else hard)
        self.tally.count["labelled"] += whole
        return whole

    def _rejected(self, solution: Solution, steps: list[Step]) -> Verdict | None:
        """Process rejection: the first step that does not hold, or that nobody knows of, or the wrong answer."""
        end = solution.completion.id
        for one in steps:
            if one.label != 1:
                reason = "wrong_step" if one.label == 0 else "unlabelled_step"
                return Verdict(end, NAME, False, reason, score=one.soft_label, evidence_id=one.id, text=one.text)
        if solution.gold is not None and not _ends_right(solution):
            return Verdict(end, NAME, False, "wrong_answer", evidence_id=solution.prompt.id, text=steps[-1].text)
        return None

    def metrics(self) -> Iterator[Metric]:
        """The waterfall and the statistics of the labels; what a label cost comes last."""
        yield from self.tally.metrics()
        if steps := self.tally.count["steps"]:
            yield Metric(f"conformance/{NAME}/calls_per_labelled_step", self.tally.count["calls"] / steps)


def _ends_right(solution: Solution) -> bool:
    said = final_answer(solution.completion.text)
    return said is not None and solution.gold is not None and same_answer(said, solution.gold)
