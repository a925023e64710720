"""How a row of a query looks to each consumer: its container, exactly the columns that the consumer takes, its values.

Sources: the dataset formats page of TRL, the data README and converter of LLaMA-Factory, the conversation and RLHF
pages of axolotl. A row that a format cannot hold is an error here, not a row skipped at training time.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from factory.errors import DataError, nearest

Kind = Literal["prompts", "sft", "pairs"]
Row = dict[str, Any]
Turn = dict[str, str]

ANSWERS: Mapping[str, tuple[str, ...]] = {"prompts": (), "sft": ("completion",), "pairs": ("chosen", "rejected")}

_TEXT = pa.string()
_TURN = pa.struct([("role", _TEXT), ("content", _TEXT)])
_CHAT = pa.list_(_TURN)
_SAID = pa.struct([("from", _TEXT), ("value", _TEXT)])  # ShareGPT's spelling of a turn
_FROM = {"user": "human", "assistant": "gpt"}


@dataclass(frozen=True)
class Layout:
    """A consumer's view: the file's suffix, a row's form, and the schema (None: whatever the query selects)."""

    suffix: str
    row: Callable[[Row], Row]
    schema: pa.Schema | None = None


def layout(fmt: str, kind: Kind) -> Layout:
    """The layout of rows of that kind in that format. Raises DataError for an unknown or unfit combination."""
    formats = {name for name, _ in _LAYOUTS}
    if fmt not in formats:
        raise DataError(f"unknown export format {fmt!r}; {nearest(fmt, sorted(formats))}")
    if (fmt, kind) not in _LAYOUTS:
        fit = ", ".join(sorted(name for name, held in _LAYOUTS if held == kind))
        raise DataError(f"format {fmt!r} cannot hold {kind}; formats that can: {fit}")
    return _LAYOUTS[fmt, kind]


# --- turns -----------------------------------------------------------------------------------------------------------


def _assistant(text: str) -> Turn:
    return {"role": "assistant", "content": text}


def _turns(row: Row) -> list[Turn]:
    """The conversation; a query without `messages` has one turn, its `prompt`."""
    if "messages" not in row:
        return [{"role": "user", "content": row["prompt"]}]
    turns: list[Turn] = row["messages"]
    if not turns:
        raise _unfit(row, "no turns", "jsonl")
    return turns


def _unfit(row: Row, why: str, instead: str) -> DataError:
    which = row.get("prompt_id") or row.get("prompt")
    return DataError(f"prompt {which!r}: {why}; leave it out or export for {instead}")


def _alternating(row: Row, fmt: str) -> tuple[str, list[Turn]]:
    """The system text and the other turns, which must be user and assistant by turns and end with the user."""
    turns = _turns(row)
    system, said = (turns[0]["content"], turns[1:]) if turns[0]["role"] == "system" else ("", turns)
    if len(said) % 2 == 0 or any(turn["role"] != ("user", "assistant")[i % 2] for i, turn in enumerate(said)):
        roles = ", ".join(turn["role"] for turn in turns)
        raise _unfit(row, f"{fmt} wants user and assistant by turns, found {roles}", "trl-conversational")
    return system, said


def _one_turn(row: Row) -> str:
    turns = _turns(row)
    if len(turns) != 1 or turns[0]["role"] != "user":
        raise _unfit(row, f"{len(turns)} turns, but trl's standard format holds one user turn", "trl-conversational")
    return turns[0]["content"]


# --- rows ------------------------------------------------------------------------------------------------------------


def _plain(row: Row) -> Row:
    return row


def _trl(row: Row) -> Row:
    return {"prompt": _one_turn(row), **{name: row[name] for name in _ANSWERS if name in row}}


def _conversational(row: Row) -> Row:
    return {"prompt": _turns(row), **{name: [_assistant(row[name])] for name in _ANSWERS if name in row}}


def _axolotl_sft(row: Row) -> Row:
    return {"messages": [*_turns(row), _assistant(row["completion"])]}


def _axolotl_pair(row: Row) -> Row:
    return {
        "messages": _turns(row),
        "chosen": _assistant(row["chosen"]),
        "rejected": _assistant(row["rejected"]),
    }


def _alpaca(row: Row) -> Row:
    """`system` and `history` only where there is any: an empty list has no type, and loaders refuse to mix the two."""
    system, said = _alternating(row, "alpaca")
    instruction, given = _parted(row, said[-1]["content"])
    names = {"completion": "output", "chosen": "chosen", "rejected": "rejected"}
    out: Row = {"instruction": instruction, "input": given}
    out |= {names[name]: row[name] for name in names if name in row}
    if system:
        out["system"] = system
    if len(said) > 1:
        texts = [turn["content"] for turn in said[:-1]]
        out["history"] = [[q, a] for q, a in zip(texts[::2], texts[1::2], strict=True)]
    return out


def _parted(row: Row, text: str) -> tuple[str, str]:
    """Instruction and input, parted as they were imported if the text is still theirs."""
    meta = row.get("meta")
    if not isinstance(meta, str) or '"input"' not in meta:
        return text, ""
    try:
        kept = json.loads(meta)
    except ValueError:
        return text, ""  # a meta of the user's own
    parts = [str(kept.get(name) or "") for name in ("instruction", "input")] if isinstance(kept, dict) else []
    return (parts[0], parts[1]) if "\n".join(filter(None, parts)) == text else (text, "")


def _sharegpt(row: Row) -> Row:
    """The system text is the first turn, which LLaMA-Factory and axolotl both read."""
    system, said = _alternating(row, "sharegpt")
    turns = [{"from": "system", "value": system}] if system else []
    turns += [{"from": _FROM[turn["role"]], "value": turn["content"]} for turn in said]
    if "completion" in row:
        return {"conversations": [*turns, {"from": "gpt", "value": row["completion"]}]}
    sides = {side: {"from": "gpt", "value": row[side]} for side in ("chosen", "rejected")}
    return {"conversations": turns, **sides}


# --- the table -------------------------------------------------------------------------------------------------------

_ANSWERS = ("completion", "chosen", "rejected")
_ALPACA_REST = [("system", _TEXT), ("history", pa.list_(pa.list_(_TEXT)))]


def _columns(kind: str, start: list[tuple[str, pa.DataType]], answer: pa.DataType) -> pa.Schema:
    return pa.schema([*start, *((name, answer) for name in ANSWERS[kind])])


def _alpaca_columns(kind: str) -> pa.Schema:
    answers = {"prompts": [], "sft": ["output"], "pairs": ["chosen", "rejected"]}[kind]
    return pa.schema([(name, _TEXT) for name in ("instruction", "input", *answers)] + _ALPACA_REST)


def _table() -> dict[tuple[str, str], Layout]:
    table: dict[tuple[str, str], Layout] = {}
    for kind in ANSWERS:
        for suffix in ("jsonl", "csv", "parquet"):
            table[suffix, kind] = Layout(f".{suffix}", _plain)
        table["trl", kind] = Layout(".parquet", _trl, _columns(kind, [("prompt", _TEXT)], _TEXT))
        chat = Layout(".parquet", _conversational, _columns(kind, [("prompt", _CHAT)], _CHAT))
        table["trl-conversational", kind] = table["hf", kind] = chat
        table["alpaca", kind] = Layout(".json", _alpaca, _alpaca_columns(kind))
    said = [("conversations", pa.list_(_SAID))]
    table["sharegpt", "sft"] = Layout(".json", _sharegpt, pa.schema(said))
    table["sharegpt", "pairs"] = Layout(".json", _sharegpt, _columns("pairs", said, _SAID))
    table["axolotl", "sft"] = Layout(".jsonl", _axolotl_sft, pa.schema([("messages", _CHAT)]))
    table["axolotl", "pairs"] = Layout(".jsonl", _axolotl_pair, _columns("pairs", [("messages", _CHAT)], _TURN))
    return table


_LAYOUTS = _table()
