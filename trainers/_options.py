"""The options that all trainers share, declared once. Names and meanings are TRL's wherever TRL has one."""

from typing import Literal

from pydantic import Field

from factory.options import step

Reporter = Literal["tensorboard", "trackio", "wandb"]


@step
class Training:
    """How to train: the optimiser, the batches, which weights move, what is measured and kept."""

    base: str
    """The checkpoint to start from: a folder, a bundled one, a hub name, or "@stage" in a spec."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak learning rate; LoRA wants about ten times that of full training."""
    num_train_epochs: float = Field(default=1.0, gt=0)
    """Passes over the data."""
    max_steps: int = -1
    """Optimiser steps; -1 follows num_train_epochs."""
    per_device_train_batch_size: int = Field(default=8, ge=1)
    """Rows that a device takes at once; with the two below it makes the optimiser's batch."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Batches in an optimiser step; the loss is weighted over all of them, so that it equals the large batch."""
    max_tokens_per_batch: int = Field(default=0, ge=0)
    """Most tokens, padding with them, in one pass through the model: larger batches are cut, with the same result."""
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] = "group_by_length"
    """The order of the rows: at random, as they come, or at random with rows of like length together."""
    max_length: int = Field(default=1024, ge=1)
    """Longer rows, in tokens, are left out and told as verdicts."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's first momentum."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """AdamW's second momentum."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """AdamW's guard against division by nothing."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    use_peft: bool = False
    """Train LoRA adapters only; the checkpoint holds them merged, and apart in `adapter`."""
    lora_r: int = Field(default=16, ge=1)
    """Rank of the adapters."""
    lora_alpha: int = 32
    """Scale of the adapters; the update is alpha / r times their product."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the adapters."""
    num_virtual_tokens: int = Field(default=0, ge=0)
    """Prefix tuning (Li and Liang, 2021) with so many trained positions in front of every layer; 0 is off."""
    freeze_layers: int = Field(default=0, ge=0)
    """The embeddings and so many of the lowest layers stay as they are."""
    bf16: bool | None = None
    """Compute in bfloat16 with float32 weights; by default where the hardware is fast at it."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, a fifth slower."""
    use_liger_kernel: bool = False
    """Liger's fused kernels; needs a GPU and the package liger-kernel."""
    attn_implementation: str | None = None
    """The attention of transformers: sdpa, eager, flash_attention_2 ...; by default the model's own choice."""
    fsdp: bool = False
    """Several processes share the weights out (FSDP2) instead of holding all of them each (DDP)."""
    eval_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the rows held out, whole prompts at a time, for `eval_loss` before, after, and every `eval_steps`."""
    eval_steps: int = Field(default=0, ge=0)
    """The held-out rows are measured every so many steps (0: only before and after)."""
    load_best_model_at_end: bool = False
    """Write the weights of the best measurement of the held-out rows instead of the last."""
    early_stopping_patience: int = Field(default=0, ge=0)
    """Stop after so many measurements without a better one (0: never)."""
    logging_steps: int = Field(default=10, ge=1)
    """Metrics are given every so many steps, as means over them."""
    report_to: Reporter | tuple[Reporter, ...] = ()
    """Show the metrics elsewhere too while they come: tensorboard (in `runs` beside the checkpoint), trackio, wandb."""
    save_steps: int = Field(default=200, ge=0)
    """The state to resume from is written every so many steps (0: never)."""
    seed: int = 0
    """Seed of the order of the rows, of the held-out part and of what is drawn at random."""
