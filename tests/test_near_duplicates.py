"""The exact join and peeling: against plain Python on any text, and against brute force on real data with edits."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from factory.steps import load_step
from factory.text import jaccard, shingles
from filters import _join, _peel, _sets, _shingles, _spool
from filters._join import Join, Pairs, among
from filters._planner import by_prefixes, planned
from filters._shingles import shingle_hashes, shingled
from filters._spool import spool
from filters.near_duplicates import NearDuplicates
from tests.near_help import chinese, edited, english, families, frame, greedy, true_pairs, with_edits

# What a frame can hold at all: every code point but surrogates, NUL, marks and direction marks too.
HOSTILE = st.one_of(
    st.text(max_size=30),
    st.text("ab Z1 9#-*/<>+= \t\x00\x1e\u0301क\u094d你好カ가ᄀ\u1161٣é_.²ßİ😀\u202e\u20d0①ﬁΣ…\u00a0，", max_size=30),
    st.sampled_from(["", " ", "\x00", "!!", "- 5", "a" * 3000, "哈 " * 300, "שלום עולם", "a b c d e f g h"]),
)
SMALL = st.lists(st.text("ab c你我好", max_size=14), max_size=14)
THRESHOLDS = st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9, 1.0])


def dropped(told: pl.DataFrame) -> dict[int, tuple[float, int]]:
    rows = told.filter(~pl.col("keep")).select("id", "score", "evidence_id")
    return {int(id): (score, int(evidence)) for id, score, evidence in rows.iter_rows()}


@contextmanager
def all_pairs(texts: list[str], threshold: float) -> Iterator[Pairs]:
    """All pairs of the join, before peeling."""
    with spool(pl.Series(texts, dtype=pl.String), 3) as spooled:
        sets, postings = by_prefixes([spooled], np.arange(len(texts)), threshold)
        yield Join(sets).pairs(among(postings))


@pytest.fixture
def tiny_portions() -> Iterator[None]:
    """Every limit of what is held at once set so low that a few texts go through many portions, and to disk."""
    limits = [
        (_peel, "_CANDIDATES", 5), (_join, "PORTION", 7), (_sets, "_SORTED", 20), (_spool, "_MEMORY", 64),
        (_spool, "_READ", 8), (_shingles, "_PIECE", 50),
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in limits:
            patch.setattr(module, name, value)
        yield


# -- shingles ----------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.lists(HOSTILE, max_size=8), st.integers(1, 5))
@example(["- \t\n 1", "-\x1e1", "\u0301a", "! !", "a#", "\u1100\u1161", "İ"], 2)
def test_shingles_are_just_those_of_factory_text(texts: list[str], n: int) -> None:
    found = list(shingled(pl.Series(texts, dtype=pl.String), n))
    rows = [piece.hashes[a:b] for piece in found for a, b in pairwise(piece.offsets.tolist())]
    assert len(rows) == len(texts)
    for text, row in zip(texts, rows, strict=True):
        assert set(row.tolist()) == set(shingle_hashes(sorted(shingles(text, n))).tolist())


# -- what holds of any text --------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(SMALL, THRESHOLDS, st.integers(1, 3))
@example(["c", "a你c", "a你", "a你c"], 0.1, 1)  # the last is a copy of a row that was dropped before the third was kept
def test_it_decides_as_going_through_the_rows_one_by_one(texts: list[str], threshold: float, ngram: int) -> None:
    told = NearDuplicates(threshold=threshold, ngram=ngram).screen(frame(*texts))
    assert dropped(told) == greedy(texts, threshold, ngram)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(HOSTILE, st.sampled_from(["a b c", "a b d", "你好"])), max_size=8), THRESHOLDS)
def test_both_parts_must_reach_the_threshold(rows: list[tuple[str, str]], threshold: float) -> None:
    texts, prompts = [t for t, _ in rows], [p for _, p in rows]
    told = NearDuplicates(target="completions", threshold=threshold).screen(frame(*texts, prompts=prompts))
    assert dropped(told) == greedy(texts, threshold, prompts=prompts)


@settings(max_examples=60, deadline=None)
@given(st.lists(HOSTILE, min_size=1, max_size=10), st.randoms(use_true_random=False))
def test_given_priorities_the_order_of_the_rows_does_not_matter(texts: list[str], rng: Random) -> None:
    rows = frame(*texts, priorities=[float(i) for i in range(len(texts))])
    mixed = rows.sample(fraction=1.0, shuffle=True, seed=rng.randrange(1000))
    assert NearDuplicates().screen(mixed).sort("id").equals(NearDuplicates().screen(rows).sort("id"))


@settings(max_examples=100, deadline=None)
@given(st.lists(HOSTILE, max_size=12), THRESHOLDS)
def test_every_row_is_kept_or_dropped_for_a_live_row_that_near(texts: list[str], threshold: float) -> None:
    told = NearDuplicates(threshold=threshold).screen(frame(*texts))
    kept = set(told.filter("keep")["id"])
    assert told["id"].to_list() == [str(i) for i in range(len(texts))]
    for row, (score, near) in dropped(told).items():
        assert str(near) in kept
        assert score == jaccard(shingles(texts[row]), shingles(texts[near])) >= threshold
    assert set(told["reason"]) <= {"", "near_duplicate"}


@pytest.mark.usefixtures("tiny_portions")
@pytest.mark.parametrize("seed", range(40))
def test_portions_change_nothing_but_which_near_row_is_named(seed: int) -> None:
    rng = Random(seed)
    texts = ["".join(rng.choice("a b c d 你我") for _ in range(rng.randrange(30))) for _ in range(25)]
    told = NearDuplicates(threshold=0.5).screen(frame(*texts))
    expected = greedy(texts, 0.5)
    assert dropped(told).keys() == expected.keys()
    for row, (score, near) in dropped(told).items():
        assert near not in expected
        assert score == jaccard(shingles(texts[row]), shingles(texts[near])) >= 0.5


# -- cases -------------------------------------------------------------------------------------------------------------

ENGLISH = "Write a short story about a lighthouse keeper who finds a message in a bottle on the beach"
CHINESE = "请写一个关于灯塔看守人在海滩上发现漂流瓶里一封旧信的短篇故事"


@pytest.mark.parametrize(("text", "longer"), [(ENGLISH, ENGLISH + " one day"), (CHINESE, CHINESE + "，谢谢")])
def test_a_few_words_more_are_a_near_duplicate_with_its_true_similarity(text: str, longer: str) -> None:
    told = NearDuplicates().screen(frame("Something else entirely", text, longer)).row(2, named=True)
    assert (told["reason"], told["evidence_id"]) == ("near_duplicate", "1")
    assert told["score"] == jaccard(shingles(text), shingles(longer)) >= told["threshold"] == 0.7


@pytest.mark.parametrize(
    ("left", "right"),
    [("What is 12 + 7?", "What is 12 - 7?"), ("计算 12 + 7", "计算 12 - 7"), ("Thanks", "Thank you"), ("你好", "您好")],
)
def test_short_texts_that_differ_in_one_sign_are_both_kept(left: str, right: str) -> None:
    assert NearDuplicates().screen(frame(left, right))["keep"].to_list() == [True, True]


def test_problems_that_differ_in_a_number_only_are_told_apart() -> None:
    texts = [f"Tom has {n} apples and eats 2. How many are left?" for n in (5, 7)]
    assert NearDuplicates(threshold=0.8).screen(frame(*texts))["keep"].to_list() == [True, True]


def test_a_chain_of_small_edits_does_not_collapse_into_one_survivor() -> None:
    tokens = [f"w{i}" for i in range(60)]
    chain = [" ".join(tokens[shift : shift + 30]) for shift in range(0, 30, 3)]
    told = NearDuplicates().screen(frame(*chain))
    assert told["reason"].to_list() == ["", "near_duplicate"] * 5
    assert told["evidence_id"].to_list()[1::2] == ["0", "2", "4", "6", "8"]


def test_the_row_of_highest_priority_is_kept_whatever_its_place() -> None:
    rows = frame(ENGLISH, ENGLISH + " one day", CHINESE, ENGLISH.upper(), priorities=[0.1, 0.9, None, float("nan")])
    told = NearDuplicates().screen(rows)
    assert told["evidence_id"].to_list() == ["1", "", "", "1"]


@pytest.mark.parametrize(("compare", "kept"), [("prompt", 1), ("response", 2), ("both", 3)])
def test_what_is_compared_can_be_chosen(compare: str, kept: int) -> None:
    rows = frame(ENGLISH, CHINESE, CHINESE + "，谢谢", prompts=["What is this?"] * 2 + ["What is this ?"])
    other = frame(CHINESE, prompts=[ENGLISH], start=3)
    step: Any = load_step("filter", "near_duplicates", {"target": "completions", "compare": compare})
    assert step.screen(rows)["keep"].sum() == {1: 1, 2: 2, 3: 2}[kept]
    assert step.screen(pl.concat([rows, other]))["keep"].sum() == {1: 2, 2: 2, 3: 3}[kept]


@pytest.mark.parametrize(("option", "value"), [("threshold", 0), ("threshold", 1.1), ("ngram", 0), ("compare", "all")])
def test_wrong_options_are_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=option):
        NearDuplicates(**{option: value})


def test_one_huge_text_and_a_dense_family_are_judged_like_any_other() -> None:
    huge = " ".join(map(str, range(200_000)))
    told = NearDuplicates().screen(frame(huge, huge + " end", *["same words over and over"] * 2000))
    assert told["keep"].sum() == 2
    assert told["score"][1] == 199_998 / 199_999


def test_texts_of_the_same_words_in_another_order_are_no_copies() -> None:
    left, right = ENGLISH, ENGLISH.replace("keeper who finds", "finds who keeper")
    told = NearDuplicates(threshold=0.1).screen(frame(left, right))
    assert told["score"][1] == jaccard(shingles(left), shingles(right)) < 1


# -- the planner -------------------------------------------------------------------------------------------------------


def test_the_planner_leaves_the_exact_join_where_it_is_too_dear_and_says_why() -> None:
    assert planned(3_000_000, 250_000) == ("exact", "3,000,000 shingles, 250,000 candidates at most")
    assert planned(10**9, 0).method == planned(10**6, 10**11).method == "minhash"
    assert "memory" in planned(10**9, 0).why
    assert "comparing might take" in planned(10**6, 10**11).why


def test_minhash_in_place_of_the_join_is_told_and_finds_the_same(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = families(300, 20, 1)
    exact = NearDuplicates(method="exact").screen(frame(*texts))
    assert not caplog.records
    monkeypatch.setattr("filters._planner._MEMORY", 1000)
    with caplog.at_level(logging.INFO):
        assert NearDuplicates().screen(frame(*texts))["keep"].equals(exact["keep"])
    assert caplog.records[0].levelname == "WARNING"
    assert caplog.records[0].getMessage().startswith("minhash: ")


# -- real data with edits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("read", "injected"), [(english, 500), (chinese, 400)])
def test_the_join_finds_just_the_pairs_of_brute_force(shared: Path, read: Any, injected: int) -> None:
    rows = Random(1).sample(read(shared), 900)
    texts, edits = with_edits(rows, injected, 1)
    truth = true_pairs(texts, 0.7)
    with all_pairs(texts, 0.7) as pairs:
        found = {(a, b): j for a, b, j in zip(*(column.tolist() for column in pairs), strict=True)}
    assert found == truth
    assert sum(pair in truth for pair in edits) >= 0.94 * injected, "what people change by hand is found"
    told = dropped(NearDuplicates().screen(frame(*texts)))
    assert all(truth[row, near] == score and near not in told for row, (score, near) in told.items())
    lost = set[int]()
    for row, near in sorted(truth):
        lost |= set() if near in lost else {row}
    assert set(told) == lost, "a row is dropped just where a kept one before it is near"


def test_dense_families_are_peeled_as_one_by_one() -> None:
    texts = families(600, 12, 3)
    with ExitStack() as stack:
        assert len(stack.enter_context(all_pairs(texts, 0.7)).row) == len(true_pairs(texts, 0.7)) > 1000
    assert dropped(NearDuplicates().screen(frame(*texts))) == greedy(texts, 0.7)


def test_edits_are_of_several_kinds() -> None:
    rng = Random(0)
    assert len({edited(ENGLISH, rng) for _ in range(60)}) > 25
