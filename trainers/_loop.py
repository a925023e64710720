"""The one optimisation loop. A trainer gives it items, a way to make batches of them, and a loss; it yields metrics.

A step's loss is a sum over its items, divided by the weights of all of them, on all processes. So how the items are
cut into passes, and over processes, changes nothing but the time. Every draw has a seed made of the step's number, and
the state is written every `save_steps`, so that a run which was cut off goes on as if it had not been.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from factory.errors import DataError
from factory.records import Metric
from trainers._batches import batches, cut
from trainers._models import Loaded, half_precision, layers_of
from trainers._options import Training
from trainers._ranks import Ranks, joined, spread, syncing, whole
from trainers._state import State

Sums = dict[str, tuple[Any, Any]]  # metric -> (sum, what it is divided by)
Totals = Mapping[str, float]


class Task(NamedTuple):
    """What an algorithm adds to the loop."""

    collate: Callable[[Sequence[Any]], Any]  # items -> a batch, whose `.to(device)` and `.real` (tokens) the loop uses
    totals: Callable[[Sequence[Any]], dict[str, float]]  # items of a whole step -> what its sums are divided by
    loss: Callable[[Any, Any, Totals], tuple[Tensor, Sums]]  # model, batch, totals -> its share of the loss, metrics
    length: Callable[[Any], int]  # item -> tokens, to put like with like
    key: Callable[[Any], str] = str  # item -> what to call it in an error


class _Part(NamedTuple):
    """What goes through the model in one pass. An idle one counts for nothing."""

    items: Sequence[Any]
    idle: bool = False


class _Step(nn.Module):
    """The loss as a module, so that DDP and FSDP2 see one forward pass whatever a loss does with the model."""

    def __init__(self, model: Any, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, batch: Any, totals: Totals) -> tuple[Tensor, Sums]:
        return self.task.loss(self.model, batch, totals)


class Learner:
    """A model with its optimiser: `update` does one step, `measure` none."""

    def __init__(self, loaded: Loaded, task: Task, options: Training) -> None:
        self.loaded, self.task, self.options = loaded, task, options
        self.ranks: Ranks = joined()
        self.half = half_precision(loaded.device, options.bf16)
        self.module = spread(_Step(loaded.model, task), layers_of(loaded.model), self.ranks, options.fsdp)
        self.trained = [p for p in loaded.model.parameters() if p.requires_grad]
        decay, plain = [p for p in self.trained if p.ndim > 1], [p for p in self.trained if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": options.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        betas = (options.adam_beta1, options.adam_beta2)
        self.optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=options.learning_rate, betas=betas, eps=options.adam_epsilon,
            fused=True,
        )  # fmt: skip

    def update(self, items: Sequence[Any], rate: float, seed: str) -> Sums:
        """One optimiser step on all the items; returns its metrics. Raises DataError where the loss is no number."""
        torch.manual_seed(Random(f"{seed} rank {self.ranks.rank}").getrandbits(63))
        self.module.train()
        # 1. The gradients, added up over the passes.
        totals = self.task.totals(items)
        parts, sums, real = self._parts(items), Sums(), 0
        for number, part in enumerate(parts, 1):
            syncing(self.module, number == len(parts))
            tokens, loss, more = self._forward(part, totals)
            # DDP and FSDP2 average over processes what is to be summed
            torch.autograd.backward(loss * self.ranks.world)
            add(sums, more | {"loss": (loss.detach(), 0)})
            real += tokens
        # 2. The step.
        norm = float(whole(nn.utils.clip_grad_norm_(self.trained, self.options.max_grad_norm)))
        sums = self._gathered(sums | {"num_tokens": (real, 0)})
        if not math.isfinite(sums["loss"][0]) or not math.isfinite(norm):
            raise DataError(f"the loss is {sums['loss'][0]}: {self._why(items)}")
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return sums | {"loss": (sums["loss"][0], 1), "grad_norm": (norm, 1), "learning_rate": (rate, 1)}

    def measure(self, items: Sequence[Any]) -> dict[str, float]:
        """The loss and its metrics on held-out items, without learning."""
        self.module.eval()
        totals, sums = self.task.totals(items), Sums()
        with torch.no_grad():
            for part in self._parts(items):
                _, loss, more = self._forward(part, totals)
                add(sums, more | {"loss": (loss, 0)})
        return means(self._gathered(sums))

    def _forward(self, part: _Part, totals: Totals) -> tuple[int, Tensor, Sums]:
        """Tokens, loss and metrics of a pass; an idle one has the same names, and adds nothing."""
        batch = self.task.collate(part.items).to(self.loaded.device)
        with torch.autocast(self.loaded.device, torch.bfloat16) if self.half else nullcontext():
            loss, sums = self.module(batch, totals)
        return (0, loss * 0, dict.fromkeys(sums, (0.0, 0.0))) if part.idle else (batch.real, loss, sums)

    def _parts(self, items: Sequence[Any]) -> list[_Part]:
        """This process' items, cut for one pass each, and idle passes until it has as many as any other process.

        Every pass gathers the weights that FSDP2 shares out: a process that left one out would keep the others waiting.
        """
        ordered, world = sorted(items, key=self.task.length, reverse=True), self.ranks.world
        size, tokens = self.options.per_device_train_batch_size, self.options.max_tokens_per_batch
        cuts = [cut(ordered[rank::world], size, tokens, self.task.length) for rank in range(world)]
        own, most = cuts[self.ranks.rank], max(map(len, cuts))
        return [_Part(part) for part in own] + [_Part(ordered[-1:], idle=True)] * (most - len(own))

    def _gathered(self, sums: Sums) -> Sums:
        names = sorted(sums)
        flat = self.ranks.added([float(x) for name in names for x in sums[name]])
        return {name: (flat[2 * i], flat[2 * i + 1]) for i, name in enumerate(names)}

    def _why(self, items: Sequence[Any]) -> str:
        """Which rows alone spoil the loss; if all or none do, the weights are spoilt."""
        bad = [i for i in items if not math.isfinite(self.measure([i])["loss"])]
        if bad and len(bad) < len(items):
            return f"look at row {self.task.key(bad[0])}" + (f" and {len(bad) - 1} more" if len(bad) > 1 else "")
        return "the weights have run away. Lower learning_rate or max_grad_norm"


def optimise(learner: Learner, data: Sequence[Any], heldout: Sequence[Any], state: State) -> Iterator[Metric]:
    """Train in place; yields loss, grad_norm, learning_rate, eval_loss and more under TRL's names."""
    options, steps = learner.options, step_count(learner.options, len(data), learner.ranks.world)
    done, kept = state.restore(learner.loaded.model, learner.optimizer)
    window: Sums = {k: (a, b) for k, (a, b) in kept.get("window", {}).items()}
    best, waited = kept.get("best", math.inf), kept.get("waited", 0)
    if not done:
        yield from _measured(learner, heldout, 0)
    since = time.monotonic()
    for step, items in enumerate(_drawn(data, options, steps, learner), 1):
        if step <= done:
            continue
        # 1. Learn.
        rate = options.learning_rate * schedule(step - 1, steps, options)
        try:
            add(window, learner.update(items, rate, f"{options.seed} step {step}"))
        except DataError as error:
            raise DataError(f"step {step}: {error}. The last state that was saved is in {state.folder}") from error
        # 2. Tell.
        if step % options.logging_steps == 0 or step == steps:
            speed = window["num_tokens"][0] / (time.monotonic() - since)
            yield from (Metric(n, v, step) for n, v in (means(window) | {"tokens_per_second": speed}).items())
            window, since = Sums(), time.monotonic()
        # 3. Measure, keep the best, and stop where nothing gets better.
        if options.eval_steps and step % options.eval_steps == 0 and step < steps and heldout:
            found = learner.measure(heldout)
            yield from _named(found, step)
            waited = 0 if found["loss"] < best else waited + 1
            if found["loss"] < best:
                best = found["loss"]
                if options.load_best_model_at_end:
                    state.keep_best(learner.loaded.model)
            if 0 < options.early_stopping_patience <= waited:
                yield Metric("early_stopped", step, step)
                steps = step  # the last one, for what is measured at the end
                break
        # 4. Save.
        if options.save_steps and step % options.save_steps == 0 and step < steps:
            extra = {"window": window, "best": best, "waited": waited}
            state.keep(step, learner.loaded.model, learner.optimizer, extra)
    yield from _finish(learner, heldout, state, best, steps)


def _finish(learner: Learner, heldout: Sequence[Any], state: State, best: float, steps: int) -> Iterator[Metric]:
    if not heldout:
        return
    found = learner.measure(heldout)
    if learner.options.load_best_model_at_end and best < found["loss"]:
        state.load_best(learner.loaded.model)
        found = learner.measure(heldout)
    yield from _named(found, steps)


def _measured(learner: Learner, heldout: Sequence[Any], step: int) -> Iterator[Metric]:
    if heldout:
        yield from _named(learner.measure(heldout), step)


def _named(found: Mapping[str, float], step: int) -> Iterator[Metric]:
    yield from (Metric(f"eval_{name}", value, step) for name, value in found.items())


def step_count(options: Training, rows: int, world: int) -> int:
    """How many optimiser steps there will be."""
    per_epoch = math.ceil(rows / step_size(options, world))
    return options.max_steps if options.max_steps > 0 else max(1, math.ceil(options.num_train_epochs * per_epoch))


def step_size(options: Training, world: int) -> int:
    """Rows in an optimiser step, on all processes together."""
    return options.per_device_train_batch_size * options.gradient_accumulation_steps * world


def schedule(step: int, steps: int, options: Training) -> float:
    """The share of the peak learning rate in a step, from 0."""
    warmup = math.ceil(options.warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    falling = {"linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2, "constant": 1.0}
    return falling[options.lr_scheduler_type]


def add(total: Sums, more: Sums) -> None:
    """Add sums and what they are divided by."""
    for name, (value, count) in more.items():
        before = total.get(name, (0.0, 0.0))
        total[name] = (before[0] + value, before[1] + count)


def means(sums: Sums) -> dict[str, float]:
    """Sums divided; one that is divided by nothing stays a sum."""
    return {name: float(value) / (float(count) or 1.0) for name, (value, count) in sums.items()}


def _drawn(data: Sequence[Any], options: Training, steps: int, learner: Learner) -> Iterator[list[Any]]:
    """The rows of each step, epoch after epoch, each epoch drawn from its own seed."""
    size, given, epoch = step_size(options, learner.ranks.world), 0, 0
    while given < steps:
        rng = Random(f"{options.seed} epoch {epoch}")
        for items in batches(data, size, rng, options.train_sampling_strategy, learner.task.length):
            if given == steps:
                return
            given += 1
            yield items
        epoch += 1
