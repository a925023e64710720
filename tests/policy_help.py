"""What the tests of PPO, GRPO and RLOO share: a small model, prompts, and a short course."""

from pathlib import Path
from typing import Any

import datasets

from factory.engines.checkpoints import resolve
from factory.records import Metric, Record
from factory.steps import load_step

WEAK = resolve("mini-weak")
ROWS = [{"prompt": p, "answer": a} for p, a in (
    ("Say owl.", "owl"), ("Say cat twice.", "cat cat"), ("用中文说猫头鹰。", "猫头鹰"), ("Add 1, 2 and 4.", "7"),
)]  # fmt: skip
TRAINERS = ("ppo", "grpo", "rloo")


def trainer(name: str, **options: Any) -> Any:
    common = {
        "base": WEAK, "bf16": False, "reward": {"sql": "-length"}, "max_steps": 3, "num_generations": 2,
        "per_device_train_batch_size": 8, "max_completion_length": 10, "learning_rate": 1e-3, "save_steps": 0,
    }  # fmt: skip
    return load_step("train", name, common | ({"num_ppo_epochs": 2} if name == "ppo" else {}) | options)


def rows_of(rows: list[dict[str, Any]] = ROWS) -> datasets.Dataset:
    return datasets.Dataset.from_list(rows)


def trained(name: str, out: Path, rows: list[dict[str, Any]] = ROWS, **options: Any) -> list[Record]:
    return list(trainer(name, **options).train(rows_of(rows), out))


def series(records: list[Record], name: str) -> list[float]:
    return [r.value for r in records if isinstance(r, Metric) and r.name == name]
