"""Answers to problems: the one that a solution states, and whether two of them are the same in mathematics.

`18`, `$18.00`, `18 eggs per day` and `36/2` are one answer; `18 km` and `18 m` are two, as are `3 am` and `3 pm`.
Numbers are compared exactly, as fractions, never as floats and never as strings. What is no single number (a name, a
choice, `2x + 1`) is compared as text without spaces, case and LaTeX's dress; there is no algebra, so `x + 1` and
`1 + x` differ. An answer that cannot be read is None: whoever asks decides what that means, and nobody guesses.
"""

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

from factory.text import HAN

# --- the answer that a solution states -------------------------------------------------------------------------------

_MARKS = r"[ \t>*_#-]*"  # what Markdown puts before a line
_SAID = re.compile(
    rf"^{_MARKS}(?:(?:the )?(?:final |correct )?answer|A)[ \t*_]*:(?P<line>.*)$"
    r"|####(?P<hashes>.*)$"
    r"|\banswer[ \t*_]*(?:is|:)(?P<within>.*)$"
    rf"|^{_MARKS}(?:所以|因此)?(?:最终|正确)?(?:答案|答)[ \t*_]*(?:是|为|:)(?P<zh_line>.*)$"
    r"|答案[ \t*_]*(?:是|为|:)(?P<zh_within>.*)$",
    re.IGNORECASE | re.MULTILINE,
)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BEFORE, _BEHIND = " \t\n:*_", ".。,，;；:!！ \t\n*_"  # a stop before a digit belongs to the number
_BOXES = 20  # boxes looked at from the end
_LONGEST = 200  # characters: a longer answer is no number, and is compared as text


def final_answer(solution: str) -> str | None:
    r"""What the solution gives as its answer, the last one if there are several; None where it gives none.

    Read are `\boxed{18}`, `#### 18`, `Answer: 18`, `A: 18`, `The answer is 18.`, `答案：18` and `答案是18元`.
    """
    boxes = list(_BOXED.finditer(solution))[-_BOXES:]
    found = [(m.start(), text) for m in boxes if (text := _braced(solution, m.end()))]
    for said in _SAID.finditer(solution.replace("：", ":")):
        line = _stripped(said[said.lastgroup or 0])
        if line and not _BOXED.search(line):
            found.append((said.start(), line))
    return max(found)[1] if found else None


def _stripped(text: str) -> str:
    return text.strip(_BEFORE).rstrip(_BEHIND)


def _braced(text: str, start: int) -> str:
    """What stands between the brace before `start` and its partner; "" where that is not near."""
    depth = 1
    for place in range(start, min(len(text), start + 5 * _LONGEST)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place].strip()
    return ""


# --- whether two are the same ----------------------------------------------------------------------------------------


class Quantity(NamedTuple):
    """A number as it is written, and what its unit makes of it: 5 km is 5, of dimension "length", times 1000."""

    value: Fraction
    dimension: str = ""
    factor: Fraction = Fraction(1)
    percent: bool = False


_LARGEST_EXPONENT = 300
_MANY = {
    "dozen": 12, "hundred": 100, "thousand": 1000, "k": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "百": 100, "千": 1000, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8,
}  # fmt: skip
_UNITS = {
    "length": "m metre meter 米 =1, km kilometre kilometer 千米 公里 =1000, cm centimetre centimeter 厘米 =1/100, "
              "mm 毫米 =1/1000, inch inches =254/10000, foot feet =3048/10000, yard =9144/10000, mile =1609344/1000",
    "mass": "g gram 克 =1, kg kilogram 千克 公斤 =1000, mg 毫克 =1/1000, tonne 吨 =1000000, 斤 =500, "
            "ounce oz =28349523125/1000000000, pound lb =45359237/100000",
    "volume": "l litre liter 升 =1, ml millilitre milliliter 毫升 =1/1000",
    "time": "s sec second 秒 秒钟 =1, min minute 分钟 =60, h hr hour 小时 =3600, day 天 =86400, week 周 =604800",
    "dollars": "$ dollar usd 美元 =1, cent ¢ 美分 =1/100",
    "euros": "€ euro eur 欧元 =1",
    "sterling": "£ gbp 英镑 =1",
    "yuan": "元 块 yuan rmb 人民币 =1, 角 毛 =1/10",
    "celsius": "celsius 摄氏 =1",
    "fahrenheit": "fahrenheit 华氏 =1",
    "before noon": "am =1",
    "after noon": "pm =1",
}  # fmt: skip
_KNOWN = {
    name: (dimension, Fraction(size))
    for dimension, units in _UNITS.items()
    for names, size in (unit.split("=") for unit in units.split(", "))
    for name in names.split()
}

_WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?:\s\d{3})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.\d*)?|\.\d+)"
_NUMBER = re.compile(
    rf"(?:(?P<sign>[-+])\s?)?(?:(?P<currency>[$€£¥])\s?)?(?P<sign_behind>[-+]?)"
    rf"(?:(?P<mixed>\d+)\s+(?P<over>\d+)\s?/\s?(?P<under>\d+)"
    rf"|(?P<top>{_DECIMAL})(?:\s?/\s?(?P<bottom>{_DECIMAL}))?"
    rf"(?:e(?P<e>[-+]?\d{{1,4}})|\s?[*×x]\s?10\s?\^\s?\{{?(?P<ten>[-+]?\d{{1,4}})\}}?)?)",
    re.IGNORECASE,
)
_UNIT = re.compile(rf"[a-z¢]+|[{HAN}]+")
# What makes more of a text than one number with words around it.
_SUMS = re.compile(r"[\\^_{}<>≤≥|=*/+√π∞×]|\d")
_NAMES = re.compile(r"\b(?:pi|sqrt|log|ln|sin|cos|tan|[eixyz]|or)\b|或")
_TURNED = re.compile(r"\b(?:not|no|than|least|most|under)\b|[不至超少]|[多大小高低]于")
# What makes another number of the one beside it: twice 5, the square of 5, 5 squared, 5 and a half, 5的平方, 5个半.
_WORKED_ON = re.compile(
    r"\b(?:twice|thrice|half|double|triple|sqrt|log|ln|sin|cos|tan"
    r"|(?:half|third|quarter|double|triple|root|square|cube|factorial|percent) of)\s*(?:the\s)?$|根号$"
)
_WORKED_ON_BEHIND = re.compile(
    r"\s*(?:squared|cubed|factorial)\b|.*\band (?:a|one) (?:half|third|quarter)\b"
    rf"|\s*的(?:平方|立方|阶乘|一半|[两二]倍)|[{HAN}]?半"
)
_FACTORIAL = re.compile(r"\d!$")
_MONTH = r"(jan|feb|mar|apr|may|june?|july?|aug|sept?|oct|nov|dec)(?:uary|ruary|ch|il|ust|ember|ober)?\.?"
_MONTH_BEFORE, _MONTH_BEHIND = re.compile(rf"\b{_MONTH}\s$"), re.compile(rf"\s(?:of )?{_MONTH}")
_LEADS = (
    ("上午", "before noon"), ("早上", "before noon"), ("凌晨", "before noon"), ("下午", "after noon"),
    ("晚上", "after noon"), ("摄氏", "celsius"), ("华氏", "fahrenheit"),
)  # fmt: skip


def same_answer(said: str, gold: str) -> bool:
    """True where the two answers are the same: as quantities if both are, else as text.

    A unit, a month or a half of the day that only one of them names is left out; `75%` is 75, and also 0.75, where the
    other has no percent sign.
    """
    one, two = quantity(said), quantity(gold)
    if one is None or two is None:
        return one is two and _bare(said) == _bare(gold) != ""
    if one.dimension and two.dimension:
        return (one.dimension, one.value * one.factor) == (two.dimension, two.value * two.factor)
    if one.percent != two.percent:
        part, whole = (one, two) if one.percent else (two, one)
        return whole.value in (part.value, part.value / 100)
    return one.value == two.value


def quantity(text: str) -> Quantity | None:
    """The number that an answer is, with its unit; None where it is no single number."""
    last = _plain(text).rpartition("=")[2]  # 9 * 2 = 18 says 18
    text = _stripped(last)
    found = _NUMBER.search(text) if len(text) <= _LONGEST else None
    if found is None:
        return None
    before, after = text[: found.start()], text[found.end() :]
    stands_alone = not before or before[-1] in " \t\n:~≈" or re.fullmatch(f"[{HAN}]", before[-1])
    if not stands_alone or _SUMS.search(before) or _TURNED.search(before) or _worked_on(before, after, last):
        return None
    value = _value(found)
    read = None if value is None else _measured(value, found["currency"] or "", after)
    return read and (read if read.dimension else read._replace(dimension=_dated(before, after)))


def _worked_on(before: str, after: str, whole: str) -> bool:
    """Whether words make another number of this one. `5!` alone is a factorial; behind words it is a shout."""
    factorial = not (before or after) and _FACTORIAL.search(whole.strip())
    return bool(factorial or _WORKED_ON.search(before) or _WORKED_ON_BEHIND.match(after))


def _dated(before: str, after: str) -> str:
    """The month or the half of the day that a number stands beside, or the scale of a temperature."""
    if found := _MONTH_BEFORE.search(before) or _MONTH_BEHIND.fullmatch(after):
        return found[1][:3]
    return next((dimension for lead, dimension in _LEADS if before.endswith(lead)), "")


def _measured(value: Fraction, currency: str, after: str) -> Quantity | None:
    """The number with what its unit says; None where the text behind it is more than a unit and words."""
    unit, glued = _first(after)
    for many, times in _MANY.items():
        if unit == many or (unit.startswith(many) and not many.isascii() and not _known(unit)[0]):
            value, after = value * times, after.lstrip()[len(many) :]
            unit, glued = _first(after)[0], False
            break
    if _SUMS.search(after) or _NAMES.search(after):
        return None
    if after.lstrip().startswith("%") or unit in {"percent", "pct"}:
        return Quantity(value, percent=True)
    dimension, factor = _known(currency or unit)
    if glued and unit.isascii() and not dimension:  # 12b is a name, 2x a product
        return None
    return Quantity(value, dimension, factor)


def _first(after: str) -> tuple[str, bool]:
    """The first word behind a number, and whether it follows without a space."""
    found = _UNIT.match(after.lstrip())
    return (found[0], not after[0].isspace()) if found else ("", False)


def _known(unit: str) -> tuple[str, Fraction]:
    """The dimension of a unit and its size. Han units may be followed by more text (18元钱)."""
    names = (unit, unit.removesuffix("s")) if unit.isascii() else (unit, unit[:3], unit[:2], unit[:1])
    return next((_KNOWN[name] for name in names if name in _KNOWN), ("", Fraction(1)))


def _value(found: re.Match[str]) -> Fraction | None:
    """The number's exact value; None for a division by zero, and for exponents that nobody means."""
    parts = {name: re.sub(r"[,\s]", "", part) for name, part in found.groupdict().items() if part}
    exponent = int(parts.get("e") or parts.get("ten") or 0)
    bottom = _fraction(parts.get("under") or parts.get("bottom") or "1")
    if not bottom or abs(exponent) > _LARGEST_EXPONENT:
        return None
    value = int(parts.get("mixed", 0)) + _fraction(parts.get("over") or parts["top"]) / bottom
    minus = (parts.get("sign") == "-") != (parts.get("sign_behind") == "-")
    return (-value if minus else value) * Fraction(10) ** exponent


def _fraction(text: str) -> Fraction:
    return Fraction(f"0{text}0" if "." in text else text)  # .5 and 5. are numbers too


_LATEX = (
    (re.compile(r"\\[dtc]?frac\s*\{?\s*(-?\d+)\s*\}?\s*\{?\s*(\d+)\s*\}?"), r" \1/\2 "),
    (re.compile(r"\\(?:text(?:bf|rm|it)?|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\(?:left|right|displaystyle|quad|qquad)(?![a-z])|\\[,!;:()\[\] ]"), ""),
    (re.compile(r"\\(?:times|cdot)(?![a-z])"), "×"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?:\b(?:minus|negative)\s+|负)(?=[$\d.])"), "-"),
    (re.compile(r"\\([%$])"), r"\1"),
    (re.compile(r"(?<![a-z])([ap])\.\s?m\b\.?"), r"\1m"),
    (re.compile(r"(?:°|\bdegrees?)\s?c(?:elsius)?\b"), " celsius"),
    (re.compile(r"(?:°|\bdegrees?)\s?f(?:ahrenheit)?\b"), " fahrenheit"),
    (re.compile(r"^\$([^$]+)\$(?=[^$]*$)"), r"\1"),  # $18$ is 18 in LaTeX, $18 is money
)
_LIKE_ASCII = str.maketrans("−–—⁄，：《》“”", "---/,:''''")
_PARTS = re.compile("(?=[¼-¾⅐-⅞])")


def _plain(text: str) -> str:
    """NFKC in small letters, without LaTeX's dress; all dashes are minus signs."""
    text = _PARTS.sub(" ", text.strip()).replace("！", "。")  # a shout in any case: no factorial is written so
    text = unicodedata.normalize("NFKC", text).translate(_LIKE_ASCII).casefold().strip("*` \n")
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text).strip()
    return text[1:-1].strip() if re.fullmatch(r"\([^(),]*\)", text) else text


def _bare(text: str) -> str:
    """A text without what does not count: spaces, braces, quotes and the stops at its ends."""
    return re.sub(r"[\s{}\\\"'`]+", "", _plain(text)).rstrip(_BEHIND)
