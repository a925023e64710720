from pathlib import Path
from random import Random

import pytest

from factory.engines.base import Engine
from factory.engines.scripted import Scripted
from factory.errors import DataError, SpecError
from factory.records import Completion, Metric, Prompt, Record, Verdict, user
from generators import _instances as reading
from generators._instances import Instance
from generators.respond import Respond
from generators.self_instruct import SelfInstruct

SEEDS = [Prompt(user(t), meta={"instruction": t}, language="en") for t in (
    "Name three rivers of Europe.", "Rewrite the sentence in the past tense.", "Explain how a bicycle stays upright.",
)]  # fmt: skip
LISTED = """9. Describe the smell of rain on a hot street.
10. Draw a picture of a cat.
11. Write a program that sorts a list.
12. Describe the smell of rain on a hot road.
13. Sum up.
14. Tell a joke about a doctor and a plumber.
15. 用三句话介绍一座你喜欢的城市。
some stray line"""
INSTANCES = "Example 1\nInput: one\nOutput: first\n\nExample 2\nInput: two\nOutput: second"


def _engine(**replies: object) -> dict[str, Engine]:
    rules = {"Come up with": LISTED, "Answer with Yes or No": "No", "examples for the task": INSTANCES}
    rules |= {
        "只回答“是”或“否”": "否",
        "严格按照": "示例 1\n输入：一\n输出：甲\n\n示例 2\n输入：二\n输出：乙",
    } | replies
    return {"e": Scripted(replies=rules).open()}  # type: ignore[arg-type]


def _run(engines: dict[str, Engine] | None = None, **options: object) -> list[Record]:
    step = SelfInstruct(**{"engine": "e", "accept": 4, "round_requests": 1, "max_candidates": 16} | options)  # type: ignore[arg-type]
    return list(step.generate(SEEDS, engines or _engine(), Random(0)))


def _reasons(records: list[Record]) -> list[tuple[str, str]]:
    return [(r.reason, r.text.split("\n")[0]) for r in records if isinstance(r, Verdict)]


def test_every_refused_candidate_has_its_reason() -> None:
    assert _reasons(_run(accept=9))[:5] == [
        ("unreadable", "some stray line"),
        ("needs_another_medium", "Draw a picture of a cat."),
        ("write_a_program", "Write a program that sorts a list."),
        ("too_similar", "Describe the smell of rain on a hot road."),
        ("too_short", "Sum up."),
    ]


def test_exactly_the_wanted_rows_are_kept_each_with_its_answer_and_parents() -> None:
    records = _run(accept=3)
    prompts = [r for r in records if isinstance(r, Prompt)]
    answers = [r for r in records if isinstance(r, Completion)]
    assert len(prompts) == len(answers) == 3
    assert [a.prompt_id for a in answers] == [p.id for p in prompts]
    assert set(prompts[0].parents) == {s.id for s in SEEDS}
    assert prompts[0].text == "Describe the smell of rain on a hot street.\none"
    assert answers[0].text == "first"
    assert ("enough_accepted", "Tell a joke about a doctor and a plumber.") in _reasons(records)


def test_chinese_instructions_are_counted_by_character_and_kept() -> None:
    kept = [r for r in _run(accept=6) if isinstance(r, Prompt)]
    assert kept[-1].text.startswith("用三句话介绍一座你喜欢的城市。")
    assert kept[-1].language == "zh"


def test_a_chinese_task_is_sorted_and_answered_in_chinese() -> None:
    listed = "9. 判断这条评论是正面的还是负面的。\n10. 用三句话介绍一座你喜欢的城市。"
    replies = {
        "Come up with": listed,
        r"只回答“是”或“否”.*任务：判断这条评论[^\n]*\n分类任务：$": "是",
        r"每个可能的标签.*任务：判断这条评论[^\n]*$": "标签：正面\n输入：很好。\n\n标签：负面\n输入：很差。",
    }
    others = {"只回答“是”或“否”": "否", "示例 1\n输入：": "示例 1\n输入：一\n输出：甲\n\n示例 2\n输入：二\n输出：乙"}
    records = _run({"e": Scripted(replies=replies | others).open()}, accept=4)
    rows = [(r.text.split("\n")[-1], r.language) for r in records if isinstance(r, Prompt)]
    assert rows == [("很好。", "zh"), ("很差。", "zh"), ("一", "zh"), ("二", "zh")]
    assert [r.text for r in records if isinstance(r, Completion)] == ["正面", "负面", "甲", "乙"]


@pytest.mark.parametrize(
    ("said", "yes"), [("Yes.", True), ("是", True), ("否", False), ("不是", False), ("是否：否", False)]
)
def test_a_task_is_a_classification_only_where_the_answer_is_yes(said: str, yes: bool) -> None:
    assert reading.is_yes(said) is yes


def test_the_waterfall_only_falls() -> None:
    metrics = [m for m in _run(accept=6) if isinstance(m, Metric)]
    counts = {m.name.split("/")[-1]: m.value for m in metrics if m.name.startswith("yield/")}
    assert counts == {"asked": 8, "parsed": 7, "valid": 4, "novel": 3, "answered": 3, "kept": 6}


def test_the_ceiling_of_candidates_ends_a_hopeless_search() -> None:
    records = _run(accept=500, max_candidates=40)
    counts = {m.name.split("/")[-1]: m.value for m in records if isinstance(m, Metric)}
    assert counts["asked"] == 40
    assert counts["kept"] == 6


def test_the_same_seed_gives_the_same_rows_whatever_order_replies_come_in() -> None:
    shuffled = {"e": Scripted(shuffle=5, replies=_engine()["e"].faults.replies).open()}  # type: ignore[attr-defined]
    assert _run(accept=6, round_requests=4) == _run(shuffled, accept=6, round_requests=4)


def test_classification_tasks_get_their_labels_first() -> None:
    listed = "9. Say whether the film review is positive or negative."
    labels = "Label: positive\nInput: A joy.\n\nLabel: negative\nInput: A bore."
    engines = _engine(
        **{"Come up with": listed, "Answer with Yes or No": "Yes", "is a classification task. Write": labels}
    )
    rows = [(r.text) for r in _run(engines, accept=2) if isinstance(r, Completion)]
    assert rows == ["positive", "negative"]


def test_alpacas_way_writes_all_in_one_call() -> None:
    reply = (
        "4. Instruction: Name a large animal.\n4. Input: <noinput>\n4. Output: The blue whale.\n"
        "5. Instruction: Translate the word into German.\n5. Input: tree\n5. Output: Baum\n6. Instruction: cut of"
    )
    records = _run(_engine(**{"Write a varied set": reply}), style="alpaca", accept=2)
    prompts = [r.text for r in records if isinstance(r, Prompt)]
    assert prompts == ["Name a large animal.", "Translate the word into German.\ntree"]


def test_errors_and_empty_instances_are_rows() -> None:
    engines = {"e": Scripted(error_every=1).open()}
    assert set(_reasons(_run(engines, max_candidates=8))) == {("engine_error", "an error that was asked for")}
    reasons = [r for r, _ in _reasons(_run(_engine(**{"examples for the task": "I would rather not."})))]
    assert "no_instance" in reasons


def test_no_seeds_is_told() -> None:
    with pytest.raises(DataError, match="no seeds to start from"):
        list(SelfInstruct(engine="e").generate([], _engine(), Random(0)))


def test_own_templates_replace_the_packaged_ones(tmp_path: Path) -> None:
    (tmp_path / "instructions.jinja").write_text("MY OWN {{ wanted }} {{ tasks | length }}")
    engines = _engine(**{"^MY OWN 8 3": LISTED})
    assert [r for r in _run(engines, templates=tmp_path) if isinstance(r, Prompt)]
    (tmp_path / "instructions.jinja").write_text("{{ nothing_like_this }}")
    with pytest.raises(SpecError, match="nothing_like_this"):
        _run(engines, templates=tmp_path)


@pytest.mark.parametrize(
    ("instances", "faults"),
    [
        ([Instance("a", "b"), Instance("a", "c")], ["conflicting_outputs"] * 2),
        ([Instance("a", "a")], ["input_equals_output"]),
        ([Instance("", "")], ["empty_output"]),
        ([Instance("", "As follows:")], ["unfinished_output"]),
        ([Instance("", "如下：")], ["unfinished_output"]),
        ([Instance("a", "b"), Instance("a", "b")], ["", "repeated_instance"]),
        ([Instance(str(i), f"o{i}") for i in range(7)], [""] * 5 + ["surplus_instance"] * 2),
    ],
)
def test_instances_are_held_to_the_papers_rules(instances: list[Instance], faults: list[str]) -> None:
    assert reading.instance_faults(instances, 5) == faults


def test_a_reply_that_was_cut_loses_its_last_task() -> None:
    assert reading.numbered("1. whole task here\n2. half a ta", cut=True) == (["whole task here"], ["half a ta"])
    assert reading.input_first(INSTANCES, cut=True) == [Instance("one", "first")]


def test_instances_are_read_in_chinese_and_without_input() -> None:
    text = "示例 1\n输入：<noinput>\n输出：好的。"
    assert reading.input_first(text, cut=False) == [Instance("", "好的。")]
    assert reading.output_first("标签：正面\n输入：很好。", cut=False) == [Instance("很好。", "正面")]


def test_respond_gives_n_answers_with_seeds_of_their_own_in_order() -> None:
    step = Respond(engine="e", n=3)
    records = list(step.generate(SEEDS, {"e": Scripted(shuffle=4).open()}, Random(1)))
    answers = [r for r in records if isinstance(r, Completion)]
    assert [a.prompt_id for a in answers] == [p.id for p in SEEDS for _ in range(3)]
    assert len({a.seed for a in answers}) == 9
    fewer = [r for r in step.generate(SEEDS[1:], {"e": Scripted().open()}, Random(1)) if isinstance(r, Completion)]
    assert fewer == answers[3:], "another prompt's absence changes nothing"


def test_a_system_message_goes_before_conversations_that_have_none() -> None:
    rules = {"e": Scripted(replies={"rivers": "ok"}).open()}
    step = Respond(engine="e", system="Be brief.")
    answers = [r for r in step.generate(SEEDS[:1], rules, Random(1)) if isinstance(r, Completion)]
    assert answers[0].prompt_id == SEEDS[0].id, "the row is the prompt as it was imported"


@pytest.mark.parametrize(
    ("instruction", "fault"),
    [
        ("画一张猫的图片并说明颜色。", "needs_another_medium"),
        ("《红楼梦》讲了什么故事？", ""),
        ("把这句话翻译成英文。", ""),
        ("总结。", "too_short"),
        ("!important: write a poem", "starts_with_punctuation"),
        ("word " * 151, "too_long"),
    ],
)
def test_rules_hold_in_both_languages(instruction: str, fault: str) -> None:
    assert reading.instruction_fault(instruction, "paper") == fault


def test_a_preamble_is_no_task() -> None:
    tasks, others = reading.numbered("Sure, here are two tasks:\n9. Name a river.\n10、说出一座山。", cut=False)
    assert tasks == ["Name a river.", "说出一座山。"]
    assert others == ["Sure, here are two tasks:"]
