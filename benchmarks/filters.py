"""All that the filters must show, line by line: what is wanted, what was measured, and whether that is enough.

    python benchmarks/filters.py [peers|pairs|chinese|dense|million|signatures|denoise|quality ...]     all of them else

The measurements are those of `near_duplicates.py`, `near_duplicates_million.py`, `denoise.py` and of the tests on real
data, each described there. Peers run in turns with ours in one process, on the same rows, with one thread; only
`denoise` may use the threads that Polars has.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
if __name__ == "filters":  # run as scripts, all benchmarks find this file where they look for the package of its name
    del sys.modules[__name__]
    sys.path.insert(0, str(ROOT))
    import_module(__name__)

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS"), "1")


class Line(NamedTuple):
    """A figure and its limit, if it has one: `least` or `most`."""

    what: str
    figure: float
    least: float | None = None
    most: float | None = None

    @property
    def enough(self) -> bool:
        return (self.least is None or self.figure >= self.least) and (self.most is None or self.figure <= self.most)

    def __str__(self) -> str:
        wanted = [f"{sign} {limit:,g}" for sign, limit in ((">=", self.least), ("<=", self.most)) if limit is not None]
        said = ("reached" if self.enough else "SHORT") if wanted else ""
        return f"{said:8}{self.figure:12,.6g}  {''.join(wanted):>10}  {self.what}"


def peers() -> Iterator[Line]:
    import near_duplicates as bench

    ratios = bench.peers()
    yield Line("times as fast as datasketch 2.0, bulk and MinHashLSH, text to verdict", ratios["datasketch"], least=8)
    yield Line("times as fast as rensa 0.5, text to verdict", ratios["rensa"], least=1.8)


def pairs() -> Iterator[Line]:
    import near_duplicates as bench

    found = bench.join()
    yield Line("recall of the pairs of Jaccard 0.7 and above", found["recall"], least=0.999)
    yield Line("precision of these pairs", found["precision"], least=1)
    yield Line("injected edits found", found["edits"], least=0.94)


def chinese() -> Iterator[Line]:
    import near_duplicates as bench

    found = bench.zh()
    yield Line("Chinese: recall of the pairs", found["recall"], least=0.999)
    yield Line("Chinese: precision", found["precision"], least=1)
    yield Line("Chinese: injected edits found", found["edits"], least=0.94)


def dense() -> Iterator[Line]:
    import near_duplicates as bench

    found = bench.dense()
    yield Line("dense families: GB of memory", found["peak"], most=2)
    yield Line("dense families: times the time of a row of the corpus", found["ratio"], most=10)


def million() -> Iterator[Line]:
    import near_duplicates_million as bench

    small, large = (bench.parts(rows) for rows in bench.ROWS)
    spent = [sum(step["cpu"] for step in found["whole"]) for found in (small, large)]
    each = [cpu / rows for cpu, rows in zip(spent, bench.ROWS, strict=True)]
    yield Line("1,000,000 rows through the store: CPU s, imported and screened", spent[1])
    yield Line("1,000,000 rows: GB of memory", max(step["peak"] for step in large["whole"]), most=6)
    yield Line("1,000,000 rows: times the time of a row at 30,000", each[1] / each[0], most=2)
    clock, cpu = (median(step[kind] for step in large["incremental"][1:]) for kind in ("clock", "cpu"))
    yield Line("1,000 new rows against 1,000,000 stored: s on the clock", clock, most=1)
    yield Line("1,000 new rows against 1,000,000 stored: CPU s", cpu)


def signatures() -> Iterator[Line]:
    import near_duplicates as bench

    found = bench.signatures()
    yield Line("signatures equal to datasketch's on all rows of alpaca_9k", float(found["equal"]), least=1)
    yield Line("signatures: times as fast as datasketch's bulk given the same hashes", found["given"], least=10)
    yield Line("signatures: times as fast as datasketch's bulk with its own sha1", found["sha1"], least=10)


def denoise() -> Iterator[Line]:
    command = [sys.executable, str(ROOT / "benchmarks" / "denoise.py")]
    environment = {name: value for name, value in os.environ.items() if name != "POLARS_MAX_THREADS"}
    said = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout
    print(said, end="")
    found = json.loads(said.splitlines()[-1])
    yield Line(f"denoise: rows/s of {found['rows']:,}, {found['threads']} threads", found["rows_per_s"], least=150_000)
    yield Line("denoise: rows/s of the processor", found["rows_per_cpu_s"])
    yield Line("denoise: drops that its gates lose", sum(found["lost_by_gates"].values()), most=0)


REAL = {
    "labelled rows of alpaca_9k: precision of denoise's drops >= 0.9": "test_denoise.py::test_nine_of_ten_drops",
    "GSM8K planted: verbatim 1.0, edited >= 0.9, false <= 0.1 %": "test_decontaminate.py::test_gsm8k_planted",
    "Chinese rows planted": "test_decontaminate.py::test_chinese_rows_planted",
    "Chinese: faults put into real rows": "test_denoise.py::test_faults_put_into_real_chinese_rows",
    "XSTest: recall and false alarms on the unseen half": "test_safety_rules.py::test_the_unseen_half_of_xstest",
    "in = kept + dropped, any text": "test_filters.py::test_any_text_gets_one_verdict",
    "a dropped row's representative is kept": "test_near_duplicates.py::test_every_row_is_kept_or_dropped_for_a_live",
    "the order of rows does not matter": "test_near_duplicates.py::test_given_priorities_the_order",
    "huge and binary texts": "test_denoise.py::test_one_word_huge_and_binary_texts",
}


def quality() -> Iterator[Line]:
    """What is judged by its result alone: the tests that hold it, with what they print."""
    for what, test in REAL.items():
        file, name = test.split("::")
        command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", f"tests/{file}", "-k", name]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        print("\n".join(f"  {line}" for line in done.stdout.splitlines() if ":" in line))
        yield Line(what, float(done.returncode == 0), least=1)


PARTS: dict[str, Callable[[], Iterator[Line]]] = {
    part.__name__: part for part in (peers, pairs, chinese, dense, million, signatures, denoise, quality)
}


def main() -> None:
    if not ONE_THREAD.items() <= os.environ.items():  # the libraries read them when they are loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ONE_THREAD)
    os.environ["PYTHONPATH"] = str(ROOT)
    sys.path.append(str(ROOT))
    lines = []
    for name in sys.argv[1:] or PARTS:
        print(f"{name}:", flush=True)
        lines += PARTS[name]()
    print("\n".join(map(str, lines)))


if __name__ == "__main__":
    main()
