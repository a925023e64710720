"""What must not change the result does not: micro-batches, processes, interruptions, caches, adapters."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file

from factory.engines.checkpoints import resolve
from factory.errors import DataError
from factory.records import Metric
from factory.steps import load_step
from tests.conftest import killed
from trainers._batches import padded
from trainers._models import bare, load, prepared, save, scores, token_logps
from trainers._options import Training
from trainers._rows import supervised

WEAK = resolve("mini-weak")
WORDS = ("cat", "dog", "owl", "hat", "fox", "cup")
ROWS = [
    {"prompt": f"Say {w} {'very ' * (i % 5)}often.", "completion": f"{w} " * (1 + i % 7),
     "chosen": f"{w} " * (1 + i % 7), "rejected": f"no {w}", "weight": 1.0 + i % 3}
    for i, w in enumerate(WORDS * 8)
]  # fmt: skip
Course = tuple[list[float], dict[str, torch.Tensor]]  # losses and weights
TRAINERS = {"sft": 1e-3, "reward": 1e-3, "dpo": 1e-3}

pytestmark = pytest.mark.usefixtures("one_thread")


def _step(name: str, **options: Any) -> Any:
    common = {"base": WEAK, "bf16": False, "learning_rate": TRAINERS[name], "max_steps": 6, "eval_fraction": 0.0,
              "logging_steps": 1, "save_steps": 0, "warmup_ratio": 0.0}  # fmt: skip
    return load_step("train", name, common | options)


def _data(name: str) -> datasets.Dataset:
    columns = ("prompt", "completion", "weight") if name == "sft" else ("prompt", "chosen", "rejected", "weight")
    return datasets.Dataset.from_list([{c: row[c] for c in columns} for row in ROWS])


def _trained(name: str, out: Path, **options: Any) -> Course:
    told = [
        m.value for m in _step(name, **options).train(_data(name), out) if isinstance(m, Metric) and m.name == "loss"
    ]
    return told, load_file(out / "model.safetensors")


def _close(
    one: tuple[list[float], dict[str, torch.Tensor]], other: tuple[list[float], dict[str, torch.Tensor]]
) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-4, abs=1e-6)
    assert set(one[1]) == set(other[1])
    assert max(float((one[1][k] - other[1][k]).abs().max()) for k in one[1]) < 2e-4


@pytest.mark.parametrize("name", TRAINERS)
def test_batches_of_eight_equal_eight_batches_of_one(name: str, tmp_path: Path) -> None:
    whole = _trained(name, tmp_path / "8x1", per_device_train_batch_size=8)
    ones = _trained(name, tmp_path / "1x8", per_device_train_batch_size=1, gradient_accumulation_steps=8)
    cut = _trained(name, tmp_path / "cut", per_device_train_batch_size=8, max_tokens_per_batch=64)
    _close(whole, ones)
    _close(whole, cut)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(name: str, tmp_path: Path) -> None:
    whole = _trained(name, tmp_path / "whole", save_steps=2, logging_steps=3)
    running = _step(name, save_steps=2, logging_steps=3).train(_data(name), tmp_path / "cut")
    for record in running:
        if isinstance(record, Metric) and record.step == 3:
            running.close()
            break
    assert [p.name for p in (tmp_path / ".cut.state").iterdir()] == ["step-00000002"]
    rest = _trained(name, tmp_path / "cut", save_steps=2, logging_steps=3)
    assert rest[0] == whole[0], "the means of a window that was cut in two are whole as well"
    assert all(torch.equal(rest[1][k], whole[1][k]) for k in whole[1])
    assert not (tmp_path / ".cut.state").exists()


def test_a_state_of_other_rows_or_options_is_not_taken_up(tmp_path: Path) -> None:
    running = _step("sft", save_steps=2).train(_data("sft"), tmp_path / "m")
    for record in running:
        if isinstance(record, Metric) and record.step == 3:
            running.close()
            break
    other = [m.step for m in _step("sft", save_steps=2, learning_rate=2e-3).train(_data("sft"), tmp_path / "m")
             if isinstance(m, Metric) and m.name == "loss"]  # fmt: skip
    assert other == [1, 2, 3, 4, 5, 6]


def test_a_reference_that_was_kept_equals_one_that_is_computed_each_time(tmp_path: Path) -> None:
    options = {"use_peft": True, "lora_r": 4, "learning_rate": 1e-2}
    kept = _trained("dpo", tmp_path / "kept", **options)
    live = _trained("dpo", tmp_path / "live", precompute_ref_log_probs=False, **options)
    _close(kept, live)
    assert kept[0][-1] < kept[0][0]
    folder = next((tmp_path / ".reference").iterdir()) / "memory.safetensors"
    before = folder.stat().st_mtime_ns
    _close(kept, _trained("dpo", tmp_path / "again", **options))
    assert folder.stat().st_mtime_ns == before, "the second training reads what the first one kept"


def test_another_reference_model_is_heeded(tmp_path: Path) -> None:
    near = _trained("dpo", tmp_path / "near", max_steps=2)
    far = _trained("dpo", tmp_path / "far", max_steps=2, ref_model=resolve("mini-strong"))
    assert near[0][0] == pytest.approx(0.6931, abs=1e-3), "at the start the policy is its own reference"
    assert far[0][0] != pytest.approx(0.6931, abs=1e-3)


@pytest.mark.parametrize("name", TRAINERS)
def test_adapters_merged_and_read_back_are_the_model_that_was_trained(name: str, tmp_path: Path) -> None:
    """The head of a reward model with them, which a merge is known to lose."""
    kind = "sequence" if name == "reward" else "causal"
    torch.manual_seed(0)
    options = Training(base=WEAK, use_peft=True, lora_r=4)
    loaded = prepared(load(WEAK, kind), options)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    batch = padded(supervised(ROWS[:4], loaded.tokenizer, 512).items, 0)
    ask = (lambda m: scores(m, batch)) if kind == "sequence" else (lambda m: token_logps(m, batch)[0])
    with torch.no_grad():
        before, plain = ask(loaded.model), ask(load(WEAK, kind).model)
        save(loaded.model, loaded.tokenizer, tmp_path / "m")
        after = ask(load(str(tmp_path / "m"), kind).model)
    assert torch.allclose(before, after, atol=1e-4)
    assert not torch.allclose(before, plain, atol=1e-2)
    assert (tmp_path / "m" / "adapter" / "adapter_model.safetensors").exists()


def test_frozen_layers_stay_and_the_others_move(tmp_path: Path) -> None:
    _, after = _trained("sft", tmp_path / "m", freeze_layers=2)
    before = {k: v.detach() for k, v in load(WEAK).model.state_dict().items()}
    moved = {k for k in after if not torch.equal(after[k], before[k])}
    assert not any(k.startswith(("model.layers.0.", "model.layers.1.", "model.embed")) for k in moved)
    assert any(k.startswith("model.layers.2.") for k in moved)
    with pytest.raises(DataError, match="freeze_layers=9: the model has 3 layers"):
        _trained("sft", tmp_path / "n", freeze_layers=9)


def test_adapters_of_frozen_layers_stay_as_well(tmp_path: Path) -> None:
    _trained("sft", tmp_path / "m", freeze_layers=2, use_peft=True, lora_r=4)
    adapters = load_file(tmp_path / "m" / "adapter" / "adapter_model.safetensors")
    moved = {int(k.split(".layers.")[1].split(".")[0]) for k, v in adapters.items() if "lora_B" in k and v.any()}
    assert moved == {2}


def test_checkpointed_activations_give_the_same_weights(tmp_path: Path) -> None:
    _close(_trained("sft", tmp_path / "a"), _trained("sft", tmp_path / "b", gradient_checkpointing=True))


def test_the_best_weights_are_kept_and_no_progress_stops(tmp_path: Path) -> None:
    options = {
        "eval_fraction": 0.25,
        "eval_steps": 1,
        "max_steps": 40,
        "learning_rate": 0.05,
        "early_stopping_patience": 3,
        "load_best_model_at_end": True,
    }
    records = _step("sft", **options).train(_data("sft"), tmp_path / "m")
    found = [m for m in records if isinstance(m, Metric)]
    losses = [m.value for m in found if m.name == "eval_loss"]
    stopped = next(m.step for m in found if m.name == "early_stopped")
    assert [m.step for m in found if m.name == "eval_loss"][-1] == stopped < 40
    assert losses[-1] == pytest.approx(min(losses[1:]), rel=1e-5), (
        "the last measurement is of the weights that are written"
    )
    with pytest.raises(DataError, match="needs eval_fraction and eval_steps"):
        _trained("sft", tmp_path / "n", load_best_model_at_end=True)


# --- two processes ---------------------------------------------------------------------------------------------------

_RUNS = {
    "sft-ddp": ("sft", {}),
    "sft-fsdp": ("sft", {"fsdp": True}),
    "dpo-ddp": ("dpo", {}),
    "reward-fsdp": ("reward", {"fsdp": True, "eval_fraction": 0.25}),
    "lora-fsdp": ("sft", {"fsdp": True, "use_peft": True, "lora_r": 4}),
}
_SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.test_trainers_equal import _RUNS, _data, _step
for label, (name, options) in _RUNS.items():
    list(_step(name, per_device_train_batch_size=4, **options).train(_data(name), Path(sys.argv[1]) / label))
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made together, each with half of the rows of a step."""
    folder = tmp_path_factory.mktemp("two")
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 20000),
              "OMP_NUM_THREADS": "1"}  # fmt: skip
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, str(folder)],
            env=os.environ | common | {"RANK": str(rank)},
            cwd=Path(__file__).parent.parent,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in running:
        assert process.wait(timeout=280) == 0, process.communicate()[1]
    return folder


@pytest.mark.parametrize("label", _RUNS)
def test_two_processes_equal_one(label: str, by_two: Path, tmp_path: Path) -> None:
    name, options = _RUNS[label]
    _, alone = _trained(name, tmp_path / "one", per_device_train_batch_size=8, **options)
    together = load_file(by_two / label / "model.safetensors")
    assert set(together) == set(alone)
    assert max(float((together[k] - alone[k]).abs().max()) for k in alone) < 2e-4


# --- killed ----------------------------------------------------------------------------------------------------------


def test_a_kill_at_any_moment_leaves_a_checkpoint_that_loads(tmp_path: Path) -> None:
    out = tmp_path / "m"
    _trained("sft", out)
    again = 'list(_step("sft", max_steps=4, save_steps=1).train(_data("sft"), out))'
    for after in (0.05, 0.4, 0.9, 1.5):
        killed("from tests.test_trainers_equal import _data, _step", again, out, after)
        assert bare(load(str(out)).model).config.model_type == "llama"
        _trained("sft", out, save_steps=1)  # and whatever state was left can be gone on from
