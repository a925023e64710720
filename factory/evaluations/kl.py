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
        base = _Reader(self.base)
        for label, name in self.models.items():
            requests = [Request(p, sampling, self.seed + i, logprobs=0) for i, p in enumerate(prompts)]
            replies = [r for r in in_order(engines[name], requests) if not r.error]
            own = [_own(reply) for reply in replies]
            ratios = [o - b for o, b in zip(own, base.read(replies), strict=True)]
            spread = bootstrap(lambda places, r=ratios: sum(r[i] for i in places) / len(r), len(ratios))  # type: ignore[misc]
            meta = {"model": label, "n": len(ratios), "low": spread.low, "high": spread.high}
            yield Metric("kl", sum(ratios) / max(1, len(ratios)), 0, meta)


def _own(reply: Reply) -> float:
    """The log-probability of an answer by the model that drew it."""
    if "logprobs" not in reply.meta:
        raise EngineError(f"kl: the engine of {reply.request.id[:12]} tells no log-probabilities; use a local one")
    return float(sum(reply.meta["logprobs"]["logprobs"]))


class _Reader:
    """A checkpoint that reads what others said."""

    def __init__(self, path: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from factory.engines.checkpoints import resolve

        self._tokenizer: Any = AutoTokenizer.from_pretrained(resolve(path))
        model = AutoModelForCausalLM.from_pretrained(resolve(path), use_safetensors=True, dtype=torch.float32)
        self._model: Any = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def read(self, replies: Sequence[Reply]) -> list[float]:
        """The log-probability of each answer's own tokens, in nats."""
        rows = [self._row(reply) for reply in replies]
        found = list[float]()
        for start in range(0, len(rows), _BATCH):
            found += self._logps(rows[start : start + _BATCH])
        return found

    def _row(self, reply: Reply) -> tuple[list[int], list[int]]:
        turns = list(reply.request.messages)
        before = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        prompt = self._tokenizer(before, add_special_tokens=False)["input_ids"]
        return prompt, self._tokenizer.convert_tokens_to_ids(reply.meta["logprobs"]["tokens"])

    def _logps(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        import torch

        width, pad = max(len(p) + len(a) for p, a in rows), self._tokenizer.pad_token_id or 0
        ids = torch.tensor([[*p, *a, *[pad] * (width - len(p) - len(a))] for p, a in rows]).to(self._model.device)
        with torch.inference_mode():  # padding stands on the right, where a causal model does not see it
            logs = self._model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
        each = logs.gather(-1, ids[:, 1:, None])[..., 0]
        return [float(line[len(p) - 1 : len(p) + len(a) - 1].sum()) for line, (p, a) in zip(each, rows, strict=True)]
