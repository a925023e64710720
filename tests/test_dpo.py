"""What DPO does on rows as they come: the loss goes down, weights count, relatives of it learn."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from factory.engines.checkpoints import resolve
from factory.records import Metric
from factory.steps import load_step
from trainers._batches import padded
from trainers._losses import summed
from trainers._models import load, token_logps
from trainers._rows import supervised
from trainers.dpo import LossType

WEAK = resolve("mini-weak")
PAIRS = [
    {"prompt": f"Say {w} twice.", "chosen": f"{w} {w}", "rejected": w} for w in ("cat", "dog", "owl", "猫", "fox")
] * 4

pytestmark = pytest.mark.usefixtures("one_thread")


def _train(rows: list[dict[str, Any]], out: Path, **options: Any) -> list[Metric]:
    common = {
        "base": WEAK,
        "bf16": False,
        "learning_rate": 1e-3,
        "max_steps": 15,
        "logging_steps": 1,
        "warmup_ratio": 0,
    }
    records = load_step("train", "dpo", common | options).train(datasets.Dataset.from_list(rows), out)
    return [r for r in records if isinstance(r, Metric)]


def _preferred(checkpoint: str, prompt: str, one: str, other: str) -> float:
    """log p of one answer less that of the other."""
    loaded = load(checkpoint)
    found = supervised([{"prompt": prompt, "completion": c} for c in (one, other)], loaded.tokenizer, 512).items
    batch = padded(found, loaded.tokenizer.pad_token_id)
    with torch.no_grad():
        each = summed(token_logps(loaded.model, batch)[0], batch.owners, 2)
    return float(each[0] - each[1])


@pytest.mark.parametrize("loss", LossType.__args__)  # type: ignore[attr-defined]
def test_every_loss_makes_the_chosen_answer_likelier_than_the_other(loss: str, tmp_path: Path) -> None:
    options = {"simpo": {"beta": 2.0}, "orpo": {"beta": 1.0}, "sigmoid_norm": {"beta": 5.0}}.get(loss, {})
    found = _train(PAIRS, tmp_path / "m", loss_type=loss, **options)
    losses = [m.value for m in found if m.name == "loss"]
    assert losses[-1] < losses[0]
    asked = ("Say owl twice.", "owl owl", "owl")
    if loss != "sft":
        assert _preferred(str(tmp_path / "m"), *asked) > _preferred(WEAK, *asked)
    assert {"rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen"} <= {
        m.name for m in found
    }


def test_pairs_of_no_weight_teach_nothing(tmp_path: Path) -> None:
    wrong = [p | {"chosen": p["rejected"], "rejected": p["chosen"], "weight": 0.0} for p in PAIRS]
    rows = [row for both in zip([p | {"weight": 1.0} for p in PAIRS], wrong, strict=True) for row in both]
    _train(rows, tmp_path / "m")
    asked = ("Say owl twice.", "owl owl", "owl")
    assert _preferred(str(tmp_path / "m"), *asked) > _preferred(WEAK, *asked) + 1


def test_margins_count_only_where_they_are_asked_for(tmp_path: Path) -> None:
    rows = [p | {"margin": 2.0} for p in PAIRS]
    plain = next(m.value for m in _train(rows, tmp_path / "a", max_steps=1) if m.name == "loss")
    raised = next(m.value for m in _train(rows, tmp_path / "b", max_steps=1, margin_scale=0.5) if m.name == "loss")
    assert plain == pytest.approx(0.693147, abs=1e-4)
    assert raised == pytest.approx(float(torch.tensor(1.0).exp().log1p()), abs=1e-4), "-log s(0 - 1)"
