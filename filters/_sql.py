"""SQL expressions of the user's own over a frame: one expression, in a database of its own that can reach nothing.

The database is in memory and holds the frame alone. Files, network, extensions, Python's variables and settings are
locked before the expression is seen; memory is bounded. An expression is checked by its parse tree: one SELECT of one
column of the frame, without functions whose value changes from call to call.
"""

import json
import re
from typing import Any, NamedTuple

import polars as pl

from factory.errors import SpecError, nearest

SANDBOX: dict[str, Any] = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "memory_limit": "2GB",
    "max_temp_directory_size": "0MB",
}
_OTHER_CLAUSES = ("where_clause", "having", "qualify", "sample", "modifiers", "group_expressions", "cte_map")


class Answers(NamedTuple):
    """What an expression says of each row; for `column >= 4` and its like, the two numbers that are compared."""

    true: pl.Series
    score: pl.Series | None
    threshold: float | None


def asked(frame: pl.DataFrame, expression: str, where: str) -> Answers:
    """The expression's value for every row, in their order. Raises SpecError, in one line, for what is none."""
    import duckdb

    with duckdb.connect(":memory:", config=SANDBOX) as con:
        given = frame.with_row_index("#row").select("#row", *_named(frame.columns, expression))
        con.register("given", given.to_arrow())
        con.execute('CREATE TABLE records AS SELECT * FROM given ORDER BY "#row"')
        con.execute("SET lock_configuration = true")
        node = _checked(con, expression, where)
        try:
            (kind,) = con.execute(
                f"SELECT typeof(any_value(v)) FROM (SELECT ({expression}\n) AS v FROM records)"
            ).fetchall()
            if len(frame) and kind[0] != "BOOLEAN":
                raise SpecError(f"{where}: {expression!r} is a {kind[0]}, not true or false: compare it with something")
            true = con.execute(f'SELECT "#row", ({expression}\n) AS v FROM records').pl().sort("#row")["v"]
            score, threshold = _compared(con, node)
        except duckdb.Error as error:
            raise SpecError(f"{where}: {_said(error, expression, frame.columns)}") from error
    return Answers(true.cast(pl.Boolean), score, threshold)


def _named(columns: list[str], expression: str) -> list[str]:
    """The columns that an expression can speak of: the others would only take memory."""
    said = expression.lower().replace('""', '"')
    whole = any(sign in said for sign in ("*", "columns", "records"))
    return columns if whole else [name for name in columns if name.lower() in said]


def _checked(con: Any, expression: str, where: str) -> dict[str, Any]:
    """The parse tree of the one expression that there is."""
    whole = f"SELECT ({expression}\n) FROM records"
    tree = json.loads(con.execute("SELECT json_serialize_sql(?)", [whole]).fetchall()[0][0])
    if tree.get("error"):
        raise SpecError(f"{where}: {expression!r} is no expression: {str(tree.get('error_message')).splitlines()[0]}")
    statements = tree["statements"]
    node = statements[0]["node"]
    listed, plain = node.get("select_list", ()), node.get("from_table", {}).get("table_name") == "records"
    if len(statements) != 1 or len(listed) != 1 or not plain or any(_filled(node.get(k)) for k in _OTHER_CLAUSES):
        raise SpecError(f"{where}: {expression!r} is more than one expression")
    sql = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability = 'VOLATILE'"
    changing = {name for (name,) in con.execute(sql).fetchall()}
    for part in _parts(node):
        if part.get("function_name") in changing:
            raise SpecError(f"{where}: {part['function_name']}() changes from run to run, so verdicts would, too")
        if part.get("class") == "SUBQUERY":
            raise SpecError(f"{where}: {expression!r} has a query inside: use what is known of the record, or OVER ()")
    return dict(node)


def _filled(clause: Any) -> bool:
    return bool(clause.get("map")) if isinstance(clause, dict) and "map" in clause else bool(clause)


def _parts(node: object) -> list[dict[str, Any]]:
    if isinstance(node, dict):
        return [node, *(part for value in node.values() for part in _parts(value))]
    return [part for value in node for part in _parts(value)] if isinstance(node, list) else []


def _compared(con: Any, node: dict[str, Any]) -> tuple[pl.Series | None, float | None]:
    """Both sides of a plain comparison with a number, so that its threshold can be moved without asking again."""
    top = node["select_list"][0]
    right = top.get("right") or {}
    if top.get("class") != "COMPARISON" or right.get("class") != "CONSTANT":
        return None, None
    import duckdb

    sides = {
        "error": False,
        "statements": [{"node": node | {"select_list": [top["left"], right]}, "named_param_map": []}],
    }
    sql = con.execute("SELECT json_deserialize_sql(?)", [json.dumps(sides)]).fetchall()[0][0]
    try:
        found = con.execute(sql.replace(" FROM records", ', "#row" FROM records')).pl().sort("#row")
        score, limit = found.to_series(0).cast(pl.Float64), found.to_series(1).cast(pl.Float64)
    except (duckdb.Error, pl.exceptions.PolarsError):
        return None, None  # texts are compared
    return score, limit[0] if len(limit) else None


def _said(error: Exception, expression: str, columns: list[str]) -> str:
    """A database error in one line; of a column that is not there, with the columns that are."""
    said = str(error).splitlines()[0]
    if "GROUP BY clause" in said:
        return f"{expression!r} gives one answer for all records: write `... OVER ()` for one each"
    missing = re.search(r'[Rr]eferenced column "([^"]*)" not found', said)
    if not missing:
        return said
    shown = [name for name in columns if name != "#row"]
    return f"no column {missing[1]!r}; {nearest(missing[1], shown)}; columns are {', '.join(shown)}"
