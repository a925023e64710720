"""How often `process_steps` finds the first wrong step, on the mini world, whose checker knows the truth.

A weak model writes solutions of sums and stories at temperature 1, held-out tasks and others; a step is right if its
arithmetic holds and it is the step that the exact solution has there. The strong model rolls out from each step, judges
it, or both. Prints one JSON line for each way to a label: the share of faulty solutions whose first wrong step was
found, and the share of labels that are right, with Wilson's intervals (95 %); the same for each family; what the
generator says of itself; and CPU seconds.
"""

import argparse
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from factory.engines.base import Engine, Sampling
from factory.engines.transformers import Transformers
from factory.mini.families import ENGLISH
from factory.mini.world import Split, Task, draw
from factory.records import Answered, Completion, Metric, Prompt, Record, Step, user
from factory.stats import wilson
from generators.process_steps import ProcessSteps

TEMPLATES = Path(__file__).parent.parent / "specs" / "templates" / "mini"
FAMILIES = ("add_steps", "story")
SPLITS: tuple[Split, ...] = ("heldout", "train")
_SUM = re.compile(r"(\d+) ([+-]) (\d+)(?: \+ (1))? = (\d+)")


def tasks(number: int, seed: int) -> dict[str, Task]:
    """`number` distinct tasks of each family and split, by their text."""
    found: dict[str, Task] = {}
    for family in (f for f in ENGLISH if f.name in FAMILIES):
        for split in SPLITS:
            rng, some = Random(f"process steps {seed} {family.name} {split}"), dict[str, Task]()
            while len(some) < number:
                task = draw(family, rng, split)
                some[task.text] = task
            found |= some
    return found


def holds(line: str) -> bool:
    """Whether a step's arithmetic is right; a line without any has none that could be wrong."""
    found = _SUM.fullmatch(line)
    if found is None:
        return True
    one, sign, two, carry, result = found.groups()
    return int(one) + (int(two) if sign == "+" else -int(two)) + int(carry or 0) == int(result)


def truth(task: Task, steps: Sequence[Step]) -> list[bool]:
    """Whether each step is right."""
    exact = task.answer.split("\n")
    return [holds(s.text) and exact[s.index : s.index + 1] == [s.text] for s in steps]


def measured(records: Sequence[Record], by_text: Mapping[str, Task], families: Sequence[str]) -> dict[str, object]:
    """The figures of one way to a label, for solutions of tasks of the given families."""
    prompts = {r.id: by_text[r.text] for r in records if isinstance(r, Prompt)}
    steps: dict[str, list[Step]] = {}
    for record in records:
        if isinstance(record, Step):
            steps.setdefault(record.completion_id, []).append(record)
    faulty = found = labelled = right = asked = 0
    for answer in (r for r in records if isinstance(r, Completion) and r.id in steps):
        task = prompts[answer.prompt_id]
        if task.family not in families:
            continue
        true, labels = truth(task, steps[answer.id]), [s.label for s in steps[answer.id]]
        end = true.index(False) if False in true else len(true) - 1
        asked += end + 1
        pairs = [(label, t) for label, t in zip(labels, true, strict=True) if label is not None]
        labelled, right = labelled + len(pairs), right + sum(label == t for label, t in pairs)
        if False in true:
            faulty += 1
            found += 0 in labels and labels.index(0) == true.index(False)
    return {
        "first_wrong_step_found": _share(found, faulty),
        "label_accuracy": _share(right, labelled),
        "labelled_of_steps_up_to_the_first_wrong": round(min(1.0, labelled / max(1, asked)), 4),
    }


def _share(hits: int, number: int) -> dict[str, object]:
    low, high = wilson(hits, number)
    return {"share": round(hits / max(1, number), 4), "n": number, "low": round(low, 4), "high": round(high, 4)}


def told(records: Sequence[Record], by_text: Mapping[str, Task]) -> Iterator[tuple[str, object]]:
    """What is printed of a run beside its time."""
    yield from measured(records, by_text, FAMILIES).items()
    for family in FAMILIES:
        yield family, measured(records, by_text, (family,))
    for record in records:
        if isinstance(record, Metric) and record.name.startswith("conformance/"):
            yield record.name.split("/")[-1], round(record.value, 4)


def main() -> None:
    """Write the solutions once, then label them in every way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=60, help="tasks of each family and split")
    parser.add_argument("--solutions", type=int, default=4, help="solutions of each task")
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--threshold", type=float, default=0.0)
    parser.add_argument("--writer", default="mini-weak")
    parser.add_argument("--strong", default="mini-strong")
    parser.add_argument("--labels", nargs="+", default=["rollouts", "binary", "judge", "consensus"])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    by_text = tasks(given.tasks, given.seed)
    prompts = [Prompt(user(t.text), meta={"answer": t.answer}, language="en") for t in by_text.values()]
    engines: dict[str, Engine] = {
        "writer": Transformers(model=given.writer, threads=1).open(),
        "strong": Transformers(model=given.strong, threads=1).open(),
    }
    common: dict[str, Any] = {
        "rollout": "strong",
        "judge": "strong",
        "rollouts": given.rollouts,
        "threshold": given.threshold,
        "templates": TEMPLATES,
        "sampling": Sampling(temperature=1.0, max_tokens=48),
        "rollout_sampling": Sampling(temperature=0.7, max_tokens=48),
        "judge_sampling": Sampling(temperature=0.0, max_tokens=200),
    }
    written: dict[str, list[Completion]] = {}
    for way in given.labels:
        options = {"search": "binary"} if way == "binary" else {"labels": way}
        step, started = ProcessSteps(**common, **options, **_writer(written, given.solutions)), time.process_time()
        records = list(step.review((Answered(p, tuple(written.get(p.id, ()))) for p in prompts), engines, Random(1)))
        if not written:
            for record in records:
                if isinstance(record, Completion):
                    written.setdefault(record.prompt_id, []).append(record)
        seconds = round(time.process_time() - started, 1)
        print(json.dumps({"labels": way, "cpu_seconds": seconds, **dict(told(records, by_text))}), flush=True)


def _writer(written: Mapping[str, object], number: int) -> dict[str, Any]:
    return {} if written else {"engine": "writer", "n": number}


if __name__ == "__main__":
    main()
