"""What mini-weak really answers: the faults that a judge and a critic must tell from right answers."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

from factory.engines.base import Request, Sampling
from factory.engines.transformers import Transformers
from factory.mini.desk import TASKS, Bank
from factory.mini.world import Task, draw
from factory.records import user


def drafts(weak: Path, count: int = 6000, samples: int = 2) -> Bank:
    """Some answers of a checkpoint to each of `count` tasks: the first at temperature 0, the others at 1."""
    rng, sampling = Random("drafts"), Sampling(temperature=1.0, max_tokens=60)
    tasks = {task.text: task for task in islice(_tasks(rng), count)}
    greedy = Sampling(temperature=0.0, max_tokens=60)
    requests = [
        Request(user(text), sampling if sample else greedy, seed=sample) for text in tasks for sample in range(samples)
    ]
    engine = Transformers(model=str(weak), device="cpu").open()
    said: dict[str, set[str]] = {}
    for reply in engine.generate(requests):
        if reply.text.strip():
            said.setdefault(reply.request.messages[0]["content"], set()).add(reply.text.strip())
    engine.close()
    return {text: (tasks[text], tuple(sorted(answers))) for text, answers in sorted(said.items())}


def _tasks(rng: Random) -> Iterator[Task]:
    while True:
        yield draw(rng.choice(TASKS), rng)
