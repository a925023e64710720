"""Where: what the expression sees, what it may not do, and what is told of a wrong one."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory import flow
from factory.errors import SpecError
from factory.records import Completion, Judgement, Prompt, user
from factory.steps import load_step
from factory.store import Store
from factory.thresholds import rethreshold
from filters.where import Where
from tests.filters_help import HOSTILE, VERDICT, check, frame

SCORES = pl.List(pl.Struct({"aspect": pl.String, "score": pl.Float64, "judgement_id": pl.String}))


def scored(*scores: dict[str, float]) -> pl.DataFrame:
    """Completions with scores by aspect; the judgement of aspect "a" of row 0 is "a0"."""
    rows: list[Any] = [
        [{"aspect": a, "score": s, "judgement_id": f"{a}{i}"} for a, s in each.items()] or None
        for i, each in enumerate(scores)
    ]
    means = [sum(each.values()) / len(each) if each else None for each in scores]
    asked = frame(*(f"text {i}" for i in range(len(scores))))
    return asked.with_columns(pl.Series("scores", rows, SCORES), priority=pl.Series(means, dtype=pl.Float64))


def test_scores_are_columns_by_aspect_and_a_missing_one_is_unknown() -> None:
    asked = scored({"ifd": 0.4, "style": 5.0}, {"ifd": 0.9}, {})
    told = Where(sql="ifd < 0.5").screen(asked)
    assert told.columns == VERDICT
    assert told["reason"].to_list() == ["", "not_met", "unknown"]
    assert told["score"].to_list() == [0.4, 0.9, None]
    assert told["threshold"].to_list() == [0.5] * 3
    assert told["evidence_id"].to_list() == ["", "ifd1", "2"]


def test_score_is_the_mean_of_a_records_opinions() -> None:
    told = Where(sql="score >= 4").screen(scored({"style": 5.0, "helpfulness": 4.0}, {"style": 1.0}))
    assert told["keep"].to_list() == [True, False]
    assert told["score"].to_list() == [4.5, 1.0]


@pytest.mark.parametrize(
    ("sql", "kept"),
    [
        ("length(text) > 3 AND language = 'en'", [True, False]),
        ("text LIKE '%罗马%'", [False, True]),
        ("percent_rank() OVER (ORDER BY length(text) DESC) <= 0.5", [True, False]),
        ("prompt IS NOT NULL -- a comment", [True, True]),
        ("true", [True, True]),
        ("to_json(records) LIKE '%罗马%'", [False, True]),
        ("length(COLUMNS('te.t')) > 3", [True, False]),
        ('LENGTH("TEXT") > 3', [True, False]),
    ],
)
def test_any_expression_over_the_records_columns_will_do(sql: str, kept: list[bool]) -> None:
    asked = frame("Rome is old.", "罗马", prompts=["Where?", "哪里？"])
    told = Where(sql=sql).screen(asked)
    check(asked, told)
    assert told["keep"].to_list() == kept


def test_a_wrong_column_is_told_in_one_line_with_the_columns_there_are() -> None:
    with pytest.raises(SpecError, match=r"no column 'lenght'; did you mean .*columns are id, text, prompt") as told:
        Where(sql="lenght > 3").screen(frame("a").with_columns(length=pl.lit(1)))
    assert "\n" not in str(told.value)
    with pytest.raises(SpecError, match="columns are .*ifd"):
        Where(sql="complexity > 3").screen(scored({"ifd": 0.4}))


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("score >=", "is no expression"),
        ("1 = 1) FROM records; DROP TABLE records; SELECT (1", "is no expression"),
        ("true) AS a, (true", "more than one expression"),
        ("true) FROM records WHERE (false", "is no expression"),
        ("text IN (SELECT content FROM read_text('/etc/passwd'))", "a query inside"),
        ("(SELECT count(*) FROM duckdb_settings()) > 0", "a query inside"),
        ("getenv('HOME') = 'x'", "getenv"),
        ("random() < 0.5", "changes from run to run"),
        ("length(text)", "not true or false"),
        ("count(*) > 1", "gives one answer for all records"),
        ("nextval('x') > 1", "nextval"),
    ],
)
def test_what_is_not_one_harmless_condition_is_refused(sql: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        Where(sql=sql).screen(frame("a", "b"))


@settings(max_examples=30, deadline=None)
@given(st.lists(HOSTILE, max_size=6))
def test_any_text_is_judged_in_its_place(texts: list[str]) -> None:
    asked = frame(*texts)
    told = Where(sql="length(text) > 3").screen(asked)
    check(asked, told)
    assert told["keep"].to_list() == [len(text) > 3 for text in texts]


def test_from_the_store_with_measures_that_are_no_opinions_and_a_threshold_moved_later(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.duckdb")
    prompt = Prompt(user("Where is Rome?"), language="en")
    answers = [Completion(prompt.id, text) for text in ("In Italy.", "In Spain.")]
    told = [Judgement(prompt.id, c.id, "j", "model", score=s) for c, s in zip(answers, (5.0, 2.0), strict=True)]
    measured = Judgement(prompt.id, answers[0].id, "m", "measure", aspect="ifd", score=0.3)
    store.append([prompt, *answers, *told, measured], "d")
    step = load_step("filter", "where", {"sql": "score >= 4"})
    assert flow.screen(store, step, "where", "d", []) == "1 of 2 completions kept (1 not_met)"
    assert store.rows("SELECT reason, score, threshold, evidence_id FROM drops") == [("not_met", 2.0, 4.0, told[1].id)]
    rethreshold(store, "where", "d", 1.5)
    assert store.rows("SELECT count(*) FROM drops") == [(0,)]
    assert store.rows("SELECT count(*) FROM sft") == [(2,)]
    by_ifd = load_step("filter", "where", {"sql": "ifd < 0.5"})
    assert flow.screen(store, by_ifd, "where", "d", []) == "1 of 2 completions kept (1 unknown)"
    prompts = load_step("filter", "where", {"sql": "turns = 1 AND generator = ''", "target": "prompts"})
    assert flow.screen(store, prompts, "where", "d", []) == "1 of 1 prompts kept"


def test_a_dropped_pair_vanishes_from_pairs_and_shows_among_the_drops(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.duckdb")
    prompt = Prompt(user("罗马在哪里？"), language="zh")
    good, bad = Completion(prompt.id, "在意大利。"), Completion(prompt.id, "在西班牙。")
    vote = Judgement(prompt.id, good.id, "j", "human", other_id=bad.id, verdict="win")
    store.append([prompt, good, bad, vote], "d")
    ((pair_id, chosen),) = store.rows("SELECT pair_id, chosen FROM pairs")
    assert chosen == "在意大利。"
    step = load_step("filter", "where", {"sql": "chosen <> '在意大利。'", "target": "pairs"})
    flow.screen(store, step, "where", "d", [])
    assert store.rows("SELECT count(*) FROM pairs") == [(0,)]
    assert store.rows('SELECT record_id, reason, "text" FROM drops') == [(pair_id, "not_met", "在意大利。")]
    step = load_step("filter", "where", {"sql": "rejected = '在西班牙。'", "target": "pairs"})
    flow.screen(store, step, "where", "d", [])
    assert store.rows("SELECT pair_id FROM pairs") == [(pair_id,)], "judged again, it is back under the same id"
