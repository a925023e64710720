"""From rows of text to tokens. A row that cannot be used becomes a verdict that says why."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from itertools import islice, pairwise
from math import inf, isfinite, nan
from random import Random
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from factory.errors import DataError
from factory.records import Verdict, content_id
from trainers._batches import IGNORED, Example
from trainers._chat import Text, answered, before_answer, conversation, turns

Item = TypeVar("Item")
Row = dict[str, Any]
_CHUNK = 1000  # rows tokenised at once


class Skip(Exception):
    """This row cannot be used, and why, in one word."""


class Read(NamedTuple, Generic[Item]):
    """The items of the rows, the verdicts on those that were left out, a hash of all items, and what each was asked."""

    items: list[Item]
    skipped: list[Verdict]
    digest: str
    prompts: list[str]


def read(rows: Iterable[Row], parse: Callable[[Row, str], Sequence[Text]], build: Callable[[Row, list[Example]], Item],
         tokenizer: Any, max_length: int, trainer: str) -> Read[Item]:  # fmt: skip
    """Parse each row to texts, tokenise them, and build an item. Raises DataError where no row is left."""
    found, skipped, numbered, digest = list[Item](), list[Verdict](), enumerate(rows, 1), blake2b(digest_size=16)
    prompts = list[str]()
    while chunk := list(islice(numbered, _CHUNK)):
        parsed = list[tuple[int, Row, Sequence[Text]]]()
        for number, row in chunk:
            try:
                with told_of(f"row {number}"):
                    parsed.append((number, row, parse(row, f"row {number}")))
            except Skip as skip:
                skipped.append(_verdict(row, trainer, str(skip)))
        coded = iter(encoded([text for _, _, texts in parsed for text in texts], tokenizer))
        for number, row, texts in parsed:
            examples = [e._replace(key=key_of(row) or str(number)) for e in islice(coded, len(texts))]
            if max(len(e.ids) for e in examples) > max_length:
                skipped.append(_verdict(row, trainer, "too_long"))
            else:
                with told_of(f"row {examples[0].key}"):
                    found.append(build(row, examples))
                    prompts.append(_asks(row))
                digest.update(_bytes(found[-1]))
    if not found:
        reasons = ", ".join(sorted({v.reason for v in skipped})) or "there are none"
        raise DataError(
            f"no row fits into max_length={max_length} tokens and is whole ({reasons}): raise it, or look at the rows"
        )
    return Read(found, skipped, digest.hexdigest(), prompts)


@contextmanager
def told_of(where: str) -> Iterator[None]:
    """An error in a row is one that names the row, whatever shape the row turned out to have."""
    try:
        yield
    except DataError as error:
        raise error if str(error).startswith("row ") else DataError(f"{where}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{where}: it has not the shape that is needed ({type(error).__name__}: {error}). Prompts and answers are "
            "texts or lists of messages {role, content}, labels and weights are numbers"
        ) from error


def _bytes(value: Any) -> bytes:
    """All that an item holds, as bytes: a state is gone on from only with the very same items."""
    if isinstance(value, tuple):
        return b"(" + b",".join(map(_bytes, value)) + b")"
    return value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()


def encoded(texts: Sequence[Text], tokenizer: Any) -> list[Example]:
    """Tokens and labels. A token that straddles a span's start holds the answer's first letters, so it is learned."""
    if not texts:
        return []
    coded = tokenizer([t.text for t in texts], add_special_tokens=False, return_offsets_mapping=True)
    found = []
    for ids, offsets, text in zip(coded["input_ids"], coded["offset_mapping"], texts, strict=True):
        tokens, edges = np.array(ids, dtype=np.int32), np.array(offsets, dtype=np.int64).reshape(-1, 2)
        learned = np.zeros(len(tokens), dtype=bool)
        for start, end in text.learned:
            learned |= (edges[:, 1] > np.maximum(edges[:, 0], start)) & (edges[:, 0] < end)
        for mark in text.marks:
            learned[np.searchsorted(edges[:, 0], mark, side="right") - 1] = True
        found.append(Example(tokens, np.where(learned, tokens, IGNORED).astype(np.int32)))
    return found


def key_of(row: Row) -> str:
    """What a row is called: the id of its record, if it came with one."""
    names = ("completion_id", "chosen_id", "prompt_id", "id")
    return next((str(row[n]) for n in names if row.get(n)), "")


def number(row: Row, column: str, default: float, least: float = -inf) -> float:
    """A number of a row; the default where there is none. Raises DataError for one that is not finite, or too low."""
    value = row.get(column)
    try:
        found = default if value is None else float(value)
    except (TypeError, ValueError):
        found = nan
    if not isfinite(found):
        raise DataError(f"its {column} is {value!r}; filter it, for it must be finite: WHERE isfinite({column})")
    if found < least:
        raise DataError(f"its {column} is {value}, which is below {least:g}; filter it: WHERE {column} >= {least:g}")
    return found


def weight_of(row: Row) -> float:
    """How much a row counts; a negative weight would reward what is learned to be unlikely, without a bound."""
    return number(row, "weight", 1.0, 0.0)


def needs(names: Sequence[str], wanted: Sequence[tuple[str, ...]], trainer: str, example: str) -> None:
    """Raise DataError unless of each group of columns one is there."""
    if missing := [group for group in wanted if not set(group) & set(names)]:
        said = " and ".join(" or ".join(group) for group in missing)
        raise DataError(
            f"{trainer} needs columns {said}; found {', '.join(names)}. Rename them in the query: {example}"
        )


def _verdict(row: Row, trainer: str, reason: str) -> Verdict:
    told = " | ".join(
        str(row[n]) for n in ("prompt", "chosen", "rejected", "completion") if isinstance(row.get(n), str)
    )
    told = (told or str(row))[:2000]
    return Verdict(
        content_id("skipped", trainer, key_of(row), told), trainer, False, reason, text=told, evidence_id=key_of(row)
    )


# --- the texts of a row ----------------------------------------------------------------------------------------------


def prompt_of(row: Row) -> Any:
    """The prompt: as messages, if the row has them."""
    return row.get("messages") or row.get("prompt")


def _asks(row: Row) -> str:
    """What a row asks, as a key: all before its answers; of a whole conversation what stands before its first."""
    said = next((row[n] for n in ("messages", "prompt", "chosen") if row.get(n)), None) or row["completions"][0]
    given = turns(said) if row.get("messages") or row.get("prompt") else said[:-1]
    if not any(row.get(n) for n in ("completion", "completions", "chosen", "steps")):
        given = given[: next(i for i, m in enumerate(given) if m["role"] == "assistant")]
    return content_id(*(m[part] for m in given for part in ("role", "content")))


def text_of(value: Any) -> str:
    """An answer: a string, or the last of its messages."""
    return str(value[-1]["content"]) if isinstance(value, list) and value else str(value or "")


def side_by_side(row: Row, answers: Sequence[Any], tokenizer: Any, where: str) -> list[Text]:
    """The texts of several answers to a row's prompt. Raises Skip for an empty or a doubled one."""
    prompt, texts = _asked(row, answers, where), [text_of(a) for a in answers]
    if not all(t.strip() for t in texts):
        raise Skip("empty_side")
    if len(set(texts)) < len(texts):
        raise Skip("same_sides")
    before = before_answer(prompt, tokenizer, where)
    return [answered(prompt, t, tokenizer, where, before) for t in texts]


def _asked(row: Row, answers: Sequence[Any], where: str) -> list[dict[str, str]]:
    """The prompt's turns; without a prompt column, those that all answers begin with."""
    if prompt_of(row):
        return turns(prompt_of(row))
    if not all(isinstance(a, list) for a in answers):
        raise DataError(f"{where}: no prompt. Name its column `prompt`, or give answers as whole lists of messages")
    shortest = min(map(len, answers)) - 1
    alike = next((i for i in range(shortest) if any(a[i] != answers[0][i] for a in answers)), shortest)
    return turns(answers[0][:alike])


def examples(rows: Iterable[Row], tokenizer: Any, max_length: int) -> tuple[list[Example], int]:
    """The rows of SFT with the loss on completions only; returns the examples and how many rows were left out."""
    found = supervised(rows, tokenizer, max_length)
    return found.items, len(found.skipped)


def supervised(rows: Iterable[Row], tokenizer: Any, max_length: int, completion_only: bool = True,
               assistant_only: bool = True) -> Read[Example]:  # fmt: skip
    """The rows of SFT: prompt (or messages) and completion, or whole conversations in `messages`."""

    def parse(row: Row, where: str) -> list[Text]:
        if row.get("completion") is None and row.get("messages"):
            return [conversation(turns(row["messages"]), tokenizer, where, assistant_only)]
        completion = text_of(row.get("completion"))
        if prompt_of(row) is None or row.get("completion") is None:
            raise DataError(f"{where}: SFT needs columns prompt (or messages) and completion; found {', '.join(row)}")
        if not completion.strip():
            raise DataError(f"{where}: the completion is empty: filter such rows (`filter: denoise`)")
        text = answered(turns(prompt_of(row)), completion, tokenizer, where)
        return [text if completion_only else text._replace(learned=((0, len(text.text)),))]

    def build(row: Row, found: list[Example]) -> Example:
        return _ends_its_turn(found[0]._replace(weight=weight_of(row)), tokenizer)

    return read(rows, parse, build, tokenizer, max_length, "sft")


def _ends_its_turn(example: Example, tokenizer: Any) -> Example:
    """The strict check that stopping is learned: the last learned token must be a special one."""
    last = example.labels[example.labels != IGNORED][-1:]
    if not len(last) or int(last[0]) not in _special(tokenizer):
        raise DataError(
            f"row {example.key}: no end-of-turn token would be learned, so the model could not learn to stop"
        )
    return example


def _special(tokenizer: Any) -> set[int]:
    return {tokenizer.eos_token_id, *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)}


def shown(example: Example, tokenizer: Any) -> list[tuple[str, bool]]:
    """An example's text in pieces, each with whether it is learned: what a dry run prints."""
    learned = example.labels != IGNORED
    edges = [0, *(np.flatnonzero(np.diff(learned)) + 1).tolist(), len(learned)]
    return [(tokenizer.decode(example.ids[a:b].tolist()), bool(learned[a])) for a, b in pairwise(edges)]


def held_out(
    items: Sequence[Item], prompts: Sequence[str], fraction: float, seed: int
) -> tuple[list[Item], list[Item]]:
    """The items to train on, and those held out: whole prompts, drawn until they make up the share.

    A prompt with more rows than the share and than half of all rows is never drawn, so that something is left to learn.
    """
    order = list(zip(items, prompts, strict=True))
    Random(seed).shuffle(order)
    rows = Counter(prompts)
    wanted, count, drawn = min(round(len(order) * fraction), len(order) - 1), 0, set[str]()
    for prompt in dict.fromkeys(prompt for _, prompt in order):
        if count < wanted and count + rows[prompt] <= max(wanted, len(order) / 2):
            drawn.add(prompt)
            count += rows[prompt]
    return [i for i, prompt in order if prompt not in drawn], [i for i, prompt in order if prompt in drawn]
