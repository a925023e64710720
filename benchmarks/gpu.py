"""Ours and TRL on one GPU: real tokens per second, model FLOPs utilisation (MFU) and peak memory, in turns.

It needs torch, transformers and datasets; TRL's side also trl (without it ours runs alone). The models are Qwen3's
shapes with random weights and the bundled tokenizer, the rows are drawn from the mini world: nothing is downloaded.
MFU counts 6 FLOPs a parameter and token, and 12 times layers, width and the mean row's half for attention, beside the
dense bfloat16 peak of the card; what is not known as a card is measured by a large product of matrices.

    python benchmarks/gpu.py [--size 0.6B] [--tasks sft reward dpo] [--rows 512] [--length 2048] [--batch 8]
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[0] = str(ROOT)  # else trainers.py beside this file would be the package `trainers`

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 2048},
    "0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "vocab_size": 151_936},
    "1.7B": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "vocab_size": 151_936},
}
_ROW = 400.0  # tokens in a row on the average; packed rows do not see each other
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12, "4090": 165e12}  # dense bfloat16


# --- what is trained on what -----------------------------------------------------------------------------------------


def make_model(size: str, folder: Path) -> None:
    """A checkpoint of Qwen3's shape with random weights."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from factory.engines.checkpoints import resolve

    tokenizer = AutoTokenizer.from_pretrained(resolve("mini-strong"))
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128} if size != "tiny" else {
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    torch.manual_seed(0)
    config = Qwen3Config(**SHAPES[size], **heads, **ends, tie_word_embeddings=True, max_position_embeddings=4096)
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def rows(task: str, count: int, length: int) -> list[dict[str, Any]]:
    """Prompts of some hundred characters, answers of log-normal lengths below `length` tokens."""
    from factory.mini.texts import dialogues

    rng = Random("gpu")
    talk = dialogues(rng)

    def text(words: float) -> str:
        found = list[str]()
        while len(found) < words:
            found += next(talk)[1].split()
        return " ".join(found[: int(words)])

    def answer() -> list[dict[str, str]]:
        words = min(length / 3, max(8, rng.lognormvariate(5, 0.8)))  # a word has about two tokens here
        return [{"role": "assistant", "content": text(words)}]

    found = list[dict[str, Any]]()
    for _ in range(count):
        prompt = [{"role": "user", "content": f"{next(talk)[0]}\n{text(20)}"}]
        sides = ("completion",) if task == "sft" else ("chosen", "rejected")
        found.append({"prompt": prompt} | {side: answer() for side in sides})
    return found


# --- one run, in its own process -------------------------------------------------------------------------------------


def ours(task: str, data: Any, base: str, out: Path, batch: int, length: int) -> tuple[float, float]:
    """Real tokens and seconds, from the second logging on: the first pays for warming up."""
    from factory.records import Metric
    from factory.steps import load_step

    options = {"base": base, "max_length": length, "num_train_epochs": 1, "save_steps": 0, "eval_fraction": 0.0,
               "logging_steps": 4, "per_device_train_batch_size": batch}  # fmt: skip
    if task == "sft":
        options |= {"packing": True}
    made = load_step("train", task, options).train(data, out)
    return steady(r.value for r in made if isinstance(r, Metric) and r.name == "num_tokens")


def theirs(task: str, data: Any, base: str, out: Path, batch: int, length: int) -> tuple[float, float]:
    import torch
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    kind, seen = {"sft": "SFT", "reward": "Reward", "dpo": "DPO"}[task], list[tuple[float, float]]()

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "num_tokens" in logs:
                seen.append((float(logs["num_tokens"]), time.perf_counter()))

    on_gpu = torch.cuda.is_available()
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(out), per_device_train_batch_size=batch, num_train_epochs=1, bf16=on_gpu, use_cpu=not on_gpu,
        gradient_checkpointing=False, report_to=[], disable_tqdm=True, max_length=length, logging_steps=4,
        save_strategy="no", **({"packing": True} if task == "sft" else {}),
    )  # fmt: skip
    model = base if task != "sft" else AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    trainer = getattr(trl, f"{kind}Trainer")(
        model,
        args=config,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(base),
        callbacks=[Clock()],
    )
    trainer.train()
    return seen[-1][0] - seen[0][0], seen[-1][1] - seen[0][1]


def steady(tokens: Iterable[float]) -> tuple[float, float]:
    """What came after the first of some counts, and the seconds it took."""
    total, began, last = 0.0, 0.0, 0.0
    for value in tokens:
        last = time.perf_counter()
        if began:
            total += value
        began = began or last
    return total, last - began


def one(given: argparse.Namespace) -> None:
    import datasets
    import torch

    datasets.disable_progress_bars()
    data = datasets.Dataset.from_list(rows(given.task, given.rows, given.length))
    with tempfile.TemporaryDirectory() as folder:
        run = ours if given.side == "ours" else theirs
        tokens, seconds = run(given.task, data, given.base, Path(folder) / "m", given.batch, given.length)
    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    print(json.dumps({"tokens": tokens, "seconds": seconds, "gib": memory}))


# --- all of them, in turns -------------------------------------------------------------------------------------------


def flops_per_token(size: str, row: float) -> float:
    """Forward and backward; attention sees half of a row on the average."""
    shape = SHAPES[size]
    width, layers = shape["hidden_size"], shape["num_hidden_layers"]
    wide = 16 * 128 if size != "tiny" else 64
    each = width * wide * 3 + 3 * width * shape["intermediate_size"]  # queries, keys and values (half each), output
    return 6 * (layers * each + width * shape["vocab_size"]) + 12 * layers * wide * row / 2


def peak() -> tuple[str, float]:
    """The device, and its bfloat16 FLOPs a second."""
    import torch

    if not torch.cuda.is_available():
        return "CPU", float("nan")
    name = torch.cuda.get_device_name()
    known = [value for part, value in PEAKS.items() if part in name]
    return name, known[0] if known else _product()


def _product(size: int = 8192) -> float:
    import torch

    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(10):
        a @ a
    torch.cuda.synchronize()
    return 10 * 2 * size**3 / (time.perf_counter() - started)


def main(given: argparse.Namespace) -> None:
    name, most = peak()
    if name == "CPU" and given.size != "tiny":
        print("no GPU here: nothing is measured (--size tiny tries the benchmark itself on a CPU)")
        return
    sides = ["ours", *(["trl"] if importlib.util.find_spec("trl") else [])]
    layout = f"{given.rows} rows, batches of {given.batch}, at most {given.length} tokens"
    print(f"{name}; Qwen3's {given.size} shape, {layout}")
    with tempfile.TemporaryDirectory() as folder:
        make_model(given.size, Path(folder))
        for task in given.tasks:
            found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
            for _ in range(given.rounds):
                for side in sides:
                    found[side].append(_apart(given, task, side, folder))
            for side, runs in found.items():
                speed = mean(r["tokens"] / r["seconds"] for r in runs)
                mfu = 100 * speed * flops_per_token(given.size, _ROW) / most
                told = {"task": task, "side": side, "tokens_per_second": round(speed), "mfu_percent": round(mfu, 1)}
                print(json.dumps(told | {"gib": round(max(r["gib"] for r in runs), 1)}), flush=True)


def _apart(given: argparse.Namespace, task: str, side: str, base: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", "--task", task, "--side", side, "--base", base, "--rows", given.rows,
               "--length", given.length, "--batch", given.batch]  # fmt: skip
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=dict(os.environ))
    if done.returncode:
        sys.exit(f"{task} {side}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(SHAPES), default="0.6B")
    parser.add_argument("--tasks", nargs="+", default=["sft", "reward", "dpo"])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    for hidden in ("--task", "--side", "--base"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    one(asked) if asked.one else main(asked)
