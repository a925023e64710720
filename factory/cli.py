"""The command line. Data goes to stdout, progress and errors to stderr; every heavy import waits for its command.

Exit codes: 0 ok, 1 a check failed, 2 the user's input is wrong, 3 an engine or the store failed.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from factory.errors import FactoryError, SpecError

if TYPE_CHECKING:
    from factory.store import Store

_STORE = click.option("--store", "store_path", default="factory.duckdb", show_default=True, help="The store's file.")
_WITH = click.option(
    "--with", "options", multiple=True, metavar="NAME=VALUE", help="An option of the step; repeatable."
)
_ENGINE = click.option(
    "--engine",
    "engines",
    multiple=True,
    metavar="NAME=USE:MODEL",
    help="An engine, e.g. strong=transformers:mini-strong.",
)


class _Friendly(click.Group):
    """A group whose commands tell errors in one line, with the right exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        # Threads that spin while they wait make a busy machine several times slower; read when torch is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        try:
            return super().main(*args, **kwargs | {"standalone_mode": False})
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except FactoryError as error:
            click.secho(f"error: {error}", fg="red", err=True)
            sys.exit(error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            click.echo("stopped; run the same command again to go on", err=True)
            sys.exit(130)
        except OSError as error:
            click.secho(f"error: {error.filename or ''}: {error.strerror or error}", fg="red", err=True)
            sys.exit(3)


@click.group(cls=_Friendly, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="alignment-factory")
def main() -> None:
    """Generate, audit with SQL, and train on synthetic alignment data.

    Begin with `factory run specs/mini.yaml`: the whole line on a small embedded world, in minutes on a CPU.
    """


@main.command()
@click.argument("spec", type=click.Path(path_type=Path))
@_STORE
def run(spec: Path, store_path: str) -> None:
    """Run a SPEC: stages that are done are skipped, one that was cut off goes on."""
    from factory import report
    from factory.run import run as run_spec
    from factory.spec import load_spec

    loaded, store = load_spec(_packaged(spec)), _store(store_path)
    click.echo(f"{loaded.name} -> {store.path}", err=True)
    run_id = run_spec(loaded, store, lambda line: click.echo(line, err=True))
    report.results(store, run_id, loaded)


@main.command()
@click.argument("spec", type=click.Path(path_type=Path))
@_STORE
def check(spec: Path, store_path: str) -> None:
    """Check a SPEC and estimate its engine calls. Spends nothing."""
    from factory import report
    from factory.run import check_ahead
    from factory.spec import load_spec

    loaded = load_spec(_packaged(spec))
    check_ahead(loaded, _store(store_path))
    report.plan(loaded, _store(store_path))


@main.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def steps(name: str | None, as_json: bool) -> None:
    """List every step, or the options of step NAME."""
    from factory import report

    report.steps(name, as_json)


@main.command(name="import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--into", required=True, help="The dataset to fill.")
@click.option(
    "--shape", default="auto", show_default=True, help="alpaca, sharegpt, trl, hh, ...; auto looks at the rows."
)
@click.option("--language", default="", help="en, zh, ...; by default told from the script.")
@_STORE
def import_(file: Path, into: str, shape: str, language: str, store_path: str) -> None:
    """Read a FILE (jsonl, json, csv, parquet, also .gz) into a dataset."""
    from factory import flow

    store = _store(store_path)
    told = flow.import_file(store, file, into, shape, language)
    store.finish(flow.content_hash(file), "by hand", into, told)
    click.echo(f"{into}: {told}", err=True)


@main.command()
@click.argument("step")
@click.option("--from", "source", required=True, help="The dataset to read prompts from.")
@click.option("--into", required=True, help="The dataset to fill.")
@click.option("--seed", default=0, show_default=True, help="Seed of all random draws.")
@_ENGINE
@_WITH
@_STORE
def generate(
    step: str, source: str, into: str, seed: int, engines: Sequence[str], options: Sequence[str], store_path: str
) -> None:
    """Run one generator STEP."""
    stage = {"generate": step, "from": source, "into": into, "with": _options(options)}
    _run_stage(stage, engines, seed, store_path)


@main.command(name="filter")
@click.argument("step")
@click.option("--on", required=True, help="The dataset to judge.")
@_WITH
@_STORE
def filter_(step: str, on: str, options: Sequence[str], store_path: str) -> None:
    """Run one filter STEP. Nothing is deleted: it appends verdicts."""
    _run_stage({"filter": step, "on": on, "with": _options(options)}, (), 0, store_path)


@main.command()
@click.argument("names", nargs=-1)
@_WITH
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_STORE
def audit(names: Sequence[str], options: Sequence[str], as_json: bool, store_path: str) -> None:
    """Run audits by NAME or file (all packaged ones by default). Exit code 1 if one finds violations."""
    from factory import report

    sys.exit(0 if report.audits(_store(store_path), names, _options(options), as_json) else 1)


@main.command()
@click.argument("query")
@click.option("--json", "style", flag_value="json", help="One JSON object a row.")
@click.option("--csv", "style", flag_value="csv", help="Comma-separated values.")
@click.option("--limit", default=1000, show_default=True, help="The most rows of a table; --json and --csv give all.")
@_STORE
def sql(query: str, style: str | None, limit: int, store_path: str) -> None:
    """Run a read-only QUERY, or the query in a .sql file."""
    from factory import report
    from factory.query import read_only

    text = Path(query).read_text(encoding="utf-8") if query.endswith(".sql") else query
    columns, rows = read_only(_store(store_path), text, limit + 1 if style is None else None)
    report.table(columns, rows[:limit] if style is None else rows, style)
    if style is None and len(rows) > limit:
        click.echo(f"only the first {limit} rows: see more with --limit, or all with --csv", err=True)


@main.command()
@click.argument("dataset", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a measure.")
@_STORE
def conformance(dataset: str | None, as_json: bool, store_path: str) -> None:
    """Set what the generators of a DATASET (by default of all) measured beside the published figures."""
    from factory import report

    report.conformance(_store(store_path), dataset, as_json)


@main.command()
@click.argument("dataset")
@click.option("--of", "target", type=click.Choice(["prompts", "completions"]), default="prompts", show_default=True)
@click.option("--embedding", default="ngrams", show_default=True, help="Or a sentence-transformers model.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a measure.")
@_STORE
def diversity(dataset: str, target: str, embedding: str, as_json: bool, store_path: str) -> None:
    """Measure how diverse the rows of a DATASET are: all of them beside those that its filters kept."""
    from factory import spread

    spread.diversity(_store(store_path), dataset, target, embedding, as_json)


@main.command()
@click.argument("record_id")
@_STORE
def show(record_id: str, store_path: str) -> None:
    """Print the whole life of a record: where it came from, who judged it and how."""
    from factory import report

    report.life(_store(store_path), record_id)


@main.command()
@click.argument("record_id")
@_STORE
def explain(record_id: str, store_path: str) -> None:
    """Say why a record was kept or dropped: every filter's score beside its threshold, and the evidence's text."""
    from factory import report

    report.why(_store(store_path), record_id)


@main.command()
@click.argument("name")
@click.option("--on", required=True, help="The dataset that it judged.")
@click.option("--threshold", required=True, type=float, help="The new threshold.")
@_STORE
def rethreshold(name: str, on: str, threshold: float, store_path: str) -> None:
    """Move the threshold of filter NAME: verdicts are rewritten from stored scores, nothing is computed anew."""
    from factory.thresholds import rethreshold as move

    click.echo(move(_store(store_path), name, on, threshold), err=True)


@main.command()
@click.argument("step")
@click.option("--data", "on", required=True, help="A dataset, a query, or a file.")
@click.option("--base", required=True, help="The checkpoint to start from.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The checkpoint's folder.")
@click.option("--dry-run", is_flag=True, help="Train nothing: print the first batch, what is learned in colour.")
@_ENGINE
@_WITH
@_STORE
def train(step: str, options: Sequence[str], engines: Sequence[str], store_path: str, **asked: Any) -> None:
    """Train: STEP is sft, reward, dpo, ppo ...; `factory steps STEP` lists its options, which go behind --with.

    In several processes: `torchrun -m factory.cli train ...`. A file with the trainer's columns is read as it is, any
    other imported first. A judge, --with reward='{"judge": "strong"}', is asked through --engine strong=USE:MODEL.
    """
    from factory import report

    report.train(_store(store_path), step, _options(options), engines=_engines(engines), **asked)


@main.command()
@click.argument("stage", required=False)
@_STORE
def diagnose(stage: str | None, store_path: str) -> None:
    """Say in plain language how the newest training of a STAGE (by default of each) went, and what to try."""
    from factory import report

    report.diagnoses(_store(store_path), stage)


@main.command(name="eval")
@click.argument("step", default="mini")
@_ENGINE
@_WITH
@_STORE
def evaluate(step: str, engines: Sequence[str], options: Sequence[str], store_path: str) -> None:
    """Measure models: STEP is mini, on the embedded world's held-out tasks, for every --engine."""
    models = {name: name for name in _engines(engines)}
    _run_stage({"evaluate": step, "with": {"models": models} | _options(options)}, engines, 0, store_path)


@main.command()
@click.argument("judge")
@click.option("--gold", required=True, type=click.Path(path_type=Path, exists=True), help="Pairs with known winners.")
@click.option("--spec", type=click.Path(path_type=Path), help="The spec whose engine JUDGE is.")
@click.option("--label", default="", help="For labels on single answers: the column that JUDGE is compared with.")
@click.option("--column", default="", help="The column with the verdicts, where JUDGE is a file.")
@click.option("--invalid-as", type=click.Choice(["wrong", "tie"]), default="wrong", help="A pair nobody could read.")
@click.option("--limit", default=0, help="Measure on this many pairs, drawn by --seed; 0 takes all.")
@click.option("--seed", default=0, show_default=True, help="Seed of all random draws.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_WITH
@_STORE
def judge(judge: str, as_json: bool, options: Sequence[str], store_path: str, invalid_as: Any, **asked: Any) -> None:
    """Measure a JUDGE by labelled pairs: accuracy, kappa, flips, slots, lengths, each with its interval.

    JUDGE is an engine of --spec, a shorthand (openai:qwen3-32b), a model's name, a file of stored verdicts, or a rater
    named in the gold file. Options of the step `judge` go behind --with.
    """
    from factory.judging.instrument import Question, measure

    asked["spec"] = asked["spec"] and _packaged(asked["spec"])
    question = Question(judge=judge, options=_options(options), unreadable=invalid_as, **asked)
    measure(question, _store(store_path), lambda line: click.echo(line, err=True), as_json)


@main.command()
@click.argument("what")
@click.option("--to", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option(
    "--for", "fmt", default="trl", show_default=True, help="jsonl, csv, parquet, alpaca, sharegpt, trl, hf, ..."
)
@click.option("--kind", type=click.Choice(["prompts", "sft", "pairs"]), default="sft", show_default=True)
@_STORE
def export(what: str, to: Path, fmt: str, kind: str, store_path: str) -> None:
    """Write a dataset, or the result of a query, for another program."""
    from factory import flow

    click.echo(flow.export(_store(store_path), what, kind, fmt, to), err=True)


@main.command()
@click.option("--learn", is_flag=True, help="Train in small worlds with known answers; exit code 1 if one is wrong.")
@_STORE
def doctor(learn: bool, store_path: str) -> None:
    """Look at the environment: versions, devices, engines, the store; or prove that every trainer learns here."""
    from factory import learns, report

    if learn:
        sys.exit(0 if learns.proved(lambda line: click.echo(line, err=True)) else 1)
    report.environment(_store(store_path))


@main.group()
def mini() -> None:
    """The embedded world."""


@mini.command(name="build")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where the three checkpoints go.")
@click.option("--scale", default=1.0, show_default=True, help="Shortens every course; the scores drop with it.")
@click.option("--threads", default=2, show_default=True, help="CPU threads.")
def mini_build(out: Path, scale: float, threads: int) -> None:
    """Make the bundled checkpoints again, by their recipe (about an hour on two cores)."""
    import torch

    from factory.mini.build import build

    torch.set_num_threads(threads)
    build(out, lambda line: click.echo(line, err=True), scale)


def _store(path: str) -> "Store":
    from factory.store import Store

    return Store(Path(path))


def _packaged(spec: Path) -> Path:
    """A spec's path as it is, or, where there is none, the packaged spec of that name."""
    from factory.resources import specs_folder

    packaged = specs_folder() / spec.name
    return packaged if not spec.exists() and packaged.exists() else spec


def _run_stage(stage: dict[str, Any], engines: Sequence[str], seed: int, store_path: str) -> None:
    from factory import report
    from factory.run import run as run_spec
    from factory.spec import parse_spec

    name = " ".join(["by hand:", *(str(v) for k, v in stage.items() if k != "with")])
    raw = {"name": name, "seed": seed, "engines": _engines(engines), "stages": [stage]}
    spec, store = parse_spec(raw), _store(store_path)
    run_spec(spec, store, lambda line: click.echo(line, err=True))
    report.measurements(store, spec)


def _engines(given: Sequence[str]) -> dict[str, dict[str, str]]:
    found = {}
    for text in given:
        name, _, rest = text.partition("=")
        use, _, model = rest.partition(":")
        if not use:
            raise SpecError(f"--engine {text!r}: write NAME=USE:MODEL, for example strong=transformers:mini-strong")
        found[name] = {"use": use} | ({"model": model} if model else {})
    return found


def _options(given: Sequence[str]) -> dict[str, Any]:
    found = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign:
            raise SpecError(f"--with {text!r}: write NAME=VALUE, for example threshold=0.8")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


if __name__ == "__main__":
    main()
