"""Each trainer in a small world, and how near it comes to what is known exactly."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Protocol

import torch

from factory.records import Metric
from trainers import _policy_worlds
from trainers._batches import padded
from trainers._models import load, scores
from trainers._rows import encoded, side_by_side
from trainers._worlds import (
    LENGTH,
    LETTERS,
    PROMPTS,
    SKEWED,
    UNIFORM,
    Finding,
    answers,
    entropy,
    measured,
    network,
    optimum,
    preferences,
    rankings,
    reference,
    reward,
    written,
)  # fmt: skip


class _Trainer(Protocol):
    def train(self, data: Any, out: Path) -> Iterator[Any]: ...


Make = Callable[[str, Mapping[str, Any]], _Trainer]  # a trainer's name and options -> the trainer
_COMMON = {"bf16": False, "save_steps": 0, "logging_steps": 1, "eval_fraction": 0.0, "warmup_ratio": 0.05}


def sft(make: Make, folder: Path) -> Iterator[Finding]:
    """The loss on the answers' tokens is their entropy; the end of an answer is certain, and learned."""
    rng, short = Random("sft"), 2
    # rows of two lengths, with weights: a mean over rows, or one without weights, would be another number
    rows = [{"prompt": rng.choice(PROMPTS[:8]), "completion": a, "weight": 2.0} for a in answers(rng, SKEWED, 700)]
    rows += [{"prompt": rng.choice(PROMPTS[8:]), "completion": a} for a in answers(rng, UNIFORM, 700, short)]
    base = written(network(), folder / "base")
    told = _run(make, "sft", rows, folder, base, learning_rate=1e-2, max_steps=120, per_device_train_batch_size=128)
    found = sum(m.value for m in told[-12:]) / 12
    tokens = 2.0 * (LENGTH + 1) + short + 1
    yield Finding("sft: loss", found, (2.0 * LENGTH * entropy(SKEWED) + short * entropy(UNIFORM)) / tokens, 0.02)
    model = load(str(folder / "out")).model
    with torch.no_grad():
        ends = [2, 4 + len(LETTERS), 3] + [5] * LENGTH
        stops = model(input_ids=torch.tensor([ends])).logits[0, -1].softmax(-1)[1]
    yield Finding("sft: an answer ends", float(stops), 1.0, 0.05)


def reward_model(make: Make, folder: Path) -> Iterator[Finding]:
    """Scores differ as the rewards do: slope 1, and the better of two answers is known."""
    rng = Random("reward")
    base = written(network(), folder / "base")
    rows = preferences(rng, UNIFORM, 900)
    _run(make, "reward", rows, folder, base, learning_rate=1.5e-2, max_steps=150, per_device_train_batch_size=96)
    fresh = answers(rng, UNIFORM, 400)
    found, true = _scored(folder / "out", fresh), torch.tensor([reward(a) for a in fresh])
    slope = float(((found - found.mean()) * (true - true.mean())).sum() / ((true - true.mean()) ** 2).sum())
    yield Finding("reward: slope", slope, 1.0, 0.1)
    gaps, wanted = found[:200] - found[200:], true[:200] - true[200:]
    yield Finding("reward: accuracy", float((gaps.sign() == wanted.sign())[wanted != 0].float().mean()), 1.0, 0.01)


def ranking(make: Make, folder: Path) -> Iterator[Finding]:
    """Plackett-Luce finds the strengths of three answers from how often they are ranked how."""
    strengths = (1.5, 0.0, -1.0)
    base = written(network(), folder / "base")
    _run(
        make,
        "reward",
        rankings(strengths),
        folder,
        base,
        learning_rate=1e-2,
        max_steps=100,
        per_device_train_batch_size=6,
    )
    found = _scored(folder / "out", [f"{letter} i" for letter in "abc"])
    yield Finding("ranking: first over second", float(found[0] - found[1]), strengths[0] - strengths[1], 0.05)
    yield Finding("ranking: second over third", float(found[1] - found[2]), strengths[1] - strengths[2], 0.05)


def margins(make: Make, folder: Path) -> Iterator[Finding]:
    """A pair that is preferred with probability p, with margin m: p s(m - d) = (1 - p) s(d + m) gives d."""
    p, m = 0.8, 0.7
    base = written(network(), folder / "base")
    rows = [
        {"prompt": "p0", "chosen": "a", "rejected": "b", "weight": p, "margin": m},
        {"prompt": "p0", "chosen": "b", "rejected": "a", "weight": 1 - p, "margin": m},
    ]
    _run(make, "reward", rows, folder, base, learning_rate=1e-2, max_steps=80, per_device_train_batch_size=2)
    found = _scored(folder / "out", ["a", "b"])
    yield Finding("margins: difference", float(found[0] - found[1]), _with_margin(p, m), 0.03)


def _with_margin(p: float, m: float) -> float:
    """The root d of (1 - p) e^-m x^2 + (1 - 2p) x - p e^-m = 0, x = e^d."""
    a, b, c = (1 - p) * math.exp(-m), 1 - 2 * p, -p * math.exp(-m)
    return math.log((-b + math.sqrt(b * b - 4 * a * c)) / (2 * a))


def dpo(make: Make, folder: Path) -> Iterator[Finding]:
    """The policy is pi* = pi_ref exp(r / beta) / Z, for references with and without a preference of their own."""
    for name, shares, beta in (("skewed", SKEWED, 0.5), ("uniform", UNIFORM, 1.0)):
        yield from preference_optimum(make, folder / name, name, shares, beta)


def dpo_again(make: Make, folder: Path) -> Iterator[Finding]:
    """The same with the other halves of the settings."""
    for name, shares, beta in (("skewed", SKEWED, 1.0), ("uniform", UNIFORM, 0.5)):
        yield from preference_optimum(make, folder / name, name, shares, beta)


def preference_optimum(make: Make, folder: Path, name: str, shares: Sequence[float], beta: float,
                       **options: Any) -> Iterator[Finding]:  # fmt: skip
    """One setting of `dpo`."""
    base = written(reference(shares), folder / "base")
    rows = preferences(Random(f"dpo {name}"), UNIFORM, 320)
    given = {"learning_rate": 2e-2, "max_steps": 80, "per_device_train_batch_size": 64, "beta": beta} | options
    _run(make, "dpo", rows, folder, base, **given)
    found, best = measured(load(str(folder / "out")).model, load(base).model), optimum(shares, beta)
    yield Finding(f"dpo, {name}, beta {beta}: reward", found.reward, best.reward, 0.05 * best.reward)
    yield Finding(f"dpo, {name}, beta {beta}: KL", found.kl, best.kl, 0.1 * best.kl)


World = Callable[[Make, Path], Iterator[Finding]]
WORLDS: Mapping[str, World] = {
    "sft": sft, "reward": reward_model, "ranking": ranking, "margins": margins, "dpo": dpo, "ppo": _policy_worlds.ppo,
    "rloo": _policy_worlds.rloo, "grpo": _policy_worlds.grpo,
}  # fmt: skip
MORE: Mapping[str, World] = {
    "dpo, other settings": dpo_again, "ppo, uniform": _policy_worlds.ppo_uniform, "grpo, k2": _policy_worlds.grpo_k2,
    "rloo, entropy": _policy_worlds.rloo_entropy,
}  # fmt: skip


def _run(
    make: Make, name: str, rows: Sequence[Mapping[str, Any]], folder: Path, base: str, **options: Any
) -> list[Metric]:
    """Train to `folder/out`; returns the losses."""
    import datasets

    data = datasets.Dataset.from_list(list(rows))
    trainer = make(name, {**_COMMON, "base": base, **options})
    return [m for m in trainer.train(data, folder / "out") if isinstance(m, Metric) and m.name == "loss"]


def _scored(checkpoint: Path, texts: Sequence[str]) -> torch.Tensor:
    """The scores that a reward model gives answers to the first prompt, on its own scale."""
    loaded = load(str(checkpoint), "sequence")
    asked = {"prompt": PROMPTS[0]}
    found = [encoded(side_by_side(asked, [t], loaded.tokenizer, "world"), loaded.tokenizer)[0] for t in texts]
    with torch.no_grad():
        return scores(loaded.model.eval(), padded(found, loaded.tokenizer.pad_token_id).to(loaded.device))[:, 0].cpu()
