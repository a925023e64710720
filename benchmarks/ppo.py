"""What reinforcement learning does on the mini world, where a rule knows the right answer.

mini-base is trained a little on exact dialogues (SFT), and goes on with PPO, GRPO or RLOO on prompts alone, rewarded
by {rule: exact}. Prints one JSON line: exact match on held-out tasks before and after with Wilson's intervals, the
course of reward and KL, and how many tokens went through in a second. In one thread:

    python benchmarks/ppo.py --trainer rloo --steps 50
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import torch

from factory.engines.base import Request, Sampling
from factory.engines.checkpoints import resolve
from factory.engines.transformers import Transformers
from factory.mini.families import FAMILIES
from factory.mini.world import Task, draw, heldout, judge
from factory.records import Metric, user
from factory.stats import wilson
from factory.steps import load_step

sys.path[0] = str(Path(__file__).parent.parent)  # else trainers.py beside this file would be the package `trainers`
_EPOCHS = {"ppo": {"num_ppo_epochs": 2, "value_learning_rate": 3e-4}, "grpo": {}, "rloo": {}}


def tasks(count: int, seed: int) -> list[Task]:
    """Tasks of the training split, of all ordinary families alike."""
    rng, ordinary = Random(seed), [f for f in FAMILIES if f.kind == "task"]
    return [draw(rng.choice(ordinary), rng) for _ in range(count)]


def right(model: str, asked: Sequence[Task]) -> list[float]:
    """The share of held-out tasks that are answered right at temperature 0, in percent, with its 95 % interval."""
    engine = Transformers(model=model, threads=1).open()
    requests = [Request(user(t.text), Sampling(temperature=0.0, max_tokens=48), i) for i, t in enumerate(asked)]
    said = {r.request.seed: r.text for r in engine.generate(requests)}
    hits = sum(judge(t, said[i]) == "right" for i, t in enumerate(asked))
    return [round(100 * x, 1) for x in (hits / len(asked), *wilson(hits, len(asked)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainer", choices=sorted(_EPOCHS), default="ppo")
    parser.add_argument("--sft", type=int, default=1200, help="dialogues that SFT learns first")
    parser.add_argument("--steps", type=int, default=50, help="batches of rollouts")
    parser.add_argument("--rate", type=float, default=2e-4, help="learning rate of the policy")
    parser.add_argument("--keep", type=Path, help="where the SFT model stays, to be taken up by the next run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    asked, common = heldout(260), {"bf16": False, "save_steps": 0}
    with TemporaryDirectory() as folder:
        base, out = args.keep or Path(folder) / "sft", Path(folder) / "out"
        # 1. A model that can chat, and is often wrong.
        if not base.exists():
            rows = [{"prompt": t.text, "completion": t.answer} for t in tasks(args.sft, 1)]
            given: dict[str, Any] = {"learning_rate": 4e-4, "num_train_epochs": 2.0, "per_device_train_batch_size": 16}
            list(load_step("train", "sft", common | given | {"base": resolve("mini-base")}).train(_data(rows), base))
        before = right(str(base), asked)
        # 2. Its own answers, rewarded by the rule.
        rows = [{"prompt": t.text, "answer": t.answer, "category": t.family} for t in tasks(4000, 2)]
        given = common | _EPOCHS[args.trainer] | {
            "base": str(base), "reward": {"rule": "exact"}, "max_steps": args.steps, "learning_rate": args.rate,
            "per_device_train_batch_size": 32, "num_mini_batches": 4, "max_completion_length": 48,
            "local_rollout_forward_batch_size": 128, "missing_eos_penalty": 0.5, "num_generations": 4,
            "kl_coef" if args.trainer == "ppo" else "beta": 0.02, "log_completions": False,
        }  # fmt: skip
        started = time.process_time()
        told = [r for r in load_step("train", args.trainer, given).train(_data(rows), out) if isinstance(r, Metric)]
        spent, after = time.process_time() - started, right(str(out), asked)
    found = {"trainer": args.trainer, "heldout_before": before, "heldout_after": after, "cpu_seconds": round(spent)}
    print(json.dumps(found | _course(told)))


def _data(rows: Sequence[dict[str, Any]]) -> datasets.Dataset:
    return datasets.Dataset.from_list(list(rows))


def _course(told: Sequence[Metric]) -> dict[str, Any]:
    """The means of the first and of the last tenth of the steps."""
    found = dict[str, Any]()
    names = ("objective/scores", "objective/kl", "completions/mean_length", "policy/entropy_avg")
    for name in (*names, "tokens_per_second", "time/rollout", "time/update"):
        series = [m.value for m in told if m.name == name]
        tenth = max(1, len(series) // 10)
        found[name] = [round(fmean(series[:tenth]), 3), round(fmean(series[-tenth:]), 3)]
    return found


if __name__ == "__main__":
    main()
