"""Files of labels: pairs of answers with a known winner, and verdicts that judges gave on them.

JudgeBench (an objective winner, and stored verdicts in both orders), PandaLM (the votes of several people), any
preference dataset that `factory import` reads (`chosen` is the winner), and plain rows: prompt, first, second, label.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from factory.errors import DataError, nearest
from factory.formats import records
from factory.formats.read import rows
from factory.judging.agreement import majority
from factory.records import Completion, Judgement, Outcome, Prompt, user
from factory.text import language

Row = Mapping[str, Any]
SWAPPED: Mapping[Outcome, Outcome] = {"win": "lose", "lose": "win", "tie": "tie", "invalid": "invalid"}

_OUTCOMES: dict[str, Outcome] = {
    **dict.fromkeys(("1", "a", "a>b", "a>>b", "first", "win", "model_a", "left", "response_a", "[[a]]"), "win"),
    **dict.fromkeys(("2", "b", "b>a", "b>>a", "second", "lose", "model_b", "right", "response_b", "[[b]]"), "lose"),
    **dict.fromkeys(("0", "c", "a=b", "b=a", "tie", "equal", "both", "[[c]]", "tie (bothbad)"), "tie"),
}
_KEYS = ("pair_id", "idx", "id", "question_id", "item_id")
_VERDICTS = ("verdict", "gpt_result", "decision", "winner", "judgement", "judgment", "preference", "label")
_LABELS = ("label", "winner", "preference")
_PROMPTS = ("prompt", "instruction", "question", "task")
_SIDES = (
    ("response_A", "response_B"), ("response1", "response2"), ("first", "second"), ("output_1", "output_2"),
    ("response_a", "response_b"), ("answer_a", "answer_b"),
)  # fmt: skip


@dataclass(frozen=True)
class Said:
    """One verdict on an item: how the item's first answer fared. `shown` is which answer stood first, 0 or 1."""

    outcome: Outcome
    shown: int | None = None


@dataclass(frozen=True)
class Item:
    """Two answers to one prompt with the readable votes of raters, and what judges in the same file said of them."""

    prompt: Prompt
    one: Completion
    other: Completion
    votes: Mapping[str, Outcome]
    said: Mapping[str, tuple[Said, ...]]
    row: Row

    @property
    def truth(self) -> Outcome | None:
        """What most raters say; None where no outcome leads."""
        return majority(self.votes.values())  # type: ignore[return-value]

    def judgements(self) -> Iterator[Judgement]:
        """The votes as rows of the store."""
        kind, raters = ("rule", ["dataset"]) if list(self.votes) == ["label"] else ("human", list(self.votes))
        for rater, vote in zip(raters, self.votes.values(), strict=True):
            yield Judgement(self.prompt.id, self.one.id, rater, kind, self.other.id, verdict=vote)  # type: ignore[arg-type]


def gold(path: Path) -> list[Item]:
    """The pairs of a file, those without a readable label too, for verdicts may come in their order. Raises DataError
    where none has one."""
    found = [item for row in rows(path) if (item := _item(row))]
    items = found or _preferences(path)
    if not any(item.votes for item in items):
        raise DataError(f"{path}: no labelled pairs of answers; give prompt, first, second and label (1, 2 or 0)")
    return items


def stored(path: Path, items: Sequence[Item], column: str = "") -> list[tuple[Said, ...]]:
    """A judge's stored verdicts, one tuple for each item: rows with the items' key, or as many rows in their order."""
    found = list(rows(path))
    if not found:
        raise DataError(f"{path}: no rows")
    judges = {judge for row in found for judge in _games(row)}
    if judges and not column:
        said = [next(iter(_games(row).values()), ()) for row in found]
    else:
        name = column or _first(_VERDICTS, found[0])
        if name not in found[0]:
            hint = nearest(name, list(found[0]))
            raise DataError(f"{path}: no column {name!r} with verdicts; {hint}; name it with --column")
        said = [(Said(outcome_of(row.get(name))),) for row in found]
    return _matched(path, found, said, items)


def outcome_of(value: object) -> Outcome:
    """What a label says of the first answer. Anything but a known label is invalid."""
    return _OUTCOMES.get(str(value).strip().lower(), "invalid")


def _matched(
    path: Path, found: Sequence[Row], said: Sequence[tuple[Said, ...]], items: Sequence[Item]
) -> list[tuple[Said, ...]]:
    shared = [k for k in _KEYS if all(k in row for row in found) and all(k in item.row for item in items)]
    for key in shared:
        ours, theirs = [str(item.row[key]) for item in items], [str(row[key]) for row in found]
        if len(set(ours)) == len(ours) and len(set(theirs)) == len(theirs):
            by_key = dict(zip(theirs, said, strict=True))
            return [by_key.get(name, ()) for name in ours]
    for (
        key
    ) in shared:  # a key that repeats names no pair; but in the same order in both files it speaks for their order
        if [str(item.row[key]) for item in items] != [str(row[key]) for row in found]:
            raise DataError(
                f"{path}: several rows have the same {key!r}, and the two files are not in the same order: "
                "give both files a column `id` that no two rows share"
            )
    if len(found) != len(items):
        raise DataError(
            f"{path}: {len(found)} verdicts for {len(items)} pairs and no common id: give both files a column `id`"
        )
    return list(said)


def _item(row: Row) -> Item | None:
    """A row with a prompt, two sides and a label or several raters' votes; None for any other."""
    sides = next((s for s in _SIDES if s[0] in row and s[1] in row), None)
    asked = _first(_PROMPTS, row)
    people, label = [name for name in row if name.startswith("annotator")], _first(_LABELS, row)
    if not sides or not asked or not (people or label):
        return None
    votes = _votes({name: row[name] for name in people}) or _votes({"label": row.get(label)})
    text = f"{row[asked]}\n{row['input']}" if row.get("input") else str(row[asked])
    prompt = Prompt(user(text), language=language(text))
    models = str(row.get("cmp_key", "")).split("_")  # PandaLM: two models may say the same
    models = models if len(models) == 2 else [str(row.get("response_model") or side) for side in sides]
    one, other = (Completion(prompt.id, str(row[s]), m) for s, m in zip(sides, models, strict=True))
    return Item(prompt, one, other, votes, _games(row), row)


def _votes(told: Mapping[str, object]) -> dict[str, Outcome]:
    """What raters said, without what cannot be read: an unreadable label is no truth that a judge could meet."""
    return {name: outcome for name, value in told.items() if (outcome := outcome_of(value)) != "invalid"}


def _games(row: Row) -> dict[str, tuple[Said, ...]]:
    """JudgeBench's stored verdicts: the second game has the answers swapped, and calls its own first one A."""
    games = row.get("judgments")
    if not isinstance(games, list):
        return {}
    outcomes = [outcome_of(g["decision"] if isinstance(g, Mapping) else None) for g in games]
    judge = str(row.get("judge_name") or "judge")
    if games and isinstance(games[0], Mapping) and isinstance(games[0].get("judgment"), Mapping):
        judge = str(games[0]["judgment"].get("judge_model") or judge)
    return {judge: tuple(Said(SWAPPED[o] if i % 2 else o, i % 2) for i, o in enumerate(outcomes))}


def _preferences(path: Path) -> list[Item]:
    """Any preference dataset: its own pairwise judgements are the labels. Every other winner is named second, for a
    judge who always says the first must not look right."""
    seen = list[Any]()
    texts: dict[str, Any] = {}
    for record in records(path):
        if isinstance(record, Prompt | Completion):
            texts[record.id] = record
        elif isinstance(record, Judgement) and record.other_id and record.verdict not in (None, "invalid"):
            seen.append(record)
    return [_turned(texts, opinion) for opinion in seen]


def _turned(texts: Mapping[str, Any], opinion: Judgement) -> Item:
    prompt, one, other = (texts[i] for i in (opinion.prompt_id, opinion.completion_id, opinion.other_id))
    votes: dict[str, Outcome] = {"label": opinion.verdict or "invalid"}
    item = Item(prompt, one, other, votes, {}, prompt.meta)
    if int(max(one.id, other.id)[-1], 16) % 2:  # the same whichever of the two is named first
        return replace(item, one=other, other=one, votes={"label": SWAPPED[votes["label"]]})
    return item


def _first(names: Iterable[str], row: Row) -> str:
    return next((n for n in names if n in row), "")
