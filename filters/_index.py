"""An index of a dataset's records that is kept from run to run, in blocks of bytes: the bands of their signatures.

A look-up reads the blocks one after the other. Of a band 16 bits are kept, which mix up some; so two bands must agree,
and hardly more candidates are left than there are duplicates. With 32 bands of four rows a pair of Jaccard 0.7 is found
with a chance of 0.998, one of 0.75 with 0.9999 (see `_signatures`).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from filters._join import PORTION
from filters._sets import LOW, MASK
from filters._shingles import I64, U64, cuts
from filters._signatures import band_keys, bands, signatures_of
from filters._spool import Spool

_NUM_PERM, _SEED, _RECALL = 128, 1, 0.999
_KEY = 16  # bits of a band


class Block(NamedTuple):
    """Records of an index."""

    places: I64
    bands: npt.NDArray[np.uint16]  # (bands, records)

    def written(self) -> bytes:
        """As bytes, little-endian."""
        return self.places.astype("<i8").tobytes() + self.bands.astype("<u2").tobytes()


def read(block: bytes, threshold: float) -> Block:
    """What `written` wrote."""
    number = bands(threshold, _NUM_PERM, _RECALL)[0]
    count = len(block) // (8 + 2 * number)
    places = np.frombuffer(block, "<i8", count)
    return Block(places, np.frombuffer(block, "<u2", number * count, places.nbytes).reshape(number, count))


def indexed(places: I64, spools: Sequence[Spool], threshold: float) -> Block:
    """The index of rows whose parts were spooled."""
    keys = band_keys(signatures_of(spools, _NUM_PERM, _SEED), *bands(threshold, _NUM_PERM, _RECALL))
    return Block(places, (keys >> np.uint64(64 - _KEY)).astype(np.uint16))


class Asked:
    """Rows that are looked up: per band, for every number that it can be, which of the rows have it."""

    def __init__(self, block: Block) -> None:
        self.places = block.places
        codes = block.bands + (np.arange(len(block.bands))[:, None] << _KEY)
        self.counts = np.bincount(codes.ravel(), minlength=len(codes) << _KEY)
        self.starts = np.cumsum(self.counts) - self.counts
        self.rows = np.argsort(codes, axis=None) % max(codes.shape[1], 1)
        self.known = (self.counts > 0).reshape(len(codes), -1)

    def candidates(self, stored: Block) -> Iterator[tuple[I64, I64, I64]]:
        """(row, record of `stored`, bands): pairs that share two bands or more, where the record came first."""
        hits = [np.flatnonzero(np.take(known, band)) for known, band in zip(self.known, stored.bands, strict=True)]
        record = np.concatenate(hits)
        codes = np.concatenate([stored.bands[k, some].astype(np.int64) + (k << _KEY) for k, some in enumerate(hits)])
        order = np.argsort(record, kind="stable")
        record, codes = record[order], codes[order]
        weights = np.bincount(record, self.counts[codes], len(stored.places)).astype(np.int64)
        for begin, end in cuts(weights, PORTION):
            inside = slice(*np.searchsorted(record, [begin, end]))
            pairs, shared = self._agreeing(codes[inside], record[inside])
            row, near = (pairs >> LOW).view(np.int64), (pairs & MASK).view(np.int64)
            chosen = (shared > 1) & (stored.places[near] < self.places[row])
            yield row[chosen], near[chosen], shared[chosen]

    def _agreeing(self, codes: I64, record: I64) -> tuple[U64, I64]:
        """Pairs as row << 32 | record, and how many bands they share."""
        few = self.counts[codes]
        row = self.rows[np.arange(few.sum()) + np.repeat(self.starts[codes] - np.cumsum(few) + few, few)]
        pairs = np.sort(row.view(np.uint64) << LOW | np.repeat(record, few).view(np.uint64))
        first = np.flatnonzero(np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)])
        return pairs[first], np.diff(np.append(first, len(pairs)))
