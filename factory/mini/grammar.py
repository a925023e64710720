"""Tiny reversible grammars: one pattern both writes a sentence and reads it back.

`[Sort|Order] these: {numbers}` offers choices in brackets and typed slots in braces. `write` draws one sentence,
`reader` compiles the pattern into a regular expression whose groups are the slots.
"""

import re
from collections.abc import Mapping
from functools import cache
from random import Random

from factory.mini import lexicon as lex


def _any(words: tuple[str, ...]) -> str:
    return "|".join(re.escape(w) for w in sorted(words, key=len, reverse=True))


_WORD = "[a-z]+"
SLOTS = {
    "word": _WORD,
    "words": f"{_WORD}(?: {_WORD})*",
    "number": r"\d+",
    "numbers": r"\d+(?: \d+)*",
    "name": _any(lex.NAMES),
    "city": _any(lex.CITIES),
    "color": _any(lex.COLORS),
    "kinds": _any(tuple(lex.PLURAL.values())),
    "thing": _any(lex.WORDS),
    "things": _any(lex.COUNTABLES),
    "sentence": r"[A-Z][^\n.?]*\.",
    "facts": r"[A-Z][^\n?]*\.",
    "pairs": r"[a-z]+ = [a-z]+(?:, [a-z]+ = [a-z]+)*",
    "separator": "dashes|commas|slashes|plus signs",
    "place": "first|second|third|last",
    "deed": _any((*lex.DEEDS, *lex.ADVICE)),
    "zhname": _any(lex.ZH_NAMES),
    "zhwords": f"(?:{_any(lex.ZH_WORDS)})(?: (?:{_any(lex.ZH_WORDS)}))*",
    "zhfacts": r"[^\n]+。",
    "zhsentence": r"[^\n。]+。",
}
_TOKEN = re.compile(r"\[([^\]]*)\]|\{(\w+)\}")


def write(pattern: str, slots: Mapping[str, str], rng: Random) -> str:
    """Draw one sentence: a choice per bracket, the given value per slot."""
    return _TOKEN.sub(lambda m: slots[m[2]] if m[2] else rng.choice(m[1].split("|")), pattern)


@cache
def reader(pattern: str) -> re.Pattern[str]:
    """The regular expression that accepts exactly what `write` can produce, with one group per slot."""
    parts, end, seen = [], 0, set[str]()
    for m in _TOKEN.finditer(pattern):
        parts.append(re.escape(pattern[end : m.start()]))
        if m[2] in seen:
            parts.append(f"(?P={m[2]})")
        elif m[2]:
            seen.add(m[2])
            parts.append(f"(?P<{m[2]}>{SLOTS[m[2].rstrip('0123456789')]})")
        else:
            parts.append("(?:" + "|".join(re.escape(c) for c in m[1].split("|")) + ")")
        end = m.end()
    return re.compile("".join(parts) + re.escape(pattern[end:]))
