"""Datasets in: every shape and container is read, and nothing that cannot be read vanishes."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factory.errors import DataError
from factory.formats import records
from factory.formats.shapes import SHAPES
from factory.records import Completion, Judgement, Prompt, Verdict, content_id
from tests.formats_help import Row, counts, only, read, real, said, saved

# --- shapes in -------------------------------------------------------------------------------------------------------

PAIR = {"Prompt": 1, "Completion": 2, "Judgement": 1}
ANSWER = {"Prompt": 1, "Completion": 1}
HI = [{"role": "user", "content": "hi"}]
GPT = {"from": "gpt"}
HUMAN = [{"from": "human", "value": "hi"}]
SHAPED: list[tuple[Row, dict[str, int]]] = [
    ({"instruction": "hi", "input": "", "output": "yes"}, ANSWER),
    ({"instruction": "hi", "input": "", "chosen": "yes", "rejected": "no"}, PAIR),
    ({"instruction": "hi", "context": "", "response": "yes", "category": "chat"}, ANSWER),
    ({"instruction": "hi", "instances": [{"input": "", "output": "yes"}], "is_classification": True}, ANSWER),
    ({"conversations": [*HUMAN, {"from": "gpt", "value": "yes"}]}, ANSWER),
    ({"conversations": HUMAN}, {"Prompt": 1}),
    (
        {"conversations": HUMAN, "chosen": {"from": "gpt", "value": "yes"}, "rejected": {"from": "gpt", "value": "no"}},
        PAIR,
    ),
    ({"prompt": "hi", "completion": "yes"}, ANSWER),
    ({"prompt": HI, "completion": [{"role": "assistant", "content": "yes"}]}, ANSWER),
    ({"messages": [*HI, {"role": "assistant", "content": "yes"}]}, ANSWER),
    ({"prompt": "hi", "chosen": "yes", "rejected": "no"}, PAIR),
    (
        {
            "prompt": "hi",
            "chosen": [*HI, {"role": "assistant", "content": "yes"}],
            "rejected": [*HI, {"role": "assistant", "content": "no"}],
        },
        PAIR,
    ),
    (
        {
            "chosen": [*HI, {"role": "assistant", "content": "yes"}],
            "rejected": [*HI, {"role": "assistant", "content": "no"}],
        },
        PAIR,
    ),
    ({"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no"}, PAIR),
    ({"messages": HI, "chosen": [{"role": "assistant", "content": "yes"}], "rejected": "no"}, PAIR),
    ({"prompt": "hi", "completion": "yes", "label": True}, ANSWER | {"Judgement": 1}),
    ({"question": "hi", "answer": "yes"}, ANSWER),
    ({"prompt": "hi"}, {"Prompt": 1}),
    ({"instruction": "hi"}, {"Prompt": 1}),
    ({"question": "hi"}, {"Prompt": 1}),
]


@pytest.mark.parametrize(("shaped", "expected"), SHAPED, ids=[" ".join(shaped) for shaped, _ in SHAPED])
def test_every_shape_makes_the_same_prompt_and_answers(shaped: Row, expected: dict[str, int], tmp_path: Path) -> None:
    found = read(saved(tmp_path / "rows.jsonl", shaped))
    assert counts(found) == expected
    assert found[0].id == Prompt(said("hi")).id  # type: ignore[union-attr]
    completions = only(found, Completion)
    assert [c.text for c in completions] == ["yes", "no"][: len(completions)]
    assert all((c.prompt_id, c.engine) == (found[0].id, "import") for c in completions)  # type: ignore[union-attr]


def test_a_preference_is_a_human_judgement_that_the_chosen_side_wins(tmp_path: Path) -> None:
    found = read(saved(tmp_path / "rows.jsonl", {"prompt": "选哪个？", "chosen": "甲", "rejected": "乙"}))
    prompt, chosen, rejected, opinion = found
    assert isinstance(opinion, Judgement)
    assert (opinion.completion_id, opinion.other_id) == (chosen.id, rejected.id)  # type: ignore[union-attr]
    assert (opinion.judge, opinion.judge_kind, opinion.verdict) == ("dataset", "human", "win")
    assert isinstance(prompt, Prompt)
    assert prompt.language == "zh"


def test_an_unpaired_label_is_a_score_of_one_or_zero(tmp_path: Path) -> None:
    rows = [{"prompt": "hi", "completion": str(label), "label": label} for label in (True, False, "maybe")]
    found = read(saved(tmp_path / "rows.jsonl", *rows))
    assert [opinion.score for opinion in only(found, Judgement)] == [1.0, 0.0]
    assert [verdict.reason for verdict in only(found, Verdict)] == ["bad_label"]


def test_an_alpaca_row_keeps_system_history_and_its_two_columns(tmp_path: Path) -> None:
    full = {"instruction": "Add", "input": "1, 2", "output": "3", "system": "Be brief", "history": [["Hi", "Hello"]]}
    (prompt,) = only(read(saved(tmp_path / "rows.jsonl", {**full, "source": "a"})), Prompt)
    assert prompt.messages == said("Hi", "Hello", "Add\n1, 2", system="Be brief")
    assert prompt.meta == {"instruction": "Add", "input": "1, 2", "source": "a"}


def test_a_seed_task_with_two_instances_is_two_prompts_that_know_whether_they_classify(tmp_path: Path) -> None:
    task = {"instruction": "Sum", "instances": [{"input": "1 2", "output": "3"}, {"input": "2 2", "output": "4"}]}
    found = read(saved(tmp_path / "rows.jsonl", {**task, "is_classification": True}))
    assert [p.text for p in only(found, Prompt)] == ["Sum\n1 2", "Sum\n2 2"]
    assert all(p.meta["is_classification"] is True for p in only(found, Prompt))


def test_the_system_column_of_sharegpt_becomes_the_first_turn(tmp_path: Path) -> None:
    turns = [*HUMAN, {"from": "gpt", "value": "yes"}, *HUMAN, {"from": "gpt", "value": "again"}]
    found = read(saved(tmp_path / "rows.jsonl", {"conversations": turns, "system": "你是助手"}))
    assert only(found, Prompt)[0].messages == said("hi", "yes", "hi", system="你是助手")
    assert only(found, Completion)[0].text == "again"


def test_a_language_that_is_given_beats_a_column_and_a_column_beats_the_text(tmp_path: Path) -> None:
    path = saved(tmp_path / "rows.jsonl", {"prompt": "bonjour", "language": "fr"}, {"prompt": "你好", "language": "?"})
    assert [p.language for p in only(read(path), Prompt)] == ["fr", "zh"]
    assert [p.language for p in only(read(path, language="en"), Prompt)] == ["en", "en"]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_every_container_holds_the_same_records(suffix: str, packed: str, tmp_path: Path) -> None:
    rows = [{"instruction": f'第{i}题, "数"\r\n一数', "output": f"{i}\n"} for i in range(30)]
    path = tmp_path / f"rows{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".csv":
        path.write_text(
            "\ufeffinstruction,output\r\n"
            + "".join('"{}","{}"\r\n'.format(*(v.replace('"', '""') for v in r.values())) for r in rows),
            encoding="utf-8",
            newline="",
        )
    else:
        saved(path, *rows)
    if packed:
        path = path.rename(tmp_path / f"rows{suffix}.plain")
        (tmp_path / f"rows{suffix}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path = tmp_path / f"rows{suffix}.gz"
    found = read(path)
    assert [p.text for p in only(found, Prompt)] == [r["instruction"] for r in rows]
    assert [c.text for c in only(found, Completion)] == [r["output"] for r in rows]


def test_an_array_larger_than_the_buffer_is_read_whole(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i} " + '长\\"[{' * (400_000 if i == 3 else 30_000)} for i in range(8)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    assert [p.text for p in only(read(path), Prompt)] == [r["prompt"] for r in rows]


# --- rows and files that are wrong -----------------------------------------------------------------------------------

PREFERENCE = {"prompt": "h", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("good", "bad", "reason"),
    [
        ({"prompt": "hi"}, {"prompt": " "}, "empty_prompt"),
        ({"prompt": "hi"}, {"prompt": None}, "empty_prompt"),
        ({"prompt": "hi"}, {"prompt": 7}, "not_text"),
        ({"prompt": "hi"}, {"text": "hi"}, "missing_column"),
        ({"prompt": "hi"}, ["hi"], "not_an_object"),
        ({"prompt": "hi"}, {"prompt": "half \ud83d"}, "broken_unicode"),
        (
            {"prompt": "h", "chosen": "a", "rejected": "b"},
            {"prompt": "h", "chosen": "甲", "rejected": "甲 "},
            "same_sides",
        ),
        (
            {"prompt": "h", "chosen": "a", "rejected": "b"},
            {"prompt": "h", "chosen": "a", "rejected": ""},
            "empty_answer",
        ),
        ({"prompt": "h", "completion": "a"}, {"prompt": "h", "completion": [*HI, *HI]}, "bad_roles"),
        ({"messages": HI}, {"messages": [*HI, *HI]}, "bad_roles"),
        ({"messages": HI}, {"messages": [{"role": "wizard", "content": "hi"}]}, "bad_roles"),
        ({"conversations": HUMAN}, {"conversations": [{"from": "gpt", "value": "a"}, *HUMAN]}, "bad_roles"),
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
            {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: r\n\nAssistant: a"},
            "prompts_differ",
        ),
    ],
)
def test_a_row_that_cannot_be_a_record_is_a_rejection_with_its_reason(
    good: Row, bad: object, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (good, bad, good)))
    found = read(path)
    (verdict,) = only(found, Verdict)
    assert (verdict.filter, verdict.keep, verdict.reason) == ("import", False, reason)
    assert verdict.record_id == content_id("row", "rows.jsonl", 2)
    assert json.loads(verdict.text) == bad
    assert verdict.text.encode()  # it can be stored
    assert len(only(found, Prompt)) == 2


def test_an_answer_that_is_empty_costs_the_answer_and_not_the_prompt(tmp_path: Path) -> None:
    found = read(saved(tmp_path / "rows.jsonl", {"instruction": "hi", "output": ""}))
    assert counts(found) == {"Prompt": 1, "Verdict": 1}
    assert only(found, Verdict)[0].reason == "empty_answer"


def test_a_broken_line_is_told_after_the_rows_before_it(tmp_path: Path) -> None:
    path = tmp_path / "seeds.jsonl"
    path.write_text('{"prompt": "问题"}\n' * 6 + '{"prompt": "oh\n' + '{"prompt": "never"}\n', encoding="utf-8")
    found = records(path)
    assert [next(found).id for _ in range(6)] == [Prompt(said("问题")).id] * 6  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"^seeds.jsonl line 7: not valid JSON \(.+\); mend or remove the line$"):
        next(found)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[\n{"prompt": "a"},\n{"prompt" "b"}]', 3),
        ('[\n{"prompt": "a"},\n{"prompt": "b', 3),
        ('[{"prompt": "a"}\n', 2),
        ('[{"prompt": "a"}]\n[{"prompt": "b"}]', 1),
        ('\n\n[{"prompt": "a"},\n' + "[" * 100_000, 4),
    ],
)
def test_a_broken_array_is_told_by_its_line(text: str, line: int, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    found = records(path)
    assert isinstance(next(found), Prompt)
    with pytest.raises(DataError, match=rf"^rows.json line {line}: "):
        list(found)


def test_columns_of_no_known_shape_are_listed_with_the_shapes_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(DataError) as told:
        read(saved(tmp_path / "rows.jsonl", {"text": "a", "标签": 1}))
    message = str(told.value)
    assert "columns text, 标签 fit no known shape" in message
    assert all(f"{shape.name} (" in message for shape in SHAPES)


def test_a_shape_can_be_forced_and_names_the_column_it_misses(tmp_path: Path) -> None:
    path = saved(tmp_path / "rows.jsonl", {"question": "q", "answer": "a", "prompt": "p"})
    assert read(path, shape="prompts")[0].text == "p"  # type: ignore[union-attr]
    with pytest.raises(DataError, match="shape 'alpaca' needs column instruction, output, found question"):
        read(path, shape="alpaca")
    with pytest.raises(DataError, match=r"unknown shape 'alpacca'; did you mean 'alpaca'\?"):
        records(path, shape="alpacca")


def test_files_that_cannot_be_read_are_told_at_once_and_say_how_to_mend(tmp_path: Path) -> None:
    saved(tmp_path / "seeds.jsonl", {"prompt": "a"})
    with pytest.raises(DataError, match=r"no file .*; did you mean 'seeds.jsonl'\?"):
        records(tmp_path / "seed.jsonl")
    with pytest.raises(DataError, match=r"unknown suffix '.txt'; known: .jsonl"):
        records(saved(tmp_path / "a.txt"))
    with pytest.raises(DataError, match="is a folder"):
        records(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", b"", "holds no row"),
        ("a.json", b"[]", "holds no row"),
        ("a.json", b'{\n "data": []\n}', "one object over several lines"),
        ("a.jsonl", '{"prompt": "你好"}\n'.encode("gb18030"), "line 1: not UTF-8.*iconv"),
        ("a.json", '[{"prompt": "你好"}]\n'.encode("gb18030"), "line 1: not UTF-8.*iconv"),
        ("a.csv", b"prompt\nhi\nhi, there\n", "line 3: 2 fields, but the header has 1"),
        ("a.csv", b'prompt\nhi\n"open\n', "line 3: not valid CSV"),
        ("a.csv", b"prompt,prompt\nhi,hi\n", "two columns have the same name"),
        ("a.parquet", b"PAR1 no", "not valid Parquet"),
        ("a.jsonl.gz", gzip.compress(b'{"prompt": "hi"}\n' * 9, mtime=0)[:-12], "cut off or damaged"),
        ("a.jsonl.gz", b"plain", "cut off or damaged"),
    ],
)
def test_damaged_files_are_data_errors_in_plain_words(name: str, content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told):
        read(tmp_path / name)


JSONS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 2)
    | st.sampled_from(["", "hi", "user", "\n\nHuman: a\n\nAssistant: b"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "from", "content", "value", "input", "judgment"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("shape", [shape.name for shape in SHAPES])
def test_no_row_crashes_the_import_and_none_vanishes(shape: str, data: st.DataObject, tmp_path: Path) -> None:
    needed = next(s for s in SHAPES if s.name == shape).columns
    columns = sorted(
        needed | {"system", "history", "input", "meta", "judgments", "cmp_key", "language", "ContextString"}
    )
    rows = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(columns, JSONS)), min_size=1, max_size=3))
    for i, drawn in enumerate(rows):
        assert read(saved(tmp_path / f"{i}.jsonl", drawn), shape=shape), drawn


# --- the real files --------------------------------------------------------------------------------------------------

REAL = {
    "self_instruct_seed_tasks.jsonl": {"Prompt": 175, "Completion": 175},
    "self_instruct_user_oriented.jsonl": {"Prompt": 252, "Completion": 252},
    "alpaca_9k.json": {"Prompt": 9229, "Completion": 9225, "Verdict": 4},
    "alpaca_en_demo.json": {"Prompt": 999, "Completion": 999},
    "alpaca_zh_demo.json": {"Prompt": 1000, "Completion": 1000},
    "dpo_en_demo.json": {"Prompt": 300, "Completion": 600, "Judgement": 300},
    "dpo_zh_demo.json": {"Prompt": 300, "Completion": 600, "Judgement": 300},
    "hh_rlhf_harmless_test.jsonl.gz": {"Prompt": 2299, "Completion": 4598, "Judgement": 2299, "Verdict": 13},
    "gsm8k_train.jsonl": {"Prompt": 7473, "Completion": 7473},
    "gsm8k_test.jsonl": {"Prompt": 1319, "Completion": 1319},
    "gsm8k_model_solutions.jsonl": {"Prompt": 1319},
    "judgebench_gpt4o.jsonl": {"Prompt": 350, "Completion": 700, "Judgement": 350},
    "judgebench_gpt4o_judge_o1mini.jsonl": {"Prompt": 350, "Completion": 700, "Judgement": 1050},
    "pandalm_testset.json": {"Prompt": 993, "Completion": 1986, "Judgement": 2979, "Verdict": 6},
    "xstest_prompts.csv": {"Prompt": 450},
    "xstest_completions_gpt4.csv": {"Prompt": 450, "Completion": 450},
    "xstest_completions_llama2orig.csv": {"Prompt": 450, "Completion": 450},
    "advbench_behaviors.csv": {"Prompt": 520},
    "harmbench_text_val.csv": {"Prompt": 80},
    "harmless_val.json": {"Prompt": 6264},
    "mt_bench_questions.jsonl": {"Prompt": 80},
}


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
def test_a_real_file_imports_with_every_row_accounted_for(name: str) -> None:
    assert counts(read(real(name))) == REAL[name]


@pytest.mark.shared
def test_the_real_rejections_have_the_reasons_that_reading_them_gives() -> None:
    reasons = Counter(v.reason for v in only(read(real("hh_rlhf_harmless_test.jsonl.gz")), Verdict))
    assert reasons == {"empty_answer": 4, "prompts_differ": 5, "bad_roles": 4}
    assert {v.reason for v in only(read(real("pandalm_testset.json")), Verdict)} == {"not_text"}


@pytest.mark.shared
def test_stored_verdicts_give_the_published_accuracy_and_flip_rate_of_the_judge() -> None:
    found = only(read(real("judgebench_gpt4o_judge_o1mini.jsonl")), Judgement)
    right = flips = 0
    for truth, first, second in zip(found[::3], found[1::3], found[2::3], strict=True):
        sign = {"win": 1, "lose": -1, "tie": 0}
        one, two = sign[first.verdict], -sign[second.verdict]
        right += (one + two) * sign[truth.verdict] > 0
        flips += one != two
        assert (first.shown_first, second.shown_first) == (first.completion_id, second.completion_id)
    assert (round(100 * right / 350, 2), round(100 * flips / 350, 1)) == (65.71, 31.4)
