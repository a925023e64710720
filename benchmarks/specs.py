"""Every packaged spec from an empty store: how long it takes, and what it measured of itself.

Each runs in a process of its own, one after the other. Prints a JSON line for each spec with its seconds (loading and
evaluation included) and the conformance figures of its generators that have a published one beside them.

    python benchmarks/specs.py [mini evol ...]
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[0] = str(ROOT)  # else trainers.py beside this file would be the package `trainers`

from factory import conformance  # noqa: E402
from factory.store import Store  # noqa: E402

AFTER = {"adversarial_train": "adversarial"}  # it trains on the rows of another


def ran(name: str, store: Path) -> tuple[float, float]:
    """Seconds by the clock and by the processor."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "factory.cli", "run", str(ROOT / "specs" / f"{name}.yaml"), "--store", str(store)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{name}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return round(time.perf_counter() - started, 1), round(spent, 1)


def beside_published(store: Store) -> dict[str, list[float | None]]:
    """Each measure of a generator that has a published figure: this run's, and that one."""
    found = [line for dataset in conformance.datasets(store) for line in conformance.lines(store, dataset)]
    return {
        f"{line.step}/{line.measure}": [None if line.this_run is None else round(line.this_run, 3), line.published]
        for line in found
        if line.step and line.published is not None
    }


def main() -> None:
    packaged = sorted(path.stem for path in (ROOT / "specs").glob("*.yaml"))
    for name in sys.argv[1:] or packaged:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "s.duckdb"
            if name in AFTER:
                ran(AFTER[name], path)
            seconds, processor = ran(name, path)
            told = {"spec": name, "seconds": seconds, "cpu_seconds": processor}
            print(json.dumps(told | {"conformance": beside_published(Store(path))}), flush=True)


if __name__ == "__main__":
    main()
