"""Answers drawn from the policy that is being trained, with the log-probability of each token as it was drawn.

Plain sampling at a temperature, without top-p or top-k: the log-probabilities that the trainer compares are those of
the distribution that was drawn from. A prompt is read once for all its answers; prompts of like length go together;
finished rows leave the batch. Every answer draws from a stream of its own, whose seed is made of the step and of the
prompt's content, so that it is the same answer whatever shares its batch (ties of floating point aside).
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from factory.records import Prompt
from trainers._batches import IGNORED, Example, Ints
from trainers._models import Loaded, bare

Floats = np.ndarray[Any, np.dtype[np.float32]]
_FULL = 0.75  # rows are taken out of the batch, and the cache copied, when so few are left of it


class Asked(NamedTuple):
    """A prompt as the policy reads it, and as a record."""

    ids: Ints
    prompt: Prompt
    key: str


class Rollout(NamedTuple):
    """One answer: its tokens with the one that ends it, and log p of each when it was drawn."""

    asked: Asked
    seed: int
    ids: Ints
    logps: Floats
    ended: bool
    text: str
    example: Example

    @staticmethod
    def of(asked: Asked, seed: int, ids: Ints, logps: Floats, ended: bool, text: str) -> "Rollout":
        """With prompt and answer as an example, of which all of the answer's tokens are learned."""
        labels = np.concatenate([np.full(len(asked.ids), IGNORED, dtype=np.int32), ids])
        example = Example(np.concatenate([asked.ids, ids]), labels, key=asked.key)
        return Rollout(asked, seed, ids, logps, ended, text, example)


class Drawing(NamedTuple):
    """How answers are drawn: heat, most tokens, most rows at once, and whether in bfloat16."""

    temperature: float = 1.0
    limit: int = 128
    rows: int = 64
    half: bool = False


def drawn(loaded: Loaded, asked: Sequence[tuple[Asked, Sequence[int]]], how: Drawing) -> list[Rollout]:
    """An answer for each seed of each prompt, in the order of the prompts. All prompts have as many seeds."""
    if not asked:
        return []
    order = sorted(range(len(asked)), key=lambda i: len(asked[i][0].ids))
    size = max(1, how.rows // max(1, len(asked[0][1])))
    found: dict[int, list[Rollout]] = {}
    loaded.model.eval()
    autocast = torch.autocast(loaded.device, torch.bfloat16) if how.half else nullcontext()
    with torch.inference_mode(), autocast:
        for start in range(0, len(order), size):
            places = order[start : start + size]
            answers = _batch(loaded, [asked[i] for i in places], how)
            found |= dict(zip(places, answers, strict=True))
    return [rollout for place in range(len(asked)) for rollout in found[place]]


def stops(loaded: Loaded) -> list[int]:
    """The tokens that end an answer."""
    known = bare(loaded.model).generation_config.eos_token_id
    known = known if isinstance(known, list) else [known]
    return sorted({i for i in (*known, loaded.tokenizer.eos_token_id) if i is not None})


def _batch(loaded: Loaded, asked: Sequence[tuple[Asked, Sequence[int]]], how: Drawing) -> list[list[Rollout]]:
    rows = [(prompt, seed) for prompt, seeds in asked for seed in seeds]
    tokens, logps = _decoded(loaded, [a for a, _ in asked], [seed for _, seed in rows], how)
    ends, found = set(stops(loaded)), []
    for (prompt, seed), row, probable in zip(rows, tokens.tolist(), logps.numpy(), strict=True):
        length = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        ended = row[length - 1] in ends
        text = loaded.tokenizer.decode(row[: length - ended], skip_special_tokens=True).strip()
        ids = np.array(row[:length], dtype=np.int32)
        found.append(Rollout.of(prompt, seed, ids, probable[:length].astype(np.float32), ended, text))
    size = len(asked[0][1])
    return [found[i : i + size] for i in range(0, len(found), size)]


def _decoded(loaded: Loaded, prompts: Sequence[Asked], seeds: Sequence[int], how: Drawing) -> tuple[Tensor, Tensor]:
    """Tokens and their log-probabilities, (rows, limit) each; what stands behind an end means nothing."""
    from transformers import DynamicCache

    # 1. The prompts, each once; then a row for each answer.
    model, each = loaded.model, len(seeds) // len(prompts)
    ids, mask = _padded(prompts, loaded)
    cache = DynamicCache(config=bare(model).config)
    positions = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
    logits = _next(model, ids, mask, positions, cache).repeat_interleave(each, 0)
    if each > 1:
        cache.batch_repeat_interleave(each)
    mask = None if mask is None else mask.repeat_interleave(each, 0)
    chance = torch.from_numpy(np.stack([np.random.default_rng(s).random(how.limit) for s in seeds])).to(loaded.device)
    tokens = torch.full((len(seeds), how.limit), stops(loaded)[0], device=loaded.device)
    logps = torch.zeros(len(seeds), how.limit, device=loaded.device)
    # 2. A token for each row at a time. `rows` are those still in the batch, `going` those of them that have not ended.
    rows, ends = torch.arange(len(seeds), device=loaded.device), torch.tensor(stops(loaded), device=loaded.device)
    going = torch.ones_like(rows, dtype=torch.bool)
    for place in range(how.limit):
        chosen, probable = _drawn(logits, chance[rows, place], how.temperature)
        tokens[rows[going], place], logps[rows[going], place] = chosen[going], probable[going]
        going = going & ~torch.isin(chosen, ends)
        left = int(going.sum())
        if not left or place + 1 == how.limit:
            break
        # 3. Ended rows leave when they are many: each leaving copies the cache.
        if left < _FULL * len(rows):
            kept = going.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            rows, chosen, going = rows[kept], chosen[kept], going[kept]
            mask = None if mask is None else mask[kept]
        mask = None if mask is None else torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        positions = None if mask is None else mask.sum(-1, keepdim=True) - 1
        logits = _next(model, chosen[:, None], mask, positions, cache)
    return tokens.cpu(), logps.cpu()


def _padded(prompts: Sequence[Asked], loaded: Loaded) -> tuple[Tensor, Tensor | None]:
    """Prompts padded on the left, and a mask where they are not of one length."""
    lengths = [len(p.ids) for p in prompts]
    ids = np.full((len(prompts), max(lengths)), loaded.tokenizer.pad_token_id, dtype=np.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[len(row) - len(prompt.ids) :] = prompt.ids
    if min(lengths) == max(lengths):
        return torch.from_numpy(ids).to(loaded.device), None
    real = np.arange(max(lengths))[None] >= max(lengths) - np.array(lengths)[:, None]
    return torch.from_numpy(ids).to(loaded.device), torch.from_numpy(real.astype(np.int64)).to(loaded.device)


def _next(model: Any, ids: Tensor, mask: Tensor | None, positions: Tensor | None, cache: Any) -> Tensor:
    """The logits of the next token, (B, V), in float32."""
    out = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
        logits_to_keep=1,
    )  # fmt: skip
    return out.logits[:, -1].float()  # type: ignore[no-any-return]


def _drawn(logits: Tensor, chance: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The inverse of the cumulated distribution at `chance`, and log p of what it gives: (B, V), (B,) -> (B,), (B,)."""
    logps = (logits / temperature).log_softmax(-1)
    total = logps.exp().cumsum(-1, dtype=torch.float64)  # double: the last bits decide between neighbours
    chosen = torch.searchsorted(total, (chance * total[:, -1])[:, None], right=True).clamp(max=logits.shape[-1] - 1)
    return chosen[:, 0], logps.gather(1, chosen)[:, 0]
