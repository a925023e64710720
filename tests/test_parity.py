"""On one batch in float32, losses and gradients are those of TRL; and what must change nothing changes nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from factory.engines.checkpoints import resolve
from trainers._batches import packed, padded
from trainers._losses import PAIR_LOSSES
from trainers._models import load
from trainers._preferences import collated, ranked, weight
from trainers._reference import FolderMemory, referenced
from trainers._rows import supervised
from trainers.dpo import Dpo, _totals
from trainers.reward import Reward
from trainers.reward import _loss as reward_loss
from trainers.sft import _loss as sft_loss

trl = pytest.importorskip("trl", reason="trl is a development dependency")
WEAK = resolve("mini-weak")
# TRL also learns what a template puts behind the end of turn, here nothing
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROWS = [
    ("Say owl twice.", "owl owl", "owl"),
    ("Sort these words from A to Z: tea, cup, hat", "cup, hat, tea", "hat, tea, cup, and that is all that I can say"),
    ("你好，请数到三。", "一二三", "我不想数"),
    ("Which of these words is the longest: tree, cat", "tree", "cat is the longest"),
]
Grads = dict[str, torch.Tensor]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def base(tmp_path: Path) -> str:
    """mini-weak with a template that ends with the end of turn."""
    tokenizer = AutoTokenizer.from_pretrained(WEAK)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(WEAK, dtype=torch.float32).save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def _said(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def _pairs(margins: bool = False) -> datasets.Dataset:
    rows = [
        {"prompt": _said("user", p), "chosen": _said("assistant", c), "rejected": _said("assistant", r)}
        | ({"margin": 0.3 * i} if margins else {})
        for i, (p, c, r) in enumerate(ROWS)
    ]
    return datasets.Dataset.from_list(rows)


def _theirs(trainer: Any, model: Any) -> tuple[float, Grads]:
    """TRL's loss and gradients of its whole data as one batch."""
    inputs = next(iter(trainer.get_train_dataloader()))
    model.zero_grad()
    model.train()
    loss = trainer.compute_loss(model, inputs)
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _config(kind: str, out: Path, **options: Any) -> Any:
    return getattr(trl, kind)(
        output_dir=str(out), per_device_train_batch_size=4, bf16=False, gradient_checkpointing=False, report_to=[],
        use_cpu=True, disable_tqdm=True, dataloader_num_workers=0, **options,
    )  # fmt: skip


def _ours(model: Any, loss: Any, batch: Any, totals: dict[str, float]) -> tuple[float, Grads]:
    model.zero_grad()
    model.train()
    found, _ = loss(model, batch, totals)
    found.backward()
    return float(found.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _same(ours: tuple[float, Grads], theirs: tuple[float, Grads]) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5, abs=1e-5)
    assert set(ours[1]) == set(theirs[1])
    for name, gradient in ours[1].items():
        other = theirs[1][name]
        assert (gradient - other).norm() < 1e-5 * max(1.0, float(other.norm())), name


def test_sft_is_that_of_trl(base: str, tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(
        [{"prompt": _said("user", p), "completion": _said("assistant", c)} for p, c, _ in ROWS]
    )
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    trainer = trl.SFTTrainer(model, args=_config("SFTConfig", tmp_path / "trl"), train_dataset=data,
                             processing_class=AutoTokenizer.from_pretrained(base))  # fmt: skip
    theirs = _theirs(trainer, model)
    loaded = load(base)
    found = supervised(data, loaded.tokenizer, 512).items
    totals = {"tokens": float(sum(e.targets for e in found))}
    _same(_ours(loaded.model, sft_loss(0.0), padded(found, loaded.tokenizer.pad_token_id), totals), theirs)


@pytest.mark.parametrize("centre", [0.0, 0.01])
@pytest.mark.parametrize("margins", [False, True])
def test_reward_is_that_of_trl(centre: float, margins: bool, base: str, tmp_path: Path) -> None:
    loaded = load(base, "sequence")
    loaded.model.save_pretrained(tmp_path / "rm")  # so that both have the same head
    loaded.tokenizer.save_pretrained(tmp_path / "rm")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm", dtype=torch.float32)
    config = _config("RewardConfig", tmp_path / "trl", center_rewards_coefficient=centre or None)
    trainer = trl.RewardTrainer(model, args=config, train_dataset=_pairs(margins), processing_class=loaded.tokenizer)
    theirs = _theirs(trainer, model)
    loaded = load(str(tmp_path / "rm"), "sequence")
    data = _pairs(margins)
    items = ranked(data, data.column_names, loaded.tokenizer, 512, "reward").items
    batch = collated(items, loaded.tokenizer.pad_token_id)
    _same(_ours(loaded.model, reward_loss(centre, 1), batch, weight(items)), theirs)


# options of ours, options of TRL's
LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    name: ({"loss_type": name, **more}, {"loss_type": [name], **more})
    for name, more in {
        "sigmoid": {}, "hinge": {}, "ipo": {}, "robust": {"label_smoothing": 0.1}, 
        "exo_pair": {"label_smoothing": 0.01}, "nca_pair": {}, "bco_pair": {}, "sppo_hard": {}, "apo_zero": {},
        "apo_down": {}, "discopop": {}, "sigmoid_norm": {},
    }.items()
} | {
    "sigmoid and sft": ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]},) * 2,
    "beta 0.5": ({"beta": 0.5},) * 2,
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_dpo_is_that_of_trl(name: str, base: str, tmp_path: Path) -> None:
    mine, other = LOSSES[name]
    model = _moved(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
    reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config, tokenizer = _config("DPOConfig", tmp_path / "trl", **other), AutoTokenizer.from_pretrained(base)
    trainer = trl.DPOTrainer(model, reference, args=config, train_dataset=_pairs(), processing_class=tokenizer)
    theirs = _theirs(trainer, model)
    loaded, step = load(base), Dpo(base=base, bf16=False, **mine)
    items = ranked(_pairs(), ["chosen", "rejected"], loaded.tokenizer, 512, "dpo", 0.0).items
    items = referenced(items, loaded, step, FolderMemory(tmp_path / "memory"))
    batch = collated(items, loaded.tokenizer.pad_token_id)
    _moved(loaded.model)
    _same(_ours(loaded.model, step._loss(), batch, _totals(items)), theirs)


def _moved(model: Any) -> Any:
    """The policy, some way off from the reference; the same way each time."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


def test_every_pair_loss_is_compared_or_worked_by_hand() -> None:
    assert set(PAIR_LOSSES) - {"simpo", "orpo"} <= set(LOSSES), "the two are worked by hand in test_losses.py"


# --- layouts ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def rows() -> tuple[Any, Sequence[Any]]:
    loaded = load(WEAK)
    data = [{"prompt": p, "completion": c} for p, c, _ in ROWS]
    return loaded, supervised(data, loaded.tokenizer, 512).items


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_equals_padded(attention: str) -> None:
    loaded = load(WEAK, attention=attention)
    found = supervised([{"prompt": p, "completion": c} for p, c, _ in ROWS], loaded.tokenizer, 512).items
    totals = {"tokens": float(sum(e.targets for e in found))}
    one = _ours(loaded.model, sft_loss(0.0), padded(found, 0), totals)
    _same(_ours(loaded.model, sft_loss(0.0), packed([found[:1], found[1:]], 0), totals), one)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_answers_that_share_their_prompt_equal_answers_apart(attention: str) -> None:
    loaded = load(WEAK, "sequence", attention=attention)
    long = "Sort these words from A to Z: " + "tea, cup, hat, " * 12
    data = [{"prompt": long, "chosen": f"{i} cup, hat, tea", "rejected": f"{i} hat"} for i in range(3)]
    data.append({"prompt": long + "tea", "chosen": "a", "rejected": "b, and then"})
    items = ranked(data, list(data[0]), loaded.tokenizer, 512, "reward").items
    shared = collated(items, 0)
    assert shared.text.mask is not None, "these are worth sharing"
    apart = shared._replace(text=padded([e for i in items for e in i.answers], 0))
    assert shared.text.ids.numel() < 0.7 * apart.text.ids.numel()
    _same(_ours(loaded.model, reward_loss(0.01, 1), shared, weight(items)),
          _ours(loaded.model, reward_loss(0.01, 1), apart, weight(items)))  # fmt: skip


def test_the_reward_step_is_an_ordinary_checkpoint_of_transformers(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list([{"prompt": p, "chosen": c, "rejected": r} for p, c, r in ROWS * 3])
    list(Reward(base=WEAK, bf16=False, max_steps=2, learning_rate=1e-3, eval_fraction=0.0).train(data, tmp_path / "rm"))
    loaded = load(str(tmp_path / "rm"), "sequence")
    other = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm", dtype=torch.float32)
    found = supervised([{"prompt": p, "completion": c} for p, c, _ in ROWS], loaded.tokenizer, 512).items
    batch = padded(found, loaded.tokenizer.pad_token_id)
    from trainers._models import scores

    with torch.no_grad():
        assert torch.allclose(scores(loaded.model, batch), other(input_ids=batch.ids).logits, atol=1e-5)
