"""`magpie`: a user's turn opened by the chat template, and what becomes of the instructions drawn from it."""

from random import Random

import pytest

from factory.engines._chat import render
from factory.engines.base import Engine, Request, Sampling, in_order
from factory.engines.openai import Openai
from factory.engines.scripted import Scripted
from factory.engines.transformers import Transformers
from factory.records import Completion, Message, Metric, Prompt, Record, Verdict, user
from generators.magpie import Magpie

GOOD = "Quality: good\nDifficulty: easy\nSafety: safe"
SAID = [
    "How do I bake bread without yeast?", "Thanks!", "Which river is the longest in Europe?", "怎样在家里种薄荷？",
    "How do I bake good bread without yeast?", "Write a poem about a lighthouse keeper.",
]  # fmt: skip
RULES: dict[str, str | list[str]] = {"^$": SAID, "Quality:": GOOD, ".": "An answer."}


def _run(engine: Engine, prompts: tuple[Prompt, ...] = (), **options: object) -> list[Record]:
    step = Magpie(**{"engine": "e", "accept": 3, "n": 40, "max_candidates": 40} | options)  # type: ignore[arg-type]
    return list(step.generate(prompts, {"e": engine}, Random(4)))


def _engine(rules: dict[str, str | list[str]] | None = None, **options: object) -> Engine:
    given = rules or {}
    replies = given | {k: v for k, v in RULES.items() if k not in given}
    return Scripted(**{"replies": replies} | options).open()  # type: ignore[arg-type]


def _verdicts(records: list[Record]) -> dict[str, Verdict]:
    return {r.reason: r for r in records if isinstance(r, Verdict)}


def _counts(records: list[Record], kind: str = "yield") -> dict[str, float]:
    return {r.name.split("/")[-1]: r.value for r in records if isinstance(r, Metric) and r.name.startswith(kind)}


def test_an_empty_user_turn_is_opened_as_the_chat_template_does() -> None:
    engine = Transformers(model="mini-weak", device="cpu", threads=1).open()
    assert render(engine.tokenizer, [{"role": "user", "content": ""}]) == "<|im_start|>user\n"
    spoken = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"},
              {"role": "assistant", "content": "hello"}, {"role": "user", "content": ""}]  # fmt: skip
    assert render(engine.tokenizer, spoken).endswith(
        "hi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n<|im_start|>user\n"
    )
    drawn = Sampling(temperature=1.0, max_tokens=12)
    chat, raw = in_order(engine, [Request(user(""), drawn, 7), Request("<|im_start|>user\n", drawn, 7)])
    assert chat.text == raw.text != ""


def test_a_template_that_hides_the_user_is_an_error() -> None:
    engine = Transformers(model="mini-weak", device="cpu", threads=1).open()
    engine.tokenizer.chat_template = "{{ bos_token }}{% if add_generation_prompt %}Answer: {% endif %}"
    with pytest.raises(ValueError, match="does not show what the user says"):
        render(engine.tokenizer, [{"role": "user", "content": ""}])


def test_a_server_is_asked_with_raw_text_and_told_of_otherwise() -> None:
    engine = Openai(model="m", base_url="http://localhost:1/v1").open()
    with pytest.raises(ValueError, match="ask it with raw text"):
        engine._fields(Request(user("")))
    seen = _run(_engine({"^<user>$": "Name a river in Spain, please."}), pre_query="<user>", accept=1)
    assert [r.text for r in seen if isinstance(r, Prompt)] == ["Name a river in Spain, please."]


def test_rows_are_instructions_with_answers_and_tags() -> None:
    records = _run(_engine())
    prompts = [r for r in records if isinstance(r, Prompt)]
    answers = [r for r in records if isinstance(r, Completion)]
    assert len(prompts) == len(answers) == 3
    assert [a.prompt_id for a in answers] == [p.id for p in prompts]
    assert all(set(p.meta) == {"quality", "difficulty", "safety", "call_key"} for p in prompts)
    assert {p.language for p in prompts} == {"en", "zh"}


def test_every_draw_has_a_seed_of_its_own_and_rounds_go_on_where_they_stopped() -> None:
    seeds = [Request((Message("user", ""),), seed=s).seed for s in range(3)]
    assert len(set(seeds)) == 3
    records = _run(_engine(), n=5, max_candidates=20, accept=50)
    assert _counts(records)["asked"] == 20
    assert _counts(_run(_engine(), n=200, max_candidates=20, accept=50))["kept"] == _counts(records)["kept"]


def test_what_is_short_repeated_or_near_is_refused_with_its_evidence() -> None:
    known = Prompt(user("Write a poem about a lighthouse keeper."))
    records = _run(_engine(), (known,), accept=9)
    found = _verdicts(records)
    assert set(found) == {"too_short", "duplicate", "too_similar"}
    assert found["too_short"].text == "Thanks!"
    assert known.id in {r.evidence_id for r in records if isinstance(r, Verdict) and r.reason == "duplicate"}
    near = found["too_similar"]
    assert near.score is not None
    assert near.score > near.threshold == 0.7  # type: ignore[operator]
    assert {r.text for r in records if isinstance(r, Prompt)} < set(SAID) - {known.text, "Thanks!"}


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        (GOOD.replace("good", "very poor"), "poor_quality"),
        (GOOD.replace("Safety: safe", "Safety: unsafe"), "unsafe"),
        ("Looks fine to me.", "unreadable"),
        (GOOD.replace("easy", "moderate"), "unreadable"),
    ],
)
def test_tags_decide_and_unreadable_ones_are_no_tags(tags: str, reason: str) -> None:
    records = _run(_engine({"Quality:": tags}))
    assert not [r for r in records if isinstance(r, Prompt)]
    verdict = _verdicts(records)[reason]
    assert verdict.text.split("\n")[0] in SAID


MENU = """Quality: very poor|poor|average|good|excellent
Difficulty: very easy|easy|medium|hard|very hard
Safety: safe|unsafe"""


@pytest.mark.parametrize(
    "said",
    [
        MENU,
        GOOD.replace("\n", " / "),
        GOOD.replace("good", "good enough"),
        GOOD.replace("Safety: safe", "Safety: safe or unsafe, who knows"),
        "It says Quality: good\nDifficulty: easy\nSafety: safe",
        f"<think>\n{GOOD}\n</think>\nI cannot tell.",
        "质量：good，大概\n难度：easy\n安全性：safe",
    ],
)
def test_an_echoed_menu_or_a_sentence_is_no_tag(said: str) -> None:
    records = _run(_engine({"Quality:": said}))
    assert not [r for r in records if isinstance(r, Prompt)]
    assert "unreadable" in _verdicts(records)
    assert not _verdicts(records).keys() & {"poor_quality", "unsafe"}


@pytest.mark.parametrize(
    "said",
    [
        f"{MENU}\n{GOOD}",
        f"The user writes: Quality: excellent / Difficulty: hard / Safety: unsafe\n{GOOD}",
        f"Quality: excellent\nDifficulty: hard\nSafety: unsafe\nThat is its own praise. My tags:\n{GOOD}",
        "**Quality:** Good.\n- Difficulty: easy\r\n质量: good\nSafety：safe。",
    ],
)
def test_the_last_full_line_of_each_tag_wins(said: str) -> None:
    kept = [r.meta for r in _run(_engine({"Quality:": said})) if isinstance(r, Prompt)]
    assert [(m["quality"], m["difficulty"], m["safety"]) for m in kept] == [("good", "easy", "safe")] * 3


def test_tags_that_were_cut_or_withheld_are_no_tags() -> None:
    judge = Scripted(replies={".": f"{GOOD}\n{'and so on ' * 9}"}, truncate_every=1).open()
    step = Magpie(engine="e", judge="j", accept=3, n=40, max_candidates=40)
    records = list(step.generate((), {"e": _engine(), "j": judge}, Random(4)))
    assert not [r for r in records if isinstance(r, Prompt)]
    assert _verdicts(records)["truncated"].text.split("\n")[0] in SAID


def test_thresholds_are_options() -> None:
    poor = GOOD.replace("good", "poor").replace("Safety: safe", "安全性：unsafe")
    records = _run(_engine({"Quality:": poor}), least_quality="poor", keep_unsafe=True)
    kept = [r.meta for r in records if isinstance(r, Prompt)]
    assert [(m["quality"], m["safety"]) for m in kept] == [("poor", "unsafe")] * 3
    assert _counts(records, "conformance")["unsafe"] == 1.0


def test_errors_cuts_and_silence_are_rows() -> None:
    assert set(_verdicts(_run(_engine(error_every=1)))) == {"engine_error"}
    assert set(_verdicts(_run(_engine(truncate_every=1)))) == {"truncated"}
    assert set(_verdicts(_run(_engine({"^$": "  "})))) == {"unreadable"}
    mixed = _run(_engine(error_every=5), accept=9)
    assert "engine_error" in _verdicts(mixed)
    counts = _counts(mixed)
    refused = sum(isinstance(r, Verdict) for r in mixed)
    assert counts["asked"] == refused + counts["kept"], "every candidate is a row or a verdict"


def test_exactly_the_wanted_rows_are_kept_and_the_others_say_so() -> None:
    records = _run(_engine(), accept=1)
    assert _counts(records)["kept"] == 1
    assert "enough_accepted" in _verdicts(records)


def test_the_order_of_replies_changes_nothing() -> None:
    assert _run(_engine(shuffle=7)) == _run(_engine())
