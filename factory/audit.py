"""Audits: a .sql file returns the rows that violate it, and none when all is well.

Its first comment line says what it asserts. `-- param NAME = VALUE` lines declare parameters, used as `$NAME`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.errors import AuditError, SpecError, nearest
from factory.resources import specs_folder
from factory.store import Store

_PARAM = re.compile(r"^--\s*param\s+(\w+)\s*=\s*(.+?)\s*$", re.MULTILINE)
_SHOWN = 3  # violations that a report quotes


@dataclass(frozen=True)
class Finding:
    """The outcome of one audit: how many rows violate it, and the first few of them."""

    name: str
    asserts: str
    violations: int
    columns: tuple[str, ...] = ()
    examples: tuple[tuple[Any, ...], ...] = ()


def find_audits(folder: Path | None = None) -> dict[str, Path]:
    """Name to file: the packaged audits, and those in `audits/` beside the spec, which win."""
    found = {p.stem: p for p in sorted((specs_folder() / "audits").glob("*.sql"))}
    return found | ({p.stem: p for p in sorted((folder / "audits").glob("*.sql"))} if folder else {})


def audit(store: Store, path: Path, params: Mapping[str, Any]) -> Finding:
    """Run one audit."""
    text = path.read_text(encoding="utf-8")
    values = {name: _value(raw) for name, raw in _PARAM.findall(text)}
    unknown = [k for k in params if k not in values]
    values |= {k: v for k, v in params.items() if k in values}
    if unknown and not values:
        raise SpecError(f"audit {path.stem} has no parameters; found {unknown}")
    if unknown:
        raise SpecError(f"audit {path.stem}: no parameter {unknown[0]!r}; {nearest(unknown[0], list(values))}")
    body = text.strip().rstrip(";")
    with store.reading() as con:
        con.execute(f"CREATE TEMP TABLE found AS {body}", values)
        count = con.execute("SELECT count(*) FROM found").fetchall()[0][0]
        shown = con.execute(f"SELECT * FROM found LIMIT {_SHOWN}")
        columns = tuple(d[0] for d in shown.description or ())
        return Finding(path.stem, _asserts(text), count, columns, tuple(shown.fetchall()))


def run_audits(store: Store, names: Sequence[str], folder: Path | None = None, params: Mapping[str, Any] = {}) -> str:
    """Run the named audits; returns the good news, raises AuditError with the violations."""
    findings = [audit(store, path, params) for path in chosen(names, folder)]
    bad = [f for f in findings if f.violations]
    if bad:
        raise AuditError("\n".join(told(f) for f in bad))
    return f"{len(findings)} passed"


def chosen(names: Sequence[str], folder: Path | None = None) -> list[Path]:
    """The files of the named audits; a name may be a path of the user's own. No names means all packaged ones."""
    known = find_audits(folder)
    for name in names:
        if name not in known and not Path(name).is_file():
            raise SpecError(f"no audit {name!r}; {nearest(name, list(known))}")
    return [known.get(name, Path(name)) for name in names] or list(known.values())


def told(finding: Finding) -> str:
    """A finding for people."""
    if not finding.violations:
        return f"ok    {finding.name}: {finding.asserts}"
    examples = "".join(
        "\n        " + ", ".join(f"{c}={str(v)[:60]!r}" for c, v in zip(finding.columns, row, strict=True))
        for row in finding.examples
    )
    return f"FAIL  {finding.name}: {finding.asserts} {finding.violations} violations, for example:{examples}"


def _asserts(text: str) -> str:
    first = text.strip().split("\n")[0]
    return first.lstrip("- ").strip() if first.startswith("--") else ""


def _value(raw: str) -> Any:
    try:
        return float(raw) if "." in raw else int(raw)
    except ValueError:
        return raw.strip("'\"")
