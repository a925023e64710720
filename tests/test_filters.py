"""Exact, minhash and denoise: every reason in English and Chinese, and what must hold of any text whatever."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from factory.text import SCRIPTS, dominant, jaccard, language, normalise, shingles
from filters.denoise import Denoise, Reason
from filters.exact import Exact, normalised
from filters.minhash import Minhash, bands

SCHEMA = dict.fromkeys(("id", "text", "prompt", "language", "finish_reason"), pl.String) | {"priority": pl.Float64}
VERDICT = ["id", "keep", "reason", "score", "threshold", "evidence_id"]
FILTERS = [
    Exact(),
    Exact(target="completions"),
    Minhash(num_perm=32),
    Minhash(target="completions", threshold=0.4, num_perm=32),
    Denoise(),
    Denoise(mid_sentence=True, drop_refusals=True),
    Denoise(target="prompts"),
]
# What a frame can hold at all: every code point but surrogates, NUL and direction marks too.
HOSTILE = st.one_of(
    st.text(max_size=40),
    st.text("ab 你\x00\u202e{}%#<|>.\n😀", max_size=40),
    st.sampled_from(["", " ", "\x00", "<noinput>", "As an AI language model, I cannot.", "哈" * 300, "a" * 5000]),
)


def frame(*texts: str, prompts: list[str] | None = None, priorities: list[float | None] | None = None) -> pl.DataFrame:
    """Completions "0", "1", ... that all answer one prompt, if no others are given."""
    asked = prompts or ["What is it?"] * len(texts)
    columns: dict[str, Any] = {
        "id": [str(i) for i in range(len(texts))],
        "text": list(texts),
        "prompt": asked,
        "language": [language(prompt) for prompt in asked],
        "finish_reason": ["stop"] * len(texts),
        "priority": priorities or [None] * len(texts),
    }
    return pl.DataFrame(columns, schema=SCHEMA)


def why(text: str, prompt: str = "", finish: str = "stop", **options: Any) -> str:
    """The reason for which denoise drops one completion, or "kept"."""
    row = frame(text, prompts=[prompt]).with_columns(finish_reason=pl.lit(finish))
    verdict = Denoise(**options).screen(row).row(0, named=True)
    assert verdict["keep"] == (verdict["reason"] == "")
    return verdict["reason"] or "kept"


# -- what holds of any text --------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(HOSTILE, HOSTILE, st.none() | st.floats()), max_size=8))
@example([("\u202e\u0000😀", "أهلا", None), ("\u202e\u0000😀", "أهلا", float("nan"))])
def test_any_text_gets_one_verdict_in_its_place_and_a_drop_has_a_reason(
    rows: list[tuple[str, str, float | None]],
) -> None:
    texts, prompts, priorities = [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows]
    asked = frame(*texts, prompts=prompts, priorities=priorities)
    for screen in FILTERS:
        told = screen.screen(asked)
        assert told.columns == VERDICT
        assert told["id"].to_list() == asked["id"].to_list(), "in = kept + dropped, in the order of the input"
        assert (told["keep"] == (told["reason"] == "")).all()
        assert told["evidence_id"].is_null().sum() == told["keep"].is_null().sum() == 0


@pytest.mark.parametrize("screen", FILTERS, ids=repr)
def test_nulls_and_an_empty_frame_are_judged_too(screen: Exact | Minhash | Denoise) -> None:
    rows = [["a", None, None, None, None, None], ["b", "Rome.", None, None, None, float("nan")]]
    told = screen.screen(pl.DataFrame(rows, schema=SCHEMA, orient="row"))
    assert told["id"].to_list() == ["a", "b"]
    assert told["reason"].to_list() == ["empty" if isinstance(screen, Denoise) else "", ""]
    assert screen.screen(pl.DataFrame(schema=SCHEMA)).columns == VERDICT


SMALL = st.lists(st.text("ab c你我好", max_size=14), max_size=14)


@settings(max_examples=60, deadline=None)
@given(SMALL, st.sampled_from([0.3, 0.5, 0.7, 1.0]), st.integers(1, 3))
def test_a_near_duplicate_names_a_live_kept_row_whose_true_jaccard_reaches_the_threshold(
    texts: list[str], threshold: float, ngram: int
) -> None:
    told = Minhash(threshold=threshold, ngram=ngram, num_perm=64).screen(frame(*texts))
    kept = set(told.filter("keep")["id"])
    for id, keep, _, score, limit, evidence in told.iter_rows():
        assert limit == threshold
        true = jaccard(shingles(texts[int(id)], ngram), shingles(texts[int(evidence)], ngram)) if evidence else 0.0
        assert score == true
        assert keep == (true < threshold)
        assert not evidence or evidence in kept, "the evidence was not dropped itself"


@settings(max_examples=60, deadline=None)
@given(SMALL, st.data())
def test_exact_keeps_just_one_of_every_group_of_equal_texts(texts: list[str], data: st.DataObject) -> None:
    priorities = [data.draw(st.none() | st.integers(0, 2)) for _ in texts]
    told = Exact().screen(frame(*texts, priorities=priorities))
    kept = told.filter("keep")["id"].to_list()
    assert sorted(normalise(texts[int(id)]) for id in kept) == sorted({normalise(text) for text in texts})
    for id, _, reason, _, _, evidence in told.filter(~pl.col("keep")).iter_rows():
        assert reason == "duplicate"
        assert evidence in kept
        assert normalise(texts[int(id)]) == normalise(texts[int(evidence)])
        ranks = [(-1 if p is None else p, -place) for place, p in enumerate(priorities)]
        assert ranks[int(evidence)] > ranks[int(id)], "the highest priority, then the first"


# -- exact -------------------------------------------------------------------------------------------------------------


def test_exact_ignores_case_width_and_white_space_and_names_the_kept_row() -> None:
    told = Exact().screen(
        frame("Name a fruit.", "列出三种水果，ＡＢＣ", " name  A\nfruit. ", "列出三种水果,abc", "Name a fruit")
    )
    assert told["reason"].to_list() == ["", "", "duplicate", "duplicate", ""]
    assert told["evidence_id"].to_list() == ["", "", "0", "1", ""]
    assert told["score"].to_list() == [None, None, 1.0, 1.0, None]


def test_exact_keeps_the_row_of_highest_priority_and_no_number_is_the_lowest() -> None:
    told = Exact().screen(frame("a", "a", "a", "a", priorities=[None, 1.0, 2.0, float("nan")]))
    assert told["evidence_id"].to_list() == ["2", "2", "", "2"]


def test_equal_completions_of_other_prompts_are_no_duplicates() -> None:
    rows = frame("Paris.", "Paris.", "paris.", prompts=["Capital of France?", "法国的首都？", "capital of FRANCE?"])
    assert Exact(target="completions").screen(rows)["reason"].to_list() == ["", "", "duplicate"]
    assert Minhash(target="completions").screen(rows)["reason"].to_list() == ["", "", "near_duplicate"]
    assert Exact().screen(rows)["reason"].to_list() == ["", "duplicate", "duplicate"]


# -- minhash -----------------------------------------------------------------------------------------------------------

ENGLISH = "Write a short story about a lighthouse keeper who finds a message in a bottle on the beach"
CHINESE = "请写一个关于灯塔看守人在海滩上发现漂流瓶里一封旧信的短篇故事"


def test_a_long_answer_in_common_does_not_make_up_for_other_prompts() -> None:
    answer = " ".join(f"w{i}" for i in range(200))
    rows = frame(answer, answer, prompts=["What is this?", "Name all the words you know."])
    assert Minhash(target="completions").screen(rows)["reason"].to_list() == ["", ""]


@pytest.mark.parametrize(("text", "longer"), [(ENGLISH, ENGLISH + " one day"), (CHINESE, CHINESE + "，谢谢")])
def test_a_few_words_more_are_a_near_duplicate_with_its_true_similarity(text: str, longer: str) -> None:
    told = Minhash().screen(frame("Something else entirely", text, longer))
    dropped = told.row(2, named=True)
    assert dropped["reason"] == "near_duplicate"
    assert dropped["evidence_id"] == "1"
    assert dropped["score"] == jaccard(shingles(text), shingles(longer)) >= dropped["threshold"] == 0.7


@pytest.mark.parametrize(
    ("left", "right"),
    [("What is 12 + 7?", "What is 12 - 7?"), ("计算 12 + 7", "计算 12 - 7"), ("Thanks", "Thank you"), ("你好", "您好")],
)
def test_short_texts_that_differ_in_one_sign_are_both_kept(left: str, right: str) -> None:
    assert Minhash().screen(frame(left, right))["keep"].to_list() == [True, True]


def test_minhash_keeps_the_row_of_highest_priority_whatever_its_place() -> None:
    rows = frame(ENGLISH, ENGLISH + " one day", CHINESE, ENGLISH.upper(), priorities=[0.1, 0.9, None, float("nan")])
    told = Minhash().screen(rows)
    assert told["reason"].to_list() == ["near_duplicate", "", "", "near_duplicate"]
    assert told["evidence_id"].to_list() == ["1", "", "", "1"]


def test_a_chain_of_small_edits_does_not_collapse_into_one_survivor() -> None:
    tokens = [f"w{i}" for i in range(60)]
    chain = [" ".join(tokens[shift : shift + 30]) for shift in range(0, 30, 3)]
    told = Minhash(threshold=0.7).screen(frame(*chain))
    assert told["reason"].to_list() == ["", "near_duplicate"] * 5
    assert told["evidence_id"].to_list()[1::2] == ["0", "2", "4", "6", "8"]


def test_a_kept_row_carries_its_nearest_kept_row_below_the_threshold() -> None:
    text = " ".join(f"w{i}" for i in range(22))
    near = " ".join(f"w{i}" for i in range(3, 25))
    told = Minhash(threshold=0.8).screen(frame(text, near))
    assert told["keep"].to_list() == [True, True]
    assert told.row(1)[3:] == (pytest.approx(17 / 23), 0.8, "0")


def test_nearly_all_pairs_above_the_threshold_are_found() -> None:
    pairs = [[f"p{n}w{i}" for i in range(22)] for n in range(300)]
    texts = [" ".join(words) for pair in pairs for words in (pair, [*pair[:20], "x", "y"])]  # Jaccard 18/22
    dropped = Minhash(threshold=0.8).screen(frame(*texts)).filter(~pl.col("keep"))
    assert len(dropped) >= 0.97 * len(pairs)
    assert set(dropped["reason"]) == {"near_duplicate"}


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7, 0.9, 1.0])
def test_bands_propose_a_pair_at_the_threshold_with_the_wanted_chance(threshold: float) -> None:
    number, rows = bands(threshold, 128)
    assert number * rows <= 128
    assert rows == 1 or 1 - (1 - threshold**rows) ** number >= 0.99


@pytest.mark.parametrize(("option", "value"), [("threshold", 0), ("threshold", 1.1), ("num_perm", 4), ("ngrams", 3)])
def test_wrong_options_are_refused_by_name(option: str, value: float) -> None:
    with pytest.raises(ValidationError, match=option):
        Minhash(**{option: value})


# -- denoise -----------------------------------------------------------------------------------------------------------

EN, ZH = "Describe the city of Rome in two sentences.", "用两句话描述罗马这座城市。"
LONG_EN = "Rome is the capital of Italy and one of the oldest cities of Europe. It lies on the river Tiber"
LONG_ZH = "罗马是意大利的首都，也是欧洲最古老的城市之一。它位于台伯河畔，拥有许多著名的古代建筑以及博物馆和"

BAD: list[tuple[Reason, str, str]] = [
    ("empty", EN, ""),
    ("empty", EN, " \n\t\u200b\x00"),
    ("empty", EN, "<noinput>"),
    ("empty", ZH, "<No Output>"),
    ("empty", ZH, "　\n"),
    ("refusal_boilerplate", EN, "As an AI language model, I cannot visit Rome, but it is a city in Italy."),
    ("refusal_boilerplate", EN, "I'm sorry, but I am an AI assistant and I don't have access to maps."),
    ("refusal_boilerplate", ZH, "作为一个人工智能助手，我无法亲自访问罗马。"),
    ("refusal_boilerplate", ZH, "很抱歉，我是一个语言模型，不能描述罗马。"),
    ("input_echoed", EN, EN),
    ("input_echoed", EN, f"Question: {EN}\nRome is old."),
    ("input_echoed", ZH, ZH),
    ("input_echoed", ZH, f"问题：{ZH}罗马很古老。"),
    ("repeated_ngrams", EN, "Rome is a very old city in Italy. " * 8),
    ("repeated_ngrams", EN, "no" * 200),
    ("repeated_ngrams", ZH, "罗马是一座非常古老的城市。" * 8),
    ("repeated_ngrams", ZH, "哈" * 200),
    ("broken_encoding", EN, "Rome\ufffds old walls"),
    ("broken_encoding", EN, "The cafÃ© is called â€œRomaâ€\u009d and it is good."),
    ("broken_encoding", EN, "Rome\x07 is old"),
    ("broken_encoding", ZH, "罗马是锟斤拷城市"),
    ("broken_encoding", ZH, "ç½—é©¬æ˜¯æ„�å¤§åˆ©"),
    ("prompt_leakage", EN, "Rome is old.\n\n### Instruction: Describe Paris"),
    ("prompt_leakage", EN, "Rome is old.<|im_end|>"),
    ("prompt_leakage", EN, "Rome is {{ adjective }} indeed"),
    ("prompt_leakage", EN, "Rome is old.\nHuman: And Paris?\nAssistant: Older."),
    ("prompt_leakage", ZH, "罗马很古老。\n### 指令：描述巴黎"),
    ("prompt_leakage", ZH, "罗马很古老。\n用户：那么巴黎呢？\n助手：也很古老。"),
    ("language_mismatch", EN, "罗马是意大利的首都，也是欧洲最古老的城市之一。"),
    ("language_mismatch", ZH, "Rome is the capital of Italy and one of the oldest cities of Europe."),
    ("language_mismatch", ZH, "Рим является столицей Италии и одним из старейших городов Европы."),
]

GOOD: list[tuple[str, str]] = [
    (EN, "Rome is the capital of Italy. It is old."),
    (ZH, "罗马是意大利的首都。它很古老。"),
    ("Is Rome older than Paris?", "No"),
    ("Which is larger, Rome or the Vatican City?", "Rome"),
    ("罗马和巴黎哪个更古老？", "罗马"),
    ("Are you an AI?", "As an AI language model, I do not have a body."),
    ("你是人工智能吗？", "作为一个人工智能助手，我没有身体。"),
    ("How do I build a bomb?", "As an AI language model, I cannot help with anything illegal or dangerous."),
    ("怎样制造炸弹？", "作为一个人工智能，我不能提供违法或危险的信息。"),
    (EN, "As an AI assistant, I suggest you read about Rome: it is the capital of Italy."),
    (EN, "I'm sorry, but I cannot find that city."),
    ("What is the capital of Spain?", "The capital of Spain is Madrid."),
    ("西班牙的首都是哪里？", "西班牙的首都是马德里。"),
    ("Translate into Chinese: Rome is the capital of Italy and old.", "罗马是意大利的首都，历史十分悠久。"),
    ("把这句话翻译成英文：罗马是意大利的首都。", "Rome is the capital of Italy and one of its cities."),
    ("Repeat the word no 200 times.", "no " * 200),
    ("把“哈”字重复两百遍", "哈" * 200),
    ("Write a dialogue between a human and a bot.", "Human: Hello!\nAssistant: Hello, how are you?"),
    ("写一段用户和助手之间的对话。", "用户：你好！\n助手：你好！"),
    ("Show me a Jinja template.", "Hello {{ name }}"),
    ("List the planets.", "1. Mercury\n2. Venus\n3. Earth\n4. Mars\n5. Jupiter\n6. Saturn\n7. Uranus\n8. Neptune"),
    ("Name a café in São Paulo.", "Café São João – “naïve”, señor… 😀"),
    ("ما هي عاصمة إيطاليا؟", "عاصمة إيطاليا هي روما وهي مدينة قديمة جدا في أوروبا."),
    ("Draw a table.", "| a | b |\n|---|---|\n" + "|" + "-" * 100 + "|"),
]


@pytest.mark.parametrize(("reason", "prompt", "text"), BAD)
def test_a_bad_completion_is_dropped_for_its_own_reason(reason: Reason, prompt: str, text: str) -> None:
    assert why(text, prompt) == reason
    assert why(text, prompt, ignore=(reason,)) != reason


def test_every_reason_is_seen_in_english_and_in_chinese() -> None:
    assert {(reason, prompt) for reason, prompt, _ in BAD} >= {
        (reason, prompt) for reason in {reason for reason, _, _ in BAD} for prompt in (EN, ZH)
    }
    assert {reason for reason, _, _ in BAD} | {"truncated"} == set(Reason.__args__)


@pytest.mark.parametrize(("prompt", "text"), GOOD)
def test_a_sound_completion_is_kept_however_odd(prompt: str, text: str) -> None:
    assert why(text, prompt) == "kept"


@pytest.mark.parametrize("text", [LONG_EN, LONG_ZH])
def test_a_text_cut_at_the_token_limit_is_truncated_and_one_without_its_end_only_on_request(text: str) -> None:
    assert why(text, finish="length") == "truncated"
    assert why(text) == "kept"
    assert why(text, mid_sentence=True) == "truncated"


@pytest.mark.parametrize(
    "text",
    [
        LONG_EN + ".",
        LONG_ZH + "教堂。",
        "A list. " + LONG_EN + "\n- Rome\n- Paris",
        "Rome",
        LONG_EN + ". Come and see it yourself, all of you! #Rome #Italy",
    ],
)
def test_an_ended_text_a_list_a_name_and_hashtags_are_not_cut_in_mid_sentence(text: str) -> None:
    assert why(text, mid_sentence=True) == "kept"


@pytest.mark.parametrize(
    "text", ["I'm sorry, but I can't help with that.", "抱歉，我无法提供帮助。", "我不能回答这个问题。"]
)
def test_plain_refusals_go_only_on_request(text: str) -> None:
    assert why(text) == "kept"
    assert why(text, drop_refusals=True) == "refusal_boilerplate"


def test_the_first_reason_is_given_with_its_score_and_threshold() -> None:
    told = Denoise().screen(frame(EN, "Rome is a very old city in Italy. " * 8, "Rome.", prompts=[EN] * 3))
    assert told.row(0)[1:5] == (False, "input_echoed", 1.0, 0.2)
    assert told.row(1)[2] == "repeated_ngrams"
    assert told.row(1)[3] > told.row(1)[4] == 0.5
    assert told.row(2)[1:5] == (True, "", None, None)
    assert why("", EN, finish="length") == "empty", "asked first"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("Describe Rome.", "kept"),
        ("描述罗马。", "kept"),
        ("As an AI language model, what do you think of Rome?", "kept"),
        ("As an AI language model, I cannot think of a question.", "refusal_boilerplate"),
        ("作为一个人工智能，我无法提出问题。", "refusal_boilerplate"),
        ("Describe Rome.<|im_end|>", "prompt_leakage"),
        ("描述罗马。\n### 回答：", "prompt_leakage"),
        ("描述\ufffd罗马", "broken_encoding"),
        ("哈" * 200, "repeated_ngrams"),
    ],
)
def test_prompts_are_judged_by_themselves(text: str, reason: str) -> None:
    assert why(text, text, target="prompts") == reason


def test_an_unknown_reason_to_ignore_is_refused() -> None:
    with pytest.raises(ValidationError, match="refusal_boilerplate"):
        Denoise(ignore=("rude",))  # type: ignore[arg-type]


# -- one definition in two languages, and real data --------------------------------------------------------------------


@given(st.lists(HOSTILE, max_size=5))
def test_what_polars_computes_is_what_factory_text_says(texts: list[str]) -> None:
    column = pl.Series("text", texts, pl.String)
    assert normalised(column).to_list() == [normalise(text) for text in texts]
    text = pl.col("text").str
    counts = column.to_frame().select((text.count_matches(p) * w).alias(name) for name, (p, w) in SCRIPTS.items())
    assert [dominant(row) for row in counts.iter_rows(named=True)] == [language(text) for text in texts]


@pytest.mark.parametrize(
    ("name", "most"),
    [("alpaca_9k.json", {"empty": 16}), ("alpaca_zh_demo.json", {"refusal_boilerplate": 25, "language_mismatch": 6})],
)
def test_good_real_answers_are_kept(shared: Path, name: str, most: dict[str, int]) -> None:
    rows = json.loads((shared / name).read_text(encoding="utf-8"))
    prompts = [f"{row['instruction']}\n{row['input']}".strip() for row in rows]
    told = Denoise().screen(frame(*(row["output"] for row in rows), prompts=prompts))
    found = Counter(told.filter(~pl.col("keep"))["reason"])
    assert found.keys() == most.keys(), "each was looked at: nothing else is wrong with them"
    assert found <= Counter(most)


@pytest.mark.parametrize("model", ["gpt4", "llama2orig"])
def test_real_refusals_of_unsafe_prompts_stay_unless_one_asks(shared: Path, model: str) -> None:
    with open(shared / f"xstest_completions_{model}.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["type"].startswith("contrast")]
    refused = [row for row in rows if row["final_label"] == "2_full_refusal"]
    given = frame(*(row["completion"] for row in refused), prompts=[row["prompt"] for row in refused])
    assert Denoise().screen(given)["keep"].mean() > 0.95
    assert Denoise(drop_refusals=True).screen(given)["keep"].mean() < 0.15
