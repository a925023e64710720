"""Models for the trainers: load, adapt, freeze, look inside, and write whole or not at all."""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from factory.errors import DataError, EngineError
from trainers._batches import Batch, apart
from trainers._files import mark, writing
from trainers._layouts import Layouts, checked
from trainers._options import Training

Kind = Literal["causal", "sequence", "token"]  # a language model, a score a sequence, a score a token
_AUTO = {
    "causal": "AutoModelForCausalLM",
    "sequence": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
}


class Loaded(NamedTuple):
    """A model in float32 (or the accelerator's bfloat16 autocast) with its tokenizer."""

    model: Any
    tokenizer: Any
    device: str


def load(base: str, kind: Kind = "causal", heads: int = 1, attention: str | None = None) -> Loaded:
    """Load a model to train; one without so many heads (0: as many as it has) gets new ones. Raises EngineError."""
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = _device()
    options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
    options |= {"attn_implementation": attention} if attention else {}
    if kind != "causal" and heads:
        options |= {"num_labels": heads, "ignore_mismatched_sizes": True}
    tokenizer = load_tokenizer(base)
    try:
        model, told = getattr(transformers, _AUTO[kind]).from_pretrained(base, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise EngineError(f"cannot load base model {base!r}: {str(error).strip().splitlines()[0]}") from error
    except Exception as error:  # safetensors raises an error of its own, and only by that name
        if type(error).__name__ != "SafetensorError":
            raise
        raise EngineError(
            f"cannot load base model {base!r}: its weights are damaged ({error}); copy it anew"
        ) from error
    _refuse_holes(base, told, kind)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if kind != "causal" and _is_new(told):
        _start_head(model)
    model.to(device).read_layouts = Layouts()
    model.read_layouts = checked(lambda batch: hidden_states(model, batch), model.config, device)
    return Loaded(model, tokenizer, device)


def _device() -> str:
    if not torch.cuda.is_available():
        for kind in (np.float16, np.float32, np.float64):
            np.finfo(kind)  # it warns if it is first asked when there are no denormal numbers any more
        torch.set_flush_denormal(True)  # attention's tiny probabilities made steps 1.3 to 1.9 times slower
        return "cpu"
    torch.backends.cuda.enable_cudnn_sdp(False)  # its backward gives NaN gradients on H100 and H200
    return "cuda"


def load_tokenizer(base: str) -> Any:
    """The tokenizer of a checkpoint, with a padding token of its own. Raises EngineError."""
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise EngineError(f"cannot load base model {base!r}: {str(error).strip().splitlines()[0]}") from error
    if not tokenizer.is_fast:
        raise EngineError(f"the tokenizer of {base!r} has no offsets: the loss mask needs a fast tokenizer")
    _set_pad(tokenizer)
    return tokenizer


def _set_pad(tokenizer: Any) -> None:
    """A padding token other than the end of turn: transformers reads a reward at the last token that is no padding."""
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        others = (
            tokenizer.unk_token,
            tokenizer.bos_token,
            *tokenizer.all_special_tokens,
            *tokenizer.added_tokens_encoder,
        )
        tokenizer.pad_token = next((t for t in others if t and t != tokenizer.eos_token), tokenizer.eos_token)


def _refuse_holes(base: str, told: dict[str, Any], kind: Kind) -> None:
    """A head of scores may be new; what else is missing would be drawn at random, and trained as if it were known."""
    found = [*told.get("missing_keys", ()), *(key for key, *_ in told.get("mismatched_keys", ()))]
    holes = sorted(str(key) for key in found if kind == "causal" or "score" not in str(key))
    if holes:
        raise EngineError(f"cannot load base model {base!r}: {len(holes)} of its weights are missing or of another "
                          f"shape ({', '.join(holes[:2])}): copy it anew")  # fmt: skip


def _is_new(told: dict[str, Any]) -> bool:
    return any("score" in str(name) for key in ("missing_keys", "mismatched_keys") for name in told.get(key, ()))


def _start_head(model: Any) -> None:
    """N(0, 1 / sqrt(d + 1)), bias 0 (Stiennon et al., 2020; Huang et al., 2024)."""
    nn.init.normal_(model.score.weight, std=(model.score.in_features + 1) ** -0.5)
    if model.score.bias is not None:
        nn.init.zeros_(model.score.bias)


# --- what is trained -------------------------------------------------------------------------------------------------


def prepared(loaded: Loaded, options: Training) -> Loaded:
    """The model as the options want it: frozen below, with adapters or a prefix, checkpointed, with fused kernels."""
    model = loaded.model
    if options.use_liger_kernel:
        _fuse(model)
    if options.gradient_checkpointing:
        model.config.use_cache = False
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    if options.use_peft and options.num_virtual_tokens:
        raise DataError("use_peft trains LoRA and num_virtual_tokens a prefix: choose one of them")
    if options.use_peft:
        model = with_lora(model, options.lora_r, options.lora_alpha, options.lora_dropout)
    if options.freeze_layers:  # and the adapters of these layers with them
        freeze(model, options.freeze_layers)
    if options.num_virtual_tokens:
        model = with_prefix(model, options.num_virtual_tokens)
    return loaded._replace(model=model.to(loaded.device))


def with_lora(model: Any, r: int, alpha: int, dropout: float) -> Any:
    """Low-rank adapters on all linear layers (Hu et al., 2021); a head of scores is trained whole."""
    from peft import LoraConfig, get_peft_model

    scored = hasattr(model, "score")
    config = LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear",
        task_type="SEQ_CLS" if scored else "CAUSAL_LM", modules_to_save=["score"] if scored else None,
    )  # fmt: skip
    return get_peft_model(model, config)


def with_prefix(model: Any, tokens: int) -> Any:
    """Trained keys and values in front of every layer (Li and Liang, 2021); the base is frozen."""
    from peft import PrefixTuningConfig, get_peft_model

    if hasattr(model, "score"):
        raise DataError("num_virtual_tokens: a prefix is for language models; train scores with use_peft instead")
    return get_peft_model(model, PrefixTuningConfig(num_virtual_tokens=tokens, task_type="CAUSAL_LM"))


def freeze(model: Any, layers: int) -> None:
    """Stop the training of the embeddings and of the lowest layers. Raises DataError where there are not so many."""
    blocks = layers_of(model)
    if layers > len(blocks):
        raise DataError(f"freeze_layers={layers}: the model has {len(blocks)} layers")
    for part in (model.get_input_embeddings(), *blocks[:layers]):
        part.requires_grad_(False)


def without_dropout(model: Any) -> None:
    """Set every dropout to nothing: log-ratios and rewards should not be noisy."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0


def _fuse(model: Any) -> None:
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
    except ImportError as error:
        raise DataError("use_liger_kernel needs the package: pip install liger-kernel (and a GPU)") from error
    if not torch.cuda.is_available():
        raise DataError("use_liger_kernel needs a GPU: leave it out here")
    # the losses here are chunked already, and take hidden states, which a fused loss would not give
    _apply_liger_kernel_to_instance(model=model, fused_linear_cross_entropy=False, cross_entropy=False)


# --- looking inside --------------------------------------------------------------------------------------------------


def bare(model: Any) -> Any:
    """The model without the wrapper of adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def trunk(model: Any) -> Any:
    """What makes hidden states: the model without its head."""
    inner = bare(model)
    return getattr(inner, inner.base_model_prefix)


def layers_of(model: Any) -> Any:
    """The transformer blocks, lowest first: the longest list of modules."""
    lists = [m for m in trunk(model).modules() if isinstance(m, nn.ModuleList)]
    return max(lists, key=len, default=nn.ModuleList())


def packs(model: Any) -> bool:
    """Whether the model keeps sequences in one row apart: attention does so, a state that is carried on does not."""
    return layouts_of(model).packs


def layouts_of(model: Any) -> Layouts:
    """What `load` found out."""
    return getattr(bare(model), "read_layouts", Layouts())


def has_prefix(model: Any) -> bool:
    """Whether a trained prefix stands before every sequence."""
    config = getattr(model, "active_peft_config", None)
    return bool(getattr(config, "is_prompt_learning", False))


def hidden_states(model: Any, batch: Batch) -> Tensor:
    """The last hidden state of every place of a batch, (B * T, D)."""
    mask, positions, more = batch.mask, batch.positions, {}
    if (mask is not None or positions is not None) and not layouts_of(model).read(batch):
        alone, places = apart(batch)
        return hidden_states(model, alone)[places]
    if has_prefix(model):  # it stands before every row, and all may look at it
        cache = model.get_prompt(len(batch.ids))
        length, more = cache.get_seq_length(), {"past_key_values": cache}
        mask = nn.functional.pad(mask, (length, 0), value=True) if mask is not None else None
        positions = positions + length if positions is not None else None
    if mask is not None and bare(model).config._attn_implementation != "sdpa":  # others add numbers to their scores
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)
    hidden = trunk(model)(
        input_ids=batch.ids, attention_mask=mask, position_ids=positions, use_cache=False, **more
    ).last_hidden_state
    return hidden.reshape(-1, hidden.shape[-1])  # type: ignore[no-any-return]


def head(model: Any) -> Callable[[Tensor], Tensor]:
    """From hidden states to logits: the output matrix and what Gemma, Cohere and Granite do after it."""
    inner = bare(model)
    config, project = inner.config.get_text_config(), inner.get_output_embeddings()
    cap = getattr(config, "final_logit_softcapping", None)
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)

    def logits(hidden: Tensor) -> Tensor:
        found: Tensor = project(hidden) * scale if scale != 1.0 else project(hidden)
        return torch.tanh(found / cap) * cap if cap else found

    return logits


def check_head(loaded: Loaded) -> None:
    """Make sure that trunk and head together are the model. Raises EngineError where the model does more."""
    ids = torch.tensor([[1, 2, 3]], device=loaded.device)
    with torch.no_grad():
        whole = loaded.model(input_ids=ids, use_cache=False).logits
        parts = head(loaded.model)(trunk(loaded.model)(input_ids=ids, use_cache=False).last_hidden_state)
    if not torch.allclose(whole.float(), parts.float(), atol=1e-3, rtol=1e-3):
        raise EngineError(
            f"models of type {loaded.model.config.model_type} change their logits in a way that is not known here"
        )


def token_logps(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """log p of every learned token, and whether it was the likeliest: (N,) and (N,)."""
    from trainers._losses import chosen_logps

    return chosen_logps(hidden_states(model, batch)[batch.sources], batch.wanted, head(model))


def scores(model: Any, batch: Batch, places: Tensor | None = None) -> Tensor:
    """The heads' scores, in float32, at the sequences' last tokens or at other places: (S, H)."""
    inner = bare(model)
    hidden = hidden_states(model, batch)[batch.ends if places is None else places]
    with torch.autocast(hidden.device.type, enabled=False):
        return inner.score(hidden.float())  # type: ignore[no-any-return]


@contextmanager
def noisy(model: Any, alpha: float) -> Iterator[None]:
    """Uniform noise of alpha / sqrt(T d) on the embeddings, T the width of the batch (NEFTune, Jain et al., 2023)."""

    def add(_: Any, __: Any, embedded: Tensor) -> Tensor:
        return embedded + torch.empty_like(embedded).uniform_(-1, 1) * (alpha / math.sqrt(embedded[0].numel()))

    hook = bare(model).get_input_embeddings().register_forward_hook(add) if alpha else None
    try:
        yield
    finally:
        if hook:
            hook.remove()


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """The model as it was before the adapters: what LoRA starts from."""
    with model.disable_adapter():
        yield


def weights_id(model: Any) -> str:
    """A hash of what a model holds: all names and shapes, and some thousands of numbers of each tensor."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(bare(model).state_dict().items()):
        flat = tensor.reshape(-1)
        some = flat[:: max(1, len(flat) // 4096)].float().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {float(flat.float().sum())}".encode() + some.numpy().tobytes())
    return digest.hexdigest()


def half_precision(device: str, wanted: bool | None) -> bool:
    """Whether to compute in bfloat16: as wanted, else where the hardware is fast at it."""
    if wanted is not None:
        return wanted
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


# --- writing ---------------------------------------------------------------------------------------------------------


def save(model: Any, tokenizer: Any, out: Path) -> None:
    """Write the checkpoint whole or not at all, in place of an older one in a single move.

    Adapters are merged, so that any engine can load the result; they are kept as well, in `adapter`. A prefix cannot be
    merged: the checkpoint is the adapter alone, which names its base.
    """
    with writing(out) as partial:
        if has_prefix(model):
            model.save_pretrained(partial, safe_serialization=True)
        else:
            if hasattr(model, "merge_and_unload"):
                model.save_pretrained(partial / "adapter", safe_serialization=True)
                model = model.merge_and_unload()
            model.save_pretrained(partial, safe_serialization=True)
        tokenizer.save_pretrained(partial)
        mark(partial)
