"""The novelty gate decides as brute force with ROUGE's own scorer does, in English and Chinese."""

import json
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from factory.errors import SpecError
from factory.text import words
from generators._novelty import Match, Novelty

COUNT = 400


class _Words:
    """ROUGE's scorer on the words of the project."""

    @staticmethod
    @cache
    def tokenize(text: str) -> list[str]:
        return words(text)


SCORER = RougeScorer(["rougeL"], use_stemmer=False, tokenizer=_Words())


def brute(pool: dict[str, str], text: str, threshold: float) -> Match | None:
    """The first of the best of the pool, by scoring all of it; a score must be above the threshold."""
    scored = [Match(id, SCORER.score(other, text)["rougeL"].fmeasure) for id, other in pool.items()]
    best = max(scored, key=lambda match: match.score, default=None)
    return best if best and best.score > threshold else None


def gate(texts: list[str], threshold: float) -> list[Match | None]:
    """Self-Instruct's loop: what is new joins the pool."""
    pool, found = Novelty(threshold), []
    for place, text in enumerate(texts):
        found.append(pool.nearest(text))
        if found[-1] is None:
            pool.add(str(place), text)
    return found


def gate_by_brute_force(texts: list[str], threshold: float) -> list[Match | None]:
    pool: dict[str, str] = {}
    found = []
    for place, text in enumerate(texts):
        found.append(brute(pool, text, threshold))
        if found[-1] is None:
            pool[str(place)] = text
    return found


@pytest.mark.parametrize("name", ["alpaca_9k.json", "alpaca_zh_demo.json"])
def test_every_decision_on_real_instructions_is_that_of_brute_force(shared: Path, name: str) -> None:
    if not (shared / name).exists():
        pytest.skip(f"the real file {name} is not in the shared data")
    rows = json.loads((shared / name).read_text(encoding="utf-8"))
    texts = [row["instruction"] for row in islice(rows, COUNT)]
    # Real instructions are seldom near: so half of them come again, cut or with a word more.
    texts += [text[: len(text) * 3 // 4] for text in texts[:40]] + [text + " again 吧" for text in texts[40:80]]
    found = gate(texts, 0.7)
    assert found == gate_by_brute_force(texts, 0.7), "the same match and the same score, to the last bit"
    assert sum(match is not None for match in found) > 40, "there is something to find"


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.text("ab 我你c的", max_size=14), max_size=12),
    st.sampled_from([0.0, 0.25, 0.5, 2 / 3, 0.7, 0.8, 1.0]),
)
def test_ties_repeats_and_scores_right_at_the_threshold_are_those_of_brute_force(
    texts: list[str], threshold: float
) -> None:
    assert gate(texts, threshold) == gate_by_brute_force(texts, threshold)


@given(st.lists(st.text(st.characters(codec=None), max_size=20), max_size=6), st.text(st.characters(codec=None)))
def test_hostile_text_never_crashes_the_gate(texts: list[str], asked: str) -> None:
    pool = Novelty(0.5)
    for place, text in enumerate(texts):
        pool.add(str(place), text)
    match = pool.nearest(asked)
    assert len(pool) == len(texts)
    assert match == brute({str(i): text for i, text in enumerate(texts)}, asked, 0.5)


def test_an_equal_score_is_no_match_and_a_higher_one_is() -> None:
    pool = Novelty(0.5)
    pool.add("seed", "one two three four")
    assert pool.nearest("one two five six") is None, "exactly 0.5"
    assert pool.nearest("one two three six") == Match("seed", 0.75)


def test_the_nearest_text_is_named_and_the_first_of_equals() -> None:
    pool = Novelty(0.3)
    for id, text in {"a": "写一首关于春天的诗", "b": "写一首关于秋天的诗", "c": "写一首关于秋天的歌"}.items():
        pool.add(id, text)
    assert pool.nearest("写一首关于冬天的诗") == Match("a", 8 / 9)
    assert pool.nearest("写一首关于秋天的诗！") == Match("b", 1.0)


def test_a_text_without_a_word_is_near_to_nothing_and_an_empty_pool_has_no_match() -> None:
    pool = Novelty(0.0)
    assert pool.nearest("anything") is None
    pool.add("signs", "?!")
    pool.add("empty", "")
    assert pool.nearest("?!") is None
    assert pool.nearest("") is None


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_that_is_no_share_is_refused_by_its_value(threshold: float) -> None:
    with pytest.raises(SpecError, match=rf"novelty threshold is {threshold}: give a ROUGE-L F1 from 0 to 1"):
        Novelty(threshold)
