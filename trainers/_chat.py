"""Which characters of a conversation are learned: found by rendering it in parts, so that any chat template will do.

No `{% generation %}` marks are needed. A part is learned up to and with its end-of-turn token; where that cannot be
told, or the template changes an answer's text, the row is refused.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError

from factory.errors import DataError

Turns = list[dict[str, str]]


class Text(NamedTuple):
    """A rendered conversation: the spans (start, end) that are learned, and single places that are labelled."""

    text: str
    learned: tuple[tuple[int, int], ...]
    marks: tuple[int, ...] = ()


def turns(value: Any) -> Turns:
    """A conversation of a string (one user turn) or of messages."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in value):
        raise DataError(f"{str(value)[:80]!r} is no text and no list of messages with `role` and `content`; rename "
                        "their fields, or `factory import` the file: it knows other spellings")  # fmt: skip
    if wrong := next((m for m in value if not isinstance(m["content"], str) or not isinstance(m["role"], str)), None):
        raise DataError(f"the message {str(wrong)[:80]} has no text as its `role` or `content`")
    return [{"role": m["role"], "content": m["content"]} for m in value]


def before_answer(prompt: Turns, tokenizer: Any, where: str) -> str:
    """The rendered prompt, up to where the answer begins."""
    if tokenizer.chat_template is None:
        return "\n".join(m["content"] for m in prompt) + "\n"
    return _rendered(prompt, tokenizer, where, add_generation_prompt=True)


def answered(prompt: Turns, answer: str, tokenizer: Any, where: str, before: str | None = None) -> Text:
    """Prompt and answer; the answer and its end-of-turn token are learned."""
    before = before_answer(prompt, tokenizer, where) if before is None else before
    if tokenizer.chat_template is None:
        text = before + answer + tokenizer.eos_token
        return Text(text, ((len(before), len(text)),))
    whole = [*prompt, {"role": "assistant", "content": answer}]
    text = _rendered(whole, tokenizer, where)
    start = len(before) if text.startswith(before) else _answer(whole, len(prompt), text, tokenizer, where)[0]
    if answer.strip() not in text[start:]:
        raise _changed(where)
    end = _turn_end(text, start + len(answer.strip()), tokenizer)
    if end is None:  # a template that does not end the turn: the model must still learn to stop
        text = text + tokenizer.eos_token
        return Text(text, ((start, len(text)),))
    return Text(text[:end], ((start, end),))


def conversation(messages: Turns, tokenizer: Any, where: str, assistant_only: bool = True) -> Text:
    """A whole conversation; all its assistant turns are learned, or every token of it."""
    if tokenizer.chat_template is None:
        raise DataError(f"{where}: the base has no chat template: give columns prompt and completion instead")
    text = _rendered(messages, tokenizer, where)
    if not assistant_only:
        return Text(text.rstrip(), ((0, len(text.rstrip())),))  # up to the end of the turn
    spans = list[tuple[int, int]]()
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        start, behind = _answer(messages, number, text, tokenizer, where)
        end = _turn_end(text, behind, tokenizer)
        if end is None and number < len(messages) - 1:
            raise DataError(
                f"{where}: the chat template does not end assistant turns, so a model could not learn to stop"
            )
        text = text if end is not None else text + tokenizer.eos_token
        spans.append((start, end or len(text)))
    if not spans:
        raise DataError(f"{where}: no assistant turn to learn; filter such rows")
    return Text(text[: spans[-1][1]], tuple(spans))


def stepwise(prompt: Turns, steps: Sequence[str], tokenizer: Any, where: str) -> Text:
    """An answer in steps, a line each; its marks are the ends of the steps."""
    before, marks = before_answer(prompt, tokenizer, where), list[int]()
    for part in steps:
        before += part.strip("\n") + "\n"
        marks.append(len(before) - 1)
    return Text(before, (), tuple(marks))


def _answer(messages: Turns, number: int, text: str, tokenizer: Any, where: str) -> tuple[int, int]:
    """Where the answer `number` begins to be learned in the rendering of all messages, and where its text ends.

    Its text is never searched for: a short one stands in role headers and system prompts too.
    """
    before = _rendered(messages[:number], tokenizer, where, add_generation_prompt=True) if number else ""
    begun, answer = text.startswith(before), messages[number]["content"].strip()
    for place in [_place(messages, number, text, tokenizer, where), *([len(before)] if begun else [])]:
        behind = place + len(text[place:]) - len(text[place:].lstrip())
        if text.startswith(answer, behind):
            return len(before) if number and begun and len(before) <= behind else behind, behind + len(answer)
    raise _changed(where)


def _place(messages: Turns, number: int, text: str, tokenizer: Any, where: str) -> int:
    """Where a message's content begins: where the rendering changes once another stands in its place."""
    other = next(mark for mark in ("\ue000", "\ue001") if not messages[number]["content"].strip().startswith(mark))
    changed = [*messages[:number], messages[number] | {"content": other}, *messages[number + 1 :]]
    pairs = zip(text, _rendered(changed, tokenizer, where), strict=False)
    return next((place for place, (one, another) in enumerate(pairs) if one != another), len(text))


def _turn_end(text: str, start: int, tokenizer: Any) -> int | None:
    """The end of the first special token behind an answer: its end of turn, under whatever name."""
    special = {tokenizer.eos_token, *(str(t) for t in tokenizer.added_tokens_decoder.values() if t.special)}
    found = [(place, place + len(token)) for token in special if token and (place := text.find(token, start)) >= 0]
    eos = text.find(tokenizer.eos_token, start)
    if not found:
        return None
    first = min(found)
    if text[start : first[0]].strip() and eos >= 0:  # something else stands between: only the real one will do
        return eos + len(tokenizer.eos_token)
    return first[1]


def _rendered(messages: Turns, tokenizer: Any, where: str, **options: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except TemplateError as error:
        raise DataError(f"{where}: the base's chat template refuses the conversation: {error}") from error


def _changed(where: str) -> DataError:
    return DataError(
        f"{where}: the chat template changes the answer's text, so it cannot be told what to learn. "
        "Give the base model a template that renders answers as they are"
    )
