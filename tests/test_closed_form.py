"""Every trainer reaches what is known exactly, and no trainer that is broken on purpose does."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from factory.errors import FactoryError
from factory.steps import load_step
from trainers._closed_forms import MORE, WORLDS, preference_optimum
from trainers._worlds import SKEWED, UNIFORM, Finding, measured, network, optimum, preferences, reference, reward

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.usefixtures("one_thread")


def _make(name: str, options: Any) -> Any:
    return load_step("train", name, options)


def _wrong(findings: Iterator[Finding]) -> list[str]:
    return [f"{f.name}: {f.value:.4f}, not {f.target:.4f} +- {f.tolerance:.4f}" for f in findings if not f.right]


@pytest.mark.parametrize("world", WORLDS)
def test_a_trainer_ends_where_the_maths_says(world: str, tmp_path: Path) -> None:
    assert _wrong(WORLDS[world](_make, tmp_path)) == []


@pytest.mark.parametrize(("name", "shares", "beta"), [("skewed", SKEWED, 1.0), ("uniform", UNIFORM, 0.5)])
def test_dpo_reaches_the_fixed_point_of_other_settings(name: str, shares: Any, beta: float, tmp_path: Path) -> None:
    assert _wrong(preference_optimum(_make, tmp_path, name, shares, beta)) == []


@pytest.mark.parametrize("world", [world for world in MORE if not world.startswith("dpo")])  # dpo: above
def test_it_ends_where_the_maths_says_with_other_settings_too(world: str, tmp_path: Path) -> None:
    """An even reference, another estimator, a bonus on the entropy, which moves the optimum."""
    assert _wrong(MORE[world](_make, tmp_path)) == []


def test_label_smoothing_moves_the_optimum_as_the_maths_says(tmp_path: Path) -> None:
    """cDPO sees preferences p' = (1 - e) p + e (1 - p), so it stays nearer to the reference; robust undoes that."""
    smoothed = list(preference_optimum(_make, tmp_path / "a", "uniform", UNIFORM, 1.0, label_smoothing=0.2))
    assert smoothed[0].value < 0.9 * smoothed[0].target
    robust = {"label_smoothing": 0.1, "loss_type": "robust"}
    undone = next(preference_optimum(_make, tmp_path / "b", "uniform", UNIFORM, 1.0, **robust))
    assert undone.value > 1.05 * undone.target, "no label was flipped here, so it corrects too much"


# --- what the worlds rest on -----------------------------------------------------------------------------------------


def test_the_reference_draws_with_the_given_probabilities() -> None:
    model = reference(SKEWED)
    logits = model(input_ids=torch.tensor([[2, 15, 3, 4, 8, 6]])).logits[0, :, 4:13]
    assert torch.allclose(logits.softmax(-1), torch.tensor(SKEWED).expand(6, -1), atol=2e-3)
    known = measured(model, model)
    assert known.kl == pytest.approx(0.0, abs=1e-6)
    assert known.reward == pytest.approx(6 * SKEWED[0], rel=0.02)


def test_the_optimum_is_the_one_worked_by_hand() -> None:
    """Uniform over 9, beta 1: p(a) = e / (e + 8) = 0.2536."""
    assert optimum(UNIFORM, 1.0).reward == pytest.approx(6 * 0.253611, abs=1e-4)
    assert optimum(UNIFORM, 1e9).kl == pytest.approx(0.0, abs=1e-9)


def test_preferences_have_their_true_probabilities() -> None:
    rows = preferences(Random(0), UNIFORM, 50)
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        assert (one["chosen"], one["rejected"]) == (other["rejected"], other["chosen"])
        assert one["weight"] + other["weight"] == pytest.approx(1.0)
        assert (one["weight"] > 0.5) == (reward(one["chosen"]) > reward(one["rejected"])) or one["weight"] == 0.5


def test_networks_come_from_their_seeds() -> None:
    one, same, other = network(1), network(1), network(2)
    assert torch.equal(one.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


# --- mutations: world, file, what stands there, what a mistake would put there ----------------------------------------

MUTATIONS = {
    "sft: the mask is off": ("sft", "_rows.py", "np.where(learned, tokens,", "np.where(True, tokens,"),
    "sft: labels are not shifted": ("sft", "_batches.py", "sources.append(place.row * width + place.of(learned))",
                                    "sources.append(place.row * width + place.of(learned + 1))"),
    "sft: the end of turn is not learned": ("sft", "_chat.py", "    return first[1]\n", "    return first[0]\n"),
    "sft: row weights are ignored": ("sft", "sft.py", "batch.owners, len(batch.ends)) * batch.weights).sum()",
                                     "batch.owners, len(batch.ends))).sum()"),
    "sft: a mean over rows": ("sft", "sft.py", "return nll / max(totals[\"tokens\"], 1e-9)",
                        "return -(summed(logps, batch.owners, len(batch.ends)) / batch.owners.bincount()).mean()"),
    "reward: sides swapped": ("reward", "_preferences.py", "ranks[:, :, None] > ranks[:, None, :]",
                              "ranks[:, :, None] < ranks[:, None, :]"),
    "reward: read at the first token": ("reward", "_models.py", "[batch.ends if places is None else places]",
                                        "[batch.ends * 0 if places is None else places]"),
    "reward: weights are ignored": ("reward", "reward.py", "(each * batch.weights).sum()", "each.sum()"),
    "ranking: the worse do not count": ("ranking", "_losses.py", "meets = better[..., None]",
                                        "meets = better.transpose(1, 2)[..., None]"),
    "margins: the wrong way": ("margins", "_losses.py", "raised = rewards + shift", "raised = rewards - shift"),
    "margins: ignored": ("margins", "_losses.py", "raised = rewards + shift", "raised = rewards"),
    "dpo: no reference": ("dpo", "_losses.py", "(self.chosen - self.ref_chosen) - (self.rejected - self.ref_rejected)",
                          "self.chosen - self.rejected"),
    "dpo: mean for sum": ("dpo", "_losses.py", "return _smoothed(o.beta * p.delta - o.margin, o.smoothing)",
                          "return _smoothed(o.beta * p.mean_delta - o.margin, o.smoothing)"),
    "dpo: sides swapped": ("dpo", "_losses.py", "return _smoothed(o.beta * p.delta - o.margin, o.smoothing)",
                           "return _smoothed(-o.beta * p.delta - o.margin, o.smoothing)"),
    "dpo: beta ignored": ("dpo", "_losses.py", "return _smoothed(o.beta * p.delta - o.margin, o.smoothing)",
                          "return _smoothed(p.delta - o.margin, o.smoothing)"),
    "dpo: weights are ignored": ("dpo", "dpo.py", "settings) * weights).sum()", "settings)).sum()"),
    "dpo: the reference learns too": ("dpo", "dpo.py", "batch.square(batch.reference)", "sums * 1.0"),
    "ppo: the KL's sign": ("ppo", "_policy_losses.py", "rewards = -coefficient * kl", "rewards = coefficient * kl"),
    "ppo: the KL is dropped": ("ppo", "_policy_losses.py", "rewards = -coefficient * kl", "rewards = 0.0 * kl"),
    "ppo: the KL counts twice": ("ppo", "_policy_losses.py", "rewards = -coefficient", "rewards = -2 * coefficient"),
    "ppo: the score stands behind the end": ("ppo", "_policy_losses.py", "last = real.sum(1) - 1",
                                             "last = real.sum(1).clamp(max=real.shape[1] - 1)"),
    "ppo: the ratio is to the reference": ("ppo", "_lessons.py", "Lesson(each.rollout.example, each.old,",
                                           "Lesson(each.rollout.example, each.ref,"),
    "rloo: drawn at another heat": ("rloo", "_rollouts.py", "chance[rows, place], how.temperature)",
                                    "chance[rows, place], 1.0)"),
    "rloo: the KL of a token for that of an answer": ("rloo", "rloo.py", "found.kl.sum(1)", "found.kl.mean(1)"),
    "rloo: the entropy's sign": ("rloo, entropy", "rloo.py", "- now.bonus", "+ now.bonus"),
    "rloo: no entropy": ("rloo, entropy", "rloo.py", "- now.bonus", "- 0.0 * now.bonus"),
    "grpo: the KL is dropped": ("grpo", "_policy_loss.py", "each + batch.beta * kl_of(", "each + 0.0 * kl_of("),
    "reward: the loss is nothing": ("margins", "reward.py", "/ max(totals[\"weight\"], 1e-9)", "* 0.0"),
}  # fmt: skip


def _mutant(folder: Path, name: str, file: str, before: str, after: str) -> Callable[[str, Any], Any]:
    """The trainers with one mistake, as a package of another name; returns what makes a trainer of it."""
    package = folder / name
    package.mkdir()
    for path in (ROOT / "trainers").glob("*.py"):
        text = path.read_text()
        if path.name == file:
            assert text.count(before) == 1, f"{file} has {text.count(before)} times: {before}"
            text = text.replace(before, after)
        (package / path.name).write_text(
            text.replace("trainers.", f"{name}.").replace("from trainers ", f"from {name} ")
        )

    def make(trainer: str, options: Any) -> Any:
        cls = getattr(importlib.import_module(f"{name}.{trainer}"), trainer.capitalize())
        return cls(**options)

    return make


@pytest.mark.parametrize("world", ["margins", "ranking"])
def test_a_copy_without_a_mistake_is_right(world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is the mistakes that are noticed below, not the copying."""
    monkeypatch.syspath_prepend(str(tmp_path))
    make = _mutant(tmp_path, "unchanged", "reward.py", "class Reward(", "class Reward(")
    try:
        assert _wrong(WORLDS[world](make, tmp_path)) == []
    finally:
        for module in [m for m in sys.modules if m.split(".")[0] == "unchanged"]:
            del sys.modules[module]


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_a_mistake_is_noticed(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, *change = MUTATIONS[mistake]
    name = f"mutant{list(MUTATIONS).index(mistake)}"
    monkeypatch.syspath_prepend(str(tmp_path))
    make = _mutant(tmp_path, name, *change)
    try:
        wrong = any(not finding.right for finding in {**WORLDS, **MORE}[world](make, tmp_path))  # the first one will do
    except FactoryError:
        wrong = True
    finally:
        for module in [m for m in sys.modules if m.split(".")[0] == name]:
            del sys.modules[module]
    assert wrong, f"no measurement of the world {world} noticed it"
