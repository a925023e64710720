"""What the tests of the dataset formats share."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from factory.formats import records
from factory.records import Message, Record

SHARED = Path(os.environ.get("FACTORY_SHARED", Path(__file__).parents[2] / "shared")) / "data"
Row = dict[str, Any]


def said(*texts: str, system: str = "") -> tuple[Message, ...]:
    turns = tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts))
    return (Message("system", system), *turns) if system else turns


def saved(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, **options: str) -> list[Record]:
    return list(records(path, **options))


def counts(found: list[Record]) -> dict[str, int]:
    return dict(Counter(type(record).__name__ for record in found))


def only(found: list[Record], kind: type[Record]) -> list[Any]:
    return [record for record in found if isinstance(record, kind)]


def real(name: str) -> Path:
    if not (SHARED / name).exists():
        pytest.skip(f"the real file {name} is not here; set FACTORY_SHARED to the folder that holds data/")
    return SHARED / name
