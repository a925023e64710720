"""How many rows a second `denoise` judges, and what its gates save.

The rows are real ones (Alpaca in English and Chinese, GSM8K), repeated up to a million in the order of a seed, with the
faults that they have. One process; Polars may use its threads, so CPU seconds are told beside the clock's. Then each
rule is asked of all rows without its gate, on a part of the rows, to say that the gates lose nothing.
"""

import argparse
import json
import time
from pathlib import Path

import polars as pl

from factory.text import language
from filters.denoise import Denoise
from tests.conftest import SHARED

ALPACA = ("alpaca_9k.json", "alpaca_en_demo.json", "alpaca_zh_demo.json")


def real_rows(folder: Path) -> pl.DataFrame:
    """Prompts and answers as an import stores them."""
    rows = []
    for name in ALPACA:
        for row in json.loads((folder / name).read_text(encoding="utf-8")):
            rows.append(("\n".join(filter(None, (row["instruction"], row.get("input")))), row["output"]))
    for line in (folder / "gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows.append((row["question"], row["answer"]))
    frame = pl.DataFrame(rows, schema=["prompt", "text"], orient="row")
    return frame.with_columns(pl.Series("language", [language(prompt) for prompt, _ in rows]))


def repeated(rows: pl.DataFrame, count: int) -> pl.DataFrame:
    """So many rows, drawn with a seed."""
    drawn = rows.sample(count, with_replacement=True, seed=1)
    frame = drawn.with_row_index("id").with_columns(
        pl.col("id").cast(pl.String), finish_reason=pl.lit("stop"), priority=pl.lit(None, pl.Float64)
    )
    # As from a store, where texts lie one behind the other.
    return pl.DataFrame(pl.from_arrow(frame.to_arrow(compat_level=pl.CompatLevel.oldest())))


def lost_by_gates(frame: pl.DataFrame) -> dict[str, int]:
    """For each rule, how many rows it would drop that its gate does not let through."""
    lost = {}
    for rule in Denoise()._rules():
        beyond = frame.filter(~frame.select(rule.gate.fill_null(True)).to_series())
        lost[rule.reason] = int((rule.score(beyond) >= rule.threshold).sum()) if len(beyond) else 0
    return lost


def figures(count: int, times: int) -> dict[str, object]:
    """Of the best of so many turns over so many rows."""
    frame = repeated(real_rows(SHARED / "data"), count)
    Denoise().screen(frame.head(10_000))  # patterns are compiled once
    turns = []
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        told = Denoise().screen(frame)
        turns.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = min(turns)[0], min(turn[1] for turn in turns)
    bytes_ = int(frame.select(pl.col("text", "prompt").str.len_bytes().sum()).sum_horizontal()[0])
    reasons = dict(told.filter(~pl.col("keep"))["reason"].value_counts(sort=True).rows())
    return {
        "rows": count,
        "megabytes": round(bytes_ / 1e6),
        "threads": pl.thread_pool_size(),
        "rows_per_s": round(count / wall),
        "rows_per_cpu_s": round(count / cpu),
        "dropped": int((~told["keep"]).sum()),
        "reasons": reasons,
        "lost_by_gates": {reason: n for reason, n in lost_by_gates(frame.head(50_000)).items() if n},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=3, help="how often all rows are judged; the best turn is told")
    args = parser.parse_args()
    print(json.dumps(figures(args.rows, args.turns)))


if __name__ == "__main__":
    main()
