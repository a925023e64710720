"""Reading what a model wrote for Self-Instruct: instructions, labels, instances, and the paper's rules on them."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from factory.text import words

# Words for what a text model can neither see nor do (Self-Instruct's code; Alpaca adds the last five).
_BLACKLIST = (
    "image",
    "images",
    "graph",
    "graphs",
    "picture",
    "pictures",
    "file",
    "files",
    "map",
    "maps",
    "draw",
    "plot",
)
_MEDIA = ("video", "audio", "music", "flowchart", "diagram")
_CHINESE_MEDIA = ("图片", "图像", "照片", "图表", "地图", "视频", "音频", "画一", "画出", "文件")
_BANNED = {"paper": frozenset(_BLACKLIST), "alpaca": frozenset(_BLACKLIST + _MEDIA)}
_NUMBERED = re.compile(r"^\s*\d{1,3}\s*[.)、．:]\s*(.+?)\s*$")
_EXAMPLE = re.compile(r"^\s*(?:Example|示例|例子)\s*\d*\s*[.:：]?\s*$", re.MULTILINE | re.IGNORECASE)
_INPUT = re.compile(r"^\s*(?:Input|输入)\s*[:：][ \t]*", re.MULTILINE | re.IGNORECASE)
_OUTPUT = re.compile(r"^\s*(?:Output|Answer|输出|答案)\s*[:：][ \t]*", re.MULTILINE | re.IGNORECASE)
_LABEL = re.compile(r"^\s*(?:Class label|Label|标签)\s*[:：][ \t]*", re.MULTILINE | re.IGNORECASE)
_NOTHING = frozenset({"", "<noinput>", "noinput", "none", "none.", "n/a", "无", "无输入"})
_ALPACA = re.compile(r"^\s*\d+\s*[.)]\s*(Instruction|Input|Output)\s*[:：][ \t]*", re.MULTILINE | re.IGNORECASE)


class Instance(NamedTuple):
    """One input (may be empty) with its output."""

    input: str
    output: str


class Task(NamedTuple):
    """An instruction with instances that came along (Alpaca's way), if any."""

    instruction: str
    instances: tuple[Instance, ...] = ()


def numbered(text: str, cut: bool) -> tuple[list[str], list[str]]:
    """(tasks, other lines) of a numbered list. Lines without a number, such as a preamble, are no tasks.

    A reply that was cut loses its last task, which may be half a sentence.
    """
    tasks, others = list[str](), list[str]()
    for line in filter(str.strip, text.splitlines()):
        found = _NUMBERED.match(line)
        (tasks if found else others).append(found[1] if found else line.strip())
    if cut and tasks:
        others.append(tasks.pop())
    return tasks, others


def alpaca_tasks(text: str, cut: bool) -> list[Task]:
    """The tasks of a reply in Alpaca's form: numbered Instruction, Input and Output lines."""
    parts = _ALPACA.split(text)[1:]
    fields = [(parts[i].lower(), parts[i + 1].strip()) for i in range(0, len(parts) - 1, 2)]
    tasks, current = list[Task](), dict[str, str]()
    for name, value in fields:
        if name == "instruction":
            current = {}
        current[name] = value
        if name == "output" and "instruction" in current:
            tasks.append(Task(current["instruction"], (Instance(_given(current.get("input", "")), value),)))
    return tasks[:-1] if cut else tasks


def is_yes(text: str) -> bool:
    """True where the classification question is answered with yes."""
    said = text.strip().lower()
    return said.startswith(("yes", "是")) and not said.startswith("是否")  # "是否" only repeats the question


def input_first(text: str, cut: bool) -> list[Instance]:
    """Instances written as `Example k / Input: ... / Output: ...`."""
    blocks = [b for b in _EXAMPLE.split(text) if b.strip()]
    found = []
    for block in blocks[:-1] if cut else blocks:
        halves = _OUTPUT.split(block, maxsplit=1)
        if len(halves) == 2:
            found.append(Instance(_given(_INPUT.sub("", halves[0], count=1)), halves[1].strip()))
    return found


def output_first(text: str, cut: bool) -> list[Instance]:
    """Instances written as `Label: ... / Input: ...`, for classification tasks."""
    blocks = [b for b in _LABEL.split(text) if b.strip()]
    found = []
    for block in blocks[:-1] if cut else blocks:
        halves = _INPUT.split(block, maxsplit=1)
        if len(halves) == 2:
            found.append(Instance(_given(halves[1]), halves[0].strip()))
    return found


def instruction_fault(text: str, style: str) -> str:
    """Why an instruction breaks a rule of the paper, or "". Words are counted by character in Chinese."""
    tokens = words(text)
    if len(tokens) <= 3:
        return "too_short"
    if len(tokens) > 150:
        return "too_long"
    if _BANNED[style] & set(tokens) or any(medium in text for medium in _CHINESE_MEDIA):
        return "needs_another_medium"
    if text.lower().startswith("write a program"):
        return "write_a_program"
    if not text[0].isalnum() and text[0] not in "《「『“":
        return "starts_with_punctuation"
    return ""


def instance_faults(instances: Sequence[Instance], most: int) -> list[str]:
    """For each instance the rule it breaks, or "". One input with two outputs spoils the whole task."""
    outputs: dict[str, set[str]] = {}
    for instance in instances:
        outputs.setdefault(instance.input, set()).add(instance.output)
    if any(len(o) > 1 for o in outputs.values()):
        return ["conflicting_outputs"] * len(instances)
    faults, seen = list[str](), set[Instance]()
    for instance in instances:
        faults.append("repeated_instance" if instance in seen else _instance_fault(instance))
        seen.add(instance)
        if not faults[-1] and faults.count("") > most:
            faults[-1] = "surplus_instance"
    return faults


def _instance_fault(instance: Instance) -> str:
    if not instance.output:
        return "empty_output"
    if instance.input == instance.output:
        return "input_equals_output"
    return "unfinished_output" if instance.output.endswith((":", "：")) else ""


def _given(text: str) -> str:
    return "" if text.strip().lower() in _NOTHING else text.strip()
