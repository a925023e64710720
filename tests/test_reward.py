"""Reward models: dimensions, ensembles, scale, reports; and scores of steps."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from factory.engines.checkpoints import resolve
from factory.errors import DataError
from factory.records import Message, Metric
from factory.rewards import Model, Sample
from factory.scorers import opened
from factory.steps import load_step
from trainers._batches import padded
from trainers._chat import stepwise, turns
from trainers._models import load, load_tokenizer, scores
from trainers._preferences import ranked
from trainers._rows import encoded, side_by_side

WEAK = resolve("mini-weak")
WORDS = ("cat", "dog", "owl", "hat", "fox", "cup")

pytestmark = pytest.mark.usefixtures("one_thread")


def _train(name: str, rows: list[dict[str, Any]], out: Path, **options: Any) -> dict[str, float]:
    """The last value of every metric."""
    common = {"base": WEAK, "bf16": False, "learning_rate": 3e-3, "logging_steps": 1}
    records = load_step("train", name, common | options).train(datasets.Dataset.from_list(rows), out)
    return {r.name: r.value for r in records if isinstance(r, Metric)}


def _scored(out: Path, answers: list[str], prompt: str = "Say cat.") -> torch.Tensor:
    loaded = load(str(out), "sequence", 0)
    texts = [side_by_side({"prompt": prompt}, [a], loaded.tokenizer, "")[0] for a in answers]
    with torch.no_grad():
        return scores(loaded.model.eval(), padded(encoded(texts, loaded.tokenizer), 0))


def _pairs(aspect: str = "", swap: bool = False) -> list[dict[str, Any]]:
    """`yes` is better than `no`, or the other way round."""
    good, bad = ("no", "yes") if swap else ("yes", "no")
    more = {"aspect": aspect} if aspect else {}
    return [{"prompt": f"Say {w}.", "chosen": f"{good} {w}", "rejected": f"{bad} {w}"} | more for w in WORDS * 4]


def test_it_learns_reports_and_stores_its_scale(tmp_path: Path) -> None:
    found = _train("reward", _pairs(), tmp_path / "m", max_steps=30, eval_fraction=0.25)
    assert found["eval_accuracy"] == 1.0
    assert found["eval_loss"] < 0.3
    assert 0 <= found["eval_ece"] < 0.3
    assert {"eval_reward_length_correlation", "margin", "mean_reward", "min_reward", "max_reward"} <= set(found)
    scale = load(str(tmp_path / "m"), "sequence", 0).model.config.reward_scale
    each = _scored(tmp_path / "m", ["yes cat", "no cat"])[:, 0]
    assert each[0] - each[1] > 1
    normal = (each - scale["mean"][0]) / scale["std"][0]
    assert normal.abs().max() < 2
    assert float(normal.mean()) == pytest.approx(0.0, abs=0.5)


def test_dimensions_have_heads_of_their_own(tmp_path: Path) -> None:
    rows = _pairs("helpful") + _pairs("brief", swap=True)
    found = _train("reward", rows, tmp_path / "m", max_steps=40, dimensions=["helpful", "brief"], eval_fraction=0.0)
    assert found["accuracy"] == 1.0
    helpful, brief = _scored(tmp_path / "m", ["yes cat", "no cat"]).T
    assert helpful[0] > helpful[1]
    assert brief[0] < brief[1]
    with pytest.raises(DataError, match="aspect 'kind' is no dimension; dimensions=helpful, brief"):
        _train("reward", _pairs("kind"), tmp_path / "n", dimensions=["helpful", "brief"])


def test_an_ensemble_agrees_on_what_it_has_seen_more_than_on_what_it_has_not(tmp_path: Path) -> None:
    found = _train("reward", _pairs(), tmp_path / "m", max_steps=40, ensemble=5, eval_fraction=0.0)
    seen = _scored(tmp_path / "m", ["yes cat", "no cat"])
    assert seen.shape == (2, 5)
    assert (seen[0] > seen[1]).all()
    gaps = seen[0] - seen[1]
    assert gaps.std() > 1e-4, "heads drawn from different rows are different heads"
    config = load(str(tmp_path / "m"), "sequence", 0).model.config.reward_scale
    assert (config["ensemble"], len(config["mean"])) == (5, 1)
    assert found["disagreement"] > 0


def test_rankings_of_several_answers_are_learned_with_ties(tmp_path: Path) -> None:
    scored = {"no": 0.0, "yes": 2.0, "so": 1.0, "but": 1.0}
    rows = [
        {"prompt": f"Say {w}.", "completions": [f"{a} {w}" for a in scored], "scores": list(scored.values())}
        for w in WORDS * 3
    ]
    found = _train("reward", rows, tmp_path / "m", max_steps=40, eval_fraction=0.0)
    assert found["accuracy"] == 1.0
    no, yes, so, but = _scored(tmp_path / "m", ["no cat", "yes cat", "so cat", "but cat"])[:, 0].tolist()
    assert yes > max(so, but)
    assert no < min(so, but)


def test_repeats_in_a_ranking_count_once_and_what_orders_nothing_is_told(tmp_path: Path) -> None:
    def row(answers: list[str], scores: list[float], key: str = "") -> dict[str, Any]:
        return {"prompt": "Say cat.", "completions": answers, "scores": scores, "prompt_id": key}

    once = ranked([row(["yes", "no"], [1.5, 0.0])], ["completions"], load_tokenizer(WEAK), 99, "reward")
    rows = [
        row(["yes", "no", "yes", "no"], [1.0, 0.0, 2.0, 0.0]), row(["yes", "yes"], [1.0, 1.0], "same"),
        row(["yes", "no"], [1.0, 1.0], "ties"), row(["yes", " "], [1.0, 0.0], "blank"),
    ]  # fmt: skip
    found = ranked(rows, ["completions"], load_tokenizer(WEAK), 99, "reward")
    assert found.items[0].ranks == once.items[0].ranks == (1.5, 0.0)
    assert found.digest == once.digest
    assert {v.evidence_id: v.reason for v in found.skipped} == {
        "same": "same_sides", "ties": "no_order", "blank": "empty_side",
    }  # fmt: skip
    with pytest.raises(DataError, match="row 1: 2 completions, but 1 scores"):
        ranked([row(["yes", "no"], [1.0], "odd")], ["completions"], load_tokenizer(WEAK), 99, "reward")


def test_steps_behind_the_first_wrong_one_need_no_label(tmp_path: Path) -> None:
    """As `process_steps` leaves them where it searches forward."""
    rows = [
        {"prompt": f"Say {w}.", "steps": [f"right {w}", f"wrong {w}", "and so on"], "labels": [1, 0, None]}
        for w in WORDS * 2
    ]
    found = _train("process_reward", rows, tmp_path / "m", max_steps=40, eval_fraction=0.0)
    assert found["accuracy"] == 1.0
    gap = [{"prompt": "Say cat.", "steps": ["a", "b", "c"], "labels": [1, None, 0]}]
    with pytest.raises(DataError, match="labels are .* they must lie between 0 and 1"):
        _train("process_reward", gap, tmp_path / "n", max_steps=1)


def test_lora_keeps_the_head_that_it_trained(tmp_path: Path) -> None:
    found = _train(
        "reward", _pairs(), tmp_path / "m", max_steps=30, use_peft=True, learning_rate=2e-2, eval_fraction=0.0
    )
    assert found["accuracy"] == 1.0
    assert _scored(tmp_path / "m", ["yes cat"])[0, 0] > _scored(tmp_path / "m", ["no cat"])[0, 0] + 0.5


@pytest.mark.parametrize("soft", [False, True])
def test_scores_of_steps_are_their_labels(soft: bool, tmp_path: Path) -> None:
    """Right steps say `right`; with soft labels of 0.8 the score of a right step is s(x) = 0.8."""
    rows = [
        {"prompt": f"Say {w}.", "steps": [f"right {w}", f"wrong {w}", "right"], "labels": [1, 0, 1]}
        | ({"soft_labels": [0.8, 0.1, 0.8]} if soft else {})
        for w in WORDS * 4
    ]  # fmt: skip
    found = _train("process_reward", rows, tmp_path / "m", max_steps=50, reduce="product", eval_fraction=0.0)
    assert found["accuracy"] == 1.0
    loaded = load(str(tmp_path / "m"), "token")
    assert loaded.model.config.reduce_steps == "product"
    text = stepwise(turns("Say cat."), ["right cat", "wrong cat", "right"], loaded.tokenizer, "")
    batch = padded(encoded([text], loaded.tokenizer), 0)
    with torch.no_grad():
        shares = scores(loaded.model.eval(), batch, batch.sources + 1)[:, 0].sigmoid()
    assert shares.tolist() == pytest.approx([0.8, 0.1, 0.8] if soft else [1.0, 0.0, 1.0], abs=0.1)
    # and as a reward the checkpoint makes one number of them
    said = ["right cat\nwrong cat\nright", "right cat\n\nwrong cat\nright\n", "right cat", " "]
    score = opened(Model(model=str(tmp_path / "m")))
    whole, gaps, first, empty = score([Sample((Message("user", "Say cat."),), text, {}) for text in said])
    assert whole == gaps == pytest.approx(float(shares.prod()), abs=1e-4)
    assert first == pytest.approx(float(shares[0]), abs=1e-4)
    assert empty == 0.0, "an answer without a step is worth nothing"
