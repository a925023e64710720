"""What the options of trainers do: schedules, precision, masks, weights, noise, ends of turns, launchers, cards."""

import json
import math
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import AutoTokenizer, get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from factory import training
from factory.cli import main
from factory.engines.checkpoints import resolve
from factory.errors import DataError
from factory.records import Completion, Metric, Prompt, user
from factory.steps import load_step
from factory.store import Store
from tests.conftest import ROOT, factory
from trainers._chat import conversation
from trainers._loop import schedule
from trainers._models import load, noisy
from trainers._options import Training
from trainers._rows import supervised

WEAK = resolve("mini-weak")
WORDS = ("cat", "dog", "owl", "hat", "fox", "cup")
ROWS = [{"prompt": f"Say {w}.", "completion": f"{w} " * (1 + i % 4)} for i, w in enumerate(WORDS * 4)]

pytestmark = pytest.mark.usefixtures("one_thread")


def _train(out: Path, rows: list[dict[str, Any]], name: str = "sft", **options: Any) -> dict[str, list[float]]:
    """Every metric's values, in order."""
    common = {"base": WEAK, "bf16": False, "max_steps": 2, "logging_steps": 1, "warmup_ratio": 0, "eval_fraction": 0}
    told: dict[str, list[float]] = {}
    for record in load_step("train", name, common | options).train(datasets.Dataset.from_list(rows), out):
        if isinstance(record, Metric):
            told.setdefault(record.name, []).append(record.value)
    return told


# --- the optimiser ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "theirs"), [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)]
)
def test_schedules_are_those_of_transformers_but_for_a_first_step_that_moves(kind: str, theirs: Any) -> None:
    options = Training(base=WEAK, lr_scheduler_type=kind, warmup_ratio=0.2)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = theirs(optimizer, 10, 50)
    for step in range(50):
        expected = (step + 1) / 10 if step < 10 else optimizer.param_groups[0]["lr"]
        assert schedule(step, 50, options) == pytest.approx(expected)
        optimizer.step()
        reference.step()


def test_a_constant_rate_stays_and_is_told(tmp_path: Path) -> None:
    told = _train(tmp_path / "m", ROWS, max_steps=4, lr_scheduler_type="constant", learning_rate=1e-4)
    assert told["learning_rate"] == [1e-4] * 4
    assert _train(tmp_path / "n", ROWS, max_steps=4, learning_rate=1e-4)["learning_rate"] == pytest.approx(
        [1e-4, 7.5e-5, 5e-5, 2.5e-5]
    )


def test_weight_decay_shrinks_matrices_and_leaves_norms(tmp_path: Path) -> None:
    common = {"max_steps": 1, "learning_rate": 1e-3}
    _train(tmp_path / "plain", ROWS, **common)
    _train(tmp_path / "decayed", ROWS, weight_decay=0.5, **common)
    plain, decayed = (load_file(tmp_path / n / "model.safetensors") for n in ("plain", "decayed"))
    before = load(WEAK).model.state_dict()
    matrix, norm = "model.layers.0.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"
    assert torch.allclose(decayed[matrix], plain[matrix] - 1e-3 * 0.5 * before[matrix], atol=1e-6)
    assert torch.equal(decayed[norm], plain[norm])


@pytest.mark.parametrize("name", ["sft", "dpo", "reward"])
def test_bfloat16_computes_nearly_the_same_and_keeps_the_weights_in_float32(name: str, tmp_path: Path) -> None:
    rows = ROWS if name == "sft" else [
        {"prompt": r["prompt"], "chosen": r["completion"], "rejected": "no"} for r in ROWS
    ]  # fmt: skip
    exact = _train(tmp_path / "exact", rows, name, learning_rate=1e-4)
    half = _train(tmp_path / "half", rows, name, learning_rate=1e-4, bf16=True)
    assert half["loss"][0] == pytest.approx(exact["loss"][0], rel=0.02)
    assert half["loss"][1] < half["loss"][0]
    assert half["grad_norm"] != exact["grad_norm"]
    weights = load_file(tmp_path / "half" / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float32}


# --- what is learned -------------------------------------------------------------------------------------------------


def test_the_whole_row_or_the_completion_alone() -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEAK)
    part = supervised(ROWS[:1], tokenizer, 100).items[0]
    whole = supervised(ROWS[:1], tokenizer, 100, completion_only=False).items[0]
    assert whole.targets == len(whole.ids) - 1
    assert part.targets < whole.targets / 2


def test_a_row_counts_as_often_as_its_weight_says(tmp_path: Path) -> None:
    one, other = ROWS[0], ROWS[3]
    thrice = _train(tmp_path / "a", [one | {"weight": 3.0}, other | {"weight": 1.0}], max_steps=1)
    copies = _train(tmp_path / "b", [one, one, one, other], max_steps=1)
    assert thrice["loss"] == pytest.approx(copies["loss"], rel=1e-5)
    assert thrice["grad_norm"] == pytest.approx(copies["grad_norm"], rel=1e-4)
    alone = _train(tmp_path / "c", [one | {"weight": 1.0}, other | {"weight": 0.0}], max_steps=1)
    assert alone["loss"] == pytest.approx(_train(tmp_path / "d", [one], max_steps=1)["loss"], rel=1e-5)


def test_noise_on_embeddings_has_its_size_and_is_for_training_alone(tmp_path: Path) -> None:
    model, ids = load(WEAK).model, torch.arange(24).reshape(2, 12)
    embed = model.get_input_embeddings()
    torch.manual_seed(0)
    with noisy(model, 5.0):
        noise = (embed(ids) - embed.weight[ids]).detach()
    bound = 5.0 / math.sqrt(12 * embed.weight.shape[1])
    assert 0.9 * bound < float(noise.abs().max()) <= bound * 1.001
    assert float(noise.mean()) == pytest.approx(0.0, abs=bound / 10)
    assert torch.equal(embed(ids), embed.weight[ids]), "it ends with the block"
    options = {"eval_fraction": 0.25, "max_steps": 1, "learning_rate": 1e-9}
    plain, loud = (
        _train(tmp_path / "a", ROWS, **options),
        _train(tmp_path / "b", ROWS, neftune_noise_alpha=9, **options),
    )
    assert plain["loss"] != loud["loss"]
    assert plain["eval_loss"][0] == loud["eval_loss"][0], "what is held out is measured without"


# --- ends of turns ---------------------------------------------------------------------------------------------------


def test_a_row_whose_end_of_turn_would_not_be_learned_is_refused() -> None:
    """A tokenizer that reads the end of the turn as plain letters."""
    tokenizer = AutoTokenizer.from_pretrained(WEAK)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.eos_token = "owl"
    with pytest.raises(DataError, match="no end-of-turn token would be learned"):
        supervised([{"prompt": "a", "completion": "b owl c"}], tokenizer, 100)


def test_a_template_that_does_not_end_turns_cannot_teach_to_stop_between_them() -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEAK)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    talk = [
        {"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    ]
    with pytest.raises(DataError, match="row 3: the chat template does not end assistant turns"):
        conversation(talk, tokenizer, "row 3")
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="row 3: the base has no chat template: give columns prompt and completion"):
        conversation(talk, tokenizer, "row 3")


def test_how_often_the_end_of_the_turn_is_right_is_told(tmp_path: Path) -> None:
    told = _train(tmp_path / "m", ROWS, max_steps=30, learning_rate=3e-3)["end_of_turn_accuracy"]
    assert told[-1] > 0.95
    assert all(0 <= share <= 1 for share in told)


# --- the reference ---------------------------------------------------------------------------------------------------

PAIRS = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": "no"} for r in ROWS]


def test_a_reference_with_other_tokens_is_refused(tmp_path: Path) -> None:
    for path in Path(WEAK).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(WEAK)
    tokenizer.add_tokens(["zzyzx"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="has other tokens than the base"):
        _train(tmp_path / "m", PAIRS, "dpo", ref_model=str(tmp_path))


def test_a_bundled_reference_is_found_by_its_name(filled: Store) -> None:
    folder = filled.path.parent
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    asked = ["train", "dpo", "--data", str(folder / "pairs.jsonl"), "--base", "mini-weak", "--out", str(folder / "m"),
             "--store", str(filled.path), "--with", "ref_model=mini-strong", "--with", "max_steps=1"]  # fmt: skip
    result = CliRunner().invoke(main, asked)
    assert not result.exception, result.output
    (loss,) = filled.rows("SELECT value FROM metrics WHERE name = 'loss'")
    assert loss[0] != pytest.approx(math.log(2), abs=1e-3), "the base itself would give log 2"


# --- what is left behind ---------------------------------------------------------------------------------------------


def test_a_damaged_state_is_told_with_its_file(tmp_path: Path) -> None:
    options = {"base": WEAK, "bf16": False, "max_steps": 6, "logging_steps": 1, "save_steps": 2}
    running = load_step("train", "sft", options).train(datasets.Dataset.from_list(ROWS), tmp_path / "m")
    for record in running:
        if isinstance(record, Metric) and record.step == 3:
            running.close()
            break
    weights = next(tmp_path.glob(".m.state/step-*/weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"weights\.safetensors is damaged .* delete its folder"):
        list(load_step("train", "sft", options).train(datasets.Dataset.from_list(ROWS), tmp_path / "m"))


def test_a_folder_that_is_no_checkpoint_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(DataError, match="exists and is no checkpoint: name a new folder"):
        _train(tmp_path / "thesis", ROWS)
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "years of work"


def test_what_is_learned_is_green_on_a_terminal() -> None:
    code = "from factory.report import masks; masks([[('asked ', False), ('said', True)]])"
    ours, theirs = pty.openpty()
    done = subprocess.run([sys.executable, "-c", code], stdout=theirs, cwd=ROOT, env=os.environ | {"TERM": "xterm"})
    shown = os.read(ours, 1000).decode()
    assert done.returncode == 0
    assert "\x1b[32m" in shown[: shown.index("said")]
    assert "\x1b[32m" not in shown[: shown.index("asked")]
    assert "[[" not in shown


@pytest.fixture
def filled(store: Store) -> Store:
    prompts = [Prompt(user(r["prompt"] + f" {i}")) for i, r in enumerate(ROWS)]
    store.append(prompts, "d")
    store.append([Completion(p.id, r["completion"], model="m") for p, r in zip(prompts, ROWS, strict=True)], "d")
    return store


_OPTIONS = {"bf16": False, "max_steps": 4, "logging_steps": 1, "learning_rate": 1e-3, "warmup_ratio": 0}


def _asked(store: Store, out: str, **more: Any) -> list[str]:
    named = [part for n, v in (_OPTIONS | more).items() for part in ("--with", f"{n}={json.dumps(v)}")]
    return ["train", "sft", "--data", "d", "--base", "mini-weak", "--out", out, "--store", store.path.name, *named]


def _card(store: Store, out: str, on: str = "d") -> str:
    """Train in this process; what the card says."""
    step = load_step("train", "sft", {"base": WEAK} | _OPTIONS)
    training.train(store, step, "sft", on, store.path.parent / out)
    return (store.path.parent / out / "README.md").read_text()


def test_the_card_names_rows_by_their_content_and_the_command(filled: Store) -> None:
    query = "SELECT prompt, completion FROM sft WHERE dataset = 'd' AND prompt <> 'Say cat. 0'"
    assert factory(*_asked(filled, "one"), cwd=filled.path.parent).returncode == 0
    one, two = (filled.path.parent / "one" / "README.md").read_text(), _card(filled, "two")
    three = _card(filled, "three", query)
    hashes = [re.findall("rows: `([0-9a-f]{32})`", card) for card in (one, two, three)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert [len(h) for h in hashes] == [1, 1, 1]
    assert "factory train sft --data d --base mini-weak --out one" in one
    assert query in three
    assert "| loss |" in one


_TWO = ("--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
    "accelerate": ("accelerate.commands.launch", "--multi_gpu", *_TWO, "--main_process_port"),
}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launchers_train_in_two_processes_as_one_does(name: str, filled: Store) -> None:
    folder, port = filled.path.parent, str(20000 + os.getpid() % 20000)
    _card(filled, "one")
    launch = [*LAUNCHERS[name], *([port] if name == "accelerate" else [])]
    asked = _asked(filled, "m", per_device_train_batch_size=4)
    command = [sys.executable, "-m", *launch, "-m", "factory.cli", *asked]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    alone, together = (load_file(folder / n / "model.safetensors") for n in ("one", "m"))
    assert max(float((together[k] - alone[k]).abs().max()) for k in alone) < 2e-4
    losses = "SELECT value FROM metrics WHERE name = 'loss' ORDER BY created_at, step"
    told = [v for (v,) in filled.rows(losses)]
    assert len(told) == 8, "two runs of four steps: the second process writes nothing"
    assert told[:4] == pytest.approx(told[4:], rel=1e-4)
    assert json.loads((folder / "m" / "config.json").read_text())["model_type"] == "llama"
