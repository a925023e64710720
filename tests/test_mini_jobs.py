"""The jobs that mini-strong is trained on: what they teach must be true by the exact checker."""

from itertools import islice
from random import Random

import pytest

from factory.mini import faults, jobs, judging
from factory.mini.attacks import STYLED, STYLES, styled
from factory.mini.desk import Chat, compared
from factory.mini.families import FAMILIES
from factory.mini.lexicon import DEEDS
from factory.mini.world import draw, judge, solve, split_of

CHATS = list(islice(jobs.jobs(Random("test")), 3_000))


def _asking(start: str) -> list[tuple[list[str], str]]:
    """The lines of the question and the reply, of every job that begins so."""
    return [(c[0].text.split("\n"), c[1].text) for c in CHATS if c[0].text.startswith(start)]


def test_every_chat_learns_something_and_ends_with_it() -> None:
    for chat in CHATS:
        assert chat[-1].learn, chat
        assert all(turn.text for turn in chat), chat


def _said(chat: Chat) -> str:
    return "".join(turn.text for turn in chat if turn.role == "assistant")


def test_a_verdict_follows_from_the_checker() -> None:
    seen = set()
    for chat in (c for c in CHATS if c[0].text.startswith("Which answer is better?")):
        lines = chat[0].text.split("\n")
        body = "\n".join(lines[2:]).removesuffix(f"\n{lines[1]}")
        task, first, second = body.replace(f"{lines[1]} B", f"{lines[1]} A").split(f"\n{lines[1]} A\n")
        solved = solve(task)
        assert solved is not None, task
        right = [judge(solved, text) == "right" for text in (first, second)]
        verdict = "tie" if right[0] == right[1] else "A" if right[0] else "B"
        assert _said(chat).startswith(f"{solved.answer}\nA:")
        assert _said(chat).endswith(f"\nVerdict: {verdict}")
        seen.add(verdict)
    assert seen == {"A", "B", "tie"}


def test_answers_are_read_word_by_word_up_to_the_first_that_differs() -> None:
    read = "".join(t.text for t in compared("cat dog owl", {"A": "cat dog owl", "B": "cat fox owl", "C": "cat dog"}))
    assert read == (
        "cat dog owl\nA: cat cat ok dog dog ok owl owl ok end end ok so A right\n"
        "B: cat cat ok fox dog no so B wrong\nC: cat cat ok dog dog ok end owl no so C wrong\n"
    )


def test_a_rewrite_is_right() -> None:
    asked = _asking("Rewrite the draft.")
    assert len(asked) > 50
    for lines, reply in asked:
        task = solve("\n".join(lines)[len("Rewrite the draft.\nTask: ") :].partition("\nDraft: ")[0])
        assert task is not None
        assert judge(task, reply) == "right"


def test_evolved_tasks_and_paraphrases_can_be_solved_and_are_not_held_out() -> None:
    for start in ("Make a new task", "Say this task"):
        asked = _asking(start)
        assert len(asked) > 50
        readable = [solve(reply) is not None for _, reply in asked]
        assert sum(readable) == len(readable)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_a_faulty_answer_is_never_right(family: object) -> None:
    rng = Random(str(family))
    for _ in range(40):
        task = draw(family, rng)  # type: ignore[arg-type]
        assert judge(task, faults.faulty(task, rng, spoofs=0.2)) != "right"


def test_a_continuation_follows_from_the_steps_before_it() -> None:
    task = solve("Add 57 and 86 step by step.")
    assert task is not None
    assert judging._followed(task, ["7 + 6 = 14", "5 + 8 + 1 = 14", "Answer: 143"], 0) == [
        "7 + 6 = 14",
        "5 + 8 + 1 = 14",
        "Answer: 144",
    ]
    story = solve("Ada has 3 pens, gets 4 more and loses 2. How many pens are left?")
    assert story is not None
    assert judging._followed(story, ["3 + 4 = 8", "7 - 2 = 5", "Answer: 5"], 0) == [
        "3 + 4 = 8",
        "8 - 2 = 6",
        "Answer: 6",
    ]


def test_every_style_dresses_every_deed_and_the_world_still_judges_it() -> None:
    rng = Random(3)
    for style in ("plain", *STYLES):
        for deed in DEEDS:
            task = solve(styled(style, deed, rng))
            assert task is not None, (style, deed)
            assert task.kind == "unsafe"
    assert {judge(draw(f, rng), "To do that, take a weapon.") for f in STYLED if f.kind == "unsafe"} == {"harmful"}


def test_no_job_shows_a_held_out_task_with_its_answer() -> None:
    for chat in CHATS:
        task = solve(chat[0].text)
        assert task is None or split_of(chat[0].text) == "train"
