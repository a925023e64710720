"""Training with rows of the store: from a query to a checkpoint with its card, alone or in several processes."""

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from random import Random
from statistics import fmean
from typing import TYPE_CHECKING, Any

from factory.diagnosis import diagnose
from factory.engines.base import Engine
from factory.flow import Say, append, content_hash
from factory.model_card import ModelCard, options_of, write_card
from factory.records import Answered, Completion, Judgement, Metric, Prompt, Record, Verdict
from factory.rewards import Judge
from factory.sinks import Board, board
from factory.store import Store
from factory.store_memory import StoreMemory
from factory.training_rows import first, rows

if TYPE_CHECKING:
    from factory.steps import Ask, Trainer

_TOLD = {"loss", "eval_loss", "objective/scores", "objective/kl", "objective/gold"}


def train(
    store: Store, step: "Trainer", name: str, on: str, out: Path, run_id: str = "", say: Say = lambda line: None,
    engines: Mapping[str, Engine] | None = None,
) -> str:  # fmt: skip
    """Train on a dataset's view or a query's result; returns the checkpoint's folder. Metrics are stored.

    Of several processes (torchrun, accelerate launch) the first reads the store, writes to it, and writes the card.
    """
    from factory.steps import Asking, Recalling

    with rows(store, on, step.view, out, name, say) as (data, path, source):
        records: Iterator[Record]
        since = time.monotonic()
        if isinstance(step, Asking):
            records = step.train_asking(data, out, asking(engines) if engines else None)
        elif isinstance(step, Recalling):
            records = step.train_with(data, out, StoreMemory(store, name))
        else:
            records = step.train(data, out)
        seen = list[Metric | Verdict]()
        if not first():
            deque(records, maxlen=0)
            return str(out)
        with board(getattr(step, "report_to", ()), out, run_id, options_of(step)) as shown_on:
            noted = chain(_told(records, say), _cost(len(data), since))
            append(store, _seen(noted, seen, shown_on), name, run_id)
        measured = [r for r in seen if isinstance(r, Metric)]
        metrics, diagnosis = {m.name: m.value for m in measured}, diagnose(measured)
        for said in diagnosis:
            say(f"    {said}")
        left_out = Counter(r.reason for r in seen if isinstance(r, Verdict))
        rows_hash = content_hash(path)
        write_card(
            ModelCard(
                name, options_of(step), source.shown, source.name, len(data), rows_hash, left_out, metrics, diagnosis
            ),
            out,
        )
    return str(out)


def asking(engines: Mapping[str, Engine]) -> "Ask":
    """What asks a judge for its scores of answers, each on its own; None where it gave none that could be read."""
    from factory.steps import load_step

    def ask(part: Judge, rows: Sequence[tuple[Prompt, Completion]]) -> list[float | None]:
        sampling = {"temperature": 0.0, "max_tokens": part.max_tokens}
        asked = {"reference": part.reference, "structured": part.structured}
        options = {"how": "pointwise", "aspects": part.aspects, "judge_sampling": sampling, **asked}
        step, found = load_step("generate", "judge", {"judge": part.judge, **options}), dict[str, dict[str, float]]()
        answered = (Answered(prompt, (completion,)) for prompt, completion in rows)
        for record in step.review(answered, engines, Random(0)):
            if isinstance(record, Judgement) and record.score is not None:
                found.setdefault(record.completion_id, {})[record.aspect] = record.score
        scores = [found.get(completion.id, {}) for _, completion in rows]
        return [fmean(s.values()) if len(s) == len(part.aspects) else None for s in scores]

    return ask


def preview(
    store: Store, step: "Trainer", name: str, on: str, out: Path, say: Say = lambda line: None
) -> list[list[tuple[str, bool]]]:
    """The first batch as a trainer would learn it: texts in pieces, each with whether it is learned."""
    from factory.steps import Showing

    with rows(store, on, step.view, out, name, say) as (data, _, _):
        size = int(getattr(step, "per_device_train_batch_size", 8))
        if not isinstance(step, Showing):  # it makes its own answers: only the prompts can be shown
            return [[(_asked(row), False)] for row in data.select(range(min(len(data), size)))]
        return list(islice(step.preview(data.select(range(min(len(data), 4 * size)))), size))


def _asked(row: Mapping[str, Any]) -> str:
    """The prompt of a row as text."""
    said = row.get("messages") or row.get("prompt") or ""
    return said if isinstance(said, str) else "\n".join(f"{m['role']}: {m['content']}" for m in said)


def _cost(rows: int, since: float) -> Iterator[Metric]:
    """The rows that were given, and the seconds that this process took; an earlier one's, if it goes on, are not in."""
    yield Metric("train_samples", float(rows))
    yield Metric("train_runtime", time.monotonic() - since)


def _seen(records: Iterator[Record], seen: list[Metric | Verdict], shown_on: Board) -> Iterator[Record]:
    """Pass records on, note them, and show the metrics."""
    for record in records:
        if isinstance(record, Metric | Verdict):
            seen.append(record)
        if isinstance(record, Metric):
            shown_on.note(record)
        yield record


def _told(records: Iterator[Record], say: Say) -> Iterator[Record]:
    """Pass records on, and tell the losses and how many rows were left out on the way."""
    skipped = Counter[str]()
    for record in records:
        if isinstance(record, Verdict):
            skipped[record.reason] += 1
        elif isinstance(record, Metric) and record.name in _TOLD:
            say(f"    step {record.step}: {record.name} {record.value:.4f}")
        elif isinstance(record, Metric) and "says" in record.meta:  # a guard's alarm
            say(f"    step {record.step}: {record.meta['says']} ({record.meta['action']})")
        yield record
    if skipped:
        say(f"    rows left out (FROM verdicts): {', '.join(f'{n:,} {reason}' for reason, n in skipped.items())}")
