"""The trainer's own sampler beside vLLM in the trainer's process: answers a CPU second, in turns in one run.

The same policy, prompts, heat and most tokens; float32, or bfloat16 on both sides; one thread. vLLM's seconds hold the
handing over of the weights, which comes with each batch, but not its start, which is told apart. Only a machine with a
GPU shows what vLLM is for.

    python benchmarks/vllm_rollouts.py [--model mini-strong] [--prompts 32] [--answers 4] [--limit 48] [--rounds 3]
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import datasets
import torch

ROOT = Path(__file__).parent.parent
sys.path[0] = str(ROOT)  # else the file trainers.py beside this one would be the package `trainers`

from factory.engines.checkpoints import resolve  # noqa: E402
from trainers._models import load  # noqa: E402
from trainers._policy_models import Pass, logps_and_entropies  # noqa: E402
from trainers._policy_rows import prompts  # noqa: E402
from trainers._rollouts import Drawing, Rollout, drawn  # noqa: E402
from trainers._vllm_rollouts import VllmSampler  # noqa: E402

Draw = Callable[[], list[Rollout]]


def tasks(count: int) -> datasets.Dataset:
    rows = map(json.loads, (ROOT / "specs/seeds/mini_tasks.jsonl").read_text(encoding="utf-8").splitlines()[:count])
    return datasets.Dataset.from_list([{"prompt": f"{r['instruction']}\n{r['input']}".strip()} for r in rows])


def timed(draw: Draw) -> tuple[float, list[Rollout]]:
    started = time.process_time()
    found = draw()
    return time.process_time() - started, found


def compared(model: str, count: int, answers: int, how: Drawing, rounds: int) -> dict[str, float]:
    """Medians of a side's answers and tokens a CPU second, and how far vLLM is from the trainer's own pass."""
    policy = load(resolve(model))
    asked = prompts(tasks(count), policy.tokenizer, 900, "ppo").asked
    wanted = [(a, list(range(i * answers, (i + 1) * answers))) for i, a in enumerate(asked)]
    vllm = VllmSampler(resolve(model), policy, how, max(len(a.ids) for a in asked), 0.1)
    sides: dict[str, Draw] = {"own": lambda: drawn(policy, wanted, how), "vllm": lambda: vllm.drawn(wanted)}
    told = {"vllm start s": timed(lambda: [vllm._started(), []][1])[0]}  # type: ignore[return-value]
    for draw in sides.values():
        draw()
    seconds, tokens = {name: list[float]() for name in sides}, dict[str, int]()
    for _ in range(rounds):
        for name, draw in sides.items():
            spent, found = timed(draw)
            seconds[name].append(spent)
            tokens[name] = sum(len(r.ids) for r in found)
    told["vllm sync s"] = timed(lambda: [vllm.sync(), []][1])[0]  # type: ignore[func-returns-value, return-value]
    old = logps_and_entropies(policy, found, Pass(64, 0, how.half, how.temperature))
    gaps = [abs(r.logps - o).mean() for r, (o, _) in zip(found, old, strict=True)]
    told["nats apart"] = float(sum(gaps) / len(gaps))
    vllm.close()
    for name in sides:
        told |= {f"{name} answers/s": len(wanted) * answers / median(seconds[name]),
                 f"{name} tokens/s": tokens[name] / median(seconds[name]),
                 f"{name} tokens/answer": tokens[name] / (len(wanted) * answers)}  # fmt: skip
    return told


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini-strong")
    for name, default in (("prompts", 32), ("answers", 4), ("limit", 48), ("rows", 64), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for half in (False, True):
        how = Drawing(1.0, given.limit, given.rows, half)
        told = compared(given.model, given.prompts, given.answers, how, given.rounds)
        print(
            "bfloat16" if half else "float32", json.dumps({k: float(f"{v:.4g}") for k, v in told.items()}), flush=True
        )


if __name__ == "__main__":
    main()
