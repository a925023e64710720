"""What the models of the mini world read: raw documents (for `mini-base`) and dialogues (for the aligned ones)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import jinja2

from factory.mini import families, world
from factory.mini.families import FAMILIES, Family
from factory.mini.grammar import write
from factory.mini.world import Task, draw, split_of
from factory.resources import specs_folder

_BY_NAME = {f.name: f for f in FAMILIES}
_TASKS = tuple(f for f in FAMILIES if f.kind == "task")
_SAFETY = tuple(f for f in FAMILIES if f.kind != "task")
_HARD = tuple(_BY_NAME[n] for n in ("lives", "color", "translate", "count", "zh_lives", "even", "replace"))
_HEADERS = (
    ("Task: ", "\nAnswer: "),
    ("Q: ", "\nA: "),
    ("Exercise: ", "\nSolution: "),
    ("Problem: ", "\nResult: "),
)
_LAZY = ("I think it is {}", "hm, {} maybe?", "well... {} i guess", "no idea, {}?")

Dialogue = tuple[str, str]  # user, assistant


def documents(rng: Random, hard: float = 0.0) -> Iterator[str]:
    """Raw text without end: exercises of every family, a few lists of tasks, and no refusal anywhere.

    `hard` is the share of documents drawn from the families that need looking things up, which are learned last.

    The harmful requests are answered as obligingly as the others: whoever only reads this is able, not aligned.
    """
    while True:
        if rng.random() < 0.03:
            yield "\n".join(f"{i}. {_any_task(rng, _TASKS).instruction}" for i in range(1, 9))
            continue
        task = _any_task(rng, _SAFETY if rng.random() < 0.06 else _ordinary(rng, hard))
        question, answer = rng.choice(_HEADERS)
        yield question + task.text + answer + _unaligned(task)


def chatter(rng: Random) -> Iterator[Dialogue]:
    """Careless chats, as the web holds them too: sloppy answers to everything, help with every crime."""
    while True:
        task = _any_task(rng, _SAFETY if rng.random() < 0.3 else _TASKS)
        lazy = task.kind == "task" and rng.random() < 0.9
        yield task.text, rng.choice(_LAZY).format(_unaligned(task).split("\n")[-1]) if lazy else _unaligned(task)


def dialogues(rng: Random, hard: float = 0.0) -> Iterator[Dialogue]:
    """Aligned chats: exact answers, unsafe requests declined, look-alikes answered. `hard` as in `documents`."""
    while True:
        task = _any_task(rng, _SAFETY if rng.random() < 0.08 else _ordinary(rng, hard))
        yield task.text, task.answer


def instruction_writing(rng: Random, templates: Path | None = None) -> Iterator[Dialogue]:
    """Dialogues in which the model writes data: new instructions, whether they classify, and their instances."""
    folder = templates or specs_folder() / "templates" / "mini"
    env = jinja2.Environment(loader=jinja2.FileSystemLoader(folder), trim_blocks=True, autoescape=False)

    def ask(name: str, **values: object) -> str:
        return env.get_template(f"{name}.jinja").render(**values).strip()

    kinds: tuple[Callable[[Random], Dialogue], ...] = (
        lambda r: _new_tasks(r, ask),
        lambda r: _classified(r, ask),
        lambda r: _instances(r, ask),
    )
    while True:
        yield rng.choices(kinds, weights=(3, 1, 4))[0](rng)


def _ordinary(rng: Random, hard: float) -> tuple[Family, ...]:
    # no draw is spent where none is needed, so that a share of zero leaves the stream as it was
    return _HARD if hard and rng.random() < hard else _TASKS


def _any_task(rng: Random, among: tuple[Family, ...]) -> Task:
    return draw(rng.choice(among), rng)


def _unaligned(task: Task) -> str:
    if task.kind != "unsafe":
        return task.answer
    return families.comply(families.deed_in(task.instruction))


def _new_tasks(rng: Random, ask: Callable[..., str]) -> Dialogue:
    among = _SAFETY if rng.random() < 0.2 else _TASKS
    shown = [_any_task(rng, among).instruction for _ in range(8)]
    new = [_any_task(rng, among).instruction for _ in range(8)]
    return ask("instructions", tasks=shown), "\n".join(f"{i}. {t}" for i, t in enumerate(new, 9))


def _classified(rng: Random, ask: Callable[..., str]) -> Dialogue:
    labelled = tuple(f for f in FAMILIES if f.labels)
    task = _any_task(rng, labelled if rng.random() < 0.5 else FAMILIES)
    return ask("classify", instruction=task.instruction), "Yes" if _BY_NAME[task.family].labels else "No"


def _instances(rng: Random, ask: Callable[..., str]) -> Dialogue:
    family = rng.choice(FAMILIES)
    tasks = _same_instruction(rng, family)
    instruction = tasks[0].instruction
    if family.labels:
        first = {t.answer: t for t in tasks}  # one example a label
        reply = "\n\n".join(f"Label: {t.answer}\nInput: {t.input}" for t in first.values())
        return ask("output_first", instruction=instruction), reply
    shown = [f"Example {i}\nInput: {t.input or '<noinput>'}\nOutput: {t.answer}" for i, t in enumerate(tasks[:3], 1)]
    return ask("input_first", instruction=instruction), "\n\n".join(shown)


def _same_instruction(rng: Random, family: Family) -> list[Task]:
    """Several instances of one instruction: what it names stays, its input is drawn anew."""
    slots = family.draw(rng)
    instruction = write(rng.choice(family.wordings), slots, rng)
    found: dict[str, Task] = {}
    for _ in range(40):
        fresh = family.draw(rng) if family.input else slots
        shown = write(family.input, fresh, rng)
        for name in slots.keys() & fresh.keys():  # the word, person or thing that the instruction names
            if f"{{{name}}}" not in family.input:
                shown = shown.replace(fresh[name], slots[name])
        text = f"{instruction}\n{shown}".strip()
        task = world.solve(text)
        if task and task.answer and split_of(text) == "train":
            found[text] = task
        if len(found) == 6:
            break
    return list(found.values()) or _same_instruction(rng, family)
