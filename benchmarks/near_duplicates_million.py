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


def measured(name: str, began: float, started: float) -> dict[str, float]:
    """Tell the time of the processor and the clock since then, and the highest memory so far."""
    figures = {
        "cpu": time.process_time() - began,
        "clock": time.monotonic() - started,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    told = "{cpu:.2f} s ({clock:.2f} s on the clock), peak so far {peak:.2f} GB".format(**figures)
    print(f"  {name}: {told}", flush=True)
    return figures


def whole(folder: Path) -> list[dict[str, float]]:
    """Import and screen."""
    store, found = Store(folder / "rows.duckdb"), []
    for name in ("import", "near_duplicates"):
        began, started = time.process_time(), time.monotonic()
        if name == "import":
            told = flow.import_file(store, folder / "rows.jsonl", "old")
        else:
            told = flow.screen(store, NearDuplicates(), "near_duplicates", "old", [])
        found.append(measured(f"{name}: {told}", began, started))
    return found


def incremental(folder: Path) -> list[dict[str, float]]:
    """The first batch brings the index up to date; the others are what every later batch costs."""
    store, found = Store(folder / "rows.duckdb"), []
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
        what = "index made" if batch == 0 else "index there"
        found.append(measured(f"{MORE:,} new rows, {what}: {told}", began, started))
    return found


def parts(rows: int) -> dict[str, list[dict[str, float]]]:
    """Each part in a process of its own, on so many rows."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    found = {}
    with TemporaryDirectory() as folder:
        write(Path(folder) / "rows.jsonl", texts(rows))
        print(f"{rows:,} rows, {(Path(folder) / 'rows.jsonl').stat().st_size / 1e6:,.0f} MB", flush=True)
        for part in ("whole", "incremental"):
            command = [sys.executable, __file__, part, folder]
            said = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout
            *lines, last = said.splitlines()
            print("\n".join(lines), flush=True)
            found[part] = json.loads(last)
    return found


def main() -> None:
    """All sizes, or one part for the process that asked for it."""
    if len(sys.argv) > 1:
        print(json.dumps({"whole": whole, "incremental": incremental}[sys.argv[1]](Path(sys.argv[2]))))
        return
    for rows in ROWS:
        parts(rows)


if __name__ == "__main__":
    main()
