"""Reading a judge's reply: its last line, or one JSON object. What is not exactly a verdict is None, never a guess."""

import json
import re
from collections.abc import Sequence
from typing import Any

_DECORATION = " \t*_`#>\"'“”()（）[]【】。.!！"
_LINES = {
    "verdict": re.compile(r"(?:(?:my |the )?(?:final )?verdict(?: is)?|裁决|结论)\s*[:：]\s*(.+)", re.IGNORECASE),
    "score": re.compile(r"(?:(?:final )?score|rating|评分|得分|分数)\s*[:：]\s*(.+)", re.IGNORECASE),
    "ranking": re.compile(r"(?:(?:final )?ranking|排名|排序)\s*[:：]\s*(.+)", re.IGNORECASE),
}
# The form of MT-bench, where C is a tie: alone on its line or behind a label. In a sentence it may be a quotation.
_BRACKETS = re.compile(
    r"[\s*_`#]*(?:(?:(?:my |the )?(?:final )?verdict(?: is)?|(?:最终)?(?:裁决|结论))[\s*_]*[:：]?[\s*_`]*)?"
    r"\[\[(A|B|C|tie)\]\][\s*_`.。!！]*",
    re.IGNORECASE,
)
_NAMED = {"A": "A", "B": "B", "TIE": "tie", "EQUAL": "tie", "平局": "tie", "平手": "tie", "相当": "tie"}
_SCORE = re.compile(r"([1-5])(?:\.0)?(?:\s*/\s*5|\s*分)?")
_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)


def _schema(name: str, value: dict[str, Any]) -> str:
    """The reason comes first, so that the verdict follows from it."""
    properties = {"rationale": {"type": "string"}, name: value}
    return json.dumps(
        {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    )


PAIR_SCHEMA = _schema("verdict", {"type": "string", "enum": ["A", "B", "tie"]})
SCORE_SCHEMA = _schema("score", {"type": "integer", "enum": [1, 2, 3, 4, 5]})
RANKING_SCHEMA = _schema("ranking", {"type": "array", "items": {"type": "array", "items": {"type": "string"}}})


def verdict(text: str, structured: bool) -> tuple[str | None, str]:
    """("A", "B", "tie" or None, the judge's reasons). The reasons of an unreadable reply are all of it."""
    if structured:
        found, reasons = _field(text, "verdict")
        return (_NAMED.get(found.upper()), reasons) if isinstance(found, str) else (None, text)
    reasons, last = _parted(text)
    if brackets := _BRACKETS.fullmatch(last):
        return "tie" if brackets[1].upper() == "C" else _NAMED[brackets[1].upper()], reasons
    named = _NAMED.get(_said("verdict", last).upper())
    return named, reasons if named else text


def score(text: str, structured: bool) -> tuple[float | None, str]:
    """(1 to 5 or None, the judge's reasons). 10 is not a 1, and 4.5 is neither 4 nor 5."""
    if structured:
        found, reasons = _field(text, "score")
        good = isinstance(found, int) and not isinstance(found, bool) and 1 <= found <= 5
        return (float(found), reasons) if good else (None, text)
    reasons, last = _parted(text)
    number = _SCORE.fullmatch(_said("score", last))
    return (float(number[1]), reasons) if number else (None, text)


def ranking(text: str, labels: str, structured: bool) -> list[int] | None:
    """Each label's rank from 0, equal ones alike, or None unless every label is named exactly once."""
    if structured:
        groups = _field(text, "ranking")[0]
    else:
        line = _said("ranking", _parted(text)[1]).replace("＞", ">").replace("＝", "=")
        groups = [[label.strip(_DECORATION) for label in group.split("=")] for group in line.split(">")]
    if not isinstance(groups, list) or not all(isinstance(g, list) for g in groups):
        return None
    ranks = {str(label).upper(): rank for rank, group in enumerate(groups) for label in group}
    named = sum(map(len, groups))
    return [ranks[label] for label in labels] if named == len(labels) and set(ranks) == set(labels) else None


def _parted(text: str) -> tuple[str, str]:
    """(all before, the last line that says something), without what a reasoning model thought aloud."""
    lines = [line for line in text.rsplit("</think>", 1)[-1].splitlines() if line.strip()]
    return "\n".join(lines[:-1]).strip(), lines[-1].strip() if lines else ""


def _said(kind: str, line: str) -> str:
    found = _LINES[kind].fullmatch(line.strip(" \t*_`#>"))
    return found[1].strip(_DECORATION) if found else ""


def _field(text: str, name: str) -> tuple[Any, str]:
    """A field of a reply that is one JSON object and nothing else, with its rationale."""
    body = text.strip()
    if not body.startswith(("{", "```")):  # thoughts come before; inside the object it is a quotation
        body = body.rsplit("</think>", 1)[-1].strip()
    fenced = _FENCE.fullmatch(body)
    try:
        found = json.loads(fenced[1] if fenced else body, object_pairs_hook=_once)
    except ValueError:
        return None, text
    if not isinstance(found, dict):
        return None, text
    return found.get(name), str(found.get("rationale", ""))


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A field that is given twice contradicts itself."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a field is given twice")
    return dict(pairs)
