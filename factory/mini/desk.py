"""The desk at which an aligned model of the mini world works: templates, tasks and answers drawn by chance."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

import jinja2

from factory.mini.attacks import STYLED
from factory.mini.families import FAMILIES
from factory.mini.faults import faulty
from factory.mini.world import Task, draw, judge

TASKS = tuple(f for f in FAMILIES if f.kind == "task")
_SAFETY = tuple(f for f in FAMILIES if f.kind != "task")


Bank = Mapping[str, tuple[Task, tuple[str, ...]]]  # a prompt's task, and what a model answered


class Turn(NamedTuple):
    """One turn of a chat, and what each of its tokens counts in the loss. An open turn goes on in the next one."""

    role: str
    text: str
    learn: float = 0.0
    open: bool = False


Chat = tuple[Turn, ...]


@dataclass(frozen=True)
class Desk:
    """Draws jobs: where the chance comes from, and the templates."""

    rng: Random
    templates: jinja2.Environment
    bank: Bank = field(default_factory=dict)

    def ask(self, name: str, reply: str, **values: object) -> Chat:
        text = self.templates.get_template(f"{name}.jinja").render(**values).strip()
        return Turn("user", text), Turn("assistant", reply, learn=1.0)

    def judge(self, name: str, thoughts: Chat, verdict: str, **values: object) -> Chat:
        """The model thinks first (open turns), then says its verdict."""
        asked, _ = self.ask(name, "", **values)
        return asked, *thoughts, Turn("assistant", verdict, learn=VERDICT)

    def task(self, safety: float = 0.1) -> Task:
        if self.bank and self.rng.random() < 0.6 * (1 - safety):
            return self.bank[self.rng.choice(tuple(self.bank))][0]
        if self.rng.random() < safety:
            return draw(self.rng.choice(_SAFETY if self.rng.random() < 0.7 else STYLED), self.rng)
        return draw(self.rng.choice(TASKS), self.rng)

    def nonce(self) -> str:
        return f"{self.rng.getrandbits(24):06x}"

    def answer(self, task: Task, right: float = 0.5) -> str:
        """An answer, right or wrong; of a task in the bank mostly what a model really said."""
        if task.text in self.bank and self.rng.random() < 0.7:
            return self.rng.choice(self.bank[task.text][1])
        return task.answer if self.rng.random() < right else faulty(task, self.rng, spoofs=0.12)

    def wrong(self, task: Task) -> str:
        """A wrong answer, if there is one a model's own."""
        said = [a for a in self.bank.get(task.text, (task, ()))[1] if judge(task, a) != "right"]
        return self.rng.choice(said) if said and self.rng.random() < 0.8 else faulty(task, self.rng, spoofs=0.12)


VERDICT = 3.0  # a verdict is one token after many: with no more weight than they it would be learned far later


def compared(reference: str, labelled: dict[str, str]) -> Chat:
    """The model writes its own answer, then reads each given one word by word beside it, up to the first that differs.

    Equality of two texts is hard to see at once for a small transformer; of two neighbouring words it is easy.
    """
    turns = [Turn("assistant", f"{reference}\n", learn=1.0, open=True)]
    for label, text in labelled.items():
        turns.append(Turn("assistant", f"{label}:", learn=1.0, open=True))
        for said, wanted in zip([*text.split(), "end"], [*reference.split(), "end"], strict=False):
            same = said == wanted
            turns.append(Turn("assistant", f" {said} {wanted}", learn=1.0, open=True))
            turns.append(Turn("assistant", " ok" if same else " no", learn=VERDICT, open=True))
            if not same:
                break
        turns.append(Turn("assistant", f" so {label}", learn=1.0, open=True))
        turns.append(Turn("assistant", " right\n" if same else " wrong\n", learn=VERDICT, open=True))
    return tuple(turns)
