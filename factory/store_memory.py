"""The memory of steps, in the store: see `factory.memory` for what it promises."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING

from factory.memory import Kept
from factory.store import Store

if TYPE_CHECKING:
    import polars as pl
    from duckdb import DuckDBPyConnection

_AT_ONCE = 128  # values that are read in one query
_FEW = 2000  # values that are picked out one by one
_ONE = 'SELECT "key", value FROM memories WHERE rowid = ?'
_VECTOR, _SLOW = 2048, 0.02
# DuckDB numbers the rows of a table by their coming, and nothing is ever deleted.
_RECORDS = {
    "prompts": """SELECT p.rowid AS place, p.id, p.dataset, p.id AS prompt_id, p.messages[-1].content AS "text",
                         p.messages[-1].content AS prompt FROM prompts p""",
    "completions": """SELECT c.rowid AS place, c.id, c.dataset, c.prompt_id, c."text", p.messages[-1].content AS prompt
                      FROM completions c JOIN prompts p ON p.id = c.prompt_id AND p.dataset = c.dataset""",
}


def _picked(con: "DuckDBPyConnection", places: list[int]) -> Iterator[tuple[str, bytes]]:
    """Values one by one; but where the values of a vector lie in two segments of the file, DuckDB reads all of them to
    find one. That shows in the time of the first, and then the others are read together."""
    sql = 'SELECT "key", value FROM memories WHERE rowid IN (SELECT unnest($places))'
    for _, vector in groupby(places, lambda place: place // _VECTOR):
        first, *others = vector
        started = time.monotonic()
        yield from con.execute(_ONE, [first]).fetchall()
        if time.monotonic() - started > _SLOW:
            yield from con.execute(sql, {"places": others}).fetchall()
        else:
            for other in others:
                yield from con.execute(_ONE, [other]).fetchall()


class StoreMemory:
    """An `Archive` over a store. Each method is one query or one transaction; nobody holds the file in between."""

    def __init__(self, store: Store, dataset: str = "") -> None:
        """`dataset` is the one that is being screened."""
        self.store = store
        self.dataset = dataset

    def get(self, kind: str, keys: Sequence[str]) -> "pl.DataFrame":
        """The known ones of the keys. A few values are picked out one by one, where DuckDB would read all of them."""
        import polars as pl

        wanted = pl.DataFrame({"key": keys}, schema={"key": pl.String}).unique()
        with self.store.reading() as con:
            con.register("wanted", wanted.to_arrow())
            sql = 'SELECT m.rowid FROM memories m SEMI JOIN wanted USING ("key") WHERE kind = $kind'
            places = sorted(place for (place,) in con.sql(sql, params={"kind": kind}).fetchall())
            if len(places) <= _FEW:
                con.execute("SET threads = 1")  # starting more takes longer than the work
                found = list(_picked(con, places))
                con.execute("RESET threads")
                return pl.DataFrame(found, {"key": pl.String, "value": pl.Binary}, orient="row")
            sql = 'SELECT "key", value FROM memories SEMI JOIN wanted USING ("key") WHERE kind = $kind'
            return con.sql(sql, params={"kind": kind}).pl()

    def put(self, kind: str, frame: "pl.DataFrame") -> int:
        """Write once by (kind, key): of two values for one key, the first stays."""
        import polars as pl

        batch = frame.select(pl.col("key").cast(pl.String), pl.col("value").cast(pl.Binary))
        sql = """
            INSERT INTO memories SELECT $kind, "key", value, $now FROM batch
            ANTI JOIN (SELECT "key" FROM memories WHERE kind = $kind) known USING ("key")"""
        with self.store.writing() as con:
            con.register("batch", batch.unique("key", keep="first", maintain_order=True).to_arrow())
            now = datetime.now(UTC).replace(tzinfo=None)
            return int(con.execute(sql, {"kind": kind, "now": now}).fetchall()[0][0])

    @contextmanager
    def open(self) -> Iterator[None]:
        """Holds the file: while one connection is open, DuckDB opens others at once and keeps what it has read."""
        with self.store.reading():
            yield

    def values(self, kind: str) -> Iterator[tuple[str, bytes]]:
        """Some values at a time."""
        rows = [row for (row,) in self.store.rows("SELECT rowid FROM memories WHERE kind = ? ORDER BY rowid", [kind])]
        sql = 'SELECT "key", value FROM memories WHERE kind = ? AND rowid BETWEEN ? AND ?'
        for first in range(0, len(rows), _AT_ONCE):
            some = rows[first : first + _AT_ONCE]
            yield from self.store.rows(sql, [kind, some[0], some[-1]])

    def datasets(self, target: Kept) -> list[str]:
        """The datasets that hold such records."""
        return [name for (name,) in self.store.rows(f"SELECT DISTINCT dataset FROM {target} ORDER BY dataset")]

    def places(self, target: Kept, ids: "pl.Series") -> "pl.DataFrame":
        """By one look through the ids."""
        sql = f"SELECT id, rowid AS place FROM {target} SEMI JOIN wanted USING (id) WHERE dataset = $dataset"
        with self.store.reading() as con:
            con.register("wanted", ids.to_frame("id").to_arrow())
            return con.sql(sql, params={"dataset": self.dataset}).pl()

    def after(self, target: Kept, dataset: str, kind: str) -> "Iterator[pl.DataFrame]":
        """Spilled first, so that the file is free while a page is worked on."""
        import polars as pl

        ends = f"""SELECT (SELECT coalesce(max("key"), '-1')::BIGINT FROM memories WHERE kind = ?),
                          (SELECT coalesce(max(rowid), -1) FROM {target} WHERE dataset = ?)"""
        place, newest = self.store.rows(ends, [kind, dataset])[0]
        if newest <= place:
            return
        sql = f"""SELECT place, "text", prompt FROM ({_RECORDS[target]})
                  WHERE dataset = $dataset AND place > $place ORDER BY place"""
        for page in self.store.pages(sql, {"dataset": dataset, "place": place}):
            yield pl.from_arrow(page)  # type: ignore[misc]

    def records(self, target: Kept, places: "pl.Series") -> "pl.DataFrame":
        """The records wanted are picked out first, and only their verdicts are looked at."""
        sql = f"""
            WITH found AS MATERIALIZED (SELECT * EXCLUDE ("text", prompt) FROM ({_RECORDS[target]})
                                        SEMI JOIN wanted USING (place)),
            out AS (SELECT record_id AS id, dataset FROM (
                        SELECT record_id, dataset, arg_max(keep, created_at) AS keep FROM verdicts
                        WHERE record_id IN (SELECT id FROM found UNION ALL SELECT prompt_id FROM found)
                        GROUP BY record_id, dataset, filter) WHERE NOT keep)
            SELECT place, id FROM found
            ANTI JOIN out ON out.id = found.id AND out.dataset = found.dataset
            ANTI JOIN out prompt_out ON prompt_out.id = found.prompt_id AND prompt_out.dataset = found.dataset
            ORDER BY place"""
        with self.store.reading() as con:
            con.register("wanted", places.to_frame("place").to_arrow())
            return con.sql(sql).pl()
