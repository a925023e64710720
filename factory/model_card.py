"""The card of a checkpoint: from which rows it came, by which command, and how it measured."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class ModelCard:
    """What a card tells. `store` is the name of the store, or of the file, that the rows came from;
    `rows_hash` is of the rows' Parquet file: the same rows have the same one.
    """

    trainer: str
    options: Mapping[str, Any]
    query: str
    store: str
    rows: int
    rows_hash: str
    left_out: Mapping[str, int]
    metrics: Mapping[str, float]
    diagnosis: Sequence[str] = ()


def write_card(card: ModelCard, out: Path) -> None:
    """Write README.md into a checkpoint, whole or not at all."""
    partial = out / ".README.md.partial"
    partial.write_text(_text(card, out.name), encoding="utf-8")
    os.replace(partial, out / "README.md")


def options_of(step: Any) -> dict[str, Any]:
    """The options of a step that are not its defaults, and its base."""
    found = {f.name: getattr(step, f.name) for f in fields(step)}
    defaults = {
        name: info.get_default(call_default_factory=True) for name, info in type(step).__pydantic_fields__.items()
    }
    return {name: value for name, value in found.items() if name == "base" or value != defaults[name]}


def _text(card: ModelCard, name: str) -> str:
    base = Path(str(card.options.get("base", ""))).name
    front = {"library_name": "transformers", "base_model": base, "tags": ["alignment-factory", card.trainer]}
    command = " ".join(["factory", *sys.argv[1:]]) if sys.argv[1:] else "(called from Python)"
    found = ["", "## Diagnosis", "", *(f"- {said}" for said in card.diagnosis)] if card.diagnosis else []
    left_out = [f"- {count:,} rows were left out: {reason}" for reason, count in sorted(card.left_out.items())]
    return "\n".join([
        "---", yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(), "---", "", f"# {name}", "",
        f"`{base}`, trained with `{card.trainer}`.", "", "## Rows", "",
        f"{card.rows:,} rows of `{card.store}`; BLAKE2b of the rows: `{card.rows_hash}`.", *left_out, "",
        "```sql", card.query.strip(), "```", "", "## Command", "", "```", command, "```", "", "## Options", "",
        "```yaml", yaml.safe_dump(_plain(card.options), sort_keys=False, allow_unicode=True).strip(), "```", "",
        "## Last measurements", "", "| metric | value |", "|---|---|",
        *(f"| {name} | {value:.6g} |" for name, value in sorted(card.metrics.items())), *found, "",
    ])  # fmt: skip


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """As YAML holds them; a reward by its name, and a checkpoint without the folders above it."""
    plain = {k: list(v) if isinstance(v, tuple) else getattr(v, "name", v) for k, v in options.items()}
    named = {k: Path(str(options[k])).name for k in ("value_model", "ref_model") if options.get(k)}
    return plain | named | {"base": Path(str(options.get("base", ""))).name}
