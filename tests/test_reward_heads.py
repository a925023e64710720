"""Reward models are read as they were trained: at the same token, with all their heads."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from factory.engines.checkpoints import resolve
from factory.records import Prompt, user
from factory.rewards import Model, Sample
from factory.scorers import opened
from factory.steps import load_step
from trainers._batches import padded
from trainers._models import load, scores
from trainers._options import Training
from trainers._policy_models import critic_of
from trainers._rows import encoded, side_by_side

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = ("cat", "owl", "hello", "world")
ROWS = [{"prompt": f"say {w}", "chosen": f"{w} owl", "rejected": w} for w in WORDS] * 4
ASKED, ANSWERS = "say cat", ("cat owl", "cat", "owl owl owl")


def _rewarding(base: str, out: Path, rows: list[dict[str, Any]] = ROWS, **options: Any) -> str:
    given = {"base": base, "bf16": False, "max_steps": 8, "learning_rate": 3e-3, "eval_fraction": 0.0}
    list(load_step("train", "reward", given | options).train(datasets.Dataset.from_list(rows), out))
    return str(out)


@pytest.fixture
def one_special_token(tmp_path: Path) -> str:
    """A model like GPT-2: its tokenizer's end is its only special token, and so its padding, too."""
    whole = Tokenizer(models.BPE())
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    whole.train_from_iterator(["hello world owl cat"] * 3, learner)
    special = dict.fromkeys(("eos_token", "bos_token", "unk_token"), "<|endoftext|>")
    fast = PreTrainedTokenizerFast(tokenizer_object=whole, **special)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(fast), n_embd=32, n_layer=2, n_head=2, n_positions=128, bos_token_id=0,
                        eos_token_id=0)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt")
    fast.save_pretrained(tmp_path / "gpt")
    return str(tmp_path / "gpt")


def test_a_reward_is_read_at_the_token_where_it_was_learned(one_special_token: str, tmp_path: Path) -> None:
    model = _rewarding(one_special_token, tmp_path / "rm")
    loaded = load(model, "sequence", 0)
    assert loaded.tokenizer.pad_token == loaded.tokenizer.eos_token
    rows = [side_by_side({"prompt": ASKED}, [a], loaded.tokenizer, "row") for a in ANSWERS]
    batch = padded([encoded(row, loaded.tokenizer)[0] for row in rows], loaded.tokenizer.pad_token_id)
    with torch.no_grad():
        raw = scores(loaded.model.eval(), batch)[:, 0]
    scale = loaded.model.config.reward_scale
    learned = (raw - scale["mean"][0]) / scale["std"][0]
    given = opened(Model(model=model))([Sample.of(Prompt(user(ASKED), "test"), a) for a in ANSWERS])
    assert given == pytest.approx(learned.tolist(), abs=1e-4)


@pytest.mark.parametrize("options", [{}, {"ensemble": 3}, {"dimensions": ("help", "harm"), "ensemble": 2}])
def test_a_critic_begins_with_the_reward_of_all_heads(options: dict[str, Any], tmp_path: Path) -> None:
    aspects = options.get("dimensions", ("",))
    rows = [row | {"aspect": aspects[i % len(aspects)]} for i, row in enumerate(ROWS)]
    model = _rewarding(resolve("mini-weak"), tmp_path / "rm", rows, **options)
    critic = critic_of(Training(base=resolve("mini-weak")), model)
    coded = [
        encoded(side_by_side({"prompt": ASKED}, [a], critic.tokenizer, "row"), critic.tokenizer)[0] for a in ANSWERS
    ]
    with torch.no_grad():
        values = scores(critic.model.eval(), padded(coded, critic.tokenizer.pad_token_id))
    assert values.shape == (3, 1)
    given = opened(Model(model=model))([Sample.of(Prompt(user(ASKED), "test"), a) for a in ANSWERS])
    assert values[:, 0].tolist() == pytest.approx(given, abs=1e-4)


def test_a_critic_without_a_reward_begins_at_nothing() -> None:
    for other in ("", resolve("mini-strong")):
        assert not critic_of(Training(base=resolve("mini-weak")), other).model.score.weight.any()
