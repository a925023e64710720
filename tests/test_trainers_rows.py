"""Rows to items: what is held out, how answers are ordered, which numbers and shapes are refused, what resume heeds."""

from itertools import combinations
from typing import Any

import pytest

from factory.engines.checkpoints import resolve
from factory.errors import DataError
from trainers._models import load_tokenizer
from trainers._preferences import ranked
from trainers._rows import held_out, supervised

TOKENIZER = load_tokenizer(resolve("mini-weak"))


def _said(item: Any) -> str:
    return str(TOKENIZER.decode(item.ids.tolist()))


def test_whole_prompts_are_held_out_of_pairs_and_rankings() -> None:
    rows = [
        {"prompt": f"say {i}", "chosen": a * 3, "rejected": b * 3}
        for i in range(50)
        for a, b in combinations("abcd", 2)
    ]
    found = ranked(rows, ["chosen", "rejected"], TOKENIZER, 100, "reward")
    trained, heldout = held_out(found.items, found.prompts, 0.05, 0)
    assert 12 <= len(heldout) <= 18
    assert len(trained) + len(heldout) == 300
    seen = {_said(answer) for item in trained for answer in item.answers}
    assert not [1 for item in heldout for answer in item.answers if _said(answer) in seen]
    drawn = [held_out(range(300), found.prompts, 0.05, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_rows_of_sft_that_ask_the_same_stay_together_as_columns_or_as_messages() -> None:
    """Also where everything is learned, so that the tokens do not tell where the prompt ends."""
    asked = [[{"role": "user", "content": f"说 {i}"}] for i in range(20)]
    rows: list[dict[str, Any]] = [{"messages": [*a, {"role": "assistant", "content": w}]} for a in asked for w in "ab"]
    rows += [{"prompt": a[0]["content"], "completion": "c"} for a in asked]
    found = supervised(rows, TOKENIZER, 100, completion_only=False, assistant_only=False)
    trained, heldout = held_out(found.items, found.prompts, 0.1, 3)
    assert len(heldout) == 6
    heads = [{_said(e).split("<|im_end|>")[0] for e in part} for part in (trained, heldout)]
    assert len(heads[1]) == 2
    assert not heads[0] & heads[1]


@pytest.mark.parametrize(
    ("prompts", "fraction", "held"),
    [(["a"] * 9, 0.5, 0), (["a"] * 9 + ["b"], 0.1, 1), (list("abcdefghij"), 0.8, 8), (list("ab"), 0.9, 1)],
)
def test_something_is_left_to_learn_whatever_is_held_out(prompts: list[str], fraction: float, held: int) -> None:
    for seed in range(5):
        trained, heldout = held_out(prompts, prompts, fraction, seed)
        assert (len(trained), len(heldout)) == (len(prompts) - held, held)


def test_scores_say_which_answer_is_better_wherever_it_stands() -> None:
    rows = [
        {"prompt": "说", "completions": ["坏", "好"], "scores": [0, 1]},
        {"prompt": "say", "completions": ["a", "b"]},
    ]
    found = ranked(rows, ["completions", "scores"], TOKENIZER, 100, "dpo").items
    assert [[_said(e).split("assistant\n")[1][0] for e in item.answers] for item in found] == [["好", "坏"], ["a", "b"]]
    assert [item.ranks[0] > item.ranks[1] for item in found] == [True, True]


@pytest.mark.parametrize(
    ("scores", "said"),
    [([1.0, float("nan")], "row 2: its scores are"), ([None, 1.0], "row 2: its scores are"),
     ([1.0], "row 2: 2 completions, but 1 scores")],
)  # fmt: skip
def test_scores_that_order_nothing_are_told_with_their_row(scores: list[Any], said: str) -> None:
    rows = [{"prompt": "say", "completions": ["a", "b"], "scores": s} for s in ([1.0, 0.0], scores)]
    for trainer in ("reward", "dpo"):
        with pytest.raises(DataError, match=said):
            ranked(rows, ["completions"], TOKENIZER, 100, trainer)


def test_dpo_refuses_more_than_two_answers_and_says_what_to_give() -> None:
    rows = [{"prompt": "say", "completions": ["a", "b", "b"]}, {"prompt": "say", "completions": ["a", "b", "c"]}]
    with pytest.raises(DataError, match=r"row 2: dpo compares two answers, and this row has 3.*AS rejected"):
        ranked(rows, ["completions"], TOKENIZER, 100, "dpo")
    assert len(ranked(rows, ["completions"], TOKENIZER, 100, "reward").items) == 2
