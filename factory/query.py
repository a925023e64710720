"""Read-only SQL for people: one SELECT, on a store opened read-only, with no way out to files or the network."""

from typing import Any

import duckdb

from factory.errors import DataError
from factory.store import Store

_LOCKS = (
    "SET enable_external_access = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET lock_configuration = true",
)
_ALLOWED = {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN}


def read_only(store: Store, sql: str, limit: int | None) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Column names and at most `limit` rows (None: all). Raises DataError for anything but one good SELECT."""
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise DataError(str(error)) from error
    if len(statements) != 1 or statements[0].type not in _ALLOWED:
        raise DataError("`factory sql` runs one SELECT (or FROM, or EXPLAIN): the store is only read here")
    with store.reading() as con:
        for lock in _LOCKS:
            con.execute(lock)
        result = con.execute(statements[0].query)
        return [d[0] for d in result.description or ()], result.fetchall() if limit is None else result.fetchmany(limit)
