"""Datasets out: every export is read back, by the import and by the rules of the one who will consume it."""

import importlib.util
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factory.errors import DataError, StoreError
from factory.formats import Card, export
from factory.formats.card import size_category
from factory.records import Completion, Judgement, Message, Prompt, Verdict
from tests.formats_help import Row, only, read, real, said

os.environ["HF_DATASETS_OFFLINE"] = "1"
CARD = Card(name="helpful", query="FROM sft", store="factory.duckdb", generators=("self_instruct",), license="mit")

CHAT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
TEXTS = dict.fromkeys(("prompt_id", "prompt", "language", "completion_id", "completion", "model"), pa.string())
TYPES = {**TEXTS, "messages": CHAT, "meta": pa.string(), "chosen": pa.string(), "rejected": pa.string()}
TYPES |= {"margin": pa.float64(), "weight": pa.float64()}
KINDS = {
    "prompts": ("prompt_id", "messages", "prompt", "language"),
    "sft": ("prompt_id", "messages", "prompt", "language", "completion_id", "completion", "model"),
    "pairs": ("prompt_id", "messages", "prompt", "chosen", "rejected", "margin", "weight", "language"),
}


ONE_TURN = [said("Sort: fig, apple"), said("把这句话翻译成英文：你好"), said('He said "hi",\nthen left.')]
MANY_TURNS = [*ONE_TURN, said("Hi", "Hello!", "再见"), said("Who are you?", system="You are 小工厂.")]
STANDARD = ("trl",)  # the formats that hold one turn
EVERY = [
    (kind, fmt) for kind in KINDS for fmt in ("jsonl", "csv", "parquet", "alpaca", "trl", "trl-conversational", "hf")
]
EVERY += [(kind, fmt) for kind in ("sft", "pairs") for fmt in ("sharegpt", "axolotl")]


def row(messages: tuple[Message, ...], kind: str, answer: str = "好的 done", worse: str = "no") -> Row:
    prompt = Prompt(messages)
    values: Row = {
        "prompt_id": prompt.id,
        "messages": [{"role": m.role, "content": m.content} for m in messages],
        "prompt": prompt.text,
        "language": "zh" if "你" in prompt.text else "en",
        "completion_id": "c",
        "completion": answer,
        "model": "mini",
        "chosen": answer,
        "rejected": worse,
        "margin": 0.5,
        "weight": 1.0,
    }
    return {name: values[name] for name in KINDS[kind]}


def batches(rows: list[Row], size: int = 2) -> Iterator[pa.RecordBatch]:
    schema = pa.schema([(name, TYPES[name]) for name in rows[0]])
    for start in range(0, len(rows), size):
        yield pa.RecordBatch.from_pylist(rows[start : start + size], schema)


def exported(rows: list[Row], kind: str, fmt: str, to: Path) -> Path:
    assert export(batches(rows), kind, fmt, to, CARD) == len(rows)  # type: ignore[arg-type]
    return next(p for p in sorted(to.rglob("train.*")))


# --- exports, read back ----------------------------------------------------------------------------------------------


def readable(fmt: str) -> list[tuple[Message, ...]]:
    return ONE_TURN if fmt in STANDARD else MANY_TURNS


@pytest.mark.parametrize(("kind", "fmt"), EVERY)
def test_an_export_imports_as_the_same_records(kind: str, fmt: str, tmp_path: Path) -> None:
    path = exported([row(messages, kind) for messages in readable(fmt)], kind, fmt, tmp_path)
    found = read(path)
    assert [p.messages for p in only(found, Prompt)] == readable(fmt)
    texts = {"prompts": [], "sft": ["好的 done"], "pairs": ["好的 done", "no"]}[kind]
    assert [c.text for c in only(found, Completion)] == texts * len(readable(fmt))
    assert len(only(found, Judgement)) == (len(readable(fmt)) if kind == "pairs" else 0)
    assert not only(found, Verdict)


HOSTILE = st.text(max_size=20).filter(str.strip) | st.sampled_from(
    [
        "\r",
        '"',
        "'; DROP TABLE",
        "=1+1",
        "\x00x",
        "NA",
        "null",
        "[1]",
        "{}",
        "\u2028b",
        "\ufeffa",
        "🏭",
        "---",
        "a\r\nb",
        "\\u0041",
    ]
).filter(str.strip)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize(("kind", "fmt"), EVERY)
def test_hostile_text_survives_every_format(kind: str, fmt: str, data: st.DataObject, tmp_path: Path) -> None:
    turns = st.just(1) if fmt in STANDARD else st.sampled_from([1, 3])
    asked = [said(*(data.draw(HOSTILE) for _ in range(data.draw(turns)))) for _ in range(3)]
    answers = [(data.draw(HOSTILE), data.draw(HOSTILE)) for _ in asked]
    answers = [(a, b if a.strip() != b.strip() else b + "!") for a, b in answers]
    path = exported([row(m, kind, *a) for m, a in zip(asked, answers, strict=True)], kind, fmt, tmp_path)
    found = read(path)
    assert [p.messages for p in only(found, Prompt)] == asked
    expected = {"prompts": [], "sft": [a for a, _ in answers], "pairs": [text for pair in answers for text in pair]}
    assert [c.text for c in only(found, Completion)] == expected[kind]


def loaded(path: Path, tmp_path: Path) -> Any:
    from datasets import load_dataset

    loader = {".jsonl": "json"}.get(path.suffix, path.suffix[1:])
    return load_dataset(loader, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize(("kind", "fmt"), EVERY)
def test_an_export_is_read_by_the_datasets_library_as_a_file_and_as_a_folder(
    kind: str, fmt: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from datasets import load_dataset

    rows = [row(messages, kind) for messages in readable(fmt)]
    as_file = loaded(exported(rows, kind, fmt, tmp_path / "out"), tmp_path)
    as_folder = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(as_file) == len(as_folder) == len(rows)
    found = {name: str(kind).replace("large_", "") for name, kind in as_file.features.items()}  # CSV says large_string
    assert {name: str(kind) for name, kind in as_folder.features.items()} == found  # the types that the card tells
    assert not any("dataset card" in record.message for record in caplog.records)
    assert set(as_file.column_names) == columns(kind, fmt)


@pytest.mark.parametrize("fmt", ["jsonl", "csv", "parquet"])
def test_any_column_that_a_store_can_give_is_written_and_loaded_again(fmt: str, tmp_path: Path) -> None:
    from datasets import load_dataset

    duck = duckdb.sql(
        """SELECT 'hi' AS prompt, '{"数": 1}'::JSON AS meta, ['a', 'b'] AS parents, NULL::BIGINT AS tokens, true AS ok,
        TIMESTAMPTZ '2026-01-02 03:04:05Z' AS created_at, 1.50::DECIMAL(4,2) AS usd, DATE '2026-01-02' AS day"""
    )
    assert export(iter(duck.to_arrow_table().to_batches()), "prompts", fmt, tmp_path / "out", CARD) == 1
    loaded = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert (loaded[0]["prompt"], json.loads(loaded[0]["meta"]), loaded[0]["ok"]) == ("hi", {"数": 1}, True)
    assert str(loaded[0]["created_at"]).startswith("2026-01-02")
    (again,) = only(read(next((tmp_path / "out").glob("train.*"))), Prompt)
    assert again.meta["数"] == 1


def columns(kind: str, fmt: str) -> set[str]:
    """Exactly what each consumer takes."""
    answers = {"prompts": set(), "sft": {"completion"}, "pairs": {"chosen", "rejected"}}[kind]
    return {
        "alpaca": {"instruction", "input", "system", "history"} | ({"output"} if kind == "sft" else answers),
        "sharegpt": {"conversations"} | (answers if kind == "pairs" else set()),
        "axolotl": {"messages"} | (answers if kind == "pairs" else set()),
    }.get(fmt, set(KINDS[kind]) if fmt in ("jsonl", "csv", "parquet") else {"prompt"} | answers)


def conversational(example: Row) -> bool:
    """TRL's rule: each column is a list of messages with a role and a content."""
    return all(isinstance(v, list) and v and set(v[0]) == {"role", "content"} for v in example.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fmt", ["trl", "trl-conversational", "hf"])
def test_trl_tells_a_conversational_export_from_a_standard_one(kind: str, fmt: str, tmp_path: Path) -> None:
    path = exported([row(messages, kind) for messages in readable(fmt)], kind, fmt, tmp_path / "out")
    rule = conversational
    if importlib.util.find_spec("trl"):
        from trl.data_utils import is_conversational as rule
    for example in loaded(path, tmp_path):
        assert rule(example) is (fmt != "trl")
        assert rule is not conversational or fmt != "trl" or all(isinstance(v, str) for v in example.values())
        assert fmt == "trl" or example["prompt"][-1]["role"] == "user"


def llama_factory_rows(folder: Path, name: str, tmp_path: Path) -> list[tuple[list[tuple[str, str]], list[str]]]:
    """What LLaMA-Factory would train on, by its documented rules; an abnormal row fails here as it is skipped there."""
    entry = json.loads((folder / "dataset_info.json").read_text())[name]
    named = entry["columns"]
    out = []
    for example in loaded(folder / entry["file_name"], tmp_path):
        assert set(named.values()) <= set(example)
        if entry.get("formatting") == "sharegpt":
            turns = example[named["messages"]]
            turns = turns[1:] if turns[0]["from"] == "system" else turns
            assert all(turn["from"] == ("human", "gpt")[i % 2] for i, turn in enumerate(turns))
            assert len(turns) % 2 == (1 if entry.get("ranking") else 0)
            answers = [example[side]["value"] for side in ("chosen", "rejected")] if entry.get("ranking") else []
            said_turns = [(turn["from"], turn["value"]) for turn in turns]
            out.append((said_turns, answers) if answers else (said_turns[:-1], [turns[-1]["value"]]))
            continue
        history = list(example[named["history"]] or []) if "history" in named else []
        query = "\n".join(filter(None, (example[named["prompt"]], example[named["query"]])))
        sides = ("chosen", "rejected") if entry.get("ranking") else ("response",)
        answers = [example[named[side]] for side in sides if side in named]
        assert all(isinstance(answer, str) for answer in answers)
        out.append(([*[("human", t) for pair in history for t in pair[:1]], ("human", query)], answers))
    return out


@pytest.mark.parametrize(("kind", "fmt"), [pair for pair in EVERY if pair[1] in ("alpaca", "sharegpt")])
def test_llama_factory_finds_every_row_valid(kind: str, fmt: str, tmp_path: Path) -> None:
    rows = [row(messages, kind) for messages in MANY_TURNS]
    exported(rows, kind, fmt, tmp_path / "out")
    entry = json.loads((tmp_path / "out/dataset_info.json").read_text())["helpful"]
    assert entry.get("ranking", False) is (kind == "pairs")
    found = llama_factory_rows(tmp_path / "out", "helpful", tmp_path)
    assert [turns[-1][1] for turns, _ in found] == [r["prompt"] for r in rows]
    assert all(answers == ["好的 done", "no"][: {"prompts": 0, "sft": 1, "pairs": 2}[kind]] for _, answers in found)


def test_alpaca_parts_the_prompt_again_as_it_was_imported(tmp_path: Path) -> None:
    meta = json.dumps({"instruction": "翻译", "input": "你好"}, ensure_ascii=False)
    rows = [row(said("翻译\n你好"), "sft") | {"meta": meta}, row(said("翻译\n您好"), "sft") | {"meta": meta}]
    written = json.loads(exported(rows, "sft", "alpaca", tmp_path).read_text(encoding="utf-8"))
    assert [(r["instruction"], r["input"]) for r in written] == [("翻译", "你好"), ("翻译\n您好", "")]


def test_a_history_that_comes_late_does_not_break_the_loader(tmp_path: Path) -> None:
    rows = [row(said("x" * 3000 + str(i)), "sft") for i in range(7000)] + [row(said("a", "b", "c"), "sft")]
    data = loaded(exported(rows, "sft", "alpaca", tmp_path / "out"), tmp_path)
    assert data[-1]["history"] == [["a", "b"]]


def test_dataset_info_keeps_the_entries_of_others(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text('{"identity": {"file_name": "identity.json"}, "helpful": {}}')
    rows = [row(said("hi"), "sft")]
    assert export(batches(rows), "sft", "alpaca", tmp_path / "mine.json", CARD) == 1
    entries = json.loads((tmp_path / "dataset_info.json").read_text())
    assert entries["identity"] == {"file_name": "identity.json"}
    assert entries["helpful"] == {
        "file_name": "mine.json",
        "columns": {"prompt": "instruction", "query": "input", "response": "output"},
    }
    (tmp_path / "dataset_info.json").write_text("[]")
    with pytest.raises(DataError, match=r"dataset_info\.json holds no JSON object; mend it"):
        export(batches(rows), "sft", "alpaca", tmp_path / "mine.json", CARD)


@pytest.mark.parametrize("kind", ["sft", "pairs"])
def test_axolotl_is_told_the_columns_that_are_in_the_file(kind: str, tmp_path: Path) -> None:
    path = exported([row(messages, kind) for messages in MANY_TURNS], kind, "axolotl", tmp_path)
    config = yaml.safe_load((tmp_path / "axolotl.yaml").read_text(encoding="utf-8"))
    (dataset,) = config["datasets"]
    assert (config.get("rl"), dataset["type"]) == {
        "sft": (None, "chat_template"),
        "pairs": ("dpo", "chat_template.default"),
    }[kind]
    examples = [json.loads(line) for line in Path(dataset["path"]).read_text(encoding="utf-8").splitlines()]
    assert Path(dataset["path"]) == path
    for example in examples:
        assert set(example) == {value for key, value in dataset.items() if key.startswith("field_")}
        assert {turn["role"] for turn in example["messages"]} <= {"system", "user", "assistant"}
        assert example["messages"][-1]["role"] == ("assistant" if kind == "sft" else "user")


def test_the_card_tells_what_the_hub_and_a_person_want_to_know(tmp_path: Path) -> None:
    exported([row(messages, "pairs") for messages in MANY_TURNS], "pairs", "hf", tmp_path)
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*")} == {"README.md", "data/train.parquet"}
    _, front, human = (tmp_path / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    header = yaml.safe_load(front)
    assert header["configs"][0]["data_files"] == [{"split": "train", "path": "data/train.parquet"}]
    size = (tmp_path / "data/train.parquet").stat().st_size
    assert header["dataset_info"]["splits"] == [{"name": "train", "num_bytes": size, "num_examples": 5}]
    assert [f["name"] for f in header["dataset_info"]["features"]] == ["prompt", "chosen", "rejected"]
    assert (header["license"], header["size_categories"], header["language"]) == ("mit", ["n<1K"], ["en", "zh"])
    assert all(word in human for word in ("FROM sft", "factory.duckdb", "self_instruct", "# helpful"))


def test_size_categories_are_those_of_the_hub() -> None:
    sizes = [size_category(rows) for rows in (0, 999, 1000, 99_999, 1_000_000, 10**10)]
    assert sizes == ["n<1K", "n<1K", "1K<n<10K", "10K<n<100K", "1M<n<10M", "10B<n<100B"]


# --- exports that cannot be ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "fmt", "messages", "told"),
    [
        ("prompts", "sharegpt", ("a",), "'sharegpt' cannot hold prompts; formats that can: alpaca, csv"),
        ("prompts", "axolotl", ("a",), "'axolotl' cannot hold prompts"),
        ("sft", "trll", ("a",), "unknown export format 'trll'; did you mean 'trl'"),
        ("sft", "trl", ("a", "b", "c"), "3 turns, but trl's standard format holds one user turn.*trl-conversational"),
        ("sft", "alpaca", ("a", "b"), "alpaca wants user and assistant by turns, found user, assistant"),
        ("pairs", "sharegpt", ("a", "b"), "sharegpt wants user and assistant by turns"),
        ("pairs", "axolotl", (), "no turns; leave it out"),
    ],
)
def test_what_a_format_cannot_hold_is_told_and_leaves_nothing(
    kind: str, fmt: str, messages: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    wrong = row(said("x"), kind) | {"messages": [{"role": m.role, "content": m.content} for m in said(*messages)]}
    with pytest.raises(DataError, match=told):
        export(batches([row(said("x"), kind), wrong]), kind, fmt, tmp_path / "out", CARD)  # type: ignore[arg-type]
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_query_that_lacks_a_column_a_value_or_any_row_is_told(tmp_path: Path) -> None:
    rows = [row(said("a"), "sft"), row(said("b"), "sft") | {"completion": None}]
    with pytest.raises(DataError, match="pairs need column chosen, rejected, the query gives prompt_id, messages"):
        export(batches(rows), "pairs", "trl", tmp_path, CARD)
    with pytest.raises(DataError, match="row 2 of the query has no completion; add `WHERE completion IS NOT NULL`"):
        export(batches(rows), "sft", "jsonl", tmp_path, CARD)
    with pytest.raises(DataError, match="the query returned no rows"):
        export(iter([]), "sft", "jsonl", tmp_path, CARD)
    with pytest.raises(DataError, match=r"'trl' writes .parquet, but a.csv ends in .csv"):
        export(batches(rows), "sft", "trl", tmp_path / "a.csv", CARD)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fmt", ["jsonl", "csv", "parquet", "alpaca"])
def test_a_full_disk_leaves_no_half_file_and_the_old_one_whole(fmt: str, tmp_path: Path) -> None:
    path = exported([row(said("old"), "sft")], "sft", fmt, tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    rows = [row(said(os.urandom(4000).hex()), "sft") for _ in range(200)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the kernel refuses to let a file grow beyond
    try:
        with pytest.raises(StoreError, match=f"cannot write .*{path.name}: .*; no half-written file was left"):
            export(batches(rows, 50), "sft", fmt, tmp_path, CARD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_place_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot write .*Not a directory"):
        export(batches([row(said("a"), "sft")]), "sft", "jsonl", tmp_path / "file" / "out", CARD)


def test_the_same_rows_make_the_same_bytes(tmp_path: Path) -> None:
    for kind, fmt in EVERY:
        rows = [row(messages, kind) for messages in readable(fmt)]
        twice = [exported(rows, kind, fmt, tmp_path / name / fmt / kind) for name in ("a", "b")]
        assert twice[0].read_bytes() == twice[1].read_bytes(), (kind, fmt)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "kind", "fmt"), [("alpaca_zh_demo.json", "sft", "alpaca"), ("dpo_en_demo.json", "pairs", "sharegpt")]
)
def test_a_real_file_comes_back_as_it_was(name: str, kind: str, fmt: str, tmp_path: Path) -> None:
    original = json.loads(real(name).read_text(encoding="utf-8"))
    prompt, rows = None, []
    found = iter(read(real(name)))
    for record in found:
        if isinstance(record, Prompt):
            prompt = record
        elif isinstance(record, Completion) and prompt is not None:
            texts = (record.text,) if kind == "sft" else (record.text, next(found).text)  # type: ignore[union-attr]
            rows.append(row(prompt.messages, kind, *texts) | {"meta": json.dumps(dict(prompt.meta))})
    assert json.loads(exported(rows, kind, fmt, tmp_path).read_text(encoding="utf-8")) == original
