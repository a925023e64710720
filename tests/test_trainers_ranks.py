"""Two processes equal one also where rows do not come out even: remainders, token budgets, few held-out rows."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from safetensors.torch import load_file

from factory.engines.checkpoints import resolve
from factory.records import Metric
from factory.steps import load_step

WEAK = resolve("mini-weak")
pytestmark = pytest.mark.usefixtures("one_thread")
RUNS: dict[str, tuple[str, int, dict[str, Any]]] = {  # trainer, rows, options; a step is of 8 rows, or 16
    "sft of 9 rows, ddp": ("sft", 9, {}),  # the second step is of one row: a process has none
    "sft of 9 rows, fsdp": ("sft", 9, {"fsdp": True}),
    "sft of 9 rows, accumulated": ("sft", 9, {"fsdp": True, "gradient_accumulation_steps": 2}),  # two passes and one
    "sft with 9 rows held out": ("sft", 25, {"fsdp": True, "eval_fraction": 0.36}),
    "reward with a budget": ("reward", 11, {"fsdp": True, "max_tokens_per_batch": 48, "eval_fraction": 0.2}),
    "dpo with a budget": ("dpo", 11, {"max_tokens_per_batch": 64}),
}
_SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.test_trainers_ranks import RUNS, course
for label in RUNS:
    course(label, 4, Path(sys.argv[1]) / label.replace(" ", "-"))
torch.distributed.destroy_process_group()
"""


def course(label: str, size: int, out: Path) -> None:
    """One epoch; the metrics of the first process lie beside the checkpoint."""
    name, count, options = RUNS[label]
    columns = ("prompt", "completion", "weight") if name == "sft" else ("prompt", "chosen", "rejected", "weight")
    rows = [
        {"prompt": f"Say {i}.", "completion": "owl " * (1 + 5 * i % 7), "chosen": "owl " * (1 + 5 * i % 7),
         "rejected": f"no {i}", "weight": 1.0 + i % 3} for i in range(count)
    ]  # fmt: skip
    common = {"base": WEAK, "bf16": False, "learning_rate": 1e-3, "warmup_ratio": 0.0, "eval_fraction": 0.0,
              "logging_steps": 1, "save_steps": 0, "num_train_epochs": 1.0}  # fmt: skip
    step = load_step("train", name, common | {"per_device_train_batch_size": size} | options)
    told: dict[str, list[float]] = {}
    for metric in step.train(datasets.Dataset.from_list([{c: row[c] for c in columns} for row in rows]), out):
        if isinstance(metric, Metric):
            told.setdefault(metric.name, []).append(metric.value)
    if os.environ.get("RANK", "0") == "0":
        out.with_suffix(".json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made; one that waits for the other for ever is ended."""
    folder = tmp_path_factory.mktemp("two")
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(41000 + os.getpid() % 20000),
              "OMP_NUM_THREADS": "1"}  # fmt: skip
    running = [
        subprocess.Popen([sys.executable, "-c", _SCRIPT, str(folder)], env=os.environ | common | {"RANK": str(rank)},
                         cwd=Path(__file__).parent.parent, stderr=subprocess.PIPE, text=True) for rank in range(2)
    ]  # fmt: skip
    try:
        for process in running:
            assert process.wait(timeout=280) == 0, process.communicate()[1]
    finally:
        for process in running:
            process.kill()
    return folder


@pytest.mark.parametrize("label", RUNS)
def test_two_processes_equal_one_where_rows_do_not_come_out_even(label: str, by_two: Path, tmp_path: Path) -> None:
    course(label, 8, tmp_path / "one")
    alone, together = load_file(tmp_path / "one" / "model.safetensors"), by_two / label.replace(" ", "-")
    weights = load_file(together / "model.safetensors")
    assert max(float((weights[k] - alone[k]).abs().max()) for k in alone) < 2e-4
    one, two = json.loads((tmp_path / "one.json").read_text()), json.loads(together.with_suffix(".json").read_text())
    named = {"loss", "grad_norm", "eval_loss", "num_tokens", "mean_token_accuracy"} & set(one)
    assert {name: pytest.approx(one[name], rel=1e-4, abs=1e-6) for name in named} == {name: two[name] for name in named}
