"""Checkpoints: trainers replace those that they wrote and nothing else, and read whole ones only."""

import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file

from factory.engines.checkpoints import resolve
from factory.errors import DataError, EngineError
from factory.model_card import ModelCard, write_card
from factory.records import Prompt, user
from factory.rewards import Model, Sample
from factory.scorers import opened
from factory.steps import load_step
from trainers._models import Kind, load

WEAK = resolve("mini-weak")
pytestmark = pytest.mark.usefixtures("one_thread")
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


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.fixture
def holes(tmp_path: Path) -> Path:
    """A checkpoint that lacks one of its tensors, as after a broken copy of one shard."""
    shutil.copytree(WEAK, tmp_path / "holes")
    weights = load_file(tmp_path / "holes" / "model.safetensors")
    del weights[next(name for name in weights if "layers.1.mlp.down" in name)]
    save_file(weights, tmp_path / "holes" / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "holes"


@pytest.mark.parametrize("kind", ["causal", "sequence", "token"])
def test_weights_that_are_missing_are_not_drawn_at_random(kind: Kind, holes: Path) -> None:
    assert load(WEAK, kind).model is not None, "a new head of scores alone is none of them"
    with pytest.raises(EngineError, match=r"1 of its weights are missing or of another shape \(model\.layers\.1\.mlp"):
        load(str(holes), kind)


def test_a_reward_model_without_its_head_gives_no_scores(tmp_path: Path) -> None:
    """A language model has no head of scores; one of noise would rank answers as well."""
    score = opened(Model(model=WEAK))
    with pytest.raises(EngineError, match=r"lacks weights \(score\.weight\).* it is no reward model"):
        score([Sample.of(Prompt((user("Say cat."),), "test"), "cat")])


def test_weights_in_pickles_are_not_read(tmp_path: Path) -> None:
    shutil.copytree(WEAK, tmp_path / "old")
    torch.save(load_file(tmp_path / "old" / "model.safetensors"), tmp_path / "old" / "pytorch_model.bin")
    (tmp_path / "old" / "model.safetensors").unlink()
    with pytest.raises(EngineError, match="safetensors"):
        load(str(tmp_path / "old"))
