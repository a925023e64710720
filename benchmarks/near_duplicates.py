"""The near-duplicate filters beside their peers: time in turns within one process, and what is found against the truth.

    python benchmarks/near_duplicates.py [peers|join|chinese|signatures|dense ...]     all parts where none is named

"Near" is Jaccard similarity at or above 0.7 of the filter's own shingles (`factory.text.shingles`, n = 3); the truth is
the product of the whole matrix of rows and shingles with itself. One thread; times are of the processor.
"""

import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import rensa
from datasketch import MinHash, MinHashLSH

from factory.text import shingles
from filters._join import Join, among
from filters._planner import by_prefixes
from filters._signatures import signatures_of, token_hashes
from filters._spool import spool
from filters.minhash import Minhash
from filters.near_duplicates import NearDuplicates
from tests.conftest import ROOT, SHARED
from tests.near_help import chinese, english, families, frame, true_pairs, with_edits

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS"), "1")
LIMIT, PERMS = 0.7, 128
WORD = re.compile(r"\w+")


def corpus() -> tuple[list[str], list[tuple[int, int]]]:
    """All English rows and 10,000 edited copies."""
    return with_edits(english(SHARED / "data"), 10_000, 1)


def seconds(work: Callable[[], Any]) -> float:
    """Of the processor, in all threads."""
    started = time.process_time()
    work()
    return time.process_time() - started


# -- peers -------------------------------------------------------------------------------------------------------------


def sets_of_words(texts: list[str]) -> list[set[str]]:
    """What their users write: word trigrams in plain Python."""
    words = [WORD.findall(text.lower()) for text in texts]
    return [{" ".join(gram) for gram in zip(w, w[1:], w[2:], strict=False)} or {" ".join(w)} for w in words]


def by_datasketch(texts: list[str]) -> list[bool]:
    """Whether each text has an earlier one near it: `bulk`, then query and insert."""
    sketches = MinHash.bulk([[s.encode() for s in row] for row in sets_of_words(texts)], num_perm=PERMS)
    lsh, found = MinHashLSH(threshold=LIMIT, num_perm=PERMS), []
    for place, sketch in enumerate(sketches):
        found.append(bool(lsh.query(sketch)))
        lsh.insert(place, sketch, check_duplication=False)
    return found


def by_rensa(texts: list[str]) -> list[bool]:
    """Whether each text has another one near it, by its fastest way over full signatures."""
    rows = [list(row) for row in sets_of_words(texts)]
    matrix = rensa.RMinHash.digest_matrix_from_token_sets(rows, PERMS, 42)
    return list(rensa.RMinHashLSH(LIMIT, PERMS, 16).query_duplicate_flags_matrix_one_shot(matrix))


def peers(rounds: int = 5) -> dict[str, float]:
    """Text to verdict, in turns: how many times as long as near_duplicates each takes."""
    texts, _ = corpus()
    rows = frame(*texts)
    sides: dict[str, Callable[[], Any]] = {
        "near_duplicates": lambda: NearDuplicates().screen(rows),
        "minhash": lambda: Minhash().screen(rows),
        "datasketch": lambda: by_datasketch(texts),
        "rensa": lambda: by_rensa(texts),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            times[name].append(seconds(work))
    size = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{len(texts):,} rows, {size:.1f} MB, {rounds} rounds in turns")
    ratios = {}
    for name, taken in times.items():
        ratios[name] = median(other / own for own, other in zip(times["near_duplicates"], taken, strict=True))
        print(f"  {name:16} median {median(taken):6.2f} s, best {min(taken):6.2f} s, {ratios[name]:5.2f} x as long")
    return ratios


# -- what is found -----------------------------------------------------------------------------------------------------


def join(read: Callable[[], tuple[list[str], list[tuple[int, int]]]] = corpus) -> dict[str, float]:
    """Recall and precision of the pairs before peeling, which are returned, and of every filter's drops."""
    texts, edits = read()
    truth = true_pairs(texts, LIMIT)
    with spool(pl.Series(texts), 3) as spooled:
        sets, postings = by_prefixes([spooled], np.arange(len(texts)), LIMIT)
        pairs = Join(sets).pairs(among(postings))
    found = set(zip(pairs.row.tolist(), pairs.near.tolist(), strict=True))
    hits, near = len(found & truth.keys()), {row for pair in truth for row in pair}
    share = sum(edit in found for edit in edits) / len(edits)
    print(f"{len(texts):,} rows, {len(truth):,} true pairs: recall {hits / len(truth):.4f}, "
          f"precision {hits / len(found):.4f}; edited copies found {share:.4f}")  # fmt: skip
    for step in (NearDuplicates(), Minhash(), Minhash(recall=0.999)):
        told = step.screen(frame(*texts)).filter(~pl.col("keep"))
        true = [truth.get((int(a), int(b)), 0.0) == score for a, b, score in
                told.select("id", "evidence_id", "score").iter_rows()]  # fmt: skip
        gone = set(map(int, told["id"]))
        missed = sum(a not in gone and b not in gone for a, b in truth)
        print(f"  {type(step).__name__}: {len(told):,} dropped, each verified: {all(true)}; "
              f"true pairs left among the kept rows: {missed}")  # fmt: skip
    for name, flags in (("datasketch", by_datasketch(texts)), ("rensa", by_rensa(texts))):
        flagged = {row for row, flag in enumerate(flags) if flag}
        later = {a for a, _ in truth} if name == "datasketch" else near
        print(f"  {name}: recall of rows with a near one {len(flagged & later) / len(later):.4f}, "
              f"precision {len(flagged & later) / len(flagged):.4f}")  # fmt: skip
    return {"recall": hits / len(truth), "precision": hits / len(found), "edits": share}


def zh() -> dict[str, float]:
    """The same on Chinese rows."""
    return join(lambda: with_edits(chinese(SHARED / "data"), 1000, 1))


def signatures(rounds: int = 7) -> dict[str, float]:
    """Equal to datasketch's, and the time of both from the same token hashes on."""
    rows = json.loads((SHARED / "data/alpaca_9k.json").read_text(encoding="utf-8"))
    texts = pl.Series(["\n".join(filter(None, (r["instruction"], r["input"], r["output"]))) for r in rows])
    with spool(texts, 3) as spooled:
        hashes = [p.hashes[a:b] for _, p in spooled.pieces() for a, b in zip(p.offsets, p.offsets[1:], strict=False)]
        tokens = [list(set(token_hashes(row).tolist())) for row in hashes]
        words = [[s.encode() for s in shingles(text)] for text in texts]
        ours, bulk, plain = [], [], []
        for _ in range(rounds):
            ours.append(seconds(lambda: signatures_of([spooled], PERMS, 1)))
            bulk.append(seconds(lambda: MinHash.bulk(tokens, num_perm=PERMS, hashfunc=lambda token: token)))
            plain.append(seconds(lambda: MinHash.bulk(words, num_perm=PERMS)))
        found = signatures_of([spooled], PERMS, 1)
        theirs = MinHash.bulk(tokens, num_perm=PERMS, hashfunc=lambda token: token)
    same = all((found[:, i] == sketch.hashvalues).all() for i, sketch in enumerate(theirs))
    ratio, own = (median(b / a for a, b in zip(ours, theirs, strict=True)) for theirs in (bulk, plain))
    print(f"{len(texts):,} rows: equal {same}; {median(ours):.3f} s; bulk given the same hashes {median(bulk):.3f} s "
          f"({ratio:.1f} x), with its own sha1 {median(plain):.3f} s ({own:.1f} x)")  # fmt: skip
    return {"equal": same, "given": ratio, "sha1": own}


# -- memory and size: each in a process of its own ---------------------------------------------------------------------


def alone(part: str, *args: str) -> dict[str, float]:
    """What a part prints as JSON when it runs in a new process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, part, *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr)
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def peak() -> float:
    """GB of memory that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def screened(texts: list[str]) -> None:
    """Screen once and tell."""
    rows = frame(*texts)
    before, taken = peak(), seconds(lambda: NearDuplicates().screen(rows))
    kept = int(NearDuplicates().screen(rows)["keep"].sum())
    print(json.dumps({"rows": len(rows), "seconds": taken, "peak": peak(), "before": before, "kept": kept}))


def dense() -> dict[str, float]:
    """Time of a row and memory in dense families, beside the corpus."""
    sparse, many = alone("one_sparse"), alone("one_dense")
    for name, told in (("corpus", sparse), ("dense families", many)):
        print(f"  {name}: {told['rows']:,} rows, {told['kept']:,} kept, {told['seconds']:.2f} s, "
              f"{1e6 * told['seconds'] / told['rows']:.0f} us a row, peak {told['peak']:.2f} GB")  # fmt: skip
    ratio = many["seconds"] / many["rows"] / (sparse["seconds"] / sparse["rows"])
    print(f"  a row in a dense family takes {ratio:.1f} times as long")
    return {"ratio": ratio, "peak": many["peak"]}


PARTS: dict[str, Callable[[], object]] = {
    "peers": peers,
    "join": join,
    "chinese": zh,
    "signatures": signatures,
    "dense": dense,
    "one_sparse": lambda: screened(corpus()[0]),
    "one_dense": lambda: screened(families(50_000, 300, 1)),
}


def main() -> None:
    """The parts that are named, or all that print for people."""
    if not THREADS.items() <= os.environ.items():  # the libraries read them when they are loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | THREADS)
    for part in sys.argv[1:] or [name for name in PARTS if not name.startswith("one_")]:
        print(f"{part}:")
        PARTS[part]()


if __name__ == "__main__":
    main()
