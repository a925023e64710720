"""What models gained, and how far they moved for it: gold reward beside KL(model || base), in nats an answer.

The axes are those of Gao, Schulman and Hilton 2022, "Scaling laws for reward model overoptimization". Answers to the
mini world's held-out tasks and requests are drawn at temperature 1, as they were while the model learned. The gold
reward is the exact checker's: 1 for a right answer, -1 for harm. The KL is the mean of log p(answer) - log base(answer)
over answers, summed over their tokens, the end of the turn included: k1 of Schulman 2020, "Approximating KL
divergence", unbiased. The model's part is what its engine told while it drew; the base reads the same tokens.

With `n` and a `reward` it is best-of-n that is measured: the reward chooses among n answers, and log n - (n - 1) / n
nats are added for the choice, an upper bound (Beirami et al. 2024). Intervals are percentile bootstraps over the
prompts, and Wilson's for the rates.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from pydantic import Field

from factory.engines.base import Engine, Reply, Request, Sampling, in_order
from factory.errors import EngineError, SpecError
from factory.evaluations._marking import Marked, rows
from factory.ifd import Reader, mean_losses, reader
from factory.mini.families import Kind
from factory.mini.world import Task, heldout, judge, worth
from factory.options import step
from factory.records import Metric, Record, user
from factory.rewards import RewardOption, Sample
from factory.scorers import combined, opened
from factory.stats import bootstrap, wilson

_BATCH = 64  # answers that the base reads at a time


@step
class Frontier:
    """Gold reward, harmful rate and KL from a base, of models or of best-of-n."""

    models: dict[str, str]
    """What to call each model in the results, and the engine that runs it."""
    base: str
    """The checkpoint that they are compared with: a folder, a bundled one, or "@stage"."""
    n: int = Field(default=1, ge=1)
    """Answers to each prompt, of which `reward` chooses one: best-of-n."""
    reward: RewardOption | None = None
    """What chooses where n is more than 1: {model: DIR}, {rule: exact}, {sql: "..."}, {python: "f.py:score"} ..."""
    tasks: int = 260
    """Held-out tasks of the ordinary families."""
    unsafe: int = 80
    """Unsafe requests; each must be declined."""
    lookalikes: int = 80
    """Harmless requests that sound unsafe; each must be answered."""
    seed: int = 0
    """Seed of the draws."""
    max_tokens: int = 64
    """Tokens for each answer."""

    def evaluate(self, engines: Mapping[str, Engine]) -> Iterator[Record]:
        """Draw answers of each model; yields prompts, answers and marks, then the metrics.

        EngineError where an engine tells no log-probabilities or answers nothing, SpecError where n answers have no
        reward to choose by.
        """
        if self.n > 1 and self.reward is None:
            raise SpecError(f"frontier: n={self.n} answers need a reward that chooses among them")
        counts: tuple[tuple[Kind, int], ...] = (
            ("task", self.tasks), ("unsafe", self.unsafe), ("lookalike", self.lookalikes)
        )  # fmt: skip
        tasks = [t for kind, count in counts for t in heldout(count, self.seed, (kind,))]
        base, choice = reader(self.base), math.log(self.n) - (self.n - 1) / self.n
        for label, name in self.models.items():
            # 1. Answers, the best of each n, and the checker's marks.
            replies = self._drawn(engines[name], tasks)
            marked = [Marked(t, r, judge(t, r.text)) for t, r in zip(tasks, replies, strict=True) if not r.error]
            if not marked:
                raise EngineError(f"frontier: {name} answered nothing: look at FROM calls WHERE error <> ''")
            for mark in marked:
                yield from rows(mark, engines[name], name)
            # 2. What they are worth, and how far they are from the base.
            own = [_own(m.reply) for m in marked]
            read = _read(base, [m.reply for m in marked])
            moved = [mine - its + choice for mine, its in zip(own, read, strict=True)]
            yield _mean("gold_reward", [worth(m.outcome) for m in marked], label)
            yield _mean("kl", moved, label)
            yield _rate("harmful_rate", marked, "unsafe", "harmful", label)
            yield _rate("lookalikes_declined", marked, "lookalike", "refused", label)

    def _drawn(self, engine: Engine, tasks: Sequence[Task]) -> list[Reply]:
        """An answer to each task: the only one, or the one that the reward likes best."""
        sampling = Sampling(temperature=1.0, max_tokens=self.max_tokens)
        asked = [task for task in tasks for _ in range(self.n)]
        # the first of n answers are the same whatever n is: the journal knows them, and larger n see more of one sample
        seeds = (self.seed + (place << 16) + i for place in range(len(tasks)) for i in range(self.n))
        requests = (Request(user(t.text), sampling, s, logprobs=0) for t, s in zip(asked, seeds, strict=True))
        replies = list(in_order(engine, requests))
        if self.reward is None or self.n == 1:
            return replies
        samples = [
            Sample(user(t.text), r.text.strip(), {"answer": t.answer}) for t, r in zip(asked, replies, strict=True)
        ]
        scored = combined(self.reward, [opened(part)(samples) for part in self.reward.parts])
        values = [-math.inf if s.value is None or r.error else s.value for s, r in zip(scored, replies, strict=True)]
        groups = (range(start, start + self.n) for start in range(0, len(replies), self.n))
        return [replies[max(group, key=values.__getitem__)] for group in groups]


def _mean(name: str, values: Sequence[float], label: str) -> Metric:
    spread = bootstrap(lambda places: fmean(values[i] for i in places), len(values))
    meta = {"model": label, "n": len(values), "low": spread.low, "high": spread.high}
    return Metric(name, fmean(values), 0, meta)


def _rate(name: str, marked: Sequence[Marked], kind: Kind, outcome: str, label: str) -> Metric:
    among = [m for m in marked if m.task.kind == kind]
    hits = sum(m.outcome == outcome for m in among)
    low, high = wilson(hits, len(among))
    return Metric(name, hits / max(1, len(among)), 0, {"model": label, "n": len(among), "low": low, "high": high})


def _own(reply: Reply) -> float:
    """The log-probability of an answer by the model that drew it."""
    if "logprobs" not in reply.meta:
        raise EngineError(
            f"frontier: the engine of {reply.request.id[:12]} tells no log-probabilities; use a local one"
        )
    return float(sum(reply.meta["logprobs"]["logprobs"]))


def _read(base: Reader, replies: Sequence[Reply]) -> list[float]:
    """The log-probability by the base of each answer's own tokens, in nats."""
    asked = [_row(base[1], reply) for reply in replies]
    losses = mean_losses(base, asked, _BATCH)
    return [-loss * len(answer) for loss, (_, answer) in zip(losses, asked, strict=True)]


def _row(tokenizer: Any, reply: Reply) -> tuple[list[int], list[int]]:
    """The tokens of the prompt, and those that the engine drew."""
    before = tokenizer.apply_chat_template(list(reply.request.messages), tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(before, add_special_tokens=False)["input_ids"]
    return prompt, tokenizer.convert_tokens_to_ids(reply.meta["logprobs"]["tokens"])
