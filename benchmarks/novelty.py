"""What the novelty gate costs beside brute force with ROUGE's own scorer, at the same decisions.

Reads a JSON list of rows with an `instruction`, fills a pool with the first ones and asks for the nearest of the next:
by the gate, by brute force with `rouge_score` on texts split beforehand, and by brute force with the gate's own fast
scorer, which shows what the bounds alone save. Prints one JSON line; a decision that differs ends it with an error.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

from rapidfuzz.distance import LCSseq
from rouge_score.rouge_scorer import RougeScorer

from factory.text import words
from generators._novelty import Match, Novelty


class Split:
    """Every text's words, split once, so that brute force is not charged for splitting."""

    def __init__(self, texts: list[str]) -> None:
        self.words = {text: words(text) for text in texts}

    def tokenize(self, text: str) -> list[str]:
        return self.words[text]


def brute(pool: list[str], text: str, threshold: float, score: Callable[[str, str], float]) -> Match | None:
    """The first of the best of the whole pool, if it is above the threshold."""
    best, place = max(((score(other, text), -place) for place, other in enumerate(pool)), default=(0.0, 0))
    return Match(str(-place), best) if best > threshold else None


def timed(nearest: Callable[[str], Match | None], asked: list[str]) -> tuple[float, list[Match | None]]:
    """Texts per second, and what was found."""
    started = time.perf_counter()
    found = [nearest(text) for text in asked]
    return len(asked) / (time.perf_counter() - started), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path, help="a JSON list of rows with an `instruction`")
    parser.add_argument("--pool", type=int, default=5000, help="texts in the pool")
    parser.add_argument("--asked", type=int, default=100, help="texts asked of brute force")
    parser.add_argument("--threshold", type=float, default=0.7, help="ROUGE-L F1 above which a text is near")
    args = parser.parse_args()
    texts = [row["instruction"] for row in json.loads(args.rows.read_text(encoding="utf-8"))]
    pool, asked = texts[: args.pool], texts[args.pool : args.pool + args.asked]
    if not asked:
        parser.error(f"{args.rows} has {len(texts)} rows: give a --pool below that")

    novelty = Novelty(args.threshold)
    started = time.perf_counter()
    for place, text in enumerate(pool):
        novelty.add(str(place), text)
    adding = len(pool) / (time.perf_counter() - started)

    split = Split(texts)
    scorer = RougeScorer(["rougeL"], use_stemmer=False, tokenizer=split)

    def rouge(other: str, text: str) -> float:
        return float(scorer.score(other, text)["rougeL"].fmeasure)

    def fast(other: str, text: str) -> float:
        left, right = split.words[other], split.words[text]
        common = LCSseq.similarity(left, right)
        precision, recall = common / (len(right) or 1), common / (len(left) or 1)
        return 2 * precision * recall / (precision + recall) if common else 0.0

    gate, found = timed(novelty.nearest, asked)
    rapid, same = timed(lambda text: brute(pool, text, args.threshold, fast), asked)
    slow, wanted = timed(lambda text: brute(pool, text, args.threshold, rouge), asked)
    if not found == wanted == same:
        raise SystemExit(
            f"decisions differ: {[pair for pair in zip(found, wanted, strict=True) if pair[0] != pair[1]]}"
        )
    near = sum(match is not None for match in found)
    rates = {"add": adding, "gate": gate, "rapidfuzz_brute": rapid, "rouge_brute": slow}
    told = {f"{name}_per_s": round(rate, 1) for name, rate in rates.items()}
    print(json.dumps({"pool": len(pool), "asked": len(asked), "near": near, "speedup": round(gate / slow)} | told))


if __name__ == "__main__":
    main()
