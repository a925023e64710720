"""The parts that all row shapes share: texts, turns and prompts out of a row, and records out of those."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from factory.records import NOTHING, Completion, Judgement, Message, Prompt, Record

Row = dict[str, Any]
Tongue = Callable[[Row, str], str]  # the language of a row's text
Records = tuple[Record, ...]

_ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "system": "system",
}
OUR_OWN = frozenset({"prompt_id", "completion_id", "language"})  # columns of our exports that are read or made anew
_SPOKEN = re.compile(r"\n\n(Human|Assistant):")


class Unfit(Exception):
    """A row that cannot become what its shape promises: the reason, and the records that can be made of it still."""

    def __init__(self, reason: str, *saved: Record) -> None:
        super().__init__(reason)
        self.reason = reason
        self.saved = saved


def text_of(value: object) -> str:
    """The text, "" for nothing; raises Unfit for a number, a list or anything else."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    raise Unfit("not_text")


def _message(turn: object) -> Message:
    """A turn in either spelling: {"role", "content"} or {"from", "value"}."""
    if not isinstance(turn, Mapping):
        raise Unfit("bad_roles")
    role = turn.get("role") or turn.get("from")
    if not isinstance(role, str) or role not in _ROLES:
        raise Unfit("bad_roles")
    return Message(_ROLES[role], text_of(turn.get("content", turn.get("value"))))


def turns_of(value: object, role: str = "user") -> tuple[Message, ...]:
    """Messages from a list of them, from a single one, or from plain text said by `role`."""
    if isinstance(value, str):
        return (Message(role, value),)
    if isinstance(value, Mapping):
        return (_message(value),)
    if isinstance(value, Sequence):
        return tuple(map(_message, value))
    raise Unfit("not_text" if value is not None else "empty_prompt")


def spoken(text: str) -> tuple[Message, ...]:
    """The turns of an HH-RLHF dialogue."""
    parts = _SPOKEN.split(text)
    if len(parts) < 3 or parts[0].strip():
        raise Unfit("bad_roles")
    roles = ("user" if who == "Human" else "assistant" for who in parts[1::2])
    return tuple(Message(role, said.strip()) for role, said in zip(roles, parts[2::2], strict=True))


def asked(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages, if they are something to answer: an optional system turn, then user and assistant by turns."""
    said = messages[1:] if messages and messages[0].role == "system" else messages
    if not said or not said[-1].content.strip():
        raise Unfit("empty_prompt")
    if len(said) % 2 == 0 or any(m.role != ("user", "assistant")[i % 2] for i, m in enumerate(said)):
        raise Unfit("bad_roles")
    return messages


def meta_of(row: Row, used: frozenset[str]) -> Mapping[str, Any]:
    """What the row holds beyond the columns used; a `meta` column, which our own exports write, is unpacked."""
    if row.keys() <= used:
        return NOTHING
    rest = {key: row[key] for key in row if key not in used and row[key] is not None and row[key] != ""}
    packed = rest.get("meta")
    if isinstance(packed, str) and packed.startswith("{"):
        try:
            packed = json.loads(packed)
        except ValueError:
            return rest
    if isinstance(packed, dict):
        del rest["meta"]
        rest |= packed
    return rest


def with_system(row: Row, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages with the row's `system` column before them, where it has one and they do not."""
    system = text_of(row.get("system"))
    return (Message("system", system), *messages) if system and messages[0].role != "system" else messages


def completion(prompt: Prompt, row: Row, text: str) -> Completion:
    """The completion, by the model that a `model` column names."""
    model = row.get("model")
    return Completion(prompt.id, text, model if isinstance(model, str) else "", "import")


def answered(prompt: Prompt, row: Row, text: str) -> Records:
    """The prompt and its completion. Without a text the prompt is saved alone."""
    if not text.strip():
        raise Unfit("empty_answer", prompt)
    return prompt, completion(prompt, row, text)


def preferred(prompt: Prompt, chosen: str, rejected: str) -> Records:
    """A preference: the prompt, its two completions and the data set's opinion of them."""
    if not chosen.strip() or not rejected.strip():
        raise Unfit("empty_answer")
    if chosen.strip() == rejected.strip():
        raise Unfit("same_sides")
    better, worse = Completion(prompt.id, chosen, engine="import"), Completion(prompt.id, rejected, engine="import")
    return prompt, better, worse, Judgement(prompt.id, better.id, "dataset", "human", worse.id, verdict="win")


def one_answer(rest: tuple[Message, ...]) -> str:
    """The text of the messages, if they are one assistant turn."""
    if len(rest) != 1 or rest[0].role != "assistant":
        raise Unfit("bad_roles")
    return rest[0].content
