"""Text in any script: one normal form, one tokeniser, n-grams and shingles of it, and a guess at the language.

Every filter and generator that compares texts compares them through this module, so that "the same word" means one
thing everywhere. Two departures from what near-duplicate tools usually do, because both lose instruction data:
a text too short for one n-gram still has a shingle, and numbers and signs (`12 + 7`, `12 - 7`, `C`, `C++`, emoji)
tell texts apart.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence

# The ranges are spelt out, not named (\p{Han}), so that Python's `re` and the regexes of Polars both read them.
HAN = "\u3005\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
KANA = "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
HANGUL = "\u1100-\u11ff\u3131-\u318e\ua960-\ua97f\uac00-\ud7af\ud7b0-\ud7fb"
CJK = HAN + KANA + HANGUL

# `\w` of Python leaves out combining marks, which would cut Hindi, Thai or pointed Arabic words at every vowel sign.
MARKS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc"
    "\u06df-\u06e4\u0900-\u0963\u0981-\u0dff\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u0f71-\u0f84"
    "\u102b-\u103e\u1056-\u109d\u17b4-\u17d3\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\u3099\u309a"
)
_LETTERS = f"[^\\W_{CJK}]"
_WORD = f"[{CJK}]|{_LETTERS}+(?:[{MARKS}]+{_LETTERS}*)*"
# Arithmetic, currency, arrows and emoji always count; what is also markup (-, *, /, <, >, #) only before a number,
# and # right behind a letter (C#).
SIGNS = "+=%$^\u00a2-\u00a5\u00b1\u00d7\u00f7\u20a0-\u20cf\u2190-\u24ff\u25a0-\u2bff\U0001f000-\U0001faff"
_SIGN = (
    rf"[{SIGNS}]"
    r"|[-*/<>#](?=\s?\d)|(?<=[a-z])#"
)
_WORDS, _ASCII_WORDS = re.compile(_WORD), re.compile("[a-z0-9]+")
_TOKENS, _ASCII_TOKENS = re.compile(f"{_WORD}|{_SIGN}"), re.compile(r"[a-z0-9]+|[+=%$^]|[-*/<>#](?=\s?\d)|(?<=[a-z])#")

# What counts for a language, and how much one find weighs: words for alphabets, characters for CJK, where two
# characters make about one word. Earlier rows win ties: Latin words turn up in every language, so Latin is last.
SCRIPTS: Mapping[str, tuple[str, float]] = {
    "han": (f"[{HAN}]", 0.5),
    "kana": (f"[{KANA}\uff66-\uff9d]", 0.5),
    "ko": (f"[{HANGUL}]", 0.5),
    "ru": ("[\u0400-\u052f]+", 1.0),
    "ar": ("[\u0620-\u064a\u066e-\u06d3\u0750-\u077f]+", 1.0),
    "": ("[\u0370-\u03ff\u0531-\u058f\u05d0-\u05ea\u0700-\u074f\u0780-\u1cff]+", 1.0),
    "en": ("[A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a]+", 1.0),
}
KANA_SHARE = 1 / 8  # a smaller share of kana among Han is Chinese that names something Japanese
_SCRIPTS = {name: (re.compile(pattern), weight) for name, (pattern, weight) in SCRIPTS.items()}


def normalise(text: str) -> str:
    """NFKC, case-folded, white space collapsed to single blanks. Normalising twice changes nothing."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(text.casefold().split())


def words(text: str) -> list[str]:
    """The lower-cased words and numbers, without punctuation; every Han, kana or Hangul character is one of its own.

    On ASCII text these are exactly the tokens of ROUGE's own tokeniser.
    """
    if text.isascii():  # white space is no word, so it needs no collapsing
        return _ASCII_WORDS.findall(text.lower())
    text = normalise(text)
    return (_ASCII_WORDS if text.isascii() else _WORDS).findall(text)


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of `n` tokens in order; none if there are fewer than `n`."""
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def shingles(text: str, n: int = 3) -> set[str]:
    """The distinct runs of `n` words, numbers and signs: what near-duplicate search compares.

    A text shorter than that is one shingle, and one without any token is its own normal form: nothing is skipped.
    """
    text = normalise(text)
    tokens = (_ASCII_TOKENS if text.isascii() else _TOKENS).findall(text)
    if len(tokens) <= n:
        return {" ".join(tokens) or text}
    return {" ".join(gram) for gram in zip(*(tokens[i:] for i in range(n)), strict=False)}


def language(text: str) -> str:
    """The language most of the text is in, by counting scripts: "zh", "ja", "ko", "ru", "ar", "en", "" if unclear.

    A simplification on purpose: every Latin text is "en", every Cyrillic one "ru", every Arabic one "ar".
    """
    if text.isascii():  # most texts; counting scripts costs more than all else an import does
        return "en" if any(map(str.isalpha, text)) else ""
    return dominant({name: len(found.findall(text)) * weight for name, (found, weight) in _SCRIPTS.items()})


def dominant(amounts: Mapping[str, float]) -> str:
    """The language of the largest amount, given the weighted counts of SCRIPTS."""
    han, kana = amounts["han"], amounts["kana"]
    japanese = kana >= KANA_SHARE * (han + kana) > 0
    merged = {"ja" if japanese else "zh": han + kana} | {k: v for k, v in amounts.items() if k not in ("han", "kana")}
    best = max(merged, key=lambda name: merged[name])
    return best if merged[best] > 0 else ""


def jaccard(left: set[str], right: set[str]) -> float:
    """The share of all shingles that both have: 1.0 for equal sets, 0.0 for disjoint ones."""
    common = len(left & right)
    return common / ((len(left) + len(right) - common) or 1)
