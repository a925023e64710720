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
from typing import Annotated, Literal

import polars as pl
from pydantic import Field

from factory.options import step
from factory.text import SCRIPTS, dominant, ngrams, normalise, words
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
_LOOP, _LABEL = re.compile(r"(.{1,8}?)\1{15,}", re.DOTALL), re.compile(say.LABEL)


@dataclass(frozen=True, slots=True)
class _Check:
    """When a reason applies, the column that was measured for it and the option it is compared with."""

    reason: Reason
    hit: pl.Expr
    score: str = ""
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
    """Drop every refusal. By default only "As an AI language model, I cannot ..." goes: declining is often right."""

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
            _measured("repeated", facts, _maybe_repeated(self.repeats), lambda prompt, text: repetition(text)),
            _measured("echoed", facts, _maybe_echoed(), echo),
            _measured("mojibake", facts, TEXT.str.contains(say.MAYBE_MOJIBAKE), lambda prompt, text: badness(text)),
            _foreign_shares(facts),
        )
        checks = [check for check in self._checks() if check.reason not in self.ignore]
        facts = facts.with_columns(check.hit.fill_null(False).alias(check.reason) for check in checks)
        return facts.select(
            "id",
            keep=~pl.any_horizontal(check.reason for check in checks) if checks else pl.lit(True),
            reason=_first(checks, lambda check: pl.lit(check.reason), pl.lit("")),
            score=_first(checks, lambda check: pl.col(check.score) if check.score else NOTHING, NOTHING),
            threshold=_first(checks, lambda check: pl.lit(check.threshold, pl.Float64), NOTHING),
            evidence_id=pl.lit(""),
        )

    def _checks(self) -> Iterator[_Check]:
        """The checks in the order in which they are asked."""
        yield _Check("empty", TEXT.str.contains(say.BLANK))
        yield _Check("truncated", _truncated(self.mid_sentence))
        yield _Check("refusal_boilerplate", _refused(self.target, self.drop_refusals))
        if self.target == "completions":
            yield _Check("input_echoed", pl.col("echoed") >= self.echo, "echoed", self.echo)
        yield _Check("repeated_ngrams", pl.col("repeated") >= self.repeats, "repeated", self.repeats)
        yield _Check("broken_encoding", TEXT.str.contains(say.BROKEN) | (pl.col("mojibake") > 0))
        yield _Check("prompt_leakage", _leaked(self.target))
        if self.target == "completions":
            yield _Check("language_mismatch", pl.col("foreign") >= self.foreign, "foreign", self.foreign)


def repetition(text: str) -> float:
    """The share of the 6-word runs of a text that occurred in it before, or of its characters that are in a loop."""
    grams = ngrams(words(text), GRAM)
    loops = [found for found in _LOOP.finditer(text) if any(c.isalnum() or c in "!?！？" for c in found[1])]
    looped = sum(len(found[0]) for found in loops) / (len(text) or 1)  # ruled lines and blanks are layout
    if len(grams) + GRAM - 1 < LEAST_WORDS:
        return looped
    return max(looped, 1 - len(set(grams)) / len(grams))


def echo(prompt: str, text: str) -> float:
    """The share of a completion that is the whole prompt, said first and as a sentence or line of its own.

    "The capital of Spain? Madrid." after "The capital of Spain?" is one; a sentence that opens in the words of the
    prompt, as Chinese answers like to, is none.
    """
    asked, said = _flat(prompt), _flat(text)
    answer = _LABEL.sub("", said)
    closed = asked.endswith((".", "!", "?", "。", "！", "？", ":", "："))
    whole = any(t == asked or t.startswith(asked + "\n") or (closed and t.startswith(asked)) for t in (said, answer))
    return len(asked) / len(said) if whole and len(asked.encode()) >= LEAST_ECHO else 0.0


def _flat(text: str) -> str:
    """The normal form of every line that holds something."""
    return "\n".join(line for line in map(normalise, text.splitlines()) if line)


def badness(text: str) -> float:
    """How many sequences ftfy finds that only a wrong encoding produces."""
    from ftfy.badness import badness  # compiles large patterns

    return float(badness(text))


def _first(checks: Sequence[_Check], value: Callable[[_Check], pl.Expr], otherwise: pl.Expr) -> pl.Expr:
    """The value of the first check that hit."""
    return reduce(
        lambda rest, check: pl.when(check.reason).then(value(check)).otherwise(rest), reversed(checks), otherwise
    )


def _measured(name: str, facts: pl.DataFrame, suspect: pl.Expr, measure: Callable[[str, str], float]) -> pl.Series:
    """What `measure` says of prompt and text of the suspects, null for the others."""
    rows = facts.with_row_index("row").filter(suspect)
    values = [measure(prompt, text) for prompt, text in rows.select("prompt", "text").iter_rows()]
    return _spread(name, len(facts), rows["row"], values)


def _spread(name: str, height: int, rows: pl.Series, values: list[float] | list[float | None]) -> pl.Series:
    """A column of the values at their rows, null elsewhere."""
    return (
        pl.Series(name, [None], pl.Float64).new_from_index(0, height).scatter(rows, pl.Series(values, dtype=pl.Float64))
    )


def _maybe_repeated(least: float) -> pl.Expr:
    """A share of repeated runs bounds the share of distinct words; a loop makes a long run without a blank."""
    tokens = TEXT.str.to_lowercase().str.extract_all(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]|[\p{L}\p{N}\p{M}]+")
    many = tokens.list.len() >= LEAST_WORDS
    few = tokens.list.n_unique() <= tokens.list.len() * (1 - least) + GRAM
    return ((many & few) | TEXT.str.contains(say.STUTTER)) & ~PROMPT.str.contains(say.WANTS_REPEATS)


def _maybe_echoed() -> pl.Expr:
    """An echo has the first characters of the prompt near its own beginning, behind a label at most."""
    first = PROMPT.str.strip_chars().str.head(8).str.to_lowercase()
    near = TEXT.str.strip_chars().str.head(40).str.to_lowercase().str.contains(first, literal=True)
    return near & (PROMPT.str.len_bytes() >= LEAST_ECHO) & ~PROMPT.str.contains(say.WANTS_REPEATS)


def _truncated(mid_sentence: bool) -> pl.Expr:
    cut = pl.col("finish_reason") == "length"
    if not mid_sentence:
        return cut
    ended = TEXT.str.strip_chars()
    line = ended.str.extract(r"([^\n]*)$")
    prose = line.str.contains(say.LONG_LINE) & ~line.str.contains(say.FREE_END) & ~TEXT.str.contains(say.CODE)
    return cut | (prose & TEXT.str.contains(say.SENTENCE) & line.str.contains(say.MID_SENTENCE))


def _refused(target: str, drop_refusals: bool) -> pl.Expr:
    """Boilerplate opens the text. It is excused where the prompt asks about AI, or where it declines to do harm."""
    opening = TEXT.str.head(160)
    unable = opening.str.contains(say.UNABLE)
    boilerplate = (TEXT.str.head(80).str.contains(say.AS_AN_AI) | opening.str.contains(say.I_AM_AN_AI)) & unable
    excused = PROMPT.str.contains(say.ABOUT_AI) | TEXT.str.head(500).str.contains(say.HARM)
    if target == "prompts":  # "As an AI language model, what do you think of ..." is a prompt
        excused = pl.lit(False)
    if drop_refusals:
        return boilerplate | opening.str.contains(say.REFUSAL)
    return boilerplate & ~excused


def _leaked(target: str) -> pl.Expr:
    """Template markers, unless the prompt has them or asks for them."""
    markers, jinja = TEXT.str.contains(say.LEAKED), TEXT.str.contains(say.JINJA)
    if target == "prompts":
        return markers | (jinja & ~TEXT.str.contains(say.WANTS_JINJA))
    templates = (
        PROMPT.str.contains(say.WANTS_JINJA) | PROMPT.str.contains(say.JINJA) | TEXT.str.contains(say.LATEX_OR_CODE)
    )
    turns = TEXT.str.contains(say.TURN) & ~PROMPT.str.contains(say.WANTS_TURNS)
    return (markers & ~PROMPT.str.contains(say.LEAKED)) | (jinja & ~templates) | turns


def _foreign_shares(facts: pl.DataFrame) -> pl.Series:
    """The share of each completion that is not in the language of its prompt; null where that cannot be told."""
    wide = (TEXT.str.len_bytes() != TEXT.str.len_chars()) | (PROMPT.str.len_bytes() != PROMPT.str.len_chars())
    free = ~PROMPT.str.contains(say.WANTS_LANGUAGE) & ~TEXT.str.contains(say.CODE)
    suspects = facts.with_row_index("row").filter(wide & free)
    said = suspects.select(_amounts("text")).iter_rows(named=True)
    asked = suspects.select(_amounts("prompt")).iter_rows(named=True)
    shares = [_foreign(*three) for three in zip(said, asked, suspects["language"], strict=True)]
    return _spread("foreign", len(facts), suspects["row"], shares)


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
