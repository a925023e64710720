"""From rows of text to batches of tokens: the loss mask by diffing rendered text, and batches of like lengths."""

from collections.abc import Iterable, Sequence
from random import Random
from typing import Any, NamedTuple

import torch
from jinja2 import TemplateError

from factory.errors import DataError

IGNORED = -100  # the label of a token that takes no part in the loss
_CHUNK = 1000  # rows tokenised at once


class Example(NamedTuple):
    """One tokenised row: `ids` and `labels` of equal length; labels are IGNORED outside the completion."""

    ids: list[int]
    labels: list[int]


class Batch(NamedTuple):
    """Left-padded tensors, (B, T) each. `tail` is how many last positions hold all labels: only they need logits."""

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    tail: int

    @property
    def targets(self) -> int:
        """How many tokens are learned."""
        return int((self.labels != IGNORED).sum())


def examples(rows: Iterable[dict[str, Any]], tokenizer: Any, max_length: int) -> tuple[list[Example], int]:
    """Tokenise prompt and completion columns; returns the examples and how many rows were too long and left out.

    Any chat template works: the prompt and the whole conversation are rendered, and what the second has beyond the
    first, up to and with the end-of-turn token, is what is learned. Raises DataError where that cannot be told.
    """
    found, too_long, chunk = list[Example](), 0, list[tuple[str, int, int]]()
    for number, row in enumerate(rows, 1):
        chunk.append(_rendered(row, tokenizer, number))
        if len(chunk) == _CHUNK:
            found += _encoded(chunk, tokenizer)
            chunk = []
    found += _encoded(chunk, tokenizer)
    fitting = [e for e in found if len(e.ids) <= max_length]
    too_long = len(found) - len(fitting)
    if not fitting:
        raise DataError(f"no row fits into max_length={max_length} tokens: raise it, or filter the rows")
    return fitting, too_long


def _rendered(row: dict[str, Any], tokenizer: Any, number: int) -> tuple[str, int, int]:
    """(text, start, end): the conversation, and where in it the completion and its end-of-turn token stand."""
    prompt, completion = _conversation(row, number)
    try:
        return _located(prompt, completion, tokenizer, number)
    except TemplateError as error:
        raise DataError(f"row {number}: the base's chat template refuses the conversation: {error}") from error


def _located(prompt: list[dict[str, str]], completion: str, tokenizer: Any, number: int) -> tuple[str, int, int]:
    if tokenizer.chat_template is None:
        before = "\n".join(m["content"] for m in prompt) + "\n"
        text = before + completion + tokenizer.eos_token
        return text, len(before), len(text)
    before = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    turns = [*prompt, {"role": "assistant", "content": completion}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    start = len(before) if text.startswith(before) else text.rfind(completion.strip())
    if start < 0:
        raise DataError(
            f"row {number}: the chat template changes the answer's text, so it cannot be told what to learn. "
            "Give the base model a template that renders answers as they are"
        )
    end = text.find(tokenizer.eos_token, start + len(completion.strip()))
    if end < 0:  # a template that does not end the turn: the model must still learn to stop
        return text + tokenizer.eos_token, start, len(text + tokenizer.eos_token)
    return text[: end + len(tokenizer.eos_token)], start, end + len(tokenizer.eos_token)


def _conversation(row: dict[str, Any], number: int) -> tuple[list[dict[str, str]], str]:
    prompt = row.get("messages") or row.get("prompt")
    completion = row.get("completion")
    if prompt is None or completion is None:
        raise DataError(f"row {number}: SFT needs columns prompt (or messages) and completion; found {', '.join(row)}")
    if isinstance(completion, list):
        completion = completion[-1]["content"]
    if not completion.strip():
        raise DataError(f"row {number}: the completion is empty: filter such rows (`filter: denoise`)")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    return [{"role": m["role"], "content": m["content"]} for m in prompt], completion


def _encoded(chunk: Sequence[tuple[str, int, int]], tokenizer: Any) -> list[Example]:
    if not chunk:
        return []
    coded = tokenizer([t for t, _, _ in chunk], add_special_tokens=False, return_offsets_mapping=True)
    found = []
    for ids, offsets, (_, start, end) in zip(coded["input_ids"], coded["offset_mapping"], chunk, strict=True):
        # a token that straddles the start holds the answer's first letters, so it is learned
        learned = [b > max(a, start) and a < end for a, b in offsets]
        found.append(Example(ids, [i if learn else IGNORED for i, learn in zip(ids, learned, strict=True)]))
    return found


def batches(data: Sequence[Example], size: int, rng: Random) -> list[list[Example]]:
    """One epoch: shuffled, then sorted by length within windows of fifty batches, then the batches shuffled."""
    order = list(data)
    rng.shuffle(order)
    window = 50 * size
    found = []
    for start in range(0, len(order), window):
        part = sorted(order[start : start + window], key=lambda e: len(e.ids))
        found += [part[i : i + size] for i in range(0, len(part), size)]
    rng.shuffle(found)
    return found


def stacked(rows: Sequence[Example], pad: int, device: str) -> Batch:
    """Pad on the left, so that all completions end at the same place."""
    width = max(len(r.ids) for r in rows)
    ids = torch.tensor([[pad] * (width - len(r.ids)) + r.ids for r in rows])
    labels = torch.tensor([[IGNORED] * (width - len(r.ids)) + r.labels for r in rows])
    mask = torch.tensor([[0] * (width - len(r.ids)) + [1] * len(r.ids) for r in rows])
    first = int((labels != IGNORED).any(0).long().argmax())
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return Batch(ids.to(device), mask.to(device), positions.to(device), labels.to(device), width - first)
