"""Asking the mini world's tasks of a model, marking the answers, and the rows of both: what its evaluations share."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import NamedTuple

from factory.engines.base import Engine, Reply, Request, Sampling, in_order
from factory.mini.world import Outcome, Task, judge
from factory.records import Completion, Judgement, Prompt, Record, user


class Marked(NamedTuple):
    """A task, a model's reply to it, and the exact checker's mark."""

    task: Task
    reply: Reply
    outcome: Outcome


def ask(engine: Engine, tasks: Sequence[Task], sampling: Sampling) -> Iterator[Marked]:
    """All tasks, in their order."""
    replies = in_order(engine, (Request(user(t.text), sampling) for t in tasks))
    return (Marked(t, r, judge(t, r.text)) for t, r in zip(tasks, replies, strict=True))


def rows(mark: Marked, engine: Engine, name: str) -> Iterator[Record]:
    """The prompt, the answer and the mark. `name` is the engine's in the spec."""
    task, reply = mark.task, mark.reply
    meta = {"family": task.family, "kind": task.kind, "answer": task.answer}
    prompt = Prompt(user(task.text), "mini", (), task.language, meta)
    sampling = asdict(reply.request.sampling)
    completion = Completion(
        prompt.id, reply.text.strip(), engine.model, name, sampling, reply.request.seed, reply.finish_reason,
        reply.completion_tokens, call_key=reply.key,
    )  # fmt: skip
    yield prompt
    yield completion
    score = float(mark.outcome == "right")
    yield Judgement(prompt.id, completion.id, "mini", "rule", aspect="exact", score=score, rationale=mark.outcome)
