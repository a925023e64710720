"""The diagnosis of a training: each fault told with its numbers, and nothing said of a sound one."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from factory import training
from factory.cli import main
from factory.diagnosis import RULES, diagnose
from factory.engines.checkpoints import resolve
from factory.records import Completion, Metric, Prompt, user
from factory.steps import load_step
from factory.store import Store

SOUND = {
    "sft": {"loss": [2.3, 1.4, 0.9, 0.7], "eval_loss": [2.4, 1.2, 0.8], "end_of_turn_accuracy": [0.2, 0.9],
            "grad_norm": [1.0] * 9},
    "dpo": {"loss": [0.69, 0.5, 0.4, 0.3], "rewards/accuracies": [0.5, 0.8, 0.9], "eval_rewards/accuracies": [0.85],
            "logps/chosen": [-40.0, -42.0, -43.0], "rewards/margins": [0.0, 0.9, 1.2]},
    "reward": {"loss": [0.7, 0.5, 0.4, 0.3], "mean_reward": [0.0, 0.0], "accuracy": [0.5, 0.8, 0.9],
               "eval_accuracy": [0.5, 0.85], "eval_ece": [0.05],
               "eval_accuracy_better_longer": [0.9], "eval_accuracy_better_shorter": [0.8]},
    "ppo": {"loss": [0.1, 0.1, 0.1, 0.1], "objective/kl": [0.0, 1.0, 3.0], "objective/entropy": [2.0, 1.5, 1.2],
            "objective/scores": [0.1, 0.3, 0.5, 0.6], "completions/clipped_ratio": [0.1, 0.05]},
    "grpo": {"kl": [0.0, 1.0, 3.0], "entropy": [2.0, 1.2], "reward": [0.1, 0.3, 0.5, 0.6],
             "frac_reward_zero_std": [0.1, 0.3]},
}  # fmt: skip


def _said(curves: dict[str, list[float]]) -> list[str]:
    return diagnose(Metric(n, v, 10 * i) for n, values in curves.items() for i, v in enumerate(values))


@pytest.mark.parametrize("trainer", SOUND)
def test_nothing_is_said_of_a_sound_training(trainer: str) -> None:
    assert _said(SOUND[trainer]) == []


@pytest.mark.parametrize(
    ("trainer", "change", "said"),
    [
        ("sft", {"loss": [2.3, 2.3, 2.3, 2.299]}, "did not move: 2.3 at first, 2.299 after 30 steps"),
        ("sft", {"loss": [2.3, 2.3, 2.9, 4.0]}, "rose from 2.3 to 4"),
        ("sft", {"eval_loss": [2.4, 0.8, 0.9, 1.1]}, "best at step 10 (0.8) and rose to 1.1"),
        ("sft", {"grad_norm": [1.0] * 8 + [50.0]}, "jumped to 50 at step 80 (1 is usual)"),
        ("sft", {"end_of_turn_accuracy": [0.0, 0.02]}, "at 2 % of the answers' ends"),
        ("sft", {"eval_end_of_turn_accuracy": [0.0, 0.1]}, "at 10 % of the answers' ends"),
        ("dpo", {"logps/chosen": [-40.0, -60.0, -90.0]}, "from -40.0 to -90.0 while the margin went from 0 to 1.2"),
        ("dpo", {"eval_rewards/accuracies": [0.5, 0.52]}, "in 52 % of them, and a coin gives 50 %"),
        ("dpo", {"eval_rewards/accuracies": [0.5, 0.7]}, "90 % of the pairs in training are told apart, and 70 %"),
        ("reward", {"eval_accuracy": [0.5, 0.49]}, "no better than chance: 49 %"),
        ("reward", {"eval_ece": [0.3]}, "30 points off"),
        ("reward", {"eval_accuracy_better_shorter": [0.4]}, "40 % where it is the shorter"),
        ("ppo", {"objective/kl": [0.0, -2.0, -5.0]}, "The KL is negative (-5)"),
        ("ppo", {"objective/kl": [0.0, 20.0, 50.0]}, "went 50 nats from its reference"),
        ("ppo", {"objective/entropy": [2.0, 0.5, 0.01]}, "collapsed from 2 to 0.01 nats"),
        ("ppo", {"completions/clipped_ratio": [0.1, 0.9]}, "10 % of them end by themselves, 90 % at first"),
        ("ppo", {"objective/scores": [0.5, 0.3, 0.2, 0.1]}, "did not rise: 0.5 at first, 0.1 at the end"),
        ("grpo", {"frac_reward_zero_std": [0.1, 0.9]}, "90 % of them all answers have the same reward (10 % at"),
        ("grpo", {"kl": [0.0, -1.0]}, "The KL is negative (-1)"),
    ],
)  # fmt: skip
def test_each_fault_is_told_with_its_numbers(trainer: str, change: dict[str, list[float]], said: str) -> None:
    found = _said(SOUND[trainer] | change)
    assert any(said in sentence for sentence in found), found
    assert all(any(mend in f for mend in ("ry ", "ook at", "add ", "Balance ")) for f in found), "and what to do"


def test_numbers_that_are_none_and_few_metrics_are_borne() -> None:
    assert diagnose([]) == []
    assert _said({"loss": [float("nan"), 1.0], "objective/kl": [float("inf")]}) == []
    assert len({rule.__name__ for rule in RULES}) == len(RULES)


def test_a_training_ends_with_its_diagnosis_and_the_card_keeps_it(store: Store, tmp_path: Path) -> None:
    prompts = [Prompt(user(f"Say {w}.")) for w in ("owl", "cat", "dog", "fox")]
    store.append([*prompts, *(Completion(p.id, "zzyzx qwrt vvk", model="m") for p in prompts)], "d")
    options = {"base": resolve("mini-weak"), "bf16": False, "max_steps": 6, "logging_steps": 1, "learning_rate": 1e-9}
    told: list[str] = []
    training.train(store, load_step("train", "sft", options), "sft", "d", tmp_path / "m", say=told.append)
    said = [line for line in told if "The loss did not move" in line]
    assert len(said) == 1
    assert "## Diagnosis" in (tmp_path / "m" / "README.md").read_text()
    assert said[0].strip() in (tmp_path / "m" / "README.md").read_text()
    for asked in (["sft"], []):
        result = CliRunner().invoke(main, ["diagnose", *asked, "--store", str(store.path)])
        assert result.output.startswith("sft:\n  "), result.output
        assert said[0].strip() in result.output
    wrong = CliRunner().invoke(main, ["diagnose", "sfd", "--store", str(store.path)])
    assert "did you mean 'sft'?" in wrong.output
    assert store.rows("SELECT count(*) > 0 FROM metrics WHERE name = 'end_of_turn_accuracy'") == [(True,)]
