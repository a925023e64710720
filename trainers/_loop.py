"""The one optimisation loop. A trainer gives it batches and a loss; it gives back metrics as they come.

It is resumable: every `save_steps` steps the weights, the optimiser's state and the step are written beside the
checkpoint (safetensors and JSON, never pickle), and batches are drawn from seeds, so that a run which was cut off goes
on as if it had not been.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple

import torch

from factory.errors import DataError
from factory.records import Metric
from trainers._batches import Batch, Example, batches, stacked
from trainers._models import Loaded, sync

Schedule = Literal["linear", "cosine", "constant"]
# (model, batch) -> summed loss, and any sums to report beside it
Loss = Callable[[Any, Batch], tuple[torch.Tensor, dict[str, float]]]


class Plan(NamedTuple):
    """How long and how fast to train; the trainers' options of the same names."""

    learning_rate: float
    epochs: float
    max_steps: int
    batch_size: int
    accumulation: int
    schedule: Schedule
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    logging_steps: int
    save_steps: int
    seed: int
    half: bool
    identity: str  # of the base and the rows: a state is resumed only for the same training


def optimise(loaded: Loaded, data: Sequence[Example], heldout: Sequence[Example], loss: Loss, plan: Plan,
             state: Path) -> Iterator[Metric]:  # fmt: skip
    """Train `loaded.model` in place; yields loss, grad_norm, learning_rate, eval_loss and more under TRL's names."""
    model = loaded.model
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=plan.learning_rate, weight_decay=plan.weight_decay, betas=(0.9, 0.999))
    steps = _steps(plan, len(data))
    done = _restore(state, model, optimizer, plan)
    yield from _heldout(loaded, heldout, loss, plan, done)
    seen, started = 0, time.monotonic()
    for step, group in enumerate(_groups(data, plan, steps), 1):
        if step <= done:
            continue
        # 1. The learning rate of this step.
        rate = plan.learning_rate * _share(step - 1, steps, plan)
        for part in optimizer.param_groups:
            part["lr"] = rate
        # 2. The gradients.
        summed = _gradients(loaded, group, loss, plan.half)
        norm = float(torch.nn.utils.clip_grad_norm_(trained, plan.max_grad_norm))
        if not math.isfinite(summed["loss"]) or not math.isfinite(norm):
            told = f"step {step}: the loss is {summed['loss']}. Lower learning_rate; the last saved state is in {state}"
            raise DataError(told)
        # 3. The step itself.
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += int(summed.pop("tokens"))
        # 4. Tell and save.
        if step % plan.logging_steps == 0 or step == steps:
            speed = seen / (time.monotonic() - started)
            numbers = summed | {"grad_norm": norm, "learning_rate": rate, "tokens_per_second": speed}
            yield from (Metric(name, value, step) for name, value in numbers.items())
        if plan.save_steps and step % plan.save_steps == 0 and step < steps:
            _keep(state, model, optimizer, step, plan)
    yield from _heldout(loaded, heldout, loss, plan, steps)


def _gradients(loaded: Loaded, group: list[list[Example]], loss: Loss, half: bool) -> dict[str, float]:
    """Add up the gradients of a step's micro-batches, weighted by token, so that their number changes nothing.

    Returns means over the learned tokens (`loss` and what the loss reports beside it), and `tokens` seen.
    """
    loaded.model.train()
    parts = [stacked(rows, loaded.tokenizer.pad_token_id, loaded.device) for rows in group]
    targets = max(sum(p.targets for p in parts), 1)
    sums = {"loss": 0.0}
    for part in parts:
        with torch.autocast(loaded.device, torch.bfloat16, enabled=half):
            summed, more = loss(loaded.model, part)
        torch.autograd.backward(summed / targets)
        for name, value in ({"loss": float(summed.detach())} | more).items():
            sums[name] = sums.get(name, 0.0) + value
    means = {name: value / targets for name, value in sums.items()}
    return means | {"tokens": float(sum(int(p.mask.sum()) for p in parts))}


def _steps(plan: Plan, rows: int) -> int:
    per_epoch = math.ceil(math.ceil(rows / plan.batch_size) / plan.accumulation)
    return plan.max_steps if plan.max_steps > 0 else max(1, math.ceil(plan.epochs * per_epoch))


def _groups(data: Sequence[Example], plan: Plan, steps: int) -> Iterator[list[list[Example]]]:
    """The micro-batches of each step, epoch after epoch, each epoch drawn from its own seed."""
    given, epoch = 0, 0
    while given < steps:
        found = batches(data, plan.batch_size, Random(f"{plan.seed} epoch {epoch}"))
        for start in range(0, len(found), plan.accumulation):
            if given == steps:
                return
            given += 1
            yield found[start : start + plan.accumulation]
        epoch += 1


def _share(step: int, steps: int, plan: Plan) -> float:
    warmup = math.ceil(plan.warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return {"linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2, "constant": 1.0}[plan.schedule]


def _heldout(loaded: Loaded, rows: Sequence[Example], loss: Loss, plan: Plan, step: int) -> Iterator[Metric]:
    if not rows:
        return
    loaded.model.eval()
    total, targets = 0.0, 0
    ordered = sorted(rows, key=lambda e: len(e.ids))
    with torch.inference_mode():
        for start in range(0, len(ordered), plan.batch_size):
            batch = stacked(ordered[start : start + plan.batch_size], loaded.tokenizer.pad_token_id, loaded.device)
            with torch.autocast(loaded.device, torch.bfloat16, enabled=plan.half):
                total += float(loss(loaded.model, batch)[0])
            targets += batch.targets
    yield Metric("eval_loss", total / max(targets, 1), step)


def _keep(state: Path, model: Any, optimizer: torch.optim.Optimizer, step: int, plan: Plan) -> None:
    """Write the state whole or not at all."""
    from safetensors.torch import save_file

    partial = state.with_name(f"{state.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = {n: p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}
    save_file(weights, partial / "weights.safetensors")
    moments = {f"{i}.{k}": v.contiguous() for i, s in optimizer.state_dict()["state"].items() for k, v in s.items()}
    save_file(moments, partial / "optimizer.safetensors")
    (partial / "step.json").write_text(json.dumps({"step": step, "plan": list(plan)}))
    sync(partial)
    shutil.rmtree(state, ignore_errors=True)
    partial.rename(state)


def _restore(state: Path, model: Any, optimizer: torch.optim.Optimizer, plan: Plan) -> int:
    """Load the state of a run that was cut off; returns how many steps it had done. Another plan starts anew."""
    from safetensors.torch import load_file

    if not (state / "step.json").exists():
        return 0
    saved = json.loads((state / "step.json").read_text())
    if saved["plan"] != list(plan):
        return 0
    weights = load_file(state / "weights.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(state / "optimizer.safetensors").items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(saved["step"])
