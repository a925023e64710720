"""What a training reads: a file as it is or imported, or a query; and what is told where it is none of them."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

from factory import training_rows
from factory.cli import main
from factory.errors import DataError
from factory.store import Store
from factory.training_rows import source

PAIR = {"prompt": "Say owl.", "chosen": "owl", "rejected": "cat"}


def _file(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _read(store: Store, on: str, view: str, tmp_path: Path) -> list[dict[str, Any]]:
    with training_rows.rows(store, on, view, tmp_path / "m", "x", lambda line: None) as (data, _, _):
        return [dict(row) for row in data]


@pytest.mark.parametrize(
    ("view", "row"),
    [
        ("pairs", PAIR | {"weight": 5.0, "margin": 2.0, "aspect": "kind"}),
        ("rankings", {"prompt": "说", "completions": ["一", "二"], "scores": [0.5, 1.0]}),
        ("sft", {"prompt": "Say owl.", "completion": "owl", "weight": 0.5}),
        ("step_labels", {"prompt": "Add.", "completions": ["1", "2"], "labels": [True, False]}),
        ("kept_prompts", {"prompt": "Add 1 and 2.", "answer": "3"}),
    ],
)
def test_a_file_with_a_trainers_columns_is_read_with_all_of_them(
    view: str, row: dict[str, Any], store: Store, tmp_path: Path
) -> None:
    other = row | {"prompt": "again"}
    assert _read(store, str(_file(tmp_path / "it's.jsonl", [row, other])), view, tmp_path) == [row, other]
    store.prepare()
    assert store.rows("SELECT count(*) FROM prompts") == [(0,)], "nothing was imported"
    assert not (tmp_path / ".m.work").exists()


@pytest.mark.parametrize(
    ("row", "view", "key"),
    [
        ({"instruction": "Say owl.", "output": "owl"}, "sft", "completion"),
        (
            {"conversations": [{"from": "human", "value": "Say owl."}, {"from": "gpt", "value": "owl"}]},
            "sft",
            "completion",
        ),
        (
            {"messages": [{"role": "user", "content": "Say owl."}, {"role": "assistant", "content": "owl"}]},
            "sft",
            "completion",
        ),
    ],
)
def test_other_known_shapes_are_imported_first(
    row: dict[str, Any], view: str, key: str, store: Store, tmp_path: Path
) -> None:
    found = _read(store, str(_file(tmp_path / "a.jsonl", [row])), view, tmp_path)
    assert [(r["prompt"], r[key]) for r in found] == [("Say owl.", "owl")]


@pytest.mark.parametrize(
    ("rows", "view", "said"),
    [
        (
            [{"instruction": "a", "output": "b", "weight": 2.0}],
            "sft",
            "weight would be lost.* found instruction, output, weight",
        ),
        (
            [{"prompt": "a", "completion": "b"}],
            "pairs",
            "its columns are prompt, completion; it reads prompt, chosen and",
        ),
        ([], "pairs", "holds no row"),
    ],
)
def test_a_file_that_cannot_teach_is_told_with_its_columns(
    rows: list[dict[str, Any]], view: str, said: str, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said):
        _read(store, str(_file(tmp_path / "a.jsonl", rows)), view, tmp_path)
    assert not (tmp_path / ".m.work").exists(), "nothing is left behind"


def test_a_broken_line_is_told_by_its_number(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(PAIR) + '\n{"prompt": \n', encoding="utf-8")
    with pytest.raises(DataError, match="line 2"):
        _read(store, str(path), "pairs", tmp_path)


def test_a_missing_file_and_a_wrong_query_are_told_in_the_users_words(store: Store, tmp_path: Path) -> None:
    store.prepare()
    with pytest.raises(DataError, match=r"--data nosuch.jsonl: there is no such file"):
        _read(store, "nosuch.jsonl", "sft", tmp_path)
    with pytest.raises(DataError, match="Table with name nosuch does not exist") as told:
        _read(store, "SELECT a FROM nosuch", "sft", tmp_path)
    assert "COPY" not in str(told.value)
    assert ".work" not in str(told.value)


def test_what_a_killed_launch_left_is_not_taken_for_this_ones_rows(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both launches have the same port; their launchers are two processes."""
    for name, value in {"MASTER_PORT": "29500", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert str(os.getppid()) in training_rows._launch()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # on several machines launchers differ, so only what they share counts
    assert training_rows._launch() == "29500"


def test_the_card_names_the_file_and_its_hash(store: Store, tmp_path: Path) -> None:
    path = _file(tmp_path / "pairs.jsonl", [PAIR])
    found = source(store, str(path), "pairs", "dpo", lambda line: None)
    assert found.name == "pairs.jsonl"
    assert f"BLAKE2b of pairs.jsonl: {training_rows.content_hash(path)}" in found.shown
    assert str(tmp_path) not in found.shown


def test_weights_of_a_file_reach_the_loss(tmp_path: Path) -> None:
    """A pair without weight teaches nothing, whichever way round it stands."""
    rows = [PAIR | {"weight": 0.0}] * 8
    store, out = str(tmp_path / "s.duckdb"), tmp_path / "m"
    done = CliRunner().invoke(main, [
        "train", "dpo", "--data", str(_file(tmp_path / "p.jsonl", rows)), "--base", "mini-weak", "--out", str(out),
        "--with", "max_steps=1", "--with", "logging_steps=1", "--store", store,
    ])  # fmt: skip
    assert not done.exception, done.output
    assert Store(Path(store)).rows("SELECT value FROM metrics WHERE name = 'loss'") == [(0.0,)]
    assert "8 rows of `p.jsonl`" in (out / "README.md").read_text()


def test_a_dry_run_of_ppo_shows_its_prompts_and_help_says_where_options_are(tmp_path: Path) -> None:
    rows = [{"prompt": "Say owl."}, {"prompt": "说猫头鹰。"}]
    done = CliRunner().invoke(main, [
        "train", "ppo", "--data", str(_file(tmp_path / "p.jsonl", rows)), "--base", "mini-weak", "--dry-run",
        "--out", str(tmp_path / "m"), "--with", 'reward={"rule": "exact"}', "--store", str(tmp_path / "s.duckdb"),
    ])  # fmt: skip
    assert not done.exception, done.output
    assert "Say owl." in done.output
    assert "说猫头鹰。" in done.output
    assert "factory steps STEP" in CliRunner().invoke(main, ["train", "--help"]).output


def test_a_file_called_like_a_dataset_and_a_long_query_are_no_files(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").write_text("notes")
    found = source(store, "d", "pairs", "dpo", lambda line: None)
    assert "FROM pairs WHERE dataset = 'd'" in found.shown
    query = f"SELECT '{'long ' * 2000}' AS prompt, 'a' AS completion"
    assert _read(store, query, "sft", tmp_path)[0]["completion"] == "a"


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl.gz"])
def test_other_kinds_of_files_keep_their_weights(kind: str, store: Store, tmp_path: Path) -> None:
    frame = pl.DataFrame([{"prompt": "7", "completion": "seven", "weight": 0.5}])
    path = tmp_path / f"a.{kind}"
    if kind == "csv":
        frame.write_csv(path)
    elif kind == "parquet":
        frame.write_parquet(path)
    else:
        path.write_bytes(gzip.compress(frame.write_ndjson().encode()))
    row = _read(store, str(path), "sft", tmp_path)[0]
    assert (row["prompt"], row["completion"], float(row["weight"])) == ("7", "seven", 0.5)
