"""Rewards of PPO, GRPO and RLOO: what they take, and how what is wrong with them is told."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from factory import training
from factory.engines.scripted import Scripted
from factory.errors import DataError, SpecError
from factory.records import Judgement, Verdict
from factory.steps import load_step
from tests.policy_help import WEAK, rows_of, series, trained, trainer

pytestmark = pytest.mark.usefixtures("one_thread")


FUNCTIONS = {
    "raises": ("    return [1 / (len(c) - len(c)) if '猫' in p else 1.0 for p, c in zip(prompts, completions)]",
               "row 3.*division by zero"),
    "too few": ("    return [1.0]", r"gave 1 scores for \d+ completions"),
    "nan": ("    return [float('nan') if 'cat' in p else 0.0 for p in prompts]",
            "row 2: python:r.py:score gave no number"),
    "none": ("    return [None if 'Add' in p else 0.0 for p in prompts]", "row 4: python:r.py:score gave no number"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FUNCTIONS)
def test_a_reward_function_at_fault_is_told_in_one_line_with_the_row(fault: str, tmp_path: Path) -> None:
    body, said = FUNCTIONS[fault]
    (tmp_path / "r.py").write_text(f"def score(prompts, completions):\n{body}\n")
    with pytest.raises(DataError, match=said) as caught:
        trained("grpo", tmp_path / "m", reward={"python": f"{tmp_path / 'r.py'}:score"})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m").exists()


def test_a_rule_without_the_right_answer_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 1: rule:exact gave no number .* right answer in the meta, or a column"):
        trained("ppo", tmp_path / "m", rows=[{"prompt": "Say owl."}], reward={"rule": "exact"})


def test_several_rewards_make_one_and_a_penalty_is_taken_for_no_end(tmp_path: Path) -> None:
    reward = [{"sql": "2.0"}, {"sql": "3.0", "weight": -0.5}]
    records = trained("rloo", tmp_path / "m", reward=reward, missing_eos_penalty=4.0, max_steps=1, reward_clip=0.25)
    clipped = series(records, "completions/clipped_ratio")[0]
    assert series(records, "objective/scores_raw") == [0.5]
    assert series(records, "objective/scores")[0] == pytest.approx(0.25 - 4.0 * clipped)
    told = [r.rationale for r in records if isinstance(r, Judgement) and r.aspect == "reward"]
    assert told[0] == "sql:2.0 2, sql:3.0 3"


def _judging(says: dict[str, str]) -> Any:
    return training.asking({"j": Scripted(model="judge", replies=says).open()})


def test_a_judge_rewards_and_what_it_did_not_read_is_left_out_with_its_reason(tmp_path: Path) -> None:
    says = {"^You rate[^答]*(?:Add|owl)": "I cannot say", "^You rate": "Score: 4", "^请只就": "评分：2"}
    step = trainer("grpo", reward={"judge": "j"}, max_steps=1)
    records = list(step.train_asking(rows_of(), tmp_path / "m", _judging(says)))
    scores = {r.score for r in records if isinstance(r, Judgement) and r.aspect == "reward"}
    assert scores == {4.0, 2.0}
    assert Counter(r.reason for r in records if isinstance(r, Verdict)) == {"judge_no_score": 4}
    with pytest.raises(DataError, match="give it with --engine j=USE:MODEL"):
        list(step.train(rows_of(), tmp_path / "n"))


def test_a_gold_reward_may_be_missing_for_it_is_only_measured(tmp_path: Path) -> None:
    rows = [{"prompt": "Say owl.", "answer": "owl"}, {"prompt": "用中文说猫。", "answer": None}]
    records = trained("rloo", tmp_path / "m", rows=rows, gold={"rule": "exact"}, max_steps=1)
    assert len([r for r in records if isinstance(r, Judgement) and r.aspect == "gold"]) == 4
    assert len([r for r in records if isinstance(r, Judgement) and r.aspect == "reward"]) == 8


def test_an_option_that_is_no_reward_is_refused_at_once() -> None:
    with pytest.raises(SpecError, match="a part names one of rule, model, sql, python, judge"):
        trainer("ppo", reward={"rul": "exact"})
    with pytest.raises(DataError, match="num_generations=3 does not divide"):
        list(trainer("grpo", num_generations=3).train(rows_of(), Path("never")))


def test_an_ensemble_s_disagreement_is_read_and_can_be_taken_off(tmp_path: Path) -> None:
    rows = [{"prompt": "Say owl.", "chosen": "owl " * (1 + i), "rejected": f"cat {i}"} for i in range(6)]
    given = {"base": WEAK, "bf16": False, "max_steps": 3, "learning_rate": 1e-3, "eval_fraction": 0.2, "ensemble": 3}
    list(load_step("train", "reward", given).train(rows_of(rows), tmp_path / "rm"))
    means = dict[str, float]()
    for way in ("mean", "min", "lower"):
        reward = {"model": str(tmp_path / "rm"), "ensemble": way, "k": 2.0}
        records = trained("ppo", tmp_path / way, reward=reward, max_steps=1)
        means[way], apart = series(records, "objective/scores")[0], series(records, "objective/disagreement")[0]
        assert apart > 0
    assert means["min"] < means["mean"]
    assert means["lower"] == pytest.approx(means["mean"] - 2 * apart, abs=1e-4)
