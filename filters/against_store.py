"""Drops what the store, or a held-out set, already has: a new batch is compared with the records of other datasets.

Source: MinHash with banding (Broder 1997; Leskovec et al., "Mining of Massive Datasets", chapter 3) proposes, the true
Jaccard similarity decides. Departures: the index of what was compared before is kept in the store and grows by what
is new; a record is compared only with records that came before it and that are kept, so that two datasets never drop
each other's copies of the same thing; every drop names the record that it resembles.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import polars as pl
from pydantic import Field

from factory.errors import DataError
from factory.memory import Archive
from factory.options import step
from filters import _shelf
from filters._index import Asked, indexed, read
from filters._join import Join, Pairs, between, joined, nearest
from filters._planner import by_prefixes
from filters._sets import MASK, sets
from filters._spool import Spool, spool
from filters._verdicts import parts


@step
class AgainstStore:
    """Keep what no kept record of an earlier dataset resembles by `threshold` or more, nor any held-out prompt.

    Only records of other datasets that came into the store before are compared; near-duplicates inside the batch are
    for `near_duplicates`. What was compared once is not cut into shingles again: a thousand rows against a million
    take about a second.
    """

    target: Literal["prompts", "completions"] = "prompts"
    """Which records of a dataset it is given."""

    compare: Literal["prompt", "response", "both"] = "both"
    """What of a completion is compared; with `both`, prompts and responses must each reach the threshold."""

    threshold: Annotated[float, Field(ge=0.3, le=1)] = 0.7
    """Jaccard similarity of the shingles, 0.3 to 1, from which on a record is known already."""

    ngram: Annotated[int, Field(ge=1)] = 3
    """Words in a shingle; a text with fewer words is one shingle."""

    datasets: tuple[str, ...] = ()
    """The datasets to compare with; all others in the store where none is named."""

    heldout: Path | None = None
    """A .jsonl file of an evaluation set, with `prompt`, or `instruction` and `input`; compared with the prompts."""

    def screen_with(self, frame: pl.DataFrame, memory: Archive) -> pl.DataFrame:
        """One verdict per row, in the order of the rows."""
        known = [self._near_stored(frame, memory)]
        if self.heldout is not None:
            known.append(self._near_heldout(frame, self.heldout))
        return _verdicts(frame, pl.concat(known), self.threshold)

    def _near_stored(self, frame: pl.DataFrame, memory: Archive) -> pl.DataFrame:
        """Columns row, score, reason, evidence_id: of each row a kept record that came before it and is near."""
        # 1. Bring the index of every other dataset up to date.
        others = self.datasets or [name for name in memory.datasets(self.target) if name != memory.dataset]
        kinds = [self._filed(name, memory) for name in others]
        with _spooled(parts(frame, self), self.ngram) as spools, memory.open():
            # 2. Propose pairs by it.
            known = memory.places(self.target, frame["id"])
            places = frame.select("id").join(known, "id", "left", maintain_order="left")["place"]
            block = indexed(places.fill_null(2**63 - 1).to_numpy(), spools, self.threshold)
            proposed = self._proposed(Asked(block), kinds, memory)
            # 3. Of the records in them that are kept, read the shingles, most promising ones first, and count them out.
            records = memory.records(self.target, proposed["place"].unique()).with_row_index("evidence")
            live = proposed.join(records, "place").sort("shared", "evidence", descending=[True, False])
            best = live.unique("row", keep="first", maintain_order=True)
            found = self._counted(best, spools, memory)
            rest = live.filter(~pl.col("row").is_in(found.row))
            found = joined([found, self._counted(rest, spools, memory)])
        return _told(found, "near_stored", records["id"])

    def _filed(self, dataset: str, memory: Archive) -> str:
        """The kind under which a dataset's index is kept, after adding what came since the last time."""
        kind = f"near {self.target} {self.compare} {self.ngram} {self.threshold} {_VERSION} {dataset}"
        for page in memory.after(self.target, dataset, kind):
            key = f"{page['place'][-1]:020d}"
            with _spooled(parts(page, self), self.ngram) as spools:
                shelf = list(_shelf.pages(spools))
                block = indexed(page["place"].to_numpy(), spools, self.threshold).written()
            names = [f"{key}/{number}" for number in range(len(shelf))]
            memory.put(f"shingles {kind}", pl.DataFrame({"key": names, "value": shelf}))
            memory.put(kind, pl.DataFrame({"key": [key], "value": [block]}))  # last: it says that the others are there
        return kind

    def _proposed(self, asked: Asked, kinds: Sequence[str], memory: Archive) -> pl.DataFrame:
        """Columns row, place, shared bands, and where the record's shingles are: kind, key, record."""
        pairs, blocks = [np.empty((4, 0), np.int64)], list[tuple[str, str, int]]()
        for kind in kinds:
            for key, value in memory.values(kind):
                stored = read(value, self.threshold)
                for row, record, shared in asked.candidates(stored):
                    pairs.append(np.stack([row, stored.places[record], shared, record]))
                    blocks.append((kind, key, len(row)))
        found = pl.DataFrame(list(np.concatenate(pairs, axis=1)), ["row", "place", "shared", "record"])
        named = pl.DataFrame(blocks, {"kind": pl.String, "key": pl.String, "n": pl.Int64}, orient="row")
        return found.hstack(named.select(pl.col("kind", "key").repeat_by("n").explode()).drop_nulls())

    def _counted(self, live: pl.DataFrame, asked: Sequence[Spool], memory: Archive) -> Pairs:
        """Of each row the nearest of the records that it is paired with, if it reaches the threshold."""
        page = pl.col("key") + "/" + (pl.col("record") // _shelf.RECORDS).cast(pl.String)
        known = live.unique("evidence", keep="first").sort("evidence").with_columns(page=page)
        pages = dict[str, bytes]()
        for (kind,), some in known.group_by("kind"):
            wanted = memory.get(f"shingles {kind}", some["page"].unique().to_list())
            pages |= {f"{kind} {name}": value for name, value in wanted.select("key", "value").iter_rows()}
        names = known.select(pl.col("kind") + " " + pl.col("page"), pl.col("record") % _shelf.RECORDS).rows()
        rows, number = np.unique(live["row"].to_numpy(), return_inverse=True)
        near = np.searchsorted(known["evidence"].to_numpy(), live["evidence"].to_numpy())
        with ExitStack() as stack:
            spools = [stack.enter_context(s) for s in _shelf.spooled(pages, names, asked, rows)]
            join = Join(sets(spools, np.ones(len(names) + len(rows), np.bool_), self.threshold))
        found = nearest(join.verified(number + len(names), near))
        return Pairs(rows[found.row - len(names)], known["evidence"].to_numpy()[found.near], found.jaccard)

    def _near_heldout(self, frame: pl.DataFrame, path: Path) -> pl.DataFrame:
        """Columns as of `_near_stored`: of each row the nearest line of the held-out file."""
        lines = _held_out(path)
        with _spooled([pl.concat([lines["prompt"], frame["prompt"]])], self.ngram) as spools:
            every = np.arange(len(lines) + len(frame))
            found, postings = by_prefixes(spools, every, self.threshold)
        held = postings & MASK < len(lines)
        pairs = nearest(Join(found).pairs(between(postings[~held], postings[held])))
        return _told(pairs._replace(row=pairs.row - len(lines)), "near_heldout", lines["name"])


_VERSION = "v1"  # of the numbers in the index


@contextmanager
def _spooled(texts: Sequence[pl.Series], ngram: int) -> Iterator[list[Spool]]:
    with ExitStack() as stack:
        yield [stack.enter_context(spool(part, ngram)) for part in texts]


def _told(pairs: Pairs, reason: str, names: pl.Series) -> pl.DataFrame:
    columns = {"row": pairs.row, "score": pairs.jaccard, "evidence_id": names.gather(pairs.near)}
    return pl.DataFrame(columns, {"row": pl.Int64, "score": pl.Float64, "evidence_id": pl.String}).with_columns(
        reason=pl.lit(reason)
    )


def _verdicts(frame: pl.DataFrame, known: pl.DataFrame, threshold: float) -> pl.DataFrame:
    """Of what each row resembles, the nearest decides its verdict."""
    best = known.sort("score", descending=True, maintain_order=True).unique("row", keep="first", maintain_order=True)
    rows = frame.select("id", row=pl.int_range(pl.len(), dtype=pl.Int64))
    return rows.join(best, "row", "left", maintain_order="left").select(
        "id",
        keep=pl.col("score").is_null(),
        reason=pl.col("reason").fill_null(""),
        score="score",
        threshold=pl.lit(threshold),
        evidence_id=pl.col("evidence_id").fill_null(""),
    )


def _held_out(path: Path) -> pl.DataFrame:
    """Columns name, prompt: of the lines of a file."""
    if not path.is_file():
        raise DataError(f"against_store: no file {path}; give the evaluation set as .jsonl in `heldout`")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        row = json.loads(line)
        asked = row.get("prompt") or row.get("instruction")
        if not isinstance(asked, str):
            raise DataError(f"{path} line {number}: needs `prompt`, or `instruction` and `input`; found {list(row)}")
        found.append((f"{path.name}:{number}", f"{asked}\n{row['input']}" if row.get("input") else asked))
    return pl.DataFrame(found, {"name": pl.String, "prompt": pl.String}, orient="row")
