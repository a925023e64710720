"""`evol_instruct`: operations, rounds, ancestry, and every rule of the elimination stage, in English and Chinese."""

from collections import Counter
from random import Random

import pytest

from factory.engines.base import Engine
from factory.engines.scripted import Scripted
from factory.errors import DataError
from factory.records import Completion, Metric, Prompt, Record, Verdict, user
from generators import _evolution as rules
from generators.evol_instruct import EvolInstruct

SEEDS = [Prompt(user(text), language=tongue) for text, tongue in (
    ("Name three rivers.", "en"), ("Describe rain on a hot street.", "en"), ("写一首关于春天的短诗。", "zh"),
)]  # fmt: skip
# Each evolution adds a word of its own, so that every round makes new instructions.
GROWS = {
    r"Task:\n(.*)$": [rf"\1 And {w}." for w in ("slowly", "gently", "twice", "aloud", "briefly", "proudly", "calmly")],
    r"任务：\n(.*)$": [rf"\1并且{w}。" for w in ("要押韵", "用四行", "写到雨", "写到风", "不用形容词", "写到燕子")],
    "Are they equal": "Not equal",
    "是否等同": "不等同",
    ".": "A whole answer, with reasons and an example.",
}


def _engine(**options: object) -> Engine:
    return Scripted(**{"replies": GROWS} | options).open()  # type: ignore[arg-type]


def _with(**replies: str | list[str]) -> Engine:
    named = {"task": r"Task:\n", "zh": r"任务：\n", "equal": "Are they equal", "zh_equal": "是否等同", "answer": "."}
    given = {named[k]: v for k, v in replies.items()}
    first = {k: v for k, v in given.items() if k != "."}  # the rule for answers matches everything, so it comes last
    return _engine(replies=first | {k: v for k, v in GROWS.items() if k not in first} | given)


def _run(engine: Engine, seeds: list[Prompt] = SEEDS, **options: object) -> list[Record]:
    step = EvolInstruct(**{"engine": "e", "rounds": 1} | options)  # type: ignore[arg-type]
    return list(step.generate(seeds, {"e": engine, "j": _engine()}, Random(2)))


def _reasons(records: list[Record]) -> Counter[str]:
    return Counter(r.reason for r in records if isinstance(r, Verdict))


def _prompts(records: list[Record]) -> list[Prompt]:
    return [r for r in records if isinstance(r, Prompt)]


def _counts(records: list[Record], kind: str = "yield") -> dict[str, float]:
    return {r.name.split("/")[-1]: r.value for r in records if isinstance(r, Metric) and r.name.startswith(kind)}


def test_every_round_evolves_what_the_round_before_made_with_the_full_ancestry() -> None:
    records = _run(_engine(), rounds=3)
    prompts = _prompts(records)
    assert [p.meta["round"] for p in prompts] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    for seed, *line in zip(SEEDS, prompts[:3], prompts[3:6], prompts[6:], strict=True):
        known = [seed, *line]
        for place, prompt in enumerate(line, 1):
            assert prompt.parents == tuple(p.id for p in known[:place])
            assert prompt.text.startswith(known[place - 1].text)
            assert prompt.language == seed.language
    assert not _reasons(records)
    assert _counts(records) == {"asked": 9, "written": 9, "gained": 9, "answered": 9, "kept": 9}
    assert _counts(records, "conformance")["rows_per_seed"] == 4
    assert _counts(records, "conformance")["calls_per_row"] == 3 == EvolInstruct(engine="e", rounds=3).calls(3) / 9


def test_each_row_has_its_answer_and_names_its_operation() -> None:
    records = _run(_engine(), rounds=2)
    answers = [r for r in records if isinstance(r, Completion)]
    assert [a.prompt_id for a in answers] == [p.id for p in _prompts(records)]
    seeds = [Prompt(user(f"Name river {i}."), language="en") for i in range(60)]
    drawn = Counter(p.meta["operation"] for p in _prompts(_run(_engine(), seeds)))
    assert set(drawn) == {"add_constraints", "deepen", "concretize", "increase_reasoning", "in_breadth"}
    assert max(drawn.values()) < 25
    depth = _prompts(_run(_engine(), seeds, operations=("deepen",)))
    assert {p.meta["operation"] for p in depth} == {"deepen"}


def test_the_template_tells_the_operation_in_the_prompts_language() -> None:
    engine = _engine(
        replies={"brand new one": "Something rarer.", "全新的任务": "更少见的事。", "equal|等同": "Not equal"}
    )
    texts = [p.text for p in _prompts(_run(engine, SEEDS[1:], operations=("in_breadth",), answer=False))]
    assert texts == ["Something rarer.", "更少见的事。"]


def test_what_is_eliminated_leaves_its_parent_to_evolve_again() -> None:
    # "slowly" and "twice" are refused by the check, so some parents try again from where they were
    check = {"equal to each other.*And (?:slowly|twice)": "Equal", "是否等同.*要押韵": "等同"}
    records = _run(_engine(replies=check | GROWS), rounds=4)
    assert _reasons(records)["no_information_gain"] > 0
    assert set(_reasons(records)) <= {"no_information_gain", "duplicate"}
    by_id = {p.id: p for p in [*SEEDS, *_prompts(records)]}
    for prompt in _prompts(records):
        assert by_id[prompt.parents[-1]].text in prompt.text
        assert len(prompt.parents) <= prompt.meta["round"]
    refused = next(r for r in records if isinstance(r, Verdict))
    assert refused.evidence_id in by_id, "the parent that nothing was gained over"
    assert refused.text not in {p.text for p in by_id.values()}


@pytest.mark.parametrize(
    ("replies", "reason"),
    [
        ({"task": "Name  three RIVERS.", "zh": "写一首关于春天的短诗。"}, "no_information_gain"),
        ({"equal": "Equal", "zh_equal": "等同"}, "no_information_gain"),
        ({"equal": "Perhaps.", "zh_equal": "也许吧。"}, "unreadable"),
        ({"task": "#Rewritten Prompt# Name four rivers of Asia.", "zh": "改写后的指令如下，写诗。"}, "leaked_prompt"),
        ({"task": "And so it is.", "zh": "的，了。"}, "only_stop_words"),
        ({"task": "?!", "zh": "……"}, "unreadable"),
        ({"task": "I'm sorry, I can't help with that.", "zh": "抱歉，我无法完成这个请求。"}, "refused"),
        ({"answer": "I am sorry, no such rivers are known."}, "too_hard"),
        ({"answer": "对不起，这个我不知道。"}, "too_hard"),
        ({"answer": "... the!"}, "empty_answer"),
        ({"answer": " "}, "unreadable"),
    ],
)
def test_each_rule_eliminates_with_its_reason(replies: dict[str, str], reason: str) -> None:
    records = _run(_with(**replies), [SEEDS[0], SEEDS[2]])
    assert _reasons(records) == {reason: 2}
    assert not _prompts(records)
    assert all(r.text for r in records if isinstance(r, Verdict))


def test_an_instruction_that_is_there_already_is_eliminated_with_the_earlier_one() -> None:
    records = _run(_with(task="Say why rain smells on hot streets."), SEEDS[:2])
    [kept] = _prompts(records)
    assert [(r.reason, r.evidence_id) for r in records if isinstance(r, Verdict)] == [("duplicate", kept.id)]


def test_errors_and_cuts_in_each_step_are_rows_and_nothing_is_invented() -> None:
    assert _reasons(_run(_engine(error_every=1))) == {"engine_error": 3}
    assert _reasons(_run(_engine(truncate_every=1))) == {"truncated": 3}
    records = _run(_engine(error_every=3))  # the third request of each call: one of three evolutions, then none
    assert _reasons(records) == {"engine_error": 1}
    assert len(_prompts(records)) == 2
    judge = Scripted(error_every=1).open()
    step = EvolInstruct(engine="e", judge="j", rounds=1)
    failed = list(step.generate(SEEDS, {"e": _engine(), "j": judge}, Random(2)))
    assert _reasons(failed) == {"engine_error": 3}
    assert "And " in next(r.text for r in failed if isinstance(r, Verdict)), "the evolved text is not lost"


def test_without_answers_the_rules_that_read_them_are_off() -> None:
    records = _run(_with(answer="sorry"), answer=False)
    assert len(_prompts(records)) == 3
    assert not [r for r in records if isinstance(r, Completion)]
    assert _counts(records) == {"asked": 3, "written": 3, "gained": 3, "kept": 3}
    assert EvolInstruct(engine="e", answer=False).calls(10) == 80


def test_waves_and_the_order_of_replies_change_nothing() -> None:
    whole = _run(_engine(), rounds=3)
    assert _run(_engine(shuffle=4), rounds=3) == whole
    parts = _run(_engine(), rounds=3, wave=1)
    assert {p.id for p in _prompts(parts)} == {p.id for p in _prompts(whole)}


def test_no_seeds_is_told() -> None:
    with pytest.raises(DataError, match="nothing to evolve"):
        _run(_engine(), [])


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("sorry " + "word " * 79, ""),
        ("sorry " + "word " * 78, "too_hard"),
        ("抱歉" + "字" * 158, ""),
        ("抱歉" + "字" * 157, "too_hard"),
        ("42", ""),
        ("+", ""),
        ("的。", "empty_answer"),
        ("Yes.", ""),
    ],
)
def test_the_rules_on_answers_count_words_in_both_languages(answer: str, fault: str) -> None:
    assert rules.answer_fault(answer) == fault


def test_a_phrase_that_the_parent_has_already_is_not_leaked() -> None:
    parent = "Improve the given prompt for an image model."
    assert rules.instruction_fault("Improve the given prompt for an image model in two ways.", parent) == ""
    assert rules.instruction_fault("Improve the given prompt in two ways.", "Improve this.") == "leaked_prompt"


@pytest.mark.parametrize(
    ("said", "equal"),
    [("Equal", True), ("Not equal.", False), ("They differ.\nNot Equal", False), ("They are not equal.", False),
     ("等同", True), ("不等同。", False), ("二者深度不同。\n不等同", False), ("Same depth.\n**Equal**", True),
     ("Not equal.\nBoth ask for the same number of words.", False), ("<think>Equal?\nEqual\n</think>Not equal", False),
     ("Equal\nNo: it asks for more.\nNot equal", False)],
)  # fmt: skip
def test_the_equality_check_is_read_from_its_last_line_that_is_a_verdict(said: str, equal: bool) -> None:
    assert _equality(said) is equal


@pytest.mark.parametrize(
    "said",
    ["maybe", "Equal in topic, not in depth", "They are far from equal.", "Reply with one line: Equal, or Not equal.",
     "They are not the same.", "<think>\nEqual\n</think>\nI cannot say.",
     "主题等同，深度不等同", "只回答一行：等同，或 不等同。",
     "二者并不完全相同。", "远非等同"],
)  # fmt: skip
def test_a_sentence_about_equality_is_no_verdict_and_is_never_guessed_at(said: str) -> None:
    assert _equality(said) is None
    assert _reasons(_run(_with(equal=said), SEEDS[:1])) == {"unreadable": 1}


@pytest.mark.parametrize("said", ["Equal\nThey differ in how much", "Not equal\nThey differ in all"])
def test_a_cut_equality_check_is_truncated_whatever_it_began_with(said: str) -> None:
    judge = Scripted(replies={".": said}, truncate_every=1).open()
    step = EvolInstruct(engine="e", judge="j", rounds=1)
    records = list(step.generate(SEEDS, {"e": _engine(), "j": judge}, Random(2)))
    assert _reasons(records) == {"truncated": 3}
    assert not _prompts(records)


def _equality(said: str) -> bool | None:
    return rules.equality(next(_engine(replies={".": said}).generate([_request()])))


def _request():  # type: ignore[no-untyped-def]
    from factory.engines.base import Request

    return Request(user("?"))
