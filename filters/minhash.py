"""Drops near-duplicates: MinHash proposes, the true Jaccard similarity decides.

Source: Broder 1997 (MinHash) and Leskovec et al., "Mining of Massive Datasets", chapter 3 (banding), by datasketch.
Departures from the usual tools: every candidate is verified on the real shingle sets, so there are no false drops;
bands are chosen for recall, not for few candidates; and duplicates are peeled, not chained: a row is dropped only for
a row that is itself kept, so a long chain of small edits never collapses into one survivor.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from zlib import crc32

import polars as pl
from pydantic import Field

from factory.options import step
from factory.text import jaccard, shingles

CHUNK = 4096  # rows whose sketches are held at once
RECALL = 0.99  # wanted chance that a pair right at the threshold becomes a candidate


@dataclass(frozen=True, slots=True)
class _Shingled:
    """What one row is compared by. A completion is as near as the farther of its text and its prompt."""

    text: set[str]
    prompt: set[str] | None = None

    def tagged(self) -> list[bytes]:
        """One set for the sketch. If both parts have at least Jaccard t in common, so has their tagged union."""
        return [s.encode() for s in self.text] + [b"\x1f" + s.encode() for s in self.prompt or ()]

    def similarity(self, other: "_Shingled") -> float:
        """The true Jaccard similarity, of the less similar part."""
        texts = jaccard(self.text, other.text)
        return texts if self.prompt is None or other.prompt is None else min(texts, jaccard(self.prompt, other.prompt))


@dataclass(frozen=True)
class _Kept:
    """The kept rows so far: an LSH index that proposes and the shingle sets that decide."""

    lsh: Any
    rows: dict[int, _Shingled] = field(default_factory=dict)

    def nearest(self, row: _Shingled, sketch: Any) -> tuple[float, int]:
        """The highest true Jaccard among the candidates and the first row that has it; (0, -1) if there is none."""
        found = ((row.similarity(self.rows[place]), -place) for place in self.lsh.query(sketch))
        score, place = max(found, default=(0.0, 1))
        return score, -place

    def add(self, place: int, row: _Shingled, sketch: Any) -> None:
        self.lsh.insert(place, sketch, check_duplication=False)
        self.rows[place] = row


@step
class Minhash:
    """Keep no two records whose word n-grams overlap by `threshold` or more.

    Rows are visited by priority, then in order; each is compared with the rows kept so far. A drop carries its true
    Jaccard similarity and the kept row it equals most; a kept row carries its nearest kept row below the threshold, so
    that a stricter threshold can be tried on the verdicts alone.
    """

    target: Literal["prompts", "completions"] = "prompts"
    """Which records to compare; completions are near-duplicates only if their prompts are, too."""

    threshold: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Jaccard similarity of word n-grams, above 0 to 1, from which on a record is a near-duplicate."""

    num_perm: Annotated[int, Field(ge=16)] = 128
    """Hash functions of a sketch: more find more of the pairs right at the threshold and take longer."""

    ngram: Annotated[int, Field(ge=1)] = 3
    """Words in a shingle; a text with fewer words is one shingle."""

    seed: Annotated[int, Field(ge=0)] = 1
    """Chooses the hash functions."""

    def screen(self, frame: pl.DataFrame) -> pl.DataFrame:
        """One verdict per row, in the order of the rows."""
        priority = pl.col("priority").cast(pl.Float64).fill_nan(None)
        ranked = frame.with_row_index("row").sort(priority, descending=True, nulls_last=True, maintain_order=True)
        nearest = pl.DataFrame(
            self._peel(ranked), {"row": pl.UInt32, "score": pl.Float64, "near": pl.UInt32}, orient="row"
        ).sort("row")
        keep = pl.col("score") < self.threshold
        evidence = frame["id"].gather(nearest["near"]).fill_null("")
        return nearest.select(
            frame["id"],
            keep=keep,
            reason=pl.when(keep).then(pl.lit("")).otherwise(pl.lit("near_duplicate")),
            score="score",
            threshold=pl.lit(self.threshold),
            evidence_id=evidence,
        )

    def _peel(self, ranked: pl.DataFrame) -> Iterator[tuple[int, float, int | None]]:
        """Per row its place, its highest Jaccard with a kept row, and that row's place."""
        kept = _Kept(self._index())
        for place, row, sketch in self._sketched(ranked):
            score, near = kept.nearest(row, sketch)
            if score < self.threshold:
                kept.add(place, row, sketch)
            yield place, score, near if score else None

    def _sketched(self, ranked: pl.DataFrame) -> Iterator[tuple[int, _Shingled, Any]]:
        from datasketch import MinHash  # pulls in scipy

        for chunk in ranked.select("row", "text", "prompt").iter_slices(CHUNK):
            rows = [self._shingled(text or "", prompt or "") for _, text, prompt in chunk.iter_rows()]
            tokens = [row.tagged() for row in rows]
            sketches = MinHash.bulk(tokens, num_perm=self.num_perm, seed=self.seed, hashfunc=crc32)
            yield from zip(chunk["row"].to_list(), rows, sketches, strict=True)

    def _shingled(self, text: str, prompt: str) -> _Shingled:
        if self.target == "prompts":
            return _Shingled(shingles(text, self.ngram))
        return _Shingled(shingles(text, self.ngram), shingles(prompt, self.ngram))

    def _index(self) -> Any:
        from datasketch import MinHashLSH

        return MinHashLSH(num_perm=self.num_perm, params=bands(self.threshold, self.num_perm))


def bands(threshold: float, num_perm: int) -> tuple[int, int]:
    """(bands, rows per band): the longest bands that still propose a pair at the threshold with a chance of RECALL.

    Bands of one row if none reach that: `num_perm` is then too small for so low a threshold.
    """
    fitting = (
        rows for rows in range(num_perm // 2, 1, -1) if 1 - (1 - threshold**rows) ** (num_perm // rows) >= RECALL
    )
    rows = next(fitting, 1)
    return num_perm // rows, rows
