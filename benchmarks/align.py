"""What ways to align are worth on the mini world, over several seeds: specs/align.yaml and the table of align.sql.

Each seed is a run of its own, on a store of its own: other draws, other preferences, another reward model, other
orders of all rows. Prints the table of every run as JSON, and at the end the mean over the seeds with the lowest and
the highest. Another spec with a query beside it can take the place of the first.

    python benchmarks/align.py --seeds 7 8 9 --jobs 2 [--spec specs/overoptimise.yaml] [--keep DIR]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[0] = str(ROOT)  # else trainers.py beside this file would be the package `trainers`

from factory.run import run  # noqa: E402
from factory.spec import TrainStage, load_spec  # noqa: E402
from factory.store import Store  # noqa: E402

Rows = list[dict[str, Any]]


def one(path: Path, seed: int, store: Path) -> None:
    """One run of the spec with another seed, also for what trainers draw."""
    spec = load_spec(path)
    stages = tuple(_seeded(stage, seed) if isinstance(stage, TrainStage) else stage for stage in spec.stages)
    run(spec.model_copy(update={"seed": seed, "stages": stages}), Store(store), lambda line: print(line, flush=True))


def _seeded(stage: TrainStage, seed: int) -> TrainStage:
    own = int(stage.options.get("seed", 0))  # members of an ensemble differ by it
    return stage.model_copy(update={"options": {**stage.options, "seed": seed + own}})


def table(spec: Path, store: Path) -> Rows:
    """What the query beside the spec makes of a store."""
    return Store(store).frame(spec.with_suffix(".sql").read_text(encoding="utf-8")).to_dicts()


def apart(spec: Path, seed: int, folder: Path) -> Rows:
    """A run in a process of its own; its table."""
    store, since = folder / f"{spec.stem}-{seed}.duckdb", time.monotonic()
    command = [sys.executable, __file__, "--one", str(seed), "--spec", str(spec), "--keep", str(store)]
    with open(folder / f"{spec.stem}-{seed}.log", "w") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=True)
    rows = table(spec, store)
    print(json.dumps({"seed": seed, "minutes": round((time.monotonic() - since) / 60, 1), "table": rows}), flush=True)
    return rows


def together(tables: Sequence[Rows]) -> list[str]:
    """The mean of each number over the runs, with the lowest and the highest."""
    lines = list[str]()
    for row in tables[0]:
        alike = [next(r for r in rows if r["model"] == row["model"]) for rows in tables]
        told = (f"{name} {_spread([r[name] for r in alike])}" for name in row if name != "model")
        lines.append(f"{row['model']:12s} {'  '.join(told)}")
    return lines


def _spread(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{fmean(known):.4g} [{min(known):.4g}, {max(known):.4g}]" if known else "-"


def main(given: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(given.jobs) as pool:
        place = given.keep or Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        tables = list(pool.map(lambda seed: apart(given.spec, seed, place), given.seeds))
        print("\n".join(together(tables)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=Path, default=ROOT / "specs/align.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8, 9])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a core each")
    parser.add_argument("--keep", type=Path, help="a folder for the stores")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        one(arguments.spec, arguments.one, arguments.keep)
    else:
        main(arguments)
