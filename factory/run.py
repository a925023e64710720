"""The factory's main flow: one stage of the spec after the other, from seeds to a trained and measured model.

Only this file and flow.py move data between the store and the steps. A stage whose options and input are the same as
when it was last done is skipped; one that was cut off is done again, and the journal answers what was asked before.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from random import Random
from typing import TypeVar

from factory import audit, flow, rewards, training
from factory.engines.budget import Budget
from factory.engines.checkpoints import fingerprint, resolve
from factory.engines.pool import Engines
from factory.errors import FactoryError, SpecError, StoreError
from factory.formats.layouts import layout
from factory.records import content_id
from factory.spec import (
    AuditStage,
    EvaluateStage,
    ExportStage,
    FilterStage,
    GenerateStage,
    ImportStage,
    Spec,
    Stage,
    TrainStage,
    datasets_missing,
    datasets_read,
    load_stage_step,
    stage_name,
    stage_title,
)
from factory.store import Store
from factory.thresholds import BY_HAND

S = TypeVar("S", GenerateStage, TrainStage, EvaluateStage)
_CHECKPOINTS, _REWARDS = ("base", "value_model", "ref_model"), ("reward", "gold")  # options that name weights


@dataclass
class Run:
    """One pass over a spec. `states` maps each dataset to a hash of all stages that touched it so far."""

    spec: Spec
    store: Store
    say: flow.Say
    id: str
    states: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.engines = Engines(self.spec.engines, self.spec.budget, self.store, self.id, self.resolve)

    def resolve(self, name: str) -> str:
        """A checkpoint: "@sft" is what stage sft made, a path starts at the spec's folder, other names stay."""
        if name.startswith("@"):
            return self.outputs.get(name[1:], name)
        beside = self.spec.folder / name
        return str(beside) if beside.is_dir() else name


def run(spec: Spec, store: Store, say: flow.Say) -> str:
    """Do all stages that are not done yet; returns the run's id. Raises FactoryError, after which a run can go on."""
    check_ahead(spec, store)
    with alone(spec, store):
        return _run(Run(spec, store, say, run_id()))


def _run(work: Run) -> str:
    work.engines.budget = spent_before(work.store, work.spec)
    log_event(work, "started")
    try:
        for stage in work.spec.stages:
            _advance(stage, work)
    except FactoryError as error:
        log_event(work, "failed", str(error))
        raise
    finally:
        work.engines.close()
    log_event(work, "finished")
    return work.id


def _advance(stage: Stage, work: Run) -> None:
    """Do one stage, unless the ledger says that it is done; a stage with failed requests stays open."""
    key, title, started, failed = _key(stage, work), stage_title(stage), time.monotonic(), work.engines.failures
    if (output := work.store.finished(key)) and _still_there(stage, output):
        work.say(f"  {title}: done before, skipped")
    else:
        output = _do(stage, work, key)
        work.say(f"  {title}: {output} ({time.monotonic() - started:.1f} s)")
        if missing := work.engines.failures - failed:
            work.say(f"    {missing:,} requests failed (FROM calls WHERE error <> ''): run again to ask them again")
        else:
            work.store.finish(key, _place(stage), _touched(stage), output, work.id)
    # every stage that fills a dataset counts for what reads it, not only the last
    work.states[_touched(stage)] = content_id(work.states.get(_touched(stage), ""), key)
    work.outputs[stage_name(stage)] = output


@contextmanager
def alone(spec: Spec, store: Store) -> Iterator[None]:
    """Keep a second run of the same spec away from the same store: both would ask, and pay for, the same requests.

    The operating system frees the lock with the process, however it ends. Raises StoreError where it is held.
    """
    import fcntl

    path = checkpoints_folder(store) / f"{content_id(spec.name)[:8]}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"another run of {spec.name!r} works on {store.path}: wait until it ends, or stop it"
            ) from None
        yield


def check_ahead(spec: Spec, store: Store) -> None:
    """What would fail only after hours: unfilled datasets, unknown audits and formats. Raises SpecError, DataError."""
    datasets_missing(spec, stored_datasets(store))
    for stage in spec.stages:
        if isinstance(stage, AuditStage):
            audit.chosen(stage.audit, spec.folder)
        if isinstance(stage, ExportStage):
            layout(stage.format, stage.kind)


def spent_before(store: Store, spec: Spec) -> Budget:
    """The budget with what earlier runs of the same spec have spent: a run that goes on does not begin at zero."""
    spent = Budget(spec.budget)
    if store.path.exists():
        sql = """SELECT count(*), coalesce(sum(prompt_tokens + completion_tokens), 0), coalesce(sum(usd), 0) FROM calls
                 WHERE run_id IN (SELECT run_id FROM run_events WHERE spec = ?)"""
        calls, tokens, usd = store.rows(sql, [spec.name])[0]
        spent.calls, spent.tokens, spent.usd = int(calls), int(tokens), Decimal(usd)
    return spent


def _do(stage: Stage, work: Run, key: str) -> str:
    """Do one stage; returns what it made, in words or (for training) as the checkpoint's folder."""
    match stage:
        case ImportStage():
            path = work.spec.folder / stage.path
            return flow.import_file(work.store, path, stage.into, stage.shape, stage.language, work.id)
        case GenerateStage():
            step, used = load_stage_step(_placed(stage, work), work.spec), replace(work.engines.used)
            rng = Random(f"{work.spec.seed} {stage.generate} {stage.into}")
            before = _filters_before(stage, stage.source, work)
            made = flow.made(work.store, step, stage.source, before, work.engines, rng)
            told = chain(made, flow.spent(stage.generate, used, work.engines.used))
            return flow.append(work.store, flow.noting_source(told, stage.source, work.say), stage.into, work.id)
        case FilterStage():
            step = load_stage_step(stage, work.spec)
            before = _filters_before(stage, stage.on, work)
            return flow.screen(work.store, step, stage_name(stage), stage.on, before, work.id)
        case AuditStage():
            return audit.run_audits(work.store, stage.audit, work.spec.folder, stage.options)
        case TrainStage():
            work.engines.close()  # the trainer needs the memory
            step = load_stage_step(_placed(stage, work), work.spec)
            out = checkpoints_folder(work.store) / f"{stage_name(stage)}-{key[:8]}"
            return training.train(work.store, step, stage_name(stage), stage.on, out, work.id, work.say, work.engines)
        case EvaluateStage():
            step = load_stage_step(_placed(stage, work), work.spec)
            return flow.append(work.store, step.evaluate(work.engines), stage_name(stage), work.id)
        case ExportStage():
            return flow.export(work.store, stage.export, stage.kind, stage.format, Path(stage.to))
    raise AssertionError(stage)


def _still_there(stage: Stage, output: str) -> bool:
    """A checkpoint or an export may be gone since; and audits cost little, so they are never taken on trust."""
    if isinstance(stage, TrainStage | ExportStage):
        return Path(output if isinstance(stage, TrainStage) else stage.to).exists()
    return not isinstance(stage, AuditStage)


def _place(stage: Stage) -> str:
    """What a stage is in the ledger: its name, and what it reads. The newest row of a place is what the store holds."""
    return " ".join([stage_title(stage), *datasets_read(stage)])


def _key(stage: Stage, work: Run) -> str:
    """What a stage's result depends on: options, files, engines' weights, and the stages that made its input."""
    spec, options = work.spec, getattr(stage, "options", {})
    engines = [(n, e.use, sorted(e.options.items())) for n, e in spec.engines.items() if _mentions(options, n)]
    models = [str(e.options.get("model", "")) for n, e in spec.engines.items() if _mentions(options, n)]
    models += [str(options.get(name, "")) for name in _CHECKPOINTS]
    weights = [_weights(work.resolve(m)) for m in models if m]
    weights += [_rewarded(k, v, work) for name in _REWARDS for k, v in rewards.named(options.get(name))]
    named = datasets_read(stage)
    others = {n: _by_hand(stage, n, work) for n in named}
    inputs: list[object] = [(n, work.states.get(n, ""), others[n]) for n in named]
    if not named and not isinstance(stage, ImportStage | EvaluateStage):
        inputs = [*sorted(work.states.items())]
    paths = [stage.path] if isinstance(stage, ImportStage) else [v for v in options.values() if isinstance(v, str)]
    files = [flow.content_hash(spec.folder / p) for p in paths]
    return content_id(spec.seed, stage.model_dump_json(), engines, weights, inputs, files)


def _by_hand(stage: Stage, dataset: str, work: Run) -> tuple[object, ...]:
    """What was imported, judged or re-thresholded by hand in a dataset, as far as it comes before the stage."""
    moved = work.store.verdicts_moved(dataset, _filters_before(stage, dataset, work), BY_HAND)
    others = work.store.imported(dataset), work.store.verdicts_by_others(dataset, _own(work.spec))
    return (*others, moved) if moved else others


def _weights(model: str) -> str:
    """The content of local weights; a hub's or a server's name (qwen3:8b) stands for itself."""
    try:
        return fingerprint(model) if Path(resolve(model)).is_dir() else model
    except SpecError:
        return model


def _mentions(options: object, name: str) -> bool:
    if isinstance(options, dict):
        return any(_mentions(v, name) for v in options.values())
    if isinstance(options, list | tuple):
        return any(_mentions(v, name) for v in options)
    return options == name


def _touched(stage: Stage) -> str:
    """The dataset whose content a stage changes; for the others, a name of the stage's own."""
    if isinstance(stage, ImportStage | GenerateStage):
        return stage.into
    return stage.on if isinstance(stage, FilterStage) else f"({stage_title(stage)})"


def _filters_before(stage: Stage, dataset: str, work: Run) -> list[str]:
    """The filters whose verdicts decide what a stage is given: the spec's own before it, and those of others.

    The spec's later filters do not count, so that a stage which is done again is given what it was given before.
    """
    earlier = islice(work.spec.stages, next(i for i, s in enumerate(work.spec.stages) if s is stage))
    own = [stage_name(s) for s in earlier if isinstance(s, FilterStage) and s.on == dataset]
    return own + [name for name, _ in work.store.verdicts_by_others(dataset, _own(work.spec))]


def _own(spec: Spec) -> list[str]:
    return [stage_name(s) for s in spec.stages] + ["import"]


def _placed(stage: S, work: Run) -> S:
    """The stage with the checkpoints that its options name in their places."""
    options = dict(stage.options)
    for name in _CHECKPOINTS:
        if options.get(name) and isinstance(stage, TrainStage | GenerateStage | EvaluateStage):
            options[name] = resolve(work.resolve(str(options[name])))
    for name in [n for n in _REWARDS if n in options]:
        options[name] = rewards.rewritten(options[name], lambda k, v: work.resolve(v) if k == "model" else v)
    return stage.model_copy(update={"options": options})


def _rewarded(kind: str, value: str, work: Run) -> str:
    """The content of what a reward names: a model's weights, a function's file."""
    if kind == "python":
        return flow.content_hash(work.spec.folder / value.rpartition(":")[0])
    return _weights(work.resolve(value)) if kind == "model" else ""


def run_id() -> str:
    """A new run's id: the time, for people, and some chance, for processes that start together."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{Random().getrandbits(24):06x}"


def checkpoints_folder(store: Store) -> Path:
    """Where a store's checkpoints go: beside it."""
    return store.path.parent / f"{store.path.name}.files"


def stored_datasets(store: Store) -> list[str]:
    """The datasets that a store holds, if there is one."""
    if not store.path.exists():
        return []
    return [d for (d,) in store.rows("SELECT DISTINCT dataset FROM prompts")]


def log_event(work: Run, event: str, detail: str = "") -> None:
    """Append to the run's history."""
    import json

    names = ("alignment-factory", "torch", "transformers", "duckdb", "datasets")
    row = {
        "run_id": work.id,
        "event": event,
        "spec": work.spec.name,
        "spec_hash": content_id(work.spec.model_dump_json(exclude={"folder"})),
        "versions": json.dumps({n: version(n) for n in names}),
        "detail": detail,
    }
    work.store.append_rows("run_events", [row])
