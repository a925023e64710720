"""Models for the trainers: load, adapt with LoRA, and write whole or not at all."""

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch

from factory.errors import DataError, EngineError


class Loaded(NamedTuple):
    """A model in float32 (or the accelerator's bfloat16 autocast) with its tokenizer."""

    model: Any
    tokenizer: Any
    device: str


def load(base: str) -> Loaded:
    """Load a causal language model to train. Raises EngineError where it cannot be loaded."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)  # its backward gives NaN gradients on H100 and H200
    try:
        tokenizer = AutoTokenizer.from_pretrained(base)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).to(device)
    except (OSError, ValueError) as error:
        raise EngineError(f"cannot load base model {base!r}: {str(error).strip().splitlines()[0]}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not tokenizer.is_fast:
        raise EngineError(f"the tokenizer of {base!r} has no offsets: the loss mask needs a fast tokenizer")
    return Loaded(model, tokenizer, device)


def with_lora(model: Any, r: int, alpha: int, dropout: float) -> Any:
    """Low-rank adapters on all linear layers (Hu et al., 2021); the base is frozen."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def half_precision(device: str, wanted: bool | None) -> bool:
    """Whether to compute in bfloat16: as wanted, else where the hardware is fast at it."""
    if wanted is not None:
        return wanted
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def save(model: Any, tokenizer: Any, out: Path) -> None:
    """Write the checkpoint whole or not at all: to a temporary folder, synced, then renamed.

    Adapters are merged, so that any engine can load the result; they are kept as well, in `adapter`.
    """
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if hasattr(model, "merge_and_unload"):
            model.save_pretrained(partial / "adapter", safe_serialization=True)
            model = model.merge_and_unload()
        model.save_pretrained(partial, safe_serialization=True)
        tokenizer.save_pretrained(partial)
        sync(partial)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise DataError(f"no checkpoint written to {out}: {error}. Free some room and run again") from error
    if out.exists():
        shutil.rmtree(out)  # an older checkpoint: `refuse_foreign` saw to that before the training
    partial.rename(out)


def refuse_foreign(out: Path) -> None:
    """Raise DataError where `out` is there and is no checkpoint: a trainer replaces checkpoints, nothing else."""
    if out.exists() and not (out / "config.json").exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is no checkpoint: name a new folder, so that nothing of yours is replaced")


def sync(folder: Path) -> None:
    """Make sure that all files of a folder are on the disk before it gets its name."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
