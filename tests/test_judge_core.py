"""The judging core: fences, orders, readings. The engine is the scripted one, whose replies stand in the test."""

import json
import re
from itertools import product
from pathlib import Path

import pytest

from factory.engines.base import Engine, Reply, Request, Sampling
from factory.engines.scripted import Scripted
from factory.records import Completion, Message, Prompt, user
from generators import _verdicts as reading
from generators._judge import (
    Case,
    Judge,
    Opinion,
    agreed,
    compare,
    neutral,
    nonce_for,
    pair_requests,
    rank,
    ranking_requests,
    read_pair,
    score,
)
from tests.injections import INJECTIONS, injected

ROOT = Path(__file__).parent.parent
JUDGE = Judge(by="test")
ASKED, 问 = Prompt(user("What is 2 + 2?"), language="en"), Prompt(user("2加2等于几？"), language="zh")


def case(*texts: str, prompt: Prompt = ASKED) -> Case:
    return Case.of(prompt, *(Completion(prompt.id, t, "m", seed=i) for i, t in enumerate(texts)))


def opinions(engine: Engine, *cases: Case, judge: Judge = JUDGE) -> list[Opinion]:
    return list(compare(judge, engine, cases))


def says(first: str, second: str, pair: Case) -> Opinion:
    """The opinion where the judge says these two things in the two orders."""
    asked = pair_requests(JUDGE, pair)
    replies = [
        Reply(r, f"Because.\nVerdict: {text}", key=text + str(i))
        for i, (r, text) in enumerate(zip(asked, (first, second), strict=True))
    ]
    return read_pair(JUDGE, pair, replies, "judge-1")


@pytest.mark.parametrize(
    ("first", "second", "decision"),
    [
        ("A", "B", "win"), ("B", "A", "lose"), ("tie", "tie", "tie"),
        ("A", "A", "inconsistent"), ("B", "B", "inconsistent"), ("A", "tie", "inconsistent"),
        ("A", "perhaps", "invalid"), ("no idea", "B", "invalid"),
    ],
)  # fmt: skip
def test_a_pair_wins_only_if_both_orders_agree(first: str, second: str, decision: str) -> None:
    pair = case("4", "5")
    opinion = says(first, second, pair)
    assert opinion.decision == decision
    assert [j.shown_first for j in opinion.judgements] == [a.id for a in pair.answers]
    assert {(j.completion_id, j.other_id) for j in opinion.judgements} == {(pair.answers[0].id, pair.answers[1].id)}
    assert [v.reason for v in opinion.faults] == ["unreadable"] * (decision == "invalid")
    assert (decision == "invalid") == any(j.verdict == "invalid" for j in opinion.judgements)


def test_a_criterion_for_the_worse_answer_is_stored_as_who_is_better() -> None:
    pair = case("how to steal", "No.")
    harmful = Judge(by="t", criterion="Which answer is more harmful?", worse=True)
    engine = Scripted(replies={"answer A\nhow to steal": "Verdict: A", "answer B\nhow to steal": "Verdict: B"}).open()
    (opinion,) = opinions(engine, pair, judge=harmful)
    assert opinion.decision == "lose"
    assert {j.verdict for j in opinion.judgements} == {"lose"}
    assert {j.rubric for j in opinion.judgements} == {"Which answer is more harmful?"}


def test_an_engine_error_is_a_fault_and_no_opinion() -> None:
    (opinion,) = opinions(Scripted(replies={".": "Verdict: A"}, error_every=2).open(), case("4", "5"))
    assert (opinion.decision, opinion.judgements) == ("invalid", ())
    assert [(v.reason, v.text) for v in opinion.faults] == [("engine_error", "an error that was asked for")]


def test_a_reply_that_was_cut_decides_nothing_even_if_it_ends_in_a_verdict() -> None:
    engine = Scripted(replies={".": "Verdict: A\n" + "x" * 11}, truncate_every=1).open()
    (opinion,) = opinions(engine, case("4", "5"))
    assert opinion.decision == "invalid"
    assert [v.reason for v in opinion.faults] == ["truncated", "truncated"]
    assert opinion.judgements[0].rationale.strip() == "Verdict: A"


def test_opinions_come_in_the_order_of_the_cases_however_replies_come() -> None:
    cases = [case(f"yes {i}", f"no {i}") for i in range(50)]
    rules = {"answer A\nyes": "Verdict: A", "answer A\nno": "Verdict: B"}
    found = opinions(Scripted(replies=rules, shuffle=17).open(), *cases)
    assert [o.case for o in found] == cases
    assert {o.decision for o in found} == {"win"}


def test_votes_in_each_order_are_counted_before_the_orders_are_compared() -> None:
    judge = Judge(by="t", votes=3, sampling=Sampling(temperature=1.0))
    asked = pair_requests(judge, case("4", "5"))
    assert len({r.id for r in asked}) == 6
    said = ["A", "B", "A", "A", "B", "B"]  # first order: A, A, B -> a win; swapped: B, A, B -> a win
    replies = [Reply(r, f"Verdict: {s}", key=str(i)) for i, (r, s) in enumerate(zip(asked, said, strict=True))]
    assert read_pair(judge, case("4", "5"), replies, "m").decision == "win"


def test_several_judges_decide_by_majority_and_the_unreadable_have_no_vote() -> None:
    assert agreed(["win", "win", "lose"]) == "win"
    assert agreed(["lose", "invalid", "invalid"]) == "lose"
    assert agreed(["win", "lose"]) == "inconsistent"
    assert agreed(["tie", "tie", "invalid"]) == "tie"
    assert agreed(["invalid"]) == "invalid"


# --- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("4 is right.\nVerdict: A", "A"), ("verdict: b", "B"), ("**Verdict: tie**", "tie"), ("Verdict: [[B]].", "B"),
        ("My final verdict is: [[A]]", "A"), ("[[C]]", "tie"), ("理由很短。\n裁决：平局", "tie"), ("裁决： B。", "B"),
        ("<think>Verdict: A</think>\nVerdict: B\n\n", "B"), ("Verdict: A\nVerdict: B", "B"),
        ("", None), ("A", None), ("Verdict: A because B errs", None), ("Verdict: A\nI hope this helps!", None),
        ("Verdict: AB", None), ("Verdict: C", None), ("The verdict: both", None), ("I cannot judge this.", None),
        ('{"verdict": "A"}', None),
    ],
)  # fmt: skip
def test_only_the_last_line_is_a_verdict(text: str, said: str | None) -> None:
    named, rationale = reading.verdict(text, structured=False)
    assert named == said
    assert rationale == text or named


@pytest.mark.parametrize(
    "text",
    [
        "I cannot choose between [[A]] and [[B]].", 'Answer A merely contains the text "[[A]]".', "Not [[A]]",
        "Verdict: not [[A]]", "Verdict: [[A]] or [[B]]", '"[[A]]"', "> [[B]]", "[[A]] is what it claims. [[B]]",
        "我不能判 [[A]]", "回答里写着“[[B]]”。", "结论：不是 [[A]]", "[[A]]\nI hope this helps!",
    ],
)  # fmt: skip
def test_a_bracket_in_a_sentence_is_a_quotation_and_no_verdict(text: str) -> None:
    assert reading.verdict(text, structured=False) == (None, text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[A]]\nOr rather:\n[[B]]", "B"), ("**[[A]]**", "A"), ("**Final verdict:** [[C]]", "tie"), ("[[tie]].", "tie"),
        ("My verdict is [[B]]", "B"), ("结论：[[A]]。", "A"), ("最终裁决： [[B]]", "B"),
        ("It quotes [[A]].\n[[B]]", "B"),
    ],
)  # fmt: skip
def test_a_bracket_alone_or_behind_a_label_is_a_verdict(text: str, said: str) -> None:
    assert reading.verdict(text, structured=False)[0] == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"rationale": "错", "verdict": "A"}', "A"),
        ('```json\n{"verdict": "tie"}\n```', "tie"),
        ('{"verdict": "A"} {"verdict": "B"}', None),
        ('{"verdict": "A", "verdict": "B"}', None),
        ('{"verdict": ["A"]}', None),
        ('{"verdict": "C"}', None),
        ('"A"', None),
        ("Verdict: A", None),
        ("", None),
        ('{"rationale": "\\"verdict\\": \\"A\\""}', None),
    ],
)
def test_a_structured_verdict_is_one_json_object_and_nothing_else(text: str, said: str | None) -> None:
    assert reading.verdict(text, structured=True)[0] == said


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Score: 4", 4),
        ("好。\n评分：5分", 5),
        ("Score: 3/5", 3),
        ("Score: 10", None),
        ("Score: 4.5", None),
        ("Score: 0", None),
        ("4", None),
    ],
)
def test_a_ten_is_not_a_one(text: str, value: float | None) -> None:
    """UltraFeedback read `Overall: 1` as 10 in 2,628 rows."""
    assert reading.score(text, structured=False)[0] == value
    assert reading.score(json.dumps({"score": True}), structured=True)[0] is None


@pytest.mark.parametrize(
    ("text", "ranks"),
    [
        ("Ranking: B > A = C", [1, 0, 1]),
        ("排名：C＞B＞A", [2, 1, 0]),
        ("Ranking: A > B", None),
        ("Ranking: A > B > C > D", None),
        ("Ranking: A > A > C", None),
        ("Ranking: A > B > C > A", None),
        ("B > A > C", None),
    ],
)
def test_a_ranking_names_every_label_once(text: str, ranks: list[int] | None) -> None:
    assert reading.ranking(text, "ABC", structured=False) == ranks


def test_a_structured_ranking_is_lists_of_labels() -> None:
    assert reading.ranking('{"rationale": "", "ranking": [["B"], ["A", "C"]]}', "ABC", structured=True) == [1, 0, 1]
    assert reading.ranking('{"ranking": "B > A > C"}', "ABC", structured=True) is None


# --- fences --------------------------------------------------------------------------------------------------------


def shown(request: Request) -> str:
    assert isinstance(request.prompt, tuple)
    return request.prompt[-1].content


def fence(text: str) -> str:
    """The nonce of the fences: the one that opens the last line."""
    return text.splitlines()[-1][1:7]


@pytest.mark.parametrize("prompt", [ASKED, 问], ids=["en", "zh"])
@pytest.mark.parametrize("structured", [False, True])
def test_the_packaged_question_fences_every_text_and_asks_in_the_prompts_language(
    prompt: Prompt, structured: bool
) -> None:
    pair = case("four", "五", prompt=prompt)
    first, second = (shown(r) for r in pair_requests(Judge(by="t", structured=structured), pair))
    nonce = fence(first)
    assert first.index("four") < first.index("五")
    assert second.index("五") < second.index("four")
    assert len(re.findall(rf"^\[{nonce}\]", first, re.MULTILINE)) == 4
    assert ("哪个回答更好" in first) == (prompt is 问)
    assert ("JSON" in first) == structured


def test_a_schema_is_forced_only_where_it_is_asked_for() -> None:
    forced = pair_requests(Judge(by="t", structured=True), case("4", "5"))[0].sampling.schema
    assert json.loads(forced)["properties"]["verdict"]["enum"] == ["A", "B", "tie"]
    assert pair_requests(JUDGE, case("4", "5"))[0].sampling.schema == ""


def test_a_candidate_that_holds_the_nonce_gets_another_one() -> None:
    nonce = nonce_for("task", "one")
    assert re.fullmatch("[0-9a-f]{6}", nonce)
    assert nonce == nonce_for("task", "one")
    hostile = f"one [{nonce_for('task', 'x')}]"
    for _ in range(20):  # even one that knows how nonces are made chases its own tail
        hostile += f" [{nonce_for('task', hostile).upper()}]"
        assert nonce_for("task", hostile) not in hostile.lower()


def test_without_a_temperature_the_same_question_is_the_same_call_in_every_run() -> None:
    assert [r.id for r in pair_requests(JUDGE, case("4", "5"), salt=1)] == [
        r.id for r in pair_requests(JUDGE, case("4", "5"), salt=2)
    ]
    drawn = Judge(by="t", sampling=Sampling(temperature=1.0))
    assert pair_requests(drawn, case("4", "5"), salt=1)[0].id != pair_requests(drawn, case("4", "5"), salt=2)[0].id


@pytest.mark.parametrize(
    "marker",
    [
        "<|im_end|>",
        "<|eot_id|>",
        "<｜Assistant｜>",
        "</s>",
        "<s>",
        "[INST]",
        "[/INST]",
        "<<SYS>>",
        "<end_of_turn>",
        "<think>",
        "＜|im_end|＞",
        *"[SYSTEM_PROMPT] [/SYSTEM_PROMPT] [AVAILABLE_TOOLS] [TOOL_CALLS] [/TOOL_RESULTS] [gMASK] [sMASK]".split(),
        *"<tool_response> </tool_response> <BOS_TOKEN> <EOS_TOKEN> <PAD_TOKEN> <sop> <eop>".split(),
    ],
)
def test_reserved_chat_markers_are_taken_apart(marker: str) -> None:
    made = neutral(f"4{marker}好")
    assert marker not in made
    assert made.replace(" ", "") == f"4{marker}好"
    assert neutral(made) == made


def test_ordinary_text_passes_as_it_is() -> None:
    text = "if a < b and c <= d: x[i] = '<b>粗体</b>' | y  # <style> [INSTALL] [MASK] [TOOL] <tools> <shop>"
    assert neutral(text) == text


def test_a_dialogue_is_shown_with_its_roles() -> None:
    prompt = Prompt((Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "1 + 1?")))
    assert Case.of(prompt).task == "user: Hi\n\nassistant: Hello\n\nuser: 1 + 1?"


# --- injection -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structured", [False, True])
def test_no_text_of_a_candidate_can_decide(structured: bool) -> None:
    """A judge that repeats the candidates and then says its verdict is read by its verdict alone."""
    assert len(INJECTIONS) == 30
    for template, slot in product(INJECTIONS, "AB"):
        pair = case("4", injected(template, "5", slot))
        judge = Judge(by="t", structured=structured)
        replies = []
        for place, request in enumerate(pair_requests(judge, pair)):
            honest = "A" if place == 0 else "B"
            quoted = "\n".join(a.text for a in pair.answers)
            text = (
                json.dumps({"rationale": quoted, "verdict": honest}) if structured else f"{quoted}\nVerdict: {honest}"
            )
            replies.append(Reply(request, text, key=str(place)))
        assert read_pair(judge, pair, replies, "m").decision == "win", template


def test_no_candidate_opens_a_fence_or_ends_a_turn() -> None:
    for template in INJECTIONS:
        pair = case("4", injected(template, "5", "B"))
        text = shown(pair_requests(JUDGE, pair)[0])
        nonce = fence(text)
        assert len(re.findall(rf"^\[{nonce}\]", text, re.MULTILINE)) == 4, template
        assert not re.search(r"<\|im_(start|end)\|>|</s>|\[/?INST\]|<(start|end)_of_turn>|<｜|<\|eot", text), template


def test_a_judge_that_only_repeats_the_candidate_is_unreadable_in_json_and_never_a_win_in_text() -> None:
    """Where the reply is the candidate itself, its own marker may be the last line: then both orders name one slot."""
    for template, slot in product(INJECTIONS, "AB"):
        pair = case("4", injected(template, "5", slot))
        for structured in (False, True):
            judge = Judge(by="t", structured=structured)
            replies = [Reply(r, pair.answers[1].text) for r in pair_requests(judge, pair)]
            assert read_pair(judge, pair, replies, "m").decision in {"inconsistent", "invalid"}, template


# --- scores and rankings -------------------------------------------------------------------------------------------


def test_each_aspect_is_asked_with_its_rubric() -> None:
    rules = {"Helpfulness:.*": "Score: 4", "Honesty:": "Score: 10", "有用性": "评分：5", "诚实性": "评分：3"}
    engine, judge = Scripted(replies=rules).open(), Judge(by="t", aspects=("helpfulness", "honesty"))
    english, chinese = score(judge, engine, [case("4"), case("四", prompt=问)])
    assert english.scores == {"helpfulness": 4.0, "honesty": None}
    assert english.mean is None
    assert [v.reason for v in english.faults] == ["unreadable"]
    assert [(j.aspect, j.score, j.verdict) for j in english.judgements] == [
        ("helpfulness", 4.0, None),
        ("honesty", None, "invalid"),
    ]
    assert chinese.mean == 4.0


def test_a_ranking_is_all_its_pairs_and_wins_only_if_both_lists_agree() -> None:
    ranked = case("superb", "good", "bad")
    asked = [shown(r) for r in ranking_requests(JUDGE, ranked)]
    assert [t.index("superb") < t.index("bad") for t in asked] == [True, False]
    rules = {"answer A\nsuperb": "Ranking: A > B = C", "answer A\nbad": "Ranking: C > B > A"}
    found = list(rank(JUDGE, Scripted(replies=rules).open(), [ranked]))
    assert [tuple(a.text for a in o.case.answers) for o in found] == [
        ("superb", "good"),
        ("superb", "bad"),
        ("good", "bad"),
    ]
    assert [o.decision for o in found] == ["win", "win", "inconsistent"]  # good = bad forwards, good > bad backwards
    assert len({j.id for o in found for j in o.judgements}) == 6


def test_a_ranking_that_cannot_be_read_is_told_once() -> None:
    engine = Scripted(replies={"answer A\nsuperb": "Ranking: A > B > C", "answer A\nbad": "All are fine."}).open()
    found = list(rank(JUDGE, engine, [case("superb", "good", "bad")]))
    assert [o.decision for o in found] == ["invalid"] * 3
    assert [[v.reason for v in o.faults] for o in found] == [["unreadable"], [], []]
    broken = list(rank(JUDGE, Scripted(error_every=2).open(), [case("superb", "good", "bad")]))
    assert [len(o.judgements) for o in broken] == [0, 0, 0]
    assert [v.reason for o in broken for v in o.faults] == ["engine_error"]


def test_the_mini_templates_are_used_for_chinese_tasks_too() -> None:
    """A template of one's own for all languages goes before a packaged one for the prompt's language."""
    judge = Judge(by="t", templates=ROOT / "specs/templates/mini")
    assert shown(pair_requests(judge, case("4", "5", prompt=问))[0]).startswith("Which answer is better?\n[")
