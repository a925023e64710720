"""Rows to items: what is held out, how answers are ordered, which numbers and shapes are refused, what resume heeds."""

from itertools import combinations
from pathlib import Path
from typing import Any

import datasets
import pytest

from factory.engines.checkpoints import resolve
from factory.errors import DataError
from factory.records import Metric
from factory.steps import load_step
from trainers._models import load_tokenizer
from trainers._policy_rows import judged_by, prompts
from trainers._preferences import ranked
from trainers._rows import Read, held_out, supervised
from trainers.process_reward import _collated, _read, _totals

WEAK = resolve("mini-weak")
TOKENIZER = load_tokenizer(WEAK)

pytestmark = pytest.mark.usefixtures("one_thread")


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


# --- numbers, names and shapes ---------------------------------------------------------------------------------------

TURNS = [{"role": "user", "content": "Say owl."}]
GOOD: dict[str, dict[str, Any]] = {
    "sft": {"prompt": "Say owl.", "completion": "owl"},
    "dpo": {"prompt": "Say owl.", "chosen": "owl", "rejected": "cat"},
    "process_reward": {"prompt": "Add.", "steps": ["1", "2"], "labels": [1, 0]},
}


class _Rows(list[dict[str, Any]]):
    """Rows that name their columns, as a dataset does, also where a column holds what no dataset would."""

    @property
    def column_names(self) -> list[str]:
        return list(self[0])


def _items(trainer: str, rows: list[dict[str, Any]]) -> Read[Any]:
    if trainer == "sft":
        return supervised(rows, TOKENIZER, 100)
    if trainer == "dpo":
        return ranked(rows, list(rows[0]), TOKENIZER, 100, "dpo", 1.0)
    read: Read[Any] = _read(_Rows(rows), TOKENIZER, 100)
    return read


@pytest.mark.parametrize("trainer", GOOD)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight": -1.0}, r"row bad: its weight is -1.0, which is below 0; filter it: WHERE weight >= 0"),
        ({"weight": "high"}, "row bad: its weight is 'high'; filter it"),
        ({"prompt": 7}, "row 2: .7. is no text"),
        ({"prompt": [{"from": "human", "value": "a"}]}, "row 2: .*is no text and no list of messages"),
        ({"prompt": [{"role": "user", "content": None}]}, "row 2: the message .* has no text"),
    ],
)
def test_what_no_row_may_hold_is_told_with_the_row(trainer: str, change: dict[str, Any], said: str) -> None:
    good = GOOD[trainer]
    with pytest.raises(DataError, match=said):
        _items(trainer, [good | {"weight": 1.0, "id": "good"}, good | {"id": "bad"} | change])


def test_step_labels_that_are_no_numbers_are_told_with_the_row() -> None:
    with pytest.raises(DataError, match="row 2: it has not the shape that is needed .*could not convert.*good"):
        _items("process_reward", [GOOD["process_reward"], GOOD["process_reward"] | {"labels": ["good", "bad"]}])


@pytest.mark.parametrize("trainer", GOOD)
def test_rows_without_an_id_are_called_by_their_number(trainer: str) -> None:
    with pytest.raises(DataError, match="row 2: its weight"):
        _items(trainer, [GOOD[trainer], GOOD[trainer] | {"weight": -1.0}])
    found = _items(trainer, [GOOD[trainer]] * 3).items[2]
    assert getattr(found, "key", None) == "3" or found.text.key == "3"


@pytest.mark.parametrize(
    ("trainer", "change"),
    [("sft", {"weight": 2.0}), ("dpo", {"weight": 2.0}), ("dpo", {"margin": 2.0}), ("dpo", {"aspect": "kind"}),
     ("process_reward", {"labels": [0, 1]}), ("process_reward", {"weight": 0.5})],
)  # fmt: skip
def test_the_digest_that_a_state_is_known_by_covers_all_of_an_item(trainer: str, change: dict[str, Any]) -> None:
    once, again, other = (_items(trainer, [GOOD[trainer] | more]).digest for more in ({}, {}, change))
    assert once == again != other


def test_the_digest_covers_scores() -> None:
    row = {"prompt": "say", "completions": ["a", "b"]}
    rows = [row | {"scores": scores} for scores in ([1.0, 0.0], [0.0, 1.0], [2.0, 0.0])]
    assert len({ranked([row], ["completions"], TOKENIZER, 99, "reward").digest for row in rows}) == 3


def test_a_heavy_row_counts_for_more_among_steps() -> None:
    good = GOOD["process_reward"]
    items = _items("process_reward", [good | {"weight": 3.0}, good | {"prompt": "说"}]).items
    assert _totals(items) == {"steps": 8.0}
    assert _collated(items, 0).weights.tolist() == [3.0, 3.0, 1.0, 1.0]


def test_a_step_of_weightless_pairs_is_no_error(tmp_path: Path) -> None:
    options = {"base": WEAK, "bf16": False, "max_steps": 1, "beta": 0.1, "logging_steps": 1}
    rows = datasets.Dataset.from_list([GOOD["dpo"] | {"weight": 0.0}])
    found = list(load_step("train", "dpo", options).train(rows, tmp_path / "m"))
    assert [r.value for r in found if isinstance(r, Metric) and r.name == "loss"] == [0.0]


@pytest.mark.parametrize(
    "row", [{"prompt": 7}, {"prompt": [{"from": "human", "value": "a"}]}, {"prompt": "a", "meta": "note"}]
)
def test_prompts_of_a_wrong_shape_are_told_with_their_row(row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="row 2: "):
        prompts(_Rows([{"prompt": "Say owl.", "meta": ""}, row]), TOKENIZER, 100, "ppo")


def test_a_state_is_known_by_what_its_rewards_hold(tmp_path: Path) -> None:
    """The same names with other code, or with another model behind them, are another training."""
    code, folder = tmp_path / "r.py", tmp_path / "rm"
    folder.mkdir()
    reward = [{"python": f"{code}:score"}, {"model": str(folder)}]

    def known() -> str:
        return judged_by(load_step("train", "ppo", {"base": WEAK, "reward": reward, "value_model": str(folder)}))

    code.write_text("def score(prompts, completions): return [1.0]")
    (folder / "model.safetensors").write_bytes(b"1")
    once, again = known(), known()
    code.write_text("def score(prompts, completions): return [0.0]")
    other = known()
    (folder / "model.safetensors").write_bytes(b"2")
    assert len({once, again, other, known()}) == 3


def test_a_state_does_not_hang_on_what_else_lies_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = load_step("train", "ppo", {"base": WEAK, "reward": {"rule": "exact"}})
    before = judged_by(options)
    (tmp_path / "notes.txt").write_text("none of its business")
    assert judged_by(options) == before
