"""What best-of-n and RSO do to a weak model's answers on the mini world, where the exact checker knows the truth.

mini-weak answers held-out tasks; rewards are the score of mini-strong as a judge, and the exact answer (a ceiling).
Prints a JSON line for each reward and method: the share of right answers among all samples and among those that were
kept, the raise with a bootstrap interval over the tasks, the judge's agreement with the checker, and the divergence
that the choice costs. The greedy answer of the same model stands beside them.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from factory.engines.base import Engine, Request, Sampling, in_order
from factory.engines.transformers import Transformers
from factory.mini.world import Task, heldout, judge
from factory.records import Completion, Judgement, Metric, Prompt, Record, Verdict, user
from factory.stats import bootstrap, wilson
from generators.best_of import BestOf

TEMPLATES = Path(__file__).parent.parent / "specs/templates/mini"
REWARDS: Mapping[str, object] = {
    "judge": {"judge": "judge", "aspects": ["helpfulness"], "reference": True, "max_tokens": 320},
    "exact": {"rule": "exact"},
}
METHODS: Mapping[str, dict[str, object]] = {
    "best of 8": {"method": "best", "n": 8},
    "rso 8 of 64": {"method": "rso", "n": 64, "beta": 0.5, "keep": 8},
}


def mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def raised(gains: Sequence[float]) -> list[float]:
    """The mean gain in points, with its bootstrap interval."""
    spread = bootstrap(lambda places: mean([gains[i] for i in places]), len(gains))
    return [round(100 * x, 1) for x in (mean(gains), spread.low, spread.high)]


def told(tasks: Sequence[Task], records: Sequence[Record]) -> dict[str, object]:
    by_id = {Prompt(user(t.text)).id: t for t in tasks}
    right = {r.id: float(judge(by_id[r.prompt_id], r.text) == "right") for r in records if isinstance(r, Completion)}
    keep = {r.record_id: r.keep for r in records if isinstance(r, Verdict)}
    groups: dict[str, list[str]] = {}
    for record in records:
        if isinstance(record, Completion) and record.id in keep:
            groups.setdefault(record.prompt_id, []).append(record.id)
    sampled = [mean([right[c] for c in group]) for group in groups.values()]
    kept = [mean([right[c] for c in group if keep[c]]) for group in groups.values()]
    scores = [(r.score, right[r.completion_id]) for r in records if isinstance(r, Judgement) and r.score is not None]
    agreed = [float((score >= 3) == bool(mark)) for score, mark in scores]
    measured = {m.name.split("/")[-1]: round(m.value, 3) for m in records if isinstance(m, Metric)}
    return {
        "sampled_right": round(100 * mean(sampled), 1),
        "kept_right": round(100 * mean(kept), 1),
        "raise": raised([k - s for s, k in zip(sampled, kept, strict=True)]),
        "judge_agrees_with_truth": round(100 * mean(agreed), 1),
        "conformance": measured,
    }


def greedy(tasks: Sequence[Task], engine: Engine) -> list[float]:
    sampling = Sampling(temperature=0.0, max_tokens=64)
    replies = in_order(engine, (Request(user(t.text), sampling) for t in tasks))
    hits = sum(judge(t, r.text) == "right" for t, r in zip(tasks, replies, strict=True))
    return [round(100 * x, 1) for x in (hits / len(tasks), *wilson(hits, len(tasks)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=400, help="held-out tasks")
    parser.add_argument("--strong", default="mini-strong", help="the checkpoint that judges")
    args = parser.parse_args()
    tasks = heldout(args.tasks, seed=6)
    prompts = [Prompt(user(t.text), language=t.language, meta={"answer": t.answer}) for t in tasks]
    engines = {
        name: Transformers(model=model, threads=1).open()
        for name, model in (("weak", "mini-weak"), ("judge", args.strong))
    }
    print(json.dumps({"tasks": len(tasks), "greedy_right": greedy(tasks, engines["weak"])}), flush=True)
    sampling = {"temperature": 0.7, "top_k": 40, "max_tokens": 64}
    for reward, notation in REWARDS.items():
        for method, options in METHODS.items():
            step = BestOf(engine="weak", reward=notation, templates=TEMPLATES, sampling=sampling, **options)  # type: ignore[arg-type]
            started = time.process_time()
            records = list(step.generate(prompts, engines, Random(0)))
            row = {"reward": reward, "method": method, "cpu_s": round(time.process_time() - started)}
            print(json.dumps(row | told(tasks, records)), flush=True)


if __name__ == "__main__":
    main()
