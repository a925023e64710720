"""Groups of rollouts: none is lost without a row, processes share them out by turns, and repeated rows differ."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from factory.errors import SpecError
from factory.records import Completion, Judgement, Prompt, Record, Verdict
from factory.rewards import Judge
from tests.policy_help import ROWS, rows_of, trained, trainer
from trainers._policy import in_turns

pytestmark = pytest.mark.usefixtures("one_thread")


def _silent_once(part: Judge, rows: Sequence[tuple[Prompt, Completion]]) -> list[float | None]:
    """A judge of whose replies the first cannot be read."""
    return [None, *(float(i) for i in range(1, len(rows)))]


def test_the_others_of_a_group_that_is_left_out_are_rows_with_their_scores(tmp_path: Path) -> None:
    step = trainer("grpo", reward={"judge": "j"}, max_steps=1)
    records = list(step.train_asking(rows_of(), tmp_path / "m", _silent_once))
    made = [r for r in records if isinstance(r, Completion)]
    assert len(made) == len({c.id for c in made}) == 8
    rewarded = [r for r in records if isinstance(r, Judgement) and r.aspect == "reward"]
    assert sorted(r.score or 0.0 for r in rewarded) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    told = {r.reason: r for r in records if isinstance(r, Verdict)}
    assert set(told) == {"judge_no_score", "group_left_out"}
    assert told["group_left_out"].score == 1.0
    assert {v.record_id for v in told.values()} < {c.id for c in made}
    assert len({r.completion_id for r in records if isinstance(r, Judgement) and r.aspect == "kl"}) == 6


def test_without_rows_of_answers_the_verdicts_are_told_all_the_same(tmp_path: Path) -> None:
    step = trainer("grpo", reward={"judge": "j"}, max_steps=1, log_completions=False)
    records: list[Record] = list(step.train_asking(rows_of(), tmp_path / "m", _silent_once))
    assert Counter(r.reason for r in records if isinstance(r, Verdict)) == {"judge_no_score": 1, "group_left_out": 1}
    assert not [r for r in records if isinstance(r, Completion)]


def test_what_processes_share_out_by_turns_comes_back_in_the_order_of_one() -> None:
    """Groups of two answers, a to h, for two processes; of the second process one group was left out."""
    first, second = [(0, "a1"), (0, "a2"), (1, "c1"), (1, "c2"), (2, "e1")], [(0, "b1"), (0, "b2"), (2, "f1")]
    assert [name for _, name in in_turns([first, second])] == ["a1", "a2", "b1", "b2", "c1", "c2", "e1", "f1"]
    assert in_turns([first]) == first


def test_rows_that_repeat_themselves_are_answered_anew(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "id": "the same"}] * 4
    made = [r for r in trained("ppo", tmp_path / "m", rows=rows, max_steps=1) if isinstance(r, Completion)]
    assert len({c.seed for c in made}) == len(made) == 8
    assert len({c.text for c in made}) > 3


def test_a_roll_back_needs_to_know_what_was_best(tmp_path: Path) -> None:
    """Without a gold reward and an ensemble the newest step would count as the best one: the bad one."""
    options = {"guard_kl": "roll_back", "max_steps": 1}
    with pytest.raises(SpecError, match=r"roll_back must know which step was the best: give `gold`"):
        trained("rloo", tmp_path / "m", **options)
    assert not (tmp_path / "m").exists()
    trained("rloo", tmp_path / "n", gold={"sql": "length"}, **options)
