"""Drops what no one should learn from: broken, unfinished, parroting or runaway text, each with a named reason.

The reasons are the failures of generated instruction data, not of web pages: the rules of Gopher (Rae et al. 2021,
table A1) and C4 judge documents and throw out code, lists and short answers. Of these only the repeated n-grams stay.

Rules are tuned for precision: a row is dropped only if it is bad in itself, whatever it was asked. So a correct short
answer that occurs in the prompt is no echo, a dialogue that was asked for is no leaked template, and an answer in
another language than the prompt is fine where the prompt speaks of languages. Cheap expressions over the whole frame
find the suspects; only these are looked at one by one.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import Field

from factory.options import step
from factory.text import SCRIPTS, dominant, ngrams, words
from filters import _phrases as say

Reason = Literal[
    "empty",
    "truncated",
    "refusal_boilerplate",
    "input_echoed",
    "repeated_ngrams",
    "broken_encoding",
    "prompt_leakage",
    "language_mismatch",
]
Share = Annotated[float, Field(ge=0, le=1)]

TEXT, PROMPT = pl.col("text"), pl.col("prompt")
NOTHING = pl.lit(None, pl.Float64)
GRAM = 6  # words: so long that lists, songs and worked sums repeat few of them
LEAST_WORDS = 24  # shorter texts repeat themselves by chance
LEAST_ECHO = 16  # bytes of the prompt: a greeting may be returned
LEAST_FOREIGN = 8.0  # words: a shorter answer may be a name, a term or a formula
PURE = 0.9  # share of the prompt that must be in one language before the answer's language is judged
_LOOP = re.compile(r"(.{1,8}?)\1{15,}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Check:
    """When a reason applies, what was measured and the option it is compared with."""

    reason: Reason
    hit: pl.Expr
    score: pl.Expr | None = None
    threshold: float | None = None


@step
class Denoise:
    """Drop broken records; the first reason that applies is given.

    In this order: empty, truncated, refusal_boilerplate, input_echoed, repeated_ngrams, broken_encoding,
    prompt_leakage, language_mismatch. Echo and language compare with the prompt, so they are not asked of prompts.
    """

    target: Literal["prompts", "completions"] = "completions"
    """Which records to look at."""

    ignore: tuple[Reason, ...] = ()
    """Reasons not to look for."""

    mid_sentence: bool = False
    """Also call a text truncated that ends in the middle of a sentence, whatever its finish reason says."""

    drop_refusals: bool = False
    """Drop every refusal. By default only "As an AI language model, I ..." goes: declining is often right."""

    echo: Share = 0.2
    """Share of a completion that only repeats the prompt, from 0 to 1, from which on it is an echo."""

    repeats: Share = 0.5
    """Share of a text's 6-word runs that occurred in it before, from 0 to 1, from which on it is repetition."""

    foreign: Share = 0.9
    """Share of a completion in another language than its prompt, from 0 to 1, from which on it is a mismatch."""

    def screen(self, frame: pl.DataFrame) -> pl.DataFrame:
        """One verdict per row, in the order of the rows."""
        facts = frame.with_columns(TEXT.fill_null(""), PROMPT.fill_null(""), pl.col("language").fill_null(""))
        facts = facts.with_columns(
            _measured(facts, "repeated", _maybe_repeated(), repetition, pl.Float64),
            _measured(facts, "mojibake", TEXT.str.contains(say.MAYBE_MOJIBAKE), is_mojibake, pl.Boolean),
            _foreign_shares(facts),
        )
        checks = [check for check in self._checks() if check.reason not in self.ignore]
        reason = _first(checks, lambda check: pl.lit(check.reason), pl.lit(""))
        return facts.select(
            "id",
            keep=reason == "",
            reason=reason,
            score=_first(checks, lambda check: NOTHING if check.score is None else check.score, NOTHING),
            threshold=_first(checks, lambda check: pl.lit(check.threshold, pl.Float64), NOTHING),
            evidence_id=pl.lit(""),
        )

    def _checks(self) -> Iterator[_Check]:
        """The checks in the order in which they are asked."""
        repeated, echoed, foreign = pl.col("repeated"), _echoed(), pl.col("foreign")
        yield _Check("empty", TEXT.str.contains(say.BLANK))
        yield _Check("truncated", _truncated(self.mid_sentence))
        yield _Check("refusal_boilerplate", _refused(self.target, self.drop_refusals))
        if self.target == "completions":
            yield _Check("input_echoed", echoed >= self.echo, echoed, self.echo)
        yield _Check("repeated_ngrams", repeated >= self.repeats, repeated, self.repeats)
        yield _Check("broken_encoding", TEXT.str.contains(say.BROKEN) | pl.col("mojibake"))
        yield _Check("prompt_leakage", _leaked(self.target))
        if self.target == "completions":
            yield _Check("language_mismatch", foreign >= self.foreign, foreign, self.foreign)


def repetition(text: str) -> float:
    """The share of the 6-word runs of a text that occurred in it before, or of its characters that are in a loop."""
    grams = ngrams(words(text), GRAM)
    looped = sum(len(loop.group()) for loop in _LOOP.finditer(text)) / (len(text) or 1)
    if len(grams) + GRAM - 1 < LEAST_WORDS:
        return looped
    return max(looped, 1 - len(set(grams)) / len(grams))


def is_mojibake(text: str) -> bool:
    """Whether the text was decoded with the wrong encoding, as ftfy judges."""
    from ftfy.badness import is_bad  # compiles large patterns

    return bool(is_bad(text))


def _first(checks: Sequence[_Check], value: Callable[[_Check], pl.Expr], otherwise: pl.Expr) -> pl.Expr:
    """The value of the first check that hits."""
    hits = ((check.hit.fill_null(False), value(check)) for check in reversed(checks))
    return reduce(lambda rest, found: pl.when(found[0]).then(found[1]).otherwise(rest), hits, otherwise)


def _measured(
    facts: pl.DataFrame, name: str, suspect: pl.Expr, measure: Callable[[str], Any], dtype: type[pl.DataType]
) -> pl.Series:
    """What `measure` says of the suspect texts, null for the others."""
    rows = facts.select(suspect.fill_null(False).arg_true()).to_series()
    values = [measure(text) for text in facts["text"].gather(rows)]
    return pl.Series(name, [None], dtype).new_from_index(0, len(facts)).scatter(rows, pl.Series(values, dtype=dtype))


def _maybe_repeated() -> pl.Expr:
    """A text can only repeat much if it has few distinct words for its length, or a long run without a blank."""
    tokens = TEXT.str.to_lowercase().str.extract_all(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]|[\p{L}\p{N}\p{M}]+")
    many = tokens.list.len() >= LEAST_WORDS
    few = tokens.list.n_unique() <= tokens.list.len() * 0.6 + GRAM
    return ((many & few) | TEXT.str.contains(say.STUTTER)) & ~PROMPT.str.contains(say.WANTS_REPEATS)


def _truncated(mid_sentence: bool) -> pl.Expr:
    cut = pl.col("finish_reason") == "length"
    if not mid_sentence:
        return cut
    ended = TEXT.str.strip_chars()
    line = ended.str.extract(r"([^\n]*)$")
    prose = line.str.contains(say.LONG_LINE) & ~line.str.contains(say.LIST_ITEM) & ~TEXT.str.contains(say.CODE)
    return cut | (prose & TEXT.str.contains(say.SENTENCE) & line.str.contains(say.MID_SENTENCE))


def _refused(target: str, drop_refusals: bool) -> pl.Expr:
    """Boilerplate opens the text. It is excused where the prompt asks about AI, or where it declines to do harm."""
    opening = TEXT.str.head(160)
    unable = opening.str.contains(say.UNABLE)
    as_an_ai = TEXT.str.head(80).str.contains(say.AS_AN_AI)
    boilerplate = as_an_ai | (opening.str.contains(say.I_AM_AN_AI) & unable)
    excused = PROMPT.str.contains(say.ABOUT_AI) | TEXT.str.head(500).str.contains(say.HARM)
    if target == "prompts":  # "As an AI language model, what do you think of ..." is a prompt
        boilerplate, excused = boilerplate & unable, pl.lit(False)
    if drop_refusals:
        return boilerplate & (unable | ~excused) | opening.str.contains(say.REFUSAL)
    return boilerplate & ~excused


def _echoed() -> pl.Expr:
    """The share of the completion that is the whole prompt, said first and as a sentence or line of its own."""
    asked, said = _flat(PROMPT), _flat(TEXT)
    unlabelled = said.str.replace(say.LABEL, "")
    closed = asked.str.contains(r"[.!?。！？:：]$")
    starts = [
        (text == asked) | (closed & text.str.starts_with(asked)) | text.str.starts_with(asked + "\n")
        for text in (said, unlabelled)
    ]
    echo = (starts[0] | starts[1]) & (asked.str.len_bytes() >= LEAST_ECHO) & ~PROMPT.str.contains(say.WANTS_REPEATS)
    return pl.when(echo).then(asked.str.len_chars() / said.str.len_chars())


def _flat(text: pl.Expr) -> pl.Expr:
    """Lower case with single blanks and line breaks."""
    return (
        text.str.strip_chars().str.to_lowercase().str.replace_all(r"[^\S\n]+", " ").str.replace_all(r"\s*\n\s*", "\n")
    )


def _leaked(target: str) -> pl.Expr:
    """Template markers, unless the prompt has them or asks for them."""
    markers, jinja = TEXT.str.contains(say.LEAKED), TEXT.str.contains(say.JINJA)
    if target == "prompts":
        return markers | (jinja & ~TEXT.str.contains(say.WANTS_JINJA))
    templates = PROMPT.str.contains(say.WANTS_JINJA) | PROMPT.str.contains(say.JINJA) | TEXT.str.contains("```")
    turns = TEXT.str.contains(say.TURN) & ~PROMPT.str.contains(say.WANTS_TURNS)
    return (markers & ~PROMPT.str.contains(say.LEAKED)) | (jinja & ~templates) | turns


def _foreign_shares(facts: pl.DataFrame) -> pl.Series:
    """The share of each completion that is not in the language of its prompt; null where that cannot be told."""
    wide = (TEXT.str.len_bytes() != TEXT.str.len_chars()) | (PROMPT.str.len_bytes() != PROMPT.str.len_chars())
    free = ~PROMPT.str.contains(say.WANTS_LANGUAGE) & ~TEXT.str.contains(say.CODE)
    suspects = facts.with_row_index("row").filter(wide & free)
    shares = [
        _foreign(*amounts, language)
        for *amounts, language in zip(
            suspects.select(_amounts("text")).iter_rows(named=True),
            suspects.select(_amounts("prompt")).iter_rows(named=True),
            suspects["language"],
            strict=True,
        )
    ]
    empty = pl.Series("foreign", [None], pl.Float64).new_from_index(0, len(facts))
    return empty.scatter(suspects["row"], pl.Series(shares, dtype=pl.Float64))


def _amounts(column: str) -> list[pl.Expr]:
    """How much of each script a text holds, by the same table as factory.text.language."""
    return [(pl.col(column).str.count_matches(found) * weight).alias(name) for name, (found, weight) in SCRIPTS.items()]


def _foreign(said: dict[str, float], asked: dict[str, float], language: str) -> float | None:
    """The share of `said` outside the prompt's language, both the one it is labelled with and the one it is in."""
    total, prompt = sum(said.values()), sum(asked.values())
    own = _scripts(dominant(asked))
    if total < LEAST_FOREIGN or not own or sum(asked[name] for name in own) < PURE * prompt:
        return None
    own |= _scripts(language.split("-")[0].lower())
    return 1 - sum(said[name] for name in own) / total


def _scripts(language: str) -> set[str]:
    """The scripts a language is written in; none if it is not one that scripts tell."""
    written = {"zh": {"han"}, "ja": {"han", "kana"}, "ko": {"ko"}, "ru": {"ru"}, "ar": {"ar"}, "en": {"en"}}
    return set(written.get(language, ()))
