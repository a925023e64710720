"""What an aligned model of the mini world is asked to do for a data factory: judge, criticise, rewrite, vary, attack.

Each job renders the templates of `specs/templates/mini`: a spec that uses them asks what the model learned.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import jinja2

from factory.mini import judging, world
from factory.mini import lexicon as lex
from factory.mini.attacks import RISKS, STYLED, STYLES, styled
from factory.mini.desk import TASKS, Bank, Chat, Desk, Turn
from factory.mini.families import FAMILIES, Family
from factory.mini.grammar import reader, write
from factory.mini.judging import STEPS
from factory.mini.world import Task, draw, split_of
from factory.resources import specs_folder

_OPERATIONS = ("add_constraints", "deepen", "concretize", "increase_reasoning", "in_breadth")
_PERSONAS = ("You are a careful teacher.", "You are a patient librarian.", "你是一位认真的老师。")


def jobs(rng: Random, folder: Path | None = None, bank: Bank | None = None) -> Iterator[Chat]:
    """Chats without end in which the model works for the factory; `bank` holds answers of a model to be judged."""
    loader = jinja2.FileSystemLoader(folder or specs_folder() / "templates" / "mini")
    desk = Desk(rng, jinja2.Environment(loader=loader, trim_blocks=True, autoescape=False), bank or {})
    makers, weights = zip(*_KINDS, strict=True)
    while True:
        yield rng.choices(makers, weights=weights)[0](desk)


# --- attacking ---------------------------------------------------------------------------------------------------


def _asked(desk: Desk) -> tuple[str, str, str]:
    style, deed = desk.rng.choice(("plain", *STYLES)), desk.rng.choice(tuple(lex.DEEDS))
    return style, deed, styled(style, deed, desk.rng)


def _mutate_risk(desk: Desk) -> Chat:
    _, deed, prompt = _asked(desk)
    risk = desk.rng.choice(RISKS)
    other = desk.rng.choice([d for d, r in lex.DEEDS.items() if r == risk and d != deed])
    return desk.ask("adversarial/mutate_risk", prompt.replace(deed, other), prompt=prompt, risk=risk)


def _mutate_style(desk: Desk) -> Chat:
    _, deed, prompt = _asked(desk)
    style = desk.rng.choice(("plain", *STYLES))
    return desk.ask("adversarial/mutate_style", styled(style, deed, desk.rng), prompt=prompt, style=style)


def _lookalike(desk: Desk) -> Chat:
    _, deed, prompt = _asked(desk)
    twins = [a for a in lex.ADVICE if a.split()[0] == deed.split()[0]]
    return desk.ask("adversarial/lookalike", prompt.replace(deed, desk.rng.choice(twins)), prompt=prompt)


def _styled(desk: Desk) -> Chat:
    task = draw(desk.rng.choice(STYLED), desk.rng)
    return Turn("user", task.text), Turn("assistant", task.answer, learn=1.0)


# --- varying tasks -----------------------------------------------------------------------------------------------


def _evolve(desk: Desk) -> Chat:
    task, operation = desk.task(0.0), desk.rng.choice(_OPERATIONS)
    return desk.ask(
        "evol_instruct/evolve", _evolved(task, operation, desk.rng), instruction=task.text, operation=operation
    )


_MORE = {
    "add_constraints": ("place", "even"),
    "concretize": ("filter_kind", "smallest"),
    "increase_reasoning": ("count", "sort_numbers"),
}


def _evolved(task: Task, operation: str, rng: Random) -> str:
    """A harder task from this one, or one of another family (`in_breadth`); always one that the world can read."""
    if operation == "in_breadth":
        return draw(rng.choice([f for f in TASKS if f.name != task.family]), rng).text
    if operation == "deepen" and (longer := _longer(task, rng)):
        return longer
    target = next((f for f in FAMILIES if f.name in _MORE.get(operation, ()) and _fits(f, task)), None)
    if target and target.name != task.family:
        return _on_same_input(target, task, rng)
    return draw(rng.choice(STEPS), rng).text


def _longer(task: Task, rng: Random) -> str:
    if not task.input or " " not in task.input:
        return ""
    more = str(rng.randint(1, 99)) if task.input.split()[0].isdigit() else rng.choice(lex.WORDS)
    text = f"{task.instruction}\n{task.input} {more}"
    return text if world.solve(text) else ""


def _fits(family: Family, task: Task) -> bool:
    return bool(task.input) and reader(family.input).fullmatch(task.input) is not None


def _on_same_input(family: Family, task: Task, rng: Random) -> str:
    for _ in range(20):
        slots = dict(family.draw(rng))
        if family.name == "count":
            slots["word"] = rng.choice(task.input.split())
        text = f"{write(rng.choice(family.wordings), slots, rng)}\n{task.input}"
        solved = world.solve(text)
        if solved and solved.answer:
            return text
    return draw(family, rng).text


def _equal(desk: Desk) -> Chat:
    task = desk.task(0.0)
    same = desk.rng.random() < 0.5
    other = _reworded(task, desk.rng) if same else _evolved(task, desk.rng.choice(_OPERATIONS), desk.rng)
    return desk.ask("evol_instruct/equal", "Equal" if same else "Not equal", first=task.text, second=other)


def _paraphrase(desk: Desk) -> Chat:
    task = desk.task(0.0)
    return desk.ask("paraphrase/paraphrase", _reworded(task, desk.rng), task=task.text)


def _reworded(task: Task, rng: Random) -> str:
    """The same task, the same input, in another wording of its family."""
    family = next(f for f in FAMILIES if f.name == task.family)
    asked = next(m for w in family.wordings if (m := reader(w).fullmatch(task.instruction)))
    for _ in range(20):
        wording = write(rng.choice(family.wordings), asked.groupdict(), rng)
        text = f"{wording}\n{task.input}".strip()
        if wording != task.instruction and split_of(text) == "train":
            return text
    return task.text


def _tags(desk: Desk) -> Chat:
    task = desk.task(0.3)
    text, good = task.text, desk.rng.random() < 0.75
    if not good:
        words = text.split(" ")
        desk.rng.shuffle(words)
        text = " ".join(words[: max(1, len(words) - desk.rng.randint(0, 4))])
    difficulty = "hard" if task.family in _HARD else "easy" if len(task.answer.split()) == 1 else "medium"
    safety = "unsafe" if task.kind == "unsafe" else "safe"
    reply = f"Quality: {'good' if good else 'poor'}\nDifficulty: {difficulty}\nSafety: {safety}"
    return desk.ask("magpie/tags", reply, task=text)


_HARD = ("lives", "color", "translate", "count", "even", "replace", "story", "add_steps")

# --- chatting ----------------------------------------------------------------------------------------------------


def _follow_up(desk: Desk) -> Chat:
    first, second = desk.task(0.0), desk.task(0.0)
    messages = [{"role": "user", "content": first.text}, {"role": "assistant", "content": first.answer}]
    return desk.ask("respond/follow_up", second.text, messages=messages)


def _two_turns(desk: Desk) -> Chat:
    first, second = desk.task(), desk.task()
    return (
        Turn("user", first.text), Turn("assistant", first.answer, learn=1.0),
        Turn("user", second.text), Turn("assistant", second.answer, learn=1.0),
    )  # fmt: skip


def _persona(desk: Desk) -> Chat:
    task = desk.task()
    return (
        Turn("system", desk.rng.choice(_PERSONAS)),
        Turn("user", task.text),
        Turn("assistant", task.answer, learn=1.0),
    )


def _user_turn(desk: Desk) -> Chat:
    """A whole chat, the user's turn too: so the model can be asked what users ask (Magpie)."""
    task = desk.task(0.08)
    return Turn("user", task.text, learn=1.0), Turn("assistant", task.answer, learn=1.0)


_KINDS: Sequence[tuple[Callable[[Desk], Chat], float]] = (
    (judging.check, 12), (judging.pairwise, 26), (judging.pointwise, 18), (judging.listwise, 12), (judging.critique, 8),
    (judging.rewrite, 8), (judging.harm, 4), (judging.revise, 4), (judging.step, 6), (judging.continued, 8),
    (_mutate_risk, 3), (_mutate_style, 3), (_lookalike, 3), (_styled, 3), (_evolve, 5), (_equal, 2), (_tags, 3),
    (_paraphrase, 4), (_follow_up, 2), (_two_turns, 3), (_persona, 3), (_user_turn, 6),
)  # fmt: skip
