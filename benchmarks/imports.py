"""Import of 1,000,000 short rows through the store: rows a second, and the peak memory."""

import json
import resource
import tempfile
import time
from pathlib import Path

from factory import flow
from factory.store import Store

ROWS = 1_000_000


def main() -> None:
    """Prompts only, then Alpaca rows (each a prompt and a completion)."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("prompt", "alpaca"):
            path = Path(folder) / f"{name}.jsonl"
            with path.open("w", encoding="utf-8") as file:
                for i in range(ROWS):
                    row = {"prompt": f"Tell me something short about number {i}."}
                    if name == "alpaca":
                        row = {"instruction": f"Add one to the number {i}.", "input": "", "output": f"It is {i + 1}."}
                    file.write(json.dumps(row) + "\n")
            store = Store(Path(folder) / f"{name}.duckdb")
            started = time.monotonic()
            flow.import_file(store, path, "d")
            took = time.monotonic() - started
            size = store.path.stat().st_size / 2**20
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f"{name}: {ROWS / took:,.0f} rows/s ({took:.1f} s), store {size:.0f} MB, peak memory {peak:.2f} GB")


if __name__ == "__main__":
    main()
