"""Trainers replace the checkpoints that they wrote, and nothing else."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from factory.engines.checkpoints import resolve
from factory.errors import DataError
from factory.model_card import ModelCard, write_card
from factory.steps import load_step

WEAK = resolve("mini-weak")
ROWS = [{"prompt": f"Say {w}.", "completion": w} for w in ("cat", "dog", "owl", "fox")]


def _train(out: Path, **options: Any) -> None:
    common = {"base": WEAK, "bf16": False, "max_steps": 1, "eval_fraction": 0}
    list(load_step("train", "sft", common | options).train(datasets.Dataset.from_list(ROWS), out))


def test_a_folder_with_a_configuration_is_not_yet_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"my": "application"}')
    (tmp_path / "checkpoint.json").write_text('["of another program"]')
    with pytest.raises(DataError, match="exists and is no checkpoint"):
        _train(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_checkpoint_is_replaced_but_not_what_lies_beside_it_nor_the_base(tmp_path: Path) -> None:
    out = tmp_path / "m"
    _train(out, use_peft=True, lora_r=2)
    _train(out, max_steps=1)
    with pytest.raises(DataError, match="is the base itself"):
        _train(out, base=str(out))
    (out / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"other files beside it \(notes\.txt\)"):
        _train(out)
    assert (out / "notes.txt").read_text() == "mine"


def test_a_checkpoint_from_before_there_was_a_mark_is_known_by_its_card(tmp_path: Path) -> None:
    out = tmp_path / "m"
    _train(out, use_peft=True, lora_r=2)
    (out / "checkpoint.json").unlink()
    with pytest.raises(DataError, match="exists and is no checkpoint"):
        _train(out)
    write_card(ModelCard("sft", {"base": WEAK}, "SELECT 1", "s", 1, "0", {}, {}), out)
    _train(out, max_steps=1)
    assert (out / "checkpoint.json").exists()
