"""A run that writes, 1,000 reads through the store's API and 50 `factory sql` calls from other processes.

Prints the lock errors (none allowed) and how much slower the run was than alone, both runs in turns.
"""

import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from factory.store import Store
from tests.specs_help import scripted_spec

READS, QUERIES, ROUNDS = 1000, 50, 3


def _run(path: Path, store: Path) -> float:
    started = time.monotonic()
    command = [sys.executable, "-m", "factory.cli", "run", str(path), "--store", str(store)]
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - started


def _read(path: Path, count: int, results: "multiprocessing.Queue[str]") -> None:
    store = Store(path)
    while not path.exists():
        time.sleep(0.05)
    for _ in range(count):
        try:
            store.rows("SELECT count(*), max(created_at) FROM prompts")
        except Exception as error:
            results.put(f"{type(error).__name__}: {error}")
        time.sleep(0.012)
    results.put("")


def _query(path: Path, count: int, results: "multiprocessing.Queue[str]") -> None:
    while not path.exists():
        time.sleep(0.05)
    command = [sys.executable, "-m", "factory.cli", "sql", "SELECT count(*) FROM calls", "--store", str(path)]
    for _ in range(count):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            results.put(done.stderr)
        time.sleep(0.05)
    results.put("")


def main() -> None:
    """Alone and disturbed, in turns; the engine waits for each reply, as one over a network does."""
    alone, disturbed, errors = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        spec = scripted_spec(Path(folder), n=30, latency=0.005)
        for turn in range(ROUNDS):
            alone.append(_run(spec, Path(folder) / f"alone{turn}.duckdb"))
            path, results = Path(folder) / f"disturbed{turn}.duckdb", multiprocessing.Queue()
            others = [
                multiprocessing.Process(target=_read, args=(path, READS, results)),
                multiprocessing.Process(target=_query, args=(path, QUERIES, results)),
            ]
            for other in others:
                other.start()
            disturbed.append(_run(spec, path))
            for other in others:
                other.join()
            while not results.empty():
                errors += [e for e in [results.get()] if e]
            print(f"turn {turn}: alone {alone[-1]:.1f} s, disturbed {disturbed[-1]:.1f} s")
    slower = min(disturbed) / min(alone) - 1
    print(f"errors {len(errors)}, slower by {100 * slower:.1f} % (allowed: 0 and 10 %)")
    print("\n".join(errors[:3]))


if __name__ == "__main__":
    main()
