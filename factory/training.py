"""Training with rows of the store: from a query to a checkpoint with its card, alone or in several processes."""

import os
import shutil
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from random import Random
from statistics import fmean
from typing import TYPE_CHECKING, Any

from factory.diagnosis import diagnose
from factory.engines.base import Engine
from factory.errors import DataError
from factory.flow import Say, append, content_hash, query
from factory.model_card import ModelCard, options_of, write_card
from factory.records import Answered, Completion, Judgement, Metric, Prompt, Record, Verdict
from factory.rewards import Judge
from factory.sinks import Board, board
from factory.store import Store
from factory.store_memory import StoreMemory

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

    sql, params = query(on, step.view)
    with _rows(store, sql, params, out, f"train {name}: no rows in {on!r}") as (data, path):
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
        shown = sql if not params else sql.replace("?", f"'{params[0]}'")
        rows_hash = content_hash(path)
        write_card(
            ModelCard(
                name, options_of(step), shown, store.path.name, len(data), rows_hash, left_out, metrics, diagnosis
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


def preview(store: Store, step: "Trainer", name: str, on: str, out: Path) -> list[list[tuple[str, bool]]]:
    """The first batch as a trainer would learn it: texts in pieces, each with whether it is learned."""
    from factory.steps import Showing

    if not isinstance(step, Showing):
        raise DataError(f"train {name}: it makes its own texts, so there is nothing to show before it runs")
    sql, params = query(on, step.view)
    with _rows(store, sql, params, out, f"train {name}: no rows in {on!r}") as (data, _):
        size = int(getattr(step, "per_device_train_batch_size", 8))
        return list(islice(step.preview(data.select(range(min(len(data), 4 * size)))), size))


def first() -> bool:
    """Whether this process is the first of those that train together: it alone reads and writes the store."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _rows(store: Store, sql: str, params: list[str], out: Path, missing: str) -> Iterator[tuple[Any, Path]]:
    """The rows of a query as a dataset, in a file beside `out` that goes when all is done."""
    import datasets

    work = out.parent / f".{out.name}.work"
    launch = os.environ.get("MASTER_PORT", "")  # what the processes of one launch have in common
    path = work / f"rows{launch}.parquet"
    if first():
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        if not store.snapshot(sql, work / "rows.partial", params):
            raise DataError(f"{missing}; look at `SELECT * FROM yield` and `FROM drops`")
        (work / "rows.partial").rename(path)
    while not path.exists():
        time.sleep(0.05)
    datasets.disable_progress_bars()
    cache = work / os.environ.get("RANK", "0")
    yield datasets.Dataset.from_parquet(str(path), cache_dir=str(cache)), path
    if first():
        shutil.rmtree(work)  # the store can give the rows again


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
