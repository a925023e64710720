"""The rows of a training: of a dataset's view, of a query, or of a file, in one Parquet file for all processes.

A file that holds the trainer's own columns (weights, margins, scores and labels among them) goes to the trainer as it
is. Any other is imported first: ShareGPT's, Alpaca's and the other known shapes become a dataset.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from factory.errors import DataError
from factory.flow import Say, content_hash, import_file, query
from factory.store import Store

_PAIRS = "prompt, chosen and rejected, or prompt and completions (best first, or with scores)"
_READS = {
    "sft": "prompt and completion, or messages", "pairs": _PAIRS, "rankings": _PAIRS, "kept_prompts": "prompt",
    "step_labels": "prompt, steps and labels",
}  # fmt: skip
_KEPT_ONLY_AS_IS = {"weight", "margin", "aspect", "scores", "labels", "soft_labels"}
_READERS = {".parquet": "read_parquet({})", ".csv": "read_csv({}, all_varchar = true)"}
_FILE = re.compile(r"\.(jsonl?|csv|parquet)(\.gz)?$")
_JSON = ("read_json({}, sample_size = -1)", (".json", ".jsonl"))


class Source(NamedTuple):
    """Where rows come from: the query, how a card shows it, and what the rows are of."""

    sql: str
    params: list[str]
    shown: str
    name: str


class Rows(NamedTuple):
    """The rows as a dataset, their file, and their source; only the first process knows the source."""

    data: Any
    path: Path
    source: Source


def first() -> bool:
    """Whether this process is the first of those that train together: it alone reads and writes the store."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def rows(store: Store, on: str, view: str, out: Path, trainer: str, say: Say) -> Iterator[Rows]:
    """The rows of a dataset, a query or a file, in a file beside `out` that goes when all is done, or fails."""
    import datasets

    work, found = out.parent / f".{out.name}.work", Source("", [], "", "")
    path = work / f"rows{_launch()}.parquet"
    try:
        if first():
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            found = source(store, on, view, trainer, say)
            _write(store, found, work / "rows.partial", f"train {trainer}", on, view)
            (work / "rows.partial").rename(path)
        while not path.exists():
            time.sleep(0.05)
        datasets.disable_progress_bars()
        cache = work / os.environ.get("RANK", "0")
        yield Rows(datasets.Dataset.from_parquet(str(path), cache_dir=str(cache)), path, found)
    finally:
        if first():
            shutil.rmtree(work, ignore_errors=True)  # the store, or the file, can give the rows again


def _is_file(on: str) -> bool:
    """Whether `on` names a file that can be read; a dataset's name is none, though some file may be called alike.

    A query is often longer than a name may be, which some systems take amiss.
    """
    try:
        return bool(_FILE.search(on)) and Path(on).is_file()
    except OSError:
        return False


def source(store: Store, on: str, view: str, trainer: str, say: Say) -> Source:
    """Where rows come from. A file without the trainer's columns is imported. Raises DataError for no such file."""
    path = Path(on)
    if _is_file(on):
        columns = _columns(path)
        if _fits(columns, view):
            shown = f"-- BLAKE2b of {path.name}: {content_hash(path)}\nSELECT * FROM {_reader(path, path.name)}"
            return Source(f"SELECT * FROM {_reader(path, str(path))}", [], shown, path.name)
        if lost := sorted(_KEPT_ONLY_AS_IS & set(columns)):
            raise DataError(f"{on}: {', '.join(lost)} would be lost, for the other columns are not {trainer}'s: it "
                            f"reads {_READS[view]}; found {', '.join(columns)}. Rename them")  # fmt: skip
        say(f"{on}: {import_file(store, path, on)}")
    elif " " not in on.strip() and _FILE.search(on):
        raise DataError(f"--data {on}: there is no such file; give a file, a dataset's name, or a query")
    sql, params = query(on, view)
    return Source(sql, params, sql if not params else sql.replace("?", f"'{params[0]}'"), store.path.name)


def _write(store: Store, found: Source, to: Path, who: str, on: str, view: str) -> None:
    """Write the rows, and raise a DataError in the user's own words where there are none or the query is wrong."""
    try:
        store.prepare()
        count = store.snapshot(found.sql, to, found.params)
    except DataError as error:  # without the command that writes the rows, which is none of the user's
        raise DataError(f"{who}: {str(error).partition('LINE 1: COPY')[0].strip()} in {on!r}") from error
    if count:
        return
    columns = f"; its columns are {', '.join(_columns(Path(on)))}" if _is_file(on) else ""
    mend = "" if columns else "; look at `SELECT * FROM yield` and `FROM drops`"
    raise DataError(f"{who}: no rows in {on!r}{columns}; it reads {_READS[view]}{mend}")


def _launch() -> str:
    """What the processes of one launch have in common, and those of an earlier one that was killed have not."""
    names = ("MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    said = [os.environ[name] for name in names if os.environ.get(name)]
    here = os.environ.get("LOCAL_WORLD_SIZE", "") == os.environ.get("WORLD_SIZE", "") != ""
    return "-".join(re.sub(r"\W", "", part) for part in [*said, *([str(os.getppid())] if here else [])])


# --- files -----------------------------------------------------------------------------------------------------------


def _reader(path: Path, name: str) -> str:
    suffix = Path(path.name.removesuffix(".gz")).suffix
    call = _JSON[0] if suffix in _JSON[1] else _READERS.get(suffix, "")
    return call.format("'" + name.replace("'", "''") + "'")


def _columns(path: Path) -> Mapping[str, str]:
    """The columns of a file with their types; none where it cannot be read so (the import says in which line)."""
    reader = _reader(path, str(path))
    if not reader:
        return {}
    try:
        with duckdb.connect() as con:
            return {
                str(name): str(kind) for name, kind, *_ in con.execute(f"DESCRIBE SELECT * FROM {reader}").fetchall()
            }
    except duckdb.Error:
        return {}


def _fits(columns: Mapping[str, str], view: str) -> bool:
    """Whether a file has what a trainer reads. A column of type JSON holds values of several kinds: import tells."""

    def has(name: str) -> bool:
        return columns.get(name, "JSON") != "JSON"

    asked = has("prompt") or has("messages")
    sided = has("chosen") and has("rejected") and (asked or columns["chosen"].endswith("[]"))
    fits = {
        "sft": asked and has("completion"),
        "pairs": sided or (asked and has("completions")),
        "step_labels": asked and (has("steps") or has("completions")) and (has("labels") or has("soft_labels")),
        "kept_prompts": has("prompt"),
    }
    return fits["pairs" if view == "rankings" else view]
