"""How far models have moved from the checkpoint that they were trained from: KL(model || base), in nats an answer.

The estimate is the mean of log p(answer) - log base(answer) over answers drawn from the model at temperature 1, summed
over their tokens, the end of the turn included: k1 of Schulman 2020, "Approximating KL divergence", unbiased. The
model's part is what its engine told while it drew; the base reads the same tokens. The prompts are the mini world's
held-out tasks and requests. The interval is a percentile bootstrap over the prompts.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field

from factory.engines.base import Engine, Reply, Request, Sampling, in_order
from factory.errors import EngineError
from factory.ifd import Reader, mean_losses, reader
from factory.mini.families import Kind
from factory.mini.world import heldout
from factory.options import step
from factory.records import Metric, user
from factory.stats import bootstrap

_BATCH = 64  # answers that the base reads at a time


@step
class Kl:
    """The divergence of models from the checkpoint they started from."""

    models: dict[str, str]
    """What to call each model in the results, and the engine that runs it."""
    base: str
    """The checkpoint that they are compared with: a folder, a bundled one, or "@stage"."""
    tasks: int = Field(default=200, ge=1)
    """Held-out tasks of the ordinary families."""
    unsafe: int = 30
    """Unsafe requests."""
    lookalikes: int = 30
    """Harmless requests that sound unsafe."""
    seed: int = 0
    """Seed of the draws."""
    max_tokens: int = 64
    """Tokens for each answer."""

    def evaluate(self, engines: Mapping[str, Engine]) -> Iterator[Metric]:
        """Draw an answer of each model to each prompt; yields `kl` for each. EngineError without log-probabilities."""
        counts: tuple[tuple[Kind, int], ...] = (
            ("task", self.tasks), ("unsafe", self.unsafe), ("lookalike", self.lookalikes)
        )  # fmt: skip
        prompts = [user(t.text) for kind, n in counts for t in heldout(n, self.seed, (kind,))]
        sampling = Sampling(temperature=1.0, max_tokens=self.max_tokens)
        base = reader(self.base)
        for label, name in self.models.items():
            requests = [Request(p, sampling, self.seed + i, logprobs=0) for i, p in enumerate(prompts)]
            replies = [r for r in in_order(engines[name], requests) if not r.error]
            own = [_own(reply) for reply in replies]
            ratios = [o - b for o, b in zip(own, _read(base, replies), strict=True)]
            spread = bootstrap(lambda places, r=ratios: sum(r[i] for i in places) / len(r), len(ratios))  # type: ignore[misc]
            meta = {"model": label, "n": len(ratios), "low": spread.low, "high": spread.high}
            yield Metric("kl", sum(ratios) / max(1, len(ratios)), 0, meta)


def _own(reply: Reply) -> float:
    """The log-probability of an answer by the model that drew it."""
    if "logprobs" not in reply.meta:
        raise EngineError(f"kl: the engine of {reply.request.id[:12]} tells no log-probabilities; use a local one")
    return float(sum(reply.meta["logprobs"]["logprobs"]))


def _read(base: Reader, replies: Sequence[Reply]) -> list[float]:
    """The log-probability by the base of each answer's own tokens, in nats."""
    rows = [_row(base[1], reply) for reply in replies]
    losses = mean_losses(base, rows, _BATCH)
    return [-loss * len(answer) for loss, (_, answer) in zip(losses, rows, strict=True)]


def _row(tokenizer: Any, reply: Reply) -> tuple[list[int], list[int]]:
    """The tokens of the prompt, and those that the engine drew."""
    before = tokenizer.apply_chat_template(list(reply.request.messages), tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(before, add_special_tokens=False)["input_ids"]
    return prompt, tokenizer.convert_tokens_to_ids(reply.meta["logprobs"]["tokens"])
