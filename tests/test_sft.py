import math
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from factory.engines.base import Request, Sampling
from factory.engines.checkpoints import resolve
from factory.engines.transformers import Transformers
from factory.errors import DataError
from factory.records import Metric, user
from trainers import _batches
from trainers._batches import IGNORED, batches
from trainers._losses import token_nll
from trainers._rows import examples
from trainers.sft import Sft

WEAK = resolve("mini-weak")
ROWS = [{"prompt": f"Say {w} twice.", "completion": f"{w} {w}"} for w in ("cat", "dog", "owl", "hat", "fox", "cup")]


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return AutoTokenizer.from_pretrained(WEAK)


def _trained(out: Path, **options: object) -> list[Metric]:
    data = datasets.Dataset.from_list(ROWS * 8)
    defaults: dict[str, object] = {"base": WEAK, "bf16": False, "learning_rate": 3e-3, "max_steps": 12}
    return list(Sft(**defaults | {"per_device_train_batch_size": 8} | options).train(data, out))  # type: ignore[arg-type]


def _learned(example: object, tokenizer: object) -> str:
    ids = [i for i, label in zip(example.ids, example.labels, strict=True) if label != IGNORED]  # type: ignore[attr-defined]
    return str(tokenizer.decode(ids))  # type: ignore[attr-defined]


@pytest.mark.parametrize("completion", ["owl owl", "两个词：猫 狗", " spaces around ", "two\nlines", "cat"])
def test_only_the_completion_and_its_end_of_turn_are_learned(tokenizer: object, completion: str) -> None:
    found, too_long = examples([{"prompt": "Say cat: cat cat", "completion": completion}], tokenizer, 512)
    assert _learned(found[0], tokenizer) == f"{completion}<|im_end|>"
    assert too_long == 0


_TEMPLATES = {
    "llama": "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}",
    "thinking": "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think></think>{% endif %}",
    "endless": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
}


@pytest.mark.parametrize("name", _TEMPLATES)
def test_any_chat_template_can_be_masked(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEAK)
    tokenizer.chat_template = _TEMPLATES[name]
    found, _ = examples([{"prompt": "Say owl.", "completion": "owl!"}], tokenizer, 512)
    learned = _learned(found[0], tokenizer)
    assert learned.lstrip().startswith("owl!"), "a space before the answer may belong to its first token"
    assert learned.endswith("<|im_end|>")


def test_a_template_that_changes_the_answer_is_refused() -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEAK)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    with pytest.raises(DataError, match="row 1: the chat template changes the answer's text"):
        examples([{"prompt": "a", "completion": "owl"}], tokenizer, 512)


def test_conversations_and_long_rows(tokenizer: object) -> None:
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    rows = [{"messages": turns, "completion": "cat"}, {"prompt": "word " * 400, "completion": "cat"}]
    found, too_long = examples(rows, tokenizer, 100)
    assert len(found) == 1
    assert too_long == 1
    assert "be brief" in tokenizer.decode(found[0].ids)  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="no row fits into max_length=3"):
        examples(rows, tokenizer, 3)
    with pytest.raises(DataError, match="row 1: the completion is empty"):
        examples([{"prompt": "a", "completion": "  "}], tokenizer, 100)


def test_the_loss_is_the_mean_nll_worked_by_hand() -> None:
    logits = torch.tensor([[[0.0, 0.0], [0.0, math.log(3)], [5.0, 5.0]]])  # B=1, T=3, V=2
    labels = torch.tensor([[IGNORED, 0, 1]])
    # the label 0 is predicted at position 0 with p = 1/2, the label 1 at position 1 with p = 3/4
    assert float(token_nll(logits, labels)) == pytest.approx(-math.log(1 / 2) - math.log(3 / 4))
    nothing = token_nll(logits.requires_grad_(), torch.full((1, 3), IGNORED))
    assert float(nothing.detach()) == 0.0


def test_batches_hold_like_lengths_and_every_row_once(tokenizer: object) -> None:
    from random import Random

    rows = [{"prompt": "word " * (1 + i % 37), "completion": "cat"} for i in range(200)]
    found, _ = examples(rows, tokenizer, 512)
    drawn = batches(found, 8, Random(0))
    assert sorted(len(e.ids) for b in drawn for e in b) == sorted(len(e.ids) for e in found)
    padded = sum(len(b) * max(len(e.ids) for e in b) for b in drawn)
    assert padded < 1.2 * sum(len(e.ids) for e in found)
    batch = _batches.padded(drawn[0], 0)
    assert batch.targets == sum(label != IGNORED for e in drawn[0] for label in e.labels)


def test_it_learns_writes_safetensors_and_the_engine_runs_it(tmp_path: Path) -> None:
    metrics = _trained(tmp_path / "m", max_steps=30, logging_steps=5)
    losses = [m.value for m in metrics if m.name == "loss"]
    assert losses[-1] < 0.2 * losses[0]
    assert {"loss", "grad_norm", "learning_rate", "mean_token_accuracy"} <= {m.name for m in metrics}
    assert (tmp_path / "m" / "model.safetensors").exists()
    assert not list(tmp_path.rglob("*.bin"))
    engine = Transformers(model=str(tmp_path / "m")).open()
    reply = next(engine.generate([Request(user("Say owl twice."), Sampling(temperature=0, max_tokens=16))]))
    assert (reply.text, reply.finish_reason) == ("owl owl", "stop"), "the end of the turn was learned"


def test_accumulation_equals_the_large_batch(tmp_path: Path) -> None:
    long = [{"prompt": "p", "completion": "cat " * n} for n in (1, 9, 2, 14, 3, 3, 20, 1)]
    data = datasets.Dataset.from_list(long)
    results = []
    for size, steps in ((8, 1), (2, 4)):
        out = tmp_path / f"{size}"
        step = Sft(base=WEAK, bf16=False, max_steps=1, learning_rate=1e-3, per_device_train_batch_size=size,
                   gradient_accumulation_steps=steps, warmup_ratio=0)  # fmt: skip
        metrics = {m.name: m.value for m in step.train(data, out)}
        results.append((metrics["loss"], metrics["grad_norm"]))
    assert results[0] == pytest.approx(results[1], rel=1e-4)


def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = _trained(tmp_path / "whole", save_steps=5, logging_steps=1)
    step = Sft(base=WEAK, bf16=False, learning_rate=3e-3, max_steps=12, per_device_train_batch_size=8, save_steps=5,
               logging_steps=1)  # fmt: skip
    running = step.train(datasets.Dataset.from_list(ROWS * 8), tmp_path / "cut")
    for metric in running:
        if metric.step == 8:
            running.close()  # type: ignore[attr-defined]
            break
    assert [p.name for p in (tmp_path / ".cut.state").iterdir()] == ["step-00000005"]
    rest = _trained(tmp_path / "cut", save_steps=5, logging_steps=1)
    assert min(m.step for m in rest if m.name == "loss") == 6
    assert [m.value for m in rest if m.name == "loss"] == [m.value for m in whole if m.name == "loss" and m.step > 5]
    one, other = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "cut"))
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert not (tmp_path / ".cut.state").exists()


def test_lora_trains_adapters_and_the_merged_model_loads(tmp_path: Path) -> None:
    losses = [m.value for m in _trained(tmp_path / "m", use_peft=True, learning_rate=1e-2, max_steps=40, lora_r=4)
              if m.name == "loss"]  # fmt: skip
    assert losses[-1] < 0.5 * losses[0]
    assert (tmp_path / "m" / "adapter" / "adapter_model.safetensors").exists()
    engine = Transformers(model=str(tmp_path / "m")).open()
    reply = next(engine.generate([Request(user("Say fox twice."), Sampling(temperature=0, max_tokens=16))]))
    assert reply.text == "fox fox"


def test_a_loss_that_is_not_a_number_stops_with_a_mend(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Lower learning_rate"):
        _trained(tmp_path / "m", learning_rate=1e12, max_steps=40, warmup_ratio=0, max_grad_norm=1e30)
    assert not (tmp_path / "m").exists(), "a checkpoint is written whole or not at all"


def test_wrong_columns_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found text. Rename them in the query"):
        list(Sft(base=WEAK).train(datasets.Dataset.from_list([{"text": "a"}]), tmp_path / "m"))
