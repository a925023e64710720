"""Rewards: one notation for all that choose or train by them, and how several make one number.

    {rule: exact}                              a rule of `factory.scorers`: exact, answer, contains, regex, json, ...
    {model: reward-model}                      a sequence-classification checkpoint, "@stage" in a spec
    {sql: "refusal::int - words / 100"}        an expression over one answer's columns
    {python: "rewards.py:score"}               a function of yours: prompts, completions -> floats
    {judge: strong, aspects: [helpfulness]}    an engine that scores, or that decides a tournament
    [{rule: exact}, {rule: length, weight: -0.01}]            the weighted sum of several
    {combine: min, of: [{model: helpful}, {model: harmless}]} or their mean, product, minimum, or mean less deviation

This module reads the notation and combines; `factory.scorers` scores. Engines belong to a run, so whoever is given
them scores the `judge` parts.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean, pstdev
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from factory.errors import SpecError, nearest
from factory.records import JudgeKind, Message, Prompt
from factory.text import language, words

_FROZEN = ConfigDict(extra="forbid", frozen=True)
RuleName = Literal["exact", "answer", "contains", "regex", "json", "length", "refusal"]


class Sample(NamedTuple):
    """One answer as a reward sees it: the conversation, what was said, and what is known of the prompt."""

    messages: tuple[Message, ...]
    completion: str
    meta: Mapping[str, Any]

    @staticmethod
    def of(prompt: Prompt, completion: str) -> "Sample":
        """A stored prompt with an answer to it."""
        return Sample(prompt.messages, completion, prompt.meta)

    @property
    def prompt(self) -> str:
        """The last turn: what is answered."""
        return self.messages[-1].content

    @property
    def gold(self) -> str | None:
        """The right answer, where the prompt's `meta` holds one as `answer` or `output`."""
        known = self.meta.get("answer", self.meta.get("output"))
        return None if known is None else str(known)

    @property
    def columns(self) -> dict[str, Any]:
        """What an expression may read."""
        return {
            "prompt": self.prompt,
            "completion": self.completion,
            "answer": self.gold,
            "length": len(self.completion),
            "words": len(words(self.completion)),
            "language": language(self.completion),
            "meta": json.dumps(dict(self.meta), ensure_ascii=False, default=str),
        }


class Rule(BaseModel):
    """A rule. Rules that need the right answer give no score where the prompt has none."""

    model_config = _FROZEN
    rule: RuleName
    weight: float = 1.0
    pattern: str = ""
    words: int = Field(default=0, ge=0)

    @property
    def name(self) -> str:
        return f"rule:{self.rule}"


class Model(BaseModel):
    """A reward model: a sequence-classification checkpoint; `dimension` names one of several that it scores.

    Of an ensemble the score is the heads' mean, the least of them, or their mean less `k` deviations (Coste et al.,
    2023): a policy that learns from it gains nothing where they disagree.
    """

    model_config = _FROZEN
    model: str
    weight: float = 1.0
    dimension: str = ""
    ensemble: Literal["mean", "min", "lower"] = "mean"
    k: float = Field(default=1.0, ge=0)
    batch_size: int = Field(default=32, ge=1)
    max_length: int = Field(default=2048, ge=1)

    @property
    def name(self) -> str:
        return f"model:{Path(self.model).name}"


class Sql(BaseModel):
    """An expression over prompt, completion, answer, length (characters), words, language, meta and refusal."""

    model_config = _FROZEN
    sql: str
    weight: float = 1.0

    @property
    def name(self) -> str:
        return f"sql:{self.sql}"


class Python(BaseModel):
    """A function in a file of the user's own, which is run as it is."""

    model_config = _FROZEN
    python: str
    weight: float = 1.0

    @property
    def name(self) -> str:
        return f"python:{Path(self.python).name}"


class Judge(BaseModel):
    """An engine that judges: the mean of its scores from 1 to 5, or the share of a knock-out's rounds that are won."""

    model_config = _FROZEN
    judge: str
    weight: float = 1.0
    way: Literal["score", "tournament"] = "score"
    aspects: tuple[str, ...] = ("helpfulness",)
    criterion: str = "Which answer is better?"
    max_tokens: int = Field(default=1024, ge=1)
    reference: bool = False
    structured: bool = False

    @property
    def name(self) -> str:
        return f"judge:{self.judge}"


Part = Rule | Model | Sql | Python | Judge
Combine = Literal["sum", "mean", "product", "min", "lower"]
_PARTS: dict[str, type[Part]] = {"rule": Rule, "model": Model, "sql": Sql, "python": Python, "judge": Judge}
_KINDS: dict[type[Part], JudgeKind] = {Rule: "rule", Sql: "rule", Model: "reward", Python: "reward", Judge: "model"}


class Reward(BaseModel):
    """One or several parts, and how they make one number."""

    model_config = _FROZEN
    parts: tuple[Part, ...] = Field(min_length=1)
    combine: Combine = "sum"

    @cached_property
    def name(self) -> str:
        """What the judgements call it: `rule:exact`, or `sum(rule:exact, -0.01 rule:length)`."""
        if len(self.parts) == 1 and self.parts[0].weight == 1:
            return self.parts[0].name
        named = (p.name if p.weight == 1 else f"{p.weight:g} {p.name}" for p in self.parts)
        return f"{self.combine}({', '.join(named)})"

    @property
    def kind(self) -> JudgeKind:
        """Whose opinion it is."""
        return _KINDS[type(self.parts[0])] if len(self.parts) == 1 else "reward"

    @property
    def judges(self) -> tuple[str, ...]:
        """The engines that it asks."""
        return tuple(p.judge for p in self.parts if isinstance(p, Judge))

    @property
    def models(self) -> tuple[str, ...]:
        """The checkpoints that it loads."""
        return tuple(p.model for p in self.parts if isinstance(p, Model))

    def combined(self, scores: Sequence[float | None]) -> float | None:
        """One sample's score of all parts' scores, in their order; None where a part has none or it is no number."""
        if any(s is None or not math.isfinite(s) for s in scores):
            return None
        weighted = [p.weight * s for p, s in zip(self.parts, scores, strict=True) if s is not None]
        if self.combine == "mean":
            return math.fsum(weighted) / (math.fsum(abs(p.weight) for p in self.parts) or 1.0)
        if self.combine == "product":
            return math.prod(weighted)
        if self.combine == "lower":  # the mean less the deviation among several models
            return fmean(weighted) - pstdev(weighted)
        return min(weighted) if self.combine == "min" else math.fsum(weighted)


def parse_reward(raw: object) -> Reward:
    """The notation, as YAML or JSON gives it, checked. Raises SpecError that says what is known."""
    if isinstance(raw, Reward):
        return raw
    if isinstance(raw, Mapping) and {"combine", "of"} & set(raw):
        if extra := set(raw) - {"combine", "of"}:
            raise SpecError(f"reward: no key {min(extra)!r} beside `combine` and `of`; put it into one of the parts")
        return _built(raw.get("of"), str(raw.get("combine", "sum")))
    return _built(raw if isinstance(raw, list | tuple) else [raw], "sum")


RewardOption = Annotated[Reward, BeforeValidator(parse_reward)]  # the type of a step's option


def rewritten(raw: Any, change: Callable[[str, str], str]) -> Any:
    """The notation with what its parts name changed by `change(kind, value)`: a path placed, a "@stage" resolved."""
    if isinstance(raw, list | tuple):
        return [rewritten(part, change) for part in raw]
    if isinstance(raw, Mapping) and "of" in raw:
        return {**raw, "of": rewritten(raw["of"], change)}
    if isinstance(raw, Mapping):
        return {k: change(k, v) if k in _PARTS and isinstance(v, str) else v for k, v in raw.items()}
    return raw


def named(raw: Any) -> list[tuple[str, str]]:
    """What the notation's parts name, as (kind, value): what a result depends on."""
    found = list[tuple[str, str]]()

    def note(kind: str, value: str) -> str:
        found.append((kind, value))
        return value

    rewritten(raw, note)
    return found


def placed(raw: Any, folder: Path) -> Any:
    """The notation with paths taken from `folder`: a function's file, and a model where a folder of that name is."""

    def place(kind: str, value: str) -> str:
        beside = folder / value
        return str(beside) if kind == "python" or (kind == "model" and beside.is_dir()) else value

    return rewritten(raw, place)


def _built(raw: object, combine: str) -> Reward:
    if not isinstance(raw, list | tuple) or not raw:
        raise SpecError("reward: give one such as {rule: exact}, or a list of several")
    if combine not in (known := get_args(Combine)):
        raise SpecError(f"reward: no way {combine!r} to combine; {nearest(combine, list(known))}")
    return Reward(parts=tuple(map(_part, raw)), combine=combine)


def _part(raw: object) -> Part:
    kinds = [k for k in _PARTS if isinstance(raw, Mapping) and k in raw]
    if not isinstance(raw, Mapping) or len(kinds) != 1:
        hint = f"; {nearest(str(next(iter(raw), '')), list(_PARTS))}" if isinstance(raw, Mapping) and not kinds else ""
        raise SpecError(f"reward: a part names one of {', '.join(_PARTS)}; found {raw!r}{hint}")
    try:
        part = _PARTS[kinds[0]].model_validate(dict(raw))
    except ValidationError as error:
        first = error.errors()[0]
        key, known = str(first["loc"][0]), list(_PARTS[kinds[0]].model_fields)
        said = f"no key {key!r}; {nearest(key, known)}" if first["type"].startswith("extra") else first["msg"].lower()
        raise SpecError(f"reward {kinds[0]}: {key}: {said}") from error
    _check(part)
    return part


def _check(part: Part) -> None:
    """What would fail only when the first answers are there."""
    if isinstance(part, Rule) and (part.rule == "regex") != bool(part.pattern):
        raise SpecError("reward rule: `regex` needs a `pattern`, and no other rule has one")
    if isinstance(part, Rule) and part.pattern:
        try:
            re.compile(part.pattern)
        except re.error as error:
            raise SpecError(f"reward rule: the pattern {part.pattern!r} is no regular expression: {error}") from error
    if isinstance(part, Sql):
        from factory.scorers import check_sql

        check_sql(part.sql)
