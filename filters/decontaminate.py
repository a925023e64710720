"""`decontaminate`: no prompt of an evaluation set stays in the data, compared as normalised text."""

import json
from pathlib import Path
from typing import Literal

import polars as pl

from factory.errors import DataError
from factory.options import step
from factory.text import normalise


@step
class Decontaminate:
    """Drops records whose prompt stands in a held-out file."""

    heldout: Path
    """A .jsonl file of the evaluation set, with `prompt`, or `instruction` and `input`."""
    target: Literal["prompts", "completions"] = "prompts"
    """Drop the prompts, or only the completions that answer them."""

    def screen(self, frame: pl.DataFrame) -> pl.DataFrame:
        """One verdict a row; the evidence of a drop is the line of the held-out file."""
        lines = _held_out(self.heldout)
        found = [lines.get(normalise(p)) for p in frame["prompt"]]
        return pl.DataFrame(
            {
                "id": frame["id"],
                "keep": [line is None for line in found],
                "reason": ["" if line is None else "in_heldout" for line in found],
                "score": [float(line is not None) for line in found],
                "threshold": [1.0] * len(found),
                "evidence_id": ["" if line is None else f"{self.heldout.name}:{line}" for line in found],
            },
            schema_overrides={"keep": pl.Boolean, "reason": pl.String, "evidence_id": pl.String},
        )


def _held_out(path: Path) -> dict[str, int]:
    """Normalised prompt to its line, from 1."""
    if not path.is_file():
        raise DataError(f"decontaminate: no file {path}; give the evaluation set as .jsonl in `heldout`")
    found = dict[str, int]()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        row = json.loads(line)
        asked = row.get("prompt") or row.get("instruction")
        if not isinstance(asked, str):
            raise DataError(f"{path} line {number}: needs `prompt`, or `instruction` and `input`; found {list(row)}")
        found.setdefault(normalise(f"{asked}\n{row['input']}" if row.get("input") else asked), number)
    return found
