"""Whether labels of steps teach a reward more than labels of outcomes, on the mini world's sums and stories.

Runs specs/process_reward.yaml once for each seed (other draws, other labels, other orders of all rows), and marks by
the world's checker, on held-out tasks: which of the start's samples each reward model takes as the best of n, how
often it puts a right answer above a wrong one, and what the two policies answer. An answer is `final` if its last
number is right, `whole` if every step is right too. Prints a JSON line for each seed, and a table: means over the seeds
with 95 % intervals (Student's t), and the paired difference of process and outcome. A store that is kept is not made
again.

    python benchmarks/process_reward.py --seeds 7 8 9 [--keep DIR]
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from statistics import fmean, stdev

ROOT = Path(__file__).parent.parent
sys.path[0] = str(ROOT)  # else trainers.py beside this file would be the package `trainers`

import torch  # noqa: E402

from factory.answers import final_answer, same_answer  # noqa: E402
from factory.engines.base import Request, Sampling, in_order  # noqa: E402
from factory.engines.transformers import Transformers  # noqa: E402
from factory.mini.families import ENGLISH  # noqa: E402
from factory.mini.world import Task, draw, judge  # noqa: E402
from factory.records import user  # noqa: E402
from factory.rewards import Model, Sample  # noqa: E402
from factory.run import run  # noqa: E402
from factory.scorers import opened  # noqa: E402
from factory.spec import TrainStage, load_spec  # noqa: E402
from factory.store import Store  # noqa: E402

SPEC = ROOT / "specs" / "process_reward.yaml"
FAMILIES = ("add_steps", "story")
START = "mini-weak"
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t for so many seeds

Answers = Sequence[Sequence[str]]  # the samples of each task


def seeded(seed: int, store: Store) -> float:
    """Run the spec with a seed, also for what trainers draw; returns the CPU seconds that it took now."""
    spec, since = load_spec(SPEC), time.process_time()
    stages = [
        s.model_copy(update={"options": {**s.options, "seed": seed}}) if isinstance(s, TrainStage) else s
        for s in spec.stages
    ]
    run(spec.model_copy(update={"seed": seed, "stages": tuple(stages)}), store, lambda line: print(line, flush=True))
    return time.process_time() - since


def tasks(number: int) -> list[Task]:
    """Distinct held-out tasks, the families in turn; the same for all seeds."""
    rng, found = Random("process reward"), dict[str, Task]()
    families = [f for f in ENGLISH if f.name in FAMILIES]
    while len(found) < number:
        task = draw(families[len(found) % len(families)], rng, "heldout")
        found.setdefault(task.text, task)
    return list(found.values())


def sampled(model: str, asked: Sequence[Task], n: int, seed: int, temperature: float = 1.0) -> list[list[str]]:
    """n answers to each task."""
    engine, sampling = Transformers(model=model, threads=1).open(), Sampling(temperature=temperature, max_tokens=48)
    requests = [Request(user(t.text), sampling, seed * 100_000 + i) for t in asked for i in range(n)]
    texts = [reply.text.strip() for reply in in_order(engine, requests)]
    engine.close()
    return [texts[i * n : (i + 1) * n] for i in range(len(asked))]


def final(task: Task, answer: str) -> bool:
    """Whether the last number is right, however it came about."""
    said = final_answer(answer)
    return said is not None and same_answer(said, final_answer(task.answer) or "")


def whole(task: Task, answer: str) -> bool:
    """Whether every step is right."""
    return judge(task, answer) == "right"


def share(hits: Sequence[bool]) -> float:
    """In percent."""
    return 100 * sum(hits) / max(1, len(hits))


def marks(name: str, asked: Sequence[Task], answers: Answers) -> dict[str, float]:
    """Shares of all answers that are right, and of whole ones by family."""
    flat = [(task, answer) for task, some in zip(asked, answers, strict=True) for answer in some]
    found = {
        f"{name} final": share([final(*one) for one in flat]),
        f"{name} whole": share([whole(*one) for one in flat]),
    }
    for family in FAMILIES:
        found[f"{name} whole {family}"] = share([whole(*one) for one in flat if one[0].family == family])
    return found


def chosen(name: str, reward: Path, asked: Sequence[Task], answers: Answers) -> dict[str, float]:
    """The best of n by a reward model, and its pairs of a right and a wrong final answer that are told apart."""
    score, best, apart = opened(Model(model=str(reward))), list[list[str]](), list[bool]()
    for task, some in zip(asked, answers, strict=True):
        texts = list(dict.fromkeys(some))
        scores = {
            t: s or 0.0 for t, s in zip(texts, score([Sample(user(task.text), t, {}) for t in texts]), strict=True)
        }
        best.append([max(texts, key=lambda t: scores[t])])
        right = {t: final(task, t) for t in texts}
        apart += [scores[a] > scores[b] for a in texts for b in texts if right[a] > right[b]]
    return marks(f"best of {len(answers[0])} by {name}", asked, best) | {f"pairs by {name}": share(apart)}


def product(reward: Path, folder: Path) -> Path:
    """The same process reward model, whose steps' scores are multiplied."""
    copy = folder / f"{reward.name}-product"
    shutil.copytree(reward, copy, ignore=lambda _, names: [n for n in names if Path(n).suffix == ".pt"])
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"reduce_steps": "product"}))
    return copy


def measured(seed: int, store: Store, asked: Sequence[Task], n: int) -> dict[str, float]:
    """All figures of a run."""
    made = {path.name.rpartition("-")[0]: path for path in store.path.parent.glob(f"{store.path.name}.files/*-*")}
    # 1. One set of samples of the start, and what each reward takes of them.
    answers = sampled(START, asked, n, seed)
    oracle = [[next((a for a in some if whole(task, a)), some[0])] for task, some in zip(asked, answers, strict=True)]
    found = marks("start", asked, answers) | marks(f"best of {n} by the checker", asked, oracle)
    with tempfile.TemporaryDirectory() as folder:
        rewards = {"outcome": made["outcome"], "process": made["process"]}
        rewards["process (product)"] = product(made["process"], Path(folder))
        for name, reward in rewards.items():
            found |= chosen(name, reward, asked, answers)
    # 2. What the policies answer, and how far they moved.
    for name in ("outcome", "process"):
        found |= marks(f"GRPO by {name}", asked, sampled(str(made[f"by_{name}"]), asked, 4, seed))
        sql = """SELECT avg(value) FROM (SELECT value FROM metrics WHERE stage = ? AND name = 'objective/kl'
                                         ORDER BY step DESC LIMIT 5)"""
        found[f"KL by {name}"] = float(store.rows(sql, [f"by_{name}"])[0][0])
    return found


def interval(values: Sequence[float]) -> str:
    """The mean with its 95 % interval."""
    half = T95.get(len(values), 1.96) * stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{fmean(values):6.1f} [{fmean(values) - half:.1f}, {fmean(values) + half:.1f}]"


def table(runs: Sequence[Mapping[str, float]]) -> list[str]:
    """A line for each figure, and the paired differences."""
    lines = [f"{name:44s} {interval([one[name] for one in runs])}" for name in runs[0]]
    for name in runs[0]:
        if "outcome" in name:
            other = name.replace("outcome", "process")
            lines.append(f"process - outcome: {other:26s} {interval([one[other] - one[name] for one in runs])}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8, 9])
    parser.add_argument("--tasks", type=int, default=300, help="held-out tasks")
    parser.add_argument("--n", type=int, default=8, help="samples of which a reward takes the best")
    parser.add_argument("--keep", type=Path, help="a folder for the stores")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        place, asked, runs = given.keep or Path(folder), tasks(given.tasks), list[dict[str, float]]()
        place.mkdir(parents=True, exist_ok=True)
        for seed in given.seeds:
            store = Store(place / f"process_reward-{seed}.duckdb")
            seconds = seeded(seed, store)
            runs.append(measured(seed, store, asked, given.n))
            told = {name: round(value, 2) for name, value in runs[-1].items()}
            print(json.dumps({"seed": seed, "cpu_seconds": round(seconds), **told}), flush=True)
    print("\n".join(table(runs)))


if __name__ == "__main__":
    main()
