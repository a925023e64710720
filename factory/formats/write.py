"""Dataset files out: a query's rows in the shape that a consumer takes, whole or not at all.

Every file is written under a temporary name, flushed to the disk and then renamed. Memory is bounded by one chunk of
rows. The alpaca and sharegpt files are JSON arrays, not lines: loaders take the types of lines from the first of them,
and a `history` that turns up later would break them.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from factory.errors import DataError, StoreError
from factory.formats.card import Card, axolotl, llama_factory, readme, slug
from factory.formats.layouts import ANSWERS, Kind, Layout, Row, layout

_CHUNK = 10_000  # rows held at once, and the size of a Parquet row group
Chunks = Iterator[list[Row]]


def export(query_rows: Iterator[pa.RecordBatch], kind: Kind, fmt: str, to: Path, card: Card) -> int:
    """Write the rows for a consumer, with the card beside them; returns how many rows were written.

    `to` is a folder (the file is then train.SUFFIX in it), or the file itself if it ends in the format's own suffix.
    Formats: jsonl, csv, parquet (the query's own columns), alpaca and sharegpt (with LLaMA-Factory's
    dataset_info.json), trl, trl-conversational, axolotl (with a YAML snippet), hf (a folder for load_dataset).

    Raises DataError for a combination, a column or a row that the format cannot hold and for a query without rows,
    StoreError if the files cannot be written. No half-written file is left behind.
    """
    plan = layout(fmt, kind)
    place = _place(Path(to), fmt, plan.suffix)
    first = next((batch for batch in query_rows if batch.num_rows), None)
    if first is None:
        raise DataError("the query returned no rows, so nothing was written; widen its conditions")
    _check_columns(first.schema, kind)
    seen = _Seen()
    chunks = _chunks(chain([first], query_rows), kind, plan, seen)
    with whole(place.data) as file:
        _WRITERS[plan.suffix](chunks, file, plan.schema or _stored(first.schema))
    schema = _written(plan, _stored(first.schema), seen)
    card = replace(card, rows=seen.rows, columns=tuple(schema.names))
    card = card if card.languages else replace(card, languages=tuple(sorted(seen.languages)))
    for beside, text in _companions(place, fmt, kind, card, schema).items():
        with whole(beside) as file:
            file.write(text.encode())
    return seen.rows


# --- the rows --------------------------------------------------------------------------------------------------------


@dataclass
class _Seen:
    """What went by while the rows were written."""

    rows: int = 0
    languages: set[str] = field(default_factory=set)
    columns: set[str] = field(default_factory=set)


def _check_columns(schema: pa.Schema, kind: Kind) -> None:
    needed = ["messages" if "messages" in schema.names else "prompt", *ANSWERS[kind]]
    if missing := [name for name in needed if name not in schema.names]:
        raise DataError(
            f"{kind} need column {', '.join(missing)}, the query gives {', '.join(schema.names)}; "
            f"select from the view that has them: {'kept_prompts' if kind == 'prompts' else kind}"
        )


def _chunks(batches: Iterable[pa.RecordBatch], kind: Kind, plan: Layout, seen: _Seen) -> Chunks:
    for batch in batches:
        _check_values(batch, kind, seen.rows)
        for start in range(0, batch.num_rows, _CHUNK):
            rows = batch.slice(start, _CHUNK).to_pylist()
            out = [plan.row(row) for row in rows]
            seen.rows += len(rows)
            seen.languages.update(row["language"] for row in rows if row.get("language"))
            seen.columns.update(*out)
            yield out


def _check_values(batch: pa.RecordBatch, kind: Kind, before: int) -> None:
    for name in ("messages", "prompt", *ANSWERS[kind]):
        if name in batch.schema.names and (column := batch.column(name)).null_count:
            row = before + column.is_null().index(True).as_py() + 1
            raise DataError(f"row {row} of the query has no {name}; add `WHERE {name} IS NOT NULL`")


def _stored(schema: pa.Schema) -> pa.Schema:
    """The schema without extension types, such as DuckDB's JSON, which few loaders know."""
    bare = ((f.name, f.type.storage_type if isinstance(f.type, pa.BaseExtensionType) else f.type) for f in schema)
    return pa.schema(list(bare))


def _written(plan: Layout, queried: pa.Schema, seen: _Seen) -> pa.Schema:
    """The schema of what was written, as a loader will see it."""
    fields = [f for f in plan.schema or queried if f.name in seen.columns]
    if plan.suffix == ".parquet":
        return pa.schema(fields)
    return pa.schema([(f.name, _as_text(f.type, plan.suffix == ".csv")) for f in fields])


def _as_text(kind: pa.DataType, flat: bool) -> pa.DataType:
    """The type that a column has in a text file: what the file cannot spell is written as a string."""
    spelt = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return kind if spelt or (pa.types.is_nested(kind) and not flat) else pa.string()


# --- containers ------------------------------------------------------------------------------------------------------


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _json_lines(chunks: Chunks, file: IO[bytes], schema: pa.Schema) -> None:
    for rows in chunks:
        file.write("".join(f"{_dumps(row)}\n" for row in rows).encode())


def _json_array(chunks: Chunks, file: IO[bytes], schema: pa.Schema) -> None:
    before = "[\n"
    for rows in chunks:
        file.write((before + ",\n".join(map(_dumps, rows))).encode())
        before = ",\n"
    file.write(b"\n]\n")


def _csv(chunks: Chunks, file: IO[bytes], schema: pa.Schema) -> None:
    """Every text in quotes, nested values as JSON: nothing for a reader to guess at."""
    text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(schema.names)
    for rows in chunks:
        writer.writerows([_flat(row[name]) for name in schema.names] for row in rows)
    text.detach()


def _flat(value: Any) -> Any:
    return _dumps(value) if isinstance(value, list | dict) else value


def _parquet(chunks: Chunks, file: IO[bytes], schema: pa.Schema) -> None:
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for rows in chunks:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))


_WRITERS: dict[str, Callable[[Chunks, IO[bytes], pa.Schema], None]] = {
    ".jsonl": _json_lines,
    ".json": _json_array,
    ".csv": _csv,
    ".parquet": _parquet,
}


# --- files -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where the parts of an export go."""

    home: Path
    data: Path
    card: Path
    snippet: Path


def _place(to: Path, fmt: str, suffix: str) -> _Place:
    if to.suffix not in _WRITERS:
        data = to / "data" / "train.parquet" if fmt == "hf" else to / f"train{suffix}"
        return _Place(to, data, to / "README.md", to / "axolotl.yaml")
    if fmt == "hf":
        raise DataError(f"format 'hf' is a folder, but {to.name} names a file; leave out {to.suffix}")
    if to.suffix != suffix:
        raise DataError(f"format {fmt!r} writes {suffix}, but {to.name} ends in {to.suffix}; change one of the two")
    return _Place(to.parent, to, to.with_suffix(".md"), to.with_suffix(".axolotl.yaml"))


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name only when all of it is on the disk. Raises StoreError if it cannot be."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        why = error.strerror or str(error)
        raise StoreError(
            f"cannot write {path}: {why}; no half-written file was left, make room or choose another place"
        ) from error
    finally:
        with suppress(OSError):  # the error that led here is the one to tell
            part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """The new name too must outlive a power cut."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _companions(place: _Place, fmt: str, kind: Kind, card: Card, schema: pa.Schema) -> dict[Path, str]:
    """The texts to write beside the data file, under their paths."""
    data = place.data.relative_to(place.home).as_posix()
    texts: dict[Path, str] = {}
    if fmt in ("alpaca", "sharegpt"):
        info = place.home / "dataset_info.json"
        texts[info] = llama_factory(info, fmt, kind, card.name, data, card.columns)
        usage = f"In LLaMA-Factory set `dataset_dir` to this folder and `dataset: {slug(card.name)}`."
    elif fmt == "axolotl":
        texts[place.snippet] = axolotl(kind, place.data.as_posix())
        usage = f"Put the lines of `{place.snippet.name}` into the axolotl configuration."
    else:
        loader = {".csv": "csv", ".parquet": "parquet"}.get(place.data.suffix, "json")
        call = f'"{place.home.name}"' if fmt == "hf" else f'"{loader}", data_files="{data}", split="train"'
        usage = f"```python\nload_dataset({call})\n```"
    return texts | {place.card: readme(card, kind, data, place.data.stat().st_size, schema, usage)}
