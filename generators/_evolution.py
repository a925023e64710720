"""Evol-Instruct's elimination rules, in English and Chinese: when an evolved instruction has failed."""

import re

from factory.engines.base import Reply
from factory.text import HAN, HANGUL, KANA, normalise, words

_LEAKED = (
    "given prompt", "rewritten prompt", "created prompt", "new prompt:", "#prompt#", "given task", "rewritten task",
    "original task", "the task below", "rewritten version", "more complex version", "given instruction",
    "rewritten instruction", "给定的任务", "给定的指令", "给定的提示", "改写后的", "改写的任务",
    "原任务", "原指令", "下面的任务", "新任务：", "更复杂的版本",
)  # fmt: skip
_LABEL = re.compile(
    r"^(?:#+\s*)?(?:(?:the )?(?:new|rewritten|created|evolved) (?:task|prompt|instruction)|task|新任务|任务"
    r"|改写后的任务)"
    r"\s*#*\s*[:：]\s*",
    re.IGNORECASE,
)
_SORRY = re.compile(r"\bsorry\b|抱歉|对不起|不好意思", re.IGNORECASE)
_SHORT = 80  # words: a reply with "sorry" that is shorter says that the instruction was too hard
_STOP_WORDS = frozenset(
    "a an the and or but if of to in on at for with by from as is are was were be been am do does did have has had it "
    "its this that these those i you he she we they me my your our their not no so too very can will just there here "
    "what which who how when where why".split()
) | frozenset("的了是在和与及或也都就而但这那有我你他她它们个之其吧吗呢啊哦呀")
_CJK = re.compile(f"[{HAN}{KANA}{HANGUL}]")
_EQUALITY = {
    "equal": True, "they are equal": True, "等同": True, "它们等同": True,
    "not equal": False, "they are not equal": False, "不等同": False, "它们不等同": False,
}  # fmt: skip


def evolved(text: str) -> str:
    """The instruction in a reply: without a label before it."""
    return _LABEL.sub("", text.strip(), count=1).strip()


def instruction_fault(text: str, parent: str) -> str:
    """Why an evolved instruction is none, before any model is asked, or ""."""
    if normalise(text) == normalise(parent):
        return "no_information_gain"
    told, known = normalise(text), normalise(parent)
    if any(phrase in told and phrase not in known for phrase in _LEAKED):
        return "leaked_prompt"
    return "only_stop_words" if _says_nothing(text) else ""


def answer_fault(text: str) -> str:
    """Why an answer shows that its instruction failed, or ""."""
    if _SORRY.search(text) and _length(text) < _SHORT:
        return "too_hard"
    return "empty_answer" if _says_nothing(text) else ""


def equality(reply: Reply) -> bool | None:
    """What the check said of two instructions: True for equal. Its last line that is exactly a verdict decides.

    A sentence with the word in it (`Equal in topic, not in depth`) is none, for nobody can list all that negates it.
    """
    said = (line.strip(" \t*_`.。!！").casefold() for line in reply.text.rsplit("</think>", 1)[-1].splitlines())
    return next((_EQUALITY[line] for line in reversed([*said]) if line in _EQUALITY), None)


def _says_nothing(text: str) -> bool:
    """True for punctuation and stop words alone: a number or a sign of arithmetic may well be an answer."""
    return all(word in _STOP_WORDS for word in words(text)) and not re.search(r"\d|[=+<>√π]", text)


def _length(text: str) -> float:
    """Words; two characters of Chinese, Japanese or Korean make about one."""
    return sum(0.5 if _CJK.fullmatch(word) else 1.0 for word in words(text))
