"""What travels with an exported file: the dataset card, and the entry or snippet that its consumer wants to be told by.

The card's header follows the Hugging Face Hub's dataset card metadata: configs with data_files, dataset_info with
features and splits, and size_categories from the Hub's fixed list.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from factory.errors import DataError

_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B")
_DTYPES = {"double": "float64", "float": "float32", "halffloat": "float16", "date32[day]": "date32"}
_WORDS = {"prompts": "prompts", "sft": "prompts with an answer each", "pairs": "pairs of a better and a worse answer"}
_TAGS = {"prompts": ["prompts"], "sft": ["sft", "instruction-tuning"], "pairs": ["preference", "dpo"]}


@dataclass(frozen=True)
class Card:
    """What a reader must know of a dataset. The export itself fills in `rows`, `columns` and, if empty, `languages`."""

    name: str
    query: str
    """The SQL that selected the rows."""
    store: str
    """The file name of the store, without its folder."""
    rows: int = 0
    languages: tuple[str, ...] = ()
    license: str = "unknown"
    """A licence identifier of the Hub, such as apache-2.0."""
    generators: tuple[str, ...] = ()
    """The generators and models that made the rows."""
    columns: tuple[str, ...] = ()


def size_category(rows: int) -> str:
    """The Hub's name for that many rows."""
    return next((name for power, name in enumerate(_SIZES, 3) if rows < 10**power), "10B<n<100B")


def readme(card: Card, kind: str, data: str, size: int, schema: pa.Schema, usage: str) -> str:
    """The README.md beside a data file of `size` bytes; `data` is the file's path relative to it."""
    header = {
        "pretty_name": card.name,
        "language": list(card.languages),
        "license": card.license,
        "task_categories": ["text-generation"],
        "size_categories": [size_category(card.rows)],
        "tags": ["synthetic", *_TAGS[kind]],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": data}]}],
        "dataset_info": {
            "features": [{"name": field.name, **_feature(field.type)} for field in schema],
            "splits": [{"name": "train", "num_bytes": size, "num_examples": card.rows}],
            "download_size": size,
            "dataset_size": size,
        },
    }
    front = yaml.safe_dump({k: v for k, v in header.items() if v != []}, allow_unicode=True, sort_keys=False, width=120)
    return f"---\n{front}---\n\n{_human_part(card, kind, data, schema, usage)}"


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """A column type as the `datasets` library spells it in YAML."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = _feature(kind.value_type)
        return {"list": inner.get("dtype") or inner.get("struct") or inner}
    if pa.types.is_struct(kind):
        return {"struct": [{"name": field.name, **_feature(field.type)} for field in kind]}
    return {"dtype": _DTYPES.get(str(kind), str(kind))}


def _human_part(card: Card, kind: str, data: str, schema: pa.Schema, usage: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", card.query)), default=0))
    columns = "\n".join(f"| `{field.name}` | {field.type} |" for field in schema)
    made = f"Made by {', '.join(card.generators)}.\n\n" if card.generators else ""
    return (
        f"# {card.name}\n\n{card.rows:,} {_WORDS[kind]}, in `{data}`.\n\n{made}"
        f"| column | type |\n|---|---|\n{columns}\n\n## Use\n\n{usage}\n\n"
        f"## Origin\n\nSelected from the store `{card.store}` by\n\n{fence}sql\n{card.query.strip()}\n{fence}\n"
    )


# --- what the trainers want ------------------------------------------------------------------------------------------


def slug(name: str) -> str:
    """The name as LLaMA-Factory can take it: its list of data sets is parted by commas."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_") or "dataset"


def llama_factory(beside: Path, fmt: str, kind: str, name: str, data: str, columns: tuple[str, ...]) -> str:
    """The text of dataset_info.json with this dataset's entry added to those already in the file.

    Raises DataError if the file that is there is not a JSON object.
    """
    if fmt == "alpaca":
        names = {"instruction": "prompt", "input": "query", "output": "response"}
        entry: dict[str, Any] = {"file_name": data}
    else:
        names = {"conversations": "messages"}
        entry = {"file_name": data, "formatting": "sharegpt"}
    if kind == "pairs":
        entry["ranking"] = True
    entry["columns"] = {names.get(column, column): column for column in columns}
    # ASCII, because LLaMA-Factory opens the file in the platform's own encoding.
    return json.dumps(_entries(beside) | {slug(name): entry}, indent=2) + "\n"


def _entries(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); mend it or export into another folder") from error
    if not isinstance(entries, dict):
        raise DataError(f"{path} holds no JSON object; mend it or export into another folder")
    return entries


def axolotl(kind: str, data: str) -> str:
    """The part of an axolotl configuration that reads the file."""
    dataset: dict[str, Any] = {"path": data, "ds_type": "json"}
    if kind == "sft":
        dataset |= {"type": "chat_template", "field_messages": "messages", "roles_to_train": ["assistant"]}
        return yaml.safe_dump({"datasets": [dataset]}, allow_unicode=True, sort_keys=False)
    dataset |= {
        "split": "train",
        "type": "chat_template.default",
        "field_messages": "messages",
        "field_chosen": "chosen",
        "field_rejected": "rejected",
    }
    return yaml.safe_dump({"rl": "dpo", "datasets": [dataset]}, allow_unicode=True, sort_keys=False)
