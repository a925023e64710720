"""The rules of `denoise`: a cheap gate over every row, and what is looked for in the few rows that it lets through.

A gate may be wrong in one direction only: it is true wherever its rule applies. That keeps the whole pass at a scan
for literal strings and a few looks at the beginning and the end of each text; regexes, JSON and n-grams see suspects.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import polars as pl

from factory.text import SCRIPTS, dominant, ngrams, normalise, words
from filters import _phrases as say

Target = Literal["prompts", "completions", "pairs"]
Measure = Callable[[pl.DataFrame], pl.Series]

TEXT, PROMPT = pl.col("text"), pl.col("prompt")
_WIDE = TEXT.str.len_bytes() != TEXT.str.len_chars()
GRAM = 6  # words: so long that lists, songs and worked sums repeat few of them
LEAST_WORDS = 24  # shorter texts repeat themselves by chance
LEAST_LINES = 6
LEAST_ECHO = 16  # bytes of the prompt: a greeting may be returned
LEAST_FOREIGN = 8.0  # words: a shorter answer may be a name, a term or a formula
LEAST_SIGNS = 24
PURE = 0.9  # share of the prompt that must be in one language before the answer's language is judged
_LOOP, _LABEL = re.compile(r"(.{1,8}?)\1{15,}", re.DOTALL), re.compile(say.LABEL)
# Where a loop can be that words do not show: CJK characters are words of their own.
_UNBROKEN = re.compile(r"[!-~]{32}|[。！？，、…～]{16}|([^\s=_-])\1{15}")
_PLACES = (0.45, 0.6, 0.75, 0.9)  # where a text is sounded for what it said before
_CLOSER = tuple(0.1 + 0.07 * place for place in range(13))


@dataclass(frozen=True, slots=True)
class Rule:
    """When a reason applies: rows of the gate whose score reaches the threshold."""

    reason: str
    gate: pl.Expr
    score: Measure
    threshold: float = 1.0
    by_prompt: bool = False
    """Whether the prompt is the evidence, not the text itself."""


def found(hit: pl.Expr) -> Measure:
    """A rule that holds or does not: 1 or 0."""
    return lambda rows: rows.select(hit.fill_null(False).cast(pl.Float64).alias("score")).to_series()


def measured(measure: Callable[[str, str], float], due: pl.Expr) -> Measure:
    """What `measure` says of prompt and text, row by row, where it is due."""

    def scores(rows: pl.DataFrame) -> pl.Series:
        here = rows.with_row_index("place").filter(due.fill_null(False))
        said = [measure(*pair) for pair in here.select("prompt", "text").iter_rows()]
        return _nothing(len(rows)).scatter(here["place"], pl.Series(said, dtype=pl.Float64))

    return scores


def _nothing(height: int) -> pl.Series:
    return pl.zeros(height, pl.Float64, eager=True).alias("score")


def _holds(column: pl.Expr, strings: tuple[str, ...]) -> pl.Expr:
    """Whether any of the strings occurs: one scan for all of them, ASCII letters of either case."""
    return column.str.contains_any(list(strings), ascii_case_insensitive=True)


# Two rules share one scan: Polars computes an expression once, however often it is named.
_COARSE = TEXT.str.contains(f"{say.CONTROL}|{say.ENDLESS}")


# -- empty and unfinished ----------------------------------------------------------------------------------------------


def empty() -> Rule:
    short = TEXT.str.len_bytes() <= say.LONGEST_BLANK
    blank = TEXT.str.head(say.LONGEST_BLANK).str.contains(r"^[\s\p{Cc}\p{Cf}]*$")
    return Rule("empty", short | blank, found(TEXT.str.contains(say.BLANK)))


def truncated(target: Target, mid_sentence: bool) -> Rule:
    """Cut at the token limit, or behind a word that ends no sentence; on request behind any word."""
    cut = (pl.col("finish_reason") == "length").fill_null(False)
    dangling = TEXT.str.tail(24).str.contains(say.DANGLING) if target != "prompts" else pl.lit(False)
    free = TEXT.str.contains(say.CODE) | PROMPT.str.contains(say.FREE_ORDER)
    hit = dangling & ~free & (TEXT.str.count_matches(r"\p{Han}|[^\s\p{Han}]+") >= 5)
    if not mid_sentence:
        return Rule("truncated", cut | dangling, found(cut | hit))
    ended = TEXT.str.strip_chars()
    line = ended.str.extract(r"([^\n]*)$")
    prose = line.str.contains(say.LONG_LINE) & ~line.str.contains(say.FREE_END) & ~TEXT.str.contains(say.CODE)
    stopped = prose & TEXT.str.contains(say.SENTENCE) & line.str.contains(say.MID_SENTENCE)
    open_end = TEXT.str.strip_chars_end().str.tail(1).str.contains(say.MID_SENTENCE)
    return Rule("truncated", cut | dangling | open_end, found(cut | hit | stopped))


def unfinished_list() -> Rule:
    """A mark with no item behind it after other items, or a list that was announced and never came."""
    end = TEXT.str.tail(80)
    bare = end.str.contains(say.BARE_ITEM) & TEXT.str.contains(say.EARLIER_ITEM)
    announced = end.str.contains(say.ANNOUNCED) & ~PROMPT.str.contains(say.FREE_ORDER)
    gate = TEXT.str.tail(8).str.contains(r"(?:\d[.)、．]|[-*•:：])\s*$")
    return Rule("unfinished_list", gate, found((bare | announced) & ~TEXT.str.contains(say.CODE)))


# -- refusals ----------------------------------------------------------------------------------------------------------


def refused(target: Target, drop_refusals: bool) -> Rule:
    """Boilerplate opens the text. It is excused where the prompt asks about AI, or where it declines to do harm."""
    opening = TEXT.str.head(160)
    boilerplate = TEXT.str.head(80).str.contains(say.AS_AN_AI) | opening.str.contains(say.I_AM_AN_AI)
    boilerplate &= opening.str.contains(say.UNABLE)
    excused = PROMPT.str.contains(say.ABOUT_AI) | TEXT.str.head(500).str.contains(say.HARM)
    if target == "prompts":  # "As an AI language model, what do you think of ..." is a prompt
        excused = pl.lit(False)
    hit = (boilerplate & ~excused) | (opening.str.contains(say.NOT_DONE) & ~TEXT.str.head(500).str.contains(say.HARM))
    if drop_refusals:
        hit = boilerplate | opening.str.contains(say.REFUSAL) | hit
    gate = _holds(opening, say.OPENS_REFUSAL)
    return Rule("refusal_boilerplate", gate, found(hit))


# -- what repeats ------------------------------------------------------------------------------------------------------


def echoed(least: float) -> Rule:
    first = 8
    same = TEXT.str.head(first).str.to_lowercase() == PROMPT.str.head(first).str.to_lowercase()
    labelled = TEXT.str.head(24).str.contains(r"^\s|(?i)" + say.LABEL)
    gate = same | labelled | PROMPT.str.head(1).str.contains(r"\s")
    gate &= (PROMPT.str.len_bytes() >= LEAST_ECHO) & (TEXT.str.len_bytes() * 3 >= PROMPT.str.len_bytes())
    due = _opening(TEXT, 56).str.contains(_opening(PROMPT, 16), literal=True) & ~PROMPT.str.contains(say.WANTS_REPEATS)
    return Rule("input_echoed", gate, measured(echo, due), least, by_prompt=True)


def _opening(column: pl.Expr, size: int) -> pl.Expr:
    """The first characters, in lower case and without blanks."""
    return column.str.strip_chars_start().str.head(96).str.replace_all(r"\s+", "").str.head(size).str.to_lowercase()


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


def repeated_ngrams(least: float) -> Rule:
    """Gopher's repeated n-grams. A text that repeats itself says at one of four places what it said before, and at four
    of thirteen: so did all but 2 of 2,264 real texts that had been made to repeat half of themselves, or more, in eight
    ways. Lower thresholds look at every text."""
    again = _said_before(_PLACES, 32, 14) >= 1  # needles of up to 32 bytes are found twice as fast
    gate = (again | pl.lit(least < 0.5)) & (TEXT.str.len_bytes() >= 16)
    due = ((_said_before(_CLOSER, 20, 8) >= 4) | pl.lit(least < 0.5)) & ~PROMPT.str.contains(say.WANTS_REPEATS)
    return Rule("repeated_ngrams", gate, measured(lambda prompt, text: repetition(text), due), least)


def _said_before(places: tuple[float, ...], plain: int, wide: int) -> pl.Expr:
    """At how many places, as shares of the text, its next so many characters stand before them."""
    size = TEXT.str.len_chars()
    width = pl.when(size < 160).then(size // 8 + 2).when(_WIDE).then(wide).otherwise(plain)
    at = [(size * place).cast(pl.Int64) for place in places]
    return pl.sum_horizontal(TEXT.str.head(n).str.contains(TEXT.str.slice(n, width), literal=True) for n in at)


def repetition(text: str) -> float:
    """The share of the 6-word runs of a text that occurred in it before, or of its characters that are in a loop."""
    grams = ngrams(words(text), GRAM)
    loops = _LOOP.finditer(text) if any(len(t) >= 16 for t in text.split()) and _UNBROKEN.search(text) else ()
    real = [loop[0] for loop in loops if any(c.isalnum() or c in "!?！？" for c in loop[1])]  # ruled lines are layout
    looped = sum(map(len, real)) / (len(text) or 1)
    if len(grams) + GRAM - 1 < LEAST_WORDS:
        return looped
    return max(looped, 1 - len(set(grams)) / len(grams))


def repeated_lines(least: float) -> Rule:
    """Gopher's duplicate lines, for lists that say an item again and again."""
    free = PROMPT.str.contains(say.REFRAIN) | PROMPT.str.contains(say.WANTS_REPEATS) | TEXT.str.contains(say.CODE)
    gate = TEXT.str.count_matches("\n", literal=True) >= LEAST_LINES - 1

    def scores(rows: pl.DataFrame) -> pl.Series:
        shares = _same_lines(rows["text"])
        doubtful = (shares >= least).arg_true()
        excused = rows[doubtful].select(free).to_series()
        return shares.scatter(doubtful.filter(excused), 0.0)

    return Rule("repeated_lines", gate, scores, least)


def _same_lines(texts: pl.Series) -> pl.Series:
    """The share of each text's lines, taken from behind their numbers and bullets, that were there before."""
    bare = pl.col("line").str.strip_chars_start("0123456789.)、*•- \t")
    lines = texts.str.split("\n").alias("line").to_frame().with_row_index("place").explode("line")
    lines = lines.select("place", bare).filter(pl.col("line").str.len_bytes() > 3)
    counts = lines.group_by("place").agg(all=pl.len(), new=pl.col("line").n_unique())
    counted = counts.filter(pl.col("all") >= LEAST_LINES)
    return _nothing(len(texts)).scatter(counted["place"], counted.select(1 - pl.col("new") / pl.col("all")).to_series())


# -- encoding and language ---------------------------------------------------------------------------------------------


def broken_encoding() -> Rule:
    def scores(rows: pl.DataFrame) -> pl.Series:
        broken = rows.select(TEXT.str.contains(say.BROKEN).cast(pl.Float64).alias("score")).to_series()
        maybe = rows.select(TEXT.str.contains(say.MAYBE_MOJIBAKE)).to_series().arg_true()
        worse = [max(float(badness(text)), sign) for text, sign in zip(rows["text"][maybe], broken[maybe], strict=True)]
        return broken.scatter(maybe, pl.Series(worse, dtype=pl.Float64))

    return Rule("broken_encoding", _WIDE | _COARSE, scores)


def badness(text: str) -> int:
    """How many sequences ftfy finds that only a wrong encoding produces."""
    from ftfy.badness import badness  # compiles large patterns

    return int(badness(text))


def language_mismatch(least: float) -> Rule:
    """Scripts show in the bytes a character takes: rows where both sides are nearly all ASCII are of one language."""
    plain = [side.str.len_bytes() <= 1.05 * side.str.len_chars() for side in (TEXT, PROMPT)]
    free = PROMPT.str.contains(say.WANTS_LANGUAGE) | TEXT.str.contains(say.CODE)

    def scores(rows: pl.DataFrame) -> pl.Series:
        due = rows.with_row_index("place").filter(pl.lit(least < 0.8) | ~_both_chinese()).filter(~free)
        said = due.select(_amounts("text")).iter_rows(named=True)
        asked = due.select(_amounts("prompt")).iter_rows(named=True)
        shares = [_foreign(*three) for three in zip(said, asked, due["language"], strict=True)]
        return _nothing(len(rows)).scatter(due["place"], pl.Series(shares, dtype=pl.Float64))

    return Rule("language_mismatch", ~(plain[0] & plain[1]), scores, least, by_prompt=True)


def _both_chinese() -> pl.Expr:
    """Whether half of the bytes of both sides are Han, as in most Chinese rows: then neither is foreign."""
    runs = f"{SCRIPTS['han'][0]}+"  # taken out run by run, which is faster than counting character by character
    return pl.all_horizontal(
        side.str.replace_all(runs, "").str.len_bytes() * 2 <= side.str.len_bytes() for side in (TEXT, PROMPT)
    )


def _amounts(column: str) -> list[pl.Expr]:
    """How much of each script a text holds, by the same table as factory.text.language."""
    return [(pl.col(column).str.count_matches(found) * weight).alias(name) for name, (found, weight) in SCRIPTS.items()]


def _foreign(said: dict[str, float], asked: dict[str, float], language: str) -> float:
    """The share of `said` outside the prompt's language, both the one it is labelled with and the one it is in."""
    total, prompt = sum(said.values()), sum(asked.values())
    own = _scripts(dominant(asked))
    if total < LEAST_FOREIGN or not own or sum(asked[name] for name in own) < PURE * prompt:
        return 0.0
    own |= _scripts(language.split("-")[0].lower())
    return 1 - sum(said[name] for name in own) / total


def _scripts(language: str) -> set[str]:
    """The scripts a language is written in; none if it is not one that scripts tell."""
    written = {"zh": {"han"}, "ja": {"han", "kana"}, "ko": {"ko"}, "ru": {"ru"}, "ar": {"ar"}, "en": {"en"}}
    return set(written.get(language, ()))


# -- residue -----------------------------------------------------------------------------------------------------------


def prompt_leakage(target: Target) -> Rule:
    """Template markers, unless the prompt has them or asks for them."""
    markers, jinja = TEXT.str.contains(say.LEAKED), TEXT.str.contains(say.JINJA)
    turn = TEXT.str.contains(say.TURN)
    if target == "prompts":
        return Rule(
            "prompt_leakage", markers | jinja | turn, found(markers | (jinja & ~TEXT.str.contains(say.WANTS_JINJA)))
        )
    templates = (
        PROMPT.str.contains(say.WANTS_JINJA) | PROMPT.str.contains(say.JINJA) | TEXT.str.contains(say.LATEX_OR_CODE)
    )
    turns = turn & ~PROMPT.str.contains(say.WANTS_TURNS)
    hit = (markers & ~PROMPT.str.contains(say.LEAKED)) | (jinja & ~templates) | turns
    return Rule("prompt_leakage", markers | jinja | turn, found(hit))


def input_marker() -> Rule:
    """The prompt ends in what stood for no input in some template: "<no input>"."""
    gate = _holds(PROMPT.str.tail(24), ("input", "none", "n/a", "not app", "无", "空"))
    return Rule("input_marker", gate, found(PROMPT.str.contains(say.NO_INPUT)), by_prompt=True)


def missing_input() -> Rule:
    """The prompt ends in a stub ("[Image of a website]") or in a bare link, so its answer is made up."""
    link = PROMPT.str.contains(say.BARE_LINK) & ~PROMPT.str.contains(say.ABOUT_LINKS)
    gate = _holds(PROMPT.str.tail(4), say.CLOSERS) | PROMPT.str.contains(say.ANY_LINK)
    return Rule("missing_input", gate, found(PROMPT.str.contains(say.STUB) | link), by_prompt=True)


def placeholder() -> Rule:
    """An answer that only stands for one: "[Image of a logo]"."""
    gate = _holds(TEXT.str.head(12), say.STUB_OPENS) & (TEXT.str.len_bytes() <= 512)
    return Rule("placeholder", gate, found(TEXT.str.contains(say.STANDS_FOR) & ~PROMPT.str.contains(say.WANTS_MARKUP)))


def web_residue() -> Rule:
    """C4's rules of page furniture: lorem ipsum, JavaScript warnings, cookie notices."""
    return Rule(
        "web_residue",
        TEXT.str.contains(say.WEB),
        found(TEXT.str.contains(say.WEB) & ~PROMPT.str.contains(say.WANTS_WEB)),
    )


# -- markup, signs -----------------------------------------------------------------------------------------------------


def broken_markdown() -> Rule:
    """A code block that is opened and not closed."""
    odd = TEXT.str.count_matches(r"(?m)^[ \t]*```") % 2 == 1
    return Rule("broken_markdown", TEXT.str.contains(say.FENCE, literal=True), found(odd))


def broken_json() -> Rule:
    """JSON was asked for, and what looks like it cannot be parsed."""
    gate = _holds(PROMPT, ("json",))
    return Rule("broken_json", gate, measured(_unparsable, PROMPT.str.contains(say.WANTS_JSON)), by_prompt=True)


def _unparsable(prompt: str, text: str) -> float:
    fenced = re.search(r"```(?:json)?[ \t]*\n(.*?)```", text, re.DOTALL | re.IGNORECASE)
    body = (fenced[1] if fenced else text).strip()
    if not body.startswith(("{", "[")):
        return 0.0
    try:
        json.loads(body, strict=False)
    except (ValueError, RecursionError):
        return 1.0
    return 0.0


def only_signs(least: float = 0.75) -> Rule:
    """Gopher's share of words, for a text that is hardly more than punctuation."""
    seen = TEXT.str.count_matches(r"\S")
    share = 1 - TEXT.str.count_matches(r"[\p{L}\p{N}]") / seen.clip(1)
    gate = ~TEXT.str.head(64).str.contains(say.WORD) & (TEXT.str.len_bytes() >= LEAST_SIGNS)
    due = gate & (seen >= LEAST_SIGNS) & ~PROMPT.str.contains(say.WANTS_SIGNS)
    score = pl.when(due).then(share).otherwise(0.0).alias("score")
    return Rule("only_signs", gate, lambda rows: rows.select(score).to_series(), least)


def endless_word() -> Rule:
    """Gopher's word length, at its extreme: two hundred letters without a blank."""
    hit = TEXT.str.contains(say.ENDLESS) & ~PROMPT.str.contains(say.WANTS_ENDLESS)
    return Rule("endless_word", _COARSE, found(hit & ~TEXT.str.contains(r"https?://|data:")))


# -- pairs -------------------------------------------------------------------------------------------------------------


def identical_sides(seen: int) -> Rule:
    """Both sides say the same in what a trainer sees of them."""
    left, right = TEXT, pl.col("rejected")
    begins = (
        left.str.strip_chars_start().str.head(1).str.to_lowercase()
        == right.str.strip_chars_start().str.head(1).str.to_lowercase()
    )

    def scores(rows: pl.DataFrame) -> pl.Series:
        same = [
            float(normalise(a[:seen]) == normalise(b[:seen])) for a, b in rows.select("text", "rejected").iter_rows()
        ]
        return pl.Series("score", same, pl.Float64)

    gate = begins | (left.str.len_bytes() != left.str.len_chars()) | (right.str.len_bytes() != right.str.len_chars())
    return Rule("identical_sides", gate, scores)


def refusal_asymmetry() -> Rule:
    """The chosen side declines, names no harm, and the rejected one answers: that trains a model to decline."""
    declines = TEXT.str.head(200).str.contains(say.DECLINES)
    answered = ~pl.col("rejected").str.head(200).str.contains(say.DECLINES)
    harm = TEXT.str.contains(say.HARM) | PROMPT.str.contains(say.HARM)
    gate = _holds(TEXT.str.head(200), say.OPENS_REFUSAL)
    return Rule("refusal_asymmetry", gate, found(declines & answered & ~harm))
