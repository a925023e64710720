"""Instruction-following difficulty: how much a small model's loss on an answer falls when it is shown the prompt.

IFD = s(A|Q) / s(A), the mean loss a token of the answer with the prompt over the one without it (Li et al. 2024, "From
Quantity to Quality", NAACL, section 2). A small value: the prompt says nearly all; near 1: it hardly helps; above 1: it
misleads, so that answer and prompt do not belong together. Superfiltering (Li et al. 2024, ACL) shows that a small
model orders rows as a large one does. Departures:

1. Without the prompt the answer follows the end-of-text token, so that both losses are of the same tokens; the code of
   both papers leaves the first token out of one of them.
2. The conversation is rendered with the model's chat template, if it has one.
3. Too long an answer is cut at its end, and then too long a prompt at its beginning: both losses see the same answer.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from factory.errors import EngineError
from factory.records import Message

_LOGITS = 1 << 28  # that a pass may hold: 1 GB, whatever the vocabulary


class Loss(NamedTuple):
    """The mean loss of an answer's tokens in nats, with the prompt and without it; and how many tokens there are."""

    given: float
    alone: float
    tokens: int

    @property
    def ifd(self) -> float | None:
        """None where the model is sure of the answer even without the prompt."""
        return self.given / self.alone if self.alone > 1e-6 else None


Reader = tuple[Any, Any, str]  # a causal language model, its tokenizer, and the device they are on


class Difficulty:
    """A local causal language model that measures. It is loaded when it is first asked."""

    def __init__(self, model: str, batch_size: int = 16, max_length: int = 1024) -> None:
        self.model, self.batch_size, self.max_length = model, batch_size, max_length
        self.loaded: Reader | None = None

    def losses(self, rows: Sequence[tuple[Sequence[Message], str]]) -> list[Loss | None]:
        """The losses of each answer to its conversation, in order; None for an answer without a token."""
        self.loaded = self.loaded or reader(self.model)
        coded = [_coded(turns, answer, self.loaded[1], self.max_length) for turns, answer in rows]
        # 1. Every answer is asked twice: behind its prompt, and behind the token that begins a text.
        first = [_first(self.loaded[1])]
        asked = [(prefix, answer) for prompt, answer in coded if answer for prefix in (prompt, first)]
        # 2. All of them, whatever they stand beside.
        found = mean_losses(self.loaded, asked, self.batch_size)
        # 3. Two losses an answer, in the order of the rows.
        pairs = iter(zip(found[::2], found[1::2], strict=True))
        return [Loss(*next(pairs), len(answer)) if answer else None for _, answer in coded]


def mean_losses(loaded: Reader, rows: Sequence[tuple[list[int], list[int]]], batch_size: int) -> list[float]:
    """The mean loss in nats of each row's second tokens behind its first ones, in the order of the rows.

    Rows of like length share a batch; whoever shares one changes nothing, for padding is masked.
    """
    model, _, device = loaded
    found, tokens = [0.0] * len(rows), _LOGITS // model.get_output_embeddings().weight.shape[0]
    for batch in passes([len(prefix) + len(answer) for prefix, answer in rows], batch_size, tokens):
        for place, loss in zip(batch, _means(model, [rows[i] for i in batch], device), strict=True):
            found[place] = loss
    return found


def passes(lengths: Sequence[int], rows: int, tokens: int) -> Iterator[list[int]]:
    """Places of texts, the shortest first, at most so many together, and so few that they and their padding have at
    most so many tokens; a text that is longer goes alone."""
    batch = list[int]()
    for place in sorted(range(len(lengths)), key=lambda place: (lengths[place], place)):
        if batch and (len(batch) == rows or (len(batch) + 1) * lengths[place] > tokens):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def reader(name: str) -> Reader:
    """A checkpoint that measures losses. EngineError where it does not load."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from factory.engines.checkpoints import resolve

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve(name))
        # In 32 bits on a CPU: in 16 a loss depends on how long the others of its batch are.
        dtype = torch.float32 if device == "cpu" else "auto"
        model = AutoModelForCausalLM.from_pretrained(resolve(name), use_safetensors=True, dtype=dtype)
    except (OSError, ValueError) as error:
        raise EngineError(f"cannot load {name!r} to measure losses: {str(error).strip().splitlines()[0]}") from error
    return model.to(device).eval(), tokenizer, device


def _first(tokenizer: Any) -> int:
    known = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, 0)
    return int(next(token for token in known if token is not None))


def _coded(turns: Sequence[Message], answer: str, tokenizer: Any, most: int) -> tuple[list[int], list[int]]:
    """The tokens of a prompt up to where the answer begins, and those of the answer."""
    if tokenizer.chat_template is None:
        before = "\n".join(m.content for m in turns) + "\n"
    else:
        told = [{"role": m.role, "content": m.content} for m in turns]
        before = tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=True)
    said = tokenizer(answer, add_special_tokens=False)["input_ids"][: most - most // 4]
    prompt = tokenizer(before, add_special_tokens=False)["input_ids"]
    return prompt[-(most - len(said)) :] or [_first(tokenizer)], said


def _means(model: Any, batch: Sequence[tuple[list[int], list[int]]], device: str) -> list[float]:
    """The mean loss of each row's answer."""
    import torch

    width = max(len(prefix) + len(answer) for prefix, answer in batch)
    ids = torch.zeros((len(batch), width), dtype=torch.long)
    mask = torch.zeros((len(batch), width), dtype=torch.long)
    for row, (prefix, answer) in enumerate(batch):
        whole = [*prefix, *answer]
        ids[row, : len(whole)], mask[row, : len(whole)] = torch.tensor(whole), 1
    with torch.inference_mode():
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
    means = []
    for row, (prefix, answer) in enumerate(batch):
        end = len(prefix) + len(answer)
        guessed = logits[row, len(prefix) - 1 : end - 1].float()
        wanted = ids[row, len(prefix) : end].to(guessed.device)
        means.append(round(float(torch.nn.functional.cross_entropy(guessed, wanted)), 6))
    return means
