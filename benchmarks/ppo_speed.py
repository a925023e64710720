"""Our PPO and TRL's side by side on a CPU: answers and answer tokens a CPU second, and peak memory.

TRL 1.12.0 is the last that has a PPO (`trl.experimental.ppo`): by default it is installed into a temporary folder,
without its dependencies, and stands before the installed TRL in its own processes only. Each run is a process of its
own, in turns, one thread, float32.

The same on both sides: policy, reference, reward model and critic (a bundled model; reward model and critic begin as
one checkpoint, the base with a random head); prompts, as the chat template makes them; temperature 1, no top-p or
top-k; answers in a batch, passes over it, optimiser steps in a pass, most tokens of an answer, k1 in the reward, clips,
GAE. The learning rate is so low that both policies stay what they were, so their answers are of like length. Counted
are answer tokens up to the end of turn, with it, whatever stands behind it; CPU seconds are those between the end of
the first step and the end of the last, so that loading and warming up are in neither.

Not the same, by nature: in each pass TRL computes every place of its padded rows, prompts padded to the longest of the
batch and answers to the longest drawn; ours lays short rows side by side. `trl` stops when all answers of a batch have
ended (`stop_token="eos"`), `trl default` draws to the limit, and learns and rewards also what stands behind the end, as
TRL does unless it is told otherwise; ours takes each ended answer out. TRL keeps the logits of all tokens drawn; ours
reads log-probabilities anew. TRL has one optimiser for policy and critic, ours two; TRL does not clip gradients; ours
gives each answer as a row. Gradient checkpointing, TRL's default, is off, for it costs time here.

Three worlds: `mini` are the tasks that the bundled model knows, short ones of like length, and most answers end early;
in `full` the model has random weights and answers hardly ever end, so that stopping early gains nothing; `alpaca` are
instructions of alpaca_9k of up to 400 characters, and lengths differ as in real data.

    python benchmarks/ppo_speed.py [--trl FOLDER] [--rounds 3] [--steps 5] [--worlds mini full alpaca]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[0] = str(ROOT)  # else the file trainers.py beside this one would be the package `trainers`
TRL = "trl==1.12.0"
SIDES, WORLDS = ("ours", "trl", "trl default"), ("mini", "full", "alpaca")
DATA = Path(os.environ.get("FACTORY_SHARED", ROOT.parent / "shared")) / "data"
MODEL, BATCH, MINI_BATCHES, EPOCHS, LENGTH = "mini-strong", 32, 2, 4, 48
LONGEST = 400  # characters of a prompt
RATES = {"learning_rate": 1e-9, "max_grad_norm": 1.0}


def prompts(world: str, count: int) -> list[str]:
    """As many as there are answers; all leave room for an answer."""
    if world == "alpaca":
        rows = json.loads((DATA / "alpaca_9k.json").read_text(encoding="utf-8"))
    else:
        rows = map(json.loads, (ROOT / "specs/seeds/mini_tasks.jsonl").read_text(encoding="utf-8").splitlines())
    asked = (f"{r['instruction']}\n{r['input']}".strip() for r in rows)
    return list(islice((a for a in asked if len(a) < LONGEST), count))


def checkpoints(world: str, folder: Path) -> None:
    """The policy's start, and a sequence classifier of the same weights that both sides load."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    from factory.engines.checkpoints import resolve

    torch.manual_seed(0)
    base, tokenizer = resolve(MODEL), AutoTokenizer.from_pretrained(resolve(MODEL))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if world == "full":
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base), dtype=torch.float32)
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id  # TRL knows of one that ends an answer
    model.save_pretrained(folder / "policy")
    reward = AutoModelForSequenceClassification.from_pretrained(folder / "policy", num_labels=1)
    reward.config.pad_token_id = tokenizer.pad_token_id
    reward.save_pretrained(folder / "reward")
    for name in ("policy", "reward"):
        tokenizer.save_pretrained(folder / name)


# --- one run, in its own process -------------------------------------------------------------------------------------


def ours(world: str, models: Path, steps: int, out: Path) -> list[tuple[float, float]]:
    """After each step: CPU seconds so far, and answer tokens so far."""
    import datasets

    from factory.records import Metric
    from factory.steps import load_step

    options = RATES | {
        "base": str(models / "policy"), "reward": {"model": str(models / "reward")},
        "value_model": str(models / "reward"), "value_learning_rate": RATES["learning_rate"], "bf16": False,
        "max_steps": steps, "per_device_train_batch_size": BATCH // MINI_BATCHES, "num_mini_batches": MINI_BATCHES,
        "num_ppo_epochs": EPOCHS, "max_completion_length": LENGTH, "local_rollout_forward_batch_size": BATCH,
        "save_steps": 0, "temperature": 1.0,
    }  # fmt: skip
    data = datasets.Dataset.from_list([{"prompt": p} for p in prompts(world, steps * BATCH)])
    course, tokens = list[tuple[float, float]](), 0.0
    for record in load_step("train", "ppo", options).train(data, out):
        if isinstance(record, Metric) and record.name == "completions/mean_length":
            tokens += record.value * BATCH
        if isinstance(record, Metric) and record.name == "episode":
            course.append((time.process_time(), tokens))
    return course


def theirs(world: str, models: Path, steps: int, out: Path, stop: str | None) -> list[tuple[float, float]]:
    import datasets
    import torch
    import transformers
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    course, tokens = list[tuple[float, float]](), [0.0]
    draw = ppo_trainer.batch_generation

    def counting(model: Any, queries: Any, *more: Any) -> Any:
        """What is drawn is known here only; an answer has the tokens before its first end of turn, and that."""
        found = draw(model, queries, *more)
        going = (found[0][:, queries.shape[1] :] != tokenizer.eos_token_id).long().cumprod(1).sum(1)
        tokens[0] += float((going + 1).clamp(max=found[0].shape[1] - queries.shape[1]).sum())
        return found

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            course.append((time.process_time(), tokens[0]))

    ppo_trainer.batch_generation = counting
    tokenizer = transformers.AutoTokenizer.from_pretrained(models / "policy", padding_side="left")
    policy, reference = (
        transformers.AutoModelForCausalLM.from_pretrained(models / "policy", dtype=torch.float32) for _ in range(2)
    )
    reward, value = (
        transformers.AutoModelForSequenceClassification.from_pretrained(models / "reward", dtype=torch.float32)
        for _ in range(2)
    )
    config = PPOConfig(
        output_dir=str(out), per_device_train_batch_size=BATCH, gradient_accumulation_steps=1,
        num_mini_batches=MINI_BATCHES, num_ppo_epochs=EPOCHS, response_length=LENGTH, total_episodes=steps * BATCH,
        local_rollout_forward_batch_size=BATCH, stop_token=stop, temperature=1.0, bf16=False, use_cpu=True,
        gradient_checkpointing=False, report_to=[], disable_tqdm=True, save_strategy="no", num_sample_generations=0,
        **RATES,
    )  # fmt: skip
    asked = [[{"role": "user", "content": p}] for p in prompts(world, steps * BATCH)]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=True)["input_ids"]
    data = datasets.Dataset.from_list([{"input_ids": each} for each in ids])
    PPOTrainer(config, tokenizer, policy, reference, reward, data, value, callbacks=[Clock()]).train()
    return course


def one(side: str, world: str, models: Path, steps: int, trl: str) -> None:
    if side != "ours":
        sys.path.insert(0, trl)
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        stop = {"trl": "eos", "trl default": None}
        course = ours(world, models, steps, out) if side == "ours" else theirs(world, models, steps, out, stop[side])
    (began, before), (ended, after) = course[0], course[-1]
    print(json.dumps({
        "answers": BATCH * (len(course) - 1), "tokens": after - before, "seconds": ended - began,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }))  # fmt: skip


# --- all of them, in turns -------------------------------------------------------------------------------------------


def run(side: str, world: str, models: Path, steps: int, trl: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", side, "--worlds", world, "--models", str(models),
               "--steps", str(steps), "--trl", trl]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(world: str, rounds: int, steps: int, trl: str) -> None:
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        checkpoints(world, Path(folder))
        for _ in range(rounds):
            for side in SIDES:
                found[side].append(run(side, world, Path(folder), steps, trl))

    def middle(side: str, name: str, below: str) -> float:
        return median(r[name] / r[below] for r in found[side])

    for side in SIDES:
        print(f"{world:6s} {side:11s} {middle(side, 'answers', 'seconds'):7.1f} answers/s"
              f" {middle(side, 'tokens', 'seconds'):7.0f} tokens/s  {max(r['peak'] for r in found[side]):5.0f} MB"
              f"  {middle(side, 'tokens', 'answers'):5.1f} tokens an answer", flush=True)  # fmt: skip
    for side in SIDES[1:]:
        for what in ("answers", "tokens"):
            rounds_ = zip(found["ours"], found[side], strict=True)
            times = [(o[what] / o["seconds"]) / (t[what] / t["seconds"]) for o, t in rounds_]
            print(f"{world:6s} ours makes {median(times):.2f} times the {what} of {side} "
                  f"({min(times):.2f} to {max(times):.2f})", flush=True)  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", default="", help=f"a folder with {TRL}; by default it is installed for the run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side")
    parser.add_argument("--steps", type=int, default=5, help="batches of a run, the first of which is not timed")
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=WORLDS, help="do answers end early or not")
    parser.add_argument("--one", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        return one(given.one, given.worlds[0], given.models, given.steps, given.trl)
    print(f"{MODEL}, float32, one thread, {BATCH} answers of at most {LENGTH} tokens a batch, {EPOCHS} passes of "
          f"{MINI_BATCHES} optimiser steps: by the CPU second, and peak memory")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        if not given.trl:
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, TRL]
            subprocess.run(install, check=True)
        for world in given.worlds:
            compare(world, given.rounds, given.steps, given.trl or folder)


if __name__ == "__main__":
    main(sys.argv[1:])
