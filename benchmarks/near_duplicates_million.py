"""A million rows through the store: near_duplicates on all of them, and a thousand new ones against them.

The rows are `tests.near_help.like`: the corpus again and again, in other words. Each size runs in a process of its own:
import, then the filter as a run does it, its verdicts stored. Times are of the processor.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from factory import flow
from factory.records import Prompt, user
from factory.store import Store
from filters.against_store import AgainstStore
from filters.near_duplicates import NearDuplicates
from tests.conftest import ROOT, SHARED
from tests.near_help import english, like, with_edits

ROWS = (30_000, 1_000_000)
MORE, EDITED = 1000, 100  # new rows, and how many of them are edits of stored ones


def texts(rows: int) -> Iterator[str]:
    """Rows of the corpus with its 10,000 edited copies, and of copies of it in other words."""
    corpus, _ = with_edits(english(SHARED / "data"), 10_000, 1)
    return islice(like(corpus, -(-rows // len(corpus)), 1), rows)


def write(path: Path, rows: Iterator[str]) -> None:
    """As a file to import."""
    with path.open("w", encoding="utf-8") as file:
        for text in rows:
            print(json.dumps({"prompt": text}, ensure_ascii=False), file=file)


def measured(name: str, began: float, started: float) -> None:
    """Tell the time of the processor and the clock since then, and the highest memory so far."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  {name}: {time.process_time() - began:.2f} s ({time.monotonic() - started:.2f} s on the clock), "
          f"peak so far {memory:.2f} GB", flush=True)  # fmt: skip


def whole(folder: Path) -> None:
    """Import and screen."""
    store = Store(folder / "rows.duckdb")
    for name in ("import", "near_duplicates"):
        began, started = time.process_time(), time.monotonic()
        if name == "import":
            told = flow.import_file(store, folder / "rows.jsonl", "old")
        else:
            told = flow.screen(store, NearDuplicates(), "near_duplicates", "old", [])
        measured(f"{name}: {told}", began, started)


def incremental(folder: Path) -> None:
    """The first batch brings the index up to date; the others are what every later batch costs."""
    store = Store(folder / "rows.duckdb")
    old = [text for (text,) in store.rows("SELECT messages[1].content FROM prompts USING SAMPLE 4000 (reservoir, 1)")]
    for batch in range(4):
        some = old[batch * MORE : batch * MORE + MORE]
        edited, _ = with_edits(some[:EDITED], EDITED, batch)
        fresh = [f"{text[::-1]} {batch}" for text in some[EDITED:]]
        name = f"new{batch}"
        store.append([Prompt(user(text)) for text in edited[EDITED:] + fresh], name)
        began, started = time.process_time(), time.monotonic()
        step = AgainstStore(datasets=("old",))
        told = flow.screen(store, step, "against_store", name, [])
        measured(f"{MORE:,} new rows, {'index made' if batch == 0 else 'index there'}: {told}", began, started)


def main() -> None:
    """Every size in a process of its own."""
    if len(sys.argv) > 1:
        {"whole": whole, "incremental": incremental}[sys.argv[1]](Path(sys.argv[2]))
        return
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    for rows in ROWS:
        with TemporaryDirectory() as folder:
            write(Path(folder) / "rows.jsonl", texts(rows))
            print(f"{rows:,} rows, {(Path(folder) / 'rows.jsonl').stat().st_size / 1e6:,.0f} MB", flush=True)
            for part in ("whole", "incremental"):
                subprocess.run([sys.executable, __file__, part, folder], check=True, env=environment)


if __name__ == "__main__":
    main()
