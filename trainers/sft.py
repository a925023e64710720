"""Supervised fine-tuning: full or LoRA, the loss on the completions alone, their end-of-turn token included.

L = sum_t m_t * (-log p(y_t | y_<t)) / N, m = 1 on completion tokens, N all of them in an optimiser step. Option names
are TRL's. Batches hold rows of like length, and logits are computed only for the positions that hold completions.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from factory.errors import DataError
from factory.options import step
from factory.records import Metric, content_id

if TYPE_CHECKING:
    import datasets
    import torch

    from trainers._batches import Batch, Example


@step
class Sft:
    """Supervised fine-tuning on prompt and completion."""

    base: str
    """The checkpoint to start from: a folder, a bundled one, a hub name, or "@stage" in a spec."""
    view: Literal["sft"] = "sft"
    """The view that holds the columns when a dataset is given by name."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak learning rate; LoRA wants about ten times that of full training."""
    num_train_epochs: float = Field(default=3.0, gt=0)
    """Passes over the data."""
    max_steps: int = -1
    """Optimiser steps; -1 follows num_train_epochs."""
    per_device_train_batch_size: int = Field(default=8, ge=1)
    """Rows in a micro-batch."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Micro-batches in an optimiser step; the loss is weighted by token, so that it equals the large batch."""
    max_length: int = 1024
    """Longer rows, in tokens, are left out and counted in the metric `rows_too_long`."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    use_peft: bool = False
    """Train LoRA adapters only; the checkpoint holds them merged, and apart in `adapter`."""
    lora_r: int = 16
    """Rank of the adapters."""
    lora_alpha: int = 32
    """Scale of the adapters; the update is alpha / r times their product."""
    lora_dropout: float = 0.0
    """Dropout before the adapters."""
    bf16: bool | None = None
    """Compute in bfloat16 with float32 weights; by default where the hardware is fast at it."""
    eval_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the rows held out, for `eval_loss` before and after."""
    logging_steps: int = Field(default=10, ge=1)
    """Metrics are given every so many steps."""
    save_steps: int = Field(default=200, ge=0)
    """The state to resume from is written every so many steps (0: never)."""
    seed: int = 0
    """Seed of the order of the rows and of the held-out part."""

    def train(self, data: "datasets.Dataset", out: Path) -> Iterator[Metric]:
        """Train and write the checkpoint to `out`. Metrics under TRL's names; loss is in nats per token."""
        import torch

        from trainers._batches import examples
        from trainers._loop import optimise
        from trainers._models import half_precision, load, refuse_foreign, save, with_lora

        _check_columns(data.column_names)
        refuse_foreign(out)
        torch.manual_seed(self.seed)
        # 1. Model and data.
        loaded = load(self.base)
        rows, too_long = examples(data, loaded.tokenizer, self.max_length)
        yield Metric("rows_too_long", too_long)
        Random(self.seed).shuffle(rows)
        held = min(round(len(rows) * self.eval_fraction), len(rows) - 1)
        if self.use_peft:
            model = with_lora(loaded.model, self.lora_r, self.lora_alpha, self.lora_dropout)
            loaded = loaded._replace(model=model)
        # 2. The optimisation.
        half = half_precision(loaded.device, self.bf16)
        state = out.with_name(f".{out.name}.state")
        yield from optimise(loaded, rows[held:], rows[:held], _loss, self._plan(half, rows), state)
        # 3. The checkpoint.
        save(loaded.model, loaded.tokenizer, out)
        shutil.rmtree(state, ignore_errors=True)  # only now: a kill while saving costs no training

    def _plan(self, half: bool, rows: "list[Example]") -> Any:
        from trainers._loop import Plan

        tokens = [token for row in rows for token in row.ids]
        lora = (self.lora_r, self.lora_alpha, self.lora_dropout) if self.use_peft else ()
        identity = content_id(self.base, lora, len(rows), tokens)

        return Plan(
            self.learning_rate, self.num_train_epochs, self.max_steps, self.per_device_train_batch_size,
            self.gradient_accumulation_steps, self.lr_scheduler_type, self.warmup_ratio, self.weight_decay,
            self.max_grad_norm, self.logging_steps, self.save_steps, self.seed, half, identity,
        )  # fmt: skip


def _loss(model: Any, batch: "Batch") -> tuple["torch.Tensor", dict[str, float]]:
    from trainers._losses import token_hits, token_nll

    keep = min(batch.tail + 1, batch.ids.shape[1])  # one position more: it predicts the first label
    logits = model(
        input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False,
        logits_to_keep=keep,
    ).logits  # fmt: skip
    labels = batch.labels[:, -keep:]
    return token_nll(logits, labels), {"mean_token_accuracy": float(token_hits(logits, labels))}


def _check_columns(names: list[str]) -> None:
    if "completion" not in names or not {"prompt", "messages"} & set(names):
        raise DataError(
            f"SFT needs columns prompt (or messages) and completion; found {', '.join(names)}. "
            "Rename them in the query: SELECT question AS prompt, answer AS completion ..."
        )
